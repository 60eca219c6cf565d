"""See the attention of transformers models, whose layers look up by name who computes it.

Such a layer asks an ``AttentionInterface`` for the function of the name in its configuration, and
calls it with queries, keys, values and the mask that was made for that name. For the length of a
block, those who wait in its thread are asked first. The configuration stays as it is: a mask is
the one that the model makes for itself, and a layer that is left, or written out, computes what it
always did.

Two names are read: "eager", which adds its mask and knows no other, and "sdpa", to which a missing
mask means a causal one in layers that are causal. What runs under another name is left alone.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from softlab.capture.places import Place

SINKS = ("s_aux", "sinks")
Result = tuple[Tensor, Tensor | None]
"""Output (b, n, h, e) and weights (b, h, n, l) of a layer, or None."""


def _nothing() -> Result:
    raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Asked:
    """What a layer asks for, in the words of torch's attention; ``reason``: why it is more.

    ``softmax``: it is more and still softmax attention, of capped scores or with a sink.
    ``itself`` computes what the layer's own implementation gives, unseen by any watch.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False
    reason: str = ""
    softmax: bool = False
    itself: Callable[[], Result] = field(default=_nothing)

    def arguments(self) -> dict[str, Any]:
        """Those of torch's attention."""
        own = {"reason", "softmax", "itself"}
        return {name: x for name, x in vars(self).items() if name not in own}


Handler = Callable[[Asked, Callable[[], Result]], Result]
"""Called with what is asked and with what comes after it."""


class _Thread(threading.local):
    """Whether in a thread a layer was seen and now runs."""

    running = False


_thread = _Thread()
_look_up = Place()
"""transformers' own; the handlers of a thread wait, the innermost block's first."""


def running() -> bool:
    """Whether a layer that was seen computes its own attention: whatever it calls is seen too."""
    return _thread.running


@contextmanager
def asked_first(handler: Handler) -> Iterator[None]:
    """Ask ``handler`` in this thread, before those that wait already."""
    # Nothing of transformers can be in a model where nobody has imported it.
    module = sys.modules.get("transformers.modeling_utils")
    interface: Any = getattr(module, "AttentionInterface", None)
    if not hasattr(interface, "get_interface"):
        yield
        return
    with (
        _look_up.taken(interface, "get_interface", _looked_up),
        _look_up.waited((handler, *_look_up.waiting)),
    ):
        yield


def _looked_up(interface: Any, name: str, default: Callable[..., Result]) -> Any:
    """What stands in the place of ``AttentionInterface.get_interface``."""
    own = _look_up.real(interface, name, default)
    if not _look_up.waiting or own is None:
        return own
    return functools.partial(_attend, name, own, own is default)


def _attend(
    name: str,
    own: Callable[..., Result],
    eager: bool,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *rest: Any,
    **more: Any,
) -> Result:
    asked = _read(name, own, eager, module, query, key, value, attention_mask, **more)

    def itself() -> Result:
        before, _thread.running = _thread.running, not asked.reason
        try:
            return own(module, query, key, value, attention_mask, *rest, **more)
        finally:
            _thread.running = before

    asked = replace(asked, itself=itself)
    go_on: Callable[[], Result] = itself
    for handler in reversed(_look_up.waiting):
        go_on = functools.partial(handler, asked, go_on)
    return go_on()


def _read(
    name: str,
    own: Callable[..., Result],
    eager: bool,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **more: Any,
) -> Asked:
    """What a layer asks for, as its implementation understands what it is given."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    reason, softmax = "", False
    if more.get("softcap") is not None:
        reason, softmax = "caps its scores (softcap), which torch's attention cannot", True
    elif any(x is not None for x in (*map(more.get, SINKS), getattr(module, "sinks", None))):
        reason, softmax = "has sinks without values (s_aux), which torch's attention has not", True
    elif more.get("cache") is not None:
        reason = "reads a paged cache, which is not seen"
    elif not eager and own is not sdpa_attention_forward:
        reason = f"runs as {name!r}, which is not seen: call set_attn_implementation('sdpa') first"
    if reason:
        return Asked(query, key, value, reason=reason, softmax=softmax)
    if eager:
        causal, dropout = False, dropout if module.training else 0.0
    else:
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        causal = bool(causal) and mask is None and query.shape[2] > 1
    if mask is not None and (eager or mask.dtype != torch.bool):
        mask = _added(mask, taken(query))
    if position_bias is not None:
        mask, causal = _biased(position_bias, mask, query, key, causal=causal), False
    grouped = key.shape[1] != query.shape[1]
    return Asked(query, key, value, mask, dropout, causal, scaling, grouped)


def read_as_sdpa(module: nn.Module, *given: Any, **more: Any) -> Asked:
    """What a layer asks for that is given what transformers gives under the name "sdpa"."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return _read("sdpa", sdpa_attention_forward, False, module, *given, **more)


def taken(x: Tensor) -> torch.dtype:
    """The dtype in which torch's attention takes an argument: autocast's, where that is on."""
    device = x.device.type
    if not x.is_floating_point() or x.dtype == torch.float64:
        return x.dtype
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return x.dtype
    return torch.get_autocast_dtype(device)


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask that is added to scores of this dtype, as eager attention adds booleans too."""
    if mask.is_floating_point() and mask.dtype != dtype:
        mask = mask.clamp_min(torch.finfo(dtype).min)  # a row of infinities would be NaN
    return mask.to(dtype)


def _biased(
    bias: Tensor, mask: Tensor | None, query: Tensor, key: Tensor, *, causal: bool
) -> Tensor:
    """A learned bias with the mask in it, to be added to the scores."""
    n, l = query.shape[2], key.shape[2]
    if causal:
        mask = torch.ones(n, l, dtype=torch.bool, device=key.device).tril()
    if mask is None:
        return bias
    if mask.dtype == torch.bool:
        return bias.masked_fill(~mask, torch.finfo(bias.dtype).min)
    return bias + mask
