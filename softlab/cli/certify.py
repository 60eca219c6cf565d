"""``softlab certify``: how wrong an operator is on given tensors, head by head."""

from __future__ import annotations

from typing import Annotated

import typer

from softlab.cli.console import FINDING, fail, out, say, say_json

EXAMPLES = (
    "Examples:  softlab certify 'Local(window=64)' qkv.pt   |   "
    "softlab certify 'Soft(rank=64)' heads/ --rows 512 --json   |   "
    "softlab certify 'Pages(16, 8)' recorded"
)


def certify(
    subject: Annotated[
        str, typer.Argument(metavar="OPERATOR", help="'Local(window=64)', or mine.py:OPERATOR.")
    ],
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="A file of q, k and v, a folder of such, as softlab record makes of a model, "
            "recorded, a recorded name, or 'Normal(512, 32)'.",
        ),
    ],
    rows: Annotated[int, typer.Option(help="Exact rows of each head, drawn at random.")] = 256,
    confidence: Annotated[float, typer.Option(help="Of the interval of the sampled error.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Of the sample.")] = 0,
    sample: Annotated[int, typer.Option(help="Which sample of each input.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="The rows as JSON.")] = False,
) -> None:
    """Certify the error of an operator on each head: what is certain, beside a sample of it.

    The certified error is an upper bound that needs no exact output; an operator without one is
    sampled alone, and the last line says so. Errors are relative to the exact output of the head.

    Exit codes: 0 done, 1 a sampled row errs by more than its bound, which is a bug, 2 it could not
    be done.
    """
    from softlab.certificates import as_row
    from softlab.certificates import certify as certified
    from softlab.compare.heads import heads
    from softlab.compare.subjects import subject as named
    from softlab.core import Dims

    try:
        found = named(subject)
        if found.swept:
            fail(f"{subject} is a class; give its numbers too, as '{subject}(64)'.")
        op = found.at(1.0, 0, Dims(1, 1, 1, 1, 1))
        lines = []
        for head in heads(inputs):
            q, k, v = head.draw(sample)
            lines += [
                {"head": head.name, **as_row(one)}
                for one in certified(op, q, k, v, rows=rows, confidence=confidence, seed=seed)
            ]
    except (ValueError, TypeError, OSError, ModuleNotFoundError) as error:
        fail(str(error))
    if as_json:
        say_json({"operator": repr(op), "rows": lines})
    else:
        _tell(repr(op), lines, confidence)
    if any(line["held"] is False for line in lines):
        raise typer.Exit(FINDING)


def _tell(op: str, lines: list[dict[str, object]], confidence: float) -> None:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("head", "n", "certified", "error", f"{confidence:.0%} interval", "ratio", "work"):
        table.add_column(title)
    for line in lines:
        low, high = line["low"], line["high"]
        table.add_row(
            str(line["head"]), str(line["n"]), _number(line["certified"]), _number(line["error"]),
            f"{low:.3g} to {high:.3g}" if low != high else "exact", _number(line["ratio"]),
            _number(line["work"]),
        )  # fmt: skip
    say(op)
    out.print(table)
    for words in dict.fromkeys(str(line["says"]) for line in lines if line["says"]):
        say(words)
    if wrong := [str(line["head"]) for line in lines if line["held"] is False]:
        say(f"A sampled row errs by more than its bound on {', '.join(wrong)}: this is a bug.")


def _number(x: object) -> str:
    return "none" if x is None else f"{x:.3g}"
