"""What a substituted attention does to a model: at its layers, along its depth, at its end.

The cheap numbers of a layer, ``errors``, are known from one recorded call; the rest takes runs of
the whole model. Everything is against what the model itself computes, in its own precision: the
layer's softmax, not the operator's own target.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from softlab.capture import Call, record, substitute
from softlab.capture.answer import answer
from softlab.capture.implementations import seen_by_softlab
from softlab.capture.watch import ATTENTION, MULTIHEAD, Watch, standing_in
from softlab.core import Dims, Operator
from softlab.instruments import Numbers

Run = Callable[[], Tensor]
"""Runs the model on its input and gives the output that counts."""


def change(out: Tensor, clean: Tensor) -> Numbers:
    """How far an output is from the model's own.

    ``change`` = |out - clean|_F / |clean|_F, infinite where ``out`` is not finite; ``cosine``, the
    mean over the last axis of the cosine between the two; ``finite``.
    """
    finite = bool(out.isfinite().all())
    if not finite:
        return {"change": math.inf, "cosine": math.nan, "finite": False}
    out, clean = out.detach().double(), clean.detach().double()
    size = float(clean.norm())
    moved = float((out - clean).norm())
    cosine = nn.functional.cosine_similarity(out, clean, dim=-1)
    found = (0.0 if moved == 0 else math.inf) if size == 0 else moved / size
    return {"change": found, "cosine": float(cosine.mean()), "finite": True}


def errors(operator: Operator, call: Call) -> Numbers:
    """The cheap numbers of one layer: the operator on what reaches it, beside the layer's own.

    Means over the heads and samples of the call. ``output_error`` and ``skill`` as of
    ``softlab.measures.output_error``, with the mean of the values that each query may see as the
    trivial answer; ``matrix_error`` = |A - P|_F / |P|_F of the matrices, for an operator that is
    linear in v. Rows that the operator leaves at zero, those of padding, count.

    Raises ``ValueError`` where the operator cannot honour the call.
    """
    out, exact = answer(operator, call), own(call)
    error = _relative(out, exact)
    trivial = _relative(own(dataclasses.replace(call, q=torch.zeros_like(call.q))), exact)
    eps = torch.finfo(exact.dtype).eps
    row: Numbers = {
        "output_error": float(error.mean()),
        "skill": float((1 - error / trivial.clamp(eps, 1)).mean()),
    }
    if operator.traits.linear_in_v:
        l = call.k.shape[-2]  # noqa: E741
        eye = torch.eye(l, dtype=call.v.dtype, device=call.v.device)
        whole = dataclasses.replace(call, v=eye.expand(*call.k.shape[:-2], l, l))
        row["matrix_error"] = float(_relative(answer(operator, whole), own(whole)).mean())
    return row


def own(call: Call) -> Tensor:
    """What torch's own attention makes of a call."""
    out: Tensor = ATTENTION(
        call.q,
        call.k,
        call.v,
        call.mask,
        call.dropout_p,
        call.is_causal,
        scale=call.scale,
        enable_gqa=call.enable_gqa,
    )
    return out


def _relative(out: Tensor, exact: Tensor) -> Tensor:
    """|out - exact|_F / |exact|_F for each matrix; infinite where ``out`` is not finite."""
    out, exact = out.double(), exact.double()
    found: Tensor = torch.linalg.matrix_norm(out - exact) / torch.linalg.matrix_norm(exact)
    return found.nan_to_num(math.inf, math.inf)


@dataclass(frozen=True)
class Layer:
    """One layer: its cheap numbers on the clean model's input, and how far its output has moved.

    ``errors`` is empty for a layer that keeps its attention. ``accumulated`` is the relative change
    of what its attention gives, which earlier layers have moved too; NaN where the layer asks for
    its weights, so that its output is not recorded.
    """

    name: str
    errors: Numbers
    accumulated: float


@dataclass(frozen=True)
class Effect:
    """What a substitution does: at the end, at each layer, and to the counted work.

    ``flops`` and ``exact_flops``: of one run, attention and factorisations included, with the
    operator in its layers and as the model is; 0 for a callable that counts no cost.
    """

    output: Numbers
    layers: tuple[Layer, ...]
    flops: int
    exact_flops: int


def effect(
    model: nn.Module,
    run: Run,
    operator: Callable[..., Tensor],
    *,
    layers: Sequence[int | str] | None = None,
    heads: Sequence[int] | None = None,
) -> Effect:
    """Run the model as it is and substituted, and compare.

    Arguments as of ``softlab.capture.substitute``; ``run`` runs the model, under ``no_grad``. Three
    runs of the model, with all recorded attention in memory. Raises what ``substitute`` raises.
    """
    with torch.no_grad(), record(model, outputs=True) as calls:
        clean = run()
    with (
        torch.no_grad(),
        substitute(model, operator, layers=layers, heads=heads) as report,
        record(model, outputs=True) as moved,
    ):
        out = run()
    found = []
    for before, after in zip(calls, moved, strict=True):
        both = before.out is not None and after.out is not None
        accumulated = change(after.out, before.out)["change"] if both else math.nan  # type: ignore[arg-type]
        cheap: Numbers = {}
        if before.module in report.reached and isinstance(operator, Operator):
            cheap = errors(operator, before)
        found.append(Layer(before.module, cheap, float(accumulated)))
    whole = without_attention(model, run) + sum(attention_flops(sizes(call)) for call in calls)
    spent = 0
    if isinstance(operator, Operator):
        spent = whole + sum(
            report.reached[name] * (_flops(operator, dims) - attention_flops(dims))
            for name, dims in report.dims.items()
        )
    return Effect(change(out, clean), tuple(found), spent, whole)


def without_attention(model: nn.Module, run: Run) -> int:
    """Counted work of one run but for its attention, which gives zeros meanwhile."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), seen_by_softlab(model), counter, _Skipped(model):
        run()
    return int(counter.get_total_flops())


class _Skipped(Watch):
    """No attention at all: so that what a counter sees does not hang on the kernel."""

    def attend(self, call: Call, go_on: Callable[[], Tensor]) -> Tensor:  # noqa: ARG002
        """Zeros."""
        return call.v.new_zeros(*call.q.shape[:-1], call.v.shape[-1])

    def weighed(self, arguments: inspect.BoundArguments) -> Any:
        """Zeros, and weights of zero."""
        kept: list[Tensor] = []

        def weights(attention: Any, query: Tensor, key: Tensor, *rest: Any, **more: Any) -> Tensor:
            kept.append(query.new_zeros(*query.shape[:-1], key.shape[-2]))
            return self.through(attention, query, key, *rest, **more)

        given = dict(arguments.arguments) | {"need_weights": False, "is_causal": False}
        with standing_in(weights):
            out, _ = MULTIHEAD(**given)
        zeros = kept[0]
        if arguments.arguments.get("average_attn_weights", True):
            zeros = zeros.mean(-3)
        return out, zeros if out.ndim == 3 else zeros.squeeze(0)


def sizes(call: Call) -> Dims:
    """The sizes of a call, one matrix for each query head, also where these share key heads."""
    lead, keys = call.q.shape[:-2], call.k.shape[-2]
    return Dims(max(1, lead.numel()), call.q.shape[-2], keys, call.q.shape[-1], call.v.shape[-1])


def attention_flops(dims: Dims) -> int:
    """Those of the model's own attention, 2 n l (d + e) a matrix, all scores formed."""
    return 2 * dims.batch * dims.n * dims.l * (dims.d + dims.e)


def _flops(operator: Operator, dims: Dims) -> int:
    return operator.cost(dims).work


def greedy(
    loss: Callable[[tuple[str, ...]], float],
    alone: Mapping[str, float],
    within: float,
    saving: Mapping[str, float] | None = None,
) -> tuple[tuple[str, ...], float]:
    """A large set of parts whose joint loss is at most ``within``, and that loss.

    Parts are tried in the order of their loss ``alone`` over what they save (the same for all
    unless given), and kept where the loss of all kept so far stays within. One call of ``loss`` a
    part that alone stays within. The set may be empty, with loss 0: a greedy one need not be the
    largest, for losses of several parts can make up for each other.
    """
    kept: tuple[str, ...] = ()
    reached = 0.0
    order = sorted(alone, key=lambda part: alone[part] / (saving[part] if saving else 1.0))
    for part in order:
        if not alone[part] <= within:
            continue
        tried = loss((*kept, part)) if kept else alone[part]
        if tried <= within:
            kept, reached = (*kept, part), tried
    return kept, reached
