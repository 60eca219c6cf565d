"""The error of an attention operator where its target is too long to compute: a sample of rows.

A row of softmax or Gaussian attention costs l (d + e) multiply-adds, and the rows of an error are
numbers like any others: some hundred, drawn at random, tell their sum with an interval.
"""

from __future__ import annotations

import dataclasses
import math
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from softlab import validation
from softlab.core import Operator, Stream
from softlab.estimators.estimate import (
    Estimate,
    certain,
    check_confidence,
    check_count,
    check_held,
    magnitude,
    of_ratio,
)
from softlab.estimators.linear_map import LinearMap
from softlab.validation import typed


class ExactRows:
    """Some rows of what an exact operator makes of one input, in float64, computed on first use.

    Arguments: ``target``, an exact operator; q (n, d), k (l, d), v (l, e), one matrix each;
    ``rows``, 2 to n (or n), drawn without replacement from ``seed``. Attributes: ``at``, their
    indices, rising. Every row of the target must depend on its own query alone, as those of all
    exact attention do; symmetric normalisation also needs the degrees of all keys, l^2 d work.

    Raises ``ValueError`` for leading dimensions: a relative error over a batch hides its worst
    matrix.
    """

    @typed
    def __init__(
        self, target: Operator, q: Tensor, k: Tensor, v: Tensor, *, rows: int = 256, seed: int = 0
    ) -> None:
        if {q.ndim, k.ndim, v.ndim} != {2}:
            shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
            msg = f"one case is one head: q, k and v must have two dimensions, got {shapes}."
            raise ValueError(msg)
        for name, x in (("q", q), ("k", k), ("v", v)):
            validation.matrix(x, name)
        check_count("rows", rows, 2, len(q), "queries")
        self.target, self.q, self.k, self.v = target, q, k, v
        rng = Stream(seed, "estimators.ExactRows")
        self.at = rng.permutation(len(q))[:rows].sort().values.to(q.device)

    @property
    def share(self) -> float:
        """The share of all rows that was drawn."""
        return len(self.at) / len(self.q)

    @cached_property
    def output(self) -> Tensor:
        """The target's output at the drawn rows, (rows, e)."""
        return self._applied(self.v)

    def _applied(self, v: Tensor) -> Tensor:
        q, k, v = (x.double() for x in (self.q[self.at], self.k, v))
        if not self.target.traits.causal:
            return self.target(q, k, v)
        # Row i of a causal form is that of the plain one on the keys 0 to i.
        plain: Any = dataclasses.replace(self.target, causal=False)  # type: ignore[type-var]
        ends = (self.at + 1).tolist()
        each = (plain(q[i : i + 1], k[:end], v[:end]) for i, end in enumerate(ends))
        return torch.cat(list(each))


@typed
def output_error(
    op: Operator,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    exact: ExactRows | None = None,
    *,
    rows: int = 256,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """|out - exact|_F / |exact|_F, as ``measures.output_error`` has it, from a sample of rows.

    The operator runs once, on all of its input. The ratio of the two sums of squares over the drawn
    rows is taken for that over all; its interval is Student's for the logarithm, the jackknife's
    error times sqrt(1 - rows / n), exact at rows = n. It is a model where few rows carry the error:
    a sample that met none of them says nothing of them. Infinite where the output is not finite.

    ``exact``: rows that were drawn before, of the same input and of ``op.target``; then ``rows``
    and ``seed`` are not read. Other arguments and what is raised: as of ``ExactRows``.
    """
    check_confidence(confidence)
    exact = exact or ExactRows(op.target, q, k, v, rows=rows, seed=seed)
    if exact.target != op.target:
        msg = f"these are rows of {exact.target!r}, and {op!r} aims at {op.target!r}."
        raise ValueError(msg)
    if not all(_same(*pair) for pair in zip((exact.q, exact.k, exact.v), (q, k, v), strict=True)):
        msg = (
            "these are exact rows of another input than q, k and v. Draw ExactRows of this one, "
            "or leave exact out."
        )
        raise ValueError(msg)
    with torch.no_grad():
        out = op(q, k, v)
        if not bool(out.isfinite().all()):
            return certain(math.inf, confidence)
        return _relative(out[exact.at].double() - exact.output, exact.output, exact, confidence)


@typed
def matrix_error(
    op: Operator,
    q: Tensor,
    k: Tensor,
    *,
    rows: int = 64,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """|A - M|_F / |M|_F of the operator's matrix A and its target's M, from a sample of rows.

    A row of A is the gradient of an output entry in v. Holds some 4 l ``rows`` numbers. The
    interval is that of ``output_error``. For q (n, d), k (l, d).

    Raises ``ValueError`` for an operator that is not linear in v, and for a causal one: use
    ``probed_error``.
    """
    check_confidence(confidence)
    if op.target.traits.causal:
        msg = f"{op!r} is causal, and rows of its target are of many lengths; use probed_error."
        raise ValueError(msg)
    exact = ExactRows(op.target, q, k, k, rows=rows, seed=seed)
    check_held("rows", rows, max(len(q), len(k)))
    unit = torch.zeros(len(q), rows, dtype=torch.float64, device=q.device)
    unit[exact.at, torch.arange(rows, device=q.device)] = 1
    found = (LinearMap.of_operator(op, q, k).T @ unit).mT
    few = LinearMap.of_operator(op.target, q[exact.at].double(), k.double())
    true = (few.T @ torch.eye(rows, dtype=torch.float64, device=q.device)).mT
    return _relative(found - true, true, exact, confidence)


@typed
def probed_error(
    op: Operator,
    q: Tensor,
    k: Tensor,
    *,
    probes: int = 32,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """|A - M|_F / |M|_F from |(A - M) omega|^2 and |M omega|^2, omega independent and normal.

    ``probes``: 2 to l, products with the whole of both matrices, n l d work each for the target;
    where that is too much sample rows, by ``matrix_error``. The interval is Student's for the
    logarithm of the ratio with the jackknife's error; at l probes the columns are read. Of 16
    probes it covered 90 to 95 % where it says 95 %, of 32 92 to 95 %.
    """
    check_confidence(confidence)
    check_count("probes", probes, 2, len(k), "keys")
    check_held("probes", probes, max(len(q), len(k)))
    wide = q.double(), k.double()
    approximate, target = LinearMap.of_operator(op, q, k), LinearMap.of_operator(op.target, *wide)
    drawn = Stream(seed, "estimators.probed_error").normal(len(k), probes).to(q.device)
    if probes == len(k):
        drawn = torch.eye(probes, dtype=torch.float64, device=q.device)
    # Rounded as the operator takes it, so that both are given one probe.
    drawn = drawn.to(q.dtype).double()
    true = target @ drawn
    return _ratio(approximate @ drawn - true, true, 0, float(probes == len(k)), confidence)


def _same(x: Tensor, y: Tensor) -> bool:
    alike = x.dtype == y.dtype and x.device == y.device
    return x is y or (alike and torch.equal(x, y))


def _relative(difference: Tensor, true: Tensor, exact: ExactRows, confidence: float) -> Estimate:
    """The root of the ratio of the sums of squares, row by row."""
    return _ratio(difference, true, -1, exact.share, confidence)


def _ratio(difference: Tensor, true: Tensor, dim: int, share: float, confidence: float) -> Estimate:
    """|difference|_F / |true|_F from sums of squares over ``dim``, each in a unit of its own."""
    units = [magnitude(x) for x in (difference, true)]
    top, bottom = (
        (x / unit).square().sum(dim).cpu()
        for x, unit in zip((difference, true), units, strict=True)
    )
    return of_ratio(top, bottom, confidence, share=share).root().times(units[0] / units[1])
