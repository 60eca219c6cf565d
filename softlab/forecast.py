"""How long studies will take here: what each took on one machine, times the pace of this one.

``studies/costs.json``, which ``tools/costs.py`` writes from finished tables, holds the seconds of
each study's two grids, and one case of each as a probe with its processor seconds there. ``pace``
measures the probes here, by the clock; ``ahead`` says what that makes of the grids.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch

from softlab import study_folders
from softlab.engine import provenance
from softlab.engine.identity import shown
from softlab.engine.workers import called
from softlab.study import Case, Study

FILE = "costs.json"
SECONDS = 10.0
"""Of the probes together; what is not measured by then is left out."""
STARTED = 2.0
"""Seconds to start the workers of a study and to write its table."""


@dataclass(frozen=True)
class Ahead:
    """What a study will take: its ``cases``, and ``seconds`` by the clock, None if unknown."""

    study: str
    cases: int
    seconds: float | None


@cache
def recorded() -> dict[str, Any]:
    """The costs of softlab's own studies by name; none where the file is missing."""
    for folder in study_folders.built_in().values():
        if (found := folder.parent / FILE).is_file():
            return dict(json.loads(found.read_text(encoding="utf-8"))["studies"])
    return {}


def named(case: Case) -> dict[str, str]:
    """A case by the names of its values, as a table has them."""
    return {axis: str(shown(x)) for axis, x in case.items()}


class Probe(NamedTuple):
    """Seconds of a case by the clock and of the processor, which other work does not lengthen."""

    wall: float
    cpu: float


def probed(study: Study, names: Mapping[str, str], dtype: torch.dtype) -> Probe | None:
    """What the study's case of these names takes with its set-up; None if there is none."""
    case = next((x for x in study.cases(quick=True) if named(x) == names), None)
    if case is None:
        return None
    offered = {**case, "dtype": dtype, "device": torch.device("cpu")}
    start, worked = time.perf_counter(), time.process_time()
    if study.setup is not None:
        offered["setup"] = called(study.setup, offered)
    made = called(study.measure, offered)
    if study.within:
        list(made)
    return Probe(time.perf_counter() - start, time.process_time() - worked)


def pace(
    studies: Iterable[Study],
    costs: Mapping[str, Any],
    *,
    threads: int | None = None,
    seconds: float = SECONDS,
) -> float | None:
    """Seconds here for a second there: of the probes of these studies, in ``seconds`` or so.

    None where none of them has one. A probe that raises is left out: its study will say why.
    """
    here = there = 0.0
    begun = time.perf_counter()
    with provenance.threads(threads):
        for study in studies:
            probe = costs.get(study.name, {}).get("probe")
            if probe is None or time.perf_counter() - begun > seconds:
                continue
            try:
                found = probed(study, probe["case"], torch.float32)
            except Exception:  # a study may be anybody's
                found = None
            if found is not None:
                here, there = here + found.wall, there + probe["seconds"]
    return here / there if there else None


def ahead(
    studies: Sequence[Study],
    costs: Mapping[str, Any],
    pace: float | None,
    *,
    quick: bool,
    workers: int = 1,
) -> list[Ahead]:
    """What each study will take from nothing, in their order; timed ones use one worker.

    A grid of other cases than was recorded takes as much a case; so does a whole grid of which
    the short one alone was recorded.
    """
    found = []
    for study in studies:
        count = sum(1 for _ in study.cases(quick=quick))
        grids = costs.get(study.name, {})
        known = grids.get("quick" if quick else "whole") or grids.get("quick")
        seconds = None
        if known is not None and pace is not None:
            spread = 1 if study.timed else max(1, min(workers, os.cpu_count() or 1))
            seconds = STARTED + pace * known["seconds"] / known["cases"] * count / spread
        found.append(Ahead(study.name, count, seconds))
    return found


def spoken(seconds: float) -> str:
    """A length of time to two digits, in words."""
    if seconds < 90:
        return f"{max(5, 5 * round(seconds / 5))} s"
    return f"{round(seconds / 60)} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def sentence(found: Sequence[Ahead]) -> str:
    """How long all of them will take, and which take most of it."""
    known = [x for x in found if x.seconds is not None]
    if not known:
        return f"No time is known of {', '.join(x.study for x in found)}."
    total = sum(x.seconds or 0.0 for x in known)
    most = sorted(known, key=lambda x: -(x.seconds or 0.0))[:3]
    each = ", ".join(f"{x.study} {spoken(x.seconds or 0.0)}" for x in most)
    words = f"{len(known)} studies will take about {spoken(total)} here from nothing ({each})."
    if unknown := [x.study for x in found if x.seconds is None]:
        words += f" No time is known of {', '.join(unknown)}."
    return words
