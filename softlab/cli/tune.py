"""``softlab tune``: the cheapest attention of a model that stays within what was asked."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softlab.cli.console import FINDING, fail, out, say, say_json
from softlab.cli.models import INPUT

if TYPE_CHECKING:
    from softlab.tuning import Found, Metric

EXAMPLES = (
    "Examples:  softlab tune mine.py:make --input x.pt --within 0.01   |   "
    "softlab tune mine.py:make --input data/ --metric loss --within 0.02 --out tuned   |   "
    "softlab tune mine.py:make --input x.pt --within 0.01 --candidates 'TopK(32),Local(64)'   |   "
    "softlab substitute mine.py:make --plan tuned/plan.json --input x.pt"
)


def tune(
    factory: Annotated[
        str, typer.Argument(metavar="MODULE:FACTORY", help="package.module:f or path/file.py:f.")
    ],
    files: Annotated[
        list[Path],
        typer.Option(
            "--input",
            help=f"{INPUT}; a folder of such; several times for several. Batches are "
            "split into samples, of which some are held out.",
        ),
    ],
    within: Annotated[float, typer.Option(help="The most that the metric may reach, as in 0.01.")],
    metric: Annotated[
        str,
        typer.Option(
            help="change, of the output, relative; loss, by how much it rises; or mine.py:score, a "
            "function of the output that gives a number, by how much that changes."
        ),
    ] = "change",
    candidates: Annotated[
        str | None, typer.Option(help="Operators, with commas between; seven kinds by default.")
    ] = None,
    certified: Annotated[
        float | None,
        typer.Option(
            help="Propose more: at each layer, of each family with certificates, the smallest "
            "setting that is certified to err in no row by more than this share of its rows."
        ),
    ] = None,
    heads: Annotated[
        bool, typer.Option("--heads/--layers", help="An operator a head, or one a layer.")
    ] = True,
    trials: Annotated[
        int, typer.Option(help="The budget: plans that are run on the search inputs, at most.")
    ] = 300,
    folder: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Of the results.")] = Path(
        "tuned"
    ),
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Reuse no run of an earlier search.")
    ] = False,
    device: Annotated[str, typer.Option(help="Of model and input.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="The result as JSON.")] = False,
) -> None:
    """Find, layer by layer and head by head, the cheapest attention within a stated change.

    Writes FOLDER/plan.json, which softlab substitute --plan and softlab.tuning.load apply;
    table.csv, all plans that were run; front.svg, counted work against the metric; layers.svg, what
    each layer tolerates. Searched on some of the inputs, tested on the others; the 95 % interval of
    the test lies within. An interrupted search goes on from search.jsonl by the same command.

    Exit codes: 0 done, 1 nothing cheaper meets the target, 2 it could not be done, 130 after an
    interrupt.
    """
    from softlab import tuning
    from softlab.cli.models import inputs_of, model_of, tried
    from softlab.cli.overrides import split
    from softlab.engine import provenance

    journal = folder / "search.jsonl"
    try:
        _writable(folder)
        if fresh:
            journal.unlink(missing_ok=True)
        where = provenance.usable(device)
        model = model_of(factory).to(where).eval()
        inputs = []
        for file, (args, kwargs) in inputs_of(files, where):
            tried(model, args, kwargs, file)
            inputs.append((args, kwargs))
        chosen = tuning.CANDIDATES if candidates is None else [*split(candidates)]
        found = tuning.tune(
            model, inputs, within=within, metric=_metric(metric), candidates=chosen,
            certified=certified, heads=heads, trials=trials, journal=journal,
            tell=lambda line: say(line, error=as_json),
        )  # fmt: skip
        found.plan.about["model"] = factory  # type: ignore[index]
        _write(found, folder, within)
    except KeyboardInterrupt:
        kept = f"What was run is kept in {journal}" if journal.exists() else "Nothing had been run"
        fail(f"interrupted. {kept}; the same command goes on.", code=130)
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        fail(str(error))
    except Exception as error:  # of the user's model, factory or metric, which may raise anything
        fail(f"{factory} or {metric} raised {type(error).__name__}: {error}")
    if as_json:
        say_json({"met": found.met, "said": found.said, **found.plan.about, "folder": folder})
    else:
        _show(found, folder)
    if not found.met:
        raise typer.Exit(FINDING)


def _writable(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        msg = f"--out {folder} is a file; name a folder."
        raise ValueError(msg)
    folder.mkdir(parents=True, exist_ok=True)


def _metric(name: str) -> Metric:
    from softlab import tuning
    from softlab.laws.adapters import found

    known = {"change": tuning.change, "loss": tuning.loss}
    if name in known:
        return known[name]
    if ":" not in name:
        msg = (
            f"--metric is {name!r}; give change, loss, or a function of the output, mine.py:score."
        )
        raise ValueError(msg)
    return tuning.score(found(name), name)


def _write(found: Found, folder: Path, within: float) -> None:
    """The plan, the table of all that was run, and two figures of it."""
    import pandas as pd

    from softlab.report.drawing import draw, save

    found.plan.save(folder / "plan.json")
    table = pd.DataFrame(found.rows)
    table.to_csv(folder / "table.csv", index=False)
    ran = table[table["on"].isin(["search", "held out"])] if len(table) else table
    if len(ran):
        shown, front, layers = pictures(ran, found, within)
        save(draw(shown, front), folder / "front.svg")
        if (shown["kind"] == "one layer").any():
            save(draw(shown[shown["kind"] == "one layer"], layers), folder / "layers.svg")


def pictures(table: Any, found: Found, within: float) -> tuple[Any, Any, Any]:
    """The table with the chosen plan marked, and the two figures that draw it."""
    from softlab.figures import Lines

    shown = table.copy()
    shown["within"] = within
    accepted = shown.index[shown["accepted"]]
    if len(accepted):
        shown.loc[accepted[-1], "kind"] = "chosen plan"
    shown["method"] = shown["plan"].str.partition("(")[0]
    names = list(dict.fromkeys(shown["layer"][shown["layer"] != ""]))
    shown["place"] = [names.index(x) if x else -1 for x in shown["layer"]]
    metric = found.plan.about["metric"]
    front = Lines(
        x="attention",
        y="value",
        group="kind",
        xscale="linear",
        xlabel="counted work of the attention, over the model's own",
        ylabel=f"{metric} of the model",
        guides={"within": "allowed"},
        name="front",
        caption=f"Each plan that was run: its counted work and the model's {metric}.",
    )
    layers = Lines(
        x="place",
        y="value",
        group="method",
        xscale="linear",
        xlabel="layer",
        ylabel=f"{metric} of the model",
        guides={"within": "allowed"},
        name="layers",
        caption="One operator in one layer alone: what each layer tolerates.",
    )
    return shown, front, layers


def _show(found: Found, folder: Path) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("layer", "tolerates alone", "attention", "value", "plan"):
        table.add_column(title, justify="right" if title in {"attention", "value"} else "left")
    within = float(found.plan.about["within"])
    alone = [row for row in found.rows if row["kind"] == "one layer"]
    for layer, rows in itertools.groupby(alone, key=lambda row: row["layer"]):
        fit = [row for row in rows if row["value"] <= within]
        best = min(fit, key=lambda row: row["attention"], default=None)
        parts = ", ".join(map(str, found.plan.layers.get(layer, ()))) or "its own"
        cells = (
            ("nothing", "", "")
            if best is None
            else (best["plan"], f"{best['attention']:.3g}", f"{best['value']:.3g}")
        )
        table.add_row(layer or "(the model)", *cells, parts)
    out.print(table)
    say(f"\n{found.said}")
    say(f"\nWritten: {folder / 'plan.json'}, table.csv and the figures beside it.")
