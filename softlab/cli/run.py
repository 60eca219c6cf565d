"""``softlab run``: measure the cases of studies."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from softlab.cli.console import COULD_NOT, FINDING, fail, say, say_json

if TYPE_CHECKING:
    import torch

    from softlab.engine.workers import Crew
    from softlab.forecast import Ahead
    from softlab.study import Outcome, Study

EXAMPLES = (
    "Examples:  softlab run rank --quick   |   "
    "softlab run mine.py other.py --device cuda --dtype bfloat16 --out results   |   "
    "softlab run rank --set seed=0,1 --set 'op=Soft,Nystromformer(rank=512)'   |   "
    "softlab run rank --input qkv.pt   |   softlab run precision --workers 8   |   "
    "softlab run precision --shard $SLURM_ARRAY_TASK_ID/20   |   "
    "softlab run precision --dask tcp://10.0.0.1:8786"
)


def _names(begun: str) -> Iterator[str]:
    """What a shell offers to complete: softlab's own studies, and files of Python."""
    from softlab.study_folders import built_in

    path = Path(begun)
    folder = path if begun.endswith("/") else path.parent
    yield from (name for name in built_in() if name.startswith(begun))
    for found in sorted(folder.glob("*")):
        if str(found).startswith(begun) and (found.is_dir() or found.suffix == ".py"):
            yield str(found) + "/" * found.is_dir()


def run(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Names of softlab's own studies, Python files that define a Study or more, and "
            "folders that hold study.py.",
            autocompletion=_names,
        ),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="All of softlab's own studies that need no download.")
    ] = False,
    needs: Annotated[
        str, typer.Option(help="With --all: those that need models, images or fidelity instead.")
    ] = "",
    quick: Annotated[bool, typer.Option("--quick", help="The short grid, a trial run.")] = False,
    device: Annotated[str, typer.Option(help="Where to measure: cpu, cuda, cuda:1, ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float64, float32, bfloat16 or float16.")] = "float32",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="AXIS=VALUE,...", help="Other values on an axis."),
    ] = None,
    files_in: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="FILE",
            help="Your own q, k and v in the place of the study's inputs: .pt, .npy, .npz, "
            ".safetensors, or a folder of layers; several times for several.",
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(help="Processes that measure; 0 is this one. Timed cases go one by one.")
    ] = 0,
    dask: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Measure on a dask cluster: the address of its scheduler, 'local', or 'slurm'; "
            "--workers is how many of the last two to start.",
        ),
    ] = None,
    shard: Annotated[
        str, typer.Option(metavar="I/N", help="The i-th of n parts of the grid, for job arrays.")
    ] = "1/1",
    out: Annotated[str, typer.Option(metavar="FOLDER", help="Of the results.")] = "reports",
    fresh: Annotated[bool, typer.Option("--fresh", help="Reuse no finished rows.")] = False,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads per process; torch's default, shared.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="What each run left, as JSON.")] = False,
) -> None:
    """Run studies and write one row or more per case to OUT/<study>/table.csv.

    Finished rows survive an interrupt, a full disk and a kill; the same command goes on from there.
    A case that fails, or crashes its worker twice, is recorded as a row with the reason. Shards
    share OUT, at the same time or one after the other; each writes the table of all rows so far.

    Exit codes: 0 all cases finished, 1 some failed, 2 all of a study failed or a request could not
    be met, 130 after an interrupt.
    """
    from softlab import study as studies
    from softlab.cli.overrides import given, narrowed, part

    number_type = _dtype(dtype)
    try:
        found = _asked(files or (), needs, every=every)
        if files_in:
            found, replaced = given(found, files_in)
            for note in replaced:
                say(note, error=as_json)
        found = narrowed(found, settings or ())
        parts = part(shard)
        _reportable(found)
        worst, told = 0, []
        with _crew(dask, workers) as crew:
            left = _Left.of(found, quick=quick, threads=threads, workers=workers) if every else None
            for study in found:
                if left is not None:
                    left.tell(study)
                outcome = studies.run(
                    study, out, device=device, dtype=number_type, quick=quick, threads=threads,
                    fresh=fresh, progress=True, crew=crew, shard=parts,
                )  # fmt: skip
                found_in, code = _found(study, outcome)
                if as_json:
                    told.append(_told(study, outcome, found_in))
                else:
                    _tell(study, outcome, found_in)
                worst = max(worst, code, _code(outcome))
    except (ValueError, ModuleNotFoundError) as error:
        fail(" ".join([str(error), *getattr(error, "__notes__", [])]))
    except (KeyboardInterrupt, OSError) as stop:
        reason = "interrupted" if isinstance(stop, KeyboardInterrupt) else str(stop)
        notes = " ".join(getattr(stop, "__notes__", []))
        fail(f"{reason}. {notes}".strip(), code=130 if reason == "interrupted" else COULD_NOT)
    if as_json:
        say_json(told)
    if worst:
        raise typer.Exit(worst)


@dataclass
class _Left:
    """What of many studies is still to come, told in a line before each, in logs as well.

    ``late``: how many times as long as was said the studies took that are done.
    """

    ahead: list[Ahead]
    begun: float
    late: float = 1.0

    @staticmethod
    def of(found: list[Study], *, quick: bool, threads: int | None, workers: int) -> _Left:
        """Measure this machine's pace, and say how long all of them will take."""
        from softlab import forecast

        costs = forecast.recorded()
        pace = forecast.pace(found, costs, threads=threads)
        ahead = forecast.ahead(found, costs, pace, quick=quick, workers=workers)
        say(forecast.sentence(ahead), error=True)
        return _Left(ahead, time.monotonic())

    def tell(self, study: Study) -> None:
        """Which study begins, and what is left of all."""
        from softlab.forecast import spoken

        at = next(i for i, x in enumerate(self.ahead) if x.study == study.name)
        said, spent = sum(x.seconds or 0.0 for x in self.ahead[:at]), time.monotonic() - self.begun
        if said > 0 and spent > 30:  # else a quick start would promise too much
            self.late = spent / said
        left = self.late * sum(x.seconds or 0.0 for x in self.ahead[at:])
        about = f"; of all are left about {spoken(left)}" if left else ""
        cases = self.ahead[at].cases
        say(f"{study.name}, {at + 1} of {len(self.ahead)}: {cases} cases{about}", error=True)


def _asked(files: Iterable[Path], needs: str, *, every: bool) -> list[Study]:
    """The studies that are named, and softlab's own where all of them are asked for."""
    from softlab import study as studies
    from softlab.study_folders import built_in

    found = [study for file in files for study in studies.defined_in(file)]
    if needs not in studies.NEEDS or (needs and not every):
        known = ", ".join(f"{word} ({what})" for word, what in studies.NEEDS.items() if word)
        fail(f"--needs is {needs!r}; give it after --all, one of: {known}.")
    if every:
        own = [x for folder in built_in().values() for x in studies.defined_in(folder)]
        found += [study for study in own if study.needs == needs]
    if not found:
        fail(f"name a study to run, or --all. softlab's own are {', '.join(built_in())}.")
    if len({study.name for study in found}) < len(found):
        names = ", ".join(study.name for study in found)
        fail(f"two studies share a name ({names}) and would share a folder; rename one.")
    return found


def _reportable(found: Iterable[Study]) -> None:
    """Refuse a study without its chapter before the hours that it may take."""
    from softlab.report.chapter import named
    from softlab.study import chapter_of

    for study in found:
        try:
            named(*chapter_of(study))
        except ValueError as error:
            fail(f"{study.name}: {error}")


def _code(outcome: Outcome) -> int:
    """The exit code of a study: of its share of the cases none failed, some, or all."""
    if not outcome.share_failed:
        return 0
    return COULD_NOT if outcome.share_failed == outcome.share else FINDING


def _found(study: Study, outcome: Outcome) -> tuple[list[str], int]:
    """What the chapter finds in the table, or a sentence why it cannot say; the exit code."""
    from softlab.report import findings, read

    try:
        return (findings(*read(outcome.folder)) if outcome.rows else []), 0
    except Exception as error:  # a chapter may be anybody's
        why = f"{type(error).__name__}: {error}"
        return [f"{study.name}: its chapter cannot say its findings: {why}"], COULD_NOT


def _told(study: Study, outcome: Outcome, found: list[str]) -> dict[str, object]:
    """What a run left, for programs."""
    table = outcome.folder / "table.csv" if outcome.rows else None
    return {"study": study.name, "table": table, **vars(outcome), "findings": found}


def _tell(study: Study, outcome: Outcome, found: list[str]) -> None:
    """What a run left, what was amiss before, and what is found in its table."""
    for note in outcome.notes:
        say(f"{study.name}: {note}")
    missing = outcome.cases - outcome.measured
    if not outcome.rows:
        say(f"{study.name}: none of the {outcome.cases} cases falls to this shard.")
        return
    of = f" of {outcome.measured} cases" if study.within else ""
    say(
        f"{study.name}: {outcome.rows} rows{of} in {outcome.folder / 'table.csv'} "
        f"({outcome.reused} reused, {outcome.failed} failed"
        f"{f', {missing} of other shards to come' if missing else ''})"
    )
    for paragraph in found:
        say(f"\n{paragraph}")


@contextlib.contextmanager
def _crew(dask: str | None, workers: int) -> Iterator[Crew | None]:
    """Who measures; None for this process."""
    from softlab.engine.workers import dask as cluster
    from softlab.engine.workers import processes

    if workers < 0:
        msg = f"--workers is {workers}; give 0, for this process, or how many to start."
        raise ValueError(msg)
    if dask is not None:
        with cluster(dask, max(1, workers)) as crew:
            yield crew
    else:
        yield processes(workers) if workers else None


def _dtype(name: str) -> torch.dtype:
    import torch

    known = {"float64", "float32", "bfloat16", "float16"}
    if name not in known:
        fail(f"dtype {name!r} is not one of {', '.join(sorted(known))}.")
    found: torch.dtype = getattr(torch, name)
    return found
