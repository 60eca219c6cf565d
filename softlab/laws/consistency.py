"""Laws of consistency: one function at every size, shape, mask, layout and precision.

They ask for nothing but the operator itself: what it says of a batch must be what it says of each
matrix, of wide values what it says of each column, of a masked call what it says of what is left,
of gradients the same. So they find a fault beyond a size, on a path, or between two heads, of any
operator, whatever it computes.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from softlab.core import Stream
from softlab.laws.dependence import FAR, condition, normalised
from softlab.laws.isolation import CORE_KAPPA, amplified
from softlab.laws.law import (
    Gap,
    Law,
    OutOfScopeError,
    after_steps,
    always,
    asked,
    at_most,
    deletes,
    has_core,
    has_field,
    has_target,
    is_plain,
    largest,
    lengths,
    needs_equal,
    normal,
    rank_of,
    refused,
    tolerance,
)
from softlab.laws.purity import process
from softlab.laws.situations import Situation, drawn

F64 = torch.float64
Form = Callable[[Tensor, Tensor], Tensor]
Dense = Callable[[Tensor, Tensor, Tensor], Tensor]
STEEP = 1e6
"""The condition of a core beyond which its gradient is rounding alone."""
TAME = 1e3
"""The condition of a core up to which its gradient in float32 has digits."""
ALMOST = 1e-4
"""How far from one a row's sum may be for the row to be meant to sum to one."""
TALL = 30.0
"""Size of tokens up to which exponentials of their coordinates are numbers with digits."""
EACH = 13
"""Situations per seed: the five seeds of a default check meet every pair of choices."""


def _rounding(op: Any, case: Situation, dtype: torch.dtype = F64, *, cancelled: int = 1) -> float:
    """What the order of sums may change of numbers of size one, which takes as long as a call.

    Times the condition of a core, or of sums that cancel; ``cancelled``: to which power, which is
    two for the gradient of a ratio.
    """
    kappa = 1e3 if op.traits.optimal else 1.0  # of singular values that lie near each other
    if has_core(op):
        kappa = max(CORE_KAPPA if dtype == F64 else 1, _condition(op, case))
    size = 1 + max(largest(x) for x in case.tokens[:2]) ** 2  # of scores, which are rounded
    if op.traits.optimal and size > 100:
        # Rows are equal at such scores, and a truncated SVD is not unique.
        return sys.float_info.max
    kappa *= size * _cancelling(op, case) ** cancelled
    return tolerance(dtype, case.k.shape[-2], kappa=kappa)


def _condition(op: Any, case: Situation) -> float:
    """The largest condition of the cores of a situation."""
    return max(amplified(op, q, k) for _, q, k, _, _ in case.matrices())


def _masked_condition(op: Any, case: Situation) -> float:
    """The largest condition of the whole cores of a situation, of the tokens that masks leave."""
    most = 1.0
    for _, q, k, _, keep in case.matrices():
        kept = slice(None) if keep is None else keep
        most = max(most, condition(op, q[kept] if needs_equal(op) else q, k[kept]))
    return most


def _cancelling(op: Any, case: Situation) -> float:
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


def _smooth(op: Any) -> bool:
    """Whether gradients may be compared: not of a truncated SVD, infinite where values meet."""
    return not op.traits.optimal


def _unknown(op: Any) -> bool:
    """Whether it is a function that is none of the known attentions."""
    return is_plain(op) and op.form not in FORMS


def _steep(op: Any, case: Situation) -> bool:
    """Whether a core is so near to singular that its gradient is rounding alone."""
    return has_core(op) and (case.q.shape[-1] < 4 or _condition(op, case) > STEEP)


@dataclass(frozen=True)
class _Alone:
    """One matrix of a situation without its masked tokens: which rows and keys remain."""

    number: int
    tokens: tuple[Tensor, Tensor, Tensor]
    rows: Any
    kept: Any
    where: str


def _some(op: Any, case: Situation, rng: torch.Generator) -> Iterator[_Alone]:
    """The first matrix, the last and one in between; none whose mask is more than a deletion."""
    matrices = list(case.matrices())
    for i in _places(len(matrices), rng):
        _, q, k, v, keep = matrices[i]
        if keep is not None and not bool(keep.all()) and not deletes(op):
            continue
        kept = slice(None) if keep is None else keep
        rows = kept if needs_equal(op) else slice(None)
        tokens = q[rows], k[kept], v[kept]
        yield _Alone(i, tokens, rows, kept, f"{case.where}; matrix {i}")


def _places(count: int, rng: torch.Generator) -> list[int]:
    """The first, the last, and one in between."""
    return sorted({0, count - 1, int(torch.randint(count, (), generator=rng, device="cpu"))})


def _flat(x: Tensor) -> Tensor:
    """All matrices in one batch dimension."""
    return x.reshape(-1, *x.shape[-2:])


def _matrices(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    # Two steps: a coupling between the matrices hides where an iteration converges.
    subjects = (op, after_steps(op, 2)) if has_field(op, "steps") else (op,)
    for case in drawn(op, rng, EACH, long=True):
        for subject in subjects:
            out = case.call(subject)
            yield from _typed(out, case.v.dtype, case.where)
            if out.shape != case.shape:
                yield Gap(1, 0, f"{case.where}: the output is {tuple(out.shape)}")
                return
            out, rounding = _flat(out), 10 * _rounding(subject, case)
            for one in _some(subject, case, rng):
                alone = subject(*one.tokens)
                allowed = rounding * (largest(alone) + largest(case.v))
                yield Gap(largest(out[one.number][one.rows] - alone), allowed, one.where)


def _columns(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    for case in drawn(op, rng, EACH):
        out = case.call(op)
        allowed = _rounding(op, case) * (largest(out) + largest(case.v))
        for j in _places(case.v.shape[-1], rng):
            one = op(case.q, case.k, case.v[..., j : j + 1], *case.masked)
            yield Gap(largest(out[..., j] - one[..., 0]), allowed, f"{case.where}; column {j}")


def _averages(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    for case in drawn(op, rng, EACH, long=True):
        if case.mask is not None and (needs_equal(op) or not deletes(op)):
            continue  # rows of deleted tokens, or a window that is masked as a whole
        v = torch.stack((torch.ones_like(case.v[..., 0]), case.v[..., 0].abs()), -1)
        out = op(case.q, case.k, v, *case.masked)
        allowed = _rounding(op, case) * (1 + largest(v))
        if op.traits.row_stochastic:
            missed = largest(out[..., 0] - 1)
            yield Gap(missed, allowed, f"{case.where}: rows sum to one")
        if op.traits.nonnegative:
            yield Gap(-float(out.min()), allowed, f"{case.where}: no value is negative, no sum is")


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
        allowed = _rounding(op, case) * (largest(before) + largest(case.v))
        yield Gap(largest(moved - before), allowed, f"{case.where}: copies in new memory")
        for x in case.tokens:
            if x.is_contiguous():
                x.copy_(x.flip(-2))
        fresh = case.call(op)
        copied = case.mapped(torch.clone).call(op)
        yield Gap(largest(fresh - copied), allowed, f"{case.where}: other values at one address")


def _place(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _gradients(
    call: Callable[..., Tensor],
    tensors: Sequence[Tensor],
    upstream: Tensor,
    which: Sequence[int] = (0, 1, 2),
) -> list[Tensor]:
    """Gradients of <upstream, call(tensors)> in ``which``; zero where one does not answer."""
    given = [x.detach().clone() for x in tensors]
    leaves = [given[i].requires_grad_() for i in which if i < len(given)]
    out = call(*given)
    if not out.requires_grad and len(which) < len(given):
        return [torch.zeros_like(x) for x in leaves]
    if not out.requires_grad:
        msg = "its output has no gradient, so there is none to compare"
        raise OutOfScopeError(msg)
    return list(torch.autograd.grad(out, leaves, upstream.to(out), materialize_grads=True))


def _gradient(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    for number, case in enumerate(drawn(op, rng, EACH)):
        if _steep(op, case):
            continue
        tokens = _full(case)
        out = op(*tokens, *case.masked)
        upstream = normal(rng, *out.shape)
        kept = upstream.clone()
        whole = _gradients(lambda *x, m=case.masked: op(*x, *m), tokens, upstream)
        rounding = 100 * _rounding(op, case, cancelled=2)
        same = torch.equal(upstream, kept)
        yield Gap(float(not same), 0, f"{case.where}; the gradient from above was changed")
        graphed = op(*(x.detach().clone().requires_grad_() for x in tokens), *case.masked)
        allowed = rounding * (largest(out) + largest(case.v))
        yield Gap(largest(graphed.detach() - out), allowed, f"{case.where}; output with a graph")
        # In one tensor alone, as of keys and values that a cache holds.
        place = number % 3
        (single,) = _gradients(lambda *x, m=case.masked: op(*x, *m), tokens, upstream, (place,))
        where = f"{case.where}; gradient in {'qkv'[place]} alone"
        allowed = rounding * (_terms(case, place) + largest(whole[place]))
        yield Gap(largest(single - whole[place]), allowed, where)
        if case.k.shape != tokens[1].shape:
            shared = _gradients(lambda *x, m=case.masked: op(*x, *m), case.tokens, upstream)
            for i, mine in enumerate(shared):
                due = whole[i].sum_to_size(mine.shape)
                where = f"{case.where}; gradient in {'qkv'[i]}, which the batch shares"
                allowed = rounding * (_terms(case, i) + largest(due)) * len(tokens[0])
                yield Gap(largest(mine - due), allowed, where)
        flat = [_flat(x) for x in whole]
        for one in _some(op, case, rng):
            # Upstream gradients come in any layout.
            above = _flat(upstream)[one.number][one.rows].mT.contiguous().mT
            alone = _gradients(op, one.tokens, above)
            for i, due in enumerate(alone):
                index = one.kept if i else one.rows
                mine, where = flat[i][one.number], f"{one.where}, gradient in {'qkv'[i]}"
                allowed = rounding * (_terms(case, i) + largest(due))
                yield Gap(largest(mine[index] - due), allowed, where)
                if i and isinstance(index, Tensor) and not bool(index.all()):
                    yield Gap(largest(mine[~index]), 0, f"{where}, of masked tokens")


def _terms(case: Situation, which: int) -> float:
    """The size of the terms of a gradient, however much of them cancels.

    Of q and k they hold products <upstream, v>, sums over the width of v.
    """
    return 1.0 if which == 2 else float(case.v.shape[-1] ** 0.5)


def _full(case: Situation) -> tuple[Tensor, ...]:
    """The tokens with all leading dimensions written out, so that each matrix has its gradient."""
    lead = torch.broadcast_shapes(*(x.shape[:-2] for x in case.tokens))
    return tuple(x.expand(*lead, *x.shape[-2:]) for x in case.tokens)


def _tied(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    for case in drawn(op, rng, EACH):
        if case.q.shape != case.k.shape or _steep(op, case):
            continue
        x, mask, rounding = case.k, case.masked, 100 * _rounding(op, case, cancelled=2)
        ways: dict[str, tuple[list[int], Callable[..., Tensor]]] = {
            "q is k": ([0, 1], lambda x, v, m=mask: op(x, x, v, *m)),
            "v is k": ([1, 2], lambda x, q, m=mask: op(q, x, x, *m)),
            "all are one": ([0, 1, 2], lambda x, _, m=mask: op(x, x, x, *m)),
        }
        for where, (same, call) in ways.items():
            v = case.v if where == "q is k" else x
            upstream = normal(rng, *op(x, x, v, *mask).shape)
            apart = _gradients(lambda *y, m=mask: op(*y, *m), (x, x.clone(), v.clone()), upstream)
            (both,) = _gradients(call, (x, v.clone()), upstream, (0,))
            allowed = rounding * (_terms(case, same[0]) + largest(both))
            due = torch.stack([apart[i] for i in same]).sum(0)
            yield Gap(largest(both - due), allowed, f"{case.where}; gradient where {where}")


def _single(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    for case in drawn(op, rng, EACH):
        # Singular values below the cut-off of one precision are above that of the other.
        if has_core(op) and _masked_condition(op, case) > TAME:
            continue
        if _unknown(op):  # what it adds and takes off again nobody knows
            most = max(2.0, *(largest(x) for x in case.tokens[:2]))
            case = case.mapped(partial(torch.mul, torch.tensor(2 / most, dtype=F64)))
        narrow = tuple(x.float() for x in _full(case))
        wide = tuple(x.double() for x in narrow)
        out, exact = (op(*x, *case.masked) for x in (narrow, wide))
        yield from _typed(out, torch.float32, case.where)
        size = largest(exact) + largest(case.v)
        allowed = 10 * _rounding(op, case, torch.float32) * size
        yield from _in_range(out, exact, allowed, f"{case.where}; in float32")
        upstream = normal(rng, *exact.shape).float()
        mine, due = (
            _gradients(lambda *y, m=case.masked: op(*y, *m), x, upstream) for x in (narrow, wide)
        )
        factor = 200 if _unknown(op) else 20
        rounding = factor * _rounding(op, case, torch.float32, cancelled=2)
        for name, x, y in zip("qkv", mine, due, strict=True):
            where = f"{case.where}; float32, gradient in {name}"
            allowed = rounding * (_terms(case, "qkv".index(name)) + largest(y))
            yield from _in_range(x, y, allowed, where)


def _typed(out: Tensor, dtype: torch.dtype, where: str) -> Iterator[Gap]:
    """Whether an output has the dtype of its input."""
    yield Gap(float(out.dtype != dtype), 0, f"{where}: the output is {out.dtype}, not {dtype}")


def _in_range(found: Tensor, due: Tensor, allowed: float, where: str) -> Iterator[Gap]:
    """What a narrow dtype misses; nothing where more is allowed than it holds, and inf is right."""
    if allowed < torch.finfo(found.dtype).max:
        yield Gap(largest(found.double() - due), allowed, where)


def _half(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    for number, case in enumerate(drawn(op, rng, EACH // 3, long=True)):
        dtype = (torch.bfloat16, torch.float16)[number % 2]
        # Scores that half precision can tell apart, in tokens that it holds without rounding.
        most = max(largest(x) for x in case.tokens[:2])
        q, k, v = _full(case)
        factor = min(1, (6 if dtype == torch.float16 else 3) / most)
        if number == EACH // 3 + 1:  # scores whose exponentials overflow it
            dtype, factor = torch.float16, 6 / most
        if number == EACH // 3:
            # Values with a mean, over many keys of like weights: a sum in half precision stands
            # still where its terms are small beside it.
            dtype, factor, v = torch.bfloat16, factor / 10, v + 2
        narrow = tuple(x.to(dtype) for x in (q * factor, k * factor, v))
        wide = tuple(x.double() for x in narrow)
        scores = largest(wide[0] @ wide[1].mT) / case.q.shape[-1] ** 0.5
        rounding = 2 * torch.finfo(dtype).eps * (1 + scores)
        try:
            out, exact = (op(*x, *case.masked) for x in (narrow, wide))
        except RuntimeError as error:
            if refused(op, error, dtype):
                continue
            raise
        where = f"{case.where}; in {dtype}"
        yield from _typed(out, dtype, where)
        allowed = rounding * (largest(exact) + largest(case.v)) * _cancelling(op, case)
        yield from _in_range(out, exact, allowed, where)
        upstream = normal(rng, *exact.shape).to(dtype)
        mine, due = (
            _gradients(lambda *y, m=case.masked: op(*y, *m), x, upstream) for x in (narrow, wide)
        )
        for name, x, y in zip("qkv", mine, due, strict=True):
            allowed = 4 * rounding * (0.1 + largest(y)) * _cancelling(op, case) ** 2
            yield from _in_range(x, y, allowed, f"{where}, gradient in {name}")


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


FORMS: dict[str, Form] = {
    "softmax attention": _softmax(-0.5),
    "softmax attention without a scale": _softmax(0.0),
    "softmax attention of scale 1/d": _softmax(-1.0),
    "causal softmax attention": _triangular,
    "row-normalised Gaussian attention": _gaussian(rows=True),
    "Gaussian attention": _gaussian(rows=False),
}
"""The attentions that a function may turn out to be, as their dense matrices in float64."""


KEPT = 1e-6
"""The share of its due from which on an entry is kept."""
WINDOWS = (24, 66, 130, 300)
"""Numbers of tokens on which windows and the like show."""
ITS_TARGET = "its target"
"""The form of a function that equals the target that was said of it."""


def form_of(op: Any, seeds: range) -> str:
    """Which of ``FORMS`` a function equals on a few tokens of two widths, or its target; or empty.

    The target is an operator that is exact; of any other the law of targets tells.
    """
    known: dict[str, Dense] = {name: partial(_applied, form) for name, form in FORMS.items()}
    if has_target(op) and op.target.traits.exact:
        known[ITS_TARGET] = op.target
    for name, dense in known.items():
        square = name == "causal softmax attention" or (
            name == ITS_TARGET and op.target.traits.causal
        )
        if all(_equals(op, dense, seed, square=square) for seed in seeds):
            return "" if name in FORMS and _narrow(op, FORMS[name], seeds.start) else name
    return ""


def _narrow(op: Any, form: Form, seed: int) -> bool:
    """Whether each row is that of the form on keys of its own, as a window or a top-k keeps them.

    On few tokens they keep all, and are not to be blamed for less on more. Keys that no row has,
    rows that have fewer where there are more, and the keys up to its own at some lengths alone, are
    a fault.
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
        # A key that one row drops and another has.
        narrow |= bool(((meant & ~kept).any(-2) & (meant & kept).any(-2)).any())
        most = count
    return narrow


def _applied(form: Form, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return form(q, k) @ v


def _equals(op: Any, dense: Dense, seed: int, *, square: bool) -> bool:
    """Whether they are equal, or the rows of the one are the other's times almost one.

    So 1e-6 that is added to the sums of rows is seen, which no rounding explains: that differs from
    column to column. ``square``: with as many queries as keys.
    """
    rng = Stream(seed, "laws").generator
    least = rank_of(op)
    for few, many, d in ((4, 6, 4), (5, 3, 6)):
        n, l = lengths(op, max(few, least), max(many, least))
        q, k, v = normal(rng, l if square else n, d), normal(rng, l, d), normal(rng, l, 3)
        out, due = op(q, k, v), dense(q, k, v)
        factors = (out * due).sum(-1, keepdim=True) / due.square().sum(-1, keepdim=True)
        if not largest(factors - 1) <= ALMOST:
            return False
        if not largest(out - factors * due) <= tolerance(F64, l, c=100, scale=1 + largest(v)):
            return False
    return True


def found_form(op: Any) -> str:
    """The known attention that a function was found to equal; an operator's own field is none."""
    return op.form if is_plain(op) else ""


def _dense(op: Any) -> Dense | None:
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


def _far(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    """Of what reads distances: the dense form far from the origin, which squares do not survive."""
    dense = _dense(op)
    assert dense is not None  # as ``_form`` asks
    for n, l, d in ((5, 7, 4), (9, 9, 16)):
        n, l = lengths(op, max(n, rank_of(op)), max(l, rank_of(op)))
        away = FAR * normal(rng, d)
        q, k, v = normal(rng, n, d) + away, normal(rng, l, d) + away, normal(rng, l, 3)
        due = dense(q, k, v)
        # Differences carry the rounding of the tokens, not of their squares.
        allowed = tolerance(F64, l, kappa=10 * largest(away), scale=largest(v))
        where = f"{n} queries, {l} keys, width {d}, {FAR:g} from the origin"
        yield Gap(largest(op(q, k, v) - due), allowed, where)


def _fading(op: Any) -> bool:
    """Whether it is a function said to be one of features, which no row's largest holds up."""
    return found_form(op) == ITS_TARGET and bool(op.target.traits.replacement)


def _distances(op: Any) -> bool:
    """Whether its dense form reads distances alone."""
    form = found_form(op)
    known = op.target if form == ITS_TARGET else op
    return "Gaussian" in form or known.traits.reads == "distances"


def _form(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    dense = _dense(op)
    assert dense is not None  # as ``applies`` asks
    if _distances(op) and not asked():  # once
        yield from _far(op, rng)
    for case in drawn(op, rng, EACH, long=True):
        if op.traits.exact_at and case.mask is not None:
            continue  # how far a knob goes depends on the keys that are left
        if _fading(op) and max(largest(x) for x in case.tokens[:2]) > TALL:
            continue  # features as they are written vanish, and their quotients with them
        subject = at_most(op, case.k.shape[-2]) if op.traits.exact_at else op
        out = _flat(case.call(subject))
        upstream = normal(rng, *out.shape)
        gradients, rounding = _whole_gradients(subject, case, upstream), _rounding(op, case)
        for one in _some(op, case, rng):
            due = dense(*one.tokens)
            if not bool(due.isfinite().all()):
                continue  # exponentials of large scores, taken one by one
            allowed = 10 * rounding * (largest(case.v) + largest(due))
            where = f"{one.where}, and {found_form(op) or 'its dense form'}"
            yield Gap(largest(out[one.number][one.rows] - due), allowed, where)
            if gradients is None:
                continue
            above = upstream[one.number][one.rows]
            for i, wanted in enumerate(_gradients(dense, one.tokens, above)):
                if not bool(wanted.isfinite().all()):
                    continue  # of a quotient whose sums vanish, taken as it is written
                mine = gradients[i][one.number][one.kept if i else one.rows]
                allowed = 100 * rounding * (_terms(case, i) + largest(wanted))
                yield Gap(largest(mine - wanted), allowed, f"{where}: gradient in {'qkv'[i]}")


def _whole_gradients(op: Any, case: Situation, upstream: Tensor) -> list[Tensor] | None:
    """The gradients of all matrices, or None of what gives none."""
    upstream = upstream.reshape(case.shape)
    try:
        found = _gradients(lambda *x: op(*x, *case.masked), _full(case), upstream)
    except OutOfScopeError:
        return None
    return [_flat(x) for x in found]


FORM: Law[Any] = Law(
    "same form everywhere",
    "an operator equals its dense form, outputs and gradients, in every situation: of its kernel "
    "or target, or the attention, known or said to be its target, that a function equals on few "
    "tokens; one of distances far from the origin, too",
    lambda op: _dense(op) is not None,
    _form,
    family="limits",
    when="is exact, or exact at its most without a core, or a known attention on few tokens",
    allows="rounding of sums over l; of gradients 100 times that",
    catches="zeros beyond sixteen keys; another kernel beyond a width; the target at another "
    "scale; expanded squares far from the origin",
)
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
EACH_GRADIENT: Law[Any] = Law(
    "gradient of each matrix",
    "gradients of a batch, under any mask, are those of its matrices without their masked tokens; "
    "the output is the same with a graph, and a backward pass changes no gradient from above",
    _smooth,
    _gradient,
    family="gradients",
    when="has a gradient, and is no truncated SVD",
    allows="100 times the rounding of sums over l; nothing where tokens are masked",
    catches="a mean of gradients over the batch; keys detached under a mask",
)
TIED_GRADIENT: Law[Any] = Law(
    "gradient where q is k",
    "the gradient in one tensor given twice or thrice, as q, k or v, is the sum of theirs",
    _smooth,
    _tied,
    family="gradients",
    when="has a gradient, and is no truncated SVD",
    allows="100 times the rounding of sums over l",
    catches="one side detached where both are one tensor",
)
SINGLE_GRADIENT: Law[Any] = Law(
    "float32 everywhere",
    "outputs and gradients in float32 equal those in float64 of the same numbers",
    _smooth,
    _single,
    family="gradients",
    when="has a gradient, and is no truncated SVD",
    allows="20 times the rounding of sums over l, times the condition of a core; 200 of an unknown "
    "function",
    catches="a backward pass of its own for float32, or one in bfloat16",
)
HALF: Law[Any] = Law(
    "half precision everywhere",
    "outputs and gradients in bfloat16 and float16 equal those in float64 of the same numbers",
    lambda op: _smooth(op) and not has_core(op) and not _unknown(op),
    _half,
    family="gradients",
    when="has a gradient, inverts no core, is no truncated SVD, and no unknown function",
    allows="2 roundings of the largest score, of gradients 8",
    catches="a backward pass of its own for half precision; exponentials that overflow in float16",
    examples=2,
)
EVERYWHERE = (
    *(
        MATRICES,
        FORM,
        COLUMNS,
        AVERAGES,
        ZERO_COLUMNS,
        TRACES,
        RELEASED,
        EACH_GRADIENT,
        TIED_GRADIENT,
        SINGLE_GRADIENT,
        HALF,
    ),
)
"""All of them."""
