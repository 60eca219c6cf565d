"""Let a transformers model call torch's attention for the length of a block.

transformers looks up by name, in the model's configuration, which function computes attention and
which makes its masks. Every name but "sdpa" hides the attention from a watch. An implementation
"softlab" is registered in both of its interfaces, or padded batches would be silently wrong: it is
transformers' own "sdpa" but that it refuses what that one leaves out in silence.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

NAME = "softlab"
LEFT_OUT = {"softcap": "caps its scores", "s_aux": "has sinks without values"}
_lock = threading.Lock()
_set: dict[int, tuple[int, str | None]] = {}
"""By configuration: how many blocks have set it, and to what it is to be set back."""


@contextmanager
def seen_by_softlab(model: nn.Module) -> Iterator[None]:
    """Set the transformers models in ``model`` to "softlab", but those that are set to "sdpa"."""
    # Nothing of transformers can be in a model where nobody has imported it.
    found = _configurations(model) if "transformers" in sys.modules else []
    hidden = [config for config in found if config._attn_implementation != "sdpa"]
    if hidden:
        _register()
    with _lock:
        for config in hidden:
            blocks, before = _set.get(id(config), (0, config._attn_implementation))
            _set[id(config)] = blocks + 1, before
            config._attn_implementation_internal = NAME
    try:
        yield
    finally:
        with _lock:
            for config in hidden:
                blocks, before = _set.pop(id(config))
                if blocks > 1:
                    _set[id(config)] = blocks - 1, before
                else:
                    config._attn_implementation_internal = before


def _configurations(model: nn.Module) -> list[Any]:
    """The configurations that name an implementation, each once, with those inside them."""
    found: dict[int, Any] = {}
    waiting = [getattr(module, "config", None) for module in model.modules()]
    while waiting:
        config = waiting.pop()
        if hasattr(config, "_attn_implementation_internal") and id(config) not in found:
            found[id(config)] = config
            waiting += [getattr(config, name, None) for name in getattr(config, "sub_configs", {})]
    return [*found.values()]


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **more: Any,
) -> tuple[Tensor, None]:
    """What transformers calls "sdpa", refusing a softcap and sinks, which it does not compute."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    for name, what in LEFT_OUT.items():
        if more.get(name) is not None:
            msg = f"{type(module).__name__} {what} ({name}), which torch's attention does not do."
            raise ValueError(msg)
    out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **more)
    return out, None
