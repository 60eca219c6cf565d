"""Rows that survive: an append-only file, made durable row by row, and atomic replacement.

A row is a flat mapping from column to ``str | int | float | bool | None``. A run appends each
finished row to the journal before it starts the next, so that whatever stops it (an interrupt, a
full disk, ``kill -9``) costs at most the row in hand.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

Scalar = str | int | float | bool | None
Row = dict[str, Scalar]


class Journal:
    """Finished rows by key, in a file of JSON lines.

    Arguments: ``path`` of the file, which need not exist; ``digest``, the state of the code that
    measures; ``fresh`` to begin empty. Rows written under another digest are dropped on opening:
    their code is gone. A line that does not parse, as a killed run leaves at the end, is dropped
    too, and its case runs again.
    """

    def __init__(self, path: Path, digest: str, *, fresh: bool = False) -> None:
        self.path = path
        self.digest = digest
        self.rows: dict[str, Row] = {}
        for line in () if fresh else _lines(path):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                if entry["digest"] == digest:
                    self.rows[entry["key"]] = dict(entry["row"])
        # Rewriting ends the file at a line break, so that the next append starts a line of its own.
        replace(path, "".join(self._line(key, row) for key, row in self.rows.items()))

    def append(self, key: str, row: Row) -> None:
        """Add one row; it is on the disk when this returns. Raises ``OSError`` if it cannot be."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(self._line(key, row))
            file.flush()
            os.fsync(file.fileno())
        self.rows[key] = row

    def _line(self, key: str, row: Row) -> str:
        return json.dumps({"key": key, "digest": self.digest, "row": row}) + "\n"


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


def as_csv(rows: Sequence[Mapping[str, Scalar]]) -> str:
    """The rows as CSV, columns in order of first appearance, floats with every digit."""
    columns = dict.fromkeys(column for row in rows for column in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _lines(path: Path) -> Iterable[str]:
    # A line torn in the middle of a character must not hide the rows before it.
    return path.read_text("utf-8", errors="replace").splitlines() if path.exists() else ()
