"""Known attentions as dense matrices, and which of them a function is.

A function says nothing of itself. Where it equals a known attention on a few tokens, it is to equal
it everywhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from softlab.core import Stream
from softlab.laws.dependence import normalised
from softlab.laws.law import (
    has_core,
    has_target,
    is_plain,
    largest,
    lengths,
    normal,
    rank_of,
    tolerance,
)

F64 = torch.float64
Form = Callable[[Tensor, Tensor], Tensor]
Dense = Callable[[Tensor, Tensor, Tensor], Tensor]
ALMOST = 1e-4
"""How far from one a row's sum may be for the row to be meant to sum to one."""


def _softmax(exponent: float) -> Form:
    def matrix(q: Tensor, k: Tensor) -> Tensor:
        weights: Tensor = (q @ k.mT * q.shape[-1] ** exponent).softmax(-1)
        return weights

    return matrix


def _gaussian(*, rows: bool) -> Form:
    def matrix(q: Tensor, k: Tensor) -> Tensor:
        far = (q.unsqueeze(-2) - k.unsqueeze(-3)).square().sum(-1)
        exponents = -far / (2 * q.shape[-1] ** 0.5)
        weights: Tensor = exponents.softmax(-1) if rows else exponents.exp()
        return weights

    return matrix


def _triangular(q: Tensor, k: Tensor) -> Tensor:
    scores = q @ k.mT / q.shape[-1] ** 0.5
    later = torch.ones_like(scores, dtype=torch.bool).triu(1)
    weights: Tensor = scores.masked_fill(later, -torch.inf).softmax(-1)
    return weights


def _linear(*, causal: bool) -> Form:
    def matrix(q: Tensor, k: Tensor) -> Tensor:
        x, y = (torch.nn.functional.elu(z) + 1 for z in (q, k))
        entries = (x @ y.mT).tril() if causal else x @ y.mT
        weights: Tensor = entries / entries.sum(-1, keepdim=True)
        return weights

    return matrix


FEATURES = ("linear attention", "causal linear attention")
"""Those of ``FORMS`` whose features may vanish."""
FORMS: dict[str, Form] = {
    "softmax attention": _softmax(-0.5),
    "softmax attention without a scale": _softmax(0.0),
    "softmax attention of scale 1/d": _softmax(-1.0),
    "causal softmax attention": _triangular,
    "row-normalised Gaussian attention": _gaussian(rows=True),
    "Gaussian attention": _gaussian(rows=False),
    **{name: _linear(causal=name.startswith("causal")) for name in FEATURES},
}
"""The attentions that a function may turn out to be, as their dense matrices in float64."""


KEPT = 1e-6
"""The share of its due from which on an entry is kept."""
WINDOWS = (24, 66, 130, 300)
"""Numbers of tokens on which windows and the like show."""
FEW_TOKENS, WHOLE_BLOCKS = ((4, 6, 4), (5, 3, 6)), ((4, 128, 4), (5, 64, 6))
"""Queries, keys and widths: any, and so many keys as fill blocks of each usual size."""
MANY_ROWS = 16
"""Rows that do not leave out the same key by chance."""
ITS_TARGET = "its target"
"""The form of a function that equals the target that was said of it."""


def form_of(op: Any, seeds: range) -> str:
    """Which of ``FORMS`` a function equals on a few tokens of two widths, or its target; or empty.

    The target is an operator that is exact; of any other the law of targets tells. One that equals
    them on whole blocks alone is meant to be them, too, and counts the zeros that fill a block.
    """
    known: dict[str, Dense] = {name: partial(_applied, form) for name, form in FORMS.items()}
    if has_target(op) and op.target.traits.exact:
        known[ITS_TARGET] = op.target
    for (name, dense), sizes in itertools.product(known.items(), (FEW_TOKENS, WHOLE_BLOCKS)):
        square = name.startswith("causal") or (name == ITS_TARGET and op.target.traits.causal)
        # What is added to the sums of features is often meant, as the 1e-6 of published code.
        almost = tolerance(F64, 6, c=100) if name in FEATURES else ALMOST
        if all(_equals(op, dense, seed, sizes, almost, square=square) for seed in seeds):
            return "" if name in FORMS and _narrow(op, FORMS[name], seeds.start) else name
    return ""


def _narrow(op: Any, form: Form, seed: int) -> bool:
    """Whether each row is that of the form on keys of its own, as a window or a top-k keeps them.

    On few tokens they keep all, and are not to be blamed for less on more. Keys that no row has,
    rows that have fewer where there are more, the keys up to its own at some lengths alone, and a
    key that is left out by all rows which have those around it, are a fault.
    """
    rng, most, narrow, causal = Stream(seed, "laws").generator, 0, False, set()
    for l in WINDOWS:
        _, l = lengths(op, 1, max(l, rank_of(op)))
        q, k = normal(rng, l, 4), normal(rng, l, 4)
        mine, due = op(q, k, torch.eye(l, dtype=F64).to(q)), form(q, k)
        kept, meant = mine.abs() > KEPT * due, due > 0
        on = torch.where(kept, due, 0)
        if not largest(mine - on / on.sum(-1, keepdim=True)) <= tolerance(F64, l, c=100):
            return False
        count = int(kept.sum(-1).max())
        causal.add(bool(meant.all()) and torch.equal(kept, meant.tril()))
        if count < most or len(causal) > 1:  # causal at some lengths alone
            return False
        around = meant & torch.stack([kept.roll(i, -1) for i in (-2, -1, 1, 2)]).all(0)
        holes = ((around & ~kept).sum(-2) > MANY_ROWS) & ~(around & kept).any(-2)
        if bool(holes[2:-2].any()):
            return False
        # A key that one row drops and another has.
        narrow |= bool(((meant & ~kept).any(-2) & (meant & kept).any(-2)).any())
        most = count
    return narrow


def _applied(form: Form, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return form(q, k) @ v


def _equals(
    op: Any, dense: Dense, seed: int, sizes: Sequence[Sequence[int]], almost: float, *, square: bool
) -> bool:
    """Whether they are equal, or the rows of the one are the other's times ``almost`` one.

    So 1e-6 that is added to the sums of rows is seen, which no rounding explains: that differs from
    column to column. ``square``: with as many queries as keys.
    """
    rng = Stream(seed, "laws").generator
    least = rank_of(op)
    for few, many, d in sizes:
        n, l = lengths(op, max(few, least), max(many, least))
        q, k, v = normal(rng, l if square else n, d), normal(rng, l, d), normal(rng, l, 3)
        out, due = op(q, k, v), dense(q, k, v)
        factors = (out * due).sum(-1, keepdim=True) / due.square().sum(-1, keepdim=True)
        if not largest(factors - 1) <= almost:
            return False
        if not largest(out - factors * due) <= tolerance(F64, l, c=100, scale=1 + largest(v)):
            return False
    return True


def found_form(op: Any) -> str:
    """The known attention that a function was found to equal; an operator's own field is none."""
    return op.form if is_plain(op) else ""


def unknown(op: Any) -> bool:
    """Whether it is a function that is none of the known attentions, or one of features."""
    return is_plain(op) and (op.form not in FORMS or op.form in FEATURES)


def dense_of(op: Any) -> Dense | None:
    """What an operator is to equal on one matrix, from what is said or was found of it."""
    form = found_form(op)
    if form == ITS_TARGET:
        return lambda q, k, v: op.target(q, k, v)
    if form:
        return partial(_applied, FORMS[form])
    exact = op.traits.exact
    if op.traits.optimal:  # its rank is limited by the queries, too
        return None
    if (exact or op.traits.exact_at) and has_target(op) and op.target != op and not has_core(op):
        return lambda q, k, v: op.target(q, k, v)
    if exact and not op.traits.replacement and hasattr(op, "kernel"):
        return lambda q, k, v: normalised(op, q, k) @ v
    return None


def fades(op: Any) -> bool:
    """Whether it is a function of features, which no row's largest holds up."""
    form = found_form(op)
    return form in FEATURES or (form == ITS_TARGET and bool(op.target.traits.replacement))


def reads_distances(op: Any) -> bool:
    """Whether its dense form reads distances alone."""
    form = found_form(op)
    known = op.target if form == ITS_TARGET else op
    return "Gaussian" in form or known.traits.reads == "distances"
