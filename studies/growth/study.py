"""How time and memory of every operator grow with the number of tokens, at its default knobs.

Knobs without a default are 64. Lengths are 1024 to 16384, for operators of quadratic work to 8192,
and where memory is quadratic too 512 to 2048. The replacements take part: growth needs no error.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from softlab import measures
from softlab.catalogue import Part, operators, require_laws
from softlab.core import Dims, Operator
from softlab.engine.journal import Row
from softlab.figures import Lines
from softlab.inputs import QKV, Normal
from softlab.operators import (
    BandLowRank,
    ColumnSample,
    LinearAttention,
    Local,
    Performer,
    Soft,
    Softmax,
)
from softlab.profiling import Numbers, in_turn
from softlab.study import Study

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
HEADS, WIDTH = 4, 32
PARTS: dict[Operator, Part] = {
    part.example: part for part in operators() if not part.example.traits.optimal
}
"""All but the dense control, those of other installed distributions too."""
SAMPLE = [
    *(Softmax(), Soft(64), Performer(), Local(64), ColumnSample(64), BandLowRank(64)),
    LinearAttention(),
]
"""One of each family, in the quick grid."""


def work(op: Operator, n: int) -> int:
    """The arithmetic of one call on the study's heads of n tokens, factorisations included."""
    return op.cost(Dims(HEADS, n, n, WIDTH, WIDTH)).work


def keep(op: Operator, n: int) -> bool:
    """1024 tokens and more; quadratic work ends at 8192, and runs 512 to 2048 in dense memory."""
    if not op.traits.linear_memory:
        return n <= 2048
    quadratic = work(op, 2 * LENGTHS[-1]) > 3 * work(op, LENGTHS[-1])
    return 1024 <= n <= (8192 if quadratic else LENGTHS[-1])


def drawn(n: int, dtype: torch.dtype, device: torch.device) -> QKV:
    """q, k and v of independent normal heads, (1, heads, n, width) each."""
    heads = [Normal(n, WIDTH)(seed, dtype=dtype, device=device) for seed in range(HEADS)]
    return QKV(*(torch.stack(parts)[None] for parts in zip(*heads, strict=True)))


class Length(NamedTuple):
    """What all operators share at a length: the input, and the exact operator's costs."""

    qkv: QKV
    exact: Numbers


def paid(op: Operator, qkv: QKV) -> Numbers:
    """What one call costs."""
    return measures.expense(op, *qkv, budget=0.05, repeats=3)


def length(n: int, dtype: torch.dtype, device: torch.device) -> Length:
    """The input, and what the exact operator costs there, if it takes part."""
    qkv = drawn(n, dtype, device)
    return Length(qkv, paid(Softmax(), qkv) if keep(Softmax(), n) else {})


def measure(setup: Length, op: Operator, n: int, dtype: torch.dtype, device: torch.device) -> Row:
    """Time, memory over that of q, and the exact operator's time.

    ``time``, with quartiles, is over that of the exact operator, called in turn.
    """
    require_laws(PARTS[op])
    row: Row = {"method": PARTS[op].name, "family": PARTS[op].family, "work": work(op, n)}
    (qkv, exact), rival = setup, Softmax()
    own = exact if exact and op == rival else paid(op, qkv)
    if exact:
        row |= in_turn(lambda: op(*qkv), lambda: rival(*qkv), device, repeats=8, budget=0.3)
    size = HEADS * n * WIDTH * dtype.itemsize
    return {
        **row,
        **own,
        "memory": own["peak_bytes"] / size,
        "exact_seconds": exact.get("seconds_q1"),
        "exact_seconds_q1": exact.get("seconds_q1"),
        "exact_seconds_q3": exact.get("seconds_q3"),
        "slope": 2e-7 * n,
    }


TIME = Lines(
    x="n",
    y="seconds_q1",
    group="method",
    panel="family",
    guides={"exact_seconds": "exact softmax attention", "slope": "slope 1"},
    xlabel="tokens",
    ylabel="seconds a call",
    legend="panel",
    name="seconds",
    caption="Seconds a call against the number of tokens, 4 heads of width 32, by family. Grey: "
    "exact softmax attention, and linear growth.",
)

STUDY = Study(
    name="growth",
    title="Growth of time and memory with the number of tokens",
    question="How do time and memory of every operator, at its default settings, grow with the "
    "number of tokens, compared with its counted work? From which length on is it "
    "faster than exact attention?",
    axes={"op": list(PARTS), "n": LENGTHS},
    quick={"n": (1024, 2048, 4096), "op": SAMPLE},
    measure=measure,
    setup=length,
    timed=(
        *("seconds", "seconds_q1", "seconds_q3", "repeats", "time", "time_q1", "time_q3"),
        *("exact_seconds", "exact_seconds_q1", "exact_seconds_q3"),
    ),
    keep=keep,
    figures=(TIME,),
)
