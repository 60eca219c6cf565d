"""A run's folder: its table and what its ``meta.json`` says of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from softlab.report.chapter import named

FORMAT = 3
"""The newest ``meta.json`` that is understood: the one that ``softlab.engine.journal`` names."""

USUAL: dict[str, Any] = {
    "title": "A study without a title",
    "question": "",
    "quick": False,
    "complete": False,
    "dirty": False,
    "axes": {},
    "figures": [],
    "seeds": [],
    "digest": "",
    "device": "not recorded",
    "device_name": "a machine that is not recorded",
    "dtype": "not recorded",
    "versions": {},
    "platform": "not recorded",
}
"""What every run writes, and what stands in its place where it is missing or of another type."""

EARLIER: dict[str, Any] = {
    **{"timed": [], "within": [], "shared": [], "columns": {}},
    **{"commit": None, "threads": "unknown"},
}
"""What runs of earlier softlab, or outside of a repository, do not write."""

REMEDY = "delete it and run the study again; finished rows are reused"


class Kept(tuple[Any, ...]):
    """What a table's ``attrs`` hold as one: pandas copies them deeply with each operation."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Kept:
        return self


def read(run: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The table and meta of one run folder; ``ValueError`` says which file is unusable and why.

    Each column holds what was measured, as ``columns`` of the meta file says (by
    ``softlab.engine.journal.kinds``): integers beyond 64 bits, words such as "NA" and "007", True
    beside numbers. What is missing is NaN in a column of floats, and None or NaN in others. Columns
    that the meta file does not know are read as pandas guesses, but the words of a column of words
    all stay words.

    Unusable is also a meta file whose chapter does not exist.
    """
    meta = _meta(run / "meta.json")
    table = _table(run / "table.csv", meta["columns"])
    table.attrs |= {"name": meta["name"], "axes": Kept(meta["axes"])}
    if "claims" in meta:
        table.attrs["claims"] = Kept(meta["claims"])
    return table, meta


def _meta(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found["name"].encode("ascii", "replace")  # a word
    except (OSError, LookupError, ValueError, TypeError, AttributeError, RecursionError) as error:
        msg = f"{path} cannot be read ({error!r}); {REMEDY}."
        raise ValueError(msg) from None
    version = found.get("format", FORMAT)
    if not isinstance(version, int):
        msg = f"{path} is of format {version!r}, which is no number; {REMEDY}."
        raise ValueError(msg)  # noqa: TRY004
    if version > FORMAT:
        msg = (
            f"{path} is of format {version}, from a newer softlab; "
            f"this one reads up to {FORMAT}: upgrade it, or report on another folder."
        )
        raise ValueError(msg)
    try:
        chapter = found.setdefault("chapter", "operators")  # of before there were others
        named(chapter, found.setdefault("chapter_folder", ""))
    except (ValueError, TypeError) as error:
        msg = f"{path}: {error}"
        raise ValueError(msg) from None
    lacking = [name for name, x in USUAL.items() if not isinstance(found.get(name), type(x))]
    odd = [x for x in found.get("columns", {}).values() if x not in PARSERS]
    if odd:
        msg = (
            f"{path}: a column is of kind {odd[0]!r}; the kinds are {', '.join(PARSERS)}; {REMEDY}."
        )
        raise ValueError(msg)
    return EARLIER | found | {name: USUAL[name] for name in lacking} | {"lacking": lacking}


def _table(path: Path, kinds: Mapping[str, str]) -> pd.DataFrame:
    known = {json.dumps(name): name for name in kinds} | {name: name for name in kinds}
    try:
        cells = pd.read_csv(path, encoding="utf-8-sig", dtype=str, na_filter=False)
        strange = [head for head in cells if head not in known]
        guessed = pd.read_csv(path, encoding="utf-8-sig", usecols=strange, low_memory=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        msg = f"{path} is not a table ({error}); {REMEDY}."
        raise ValueError(msg) from None
    columns: dict[str, pd.Series] = {}
    for head in cells:
        name = known.get(head, head)
        if head in strange:
            columns[name] = _unmarked(cells[head], guessed[head])
            continue
        try:
            columns[name] = _typed(cells[head].tolist(), kinds[name])
        except (ValueError, KeyError) as error:
            msg = f"{path}: column {name!r} is not what meta.json says ({error}); {REMEDY}."
            raise ValueError(msg) from None
    table = pd.DataFrame(columns)
    if "status" not in table or table.empty:
        msg = f"{path} has no rows with a 'status' column; {REMEDY}."
        raise ValueError(msg)
    return table


def _unmarked(cells: pd.Series, guessed: pd.Series) -> pd.Series:
    """A column that the meta file does not know: as pandas guesses, but "NA" is a word."""
    words = pd.api.types.infer_dtype(guessed, skipna=True) == "string"
    if guessed.isna().all():
        words = not set(cells) <= {"", "nan"}
    return pd.Series([x or None for x in cells]) if words else guessed


def _typed(cells: list[str], kind: str) -> pd.Series:
    """The cells of a column as values; missing are the empty ones."""
    parse = PARSERS[kind]
    values = [parse(x) if x else None for x in cells]
    if kind in {"int", "float"}:
        return _numbers(values)
    return pd.Series(values, dtype=object if kind == "json" else None)


def _numbers(values: list[Any]) -> pd.Series:
    """Integers where none is missing; floats where these hold all; else objects of Python."""
    whole = [x for x in values if isinstance(x, int)]
    if len(whole) == len(values):
        return pd.Series(values)
    try:
        exact = all(float(x) == x for x in whole)
    except OverflowError:
        exact = False
    return pd.Series(values, dtype=float if exact else object)


def _scalar(cell: str) -> Any:
    value = json.loads(cell)
    if isinstance(value, list | dict):
        msg = f"{cell[:40]!r} is no number, word or truth value"
        raise ValueError(msg)  # noqa: TRY004
    return value


PARSERS: dict[str, Callable[[str], Any]] = {
    "bool": {"True": True, "False": False}.__getitem__,
    "int": int,
    "float": float,
    "word": str,
    "json": _scalar,
}
"""How a cell that is not empty is read, by the kind of its column."""
