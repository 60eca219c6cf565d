"""Laws of precision: rounding no worse than a plain implementation's, and values of any size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from softlab.core import Operator, as_matrix
from softlab.laws.dependence import condition
from softlab.laws.law import (
    Gap,
    Law,
    always,
    has_target,
    is_plain,
    largest,
    lengths,
    normal,
    rank_of,
    refused,
    size,
    tolerance,
)

F64 = torch.float64
FACTOR = 8.0
"""How many times the error of the plain implementation is allowed."""


def _draw(op: Operator, rng: torch.Generator, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    m = rank_of(op)
    n, l = lengths(op, m + size(11, 2), m + size(13, 2))
    shapes = (n, size(8, 2)), (l, size(8, 2)), (l, size(3))
    q, k, v = (normal(rng, *shape, dtype=dtype) for shape in shapes)
    return q, k, v


def _two_errors(op: Operator, rng: torch.Generator) -> Iterator[Gap]:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        q, k, v = _draw(op, rng, dtype)
        wide = [x.double() for x in (q, k, v)]
        reference = op(*wide)
        try:
            mine = largest(op(q, k, v).double() - reference)
        except RuntimeError as error:
            if refused(op, error, dtype):
                continue
            raise
        plain = largest(reference.to(dtype).double() - reference)
        if is_plain(op):
            # A choice, as of the largest scores, may fall otherwise once tokens are rounded.
            for _ in range(16):
                noise = (4 * torch.finfo(dtype).eps * normal(rng, *x.shape).sign() for x in wide)
                near = (x * (1 + y) for x, y in zip(wide, noise, strict=True))
                plain = max(plain, largest(op(*near) - reference))
        if has_target(op):
            # A dense matrix in that precision, and its product with v.
            dense = as_matrix(op.target, *wide[:2])
            product = dense.to(dtype) @ v
            plain = max(plain, largest(product.double() - dense @ wide[2]))
        # Rows of both signs that sum to little: their condition is the sum of the magnitudes.
        mass = max(1.0, float(as_matrix(op, *wide[:2]).abs().sum(-1).max()))
        scale = largest(reference)
        if mass > 1.5:
            scale = mass * (scale + largest(v))
        rounding = tolerance(dtype, len(k), c=1, scale=scale)
        # Operators work in float32 at least, so that a core's condition counts in its precision.
        kappa = 10 * condition(op, *wide[:2])
        inner = tolerance(torch.float32, len(k), c=1, kappa=kappa, scale=largest(v))
        allowed = FACTOR * max(plain, rounding) + (inner if kappa > 10 else 0)
        yield Gap(mine, allowed, f"{dtype}: plain {plain:.2g}, n={len(q)}, l={len(k)}")


def _homogeneous(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    for dtype, exponents in ((F64, (-900, -100, 100, 900)), (torch.float32, (-100, 100))):
        q, k, v = _draw(op, rng, dtype)
        out = op(q, k, v).double()
        allowed = tolerance(dtype, len(k), c=100, scale=largest(v))
        for exponent in exponents:
            held = op(q, k, v * 2.0**exponent).double() * 2.0**-exponent
            yield Gap(largest(held - out), allowed, f"{dtype}, values times 2^{exponent}")


def _denormal(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    for dtype in (F64, torch.float32):
        q, k, v = _draw(op, rng, dtype)
        tiny = torch.finfo(dtype).tiny
        tokens = op(q * (tiny / 4), k * (tiny / 4), v)
        yield Gap(float((~tokens.isfinite()).sum()), 0, f"{dtype}, tokens below the normal numbers")
        if not op.traits.linear_in_v:
            continue
        out = op(q, k, v * (tiny / 4)).double()
        wanted = op(q, k, v).double() * (tiny / 4)
        # Each product is a multiple of the least number.
        least = tiny * torch.finfo(dtype).eps
        allowed = 100 * len(k) * least * (1 + largest(as_matrix(op, q, k)))
        allowed += 100 * torch.finfo(dtype).eps * largest(wanted)
        yield Gap(largest(out - wanted), allowed, f"{dtype}, values below the normal numbers")


def _shown(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    tokens = _draw(op, rng, F64)
    plain = is_plain(op)
    # What an unknown function does with q and k, as a largest score, may well be finite.
    names = "v" if op.traits.blind or (plain and not op.form) else "qkv"
    for name in names:
        # A known function may bound its scores, and infinite ones with them.
        for held in (math.nan, math.inf)[: 1 if plain and name != "v" else 2]:
            given = [x.clone() for x in tokens]
            given["qkv".index(name)][:, 0] = held
            try:
                out = op(*given)
            except Exception:  # a refusal hides nothing
                continue
            hidden = bool(out.isfinite().all())
            if plain and name != "v":  # zeros are how functions answer for a row without a key
                hidden = bool((out.isfinite().all(-1) & (out != 0).any(-1)).any())
            yield Gap(float(hidden), 0, f"{held} in the first column of {name}: it is hidden")


SHOWN: Law[Any] = Law(
    "nothing is hidden",
    "NaN or inf in the values is refused or seen in the output; of an operator also in q and k; of "
    "a known attention also NaN there, or its row is zero",
    always,
    _shown,
    family="numerical",
    allows="nothing",
    catches="outputs through nan_to_num; values that are clamped; scores through nan_to_num",
    examples=1,
)
TWO_ERRORS: Law[Operator] = Law(
    "two errors",
    "in float32, bfloat16 and float16 the error against float64 is at most 8 times that of a dense "
    "matrix rounded to that precision and applied in it",
    lambda op: op.traits.linear_in_v,
    _two_errors,
    family="numerical",
    when="is linear in v",
    allows="8 times the plain error, or the rounding of rows of that condition; of a core, also "
    "its condition times the rounding of float32",
    catches="sums in float16",
)
HOMOGENEOUS: Law[Any] = Law(
    "values of any size",
    "op(q, k, c v) = c op(q, k, v) for powers c of two over 540 orders of ten, 60 in float32",
    lambda op: op.traits.linear_in_v,
    _homogeneous,
    family="numerical",
    when="is linear in v",
    allows="rounding of sums over l",
    catches="values that are clipped; a small number added to the output",
)
DENORMAL: Law[Any] = Law(
    "denormal numbers",
    "tokens below the normal numbers give finite outputs, and such values their average",
    lambda op: True,  # noqa: ARG005
    _denormal,
    family="numerical",
    allows="a least number for each product",
    catches="a division by a norm that underflows",
)
