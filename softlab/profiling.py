"""A clock, a memory gauge and a probe of the arithmetic: measured, never modelled."""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.profiler import profile

R = TypeVar("R")
Numbers = dict[str, float | int | bool]

WIDER = {
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
    torch.float32: torch.float64,
    torch.float64: torch.float64,
}
"""The next format in which products of a format might be summed."""

FACTORS = {23: "float32", 10: "tfloat32", 7: "bfloat16"}
"""Digits after the point that a float32 factor keeps, and the format that has as many."""

ENOUGH = 0.1
"""Seconds of calls after which no more are timed, where a number needs no more."""
PAIRS = 10
"""Calls of a method and of the exact operator, in turn, that make a ratio of times."""

PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mm": torch.mm,
    "bmm": lambda a, b: torch.bmm(a.expand(3, *a.shape), b.expand(3, *b.shape)),
}
SUMS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "addmm": torch.addmm,
    "baddbmm": lambda c, a, b: torch.baddbmm(*(x.expand(3, *x.shape) for x in (c, a, b))),
}


def seconds(
    call: Callable[[], object], device: torch.device, *, budget: float = ENOUGH, repeats: int = 5
) -> Numbers:
    """Median and quartiles of the time of ``call``, in seconds, after three warm-up calls.

    One warm-up where a call takes longer than ``budget``: what it warms is then its least part.
    At least ``repeats`` calls, more until ``budget`` seconds are spent, at most 1000. On CUDA these
    are the device's own: events around calls that are queued one behind the other, each behind a
    pass over more memory than the cache holds, so that neither launches nor a warm cache count.
    There ``wall_seconds`` is the median of lone calls by the host's clock, launches included.
    """
    if device.type == "cuda":
        return _on_cuda(call, device, budget, max(2, repeats))
    for _ in range(3):
        if _wall_clock(call) > budget:
            break
    taken = _repeated(lambda: _wall_clock(call), budget, max(2, repeats))
    return _quartiles(taken)


def _repeated(clock: Callable[[], float], budget: float, repeats: int) -> list[float]:
    taken: list[float] = []
    while len(taken) < repeats or (sum(taken) < budget and len(taken) < 1000):
        taken.append(clock())
    return taken


def _quartiles(taken: list[float]) -> Numbers:
    q1, median, q3 = statistics.quantiles(taken, n=4, method="inclusive")
    return {"seconds": median, "seconds_q1": q1, "seconds_q3": q3, "repeats": len(taken)}


WARM = 0.025
"""Seconds of calls before a GPU is timed: an idle one runs at a fraction of its clock."""
CACHE = 128 << 20
"""Bytes that are written between two calls, more than twice the cache of a large GPU."""


def _on_cuda(
    call: Callable[[], object], device: torch.device, budget: float, repeats: int
) -> Numbers:
    with torch.cuda.device(device):
        scratch, begin, calls = _scratch(device), time.perf_counter(), 0
        while calls < 3 or time.perf_counter() - begin < WARM:
            call()
            torch.cuda.synchronize()
            calls += 1

        def alone() -> float:
            start = time.perf_counter()
            call()
            torch.cuda.synchronize()
            return time.perf_counter() - start

        walls = _repeated(alone, budget, repeats)
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in walls]
        for start, end in pairs:
            scratch.zero_()
            start.record()
            call()
            end.record()
        torch.cuda.synchronize()
    taken = [float(start.elapsed_time(end)) * 1e-3 for start, end in pairs]
    return {**_quartiles(taken), "wall_seconds": statistics.median(walls)}


def _scratch(device: torch.device) -> Tensor:
    return torch.empty(CACHE, dtype=torch.int8, device=device)


FEWEST = 4
"""Pairs of calls that make a ratio, however long they take."""


def in_turn(
    call: Callable[[], object],
    rival: Callable[[], object],
    device: torch.device,
    *,
    repeats: int = 5,
    budget: float = math.inf,
    within: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> Numbers:
    """Median and quartiles of the time of ``call`` over that of ``rival``, called in turn.

    What slows the machine down for a while slows both, where two medians would each meet another
    load. The rival is first in one pair and second in the next, as the second call of a pair finds
    memory that the first has warmed. ``repeats``: pairs of calls, 2 or more, after one of each to
    warm up; from four on no more once they have taken ``budget`` seconds. ``within``: makes the
    context that ``call`` alone runs in and that is not timed. The clock
    is that of ``seconds``.
    """
    clock = _event_clock(device) if device.type == "cuda" else _wall_clock
    ratios: list[float] = []
    spent = 0.0
    for pair in range(max(2, repeats) + 1):
        before = clock(rival) if pair % 2 == 0 else 0.0
        with within():
            taken = clock(call)
        beside = before or clock(rival)
        ratios.append(taken / beside)
        spent += taken + beside
        if pair >= FEWEST and spent > budget:
            break
    q1, median, q3 = statistics.quantiles(ratios[1:], n=4, method="inclusive")
    return {"time": median, "time_q1": q1, "time_q3": q3}


def once(call: Callable[[], R], device: torch.device) -> tuple[R, float]:
    """What a single ``call`` returns, and its seconds until the device has done all that it asks.

    For what is too long to repeat: no warm-up, so a first use of the device is in it.
    """
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda _: None)
    wait(device)
    start = time.perf_counter()
    found = call()
    wait(device)
    return found, time.perf_counter() - start


def _wall_clock(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _event_clock(device: torch.device) -> Callable[[Callable[[], object]], float]:
    """A clock of events on the current stream of the device, with a resolution of about 1 us."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def clock(call: Callable[[], object]) -> float:
        with torch.cuda.device(device):
            torch.cuda.synchronize()
            start.record()
            call()
            end.record()
            torch.cuda.synchronize()
        return float(start.elapsed_time(end)) * 1e-3

    return clock


def peak_memory(call: Callable[[], object], device: torch.device) -> int:
    """Most bytes that ``call`` held at once above those held at entry, its result included.

    CUDA: torch's allocator statistics, after a call that lets libraries take their workspaces.
    CPU: the events of torch's allocator that the profiler records; what a library takes by other
    means (BLAS scratch, numpy) is not in it.
    """
    if device.type == "cuda":
        call()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device) - held)
    # Not torch.profiler.profile, which imports the compiler, for seconds, to ask for its settings.
    with _quiet(), profile(profile_memory=True) as trace:
        call()
    recorded: Any = trace.kineto_results
    held = peak = 0
    for event in recorded.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def accumulation(
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    *,
    products: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = PRODUCTS,
    sums: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = SUMS,
) -> str:
    """In which format the device sums matrix products of ``dtype``, found by trying: "float32".

    Each of ``products`` (A, B to A B) multiplies 96 x 96 matrices whose sums are of 32 large
    numbers, 32 small ones, then the large ones' negatives: the small ones survive only in a wide
    sum, also where it is dealt out over several places. Each of ``sums`` (C, A, B to C + A B) has
    the negatives in C instead, which must be added before A B is rounded. float32 factors have
    digits that a narrower format lacks. For half precision "float32" means that or wider.

    Departures follow after commas: ways that differ ("bmm in float16"), ways that round A B first
    ("addmm rounds A B first"), rounded factors ("factors of mm in tfloat32", as
    ``torch.backends.cuda.matmul.allow_tf32`` permits on CUDA: it is seen here, not asked).

    ``dtype``: bfloat16, float16, float32 or float64; ``ValueError`` for any other.
    """
    if dtype not in WIDER:
        known = ", ".join(_name(known) for known in WIDER)
        msg = f"products of {_name(dtype)} cannot be probed; dtype must be one of {known}."
        raise ValueError(msg)
    wide = WIDER[dtype]
    one = torch.ones(96, 96, dtype=dtype, device=device)
    a = 64 * one
    a[:, 32:64] *= 2.0**-18 if wide == torch.float32 else 2.0**-47
    only = torch.cat([a[:, :64], 0 * a[:, 64:]], 1)
    a[:, 64:] *= -1
    found = {name: wide if _survives(by(a, one)) else dtype for name, by in products.items()}
    common = next(iter(found.values()))
    words = [_name(common)]
    words += [f"{name} in {_name(x)}" for name, x in found.items() if x != common]
    if common != dtype:
        late = [name for name, by in sums.items() if not _survives(by(-32 * 64 * one, only, one))]
        words += [f"{name} rounds A B first" for name in late]
    if dtype == torch.float32:
        for name, by in products.items():
            kept = (d for d in FACTORS if _survives(by(_difference(one, d), one)))
            digits = next(kept, min(FACTORS))
            if digits < max(FACTORS):
                words.append(f"factors of {name} in {FACTORS[digits]}")
    return ", ".join(words)


def _survives(result: Tensor) -> bool:
    return bool((result > 0).all())


def _difference(one: Tensor, digits: int) -> Tensor:
    """Rows that sum to 2^-digits, if 1 + 2^-digits is not rounded to 1."""
    a = 0 * one
    a[:, 0], a[:, 1] = 1 + 2.0**-digits, -1
    return a


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence file descriptor 2: torch 2.13's profiler writes two lines to it at each use."""
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
