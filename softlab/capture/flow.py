"""How the tensors of a running model were made, as far as that tells its attention.

``Written`` knows attention that is written out: a product of queries and keys, scaled, biased and
masked, a softmax over the keys, and a product with the values. Any other step in between ends what
is known. ``Sources`` knows what was projected to queries and to keys, which tells self-attention
from attention to other tokens where both are as many.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from softlab.capture.huggingface import taken
from softlab.capture.masks import HIDDEN

PRODUCTS = {"matmul", "rmatmul", "bmm", "baddbmm", "einsum"}
BARE = {
    **{"iadd": "add", "radd": "add", "isub": "sub", "subtract": "sub", "imul": "mul"},
    **{"rmul": "mul", "multiply": "mul", "itruediv": "div", "truediv": "div", "divide": "div"},
    **{"special_softmax": "softmax", "rmatmul": "matmul", "true_divide": "div"},
}
SAME = {
    *("to", "float", "half", "bfloat16", "double", "type", "type_as", "contiguous", "clone"),
    *("view", "reshape", "unflatten", "flatten", "view_as", "reshape_as", "unsqueeze", "squeeze"),
}
"""Steps that keep the numbers, and may change the shape before the last two axes."""
GATES = {
    *("sigmoid", "hardsigmoid", "logsigmoid", "relu", "relu6", "leaky_relu", "elu", "celu", "selu"),
    *("silu", "gelu", "mish", "softplus", "softsign", "hardswish", "tanh", "square"),
}
"""What may stand where a softmax does."""
KEPT = {"mul", "div", "masked_fill", "where", "dropout", *SAME, *GATES}
"""Steps after which weights are still weights."""


@functools.cache
def bare(name: str) -> str:
    """A function's name without what marks it as in place, reflected or an operator."""
    name = name.strip("_")
    return BARE.get(name, name)


def is_weight(x: Any) -> bool:
    """Whether it is one of a model's own weights, or a view of one."""
    return isinstance(x, nn.Parameter) or (
        isinstance(x, Tensor) and x._is_view() and isinstance(x._base, nn.Parameter)
    )


@dataclass(frozen=True, eq=False)
class Scores:
    """``scale q k^T + bias``, (..., n, l); ``softmax``: the module that took theirs, once it has.

    ``q`` (..., n, d) and ``k`` (..., l, d) have the leading axes of the scores.
    """

    q: Tensor
    k: Tensor
    scale: float = 1.0
    bias: Tensor | None = None
    softmax: str | None = None

    @property
    def shape(self) -> torch.Size:
        """That of the scores."""
        return torch.Size((*self.q.shape[:-1], self.k.shape[-2]))


@dataclass(frozen=True, eq=False)
class Found:
    """A product of weights and values: the attention that it ends, and where its axes stand.

    ``axes``: those of the output (..., n, e) in the order in which the model wants them.
    """

    scores: Scores
    v: Tensor
    axes: tuple[int, ...] | None = None

    def wanted(self, out: Tensor) -> Tensor:
        """The attention's output with the axes and dtype of the model's."""
        out = out.to(taken(self.v))
        return out if self.axes is None else out.permute(self.axes)

    def usual(self, out: Tensor) -> Tensor:
        """The model's output with its axes as (..., n, e), in the dtype of the queries."""
        out = out.to(taken(self.scores.q))
        if self.axes is None:
            return out
        return out.permute([self.axes.index(i) for i in range(len(self.axes))])

    def arguments(self) -> dict[str, Any]:
        """Those of torch's attention."""
        own = self.scores
        mask, v = own.bias, self.v.to(own.q.dtype)  # models take their scores in float32
        mask = None if mask is None else mask.to(own.q.dtype)
        return {
            "query": own.q, "key": own.k, "value": v, "attn_mask": mask, "scale": own.scale,
        }  # fmt: skip


class Written:
    """What the scores and weights of written-out attention were made of."""

    def __init__(self) -> None:
        self.made: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.gated: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def of(self, x: Any) -> Scores | None:
        """What is known of a tensor."""
        found: Scores | None = self.made.get(x) if isinstance(x, Tensor) else None
        return found

    def weights(self, name: str, args: Any) -> Scores | None:
        """The first of a product's operands that is the weights of an attention."""
        operands = _operands(name, args)
        found = (self.of(x) for x in (operands or ()))
        return next((x for x in found if x is not None and x.softmax is not None), None)

    def gates(self, name: str, args: Any) -> bool:
        """Whether a product weighs its values by scores that went through no softmax."""
        operands = _operands(name, args)
        return operands is not None and operands[0] in self.gated and not is_weight(operands[1])

    def ended(self, name: str, args: Any, kwargs: dict[str, Any]) -> Found | None:
        """The attention that this product ends."""
        operands = _operands(name, args)
        if operands is None or kwargs or bare(name) == "baddbmm":
            return None
        a, v = operands
        own, axes = self.of(a), None
        if own is None or own.softmax is None or self.of(v) is not None:
            return None
        if bare(name) == "einsum":
            read = _einsum_of_values(args[0], a, v)
            if read is None:
                return None
            v, axes = read
        lead = own.q.shape[:-2]
        if v.ndim < 2 or v.shape[-2] != own.k.shape[-2] or not v.is_floating_point():
            return None
        if not broadcasts(v.shape[:-2], lead):
            return None
        return Found(own, v.expand(*lead, *v.shape[-2:]), axes)

    def forget(self, x: Any) -> None:
        """A tensor is changed in place by what no rule covers."""
        if isinstance(x, Tensor):
            self.made.pop(x, None)

    def follow(self, name: str, args: Any, kwargs: dict[str, Any], out: Any, caller: str) -> None:
        """Note what a step makes of scores or weights; what no rule covers is forgotten."""
        if not isinstance(out, Tensor) or not out.is_floating_point():
            return
        step = bare(name)
        found: Scores | None = None
        given = [x for x in args if isinstance(x, Tensor)]
        if (step in GATES and any(map(self.of, given))) or (
            step in KEPT and any(x in self.gated for x in given)
        ):
            self.gated[out] = True
        if step in PRODUCTS:
            found = _product(step, args, kwargs)
        else:
            rule: Callable[..., Scores | None] | None = RULES.get(step)
            if step in SAME:
                rule = _same
            if rule is not None:
                found = rule(self, args, kwargs, out)
            if found is not None and step == "softmax":
                found = dataclasses.replace(found, softmax=caller)
        if found is not None and found.shape == out.shape:
            self.made[out] = found
        else:
            self.made.pop(out, None)


def _operands(name: str, args: Any, kwargs: Any = None) -> tuple[Tensor, Tensor] | None:
    """Both operands of a product, the left one first."""
    step = name.strip("_")
    args = (*args, *((kwargs or {})[x] for x in ("batch1", "batch2") if x in (kwargs or {})))
    if step == "einsum":
        given = args[1] if len(args) == 2 and isinstance(args[1], list | tuple) else args[1:]
    elif step == "baddbmm":
        given = args[1:3]
    else:
        given = args[1::-1] if step == "rmatmul" else args[:2]
    if len(given) != 2 or not all(isinstance(x, Tensor) for x in given):
        return None
    return given[0], given[1]


def _product(step: str, args: Any, kwargs: dict[str, Any]) -> Scores | None:
    """Scores, of a product of two tensors that are no weights of the model."""
    operands = _operands(step, args, kwargs)
    if operands is None or any(is_weight(x) for x in operands):
        return None
    a, b = operands
    bias, scale = None, 1.0
    if step == "einsum":
        read = _einsum_of_keys(args[0], a, b)
        if read is None:
            return None
        a, b = read
    else:
        if min(a.ndim, b.ndim) < 2:
            return None
        b = b.mT
    if step == "baddbmm":
        scale = float(kwargs.get("alpha", 1))
        beta = kwargs.get("beta", 1)
        bias = None if beta == 0 else beta * args[0]
    lead = _lead(a.shape[:-2], b.shape[:-2])
    if lead is None or a.dtype != b.dtype or a.shape[-1] != b.shape[-1]:
        return None
    return Scores(a.expand(*lead, *a.shape[-2:]), b.expand(*lead, *b.shape[-2:]), scale, bias)


def _terms(equation: Any, a: Tensor, b: Tensor) -> tuple[str, str, str] | None:
    """The letters of an einsum of two operands and an output, none of them twice in a term."""
    if not isinstance(equation, str) or "->" not in equation:
        return None
    left, _, out = equation.replace(" ", "").partition("->")
    terms: tuple[str, ...] = (*left.split(","), out)
    if len(terms) == 3 and all("..." in term for term in terms):
        free = [x for x in string.ascii_uppercase if x not in equation]
        counts = [x.ndim - len(term) + 3 for x, term in zip((a, b), terms, strict=False)]
        if counts[0] == counts[1]:
            terms = tuple(term.replace("...", "".join(free[: counts[0]])) for term in terms)
    if "." in "".join(terms):
        return None
    if len(terms) != 3 or any(len({*term}) < len(term) for term in terms):
        return None
    return terms[0], terms[1], terms[2]


def _einsum_of_keys(equation: Any, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor] | None:
    """Queries and keys, (..., n, d) and (..., l, d), of an einsum that gives (..., n, l)."""
    terms = _terms(equation, a, b)
    if terms is None:
        return None
    left, right, out = terms
    if len(out) < 2:
        return None
    lead, n, l = out[:-2], out[-2], out[-1]
    inner = [x for x in left if x not in out]
    if len(inner) != 1 or {*right} != {*lead, l, *inner} or {*left} != {*lead, n, *inner}:
        return None
    q, k = ((*lead, n, *inner), (*lead, l, *inner))
    return a.permute([left.index(x) for x in q]), b.permute([right.index(x) for x in k])


def _einsum_of_values(equation: Any, a: Tensor, v: Tensor) -> tuple[Tensor, tuple[int, ...]] | None:
    """Values (..., l, e) of an einsum of weights (..., n, l), and the axes of its output."""
    terms = _terms(equation, a, v)
    if terms is None or len(terms[0]) != a.ndim:
        return None
    left, right, out = terms
    lead, n, l = left[:-2], left[-2], left[-1]
    width = [x for x in right if x not in left]
    if len(width) != 1 or {*right} != {*lead, l, *width} or {*out} != {*lead, n, *width}:
        return None
    usual = [*lead, n, *width]
    return v.permute([right.index(x) for x in (*lead, l, *width)]), tuple(map(usual.index, out))


def _lead(a: torch.Size, b: torch.Size) -> torch.Size | None:
    try:
        return torch.Size(torch.broadcast_shapes(a, b))
    except RuntimeError:
        return None


def broadcasts(shape: torch.Size, whole: torch.Size) -> bool:
    """Whether a shape broadcasts to another, which stays as it is."""
    return _lead(shape, whole) == whole


def _input(args: Any, kwargs: dict[str, Any]) -> Any:
    return args[0] if args else kwargs.get("input")


def _same(flow: Written, args: Any, kwargs: dict[str, Any], out: Tensor) -> Scores | None:
    """A cast, or another shape of the leading axes alone."""
    own = flow.of(_input(args, kwargs))
    if own is None or out.shape == own.shape:
        return own
    if out.shape[-2:] != own.shape[-2:] or out.numel() != math.prod(own.shape):
        return None
    lead, bias = out.shape[:-2], own.bias
    if bias is not None:
        bias = bias.expand(own.shape).reshape(out.shape)
    q, k = (x.reshape(*lead, *x.shape[-2:]) for x in (own.q, own.k))
    return dataclasses.replace(own, q=q, k=k, bias=bias)


def _scaled(flow: Written, args: Any, divided: bool) -> Scores | None:
    if len(args) != 2:
        return None
    own, other = flow.of(args[0]), args[1]
    if own is None and not divided:
        own, other = flow.of(args[1]), args[0]
    if own is None or own.softmax is not None:
        return None
    if isinstance(other, Tensor):
        if flow.of(other) is not None or (other.numel() > 1 and other.shape[-2:] != (1, 1)):
            return None
        if not broadcasts(other.shape, own.shape):
            return None
        q = (own.q / other if divided else own.q * other).to(own.q.dtype)
        bias = own.bias if own.bias is None else own.bias / other if divided else own.bias * other
        return dataclasses.replace(own, q=q, bias=bias)
    if not isinstance(other, int | float) or other == 0:
        return None
    factor = 1 / other if divided else other
    bias = None if own.bias is None else own.bias * factor
    return dataclasses.replace(own, scale=own.scale * factor, bias=bias)


def _mul(flow: Written, args: Any, kwargs: dict[str, Any], _: Tensor) -> Scores | None:
    return None if kwargs else _scaled(flow, args, divided=False)


def _div(flow: Written, args: Any, kwargs: dict[str, Any], _: Tensor) -> Scores | None:
    return None if kwargs else _scaled(flow, args, divided=True)


def _biased(flow: Written, args: Any, sign: int) -> Scores | None:
    if len(args) != 2:
        return None
    own, other = flow.of(args[0]), args[1]
    if own is None and sign > 0:
        own, other = flow.of(args[1]), args[0]
    if own is None or own.softmax is not None:
        return None
    if not isinstance(other, Tensor):
        return own if isinstance(other, int | float) else None  # no softmax sees it
    if not broadcasts(other.shape, own.shape):
        return None
    if other.ndim and other.shape[-1] == 1 < own.shape[-1]:
        return own  # the same for all keys of a query, as its greatest score: no softmax sees it
    added = sign * (other if other.is_floating_point() else other.to(own.q.dtype))
    return dataclasses.replace(own, bias=added if own.bias is None else own.bias + added)


def _add(flow: Written, args: Any, kwargs: dict[str, Any], _: Tensor) -> Scores | None:
    return None if kwargs else _biased(flow, args, 1)


def _sub(flow: Written, args: Any, kwargs: dict[str, Any], _: Tensor) -> Scores | None:
    return None if kwargs else _biased(flow, args, -1)


def _hidden(own: Scores | None, mask: Any, value: Any) -> Scores | None:
    """Scores of which those under the mask are replaced by a value that hides a key."""
    if own is None or own.softmax is not None or not isinstance(mask, Tensor):
        return None
    if mask.dtype != torch.bool or not broadcasts(mask.shape, own.shape):
        return None
    most = float(value.max()) if isinstance(value, Tensor) else value
    if not isinstance(most, int | float) or not most <= HIDDEN:
        return None
    dtype = own.q.dtype
    # A row of which nothing is left is a mean of all its values, as where they are replaced.
    bias = torch.zeros((), dtype=dtype, device=mask.device) if own.bias is None else own.bias
    least = -math.inf if most == -math.inf else torch.finfo(bias.dtype).min
    return dataclasses.replace(own, bias=torch.where(mask, least, bias))


def _masked_fill(flow: Written, args: Any, kwargs: dict[str, Any], _: Tensor) -> Scores | None:
    mask = args[1] if len(args) > 1 else kwargs.get("mask")
    value = args[2] if len(args) > 2 else kwargs.get("value")
    return _hidden(flow.of(args[0]), mask, value)


def _where(flow: Written, args: Any, kwargs: dict[str, Any], _: Tensor) -> Scores | None:
    if len(args) != 3 or kwargs or not isinstance(args[0], Tensor):
        return None
    if args[0].dtype == torch.bool and flow.of(args[1]) is not None:
        return _hidden(flow.of(args[1]), ~args[0], args[2])
    return _hidden(flow.of(args[2]), args[0], args[1])


def _softmax(flow: Written, args: Any, kwargs: dict[str, Any], out: Tensor) -> Scores | None:
    own = flow.of(_input(args, kwargs))
    dim = args[1] if len(args) > 1 else kwargs.get("dim")
    if own is None or own.softmax is not None or dim not in (-1, out.ndim - 1):
        return None
    return own


def _dropout(flow: Written, args: Any, kwargs: dict[str, Any], _: Tensor) -> Scores | None:
    p = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
    training = args[2] if len(args) > 2 else kwargs.get("training", True)
    return flow.of(_input(args, kwargs)) if p == 0 or not training else None


RULES: dict[str, Callable[..., Scores | None]] = {
    "mul": _mul, "div": _div, "add": _add, "sub": _sub, "masked_fill": _masked_fill,
    "where": _where, "softmax": _softmax, "dropout": _dropout,
}  # fmt: skip
STEPS = {*PRODUCTS, *RULES, *SAME, *GATES}


PROJECTIONS = {
    *("linear", "matmul", "bmm", "addmm", "einsum", "conv1d", "conv2d", "mm"),
    "multi_head_attention_forward",
}


class Sources:
    """Which tensors were projected, by weights of the model, to what a tensor was made of."""

    def __init__(self) -> None:
        self.number = itertools.count()
        self.own: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.projected: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def of(self, x: Tensor) -> frozenset[int]:
        """The numbers of what was projected; empty where that is not known."""
        found: frozenset[int] = self.projected.get(x, frozenset())
        return found

    def known(self, x: Tensor) -> frozenset[int]:
        """The numbers of a tensor and of all that it was made of since the last projection."""
        if x not in self.own:
            self.own[x] = frozenset({next(self.number)})
        found: frozenset[int] = self.own[x]
        return found

    def follow(self, name: str, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        """Note what a step was made of."""
        outs = [x for x in _tensors((out,)) if x.is_floating_point()]
        if not outs:
            return
        given = [x for x in _tensors((args, kwargs.values())) if x.is_floating_point()]
        others = [x for x in given if not is_weight(x)]
        for x in outs:
            if bare(name) in PROJECTIONS and len(others) < len(given):
                self.projected[x] = frozenset().union(*map(self.known, others))
                self.own[x] = frozenset({next(self.number)})
            elif not any(x is y for y in others):
                self.projected[x] = frozenset().union(*map(self.of, others))
                self.own[x] = frozenset({next(self.number)}).union(*map(self.known, others))


def _tensors(given: Any) -> Iterator[Tensor]:
    for x in given:
        if isinstance(x, Tensor):
            yield x
        elif isinstance(x, list | tuple) or type(x).__name__ == "dict_values":
            yield from _tensors(x)
