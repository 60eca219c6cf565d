"""``softlab list``: the parts, what they claim, and the studies."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Annotated, Any

import typer
from rich.table import Table

from softlab import study_folders
from softlab.cli.console import out, say

EXAMPLES = "Examples:  softlab list   |   softlab list --markdown"


def catalogue(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="The operators alone, as a table for a README.")
    ] = False,
) -> None:
    """List the parts, operators to inputs, with what they claim, and the studies."""
    from softlab import features, inputs, landmarks, matrices, operators, pinv

    if markdown:
        say("\n".join(_traits_table(part for _, part in _parts(operators, "target"))))
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
        out.print(table, "")
    say("Recorded: " + ", ".join(inputs.recorded_names()))
    table = Table("name", "what it is", title="Studies", title_justify="left", box=None)
    for name, folder in study_folders.built_in().items():
        text = (folder / study_folders.STUDY).read_text(encoding="utf-8")
        table.add_row(name, (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0])
    out.print(table if table.row_count else "Studies: none here")


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
