"""``softlab substitute``: an operator in the place of a model's attention."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softlab.cli.console import fail, out, say, say_json

if TYPE_CHECKING:
    from torch import nn

    from softlab.capture.effect import Effect

EXAMPLES = (
    "Examples:  softlab substitute mine.py:make 'Nystromformer(rank=64)' --input batch.pt   |   "
    "softlab substitute my.package:build 'Local(window=32)' --input batch.safetensors "
    "--layers 0,1,encoder.5   |   softlab substitute mine.py:make mine.py:attend --input x.npy"
)
SUFFIXES = (".pt", ".pth", ".safetensors", ".npy", ".npz")


def substitute(
    factory: Annotated[
        str, typer.Argument(metavar="MODULE:FACTORY", help="package.module:f or path/file.py:f.")
    ],
    operator: Annotated[
        str, typer.Argument(help="'Nystromformer(rank=64)', or module:function of your own.")
    ],
    file: Annotated[
        Path,
        typer.Option(
            "--input",
            help="The model's input: a tensor, a tuple of positional or a dictionary of keyword "
            "arguments, as .pt (tensors only), .safetensors, .npy or .npz.",
        ),
    ],
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
    from softlab.capture.effect import effect
    from softlab.capture.substitution import SubstitutionError
    from softlab.engine import provenance
    from softlab.laws.adapters import found

    try:
        where = provenance.usable(device)
        model = _model(found(factory), factory).to(where).eval()
        op = _operator(operator)
        args, kwargs = _input(file, where)
        which = None if layers is None else [_layer(x) for x in layers.split(",")]
        some = None if heads is None else [int(x) for x in heads.split(",")]
        _tried(model, args, kwargs, file)
        result = effect(
            model, lambda: _tensor(model(*args, **kwargs)), op, layers=which, heads=some
        )
    except (SubstitutionError, ValueError, TypeError, OSError, RuntimeError) as error:
        fail(str(error))
    except Exception as error:  # of the user's model, factory or operator, which may raise anything
        fail(f"{factory} or {operator} raised {type(error).__name__}: {error}")
    if as_json:
        say_json(result)
    else:
        _show(result)


def _model(made: Any, name: str) -> nn.Module:
    from torch import nn

    model = made() if callable(made) and not isinstance(made, nn.Module) else made
    if not isinstance(model, nn.Module):
        msg = f"{name} gives a {type(model).__name__}, and a torch.nn.Module is needed."
        raise TypeError(msg)
    return model


def _operator(text: str) -> Any:
    from softlab.cli.overrides import made
    from softlab.laws.adapters import found

    return found(text) if ":" in text.partition("(")[0] else made(text)


def _layer(word: str) -> int | str:
    return int(word) if word.strip().isdecimal() else word.strip()


def _input(file: Path, device: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of the model."""
    import numpy as np
    import torch

    if not file.is_file() or file.suffix not in SUFFIXES:
        what = "is no file" if not file.is_file() else f"ends in {file.suffix or 'nothing'}"
        msg = f"{file} {what}; give one that ends in {', '.join(SUFFIXES)}."
        raise ValueError(msg)
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            held: Any = load_file(file)
        elif file.suffix in {".npy", ".npz"}:
            read = np.load(file, allow_pickle=False)
            arrays = read if file.suffix == ".npy" else {name: read[name] for name in read.files}
            held = (
                torch.from_numpy(arrays)
                if file.suffix == ".npy"
                else {name: torch.from_numpy(x) for name, x in arrays.items()}
            )
        else:
            held = torch.load(file, weights_only=True, map_location=device)
    except Exception as error:
        msg = f"{file} cannot be read: {type(error).__name__}: {error}"
        raise ValueError(msg) from error

    def moved(x: Any) -> Any:
        return x.to(device) if isinstance(x, torch.Tensor) else x

    if isinstance(held, dict):
        return (), {str(name): moved(x) for name, x in held.items()}
    if isinstance(held, tuple | list):
        return tuple(moved(x) for x in held), {}
    return (moved(held),), {}


def _tried(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], file: Path) -> None:
    """Raise ``ValueError``, with what the file holds, unless the model as it is takes its input."""
    import torch

    try:
        with torch.no_grad():
            model(*args, **kwargs)
    except Exception as error:  # of anybody's model
        given = ", ".join([*(str(tuple(getattr(x, "shape", ()))) for x in args), *kwargs])
        msg = (
            f"the model raised {type(error).__name__}: {error}. {file} gives it {given}. Save what "
            "it takes: a tensor, a tuple, or a dictionary of arguments, such as input_ids."
        )
        raise ValueError(msg) from error


def _tensor(output: Any) -> Any:
    """The tensor that counts: the output itself, or the first one in it."""
    import torch

    if isinstance(output, torch.Tensor):
        return output
    values = output.values() if hasattr(output, "values") else output
    if isinstance(output, tuple | list) or hasattr(output, "values"):
        for x in values:
            if isinstance(x, torch.Tensor):
                return x
    msg = f"the model gives a {type(output).__name__}, in which there is no tensor to compare."
    raise TypeError(msg)


def _show(result: Effect) -> None:
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
