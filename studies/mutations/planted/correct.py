"""Right attention and right inverses in unusual style, in which no law should find fault."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg
import torch
from torch import Tensor, nn
from torch.nn.functional import elu, normalize, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from softlab import laws

from . import Sound
from .shown import At, Call, Kept, Of, attend, causal, gaussian

# -- style


class Module(nn.Module):
    """A module without parameters."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Softmax attention."""
        return attend(q, k, v)


class Dropping(nn.Module):
    """A module with dropout, which evaluates."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Softmax attention."""
        weights = q @ k.mT / math.sqrt(q.shape[-1])
        if key_mask is not None:
            v = torch.where(key_mask.unsqueeze(-1), v, 0)
            return attend(q, k, v, key_mask)
        out: Tensor = self.drop(weights.softmax(-1)) @ v
        return out


class Learned(nn.Module):
    """A bias by relative position, learned (that is, random here), and a learned temperature."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(5)
        self.table = nn.Parameter(torch.randn(33, generator=draw, dtype=torch.float64))
        self.log_scale = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Softmax attention with that bias."""
        bias = self.table[relative(q, k).clamp(-16, 16) + 16].to(q.dtype)
        scale = self.log_scale.exp() * q.shape[-1] ** -0.5
        return attend(q * (scale * q.shape[-1] ** 0.5).to(q.dtype), k, v, bias=bias)


class Held:
    """A callable object that holds a lock and counts its calls."""

    def __init__(self) -> None:
        self.lock, self.calls = threading.Lock(), 0

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Softmax attention."""
        with self.lock:
            self.calls += 1
            return attend(q, k, v)

    def method(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The same as a bound method."""
        return self(q, k, v)


class Flash(Kept):
    """Attention with a backward pass by hand, of operations that torch differentiates."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        """The textbook formula."""
        q, k, v = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        weights = (q @ k.mT * scale).softmax(-1)
        into = grad @ v.mT
        scores = weights * (into - (weights * into).sum(-1, keepdim=True)) * scale
        found = (scores @ k, scores.mT @ q, weights.mT @ grad)
        pairs = zip(found, (q, k, v), strict=True)
        return tuple(x.sum_to_size(y.shape) for x, y in pairs)


class NumpyAttention(torch.autograd.Function):
    """Forward and backward by NumPy."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Keep the inputs."""
        ctx.save_for_backward(q, k, v)
        return by_numpy(q, k, v)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        """By torch, which recomputes."""
        graph, saved = torch.is_grad_enabled(), ctx.saved_tensors
        with torch.enable_grad():
            leaves = [
                x.view_as(x) if x.requires_grad else x.detach().requires_grad_() for x in saved
            ]
            return torch.autograd.grad(attend(*leaves), leaves, grad, create_graph=graph)


def relative(q: Tensor, k: Tensor) -> Tensor:
    """Position of key less that of query."""
    return torch.arange(k.shape[-2]) - torch.arange(q.shape[-2]).unsqueeze(-1)


def by_numpy(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """In NumPy, in float64, without a gradient."""
    a, b, c = (x.detach().double().numpy() for x in (q, k, v))
    scores = np.einsum("...nd,...ld->...nl", a, b) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    out = weights / weights.sum(-1, keepdims=True) @ c
    return torch.from_numpy(np.ascontiguousarray(out)).to(v.dtype)


def by_dlpack(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Inputs through the exchange of DLPack."""
    q, k, v = (torch.utils.dlpack.from_dlpack(x.detach().clone()) for x in (q, k, v))
    return attend(q, k, v)


def varied(*tensors: Tensor, **options: Any) -> Tensor:
    return attend(*tensors)


def keyword_mask(q: Tensor, k: Tensor, v: Tensor, *, key_mask: Tensor | None = None) -> Tensor:
    return attend(q, k, v, key_mask)


def other_names(query: Tensor, key: Tensor, value: Tensor, temperature: float = 1.0) -> Tensor:
    return attend(query / temperature, key, value)


def einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.einsum("...id,...jd->...ij", q, k).div(q.shape[-1] ** 0.5).softmax(-1)
    return torch.einsum("...ij,...je->...ie", weights, v)


def flattened(call: Call) -> Call:
    """A function of three dimensions, for any."""

    def operator(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        lead = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
        flat = (x.expand(*lead, *x.shape[-2:]).reshape(-1, *x.shape[-2:]) for x in (q, k, v))
        out = call(*flat)
        return out.reshape(*lead, *out.shape[-2:])

    return operator


def by_bmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    zero = q.new_zeros(len(q), q.shape[1], k.shape[1])
    return torch.bmm(torch.baddbmm(zero, q, k.mT, alpha=q.shape[-1] ** -0.5).softmax(-1), v)


def by_loop(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.stack([attend(*x) for x in zip(q, k, v, strict=True)])


def by_rows(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.cat([attend(x, k, v) for x in q.split(1, -2)], -2)


def chunked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.cat([attend(x, k, v) for x in q.split(3, -2)], -2)


def online(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Blocks of four keys in turn, rescaled; sums in half precision would stand still."""
    wide = torch.promote_types(q.dtype, torch.float32)
    top: Any = -torch.inf
    out: Any = 0.0
    total: Any = 0.0
    for x, y in zip(k.split(4, -2), v.split(4, -2), strict=True):
        scores = (q @ x.mT / math.sqrt(q.shape[-1])).to(wide)
        new = scores.amax(-1, keepdim=True).clamp_min(top)
        new = new if isinstance(top, float) else torch.maximum(new, top)
        weights, old = (scores - new).exp(), torch.exp(torch.as_tensor(top).to(new) - new)
        out, total = out * old + weights @ y.to(wide), total * old + weights.sum(-1, keepdim=True)
        top = new
    return (out / total).to(q.dtype)


def merged(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Two halves of the keys, merged by their log-sum-exp."""
    half = (k.shape[-2] + 1) // 2
    parts, sums = [], []
    for x, y in ((k[..., :half, :], v[..., :half, :]), (k[..., half:, :], v[..., half:, :])):
        if x.shape[-2]:
            parts.append(attend(q, x, y))
            sums.append((q @ x.mT / math.sqrt(q.shape[-1])).logsumexp(-1))
    shares = torch.stack(sums).softmax(0).unsqueeze(-1)
    return (torch.stack(parts) * shares).sum(0)


def by_log(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.mT * q.shape[-1] ** -0.5
    return (scores - scores.logsumexp(-1, keepdim=True)).exp() @ v


def vmapped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.func.vmap(attend)(q, k, v)


def checkpointed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return checkpoint(attend, q, k, v, use_reentrant=False)


def in_float64(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(q.double(), k.double(), v.double()).to(v.dtype)


def strided(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """An output that is a transposed view."""
    return attend(q, k, v).mT.contiguous().mT


def in_place(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """In place on what is its own."""
    weights = q @ k.mT
    weights = weights.div_(math.sqrt(q.shape[-1])).sub_(weights.amax(-1, keepdim=True).detach())
    weights = weights.exp()
    return weights / weights.sum(-1, keepdim=True) @ v


def fused(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """Torch's fused attention with a mask."""
    if key_mask is None:
        return scaled_dot_product_attention(q, k, v)
    k, v = (torch.where(key_mask.unsqueeze(-1), x, 0) for x in (k, v))
    return scaled_dot_product_attention(q, k, v, attn_mask=key_mask.unsqueeze(-2))


def multi_head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """nn.MultiheadAttention of one head with identities for weights, on three dimensions."""
    d, e = q.shape[-1], v.shape[-1]
    sizes: Any = {"embed_dim": d, "num_heads": 1, "bias": False, "batch_first": True, "vdim": d}
    layer: Any = nn.utils.skip_init(nn.MultiheadAttention, **sizes, dtype=q.dtype)
    with torch.no_grad():
        layer.in_proj_weight.copy_(torch.eye(d, dtype=q.dtype).repeat(3, 1))
        layer.out_proj.weight.copy_(torch.eye(d, dtype=q.dtype))
    parts = []
    for x in v.split(d, -1):  # as many columns at a time as the layer is wide
        whole = nn.functional.pad(x, (0, d - x.shape[-1]))
        parts.append(layer(q, k, whole, need_weights=False)[0][..., : x.shape[-1]])
    return torch.cat(parts, -1)[..., :e]


@functools.cache
def slopes(n: int, l: int) -> Tensor:
    """Of ALiBi, kept by their sizes."""
    return -0.3 * (torch.arange(l) - torch.arange(n).unsqueeze(-1)).abs().double()


def alibi(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(q, k, v, bias=slopes(q.shape[-2], k.shape[-2]).to(q.dtype))


def right_alibi(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(q, k, v, bias=-0.3 * relative(q, k).abs().to(q.dtype))


def right_learned(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    draw = torch.Generator().manual_seed(5)
    table = torch.randn(33, generator=draw, dtype=torch.float64)
    return attend(q, k, v, bias=table[relative(q, k).clamp(-16, 16) + 16])


def turned(x: Tensor) -> Tensor:
    """Pairs of columns turned by an angle that grows with the position; an odd one is left."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[-2]).unsqueeze(-1) * 10.0 ** -torch.arange(half).double()
    cos, sin = (y.to(x.dtype) for y in (angle.double().cos(), angle.double().sin()))
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((a * cos - b * sin, a * sin + b * cos, rest), -1)


def rotary(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """Positions are those of the tokens with what is masked."""
    return attend(turned(q), turned(k), v, key_mask)


def right_rotary(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same by complex numbers."""
    half, n = q.shape[-1] // 2, max(q.shape[-2], k.shape[-2])
    angle = torch.arange(n).double().unsqueeze(-1) * 10.0 ** -torch.arange(half).double()
    wave = torch.polar(torch.ones_like(angle), angle)

    def turn(x: Tensor) -> Tensor:
        y = torch.complex(x[..., :half], x[..., half : 2 * half]) * wave[: x.shape[-2]]
        return torch.cat((y.real, y.imag, x[..., 2 * half :]), -1)

    return attend(turn(q), turn(k), v)


def sink(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax off by one."""
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    none = torch.zeros_like(scores[..., :1])
    return torch.cat((none, scores), -1).softmax(-1)[..., 1:] @ v


def right_sink(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (q @ k.mT / math.sqrt(q.shape[-1])).exp()
    return weights @ v / (1 + weights.sum(-1, keepdim=True))


def sink_token(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A learned key (of ones) whose value is zero."""
    k = torch.cat((torch.ones_like(k[..., :1, :]), k), -2)
    return attend(q, k, torch.cat((torch.zeros_like(v[..., :1, :]), v), -2))


def right_sink_token(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    root = math.sqrt(q.shape[-1])
    weights, one = (q @ k.mT / root).exp(), (q.sum(-1, keepdim=True) / root).exp()
    return weights @ v / (one + weights.sum(-1, keepdim=True))


def causal_fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scaled_dot_product_attention(q, k, v, is_causal=True)


def window(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """Keys at most three away, and the first; positions with what is masked."""
    far = (relative(q, k).abs() > 3) & (torch.arange(k.shape[-2]) > 0)
    dtype = q.dtype if q.dtype.itemsize >= 4 else torch.float32
    bias = torch.zeros(far.shape, dtype=dtype).masked_fill(far, torch.finfo(dtype).min / 2)
    return attend(q, k, v, key_mask, bias=bias)


def right_window(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    near = (relative(q, k).abs() <= 3) | (torch.arange(k.shape[-2]) == 0)
    weights = (q @ k.mT / math.sqrt(q.shape[-1])).exp() * near
    return weights @ v / weights.sum(-1, keepdim=True)


# -- other kinds of attention


def elu_linear(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """With the 1e-6 of its authors, since features of large tokens can all be zero."""
    q, k = elu(q) + 1, elu(k) + 1
    return q @ (k.mT @ v) / (q @ k.sum(-2).unsqueeze(-1) + 1e-6)


def right_elu(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    def feature(x: Tensor) -> Tensor:
        return torch.where(x > 0, x + 1, x.clamp_max(0).exp())

    weights = feature(q) @ feature(k).mT
    return weights / (weights.sum(-1, keepdim=True) + 1e-6) @ v


def by_cdist(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Gaussian attention by torch.cdist, half precision in float32."""
    a, b = (x.float() if x.dtype.itemsize < 4 else x for x in (q, k))
    far = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()
    return ((-far / (2 * math.sqrt(q.shape[-1]))).exp() @ v.to(a.dtype)).to(v.dtype)


def cosine(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (10 * normalize(q, dim=-1) @ normalize(k, dim=-1).mT).softmax(-1) @ v


def right_cosine(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    sizes = q.norm(dim=-1, keepdim=True) * k.norm(dim=-1).unsqueeze(-2)
    return (10 * q @ k.mT / sizes).softmax(-1) @ v


def weighted(of: Callable[[Tensor], Tensor]) -> Call:
    """A function of the scores, by one product."""

    def operator(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return of(q @ k.mT / math.sqrt(q.shape[-1])) @ v

    return operator


def summed(of: Callable[[Tensor], Tensor]) -> Call:
    """The same by sums, entry by entry."""

    def operator(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = (q.unsqueeze(-2) * k.unsqueeze(-3)).sum(-1) / math.sqrt(q.shape[-1])
        return (of(scores).unsqueeze(-1) * v.unsqueeze(-3)).sum(-2)

    return operator


def hardest(s: Tensor) -> Tensor:
    """All weight on the largest score."""
    return torch.zeros_like(s).scatter(-1, s.argmax(-1, keepdim=True), 1.0)


def relu_squared(s: Tensor) -> Tensor:
    """Weights relu(s)^2, not normalised."""
    return s.relu().square()


def top(s: Tensor) -> Tensor:
    """Softmax of the four largest."""
    least = s.topk(min(4, s.shape[-1]), -1).values[..., -1:]
    return s.masked_fill(s < least, -torch.inf).softmax(-1)


def sparsemax(s: Tensor) -> Tensor:
    """The projection of the scores on the simplex (Martins and Astudillo 2016)."""
    s = s - s.amax(-1, keepdim=True)
    z = s.sort(-1, descending=True).values
    count = torch.arange(1, s.shape[-1] + 1, dtype=s.dtype)
    size = (1 + count * z > z.cumsum(-1)).sum(-1, keepdim=True)
    threshold = (z.cumsum(-1).gather(-1, size - 1) - 1) / size
    return (s - threshold).relu()


def positive(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Positive random features of a fixed draw, stabilised exactly."""
    draw = torch.Generator().manual_seed(7)
    w = torch.randn(32, q.shape[-1], generator=draw, dtype=torch.float64).to(q.dtype)
    q, k = (x * q.shape[-1] ** -0.25 for x in (q, k))
    of_k = k @ w.mT - k.square().sum(-1, keepdim=True) / 2
    top = of_k.amax(-2, keepdim=True)
    of_q = (q @ w.mT + top).softmax(-1)
    of_k = (of_k - top).exp()
    weights = of_q @ of_k.mT
    return weights @ v / weights.sum(-1, keepdim=True)


def right_positive(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    draw = torch.Generator().manual_seed(7)
    w = torch.randn(32, q.shape[-1], generator=draw, dtype=torch.float64)
    a, b = ((x * q.shape[-1] ** -0.25) for x in (q, k))
    features = [(x @ w.mT - x.square().sum(-1, keepdim=True) / 2).exp() for x in (a, b)]
    weights = features[0] @ features[1].mT
    return weights @ v / weights.sum(-1, keepdim=True)


def softcapped(s: Tensor) -> Tensor:
    """Scores kept below 30 by a tanh."""
    return (30 * (s / 30).tanh()).softmax(-1)


def scalable(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scores times the logarithm of how many keys there are."""
    return attend(q * math.log(k.shape[-2] + 1), k, v)


def normed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Queries and keys divided by their root mean squares."""
    q, k = (nn.functional.rms_norm(x, x.shape[-1:], eps=1e-6) for x in (q, k))
    return attend(q, k, v)


def right_normed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k = (x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() for x in (q, k))
    return attend(q, k, v)


def averaged(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The mean of v for each query."""
    rows = (q[..., :1] + k[..., :1, :1]) * 0
    return v.mean(-2, keepdim=True) + rows


def inverse_distance(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = 1 / (1 + (q.unsqueeze(-2) - k.unsqueeze(-3)).square().sum(-1))
    return weights @ v / weights.sum(-1, keepdim=True)


def right_inverse(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    far = q.square().sum(-1, keepdim=True) + k.square().sum(-1).unsqueeze(-2) - 2 * q @ k.mT
    return (1 / (1 + far)) @ v / (1 / (1 + far)).sum(-1, keepdim=True)


def mixed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The difference of two attentions, the second by half and softer."""
    return attend(q, k, v) - 0.5 * attend(q / 2, k, v)


def scripted() -> Any:
    """By torch.jit.script, which warns that it is old."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(_plain_attention)


def _plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.matmul(torch.softmax(torch.matmul(q, k.mT) / q.size(-1) ** 0.5, -1), v)


def softmax_of(s: Tensor) -> Tensor:
    return s.softmax(-1)


def module() -> Any:
    """Parameters passed by torch.func."""
    layer = Learned()
    return lambda q, k, v: torch.func.functional_call(
        layer, dict(layer.named_parameters()), (q, k, v)
    )


PLACES = (At(), At(n=6, l=6, lead=(2, 3), scale=1.5), At(n=1, l=9, lead=(4,), e=5))
SLOPES = tuple(At(n=x.n, l=x.l, d=x.d, e=x.e, lead=x.lead, of="gradient") for x in PLACES)
SQUARE = (At(n=7), At(n=6, l=6, lead=(2, 3)))


def everywhere(right: Call, *, gradient: bool = True, places: Any = PLACES) -> Call:
    """The largest of what it is apart at several inputs, masks not among them."""
    slopes = [At(**{**x.__dict__, "of": "gradient"}) for x in places] if gradient else []

    def shown(subject: Any) -> float:
        return max(At(**{**x.__dict__, "right": right})(subject) for x in (*places, *slopes))

    return shown


def _right(
    name: str, call: Call, right: Call = attend, *, gradient: bool = True, places: Any = PLACES
) -> Sound:
    shown = everywhere(right, gradient=gradient, places=places)
    return Sound(name, lambda: call, shown)


def _built(name: str, make: Callable[[], Any], right: Call = attend) -> Sound:
    return Sound(name, make, everywhere(right))


OPERATORS: tuple[Sound, ...] = (
    _built("a module", Module),
    _built("a module with dropout that evaluates", lambda: Dropping().eval()),
    _built("a module with a learned bias and temperature", Learned, right_learned),
    _built("a module called with its parameters", module, right_learned),
    _right("a partial", functools.partial(attend, scale=None)),
    _right("a lambda", lambda q, k, v: attend(q, k, v)),
    _built("an object with a lock", Held),
    _built("a bound method", lambda: Held().method),
    _right("NumPy, without a gradient", by_numpy, gradient=False),
    _right(
        "NumPy with a gradient by hand",
        lambda q, k, v: NumpyAttention.apply(q, k, v),
    ),
    _right("through DLPack, without a gradient", by_dlpack, gradient=False),
    _right("variable arguments", varied),
    _right("a keyword for the mask", keyword_mask),
    _right("other names, and an option", other_names),
    _right("einsum", einsum),
    _right("baddbmm on three dimensions", flattened(by_bmm)),
    _right("a loop over the batch", flattened(by_loop)),
    _right("a loop over queries", by_rows),
    _right("chunks of queries", chunked),
    _right("blocks of keys, rescaled", online),
    _right("two halves merged", merged),
    _right("log-sum-exp", by_log),
    _right("vmap", flattened(vmapped)),
    _right("checkpointed", checkpointed),
    _right("float64 inside", in_float64),
    _right("an output that is a view", strided),
    _right("in place on its own", in_place),
    _right(
        "a backward pass by hand",
        lambda q, k, v: Flash.apply(q, k, v),
    ),
    _right("torch's fused attention", scaled_dot_product_attention),
    _right("fused attention with a mask", fused),
    _right("nn.MultiheadAttention", flattened(multi_head)),
    _built("scripted", scripted),
    _built(
        "compiled by the eager backend",
        lambda: torch.compile(_plain_attention, backend="eager", dynamic=True),
    ),
    _right("ALiBi, its slopes kept", alibi, right_alibi),
    _right("rotary positions", lambda q, k, v: rotary(q, k, v), right_rotary),
    _right("rotary positions and a mask", rotary, right_rotary),
    _right("softmax off by one", sink, right_sink),
    _right("a sink token", sink_token, right_sink_token),
    _right("causal by a bias", causal, causal, places=SQUARE),
    _right("causal by the fused kernel", causal_fused, causal, places=SQUARE),
    _right("a window", lambda q, k, v: window(q, k, v), right_window),
    _right("a window and a mask", window, right_window),
    _right("linear attention by elu + 1", elu_linear, right_elu),
    _right("Gaussian by cdist", by_cdist, gaussian),
    _right("Gaussian by differences", gaussian, gaussian),
    _right("cosine", cosine, right_cosine),
    _right("sigmoid", weighted(torch.sigmoid), summed(lambda s: 1 / (1 + (-s).exp()))),
    _right("hard maximum", weighted(hardest), summed(hardest), gradient=False),
    _right("squared relu", weighted(relu_squared), summed(relu_squared)),
    _right("the four largest", weighted(top), summed(top)),
    _right("sparsemax", weighted(sparsemax), summed(sparsemax)),
    _right("positive random features", positive, right_positive),
    _right("scores capped by tanh", weighted(softcapped), summed(softcapped)),
    _right(
        "scores times the logarithm of the length",
        scalable,
        lambda q, k, v: summed(lambda s: (s * math.log(k.shape[-2] + 1)).softmax(-1))(q, k, v),
    ),
    _right("root mean squares divided out", normed, right_normed),
    _built(
        "the mean of v, said to be blind",
        lambda: laws.adapted(averaged, traits="blind, row_stochastic, nonnegative"),
        lambda q, k, v: attend(q * 0, k, v),
    ),
    _right("inverse distances", inverse_distance, right_inverse),
    _right(
        "a difference of two",
        mixed,
        lambda q, k, v: summed(lambda s: s.softmax(-1) - (s / 2).softmax(-1) / 2)(q, k, v),
    ),
    _right(
        "softmax in float64 alone",
        lambda q, k, v: (
            (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1, dtype=torch.float64).to(v.dtype) @ v
        ),
    ),
)


# -- solvers


class Newton(nn.Module):
    """Sixty steps from A^T / (|A|_1 |A|_inf)."""

    def forward(self, a: Tensor) -> Tensor:
        """The inverse."""
        scale = a.abs().amax((-1, -2), keepdim=True)
        a = a / scale
        sizes = a.abs().sum(-1).amax(-1) * a.abs().sum(-2).amax(-1)
        x = a.mT / sizes[..., None, None]
        for _ in range(60):
            x = x @ (2 * torch.eye(a.shape[-1], dtype=a.dtype) - a @ x)
        return x / scale


class Inverse(torch.autograd.Function):
    """The inverse with its gradient by hand."""

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        """Keep X."""
        x = torch.linalg.inv(a)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """-X^T G X^T."""
        (x,) = ctx.saved_tensors
        return -x.mT @ grad @ x.mT


def widely(call: Call) -> Call:
    """A function of float32 and float64 for half precision, too."""

    def solver(a: Tensor) -> Tensor:
        return call(a.float()).to(a.dtype) if a.dtype.itemsize < 4 else call(a)

    return solver


def eye(a: Tensor) -> Tensor:
    return torch.eye(a.shape[-1], dtype=a.dtype).expand(a.shape)


def by_svd(a: Tensor) -> Tensor:
    """Singular values below m eps of the largest are cut."""
    u, s, vh = torch.linalg.svd(a)
    least = a.shape[-1] * torch.finfo(a.dtype).eps * s[..., :1]
    return vh.mT @ (torch.where(s > least, 1 / s, 0).unsqueeze(-1) * u.mT)


def by_qr(a: Tensor) -> Tensor:
    q, r = torch.linalg.qr(a)
    return torch.linalg.solve_triangular(r, q.mT, upper=True)


def by_scipy(a: Tensor) -> Tensor:
    """Matrix by matrix, without a gradient."""
    flat = a.detach().double().reshape(-1, *a.shape[-2:]).numpy()
    return (
        torch.from_numpy(np.stack([scipy.linalg.pinv(x) for x in flat]))
        .reshape(a.shape)
        .to(a.dtype)
    )


def by_eigh(a: Tensor) -> Tensor:
    """Of symmetric matrices."""
    s, u = torch.linalg.eigh(a)
    least = a.shape[-1] * torch.finfo(a.dtype).eps * s.abs().amax(-1, keepdim=True)
    return (u * torch.where(s.abs() > least, 1 / s, 0).unsqueeze(-2)) @ u.mT


def by_cholesky(a: Tensor) -> Tensor:
    """Of definite matrices."""
    return torch.cholesky_inverse(torch.linalg.cholesky(a))


def _invert(name: str, call: Call, *, gradient: bool = True, kind: str = "any") -> Sound:
    places = [Of(m=m, kind=kind, of=x) for m in (1, 3, 6) for x in ("inverse", "gradient")]
    places = [x for x in places if gradient or x.of == "inverse"]
    return Sound(name, lambda: call, lambda f: max(x(f) for x in places))


def _said(name: str, call: Call, traits: str) -> Sound:
    places = [Of(m=m, kind="definite") for m in (1, 3, 6)]
    return Sound(
        name, lambda: laws.adapted(call, traits=traits), lambda f: max(x(f) for x in places)
    )


SOLVERS: tuple[Sound, ...] = (
    _invert("linalg.inv", torch.linalg.inv),
    _invert("linalg.inv, half precision in float32", widely(torch.linalg.inv)),
    _invert("linalg.pinv", torch.linalg.pinv),
    _invert("linalg.pinv, half precision in float32", widely(torch.linalg.pinv)),
    _invert("linalg.solve", widely(lambda a: torch.linalg.solve(a, eye(a)))),
    _invert("lstsq", widely(lambda a: torch.linalg.lstsq(a, eye(a)).solution)),
    _invert("LU", widely(lambda a: torch.linalg.lu_solve(*torch.linalg.lu_factor(a), eye(a)))),
    _invert("QR", widely(by_qr)),
    _invert("SVD with a cut-off", widely(by_svd)),
    _invert("inv_ex", widely(lambda a: torch.linalg.inv_ex(a).inverse)),
    _invert("a module of Newton's iteration", widely(Newton())),
    _invert("SciPy, without a gradient", by_scipy, gradient=False),
    _invert(
        "a gradient by hand",
        widely(lambda a: Inverse.apply(a)),
    ),
    _invert("an inverse in float64", lambda a: torch.linalg.inv(a.double()).to(a.dtype)),
    _invert(
        "a transposed solve",
        widely(lambda a: torch.linalg.solve(a.mT, eye(a)).mT),
    ),
    _invert(
        "einsum of the singular vectors",
        widely(
            lambda a: torch.einsum(
                "...ji,...j,...kj->...ik", *(lambda u, s, w: (w, 1 / s, u))(*torch.linalg.svd(a))
            )
        ),
    ),
    _said("eigh, definite matrices said", widely(by_eigh), "definite"),
    _said("Cholesky, definite matrices said", widely(by_cholesky), "definite, singular=False"),
)

CORRECT: tuple[Sound, ...] = (*OPERATORS, *SOLVERS)
