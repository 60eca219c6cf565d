"""Kernels, sums and averages in float64, entry by entry, and what rounding allows beside them."""

import math

import torch
from matrices import F32, normal

from softlab.kernels import Exponential
from softlab.laws import tolerance

HALVES = [torch.bfloat16, torch.float16]


def naive(kernel, x, y):
    """The matrix in float64, entry by entry."""
    x, y = x.double(), y.double()
    if isinstance(kernel, Exponential):
        scale = x.shape[-1] ** -0.5 if kernel.scale is None else kernel.scale
        return (scale * (x[..., :, None, :] * y[..., None, :, :]).sum(-1)).exp()
    squares = (x[..., :, None, :] - y[..., None, :, :]).square().sum(-1)
    return (-squares / (2 * kernel.bandwidth**2)).exp()


def naive_average(kernel, x, y, v, key_mask=None):
    x, y = x.double(), y.double()
    if isinstance(kernel, Exponential):
        scale = x.shape[-1] ** -0.5 if kernel.scale is None else kernel.scale
        scores = scale * (x[..., :, None, :] * y[..., None, :, :]).sum(-1)
    else:
        squares = (x[..., :, None, :] - y[..., None, :, :]).square().sum(-1)
        scores = -squares / (2 * kernel.bandwidth**2)
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask.unsqueeze(-2), -math.inf)
    return scores.softmax(-1) @ v.double()


def working(dtype):
    """The precision that sums are formed in."""
    return F32 if dtype in HALVES else dtype


def allowed(dtype, exact, size, exponent):
    """One rounding of the result, and eps * (largest exponent) in the sum of ``size`` terms."""
    rounding = torch.finfo(dtype).eps * exact.abs()
    return rounding + tolerance(working(dtype), exact.shape[-1] + 10, kappa=exponent, scale=size)


def results(call, *tensors):
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    out = call(*leaves)
    weight = normal(*out.shape, seed=9).to(out.dtype)
    return [out, *torch.autograd.grad((out * weight).sum(), leaves)]
