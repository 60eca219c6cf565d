"""``softlab board``: result files as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from softlab.cli.console import FINDING, err, fail, say, say_json

EXAMPLES = (
    "Examples:  softlab compare Performer Soft --results results   |   softlab board results   |   "
    "softlab board results friend/Mine-0a1b2c3d.json --out site/board.html"
)


def board(
    places: Annotated[
        list[Path],
        typer.Argument(metavar="FOLDER|FILE...", help="Result files, and folders of such."),
    ],
    page: Annotated[Path, typer.Option("--out", help="The page to write.")] = Path("board.html"),
    as_json: Annotated[bool, typer.Option("--json", help="What it shows, as JSON.")] = False,
) -> None:
    """Build a board from the result files of softlab compare --results: one static page.

    A file is checked before it stands there: its form, its digest, its inputs by their hash, its
    skills by its errors, its laws by their names; errors of softlab's own operators on recorded
    heads are measured again. One that does not hold is refused, and the page says why.

    Exit codes: 0 done, 1 a file is refused, 2 it could not be done, as where no file is left.
    """
    from softlab.compare import results
    from softlab.report.board import write

    files: list[Path] = []
    for place in places:
        if not place.exists():
            fail(f"there is no file or folder {place}.")
        inside = sorted(place.rglob(f"*{results.SUFFIX}")) if place.is_dir() else [place]
        files += [x for x in inside if x != page.with_suffix(results.SUFFIX)]
    if not files:
        where = ", ".join(map(str, places))
        fail(f"no result file in {where}; make some with softlab compare --results.")
    refused: list[str] = []
    with err.status(f"checking {len(files)} files"):
        entries, count = results.merged(files, refused.append)
    if not entries:
        fail("\n".join([*refused, "No file is left."]))
    try:
        write(page, entries, refused)
    except OSError as error:
        fail(f"{page} cannot be written: {error}")
    if as_json:
        say_json({"page": page, "entries": len(entries), "refused": refused})
    else:
        for sentence in refused:
            say(sentence)
        say(f"{page}: {len(entries)} results")
    if count:
        raise typer.Exit(FINDING)
