"""Situations that an operator may be called in: sizes, shapes, masks, layouts, precisions.

A situation is one row of a covering design: over the rows every pair of choices of two factors is
met at least once, so that a fault that needs two of them together is drawn. ``DESIGN`` has the
factors; a law asks for the rows of its seed with ``drawn``.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softlab.laws.law import (
    asked,
    draws_now,
    lengths,
    meet,
    needs_equal,
    normal,
    rank_of,
    takes_mask,
)

DESIGN: Mapping[str, Sequence[Any]] = {
    "lead": ((), (1,), (2, 9), (3, 1), (11,), (2, 3, 2)),
    "keys": (1, 2, 9, 17, 33, 65, 129, 257, 513),
    "queries": ("one", "fewer", "equal", "more"),
    "width": (1, 4, 16, 65, 96, "keys"),
    "values": (1, 3, 40, "width", "keys"),
    "layout": ("plain", "transposed", "offset", "strided", "expanded"),
    "mask": (
        *("none", "shared", "per matrix", "broadcast"),
        *("one key left", "one dropped", "all kept"),
    ),
    "size": (0.3, 1.0, 3.0, 300.0),
    "tied": (False, True),
    "keys of a batch": ("own", "shared"),
}
"""The factors and their choices. Keys lie above and below the powers of two, at which blocks,
tiles and caches change; "keys" makes a width equal to the number of keys."""

ORDINARY: Mapping[str, Any] = {name: choices[0] for name, choices in DESIGN.items()} | {
    "keys": 9, "queries": "fewer", "width": 4, "values": 3, "size": 1.0,
}  # fmt: skip
"""Choices with nothing particular about them; a failure is reduced towards them."""

SIZES = (
    *(*range(1, 130), 255, 256, 257, 511, 512, 513, 768, 1000, 1023, 1024, 1025),
    *(2047, 2048, 2049, 3000, 4096, 4097),
)
"""Numbers of keys of a thorough examination, shared out among ``SHARES`` seeds."""
SHARES = 20

NEAR: Mapping[Any, Sequence[Any]] = {
    17: (17, 16, 24), 33: (33, 32, 48), 65: (65, 64, 100), 129: (129, 128, 200),
    257: (257, 256, 300), 513: (513, 512, 640), 40: (40, 64, 130), 96: (96, 128, 257),
    (11,): ((11,), (70,)),
    "shared": ("by all", "in the first dimension", "in the last dimension"),
}  # fmt: skip
"""What a choice stands for, in turn: sizes above, at and between the powers of two."""

LONG = (1025, 2048, 4097, 1536, 4096)
"""Keys of the one long draw of a seed, few queries beside them; of a causal operator a quarter.
And queries of one more draw, beside few keys."""

UNLIKE = (1.0, 3.0, 0.3)
"""Factors of the tokens of a batch's matrices in turn, so that none can lend another its scale."""

MOST = 1 << 19
"""Most entries that the scores of one matrix may have."""
BATCHED = 1 << 17
"""Most entries of several matrices: sizes count in one, and numbers of matrices in small ones."""


@dataclass(frozen=True)
class Situation:
    """Tensors of one call and how they came about."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    where: str

    def call(self, op: Any) -> Tensor:
        """The operator's answer, the mask given where there is one."""
        out: Tensor = op(*self.tokens, *self.masked)
        return out

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Situation:
        """The same with changed tokens."""
        q, k, v = (change(x) for x in self.tokens)
        return Situation(q, k, v, self.mask, self.where)

    @property
    def masked(self) -> tuple[Tensor, ...]:
        """The mask as further arguments of a call: one, or none."""
        return () if self.mask is None else (self.mask,)

    def matrices(self) -> Iterator[tuple[int, Tensor, Tensor, Tensor, Tensor | None]]:
        """Each matrix by itself: its number, q, k, v and which keys it keeps."""
        lead = self.shape[:-2]
        q, k, v = (x.expand(*lead, *x.shape[-2:]).reshape(-1, *x.shape[-2:]) for x in self.tokens)
        l = k.shape[-2]
        mask = None if self.mask is None else self.mask.expand(*lead, l).reshape(-1, l)
        for i in range(len(q)):
            yield i, q[i], k[i], v[i], None if mask is None else mask[i]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the output."""
        lead = torch.broadcast_shapes(self.q.shape[:-2], self.k.shape[:-2], self.v.shape[:-2])
        return (*lead, self.q.shape[-2], self.v.shape[-1])

    @property
    def tokens(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v."""
        return self.q, self.k, self.v


@functools.cache
def covering() -> tuple[dict[str, Any], ...]:
    """Rows of ``DESIGN`` in which each pair of choices is met, found greedily.

    Each row begins with a pair that is still missing; its other factors take, one after another,
    the choice that meets most of the missing pairs. Ties are broken by a seeded order.
    """
    order = random.Random(21)  # which meets all pairs in the fewest rows of sixty seeds
    names = list(DESIGN)
    missing = {
        frozenset(((a, x), (b, y)))
        for a, b in itertools.combinations(names, 2)
        for x in range(len(DESIGN[a]))
        for y in range(len(DESIGN[b]))
    }
    rows = []
    while missing:
        first = min(missing, key=lambda pair: sorted(pair))
        row = dict(first)
        for name in order.sample(names, len(names)):
            if name in row:
                continue
            held = list(row.items())

            choices = order.sample(range(len(DESIGN[name])), len(DESIGN[name]))
            counts = [
                sum(frozenset((other, (name, choice))) in missing for other in held)
                for choice in choices
            ]
            row[name] = choices[counts.index(max(counts))]
        missing -= {frozenset(pair) for pair in itertools.combinations(row.items(), 2)}
        rows.append({name: DESIGN[name][row[name]] for name in names})
    order.shuffle(rows)
    for name in ("lead", "keys", "width", "values", "keys of a batch"):
        turns = {choice: itertools.cycle(sizes) for choice, sizes in NEAR.items()}
        for row in rows:
            row[name] = next(turns[row[name]]) if row[name] in turns else row[name]
    return tuple(rows)


def drawn(op: Any, rng: torch.Generator, count: int, *, long: bool = False) -> Iterator[Situation]:
    """``count`` situations that the operator can be asked in, other rows for other seeds.

    More of them where ``Draws`` is thorough, the one that it names if it does; and where ``long``
    one with some thousand keys.
    """
    rows: Iterable[Mapping[str, Any]] = _rows(count)
    if long and draws_now().situation is None:
        keys = LONG[asked() % len(LONG)] // (4 if needs_equal(op) else 1)
        mask = "few" if takes_mask(op) and asked() % 2 else "none"
        rows = (*rows, {**ORDINARY, "keys": keys, "queries": "one", "mask": mask})
        if not needs_equal(op):
            rows = (*rows, {**ORDINARY, "queries": "many"})
    for row in rows:
        meet(row)
        yield _made(op, row, rng)


def _rows(count: int) -> Iterator[Mapping[str, Any]]:
    how, rows = draws_now(), covering()
    if how.situation is not None:
        yield {**ORDINARY, **how.situation}
        return
    sizes = SIZES[asked() % SHARES :: SHARES] if how.thorough else ()
    start = asked() * count
    for i in range(count):
        yield rows[(start + i) % len(rows)]
    for i, keys in enumerate(sizes, start=start + count):
        yield {**rows[i % len(rows)], "keys": keys}


def _made(op: Any, row: Mapping[str, Any], rng: torch.Generator) -> Situation:
    """The tensors of a row, within what the operator takes and ``MOST`` allows."""
    lead = row["lead"]
    least = rank_of(op)
    l = max(row["keys"], least)
    n = {
        "one": 1, "fewer": (l + 1) // 2, "equal": l, "more": l + 5 if l > 40 else 3 * l + 5,
        "many": LONG[asked() % len(LONG)],
    }[row["queries"]]  # fmt: skip
    n, l = lengths(op, max(n, least), l)
    if n * l > MOST and not needs_equal(op):
        n = max(1, least, MOST // l)
    most = max(1, BATCHED // (n * l))
    while torch.Size(lead).numel() > most and len(lead) > 1:
        lead = lead[1:]
    lead = tuple(min(size, most) for size in lead) if len(lead) == 1 else lead
    d = min(l, 64) if row["width"] == "keys" else row["width"]
    e = {"keys": min(l, 64), "width": d}.get(row["values"], row["values"])
    tied = row["tied"] and n == l
    key_lead = _key_lead(row, lead) if not tied else lead
    q = laid(row["layout"], row["size"] * _unlike(normal(rng, *lead, n, d)))
    k = q if tied else laid(row["layout"], row["size"] * _unlike(normal(rng, *key_lead, l, d)))
    v = laid(row["layout"], normal(rng, *key_lead, l, e))
    mask = _mask(row["mask"], lead, l, least, rng) if takes_mask(op) else None
    said = f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
    words = [said, *(f"{name} {row[name]}" for name in ("layout", "size"))]
    words += ["q is k"] * tied
    if mask is not None:
        mask = laid(row["layout"], mask.to(q.device)) if mask.ndim > 1 else mask.to(q.device)
        words.append(f"mask {row['mask']} {tuple(mask.shape)}")
    return Situation(q, k, v, mask, "; ".join(words))


def _key_lead(row: Mapping[str, Any], lead: tuple[int, ...]) -> tuple[int, ...]:
    """The leading dimensions of keys, which a batch may share."""
    return {
        "by all": lead[1:],
        "in the first dimension": (1, *lead[1:])[: len(lead)],
        "in the last dimension": (*lead[:-1], 1)[-len(lead) :],
    }.get(row["keys of a batch"], lead)


def _unlike(x: Tensor) -> Tensor:
    """The matrices of a batch times ``UNLIKE``."""
    count = x.shape[:-2].numel()
    factors = torch.tensor(UNLIKE).repeat(-(-count // len(UNLIKE)))[:count]
    return x * factors.to(x).view(*x.shape[:-2], 1, 1)


def laid(layout: str, x: Tensor) -> Tensor:
    """The same numbers, otherwise in memory."""
    if layout == "transposed":
        return x.mT.contiguous().mT
    if layout == "offset":
        return torch.cat((x.new_ones(7), x.flatten()))[7:].view_as(x)
    if layout == "strided":
        return x.repeat_interleave(2, -1)[..., ::2]
    if layout == "expanded" and x.ndim > 2:
        return x[:1].expand_as(x)
    return x


def _mask(
    kind: str,
    lead: tuple[int, ...],
    l: int,
    least: int,
    rng: torch.Generator,
) -> Tensor | None:
    """A mask of that kind; it keeps at least as many keys as the operator needs."""
    if kind == "none":
        return None
    shape = {"shared": (), "few": (), "broadcast": (*lead[:-1], 1) if lead else ()}.get(kind, lead)
    chance = {"one key left": 0.0, "all kept": 2.0, "few": 8 / l}.get(kind, 0.7)
    order = torch.rand(*shape, l, generator=rng, device="cpu").argsort(-1)
    if kind == "one dropped":
        return order < max(least, l - 1)
    kept = torch.rand(*shape, l, generator=rng, device="cpu") < chance
    return kept | (order < least)
