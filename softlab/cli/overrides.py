"""``--set axis=value,...``: a grid narrowed, or led elsewhere, from the command line."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from softlab.engine.identity import UnstableError, identity
from softlab.hints import hint
from softlab.study import Study


def narrowed(studies: Sequence[Study], settings: Sequence[str]) -> list[Study]:
    """The studies with other values on some axes, on their short grids too.

    A word takes the values of the axis that print as it, or are of the class that it names; a
    number must be of the type of the axis; a call, as in "Soft(rank=128)", makes a new value of
    classes that the axis holds or softlab offers. A study without the axis stays as it is.

    Raises ``ValueError`` for a setting without "=", an axis that no study has, and a value that the
    axis cannot have; it says what there is.
    """
    found = list(studies)
    known = list(dict.fromkeys(axis for study in studies for axis in study.axes))
    for setting in settings:
        axis, equals, words = setting.partition("=")
        if not equals or not words:
            msg = f"--set {setting} says no value; write --set axis=value,value."
            raise ValueError(msg)
        if axis not in known:
            names = " and ".join(study.name for study in studies)
            msg = f"{names}: no axis {axis!r}; there are {', '.join(known)}.{hint(axis, known)}"
            raise ValueError(msg)
        found = [_with(x, axis, list(_split(words))) if axis in x.axes else x for x in found]
    return found


def _with(study: Study, axis: str, words: Sequence[str]) -> Study:
    chosen = {_digits(x): x for word in words for x in _values(study, axis, word)}
    quick = {name: values for name, values in study.quick.items() if name != axis}
    return dataclasses.replace(study, axes={**study.axes, axis: list(chosen.values())}, quick=quick)


def _digits(x: Any) -> str:
    """What tells the value from others, as far as anything does."""
    try:
        return identity(x).digits
    except UnstableError:  # which the run refuses, with the reason
        return str(id(x))


def _values(study: Study, axis: str, word: str) -> list[Any]:
    """The values that a word stands for on the axis."""
    there = list(study.axes[axis])
    found = [x for x in there if word in {str(x), repr(x), type(x).__name__}]
    if found:
        return found
    types = {type(x.item() if isinstance(x, np.generic) else x) for x in there}
    for kind, reads in ((bool, _truth), (int, int), (float, float)):
        if kind in types:
            try:
                return [reads(word)]
            except ValueError:
                continue
    try:
        made = _made(ast.parse(word, mode="eval").body, _classes(there))
        if type(made) not in types and not dataclasses.is_dataclass(made):
            raise TypeError(word)  # noqa: TRY301
    except (SyntaxError, ValueError, TypeError) as error:
        reason = f" ({error})" if "(" in word and isinstance(error, ValueError | TypeError) else ""
        shown = [str(x) for x in there[:6]] + (["..."] if len(there) > 6 else [])
        kinds = " or ".join(sorted(x.__name__ for x in types))
        msg = (
            f"axis {axis!r} of {study.name} takes {kinds}, and not {word!r}{reason}; "
            f"it has {', '.join(shown)}.{hint(word, map(str, there))}"
        )
        raise ValueError(msg) from None
    return [made]


def _truth(word: str) -> bool:
    if word not in {"True", "False"}:
        raise ValueError(word)
    return word == "True"


def _made(node: ast.expr, classes: dict[str, type]) -> Any:
    """The value of an expression of calls, numbers, words and tuples; nothing else is run."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        name = node.func.id
        if name not in classes:
            msg = f"there is no {name}.{hint(name, classes)}".removesuffix(".")
            raise ValueError(msg)
        given = [_made(x, classes) for x in node.args]
        named = {x.arg: _made(x.value, classes) for x in node.keywords if x.arg}
        return classes[name](*given, **named)
    if isinstance(node, ast.Tuple):
        return tuple(_made(x, classes) for x in node.elts)
    return ast.literal_eval(node)


def made(expression: str) -> Any:
    """The value of an expression of softlab's classes, "Soft(rank=64, pinv=SVD())".

    Raises ``ValueError`` for what is none.
    """
    try:
        return _made(ast.parse(expression, mode="eval").body, _offered())
    except (SyntaxError, ValueError, TypeError) as error:
        end = "" if str(error).endswith("?") else "."
        msg = f"{expression!r} is no part of softlab: {error}{end}"
        raise ValueError(msg) from None


def _classes(values: Sequence[Any]) -> dict[str, type]:
    """The classes that a value may be made of, by name: those at hand, and softlab's own."""
    kinds = {type(x) for x in values}
    if not any(dataclasses.is_dataclass(kind) for kind in kinds):
        return {}
    return _offered() | {kind.__name__: kind for kind in kinds}


def _offered() -> dict[str, type]:
    from softlab import features, inputs, landmarks, matrices, operators, pinv

    found: dict[str, type] = {}
    for module in (features, inputs, landmarks, matrices, operators, pinv):
        found |= {name: x for name, x in vars(module).items() if isinstance(x, type)}
    return found


def _split(words: str) -> Iterator[str]:
    """The parts between commas that stand in no brackets and no quotes."""
    depth, quote, part = 0, "", ""
    for letter in words:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        depth += (letter in "([{") - (letter in ")]}") if not quote else 0
        if letter == "," and depth == 0 and not quote:
            yield part.strip()
            part = ""
        else:
            part += letter
    yield part.strip()


def part(shard: str) -> tuple[int, int]:
    """``i/n`` as two integers; ``ValueError`` for anything else."""
    found = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        msg = f"--shard is {shard!r}; write i/n, with i from 1 to n, as in 2/5."
        raise ValueError(msg)
    return int(found[1]), int(found[2])
