"""Tables -> PDF: what was asked, how it was measured, findings, figures, tables, environment.

Reads run folders alone and imports no torch. Equal tables give equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd

from softlab.figures import Lines, draw, save, summary
from softlab.findings import CONTROLS, findings, number

TEMPLATE = Path(__file__).with_name("report.typ")
Cell = str | list[str]


def report(folder: Path | str = "reports") -> Path:
    """Set ``folder/report.pdf`` from every ``folder/<study>/table.csv``; return its path.

    Beside each table it leaves the figures (``figures/*.svg``) and ``findings.txt``.

    Raises ``FileNotFoundError`` if there is no table, ``ValueError`` for a table or meta file that
    cannot be read, ``ModuleNotFoundError`` without typst.
    """
    folder = Path(folder)
    runs = sorted(path.parent for path in folder.glob("*/table.csv"))
    if not runs:
        msg = f"no <study>/table.csv under {folder}; run one first: softlab run studies/rank.py"
        raise FileNotFoundError(msg)
    try:
        import typst
    except ImportError:
        msg = "the PDF is set with typst, which is not installed: pip install 'softlab[report]'"
        raise ModuleNotFoundError(msg) from None
    files: dict[str, bytes] = {}
    studies = [_study(run, files) for run in runs]
    title = studies[0]["title"] if len(studies) == 1 else "Approximations of attention"
    origin = ", ".join(run.name for run in runs)
    data = {"title": title, "origin": origin, "studies": studies}
    files["data.json"] = json.dumps(data).encode()
    files["main.typ"] = TEMPLATE.read_bytes()
    path = folder / "report.pdf"
    compiled: Any = typst.compile  # its stubs leave out input as a mapping of files
    path.write_bytes(compiled(files, ignore_system_fonts=True))
    return path


def read(run: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The table and meta of one run folder; ``ValueError`` says which file is unusable and why."""
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
    return table, meta


def _study(run: Path, files: dict[str, bytes]) -> dict[str, Any]:
    table, meta = read(run)
    found = findings(table)
    (run / "findings.txt").write_text("\n\n".join(found) + "\n", encoding="utf-8")
    return {
        "title": meta["title"],
        "question": meta["question"],
        "scope": _scope(table, meta),
        "findings": found,
        "notes": list(_notes(meta)),
        "figures": list(_figures(run, table, meta, files)),
        "tables": [*_errors(table), *_costs(table), *_failures(table)],
        "environment": _environment(meta),
    }


def _scope(table: pd.DataFrame, meta: dict[str, Any]) -> str:
    axes = ", ".join(f"{count} of {name}" for name, count in meta["axes"].items())
    said = f"The study has {len(table)} cases (values of its axes: {axes})."
    if not {"source", "method", "target", "n"} <= set(table.columns):
        return said
    ranked = table[table["op.rank"].notna() & ~table["method"].isin(CONTROLS)]
    pairs = ranked[["method", "target"]].dropna().drop_duplicates().itertuples(index=False)
    methods = "; ".join(f"{pair.method} against {pair.target} attention" for pair in pairs)
    lengths = table.dropna(subset=["source"]).groupby("source", sort=False)["n"].first()
    inputs = ", ".join(f"{source} (n = {n:g})" for source, n in lengths.items())
    return f"{said} Methods: {methods}. Inputs: {inputs}."


def _notes(meta: dict[str, Any]) -> Iterator[str]:
    if meta["quick"]:
        yield "This is the quick grid, a trial run; its numbers are few."
    if not meta["complete"]:
        yield "The run was interrupted; the table holds the cases that had finished."


def _figures(
    run: Path, table: pd.DataFrame, meta: dict[str, Any], files: dict[str, bytes]
) -> Iterator[dict[str, str]]:
    (run / "figures").mkdir(exist_ok=True)
    known = {field.name for field in fields(Lines)}
    done = table[table["status"] == "ok"]
    for description in meta["figures"]:
        lines = Lines(**{name: x for name, x in description.items() if name in known})
        for page in done[lines.page].unique() if lines.page in done else ():
            name = "-".join(f"{lines.y} {lines.x} {page}".replace(".", "_").split()) + ".svg"
            path = run / "figures" / name
            save(draw(table, lines, page), path)
            files[f"{meta['name']}/{name}"] = path.read_bytes()
            yield {"file": f"{meta['name']}/{name}", "caption": _caption(lines, page)}


def _caption(lines: Lines, page: str) -> str:
    marks = {
        "Uniform": "dotted: the uniform average",
        "TruncatedSVD": "thin black: the truncated SVD",
    }
    legend = [marks[group] for group in lines.references if group in marks]
    if lines.exact and lines.by:
        legend.append("grey vertical: the exact operator")
    subject = f"{lines.ylabel[0].upper()}{lines.ylabel[1:]} against {lines.xlabel}"
    return f"{subject}, for {page} attention. Medians and quartiles; {'; '.join(legend)}."


def _errors(table: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """One table a target: output error by input and method, a column for each rank."""
    if not {"target", "source", "method", "op.rank", "output_error"} <= set(table.columns):
        return
    done = table[table["status"] == "ok"]
    for target in done["target"].unique():
        rows = done[(done["target"] == target) & done["op.rank"].notna()]
        rows = rows.sort_values("method", key=lambda names: names.isin(CONTROLS), kind="stable")
        ranks = sorted(rows["op.rank"].unique())
        points = summary(rows, ["source", "method", "op.rank"], "output_error")
        sources = done.loc[done["target"] == target, "source"].unique()
        uniform = done[done["target"] == target].groupby("source")["uniform_error"].median()
        body: list[list[Cell]] = []
        for source in sources:
            mine = points[points["source"] == source]
            for i, (method, line) in enumerate(mine.groupby("method", sort=False)):
                head = [str(source), number(uniform[source])] if i == 0 else ["", ""]
                by_rank = line.set_index("op.rank").to_dict("index")
                body.append([*head, str(method), *(_cell(by_rank.get(rank)) for rank in ranks)])
        yield {
            "caption": f"Relative output error against {target} attention by rank: the median over "
            "the seeds, below it the quartiles. Uniform: the error of the uniform average.",
            "header": ["input", "uniform", "method", *(f"{rank:g}" for rank in ranks)],
            "rows": body,
            "left": 3,
        }


def _costs(table: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """What a call costs, by length and method, a column for the exact operator and each rank."""
    needed = {"target", "method", "op.rank", "n", "seconds_q1", "seconds_q3", *_COSTS}
    if not needed <= set(table.columns):
        return
    done = table[(table["status"] == "ok") & table["seconds"].notna()]
    ranked = done[done["op.rank"].notna()]
    ranks = sorted(ranked["op.rank"].unique())
    body: list[list[Cell]] = []
    for (n, target, method), mine in ranked.groupby(["n", "target", "method"]):
        same = (done["n"] == n) & (done["target"] == target)
        points = [done[same & (done["method"] == "exact")]]
        points += [mine[mine["op.rank"] == rank] for rank in ranks]
        for i, (column, (unit, scale)) in enumerate(_COSTS.items()):
            head: list[Cell] = [f"{n:g}", [str(method), str(target)]] if i == 0 else ["", ""]
            body.append([*head, unit, *(_cost_cell(at, column, scale) for at in points)])
    yield {
        "caption": "What one forward call costs: counted arithmetic (millions of floating point "
        "operations, thousands of kernel entries), measured time (median and quartiles) and "
        "measured peak memory.",
        "header": ["n", "method", "", "exact", *(f"{rank:g}" for rank in ranks)],
        "rows": body,
        "left": 3,
    }


_COSTS = {
    "flops": ("MFLOPs", 1e-6),
    "kernel_entries": ("10³ entries", 1e-3),
    "seconds": ("ms", 1e3),
    "peak_bytes": ("peak MB", 1e-6),
}


def _cost_cell(rows: pd.DataFrame, column: str, scale: float) -> Cell:
    if rows.empty:
        return ""
    median = scale * rows[column].median()
    if column != "seconds":
        return _short(median, 3)
    q1, q3 = (scale * rows[f"seconds_{q}"].median() for q in ("q1", "q3"))
    return _cell({"median": median, "q1": q1, "q3": q3})


def _failures(table: pd.DataFrame) -> Iterator[dict[str, Any]]:
    failed = table[table["status"] != "ok"]
    if failed.empty:
        return
    counts = failed["error"].fillna("no reason recorded").value_counts()
    yield {
        "caption": f"The {len(failed)} cases that failed, by reason.",
        "header": ["reason", "cases"],
        "rows": [[str(reason), str(count)] for reason, count in counts.items()],
        "left": 1,
    }


def _environment(meta: dict[str, Any]) -> list[list[str]]:
    commit = f"{meta['commit'] or 'not under git'}{', with changes' if meta['dirty'] else ''}"
    libraries = ", ".join(f"{name} {version}" for name, version in meta["versions"].items())
    return [
        ["Commit", commit],
        ["Code digest", meta["digest"]],
        ["Versions", libraries],
        ["Device", f"{meta['device']}: {meta['device_name']}"],
        ["Arithmetic", f"{meta['dtype']}, {meta['threads']} threads"],
        ["Platform", meta["platform"]],
        ["Seeds", ", ".join(map(str, meta["seeds"])) or "none"],
        ["Rows", f"{meta['rows']}: {meta['failed']} failed, {meta['reused']} of an earlier run"],
        ["Run", f"{meta['started'][:19]} to {meta['finished'][:19]} UTC"],
        ["Wall time", f"{meta['wall_seconds']:.0f} s"],
    ]  # fmt: skip


def _cell(point: dict[str, float] | None) -> Cell:
    """A median above its quartiles; only the median where they agree in print."""
    if point is None:
        return ""
    q1, q3 = (_short(point[name], 2).removeprefix("0") for name in ("q1", "q3"))
    median = _short(point["median"], 3)
    return median if q1 == q3 else [median, f"{q1}–{q3}"]  # noqa: RUF001


def _short(x: float, digits: int) -> str:
    """As ``number``, narrow enough for a column: 0.0123, 12.3, 1.23e-5, 1230."""
    if 10**digits <= abs(x) < 1e5:
        return f"{x:.0f}"
    return f"{x:#.{digits}g}".rstrip(".").replace("e-0", "e-").replace("e+0", "e")
