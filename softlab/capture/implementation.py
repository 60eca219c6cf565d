"""An operator under a name of transformers: ``attn_implementation="softlab"``."""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from softlab.capture.dispatch import answer, heads_of
from softlab.capture.huggingface import Result, read_as_sdpa
from softlab.capture.interception import named
from softlab.capture.substitution import SubstitutionError
from softlab.validation import is_integer

Attend = Callable[..., Tensor]
Part = tuple[Attend, Collection[int] | None]
Parts = Sequence[Part]
"""Operators and the heads that each of them answers, None for all."""


def register(
    operator: Attend | Mapping[int, Attend] | Mapping[str, Attend | Parts], name: str = "softlab"
) -> None:
    """Make an operator an implementation of transformers' attention, known by ``name``.

    ``AutoModel.from_pretrained(..., attn_implementation="softlab")`` and
    ``model.set_attn_implementation("softlab")`` then compute every layer's attention by it. A later
    call with the same name replaces it. What a layer asks is honoured or refused as by
    ``substitute``, which also compares each layer with its own attention, and leaves the
    configuration alone: prefer it where the name need not outlive a block.

    Args:
        operator: of the catalogue or any callable, as of ``substitute``; or a plan, which gives
            operators to some layers, by their ``layer_idx`` or by their qualified name in the
            model, there also as pairs of an operator and the heads that it answers. The other
            layers and heads compute their own, as ``"sdpa"`` does. A ``plan.json`` is registered by
            ``softlab.tuning.load("plan.json").register()``.
        name: letters, digits, "-" and "_"; none that transformers has itself.

    Raises:
        ImportError: transformers is not installed.
        TypeError: ``operator`` is no callable and no mapping of layers to such.
        ValueError: ``name`` cannot be a name of an implementation.
        SubstitutionError: (when the model runs) a layer asks for what its operator cannot honour,
            or its code looks at the name, so that under another name it is another model; or the
            model has not the layers that a plan names.
    """
    chosen = _Chosen(operator)
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
    from transformers.modeling_utils import AttentionInterface

    own = {*AttentionInterface._global_mapping} - _ours
    if not re.fullmatch(r"[\w-]+", name) or name in own | {"eager"}:
        msg = f"name is {name!r}; take letters that transformers has no implementation for."
        raise ValueError(msg)
    _ours.add(name)
    AttentionInterface.register(name, functools.partial(_attend, name, chosen))
    AttentionMaskInterface.register(name, sdpa_mask)


_ours: set[str] = set()


class _Chosen:
    """Which operators answer a layer: one for all, or those that a plan names."""

    def __init__(self, operator: Any) -> None:
        self.of_all: Parts = ()
        self.by_layer: dict[int | str, Parts] = {}
        if isinstance(operator, Mapping):
            self.by_layer = {layer: _parts(given) for layer, given in operator.items()}
        else:
            self.of_all = _parts(operator)
        kinds = {type(layer) for layer in self.by_layer}
        given = [pair for parts in (self.of_all, *self.by_layer.values()) for pair in parts]
        if not given or len(kinds) > 1 or not kinds <= {int, str} or not all(map(_is_part, given)):
            msg = (
                f"operator is {operator!r}; give an instance such as TopK(k=8), or a plan, "
                "{0: ...} or {'encoder.layer.0.attention.self': ...}. A plan of softlab.tuning has "
                "a method register() of its own."
            )
            raise TypeError(msg)
        self.named = kinds == {str}
        self.found: WeakKeyDictionary[nn.Module, str | None] = WeakKeyDictionary()

    def layer(self, module: nn.Module) -> tuple[str, Parts]:
        """What to call the layer, and who answers it."""
        if self.named:
            if module not in self.found:
                self.found |= _names(module, [*map(str, self.by_layer)])
            known = self.found[module]
            parts = () if known is None else self.by_layer.get(known, ())
            return f"layer {known or type(module).__name__!r}", parts
        if self.by_layer and module not in self.found:
            self.found |= _numbered(module, [*map(int, self.by_layer)])
        index = getattr(module, "layer_idx", None)
        parts = self.of_all if index is None else self.by_layer.get(index, self.of_all)
        return f"layer {index} ({type(module).__name__})", parts


def _parts(given: Any) -> Parts:
    return given if isinstance(given, Sequence) else [(given, None)]


def _is_part(given: Any) -> bool:
    """Whether it is an operator and the heads that it answers."""
    if not isinstance(given, tuple) or len(given) != 2:
        return False
    operator, heads = given
    of_heads = heads is None or (bool(heads) and all(map(is_integer, heads)))
    return callable(operator) and not isinstance(operator, type) and of_heads


def _names(module: nn.Module, wanted: Iterable[str]) -> dict[nn.Module, str | None]:
    """The names by which a plan knows the modules of the running model; None of what it cannot.

    A plan names layers of the outermost module that runs and holds ``module``, or, where that is a
    wrapper, of the one part of it that has all of them.
    """
    model = _outermost(module)
    holders = [x for x in model.modules() if all(_has(x, name) for name in wanted)]
    holders = [model] if model in holders else holders
    if len(holders) != 1:
        missed = next((name for name in wanted if not _has(model, name)), "")
        count = f"{len(holders)} parts" if holders else "no part"
        msg = (
            f"the plan names a layer {missed!r}, which {type(model).__name__} has not, and {count} "
            "of it would fit. Run the model that the plan was made for."
        )
        raise SubstitutionError(msg)
    known = {x: name for name, x in holders[0].named_modules()}
    return {x: known.get(x) for x in model.modules()}


def _numbered(module: nn.Module, wanted: Iterable[int]) -> dict[nn.Module, None]:
    """The modules of the running model, all of whose layers that a plan wants have a number."""
    model = _outermost(module)
    found = [getattr(x, "layer_idx", None) for x in model.modules()]
    there = {index for index in found if index is not None}
    if missed := sorted({*wanted} - there):
        has = f"has {', '.join(map(str, sorted(there)))}" if there else "numbers none of its layers"
        msg = (
            f"the plan names layer {missed[0]}, and {type(model).__name__} {has}. Name layers that "
            "are there, by number or by the name of the module."
        )
        raise SubstitutionError(msg)
    return dict.fromkeys(model.modules())


def _outermost(module: nn.Module) -> nn.Module:
    """Of the modules that run and hold this one."""
    return next(x for x in reversed([module, *_running()]) if _holds(x, module))


def _running() -> Iterator[nn.Module]:
    """The modules on the stack, the innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if isinstance(found := frame.f_locals.get("self"), nn.Module):
            yield found
        frame = frame.f_back


def _holds(model: nn.Module, module: nn.Module) -> bool:
    return any(x is module for x in model.modules())


def _has(model: nn.Module, name: str) -> bool:
    try:
        model.get_submodule(name)
    except AttributeError:
        return False
    return True


def _attend(
    name: str,
    chosen: _Chosen,
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
    layer, parts = chosen.layer(module)
    if (why := _looks(sys.modules[type(module).__module__].__name__)) is not None:
        msg = f"{layer} cannot run under attn_implementation={name!r}: {why}"
        raise SubstitutionError(msg)
    out: Tensor | None = None
    if not parts or any(heads is not None for _, heads in parts):
        given, weights = own(module, query, key, value, attention_mask, *rest, **more)
        if not parts:
            return given, weights
        out = given.transpose(1, 2)
    read = read_as_sdpa(module, query, key, value, attention_mask, **more)
    for operator, heads in parts:
        if read.reason:
            msg = f"{layer} cannot be given {operator!r}: it {read.reason}."
            raise SubstitutionError(msg)
        call = named(0, layer)(**read.arguments())
        try:
            if heads is None or out is None:
                out = answer(operator, call)
                continue
            found = answer(operator, heads_of(call, [*heads]))
        except (ValueError, TypeError) as error:
            msg = f"{layer} cannot be given {operator!r}: {error}"
            raise SubstitutionError(msg) from error
        out = out.index_copy(1, torch.tensor([*heads], device=out.device), found)
    assert out is not None
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
