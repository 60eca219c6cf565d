"""Record what reaches the attention of any torch model while it runs.

A ``torch.overrides.TorchFunctionMode`` sees every call of
``torch.nn.functional.scaled_dot_product_attention``, whoever makes it. The model is not touched:
no hook, no wrapper, no changed weight; its output is the same to the last bit.

Decisions, each held by a test:

- ``nn.MultiheadAttention`` calls the function inside ``multi_head_attention_forward``, where torch
  has suspended the mode. The inner call is caught by standing in for it just that long.
- With ``need_weights=True`` that module never calls it. Its projections are then run once more,
  without the attention, to see q, k and v; the model's own call stays as it was, weights included.
- The fused inference path of ``nn.TransformerEncoder`` is left by torch itself under any such
  mode. The output is that of the module's ordinary path to the last bit, and equals the fused one
  to rounding on real tokens; the fused path zeroes padded positions, the ordinary one does not.
- Attention written out as matrix products and a softmax ("eager" in transformers), or in a scripted
  graph, cannot be seen. Seeing nothing at all is an error, never an empty list.
- A model under ``torch.compile`` is recompiled with a break at each call: record before compiling.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from softlab.inputs import QKV

ATTENTION = functional.scaled_dot_product_attention
MULTIHEAD = functional.multi_head_attention_forward


@dataclass(frozen=True, eq=False)
class Call:
    """One call of attention: its arguments, detached copies, as they arrived.

    ``q`` (..., h, n, d), ``k`` (..., g, l, d), ``v`` (..., g, l, e), where g = h, or a divisor of h
    if ``enable_gqa``. ``mask`` is None, boolean (True takes part) or added to the scores. ``scale``
    is the factor that was used, 1 / sqrt(d) where the caller gave none. ``order`` counts the
    model's calls from 0; ``module`` is the qualified name of the innermost submodule that made it,
    "" for the model itself.
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


@contextmanager
def record(model: nn.Module, *, keep: Collection[int] | None = None) -> Iterator[list[Call]]:
    """Record the attention calls of ``model`` made inside the block.

    ``with record(model) as calls: model(x)`` fills ``calls`` in the order of execution. ``keep``
    limits what is stored to these orders (all by default), to spare memory. Calls that other
    models make in the block are not recorded; blocks may be nested, on one model or on several, and
    each records its own. Whatever happens inside, torch and the model end as they were.

    Raises ``TypeError`` if ``model`` is no module, and at the end of the block ``RuntimeError`` if
    no attention was seen, or not at every order in ``keep``. Not thread-safe for
    ``nn.MultiheadAttention``.
    """
    if not isinstance(model, nn.Module):
        got = type(model).__name__  # type: ignore[unreachable]
        msg = f"model must be a torch.nn.Module, got {got}. Pass the model itself."
        raise TypeError(msg)
    recorder = _Recorder(model, keep)
    with recorder:
        yield recorder.calls
    if not recorder.seen or (keep is not None and not set(keep) <= set(range(recorder.seen))):
        wanted = "" if keep is None else f" of which {sorted(keep)} were to be kept,"
        msg = (
            f"saw {recorder.seen} attention calls in {type(model).__name__},{wanted} during this "
            "block. Run the model inside it; make its attention call "
            "torch.nn.functional.scaled_dot_product_attention (in transformers: "
            'attn_implementation="sdpa"); record it before compiling or scripting.'
        )
        raise RuntimeError(msg)


class _Recorder(TorchFunctionMode):
    def __init__(self, model: nn.Module, keep: Collection[int] | None) -> None:
        super().__init__()
        self.names: dict[int, str] = {id(module): name for name, module in model.named_modules()}
        self.keep = keep
        self.seen = 0
        self.calls: list[Call] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is MULTIHEAD:
            return self.multihead(*args, **kwargs)
        if func is ATTENTION:
            self.note(*args, **kwargs)
        return func(*args, **kwargs)

    def multihead(self, *args: Any, **kwargs: Any) -> Any:
        """Let ``multi_head_attention_forward`` run, and see the attention inside it."""
        given = inspect.signature(MULTIHEAD).bind(*args, **kwargs)
        if given.arguments.get("need_weights", True):
            # is_causal is a mere hint on this path: the mask that comes with it is what counts.
            given.arguments |= {"need_weights": False, "is_causal": False}
            # Outer recorders look for themselves; they must not see this rehearsal.
            rehearsal = _standing_in(self.note_and_stop)
            with suppress(_SeenError), torch._C.DisableTorchFunction(), rehearsal:
                MULTIHEAD(*given.args, **given.kwargs)
            return MULTIHEAD(*args, **kwargs)
        inner = functional.scaled_dot_product_attention

        def note_and_go_on(*args: Any, **kwargs: Any) -> Tensor:
            self.note(*args, **kwargs)
            return inner(*args, **kwargs)

        with _standing_in(note_and_go_on):
            return MULTIHEAD(*args, **kwargs)

    def note_and_stop(self, *args: Any, **kwargs: Any) -> NoReturn:
        self.note(*args, **kwargs)
        raise _SeenError

    def note(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> None:
        """Store one call, if it is the model's and wanted. The signature is the function's own."""
        module = self.caller()
        if module is None:
            return
        if self.keep is None or self.seen in self.keep:
            # Copies, because a model may write over its own tensors later.
            q, k, v = (x.detach().clone() for x in (query, key, value))
            mask = None if attn_mask is None else attn_mask.detach().clone()
            scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
            self.calls.append(
                Call(self.seen, module, q, k, v, mask, is_causal, scale, dropout_p, enable_gqa)
            )
        self.seen += 1

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


class _SeenError(Exception):
    """Ends the rehearsal of a multi-head attention once its q, k and v are known."""


@contextmanager
def _standing_in(attention: Callable[..., Tensor]) -> Iterator[None]:
    """Put ``attention`` where ``multi_head_attention_forward`` looks for the real one."""
    before = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = before


def _at(x: Tensor, index: tuple[int, ...], lead: torch.Size, grouped: bool) -> Tensor:
    """The matrix of ``x`` that serves the query matrix at ``index``: broadcast, grouped heads."""
    sizes = (1,) * (len(lead) - x.ndim + 2) + tuple(x.shape[:-2])
    own = [i if size == full else 0 for i, size, full in zip(index, sizes, lead, strict=True)]
    if grouped:
        own[-1] = index[-1] // (lead[-1] // sizes[-1])
    return x.reshape(*sizes, *x.shape[-2:])[tuple(own)]
