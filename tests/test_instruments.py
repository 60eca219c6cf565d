"""The probe of the arithmetic tells accumulators apart; the clock on CUDA is the device's own."""

import contextlib
import itertools
import time
from pathlib import Path

import pytest
import torch

from softlab import profiling
from softlab.core import Dims
from softlab.engine.loading import load
from softlab.operators import Local
from softlab.profiling import PRODUCTS, SUMS, accumulation, in_turn, once, peak_memory, seconds

HALF = [torch.bfloat16, torch.float16]


def in_lanes(lanes, dtype):
    """A product summed term by term in ``dtype``, dealt out over so many accumulators."""

    def product(a, b):
        parts = []
        for lane in range(lanes):
            total = torch.zeros(len(a), b.shape[1], dtype=dtype)
            for k in range(lane, a.shape[1], lanes):
                total = (total + a[:, k, None].to(dtype) * b[k].to(dtype)).to(dtype)
            parts.append(total)
        while len(parts) > 1:
            parts = [(x + y).to(dtype) for x, y in zip(parts[::2], parts[1::2], strict=True)]
        return parts[0].to(a.dtype)

    return product


@pytest.mark.parametrize("lanes", [1, 2, 8, 32])
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_a_narrow_sum_is_told_from_a_wide_one(dtype, lanes):
    narrow, wide = in_lanes(lanes, dtype), in_lanes(lanes, torch.float32)
    own = str(dtype).removeprefix("torch.")
    assert accumulation(dtype, products={"mm": narrow}, sums={}) == own
    assert accumulation(dtype, products={"mm": wide}, sums={}) == "float32"
    mixed = accumulation(dtype, products={"mm": wide, "bmm": narrow}, sums={})
    assert mixed == f"float32, bmm in {own}"


@pytest.mark.parametrize("lanes", [1, 8, 32])
def test_a_float32_sum_is_told_from_a_float64_one(lanes):
    for dtype in (torch.float32, torch.float64):
        word = accumulation(torch.float32, products={"mm": in_lanes(lanes, dtype)}, sums={})
        assert word == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_a_product_that_is_rounded_before_it_is_added_is_seen(dtype):
    late = {"addmm": SUMS["addmm"], "own": lambda c, a, b: c + a @ b}
    wide = {"mm": in_lanes(1, torch.float32)}
    early = {"own": lambda c, a, b: (c.float() + a.float() @ b.float()).to(c.dtype)}
    assert accumulation(dtype, products=wide, sums=early) == "float32"
    assert "own rounds A B first" in accumulation(dtype, products=wide, sums=late)


@pytest.mark.parametrize(("kept", "word"), [(23, ""), (10, "tfloat32"), (7, "bfloat16")])
def test_rounded_factors_are_seen(kept, word):
    def rounded(x):  # to so many digits after the point
        mantissa, exponent = torch.frexp(x)
        return torch.ldexp((mantissa * 2 ** (kept + 1)).round() / 2 ** (kept + 1), exponent)

    told = accumulation(
        torch.float32, products={"mm": lambda a, b: rounded(a) @ rounded(b)}, sums=SUMS
    )
    assert told == ("float32" + (f", factors of mm in {word}" if word else ""))


@pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64], ids=str)
def test_this_device_sums_no_narrower_than_the_format(dtype):
    told = accumulation(dtype)
    assert told.split(",")[0] in {"bfloat16", "float16", "float32", "float64"}
    if dtype == torch.float64:
        assert told == "float64"
    # What is told is what a product does: a sum of 1 and 2^-12, less 1, is there or it is not.
    if dtype in HALF:
        a = torch.tensor([[1.0, 2.0**-12, -1.0]], dtype=dtype)
        kept = float(PRODUCTS["mm"](a, torch.ones(3, 1, dtype=dtype))) != 0
        assert kept == told.startswith("float32")


def test_formats_without_a_probe_are_refused():
    with pytest.raises(ValueError, match="products of int8 cannot be probed; dtype must be one of"):
        accumulation(torch.int8)


class Events:
    """A device whose events tick a millisecond a kernel, and a log of what was asked of it."""

    def __init__(self, monkeypatch):
        self.log, self.now = [], 0
        device = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                device.log.append("record")
                self.at = device.now

            def elapsed_time(self, other):
                return float(other.at - self.at)

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: self.log.append("synchronize"))
        monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
        monkeypatch.setattr(profiling, "WARM", 0)
        monkeypatch.setattr(profiling, "_scratch", lambda _: self)

    def zero_(self):
        self.log.append("flush")

    def kernels(self, count):
        self.log.append("call")
        self.now += count


def test_on_cuda_the_devices_events_tell_the_time(monkeypatch):
    device = Events(monkeypatch)
    # Three to warm up, six by the clock, and six that are queued.
    ticks = itertools.chain([900] * 9, itertools.cycle([2, 4, 6]))
    found = seconds(lambda: device.kernels(next(ticks)), torch.device("cuda"), budget=0, repeats=6)
    wanted = {"seconds": 4e-3, "seconds_q1": 2.5e-3, "seconds_q3": 5.5e-3, "repeats": 6}
    assert found.pop("wall_seconds") >= 0
    assert found == pytest.approx(wanted)
    assert device.log[:18] == ["call", "synchronize"] * 9
    assert device.log[18:] == ["flush", "record", "call", "record"] * 6 + ["synchronize"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_longer_kernel_takes_longer_on_cuda():
    a = torch.ones(4096, 4096, device="cuda")
    one = seconds(lambda: a @ a, a.device)["seconds"]
    four = seconds(lambda: a @ a @ a @ a @ a, a.device)["seconds"]
    assert 3 < four / one < 5
    assert peak_memory(lambda: a @ a, a.device) == a.nbytes


def test_a_ratio_of_times_is_of_calls_in_turn(monkeypatch):
    """A machine that is ten times slower for a while slows both; the first pair warms up."""
    load = iter([1, 1, 1, 1, 10, 10, 10, 10, 1, 1])
    times = {"call": iter([99, 2, 3, 5, 2.5]), "rival": iter([1, 2, 2, 2, 2])}
    inside, seen = [], []

    @contextlib.contextmanager
    def within():
        inside.append(True)
        yield
        inside.pop()

    def clock(name):
        seen.append((name, bool(inside)))
        return next(times[name]) * next(load)

    monkeypatch.setattr(profiling, "_wall_clock", clock)
    found = in_turn("call", "rival", torch.device("cpu"), repeats=4, within=within)
    assert found == {"time": 1.375, "time_q1": 1.1875, "time_q3": 1.75}  # of 1, 1.25, 1.5 and 2.5
    pair = ("rival", False), ("call", True)
    assert seen == [*pair, *reversed(pair)] * 2 + [*pair]


def test_every_ratio_of_times_in_the_studies_is_of_calls_in_turn(monkeypatch):
    """A machine that gets slower call by call: of two medians the ratio would be another."""
    cpu, dims, tired = torch.device("cpu"), Dims(1, 64, 64, 32, 32), itertools.count(100)

    def clock(call):
        call()
        return float(next(tired))

    monkeypatch.setattr(profiling, "_wall_clock", clock)
    folder = Path(__file__).parent.parent / "studies"
    names = "frontier", "growth", "landmarks"
    frontier, growth, landmarks = (load(folder / f"{name}.py") for name in names)
    found = [
        frontier.paid("Performer", 0.5, dims, torch.float32, cpu),
        landmarks.timed("softmax", 16, "strided", dims, torch.float32, cpu),
        growth.measure(
            growth.length(1024, torch.float32, cpu), Local(64), 1024, torch.float32, cpu
        ),
    ]
    for row in found:
        assert 0.98 < row["time_q1"] < row["time"] < row["time_q3"] < 1.02


def test_a_single_call_is_timed_until_the_device_is_done(monkeypatch):
    waits = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: waits.append(time.sleep(0.02)))
    found, taken = once(lambda: len(waits), torch.device("cuda"))
    assert found == 1  # what ran before is done
    assert len(waits) == 2
    assert taken >= 0.02
    assert once(lambda: "an answer", torch.device("cpu"))[0] == "an answer"
    assert len(waits) == 2
