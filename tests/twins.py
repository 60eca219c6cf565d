"""Plain twins: every operator once more, dense and naive, written from the papers' formulas.

A twin treats one head at a time, deletes masked keys instead of masking them, forms every matrix,
and works in the dtype that it is given. Of softlab it imports the names that it dispatches on, and
for UniformRandom the drawn indices; no arithmetic.
"""

from functools import singledispatch
from itertools import product

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from softlab import landmarks, operators, pinv


def twin(op, q, k, v, key_mask=None):
    """What ``op(q, k, v, key_mask)`` must return, head by head."""
    lead = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    q, k, v = (x.expand(*lead, *x.shape[-2:]) for x in (q, k, v))
    keep = torch.ones(k.shape[:-1], dtype=torch.bool)
    keep = keep if key_mask is None else key_mask.expand(keep.shape)
    heads = product(*map(range, lead))
    out = [head(op, q[i], k[i][keep[i]], v[i][keep[i]]) for i in heads]
    return torch.stack(out).reshape(*lead, *out[0].shape)


@singledispatch
def head(op, q, k, v):
    """One head: q (n, d), k (l, d), v (l, e) -> (n, e)."""
    raise NotImplementedError(type(op))


@head.register
def _(op: operators.Softmax, q, k, v):
    scale = q.shape[-1] ** -0.5 if op.scale is None else op.scale
    return torch.softmax(scale * (q @ k.mT), -1) @ v


@head.register
def _(op: operators.GaussianAttention, q, k, v):
    s = q.shape[-1] ** 0.25 if op.bandwidth is None else op.bandwidth
    S = gaussian(q, k, s)
    if op.normalization == "none":
        return S @ v
    if op.normalization == "row":  # a row's sum is read off the matrix: no product
        return (S / S.sum(-1, keepdim=True)) @ v
    ones = torch.ones_like(v[:, :1])
    of_queries, of_keys = S @ ones, gaussian(k, k, s) @ ones
    return (of_queries**-0.5 * S * of_keys.mT**-0.5) @ v


@head.register
def _(op: operators.Soft, q, k, v):
    s = q.shape[-1] ** 0.25 if op.bandwidth is None else op.bandwidth
    z = points(op.landmarks, k, op.rank)
    ones = torch.ones_like(v[:, :1])
    A = gaussian(z, z, s)
    Y = inverse(op.pinv, A)
    if op.normalization == "published":
        D = A.sum(-1, keepdim=True)
        Y = D**-0.5 * Y * D.mT**-0.5

    # As the method is meant to run: a kernel matrix is formed where it is used, and not kept.
    def S(x, columns):
        return gaussian(x, z, s) @ (Y @ (gaussian(z, k, s) @ columns))

    if op.normalization in ("none", "published"):
        return S(q, v)
    if op.normalization == "row":
        both = S(q, torch.cat((v, ones), -1))
        return both[:, :-1] / both[:, -1:]
    weights = Y @ (gaussian(z, k, s) @ ones)
    of_keys = power(gaussian(k, z, s) @ weights)
    inner = Y @ (gaussian(z, k, s) @ (of_keys * v))
    both = gaussian(q, z, s) @ torch.cat((inner, weights), -1)
    return power(both[:, -1:]) * both[:, :-1]


@head.register
def _(op: operators.Nystromformer, q, k, v):
    z_q, z_k = (points(op.landmarks, x, op.rank) for x in (q, k))
    d = q.shape[-1]
    F = torch.softmax(q @ z_k.mT / d**0.5, -1)
    A = torch.softmax(z_q @ z_k.mT / d**0.5, -1)
    B = torch.softmax(z_q @ k.mT / d**0.5, -1)
    return F @ (inverse(op.pinv, A) @ (B @ v))


@head.register
def _(op: operators.Uniform, q, k, v):
    return v.mean(0).expand(len(q), v.shape[-1])


@head.register
def _(op: operators.TruncatedSVD, q, k, v):
    M = head(op.target, q, k, torch.eye(len(k), dtype=k.dtype))
    U, s, Vh = torch.linalg.svd(M, full_matrices=False)
    m = op.rank
    return U[:, :m] @ (s[:m, None] * (Vh[:m] @ v))


def gaussian(x, y, s):
    """exp(-|x_i - y_j|^2 / (2 s^2)), the distances by |x|^2 + |y|^2 - 2 <x, y>."""
    squares = x.square().sum(-1)[:, None] + y.square().sum(-1)[None, :]
    return torch.exp((2 * (x @ y.mT) - squares) / (2 * s**2))


def power(degree):
    """degree^(-1/2), 0 where the approximate degree is not positive."""
    return torch.where(degree > 0, degree.clamp_min(1e-300) ** -0.5, 0)


@singledispatch
def points(selector, x, m):
    """m landmarks of tokens x (s, d)."""
    raise NotImplementedError(type(selector))


@points.register
def _(selector: landmarks.SegmentMeans, x, m):
    owner = torch.arange(len(x)) * m // len(x)
    return torch.stack([x[owner == j].mean(0) for j in range(m)])


@points.register
def _(selector: landmarks.Strided, x, m):
    return torch.stack([x[j * len(x) // m] for j in range(m)])


@points.register
def _(selector: landmarks.UniformRandom, x, m):
    return x[selector.indices(x, m)]


@singledispatch
def inverse(solver, a):
    """The (pseudo-)inverse of one matrix (m, m)."""
    raise NotImplementedError(type(solver))


@inverse.register
def _(solver: pinv.SVD, a):
    U, s, Vh = torch.linalg.svd(a)
    big = s > len(a) * torch.finfo(a.dtype).eps * s[0]
    return (Vh.mT * torch.where(big, 1 / s, 0)) @ U.mT


@inverse.register
def _(solver: pinv.Cholesky, a):
    shift = 4 * torch.finfo(a.dtype).eps * a.trace().detach()
    return torch.linalg.inv(a + shift * torch.eye(len(a), dtype=a.dtype))


@inverse.register
def _(solver: pinv.Ridge, a):
    return inverse(solver.solver, a + solver.ridge * torch.eye(len(a), dtype=a.dtype))


@inverse.register
def _(solver: pinv.NewtonRaphson, a):
    x = start(solver, a)
    for _ in range(solver.steps):
        x = 2 * x - x @ a @ x
    return x


@inverse.register
def _(solver: pinv.NystromformerCubic, a):
    eye, x = torch.eye(len(a), dtype=a.dtype), start(solver, a)
    for _ in range(solver.steps):
        ax = a @ x
        x = 0.25 * x @ (13 * eye - ax @ (15 * eye - ax @ (7 * eye - ax)))
    return x


@inverse.register
def _(solver: pinv.ImplicitGradient, a):
    with torch.no_grad():
        y = inverse(solver.solver, a)
    # The value is y, and the differential is -y da y.
    return y - y @ (a - a.detach()) @ y if a.requires_grad else y


def start(solver, a):
    """factor * A^T / (|A|_1 |A|_inf)."""
    one, infinity = a.abs().sum(0).max(), a.abs().sum(1).max()
    return solver.scaling.factor * a.mT / (one * infinity)


class Exponentials(TorchDispatchMode):
    """Counts the exponentials evaluated inside the context."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in (torch.ops.aten.exp, torch.ops.aten._softmax):
            self.total += out.numel()
        return out
