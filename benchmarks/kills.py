"""Kill a run again and again, at random moments, and see whether a finished row is ever lost.

    python benchmarks/kills.py --kills 50 [--workers 2]

Every kill is ``kill -9`` to the run, workers left to themselves. After each, all rows that the
journal held before must be there, unchanged; when the run has come through, its table must equal
that of a run that nobody disturbed, timings aside. Exit code 0 says that both held.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from softlab.engine.journal import Row, Rows, rows_of
from softlab.engine.workers import processes
from softlab.report import read
from softlab.study import Study, defined_in, run

CASES, SECONDS = 40, 0.003


def measure(x: int) -> Row:
    """A few milliseconds, and a row whose length varies."""
    time.sleep(SECONDS)
    return {"y": x / 7, "words": "." * (x * 37 % 500), "sign": None if x % 3 else x % 2 == 0}


STUDY = Study("killed", "What survives?", {"x": range(CASES)}, measure)


def started(study: Study, out: Path, workers: int) -> int:
    """The process of a run, forked: importing torch again would be the most of it."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        run(study, out, threads=1, crew=processes(workers) if workers else None)
        os._exit(0)
    return child


def grown(journal: Path) -> None:
    """Wait until the journal has a row more, or the run has had the time for it."""
    before = journal.stat().st_size if journal.exists() else 0
    limit = time.monotonic() + 30
    while time.monotonic() < limit:
        if journal.exists() and journal.stat().st_size > before:
            return
        time.sleep(0.002)


def main() -> int:
    """Kill, look, resume; then compare."""
    words = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    words.add_argument("--kills", type=int, default=50)
    words.add_argument("--workers", type=int, default=0)
    words.add_argument("--seed", type=int, default=0)
    given = words.parse_args()
    rng = random.Random(given.seed)
    (study,) = defined_in(__file__)
    kills = lost = rounds = unlike = 0
    with tempfile.TemporaryDirectory() as folder:
        run(study, Path(folder) / "whole", threads=1)
        whole = table(Path(folder) / "whole")
        state = json.loads((Path(folder) / "whole" / STUDY.name / "meta.json").read_text())[
            "digest"
        ]
        while kills < given.kills:
            rounds += 1
            out = Path(folder) / f"round{rounds}"
            before: dict[str, Rows] = {}
            done = False
            while not done:
                child = started(study, out, given.workers)
                if given.workers:  # whose start takes most of a run
                    grown(out / study.name / "rows.jsonl")
                # Now and then long enough to meet the end, where the table is made.
                time.sleep(rng.choice((0.03, 0.2)) * rng.random())
                os.kill(child, signal.SIGKILL)
                _, status = os.waitpid(child, 0)
                done = os.WIFEXITED(status)
                kills += not done
                journal = out / study.name / "rows.jsonl"
                # The folder comes before the journal, and a kill may fall between the two.
                after = rows_of(journal, state) if journal.exists() else {}
                lost += sum(after.get(key) != rows for key, rows in before.items())
                before = after
            unlike += not whole.equals(table(out))
    print(
        f"{kills} kills in {rounds} runs with {given.workers} workers: {lost} finished rows lost, "
        f"{unlike} tables unlike that of an undisturbed run"
    )
    return int(bool(lost or unlike))


def table(out: Path) -> pd.DataFrame:
    """The table of a run without its timings."""
    return read(out / STUDY.name)[0].drop(columns="case_seconds")


if __name__ == "__main__":
    sys.exit(main())
