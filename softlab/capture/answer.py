"""What an operator, or any callable, makes of a layer's call: all that is asked, or why not.

An operator is called as ``op(q, k, v, key_mask)``; any other callable as ``f(q, k, v, ...)`` with
those of torch's arguments ``attn_mask``, ``dropout_p``, ``is_causal``, ``scale``, ``enable_gqa``,
and of ``key_mask``, that it names. What it does not name is done for it where that is possible:

- grouped key heads are repeated;
- another scale s than 1 / sqrt(d) goes into queries and keys, each times sqrt(s sqrt(d)), so that
  kernels of a distance, too, see the layer's scores. An operator whose own scale or bandwidth was
  given keeps it;
- a mask that hides the same keys from all queries is a ``key_mask``. With a query at every key the
  hidden tokens are padding, and the others run as if there were no such tokens: neither landmarks
  nor positions of queries know of them;
- a causal mask asks for the operator's causal form, whose rows are zero at masked tokens;
- exact softmax attention takes any other mask, too.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from softlab.capture.masks import UnableError, read
from softlab.capture.watch import ATTENTION, Call
from softlab.core import Traits, causal_form
from softlab.kernels import Exponential

TORCH = ("attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


def answer(operator: Callable[..., Tensor], call: Call) -> Tensor:
    """The output (..., h, n, e); raises ``UnableError`` for what cannot be honoured."""
    takes = arguments_of(operator)
    claimed = getattr(operator, "traits", None)
    traits = claimed if isinstance(claimed, Traits) else None
    more: dict[str, Any] = {}
    if call.dropout_p > 0:
        if "dropout_p" not in takes:
            msg = (
                f"it drops weights at random (dropout_p = {call.dropout_p}), and the operator does "
                "not. Put the model into eval mode, or set its attention dropout to 0."
            )
            raise UnableError(msg)
        more["dropout_p"] = call.dropout_p
    if call.enable_gqa:
        if "enable_gqa" in takes:
            more["enable_gqa"] = True
        else:
            call = ungrouped(call)
    if "scale" in takes:
        more["scale"] = call.scale
    elif not _has_own_scale(operator):
        call = at_usual_scale(call)
    if call.is_causal and "is_causal" not in takes and call.q.shape[-2] < call.k.shape[-2]:
        call = _cut(call)
    if "attn_mask" in takes:
        more |= _torch_mask(call, takes)
    else:
        n, l = call.q.shape[-2], call.k.shape[-2]  # noqa: E741
        try:
            found = read(call.mask, call.is_causal, call.q.shape[:-2], n, l)
        except UnableError:
            kernel = _softmax_kernel(operator, traits, call.q.shape[-1])
            if kernel is None:
                raise
            q, k, v, causal = call.q, call.k, call.v, call.is_causal
            return ATTENTION(q, k, v, call.mask, is_causal=causal, scale=kernel.scale)
        if found.causal or n > 1:
            operator, more = _causal(operator, traits, takes, more, wanted=found.causal)
        if found.key_mask is not None:
            if "key_mask" not in takes:
                msg = "it masks keys, and the callable takes neither key_mask nor attn_mask."
                raise UnableError(msg)
            more["key_mask"] = found.key_mask
    out = operator(call.q, call.k, call.v, **more)
    if "key_mask" in more and not more.get("is_causal") and _couples_queries(traits):
        out = _without_padding(operator, call, more.pop("key_mask"), out, more)
    wanted = torch.Size((*call.q.shape[:-1], call.v.shape[-1]))
    if not isinstance(out, Tensor) or out.shape != wanted or out.dtype != call.v.dtype:
        got = f"{tuple(out.shape)}, {out.dtype}" if isinstance(out, Tensor) else type(out).__name__
        msg = f"it must be given {tuple(wanted)}, {call.v.dtype}, and the operator returned {got}."
        raise UnableError(msg)
    return out


def arguments_of(operator: Callable[..., Tensor]) -> frozenset[str]:
    """Which of torch's arguments, and of ``key_mask``, a callable takes."""
    own = type(operator).__call__
    return _read_once(own) if inspect.isfunction(own) else _read(operator)


def _read(function: Callable[..., Tensor]) -> frozenset[str]:
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # a builtin: torch's own
        return frozenset(TORCH)
    if any(x.kind == x.VAR_KEYWORD for x in parameters.values()):
        return frozenset(TORCH)
    return frozenset({*TORCH, "key_mask"} & set(parameters))


_read_once = functools.cache(_read)
"""For what classes define: to read a signature takes as long as to scale the queries."""


def ungrouped(call: Call) -> Call:
    """The call with a key head for each query head."""
    k, v = (x.repeat_interleave(call.q.shape[-3] // x.shape[-3], -3) for x in (call.k, call.v))
    return dataclasses.replace(call, k=k, v=v, enable_gqa=False)


def at_usual_scale(call: Call) -> Call:
    """The call with its scale in q and k, so that scores are <q, k> / sqrt(d)."""
    usual = 1 / math.sqrt(call.q.shape[-1])
    ratio = call.scale / usual
    if abs(ratio - 1) < 1e-6:  # written as d ** -0.5, or through float32
        return call
    if not ratio > 0:
        msg = f"its scale is {call.scale}, and the operator's scores need a positive one."
        raise UnableError(msg)
    q, k = (math.sqrt(ratio) * x for x in (call.q, call.k))
    return dataclasses.replace(call, q=q, k=k, scale=usual)


def heads_of(call: Call, heads: list[int]) -> Call:
    """The call of these heads alone."""
    call = ungrouped(call) if call.enable_gqa else call
    count = call.q.shape[-3] if call.q.ndim > 2 else 0
    if max(heads) >= count:
        msg = f"heads {heads} are asked of a layer that has {count}."
        raise UnableError(msg)
    at = torch.tensor(heads, device=call.q.device)

    def some(x: Tensor) -> Tensor:
        return x.index_select(-3, at) if x.ndim > 2 and x.shape[-3] > 1 else x

    mask = None if call.mask is None else some(call.mask)
    q = call.q.index_select(-3, at)
    return dataclasses.replace(call, q=q, k=some(call.k), v=some(call.v), mask=mask)


def _couples_queries(traits: Traits | None) -> bool:
    """Whether one query, or its position, may change what another one gets."""
    return traits is None or not (traits.query_equivariant or traits.causal)


def _without_padding(
    operator: Callable[..., Tensor], call: Call, keys: Tensor, out: Tensor, more: dict[str, Any]
) -> Tensor:
    """The output ``out`` with the rows of tokens that take part as they are among themselves."""
    lead, (n, l) = call.q.shape[:-2], (call.q.shape[-2], call.k.shape[-2])  # noqa: E741
    if n != l:
        return out
    q, k, v = (x.expand(*lead, *x.shape[-2:]).flatten(0, -3) if lead else x[None]
               for x in (call.q, call.k, call.v))  # fmt: skip
    rows, of_matrix = keys.expand(*lead, l).reshape(-1, l).unique(dim=0, return_inverse=True)
    flat = out.reshape(-1, n, out.shape[-1])
    for i, row in enumerate(rows):
        if not bool(row.all()):
            at, kept = (of_matrix == i).nonzero(), row.nonzero().squeeze(-1)
            alone = operator(*(x[at, kept] for x in (q, k, v)), **more)
            flat = flat.index_put((at, kept), alone)
    return flat.reshape(out.shape)


def _causal(
    operator: Any,
    traits: Traits | None,
    takes: frozenset[str],
    more: dict[str, Any],
    *,
    wanted: bool,
) -> tuple[Any, dict[str, Any]]:
    """The operator, causal if that is wanted and only then, and its arguments."""
    already = traits is not None and traits.causal
    if wanted and "is_causal" in takes:
        return operator, more | {"is_causal": True}
    if wanted == already:
        return operator, more
    if already:
        msg = "it is not causal, and the operator is. Pass the operator with causal=False."
        raise UnableError(msg)
    form = None if traits is None else causal_form(operator)
    if form is None:
        msg = "it is causal, and the operator has no causal form."
        raise UnableError(msg)
    return form, more


def _torch_mask(call: Call, takes: frozenset[str]) -> dict[str, Any]:
    if not call.is_causal:
        return {"attn_mask": call.mask}
    if "is_causal" in takes:
        return {"attn_mask": call.mask, "is_causal": True}
    n, l = call.q.shape[-2], call.k.shape[-2]  # noqa: E741
    return {"attn_mask": torch.ones(n, l, dtype=torch.bool, device=call.q.device).tril()}


def _cut(call: Call) -> Call:
    """Without the keys beyond the last query, which torch's causal mask shows to nobody."""
    n = call.q.shape[-2]
    return dataclasses.replace(call, k=call.k[..., :n, :], v=call.v[..., :n, :])


def _has_own_scale(operator: Any) -> bool:
    target = getattr(operator, "target", None)
    return any(getattr(target, name, None) is not None for name in ("scale", "bandwidth"))


def _softmax_kernel(operator: Any, traits: Traits | None, d: int) -> Exponential | None:
    """The kernel of exact softmax attention, for which every mask has a meaning; None of others."""
    if traits is None:
        return None
    of_width: Callable[[int], Any] | None = getattr(operator, "kernel", None)
    exact = traits.exact and traits.row_stochastic
    kernel = of_width(d) if exact and of_width is not None else None
    return kernel if isinstance(kernel, Exponential) else None
