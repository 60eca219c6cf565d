"""Laws of consistency: one function at every size, shape, mask and layout.

They ask for nothing but the operator itself: what it says of a batch must be what it says of each
matrix, of wide values what it says of each column, of a masked call what it says of what is left.
So they find a fault beyond a size, on a path, or between two heads, of any operator, whatever it
computes. ``softlab.laws.gradient_consistency`` asks the same of gradients, and in each precision.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from softlab.laws.forms import WINDOWS
from softlab.laws.isolation import CORE_KAPPA, amplified
from softlab.laws.law import (
    Gap,
    Law,
    OutOfScopeError,
    after_steps,
    always,
    deletes,
    has_core,
    has_field,
    is_plain,
    largest,
    lengths,
    needs_equal,
    normal,
    rank_of,
    tolerance,
)
from softlab.laws.purity import process
from softlab.laws.situations import Situation, drawn

F64 = torch.float64
TWICE = 2
"""Lengths at which a pattern of kept keys is found out, before it is held against longer ones."""
EACH = 13
"""Situations per seed: the five seeds of a default check meet every pair of choices."""


def rounding_of(op: Any, case: Situation, dtype: torch.dtype = F64, *, cancelled: int = 1) -> float:
    """What the order of sums may change of numbers of size one, which takes as long as a call.

    Times the condition of a core, or of sums that cancel; ``cancelled``: to which power, which is
    two for the gradient of a ratio.
    """
    kappa = 1e3 if op.traits.optimal else 1.0  # of singular values that lie near each other
    if has_core(op):
        kappa = max(CORE_KAPPA if dtype == F64 else 1, core_condition(op, case))
    size = 1 + max(largest(x) for x in case.tokens[:2]) ** 2  # of scores, which are rounded
    if op.traits.optimal and size > 100:
        # Rows are equal at such scores, and a truncated SVD is not unique.
        return sys.float_info.max
    kappa *= size * cancelling(op, case) ** cancelled
    return tolerance(dtype, case.k.shape[-2], kappa=kappa)


def core_condition(op: Any, case: Situation) -> float:
    """The largest condition of the cores of a situation."""
    return max(amplified(op, q, k) for _, q, k, _, _ in case.matrices())


def cancelling(op: Any, case: Situation) -> float:
    """How much larger the terms of a row are than their sum, for features of both signs.

    An entry K(x, y) = sum_f phi_f(x) phi_f(y) is rounded to eps times the sum of the magnitudes of
    its terms, however much of it cancels, and by Cauchy and Schwarz that sum is at most
    sqrt(K(x, x) K(y, y)). A row that is divided by its sum D = sum_j K(x, y_j) carries these errors
    over |D|: relative to its values eps sum_j sqrt(K(x, x) K(y_j, y_j)) / |D|, which is as large as
    D is small. Without a division the sum itself multiplies the values.
    """
    if op.traits.nonnegative or not op.traits.linear_in_v or not hasattr(op, "kernel_matrix"):
        return 1.0
    most = 1.0
    for _, q, k, _, keep in case.matrices():
        k = k if keep is None else k[keep]
        terms = _lengths(op, q)[:, None] * _lengths(op, k)
        sums: Any = 1.0
        if op.traits.row_stochastic:
            entries = op.kernel_matrix(q, k)
            terms, entries = (x.tril() if op.traits.causal else x for x in (terms, entries))
            sums = entries.sum(-1).abs()
        most = max(most, largest(terms.sum(-1) / sums))
    return min(most, 1e100)  # whose square is a number


def _lengths(op: Any, x: Tensor) -> Tensor:
    """The lengths of the tokens' features, sqrt(K(x, x)); a few tokens at a time."""
    parts = [op.kernel_matrix(part, part).diagonal() for part in x.split(64)]
    return torch.cat(parts).abs().sqrt()


@dataclass(frozen=True)
class Alone:
    """One matrix of a situation without its masked tokens: which rows and keys remain."""

    number: int
    tokens: tuple[Tensor, Tensor, Tensor]
    rows: Any
    kept: Any
    where: str


def some_matrices(op: Any, case: Situation, rng: torch.Generator) -> Iterator[Alone]:
    """The first matrix, the last and one in between; none whose mask is more than a deletion."""
    matrices = list(case.matrices())
    for i in _places(len(matrices), rng):
        _, q, k, v, keep = matrices[i]
        if keep is not None and not bool(keep.all()) and not deletes(op):
            continue
        kept = slice(None) if keep is None else keep
        rows = kept if needs_equal(op) else slice(None)
        tokens = q[rows], k[kept], v[kept]
        yield Alone(i, tokens, rows, kept, f"{case.where}; matrix {i}")


def _places(count: int, rng: torch.Generator) -> list[int]:
    """The first, the last, and one in between."""
    return sorted({0, count - 1, int(torch.randint(count, (), generator=rng, device="cpu"))})


def flattened(x: Tensor) -> Tensor:
    """All matrices in one batch dimension."""
    return x.reshape(-1, *x.shape[-2:])


def _matrices(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    # Two steps: a coupling between the matrices hides where an iteration converges.
    subjects = (op, after_steps(op, 2)) if has_field(op, "steps") else (op,)
    for case in drawn(op, rng, EACH, long=True):
        for subject in subjects:
            out = case.call(subject)
            yield from dtype_kept(out, case.v.dtype, case.where)
            if out.shape != case.shape:
                yield Gap(1, 0, f"{case.where}: the output is {tuple(out.shape)}")
                return
            out, rounding = flattened(out), 10 * rounding_of(subject, case)
            for one in some_matrices(subject, case, rng):
                alone = subject(*one.tokens)
                allowed = rounding * (largest(alone) + largest(case.v))
                yield Gap(largest(out[one.number][one.rows] - alone), allowed, one.where)


def _columns(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    if is_plain(op):
        n, l = lengths(op, 5, max(7, rank_of(op)))
        q, k, v = (normal(rng, x, 4) for x in (n, l, l))
        if largest(op(q, k, v)[..., :1] - op(q, k, v[..., :1])) > tolerance(F64, l, c=1e4):
            msg = "its values are mixed, as by a projection of their own"
            raise OutOfScopeError(msg)
    for case in drawn(op, rng, EACH):
        out = case.call(op)
        allowed = rounding_of(op, case) * (largest(out) + largest(case.v))
        for j in _places(case.v.shape[-1], rng):
            one = op(case.q, case.k, case.v[..., j : j + 1], *case.masked)
            yield Gap(largest(out[..., j] - one[..., 0]), allowed, f"{case.where}; column {j}")


def _averages(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    for case in drawn(op, rng, EACH, long=True):
        rows: Any = slice(None)
        if case.mask is not None and (needs_equal(op) or not deletes(op)):
            # Rows of deleted tokens, or a window that is masked as a whole, may hold anything: one
            # key is masked, and of as many rows its own is not asked.
            n, l = case.q.shape[-2], case.k.shape[-2]
            if l == 1:
                continue
            dropped = int(torch.randint(l, (), generator=rng, device="cpu"))
            others = torch.arange(l, device=case.mask.device) != dropped
            case = replace(case, mask=others.expand(case.mask.shape), where=_but_one(case))
            rows = others if n == l else rows
        v = torch.stack((torch.ones_like(case.v[..., 0]), case.v[..., 0].abs()), -1)
        out = op(case.q, case.k, v, *case.masked)[..., rows, :]
        allowed = rounding_of(op, case) * (1 + largest(v))
        if op.traits.row_stochastic:
            missed = largest(out[..., 0] - 1)
            yield Gap(missed, allowed, f"{case.where}: rows sum to one")
        if op.traits.nonnegative:
            yield Gap(
                -float(out.detach().min()),
                allowed,
                f"{case.where}: no value is negative, no sum is",
            )


def _but_one(case: Situation) -> str:
    return f"{case.where}, of which all but one key take part"


def _patterns(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    own = True
    bands: list[set[int]] = []
    for l in WINDOWS:
        _, l = lengths(op, 1, max(l, rank_of(op)))
        kept, again = (_kept(op, l, rng) for _ in range(2))
        if not torch.equal(kept, again):
            msg = "which keys a row has depends on the tokens"
            raise OutOfScopeError(msg)
        lost = (~kept.diagonal()).nonzero()[:, 0].tolist()
        if len(bands) < TWICE:
            own &= not lost
        elif own:
            words = (
                f"{l} tokens: {len(lost)} rows lack their own key, which no row of few tokens does"
            )
            yield Gap(len(lost), 0, f"{words}; the first is row {(lost or [0])[0]}")
        whole = {i for i in range(1 - l, l) if bool(kept.diagonal(i).all())}
        last = bands[-1] if bands else set()
        if len(bands) >= TWICE and last and last == bands[-2]:
            beyond = [i for i in sorted(whole - last) if {i - 1, i + 1} & (whole - last)]
            words = f"{l} tokens: all rows have keys at {len(beyond)} distances beyond a window"
            yield Gap(len(beyond), 0, f"{words}; the first is {(beyond or [0])[0]}")
        bands.append(whole if _is_window(kept, whole) else set())


def _kept(op: Any, l: int, rng: torch.Generator) -> Tensor:
    """Which keys each row has (l, l), of a function that is linear in v."""
    q, k = normal(rng, l, 4), normal(rng, l, 4)
    kept: Tensor = op(q, k, torch.eye(l).to(q)) != 0
    return kept


def _is_window(kept: Tensor, whole: set[int]) -> bool:
    """Whether each row has the keys of the same distances from it, in one run, and lacks some."""
    if not whole or bool(kept.all()) or max(whole) - min(whole) + 1 != len(whole):
        return False
    ones = torch.ones_like(kept)
    return torch.equal(kept, ones.triu(min(whole)) & ones.tril(max(whole)))


FEW_COLUMNS, MANY_COLUMNS = (5, 8, 13), (16, 33, 65, 96, 130, 257)
"""Widths of tokens that are filled up by zeros: those that tell the scale, and those it is for."""
SCALES = (0.0, 0.25, 0.5)
"""Powers of the width whose product with q and with k scores take back: none, its root, itself."""


def _zero_columns(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    n, l = lengths(op, rank_of(op) + 5, rank_of(op) + 7)
    width = 4
    q, k, v = normal(rng, n, width), normal(rng, l, width), normal(rng, l, 3)
    out = op(q, k, v)

    def missed(d: int, power: float) -> float:
        wide = (torch.nn.functional.pad(x, (0, d - width)) * (d / width) ** power for x in (q, k))
        return largest(op(*wide, v) - out)

    # Beyond any rounding, and below that of float32.
    allowed = tolerance(F64, l, c=1e4, kappa=CORE_KAPPA if has_core(op) else 1, scale=largest(v))
    powers = (p for p in SCALES if all(missed(d, p) <= allowed for d in FEW_COLUMNS))
    power = next(powers, None)
    if power is None:
        msg = "columns of zeros change its scores, by no power of the width"
        raise OutOfScopeError(msg)
    for d in MANY_COLUMNS:
        where = f"{n} queries, {l} keys, {width} columns of {d} not zero"
        yield Gap(missed(d, power), allowed, f"{where}, times {d / width:g}^{power}")


def _traces(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    for number, case in enumerate(drawn(op, rng, EACH)):
        tensors = [*case.tokens, *case.masked]
        if not number:
            with process(0):  # what a first call imports or compiles has settings of its own
                case.call(op)
        kept = [x.clone() for x in tensors]
        with process(number % 2) as changed:
            case.call(op)
            named = changed()
        yield Gap(float(bool(named)), 0, f"{case.where}: {named} of the process changed")
        out = case.call(op)  # other threads round otherwise
        wanted = out.requires_grad and out.is_leaf
        yield Gap(float(wanted), 0, f"{case.where}: a gradient that nobody asked for")
        same = all(torch.equal(x, y) for x, y in zip(tensors, kept, strict=True))
        yield Gap(float(not same), 0, f"{case.where}: an argument was changed")
        shared = any(_place(out) == _place(x) for x in tensors)
        yield Gap(float(shared), 0, f"{case.where}: the output lies in an argument's memory")
        before = out.clone()
        case.mapped(lambda x: x.flip(-2) + 1).call(op)
        same = torch.equal(out, before)
        yield Gap(float(not same), 0, f"{case.where}: an earlier output changed")
        again = case.call(op)
        same = torch.equal(again, before)
        yield Gap(float(not same), 0, f"{case.where}: asked again after another call")
        # In another place of the memory: a cache by address would answer for what is there no more.
        moved = case.mapped(torch.clone).call(op)
        allowed = rounding_of(op, case) * (largest(before) + largest(case.v))
        yield Gap(largest(moved - before), allowed, f"{case.where}: copies in new memory")
        for x in case.tokens:
            if x.is_contiguous():
                x.copy_(x.flip(-2))
        fresh = case.call(op)
        copied = case.mapped(torch.clone).call(op)
        yield Gap(largest(fresh - copied), allowed, f"{case.where}: other values at one address")


def _place(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def dtype_kept(out: Tensor, dtype: torch.dtype, where: str) -> Iterator[Gap]:
    """Whether an output has the dtype of its input."""
    yield Gap(float(out.dtype != dtype), 0, f"{where}: the output is {out.dtype}, not {dtype}")


@contextlib.contextmanager
def collecting() -> Iterator[None]:
    """Let the collector look at what is made inside alone, not at all that the process holds."""
    frozen = gc.get_freeze_count() > 0  # somebody else's, who will thaw it
    if not frozen:
        gc.freeze()
    try:
        yield
    finally:
        if not frozen:
            gc.unfreeze()


def _released(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    with collecting():
        yield from _held(op, rng)


def _held(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    for graph in (False, True):
        (case,) = drawn(op, rng, 1)
        alive = still_held(op, [*case.tokens, *case.masked], graph=graph)
        yield Gap(alive, 0, f"tensors of the call are still held after it, graph: {graph}")


def still_held(subject: Any, like: list[Tensor], *, graph: bool) -> int:
    """How many tensors of a call, and of its backward pass, something holds once it is over."""
    # Memory that numpy lends tells when it is given back, whatever views there are of it.
    lent = [x.detach().cpu().numpy().copy() for x in like]
    held = [weakref.ref(x) for x in lent]
    tensors = [torch.from_numpy(x).to(like[0].device) for x in lent]
    leaves = [x.requires_grad_(graph) if x.is_floating_point() else x for x in tensors]
    out = subject(*leaves)
    if out.requires_grad:
        out.sum().backward()
    del lent, tensors, leaves, out
    gc.collect()
    return sum(ref() is not None for ref in held)


MATRICES: Law[Any] = Law(
    "batch independence",
    "op on any leading shape, mask and layout equals op on each matrix without its masked tokens, "
    "also after two inner steps",
    always,
    _matrices,
    family="isolation",
    allows="rounding of sums over l, times the condition of a core or of sums that cancel",
    catches="one norm, or one maximum, for the whole batch; batch and heads exchanged; a fault "
    "beyond a length, a width or a batch",
)
COLUMNS: Law[Any] = Law(
    "each column alone",
    "op(q, k, v) has the columns op(q, k, v_j), at every size",
    lambda op: op.traits.linear_in_v,
    _columns,
    family="algebraic",
    when="is linear in v",
    allows="rounding of sums over l, times the condition of the core",
    catches="values beyond a width that are not read",
)
AVERAGES: Law[Any] = Law(
    "averages everywhere",
    "rows that sum to one, or have no negative entry, on few tokens do so in every situation",
    lambda op: op.traits.row_stochastic or op.traits.nonnegative,
    _averages,
    family="algebraic",
    when="claims row_stochastic or nonnegative, or has such rows on few tokens",
    allows="rounding of sums over l, times the condition of the core",
    catches="keys beyond a number that lose their weights, of a function of any kind",
)
PATTERNS: Law[Any] = Law(
    "same pattern everywhere",
    "where all rows of few tokens have their own key, or those of one window, rows of many do, too",
    lambda op: is_plain(op) and op.traits.linear_in_v,
    _patterns,
    family="limits",
    when="is a function whose rows have the same keys whatever the tokens are",
    allows="nothing",
    catches="a chunk of queries with the mask of the first; distances in eight bits",
    examples=1,
)
ZERO_COLUMNS: Law[Any] = Law(
    "columns of zeros",
    "columns of zeros in q and k change nothing, but for the power of the width in a scale, which "
    "is the same at every width",
    always,
    _zero_columns,
    family="limits",
    when="reads scores or distances, with a power of the width for a scale",
    allows="ten thousand roundings of sums over l, times the condition of a core",
    catches="another scale, or another precision, beyond a width, of a function of any kind",
    examples=2,
)
TRACES: Law[Any] = Law(
    "leaves no trace",
    "a call changes no argument, no earlier output, no later answer and no state of the process",
    always,
    _traces,
    family="honesty",
    allows="no bit; rounding where memory is laid out otherwise",
    catches="masked values zeroed in place; a cache by address; a seeded global generator",
)
RELEASED: Law[Any] = Law(
    "holds no input",
    "after a call, and its backward pass, nothing holds the memory of its tensors",
    always,
    _released,
    family="honesty",
    allows="nothing",
    catches="the last inputs kept in a list",
    examples=1,
)
