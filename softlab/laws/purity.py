"""Laws of honesty: an operator answers, from what it is given, and leaves no trace."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import dataclasses
import gc
import io
import logging
import os
import random
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softlab.core import Operator
from softlab.laws.law import (
    Gap,
    Law,
    always,
    asked,
    largest,
    lengths,
    needs_equal,
    normal,
    rank_of,
    size,
    takes_mask,
    tolerance,
)
from softlab.laws.twins import twin

F64 = torch.float64
LEAST = 1e-6
"""How much of the output must answer to its input, relative to the values."""


def _draw(op: Operator, rng: torch.Generator, more: int = 0) -> tuple[Tensor, ...]:
    m = rank_of(op) + more
    n, l = lengths(op, m + size(5, 3), m + size(7, 3))
    return normal(rng, n, size(4, 2)), normal(rng, l, size(4, 2)), normal(rng, l, size(3))


def _answers(op: Operator, rng: torch.Generator) -> Iterator[Gap]:
    q, k, v = (2 * x for x in _draw(op, rng))
    other = [2 * normal(rng, *x.shape) for x in (q, k, v)]
    out, unit = op(q, k, v), largest(v)
    yield Gap(LEAST * unit, largest(out), "the output is not zero")
    running = v.cumsum(-2) / torch.arange(1, len(v) + 1, device=v.device)[:, None]
    mean = running if op.traits.causal else v.mean(-2, keepdim=True)
    yield Gap(
        LEAST * unit, largest(out - mean), "the output is not the mean of v, which ignores q and k"
    )
    # Not q / |q|: one that reads directions alone still answers.
    changed = {"q": (other[0], k, v), "k": (q, other[1], v), "v": (q, k, other[2])}
    for name, tensors in changed.items():
        moved = largest(op(*tensors) - out)
        yield Gap(LEAST * unit, moved, f"another {name} gives another output")


def _stateless(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    # The second is larger in every way than the first, so that what it leaves behind is seen there.
    cases = [_draw(op, rng), tuple(3 * x for x in _draw(op, rng, more=4)), _draw(op, rng)]
    if takes_mask(op):
        keep = torch.arange(len(cases[2][1])) != 1
        cases[2] = (*cases[2], keep.to(cases[2][1].device))
    held, name = _held(op), repr(op)
    first = [op(*case) for case in cases]
    for i in (2, 0, 1):
        again = op(*cases[i])
        yield Gap(float(not torch.equal(again, first[i])), 0, f"call {i} of 3, asked once more")
    yield Gap(float(repr(op) != name), 0, "the operator's name")
    yield Gap(float(not _alike(_held(op), held)), 0, "what the operator holds")
    yield from _unprejudiced(op, rng)
    yield from _of_another_width(op, rng, _more_queries, "queries")
    if not needs_equal(op):
        yield from _of_another_width(op, rng, _keys_repeated, "keys")


def _unprejudiced(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    """What is kept by sizes answers for the first tensors of these sizes, at every later call.

    So no second call tells, but a twin that has met no others does. No law draws these sizes.
    """
    n, l = lengths(op, rank_of(op) + 37 + asked(), rank_of(op) + 53 + asked())
    width = 21 + asked()
    values = width if getattr(op, "equal_widths", False) else 31 + asked()
    case, other = (
        (factor * normal(rng, n, width), normal(rng, l, width), normal(rng, l, values))
        for factor in (1, 3)
    )
    met, new = twin(op), twin(op)
    met(*other)
    same = torch.equal(met(*case), new(*case))
    yield Gap(float(not same), 0, f"{n} queries and {l} keys, after others as many")


Tokens = tuple[Tensor, Tensor, Tensor]


def _of_another_width(
    op: Any, rng: torch.Generator, longer: Callable[[Tokens, int], Tokens], what: str
) -> Iterator[Gap]:
    """What is kept by a number of tokens is wrong for as many of another width.

    It is wrong at every later call alike, so that no second call tells. ``longer`` changes that
    number and, of many operators, not the first rows: where this is so for the first width at
    three numbers, it must be so for the second, at a number that is new.
    """
    n, l = lengths(op, rank_of(op) + size(14, 5), rank_of(op) + size(11, 4))
    step = int(getattr(op, "multiple", 1))
    for width, numbers in ((4, (4, 6, 7)), (6, (5,))):
        case = normal(rng, n, width), normal(rng, l, width), normal(rng, l, 3)
        out = op(*case)
        allowed = tolerance(F64, l, c=1000, scale=largest(out))
        for more in numbers:
            missed = largest(op(*longer(case, more * step))[: len(out)] - out)
            if width == 4 and not missed <= allowed:
                return
        yield Gap(missed, allowed, f"as many {what} as before, of another width")


def _more_queries(case: Tokens, more: int) -> Tokens:
    """So many more queries at the end, and where keys are as many, keys too."""
    q, k, v = case
    tail = (q[:1].expand(more, -1), k[:1].expand(more, -1), v[:1].expand(more, -1))
    if len(q) != len(k):
        return torch.cat((q, tail[0])), k, v
    longer = [torch.cat((x, y)) for x, y in zip(case, tail, strict=True)]
    return longer[0], longer[1], longer[2]


def _keys_repeated(case: Tokens, more: int) -> Tokens:
    """Each key and its value some times, another number for another width: averages stay."""
    q, k, v = case
    return q, k.repeat(more, 1), v.repeat(more, 1)


def _held(op: Any) -> dict[str, Any]:
    """What it holds, copied; what cannot be copied (a lock, a file, a script) by itself."""
    held = {}
    for name, x in dict(getattr(op, "__dict__", {})).items():
        try:
            held[name] = copy.deepcopy(x)
        except Exception:  # whatever it raises, it is not a fault of the subject
            held[name] = x
    return held


def _alike(x: Any, y: Any) -> bool:
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return x.shape == y.shape and bool(torch.equal(x, y))
    if isinstance(x, dict) and isinstance(y, dict):
        return x.keys() == y.keys() and all(_alike(x[name], y[name]) for name in x)
    plain = (bool, int, float, complex, str, bytes, type(None), tuple, list, set, frozenset)
    # What cannot be compared is not held against it.
    return x == y if isinstance(x, plain) and isinstance(y, plain) else type(x) is type(y)


def printed(call: Callable[[], object]) -> str:
    """What the call writes to the standard streams, from Python or below it."""
    text = io.StringIO()
    with _below(text), contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        call()
    return text.getvalue()


@contextlib.contextmanager
def _below(text: io.StringIO) -> Iterator[None]:
    """Add to the text what C code writes to the descriptors of the standard streams inside."""
    try:
        kept = [os.dup(stream) for stream in (1, 2)]
    except OSError:  # they are closed: nothing can be written
        yield
        return
    with tempfile.TemporaryFile() as file:
        _flush()
        try:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
            yield
        finally:
            _flush()
            for stream, before in zip((1, 2), kept, strict=True):
                os.dup2(before, stream)
                os.close(before)
            file.seek(0)
            text.write(file.read().decode(errors="replace"))


def _flush() -> None:
    """Empty the buffers of C, where its library can be had by no name."""
    with contextlib.suppress(Exception):
        ctypes.CDLL(None).fflush(None)


def _silent(op: Operator, rng: torch.Generator) -> Iterator[Gap]:
    case = _draw(op, rng)
    text = printed(lambda: op(*case))
    yield Gap(len(text), 0, f"characters printed: {text.strip()[:60]!r}")


def _views(op: Operator, rng: torch.Generator) -> Iterator[Gap]:
    q, k, v = case = _draw(op, rng)
    out = op(*case)
    allowed = tolerance(F64, len(k), c=1000, scale=largest(out))
    strided = [x.mT.contiguous().mT for x in case]
    yield Gap(largest(op(*strided) - out), allowed, "transposed in memory")
    twice = [x.repeat_interleave(2, -1)[..., ::2] for x in case]
    yield Gap(largest(op(*twice) - out), allowed, "every other column of twice as many")
    batch = op(*(x.expand(2, *x.shape) for x in case))
    yield Gap(largest(batch - out), allowed, "the same matrix twice, by a stride of zero")
    with torch.no_grad():
        yield Gap(largest(op(*case) - out), allowed, "under no_grad")
    with torch.inference_mode():
        yield Gap(largest(op(*case) - out), allowed, "under inference_mode")
    leaves = [x.clone().requires_grad_() for x in case]
    yield Gap(largest(op(*leaves).detach() - out), allowed, "with a graph")
    if takes_mask(op):
        everything = torch.ones(len(k), dtype=torch.bool, device=k.device)
        yield Gap(largest(op(q, k, v, everything) - out), allowed, "under a mask that keeps all")


Setting = tuple[Callable[[], Any], Callable[[Any], object], tuple[Any, ...]]


def _torch_printing(held: dict[str, Any]) -> None:
    torch.set_printoptions(**held)


def _numpy_printing(held: dict[str, Any]) -> None:
    np.set_printoptions(**held)


def _filtering(held: Sequence[Any]) -> None:
    warnings.filters[:] = held  # type: ignore[index]


def _kernels() -> tuple[bool, ...]:
    cuda = torch.backends.cuda
    attention = cuda.flash_sdp_enabled, cuda.mem_efficient_sdp_enabled, cuda.math_sdp_enabled
    return (torch.backends.cudnn.benchmark, *(enabled() for enabled in attention))  # type: ignore[no-untyped-call]


def _choose_kernels(held: tuple[bool, ...]) -> None:
    cuda = torch.backends.cuda
    torch.backends.cudnn.benchmark, flash, efficient, plain = held
    cuda.enable_flash_sdp(flash)
    cuda.enable_mem_efficient_sdp(efficient)
    cuda.enable_math_sdp(plain)


def choose_determinism(held: bool) -> None:
    """Set it where it is another: torch imports its compiler, for two seconds, to be told."""
    if held != torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(held)


def _device() -> Any:
    """The default device where one is set, None else."""
    return getattr(sys.modules.get("torch.utils._device"), "CURRENT_DEVICE", None)


def _choose_device(held: Any) -> None:
    """Set it, but take away no accelerator that a subject may have chosen on import."""
    if held is not None or _device() == torch.device("cpu"):
        torch.set_default_device(held)


def _flushed() -> bool:
    return not bool(torch.tensor(1e-310, dtype=F64, device="cpu") * 1)


ANY_KERNEL = (False, True, True, True)
QUIET = ("ignore", re.compile(""), Warning, None, 0)
"""A filter that lets no warning through, and is not the one that ``simplefilter`` puts in front."""
SETTINGS: dict[str, Setting] = {
    "the default dtype": (
        torch.get_default_dtype, torch.set_default_dtype, (torch.float32, F64),
    ),
    "the default device": (_device, _choose_device, (None, None)),
    "the number of threads": (torch.get_num_threads, torch.set_num_threads, (1, 2)),
    "grad mode": (torch.is_grad_enabled, torch.set_grad_enabled, (True, False)),
    "anomaly mode": (
        torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly, (False, True),
    ),
    "autocast": (
        lambda: torch.is_autocast_enabled("cpu"),
        lambda held: torch.set_autocast_enabled("cpu", held), (False, False),
    ),
    "the precision of products": (
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision,
        ("highest", "high"),
    ),
    "deterministic mode": (
        torch.are_deterministic_algorithms_enabled, choose_determinism, (False, False),
    ),
    "the kernels that torch may choose": (_kernels, _choose_kernels, (ANY_KERNEL, ANY_KERNEL)),
    "denormal numbers": (_flushed, torch.set_flush_denormal, (False, False)),
    "torch's print options": (
        lambda: dataclasses.asdict(torch._tensor_str.PRINT_OPTS), _torch_printing,
        ({}, {"precision": 7}),
    ),
    "numpy's print options": (np.get_printoptions, _numpy_printing, ({}, {"precision": 7})),
    "numpy's errors": (
        np.geterr, lambda held: np.seterr(**held), ({"all": "warn"}, {"all": "ignore"}),
    ),
    "the filters of warnings": (lambda: list(warnings.filters), _filtering, ([QUIET], [QUIET])),
    "the collection of garbage": (
        gc.isenabled, lambda held: gc.enable() if held else gc.disable(), (True, True),
    ),
    "the limit of recursion": (sys.getrecursionlimit, sys.setrecursionlimit, (3000, 4000)),
    "the level of the log": (
        lambda: logging.getLogger().level, lambda held: logging.getLogger().setLevel(held),
        (logging.WARNING, logging.ERROR),
    ),
    "torch's generator": (torch.get_rng_state, torch.set_rng_state, (7, 8)),
    "numpy's generator": (np.random.get_state, np.random.set_state, (7, 8)),
    "random's generator": (random.getstate, random.setstate, (7, 8)),
}  # fmt: skip
"""What a call must leave alone: how to read it, to set it, and two values. A call that sets one is
seen where it is set to what it is not; generators have seeds for values."""
SEEDING: dict[str, Any] = {
    "torch's generator": torch.manual_seed,
    "numpy's generator": np.random.seed,
    "random's generator": random.seed,
}


@contextlib.contextmanager
def process(which: int) -> Iterator[Callable[[], str]]:
    """The state of the process with the first or second values of ``SETTINGS``.

    Gives a function that names the settings that are no longer as they were.
    """
    kept = {name: read() for name, (read, _, _) in SETTINGS.items()}
    try:
        for name, (_, write, values) in SETTINGS.items():
            SEEDING.get(name, write)(values[which])
        before = _settings()
        yield lambda: ", ".join(name for name, now in _settings().items() if before[name] != now)
    finally:
        for name, (_, write, _) in SETTINGS.items():
            write(kept[name])


def _settings() -> dict[str, str]:
    return {name: _written(read()) for name, (read, _, _) in SETTINGS.items()}


def _written(held: Any) -> str:
    if isinstance(held, tuple):
        return " ".join(map(_written, held))
    if isinstance(held, Tensor):
        held = held.numpy()
    return held.tobytes().hex() if isinstance(held, np.ndarray) else repr(held)


ANSWERS: Law[Operator] = Law(
    "answers",
    "the output is neither zero nor the mean of v, and changes with each of q, k and v",
    lambda op: not op.traits.blind,
    _answers,
    family="honesty",
    when="does not claim to be blind to q and k",
    allows="a millionth of the values",
    catches="zeros; the mean of v; one key read for every query",
    any_dtype=True,
)
STATELESS: Law[Any] = Law(
    "stateless",
    "a call gives the same bits after any other calls, and changes nothing that the operator holds",
    always,
    _stateless,
    family="honesty",
    allows="no bit",
    catches="the largest query of all calls in a scale; a scale kept by the number of queries; "
    "noise of the global generator",
    any_dtype=True,
)
SILENT: Law[Operator] = Law(
    "silent",
    "a call prints nothing",
    always,
    _silent,
    family="honesty",
    allows="no character",
    catches="a forgotten print",
    any_dtype=True,
    examples=1,
)
VIEWS: Law[Operator] = Law(
    "views",
    "strides, graphs, grad modes and a mask that keeps all change no output",
    always,
    _views,
    family="interface",
    allows="rounding of sums over l, of another order",
    catches="a view of memory that is not contiguous; another path without a graph",
    any_dtype=True,
)
