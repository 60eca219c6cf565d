"""Operators in the place of a trained model's attention: what changes, where, and at what cost.

Three studies of four models. ``in_model``: every operator at two knobs in all layers, in the
first, middle and last third, and in the largest set of sixths that stays within a stated change,
beside the cheap numbers of its layers. ``in_model_depth``: layer by layer, its own error and what
has gathered. ``in_model_cost``: counted work, time and memory of a run at several lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import torch

from softlab.capture import Call, record, substitute
from softlab.capture.effect import (
    Effect,
    attention_flops,
    change,
    effect,
    errors,
    greedy,
    sizes,
    without_attention,
)
from softlab.core import Operator, causal_form
from softlab.engine.journal import Row
from softlab.engine.provenance import cpu_alone
from softlab.figures import Lines
from softlab.operators import (
    BandLowRank,
    ColumnSample,
    LinearAttention,
    Local,
    Nystromformer,
    Performer,
    Quantized,
    RPCholesky,
    Scatterbrain,
    Soft,
    Softmax,
    Taylor,
    TopK,
    Uniform,
)
from softlab.pretrained.tasks import NEEDS, UnderTest, under_test
from softlab.profiling import Numbers, in_turn, peak_memory, seconds
from softlab.study import Study

from .columns import EVERYWHERE, EXACT, GREEDY, OF_SOME, THIRD

KNOBS = (16, 64)
MIDDLE = KNOBS[1]
WITHIN = 0.1
"""The stated change: a greedy set of layers moves the output by at most so much."""
SWEPT: dict[str, tuple[str, Callable[[int], Operator]]] = {
    "Nystromformer": ("low rank", Nystromformer),
    "RPCholesky": ("low rank", RPCholesky),
    "Performer": ("features", Performer),
    "Local": ("sparse", Local),
    "TopK": ("sparse", TopK),
    "ColumnSample": ("sampling", ColumnSample),
    "BandLowRank": ("hybrid", BandLowRank),
    "Scatterbrain": ("hybrid", lambda m: Scatterbrain(m, features=m)),
    "Soft": ("another kernel", Soft),
}
"""One line a method: its family, and the operator of a knob."""
FIXED: dict[str, tuple[str, Operator]] = {
    "Taylor": ("features", Taylor()),
    "int8": ("low precision", Quantized("int8")),
    "float8": ("low precision", Quantized("float8")),
    "LinearAttention": ("another kernel", LinearAttention()),
    "Uniform": ("another kernel", Uniform()),
}
METHODS = [*SWEPT, *FIXED]
SEARCHED = ("Nystromformer", "TopK", "BandLowRank", "Scatterbrain")
THIRDS = tuple(f"{which} {THIRD}" for which in ("first", "middle", "last"))
PARTS = (EVERYWHERE, *THIRDS, GREEDY)
COSTED = (EXACT, "Nystromformer", "Local", "BandLowRank", "Performer")
SHOWN = ("Nystromformer", "Performer", "Local", "TopK", "BandLowRank", "int8")


def operator(method: str, knob: int) -> Operator:
    """The method at a knob, which those without one do not see."""
    if method == EXACT:
        return Softmax()
    return FIXED[method][1] if method in FIXED else SWEPT[method][1](knob)


def possible(model: str, method: str) -> bool:
    """Whether the method can stand in the model: a causal one takes causal forms alone."""
    return model != "smollm2" or causal_form(operator(method, MIDDLE)) is not None


def keep(model: str, method: str, knob: int, part: str) -> bool:
    """One knob for methods without one, and for parts; the greedy set for some methods."""
    if not possible(model, method) or (method in FIXED and knob != MIDDLE):
        return False
    return part == EVERYWHERE or (knob == MIDDLE and (part in THIRDS or method in SEARCHED))


@dataclass(eq=False)
class Trial:
    """A method at a knob in a model: what it does there, each computed once."""

    subject: Subject
    op: Operator
    changed: dict[tuple[str, ...], Numbers] = field(default_factory=dict)

    @cached_property
    def cheap(self) -> dict[str, Numbers]:
        """The cheap numbers of each layer."""
        return {name: errors(self.op, call) for name, call in self.subject.calls.items()}

    def change(self, layers: tuple[str, ...]) -> Numbers:
        """How far the output moves with the operator in these layers."""
        if layers not in self.changed:
            tested, unmoved = self.subject.tested, self.subject.clean
            with torch.no_grad(), substitute(tested.model, self.op, layers=layers):
                self.changed[layers] = change(tested.run(), unmoved)
        return self.changed[layers]

    @cached_property
    def searched(self) -> tuple[str, ...]:
        """The greedy set: sixths of the model, each alone first."""
        sixths = self.subject.tested.blocks(6)
        names = {str(i): block for i, block in enumerate(sixths) if block}

        def loss(parts: tuple[str, ...]) -> float:
            layers = tuple(name for part in sorted(parts) for name in names[part])
            return float(self.change(layers)["change"])

        kept, _ = greedy(loss, {part: loss((part,)) for part in names}, WITHIN)
        return tuple(name for part in sorted(kept) for name in names[part])

    def layers(self, part: str) -> tuple[str, ...]:
        """The names of the layers of a part."""
        if part == GREEDY:
            return self.searched
        tested = self.subject.tested
        return tested.layers if part == EVERYWHERE else tested.blocks(3)[THIRDS.index(part)]


@dataclass(frozen=True, eq=False)
class Subject:
    """A model as it is: its output, what reaches each layer of the first sample, and the trials."""

    tested: UnderTest
    clean: torch.Tensor
    calls: Mapping[str, Call]
    trials: dict[tuple[str, int], Trial] = field(default_factory=dict)

    def trial(self, method: str, knob: int) -> Trial:
        """Of the method at the knob."""
        key = method, knob
        return self.trials.setdefault(key, Trial(self, operator(*key)))


def subject(model: str) -> Subject:
    """The model before anything is substituted."""
    tested = under_test(model)
    with torch.no_grad(), record(tested.model) as calls:
        clean = tested.run()
    first = {x.module: replace(x, q=x.q[:1], k=x.k[:1], v=x.v[:1]) for x in calls}
    return Subject(tested, clean, first)


def measure(setup: Subject, method: str, knob: int, part: str, device: torch.device) -> Row:
    """The change of output and task, beside the means of the layers' cheap numbers.

    The models are what they are, float32 on the CPU.
    """
    cpu_alone(device)
    tested, trial = setup.tested, setup.trial(method, knob)
    layers, op = trial.layers(part), trial.op
    row: Row = {
        "family": {**SWEPT, **FIXED}[method][0],
        "op": repr(op),
        "tokens": tested.tokens,
        "layers": len(layers),
        "depth": len(tested.layers),
        "within": WITHIN,
        **dict.fromkeys(OF_SOME),
    }
    if not layers:
        return row
    numbers = [trial.cheap[name] for name in layers]
    for name in numbers[0]:
        row[name] = sum(x[name] for x in numbers) / len(numbers)
    row["lack_of_skill"] = 1 - float(row["skill"])  # type: ignore[arg-type]
    dims = sizes(setup.calls[layers[0]])
    row["work"] = op.cost(dims).work / attention_flops(dims)
    if part in THIRDS:
        return row | trial.change(layers)
    with torch.no_grad(), substitute(tested.model, op, layers=layers):
        out = tested.run()
        found = tested.task(out)
    row |= {} if found is None else {"task": found[0], "task_loss": found[1]}
    return row | change(out, setup.clean)


def followed(model: str, method: str) -> Effect:
    """The method in all layers, layer by layer."""
    tested = under_test(model)
    return effect(tested.model, tested.run, operator(method, MIDDLE))


def measure_depth(setup: Effect, layer: int, device: torch.device) -> Row:
    """One layer's own error, and how far what it gives has moved."""
    cpu_alone(device)
    found = setup.layers[layer]
    return {
        "name": found.name,
        "own": found.errors["output_error"],
        "accumulated": found.accumulated,
    }


DEPTH = {"minilm": 6, "vit": 12, "smollm2": 30, "whisper": 4}
TOKENS = {
    "minilm": (128, 256, 512),
    "vit": (257, 577, 1025),
    "smollm2": (128, 256, 512),
    "whisper": (375, 750, 1500),
}
LENGTHS = ("short", "middle", "long")


class Plain(NamedTuple):
    """The model as it is at a length: the work without attention, and what a run takes."""

    tested: UnderTest
    tokens: int
    rest: int
    spent: Numbers
    peak: int


def plain(model: str, length: str) -> Plain:
    """What a run of the model as it is takes."""
    tokens, cpu = TOKENS[model][LENGTHS.index(length)], torch.device("cpu")
    tested = under_test(model, tokens)
    rest = without_attention(tested.model, tested.run)
    with torch.no_grad():
        spent = seconds(tested.run, cpu, budget=0, repeats=3)
        return Plain(tested, tokens, rest, spent, peak_memory(tested.run, cpu))


def measure_cost(setup: Plain, method: str, device: torch.device) -> Row:
    """A run of the whole model: work, time and peak memory over those of the model as it is."""
    cpu_alone(device)
    tested, op = setup.tested, operator(method, MIDDLE)
    with torch.no_grad():
        with substitute(tested.model, op) as report:
            peak = peak_memory(tested.run, device)
        time = in_turn(tested.run, tested.run, device, within=lambda: substitute(tested.model, op))
    exact = spent = 0
    for dims in report.dims.values():
        exact += attention_flops(dims)
        spent += op.cost(dims).work
    return {
        "op": repr(op),
        "tokens": setup.tokens,
        "attention_share": exact / (setup.rest + exact),
        "work": (setup.rest + spent) / (setup.rest + exact),
        **time,
        "memory": peak / setup.peak,
        "plain_seconds": setup.spent["seconds_q1"],
        "plain_bytes": setup.peak,
    }


PREDICTED = Lines(
    x="error",
    by="bin",
    y="change",
    group="predictor",
    panel="model",
    rows="binned",
    xlabel="mean over the layers of the cheap number",
    ylabel="relative change of the output",
    guides={"same": "change = error"},
    name="predicted",
    caption="Relative change of the model's output against the cheap numbers of the substituted "
    "layers, over all operators, knobs and parts: medians and quartiles in bins of a third of a "
    "decade. A number that predicts the change gives a rising line with a narrow band.",
)

STUDY = Study(
    name="in_model",
    needs="models",
    title="In the model: what a substituted attention changes",
    question="If an operator takes the place of a trained model's attention, what happens to its "
    "output and its task, and could the error of the matrix, of the layer's output, or the skill "
    "have told?",
    axes={"model": [*NEEDS], "method": METHODS, "knob": KNOBS, "part": PARTS},
    quick={
        "model": ["minilm", "whisper"],
        "method": ["Nystromformer", "Performer", "TopK", "BandLowRank", "int8", "Uniform"],
    },
    measure=measure,
    setup=subject,
    keep=keep,
    figures=(PREDICTED,),
)

DEPTHS = Study(
    name="in_model_depth",
    needs="models",
    title="In the model: how errors gather over the depth",
    question="With an operator in all layers, how far has each layer's attention moved, beside the "
    "error that the operator makes there on its own?",
    axes={"model": [*NEEDS], "method": SHOWN, "layer": range(max(DEPTH.values()))},
    quick={"model": ["minilm", "whisper"], "method": SHOWN[2:5]},
    measure=measure_depth,
    setup=followed,
    keep=lambda model, method, layer: layer < DEPTH[model] and possible(model, method),
    figures=(
        Lines(
            x="layer",
            y="accumulated",
            group="method",
            panel="model",
            expected="own",
            expected_label="the layer's own error",
            xscale="linear",
            xlabel="layer",
            ylabel="relative change of the attention's output",
            name="depth",
            caption="How far the output of each layer's attention has moved with the operator in "
            "all layers; thin dashed: the operator's error in that layer on the model's own input.",
        ),
    ),
)

COSTS = Study(
    name="in_model_cost",
    needs="models",
    title="In the model: what it saves",
    question="What does an operator in all layers save of a whole run of the model, in counted "
    "work, time and peak memory, at several lengths?",
    axes={"model": [*NEEDS], "length": LENGTHS, "method": COSTED},
    quick={"model": ["minilm", "whisper"], "length": ["long"], "method": COSTED[:3]},
    measure=measure_cost,
    setup=plain,
    keep=possible,
    timed=("time", "time_q1", "time_q3", "plain_seconds"),
    figures=(
        Lines(
            x="tokens",
            y="time",
            group="method",
            panel="model",
            expected="work",
            expected_label="counted work",
            xlabel="tokens",
            ylabel="of a run, over the model as it is",
            name="cost",
            caption="Time of a run of the whole model with the operator in all layers, over the "
            "model as it is; thin dashed: its counted work. Exact: softmax attention substituted "
            "for itself.",
        ),
    ),
)
