"""Tables -> a PDF and a page: findings; what was asked; then, study by study, how it was measured,
what was found, figures, tables; a glossary and the environment.

What is particular to a kind of study stands in ``softlab.chapters``. Reads run folders alone and
imports no torch. Equal tables give equal bytes.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pandas as pd

from softlab.chapters import fragment, named, runs
from softlab.chapters.headlines import headlines
from softlab.extras import needed
from softlab.figures import Lines, caption, draw, file_name, pages, save
from softlab.report.folder import FORMAT, read
from softlab.report.page import html

HERE = Path(__file__).parent

__all__ = ["FORMAT", "findings", "read", "report"]


def report(folder: Path | str = "reports") -> Path:
    """Set ``folder/report.pdf`` from every ``folder/<study>/table.csv``; return its path.

    ``folder/report.html`` says the same on one page, with tables that sort and points that tell
    their case. Beside each table stand its figures (``figures/*.svg``) and ``findings.txt``.

    Raises ``FileNotFoundError`` if there is no table, ``ValueError`` for a table or meta file that
    cannot be read or is of a newer version, ``ModuleNotFoundError`` without typst.
    """
    folder = Path(folder)
    found = sorted(path.parent for path in folder.glob("*/table.csv"))
    if not found:
        msg = f"no <study>/table.csv under {folder}; run one first: softlab run studies/rank.py"
        raise FileNotFoundError(msg)
    with needed("report"):
        import typst
    files: dict[str, bytes] = {}
    tables = [read(run) for run in found]
    studies = [_study(run, *one, files) for run, one in zip(found, tables, strict=True)]
    data = {
        "title": studies[0]["title"] if len(studies) == 1 else "Approximations of attention",
        "origin": ", ".join(run.name for run in found),
        "studies": studies,
        "environment": runs.environments(tables),
    }
    files["data.json"] = json.dumps(_without_marks(data)).encode()
    files["main.typ"] = (HERE / "report.typ").read_bytes()
    files["glossary.typ"] = (HERE / "glossary.typ").read_bytes()
    path = folder / "report.pdf"
    compiled: Any = typst.compile  # its stubs leave out input as a mapping of files
    path.write_bytes(compiled(files, ignore_system_fonts=True))
    (folder / "report.html").write_text(html(data, files, compiled), encoding="utf-8")
    return path


def findings(table: pd.DataFrame, meta: Mapping[str, Any]) -> list[str]:
    """Paragraphs: how complete the table is, then what its chapter finds in it."""
    return [runs.completeness(table), *named(meta["chapter"]).findings(table)]


def _study(
    run: Path, table: pd.DataFrame, meta: Mapping[str, Any], files: dict[str, bytes]
) -> dict[str, Any]:
    chapter = named(meta["chapter"])
    found = findings(table, meta)
    (run / "findings.txt").write_text("\n\n".join(found) + "\n", encoding="utf-8")
    method = f"chapters/{meta['chapter']}.typ"
    first = method not in files
    files[method] = fragment(meta["chapter"])
    return {
        "name": run.name,
        "title": meta["title"],
        "question": meta["question"],
        "scope": f"{runs.grid(table, meta)} {chapter.scope(table)}".strip(),
        "chapter": meta["chapter"],
        "method": method if first else None,
        "headlines": headlines(table, meta, found[1:]),
        "findings": found,
        "notes": list(runs.notes(table, meta)),
        "figures": list(_figures(run, table, meta, files)),
        "tables": [*chapter.tables(table), *runs.failures(table)],
    }


def _without_marks(data: Mapping[str, Any]) -> dict[str, Any]:
    """For print, where nobody can point at a mark."""
    studies = [
        {**study, "figures": [figure | {"marks": []} for figure in study["figures"]]}
        for study in data["studies"]
    ]
    return {**data, "studies": studies}


def _figures(
    run: Path, table: pd.DataFrame, meta: Mapping[str, Any], files: dict[str, bytes]
) -> Iterator[dict[str, Any]]:
    """Draw each page of each figure; one that cannot be drawn says why in its place."""
    (run / "figures").mkdir(exist_ok=True)
    known = {field.name for field in fields(Lines)}
    taken: set[str] = set()
    for description in meta["figures"]:
        lines = Lines(**{name: x for name, x in description.items() if name in known})
        try:
            rows = _made(table, meta["chapter"], lines)
            drawn = [(page, draw(rows, lines, page)) for page in pages(rows, lines)]
        except ValueError as error:
            said = f"{lines.y} against {lines.x}: {error}"
            yield {"file": None, "caption": said, "marks": []}
            continue
        for page, figure in drawn:
            name = _unique(file_name(lines, page), taken)
            path = run / "figures" / f"{name}.svg"
            save(figure, path)
            files[f"{run.name}/{path.name}"] = path.read_bytes()
            yield {
                "file": f"{run.name}/{path.name}",
                "caption": caption(lines, page),
                "x": lines.xlabel,
                "y": lines.ylabel,
                "marks": [asdict(mark) for mark in figure.marks],
            }


def _made(table: pd.DataFrame, chapter: str, lines: Lines) -> pd.DataFrame:
    """The rows that a figure draws; ``ValueError`` where its chapter cannot make them."""
    if not lines.rows:
        return table
    make = getattr(named(chapter), lines.rows, None)
    if make is None:
        msg = f"the chapter {chapter} makes no rows called {lines.rows!r}"
        raise ValueError(msg)
    made: pd.DataFrame = make(table)
    return made


def _unique(name: str, taken: set[str]) -> str:
    """The name, with a running number where an earlier figure of the study has it."""
    numbered = (f"{name}-{i}" for i in itertools.count(2))
    while name.lower() in taken:  # some file systems do not tell cases apart
        name = next(numbered)
    taken.add(name.lower())
    return name
