"""Tables -> a PDF and a page: findings; what was asked; then, study by study, how it was measured,
what was found, figures, tables; a glossary and the environment.

What is particular to a kind of study stands in the chapter in its folder. Reads run folders alone
and imports no torch. Equal tables give equal bytes. What one study cannot say costs no other its
place.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd

from softlab.extras import needed
from softlab.figures import Lines
from softlab.report import overview, references
from softlab.report.chapter import Cell, Table, fragment, named, of_run
from softlab.report.drawing import caption, draw, file_name, pages, rows_drawn, save
from softlab.report.folder import FORMAT, read
from softlab.report.headlines import effect_of
from softlab.report.headlines import headlines as first_page_of
from softlab.report.html import NUMBERED
from softlab.report.html import html as as_page
from softlab.report.numbers import joined, parted
from softlab.report.timings import busy
from softlab.report.words import LONGEST, brief, every, legible, safe, spelled

HERE = Path(__file__).parent

__all__ = ["FORMAT", "Cell", "Table", "findings", "named", "read", "report"]

Tell = Callable[[str], None]


def report(folder: Path | str = "reports", tell: Tell = lambda _: None) -> Path:
    """Set ``folder/report.pdf`` from every ``folder/<study>/table.csv``; return its path.

    ``folder/report.html`` says the same on one page, with tables that sort and points that tell
    their case. Beside each table stand its figures (``figures/*.svg`` and ``*.pdf``) and
    ``findings.txt``. ``tell`` is given a sentence for each table that cannot be read and for what
    a chapter cannot say, which the report says too, in place of it.

    Raises ``FileNotFoundError`` if there is no table, ``ValueError`` where none can be read,
    ``ModuleNotFoundError`` without typst.
    """
    folder = Path(folder)
    found = sorted(path.parent for path in folder.glob("*/table.csv"))
    if not found:
        msg = f"no <study>/table.csv under {folder}; run one first: softlab run rank"
        raise FileNotFoundError(msg)
    with needed("report"):
        import typst
    tables, refused = _read(found)
    for sentence in refused:
        tell(sentence)
    files: dict[str, bytes] = {}
    lead = _lead(tables, files)
    studies = list(_studies(tables, files, tell))
    _tell_apart(studies)
    names = [study["name"] for study in studies]
    compiled: Any = typst.compile  # its stubs leave out input as a mapping of files
    data: dict[str, Any] = {
        "title": studies[0]["title"] if len(studies) == 1 else "Approximations of attention",
        "origin": joined(names) if len(names) <= 3 else f"{len(names)} studies",
        "refused": [sentence.replace(f"{folder}/", "") for sentence in refused],
        "studies": studies,
        "lead": lead,
        "question": QUESTION if len(studies) > 1 else studies[0]["question"],
        "how": overview.HOW,
        "marks": list(_marks(tables)),
        "findings": _ranked(studies),
        "environment": overview.environments([one[1:] for one in tables]),
    }
    _numbered(data)
    _printed(folder, studies, lead, files, compiled)
    papers = references.cited(_texts(data, files))
    data["references"] = papers
    (folder / "references.bib").write_text(references.bibtex(papers), encoding="utf-8")
    _mend(files, compiled, typst.TypstError, tell)
    files["glossary.typ"] = (HERE / "glossary.typ").read_bytes()
    page = as_page(every(data, lambda word: safe(brief(word))), files, compiled)
    (folder / "report.html").write_text(page, encoding="utf-8")
    plain = every(_without_marks(data), brief)
    printed = every(plain, spelled)
    files["data.json"] = json.dumps(printed | {"spelled": printed != plain}).encode()
    files["main.typ"] = (HERE / "report.typ").read_bytes()
    path = folder / "report.pdf"
    path.write_bytes(compiled(files, ignore_system_fonts=True))
    return path


QUESTION = "How wrong is each approximation of attention, why, and what does it cost?"
TRIAL = "trial run"
FOUND = 7
"""Findings of the first page, at most."""


def _lead(
    tables: list[tuple[Path, pd.DataFrame, dict[str, Any]]], files: dict[str, bytes]
) -> dict[str, Any] | None:
    """The figure of the first page: what a chapter offers as ``LEAD``, if it can be drawn."""
    for run, table, meta in tables:
        lines = getattr(named(*of_run(meta)), "LEAD", None)
        if lines is not None:
            lead = {**meta, "figures": [asdict(lines)]}
            found = [x for x in _figures(run, table, lead, files) if x["file"] is not None]
            if found:
                return {**found[0], "study": run.name}
    return None


MANY = 2000
"""Rows from which on the studies of a report are set by several processes."""


def _studies(
    tables: Sequence[tuple[Path, pd.DataFrame, dict[str, Any]]],
    files: dict[str, bytes],
    tell: Tell,
) -> Iterator[dict[str, Any]]:
    """What the report says of each study; figures are numbered, and methods told, in their order.

    A figure takes matplotlib long, so studies are shared out among the processors. Processes are
    forked, which asks nothing of a caller's script; that is safe under Linux alone.
    """
    several = len(tables) > 1 and sum(len(table) for _, table, _ in tables) >= MANY
    made: Iterable[tuple[dict[str, Any], dict[str, bytes], list[str]]]
    if several and sys.platform == "linux" and (os.cpu_count() or 1) > 1:
        made = _shared_out(tables)
    else:
        made = (_alone(one) for one in tables)
    for study, own, told in made:
        for sentence in told:
            tell(sentence)
        for item in study["figures"]:
            if item["file"] is not None:
                held, item["file"] = own.pop(item["file"]), f"figures/{len(files)}.svg"
                files[item["file"]] = held
        if study["method"] in files:
            study["method"] = None
        yield study
        files.update(own)


def _shared_out(
    tables: Sequence[tuple[Path, pd.DataFrame, dict[str, Any]]],
) -> list[tuple[dict[str, Any], dict[str, bytes], list[str]]]:
    """``_alone`` of each, the longest begun first."""
    at = sorted(range(len(tables)), key=lambda i: -len(tables[i][1]))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork")
        context = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
            made = dict(zip(at, pool.map(_alone, [tables[i] for i in at]), strict=True))
    return [made[i] for i in range(len(tables))]


def _alone(
    one: tuple[Path, pd.DataFrame, dict[str, Any]],
) -> tuple[dict[str, Any], dict[str, bytes], list[str]]:
    """A study, its own files, and what is told of it."""
    files: dict[str, bytes] = {}
    told: list[str] = []
    return _study(*one, files, told.append), files, told


def _disturbed(table: pd.DataFrame, meta: Mapping[str, Any]) -> int:
    """How many cases a busy machine timed, where they are more than one in twenty."""
    count = int(busy(table).sum()) if meta.get("timed") else 0
    return count if count > len(table) / 20 else 0


def _marks(tables: list[tuple[Path, pd.DataFrame, dict[str, Any]]]) -> Iterator[str]:
    """What must be known before any number is read, each of all studies that it holds for."""
    quick = [run.name for run, _, meta in tables if meta["quick"]]
    if quick:
        whole = len(quick) == len(tables)
        many = "This is a trial run" if whole else f"Trial runs: {', '.join(quick)}"
        its = "its" if whole else "their"
        yield f"{many}{' ' if whole else ', '}on the short grid; do not quote {its} numbers."
    counts = [(run.name, _disturbed(table, meta)) for run, table, meta in tables]
    disturbed = [name for name, count in counts if count]
    if disturbed:
        which, whose = ("study", "its") if len(disturbed) == 1 else ("studies", "their")
        yield (
            f"The machine did other work while the {which} {joined(disturbed)} ran; do not compare "
            f"{whose} times. Other times, errors and counted work are not affected."
        )


def _ranked(studies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The findings of the first page: what is unfinished, then the others by their effect.

    A ratio whose interval holds one is no finding, and stays in its chapter, unless nothing else
    is there.
    """
    every = [(study, item) for study in studies for item in study["headlines"]]
    first = [(study, item) for study, item in every if item.get("unfinished")]
    rest = [(study, item) for study, item in every if not item.get("unfinished")]
    order = sorted(rest, key=lambda one: -effect_of(one[1]))  # stable: of equals the study decides
    kept = [one for one in order if effect_of(one[1]) > 0] or order
    whole = all(TRIAL in study["mark"] for study in studies)  # then the page begins with it

    def marks(study: Mapping[str, Any], item: Mapping[str, Any]) -> Iterator[str]:
        yield from (x for x in study["mark"].split(", ") if x and not (whole and x == TRIAL))
        if timed := _timed(study, item):
            yield timed

    return [
        {
            "text": item["text"],
            "value": item["value"],
            "interval": item["interval"],
            "study": study["name"],
            "mark": ", ".join(marks(study, item)),
            "rows": "",
        }
        for study, item in [*first, *kept[:FOUND]]
    ]


def _texts(data: Any, files: Mapping[str, bytes]) -> Iterator[str]:
    """All words of the report, in which methods and papers are named."""
    if isinstance(data, str):
        yield data
    elif isinstance(data, Mapping):
        for one in data.values():
            yield from _texts(one, {})
    elif isinstance(data, list | tuple):
        for one in data:
            yield from _texts(one, {})
    yield from (text.decode() for name, text in files.items() if name.endswith(".typ"))


def _timed(study: Mapping[str, Any], item: Mapping[str, Any]) -> str:
    """The mark of a finding about time that a busy machine measured."""
    about_time = re.search(r"\btime\b", item["text"])
    return "timed on a busy machine" if study["busy"] and about_time else ""


def _numbered(data: dict[str, Any]) -> None:
    """Numbers and names for figures and tables, and where each study has its own."""
    figures, tables = itertools.count(1), itertools.count(1)
    if data["lead"] is not None:
        data["lead"] |= {"number": next(figures), "id": "figure-lead"}
    for study in data["studies"]:
        spans = []
        for word, items, numbers in (
            ("Figure", [x for x in study["figures"] if x["file"] is not None], figures),
            ("Table", study["tables"], tables),
        ):
            for i, item in enumerate(items, 1):
                name = f"{word.lower()}-{study['name']}-{i}"
                item |= {"number": next(numbers), "id": name}
            if items:
                low, high = items[0]["number"], items[-1]["number"]
                many = f"s {low} to {high}" if high > low else f" {low}"
                spans.append(f"{word}{many}")
        verb = "show" if len(spans) > 1 or any(" to " in x for x in spans) else "shows"
        study["shown"] = f"{' and '.join(spans)} {verb} it." if spans else ""
    rows = {x["name"]: x["tables"][0]["id"] for x in data["studies"] if x["tables"]}
    for item in data["findings"]:
        item["rows"] = rows.get(item["study"], "")
    data["environment"]["captions"] = [
        {"caption": said, "number": next(tables), "id": f"environment-{i}"}
        for i, said in enumerate(("What all studies share.", "What is each study's own."), 1)
    ]


def findings(table: pd.DataFrame, meta: Mapping[str, Any]) -> list[str]:
    """Paragraphs: how complete the table is, then what its chapter finds in it."""
    return [
        overview.completeness(table, meta),
        *named(*of_run(meta)).findings(table),
    ]


def _read(
    found: list[Path],
) -> tuple[list[tuple[Path, pd.DataFrame, dict[str, Any]]], list[str]]:
    """The runs that can be read, and why the others cannot; ``ValueError`` where none can."""
    tables, refused = [], []
    for run in found:
        try:
            table, meta = read(run)
        except ValueError as error:
            refused.append(str(error))
        else:
            tables.append((run, table, meta | {"name": run.name}))
    if not tables:
        raise ValueError(" ".join(refused))
    return tables, refused


def _printed(
    folder: Path,
    studies: Sequence[Mapping[str, Any]],
    lead: Mapping[str, Any] | None,
    files: Mapping[str, bytes],
    compiled: Any,
) -> None:
    """Each figure, that of the first page too, as a PDF of its own beside its SVG."""
    drawn = [(study["name"], item) for study in studies for item in study["figures"]]
    for study, item in drawn if lead is None else [*drawn, (lead["study"], lead)]:
        if item["file"] is not None:
            whole = compiled({"main.typ": ALONE, "figure.svg": files[item["file"]]})
            (folder / study / "figures" / f"{item['name']}.pdf").write_bytes(whole)


ALONE = b"""#set page(width: auto, height: auto, margin: 0pt)
#set document(date: none)
#image("figure.svg")
"""


def _tell_apart(studies: list[dict[str, Any]]) -> None:
    """Studies of one title also say their folder."""
    titles = [study["title"] for study in studies]
    for study in studies:
        if titles.count(study["title"]) > 1:
            study["title"] += f" ({study['name']})"


def _mend(files: dict[str, bytes], compiled: Any, wrong: type[Exception], tell: Tell) -> None:
    """A sentence in place of each chapter's text that is no Typst."""
    for name, text in files.items():
        if name.endswith(".typ"):
            try:
                compiled({"main.typ": NUMBERED + text}, ignore_system_fonts=True)
            except wrong as error:
                said = f"The text of {name} cannot be set: {error}"
                files[name] = f"#{json.dumps(spelled(said))}".encode()
                tell(said)


def _study(
    run: Path, table: pd.DataFrame, meta: Mapping[str, Any], files: dict[str, bytes], tell: Tell
) -> dict[str, Any]:
    chapter = named(*of_run(meta))
    spoken, long = legible(table)
    problems: list[str] = []

    def said(what: str, call: Callable[[], Any], otherwise: Any) -> Any:
        try:
            return call()
        except Exception as error:  # a chapter may be anybody's, a table too
            at = traceback.extract_tb(error.__traceback__)[-1]
            why = f"{type(error).__name__}: {error} ({Path(at.filename).name}:{at.lineno})"
            problems.append(f"The chapter {meta['chapter']} cannot say its {what}: {why}.")
            tell(f"{run.name}: {problems[-1]}")
            return otherwise

    own = said("findings", lambda: list(chapter.findings(spoken)), [])
    parts = [part for paragraph in own for part in parted(paragraph)]
    found = [overview.completeness(spoken, meta), *parts]
    (run / "findings.txt").write_text("\n\n".join(map(safe, found)) + "\n", encoding="utf-8")
    method = f"chapters/{meta['chapter']}.typ"
    files[method] = fragment(*of_run(meta))
    scope = said("scope", lambda: chapter.scope(spoken), "")
    first_page = said("headlines", lambda: first_page_of(spoken, meta, own), [])
    if not meta["complete"]:
        said_ = f"{meta['title']}: {overview.unfinished(table, meta)}"
        first_page = [{"text": said_, "value": "", "interval": "", "unfinished": True}, *first_page]
    tables: list[Any] = said("tables", lambda: [dict(x) for x in chapter.tables(spoken)], [])
    figures = list(_figures(run, table, meta, files))
    notes = [*overview.notes(table, meta), *problems]
    drawn = [x for x in figures if x["file"] is not None]
    for item in ((getattr(chapter, "TABLE_FIRST", False) and tables) or drawn)[:1]:
        item["opens"] = True  # it shows the answer, and stands beside it
    if long:
        notes.append(f"{long} words of more than {LONGEST} letters are cut; table.csv has them.")
    return {
        "name": run.name,
        "title": meta["title"],
        "question": meta["question"],
        "scope": f"{overview.grid(table, meta)} {scope}".strip(),
        "chapter": meta["chapter"],
        "method": method,
        "headlines": first_page,
        "answer": _answer(first_page),
        "busy": bool(_disturbed(table, meta)),
        "mark": ", ".join(
            word
            for word, so in ((TRIAL, meta["quick"]), ("interrupted", not meta["complete"]))
            if so
        ),
        "findings": found,
        "notes": notes,
        "figures": figures,
        "tables": [*tables, *map(dict, overview.failures(spoken))],
    }


def _answer(headlines: Iterable[Mapping[str, Any]]) -> str:
    """What a study answers, in its first two headlines; empty where it has none with a number."""
    told = [one for one in headlines if one["value"]][:2]
    return " ".join(one["text"].replace("{}", one["value"], 1) for one in told)


def _without_marks(data: Mapping[str, Any]) -> dict[str, Any]:
    """For print, where nobody can point at a mark."""
    studies = [
        {**study, "figures": [figure | {"marks": []} for figure in study["figures"]]}
        for study in data["studies"]
    ]
    lead = None if data["lead"] is None else {**data["lead"], "marks": []}
    return {**data, "studies": studies, "lead": lead}


def _figures(
    run: Path, table: pd.DataFrame, meta: Mapping[str, Any], files: dict[str, bytes]
) -> Iterator[dict[str, Any]]:
    """Draw each page of each figure; one that cannot be drawn says why in its place."""
    (run / "figures").mkdir(exist_ok=True)
    known = {field.name for field in fields(Lines)}
    taken: set[str] = set()
    for description in meta["figures"]:
        try:
            lines = Lines(**{name: x for name, x in description.items() if name in known})
            rows = _made(table, meta, lines)
            lines, flat = _with_knobless(rows, lines)
            drawn = []
            for page in pages(rows, lines):
                figure, name = draw(rows, lines, page), _unique(file_name(lines, page), taken)
                save(figure, run / "figures" / f"{name}.svg")
                drawn.append((page, figure, name))
        except Exception as error:  # descriptions and tables may be anybody's
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            yield {"file": None, "caption": f"{_named(description)}: {kind}{error}", "marks": []}
            continue
        for page, figure, name in drawn:
            file = f"figures/{len(files)}.svg"
            files[file] = (run / "figures" / f"{name}.svg").read_bytes()
            yield {
                "file": file,
                "name": name,
                "caption": " ".join((caption(lines, page), *flat, *figure.left_out)),
                "x": lines.xlabel,
                "y": lines.ylabel,
                "marks": [asdict(mark) for mark in figure.marks],
            }


def _with_knobless(rows: pd.DataFrame, lines: Lines) -> tuple[Lines, list[str]]:
    """Against a knob a method without it is the same everywhere: a flat line, and a sentence."""
    if not lines.x.startswith("op.") or not {lines.x, lines.y, lines.group} <= set(rows):
        return lines, []
    done = rows_drawn(rows, lines)
    known = done.groupby(lines.group)[[lines.x, lines.y]].count()
    bare = known.index[(known[lines.x] == 0) & (known[lines.y] > 0)]
    own = [str(x) for x in bare if x not in {*lines.references, lines.exact, "exact"}]
    if not own:
        return lines, []
    said = f"Flat: {', '.join(own)}, without a {lines.x.removeprefix('op.')}."
    return replace(lines, references=[*lines.references, *own]), [said]


def _named(description: Any) -> str:
    """What a figure was to show, as far as it is said."""
    if not isinstance(description, dict):
        return f"a figure described as {description!r}"
    return f"{description.get('y')} against {description.get('x')}"


def _made(table: pd.DataFrame, meta: Mapping[str, Any], lines: Lines) -> pd.DataFrame:
    """The rows that a figure draws; ``ValueError`` where its chapter cannot make them."""
    if not lines.rows:
        return table
    chapter = named(*of_run(meta))
    make = getattr(chapter, lines.rows, None)
    if make is None:
        msg = f"the chapter {meta['chapter']} makes no rows called {lines.rows!r}"
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
