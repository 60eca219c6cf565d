"""Rows that survive: an append-only file, made durable row by row, and atomic replacement.

A row is a flat mapping from column to ``str | int | float | bool | None``. A run appends each
finished row to the journal at once, so that whatever stops it (an interrupt, a full disk,
``kill -9``) costs at most the rows in hand.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
"""Control characters but tabulator and line feed, and the halves of surrogate pairs."""

Scalar = str | int | float | bool | None
Row = dict[str, Scalar]

FORMAT = 1
"""Of journals and of ``meta.json``; files that say a higher one are a newer softlab's."""


class Journal:
    """Finished rows by key, in a file of JSON lines.

    Arguments: ``path`` of the file, which need not exist; ``digest``, the state of the code that
    measures; ``fresh`` to begin empty. ``rows`` are those of this digest; others stay in the file,
    for the day when their code is back. A last line that does not parse, as a killed run leaves it,
    is cut off, counted in ``torn``, and its case runs again.

    Raises ``ValueError`` for any other line that does not parse, and for one of a newer version.
    """

    def __init__(self, path: Path, digest: str, *, fresh: bool = False) -> None:
        self.path = path
        self.digest = digest
        self.rows: dict[str, Row] = {}
        self.torn = False
        path.parent.mkdir(parents=True, exist_ok=True)
        if fresh:
            replace(path, "")
        elif path.exists():
            self.rows, whole = _parsed(path, digest)
            self.torn = whole < path.stat().st_size
            if self.torn:
                os.truncate(path, whole)
        self._handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._bytes = os.fstat(self._handle).st_size

    def append(self, key: str, row: Row) -> None:
        """Add one row; it is on the disk when this returns. Raises ``OSError`` if it cannot be."""
        entry = {"key": key, "digest": self.digest, "row": row}
        left = line = json.dumps(entry).encode() + b"\n"
        try:
            while left:
                left = left[os.write(self._handle, left) :]
            os.fsync(self._handle)
        except OSError:
            os.ftruncate(self._handle, self._bytes)  # what fitted of the line
            raise
        self._bytes += len(line)
        self.rows[key] = row

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)


def rows_of(path: Path, digest: str) -> dict[str, Row]:
    """The rows of that digest in a journal that another process may be writing."""
    return _parsed(path, digest)[0]


def replace(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` so that a reader, or a crash, sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp makes files that only their owner can read
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def kinds(rows: Sequence[Mapping[str, Scalar]]) -> dict[str, str]:
    """What each column holds, so that a reader of the CSV file gets back what was written.

    Columns in order of first appearance; in each the cell of None, or of no value, is empty, and
    all others are of one kind: "bool" (True, False), "int", "float" (every digit, nan, inf, and
    integers that floats hold exactly), "word" (as it is), or "json", where cells are JSON: numbers
    beside words, integers beside other numbers that no float holds, and columns with a word that is
    empty, begins as a formula of a spreadsheet would (=, +, -, @), or holds a control character or
    half a surrogate pair. ``softlab.report.read`` reads them.
    """
    found: dict[str, set[str]] = {}
    for row in rows:
        for column, x in row.items():
            found.setdefault(column, set()).add(_kind(x))
    return {column: _common(kinds - {"none"}) for column, kinds in found.items()}


def as_csv(rows: Sequence[Mapping[str, Scalar]]) -> str:
    """The rows as CSV, columns and cells as of ``kinds``; a name that is no plain word is JSON."""
    kind = kinds(rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([x if _plain(x) else json.dumps(x) for x in kind])
    for row in rows:
        cells = {x: "" if row.get(x) is None else row[x] for x in kind}
        for column in (x for x in row if kind[x] == "json" and row[x] is not None):
            cells[column] = json.dumps(row[column])
        writer.writerow(cells.values())
    return text.getvalue()


def _kind(x: Scalar) -> str:
    if x is None:
        return "none"
    if isinstance(x, bool):
        return "bool"
    if isinstance(x, int):
        return "int" if _held(x) else "long"
    if isinstance(x, float):
        return "float"
    return "word" if _plain(x) else "json"


def _common(kinds: set[str]) -> str:
    """The kind of a column of these kinds."""
    if kinds <= {"int", "float"}:
        return "int" if kinds == {"int"} else "float"
    if kinds <= {"int", "long"}:
        return "int"
    return kinds.pop() if len(kinds) == 1 else "json"


def _held(x: int) -> bool:
    """Whether a float is equal to the integer."""
    try:
        return float(x) == x
    except OverflowError:
        return False


def _plain(word: str) -> bool:
    """Whether a word survives in a cell of its own, for any reader."""
    return bool(word) and word[0] not in "=+-@\t\n" and not UNSAFE.search(word)


def _parsed(path: Path, digest: str) -> tuple[dict[str, Row], int]:
    """The rows of the digest, and how many bytes of the file are whole lines."""
    rows: dict[str, Row] = {}
    whole = 0
    # Lines end at b"\n" alone: json.dumps escapes all other breaks, and a torn line holds any byte.
    lines = path.read_bytes().split(b"\n")
    last = max((i for i, line in enumerate(lines) if line), default=0)
    for i, line in enumerate(lines[: last + 1]):
        if i == len(lines) - 1:
            break  # without a line break, and so not yet durable
        if not line:  # a corrupt line may have been deleted by hand
            whole += 1
            continue
        try:
            entry = json.loads(line)
            key, row, made = entry["key"], dict(entry["row"]), entry["digest"]
        except (ValueError, KeyError, TypeError) as error:
            if i == last:
                break
            msg = (
                f"line {i + 1} of {path} is corrupt ({type(error).__name__}: {error}). Delete that "
                "line, and its case alone is measured again; or begin anew with --fresh."
            )
            raise ValueError(msg) from None
        if entry.get("format", FORMAT) > FORMAT:
            msg = f"{path} was written by a newer softlab; upgrade, or give --out another folder."
            raise ValueError(msg)
        whole += len(line) + 1
        if made == digest:
            rows[key] = row
    return rows, whole
