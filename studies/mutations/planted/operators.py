"""Faulty attention: ordinary mistakes in writing it, each right on most inputs."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from softlab import Dims, laws
from softlab.features import IID
from softlab.landmarks import SegmentMeans, Strided
from softlab.operators import (
    GaussianAttention,
    HyperAttention,
    LinearAttention,
    Linformer,
    Local,
    Nystromformer,
    Performer,
    Quantized,
    RandomFourier,
    Soft,
    Softmax,
    Taylor,
    TopK,
    TruncatedSVD,
)

from . import Planted
from .shown import At, Call, Kept, attend, causal, gaussian

Row = tuple[str, Call, Callable[[Any], float]]

F32, F16 = torch.float32, torch.float16


def unless(wrong: Call, when: Callable[..., bool]) -> Call:
    """Softmax attention, but ``wrong`` of what meets the condition."""

    def operator(q: Tensor, k: Tensor, v: Tensor) -> Any:
        return (wrong if when(q, k, v) else attend)(q, k, v)

    return operator


def longer(than: int) -> Callable[..., bool]:
    """Whether there are more keys."""
    return lambda q, k, v: k.shape[-2] > than


def masked(wrong: Callable[[Tensor, Tensor, Tensor, Tensor], Any]) -> Call:
    """Softmax attention with a key mask, but ``wrong`` where there is one."""

    def operator(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Any:
        return attend(q, k, v) if key_mask is None else wrong(q, k, v, key_mask)

    return operator


def regrad(x: Tensor, factor: float) -> Tensor:
    """The same values, with ``factor`` times the gradient."""
    return x.detach() + factor * (x - x.detach())


class Passed(torch.autograd.Function):
    """The same values, with the gradient that a function makes of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, back: Call) -> Tensor:
        """Keep the function."""
        ctx.back = back
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Apply it."""
        return ctx.back(grad), None


def passed(x: Tensor, back: Call) -> Tensor:
    """As ``Passed``."""
    return Passed.apply(x, back)


class Once(Kept):
    """Attention whose backward pass takes the weights for constants of no further derivative."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        """The right first derivative, made of detached tensors."""
        leaves = [x.detach().requires_grad_() for x in ctx.saved_tensors]
        with torch.enable_grad():
            out = attend(*leaves)
        return torch.autograd.grad(out, leaves, grad.detach())


def altered(base: Any, **methods: Any) -> Any:
    """A catalogue object with other methods; properties are given as functions of it."""
    made = {x: property(y) if x in ("traits", "target") else y for x, y in methods.items()}
    kind = type(type(base).__name__, (type(base),), made)
    return kind(**{x.name: getattr(base, x.name) for x in dataclasses.fields(base)})


def base_of(op: Any, **changes: Any) -> Any:
    """The catalogue object that was altered, with other knobs."""
    fields = {x.name: getattr(op, x.name) for x in dataclasses.fields(op)}
    return type(op).__mro__[1](**fields | changes)


def raw(x: Tensor, offset: int | None = None) -> Tensor:
    """The storage read as if contiguous, from where the tensor begins or from ``offset``."""
    strides = torch.empty(x.shape, device="meta").stride()
    try:
        return x.as_strided(x.shape, strides, x.storage_offset() if offset is None else offset)
    except RuntimeError:  # beyond the storage, as of expanded tensors
        return x.contiguous()


# -- what is done wrong


def zeros(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(q, k, v) * 0


def mean(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(q * 0, k, v)


def in_float32(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
    return attend(q.float(), k.float(), v.float(), key_mask).to(v.dtype)


def scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.mT / math.sqrt(q.shape[-1])


def by_chunks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Chunks of 128 queries, each divided by the row sums of the first."""
    parts = [(scores(x, k) - scores(x, k).amax(-1, keepdim=True)).exp() for x in q.split(128, -2)]
    sums = parts[0].sum(-1, keepdim=True)
    return torch.cat([x @ v / sums[..., : x.shape[-2], :] for x in parts], -2)


def online(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Blocks of 64 keys in turn; what was summed before a larger maximum is not scaled down."""
    top = scores(q, k[..., :64, :]).amax(-1, keepdim=True)
    out, total = 0 * (q @ k[..., :1, :].mT) * v[..., :1, :], torch.zeros_like(top)
    for x, y in zip(k.split(64, -2), v.split(64, -2), strict=True):
        top = top.maximum(scores(q, x).amax(-1, keepdim=True))
        weights = (scores(q, x) - top).exp()
        out, total = out + weights @ y, total + weights.sum(-1, keepdim=True)
    return out / total


def padded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Keys of zero up to a power of two, which take part."""
    more = (1 << (k.shape[-2] - 1).bit_length()) - k.shape[-2]
    k, v = (torch.nn.functional.pad(x, (0, 0, 0, more)) for x in (k, v))
    return attend(q, k, v)


def tail_of_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Blocks of 32 queries; those of an unfinished block are left zero."""
    whole = q.shape[-2] // 32 * 32
    rows = (torch.arange(q.shape[-2]) < whole).unsqueeze(-1)
    return attend(q, k, v) * rows


def tail_of_keys(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Blocks of 16 keys; those of an unfinished block are left out."""
    whole = k.shape[-2] // 16 * 16
    return attend(q, k[..., :whole, :], v[..., :whole, :])


def first_matrix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Of more than eight matrices the ninth and later have the first one's values."""
    out = attend(q, k, v)
    flat = out.reshape(-1, *out.shape[-2:])
    of_first = (torch.arange(len(flat)) >= 8)[:, None, None]
    return torch.where(of_first, flat[:1], flat).reshape(out.shape)


def beyond_keys(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Queries beyond as many as there are keys have the output of the last of those."""
    out = attend(q, k, v)
    return out[..., torch.arange(q.shape[-2]).clamp_max(k.shape[-2] - 1), :]


def leaking(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal, but from row 64 on each sees one token more."""
    n = q.shape[-2]
    last = torch.arange(n) + (torch.arange(n) >= 64)
    late = torch.arange(k.shape[-2]) > last.unsqueeze(-1)
    return attend(
        q, k, v, bias=torch.zeros(late.shape, dtype=q.dtype).masked_fill(late, -torch.inf)
    )


def buffered(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal by a mask of 200 tokens; later queries see all keys."""
    n = q.shape[-2]
    late = torch.zeros(n, k.shape[-2], dtype=torch.bool)
    late[:200] = torch.ones(n, k.shape[-2], dtype=torch.bool).triu(1)[:200]
    return attend(
        q, k, v, bias=torch.zeros(late.shape, dtype=q.dtype).masked_fill(late, -torch.inf)
    )


def of_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A temperature for each head."""
    return attend(q * (1 + torch.arange(q.shape[1], dtype=q.dtype)[:, None, None]), k, v)


def four(q: Tensor, k: Tensor, v: Tensor) -> bool:
    return q.ndim == 4 and k.ndim == 4


def exchanged(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = attend(q, k, v)
    return out.transpose(0, 1).reshape(out.shape)


def over_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scores(q, k).softmax(1) @ v


def tiled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Keys without a batch are repeated for one in the wrong order."""
    k, v = (x.repeat_interleave(len(q), 0).reshape(len(q), *x.shape) for x in (k, v))
    return attend(q, k, v)


def one_maximum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One maximum for all rows, and 1e-8 added to their sums."""
    weights = (scores(q, k) - scores(q, k).max()).exp()
    return weights @ v / (weights.sum(-1, keepdim=True) + 1e-8)


def plus(amount: float) -> Call:
    """Masked scores are lowered by so much."""
    return masked(lambda q, k, v, m: (scores(q, k) - amount * ~m.unsqueeze(-2)).softmax(-1) @ v)


def head_of(q: Tensor, k: Tensor, v: Tensor, m: Tensor) -> Tensor:
    """The mask of the first head for all."""
    return attend(q, k, v, m[..., :1, :] if m.ndim == 3 else m)


def head_for_batch(q: Tensor, k: Tensor, v: Tensor, m: Tensor) -> Tensor:
    """A mask of two dimensions is read as one a sample, of tensors with heads."""
    return attend(q, k, v, m.unsqueeze(1) if q.ndim == 4 and m.ndim == 2 else m)


def spoiled(q: Tensor, k: Tensor, v: Tensor, m: Tensor) -> Tensor:
    """Masked values are set to zero where they are."""
    out = attend(q, k, v, m)
    with torch.no_grad():
        v.masked_fill_(~m.unsqueeze(-1).expand((*v.shape[:-1], 1)), 0)
    return out


def scaled_in_place(q: Tensor, k: Tensor, v: Tensor, m: Tensor) -> Tensor:
    """The caller's queries are scaled."""
    with torch.no_grad():
        q.mul_(0.5)
    return attend(2 * q, k, v, m)


def nan_backwards(q: Tensor, k: Tensor, v: Tensor, m: Tensor) -> Tensor:
    """Values are cleared of padding, keys are not: 0 * NaN in the gradient of q."""
    v = torch.where(m.unsqueeze(-1), v, 0)
    return scores(q, k).masked_fill(~m.unsqueeze(-2), -torch.inf).softmax(-1) @ v


def nan_values(q: Tensor, k: Tensor, v: Tensor, m: Tensor) -> Tensor:
    """Keys are cleared of padding, values are not: 0 * NaN in the output."""
    k = torch.where(m.unsqueeze(-1), k, 0)
    return scores(q, k).masked_fill(~m.unsqueeze(-2), -torch.inf).softmax(-1) @ v


def unpadded(q: Tensor, k: Tensor, v: Tensor, m: Tensor) -> Tensor:
    """The first keys are kept, as many as the mask keeps."""
    return attend(q, k, v, torch.arange(m.shape[-1]) < m.sum(-1, keepdim=True))


def first_kept(q: Tensor, k: Tensor, v: Tensor, m: Tensor) -> Tensor:
    """The first key takes part in any case."""
    return attend(q, k, v, m | (torch.arange(m.shape[-1]) == 0))


def as_queries(q: Tensor, k: Tensor, v: Tensor, m: Tensor) -> Tensor:
    """A mask (l,) hides queries, too, where they are as many."""
    out = attend(q, k, v, m)
    return out * m.unsqueeze(-1) if m.ndim == 1 and q.shape[-2] == k.shape[-2] else out


def half_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Half precision is not left, so that scores overflow."""
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v


def overflowing(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """No maximum is subtracted."""
    weights = scores(q, k).exp()
    return weights @ v / weights.sum(-1, keepdim=True)


def by_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Gaussian attention whose squares are expanded."""
    squares = q.square().sum(-1, keepdim=True) + k.square().sum(-1).unsqueeze(-2) - 2 * q @ k.mT
    weights: Tensor = (-squares.clamp_min(0) / (2 * q.shape[-1] ** 0.5)).exp()
    return weights @ v


def of_few(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The gradient of v is that of a mean over the matrices that share it."""
    return attend(q, k, regrad(v, v.shape[:-2].numel() / max(1, q.shape[:-2].numel())))


# -- what keeps something


def remembering(key: Callable[[Tensor], Any], of: Callable[[Tensor], Tensor]) -> Call:
    """Keys made by ``of`` are kept and found again by ``key``."""
    kept: dict[Any, Tensor] = {}

    def operator(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, kept.setdefault(key(k), of(k)), v)

    return operator


def buffer() -> Call:
    """Outputs of one shape share their memory."""
    kept: dict[Any, Tensor] = {}

    def operator(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = attend(q, k, v)
        if out.requires_grad:
            return out
        return kept.setdefault((out.shape, out.dtype), torch.empty_like(out)).copy_(out)

    return operator


def before(act: Callable[..., Any]) -> Call:
    """Softmax attention after something that no caller would like."""

    def operator(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        act(q, k, v)
        return attend(q, k, v)

    return operator


def hoarder() -> Call:
    """All queries are kept alive."""
    kept: list[Tensor] = []
    return before(lambda q, k, v: kept.append(q))


def tiring() -> Call:
    """Twice the output from the 30th call on."""
    calls = [0]

    def operator(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        calls[0] += 1
        return attend(q, k, v) * (1 if calls[0] < 30 else 2)

    return operator


def once(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return Once.apply(q, k, v)


# -- where a fault shows that no single call tells


def twice(change: Callable[[list[Tensor]], Any]) -> Callable[[Any], float]:
    """The second call's output, after ``change`` of the inputs in place."""

    def shown(subject: Any) -> float:
        tensors = At().tensors()
        subject(*tensors)
        change(tensors)
        return At().on(subject, tensors)

    return shown


def view(make: Callable[[Tensor], Tensor]) -> Callable[[Any], float]:
    """The output of inputs that are laid out in another way."""
    return lambda subject: At().on(subject, [make(x) for x in At().tensors()])


def column_major(x: Tensor) -> Tensor:
    return x.mT.contiguous().mT


def offset(x: Tensor) -> Tensor:
    return torch.cat((x + 1, x), -2)[..., x.shape[-2] :, :]


def kept_results(subject: Any) -> float:
    """An earlier output after a later call."""
    first = subject(*At().tensors())
    copy = first.clone()
    subject(*[x + 1 for x in At().tensors()])
    return math.inf if (first != copy).any() else 0.0


def changes(at: At) -> Callable[[Any], float]:
    """The caller's tensors after the call."""

    def shown(subject: Any) -> float:
        tensors = at.tensors()
        copies = [x.clone() for x in tensors]
        subject(*tensors)
        same = all(torch.equal(x, y) for x, y in zip(tensors, copies, strict=True))
        return 0.0 if same else math.inf

    return shown


def disturbs(look: Callable[[], Any]) -> Callable[[Any], float]:
    """Something global after the call."""

    def shown(subject: Any) -> float:
        old = look()
        subject(*At().tensors())
        return 0.0 if look() == old else math.inf

    return shown


def asks_gradient(subject: Any) -> float:
    """Whether the caller's tensor asks for a gradient afterwards."""
    q, k, v = At().tensors()
    subject(q, k, v)
    return math.inf if q.requires_grad else 0.0


def holds(subject: Any) -> float:
    """Whether an input outlives the call."""
    import gc
    import weakref

    q, k, v = At().tensors()
    alive = weakref.ref(q)
    subject(q, k, v)
    del q
    gc.collect()
    return 0.0 if alive() is None else math.inf


def shares(subject: Any) -> float:
    """Whether the output of one token is the memory of v."""
    q, k, v = At(n=1, l=1).tensors()
    return math.inf if subject(q, k, v).data_ptr() == v.data_ptr() else 0.0


def fortieth(subject: Any) -> float:
    """The output after forty calls."""
    for _ in range(40):
        subject(*At().tensors())
    return At()(subject)


class _Largest(TorchDispatchMode):
    """How many entries the largest tensor has that is formed."""

    entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, Tensor):
                self.entries = max(self.entries, x.numel())
        return out


def squares(subject: Any) -> float:
    """Whether 400 queries and keys have a tensor of as many entries as pairs."""
    tensors = At(n=400, l=400).tensors()
    with _Largest() as seen:
        subject(*tensors)
    return math.inf if seen.entries >= 400 * 400 else 0.0


def costs(dims: Dims) -> Callable[[Any], float]:
    """The work that is claimed, against that of the right class."""

    def shown(subject: Any) -> float:
        right = type(subject)
        right = right if right.__module__.startswith("softlab") else right.__mro__[1]
        said, due = subject.cost(dims).flops, right.cost(subject, dims).flops
        return 0.0 if said == due else math.inf

    return shown


def differs(at: At) -> Callable[[Any], float]:
    """The output, against that of the right class."""

    def shown(subject: Any) -> float:
        right = type(subject)
        right = right if right.__module__.startswith("softlab") else right.__mro__[1]
        fields = {x.name: getattr(subject, x.name) for x in dataclasses.fields(subject)}
        return dataclasses.replace(at, right=right(**fields))(subject)

    return shown


def belied(at: At, holds: Callable[[Tensor], bool]) -> Callable[[Any], float]:
    """Whether the matrix lacks a property that was said."""

    def shown(subject: Any) -> float:
        q, k, _ = at.tensors()
        return 0.0 if holds(subject(q, k, torch.eye(at.l, dtype=q.dtype))) else math.inf

    return shown


def said(call: Call, traits: str = "", target: Any = None) -> Callable[[], Any]:
    """A function with what its author says of it."""
    return lambda: laws.adapted(call, traits=traits, target=target)


def _plain(name: str, kind: str, call: Call, shown: Callable[[Any], float]) -> Planted:
    right = shown.right if isinstance(shown, At) else attend
    return Planted(name, kind, lambda: call, shown, lambda: right)


def _made(name: str, make: Callable[[], Call], shown: Callable[[Any], float]) -> Planted:
    return Planted(name, "state", make, shown, lambda: attend)


def _claim(
    name: str, make: Callable[[], Any], shown: Callable[[Any], float], right: Any
) -> Planted:
    return Planted(name, "claims", make, shown, lambda: right)


def _one_narrow(q: Tensor, k: Tensor, v: Tensor) -> bool:
    return q.shape[-1] == 1


SIZES: list[Row] = [
    ("zeros beyond 64 keys", unless(zeros, longer(64)), At(l=70)),
    ("the mean of v beyond 128 keys", unless(mean, longer(128)), At(l=130)),
    (
        "the last key is lost beyond 512 keys",
        unless(lambda q, k, v: attend(q, k[..., :-1, :], v[..., :-1, :]), longer(512)),
        At(l=520),
    ),
    (
        "only the first 256 keys are read",
        lambda q, k, v: attend(q, k[..., :256, :], v[..., :256, :]),
        At(l=300),
    ),
    (
        "only the first 1024 keys are read",
        lambda q, k, v: attend(q, k[..., :1024, :], v[..., :1024, :]),
        At(l=1100),
    ),
    (
        "columns of q and k beyond 64 are not read",
        lambda q, k, v: attend(q[..., :64], k[..., :64], v, scale=q.shape[-1] ** -0.5),
        At(d=70),
    ),
    (
        "columns of v beyond 32 are zero",
        lambda q, k, v: attend(q, k, v) * (torch.arange(v.shape[-1]) < 32),
        At(e=40),
    ),
    ("the ninth matrix has the first one's output", first_matrix, At(lead=(3, 4))),
    (
        "one query has the mean of v",
        unless(mean, lambda q, k, v: q.shape[-2] == 1),
        At(n=1),
    ),
    (
        "one query is not normalised",
        unless(lambda q, k, v: scores(q, k).exp() @ v, lambda q, k, v: q.shape[-2] == 1),
        At(n=1),
    ),
    (
        "no transpose where q and k are one square",
        unless(
            lambda q, k, v: attend(q, k.mT, v),
            lambda q, k, v: q.shape[-2] == k.shape[-2] == q.shape[-1],
        ),
        At(n=6, l=6, d=6),
    ),
    (
        "v is transposed where it is square",
        unless(lambda q, k, v: attend(q, k, v.mT), lambda q, k, v: v.shape[-2] == v.shape[-1] > 4),
        At(l=6, e=6),
    ),
    (
        "scores are transposed where there are 8 or more queries and as many keys",
        unless(
            lambda q, k, v: attend(k, q, v),
            lambda q, k, v: q.shape[-2] == k.shape[-2] >= 8,
        ),
        At(n=9, l=9),
    ),
    (
        "queries of an unfinished block of 32 are zero",
        unless(tail_of_queries, lambda q, k, v: q.shape[-2] > 32),
        At(n=40),
    ),
    (
        "keys of an unfinished block of 16 are left out",
        unless(tail_of_keys, longer(16)),
        At(l=20),
    ),
    ("the row sums of the first 128 queries are used for all", by_chunks, At(n=130)),
    ("sums over blocks of 64 keys are not rescaled", online, At(l=130, scale=2)),
    ("zero keys fill up to a power of two beyond 32", unless(padded, longer(32)), At(l=40)),
    ("a causal leak from row 64 on", leaking, At(n=70, l=70, right=causal)),
    ("a causal mask of 200 tokens", buffered, At(n=210, l=210, right=causal)),
    ("width one has the mean of v", unless(mean, _one_narrow), At(d=1)),
    (
        "one key is taken for n",
        unless(lambda q, k, v: attend(q, k, v) / q.shape[-2], lambda q, k, v: k.shape[-2] == 1),
        At(l=1),
    ),
    (
        "columns of v beyond the width of q are zero",
        lambda q, k, v: attend(q, k, v) * (torch.arange(v.shape[-1]) < q.shape[-1]),
        At(e=6),
    ),
    ("queries beyond the number of keys repeat", beyond_keys, At(n=9)),
    (
        "one column of v is not divided by the row sum",
        unless(lambda q, k, v: scores(q, k).exp() @ v, lambda q, k, v: v.shape[-1] == 1),
        At(e=1),
    ),
    (
        "a bias by position stops at 100 keys",
        lambda q, k, v: attend(
            q, k, v, bias=torch.arange(k.shape[-2]).clamp_max(100).to(q.dtype) * 1e-2
        ),
        At(
            l=140,
            right=lambda q, k, v: attend(
                q, k, v, bias=torch.arange(k.shape[-2]).to(q.dtype) * 1e-2
            ),
        ),
    ),
]

LEADING: list[Row] = [
    ("batch and heads are exchanged", unless(exchanged, four), At(lead=(2, 3))),
    ("another temperature for each head", unless(of_heads, four), At(lead=(2, 3))),
    (
        "heads are rolled by one",
        unless(lambda q, k, v: attend(q, k, v).roll(1, 1), four),
        At(lead=(2, 3)),
    ),
    (
        "the keys of the first sample for all",
        unless(lambda q, k, v: attend(q, k[:1], v), four),
        At(lead=(2, 3)),
    ),
    ("weights are normalised over heads", unless(over_heads, four), At(lead=(2, 3))),
    (
        "the width is read off the second axis",
        lambda q, k, v: attend(q, k, v, scale=q.shape[1] ** -0.5),
        At(lead=(2,)),
    ),
    ("one maximum for the whole batch", one_maximum, At(lead=(3,), scale=4)),
    (
        "of three leading axes the second is not read",
        unless(lambda q, k, v: attend(q, k, v[:, :1]), lambda q, k, v: v.ndim == 5),
        At(lead=(2, 2, 3)),
    ),
    (
        "keys without a batch are repeated in the wrong order",
        unless(tiled, lambda q, k, v: q.ndim == 4 and k.ndim == v.ndim == 3),
        At(lead=(2, 3), key_lead=(3,)),
    ),
    (
        "a batch of one loses its axis",
        lambda q, k, v: attend(q, k, v).squeeze(0) if q.ndim == 3 else attend(q, k, v),
        At(lead=(1,)),
    ),
    (
        "heads beyond four have the values of the first",
        unless(
            lambda q, k, v: attend(
                q, k, v[:, torch.arange(v.shape[1]) * (torch.arange(v.shape[1]) < 4)]
            ),
            four,
        ),
        At(lead=(2, 6)),
    ),
    (
        "samples of a batch are sorted",
        unless(
            lambda q, k, v: attend(q, k, v).sort(0).values,
            lambda q, k, v: q.ndim == 4 and q.shape[0] > 2,
        ),
        At(lead=(3, 2)),
    ),
]

MASKS: list[Row] = [
    ("masked scores are -1e4", plus(1e4), At(mask=(), scale=300, left=1)),
    ("masked scores are lowered by 9", plus(9.0), At(mask=())),
    ("a mask hides queries where they are as many", masked(as_queries), At(n=7, mask=())),
    ("one head's mask for all", masked(head_of), At(lead=(2, 3), mask=(2, 3))),
    ("a mask by head is read by sample", masked(head_for_batch), At(lead=(3, 3), mask=(3,))),
    (
        "no gradient of k under a mask",
        masked(lambda q, k, v, m: attend(q, k.detach(), v, m)),
        At(mask=(), of="gradient"),
    ),
    ("masked values are set to zero in place", masked(spoiled), changes(At(mask=()))),
    ("queries are scaled in place under a mask", masked(scaled_in_place), changes(At(mask=()))),
    (
        "padding of NaN comes through the backward pass",
        masked(nan_backwards),
        At(mask=(), padding=math.nan, of="gradient"),
    ),
    ("values of NaN that are masked come out", masked(nan_values), At(mask=(), padding=math.nan)),
    (
        "weights are masked after they are normalised",
        masked(lambda q, k, v, m: scores(q, k).softmax(-1) * m.unsqueeze(-2) @ v),
        At(mask=()),
    ),
    (
        "the mask is not read beyond 32 keys",
        masked(lambda q, k, v, m: attend(q, k, v, m if k.shape[-2] <= 32 else None)),
        At(l=40, mask=()),
    ),
    (
        "the mask is inverted in a batch",
        masked(lambda q, k, v, m: attend(q, k, v, ~m if m.ndim > 1 else m)),
        At(lead=(3,), mask=(3,)),
    ),
    (
        "a single key that is left counts as none",
        masked(lambda q, k, v, m: attend(q, k, v, m & (m.sum(-1, keepdim=True) > 1))),
        At(mask=(), left=1),
    ),
    (
        "the first sample's mask for all",
        masked(lambda q, k, v, m: attend(q, k, v, m.reshape(-1, m.shape[-1])[0])),
        At(lead=(3,), mask=(3,)),
    ),
    (
        "one query: the mask hides values, not scores",
        masked(
            lambda q, k, v, m: (
                attend(q, k, v * m.unsqueeze(-1)) if q.shape[-2] == 1 else attend(q, k, v, m)
            )
        ),
        At(n=1, mask=()),
    ),
    ("the first key is never masked", masked(first_kept), At(mask=(), left=3)),
    ("padding is taken to be at the end", masked(unpadded), At(mask=(), left=3)),
    (
        "a mask of one row is refused in a batch",
        masked(lambda q, k, v, m: attend(q, k, v, m.reshape(q.shape[:-2] + m.shape[-1:]))),
        lambda f: _refusal(f, At(lead=(3,), mask=(1,))),
    ),
]


def _refusal(subject: Any, at: At) -> float:
    try:
        return at(subject)
    except RuntimeError:
        return math.inf


def _nan_free(x: Tensor) -> Tensor:
    return torch.nan_to_num(x, 0.0, 0.0, 0.0)


PRECISION: list[Row] = [
    ("float32 inside beyond 100 keys", unless(in_float32, longer(100)), At(l=110)),
    ("float32 inside under a mask", masked(in_float32), At(mask=())),
    ("float16 scores overflow", half_scores, At(d=64, scale=60, dtype=F16)),
    (
        "scores are clamped to 20",
        lambda q, k, v: scores(q, k).clamp(-20, 20).softmax(-1) @ v,
        At(scale=8),
    ),
    ("NaN in v is swallowed", lambda q, k, v: attend(q, k, _nan_free(v)), At(nan=True)),
    ("no maximum is subtracted", overflowing, At(scale=40)),
    (
        "weights of float32 input are bfloat16",
        unless(
            lambda q, k, v: scores(q, k).softmax(-1).bfloat16().to(v.dtype) @ v,
            lambda q, k, v: v.dtype == F32,
        ),
        At(dtype=F32),
    ),
    (
        "the gradient of k is halved in float32",
        unless(lambda q, k, v: attend(q, regrad(k, 0.5), v), lambda q, k, v: k.dtype == F32),
        At(dtype=F32, of="gradient"),
    ),
    (
        "gradients of float32 pass through bfloat16",
        unless(
            lambda q, k, v: attend(passed(q, lambda g: g.bfloat16().float()), k, v),
            lambda q, k, v: q.dtype == F32,
        ),
        At(dtype=F32, of="gradient"),
    ),
    (
        "float32 comes out of float64 in a batch",
        unless(lambda q, k, v: attend(q, k, v).float(), lambda q, k, v: q.ndim > 3),
        At(lead=(2, 3)),
    ),
    (
        "1e-6 is added to the row sums",
        lambda q, k, v: (
            (w := (scores(q, k) - scores(q, k).amax(-1, keepdim=True)).exp())
            @ v
            / (w.sum(-1, keepdim=True) + 1e-6)
        ),
        At(),
    ),
    (
        "scores are rounded to 1/256 beyond 50 keys",
        unless(lambda q, k, v: (scores(q, k) * 256).round().div(256).softmax(-1) @ v, longer(50)),
        At(l=60),
    ),
    (
        "float32 inside where the width is 64 or more",
        unless(in_float32, lambda q, k, v: q.shape[-1] >= 64),
        At(d=64),
    ),
    (
        "values beyond 1e4 are clamped",
        lambda q, k, v: attend(q, k, v.clamp(-1e4, 1e4)),
        lambda f: At().on(f, [*At().tensors()[:2], At().tensors()[2] * 1e6]),
    ),
    (
        "weights below 1e-4 are dropped",
        lambda q, k, v: torch.nn.functional.threshold(scores(q, k).softmax(-1), 1e-4, 0.0) @ v,
        At(scale=2, l=30),
    ),
]

GRADIENTS: list[Row] = [
    (
        "the gradient of v is averaged over a batch",
        lambda q, k, v: attend(q, k, regrad(v, 1 / max(1, v.shape[:-2].numel()))),
        At(lead=(3,), of="gradient"),
    ),
    (
        "no gradient of k where it is q",
        lambda q, k, v: attend(q, k.detach() if k is q else k, v),
        At(n=6, l=6, tied=True, of="gradient"),
    ),
    ("the second derivative is none", once, At(of="second")),
    (
        "the gradient of shared values is a mean",
        of_few,
        At(lead=(3,), key_lead=(), of="gradient"),
    ),
    (
        "gradients of k are clipped to 0.05",
        lambda q, k, v: attend(q, passed(k, lambda g: g.clamp(-0.05, 0.05)), v),
        At(of="gradient"),
    ),
    (
        "the gradient of q lacks the scale beyond width 8",
        lambda q, k, v: attend(regrad(q, q.shape[-1] ** 0.5 if q.shape[-1] > 8 else 1), k, v),
        At(d=16, of="gradient"),
    ),
    (
        "no gradient of queries beyond 32",
        unless(
            lambda q, k, v: attend(torch.cat((q[..., :32, :], q[..., 32:, :].detach()), -2), k, v),
            lambda q, k, v: q.shape[-2] > 32,
        ),
        At(n=40, of="gradient"),
    ),
    (
        "gradients of heads are exchanged",
        unless(lambda q, k, v: attend(q, k, passed(v, lambda g: g.flip(1))), four),
        At(lead=(2, 3), of="gradient"),
    ),
    (
        "no gradient of q where k needs none",
        lambda q, k, v: attend(q if k.requires_grad else q.detach(), k, v),
        At(of="q alone"),
    ),
    (
        "the gradient of k is that of the first sample",
        lambda q, k, v: attend(q, passed(k, lambda g: g[:1].expand_as(g) if g.ndim > 2 else g), v),
        At(lead=(3,), of="gradient"),
    ),
    (
        "no gradient beyond 64 keys",
        unless(lambda q, k, v: attend(q.detach(), k.detach(), v), longer(64)),
        At(l=70, of="gradient"),
    ),
    (
        "the gradient of large scores is cut",
        lambda q, k, v: (
            torch.where(scores(q, k).abs() > 3, scores(q, k).detach(), scores(q, k)).softmax(-1) @ v
        ),
        At(scale=2, of="gradient"),
    ),
    (
        "the gradient under a mask counts masked keys",
        masked(
            lambda q, k, v, m: attend(q, k, v, m) + (mean(q, k, v) - mean(q, k, v).detach()) * 1e-3
        ),
        At(mask=(), of="gradient"),
    ),
]

STATE: list[tuple[str, Callable[[], Call], Callable[[Any], float]]] = [
    (
        "keys are remembered by their address",
        lambda: remembering(lambda k: (k.data_ptr(), k.shape), lambda k: k.clone()),
        twice(lambda x: x[1].mul_(-2)),
    ),
    (
        "keys' means are remembered by their shape",
        lambda: remembering(lambda k: (k.shape, k.dtype), lambda k: k.detach().clone()),
        twice(lambda x: x[1].mul_(-2)),
    ),
    ("strides are not read", lambda: lambda q, k, v: attend(q, raw(k), v), view(column_major)),
    (
        "an offset is not read",
        lambda: lambda q, k, v: attend(q, k, v if v.requires_grad else raw(v, 0)),
        view(offset),
    ),
    ("outputs of one shape share their memory", buffer, kept_results),
    (
        "the global generator is seeded",
        lambda: before(lambda *_: torch.manual_seed(0)),
        disturbs(lambda: torch.get_rng_state().tolist()),
    ),
    (
        "the global generator is drawn from",
        lambda: before(lambda *_: torch.rand(1)),
        disturbs(lambda: torch.get_rng_state().tolist()),
    ),
    (
        "Python's generator is seeded",
        lambda: before(lambda *_: random.seed(0)),
        disturbs(random.getstate),
    ),
    (
        "the default dtype is changed",
        lambda: before(lambda q, k, v: torch.set_default_dtype(torch.float64)),
        disturbs(torch.get_default_dtype),
    ),
    (
        "the number of threads is changed",
        lambda: before(lambda q, k, v: torch.set_num_threads(3)),
        disturbs(torch.get_num_threads),
    ),
    ("queries are kept alive", hoarder, holds),
    (
        "gradients are switched off for good",
        lambda: before(lambda q, k, v: torch.set_grad_enabled(False)),
        disturbs(torch.is_grad_enabled),
    ),
    (
        "one token's output is the memory of v",
        lambda: lambda q, k, v: v if q.shape[-2] == k.shape[-2] == 1 else attend(q, k, v),
        shares,
    ),
    (
        "noise of 1e-6",
        lambda: lambda q, k, v: attend(q, k, v) + 1e-6 * torch.rand(1, dtype=v.dtype),
        At(),
    ),
    (
        "the caller's q is made to ask for a gradient",
        lambda: before(lambda q, k, v: q.requires_grad_()),
        asks_gradient,
    ),
    ("twice the output from the 30th call on", tiring, fortieth),
    (
        "deterministic algorithms are switched on",
        lambda: before(lambda q, k, v: torch.use_deterministic_algorithms(True)),
        disturbs(torch.are_deterministic_algorithms_enabled),
    ),
]

_TIED = At(n=7, l=7, tied=True)


def _distances(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return gaussian(q, k, v) * (1 + 1e-3 * q.norm(dim=-1, keepdim=True))


CLAIMS = [
    _claim(
        "scores over d for those over its root",
        said(lambda q, k, v: attend(q, k, v, scale=1 / q.shape[-1]), target=Softmax()),
        At(),
        attend,
    ),
    _claim(
        "a Gaussian without the 2 of its exponent",
        said(lambda q, k, v: gaussian(2**0.5 * q, 2**0.5 * k, v), target=GaussianAttention()),
        At(right=gaussian),
        gaussian,
    ),
    _claim(
        "the cost is said to be four times as large",
        lambda: altered(
            Local(window=2),
            cost=lambda op, dims: dataclasses.replace(
                base_of(op).cost(dims), flops=4 * base_of(op).cost(dims).flops
            ),
        ),
        costs(Dims(1, 20, 20, 4, 3)),
        Local(window=2),
    ),
    _claim(
        "the cost does not see the width of v",
        lambda: altered(
            Nystromformer(rank=3),
            cost=lambda op, dims: base_of(op).cost(dataclasses.replace(dims, e=dims.d)),
        ),
        costs(Dims(1, 20, 20, 4, 3)),
        Nystromformer(rank=3),
    ),
    _claim(
        "the cost does not see the batch",
        lambda: altered(
            Softmax(), cost=lambda op, dims: base_of(op).cost(dataclasses.replace(dims, batch=1))
        ),
        costs(Dims(6, 20, 20, 4, 3)),
        Softmax(),
    ),
    _claim(
        "the cost takes the number of keys for that of queries",
        lambda: altered(
            Linformer(rank=3),
            cost=lambda op, dims: base_of(op).cost(dataclasses.replace(dims, n=dims.l)),
        ),
        costs(Dims(1, 20, 30, 4, 3)),
        Linformer(rank=3),
    ),
    _claim(
        "a rank that is one less",
        lambda: altered(
            Soft(rank=4), __call__=lambda op, *x: base_of(op, rank=max(1, op.rank - 1))(*x)
        ),
        differs(_TIED),
        Soft(rank=4),
    ),
    _claim(
        "landmarks of which the last is the first",
        lambda: Nystromformer(
            rank=4,
            landmarks=altered(
                SegmentMeans(),
                __call__=lambda _, x, m, mask=None: torch.cat(
                    ((z := SegmentMeans()(x, m, mask))[..., : m - 1, :], z[..., :1, :]), -2
                ),
            ),
        ),
        lambda op: dataclasses.replace(
            At(n=20, l=20), right=dataclasses.replace(op, landmarks=SegmentMeans())
        )(op),
        Nystromformer(rank=4),
    ),
    _claim(
        "a window one token short",
        lambda: altered(
            Local(window=4), __call__=lambda op, *x: base_of(op, window=max(1, op.window - 1))(*x)
        ),
        differs(At(n=12, l=12)),
        Local(window=4),
    ),
    _claim(
        "a window one token short of more than ten",
        lambda: altered(
            Local(window=12),
            __call__=lambda op, *x: base_of(op, window=op.window - (op.window > 10))(*x),
        ),
        differs(At(n=30, l=30)),
        Local(window=12),
    ),
    _claim(
        "tokens are rounded to half precision before their features",
        lambda: altered(
            Performer(features=8, weights=IID()),
            __call__=lambda op, q, k, v, key_mask=None: base_of(op)(
                q.half().to(q.dtype), k.half().to(k.dtype), v, key_mask
            ),
        ),
        differs(At()),
        Performer(features=8, weights=IID()),
    ),
    _claim(
        "distances by expanded squares, far from the origin",
        said(by_products, "query_equivariant, key_invariant, reads=distances"),
        At(shift=1e5, right=gaussian),
        gaussian,
    ),
    _claim(
        "distances by expanded squares, a target said",
        said(by_products, target=GaussianAttention()),
        At(shift=1e5, right=gaussian),
        gaussian,
    ),
    _claim(
        "an indefinite kernel that is said to be definite",
        said(lambda q, k, v: (q @ k.mT - 1).tanh() @ v, "symmetric, psd"),
        belied(_TIED, lambda x: bool(torch.linalg.eigvalsh(x)[0] > -1e-9)),
        gaussian,
    ),
    _claim(
        "rows that sum to less than one are said to sum to one",
        said(
            lambda q, k, v: (w := scores(q, k).exp()) @ v / (w.sum(-1, keepdim=True) + 0.01),
            "row_stochastic, nonnegative",
        ),
        belied(At(), lambda x: bool((x.sum(-1) - 1).abs().max() < 1e-9)),
        attend,
    ),
    _claim(
        "weights that can be negative are said not to be",
        said(lambda q, k, v: (1 + scores(q, k) / 3) @ v, "nonnegative"),
        belied(At(scale=3), lambda x: bool(x.min() >= 0)),
        attend,
    ),
    _claim(
        "norms are read where distances alone are said to be",
        said(_distances, "reads=distances"),
        At(right=gaussian),
        gaussian,
    ),
    _claim(
        "a thousandth of the mean leaks into what is said to be causal",
        said(lambda q, k, v: causal(q, k, v) + 1e-3 * v.mean(-2, keepdim=True), "causal"),
        At(n=7, right=causal),
        causal,
    ),
    _claim(
        "the matrix is formed where linear memory is said",
        said(attend, "linear_memory", Softmax()),
        squares,
        Softmax(),
    ),
    _claim(
        "random features with one part in their number too much",
        lambda: altered(
            RandomFourier(features=16, target=GaussianAttention()),
            __call__=lambda op, *x: (1 + 1 / op.features) * base_of(op)(*x),
        ),
        differs(At()),
        RandomFourier(features=16, target=GaussianAttention()),
    ),
    _claim(
        "one key less than k of eight or more",
        lambda: altered(TopK(k=9), __call__=lambda op, *x: base_of(op, k=op.k - (op.k >= 8))(*x)),
        differs(At(l=12)),
        TopK(k=9),
    ),
    _claim(
        "the seed is not read",
        lambda: altered(
            HyperAttention(block=2, seed=3),
            __call__=lambda op, *x: base_of(op, seed=0)(*x),
        ),
        differs(At(n=200, l=200)),
        HyperAttention(block=2, seed=3),
    ),
    _claim(
        "scores of the first query are larger where all are said to be alike",
        said(
            lambda q, k, v: attend(torch.cat((q[..., :1, :] * 1.01, q[..., 1:, :]), -2), k, v),
            "query_equivariant",
        ),
        At(),
        attend,
    ),
    _claim(
        "the last key weighs more where all are said to be alike",
        said(
            lambda q, k, v: attend(
                q, k, v, bias=1e-3 * (torch.arange(k.shape[-2]) == k.shape[-2] - 1).to(q.dtype)
            ),
            "key_invariant, row_stochastic",
        ),
        At(),
        attend,
    ),
    _claim(
        "a low rank with a small part of full rank",
        lambda: altered(
            Linformer(rank=3),
            __call__=lambda op, q, k, v, key_mask=None: (
                base_of(op)(q, k, v, key_mask) + 1e-6 * Softmax()(q, k, v, key_mask)
            ),
        ),
        differs(At(n=12, l=12)),
        Linformer(rank=3),
    ),
    _claim(
        "the smallest of the kept singular values is replaced by the next",
        lambda: altered(TruncatedSVD(rank=2), __call__=_next_value),
        differs(At(n=8, l=8)),
        TruncatedSVD(rank=2),
    ),
    _claim(
        "causal attention is said to approximate all of softmax",
        said(causal, target=Softmax()),
        At(n=7),
        attend,
    ),
    _claim(
        "a Taylor series that ends a term early",
        lambda: altered(
            Taylor(),
            __call__=lambda _, q, k, v, key_mask=None: _first_order(q, k, v, key_mask),
        ),
        differs(At()),
        Taylor(),
    ),
    _claim(
        "relu features for elu + 1",
        lambda: altered(
            LinearAttention(),
            __call__=lambda _, q, k, v, key_mask=None: _relu_features(q, k, v, key_mask),
        ),
        differs(At()),
        LinearAttention(),
    ),
    _claim(
        "keys are rounded on one scale for the batch",
        lambda: altered(
            Quantized(),
            __call__=lambda op, q, k, v, key_mask=None: base_of(op)(
                q + 0 * q.abs().amax(), _coarse(k), v, key_mask
            ),
        ),
        differs(At(lead=(3,))),
        Quantized(),
    ),
    _claim(
        "strided landmarks that begin one token late",
        lambda: Soft(
            rank=4,
            landmarks=altered(
                Strided(),
                __call__=lambda _, x, m, mask=None: Strided()(
                    x.roll(-1, -2) if x.shape[-2] > m else x, m, mask
                ),
            ),
        ),
        lambda op: dataclasses.replace(
            At(n=20, l=20, tied=True), right=Soft(rank=op.rank, landmarks=Strided())
        )(op),
        Soft(rank=4, landmarks=Strided()),
    ),
]


def _next_value(op: Any, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
    fewer, more = (base_of(op, rank=max(1, op.rank + x)) for x in (-1, 1))
    whole = base_of(op)(q, k, v, key_mask)
    if op.rank < 2 or op.rank + 1 >= min(q.shape[-2], k.shape[-2]):
        return whole
    return fewer(q, k, v, key_mask) + more(q, k, v, key_mask) - whole


def _first_order(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> Tensor:
    weights = 1 + scores(q, k)
    weights = weights if key_mask is None else weights * key_mask.unsqueeze(-2)
    return weights @ v / weights.sum(-1, keepdim=True)


def _relu_features(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> Tensor:
    weights = (q.relu() + 1e-3) @ (k.relu() + 1e-3).mT
    weights = weights if key_mask is None else weights * key_mask.unsqueeze(-2)
    return weights @ v / weights.sum(-1, keepdim=True)


def _coarse(k: Tensor) -> Tensor:
    step = k.abs().amax() / 127 if k.numel() else 1.0
    return (k / step).round() * step


OPERATORS: tuple[Planted, ...] = (
    *(_plain(x[0], "sizes", *x[1:]) for x in SIZES),
    *(_plain(x[0], "leading", *x[1:]) for x in LEADING),
    *(_plain(x[0], "masks", *x[1:]) for x in MASKS),
    *(_plain(x[0], "precision", *x[1:]) for x in PRECISION),
    *(_plain(x[0], "gradients", *x[1:]) for x in GRADIENTS),
    *(_made(*x) for x in STATE),
    *CLAIMS,
)
