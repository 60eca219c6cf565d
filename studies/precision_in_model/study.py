"""Operators in a trained model in half precision and with int8 scores: where each one breaks.

Queries, keys and values reach the operator in the format, and its output leaves in it; the rest of
the model stays in float32, so that what is seen is the attention's part alone. With int8 the
queries and keys are rounded token by token, as ``Quantized`` does, and the values are not.
"""

from __future__ import annotations

import functools
import math
from typing import Any

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


@functools.lru_cache(maxsize=1)
def clean(model: str) -> tuple[UnderTest, Tensor]:
    """The model and its own output."""
    tested = under_test(model)
    with torch.no_grad():
        return tested, tested.run()


@functools.lru_cache(maxsize=4)
def moved(model: str, op: Any, precision: str) -> tuple[Numbers, Tensor | None, str]:
    """The change of the output, the output, and why there is none where it was refused."""
    tested, unmoved = clean(model)
    form = InPrecision(placed(model, op), precision)
    try:
        with torch.no_grad(), substitute(tested.model, form):
            out = tested.run()
    except SubstitutionError as error:
        return {"change": math.inf, "cosine": math.nan, "finite": False}, None, str(error)
    return change(out, unmoved), out, ""


def measure(
    model: str, op: Any, precision: str, *, dtype: torch.dtype, device: torch.device
) -> Row:
    """The change against the model as it is, and against the operator in float32."""
    cpu_alone(device)
    del dtype  # the model is in float32, on the CPU
    numbers, out, refused = moved(model, op, precision)
    whole, wide, _ = moved(model, op, "float32")
    own = math.inf
    if out is not None and wide is not None:
        own = float(change(out, wide)["change"])
    return {
        "method": type(op).__name__,
        "bits": BITS[precision],
        **numbers,
        "float32_change": whole["change"],
        "rounding_change": own if math.isfinite(own) else None,
        "refused": refused or None,
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
    keep=lambda model, op, precision: placed(model, op) is not None,  # noqa: ARG005  an axis each
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
