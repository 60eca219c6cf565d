"""Two runs of the same studies: what changed between them beyond noise.

A number of a case is held against the same case of the other run. What noise is depends on the
number. One that measures time (a ``timed`` column) changed where the median of its ratio, with all
of its 95 % interval, is farther from one than the spread of repeated calls, whose quartiles are not
wide (``softlab.report.timings``); times of a busy machine are left out. Any other should be the
same: it changed where it differs by more than the square root of the rounding unit, and every case
counts. Cases are the same where their values on all axes are.

Seconds depend on the machine and on its state, so seconds of two runs are compared as ratios:
those of each method are divided by the *pace*, the median ratio over all times of the study. A run
that is slower as a whole is told as its pace, and is no change: code and machine cannot be told
apart there.

The exact mode is for changes of code that are to change no number. It leaves times out; all else is
the same or not, to the last digit, and it names each case that is not.

Cases of one input, model or seed are no independent ones: whatever holds for one of them, as what
its tensors do to a cache, tends to hold for all. So a median is over such units, each the median
over its cases, and the output says which and how many; where a study has none, over its cases.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from softlab.report.drawing import as_numbers
from softlab.report.folder import read
from softlab.report.intervals import by_unit, interval
from softlab.report.numbers import counted, number
from softlab.report.rows import of_case
from softlab.report.timings import WIDE, busy, noise
from softlab.report.words import LONGEST, brief

ROUNDING = {"float64": 2.0**-26, "float32": 2.0**-12, "float16": 2.0**-5, "bfloat16": 2.0**-4}
"""Square roots of the rounding units, rounded up to powers of two."""
OWN = ("status", "case_seconds", "case_setup_seconds", "case_cpu_share", "case_load")
"""What softlab measures of each case beside what the study does; ``error`` a study may measure."""
METHODS = ("method", "op", "solver", "selector")
"""Axes that name what was timed, the first that a study has."""
FEWEST = 3
"""Of fewer inputs, models or seeds each time of a method is a unit; fewer times are not judged."""
SPREAD = 0.1
"""The noise of a time whose quartiles are not known."""
UNITS = {"source": "inputs", "input": "inputs", "model": "models", "seed": "seeds"}
"""Columns that cases are nested in, the outermost first, and what their values are."""


@dataclass(frozen=True)
class Change:
    """A column that changed: in how many of how many cases, by which factor, and most where.

    ``factor`` is the median of new over old over ``units`` of the kind ``of``, between ``low`` and
    ``high`` with 95 % confidence, or in the range of the units where ``known`` is false: fewer than
    six allow no interval. NaN for words, and where no ratio is finite. ``where`` names the cases,
    of a time (``timed``) none.
    """

    column: str
    changed: int
    cases: int
    factor: float
    low: float
    high: float
    units: int
    of: str
    known: bool
    most: str
    where: tuple[str, ...] = ()
    timed: bool = False

    @property
    def span(self) -> str:
        """How sure the factor is, and over what: "1.40 to 1.60 (95 %, 12 inputs)"."""
        how = "95 %," if self.known else "range of"
        return f"{number(self.low)} to {number(self.high)} ({how} {self.units} {self.of})"


@dataclass(frozen=True)
class Comparison:
    """What changed in one study, and what was compared.

    ``columns`` were compared on ``cases`` that both runs finished. ``environment`` says what
    differs of the machine and the code, ``coverage`` which columns or cases one run alone has, or
    finished.
    """

    study: str
    cases: int
    columns: int
    changes: tuple[Change, ...]
    environment: tuple[str, ...]
    coverage: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """How the second run stands to the first.

        "equal to rounding" where nothing changed, "equal to rounding but for times" where times
        alone did, which no other machine need reproduce, "within the interval" where the 95 %
        interval of every other change's median ratio holds one, and "not reproduced" where it does
        not.
        """
        if not self.changes:
            return "equal to rounding"
        numbers = [x for x in self.changes if not x.timed]
        if not numbers:
            return "equal to rounding but for times"
        within = all(x.known and x.low <= 1 <= x.high for x in numbers)
        return "within the interval" if within else "not reproduced"


def compare(old: Path | str, new: Path | str, *, exact: bool = False) -> Iterator[Comparison]:
    """The studies that two folders share, each a folder of runs or one run.

    Args:
        old: The folder of one side.
        new: That of the other.
        exact: Compare what measures no time to the last digit; else beyond noise.

    Raises:
        FileNotFoundError: They share no study.
        ValueError: As of ``report.read``.
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
    refused = []
    for name in both:
        try:
            pair = read(olds[name]), read(news[name])
        except ValueError as error:
            refused.append(str(error))
        else:
            yield _compared(name, *pair, exact=exact)
    if refused:
        raise ValueError(" ".join(refused))


def _runs(folder: Path) -> dict[str, Path]:
    if (folder / "table.csv").exists():
        return {folder.name: folder}
    return {path.parent.name: path.parent for path in sorted(folder.glob("*/table.csv"))}


def _compared(
    name: str,
    old: tuple[pd.DataFrame, Mapping[str, Any]],
    new: tuple[pd.DataFrame, Mapping[str, Any]],
    *,
    exact: bool,
) -> Comparison:
    axes = [x for x in _axes(*old) if x in _axes(*new)]
    a, b, coverage = _paired(_by_case(old[0], axes), _by_case(new[0], axes), axes)
    olds, news = (_measured(table, axes) for table in (a, b))
    for which, mine, other in (("old", olds, news), ("new", news, olds)):
        if only := [x for x in mine if x not in other]:
            coverage.append(f"columns of the {which} run alone: {', '.join(only)}")
    timed = {*old[1].get("timed", ()), *new[1].get("timed", ())}
    noises = {f"{x}_{quartile}" for x in timed for quartile in ("q1", "q3")}
    noises |= {"repeats"} & timed
    timed -= noises
    columns = [x for x in olds if x in news and x not in noises and not (exact and x in timed)]
    pace, said = _pace(a, b, [x for x in columns if x in timed and x.endswith("seconds")])
    method = next((x for x in METHODS if x in axes), None)
    unit = max(ROUNDING.get(str(meta["dtype"]), ROUNDING["float32"]) for _, meta in (old, new))
    units = _units(a, axes)
    changes: list[Change] = []
    for column in columns:
        if exact:
            found = list(_digits(a[column], b[column], units))
        elif column in timed:
            by, over = (method, pace) if column.endswith("seconds") else (None, 1.0)
            found, withheld = _times(a, b, column, units, pace=over, by=by)
            coverage += withheld
        else:
            found = list(_values(a[column], b[column], unit, units))
        changes += found
    return Comparison(
        study=name,
        cases=len(a),
        columns=len(columns),
        changes=tuple(changes),
        environment=(*_environment(old[1], new[1]), *said),
        coverage=tuple(coverage),
    )


def _paired(
    old: pd.DataFrame, new: pd.DataFrame, axes: Sequence[str]
) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """The cases that both runs finished, in the order of the old one; and what is left out."""
    coverage: list[str] = []
    doubtful: set[str] = set()
    for which, table in (("old", old), ("new", new)):
        twice = table.index[table.index.duplicated(keep=False)]
        doubtful |= {*twice}
        if len(twice):
            coverage.append(
                f"{len(twice)} cases of the {which} run have the {', '.join(axes) or 'axes'} of "
                f"another ({twice[0]}) and are not compared"
            )
    a, b = (table[~table.index.isin(doubtful)] for table in (old, new))
    shared = a.index.intersection(b.index, sort=False)
    for which, table in (("old", a), ("new", b)):
        if alone := len(table.index.difference(shared)):
            coverage.append(f"{counted(alone, 'case')} in the {which} run alone")
    a, b = a.loc[shared], b.loc[shared]
    ok = {"old": a["status"] == "ok", "new": b["status"] == "ok"}
    done, tried = ok["old"] & ok["new"], ok["old"] | ok["new"]
    for which, finished in ok.items():
        if lost := int((tried & ~finished).sum()):
            coverage.append(f"{counted(lost, 'case')} failed in the {which} run alone")
    return a[done], b[done], coverage


def _axes(table: pd.DataFrame, meta: Mapping[str, Any]) -> list[str]:
    """What tells rows apart: axes and ``within`` of the meta file, or what a row begins with."""
    named = [*meta["axes"], *meta.get("within", ())]
    return named if meta["axes"] and set(named) <= set(table.columns) else of_case(table)


def _by_case(table: pd.DataFrame, axes: Sequence[str]) -> pd.DataFrame:
    """The table by "axis=value, axis=value"; 64 and 64.0 are one value, True and 1 are two."""
    words = [
        ", ".join(f"{x}={_plain(y)}" for x, y in zip(axes, row, strict=True))
        for row in table[list(axes)].astype(object).itertuples(index=False)
    ]
    return table.set_index(pd.Index(words, dtype=object))


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value if value.strip("+-.0123456789einfa") else repr(value)
    if pd.isna(value):
        return "None"
    whole = isinstance(value, float | np.floating) and float(value).is_integer()
    return str(int(value) if whole else value)


def _measured(table: pd.DataFrame, axes: Sequence[str]) -> list[str]:
    """The columns that a measure filled: no axis, no field of one, none of softlab's own."""
    return [
        x
        for x in table.columns
        if x.partition(".")[0] not in axes and x not in OWN and table[x].notna().any()
    ]


def _units(table: pd.DataFrame, axes: Sequence[str]) -> pd.Series:
    """To which independent unit each case belongs; the series is named after what these are."""
    for column, of in UNITS.items():
        nests = column in axes or column == "source"  # which a study measures of its input
        if nests and column in table and table[column].nunique() > 1:
            return table[column].astype(str).rename(of)
    return _cases(table)


def _cases(table: pd.DataFrame | pd.Series) -> pd.Series:
    """Each case a unit of its own."""
    return pd.Series(range(len(table)), table.index, name="cases")


def _values(a: pd.Series, b: pd.Series, unit: float, units: pd.Series) -> Iterator[Change]:
    """What changed in a column that should be the same: among its numbers, and its words."""
    x, y = as_numbers(a), as_numbers(b)
    numbers = (x.notna() | a.isna()) & (y.notna() | b.isna())
    same = ~numbers | (x == y) | (x.isna() & y.isna())
    moved = ~same & ~((x - y).abs() <= unit * np.maximum(x.abs(), y.abs()))
    if moved.any():
        size = (x - y).abs() / np.maximum(x.abs(), y.abs())
        at = size[moved].fillna(np.inf).idxmax()
        most = f"{at}: {number(x[at])} to {number(y[at])}"
        where = tuple(moved.index[moved])
        yield replace(_change(a[numbers], b[numbers], moved, units, most), where=where)
    others = ~numbers & (a.astype(object) != b.astype(object))
    if others.any():
        at = others.idxmax()
        said = " to ".join(brief(str(values[at]), LONGEST) for values in (a, b))
        none = _median(pd.Series(dtype=float), units)
        where = tuple(others.index[others])
        yield Change(a.name, int(others.sum()), len(a), *none, f"{at}: {said}", where)


def _digits(a: pd.Series, b: pd.Series, units: pd.Series) -> Iterator[Change]:
    """What differs at all in a column: numbers by value, words by letter, what is missing."""
    differs = (a.astype(object) != b.astype(object)) & ~(a.isna() & b.isna())
    if differs.any():
        where = tuple(differs.index[differs])
        most = f"{where[0]}: {' to '.join(brief(str(x[where[0]]), LONGEST) for x in (a, b))}"
        yield replace(_change(a, b, differs, units, most), where=where)


def _pace(a: pd.DataFrame, b: pd.DataFrame, columns: Sequence[str]) -> tuple[float, Iterable[str]]:
    """The median of new seconds over old ones, of quiet cases; and the words for it."""
    quiet = ~busy(a) & ~busy(b)
    each = [_ratios(*_taken(a.loc[quiet, x], b.loc[quiet, x])) for x in columns]
    ratio = pd.concat(each) if each else pd.Series(dtype=float)
    if ratio.empty:
        return 1.0, ()
    low, pace, high = ratio.quantile([0.25, 0.5, 0.75])
    if number(pace) == number(1.0):
        return pace, ()
    return pace, (
        f"pace: the new run took {number(pace)} times as long (median of {len(ratio)} times, half "
        f"of them {number(low)} to {number(high)}); times are compared relative to it",
    )


def _taken(a: pd.Series, b: pd.Series) -> tuple[pd.Series, pd.Series]:
    """Each time once: a study may take one for several cases."""
    once = ~pd.DataFrame({"a": a, "b": b}).duplicated()
    return a[once], b[once]


def _times(
    a: pd.DataFrame,
    b: pd.DataFrame,
    column: str,
    units: pd.Series,
    *,
    pace: float,
    by: str | None,
) -> tuple[list[Change], list[str]]:
    """Which times of a column changed together beyond noise; and what is not compared.

    All of them together, or those of each method where ``by`` is the axis that names it.
    """
    quiet = ~busy(a) & ~busy(b)
    withheld = []
    if disturbed := int((~quiet).sum()):
        withheld.append(
            f"{disturbed} of {len(a)} times of {column} were taken on a busy machine and are not "
            "compared"
        )
    spread = max(_spread(table[quiet], column) for table in (a, b))
    if spread > WIDE:
        withheld.append(
            f"{column} is not compared: the quartiles of repeated calls are wider than "
            f"{100 * WIDE:.0f} % of the median"
        )
        return [], withheld
    x, y = a.loc[quiet, column], b.loc[quiet, column]
    groups = x.groupby(a.loc[quiet, by].map(str)).groups if by else {"": x.index}
    changes, few = [], 0
    for name, cases in groups.items():
        old, new = _taken(x[cases], y[cases]) if by else (x[cases], y[cases])
        ratio = _ratios(pace * old, new)
        if by and len(ratio) < FEWEST:
            few += 1
            continue
        over = units if not by or units[ratio.index].nunique() >= FEWEST else _cases(ratio)
        _, low, high, *_ = _median(ratio, over)
        if not (low > 1 + spread or high < 1 / (1 + spread)):
            continue
        size = np.log(ratio).abs()
        at = size.idxmax()
        most = f"{at}: {number(x[at])} to {number(y[at])}"
        change = _change(pace * old, new, size > np.log1p(spread), over, most)
        named = f"{column} of {by}={name}" if by else column
        changes.append(replace(change, column=named, timed=True))
    if few:
        withheld.append(
            f"{column} is not compared for {few} of {len(groups)} values of {by}: fewer "
            f"than {FEWEST} times"
        )
    return changes, withheld


def _change(a: pd.Series, b: pd.Series, moved: pd.Series, units: pd.Series, most: str) -> Change:
    return Change(str(a.name), int(moved.sum()), len(a), *_median(_ratios(a, b), units), most)


def _ratios(a: pd.Series, b: pd.Series) -> pd.Series:
    """New over old, where it is a number above zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = as_numbers(b) / as_numbers(a)
    return ratio[np.isfinite(ratio) & (ratio > 0)]


def _median(ratio: pd.Series, units: pd.Series) -> tuple[float, float, float, int, str, bool]:
    """Over the units' medians: it, its ends, how many units of what, and if the ends are 95 %."""
    of = str(units.name)
    if ratio.empty:
        return np.nan, np.nan, np.nan, 0, of, False
    each = by_unit(ratio, units[ratio.index])
    low, high = interval(each)
    known = bool(np.isfinite(low) and np.isfinite(high))
    if not known:
        low, high = float(each.min()), float(each.max())
    return float(each.median()), low, high, len(each), of, known


def _spread(table: pd.DataFrame, column: str) -> float:
    """The median over the cases of the quartiles' distance, over the median of repeated calls."""
    found = float(noise(table, column).median())
    return found if np.isfinite(found) else SPREAD


def _environment(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    machine = ("device_name", "dtype", "threads", "arithmetic", "platform")
    names = ("commit", "dirty", "digest", *machine)
    for name in names:
        if old.get(name) != new.get(name):
            yield f"{name}: {old.get(name)} to {new.get(name)}"
    for name in {**old["versions"], **new["versions"]}:
        if old["versions"].get(name) != new["versions"].get(name):
            yield f"{name}: {old['versions'].get(name)} to {new['versions'].get(name)}"
