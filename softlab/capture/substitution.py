"""Put an operator in the place of a model's attention while it runs."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import checkpoint

from softlab.capture.dispatch import answer, couples, couples_queries, heads_of, traits_of
from softlab.capture.flow import Sources
from softlab.capture.huggingface import Asked, Result
from softlab.capture.interception import (
    ATTENTION,
    MULTIHEAD,
    Call,
    Watch,
    count,
    kept_on,
    named,
    standing_in,
)
from softlab.capture.masks import UnableError, hiding, read
from softlab.core import Dims, Operator, Stream
from softlab.hints import hint
from softlab.validation import is_integer

BACKWARD = (torch.autograd.backward, torch.autograd.grad, Tensor.backward)
"""Where torch suspends the mode, a checkpointed model computes forward again, and it stays on."""


class SubstitutionError(ValueError):
    """A layer asks for what its substitute cannot give, or the layers asked for are not there."""


@dataclass
class Substitution:
    """What happened in a block of ``substitute``, by layer in the order in which they were reached.

    ``reached``: calls that the operator answered; ``left``: calls of the other layers; ``dims``:
    the sizes of a layer's latest call, of the substituted heads alone, none of a ragged batch;
    ``unseen``: modules that may compute attention that is not seen, such as a softmax of their own,
    with how often.
    """

    reached: dict[str, int] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)
    dims: dict[str, Dims] = field(default_factory=dict)
    unseen: dict[str, int] = field(default_factory=dict)


@contextmanager
def substitute(
    model: nn.Module,
    operator: Callable[..., Tensor],
    *,
    layers: Collection[int | str] | None = None,
    heads: Collection[int] | None = None,
) -> Iterator[Substitution]:
    """Answer the attention calls of ``model`` made inside the block by ``operator``.

    ``operator``: of the catalogue, called as ``op(q, k, v, key_mask)``, or any callable
    ``f(q, k, v, ...)``; ``softlab.capture.dispatch`` says what it is given and what is done for it.
    ``layers``: which, all by default. A layer is a submodule that calls attention; it is known by
    its number, in the order in which layers are first reached, or by its qualified name or that of
    a module that holds it. A module applied several times is one layer. ``heads``: of these alone;
    the others keep what they had. Forward and backward; let the backward pass of a checkpointed
    model run inside the block, for it computes forward again. Where it does not, a warning says so.

    Blocks may be nested: the inner one answers first, and what it leaves reaches the outer one. A
    ``record`` inside sees all calls, one outside those that are left. A block is of one thread:
    other threads run the model as it was. Whatever happens inside, torch and the model end as they
    were.

    Raises ``TypeError`` for what is no module or no callable, and a compiled or scripted model;
    ``ValueError`` for layers and heads that cannot be; ``SubstitutionError``, before any output,
    where a layer asks for what the operator cannot honour, and at the end of the block where a
    layer asked for was not reached; ``RuntimeError`` at the end where no attention was seen. Warns
    of modules that may compute attention unseen.
    """
    _substitutable(model)
    if isinstance(operator, type) or not callable(operator):
        msg = f"operator is {operator!r}; give an instance such as Nystromformer(rank=64)."
        raise TypeError(msg)
    chosen = None if layers is None else _layers(model, layers)
    mode = _Substituter(model, operator, chosen, None if heads is None else _heads(heads))
    with mode:
        yield mode.report
    _reached(mode)


class _Substituter(Watch):
    def __init__(
        self,
        model: nn.Module,
        operator: Callable[..., Tensor],
        layers: frozenset[int | str] | None,
        heads: list[int] | None,
    ) -> None:
        super().__init__(model)
        self.operator, self.layers, self.heads = operator, layers, heads
        self.numbers: dict[str, int] = {}
        self.blocks: list[_Substituter] = []
        self.filled: dict[str, int] = {}
        self.awaited: set[str] = set()
        self.differentiates = False
        self.report = Substitution(unseen=self.unseen)
        if couples_queries(traits_of(operator)):
            self.sources = Sources()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in BACKWARD:
            before, self.differentiates = self.differentiates, True
            try:
                with kept_on(self):
                    return func(*args, **(kwargs or {}))
            finally:
                self.differentiates = before
        return super().__torch_function__(func, types, args, kwargs)

    def __enter__(self) -> Any:
        found = torch.overrides._get_current_function_mode_stack()
        self.blocks = [*(mode for mode in found if isinstance(mode, _Substituter)), self]
        return super().__enter__()

    def chosen(self, module: str) -> set[int | str]:
        """The members of ``layers`` that mean this module; None for all is one that does."""
        number = self.numbers[module]
        if self.layers is None:
            return {number}
        return {
            x
            for x in self.layers
            if x in (number, module) or (isinstance(x, str) and module.startswith(f"{x}."))
        }

    def attend(self, call: Call, go_on: Callable[[], Tensor]) -> Tensor:
        """Answer the call, or leave it."""
        self.meet(call.module)
        if not self.chosen(call.module):
            count(self.report.left, call.module)
            return go_on()
        count(self.report.reached, call.module)
        if self.differentiates:
            self.awaited.discard(call.module)
        elif _checkpointed():
            self.awaited.add(call.module)
        return self.answered(call, go_on)

    def meet(self, module: str) -> None:
        """Number the layer that calls, in the outer blocks too, which may never see it."""
        for block in self.blocks:
            name = module if block is self else block.caller()
            if name is not None:
                block.numbers.setdefault(name, len(block.numbers))

    def answered(self, call: Call, go_on: Callable[[], Tensor]) -> Tensor:
        """The operator's output, for the chosen heads; the others keep what they had."""
        try:
            if self.written_out:
                self.headed(call)
            asked = call if self.heads is None else heads_of(call, self.heads)
            self.grown(asked)
            asked = self.placed(asked)
            with torch._C.DisableTorchFunction():  # what it computes is no attention of the model
                out = answer(self.operator, asked)
        except (ValueError, TypeError) as error:
            raise SubstitutionError(self.refusal(call, error)) from error
        if not asked.q.is_nested:
            shape, keys = asked.q.shape, asked.k.shape[-2]
            self.report.dims[call.module] = Dims(
                max(1, shape[:-2].numel()), shape[-2], keys, shape[-1], asked.v.shape[-1]
            )
        if self.heads is None:
            return out
        return go_on().index_copy(-3, torch.tensor(self.heads, device=out.device), out)

    def placed(self, call: Call) -> Call:
        """The call with how many keys its layer had before, if it goes on with them.

        A layer starts a sequence where it is causal with as many queries as keys, and goes on with
        it where what its mask shows has grown by the queries. So a cross-attention never does.
        """
        if call.q.is_nested or not couples(self.operator):
            return call
        lead, n, l = call.q.shape[:-2], call.q.shape[-2], call.k.shape[-2]
        before = self.filled.pop(call.module, None)
        with suppress(UnableError):
            allowed = None if call.mask is None else hiding(call.mask, lead, n, l)
            last = n if call.is_causal else l  # torch counts a causal mask from the first key
            shown = min(last, l) if allowed is None else _end(allowed)
            if before is not None and shown == before + n:
                self.filled[call.module] = shown
                return replace(call, past=before)
            cut = call if allowed is None else replace(call, mask=allowed[..., :shown])
            if shown == n and (n == 1 or read(cut.mask, call.is_causal, lead, n, n).causal):
                self.filled[call.module] = shown
        return call

    def headed(self, call: Call) -> None:
        """Refuse attention that is written out where its heads are not seen."""
        if self.heads is not None and call.q.ndim == 3:
            msg = (
                "some heads alone are asked of a layer that is written out with heads and samples "
                "in one axis. Substitute all heads."
            )
            raise UnableError(msg)

    def grown(self, call: Call) -> None:
        """Refuse more queries on keys that have grown by them, where an operator couples them."""
        before = self.report.dims.get(call.module)
        if call.q.is_nested or before is None or not couples(self.operator):
            return
        n, l = call.q.shape[-2], call.k.shape[-2]
        if 1 < n < l and l == before.l + n and call.mask is None and not call.is_causal:
            msg = (
                f"its keys have grown from {before.l} to {l} by its {n} queries, as of a model "
                "that decodes with a cache, and what the operator gives to a query depends on the "
                "others or on where it stands. Run the whole sequence at once, without a cache."
            )
            raise UnableError(msg)

    def given(self, module: str) -> Sequence[Callable[..., Tensor]]:  # noqa: ARG002  all have one; those of ``_Each`` differ
        """The operators that answer for this module."""
        return [self.operator]

    def unread(self, module: str, asked: Asked, go_on: Callable[[], Result]) -> Result:
        """Leave a layer of transformers that asks for more than torch's attention, or refuse."""
        seen, counted = self.seen, self.unseen.get(module, 0)
        found = go_on()
        if self.seen > seen:  # torch's attention was called inside it
            return found
        self.meet(module)
        chosen = bool(self.chosen(module))
        if chosen and not (asked.softmax and all(map(_softmax, self.given(module)))):
            msg = (
                f"layer {self.numbers[module]} ({module}) cannot be given {self.operator!r}: it "
                f"{asked.reason}. Substitute elsewhere: layers=[...]."
            )
            raise SubstitutionError(msg)
        # Exact softmax attention of capped scores, or with a sink, is what the layer gave itself.
        count(self.report.reached if chosen else self.report.left, module)
        if counted:
            self.unseen[module] = counted
        else:
            self.unseen.pop(module, None)
        return found

    def weighed(self, arguments: inspect.BoundArguments) -> Any:
        """Output and weights of a multi-head attention: the operator's, and those of its matrix."""
        module = self.caller() or ""
        self.meet(module)
        if not self.chosen(module):
            count(self.report.left, module)
            return MULTIHEAD(*arguments.args, **arguments.kwargs)
        given = dict(arguments.arguments) | {"need_weights": False, "is_causal": False}
        kept: list[Tensor] = []

        def both(
            attention: Callable[..., Tensor],
            query: Tensor,
            key: Tensor,
            value: Tensor,
            *rest: Any,
            **more: Any,
        ) -> Tensor:
            out = self.through(attention, query, key, value, *rest, **more)
            linear = isinstance(self.operator, Operator) and self.operator.traits.linear_in_v
            if not linear:
                msg = (
                    f"layer {self.numbers[module]} ({module}) asks for its weights "
                    f"(need_weights=True), and {self.operator!r} promises no matrix of them. Call "
                    "the layer with need_weights=False."
                )
                raise SubstitutionError(msg)
            lead, l = key.shape[:-2], key.shape[-2]
            eye = torch.eye(l, dtype=key.dtype, device=key.device).expand(*lead, l, l)
            again = named(self.seen, module)(query, key, eye, *rest, **more)
            again = self.with_tokens(again, query, key)
            kept.append(self.answered(again, lambda: attention(query, key, eye, *rest, **more)))
            return out

        with standing_in(both):
            out, _ = MULTIHEAD(**given)
        weights = kept[0]
        if arguments.arguments.get("average_attn_weights", True):
            weights = weights.mean(-3)
        return out, weights if out.ndim == 3 else weights.squeeze(0)

    def refusal(self, call: Call, reason: Exception) -> str:
        """Which layer was refused what, and why."""
        layer = f"layer {self.numbers[call.module]} ({call.module or type(self.model).__name__})"
        ragged = call.q.is_nested
        shapes = "ragged" if ragged else f"q {tuple(call.q.shape)}, k {tuple(call.k.shape)}"
        return f"{layer}, {shapes}, cannot be given {self.operator!r}: {reason}"


def _end(allowed: Tensor) -> int:
    """How many keys there are up to the last that any query sees."""
    shown = allowed.flatten(0, -2).any(0).nonzero()
    return int(shown.max()) + 1 if len(shown) else 0


def _checkpointed() -> bool:
    """Whether torch's checkpoint is among the callers, to compute this again for gradients."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == checkpoint.__file__:
            ctx = frame.f_locals.get("ctx")  # of the reentrant kind, which switches gradients off
            return torch.is_grad_enabled() if ctx is None else any(ctx.needs_input_grad)
        frame = frame.f_back
    return False


def _substitutable(model: nn.Module) -> None:
    """Raise ``TypeError`` for what is no module, and where python does not see the model run."""
    if not isinstance(model, nn.Module):
        got = type(model).__name__  # type: ignore[unreachable]
        msg = f"model must be a torch.nn.Module, got {got}. Pass the model itself."
        raise TypeError(msg)
    for name, module in model.named_modules():
        where = f"its submodule {name!r}" if name else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            msg = f"{where} is scripted, so its attention cannot be seen. Pass the eager module."
            raise TypeError(msg)
        in_place = module._compiled_call_impl is not None
        if in_place or "_orig_mod" in module._modules:
            remedy = (
                "It was compiled in place by its compile(), which is not undone: build the model "
                "anew, and call compile() after the block."
                if in_place
                else "Pass the module that was given to torch.compile (its _orig_mod), or compile "
                "later."
            )
            msg = f"{where} is compiled, so what runs is not what python sees. {remedy}"
            raise TypeError(msg)


def _layers(model: nn.Module, layers: Collection[int | str]) -> frozenset[int | str]:
    if isinstance(layers, str) or not layers:
        msg = f"layers is {layers!r}; give a list of numbers or names, or None for all."
        raise ValueError(msg)
    names = [name for name, _ in model.named_modules()]
    for layer in layers:
        if isinstance(layer, str) and layer not in names:
            msg = f"{type(model).__name__} has no module {layer!r}.{hint(layer, names)}"
            raise ValueError(msg)
        if not isinstance(layer, str) and (not _natural(layer)):
            msg = f"layers holds {layer!r}; a layer is a number from 0 on, or a name."
            raise ValueError(msg)
    return frozenset(layers)


def _heads(heads: Collection[int]) -> list[int]:
    if not heads or not all(_natural(head) for head in heads) or len({*heads}) < len(heads):
        msg = f"heads is {heads!r}; give different numbers from 0 on, or None for all."
        raise ValueError(msg)
    return list(heads)


def _natural(x: Any) -> bool:
    return is_integer(x) and x >= 0


def _reached(mode: _Substituter) -> None:
    """Say at the end what was asked for and not reached, and what may have run unseen."""
    kind, hidden = type(mode.model).__name__, mode.suspects()
    if not mode.numbers:
        msg = (
            f"saw no attention in {kind} during this block, so nothing was substituted. Run the "
            "model inside it; make its attention call "
            f"torch.nn.functional.scaled_dot_product_attention.{hidden}"
        )
        raise RuntimeError(msg)
    if mode.layers is not None:
        met = set().union(*(mode.chosen(name) for name in [*mode.numbers]))
        missed = sorted(map(repr, mode.layers - met))
        if missed:
            there = ", ".join(f"{i} {name!r}" for name, i in mode.numbers.items())
            msg = f"layers {', '.join(missed)} of {kind} were not reached; it has {there}.{hidden}"
            raise SubstitutionError(msg)
    elif hidden:
        warnings.warn(f"{kind}:{hidden}", stacklevel=4)
    packed = {x: times for x, times in mode.packed.items() if x in mode.numbers and mode.chosen(x)}
    if packed:
        listed = ", ".join(f"{name or kind!r} ({times} times)" for name, times in packed.items())
        msg = (
            f"{kind}: {listed} has several times as many queries as keys, made of the same tokens. "
            "If heads are packed into the queries, the operator takes them for one sequence, and "
            "its answer is another: give each head a dimension of its own, or set enable_gqa."
        )
        warnings.warn(msg, stacklevel=4)
    if mode.awaited:
        listed = ", ".join(repr(name or kind) for name in mode.numbers if name in mode.awaited)
        msg = (
            f"{kind}: {listed} ran inside a checkpoint, whose backward pass computes it again, and "
            "it did not in this block. Run the backward pass inside the block: outside, what is "
            "computed again is the layer's own attention, and the gradients are of neither."
        )
        warnings.warn(msg, stacklevel=4)


@contextmanager
def substitute_each(
    model: nn.Module,
    operators: Mapping[str, Sequence[tuple[Callable[..., Tensor], Collection[int] | None]]],
) -> Iterator[Substitution]:
    """Answer the calls of each layer by operators of its own, ``substitute`` layer by layer.

    ``operators``: by the qualified name of the layer, pairs of an operator and the heads that it
    answers, None for all; heads that none answers get torch's own attention.

    Raises what ``substitute`` raises.
    """
    _substitutable(model)
    mode = _Each(model, operators)
    with mode:
        yield mode.report
    _reached(mode)


class _Each(_Substituter):
    def __init__(
        self,
        model: nn.Module,
        operators: Mapping[str, Sequence[tuple[Callable[..., Tensor], Collection[int] | None]]],
    ) -> None:
        given = [op for parts in operators.values() for op, _ in parts]
        super().__init__(model, given[0], _layers(model, [*operators]), None)
        if any(couples_queries(traits_of(op)) for op in given):
            self.sources = Sources()
        # One that promises no matrix comes last: what is asked of the weights is asked of it.
        self.parts = {
            name: sorted(parts, key=lambda part: not _linear(part[0]))
            for name, parts in operators.items()
        }

    def chosen(self, module: str) -> set[int | str]:
        """A layer is meant by its own name alone."""
        return {module} if module in self.parts else set()

    def given(self, module: str) -> Sequence[Callable[..., Tensor]]:
        """The operators of its parts; heads that none answers keep what they had."""
        return [op for op, _ in self.parts[module]]

    def answered(self, call: Call, go_on: Callable[[], Tensor]) -> Tensor:
        """The outputs of the layer's operators, each for its heads."""
        parts = self.parts[call.module]
        self.operator, some = parts[0]
        if some is None or call.q.ndim < 3 or call.q.is_nested:
            self.heads = None if some is None else _heads(some)
            return super().answered(call, go_on)
        taken = {head for _, heads in parts for head in heads or ()}
        out = call.q.new_empty(*call.q.shape[:-1], call.v.shape[-1])
        if rest := [head for head in range(call.q.shape[-3]) if head not in taken]:
            with torch._C.DisableTorchFunction():
                kept = heads_of(call, rest)
                own = ATTENTION(
                    kept.q, kept.k, kept.v, kept.mask, kept.dropout_p, kept.is_causal,
                    scale=kept.scale,
                )  # fmt: skip
            out = out.index_copy(-3, torch.tensor(rest, device=out.device), own)
        before = self.filled.get(call.module)
        for self.operator, heads in parts:
            self.heads = _heads(heads or ())
            self.filled.pop(call.module, None)  # each part goes on from the same call
            if before is not None:
                self.filled[call.module] = before
            held = out
            out = super().answered(call, lambda held=held: held)  # type: ignore[misc]
        return out


def _softmax(operator: Callable[..., Tensor]) -> bool:
    """Whether it is exact softmax attention at the usual scale: it says so, and it is."""
    if not isinstance(operator, Operator) or not operator.traits.exact:
        return False
    rng = Stream(0, "capture.softmax")
    q, k, v = (rng.normal(n, 5) for n in (6, 7, 7))
    with torch._C.DisableTorchFunction(), suppress(ValueError):  # a causal one: 6 are not 7
        return bool(torch.allclose(operator(q, k, v), ATTENTION(q, k, v), rtol=1e-12, atol=1e-12))
    return False


def _linear(operator: Callable[..., Tensor]) -> bool:
    return isinstance(operator, Operator) and operator.traits.linear_in_v
