"""Polynomials in the residual: the one step that every Newton-type iteration is made of."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Number = float | Tensor


@dataclass(frozen=True)
class ResidualPolynomial:
    """The map X -> X g(R) with R = I - A X and g(r) = c_0 + c_1 r + ... + c_d r^d.

    ``coefficients``: c_0 to c_d, d >= 1, numbers or tensors (..., 1, 1), one a matrix. An
    eigenvalue r of the residual becomes 1 - (1 - r) g(r), r^(d + 1) for g = 1 + r + ... + r^d. In
    powers of R the correction to X is small where X is good, which loses fewer digits than powers
    of A X. Evaluated in blocks of two powers (Paterson and Stockmeyer 1973).
    """

    coefficients: tuple[Number, ...]

    @property
    def products(self) -> int:
        """Products of m x m matrices in one application."""
        return products(len(self.coefficients) - 1)

    @property
    def growth(self) -> float:
        """g(1), the factor of an error in the null space of A; the largest over the matrices."""
        total = sum(self.coefficients)
        return float(total.max()) if isinstance(total, Tensor) else float(total)

    def __call__(self, a: Tensor, x: Tensor) -> Tensor:
        """X g(I - A X), (..., m, m), in the dtype of X."""
        if len(self.coefficients) == 2 and x.dtype.itemsize >= 4:
            # (c_0 + c_1) X - c_1 X A X makes one pass less. In half precision it would round A X,
            # and with it the residual; a residual that is summed where the product is keeps it.
            low, high = self.coefficients
            if isinstance(low, Tensor) or isinstance(high, Tensor):
                low, high = _cast(low, x), _cast(high, x)
                return added((low + high) * x, x, high * (a @ x), -1.0)
            # What matmul does beside the product of a batch takes up to a quarter of a small one.
            return added(x, x, torch.bmm(a, x) if x.ndim == 3 else a @ x, -high, low + high)
        return self.of(x, residual(a, x))

    def of(self, x: Tensor, r: Tensor) -> Tensor:
        """X g(R) for a residual that is known."""
        c = [_cast(y, x) for y in self.coefficients]
        if len(c) == 2:
            return added(_times(c[0], x), x, _times(c[1], r))
        if len(c) == 3:
            y = x @ r
            return added(_times(c[0], x) + _times(c[1], y), y, _times(c[2], r))
        square = r @ r
        eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        # The highest block has two coefficients or three, those below it two.
        top = len(c) - 3 if len(c) % 2 else len(c) - 2
        g = _times(c[top], eye) + _times(c[top + 1], r)
        if len(c) % 2:
            g = g + _times(c[top + 2], square)
        for i in range(top - 2, -1, -2):
            g = added(_times(c[i], eye) + _times(c[i + 1], r), g, square)
        return x @ g

    def residual(self, r: Tensor) -> Tensor:
        """What becomes of eigenvalues r of the residual, elementwise: 1 - (1 - r) g(r).

        ``r`` of any shape that the coefficients, reshaped to it, broadcast with: (..., m).
        """
        c = [y[..., 0] if isinstance(y, Tensor) else y for y in self.coefficients]
        # In powers of r: 1 - (1 - r) g(r) itself would cancel where r is small.
        image = torch.zeros_like(r) + c[-1]
        for low, high in reversed(list(itertools.pairwise(c))):
            image = image * r + (low - high)
        return image * r + (1 - c[0])


def added(c: Tensor, a: Tensor, b: Tensor, factor: float = 1.0, own: float = 1.0) -> Tensor:
    """The sum own C + factor A B, made where the product is: one pass, no rounding in between."""
    if a.ndim == 2:
        return torch.addmm(c, a, b, beta=own, alpha=factor)
    if a.ndim == 3:
        return torch.baddbmm(c, a, b, beta=own, alpha=factor)
    flat = (x.reshape(-1, *x.shape[-2:]) for x in (c, a, b))
    return torch.baddbmm(*flat, beta=own, alpha=factor).reshape(a.shape)


def residual(a: Tensor, x: Tensor) -> Tensor:
    """R = I - A X."""
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    return added(eye.expand(a.shape), a, x, -1.0)


def _cast(c: Number, x: Tensor) -> Number:
    return c.to(x.dtype) if isinstance(c, Tensor) else c


def _times(c: Number, x: Tensor) -> Tensor:
    """The multiple c X, without a pass over X for c = 1."""
    return x if isinstance(c, float) and c == 1 else c * x


def cushion(dtype: torch.dtype, m: int) -> float:
    """The least interval [l, 1], as l, that steps on m x m matrices may be fitted to.

    Between l and 1 the residual equioscillates near -1 and 1, and beyond 1 the polynomial grows
    without bound: rounding must not carry an eigenvalue there. Below it, steps diverge at once in
    half precision. Compare the safety factors of PolarExpress (arXiv 2505.16932).
    """
    # Half precision is summed wider, so that its rounding does not grow with m.
    terms = 1 if dtype.itemsize < 4 else m
    return 4 * math.sqrt(terms) * torch.finfo(dtype).eps


def equioscillating(gap: Number, degree: int) -> tuple[ResidualPolynomial, Number]:
    """The step of this degree that leaves least of a residual in [-t, t], t = 1 - gap.

    Its residual is T_p(r / t) / T_p(1 / t), p = ``degree`` >= 2: of all polynomials of that degree
    that are 1 at r = 1, as those of a step are, the one of least maximum (Chebyshev). ``gap``: in
    [0, 1], a number or a float64 tensor (..., 1, 1). Also returns the next gap, 1 - 1 / T_p(1 / t);
    it is carried in place of t, which rounds to 1 for condition numbers beyond 1e8.
    """
    t = 1 - gap
    tau = _chebyshev(degree)
    # Multiplied by t^p throughout, so that nothing overflows as t vanishes.
    powers = [t * 0 + 1.0]
    for _ in range(degree):
        powers.append(powers[-1] * t)
    top = sum(x * powers[degree - j] for j, x in enumerate(tau))
    image = [x * powers[degree - j] / top for j, x in enumerate(tau)]
    # g = (1 - image) / (1 - r): its coefficients are the partial sums.
    coefficients = [1 - image[0]]
    for x in image[1:-1]:
        coefficients.append(coefficients[-1] - x)
    return ResidualPolynomial(tuple(coefficients)), (top - powers[degree]) / top


@functools.cache
def _chebyshev(degree: int) -> tuple[float, ...]:
    """The coefficients of T_p; converting them anew costs more than a step on a small matrix."""
    return tuple(float(x) for x in np.polynomial.chebyshev.cheb2poly([0.0] * degree + [1.0]))


def equioscillation(ratio: Number, degree: int, steps: int) -> Iterator[ResidualPolynomial]:
    """The steps in turn for eigenvalues in [ratio, 1] times any scale, from the middle of it.

    ``ratio``: in (0, 1], a number or a float64 tensor (..., 1, 1).
    """
    gap: Number = 2 * ratio / (1 + ratio)
    for _ in range(steps):
        step, gap = equioscillating(gap, degree)
        yield step


def sent(maps: Iterator[ResidualPolynomial], device: torch.device) -> Iterator[ResidualPolynomial]:
    """Steps whose coefficients were made on the CPU, all of them brought to the device at once."""
    table = torch.stack([torch.stack([torch.as_tensor(c) for c in x.coefficients]) for x in maps])
    for step in table.to(device):
        yield ResidualPolynomial(tuple(step))


def products(degree: int) -> int:
    """Products of m x m matrices that X g(R) takes for g of this degree, R = I - A X included."""
    return degree + 1 if degree <= 2 else 3 + (degree - 1) // 2
