"""``softlab list``: the parts, what they claim, and the studies."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from softlab import study_folders
from softlab.cli.console import out, say

if TYPE_CHECKING:
    from softlab.catalogue import Part

EXAMPLES = "Examples:  softlab list   |   softlab list --markdown"


def catalogue(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="The operators alone, as a table for a README.")
    ] = False,
) -> None:
    """List the parts, operators to inputs, with what they claim, and the studies."""
    from softlab import features, inputs, landmarks, matrices, operators, pinv
    from softlab.catalogue import installed, parts_of

    if markdown:
        say("\n".join(_traits_table(parts_of(operators, "target"))))
        return
    others = {module: installed(what) for module, what in
              ((operators, "operators"), (pinv, "solvers"))}  # fmt: skip
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
        brought, refused = others.get(module, ([], []))
        for part in [*parts_of(module, needs), *brought]:
            name = part.name + (f" ({part.distribution})" if part.distribution else "")
            table.add_row(name, (part.kind.__doc__ or "").partition("\n")[0], _claims(part))
        out.print(table, *refused, "")
    say("Recorded: " + ", ".join(inputs.recorded_names()))
    table = Table("name", "what it is", title="Studies", title_justify="left", box=None)
    for name, folder in study_folders.built_in().items():
        text = (folder / study_folders.STUDY).read_text(encoding="utf-8")
        table.add_row(name, (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0])
    out.print(table if table.row_count else "Studies: none here")


def _claims(part: Part) -> str:
    """What a part claims, where it can be made without choices of the user's."""
    traits = getattr(part.example, "traits", None)
    if traits is None:
        return ""
    claims = {name: x for name, x in dataclasses.asdict(traits).items() if x}
    return ", ".join(name if x is True else f"{name} {x}" for name, x in claims.items())


def _traits_table(parts: Iterable[Part]) -> Iterator[str]:
    """Lines of a Markdown table: each operator as an example, its target, its claims in words.

    Linearity in v is the rule, and only its absence is said.
    """
    from softlab.core import causal_form

    yield "| Operator | approximates | claims |"
    yield "|---|---|---|"
    for part in parts:
        op = part.example
        target = "exact" if op.target == op else f"`{type(op.target).__name__}`"
        claims = [] if op.traits.linear_in_v else ["not linear in v"]
        for name, x in dataclasses.asdict(op.traits).items():
            if x and name not in {"linear_in_v", "exact"}:
                claims.append(name.replace("_", " ") + ("" if x is True else f" {x}"))
        if causal_form(op) is not None:
            claims.append("causal form")
        yield f"| `{op!r}` | {target} | {', '.join(claims)} |"
