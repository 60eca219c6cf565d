"""``softlab substitute``: an operator in the place of a model's attention."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softlab.cli.console import fail, out, say, say_json
from softlab.cli.models import INPUT

if TYPE_CHECKING:
    from torch import nn

    from softlab.capture.effect import Effect
    from softlab.tuning import Plan

EXAMPLES = (
    "Examples:  softlab substitute mine.py:make 'Nystromformer(rank=64)' --input batch.pt   |   "
    "softlab substitute my.package:build 'Local(window=32)' --input batch.safetensors "
    "--layers 0,1,encoder.5   |   softlab substitute mine.py:make mine.py:attend --input x.npy   |"
    "   softlab substitute mine.py:make --plan tuned/plan.json --input x.pt"
)


def substitute(
    factory: Annotated[
        str, typer.Argument(metavar="MODULE:FACTORY", help="package.module:f or path/file.py:f.")
    ],
    operator: Annotated[
        str | None,
        typer.Argument(help="'Nystromformer(rank=64)', or module:function of your own."),
    ] = None,
    file: Annotated[Path | None, typer.Option("--input", help=f"{INPUT}.")] = None,
    plan: Annotated[
        Path | None,
        typer.Option(help="Of softlab tune, in the place of an operator: one for each layer."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="What the operator approximates, 'GaussianAttention()': its errors are against "
            "that, and not against the layer's own softmax."
        ),
    ] = None,
    layers: Annotated[str | None, typer.Option(help="Numbers or names; all by default.")] = None,
    heads: Annotated[str | None, typer.Option(help="Numbers of heads; all by default.")] = None,
    device: Annotated[str, typer.Option(help="Of model and input.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="The numbers as JSON.")] = False,
) -> None:
    """Run a model as it is and with an operator for its attention, and say what changes.

    FACTORY is called without arguments, and gives the model, which runs in eval mode; a model
    itself will do. For each layer: the operator's own errors on what reaches it, against the
    layer's softmax, and how far its output has moved with all before it.

    Exit codes: 0 done, 2 it could not be done, as where the operator cannot take the place.
    """
    from softlab import tuning
    from softlab.capture.effect import effect
    from softlab.capture.substitution import SubstitutionError
    from softlab.cli.models import inputs_of, model_of, tried
    from softlab.engine import provenance
    from softlab.tuning.plan import operator as named

    if file is None:
        fail("give what the model takes: --input FILE.")
    if (operator is None) == (plan is None):
        fail("give an operator, 'Nystromformer(rank=64)', or --plan plan.json, one of the two.")
    if plan is not None and (layers or heads or target):
        fail("a plan says its layers and heads itself: leave out --layers, --heads and --target.")
    try:
        where = provenance.usable(device)
        model = model_of(factory).to(where).eval()
        chosen = None if plan is None else tuning.load(plan)
        op: Any = None if operator is None else named(operator)
        aim = None if target is None else named(target)
        which = None if layers is None else [_layer(x) for x in layers.split(",")]
        some = None if heads is None else _numbers(heads)
        [(path, (args, kwargs)), *more] = inputs_of([file], where)
        if more:
            fail(f"{file} holds {len(more) + 1} inputs; give one file.")
        tried(model, args, kwargs, path)

        def run() -> Any:
            return tuning.tensor_of(model(*args, **kwargs))

        if chosen is not None:
            numbers = _planned(model, run, chosen)
        else:
            result = effect(model, run, op, layers=which, heads=some, target=aim)
    except (SubstitutionError, ValueError, TypeError, OSError, RuntimeError) as error:
        fail(str(error))
    except Exception as error:  # of the user's model, factory or operator, which may raise anything
        fail(f"{factory} or {operator} raised {type(error).__name__}: {error}")
    if chosen is not None:
        _show_plan(numbers, chosen, as_json=as_json)
    elif as_json:
        say_json(result)
    else:
        _show(result, target)


def _planned(model: nn.Module, run: Any, plan: Plan) -> dict[str, Any]:
    """What a plan changes in a run, and what its file says that it does."""
    import torch

    from softlab.capture.effect import change

    with torch.no_grad():
        clean = run()
        with plan.applied(model) as report:
            found = run()
    return {"output": change(found, clean), "reached": dict(report.reached), "about": plan.about}


def _show_plan(numbers: dict[str, Any], plan: Plan, *, as_json: bool) -> None:
    if as_json:
        say_json(numbers)
        return
    for name, parts in plan.layers.items():
        say(f"{name or '(the model)'}: {', '.join(map(str, parts))}")
    if not plan.layers:
        say("The plan replaces nothing: no cheaper attention met its target.")
    change, cosine = numbers["output"]["change"], numbers["output"]["cosine"]
    say(f"\nThe model's output changes by {change:.3g} (relative); cosine {cosine:.4g}.")
    about = plan.about
    if plan.layers and "attention" in about:
        say(
            f"When it was tuned: {about['metric']} {about['value']:.3g} ({about['low']:.3g} to "
            f"{about['high']:.3g}) on {about['held_out_inputs']} inputs held out, counted work of "
            f"the attention {about['attention']:.3g}, time {about['time']:.3g} of the model as it "
            "is."
        )


def _numbers(text: str) -> list[int]:
    try:
        return [int(x) for x in text.split(",")]
    except ValueError as error:
        msg = f"--heads is {text!r} ({error}); give numbers from 0 on, as in 0,5."
        raise ValueError(msg) from None


def _layer(word: str) -> int | str:
    return int(word) if word.strip().isdecimal() else word.strip()


def _show(result: Effect, target: str | None) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("", "layer", "matrix error", "output error", "skill", "accumulated"):
        table.add_column(title, justify="left" if title in {"", "layer"} else "right")
    for i, layer in enumerate(result.layers):
        cells = [layer.errors.get(name) for name in ("matrix_error", "output_error", "skill")]
        shown = ["" if x is None else f"{x:.3g}" for x in (*cells, layer.accumulated)]
        table.add_row(f"{i}", layer.name or "(the model)", *shown)
    out.print(table)
    change, cosine = result.output["change"], result.output["cosine"]
    say(f"\nThe model's output changes by {change:.3g} (relative); cosine {cosine:.4g}.")
    if result.flops:
        share = result.flops / result.exact_flops
        said = f"{share:.3g} times that of the unmodified model"
        say(f"Counted work: {result.flops:.3g} flops, {said}.")
    else:
        say(
            "A plain callable counts no cost, so its work is not known: an operator has cost(dims)."
        )
    if target:
        say(f"Errors and skill are against {target} on what reaches the layer.")
