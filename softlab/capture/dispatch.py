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
  nor positions of queries know of them. Keys of other tokens, as of a cross-attention, say nothing
  of the queries; what is padding among these is what their own self-attention hides;
- a causal mask asks for the operator's causal form, whose rows are zero at masked tokens;
- exact softmax attention takes any other mask, too, and what masks leave nothing of, as the layer
  does: rows of masked tokens, samples without a key;
- any other mask of booleans, as of a sliding window, is honoured query by query, each with the keys
  that it sees, by operators that give a query what they give it alone; a query without keys gets 0;
- queries that are the last of more keys, as of a model that decodes with a cache, get what they
  get in the whole sequence, from the operator's causal form with other queries before them. That
  neither these nor the number of tokens matter is tried, and an operator to which they do is
  refused. So is one that asks where a query stands, where neither the mask nor the calls before
  tell;
- the samples of a ragged batch, a nested tensor, are answered one by one.
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
from torch.nn import functional

from softlab.capture.interception import ATTENTION, Call
from softlab.capture.masks import Reading, UnableError, hiding, read
from softlab.core import Traits, causal_form
from softlab.kernels import Exponential

TORCH = ("attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


def answer(operator: Callable[..., Tensor], call: Call) -> Tensor:
    """The output (..., h, n, e); raises ``UnableError`` for what cannot be honoured."""
    if call.q.is_nested:
        return _ragged(operator, call)
    takes, traits = arguments_of(operator), traits_of(operator)
    call, more = _prepared(operator, call, takes)
    if "attn_mask" in takes:
        more |= _torch_mask(call, takes)
    else:
        call = call if "is_causal" in takes else _cut(call)
        n, l = call.q.shape[-2], call.k.shape[-2]
        exact = _softmax_kernel(operator, traits, call.q.shape[-1])
        if exact is None and traits is not None and n < l:
            of_past = _with_past(operator, call)
            if of_past is not None:
                return of_past
        try:
            found = read(call.mask, call.is_causal, call.q.shape[:-2], n, l)
        except UnableError:
            if exact is not None:
                return _as_the_layer(call, exact)
            if "key_mask" not in takes or not _answers_alone(operator, traits):
                raise
            return _query_by_query(_uncausal(operator), call)
        if n == 1 < l:
            operator = _of_last(operator, traits, l)
        elif found.causal or n > 1:
            operator, more = _causal(operator, traits, takes, more, wanted=found.causal)
        if exact is not None and _leaves_out(found) and _finite(call):
            return _as_the_layer(call, exact)
        if found.key_mask is not None:
            if "key_mask" not in takes:
                msg = "it masks keys, and the callable takes neither key_mask nor attn_mask."
                raise UnableError(msg)
            more["key_mask"] = found.key_mask
    out = operator(call.q, call.k, call.v, **more)
    if not more.get("is_causal") and "attn_mask" not in takes and couples_queries(traits):
        out = _without_padding(operator, call, more.pop("key_mask", None), out, more)
    wanted = torch.Size((*call.q.shape[:-1], call.v.shape[-1]))
    if not isinstance(out, Tensor) or out.shape != wanted or out.dtype != call.v.dtype:
        got = f"{tuple(out.shape)}, {out.dtype}" if isinstance(out, Tensor) else type(out).__name__
        msg = f"it must be given {tuple(wanted)}, {call.v.dtype}, and the operator returned {got}."
        raise UnableError(msg)
    return out


def _prepared(operator: Any, call: Call, takes: frozenset[str]) -> tuple[Call, dict[str, Any]]:
    """The call with all done for the operator that it does not take itself, and what it takes."""
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
    return call, more


def traits_of(operator: Any) -> Traits | None:
    """What an operator of the catalogue claims; None of any other callable."""
    claimed = getattr(operator, "traits", None)
    return claimed if isinstance(claimed, Traits) else None


def couples(operator: Any) -> bool:
    """Whether an operator says that other queries, or positions, may change what a query gets."""
    traits = traits_of(operator)
    return traits is not None and not traits.query_equivariant


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
    if call.q.is_nested:
        msg = "some heads alone are asked of a ragged batch. Substitute all, or pad the batch."
        raise UnableError(msg)
    call = ungrouped(call) if call.enable_gqa else call
    count = call.q.shape[-3] if call.q.ndim > 2 else 0
    if max(heads) >= count:
        msg = f"heads {heads} are asked of a layer that has {count}."
        raise UnableError(msg)
    at = torch.tensor(heads, device=call.q.device)

    def some(x: Tensor) -> Tensor:
        return x.index_select(-3, at) if x.ndim > 2 and x.shape[-3] > 1 else x

    mask = None if call.mask is None else some(call.mask)
    tokens, q = call.tokens, call.q.index_select(-3, at)
    if tokens is not None and tokens.ndim > 1 and tokens.shape[-2] == count:
        tokens = tokens.index_select(-2, at)
    return dataclasses.replace(call, q=q, k=some(call.k), v=some(call.v), mask=mask, tokens=tokens)


def couples_queries(traits: Traits | None) -> bool:
    """Whether one query, or its position, may change what another one gets."""
    return traits is None or not (traits.query_equivariant or traits.causal)


def _without_padding(
    operator: Callable[..., Tensor],
    call: Call,
    keys: Tensor | None,
    out: Tensor,
    more: dict[str, Any],
) -> Tensor:
    """The output ``out`` with the rows of tokens that take part as they are among themselves."""
    lead, (n, l) = call.q.shape[:-2], (call.q.shape[-2], call.k.shape[-2])
    real = keys if call.tokens is None and n == l else call.tokens
    if real is None or bool(real.all()):
        return out
    q, k, v = (
        x.expand(*lead, *x.shape[-2:]).flatten(0, -3) if lead else x[None]
        for x in (call.q, call.k, call.v)
    )
    keys = torch.ones((), dtype=torch.bool, device=real.device) if keys is None else keys
    both = torch.cat((real.expand(*lead, n), keys.expand(*lead, l)), -1)
    rows, of_matrix = both.reshape(-1, n + l).unique(dim=0, return_inverse=True)
    flat = out.reshape(-1, n, out.shape[-1])
    for i, row in enumerate(rows):
        own, kept = row[:n].nonzero().squeeze(-1), row[n:].nonzero().squeeze(-1)
        if 0 < len(own) < n:
            at = (of_matrix == i).nonzero()
            alone = operator(q[at, own], k[at, kept], v[at, kept], **more)
            flat = flat.index_put((at, own), alone)
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
    n, l = call.q.shape[-2], call.k.shape[-2]
    return {"attn_mask": torch.ones(n, l, dtype=torch.bool, device=call.q.device).tril()}


def _cut(call: Call) -> Call:
    """Without the keys after the last query that its mask shows to nobody, as of a static cache."""
    n, l = call.q.shape[-2], call.k.shape[-2]
    if n >= l or (call.mask is None and not call.is_causal):
        return call
    mask = call.mask
    if mask is not None:
        try:
            shown = hiding(mask, call.q.shape[:-2], n, l).flatten(0, -2).any(0)
        except UnableError:
            return call
        if n == 1 or bool(shown[n:].any()):
            return call
        mask = mask[..., :n] if mask.ndim and mask.shape[-1] == l else mask
    return dataclasses.replace(call, k=call.k[..., :n, :], v=call.v[..., :n, :], mask=mask)


def _with_past(operator: Any, call: Call) -> Tensor | None:
    """The output of the last queries of a sequence; None where it is not known that they are.

    Raises ``UnableError`` where the operator's causal form gives a query other numbers when others
    stand before it.
    """
    n, l = call.q.shape[-2], call.k.shape[-2]
    keys: Tensor | None
    if n > 1 and call.mask is not None and not call.is_causal:
        try:
            allowed = hiding(call.mask, call.q.shape[:-2], n, l)
        except UnableError:
            return None
        keys = allowed[..., -1:, :]
        end = int(keys.flatten(0, -2).any(0).nonzero().max()) + 1 if bool(keys.any()) else 0
        causal = torch.ones(n, l, dtype=torch.bool, device=keys.device).tril(end - n)
        if end <= n or not bool((allowed == (causal & keys)).all()):
            return None
    elif n == 1 and call.past is not None and couples(operator):
        end = call.past + 1
        keys = None if call.mask is None else hiding(call.mask, call.q.shape[:-2], n, l)
    else:
        return None
    form = operator if operator.traits.causal else causal_form(operator)
    if form is None:
        return None
    k, v = call.k[..., :end, :], call.v[..., :end, :]
    mask = None if keys is None else keys[..., 0, :end]
    whole = [torch.cat((k[..., : end - n, :].expand(*call.q.shape[:-2], -1, -1), call.q), -2), k, v]
    out: Tensor = form(*whole, mask)[..., -n:, :]
    # The same with other queries before, and with tokens after, which no causal form looks at.
    whole[0] = torch.cat((torch.zeros_like(whole[0][..., :-n, :]), call.q), -2)
    after = [torch.cat((x, x[..., -1:, :]), -2) for x in whole]
    mask = None if mask is None else functional.pad(mask, (0, 1), value=True)
    other = form(*after, mask)[..., -n - 1 : -1, :]
    if not torch.allclose(out, other, rtol=1e-3, atol=1e-3 * float(out.detach().abs().max())):
        msg = (
            f"its {n} queries are the last of {end} keys, as of a model that decodes with a cache, "
            "and what the operator's causal form gives them depends on the queries before, or on "
            "how many tokens there will be. Run the whole sequence at once (in transformers: "
            "use_cache=False)."
        )
        raise UnableError(msg)
    return out


def _of_last(operator: Any, traits: Traits | None, l: int) -> Any:
    """The operator for a lone query, the last of its keys, all of which it may then see."""
    if traits is None:
        return operator
    free = _uncausal(operator) if traits.causal else operator
    if couples(free) or free.traits.causal:
        msg = (
            f"it has one query for {l} keys, as of a model that decodes with a cache, and what the "
            "operator gives to a query depends on the others or on where it stands, which is not "
            "known here. Run the sequence from its first token inside the block, all at once (in "
            "transformers: use_cache=False) where the operator has no causal form, or take one "
            "whose traits say query_equivariant."
        )
        raise UnableError(msg)
    return free


def _answers_alone(operator: Any, traits: Traits | None) -> bool:
    """Whether a query gets what it would get alone: then a causal form exists, of the same rows."""
    if traits is None or (not traits.causal and causal_form(operator) is None):
        return False
    free = _uncausal(operator)
    return not (couples(free) or free.traits.causal)


def _query_by_query(operator: Callable[..., Tensor], call: Call) -> Tensor:
    """The output where each query sees keys of its own; raises ``UnableError`` for a bias."""
    lead, (n, l) = call.q.shape[:-2], (call.q.shape[-2], call.k.shape[-2])
    mask = torch.ones((), dtype=torch.bool, device=call.q.device)
    allowed = hiding(mask if call.mask is None else call.mask, lead, n, l)
    if call.is_causal:
        allowed = allowed & torch.ones(n, l, dtype=torch.bool, device=allowed.device).tril()
    k, v = (x.expand(*lead, *x.shape[-2:]).unsqueeze(-3) for x in (call.k, call.v))
    some = max(1, QUERIES // max(1, lead.numel() * l * (call.q.shape[-1] + call.v.shape[-1])))
    rows = allowed.expand(*allowed.shape[:-2], n, l).split(some, -2)
    parts = []
    for q, keys in zip(call.q.unsqueeze(-2).split(some, -3), rows, strict=True):
        sees = keys.any(-1, keepdim=True)
        k_each, v_each = (x.expand(*lead, q.shape[-3], *x.shape[-2:]) for x in (k, v))
        out = operator(q, k_each, v_each, key_mask=keys | ~sees).squeeze(-2)
        parts.append(out.masked_fill(~sees, 0.0))
    return torch.cat(parts, -2)


QUERIES = 2**24
"""Entries of keys and values that queries may hold at a time, where each sees keys of its own."""


def _uncausal(operator: Any) -> Any:
    """The operator of which this is the causal form."""
    known = dataclasses.is_dataclass(operator)
    names = {field.name for field in dataclasses.fields(operator)} if known else set()
    if "causal" in names:
        return dataclasses.replace(operator, causal=False)
    if "target" in names:
        return dataclasses.replace(operator, target=_uncausal(operator.target))
    return operator


def _leaves_out(found: Reading) -> bool:
    """Whether a mask says more than its reading: rows of hidden tokens, matrices without a key."""
    keys = found.key_mask
    return keys is not None and (found.causal or not bool(keys.any(-1).all()))


def _as_the_layer(call: Call, kernel: Exponential) -> Tensor:
    """Exact softmax attention, which takes any mask."""
    out: Tensor = ATTENTION(
        call.q, call.k, call.v, call.mask, is_causal=call.is_causal, scale=kernel.scale
    )
    return out


def _finite(call: Call) -> bool:
    """Whether torch's attention may be asked: it lets NaN of a hidden key reach its output."""
    return all(bool(x.isfinite().all()) for x in (call.q, call.k, call.v))


def _ragged(operator: Callable[..., Tensor], call: Call) -> Tensor:
    """The output of a nested tensor, sample by sample, as ragged as its queries."""
    q: Any = call.q
    k, v = call.k, call.v
    if q.layout != torch.jagged or q.lengths() is not None or call.mask is not None:
        msg = (
            "its batch is a nested tensor, and of these one of layout torch.jagged, without holes "
            "and without a mask, is taken. Pad the batch, and mask the padding."
        )
        raise UnableError(msg)
    samples = zip(q.unbind(), k.unbind(), v.unbind(), strict=True)
    parts = [answer(operator, dataclasses.replace(call, q=a, k=b, v=c)) for a, b, c in samples]
    out: Tensor = torch.nested.nested_tensor_from_jagged(
        torch.cat(parts, -2), q.offsets(), jagged_dim=q.ndim - 2
    )
    return out


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
