"""A run's folder: its table and what its ``meta.json`` says of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from softlab.chapters import named

FORMAT = 1
"""The newest ``meta.json`` that is understood: the one that ``softlab.journal`` names."""


def read(run: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The table and meta of one run folder; ``ValueError`` says which file is unusable and why.

    Unusable is also a meta file whose chapter does not exist.
    """
    remedy = "delete it and run the study again; finished rows are reused"
    try:
        table = pd.read_csv(run / "table.csv")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        msg = f"{run / 'table.csv'} is not a table ({error}); {remedy}."
        raise ValueError(msg) from None
    if "status" not in table or table.empty:
        msg = f"{run / 'table.csv'} has no rows with a 'status' column; {remedy}."
        raise ValueError(msg)
    try:
        meta = json.loads((run / "meta.json").read_text())
        table.attrs["name"] = meta["name"]
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        msg = f"{run / 'meta.json'} cannot be read ({error!r}); {remedy}."
        raise ValueError(msg) from None
    if meta.get("format", FORMAT) > FORMAT:
        msg = (
            f"{run / 'meta.json'} is of format {meta['format']}, from a newer softlab; "
            f"this one reads up to {FORMAT}: upgrade it, or report on another folder."
        )
        raise ValueError(msg)
    meta.setdefault("chapter", "operators")  # runs made when it was the only one
    try:
        named(meta["chapter"])
    except ValueError as error:
        msg = f"{run / 'meta.json'}: {error}"
        raise ValueError(msg) from None
    return table, meta
