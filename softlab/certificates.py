"""How wrong is an operator on this input: what is certain, what a sample says, what it costs."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from softlab import validation
from softlab.core import INSTEAD, Dims, Operator, own_precision
from softlab.estimators import ExactRows
from softlab.estimators.estimate import Estimate, check_confidence, magnitude, of_ratio
from softlab.primitives.certificates import relative
from softlab.validation import typed


@dataclass(frozen=True)
class Certificate:
    """One matrix: the error that is certified, the error that a sample of exact rows says.

    ``at``: the index of the matrix among the leading dimensions; ``n``: its queries.
    ``certified``: at least |out - exact|_F / |exact|_F, from ``op.bound`` alone; infinite where
    the bound reaches the output, None where the operator claims none. ``row``: the largest bound
    of a row, in the units of v. ``error``: the same ratio from ``rows`` exact rows with its
    interval, exact where these are all. ``ratio``: the bounds of the drawn rows over their errors,
    roots of sums of squares, None where nothing is bounded or missed; 1 is as sharp as can be.
    ``held``: whether no sampled row errs by more than its
    bound. ``work``: of a call beside the exact operator's; ``says``: what ``certified`` lacks.
    """

    at: tuple[int, ...]
    n: int
    certified: float | None
    row: float | None
    error: Estimate
    ratio: float | None
    held: bool | None
    work: float
    says: str = ""


@typed
@own_precision
def certify(
    op: Operator,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_mask: Tensor | None = None,
    *,
    rows: int = 256,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[Certificate]:
    """Say of each matrix how wrong the operator is on it, and what that costs.

    With b_i the bounds of rows, |out - exact|_F is at most B = (sum_i b_i^2)^(1/2), and |exact|_F
    at least |out|_F - B, so that the relative error is at most B / (|out|_F - B). The sampled error
    and the certificate check each other, at any length: no exact output is formed but its sampled
    rows, n l d work for all of them at ``rows`` = n.

    Args:
        op: an operator; one without the claim ``certified`` is sampled alone, and says so.
        q: queries (..., n, d).
        k: keys (..., l, d).
        v: values (..., l, e).
        key_mask: boolean, broadcastable to (..., l): the keys that take part. They are deleted
            here, and of a causal operator their queries, which the call says is the same.
        rows: exact rows of each matrix, 2 at least; all where there are fewer.
        confidence: of the interval of the sampled error, between 0 and 1.
        seed: of the sample, at least 0.

    Returns:
        One certificate for each matrix, in the order of the leading dimensions.

    Raises:
        TypeError: what is given is no operator or no tensor.
        ValueError: as the operator's call, and for a count or confidence out of range.
    """
    check_confidence(confidence)
    validation.count("rows", rows, 2)
    q, k, v, key_mask = validation.admit(q, k, v, key_mask)
    with torch.no_grad():
        return [
            _certified(op, at, *case, rows, confidence, seed)
            for at, case in _matrices(op, q, k, v, key_mask)
        ]


def _matrices(
    op: Operator, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None
) -> Iterator[tuple[tuple[int, ...], tuple[Tensor, Tensor, Tensor]]]:
    """Each matrix by itself, its masked keys deleted."""
    for at in itertools.product(*(range(size) for size in q.shape[:-2])):
        case = q[at], k[at], v[at]
        if key_mask is not None:
            kept = key_mask[at]
            x = q[at][kept] if op.traits.causal else q[at]
            case = x, k[at][kept], v[at][kept]
        yield at, case


def _certified(
    op: Operator,
    at: tuple[int, ...],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: int,
    confidence: float,
    seed: int,
) -> Certificate:
    out = op(q, k, v)
    drawn = ExactRows(op.target, q, k, v, rows=min(rows, len(q)), seed=seed)
    missed = out[drawn.at].double() - drawn.output
    finite = bool(out.isfinite().all())
    unit = max(magnitude(drawn.output), magnitude(missed)) if finite else 1.0
    error = Estimate(math.inf, math.inf, math.inf, confidence)
    if finite:
        top, bottom = ((x / unit).square().sum(-1).cpu() for x in (missed, drawn.output))
        error = of_ratio(top, bottom, confidence, share=drawn.share).root()
    dims = Dims.of(q, k, v)
    work = op.cost(dims).work / op.target.cost(dims).work
    if not op.traits.certified:
        says = f"{op!r} claims no bound of its error. Instead, {INSTEAD}."
        return Certificate(at, len(q), None, None, error, None, None, work, says)
    bound = op.bound(q, k, v, out=out).double()  # type: ignore[attr-defined]
    certified = relative(bound, out)
    largest = float(v.abs().max()) + float(drawn.output.abs().max())
    rounding = 1e-12 * largest * math.sqrt(len(k))
    own = float(missed.norm())
    ratio = float(bound[drawn.at].norm()) / own if own > 0 else None
    held = bool((missed.norm(dim=-1) <= bound[drawn.at] + rounding).all())
    says = "" if certified < math.inf else "the bound is as large as the output"
    return Certificate(at, len(q), certified, float(bound.max()), error, ratio, held, work, says)


def as_row(found: Certificate) -> dict[str, object]:
    """A certificate as numbers and words, the estimate's ends apart."""
    row = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    row |= {"error": found.error.value, "low": found.error.low, "high": found.error.high}
    return row | {"confidence": found.error.confidence}
