"""``softlab check``: the laws of an operator, a solver, or any callable."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softlab.cli.speech import COULD_NOT, FINDING, err, fail, out, say

if TYPE_CHECKING:
    from softlab.laws import Outcome

EXAMPLES = (
    "Examples:  softlab check mine.py:attend   |   "
    "softlab check 'softlab.operators:Soft(rank=16)' --json   |   "
    "softlab check mine.py:attend --traits 'row_stochastic, causal' "
    "--target 'softlab.operators:Softmax()'"
)
MARKS = {"holds": "green", "fails": "bold red", "does not apply": "dim"}
DAY = 86400.0
DTYPES = ("float64", "float32", "bfloat16", "float16")


def check(
    subject: Annotated[
        str | None,
        typer.Argument(help="package.module:object or path/file.py:object; an expression will do."),
    ] = None,
    examples: Annotated[int, typer.Option(help="Seeds of each law.")] = 5,
    dtype: Annotated[str, typer.Option(help="Of the inputs: float64, float32, ...")] = "float64",
    device: Annotated[str, typer.Option(help="Of the inputs: cpu, cuda, ...")] = "cpu",
    traits: Annotated[
        str | None,
        typer.Option(help="What a callable claims: 'causal, reads=scores'. Found out if not said."),
    ] = None,
    target: Annotated[str | None, typer.Option(help="What a callable approximates.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="A law by name; again for more.")] = None,
    seconds: Annotated[float, typer.Option(help="The most that one law may take.")] = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="Outcomes as JSON.")] = False,
    laws_alone: Annotated[
        bool, typer.Option("--laws", help="Say what the laws are, and check nothing.")
    ] = False,
) -> None:
    """Put an operator, a solver or a callable f(q, k, v) under every law that applies.

    A law holds, fails with the simplest counterexample and a line of Python that reproduces it, or
    does not apply and says why. The subject runs in a process of its own: one that raises, hangs,
    prints or ends it is an outcome. Exit codes: 0 no law is broken, 1 one is, 2 the laws could not
    be asked, as of a subject that cannot be imported.
    """
    from softlab import laws
    from softlab.laws.confined import Request, examined

    if laws_alone:
        _laws(as_json=as_json)
        return
    if subject is None:
        fail("name a subject: softlab check package.module:object, or path/file.py:object.")
    if examples < 1 or not 0 < seconds <= DAY:
        fail(
            f"examples is {examples} and seconds {seconds:g}; give at least one, and more than 0 "
            f"and at most {DAY:g} seconds."
        )
    if dtype not in DTYPES:
        fail(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}.")
    everything: tuple[Any, ...] = (*laws.OPERATOR_LAWS, *laws.SOLVER_LAWS)
    names = {law.name for law in everything}
    for name in only or ():
        if name not in names:
            fail(f"there is no law {name!r}; softlab check --laws lists them.{_near(name, names)}")
    _usable(device)
    request = Request(subject, traits, target, examples, seconds, dtype, device, tuple(only or ()))
    found = _shown(examined(request), quiet=as_json)
    if as_json:
        print(json.dumps([dataclasses.asdict(one) for one in found], indent=2))  # noqa: T201
    else:
        _table(found)
    _leave(found, only or ())


def _leave(found: list[Outcome], only: Iterable[str]) -> None:
    """End with 1 if a law is broken, with 2 if there was no subject, or a law was not asked."""
    by = {one.law: one for one in found}
    if by.pop("subject").verdict == "fails":
        raise typer.Exit(COULD_NOT)
    for name in only:
        if name not in by:
            fail(f"{name!r} was not asked: it is no law of such a subject.")
    if "fails" in {one.verdict for one in by.values()}:
        raise typer.Exit(FINDING)
    if only and not any(one.verdict == "holds" for one in by.values()):
        fail("no law was asked: " + "; ".join(f"{one.law} {one.detail}" for one in by.values()))


def _near(name: str, names: Iterable[str]) -> str:
    from softlab.checks import hint

    return hint(name, names)


def _usable(device: str) -> None:
    from softlab import provenance

    try:
        provenance.usable(device)
    except ValueError as error:
        fail(str(error))


def _shown(outcomes: Iterator[Outcome], *, quiet: bool) -> list[Outcome]:
    """All outcomes; the law in progress is shown on a terminal meanwhile."""
    found = []
    with err.status("starting") as status:
        for one in outcomes:
            found.append(one)
            if not quiet:
                status.update(f"{len(found)} laws; the last: {one.law}")
    return found


def _table(found: list[Outcome]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("law", "", "", box=None, pad_edge=False)
    table.columns[0].no_wrap = table.columns[1].no_wrap = True
    for one in found:
        detail = one.detail or (f"{one.examples} examples" if one.examples > 1 else "")
        if one.verdict == "fails":
            drawn = f"drawn: {one.counterexample}" if one.counterexample else ""
            detail = "\n".join(filter(None, (one.statement, one.detail, drawn)))
        table.add_row(one.law, Text(str(one.verdict), style=MARKS[one.verdict]), Text(detail))
    out.print(table)
    broken = [one for one in found if one.verdict == "fails" and one.reproduce]
    if broken:
        say("\nTo see a failure again:")
    for one in broken:
        say(f"  {one.reproduce}")
    counts = {mark: sum(one.verdict == mark for one in found) for mark in MARKS}
    spent = sum(one.seconds for one in found)
    say("\n" + ", ".join(f"{n} {mark}" for mark, n in counts.items()) + f"; {spent:.0f} s")


def _laws(*, as_json: bool) -> None:
    from softlab import laws

    suites: dict[str, tuple[Any, ...]] = {
        "operators": laws.OPERATOR_LAWS, "solvers": laws.SOLVER_LAWS,
    }  # fmt: skip
    words = ("name", "family", "statement", "when", "allows", "catches")
    if as_json:
        rows = [
            {"of": of, **{word: getattr(law, word) for word in words}}
            for of, suite in suites.items()
            for law in suite
        ]
        print(json.dumps(rows, indent=2))  # noqa: T201
        return
    for of, suite in suites.items():
        say(f"\nLaws of {of}")
        for law in suite:
            say(f"\n{law.name} ({law.family}): {law.statement}")
            whom = "any subject" if law.when == "is any" else f"what {law.when}"
            say(f"  for {whom}; allowed: {law.allows}; catches {law.catches}")
