"""Which operator answers which layer, or some heads of it: a file, and what applies it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from softlab.capture.implementation import register
from softlab.capture.substitution import Substitution, substitute_each
from softlab.catalogue import made
from softlab.laws.adapters import found
from softlab.validation import is_integer

FORMAT = 1


@dataclass(frozen=True)
class Part:
    """An operator for some heads of a layer; ``heads`` None for all of them.

    ``operator``: its name, "TopK(k=32)", or "mine.py:attend" of a callable of your own.
    """

    operator: str
    heads: tuple[int, ...] | None = None

    def __str__(self) -> str:
        if self.heads is None:
            return self.operator
        count = len(self.heads)
        return f"{self.operator} in {count} head{'s' if count > 1 else ''}"


@dataclass(frozen=True)
class Plan:
    """Operators by layer; layers and heads that are not named keep the model's own attention.

    ``layers``: by the qualified name of the module that calls attention. ``about``: what was
    measured, numbers and words by name; it decides nothing.
    """

    layers: Mapping[str, tuple[Part, ...]]
    about: Mapping[str, Any] = field(default_factory=dict)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[Substitution]:
        """Answer the model's attention by the plan inside the block, as ``capture.substitute``.

        Raises what that raises: ``ValueError`` for a model without these layers,
        ``SubstitutionError`` where one asks for what its operator cannot honour. A plan without
        layers changes nothing.
        """
        if not self.layers:
            yield Substitution()
            return
        with substitute_each(model, self._operators()) as report:
            yield report

    def register(self, name: str = "softlab") -> None:
        """Make the plan an implementation of transformers' attention, ``capture.register``.

        A model of transformers that is made with ``attn_implementation=name``, or that is set to
        it, then computes its attention by the plan, in whatever process this was called. The model
        has the layers that the plan names, or is a wrapper of one that has.

        Args:
            name: of the implementation.

        Raises:
            ImportError: transformers is not installed.
            ValueError: the plan has no layers, or ``name`` cannot be a name.
        """
        if not self.layers:
            msg = "the plan has no layers, so the model is the cheapest: run it as it is."
            raise ValueError(msg)
        register(self._operators(), name)

    def _operators(self) -> dict[str, list[tuple[Any, tuple[int, ...] | None]]]:
        """Pairs of an operator and its heads, by layer."""
        return {
            name: [(operator(part.operator), part.heads) for part in parts]
            for name, parts in self.layers.items()
        }

    def save(self, file: Path | str) -> None:
        """Write it as JSON."""
        layers = {
            name: [
                {"operator": part.operator}
                | ({} if part.heads is None else {"heads": list(part.heads)})
                for part in parts
            ]
            for name, parts in self.layers.items()
        }
        held = {"format": FORMAT, "about": dict(self.about), "layers": layers}
        Path(file).write_text(json.dumps(held, indent=2) + "\n", encoding="utf-8")

    @property
    def key(self) -> str:
        """What tells it from other plans: its layers alone."""
        parts = {
            name: sorted((part.operator, part.heads or ()) for part in parts)
            for name, parts in sorted(self.layers.items())
        }
        return json.dumps(parts)


def load(file: Path | str) -> Plan:
    """Read a plan; raises ``ValueError`` for a file that is none, or names no known operator."""
    path = Path(file)
    if not path.is_file():
        msg = f"there is no file {path}; softlab tune writes a plan.json."
        raise ValueError(msg)
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        if held["format"] != FORMAT:
            msg = f"its format is {held['format']}, and {FORMAT} is read"
            raise ValueError(msg)  # noqa: TRY301
        layers = {
            str(name): tuple(
                Part(str(part["operator"]), _heads(part.get("heads"))) for part in parts
            )
            for name, parts in held["layers"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        msg = f"{path} is no plan: {why}. Write one by softlab tune."
        raise ValueError(msg) from error
    for name, parts in layers.items():
        taken = [head for part in parts for head in part.heads or ()]
        whole = [part for part in parts if part.heads is None]
        if not parts or len(taken) > len({*taken}) or (whole and len(parts) > 1):
            msg = f"{path}: layer {name!r} needs one operator for each of its heads, at most."
            raise ValueError(msg)
        for part in parts:
            operator(part.operator)
    return Plan(layers, dict(held.get("about", {})))


def _heads(given: Any) -> tuple[int, ...] | None:
    if given is None:
        return None
    if not given or not all(is_integer(x) and x >= 0 for x in given):
        msg = f"heads is {given!r}, and numbers from 0 on are needed"
        raise ValueError(msg)
    return tuple(given)


def operator(text: str) -> Any:
    """The operator of that name, softlab's or "module:function"; ``ValueError`` for none."""
    return found(text) if ":" in text.partition("(")[0] else made(text)
