"""Error, time and memory against the number of tokens, from 256 to 1048576, at a fixed knob.

The target's output is computed whole up to ``EXACT`` tokens; the error comes everywhere from a
sample of its rows, with an interval, and where both exist the chapter holds them against each
other. Values are the keys: independent ones average out as n grows, and leave a target that is
noise; averages of the keys have a limit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from softlab import measures
from softlab.core import Operator
from softlab.engine.journal import Row
from softlab.estimators import ExactRows, output_error
from softlab.figures import Lines
from softlab.inputs import QKV, Decaying, Input, Normal, Smooth
from softlab.operators import (
    ColumnSample,
    Local,
    Nystromformer,
    Performer,
    Soft,
    Softmax,
    Uniform,
)
from softlab.profiling import once, peak_memory, seconds
from softlab.study import Study

from .columns import OF_SOME, SMOOTH, UNIFORM

LENGTHS = tuple(2**p for p in range(8, 21))
EXACT = 2**13
BOUNDED = 2**16
"""Up to here the bound of ``Local`` is asked. Its work is n^(3/2), two minutes at the greatest
length, and from 256 tokens on it is infinite: as large as the output, of each input."""
WIDTH, ROWS = 32, 256
INPUTS = ("normal", SMOOTH, "decaying")
LARGE = Soft(256)
"""The headline: at the greatest length and on smooth input, which its segments are made for."""
WIDE = Soft(64, bandwidth=100.0)
"""A kernel so wide that its certificate is below the output up to the greatest length, on smooth
input: there it and the sampled interval check each other."""
OPERATORS: list[Operator] = [
    Soft(64),
    LARGE,
    WIDE,
    Uniform(target=Soft(64).target),
    Nystromformer(64),
    Performer(64),
    ColumnSample(64),
    Local(64),
    Uniform(),
]
SHOWN = [repr(op) for op in OPERATORS if op not in (LARGE, WIDE)]
TIMED = [name for name in SHOWN if "Uniform" not in name]


def keep(input: str, n: int, op: Operator) -> bool:
    """Beyond 65536 tokens every fourth length alone, and one input; the headline once."""
    if op == LARGE:
        return input == SMOOTH and n == LENGTHS[-1]
    if op == WIDE and input != SMOOTH:
        return False
    return n <= 2**16 or (input == SMOOTH and n in {2**18, 2**20})


def drawn(input: str, n: int, tied: bool, dtype: torch.dtype, device: torch.device) -> QKV:
    """Queries and keys, the keys as values too; keys are the queries for SOFT, as in its layers."""
    families: dict[str, Input] = {
        "normal": Normal(n, WIDTH),
        SMOOTH: Smooth(n, WIDTH, length=32.0),
        "decaying": Decaying(n, WIDTH, rate=0.3),
    }
    q, k, _ = families[input](0, dtype=dtype, device=device)
    return QKV(q, q, q) if tied else QKV(q, k, k)


class Truth(NamedTuple):
    """What a target makes of an input.

    ``rows``: the sampled ones; ``seconds``, what all would take at their pace; ``output``: all of
    them where that is affordable.
    """

    qkv: QKV
    rows: ExactRows
    seconds: float
    output: torch.Tensor | None


@dataclass(frozen=True)
class Truths:
    """The answers to one input, by target; the latest alone is kept, for a million tokens."""

    input: str
    n: int
    dtype: torch.dtype
    device: torch.device
    known: dict[Operator, Truth] = field(default_factory=dict)

    def of(self, target: Operator) -> Truth:
        """The target's answer, computed where it is not that of the case before."""
        if target not in self.known:
            self.known.clear()
            qkv = drawn(self.input, self.n, target != Softmax(), self.dtype, self.device)
            rows = ExactRows(target, *qkv, rows=min(ROWS, self.n // 2))
            found, taken = once(lambda: rows.output, self.device)
            output = target(*map(torch.Tensor.double, qkv)) if self.n <= EXACT else None
            self.known[target] = Truth(qkv, rows, taken * self.n / len(found), output)
        return self.known[target]


def knob(op: Operator) -> int | None:
    """The rank, features, keys or window, which is 64 of all but the headline; None for none."""
    found = (getattr(op, name, None) for name in ("rank", "features", "window"))
    return next((x for x in found if x is not None), None)


def _certified(op: Operator, qkv: QKV) -> dict[str, float | None]:
    if isinstance(op, Local) and len(qkv.k) > BOUNDED:
        return {"certified_error": None}
    return measures.certified_error(op, *qkv)


def measure(setup: Truths, input: str, op: Operator, device: torch.device) -> Row:
    """The sampled error and its interval, the error itself where it can be had, time and memory."""
    qkv, rows, whole, output = setup.of(op.target)
    error, taken = once(lambda: output_error(op, *qkv, rows), device)
    row: Row = {
        "method": UNIFORM if isinstance(op, Uniform) else repr(op),
        "target": f"{'wide ' * (op == WIDE)}{type(op.target).__name__}",
        "knob": knob(op),
        "rows": len(rows.at),
        "sampled_error": error.value,
        "low": error.low,
        "high": error.high,
        "error_seconds": taken,
        "target_seconds": whole,
        **_certified(op, qkv),
        **dict.fromkeys(OF_SOME),
    }
    if output is not None:
        row["exact_error"] = measures.relative(op(*qkv).double() - output, output)
    if input == SMOOTH and not isinstance(op, Uniform):
        row |= seconds(lambda: op(*qkv), device, budget=0.05, repeats=2)
        row["peak_bytes"] = peak_memory(lambda: op(*qkv), device)
    return row


def _lines(y: str, ylabel: str, **more: Any) -> Lines:
    return Lines(x="n", y=y, group="method", xlabel="tokens", ylabel=ylabel, **more)


STUDY = Study(
    name="length",
    title="Error, time and memory up to a million tokens",
    question="How do error, time and memory grow with the number of tokens at a fixed setting, "
    "up to a million tokens, where no exact output exists?",
    axes={"input": INPUTS, "n": LENGTHS, "op": OPERATORS},
    quick={"n": (256, 1024, 4096, 16384), "op": OPERATORS},
    measure=measure,
    setup=Truths,
    timed=("error_seconds", "target_seconds", "seconds", "seconds_q1", "seconds_q3", "repeats"),
    keep=keep,
    figures=(
        _lines(
            "sampled_error",
            "relative output error",
            panel="input",
            page="target",
            where={"op": SHOWN},
            references=("Uniform",),
            caption="Sampled relative output error against the number of tokens, for {page} at a "
            "fixed knob, by input. Thin black: the average of all values.",
        ),
        _lines(
            "seconds_q1",
            "seconds a call",
            where={"op": TIMED, "input": SMOOTH},
            guides={"target_seconds": "the target, from its sampled rows"},
            caption="Seconds a call against the number of tokens, one head of width 32, on smooth "
            "input. Grey: what the whole target would take in float64, by the sampled rows.",
        ),
        _lines(
            "peak_bytes",
            "bytes",
            where={"op": TIMED, "input": SMOOTH},
            caption="Peak memory of a call against the number of tokens, on smooth input.",
        ),
    ),
)
