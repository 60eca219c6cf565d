"""What the machinery around the numbers costs: the engine a case, workers, a large report.

    python benchmarks/engine.py [--rounds 5] [--out FOLDER]

The engine: 1000 cases that do nothing, durable rows included, beside a bare write and fsync of as
many lines. Workers: the time of one worker process over that of two, of one thread each and with
their start, which is about a second, on a grid of errors that the processor bounds, 20 seconds of
one worker. Rivals run in turn within each round; a line gives the median over rounds and the
quartiles. The report: one study's, from a table of 100000
rows, in a process of its own. Writes FOLDER/engine.csv and prints it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rivals import Line, main

from softlab import measures
from softlab.engine.journal import Row
from softlab.engine.workers import Crew, processes
from softlab.inputs import Normal
from softlab.operators import Nystromformer
from softlab.study import Study, defined_in, run

CASES, ROWS = 1000, 100_000
RANKS = (16, 32, 64, 96, 128, 192, 256)


def nothing(x: int) -> Row:
    """A case that measures nothing."""
    return {"y": x}


def error(
    seed: int, op: Nystromformer, *, dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    """The errors of one operator on one input of 768 tokens, its bound included."""
    drawn = measures.sample(Normal(768, 32), seed, dtype=dtype, device=device)
    return measures.accuracy(op, drawn.q, drawn.k, drawn.v, drawn.reference(op.target))


NOTHING = Study("nothing", "What does the engine cost?", {"x": range(CASES)}, nothing)
ERRORS = Study(
    "errors",
    "What do two workers gain?",
    {"seed": range(32), "op": [Nystromformer(rank) for rank in RANKS]},
    error,
)


def seconds(study: Study, crew: Crew | None) -> float:
    """The time of a run from nothing, the start of the workers included."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        run(study, folder, threads=1, crew=crew)
        return time.perf_counter() - start


def disk() -> float:
    """The time to write as many lines, each on the disk before the next."""
    with tempfile.TemporaryDirectory() as folder:
        handle = os.open(Path(folder) / "lines", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        start = time.perf_counter()
        for _ in range(CASES):
            os.write(handle, b"." * 160)
            os.fsync(handle)
        taken = time.perf_counter() - start
        os.close(handle)
    return taken


def large(rows: int) -> tuple[float, float]:
    """Seconds and gigabytes of a report over a made-up table in the shape of studies/rank.py."""
    rng = np.random.default_rng(0)
    sources, ranks = [f"head {i}" for i in range(12)], (4, 8, 16, 32, 64, 128, 256)
    methods = ("Nystromformer", "Soft", "Skyformer", "TruncatedSVD")
    seeds = rows // (len(sources) * len(ranks) * len(methods)) + 1
    grid = pd.MultiIndex.from_product([sources, range(seeds), methods, ranks]).to_frame(index=False)
    grid.columns = ["source", "seed", "method", "op.rank"]
    grid = grid.iloc[:rows]
    error = 0.9 * grid["op.rank"] ** -0.6 * np.exp(0.2 * rng.standard_normal(len(grid)))
    cost = grid["op.rank"] * 1e-5
    table = pd.DataFrame({
        "input": "Recorded(name='" + grid["source"] + "')", "seed": grid["seed"],
        "op": grid["method"] + "(rank=" + grid["op.rank"].astype(str) + ")",
        "op.rank": grid["op.rank"], "status": "ok", "error": None, "method": grid["method"],
        "target": "softmax", "source": grid["source"], "real": True, "n": 512,
        "output_error": error, "matrix_error": error, "spectral_error": error / 2,
        "uniform_error": 0.8, "skill": 1 - error / 0.8, "svd_bound": error / 2,
        "ratio_to_bound": 2.0, "row_mass": 1.0, "row_mass_min": 1.0, "finite": True,
        "flops": 1e9 * cost, "seconds": cost, "seconds_q1": 0.9 * cost, "seconds_q3": 1.1 * cost,
        "peak_bytes": 1e8 * cost, "kernel_entries": 1e6 * cost, "case_seconds": cost,
    })  # fmt: skip
    (study,) = defined_in(Path(__file__).parents[1] / "studies/rank.py")
    with tempfile.TemporaryDirectory() as folder:
        run(_like(study), folder)  # for its meta.json
        made = Path(folder) / study.name
        meta = json.loads((made / "meta.json").read_text())
        (made / "meta.json").write_text(json.dumps(meta | {"rows": len(table)}))
        table.to_csv(made / "table.csv", index=False)
        child = (
            "import resource, sys, time; start = time.perf_counter(); "
            "from softlab.report import report; report(sys.argv[1]); "
            "print(time.perf_counter() - start, "
            "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)"
        )
        command = [sys.executable, "-c", child, folder]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    taken, peak = map(float, done.stdout.split())
    return taken, peak


def _like(study: Study) -> Study:
    """The study's words and figures, on a grid of one case that does nothing."""
    return Study(
        study.name, study.question, {"x": [0]}, nothing, figures=study.figures, title=study.title,
        chapter=study.chapter, timed=study.timed,
    )  # fmt: skip


def studies() -> tuple[Study, Study]:
    """The errors and the nothing of this file, as workers know them."""
    errors, empty = sorted(defined_in(__file__), key=lambda study: study.name)
    return errors, empty


def line(what: str, values: list[float], *, at_most: bool, bound: float | None) -> Line:
    """The median and the quartiles of a few values."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Line(what, median, low, high, at_most, bound)


def engine(device: torch.device, rounds: int) -> Iterator[Line]:  # noqa: ARG001
    """Milliseconds a case."""
    _, empty = studies()
    seconds(empty, processes(2))  # starts the server that workers are forked from
    here, there, bare = [], [], []
    for _ in range(rounds):
        here.append(1e3 * seconds(empty, None) / CASES)
        bare.append(1e3 * disk() / CASES)
        there.append(1e3 * seconds(empty, processes(2)) / CASES)
    yield line("engine, ms a case", here, at_most=True, bound=5.0)
    yield line("engine with 2 workers, ms a case", there, at_most=True, bound=5.0)
    yield line("a write and fsync alone, ms", bare, at_most=True, bound=None)
    rest = [x - y for x, y in zip(here, bare, strict=True)]
    yield line("engine without the disk, ms a case", rest, at_most=True, bound=None)


def workers(device: torch.device, rounds: int) -> Iterator[Line]:  # noqa: ARG001
    """How many times faster two workers are than one."""
    errors, _ = studies()
    one, two = [], []
    for _ in range(rounds):
        one.append(seconds(errors, processes(1)))
        two.append(seconds(errors, processes(2)))
    gains = [x / y for x, y in zip(one, two, strict=True)]
    yield line("errors with 1 worker, s", one, at_most=True, bound=None)
    yield line("times faster with 2 workers", gains, at_most=False, bound=1.6)


def document(device: torch.device, rounds: int) -> Iterator[Line]:  # noqa: ARG001
    """Seconds and memory of a report over many rows."""
    taken, peaks = zip(*(large(ROWS) for _ in range(min(rounds, 3))), strict=True)
    yield line(f"report over {ROWS} rows, s", list(taken), at_most=True, bound=30.0)
    yield line(f"report over {ROWS} rows, GB", list(peaks), at_most=True, bound=1.0)


if __name__ == "__main__":
    main(__doc__, "engine", [engine, workers, document])
