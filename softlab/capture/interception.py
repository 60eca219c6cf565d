"""See every attention call of one model, in one thread, whoever makes it.

A ``torch.overrides.TorchFunctionMode`` sees ``torch.nn.functional.scaled_dot_product_attention``.
``nn.MultiheadAttention`` calls it inside ``multi_head_attention_forward``, where torch has
suspended the mode: there a stand-in is put where that function looks for the real one, for just
that long. It asks the handlers of its own thread alone, so that other threads are served as ever.
The layers of transformers are seen where they look up their attention, ``implementations``.

Attention that is written out is followed from its first product to its last, ``flow``. What may be
attention and is not seen is counted, layer by layer: a softmax of its own, or an exponential and a
product, and whatever torch calls attention by another name.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from softlab.capture.flow import STEPS, Found, Sources, Written, bare, broadcasts, is_weight
from softlab.capture.huggingface import Asked, Result, asked_first, running, taken
from softlab.capture.masks import HIDDEN, UnableError, read
from softlab.capture.places import Place
from softlab.core import transformed
from softlab.inputs import QKV

ATTENTION = functional.scaled_dot_product_attention
MULTIHEAD = functional.multi_head_attention_forward
MULTIHEAD_SIGNATURE = inspect.signature(MULTIHEAD)
SOFTMAXES = {"softmax", "_softmax", "special_softmax"}
EXPONENTIALS = {"exp", "exp_", "exp2", "exp2_"}
PRODUCTS = {"matmul", "__matmul__", "__rmatmul__", "bmm", "baddbmm", "einsum", "mm"}
SUSPECT = SOFTMAXES | EXPONENTIALS | PRODUCTS
"""Names of torch's functions, as a mode sees them, of which written-out attention is made."""

PAIR = ("query", "key")

Attention = Callable[..., Tensor]
"""What is called as torch's function is."""


@dataclass(frozen=True, eq=False)
class Call:
    """One call of attention: its arguments as torch's attention takes them.

    They are as they arrived, but that autocast has made them of one dtype where it is on.

    ``q`` (..., h, n, d), ``k`` (..., g, l, d), ``v`` (..., g, l, e), where g = h, or a divisor of h
    if ``enable_gqa``. ``mask`` is None, boolean (True takes part) or added to the scores. ``scale``
    is the factor that was used, 1 / sqrt(d) where the caller gave none. ``order`` counts the
    model's calls from 0; ``module`` is the qualified name of the innermost submodule that made it,
    "" for the model itself. ``out`` is what it got, where that was recorded: not of a multi-head
    attention that asks for its weights. ``tokens``, boolean, broadcastable to (..., n): the queries
    that are no padding, where that is known and is not what the mask says of as many keys.
    ``past``: how many keys were there before the first query, where that is known of a layer that
    decodes with a cache.
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
    tokens: Tensor | None = None
    past: int | None = None

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
        scale = 1 / math.sqrt(query.size(-1)) if scale is None else scale
        q, k, v = (x.to(taken(x)) for x in (query, key, value))
        mask = None if attn_mask is None else attn_mask.to(taken(attn_mask))
        return Call(order, module, q, k, v, mask, is_causal, scale, dropout_p, enable_gqa)

    return call


LATE = tuple(map(int, torch.__version__.split(".")[:2])) > (2, 8)
"""Whether torch can import its compiler inside a mode: 2.8 fails an assertion there, and checks of
inputs, recomputation and others import it at their first use."""


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
        self.unseen: dict[str, int] = {}
        self.reasons: dict[str, str] = {}
        self.tokens: Tensor | None = None
        self.flow = Written()
        self.sources: Sources | None = None
        self.packed: dict[str, int] = {}
        self.multiheaded = False
        self.padded: list[tuple[frozenset[int], Tensor]] = []
        self.written_out = False
        self._same: dict[tuple[str, bool, bool], float] = {}
        self._weighing: set[str] = set()
        self._stack = ExitStack()

    def __enter__(self) -> Any:
        if not LATE:
            importlib.import_module("torch._dynamo")
        self._stack.enter_context(asked_first(self.interface))
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        self._stack.close()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

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
        if running():
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "").partition(".")[0]  # of torch.ops: with an overload
        if func is ATTENTION or name == ATTENTION.__name__:
            return self.through(func, *args, **kwargs)
        if func is MULTIHEAD and self.caller() is not None:
            return self.multihead(*args, **kwargs)
        if torch.compiler.is_compiling():  # in a graph nothing that is written out is followed
            if name in SUSPECT:
                self._suspect(name, args, kwargs)
            return func(*args, **kwargs)
        ends = bare(name) in PRODUCTS and self.flow.weights(name, args) is not None
        if (name in SUSPECT or "attention" in name) and not ends:
            self._suspect(name, args, kwargs)
        if torch._C._are_functorch_transforms_active():
            return func(*args, **kwargs)
        out = self._written(func, name, args, kwargs)
        if self.sources is not None:
            with torch._C.DisableTorchFunction():
                self.sources.follow(name, args, kwargs, out)
        return out

    def _written(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run a step of what may be attention written out, and let its end be answered."""
        if bare(name) not in STEPS:
            out = func(*args, **kwargs)
            in_place = name.endswith("_") and not name.endswith("__")
            if args and (in_place or name == "__setitem__" or name.startswith("__i")):
                self.flow.forget(args[0])
            return out
        weights = self.flow.weights(name, args) if bare(name) in PRODUCTS else None
        if weights is not None and (module := self.caller()) is not None:
            with torch._C.DisableTorchFunction():
                found = self.flow.ended(name, args, kwargs)
            if found is not None:
                return self._ended(found, module, lambda: func(*args, **kwargs))
            self.reasons[module] = "takes the weights of its softmax to more than their values"
            count(self.unseen, module)
        gated = bare(name) in PRODUCTS and self.flow.gates(name, args)
        if gated and (module := self.caller()) is not None:
            self.reasons[module] = "weighs values by scores that went through no softmax"
            count(self.unseen, module)
        out = func(*args, **kwargs)
        module = self.caller() if bare(name) == "softmax" else ""
        with torch._C.DisableTorchFunction():  # what is noted here is no step of the model
            if module is None:
                self.flow.forget(out)
            else:
                self.flow.follow(name, args, kwargs, out, module)
        return out

    def _ended(self, found: Found, module: str, product: Callable[[], Tensor]) -> Tensor:
        """Let ``attend`` answer attention that is written out, where it is what it looks like."""
        with torch._C.DisableTorchFunction():
            call = named(self.seen, module)(**found.arguments())
        kept: list[tuple[Tensor, Tensor]] = []

        def own() -> Tensor:
            out = product()
            kept.append((out, found.usual(out)))
            return kept[-1][1]

        if self.differs(call, lambda: found.usual(product())):
            return product()
        self._weighing.discard(module)
        taken_by = found.scores.softmax or ""
        self.unseen[taken_by] = self.unseen.get(taken_by, 1) - 1
        if self.unseen[taken_by] < 1:
            self.unseen.pop(taken_by)
        self.seen += 1
        self.written_out = True
        try:
            out = self.attend(self.with_tokens(call, call.q, call.k), own)
        finally:
            self.written_out = False
        for whole, seen in kept:
            if out is seen:
                return whole
        return found.wanted(out)

    def differs(self, call: Call, own: Callable[[], Tensor]) -> bool:
        """Whether a layer, at its first call of a kind, computes other than torch's attention.

        Then there is more to it than what was seen, and it is not seen at all.
        """
        kind = (call.module, call.mask is None, call.q.shape[-2] == 1)
        values = not (call.q.is_meta or isinstance(call.q, FakeTensor) or transformed())
        if kind not in self._same and call.dropout_p == 0 and values:
            with torch.no_grad(), torch._C.DisableTorchFunction():
                self._same[kind] = _apart(call, own())
        change = self._same.get(kind, 0.0)
        if change <= _rounding(call.q.dtype):
            return False
        self.reasons[call.module] = (
            "computes other numbers than torch's attention of its q, k, v and mask (relative "
            f"change {change:.1e}), so that it reads more than was seen"
        )
        return True

    def _suspect(self, name: str, args: Any, kwargs: dict[str, Any]) -> None:
        """Count what may be attention that is not seen."""
        given = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        given += [x for x in args[1:2] if isinstance(x, list | tuple) for x in x]  # of einsum
        if name in PRODUCTS and (not self._weighing or any(is_weight(x) for x in given)):
            return
        module = None if name == MULTIHEAD.__name__ else self.caller()
        if module is None:
            return
        if name in SOFTMAXES and given and given[0].ndim > 2:
            count(self.unseen, module)
        elif name in SOFTMAXES or name in EXPONENTIALS:
            if given and given[0].ndim > 1 and not is_weight(given[0]):
                self._weighing.add(module)
        elif name not in PRODUCTS:
            self.reasons[module] = f"calls {name}"
            count(self.unseen, module)
        elif module in self._weighing:
            self.reasons.setdefault(module, "takes exponentials, and a product of its own")
            count(self.unseen, module)
            self._weighing.discard(module)

    def through(self, attention: Attention, *args: Any, **kwargs: Any) -> Tensor:
        """Let ``attend`` answer one call, if it is the model's."""
        module = None if running() else self.caller()
        if module is None:
            return attention(*args, **kwargs)
        call = named(self.seen, module)(*args, **kwargs)
        self.seen += 1
        query, key = (args[i] if len(args) > i else kwargs[name] for i, name in enumerate(PAIR))
        call = self.with_tokens(call, query, key)
        return self.attend(call, lambda: attention(*args, **kwargs))

    def with_tokens(self, call: Call, query: Tensor, key: Tensor) -> Call:
        """The call with what is known of its queries."""
        tokens = self.tokens
        if self.sources is not None and not call.q.is_nested and not self.multiheaded:
            made, of = self.sources.of(query), self.sources.of(key)
            if made and of:
                if made & of:
                    self.pad(made, call)
                    n, l = call.q.shape[-2], call.k.shape[-2]
                    if n > l and n % l == 0:
                        self.packed[call.module] = n // l
                else:
                    tokens = self.padding_of(made, call.q.shape[:-1])
        return call if tokens is None else dataclasses.replace(call, tokens=tokens)

    def pad(self, made: frozenset[int], call: Call) -> None:
        """Note which of its tokens a self-attention hides."""
        n, l = call.q.shape[-2], call.k.shape[-2]
        with suppress(UnableError):
            keys = read(call.mask, call.is_causal, call.q.shape[:-2], n, l).key_mask
            if keys is not None and n == l:
                self.padded = [*self.padded[-63:], (made, keys)]

    def padding_of(self, made: frozenset[int], shape: torch.Size) -> Tensor:
        """Which of these queries are tokens, as a self-attention of the same stream has said."""
        for of, keys in reversed(self.padded):
            if of & made and broadcasts(keys.shape, shape):
                return keys
        return torch.ones(1, dtype=torch.bool)

    def interface(self, asked: Asked, go_on: Callable[[], Result]) -> Result:
        """Let ``attend`` answer what a layer of transformers asks for, if it is the model's."""
        module = self.caller()
        if module is None:
            return go_on()
        if asked.reason:
            return self.unread(module, asked, go_on)
        call = named(self.seen, module)(**asked.arguments())
        kept: list[tuple[Result, Tensor]] = []

        def own() -> Tensor:
            found = go_on()
            kept.append((found, found[0].transpose(1, 2)))
            return kept[-1][1]

        if self.differs(call, lambda: asked.itself()[0].transpose(1, 2)):
            asked = dataclasses.replace(asked, reason=self.reasons.pop(module))
            return self.unread(module, asked, go_on)
        self.seen += 1
        out = self.attend(self.with_tokens(call, asked.query, asked.key), own)
        for found, seen in kept:
            if out is seen:
                return found
        return out.transpose(1, 2).contiguous(), None

    def unread(self, module: str, asked: Asked, go_on: Callable[[], Result]) -> Result:
        """Let a layer of transformers be that asks for more than torch's attention."""
        seen, counted = self.seen, self.unseen.get(module, 0)
        found = go_on()
        if self.seen == seen:  # nothing inside it called torch's attention
            self.reasons[module] = asked.reason
            self.unseen[module] = counted + 1
        return found

    def suspects(self) -> str:
        """A sentence about what was not seen; empty if there is nothing."""
        plain = [name for name in self.unseen if name not in self.reasons]
        other = [name for name in self.unseen if name in self.reasons]
        told = ""
        if plain:
            listed = ", ".join(f"{name!r} ({_times(self.unseen[name])})" for name in plain)
            told += (
                f" These took a softmax of their own, which may be attention written out: {listed}."
            )
        for name in other:
            told += f" Not seen: {name!r} {self.reasons[name]} ({_times(self.unseen[name])})."
        return told

    def multihead(self, *args: Any, **kwargs: Any) -> Any:
        """Run ``multi_head_attention_forward`` and see the attention inside it."""
        arguments = MULTIHEAD_SIGNATURE.bind(*args, **kwargs)
        self.multiheaded, self.tokens = True, self._queries(arguments.arguments)
        try:
            if arguments.arguments.get("need_weights", True):
                return self.weighed(arguments)
            with standing_in(self.through):
                return MULTIHEAD(*args, **kwargs)
        finally:
            self.multiheaded, self.tokens = False, None

    def _queries(self, given: dict[str, Any]) -> Tensor | None:
        """Which queries of a multi-head attention are tokens, where its mask does not say."""
        query, key, padded = given["query"], given["key"], given.get("key_padding_mask")
        made = frozenset() if self.sources is None else self.sources.known(query)
        if query is key or (query.shape == key.shape and torch.equal(query, key)):
            if padded is None:
                return None
            real: Tensor = ~padded if padded.dtype == torch.bool else padded == 0
            real = real.unsqueeze(-2) if real.ndim > 1 else real
            self.padded = [*self.padded[-63:], (made, real)]
            return real
        shape = (
            torch.Size((query.shape[1], 1, query.shape[0])) if query.ndim > 2 else query.shape[:1]
        )
        return self.padding_of(made, shape)

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


def count(counts: dict[str, int], name: str) -> None:
    """One more of that name."""
    counts[name] = counts.get(name, 0) + 1


def _times(number: int) -> str:
    return f"{number} time{'s' if number > 1 else ''}"


def _apart(call: Call, own: Tensor) -> float:
    """|own - attention| / |attention| over the rows that see a key and are finite."""
    out: Tensor = ATTENTION(
        call.q, call.k, call.v, call.mask, 0.0, call.is_causal,
        scale=call.scale, enable_gqa=call.enable_gqa,
    )  # fmt: skip
    if own.shape != out.shape:
        return math.inf
    rows = out.isfinite().all(-1) & own.isfinite().all(-1)
    if call.mask is not None:
        shown = call.mask if call.mask.dtype == torch.bool else call.mask > HIDDEN
        rows = rows & (shown.any(-1) if shown.ndim else shown)
    size = out.double()[rows].norm()
    moved = float((own.double() - out.double())[rows].norm())
    return moved / float(size) if moved else 0.0


def _rounding(dtype: torch.dtype) -> float:
    """What two ways to compute a softmax in this precision may differ by; models take theirs in
    float32 whatever their own is.
    """
    return max(1e-4, 8 * torch.finfo(dtype).eps)


Handler = Callable[..., Tensor]
"""Called with what comes after it, an ``Attention``, and with the arguments of the call."""


_attention = Place(ATTENTION)
"""torch's own; the handlers of a thread wait, the innermost block's first: torch reaches it before
the outer ones."""


@contextmanager
def standing_in(handler: Handler) -> Iterator[None]:
    """Let ``handler`` answer what ``multi_head_attention_forward`` asks in this thread."""
    with (
        _attention.taken(functional, "scaled_dot_product_attention", _stand_in),
        _attention.waited((*_attention.waiting, handler)),
    ):
        yield


def _stand_in(*args: Any, **kwargs: Any) -> Tensor:
    return _chained(_attention.waiting)(*args, **kwargs)


def _chained(handlers: tuple[Handler, ...]) -> Attention:
    if not handlers:
        own: Attention = _attention.real
        return own

    def first(*args: Any, **kwargs: Any) -> Tensor:
        with _attention.waited(()):  # what a handler computes is its own
            return handlers[0](_chained(handlers[1:]), *args, **kwargs)

    return first


_backward = Place()
"""What runs a backward pass; the modes that it is to run with wait, the innermost first."""


@contextmanager
def kept_on(mode: TorchFunctionMode) -> Iterator[None]:
    """Let a backward pass of this thread run with ``mode``, which torch suspends to begin it."""
    with (
        _backward.taken(torch.autograd, "_engine_run_backward", _run_backward),
        _backward.waited((*_backward.waiting, mode)),
    ):
        yield


def _run_backward(*args: Any, **kwargs: Any) -> Any:
    # A pass inside this one keeps them on itself.
    with _backward.waited(()) as modes, ExitStack() as on:
        for mode in reversed(modes):
            TorchFunctionMode.__enter__(mode)
            on.callback(TorchFunctionMode.__exit__, mode, None, None, None)
        return _backward.real(*args, **kwargs)


def _at(x: Tensor, index: tuple[int, ...], lead: Any, grouped: bool) -> Tensor:
    """The matrix of ``x`` that serves the query matrix at ``index``: broadcast, grouped heads."""
    sizes = (1,) * (len(lead) - x.ndim + 2) + tuple(x.shape[:-2])
    own = [i if size == full else 0 for i, size, full in zip(index, sizes, lead, strict=True)]
    if grouped:
        own[-1] = index[-1] // (lead[-1] // sizes[-1])
    return x.reshape(*sizes, *x.shape[-2:])[tuple(own)]
