"""Error against cost: every operator, its knob set by what it may spend, on every input.

A budget is a share of the arithmetic of exact attention, and each method gets the greatest knob
that it affords: methods are compared at equal work, not at equal rank. Softmax is approximated on
the inputs as they are, the Gaussian on tied ones. The replacements approximate nothing and have no
place here. Two oracles stand beside the methods, at the work of applying what they are told: the
best matrix of the rank, and each query's heaviest keys.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch

from softlab import measures
from softlab.catalogue import operators, require_laws
from softlab.core import Dims, Operator
from softlab.engine.journal import Row
from softlab.features import Orthogonal
from softlab.figures import Lines
from softlab.inputs import (
    Clustered,
    Decaying,
    Input,
    Normal,
    Recorded,
    Sink,
    Smooth,
    Tied,
    named,
    recorded_names,
)
from softlab.operators import GaussianAttention, Local, Quantized, RandomFourier, Softmax, Taylor
from softlab.profiling import ENOUGH, PAIRS, Numbers, in_turn
from softlab.study import Study

from .columns import ANSWER, BEST, EXACT, ORACLE, UNIFORM

BUDGETS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
GAUSSIAN = GaussianAttention()
PARTS = {part.name: part for part in operators()}
SWEPT: dict[str, tuple[str, Callable[[int, int], Operator]]] = {
    **{
        name: (part.family, part.at)
        for name, part in PARTS.items()
        if hasattr(part.kind, "knob") and part.example.traits.linear_memory
    },
    "Local, 4 sinks": ("sparse", lambda m, _: Local(m, sinks=4)),
    "RandomFourier, Gaussian": (
        "features",
        lambda m, seed: RandomFourier(2 * m, target=GAUSSIAN, weights=Orthogonal(seed)),
    ),
}
"""One line a method: its family, and the operator of a knob and a seed, whose work grows with the
knob. Every operator of linear memory that declares a knob is one, those of other installed
distributions too; of others the work need not grow with the knob, nor fall below the exact."""
FIXED: dict[str, tuple[str, Operator]] = {
    "exact": (EXACT, Softmax()),
    "Taylor": ("features", Taylor()),
    "int8": ("low precision", Quantized("int8")),
    "float8": ("low precision", Quantized("float8")),
    "bfloat16": ("low precision", Quantized("bfloat16")),
    "exact Gaussian": (EXACT, GAUSSIAN),
    **{
        name: (part.family, part.example)
        for name, part in PARTS.items()
        if part.distribution and name not in SWEPT and not part.example.traits.replacement
    },
}
"""Methods without a knob of cost: they spend what they spend."""
ORACLES = ("best matrix of the rank", "heaviest keys")
METHODS = [*SWEPT, *FIXED, *ORACLES]
SEEDS = range(4)
INPUTS: list[Input] = [
    *(Recorded(name) for name in recorded_names()),
    Normal(512, 32),
    Clustered(512, 32, clusters=32),
    Decaying(512, 32, rate=0.8),
    Sink(512, 32),
    Smooth(512, 32, length=32.0),
]


def target(method: str) -> Operator:
    """What the method approximates; an oracle serves softmax attention."""
    if method in ORACLES:
        return Softmax()
    return (FIXED[method][1] if method in FIXED else SWEPT[method][1](1, 0)).target


def keep(input: Input, method: str, budget: float) -> bool:
    """Gaussian targets on tied inputs, softmax on others; a method without a knob once."""
    tied = isinstance(input, Tied) == (target(method) == GAUSSIAN)
    return tied and (method in FIXED) == (budget == 1)


def work(op: Operator, dims: Dims) -> int:
    """Counted arithmetic of one call, factorisations included."""
    return op.cost(dims).work


def knob(method: str, budget: float, dims: Dims) -> int:
    """The greatest knob, at most the number of tokens, whose work is within the budget; or 0."""
    make, most = SWEPT[method][1], budget * work(target(method), dims)
    return bisect.bisect_right(range(1, dims.l + 1), most, key=lambda m: work(make(m, 0), dims))


def operator(method: str, budget: float, seed: int, dims: Dims) -> Operator | None:
    """The method as the budget allows, None where it allows none of it."""
    if method in PARTS:
        require_laws(PARTS[method])
    if method in FIXED:
        return FIXED[method][1]
    fitted = knob(method, budget, dims)
    return SWEPT[method][1](fitted, seed) if fitted else None


@cache  # a time belongs to sizes, which inputs of several set-ups share
def paid(
    method: str, budget: float, dims: Dims, dtype: torch.dtype, device: torch.device
) -> Numbers:
    """Time and memory of one call, of its sizes alone: measured on normal tokens, once a size.

    ``time``, with quartiles, is over that of the exact operator, called in turn.
    """
    op, aim = operator(method, budget, 0, dims), target(method)
    assert op is not None
    qkv = Normal(dims.n, dims.d)(0, dtype=dtype, device=device)
    spent = measures.expense(op, *qkv, budget=0.02)
    if op == aim:
        return spent | {"time": 1.0, "time_q1": 1.0, "time_q3": 1.0}
    return spent | in_turn(
        lambda: op(*qkv), lambda: aim(*qkv), device, repeats=PAIRS, budget=ENOUGH
    )


def measure(
    setup: measures.Sample,
    input: Input,
    seed: int,
    method: str,
    budget: float,
    dtype: torch.dtype,
    device: torch.device,
) -> Row:
    """Errors of the method at what the budget allows, and its costs as shares of the exact ones."""
    q, k, v = setup.q, setup.k, setup.v
    aim, dims = target(method), Dims.of(q, k, v)
    reference = setup.reference(aim)
    source, real = named(input)
    row: Row = {
        "family": ORACLE if method in ORACLES else {**SWEPT, **FIXED}[method][0],
        "target": "Gaussian" if aim == GAUSSIAN else "softmax",
        "source": source,
        "real": real,
        "n": dims.n,
        "fits": True,
        "certified_error": None,
        **dict.fromkeys(ANSWER),
    }
    if method == "heaviest keys":
        count = max(1, round(budget * dims.l))
        share = count / dims.l
        return row | {"knob": count, "share": share} | measures.best_of_keys(count, reference)
    if method == "best matrix of the rank":
        each = 2 * (dims.n + dims.l) * dims.e / work(aim, dims)
        rank = max(1, int(budget / each))
        return row | {"knob": rank, "share": rank * each} | measures.best_of_rank(rank, reference)
    op = operator(method, budget, seed, dims)
    if op is None:
        return row | {"fits": False}
    exact = paid("exact Gaussian" if aim == GAUSSIAN else "exact", 1.0, dims, dtype, device)
    spent = paid(method, budget, dims, dtype, device)
    row |= {"op": repr(op), "knob": knob(method, budget, dims) if method in SWEPT else None}
    row |= {"share": work(op, dims) / work(aim, dims)}
    row |= {"memory": spent["peak_bytes"] / exact["peak_bytes"]}
    row |= measures.certified_error(op, q, k, v)
    return row | spent | measures.output_error(op, q, k, v, reference)


SHOWN = (
    "Medians and quartiles over samples and seeds. Thin black: the least error of all methods at "
    "the work; dashed and dotted: the best matrix of the rank and the heaviest keys of each query, "
    "known for free. Grey: the uniform average."
)
FRONT = Lines(
    x="share",
    y="output_error",
    group="method",
    panel="source",
    by="step",
    where={"target": "softmax"},
    rows="leading",
    references=(BEST, *ORACLES),
    guides={"uniform_error": UNIFORM},
    xlabel="work over that of exact attention",
    ylabel="relative output error",
    name="front",
    caption=f"Softmax attention: relative output error against work, for the methods that are most "
    f"often on a front. {SHOWN}",
)

STUDY = Study(
    name="frontier",
    title="Error against cost",
    question="Which method has the least error for its cost, in counted work, time and memory, "
    "on which input? How far is each from an ideal method?",
    axes={
        "input": [*INPUTS, *map(Tied, INPUTS)],
        "seed": SEEDS,
        "method": METHODS,
        "budget": [*BUDGETS, 1.0],
    },
    quick={
        "input": [INPUTS[1], INPUTS[-1], Tied(INPUTS[1])],
        "seed": [0, 1],
        "budget": [1 / 16, 1 / 4, 1.0],
    },
    measure=measure,
    setup=measures.sample,
    timed=("time", "time_q1", "time_q3", "seconds", "seconds_q1", "seconds_q3", "repeats"),
    keep=keep,
    inputs=[file for part in PARTS.values() for file in part.files],
    figures=(
        Lines(
            x="tau",
            y="share_within",
            group="method",
            panel="budget_name",
            where={"target": "softmax"},
            rows="profile",
            references=(UNIFORM,),
            by="tau",
            xlabel=r"ratio $\tau$ to the least error of all",
            ylabel="share of inputs within",
            yscale="linear",
            name="profile",
            caption="Performance profiles for softmax attention: the share of inputs on which a "
            "method, within the budget, errs at most tau times as much as the best method there. "
            "Medians and quartiles over the seeds; the ten methods with the greatest area.",
        ),
        FRONT,
        replace(
            FRONT,
            x="time",
            rows="leading_in_time",
            references=(BEST,),
            xlabel="time over that of exact attention",
            name="time",
            caption="Softmax attention: relative output error against measured time. Medians and "
            "quartiles; thin black: the least error of all methods in the time; grey: the uniform "
            "average.",
        ),
        replace(
            FRONT,
            rows="by_family",
            page="family",
            name="family",
            caption=f"Softmax attention, {{page}}: relative output error against work. {SHOWN}",
        ),
        replace(
            FRONT,
            where={"target": "Gaussian"},
            references=(BEST,),
            rows="leading",
            name="gaussian",
            caption="Gaussian attention on tied inputs: relative output error against work. "
            "Medians and quartiles. Thin black: the least error of all methods at the work. "
            "Grey: the uniform average.",
        ),
    ),
)
