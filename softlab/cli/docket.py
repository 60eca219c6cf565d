"""``softlab docket``: published claims, their verdicts, and the runs that give them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from softlab.cli.console import COULD_NOT, FINDING, fail, out, say, say_json

if TYPE_CHECKING:
    from softlab.docket import Claim
    from softlab.report.claims import Tried
    from softlab.study import Outcome

EXAMPLES = (
    "Examples:  softlab docket   |   softlab docket run --quick   |   "
    "softlab docket run soft-linear mine.py --workers 2 --out results"
)

app = typer.Typer(invoke_without_command=True, epilog=EXAMPLES)

Out = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Of the results.")]
Json = Annotated[bool, typer.Option("--json", help="As JSON.")]


@app.callback()
def docket(context: typer.Context, place: Out = Path("reports"), as_json: Json = False) -> None:
    """List published claims with the verdict of the last run, or run them.

    Exit codes: 0 done, 2 it could not be done.
    """
    if context.invoked_subcommand is not None:
        return
    from softlab import docket as claims
    from softlab.study_folders import docket as own

    try:
        known = [claim for path in own().values() for claim in claims.claims_in(path)]
        found = {one.claim["name"]: one for one in _tried(place)}
    except ValueError as error:
        fail(str(error))
    rows = [(claim.name, claim.title, _who(claim)) for claim in known]
    names = {name for name, *_ in rows}
    rows += [(name, one.claim["title"], _who(one.claim)) for name, one in found.items()
             if name not in names]  # fmt: skip
    if as_json:
        say_json([_listed(*row, found.get(row[0])) for row in rows])
        return
    table = Table(box=None)
    table.add_column("name", no_wrap=True)
    for column in ("claim", "verdict"):
        table.add_column(column, overflow="fold")
    for name, title, who in rows:
        verdict = found[name].verdict.words if name in found else "not run yet"
        if name in found and found[name].claim["quick"]:
            verdict += " (trial run)"
        table.add_row(name, escape(f"{title} ({who.partition(', ')[0]})"), escape(verdict))
    out.print(table)
    say(f"\nVerdicts of the runs in {place}; softlab docket run gives those that are missing.")


def _who(claim: Any) -> str:
    held = claim if isinstance(claim, dict) else vars(claim)
    return f"{held['who']}, {held['place']}"


def _listed(name: str, title: str, who: str, one: Tried | None) -> dict[str, Any]:
    base: dict[str, Any] = {"name": name, "title": title, "who": who}
    return base | (_told(one) if one else {"verdict": None})


def _names(begun: str) -> list[str]:
    """What a shell offers to complete."""
    from softlab.study_folders import docket as own

    return [name for name in own() if name.startswith(begun)]


@app.command("run", epilog=EXAMPLES)
def run(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Of claims, and files that define one; all of softlab's own unless given.",
            autocompletion=_names,
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The short grids: 3 minutes.")] = False,
    place: Out = Path("reports"),
    workers: Annotated[int, typer.Option(help="Processes that measure; 0 is this one.")] = 0,
    threads: Annotated[int | None, typer.Option(help="CPU threads per process.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Reuse no finished rows.")] = False,
    as_json: Json = False,
) -> None:
    """Try claims, and print the verdict on each.

    Finished rows are reused, and the same command resumes a run. Where data are not here the row
    says which, and there is no verdict.

    Exit codes: 0 each claim has a verdict, or lacks data; 1 a case failed, or a challenge does not
    confirm a verdict against a claim or a metric; 2 it could not be done; 130 after an interrupt.
    """
    from softlab import docket as claims
    from softlab.engine.workers import processes
    from softlab.study_folders import docket as own

    if workers < 0:
        fail(f"--workers is {workers}; give 0, for this process, or how many to start.")
    try:
        found = [one for name in names or own() for one in claims.claims_in(name)]
        _distinct(found)
        crew = processes(workers) if workers else None
        outcomes: dict[str, list[Outcome]] = {}
        for claim in found:
            outcomes[claim.name] = claims.run(
                claim, place, quick=quick, fresh=fresh, progress=True, threads=threads, crew=crew
            )
            gather(place)
    except ValueError as error:
        fail(" ".join([str(error), *getattr(error, "__notes__", [])]))
    except (KeyboardInterrupt, OSError) as stop:
        reason = "interrupted" if isinstance(stop, KeyboardInterrupt) else str(stop)
        notes = " ".join(getattr(stop, "__notes__", []))
        fail(f"{reason}. {notes}".strip(), code=130 if reason == "interrupted" else COULD_NOT)
    tried = [one for one in _tried(place) if one.claim["name"] in outcomes]
    if as_json:
        say_json([_told(one) for one in tried])
    else:
        for one in tried:
            _tell(one)
    failures = _failed(place, outcomes)
    for sentence in failures:
        say(sentence) if not as_json else None
    if failures or any(one.contested and one.confirmed is False for one in tried):
        raise typer.Exit(FINDING)


def _distinct(found: Iterable[Claim]) -> None:
    names = [claim.name for claim in found]
    if twice := {name for name in names if names.count(name) > 1}:
        shared = ", ".join(sorted(twice))
        msg = f"two claims are called {shared} and would share a folder; rename one."
        raise ValueError(msg)


def gather(place: Path) -> Path:
    """Make the one table of all claims that were run into ``place``, for the report; its folder."""
    import json

    from softlab.docket import FOLDER
    from softlab.engine.journal import FORMAT, as_csv, kinds, replace
    from softlab.report.claims import gathered

    folder = place / FOLDER
    rows, meta = gathered(folder)
    meta |= {"format": FORMAT, "columns": kinds(rows), "rows": len(rows)}
    replace(folder / "table.csv", as_csv(rows))
    replace(folder / "meta.json", json.dumps(meta, indent=2) + "\n")
    return folder


def _tried(place: Path) -> list[Tried]:
    """The verdicts of the runs in a folder of results; none where there are no runs."""
    from softlab.docket import FOLDER
    from softlab.report.claims import tried
    from softlab.report.folder import read

    if not (place / FOLDER / "table.csv").is_file():
        return []
    table, _ = read(place / FOLDER)
    return tried(table)


def _failed(place: Path, outcomes: Iterable[str]) -> list[str]:
    """Sentences about cases that failed otherwise than by data that are not here."""
    from softlab.docket import FOLDER
    from softlab.report.claims import LACKS
    from softlab.report.folder import read

    table, _ = read(place / FOLDER)
    failed = table[(table["status"] != "ok") & table["claim"].isin(list(outcomes))]
    failed = failed[~failed["error"].astype(str).str.startswith(LACKS)]
    return [
        f"{name}: {len(rows)} cases failed; the first: {rows['error'].iloc[0]}."
        for name, rows in failed.groupby("claim")
    ]


def _told(one: Tried) -> dict[str, Any]:
    """A claim with its verdict, for programs."""
    found = one.verdict
    return {
        "name": one.claim["name"],
        "title": one.claim["title"],
        "who": _who(one.claim),
        "states": one.claim["states"],
        "published": one.claim["published"],
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "verdict": found.kind,
        "words": found.words,
        "margin": found.margin,
        "margin_of": found.margin_of,
        "controls": dict(one.claim["controls"]),
        "places": [
            {
                "place": place.label,
                "state": place.state,
                "subject": place.subject,
                "controls": dict(place.controls),
            }
            for place in found.places
        ],
        "missing": list(found.missing),
        "challenge": one.again.words if one.again else None,
        "confirmed": one.confirmed,
        "quick": one.claim["quick"],
    }


def _tell(one: Tried) -> None:
    say(f"\n{one.claim['name']}: {one.verdict.words}")
    say(f"  {one.claim['states']} ({_who(one.claim)})")
    say(f"  theirs: {one.claim['published']}; ours, {one.number}: {one.ours}")
    for line in filter(None, (one.controls and f"controls: {one.controls}", one.challenged)):
        say(f"  {line}")
    if one.verdict.places:
        say(f"  margin: {one.flips}")
