"""The operators and solvers there are: softlab's own, and those of other installed distributions.

A distribution brings one by an entry point of the group ``softlab.operators`` or
``softlab.solvers``, in its ``pyproject.toml``::

    [project.entry-points."softlab.operators"]
    SigmoidAttention = "mine.sigmoid:SigmoidAttention"

``softlab list`` names it. The studies ``frontier`` and ``growth`` measure it where its laws hold.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
from dataclasses import dataclass
from importlib import metadata
from types import ModuleType
from typing import Any

from softlab import operators as own_operators
from softlab import pinv as own_solvers
from softlab.core import Dims, Operator, default_of
from softlab.hints import hint
from softlab.laws import suite
from softlab.laws.law import BrokenLawError, reseeded
from softlab.laws.limits import TARGET

FAMILIES = ("dense", "low rank", "features", "sparse", "sampling", "hybrid", "no approximation")
"""What operators call their ``family``, in the order of figures; others come after these."""
OTHER = "other"
"""The family of an operator that names none."""


@dataclass(frozen=True)
class Part:
    """A class of operators or solvers; ``distribution`` is empty where it is softlab's own."""

    name: str
    kind: Any
    distribution: str = ""

    @property
    def family(self) -> str:
        """What the class calls its family."""
        return str(getattr(self.kind, "family", OTHER))

    @functools.cached_property
    def example(self) -> Any:
        """It at its defaults, with 64 for each field without; None if that makes no part."""
        return self._made(64)

    @property
    def small(self) -> Any:
        """The same for few tokens, with 4: what laws are asked of."""
        return self.at(4, 0) if hasattr(self.kind, "knob") else self._made(4)

    def _made(self, m: int) -> Any:
        needed = [x for x in dataclasses.fields(self.kind) if default_of(x) is dataclasses.MISSING]
        for given in ([m] * len(needed), [m]):  # the second where one of two fields is wanted
            try:
                return self.kind(*given)
            except (TypeError, ValueError):
                continue
        return None

    def at(self, m: int, seed: int) -> Any:
        """The operator at the setting m of its knob, its seeds given."""
        return reseeded(self.kind.knob.at(self.kind, m), seed)

    @property
    def files(self) -> list[str]:
        """The file that defines a class of another distribution, which decides what it computes."""
        return [inspect.getfile(self.kind)] if self.distribution else []


def operators() -> list[Part]:
    """All classes of operators, by family; those that other distributions bring after softlab's."""
    parts = [*parts_of(own_operators, "target"), *installed("operators")[0]]
    order = {family: i for i, family in enumerate(FAMILIES)}
    return sorted(parts, key=lambda part: order.get(part.family, len(order)))


def parts_of(module: ModuleType, needs: str = "") -> list[Part]:
    """The parts that a module exports; ``needs`` is an attribute that one must have."""

    def is_part(x: Any) -> bool:
        # Values that are called are parts; protocols, results and functions are not.
        called = dataclasses.is_dataclass(x) and "__call__" in dir(x)
        return called and (not needs or needs in dir(x) or needs in x.__annotations__)

    return [Part(name, x) for name, x in sorted(vars(module).items()) if is_part(x)]


def installed(what: str) -> tuple[list[Part], list[str]]:
    """The parts that other distributions bring, and a sentence for each that cannot be taken.

    ``what``: "operators" or "solvers".
    """
    known = {part.name for part in parts_of(own_operators) + parts_of(own_solvers)}
    parts, refused = [], []
    for point in metadata.entry_points(group=f"softlab.{what}"):
        brought = point.dist
        by = f"{brought.name} {brought.version}" if brought is not None else "a distribution"
        why = ""
        try:
            part = Part(point.name, point.load(), by)
            why = "softlab has a part of that name" if part.name in known else _unfit(part, what)
        except (Exception, SystemExit) as error:  # another's code: anything may come
            why = f"{type(error).__name__}: {error}"
        if why:
            refused.append(
                f"{point.name} of {by} is left out: {why}. Mend {point.value}, or uninstall it."
            )
        else:
            parts.append(part)
            known.add(part.name)
    return parts, refused


def _unfit(part: Part, what: str) -> str:
    """Why a class of another distribution is none of these parts; empty if it is one."""
    if not (isinstance(part.kind, type) and dataclasses.is_dataclass(part.kind)):
        return f"{part.kind!r} is no class of frozen dataclasses, which {what} are"
    if not isinstance(part.example, Operator if what == "operators" else own_solvers.Solver):
        return f"it cannot be made of its defaults and 64, or lacks what softlab asks of {what}"
    if what == "operators":
        for op in (part.example, *([part.at(1, 0)] if hasattr(part.kind, "knob") else [])):
            _ = op.traits, op.target.traits, op.cost(Dims(1, 64, 64, 8, 8)).work
    return ""


def require_laws(part: Part) -> None:
    """Raise ``ValueError``, with the law's name, where a law fails for another's operator."""
    if part.distribution and (why := _broken(part)):  # softlab's own are held by its tests
        msg = f"{part.name} of {part.distribution} is left out, for a law fails: {why}"
        raise ValueError(msg)


@functools.cache
def _broken(part: Part) -> str:
    """The sentence of the first law that fails for it, made small; empty if all hold."""
    try:
        for law in suite(small := part.small):
            if law is not TARGET:  # at a setting that nobody chose, few tokens may make it exact
                law.check(small)
    except BrokenLawError as error:
        return str(error)
    return ""


def valued(node: ast.expr, classes: dict[str, type]) -> Any:
    """The value of an expression of calls, numbers, words and tuples; nothing else is run."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        name = node.func.id
        if name not in classes:
            msg = f"there is no {name}.{hint(name, classes)}".removesuffix(".")
            raise ValueError(msg)
        given = [valued(x, classes) for x in node.args]
        named = {x.arg: valued(x.value, classes) for x in node.keywords if x.arg}
        return classes[name](*given, **named)
    if isinstance(node, ast.Tuple):
        return tuple(valued(x, classes) for x in node.elts)
    return ast.literal_eval(node)


def made(expression: str) -> Any:
    """The value of an expression of softlab's classes, "Soft(rank=64, pinv=SVD())".

    Raises ``ValueError`` for what is none.
    """
    try:
        return valued(ast.parse(expression, mode="eval").body, offered())
    except (SyntaxError, ValueError, TypeError) as error:
        end = "" if str(error).endswith("?") else "."
        msg = f"{expression!r} is no part of softlab: {error}{end}"
        raise ValueError(msg) from None


def offered() -> dict[str, type]:
    """The classes that an expression may name: operators, solvers, inputs, matrices."""
    from softlab import features, inputs, landmarks, matrices, operators, pinv

    found: dict[str, type] = {}
    for module in (features, inputs, landmarks, matrices, operators, pinv):
        found |= {name: x for name, x in vars(module).items() if isinstance(x, type)}
    return found
