"""What a subject was called with: regimes of shapes, sizes, precisions, memory, masks and values.

They are read off the tensors of each call while laws run, not off what a law says that it draws.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from softlab.laws.law import guarded

if TYPE_CHECKING:
    from softlab.laws.runner import Outcome

WIDTHS = {"1": 1, "2-8": 8, "9-64": 64}
LENGTHS = {
    **{"1": 1, "2-8": 8, "9-16": 16, "17-32": 32, "33-64": 64, "65-128": 128, "129-256": 256},
    **{"257-512": 512, "513-1024": 1024},
}
MORE = "more"
REGIMES: Mapping[str, Sequence[str]] = {
    "leading dimensions": ("none", "one", "two", MORE, "broadcast"),
    "keys": (*LENGTHS, MORE),
    "queries": ("one", "fewer than keys", "as many", MORE),
    "width": (*WIDTHS, MORE),
    "values": (*WIDTHS, MORE),
    "rows": (*LENGTHS, MORE),
    "dtype": ("float64", "float32", "bfloat16", "float16"),
    "layout": ("plain", "offset", "strided", "expanded"),
    "mask": ("none", "shared", "each its own", "broadcast"),
    "kept": ("all", "some", "one key"),
    "scale": ("zero", "to 0.1", "to 10", "to 1000", MORE, "not finite"),
    "ties": ("none", "q is k", "equal keys"),
    "matrix": ("symmetric", "not symmetric"),
    "gradient": ("none", "asked"),
}
"""The factors and their levels, in the order of a table; of a solver ``rows`` and ``matrix``."""


@dataclass
class Record:
    """Calls of a subject: ``counts`` of each (factor, level), and ``calls``, the tensors of some.

    ``calls`` holds copies, and only of a record that ``keeps``; the others hold nothing back.
    ``begun``: when the last call began, by the monotonic clock.
    """

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    keeps: bool = False
    calls: list[dict[str, Tensor]] = field(default_factory=list)
    begun: float = 0.0

    def note(self, given: Sequence[Any], named: Mapping[str, Any]) -> None:
        """Count a call by its tensors."""
        tensors = [x for x in (*given, *named.values()) if isinstance(x, Tensor)]
        names = ("a",) if len(tensors) == 1 else ("q", "k", "v", "mask")
        call = dict(zip(names, tensors, strict=False))
        # Inside a transform of torch a tensor may have no values to read: then it is not counted.
        with torch.no_grad(), contextlib.suppress(RuntimeError, NotImplementedError):
            self.counts.update(regimes(call).items())
            if self.keeps:
                self.calls.append({name: x.detach().clone() for name, x in call.items()})
        self.begun = time.monotonic()


@contextlib.contextmanager
def recorded(subject: Any, *, keeps: bool = False) -> Iterator[Record]:
    """Count the calls of all objects of the class of the subject inside."""
    kind, record = type(subject), Record(keeps=keeps)
    # Of a plain function, what reaches the function itself.
    names = ("answered",) if hasattr(kind, "answered") else ("__call__", "solve")
    before = {name: vars(kind).get(name) for name in names if hasattr(kind, name)}
    try:
        for name in before:
            setattr(kind, name, _noting(getattr(kind, name), record))
    except TypeError:  # a class of C is as it is: nothing is measured of it
        before = {}
    try:
        yield record
    finally:
        for name, own in before.items():
            setattr(kind, name, own) if own is not None else delattr(kind, name)


def _noting(inner: Callable[..., Any], record: Record) -> Callable[..., Any]:
    @functools.wraps(inner)
    def call(self: Any, *given: Any, **named: Any) -> Any:
        record.note(given, named)
        return guarded(inner, self, *given, **named)

    return call


def regimes(call: Mapping[str, Tensor]) -> dict[str, str]:
    """The level of each factor that a call of (q, k, v), with a mask or not, or of (a) is at."""
    first = next(iter(call.values()), None)
    if first is None or any(x.ndim < 2 for name, x in call.items() if name != "mask"):
        return {}
    found = {
        "dtype": str(first.dtype).removeprefix("torch."),
        "gradient": "asked" if any(x.requires_grad for x in call.values()) else "none",
    }
    if "k" not in call:
        square = first.shape[-1] == first.shape[-2]
        same = square and bool(torch.equal(first, first.mT))
        return found | {
            "leading dimensions": _leading(first.ndim - 2),
            "rows": _level(first.shape[-2], LENGTHS),
            "layout": _layout(first),
            "scale": _scale(first),
            "matrix": "symmetric" if same else "not symmetric",
        }
    return found | _tokens(call)


def _tokens(call: Mapping[str, Tensor]) -> dict[str, str]:
    q, k, v = (call.get(name, call["k"]) for name in "qkv")
    n, l = q.shape[-2], k.shape[-2]
    alike = q.shape[:-2] == k.shape[:-2] == v.shape[:-2]
    same = q is k or (q.shape == k.shape and q.data_ptr() == k.data_ptr())
    tied = l > 1 and bool(torch.equal(k[..., 0, :], k[..., -1, :]))
    many = "fewer than keys" if n < l else "as many" if n == l else MORE
    return {
        "leading dimensions": _leading(q.ndim - 2) if alike else "broadcast",
        "keys": _level(l, LENGTHS),
        "queries": "one" if n == 1 else many,
        "width": _level(k.shape[-1], WIDTHS),
        "values": _level(v.shape[-1], WIDTHS),
        "layout": _layout(k),
        "scale": _scale(k),
        "ties": "q is k" if same else "equal keys" if tied else "none",
    } | _masked(call.get("mask"), q.shape[:-2])


def _masked(mask: Tensor | None, lead: torch.Size) -> dict[str, str]:
    if mask is None:
        return {"mask": "none"}
    whole = mask.shape[:-1] == lead or mask.ndim > len(lead) + 1
    kind = "each its own" if whole else "broadcast"
    kept = mask.sum(-1)
    share = "one key" if bool((kept == 1).any()) else "all" if bool(mask.all()) else "some"
    return {"mask": "shared" if mask.ndim == 1 else kind, "kept": share}


def _leading(count: int) -> str:
    return ("none", "one", "two", MORE)[min(count, 3)]


def _level(size: int, levels: Mapping[str, int]) -> str:
    return next((name for name, most in levels.items() if size <= most), MORE)


def _layout(x: Tensor) -> str:
    if x.is_contiguous():
        return "offset" if x.storage_offset() else "plain"
    return "expanded" if 0 in x.stride() else "strided"


def _scale(x: Tensor) -> str:
    if not x.numel():
        return "zero"
    low, high = (float(y) for y in torch.aminmax(x))
    size = max(abs(low), abs(high))
    if not size < float("inf"):
        return "not finite"
    limits = {"zero": 0.0, "to 0.1": 0.1, "to 10": 10.0, "to 1000": 1000.0}
    return next((name for name, most in limits.items() if size <= most), MORE)


@dataclass(frozen=True)
class Coverage:
    """How often each law called the subject in each regime.

    ``rows``: law, factor, level and the number of calls; levels that a law never met are there with
    a zero, where it met the factor at all.
    """

    rows: tuple[tuple[str, str, str, int], ...]

    @property
    def laws(self) -> tuple[str, ...]:
        """Those that called the subject, in their order."""
        return tuple(dict.fromkeys(law for law, *_ in self.rows))

    def of(self, factor: str, level: str) -> dict[str, int]:
        """The calls of each law that met this level of the factor."""
        return {law: n for law, *where, n in self.rows if n and where == [factor, level]}

    def as_csv(self) -> str:
        """The rows as comma-separated values, with a line of names."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(
            (("law", "factor", "level", "calls"), *self.rows)
        )
        return text.getvalue()


def coverage(outcomes: Sequence[Outcome]) -> Coverage:
    """What the laws of an examination called their subject with, as it was measured."""
    rows = [
        (one.law, factor, level, one.drawn.get(f"{factor}: {level}", 0))
        for one in outcomes
        for factor, levels in REGIMES.items()
        for level in levels
        if any(key.startswith(f"{factor}: ") for key in one.drawn)
    ]
    return Coverage(tuple(rows))
