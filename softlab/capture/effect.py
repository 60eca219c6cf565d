"""What a substituted attention does to a model: at its layers, along its depth, at its end.

The cheap numbers of a layer, ``errors``, are known from one recorded call; the rest takes runs of
the whole model. Everything is against what the model itself computes, in its own precision: the
layer's softmax, not the operator's own target.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from softlab.capture import Call, substitute
from softlab.capture.dispatch import answer, couples_queries, traits_of
from softlab.capture.flow import Sources
from softlab.capture.interception import ATTENTION, MULTIHEAD, Watch, count, standing_in
from softlab.capture.recording import Recorder
from softlab.core import Dims, Operator, norm
from softlab.profiling import Numbers

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
    size = float(norm(clean))
    moved = float(norm(out - clean))
    # Each over its own norm: torch's cosine takes norms below 1e-8 for zero.
    unit, own_unit = (
        x / norm(x, -1).unsqueeze(-1).clamp_min(torch.finfo(torch.double).tiny)
        for x in (out, clean)
    )
    cosine = (unit * own_unit).sum(-1)
    found = (0.0 if moved == 0 else math.inf) if size == 0 else moved / size
    return {"change": found, "cosine": float(cosine.mean()), "finite": True}


def errors(
    operator: Callable[..., Tensor], call: Call, target: Callable[..., Tensor] | None = None
) -> Numbers:
    """The cheap numbers of one layer: the operator on what reaches it, beside the layer's own.

    Means over the heads and samples of the call. ``output_error`` and ``skill`` as of
    ``softlab.measures.output_error``, with the mean of the values that each query may see as the
    trivial answer; ``matrix_error`` = |A - P|_F / |P|_F of the matrices, for an operator that is
    linear in v. ``target``: they are against what it makes of the call, not against the layer's own
    attention. Rows that the operator leaves at zero, those of padding, count.

    Raises ``ValueError`` where the operator cannot honour the call.
    """
    true = own if target is None else functools.partial(answer, target)
    out, exact = answer(operator, call), true(call)
    error = _relative(out, exact)
    trivial = _relative(own(dataclasses.replace(call, q=torch.zeros_like(call.q))), exact)
    eps = torch.finfo(exact.dtype).eps
    row: Numbers = {
        "output_error": float(error.mean()),
        "skill": float((1 - error / trivial.clamp(eps, 1)).mean()),
    }
    if isinstance(operator, Operator) and operator.traits.linear_in_v:
        l = call.k.shape[-2]
        eye = torch.eye(l, dtype=call.v.dtype, device=call.v.device)
        whole = dataclasses.replace(call, v=eye.expand(*call.k.shape[:-2], l, l))
        row["matrix_error"] = float(_relative(answer(operator, whole), true(whole)).mean())
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
    found = norm(out - exact, (-2, -1)) / norm(exact, (-2, -1))
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
    target: Callable[..., Tensor] | None = None,
) -> Effect:
    """Run the model as it is and substituted, and compare, call by call of each layer.

    Arguments as of ``softlab.capture.substitute``; ``target`` as of ``errors``. ``run`` runs the
    model, under ``no_grad``. Three runs of the model, with all recorded attention in memory. Raises
    what ``substitute`` raises, ``TypeError`` where ``run`` gives no tensor, and ``ValueError``
    where the substituted model takes another path, with other calls, sizes or outputs, and for a
    ragged batch. Warns of attention that was not seen, unless ``layers`` are given.
    """
    clean, before, told = _run(model, run, couples_queries(traits_of(operator)))
    if told and layers is None:
        warnings.warn(told, stacklevel=2)
    with substitute(model, operator, layers=layers, heads=heads) as report:
        out, after, _ = _run(model, run)
    _same_path(before, after)
    if out.shape != clean.shape:
        msg = f"its output is {tuple(clean.shape)} as it is and {tuple(out.shape)} substituted"
        raise ValueError(_another_path(msg))
    found = []
    for name, call in before.items():
        moved = after[name].out
        both = call.out is not None and moved is not None
        accumulated = change(moved, call.out)["change"] if both else math.nan  # type: ignore[arg-type]
        cheap: Numbers = {}
        if call.module in report.reached:
            cheap = errors(operator, call, target)
        found.append(Layer(call.module, cheap, float(accumulated)))
    whole = without_attention(model, run)
    whole += sum(attention_flops(sizes(call)) for call in before.values())
    spent = 0
    if isinstance(operator, Operator):
        taken = [sizes(call, heads) for call in before.values() if call.module in report.reached]
        spent = whole + sum(operator.cost(dims).work - attention_flops(dims) for dims in taken)
    return Effect(change(out, clean), tuple(found), spent, whole)


Known = tuple[str, int]
"""A call, by the name of its layer and its number among the calls of that layer."""


def _run(
    model: nn.Module, run: Run, sources: bool = False
) -> tuple[Tensor, dict[Known, Call], str]:
    """The output of a run, its calls in order, and a sentence about those that were not seen."""
    recorder = Recorder(model, outputs=True)
    if sources:
        recorder.sources = Sources()
    with torch.no_grad(), recorder:
        out: Any = run()
    recorder.complete()
    if not isinstance(out, Tensor):
        msg = f"run gave a {type(out).__name__}; it must return the tensor to compare."
        raise TypeError(msg)
    out = out.clone()  # a model may write its next output there
    made: dict[str, int] = {}
    calls = {}
    for call in recorder.calls:
        if call.q.is_nested:
            msg = f"layer {call.module!r} has a ragged batch, whose effect is not measured: pad it."
            raise ValueError(msg)
        calls[call.module, made.get(call.module, 0)] = call
        count(made, call.module)
    told = recorder.suspects()
    return out, calls, f"{type(model).__name__}:{told}" if told else ""


def _same_path(before: Mapping[Known, Call], after: Mapping[Known, Call]) -> None:
    """Raise ``ValueError`` unless both runs make the same calls, of the same sizes."""
    for names, absent, when in ((before, after, "as it is"), (after, before, "substituted")):
        for name in names:
            if name not in absent:
                layer = f"call {name[1]} of layer {name[0] or '(the model)'}"
                msg = f"{layer} is made {when} alone; calls: {len(before)} and {len(after)}"
                raise ValueError(_another_path(msg))
    for name, call in before.items():
        shapes = [[tuple(x.shape) for x in (y.q, y.k, y.v)] for y in (call, after[name])]
        if shapes[0] != shapes[1]:
            msg = f"q, k, v of {name[0] or '(the model)'} are {shapes[0]} as it is and {shapes[1]}"
            raise ValueError(_another_path(f"{msg} substituted"))


def _another_path(what: str) -> str:
    return (
        f"the substituted model takes another path: {what}. So its layers cannot be compared. Fix "
        "what decides the path (the number of steps, tokens or experts), or compare outputs alone: "
        "softlab.capture.substitute and softlab.capture.effect.change."
    )


def without_attention(model: nn.Module, run: Run) -> int:
    """Counted work of one run but for that of its attention."""
    counter = FlopCounterMode(display=False)
    watch = _Uncounted(model, counter)
    with torch.no_grad(), counter, watch:
        run()
    return int(counter.get_total_flops()) - watch.inside


class _Uncounted(Watch):
    """What attention a counter saw: it hangs on the kernel, and is not the model's other work.

    The attention itself is computed, for a model's path may hang on it.
    """

    def __init__(self, model: nn.Module, counter: FlopCounterMode) -> None:
        super().__init__(model)
        self.counter, self.inside = counter, 0

    def apart(self, compute: Callable[[], Any]) -> Any:
        """What it gives, its count noted."""
        before = self.counter.get_total_flops()
        out = compute()
        self.inside += int(self.counter.get_total_flops() - before)
        return out

    def attend(self, call: Call, go_on: Callable[[], Tensor]) -> Tensor:
        """The model's own."""
        out: Tensor = self.apart(go_on)
        if self.written_out:  # the product of its queries and keys was counted before
            dims = sizes(call)
            self.inside += 2 * dims.batch * dims.n * dims.l * dims.d
        return out

    def differs(self, call: Call, own: Callable[[], Tensor]) -> bool:
        """What it computes to compare is no work of the model."""
        found: bool = self.apart(lambda: super(_Uncounted, self).differs(call, own))
        return found

    def weighed(self, arguments: inspect.BoundArguments) -> Any:
        """The projections are run once more, without weights, to be counted."""
        given = dict(arguments.arguments) | {"need_weights": False, "is_causal": False}
        with standing_in(self.through):
            MULTIHEAD(**given)
        return self.apart(lambda: MULTIHEAD(*arguments.args, **arguments.kwargs))


def sizes(call: Call, heads: Sequence[int] | None = None) -> Dims:
    """The sizes of a call, one matrix for each query head, also where these share key heads.

    ``heads``: of these alone.
    """
    lead, keys = call.q.shape[:-2], call.k.shape[-2]
    batch = max(1, lead.numel())
    if heads is not None:
        batch = batch // lead[-1] * len(heads)
    return Dims(batch, call.q.shape[-2], keys, call.q.shape[-1], call.v.shape[-1])


def attention_flops(dims: Dims) -> int:
    """Those of the model's own attention, 2 n l (d + e) a matrix, all scores formed."""
    return 2 * dims.batch * dims.n * dims.l * (dims.d + dims.e)


def greedy(
    loss: Callable[[tuple[str, ...]], float],
    alone: Mapping[str, float],
    within: float,
    saving: Mapping[str, float] | None = None,
) -> tuple[tuple[str, ...], float]:
    """Greedily choose parts whose joint loss stays at most ``within``; the set and its loss.

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
