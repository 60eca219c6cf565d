"""``softlab list``: the parts, what they claim, and the studies."""

from __future__ import annotations

import ast
import dataclasses
import importlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from softlab import study_folders
from softlab.cli.console import fail, out, say, say_json
from softlab.hints import hint

if TYPE_CHECKING:
    from softlab.catalogue import Part

EXAMPLES = "Examples:  softlab list   |   softlab list Performer   |   softlab list --json"

KINDS = (
    ("Operators", "operators", "target"),
    ("Solvers", "pinv", "solve"),
    ("Initial scalings of solvers", "pinv.scalings", "definite"),
    ("Landmark selectors", "landmarks", ""),
    ("Weights of random features", "features", ""),
    ("Inputs", "inputs", ""),
    ("Matrices", "matrices", ""),
)
"""What there is: a title, the module of softlab that has it, and what such a part must have."""


def catalogue(
    name: Annotated[
        str, typer.Argument(help="Of a part, whose fields are shown, with what each may be.")
    ] = "",
    markdown: Annotated[
        bool, typer.Option("--markdown", help="The operators alone, as a table in Markdown.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="All of it as JSON.")] = False,
) -> None:
    """List the parts, operators to inputs, with what they claim, and the studies.

    Exit codes: 0 done, 2 it could not be done.
    """
    from softlab import inputs, operators
    from softlab.catalogue import parts_of

    if markdown:
        say("\n".join(traits_table(parts_of(operators, "target"))))
    elif as_json:
        groups = list(_groups())
        parts = {title: [_described(part) for part in found] for title, found, _ in groups}
        refused = [sentence for *_, sentences in groups for sentence in sentences]
        say_json(
            {
                "parts": parts,
                "left_out": refused,
                "recorded": inputs.recorded_names(),
                "studies": [{"name": x, "about": about} for x, about in _studies()],
            }
        )
    elif name:
        known = {part.name: part for _, found, _ in _groups() for part in found}
        if name not in known:
            fail(f"there is no {name!r}; softlab list shows all.{hint(name, known)}")
        out.print(_fields(known[name]))
    else:
        _shown()


def _shown() -> None:
    from softlab import inputs

    for title, found, refused in _groups():
        table = Table("name", "what it is", "claims", title=title, title_justify="left", box=None)
        for part in found:
            name = part.name + (f" ({part.distribution})" if part.distribution else "")
            claims = [x if held is True else f"{x} {held}" for x, held in _claims(part).items()]
            table.add_row(name, escape(_about(part)), ", ".join(claims))
        out.print(table, *refused, "")
    say("Recorded: " + ", ".join(inputs.recorded_names()))
    table = Table("name", "what it is", title="Studies", title_justify="left", box=None)
    for name, about in _studies():
        table.add_row(name, about)
    out.print(table if table.row_count else "Studies: none here")


def _groups() -> Iterator[tuple[str, list[Part], list[str]]]:
    """Of each kind its title, its parts, and sentences about those of others that are left out."""
    from softlab.catalogue import installed, parts_of

    brings = {"operators": "operators", "pinv": "solvers"}
    for title, name, needs in KINDS:
        module = importlib.import_module(f"softlab.{name}")
        brought, refused = installed(brings[name]) if name in brings else ([], [])
        yield title, [*parts_of(module, needs), *brought], refused


def _studies() -> Iterator[tuple[str, str]]:
    """The names of softlab's own studies, and what each is about."""
    for name, folder in study_folders.built_in().items():
        text = (folder / study_folders.STUDY).read_text(encoding="utf-8")
        yield name, (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]


def _fields(part: Part) -> Table:
    """The fields of a part: what each may be, and its default."""
    from softlab.core import default_of
    from softlab.validation import ranges

    title = escape(f"{part.name}: {_about(part)}")
    table = Table("field", "what it may be", "default", title=title, title_justify="left", box=None)
    declared = ranges(part.kind)
    for field in dataclasses.fields(part.kind):
        held, optional = declared.get(field.name, (field.type, False))
        default = default_of(field)
        shown = "" if default is dataclasses.MISSING else repr(default)
        table.add_row(field.name, f"{held}{' or None' if optional else ''}", shown)
    return table


def _about(part: Part) -> str:
    return (part.kind.__doc__ or "").partition("\n")[0]


def _described(part: Part) -> dict[str, object]:
    """A part for programs."""
    return {
        "name": part.name,
        "about": _about(part),
        "distribution": part.distribution or "softlab",
        "example": repr(part.example) if part.example is not None else None,
        "claims": _claims(part),
    }


def _claims(part: Part) -> dict[str, object]:
    """What a part claims, where it can be made without choices of the user's."""
    traits = getattr(part.example, "traits", None)
    if traits is None:
        return {}
    return {name: x for name, x in dataclasses.asdict(traits).items() if x}


def traits_table(parts: Iterable[Part]) -> Iterator[str]:
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
