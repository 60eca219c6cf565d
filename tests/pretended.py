"""Tensors that say that they are on CUDA, for tests of device code on a machine without a GPU.

Inside ``pretending()`` a ``Pretended`` tensor answers ``cuda:0`` and holds numbers of the CPU, so
that control flow by values, autograd and hand-written backward passes go on. Each of torch's calls

- refuses tensors on two devices, as CUDA does, and what CUDA does not implement;
- is a launch, unless it makes a view;
- is a sync where the host would wait: item, tolist, nonzero, indexing by a mask, torch.linalg's
  decompositions whose status the host reads, and copies to the CPU;
- is an upload where numbers of the CPU are sent, which waits as well.

Fused attention is done plainly, and the backend that torch would take on compute capability 9.0 is
worked out by the rules of aten/src/ATen/native/transformers/cuda/sdp_utils.cpp. ``FAKE`` lets
torch's own FakeTensorMode check the device of every call besides.
"""

import contextlib
import math
import sys
from collections import Counter
from dataclasses import dataclass, field
from unittest import mock

import torch
import torch.utils.checkpoint
from torch import Tensor
from torch._subclasses import fake_tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from softlab import gpu

CUDA = torch.device("cuda:0")
HALF = (torch.float16, torch.bfloat16)
WAITING = {
    *("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "_unique2", "unique_dim"),
    *("unique_consecutive", "masked_select", "bincount", "_linalg_svd", "_linalg_eigh"),
    *("linalg_eig", "linalg_eigvals", "_linalg_eigvals", "_linalg_check_errors"),
}
VIEWS = {
    *("view", "_unsafe_view", "expand", "transpose", "permute", "slice", "select", "unsqueeze"),
    *("squeeze", "detach", "alias", "t", "as_strided", "split", "split_with_sizes", "unbind"),
    *("diagonal", "unfold", "lift_fresh", "_reshape_alias", "is_same_size", "set_", "resize_"),
    *("empty", "new_empty", "new_empty_strided", "empty_strided", "empty_like", "real"),
    "_linalg_check_errors",
}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


class MixedDevicesError(RuntimeError):
    """Tensors on two devices, or a call that CUDA has no kernel for."""


@dataclass
class Tally:
    """What a call asked of the device."""

    kernels: Counter = field(default_factory=Counter)
    syncs: Counter = field(default_factory=Counter)
    uploads: Counter = field(default_factory=Counter)
    attention: list = field(default_factory=list)
    disagreed: Counter = field(default_factory=Counter)

    @property
    def launches(self):
        return self.kernels.total()

    @property
    def waits(self):
        return self.syncs.total() + self.uploads.total()

    def __str__(self):
        most = ", ".join(f"{n} {name}" for name, n in self.kernels.most_common(4))
        return (
            f"{self.launches} launches ({most}), syncs {dict(self.syncs)}, "
            f"uploads {dict(self.uploads)}, attention {self.attention}"
        )


def _map(call, x):
    """``call`` of every leaf of nested lists, tuples and dictionaries; torch's own is slow."""
    if isinstance(x, (tuple, list)):  # what torch.linalg returns has names, and is made alike
        return type(x)([_map(call, part) for part in x])
    if isinstance(x, dict):
        return {name: _map(call, part) for name, part in x.items()}
    return call(x)


def _flat(x, found):
    """The leaves of nested lists, tuples and dictionaries, added to ``found``."""
    for part in x.values() if isinstance(x, dict) else x:
        if isinstance(part, (tuple, list, dict)):
            _flat(part, found)
        else:
            found.append(part)
    return found


def _any(args, kwargs):
    """Whether a pretended tensor is among them."""
    return any(isinstance(x, Pretended) for x in _flat(kwargs, _flat(args, [])))


class _State:
    """What is going on; pretending is for one thread."""

    tally = Tally()
    inside = False
    fake = None


def _where():
    """The innermost line of softlab or of a study on the stack."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        for part in ("/softlab/", "/studies/"):
            if part in name and "/tests/" not in name:
                return f"{name[name.rfind(part) + 1 :]}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


def _wait(what):
    _State.tally.syncs[f"{what} at {_where()}"] += 1


def _sent(what):
    _State.tally.uploads[f"{what} at {_where()}"] += 1


class Pretended(Tensor):
    """A tensor on a pretended device; its numbers are ``held``."""

    @staticmethod
    def __new__(cls, held, requires_grad=False):
        return Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, layout=held.layout, device=held.device, requires_grad=requires_grad,
        )  # fmt: skip

    def __init__(self, held, requires_grad=False):
        self.held = held.detach() if held.requires_grad else held

    def __repr__(self):
        return f"Pretended({self.held})"

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _dispatch(func, args, kwargs or {})


def up(x, requires_grad=False):
    """The tensor on the pretended device, a leaf."""
    return Pretended(x.detach().clone()).requires_grad_(requires_grad)


def down(x):
    """The numbers of a pretended tensor."""
    return x.held if isinstance(x, Pretended) else x


def _refuse_mixed(name, args, flat):
    """Raise where CUDA would, of tensors here and there."""
    away = [x for x in flat if isinstance(x, Tensor) and not isinstance(x, Pretended)]
    if "_for_cpu" in name:
        msg = f"{name} has no CUDA kernel, at {_where()}"
        raise MixedDevicesError(msg)
    if any(isinstance(x, torch.Generator) and x.device.type == "cpu" for x in flat):
        msg = f"{name}: a 'cuda' generator is expected, got 'cpu', at {_where()}"
        raise MixedDevicesError(msg)
    if name in INDEXING:
        for index in args[1] or []:
            if isinstance(index, Tensor) and not isinstance(index, Pretended):
                _sent("an index of the CPU")
        away = [x for x in (args[0], *args[2:3]) if isinstance(x, Tensor)]
        away = [x for x in away if not isinstance(x, Pretended)]
    if name != "copy_" and any(x.dim() for x in away):
        shapes = [tuple(x.shape) for x in away]
        msg = f"{name}: tensors {shapes} are on the CPU, others on cuda:0, at {_where()}"
        raise MixedDevicesError(msg)


def _agree(func, name, args, kwargs):
    """Run the call on FakeTensorMode's tensors of the same devices, which have no numbers."""
    made = {}

    def fake(x):
        if isinstance(x, torch.device):
            return CUDA
        if not isinstance(x, Tensor):
            return x
        if id(x) not in made:
            base, device = down(x), CUDA if isinstance(x, Pretended) else "cpu"
            made[id(x)] = torch.empty_strided(
                base.size(), base.stride(), dtype=base.dtype, device=device
            )
        return made[id(x)]

    try:
        with _State.fake:
            func(*_map(fake, args), **_map(fake, kwargs))
    except (
        fake_tensor.DataDependentOutputException,
        fake_tensor.DynamicOutputShapeException,
        fake_tensor.UnsupportedOperatorException,
        NotImplementedError,
    ):
        pass
    except Exception as error:
        _State.tally.disagreed[f"{name}: {str(error).splitlines()[0][:140]}"] += 1


def _count(func, name, args, kwargs):
    tally = _State.tally
    repeated = name == "repeat_interleave" and func is torch.ops.aten.repeat_interleave.Tensor
    if name in WAITING or (repeated and kwargs.get("output_size") is None):
        _wait(name)
    elif name in INDEXING:
        masks = [i for i in args[1] or [] if isinstance(i, Tensor) and i.dtype == torch.bool]
        if masks and (name == "index" or args[2].numel() != 1):
            _wait(f"{name} by a mask")
    elif name == "copy_" and not isinstance(args[0], Pretended):
        _wait("a copy to the CPU")
    elif name == "copy_" and not isinstance(args[1], Pretended) and args[1].dim():
        _sent("copy_")
    if name not in VIEWS:
        tally.kernels[name] += 1


def _dispatch(func, args, kwargs):
    name = func._schema.name.split("::")[-1]
    flat = _flat(kwargs, _flat(args, []))
    if any(isinstance(x, Pretended) for x in flat):
        _refuse_mixed(name, args, flat)
        if _State.fake is not None:
            _agree(func, name, args, kwargs)
        _count(func, name, args, kwargs)
    elif name not in VIEWS:
        _State.tally.kernels[name] += 1
    call = OURS.get(name, func)
    out = call(*_map(down, args), **_map(down, kwargs))
    if name == "copy_":
        return args[0]
    own = {id(down(x)): x for x in flat if isinstance(x, Tensor)}

    def wrap(x):
        if not isinstance(x, Tensor) or isinstance(x, Pretended):
            return x
        return own[id(x)] if id(x) in own else Pretended(x)

    return _map(wrap, out)


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [x for x in _flat(kwargs, _flat(args, [])) if isinstance(x, Tensor)]
        made = _State.inside and not tensors and "profiler" not in func._schema.name
        if made or any(isinstance(x, Pretended) for x in tensors):
            return _dispatch(func, args, kwargs)
        return func(*args, **kwargs)


# --- fused attention ---------------------------------------------------------------------------


def backend(q, k, v, mask, causal):
    """The backend of scaled_dot_product_attention, and why."""
    if not q.dim() == k.dim() == v.dim() == 4:
        return "math", "not four dimensions"
    d, e = q.shape[-1], v.shape[-1]
    half = q.dtype in HALF
    if half and d % 8 == 0 and e % 8 == 0 and max(d, e) <= 128 and k.shape[-2] != 1:
        return "cudnn", ""
    square = not causal or q.shape[-2] == k.shape[-2]
    if half and mask is None and d == e <= 256 and square:
        return "flash", ""
    return _efficient(q, k, v, mask)


def _efficient(q, k, v, mask):
    """Whether memory-efficient attention takes it, and what it makes of the mask."""
    d, e = q.shape[-1], v.shape[-1]
    if q.dtype == torch.float64:
        return "math", "float64 has no fused kernel"
    align = 8 if q.dtype in HALF else 4
    if d % align or e % align:
        return "math", f"width {d}, {e} no multiple of {align}"
    if any(x.stride(-1) != 1 for x in (q, k, v)):
        return "math", "the last stride is not 1"
    if any(x.storage_offset() % align for x in (q, k, v)):
        return "math", "a storage offset is not aligned"
    if mask is not None and k.shape[-2] % 16:
        return "efficient", f"the mask is formed, {k.shape[-2]} keys are no multiple of 16"
    if q.shape[0] > 65_535:
        return "efficient", "more than 65535 matrices"
    return "efficient", ""


def _keeps_all(dropout):
    if dropout:
        msg = f"dropout of {dropout} in an average that has none"
        raise ValueError(msg)


def _scores(q, k, mask, causal, scale):
    scores = (q * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)) @ k.mT
    if causal:
        seen = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
        scores = scores.masked_fill(~seen, -math.inf)
    if mask is not None and mask.dtype == torch.bool:
        return scores.masked_fill(~mask, -math.inf)
    return scores if mask is None else scores + mask


def _efficient_forward(q, k, v, bias, compute, dropout=0.0, causal=False, *, scale=None):
    _keeps_all(dropout)
    _State.tally.attention.append((str(q.dtype)[6:], *_efficient(q, k, v, bias)))
    if bias is not None and bias.dtype != q.dtype:
        msg = "invalid dtype for bias - should match query's dtype"
        raise RuntimeError(msg)
    # As the kernel does: sums and exponents in float32, weights in the input's dtype.
    scores = _scores(q.float(), k.float(), bias, causal, scale)
    lse = scores.logsumexp(-1)
    rows = math.ceil(q.shape[-2] / 32) * 32 if compute else 0
    padded = lse.new_full((*lse.shape[:-1], rows), math.inf)
    if compute:
        padded[..., : lse.shape[-1]] = lse
    seed = torch.zeros((), dtype=torch.int64)
    return scores.softmax(-1).to(v.dtype) @ v, padded, seed, seed.clone()


def _efficient_backward(
    grad, q, k, v, bias, out, lse, seed, offset, dropout, wanted, causal=False, *, scale=None
):
    _keeps_all(dropout)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = _scores(q, k, bias, causal, scale)
    weights = (scores - lse[..., : q.shape[-2], None]).exp()
    inner = (grad * out).sum(-1, keepdim=True)
    ds = weights * (grad @ v.mT - inner)
    return scale * ds @ k, scale * ds.mT @ q, weights.mT @ grad, ds if wanted[3] else None


OURS = {
    "_scaled_dot_product_efficient_attention": _efficient_forward,
    "_scaled_dot_product_efficient_attention_backward": _efficient_backward,
}
"""What a CPU build of torch has no kernel for."""

# --- what asks for a device ----------------------------------------------------------------------


class _ToCuda(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return Pretended(x.detach().clone())

    @staticmethod
    def backward(ctx, grad):
        return down(grad)


class _ToCpu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.held.clone()

    @staticmethod
    def backward(ctx, grad):
        return Pretended(grad)


def _is_cuda(device):
    try:
        return isinstance(device, (str, torch.device)) and torch.device(device).type == "cuda"
    except RuntimeError:  # a word that is no device
        return False


ANSWERS = {
    Tensor.device.__get__: CUDA,
    Tensor.is_cuda.__get__: True,
    Tensor.is_cpu.__get__: False,
    Tensor.get_device: 0,
}


PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__)


class _Functions(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        ours = bool(args) and isinstance(args[0], Pretended)
        if ours and func in ANSWERS:
            return ANSWERS[func]
        if ours and func is Tensor.tolist:
            _wait("tolist")
            return args[0].held.tolist()
        if ours and func in (Tensor.numpy, Tensor.__array__):
            msg = f"can't convert cuda:0 device type tensor to numpy, at {_where()}"
            raise MixedDevicesError(msg)
        if func in (Tensor.to, Tensor.cuda, Tensor.cpu):
            return _moved(func, *args, **kwargs)
        if ours and func is torch.nn.functional.scaled_dot_product_attention:
            return _attend(*args, **kwargs)
        if ours and func in PRODUCTS and args[0].dim() == 1:
            # torch squeezes the product in place, which a tensor that wraps another does not see.
            return func(args[0].unsqueeze(0), *args[1:]).squeeze(-2)
        if _is_cuda(kwargs.get("device")):
            return _made(func, args, kwargs)
        before, _State.inside = _State.inside, _any(args, kwargs)
        try:
            return func(*args, **kwargs)
        finally:
            _State.inside = before


@contextlib.contextmanager
def _inside(flag):
    before, _State.inside = _State.inside, flag
    try:
        yield
    finally:
        _State.inside = before


def _made(func, args, kwargs):
    """What a factory makes on the device that it is asked for."""
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type == "cpu":
        msg = f"{func.__name__}: a 'cuda' generator is expected, got 'cpu', at {_where()}"
        raise MixedDevicesError(msg)
    if func in (torch.tensor, torch.as_tensor):
        _sent(func.__name__)
    out = func(*_map(down, args), **{**_map(down, kwargs), "device": "cpu"})
    if getattr(func, "__name__", "") not in VIEWS:
        _State.tally.kernels[getattr(func, "__name__", str(func))] += 1
    return _map(lambda x: Pretended(down(x)) if isinstance(x, Tensor) else x, out)


def _moved(func, x, *rest, **kwargs):
    rest, device = list(rest), kwargs.pop("device", None)
    for i, a in enumerate(rest):
        if isinstance(a, (str, torch.device)):
            device = a
        if isinstance(a, Tensor):
            device, rest[i] = (CUDA if isinstance(a, Pretended) else torch.device("cpu")), a.dtype
    rest = [a for a in rest if isinstance(a, torch.dtype)]  # whether to block is all the same
    kwargs.pop("non_blocking", None)
    if func is not Tensor.to:
        device, rest = CUDA if func is Tensor.cuda else torch.device("cpu"), []
    out = x
    if _is_cuda(device) and not isinstance(x, Pretended):
        if x.dim():
            _sent("to")
        _State.tally.kernels["_to_copy"] += 1
        out = _ToCuda.apply(x)
    elif device is not None and not _is_cuda(device) and isinstance(x, Pretended):
        _wait("to the CPU")
        out = _ToCpu.apply(x)
    with _inside(isinstance(out, Pretended)):
        return Tensor.to(out, *rest, **kwargs) if rest or kwargs else out


def _attend(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **_):
    _State.tally.attention.append((str(q.dtype)[6:], *backend(q, k, v, attn_mask, is_causal)))
    with _inside(True):
        if q.dtype in HALF:  # as a fused kernel does: sums, exponents and weights in float32
            wide = (x.float() for x in (q, k))
            weights = _scores(*wide, attn_mask, is_causal, scale).softmax(-1)
            return (weights @ v.float()).to(q.dtype)
        return _scores(q, k, attn_mask, is_causal, scale).softmax(-1) @ v


def gradients(out, leaves):
    """Those of the sum of ``out``, by the engine itself: the modes stay on in backward passes."""
    with _inside(True):
        return torch.autograd.Variable._execution_engine.run_backward(
            (out,), (torch.ones_like(out),), False, False, tuple(leaves),
            allow_unreachable=True, accumulate_grad=False,
        )  # fmt: skip


def _within(mode, run):
    """The engine with the mode that torch takes away while a call of it, such as grad, is on."""

    def running(*args, **kwargs):
        with mode, _inside(True):
            return run(*args, **kwargs)

    return running


def _unforked(fork):
    """torch.random.fork_rng of the generators that there are."""

    def forked(devices=None, **rest):
        return fork(devices=[] if devices else devices, **rest)

    return forked


@contextlib.contextmanager
def pretending(fake=False):
    """Let pretended tensors be on cuda:0; yields the ``Tally`` of what is asked of the device."""
    checks = torch.utils.checkpoint._allowed_determinism_checks_to_fns
    autograd, mode = torch.autograd, _Functions()
    moving, swap = torch.__future__, torch.__future__.get_swap_module_params_on_conversion()
    with contextlib.ExitStack() as stack:
        for of, name, value in (
            (_State, "tally", Tally()),
            (_State, "fake", fake_tensor.FakeTensorMode() if fake else None),
            (gpu, "_capable", lambda _: False),  # of Triton's kernels, which run on no pretence
            (autograd, "_engine_run_backward", _within(mode, autograd._engine_run_backward)),
            (torch.cuda, "synchronize", lambda *_: _wait("synchronize")),
            (torch.random, "fork_rng", _unforked(torch.random.fork_rng)),
        ):
            stack.enter_context(mock.patch.object(of, name, value))
        # It compares devices, within the modes and without.
        stack.enter_context(mock.patch.dict(checks, default=lambda _: None))
        moving.set_swap_module_params_on_conversion(True)  # of a module that moves
        stack.callback(moving.set_swap_module_params_on_conversion, swap)
        with autograd.set_multithreading_enabled(False), _Dispatch(), mode:
            yield _State.tally
