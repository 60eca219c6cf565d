"""What the benchmarks share: rivals that run in turn, ratios of their times, tables of both."""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

Call = Callable[[], object]


class Line(NamedTuple):
    """One measured quantity with its quartiles, and its bound: at most, or else at least."""

    what: str
    median: float
    low: float
    high: float
    at_most: bool
    bound: float | None

    @property
    def met(self) -> bool | None:
        """Whether the median keeps the bound; None for a quantity without one."""
        if self.bound is None:
            return None
        return self.median <= self.bound if self.at_most else self.median >= self.bound


Part = Callable[[torch.device, int], Iterable[Line]]
"""One part of a benchmark: the lines it measures on a device, in so many rounds."""


def main(about: str | None, name: str, parts: Sequence[Part]) -> None:
    """Read the command line, measure every part, print the table and write FOLDER/name.csv."""
    parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks"))
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    device = torch.device(chosen.device)
    lines: list[Line] = []
    for part in parts:
        for line in part(device, chosen.rounds):
            lines.append(line)
            print(show(line), flush=True)
    chosen.out.mkdir(parents=True, exist_ok=True)
    with (chosen.out / f"{name}.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow((*Line._fields, "met", "device", "threads", "rounds", "torch"))
        where = (device.type, chosen.threads, chosen.rounds, torch.__version__)
        table.writerows((*line, line.met, *where) for line in lines)


def show(line: Line) -> str:
    """One line of the printed table."""
    spread = f"{line.median:6.2f} [{line.low:.2f}, {line.high:.2f}]"
    if line.bound is None:
        return f"{line.what:<66} {spread:>22}"
    side = "at most" if line.at_most else "at least"
    verdict = "met" if line.met else "MISSED"
    return f"{line.what:<66} {spread:>22}  {side} {line.bound:g}  {verdict}"


def agree(x: Tensor, y: Tensor, tolerance: float = 1e-4) -> None:
    """Refuse to time rivals that do not compute the same thing, by default to float32 accuracy."""
    missed = float((x - y).norm() / y.norm())
    if not missed < tolerance:
        message = f"the rivals differ by {missed:.1e}; fix that before timing them"
        raise RuntimeError(message)


def race(calls: Sequence[Call], device: torch.device, rounds: int) -> list[list[float]]:
    """Seconds of each call in each round, after a warm-up round."""
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(rounds + 1):
        for call, taken in zip(calls, times, strict=True):
            synchronize(device)
            start = time.perf_counter()
            call()
            synchronize(device)
            if turn:
                taken.append(time.perf_counter() - start)
    return times


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ratio(
    what: str,
    over: list[float],
    under: list[float],
    bound: float | None = None,
    at_most: bool = False,
) -> Line:
    """The median and quartiles of the ratio of two rivals' times, round by round."""
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Line(what, median, low, high, at_most, bound)
