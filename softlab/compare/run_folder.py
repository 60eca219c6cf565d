"""A comparison as the folder of a run, which ``softlab report`` reads."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from softlab.engine import provenance, sources
from softlab.engine.journal import FORMAT, as_csv, kinds, replace
from softlab.figures import Lines

QUESTION = "Which of these methods errs least on these heads, at what cost, and keeps its laws?"
SHOWN = (
    "Relative output error against the counted work of a call, {page}. Medians and quartiles over "
    "the samples of a head. Thin black: the best matrix of the rank and the heaviest keys of each "
    "query, known for free. Grey: the uniform average, below which skill begins."
)
FIGURE = Lines(
    x="share",
    y="output_error",
    group="method",
    panel="source",
    page="target_name",
    by="step",
    rows="drawn",
    references=("best matrix of the rank", "heaviest keys"),
    guides={"uniform_error": "uniform average"},
    xlabel="work over that of exact attention",
    ylabel="relative output error",
    name="error against work",
    caption=SHOWN,
)


def described(
    methods: Sequence[str], heads: int, samples: int, budgets: Sequence[float],
    started: datetime, wall: float, *, quick: bool,
) -> dict[str, Any]:  # fmt: skip
    """What ``meta.json`` says of a comparison."""
    made_of = provenance.commit(Path(__file__).parent)
    device = torch.device("cpu")
    return {
        "name": "compare",
        "title": f"{len(methods)} methods compared" if len(methods) > 1 else f"{methods[0]}",
        "question": QUESTION,
        "chapter": "compare",
        "chapter_folder": "",
        "quick": quick,
        "complete": True,
        "timed": ["time", "time_q1", "time_q3"],
        "within": [],
        "shared": [],
        "seeds": list(range(samples)),
        "axes": {"head": heads, "sample": samples, "method": len(methods), "budget": len(budgets)},
        "figures": [dataclasses.asdict(FIGURE)],
        "commit": made_of["commit"],
        "dirty": made_of["dirty"],
        "digest": sources.package(),
        "versions": provenance.versions(),
        "platform": platform.platform(),
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "wall_seconds": wall,
        "format": FORMAT,
        **provenance.setting(device, torch.float32),
    }


def written(folder: Path, rows: Sequence[Mapping[str, Any]], meta: Mapping[str, Any]) -> None:
    """Write ``table.csv`` and ``meta.json`` into the folder."""
    import json

    folder.mkdir(parents=True, exist_ok=True)
    counted = {"rows": len(rows), "cases": len(rows), "measured": len(rows)}
    failed = sum(row["status"] != "ok" for row in rows)
    counted |= {"failed": failed, "columns": kinds(rows)}  # type: ignore[dict-item]
    replace(folder / "table.csv", as_csv(rows))
    replace(folder / "meta.json", json.dumps({**meta, **counted}, indent=2) + "\n")
