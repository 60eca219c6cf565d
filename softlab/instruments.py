"""A clock and a memory gauge for one call: measured, never modelled."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

Numbers = dict[str, float | int | bool]


def seconds(
    call: Callable[[], object], device: torch.device, *, budget: float = 0.1, repeats: int = 5
) -> Numbers:
    """Median and quartiles of the time of ``call``, in seconds, after three warm-up calls.

    At least ``repeats`` calls, more until ``budget`` seconds are spent, at most 1000. The device is
    synchronised before each reading of the clock.
    """

    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    for _ in range(3):
        call()
    taken: list[float] = []
    while len(taken) < max(2, repeats) or (sum(taken) < budget and len(taken) < 1000):
        start = clock()
        call()
        taken.append(clock() - start)
    q1, median, q3 = statistics.quantiles(taken, n=4, method="inclusive")
    return {"seconds": median, "seconds_q1": q1, "seconds_q3": q3, "repeats": len(taken)}


def peak_memory(call: Callable[[], object], device: torch.device) -> int:
    """Most bytes that ``call`` held at once above those held at entry, its result included.

    CUDA: torch's allocator statistics. CPU: the trace of torch's allocator that the profiler
    exports; what a library takes by other means (BLAS scratch, numpy) is not in it.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device) - held)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
            call()
        path = Path(folder) / "trace.json"
        trace.export_chrome_trace(str(path))
        events = json.loads(path.read_bytes())["traceEvents"]
    memory = [event for event in events if event.get("name") == "[memory]"]
    held = peak = 0
    for event in sorted(memory, key=lambda event: event["args"]["Ev Idx"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


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
