"""``softlab run``: measure the cases of studies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from softlab.cli.speech import fail, say

if TYPE_CHECKING:
    import torch

EXAMPLES = (
    "Examples:  softlab run studies/rank.py --quick   |   "
    "softlab run mine.py other.py --device cuda --dtype bfloat16 --out results"
)


def run(
    files: Annotated[list[Path], typer.Argument(help="Python files that define a Study or more.")],
    quick: Annotated[bool, typer.Option("--quick", help="The short grid, a trial run.")] = False,
    device: Annotated[str, typer.Option(help="Where to measure: cpu, cuda, cuda:1, ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float64, float32, bfloat16 or float16.")] = "float32",
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("reports"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Reuse no finished rows.")] = False,
    threads: Annotated[int | None, typer.Option(help="CPU threads; torch's own choice.")] = None,
) -> None:
    """Run studies: every case a row of OUT/<study>/table.csv, with meta.json beside it.

    Finished rows survive an interrupt, a full disk and a kill; the same command goes on from there.
    A case that fails is a row that says why.
    """
    from softlab import study as studies
    from softlab import study_file
    from softlab.chapters import named
    from softlab.report import findings, read

    number_type = _dtype(dtype)
    try:
        found = [study for file in files for study in study_file.studies(file)]
    except ValueError as error:
        fail(str(error))
    if len({study.name for study in found}) < len(found):
        names = ", ".join(study.name for study in found)
        fail(f"two studies share a name ({names}) and would share a folder; rename one.")
    for study in found:  # before the hours that it may take
        try:
            named(study.chapter)
        except ValueError as error:
            fail(f"{study.name}: {error}")
    for study in found:
        try:
            outcome = studies.run(
                study, out, device=device, dtype=number_type, quick=quick, threads=threads,
                fresh=fresh, progress=True,
            )  # fmt: skip
        except ValueError as error:
            fail(str(error))
        except (KeyboardInterrupt, OSError) as stop:
            reason = "interrupted" if isinstance(stop, KeyboardInterrupt) else str(stop)
            notes = " ".join(getattr(stop, "__notes__", []))
            fail(f"{study.name}: {reason}. {notes}", code=130 if reason == "interrupted" else 1)
        say(
            f"{study.name}: {outcome.rows} rows in {outcome.folder / 'table.csv'} "
            f"({outcome.reused} reused, {outcome.failed} failed)"
        )
        for paragraph in findings(*read(outcome.folder)):
            say(f"\n{paragraph}")


def _dtype(name: str) -> torch.dtype:
    import torch

    known = {"float64", "float32", "bfloat16", "float16"}
    if name not in known:
        fail(f"dtype {name!r} is not one of {', '.join(sorted(known))}.")
    found: torch.dtype = getattr(torch, name)
    return found
