"""What each study takes, from finished tables, for the forecast of ``softlab run --all``.

    python tools/costs.py FOLDER [FOLDER...]

Give the results of ``make report QUICK=1``, of ``make report``, or of both, measured on one quiet
machine: run it there too, since it measures the probes anew. Writes ``studies/costs.json``: by
study the cases and seconds of each grid, set-ups included, and as its probe the quick case that
takes most nearly a quarter of a second. A grid that no folder has keeps what was written before.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from softlab import forecast
from softlab.report.folder import read
from softlab.study import Study, defined_in
from softlab.study_folders import built_in

NEAR, MOST = 0.25, 1.0
"""Seconds that a probe takes, if it can, and at most."""


def spent(table: pd.DataFrame, study: Study) -> pd.DataFrame:
    """One row a case: the names of its values, and its seconds."""
    own = table[[*study.axes, "case_seconds"]].copy()
    if "case_cpu_share" in table:  # what other work took from it
        own["case_seconds"] *= table["case_cpu_share"].clip(upper=1)
    own[[*study.axes]] = own[[*study.axes]].astype(str)
    return own.drop_duplicates([*study.axes])


def setups(table: pd.DataFrame, study: Study) -> float:
    """Seconds of all set-ups: the cases that share one say the same of it."""
    if "case_setup_seconds" not in table:
        return 0.0
    return float(table.groupby([*study.shared], sort=False)["case_setup_seconds"].first().sum())


def cost(run: Path, study: Study, known: dict[str, Any]) -> dict[str, Any]:
    """The study's entry with what this run says of one of its grids."""
    table, meta = read(run)
    cases = spent(table, study)
    seconds = float(cases["case_seconds"].sum()) + setups(table, study)
    grid = "quick" if meta["quick"] else "whole"
    known = {name: x for name, x in known.items() if name != "probe" or grid == "whole"}
    found = {**known, grid: {"cases": len(cases), "seconds": round(seconds, 1)}}
    if grid == "quick":
        names = [forecast.named(case) for case in study.cases(quick=True)]
        short = cases[cases["case_seconds"] <= MOST]
        near = short.assign(off=(cases["case_seconds"] - NEAR).abs()).sort_values("off")
        rows = [{axis: str(row[axis]) for axis in study.axes} for _, row in near.iterrows()]
        case = next((row for row in rows if row in names), None)
        if case is not None:
            found["probe"] = {"case": case, "seconds": 0.0}
    return found


def main() -> None:
    """Read the tables, measure the probes, and write the file."""
    torch.set_num_threads(1)
    known = {x.name: x for place in built_in().values() for x in defined_in(place)}
    costs = dict(forecast.recorded())
    for folder in map(Path, sys.argv[1:]):
        for run in sorted(path.parent for path in folder.glob("*/table.csv")):
            if run.name in known and not known[run.name].needs:
                costs[run.name] = cost(run, known[run.name], costs.get(run.name, {}))
    for name, one in costs.items():
        if "probe" in one:
            found = forecast.probed(known[name], one["probe"]["case"], torch.float32)
            if found is None:
                del one["probe"]
            else:
                one["probe"]["seconds"] = round(found.cpu, 4)
    path = next(iter(built_in().values())).parent / forecast.FILE
    path.write_text(json.dumps({"studies": costs}, indent=1, sort_keys=True) + "\n")
    total = {
        grid: sum(x.get(grid, {}).get("seconds", 0.0) for x in costs.values())
        for grid in ("quick", "whole")
    }
    print(f"{path}: {len(costs)} studies, " + ", ".join(f"{k} {v:.0f} s" for k, v in total.items()))


if __name__ == "__main__":
    main()
