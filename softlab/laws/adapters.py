"""What stands under the laws: operators and solvers as they are, any callable in their guise.

A callable ``f(q, k, v)`` or ``f(q, k, v, key_mask)`` becomes an operator, one ``f(a)`` a solver.
What is not said of it is found out by calling it: which shapes it takes, and which claims hold on
the draws of ``SEEDS``. A claim that fails on any of them is not made, so that a law that is asked
at all is one that the callable was seen to keep, or one that its author claims.
"""

from __future__ import annotations

import ast
import bisect
import contextlib
import dataclasses
import importlib
import inspect
import itertools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from softlab.core import Operator, Stream, Traits
from softlab.engine import loading
from softlab.hints import hint
from softlab.laws import algebra, dependence, forms, isolation
from softlab.laws.law import (
    Draws,
    Law,
    OutOfScopeError,
    drawing,
    guarded,
    largest,
    lengths,
    normal,
    said,
)
from softlab.pinv import Solver, SolverTraits
from softlab.validation import aligned

NOTHING_CLAIMED = Traits(linear_in_v=False)
INVERTIBLE = SolverTraits(singular=False)
UNMEASURED = ("order", "products", "growth", "implicit", "watched", "closing", "precision")
"""Claims of solvers that no law can measure of a function, which has a call alone."""
MEMBERS = {Traits: ("target", "cost"), SolverTraits: ("iterates", "solve", "cost")}
"""What an operator and a solver have beside their traits and their call."""
SEEDS = range(9000, 9003)
MANY = 300
"""Queries beside few keys, of which those beyond a window have none."""
PROBED = (7, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
POWERS = tuple(2**i for i in range(12))
"""Numbers of tokens that a function is tried on, and what may have to divide them."""
INFERRED: dict[str, tuple[Law[Any], tuple[Any, ...]]] = {
    "linear_in_v": (algebra.LINEAR_IN_V, (True,)),
    "query_equivariant": (algebra.QUERY_EQUIVARIANT, (True,)),
    "key_invariant": (algebra.KEY_INVARIANT, (True,)),
    "row_stochastic": (algebra.ROW_STOCHASTIC, (True,)),
    "nonnegative": (algebra.NONNEGATIVE, (True,)),
    "symmetric": (algebra.SYMMETRIC, (True,)),
    "psd": (algebra.PSD, (True,)),
    "reciprocal": (dependence.RECIPROCAL, (True,)),
    "reads": (dependence.READS, ("relative scores", "scores", "distances")),
    "causal": (isolation.CAUSAL, (True,)),
}
"""Claims that calls can tell, the laws that measure them, and their values, the strongest first."""


@dataclass(frozen=True)
class Plain:
    """A callable as an operator.

    ``call``: maps q, k, v, and the mask where ``masked``, to the output. ``axes``: of the tensors
    that it takes, 0 for any number of leading ones. ``equal_lengths``, ``equal_widths``: it takes
    as many queries as keys, and values as wide as keys, only; others are then not drawn, and values
    passed a part at a time. ``target``: what it approximates, None if that is not known. ``rank``:
    how many queries and keys it needs, ``multiple`` what divides their numbers. ``broadcasts``,
    ``broadcasts_masks``: it takes keys and values, and masks, of fewer leading dimensions than
    queries; else they are written out. ``sample_masks``: its mask is of samples, (b, l), and every
    matrix is given as a sample of one head. ``form``: the known attention that it equals on few
    tokens, if any. ``inferred``: claims that were found out; ``refused``: the laws of those that
    were not kept, and by how much they were missed.
    """

    call: Callable[..., Tensor] = field(repr=False)
    name: str
    traits: Traits = NOTHING_CLAIMED
    target: Any = None
    masked: bool = False
    axes: int = 0
    equal_lengths: bool = False
    equal_widths: bool = False
    rank: int = 1
    broadcasts: bool = False
    broadcasts_masks: bool = False
    sample_masks: bool = False
    multiple: int = 1
    form: str = ""
    inferred: tuple[str, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()

    @property
    def plain(self) -> bool:
        """A function of tensors: no law is asked that turns knobs."""
        return True

    def __repr__(self) -> str:
        return self.name

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Apply to q (..., n, d), k (..., l, d), v (..., l, e)."""
        if not self.broadcasts:
            q, k, v = aligned(q=q, k=k, v=v)
        lead = q.shape[:-2]
        mask = key_mask
        if mask is not None and not self.broadcasts_masks:
            mask = mask.expand(*lead, k.shape[-2])
        if self.axes:
            least = max(0, self.axes - 2)
            shape = (*(1,) * (least - len(lead)), *lead)
            shape = (-1, *shape[len(shape) - least + 1 :]) if least else ()
            shape = (-1, 1) if self.sample_masks else shape
            q, k, v = (x.reshape(*shape, *x.shape[-2:]) for x in (q, k, v))
            if mask is not None:
                mask = mask.reshape(*shape[: 1 if self.sample_masks else None], mask.shape[-1])
        out = self._by_parts(q, k, v, () if mask is None else (mask,))
        return out.reshape(*lead, *out.shape[-2:]) if self.axes else out

    def _by_parts(self, q: Tensor, k: Tensor, v: Tensor, mask: tuple[Tensor, ...]) -> Tensor:
        width = v.shape[-1]
        if not self.equal_widths or width == q.shape[-1]:
            return self.answered(q, k, v, *mask)
        padded = torch.nn.functional.pad(v, (0, -width % q.shape[-1]))
        parts = [self.answered(q, k, part, *mask) for part in padded.split(q.shape[-1], -1)]
        return torch.cat(parts, -1)[..., :width]

    def answered(self, *tensors: Tensor) -> Tensor:
        """The function's answer; ``OutOfScopeError`` where it raises and needs other lengths."""
        try:
            out = guarded(self.call, *tensors)
        except Exception as error:
            n, l = tensors[0].shape[-2], tensors[1].shape[-2]
            if self.rank > min(n, l) or n % self.multiple or l % self.multiple:
                msg = f"it {self.needs}, and the law draws {n} queries and {l} keys"
                raise OutOfScopeError(msg) from error
            raise
        return _tensor(out)

    @property
    def given(self) -> str:
        """What it is called with, in words: what was assumed of its shapes, and of its mask."""
        lead = {3: "b, ", 4: "b, h, "}.get(self.axes, "..., ")
        keys = "n" if self.equal_lengths else "l"
        values = "d" if self.equal_widths else "e"
        words = f"q ({lead}n, d), k ({lead}{keys}, d), v ({lead}{keys}, {values})"
        if self.masked:
            does = "drops" if getattr(self.call, "inverted", False) else "keeps"
            words += f", a mask ({'b, ' if self.sample_masks else lead}{keys}), True {does} a key"
        return words

    @property
    def needs(self) -> str:
        """What it needs of the numbers of tokens, in words; empty if nothing."""
        words = [f"{self.rank} tokens or more"] * (self.rank > 1)
        words += [f"lengths that {self.multiple} divides"] * (self.multiple > 1)
        return "needs " + " and ".join(words) if words else ""


def _tensor(out: Any) -> Tensor:
    """The answer of a function, which must be a tensor."""
    if not isinstance(out, Tensor):
        msg = f"the answer is a {type(out).__name__}; return one tensor"
        raise TypeError(msg)
    return out


@dataclass(frozen=True)
class PlainSolver:
    """A callable as a solver: ``call`` maps (..., m, m) to its pseudo-inverse."""

    call: Callable[[Tensor], Tensor] = field(repr=False)
    name: str
    traits: SolverTraits = INVERTIBLE

    @property
    def plain(self) -> bool:
        """A function of a matrix: no law is asked that turns knobs."""
        return True

    def __repr__(self) -> str:
        return self.name

    def __call__(self, a: Tensor) -> Tensor:
        """The (pseudo-)inverse of a (..., m, m)."""
        return _tensor(guarded(self.call, a))


def is_solver(subject: object) -> bool:
    """Whether the laws of solvers are the ones to ask."""
    return isinstance(subject, (Solver, PlainSolver))


def adapted(
    subject: Any,
    *,
    traits: str | None = None,
    target: Any = None,
    name: str = "",
    requires: str | None = None,
) -> Any:
    """The subject as the laws take it: itself, or a callable in the guise of an operator or solver.

    ``traits``: claims of a callable, in words: ``"row_stochastic, reads=scores"``; None finds out.
    ``target``: the exact operator that a callable approximates. ``name``: what to call it.
    ``requires``: the least number of tokens that it takes, and what divides it:
    ``"tokens=64, multiple=8"``; None finds out. Raises ``ValueError`` for what is neither, and for
    traits that there are not.
    """
    if isinstance(subject, type):
        msg = (
            f"{subject.__name__} is a class, and laws are about an object of it. Give one, such as "
            f"{subject.__name__}(...)."
        )
        raise ValueError(msg)  # noqa: TRY004
    if isinstance(subject, (Operator, Solver, Plain, PlainSolver)):
        if (traits, target, requires) != (None, None, None):
            msg = f"{subject!r} states its own traits and target; give them for a plain callable."
            raise ValueError(msg)
        return subject
    claims = type(getattr(subject, "traits", None))
    if lacking := [x for x in MEMBERS.get(claims, ()) if not hasattr(subject, x)]:
        msg = (
            f"{name or subject!r} claims traits and has no {' and no '.join(lacking)}, so that no "
            "law would read them. Give it what it lacks, or its __call__ alone."
        )
        raise ValueError(msg)
    if not callable(subject):
        msg = (
            f"{name or subject!r} is a {type(subject).__name__}, and cannot be called. Give an "
            "operator, a solver, f(q, k, v) or f(a)."
        )
        raise ValueError(msg)  # noqa: TRY004
    if target is not None and not isinstance(target, Operator):
        msg = (
            f"the target is a {type(target).__name__}; give an operator that is exact, such as "
            "softlab.operators:Softmax()."
        )
        raise ValueError(msg)
    name = name or getattr(subject, "__name__", repr(subject))
    if (width := _layer_of_tokens(subject)) is not None:
        msg = (
            f"{name} is a layer: it takes tokens (b, n, {width}) and makes queries, keys and "
            "values of them itself, while laws are about f(q, k, v). Check the attention inside "
            "it, or an adapter: a function of yours that gives q, k and v to the layer with its "
            "projections replaced by the identity (softlab check --adapter file.py:function makes "
            "it of the layer). The guide on published packages has some."
        )
        raise ValueError(msg)
    subject, least, most = _spoken(subject)
    if least == 1 or most == 1:
        if target is not None:
            msg = f"{name} is a solver, whose target is the inverse itself; give it no target."
            raise ValueError(msg)
        if requires is not None:
            msg = f"{name} is a solver, which has no tokens; give no requires={requires!r}."
            raise ValueError(msg)
        return PlainSolver(subject, name, _parsed(traits, INVERTIBLE))
    plain = Plain(subject, name, target=target, masked=most > 3)
    if requires is not None:
        tokens, multiple = _required(requires)
        plain = dataclasses.replace(plain, rank=tokens, multiple=multiple)
    with drawing(Draws()):
        if (width := _only_width(plain)) is not None:
            msg = (
                f"{name if len(name) < 60 else 'it'} takes tokens of width {width} alone, as where "
                "projections have that size, while laws draw other widths for keys and values. "
                "Check the attention inside it, or a function that makes it for the width of its "
                "tokens."
            )
            raise ValueError(msg)
        plain = _sized(plain) if requires is None else plain
        plain = _formed(_paired(_fitted(plain)))
        if traits is not None:
            return dataclasses.replace(plain, traits=_parsed(traits, Traits()))
        return _claiming(plain)


WIDTHS = (8, 12, 16, 24, 32, 48, 64, 80, 96, 128, 192, 256, 384, 512, 768, 1024)
"""Widths of tokens that a function of one width may take."""


def _only_width(plain: Plain) -> int | None:
    """The width that a function takes where it takes no other; None where it takes the laws' own.

    As of a module with projections: q, k and v have the width that those were made for.
    """
    if _taken(plain, ((),)) is not None:
        return None
    for width, lead in itertools.product(WIDTHS, ((), (2,), (2, 3))):
        q, k, v = (torch.zeros(*lead, 7, width, dtype=torch.float64) for _ in range(3))
        for dtype in (torch.float64, torch.float32):
            with torch.no_grad(), contextlib.suppress(Exception):  # of anybody's function
                out = plain.call(q.to(dtype), k.to(dtype), v.to(dtype))
                if isinstance(out, Tensor) and out.shape == q.shape:
                    return width
    return None


def _layer_of_tokens(call: Any) -> int | None:
    """The width of the tokens of which a module makes q, k and v itself; None of anything else.

    Such a module takes one tensor, or tuples come back from it, as from ``nn.MultiheadAttention``.
    """
    if not isinstance(call, nn.Module):
        return None
    try:
        given = [*inspect.signature(call.forward).parameters.values()]
    except (TypeError, ValueError):
        return None
    count = sum(x.default is x.empty and x.kind is x.POSITIONAL_OR_KEYWORD for x in given)
    count = count or int(any(x.kind is x.VAR_POSITIONAL for x in given))
    if count not in (1, 3):
        return None
    linear = [x for x in call.modules() if isinstance(x, nn.Linear)]
    widths = dict.fromkeys(x.in_features for x in linear)
    for width, n in itertools.product(widths, (64, 96, 256)):
        if width == n:  # which may be a matrix
            continue
        x = torch.zeros(1, n, width, dtype=linear[0].weight.dtype, device=linear[0].weight.device)
        with torch.no_grad(), contextlib.suppress(Exception):  # of anybody's module
            out = call(*[x] * count)
            several = isinstance(out, tuple) and bool(out)
            first = out[0] if several else out
            if isinstance(first, Tensor) and first.shape == x.shape and (several or count == 1):
                return width
    return None


def _spoken(call: Any) -> tuple[Any, int, int]:
    """The callable by position, and the least and the most arguments that it takes then.

    Tensors and masks that it takes by keyword alone are given by their names. A mask whose name is
    of padding, and which drops the keys that it names as torch's own does, is given inverted.
    """
    try:
        signature = inspect.signature(getattr(call, "forward", call))
    except (TypeError, ValueError):
        return (call, 1, 1) if _inverts(call) else (call, 3, 3)
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    given = [x for x in signature.parameters.values() if x.kind in kinds]
    least = sum(x.default is x.empty for x in given)
    named = [x for x in signature.parameters.values() if x.kind is inspect.Parameter.KEYWORD_ONLY]
    must = [x.name for x in named if x.default is x.empty]
    tensors = [None] * least + must if must and least + len(must) in (1, 3) else [None] * 3
    others = [x.name for x in (*given[3:], *named) if x.name not in must]
    mask = next((x for x in others if "mask" in x and "attn" not in x and "query" not in x), None)
    if not must and least == 1:
        return call, least, len(given)
    if not must and (mask is None or (given[3:4] and given[3].name == mask and "pad" not in mask)):
        return call, least, min(len(given), 3 if mask is None else 4)
    by_name = _Named(call, tuple(tensors), mask)
    if mask is not None and "pad" in mask and by_name.drops():
        by_name = dataclasses.replace(by_name, inverted=True)
    return by_name, len(tensors), len(tensors) + (mask is not None)


@dataclass(frozen=True)
class _Named:
    """A callable that is given some of its arguments by name.

    ``tensors``: the names, None by position. ``mask``: that of the argument after them.
    """

    __wrapped__: Any
    tensors: tuple[str | None, ...]
    mask: str | None
    inverted: bool = False

    def __call__(self, *given: Tensor) -> Any:
        count = len(self.tensors)
        held = dict(zip(self.tensors, given, strict=False))
        first = [x for name, x in zip(self.tensors, given, strict=False) if name is None]
        more = {name: x for name, x in held.items() if name is not None}
        if len(given) > count and self.mask is not None:
            more[self.mask] = ~given[count] if self.inverted else given[count]
        return self.__wrapped__(*first, **more)

    def drops(self) -> bool:
        """Whether the call deletes the keys at which the mask is True, and not the others."""
        rng = Stream(SEEDS.start, "laws").generator
        for lead in ((1,), (1, 1), ()):
            q, k, v = (normal(rng, *lead, n, 8) for n in (5, 6, 6))
            keep = torch.arange(6).expand(*lead, 6) < 4
            with contextlib.suppress(Exception):
                due = self(q, k[..., :4, :], v[..., :4, :])
                found = (largest(self(q, k, v, x) - due) < 1e-6 for x in (keep, ~keep))
                return tuple(found) == (False, True)
        return True


def _inverts(call: Any) -> bool:
    """Whether a callable without a signature takes a matrix alone."""
    try:
        return bool(call(2 * torch.eye(3)).shape == (3, 3))
    except Exception:
        return False


def _parsed(words: str | None, traits: Any) -> Any:
    """The claims with those of the words: ``"causal, reads=scores"``."""
    fields = {x.name: getattr(traits, x.name) for x in dataclasses.fields(traits)}
    changed: dict[str, Any] = {}
    for word in filter(None, (x.strip() for x in (words or "").split(","))):
        key, _, held = (x.strip() for x in word.partition("="))
        if key not in fields:
            msg = f"there is no trait {key!r}; there are {', '.join(fields)}.{hint(key, fields)}"
            raise ValueError(msg)
        if key in {"exact_at", "monotone"}:
            msg = f"{key} names a knob, which a plain callable has not; claim it in an operator."
            raise ValueError(msg)
        if key in UNMEASURED and isinstance(traits, SolverTraits):
            able = ", ".join(x for x in fields if x not in UNMEASURED)
            msg = (
                f"{key} is measured on iterates, solve or cost, which a function of a matrix has "
                f"not; claim it in a solver of your own. A function can claim {able}."
            )
            raise ValueError(msg)
        try:
            changed[key] = ast.literal_eval(held) if held else True
        except (ValueError, SyntaxError):
            changed[key] = held
        if type(changed[key]) is not type(fields[key]) and fields[key] is not None:
            kind = "a word" if isinstance(fields[key], str) else "True or False"
            msg = f"trait {key} is {changed[key]!r}; give {kind}."
            raise ValueError(msg)
    return dataclasses.replace(traits, **changed)


def _required(words: str) -> tuple[int, int]:
    """The numbers of ``"tokens=64, multiple=8"``."""
    found = {"tokens": 1, "multiple": 1}
    for word in words.split(","):
        key, _, held = (x.strip() for x in word.partition("="))
        if key not in found or not held.isdecimal() or int(held) < 1:
            msg = f"requires is {words!r}; give whole numbers, as in 'tokens=64, multiple=8'."
            raise ValueError(msg)
        found[key] = int(held)
    return found["tokens"], found["multiple"]


def _forms(plain: Plain) -> Iterator[Plain]:
    for axes, same, widths in itertools.product((0, 3, 4), (False, True), (False, True)):
        yield dataclasses.replace(plain, axes=axes, equal_lengths=same, equal_widths=widths)


def _fitted(plain: Plain) -> Plain:
    """With the shapes that it takes, the freest first; as it is if it takes none.

    Batches and heads are tried too, since one that takes three axes alone must not be given four;
    one that answers for a single matrix alone is a fault that the laws are to see.
    """
    some = (_taken(plain, leads) for leads in (((), (2,), (2, 3)), ((),)))
    form = next((form for form in some if form is not None), plain)
    samples = dataclasses.replace(form, axes=4, sample_masks=True)
    if form.masked and not _masks(form) and _masks(samples):
        return samples
    if form.axes:
        return form
    freer = dataclasses.replace(form, broadcasts=True)
    form = freer if _broadcasts(freer) else form
    freer = dataclasses.replace(form, broadcasts_masks=True)
    return freer if form.masked and _broadcasts(freer) else form


def _masks(plain: Plain) -> bool:
    """Whether it answers, in the right shape, for samples and heads with a mask of each."""
    rng = Stream(SEEDS.start, "laws").generator
    _, l = lengths(plain, 1, max(7, plain.rank))
    n = l if plain.equal_lengths or plain.rank > 1 or plain.multiple > 1 else 5
    q, k, v = (normal(rng, 2, 3, x, 4) for x in (n, l, l))
    try:
        return bool(plain(q, k, v, (torch.arange(l) != 1).expand(2, 3, l)).shape == q.shape)
    except Exception:
        return False


def _paired(plain: Plain) -> Plain:
    """With as many queries as keys where it has no number for the queries beyond the keys.

    As of a window, in which a query far beyond the last key has no key at all.
    """
    n, l = max(MANY, plain.rank), plain.rank
    if plain.equal_lengths or plain.multiple > 1:
        return plain
    rng = Stream(SEEDS.start, "laws").generator
    q, k, v = (normal(rng, n, 4) for _ in range(3))
    try:
        lacking = plain(q, k[:l], v[:l]).isnan().all(-1) & ~plain(q, k, v).isnan().any(-1)
    except Exception:
        return plain
    return dataclasses.replace(plain, equal_lengths=bool(lacking[l:].any()))


def _broadcasts(plain: Plain) -> bool:
    """Whether keys of fewer leading dimensions, or such a mask, are taken as they are."""
    rng = Stream(SEEDS.start, "laws").generator
    n, l = (7, 7) if plain.equal_lengths else (5, 7)
    width = 4 if plain.equal_widths else 3
    lead = (3,) if plain.broadcasts and not plain.broadcasts_masks else (2, 3)
    q, k, v = normal(rng, 2, 3, n, 4), normal(rng, *lead, l, 4), normal(rng, *lead, l, width)
    mask = (torch.arange(l) != 1,) if plain.broadcasts_masks else ()
    try:
        return bool(plain(q, k, v, *mask).shape == (2, 3, n, width))
    except Exception:
        return False


def _sized(plain: Plain) -> Plain:
    """With the least number of tokens at which it does not raise, and what must divide it."""
    found = next((x for x in PROBED if _takes(plain, x)), None)
    if found is None or _takes(plain, 1):
        return plain
    step = next((x for x in POWERS if x <= found and _takes(plain, found + x)), 1)
    sizes = range(step, found + 1, step)
    # By halves where it is large: between the last probe that raised and this one.
    below = max((x for x in PROBED if x < found and x % step == 0), default=0)
    near = [x for x in sizes if x > below] or [found]
    least = next(x for x in near if _takes(plain, x)) if len(near) < 40 else _edge(plain, near)
    return dataclasses.replace(plain, rank=least, multiple=step)


def _edge(plain: Plain, sizes: Sequence[int]) -> int:
    """The first size from which on it answers."""
    return sizes[bisect.bisect_left(sizes, x=True, key=lambda x: _takes(plain, x))]


def _takes(plain: Plain, tokens: int) -> bool:
    """Whether some form of it answers on so many tokens, whatever it answers."""
    rng = Stream(SEEDS.start, "laws").generator
    tensors = [normal(rng, tokens, 4) for _ in range(3)]
    for form in _forms(plain):
        with contextlib.suppress(Exception):
            form(*tensors)
            return True
    return False


def _taken(plain: Plain, leads: Sequence[tuple[int, ...]]) -> Plain | None:
    """The freest form that answers, in the right shape, at these leading dimensions."""
    for form in _forms(plain):
        rng = Stream(SEEDS.start, "laws").generator
        _, l = lengths(form, 1, max(7, form.rank))
        n = l if form.equal_lengths or form.rank > 1 or form.multiple > 1 else 5
        try:
            shapes = [
                form(*(normal(rng, *lead, *size) for size in ((n, 4), (l, 4), (l, 3)))).shape
                for lead in leads
            ]
        except Exception:
            continue
        if shapes == [(*lead, n, 3) for lead in leads]:
            return form
    return None


def _formed(plain: Plain) -> Plain:
    """With the known attention that it equals on few tokens."""
    try:
        return dataclasses.replace(plain, form=forms.form_of(plain, SEEDS))
    except Exception:  # what a function raises, its laws say
        return plain


def _claiming(plain: Plain) -> Plain:
    """With the claims that it keeps on the draws of ``SEEDS``."""
    claims: dict[str, Any] = {}
    refused = []
    for name, (law, values) in INFERRED.items():
        if name == "psd" and "symmetric" not in claims:
            continue
        for held in values:
            missed = _missed(_with(plain, **{**claims, name: held}), law)
            if not missed:
                claims[name] = held
                break
        else:
            refused.append((law.name, missed))
    return dataclasses.replace(
        _with(plain, **claims), inferred=tuple(claims), refused=tuple(refused)
    )


def _with(plain: Plain, **claims: Any) -> Plain:
    return dataclasses.replace(plain, traits=dataclasses.replace(plain.traits, **claims))


def _missed(plain: Plain, law: Law[Any]) -> str:
    """By how much the law is missed on the draws of ``SEEDS``; empty if it is kept."""
    try:
        rng = Stream(SEEDS.start, "laws").generator
        n, _ = lengths(plain, max(7, plain.rank), 7)
        out = plain(normal(rng, n, 4), normal(rng, n, 4), normal(rng, n, 3))
        if largest(out) == 0:  # zeros keep many laws
            return "all outputs are zero"
        gaps = (law.broken(plain, seed=seed) for seed in SEEDS)
        return next((gap.said for gap in gaps if gap is not None), "")
    except OutOfScopeError as error:
        return str(error)
    except Exception as error:
        return said(error)


def claim_found(subject: Any, law: Law[Any]) -> str:
    """The claim that the law measures, if calls and not its author told it; else empty."""
    found = getattr(subject, "inferred", ())
    return next((name for name, (x, _) in INFERRED.items() if x is law and name in found), "")


def without(subject: Any, claim: str) -> Any:
    """The subject without a claim that was found and is not kept."""
    if not claim:
        return subject
    nothing = getattr(NOTHING_CLAIMED, claim)
    kept = tuple(x for x in subject.inferred if x != claim)
    return dataclasses.replace(_with(subject, **{claim: nothing}), inferred=kept)


def load(
    spec: str,
    *,
    traits: str | None = None,
    target: str | None = None,
    requires: str | None = None,
    adapter: str | None = None,
) -> Any:
    """The subject that ``package.module:object`` or ``path/file.py:object`` names.

    ``object`` may be an expression: ``softlab.operators:Soft(rank=16)``. ``traits`` as in
    ``adapted``, and ``requires``; ``target`` a spec itself; ``adapter`` as in ``through``. Raises
    ``ValueError`` where there is none.
    """
    aim = None if target is None else found(target)
    subject = through(adapter, found(spec))
    name = spec.rpartition(":")[2] or spec
    return adapted(subject, traits=traits, target=aim, name=name, requires=requires)


def _first(call: Any) -> Any:
    """The first part of an answer that is a tuple."""
    return lambda *given: call(*given)[0]


def _scaled(call: Any) -> Any:
    """Queries over sqrt(d), for code that leaves the scale to its caller."""
    return lambda q, *more: call(q / q.shape[-1] ** 0.5, *more)


def _heads_last(call: Any) -> Any:
    """Tokens before heads: q (b, h, n, d) is given as (b, n, h, d), and so is the answer read."""

    def turned(q: Tensor, k: Tensor, v: Tensor, *mask: Tensor) -> Any:
        if q.ndim < 3:
            msg = "needs a dimension of heads"
            raise ValueError(msg)
        return call(*(x.transpose(-3, -2) for x in (q, k, v)), *mask).transpose(-3, -2)

    return turned


ADAPTERS: dict[str, Callable[[Any], Any]] = {
    "first": _first, "heads-last": _heads_last, "scaled": _scaled,
}  # fmt: skip
"""What stands between the laws and code of another shape, by name."""


def through(adapter: str | None, subject: Any) -> Any:
    """The subject as an adapter turns it into f(q, k, v), itself where there is none.

    Args:
        adapter: names of ``ADAPTERS``, the innermost first ("first+scaled"), or a spec of a
            function of the subject as ``found`` takes it, ``path/file.py:function``.
        subject: a function or a module.

    Raises ``ValueError`` for a name that there is not, and where the function gives nothing that
    can be called.
    """
    if adapter is None:
        return subject
    if ":" in adapter:
        turned = found(adapter)(subject)
        if not callable(turned):
            msg = f"the adapter {adapter} gives a {type(turned).__name__}; return f(q, k, v)."
            raise ValueError(msg)
        return turned
    for name in adapter.split("+"):
        if name not in ADAPTERS:
            msg = (
                f"there is no adapter {name!r}; give one of {', '.join(ADAPTERS)}, some joined by "
                f"a plus, or path/file.py:function.{hint(name, ADAPTERS)}"
            )
            raise ValueError(msg)
        made = ADAPTERS[name](subject)
        with contextlib.suppress(TypeError, ValueError):  # some of C have none
            made.__signature__ = inspect.signature(getattr(subject, "forward", subject))
        subject = made
    return subject


def found(spec: str) -> Any:
    """The object that the spec names, as it is; ``ValueError`` where there is none."""
    where, colon, what = spec.partition(".py:") if ".py:" in spec else spec.partition(":")
    if not colon or not what:
        msg = f"{spec!r} names no object; give package.module:object or path/file.py:object."
        raise ValueError(msg)
    module = _file(Path(f"{where}.py")) if colon == ".py:" else _module(where)
    try:
        return eval(what, dict(vars(module)))
    except Exception as error:
        msg = f"{what} of {where} cannot be evaluated: {type(error).__name__}: {error}."
        name = str(error.name) if isinstance(error, NameError) else ""
        if name and re.search(rf"\b{name}\b", what):
            msg = f"{where} has no {name!r}.{hint(name, vars(module))}"
        raise ValueError(msg) from error


def _module(name: str) -> Any:
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        msg = f"{name} cannot be imported: {type(error).__name__}: {error}"
        raise ValueError(msg) from error
    finally:
        sys.path.pop(0)


def _file(path: Path) -> Any:
    if not path.is_file():
        msg = f"there is no file {path}."
        raise ValueError(msg)
    return loading.load(path)
