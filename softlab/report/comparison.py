"""Two runs of the same studies: what changed between them beyond noise.

A number of a case is held against the same case of the other run. What noise is depends on the
number. One that measures time (a ``timed`` column) changed where the median over the cases of its
ratio, with all of its 95 % interval, is farther from one than the spread of repeated calls. Any
other should be the same: it changed where it differs by more than the square root of the rounding
unit, and every case counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from softlab.chapters.intervals import interval
from softlab.chapters.numbers import number
from softlab.report.folder import read

ROUNDING = {"float64": 2.0**-26, "float32": 2.0**-12, "float16": 2.0**-5, "bfloat16": 2.0**-4}
"""Square roots of the rounding units, rounded up to powers of two."""
SPREAD = 0.1
"""The noise of a time whose quartiles are not known."""


@dataclass(frozen=True)
class Change:
    """A column that changed: in how many of how many cases, by which factor, and most where.

    ``factor`` is the median of new over old, between ``low`` and ``high`` with 95 % confidence (the
    range of fewer than six); NaN for words, and where no ratio is finite.
    """

    column: str
    changed: int
    cases: int
    factor: float
    low: float
    high: float
    most: str


@dataclass(frozen=True)
class Comparison:
    """What changed in one study, and what was compared.

    ``columns`` were compared on ``cases`` that both runs finished. ``environment`` says what
    differs of the machine and the code, ``coverage`` which cases one run alone has or finished.
    """

    study: str
    cases: int
    columns: int
    changes: tuple[Change, ...]
    environment: tuple[str, ...]
    coverage: tuple[str, ...]


def compare(old: Path | str, new: Path | str) -> Iterator[Comparison]:
    """The studies that two folders share, each a folder of runs or one run.

    Raises ``FileNotFoundError`` where they share none, ``ValueError`` as of ``report.read``.
    """
    olds, news = _runs(Path(old)), _runs(Path(new))
    if len(olds) == len(news) == 1 and (Path(old) / "table.csv").exists():
        news = dict(zip(olds, news.values(), strict=True))  # one run each, whatever its name
    both = [name for name in olds if name in news]
    if not both:
        msg = (
            f"{old} and {new} have no study in common: {', '.join(olds) or 'none'} there, "
            f"{', '.join(news) or 'none'} here."
        )
        raise FileNotFoundError(msg)
    for name in both:
        yield _compared(name, read(olds[name]), read(news[name]))


def _runs(folder: Path) -> dict[str, Path]:
    if (folder / "table.csv").exists():
        return {folder.name: folder}
    return {path.parent.name: path.parent for path in sorted(folder.glob("*/table.csv"))}


def _compared(
    name: str,
    old: tuple[pd.DataFrame, Mapping[str, Any]],
    new: tuple[pd.DataFrame, Mapping[str, Any]],
) -> Comparison:
    axes = [x for x in _case(old[0]) if x in _case(new[0])]
    a, b = (table.astype(dict.fromkeys(axes, str)).set_index(axes) for table, _ in (old, new))
    shared = a.index.intersection(b.index)
    alone = {"old": a.index.difference(shared), "new": b.index.difference(shared)}
    coverage = [
        f"{len(x)} cases are in the {which} run alone" for which, x in alone.items() if len(x)
    ]
    a, b = a.loc[shared], b.loc[shared]
    ok = {"old": a["status"] == "ok", "new": b["status"] == "ok"}
    done, tried = ok["old"] & ok["new"], ok["old"] | ok["new"]
    for which, finished in ok.items():
        if lost := int((tried & ~finished).sum()):
            coverage.append(f"{lost} cases failed in the {which} run alone")
    a, b = a[done], b[done]
    timed = {*old[1].get("timed", ()), *new[1].get("timed", ()), "case_seconds"}
    unit = max(ROUNDING.get(str(meta["dtype"]), ROUNDING["float32"]) for _, meta in (old, new))
    columns = [
        x
        for x in a.columns
        if x in b.columns and "." not in x and x not in {"status", "error", "case_seconds"}
    ]
    changes = []
    for column in columns:
        if pd.api.types.is_numeric_dtype(a[column]) and pd.api.types.is_numeric_dtype(b[column]):
            found = _numbers(a, b, column, None if column in timed else unit)
        else:
            found = _words(a[column], b[column], column)
        changes += [found] if found else []
    return Comparison(
        study=name,
        cases=len(a),
        columns=len(columns),
        changes=tuple(changes),
        environment=tuple(_environment(old[1], new[1])),
        coverage=tuple(coverage),
    )


def _case(table: pd.DataFrame) -> list[str]:
    """The axes of a table: what a row begins with."""
    names = list(table.columns)
    return [x for x in names[: names.index("status")] if "." not in x]


def _numbers(a: pd.DataFrame, b: pd.DataFrame, column: str, unit: float | None) -> Change | None:
    """The change of a column of numbers: of times without ``unit``."""
    x, y = a[column].astype(float), b[column].astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = y / x
    finite = ratio[np.isfinite(ratio) & (ratio > 0)]
    factor, low, high = _median(finite)
    if unit is None:
        noise = max(_spread(a, column), _spread(b, column))
        if not (low > 1 + noise or high < 1 / (1 + noise)):
            return None
        moved = (np.log(finite).abs() > np.log1p(noise)).reindex(x.index, fill_value=False)
    else:
        same = (x == y) | (x.isna() & y.isna())
        moved = ~same & ~((x - y).abs() <= unit * np.maximum(x.abs(), y.abs()))
        if not moved.any():
            return None
    size = np.log(finite).abs() if unit is None else (x - y).abs() / np.maximum(x.abs(), y.abs())
    at = size.reindex(x.index)[moved].fillna(np.inf).idxmax()
    most = f"{_name(x, at)}: {number(x[at])} to {number(y[at])}"
    return Change(column, int(moved.sum()), len(x), factor, low, high, most)


def _words(a: pd.Series, b: pd.Series, column: str) -> Change | None:
    moved = (a != b) & ~(a.isna() & b.isna())
    if not moved.any():
        return None
    at = moved.idxmax()
    most = f"{_name(a, at)}: {a[at]} to {b[at]}"
    return Change(column, int(moved.sum()), len(a), np.nan, np.nan, np.nan, most)


def _median(ratio: pd.Series) -> tuple[float, float, float]:
    if ratio.empty:
        return np.nan, np.nan, np.nan
    low, high = interval(ratio)
    few = np.isinf(low) or np.isinf(high)
    return (
        float(ratio.median()),
        float(ratio.min()) if few else low,
        float(ratio.max()) if few else high,
    )


def _spread(table: pd.DataFrame, column: str) -> float:
    """The median over the cases of the quartiles' distance, over the median of repeated calls."""
    base = column.removesuffix("_q1").removesuffix("_q3")
    if not {base, f"{base}_q1", f"{base}_q3"} <= set(table.columns):
        return SPREAD
    found = ((table[f"{base}_q3"] - table[f"{base}_q1"]) / table[base]).median()
    return float(found) if np.isfinite(found) else SPREAD


def _name(column: pd.Series, at: Any) -> str:
    values = at if isinstance(at, tuple) else (at,)
    return ", ".join(f"{axis}={x}" for axis, x in zip(column.index.names, values, strict=True))


def _environment(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    names = ("commit", "dirty", "digest", "device_name", "dtype", "threads", "platform")
    for name in names:
        if old.get(name) != new.get(name):
            yield f"{name}: {old.get(name)} to {new.get(name)}"
    for name in {**old["versions"], **new["versions"]}:
        if old["versions"].get(name) != new["versions"].get(name):
            yield f"{name}: {old['versions'].get(name)} to {new['versions'].get(name)}"
