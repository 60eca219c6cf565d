"""Where a planted fault shows: an input, the right form, and how far apart the two are there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ALLOWED = 200.0
"""Relative differences up to so many roundings are none: right forms differ by a few."""

Call = Callable[..., Any]


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_mask: Tensor | None = None,
    *,
    scale: float | None = None,
    bias: Tensor | float = 0.0,
) -> Tensor:
    """Softmax attention, plain and right: half precision in float32, masked keys as deleted."""
    dtype = v.dtype
    if dtype.itemsize < 4:
        q, k, v = q.float(), k.float(), v.float()
    if key_mask is not None:
        k, v = (torch.where(key_mask.unsqueeze(-1), x, 0) for x in (k, v))
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale) + bias
    if key_mask is None:
        return (scores.softmax(-1) @ v).to(dtype)
    some = key_mask.any(-1, keepdim=True)
    weights = scores.masked_fill(~(key_mask | ~some).unsqueeze(-2), -torch.inf).softmax(-1)
    return (weights * some.unsqueeze(-2) @ v).to(dtype)


class Kept(torch.autograd.Function):
    """Softmax attention that keeps its inputs, for a backward pass by hand."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Keep the inputs."""
        ctx.save_for_backward(q, k, v)
        return attend(q, k, v)


def gaussian(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Gaussian attention by differences, of bandwidth d^(1/4), no rows normalised."""
    squares = (q.unsqueeze(-2) - k.unsqueeze(-3)).square().sum(-1)
    weights: Tensor = (-squares / (2 * q.shape[-1] ** 0.5)).exp()
    return weights @ v


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal softmax attention."""
    late = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).triu(1)
    return attend(
        q, k, v, bias=torch.zeros(late.shape, dtype=q.dtype).masked_fill(late, -torch.inf)
    )


def apart(found: Tensor, exact: Tensor, dtype: torch.dtype) -> float:
    """The largest difference over the largest entry and what rounding allows; inf of other kinds.

    Above one it is no rounding.
    """
    if found.shape != exact.shape or found.dtype != dtype:
        return torch.inf
    found, exact = found.detach().double(), exact.detach().double()
    finite = exact.isfinite()
    if (found.isfinite() != finite).any():
        return torch.inf
    if not finite.any():
        return 0.0
    size = exact[finite].abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    gap = (found - exact)[finite].abs().max() / size
    return float(gap) / (ALLOWED * torch.finfo(dtype).eps)


@dataclass(frozen=True)
class At:
    """One valid input of attention, and what is compared there with the right form in float64.

    ``mask``: leading sizes of a key mask. ``padding``: what masked keys and values hold. ``nan``:
    one entry of v is. ``of``: "output", "gradient", its derivative ("second"), or the gradient of
    "q alone". ``right``: the right form.
    """

    n: int = 5
    l: int = 7
    d: int = 4
    e: int = 3
    lead: tuple[int, ...] = ()
    key_lead: tuple[int, ...] | None = None
    mask: tuple[int, ...] | None = None
    left: int | None = None
    scale: float = 1.0
    shift: float = 0.0
    padding: float | None = None
    nan: bool = False
    tied: bool = False
    dtype: torch.dtype = torch.float64
    of: str = "output"
    right: Call = attend

    def tensors(self) -> list[Tensor]:
        """q, k, v, and the mask if there is one."""
        draw = torch.Generator().manual_seed(self.n * self.l + self.d)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=draw, dtype=torch.float64)

        behind = self.lead if self.key_lead is None else self.key_lead
        q = normal(*self.lead, self.n, self.d) * self.scale + self.shift
        k = normal(*behind, self.l, self.d) * self.scale + self.shift
        k, v = q if self.tied else k, normal(*behind, self.l, self.e)
        if self.nan:
            v[..., 0, 0] = torch.nan
        tensors = [q.to(self.dtype), k.to(self.dtype), v.to(self.dtype)]
        if self.mask is None:
            return tensors
        keep = torch.rand((*self.mask, self.l), generator=draw) < 0.6
        if self.left is not None:
            keep = (torch.arange(self.l) >= self.l - self.left).expand(keep.shape).clone()
        if self.padding is not None:
            for x in tensors[1:]:
                x[~keep.expand(x.shape[:-1])] = self.padding
        return [*tensors, keep]

    def __call__(self, subject: Call) -> float:
        """How far the subject is from the right form, over what rounding allows."""
        tensors = self.tensors()
        exact = [x.double() if x.is_floating_point() else x for x in tensors]
        pairs = zip(self._found(subject, tensors), self._found(self.right, exact), strict=True)
        return max(apart(x, y, self.dtype) for x, y in pairs)

    def on(self, subject: Call, tensors: list[Tensor]) -> float:
        """The same of outputs for tensors that are given."""
        return apart(subject(*tensors), self.right(*tensors), self.dtype)

    def _found(self, call: Call, tensors: list[Tensor]) -> list[Tensor]:
        if self.of == "output":
            return [call(*tensors)]
        q, k, v = (x.detach().clone() for x in tensors[:3])
        k = q if self.tied else k
        leaves = [q] if self.of == "q alone" else [q, v] if self.tied else [q, k, v]
        for x in leaves:
            x.requires_grad_()
        out = call(q, k, v, *tensors[3:])
        twice = self.of == "second"
        found = _gradients(_weighted(out), leaves, twice)
        return _gradients(sum(x.square().sum() for x in found), leaves) if twice else found


def _weighted(out: Tensor) -> Tensor:
    """The sum of the entries, each with a weight of its own."""
    draw = torch.Generator().manual_seed(1)
    weight = torch.randn(out.shape, generator=draw, dtype=torch.float64).to(out.dtype)
    return (out * weight).sum()


def _gradients(of: Any, leaves: list[Tensor], graph: bool = False) -> list[Tensor]:
    if not of.requires_grad:
        return [torch.zeros_like(x) for x in leaves]
    found = torch.autograd.grad(of, leaves, create_graph=graph, allow_unused=True)
    return [torch.zeros_like(x) if y is None else y for x, y in zip(leaves, found, strict=True)]


def matrix(
    m: int = 6,
    *,
    lead: tuple[int, ...] = (),
    condition: float = 10.0,
    rank: int | None = None,
    kind: str = "any",
    scale: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """A matrix of that condition and rank; ``kind``: "any", "definite" or "indefinite"."""
    draw = torch.Generator().manual_seed(m)
    u, w = (
        torch.linalg.qr(torch.randn((*lead, m, m), generator=draw, dtype=torch.float64)).Q
        for _ in range(2)
    )
    s = torch.logspace(0, -torch.tensor(condition).log10().item(), m, dtype=torch.float64)
    s = torch.where(torch.arange(m) < (m if rank is None else rank), s, 0)
    if kind == "indefinite":
        s = s * (-1) ** torch.arange(m)
    a: Tensor = scale * (u * s) @ (w if kind == "any" else u).mT
    return a.to(dtype)


@dataclass(frozen=True)
class Of:
    """One matrix (arguments of ``matrix``), and what is compared there with the pseudo-inverse.

    ``of``: "inverse", "gradient", "second". Rounding is amplified by ``condition``.
    """

    m: int = 6
    lead: tuple[int, ...] = ()
    condition: float = 10.0
    rank: int | None = None
    kind: str = "any"
    scale: float = 1.0
    dtype: torch.dtype = torch.float64
    of: str = "inverse"

    def __call__(self, subject: Call) -> float:
        """How far the subject is from the pseudo-inverse, over what rounding allows."""
        a = matrix(
            self.m,
            lead=self.lead,
            condition=self.condition,
            rank=self.rank,
            kind=self.kind,
            scale=self.scale,
            dtype=self.dtype,
        )

        def exact(a: Tensor) -> Tensor:
            if self.rank is not None:
                return torch.linalg.pinv(a, rtol=1e-10)
            return torch.linalg.inv(a)

        pairs = zip(self._found(subject, a), self._found(exact, a.double()), strict=True)
        return max(apart(x, y, self.dtype) for x, y in pairs) / max(1.0, self.condition)

    def _found(self, call: Call, a: Tensor) -> list[Tensor]:
        if self.of == "inverse":
            return [call(a)]
        a = a.detach().clone().requires_grad_()
        out = call(a)
        twice = self.of == "second"
        found = _gradients(_weighted(out), [a], twice)
        return _gradients(found[0].square().sum(), [a]) if twice else found
