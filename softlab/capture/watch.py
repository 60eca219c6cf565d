"""See every attention call of one model, in one thread, whoever makes it.

A ``torch.overrides.TorchFunctionMode`` sees ``torch.nn.functional.scaled_dot_product_attention``.
``nn.MultiheadAttention`` calls it inside ``multi_head_attention_forward``, where torch has
suspended the mode: there a stand-in is put where that function looks for the real one, for just
that long. It asks the handlers of its own thread alone, so that other threads are served as ever.
"""

from __future__ import annotations

import inspect
import math
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from softlab.inputs import QKV

ATTENTION = functional.scaled_dot_product_attention
MULTIHEAD = functional.multi_head_attention_forward
MULTIHEAD_SIGNATURE = inspect.signature(MULTIHEAD)

Attention = Callable[..., Tensor]
"""What is called as torch's function is."""


@dataclass(frozen=True, eq=False)
class Call:
    """One call of attention: its arguments as they arrived.

    ``q`` (..., h, n, d), ``k`` (..., g, l, d), ``v`` (..., g, l, e), where g = h, or a divisor of h
    if ``enable_gqa``. ``mask`` is None, boolean (True takes part) or added to the scores. ``scale``
    is the factor that was used, 1 / sqrt(d) where the caller gave none. ``order`` counts the
    model's calls from 0; ``module`` is the qualified name of the innermost submodule that made it,
    "" for the model itself. ``out`` is what it got, where that was recorded: not of a multi-head
    attention that asks for its weights.
    """

    order: int
    module: str
    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    is_causal: bool
    scale: float
    dropout_p: float
    enable_gqa: bool
    out: Tensor | None = None

    def case(self, *index: int) -> QKV:
        """The matrices at these leading indices of q: ``call.case(sample, head)``.

        A query head comes with the key head that serves it, h / g heads in a row sharing one.
        """
        lead = self.q.shape[:-2]
        if len(index) != len(lead) or any(
            not 0 <= i < size for i, size in zip(index, lead, strict=True)
        ):
            msg = f"q has leading dimensions {tuple(lead)}, got index {index}. Give one index each."
            raise ValueError(msg)
        return QKV(*(_at(x, index, lead, self.enable_gqa) for x in (self.q, self.k, self.v)))


def named(order: int, module: str) -> Callable[..., Call]:
    """A function with the signature of torch's own, which makes its arguments a ``Call``."""

    def call(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Call:
        scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
        return Call(
            order, module, query, key, value, attn_mask, is_causal, scale, dropout_p, enable_gqa
        )

    return call


class Watch(TorchFunctionMode):
    """Hands every attention call that ``model`` makes to ``attend``; calls of others pass by."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            got = type(model).__name__  # type: ignore[unreachable]
            msg = f"model must be a torch.nn.Module, got {got}. Pass the model itself."
            raise TypeError(msg)
        self.model = model
        self.names: dict[int, str] = {id(module): name for name, module in model.named_modules()}
        self.seen = 0

    def attend(self, call: Call, go_on: Callable[[], Tensor]) -> Tensor:
        """What the model gets for its call; ``go_on()`` is what it would get without this watch."""
        raise NotImplementedError

    def weighed(self, arguments: inspect.BoundArguments) -> Any:
        """What a multi-head attention gets that asks for its weights, and calls no attention."""
        raise NotImplementedError

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is ATTENTION:
            return self.through(func, *args, **kwargs)
        if func is MULTIHEAD and self.caller() is not None:
            return self.multihead(*args, **kwargs)
        return func(*args, **kwargs)

    def through(self, attention: Attention, *args: Any, **kwargs: Any) -> Tensor:
        """Let ``attend`` answer one call, if it is the model's."""
        module = self.caller()
        if module is None:
            return attention(*args, **kwargs)
        call = named(self.seen, module)(*args, **kwargs)
        self.seen += 1
        return self.attend(call, lambda: attention(*args, **kwargs))

    def multihead(self, *args: Any, **kwargs: Any) -> Any:
        """Run ``multi_head_attention_forward`` and see the attention inside it."""
        arguments = MULTIHEAD_SIGNATURE.bind(*args, **kwargs)
        if arguments.arguments.get("need_weights", True):
            return self.weighed(arguments)
        with standing_in(self.through):
            return MULTIHEAD(*args, **kwargs)

    def caller(self) -> str | None:
        """The name of the model's innermost module on the stack; None outside the model.

        Read off the stack, because hooks would change which path torch takes.
        """
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            name = self.names.get(id(frame.f_locals.get("self")))
            if name is not None:
                return name
            frame = frame.f_back
        return None


Handler = Callable[..., Tensor]
"""Called with what comes after it, an ``Attention``, and with the arguments of the call."""


class _Handlers(threading.local):
    """Those of one thread, the innermost block's first: torch reaches it before the outer ones."""

    def __init__(self) -> None:
        self.waiting: tuple[Handler, ...] = ()


class _Place:
    """torch's own place for its function: who stands there, and for how many blocks."""

    lock = threading.Lock()
    blocks = 0
    real: Attention = ATTENTION


_handlers = _Handlers()


@contextmanager
def standing_in(handler: Handler) -> Iterator[None]:
    """Let ``handler`` answer what ``multi_head_attention_forward`` asks in this thread."""
    before = _handlers.waiting
    with _Place.lock:
        if _Place.blocks == 0:
            _Place.real = functional.scaled_dot_product_attention
            functional.scaled_dot_product_attention = _stand_in
        _Place.blocks += 1
    _handlers.waiting = (*before, handler)
    try:
        yield
    finally:
        _handlers.waiting = before
        with _Place.lock:
            _Place.blocks -= 1
            if _Place.blocks == 0:
                functional.scaled_dot_product_attention = _Place.real


def _stand_in(*args: Any, **kwargs: Any) -> Tensor:
    return _chained(_handlers.waiting)(*args, **kwargs)


def _chained(handlers: tuple[Handler, ...]) -> Attention:
    if not handlers:
        return _Place.real

    def first(*args: Any, **kwargs: Any) -> Tensor:
        before, _handlers.waiting = _handlers.waiting, ()  # what a handler computes is its own
        try:
            return handlers[0](_chained(handlers[1:]), *args, **kwargs)
        finally:
            _handlers.waiting = before

    return first


def _at(x: Tensor, index: tuple[int, ...], lead: Any, grouped: bool) -> Tensor:
    """The matrix of ``x`` that serves the query matrix at ``index``: broadcast, grouped heads."""
    sizes = (1,) * (len(lead) - x.ndim + 2) + tuple(x.shape[:-2])
    own = [i if size == full else 0 for i, size, full in zip(index, sizes, lead, strict=True)]
    if grouped:
        own[-1] = index[-1] // (lead[-1] // sizes[-1])
    return x.reshape(*sizes, *x.shape[-2:])[tuple(own)]
