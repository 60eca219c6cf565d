"""Rows that survive: an append-only file, made durable case by case, and atomic replacement.

A row is a flat mapping from column to ``str | int | float | bool | None``; a case has one row or
more. A run appends the rows of each finished case to the journal at once, so that whatever stops it
(an interrupt, a full disk, ``kill -9``) costs at most the cases in hand.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
"""Control characters but tabulator and line feed, and the halves of surrogate pairs."""

Scalar = str | int | float | bool | None
Row = dict[str, Scalar]
Rows = list[Row]
"""All rows of one case, at least one; a case that failed has one, which says why."""

FORMAT = 3
"""Of journals and of ``meta.json``; files that say a higher one are a newer softlab's.

Lines of a journal of format 2 held one row as "row", and those of format 1 had no sum besides.
"""
SUM = re.compile(rb', "sum": "([0-9a-f]{16})"\}')
RESERVED = (
    *("status", "error", "case_seconds", "case_setup_seconds", "case_cpu_share", "case_load"),
)
"""Columns that softlab fills itself."""


class Journal:
    """The rows of finished cases by key, in a file of JSON lines, each with a sum over its bytes.

    Arguments: ``path`` of the file, which need not exist; ``digest``, the state of the code that
    measures; ``fresh`` to begin empty. ``rows`` are those of this digest; others stay in the file,
    for the day when their code is back. Last lines that are not whole, as a killed run leaves them,
    are counted in ``torn``, and their cases run again. What is in the file is never cut off: where
    a file system has no locks, another run may have written it. ``renewed`` says that the file was
    taken away meanwhile, and that all rows known here were written anew.

    Raises ``ValueError`` for any other line that is not whole, and for one of a newer version.
    """

    def __init__(self, path: Path, digest: str, *, fresh: bool = False) -> None:
        self.path = path
        self.digest = digest
        self.rows: dict[str, Rows] = {}
        self.torn = 0
        self.renewed = False
        path.parent.mkdir(parents=True, exist_ok=True)
        if fresh:
            replace(path, "")
        elif path.exists():
            self.rows, self.torn = _parsed(path, digest)
        self._broken = self.torn > 0
        self._handle = _opened(path)

    def append(self, key: str, rows: Rows) -> None:
        """Add a case; it is on the disk when this returns. Raises ``OSError`` if it cannot be."""
        self._add(self._line(key, rows))
        self.rows[key] = rows
        if not _same_file(self._handle, self.path):
            self.close()
            self._handle = _opened(self.path)
            self.renewed = True
            self._add(b"".join(self._line(*known) for known in self.rows.items()))

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)

    def _line(self, key: str, rows: Rows) -> bytes:
        return _summed({"format": FORMAT, "key": key, "digest": self.digest, "rows": rows})

    def _add(self, lines: bytes) -> None:
        size = os.fstat(self._handle).st_size
        if self._broken or (size and os.pread(self._handle, 1, size - 1) != b"\n"):
            lines = b"\n" + _summed({"format": FORMAT, "torn": True}) + lines
        self._broken = True
        left = lines
        while left:
            left = left[os.write(self._handle, left) :]
        os.fsync(self._handle)
        self._broken = False


def finished(rows: Rows) -> bool:
    """Whether the case was measured; a case that failed is to be tried again."""
    return all(row.get("status") == "ok" for row in rows)


def rows_of(path: Path, digest: str) -> dict[str, Rows]:
    """The rows of that digest in a journal that another process may be writing."""
    return _parsed(path, digest)[0]


def merged(folder: Path, digest: str) -> dict[str, Rows]:
    """The rows of all journals of a folder, a run's and its shards'.

    Of a case that failed in one and finished in another, the finished; else the row of the journal
    that was written last.
    """
    rows: dict[str, Rows] = {}
    for path in sorted(folder.glob("rows*.jsonl"), key=lambda path: path.stat().st_mtime_ns):
        rows |= {
            key: found
            for key, found in rows_of(path, digest).items()
            if finished(found) or not finished(rows.get(key, found))
        }
    return rows


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
        settled(path.parent)
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


def _parsed(path: Path, digest: str) -> tuple[dict[str, Rows], int]:
    """The rows of the digest, and how many last lines are not whole."""
    rows: dict[str, Rows] = {}
    broken: list[str] = []
    # Lines end at b"\n" alone: json.dumps escapes all other breaks, and a torn line holds any byte.
    lines = path.read_bytes().split(b"\n")
    for i, line in enumerate(lines):
        if not line:  # at the end, and where a corrupt line was deleted by hand
            continue
        try:
            entry = _entry(line, whole=i < len(lines) - 1)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            broken.append(f"line {i + 1} of {path} is corrupt ({type(error).__name__}: {error})")
            continue
        version = entry.get("format", 1)
        if version > FORMAT:
            msg = (
                f"{path} was written by a newer softlab; upgrade, or give --out another folder. "
                f"If it was not, line {i + 1} is corrupt: delete it."
            )
            raise ValueError(msg)
        if "torn" in entry:  # those before it were known to be
            broken = []
            continue
        if broken:
            msg = f"{broken[0]}. Delete that line, and its case alone is measured again; or begin "
            msg += "anew with --fresh."
            raise ValueError(msg)
        if entry["digest"] == digest:
            rows[entry["key"]] = entry["rows"]
    return rows, len(broken)


def _entry(line: bytes, *, whole: bool) -> dict[str, Any]:
    """What a line holds; ``ValueError``, ``KeyError`` or ``TypeError`` say that it is not whole.

    ``whole``: whether the line ends, which one of format 1, without a sum, does not show itself.
    """
    entry = json.loads(line)
    version = entry.get("format", 1) if isinstance(entry, dict) else None
    if isinstance(version, bool) or not isinstance(version, int):
        raise ValueError("it is no entry, or its format is no number")  # noqa: EM101, TRY004
    if version > FORMAT:
        return {"format": version}
    summed = SUM.fullmatch(line[-SUM_SIZE:])
    if version > 1 or "sum" in entry or not whole:
        if not summed or summed[1] != _sum(line[:-SUM_SIZE]):
            raise ValueError("its sum is not that of its bytes")  # noqa: EM101
        if "torn" in entry:
            return {"torn": True}
    rows = entry["rows"] if version > 2 else [entry["row"]]
    key, digest = entry["key"], entry["digest"]
    if not (isinstance(key, str) and isinstance(digest, str) and isinstance(rows, list) and rows):
        raise TypeError("key and digest must be words, and rows a list")  # noqa: EM101
    for row in rows:
        if not isinstance(row, dict):
            raise TypeError("a row must be an object")  # noqa: EM101
        for column, x in row.items():
            if not isinstance(x, Scalar):
                msg = f"{column} is a {type(x).__name__}"
                raise TypeError(msg)
    return {"key": key, "digest": digest, "rows": rows}


SUM_SIZE = len(', "sum": "0123456789abcdef"}')


def _summed(entry: Mapping[str, Any]) -> bytes:
    """An entry as a line that ends in a sum over the bytes before it."""
    text = json.dumps(entry).encode()[:-1]
    return text + b', "sum": "' + _sum(text) + b'"}\n'


def _sum(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest()[:16].encode()


def _opened(path: Path) -> int:
    """A handle that appends to the file, whose name is on the disk too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    settled(path.parent)
    return handle


def settled(folder: Path) -> None:
    """Put the names in a folder on the disk; a file without its name is lost with the power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP, errno.EBADF}:  # no folders there
            raise
    finally:
        os.close(handle)


def _same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
