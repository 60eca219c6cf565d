"""``softlab record``: keep what reaches the attention of a model."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import typer

from softlab.cli.console import fail, say, say_json

EXAMPLES = (
    "Examples:  softlab record mine.py:make --input x.pt --out recorded   |   "
    "softlab record my.package:build --input a.pt --input b.pt --out recorded --calls 0,5"
)


def record(
    factory: Annotated[
        str, typer.Argument(metavar="MODULE:FACTORY", help="package.module:f or path/file.py:f.")
    ],
    files: Annotated[
        list[Path],
        typer.Option(
            "--input",
            help="The model's input, as of softlab substitute: .pt (tensors only), .safetensors, "
            ".npy or .npz, or a folder of such; several times for several runs.",
        ),
    ],
    folder: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="Where the tensors go; new or empty.")
    ],
    calls: Annotated[
        str | None, typer.Option(help="Of each run these calls alone, counted from 0.")
    ] = None,
    device: Annotated[str, typer.Option(help="Of model and input.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="The files as JSON.")] = False,
) -> None:
    """Run a model and save the queries, keys and values of each of its layers.

    One file a layer, FOLDER/<name of the layer>.safetensors, which softlab run --input FOLDER and
    softlab.inputs.Saved read. FACTORY is called without arguments, and gives the model, which runs
    in eval mode.

    Exit codes: 0 done, 2 it could not be done.
    """
    from softlab import capture
    from softlab.capture.recording import Calls
    from softlab.cli.models import inputs_of, model_of, tried
    from softlab.engine import provenance

    notes: list[str] = []
    try:
        where = provenance.usable(device)
        model = model_of(factory).to(where).eval()
        keep = None if calls is None else _numbers(calls)
        seen = Calls()
        for file, (args, kwargs) in inputs_of(files, where):
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                with capture.record(model, keep=keep) as found:
                    tried(model, args, kwargs, file)
            notes += [str(x.message) for x in told]
            seen += found
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            written = seen.save(folder)
        notes += [str(x.message) for x in told]
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        fail(str(error))
    except Exception as error:  # of the user's model or factory, which may raise anything
        fail(f"{factory} raised {type(error).__name__}: {error}")
    for note in dict.fromkeys(notes):
        say(f"note: {note}", error=as_json)
    if as_json:
        say_json({"folder": folder, "files": written, "calls": len(seen)})
        return
    say(f"{len(seen)} calls of {len(written)} layers in {folder}:")
    for file in written:
        say(f"  {file.name}")
    say(f"Read them by softlab.inputs.Saved({str(folder)!r}), or softlab run rank --input {folder}")


def _numbers(text: str) -> list[int]:
    try:
        return [int(x) for x in text.split(",")]
    except ValueError:
        msg = f"--calls is {text!r}; give numbers from 0 on, as in 0,5."
        raise ValueError(msg) from None
