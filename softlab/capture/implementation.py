"""An operator under a name of transformers: ``attn_implementation="softlab"``."""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from softlab.capture.dispatch import answer
from softlab.capture.huggingface import Result, read_as_sdpa
from softlab.capture.interception import named
from softlab.capture.substitution import SubstitutionError

Attend = Callable[..., Tensor]


def register(operator: Attend | Mapping[int, Attend], name: str = "softlab") -> None:
    """Make an operator an implementation of transformers' attention, known by ``name``.

    ``AutoModel.from_pretrained(..., attn_implementation="softlab")`` and
    ``model.set_attn_implementation("softlab")`` then compute every layer's attention by it. A later
    call with the same name replaces it. What a layer asks is honoured or refused as by
    ``substitute``, which also compares each layer with its own attention, and leaves the
    configuration alone: prefer it where the name need not outlive a block.

    Args:
        operator: of the catalogue or any callable, as of ``substitute``; or a plan, which gives
            operators to some layers by their ``layer_idx``. The others compute their own, as
            ``"sdpa"`` does.
        name: letters, digits, "-" and "_"; none that transformers has itself.

    Raises:
        ImportError: transformers is not installed.
        TypeError: ``operator`` is no callable and no mapping of integers to callables.
        ValueError: ``name`` cannot be a name of an implementation.
        SubstitutionError: (when the model runs) a layer asks for what its operator cannot honour,
            or its code looks at the name, so that under another name it is another model.
    """
    plan = operator if isinstance(operator, Mapping) else None
    chosen = [operator] if plan is None else [*plan.values()]
    keys = [] if plan is None else [*plan]
    if not all(callable(x) and not isinstance(x, type) for x in chosen) or not all(
        isinstance(x, int) and not isinstance(x, bool) for x in keys
    ):
        msg = f"operator is {operator!r}; give an instance such as TopK(k=8), or a plan {{0: ...}}."
        raise TypeError(msg)
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
    from transformers.modeling_utils import AttentionInterface

    own = {*AttentionInterface._global_mapping} - _ours
    if not re.fullmatch(r"[\w-]+", name) or name in own | {"eager"}:
        msg = f"name is {name!r}; take letters that transformers has no implementation for."
        raise ValueError(msg)
    _ours.add(name)
    AttentionInterface.register(name, functools.partial(_attend, name, operator))
    AttentionMaskInterface.register(name, sdpa_mask)


_ours: set[str] = set()


def _attend(
    name: str,
    operator: Attend | Mapping[int, Attend],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *rest: Any,
    **more: Any,
) -> Result:
    from transformers.integrations import sdpa_attention

    own: Callable[..., Result] = sdpa_attention.sdpa_attention_forward
    index = getattr(module, "layer_idx", None)
    asked = operator.get(index) if isinstance(operator, Mapping) else operator  # type: ignore[arg-type]
    layer = f"layer {index} ({type(module).__name__})"
    if (why := _looks(sys.modules[type(module).__module__].__name__)) is not None:
        msg = f"{layer} cannot run under attn_implementation={name!r}: {why}"
        raise SubstitutionError(msg)
    if asked is None:
        return own(module, query, key, value, attention_mask, *rest, **more)
    read = read_as_sdpa(module, query, key, value, attention_mask, **more)
    if read.reason:
        msg = f"{layer} cannot be given {asked!r}: it {read.reason}."
        raise SubstitutionError(msg)
    try:
        out = answer(asked, named(0, layer)(**read.arguments()))
    except (ValueError, TypeError) as error:
        msg = f"{layer} cannot be given {asked!r}: {error}"
        raise SubstitutionError(msg) from error
    return out.transpose(1, 2).contiguous(), None


@functools.cache
def _looks(module: str) -> str | None:
    """Why a model's code is another under another name of the implementation; None if it is not."""
    code = inspect.getsource(sys.modules[module])
    classes = vars(sys.modules[module]).values()
    if any(getattr(x, "_supports_sdpa", True) is False for x in classes if _defined(x, module)):
        return (
            "transformers does not run this model as 'sdpa', whose masks the operator reads. Use "
            "`with softlab.capture.substitute(model, operator):`."
        )
    if re.search(r"_attn_implementation\s*(?:==|!=|in\b|not in\b)[^\n]*\bsdpa\b", code):
        return (
            "its code compares the name, and does something else under one that it does not know. "
            "Use `with softlab.capture.substitute(model, operator):`, which keeps the name."
        )
    return None


def _defined(x: Any, module: str) -> bool:
    return isinstance(x, type) and x.__module__ == module
