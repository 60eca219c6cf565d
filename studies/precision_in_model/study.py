"""Operators in a trained model in half precision and with int8 scores: where each one breaks.

Queries, keys and values reach the operator in the format, and its output leaves in it; the rest of
the model stays in float32, so that what is seen is the attention's part alone. With int8 the
queries and keys are rounded token by token, as ``Quantized`` does, and the values are not.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from softlab.capture import SubstitutionError, substitute
from softlab.capture.effect import change
from softlab.core import Cost, Dims, Operator, Traits, causal_form, value
from softlab.engine.journal import Row
from softlab.engine.provenance import cpu_alone
from softlab.figures import Lines
from softlab.operators import (
    BandLowRank,
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
)
from softlab.pretrained.tasks import NEEDS, UnderTest, under_test
from softlab.profiling import Numbers
from softlab.study import Study

FORMATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PRECISIONS = (*FORMATS, "int8")
BITS = {"float32": 24, "bfloat16": 8, "float16": 11, "int8": 7}
"""Binary digits of a number, or of the largest of a token."""
OPERATORS: list[Operator] = [
    Softmax(),
    Nystromformer(64),
    RPCholesky(64),
    Performer(64),
    Taylor(),
    TopK(64),
    Local(64),
    BandLowRank(64),
    Scatterbrain(64),
    LinearAttention(),
    Soft(64),
]


@value
class InPrecision:
    """``op`` on what a format has left of its input; the output in the input's own dtype."""

    op: Any
    precision: str

    @property
    def traits(self) -> Traits:
        """Those of the operator."""
        found: Traits = self.op.traits
        return found

    @property
    def target(self) -> Operator:
        """The operator's."""
        found: Operator = self.op.target
        return found

    def cost(self, dims: Dims) -> Cost:
        """The operator's."""
        found: Cost = self.op.cost(dims)
        return found

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Apply to q (..., n, d), k (..., l, d), v (..., l, e)."""
        if self.precision == "int8":
            q, k = Quantized("int8").rounded(q, k, key_mask)
            return self.op(q, k, v, key_mask)  # type: ignore[no-any-return]
        q, k, w = (x.to(FORMATS[self.precision]) for x in (q, k, v))
        return self.op(q, k, w, key_mask).to(v.dtype)  # type: ignore[no-any-return]


def placed(model: str, op: Operator) -> Operator | None:
    """The operator as it can stand in the model; None where it has no causal form."""
    return causal_form(op) if model == "smollm2" else op


class Placed(NamedTuple):
    """An operator in a model: the model's own output, and the outcome in float32."""

    tested: UnderTest
    clean: Tensor
    form: Operator | None
    wide: Outcome


class Outcome(NamedTuple):
    """The change of the output, the output, and why there is none where it was refused."""

    numbers: Numbers
    out: Tensor | None
    refused: str = ""


def in_place(model: str, op: Any) -> Placed:
    """What all formats of the operator in the model are held against."""
    tested = under_test(model)
    with torch.no_grad():
        clean = tested.run()
    form = placed(model, op)
    return Placed(tested, clean, form, moved(tested, clean, form, "float32"))


def moved(tested: UnderTest, clean: Tensor, op: Any, precision: str) -> Outcome:
    """What the operator in the format makes of the model's output."""
    try:
        with torch.no_grad(), substitute(tested.model, InPrecision(op, precision)):
            out = tested.run()
    except SubstitutionError as error:
        return Outcome({"change": math.inf, "cosine": math.nan, "finite": False}, None, str(error))
    return Outcome(change(out, clean), out)


def measure(setup: Placed, op: Any, precision: str, device: torch.device) -> Row:
    """The change against the model as it is, and against the operator in float32.

    The model is in float32, on the CPU.
    """
    cpu_alone(device)
    tested, clean, form, wide = setup
    here = wide if precision == "float32" else moved(tested, clean, form, precision)
    own = math.inf
    if here.out is not None and wide.out is not None:
        own = float(change(here.out, wide.out)["change"])
    return {
        "method": type(op).__name__,
        "bits": BITS[precision],
        **here.numbers,
        "float32_change": wide.numbers["change"],
        "rounding_change": own if math.isfinite(own) else None,
        "refused": here.refused or None,
        "rounding_unit": 2.0 ** -BITS[precision],
    }


STUDY = Study(
    name="precision_in_model",
    needs="models",
    title="In the model: where each operator breaks in low precision",
    question="How far does the model's output move when an operator's input is rounded to half "
    "precision or its scores to int8, beside what the operator itself does in float32?",
    axes={"model": [*NEEDS], "op": OPERATORS, "precision": PRECISIONS},
    quick={"model": ["minilm", "whisper"], "op": OPERATORS[:6]},
    measure=measure,
    setup=in_place,
    keep=lambda model, op: placed(model, op) is not None,
    figures=(
        Lines(
            x="bits",
            y="rounding_change",
            group="method",
            panel="model",
            references=["Softmax"],
            where={"precision": ["bfloat16", "float16", "int8"]},
            guides={"rounding_unit": "rounding unit"},
            xscale="linear",
            xlabel="binary digits of the attention's input (int8 7, bfloat16 8, float16 11)",
            ylabel="relative change against float32",
            name="digits",
            caption="Relative change of the model's output that the rounding of an operator's "
            "input makes, against the same operator in float32. Grey: the rounding unit.",
        ),
    ),
)
