"""``softlab check``: the laws of an operator, a solver, or any callable."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softlab.cli.console import FINDING, err, fail, out, say, say_json
from softlab.hints import hint

if TYPE_CHECKING:
    from softlab.laws import Cause, Outcome

EXAMPLES = (
    "Examples:  softlab check mine.py:attend   |   "
    "softlab check 'softlab.operators:Soft(rank=16)' --json   |   "
    "softlab check mine.py:attend --traits 'row_stochastic, causal' "
    "--target 'softlab.operators:Softmax()'"
)
DAY = 86400.0
SKIPPED = "does not apply"
DTYPES = ("float64", "float32", "bfloat16", "float16")


def check(
    subject: Annotated[
        str | None,
        typer.Argument(help="package.module:object or path/file.py:object; an expression will do."),
    ] = None,
    examples: Annotated[
        int | None, typer.Option(help="Seeds of each law: 5, or 20 if thorough.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of the inputs: float64, float32, ...")] = "float64",
    device: Annotated[str, typer.Option(help="Of the inputs: cpu, cuda, ...")] = "cpu",
    traits: Annotated[
        str | None,
        typer.Option(help="What a callable claims: 'causal, reads=scores'. Found out if not said."),
    ] = None,
    target: Annotated[str | None, typer.Option(help="What a callable approximates.")] = None,
    requires: Annotated[
        str | None,
        typer.Option(
            help="Lengths that a callable needs: 'tokens=64, multiple=8'. Found out, too."
        ),
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(
            help="What makes f(q, k, v) of it: first (of a tuple), heads-last (b, n, h, d), scaled "
            "(it leaves 1/sqrt(d) to you), or mine.py:function of yours."
        ),
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="A law by name; again for more.")] = None,
    seconds: Annotated[
        float | None, typer.Option(help="The most that one law may take: 30, or 180 if thorough.")
    ] = None,
    thorough: Annotated[
        bool, typer.Option("--thorough", help="Minutes: every size up to some thousand keys.")
    ] = False,
    failed: Annotated[bool, typer.Option("--failed", help="Show failures alone.")] = False,
    coverage: Annotated[
        bool, typer.Option("--coverage", help="Show in which regimes each law called the subject.")
    ] = False,
    expect: Annotated[
        list[str] | None,
        typer.Option(help="A law known to fail, 'law: reason'; that it holds is then a failure."),
    ] = None,
    power: Annotated[
        bool,
        typer.Option("--power", help="Plant faults into the subject: which would the laws see?"),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Outcomes as JSON.")] = False,
    laws_alone: Annotated[
        bool, typer.Option("--laws", help="Say what the laws are, and check nothing.")
    ] = False,
) -> None:
    """Put an operator, a solver or a callable f(q, k, v) under every law that applies.

    Failures come first, those of one cause together, with the simplest counterexample and a line of
    Python that reproduces it; then the laws that hold, and those that do not apply. The subject
    runs in a process of its own: one that raises, hangs, prints or ends it is an outcome.

    With --power ordinary mistakes are planted into the subject, one at a time, and the laws that it
    keeps are asked of each, up to the first that breaks, or all with --thorough. It takes minutes.

    Exit codes: 0 no law is broken, 1 one is, or with --power a fault is that no law sees, 2 the
    laws could not be asked, as of a subject that cannot be imported.
    """
    from softlab import laws
    from softlab.laws.faults import FAMILY
    from softlab.laws.sandbox import Request, examined

    if laws_alone:
        _laws(as_json=as_json)
        return
    if subject is None:
        fail("name a subject: softlab check package.module:object, or path/file.py:object.")
    examples, seconds = laws.budgeted(examples, seconds, thorough=thorough)
    known = tuple(_reason(one) for one in expect or ())
    _refuse(examples, seconds, dtype, [*(only or ()), *(name for name, _ in known)])
    _usable(device)
    limits, asked = (examples, seconds, dtype, device), tuple(only or ())
    request = Request(
        subject, traits, target, *limits, asked, thorough, requires, power, known, adapter
    )
    found = _shown(examined(request), quiet=as_json)
    if as_json:
        say_json(found)
    elif power:
        _planted(found, failed=failed)
    else:
        _told(found, failed=failed)
        if coverage:
            _covered(found)
    if power:  # laws that the subject breaks itself are told, and are not what was asked
        _leave([found[0], *(one for one in found if one.family == FAMILY)], ())
    else:
        _leave(found, only or ())


def _reason(text: str) -> tuple[str, str]:
    """A law and why it fails."""
    name, colon, reason = text.partition(":")
    if not colon or not reason.strip():
        fail(
            f"--expect is {text!r}; give a law and the reason, as 'claimed work: not counted yet'."
        )
    return name.strip(), reason.strip()


def _planted(found: list[Outcome], *, failed: bool) -> None:
    """Which planted faults are seen, and by what."""
    from softlab.laws.faults import FAMILY

    subject, *found = found
    if subject.verdict == "fails":
        return
    say(subject.detail)
    broken = [one for one in found if one.family != FAMILY]
    by = {x: [one for one in found if one.verdict == x and one.family == FAMILY]
          for x in ("holds", "fails", SKIPPED)}  # fmt: skip
    for law in broken:
        say(f"  {law.law}: the subject breaks it: {law.detail}; not asked of faults")
    for one in by["fails"]:
        say(f"  not seen: {one.law}")
    for one in [] if failed else by["holds"]:
        say(f"  seen: {one.law}, by {one.detail}")
    for one in [] if failed else by[SKIPPED]:
        say(f"  no fault here: {one.law} {one.detail}")
    planted = len(by["holds"]) + len(by["fails"])
    say(f"{len(by['holds'])} of {planted} planted faults are seen")


def _refuse(examples: int, seconds: float, dtype: str, only: Iterable[str]) -> None:
    """Refuse budgets, a dtype and laws that are none."""
    from softlab import laws

    if examples < 1 or not 0 < seconds <= DAY:
        fail(
            f"examples is {examples} and seconds {seconds:g}; give at least one, and more than 0 "
            f"and at most {DAY:g} seconds."
        )
    if dtype not in DTYPES:
        fail(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}.")
    everything: tuple[Any, ...] = (*laws.OPERATOR_LAWS, *laws.SOLVER_LAWS)
    names = {law.name for law in everything}
    for name in only:
        if name not in names:
            fail(f"there is no law {name!r}; softlab check --laws lists them.{hint(name, names)}")


def _leave(found: list[Outcome], only: Iterable[str]) -> None:
    """End with 1 if a law is broken, with 2 if there was no subject, or a law was not asked."""
    by = {one.law: one for one in found}
    subject = by.pop("subject")
    if subject.verdict == "fails":
        fail(f"it cannot be asked: {subject.detail}")
    for name in only:
        if name not in by:
            fail(f"{name!r} was not asked: it is no law of such a subject.")
    if "fails" in {one.verdict for one in by.values()}:
        raise typer.Exit(FINDING)
    if only and all(one.verdict == SKIPPED for one in by.values()):
        fail("no law was asked: " + "; ".join(f"{one.law} {one.detail}" for one in by.values()))


def _usable(device: str) -> None:
    from softlab.engine import provenance

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


def _told(found: list[Outcome], *, failed: bool) -> None:
    """The causes of failures, then what holds and what does not apply."""
    from softlab import laws

    subject, *found = found
    if subject.verdict == "fails":
        return
    causes = laws.causes(found)
    if not failed:
        say(subject.detail)
    for number, cause in enumerate(causes, 1):
        _cause(number, cause)
    by = {x: [one for one in found if one.verdict == x] for x in ("holds", "fails", SKIPPED)}
    if not failed:
        for one in found:
            if one.verdict == "fails as expected":
                say(f"\nfails as expected: {one.law}: {one.detail}")
        _listed("holds", by["holds"])
        for one in by["holds"]:
            if one.detail:
                say(f"  {one.law}: {one.detail}")
        for one in by[SKIPPED]:
            if one.dropped:
                say(f"\n{one.detail}")
        idle = [one for one in by[SKIPPED] if not one.dropped]
        _listed(f"{SKIPPED} (--json says why)", idle)
    spent = sum(one.seconds for one in found)
    why = f" by {len(causes)} cause{'s' * (len(causes) != 1)}" if causes else ""
    counts = {x: len(these) for x, these in by.items()}
    say(
        f"\n{counts['holds']} hold, {counts['fails']} fail{why}, {counts[SKIPPED]} do not apply; "
        f"{spent:.0f} s"
    )


def _cause(number: int, cause: Cause) -> None:
    """A line with the cause and its place; below it the laws, and the simplest counterexample."""
    from rich.text import Text

    out.print(
        Text(f"\n{number}. ", style="bold red")
        + Text(cause.what, style="bold")
        + Text(f"  {cause.at}", style="cyan"),
        soft_wrap=True,
    )
    one = cause.simplest
    say(f"   breaks: {'; '.join(x.law for x in cause.outcomes)}")
    if one.detail not in cause.what:
        say(f"   {one.law}: {one.detail}")
    if one.counterexample:
        say(f"   on {one.counterexample}")
    if one.reproduce:
        say(f"   again: {one.reproduce}")


def _listed(title: str, outcomes: list[Outcome]) -> None:
    if outcomes:
        say(f"\n{title}: {'; '.join(one.law for one in outcomes)}")


def _covered(found: list[Outcome]) -> None:
    """For each law how many calls were in each regime, a dash for none."""
    from softlab import laws
    from softlab.laws.regimes import REGIMES

    rows = laws.coverage(found).rows
    names = list(dict.fromkeys(law for law, *_ in rows))
    counts = {(law, factor, level): n for law, factor, level, n in rows}
    factors = [x for x in REGIMES if any(x == factor for _, factor, *_ in rows)]
    for some in (factors[:4], factors[4:8], factors[8:]):
        say("")
        for factor in some:
            say(f"{factor}: {' / '.join(REGIMES[factor])}")
        cells = [["law", *some]] + [
            [
                law,
                *(
                    "/".join(str(counts.get((law, x, level)) or "-") for level in REGIMES[x])
                    for x in some
                ),
            ]
            for law in names
        ]
        widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
        for row in cells:
            say("  ".join(x.ljust(width) for x, width in zip(row, widths, strict=True)).rstrip())


def _laws(*, as_json: bool) -> None:
    from softlab import laws

    suites: dict[str, tuple[Any, ...]] = {
        "operators": laws.OPERATOR_LAWS,
        "solvers": laws.SOLVER_LAWS,
    }
    words = ("name", "family", "statement", "when", "allows", "catches")
    if as_json:
        rows = [
            {"of": of, **{word: getattr(law, word) for word in words}}
            for of, suite in suites.items()
            for law in suite
        ]
        say_json(rows)
        return
    for of, suite in suites.items():
        say(f"\nLaws of {of}")
        for law in suite:
            say(f"\n{law.name} ({law.family}): {law.statement}")
            whom = "any subject" if law.when == "is any" else f"what {law.when}"
            say(f"  for {whom}; allowed: {law.allows}; catches {law.catches}")
