"""What is compared: an operator, a class with a knob, a callable, a module, a plug-in by name."""

from __future__ import annotations

import ast
import bisect
import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from softlab import operators as own_operators
from softlab.catalogue import Part, operators
from softlab.core import Dims, Operator, Stream
from softlab.hints import hint
from softlab.laws import adapted
from softlab.laws.adapters import found, is_solver
from softlab.operators import GaussianAttention, Softmax

TARGETS: dict[str, Any] = {"softmax": Softmax(), "Gaussian": GaussianAttention()}
"""The exact operators that have a name of their own in tables."""


@dataclass(frozen=True)
class Subject:
    """One line of a comparison.

    ``at(budget, seed, dims)`` gives the operator, None where not even the least knob fits into
    ``budget``, a share of the exact operator's work. ``swept``: it has a knob, which the budget
    sets; else it is taken as it was given. ``spec``: what ``softlab check`` calls it, empty for an
    object that no line names. ``own``: softlab brings it, and its own tests hold its laws.
    """

    name: str
    target: Any
    at: Callable[[float, int, Dims], Any]
    swept: bool
    spec: str = ""
    own: bool = False
    files: tuple[str, ...] = ()


def word(target: Any) -> str:
    """What a table calls an exact operator."""
    return next((name for name, x in TARGETS.items() if x == target), repr(target))


def work(op: Any, dims: Dims) -> int | None:
    """Operations of one call: what an operator claims, what is counted of a callable.

    Counted are torch's matrix products, as its flop counter sees them with fused attention written
    out; None where it sees none, as in a compiled extension.
    """
    if hasattr(op, "cost"):
        return int(op.cost(dims).work)
    stream = Stream(0, "compare, tensors whose work is counted")
    shapes = ((dims.n, dims.d), (dims.l, dims.d), (dims.l, dims.e))
    q, k, v = (stream.normal(*shape).float() for shape in shapes)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        op(q, k, v)
    return int(counter.get_total_flops()) or None


def subject(given: Any, *, target: Any = None) -> Subject:
    """The subject that a word or an object stands for.

    Args:
        given: an operator or a class of operators; a function or module f(q, k, v); or a word:
            ``"Nystromformer(rank=64)"``, ``"Performer"``, ``"mine.py:attend"``,
            ``"package.module:name"``, or the name of an operator that another distribution brings.
        target: what a plain callable approximates; softmax attention unless given.

    Raises:
        ValueError: it names nothing, or what it names cannot be compared.
    """
    name, spec, held = _named(given) if isinstance(given, str) else ("", "", given)
    if isinstance(held, type):
        return _of_class(held, name or held.__name__, spec)
    if is_solver(held):
        msg = f"{name or held!r} inverts a matrix; give attention, f(q, k, v)."
        raise ValueError(msg)
    if isinstance(held, Operator):
        op: Any = held
        _comparable(op, name or repr(op))
    else:
        op = adapted(held, name=name or _called(held))
        if is_solver(op):
            msg = f"{name or held!r} takes one argument; give attention, f(q, k, v)."
            raise ValueError(msg)
        op = dataclasses.replace(op, target=target or Softmax())
    own = type(held).__module__.startswith("softlab.operators")
    return Subject(
        name or repr(op), op.target, lambda _budget, _seed, _dims: op, swept=False, spec=spec,
        own=own, files=_files(held),
    )  # fmt: skip


def _called(held: Any) -> str:
    if isinstance(held, nn.Module):
        return type(held).__name__
    return getattr(held, "__name__", repr(held))


def _files(held: Any) -> tuple[str, ...]:
    """The file that defines it, where there is one: part of what decides its numbers."""
    try:
        name = inspect.getfile(held if inspect.isroutine(held) else _kind(held))
    except (TypeError, OSError):
        return ()
    return (name,) if Path(name).is_file() else ()  # typed at a prompt it is in none


def _kind(held: Any) -> Any:
    return held if isinstance(held, type) else type(held)


def _named(word: str) -> tuple[str, str, Any]:
    """The name, the spec and the object of a word."""
    if ":" in word.partition("(")[0]:
        return word, word, found(word)
    if word.endswith(".py"):
        msg = f"{word!r} is a file; say which of its operators, as in {word}:attend."
        if Path(word).is_file():
            tree = ast.parse(Path(word).read_text(encoding="utf-8"))
            kinds = (ast.FunctionDef, ast.ClassDef)
            names = [x.name for x in tree.body if isinstance(x, kinds) and x.name[0] != "_"]
            msg += f" It defines {', '.join(names)}." if names else " It defines none."
        raise ValueError(msg)
    parts = {part.name: part for part in operators()}
    classes = offered() | {name: part.kind for name, part in parts.items()}
    try:
        held = evaluated(word, classes)
    except (SyntaxError, ValueError, TypeError) as error:
        msg = (
            f"{word!r} is no operator: {error}. Give one of softlab list, as "
            "'Nystromformer(rank=64)', or your own, as mine.py:attend."
        )
        raise ValueError(msg) from None
    kind = _kind(held)
    if not (isinstance(held, Operator) or (isinstance(held, type) and hasattr(held, "traits"))):
        msg = f"{word!r} is no operator but a {kind.__name__}."
        raise ValueError(msg)
    own = kind.__module__.startswith("softlab.operators")
    where = "softlab.operators" if own else kind.__module__
    return word, f"{where}:{word}", held


def evaluated(word: str, classes: dict[str, Any]) -> Any:
    """The value of an expression of known classes, numbers and words; nothing else is run."""
    return _evaluated(ast.parse(word, mode="eval").body, classes)


def _evaluated(node: ast.expr, classes: dict[str, Any]) -> Any:
    if isinstance(node, ast.Name):
        if node.id not in classes:
            msg = f"there is no {node.id}{hint(node.id, classes).removesuffix('?')}"
            raise ValueError(msg)
        return classes[node.id]
    if isinstance(node, ast.Call):
        made = _evaluated(node.func, classes)
        given = [_evaluated(x, classes) for x in node.args]
        return made(*given, **{x.arg: _evaluated(x.value, classes) for x in node.keywords if x.arg})
    if isinstance(node, ast.Tuple):
        return tuple(_evaluated(x, classes) for x in node.elts)
    return ast.literal_eval(node)


def offered() -> dict[str, Any]:
    """Softlab's own classes by name: operators, solvers, selectors, weights."""
    from softlab import features, landmarks, pinv

    modules = (features, landmarks, pinv, own_operators)
    return {name: x for y in modules for name, x in vars(y).items() if isinstance(x, type)}


def _of_class(kind: type, name: str, spec: str) -> Subject:
    """A class: its knob is set by the budget; without one it is taken at its defaults."""
    own = kind.__module__.startswith("softlab.operators")
    if not (dataclasses.is_dataclass(kind) and hasattr(kind, "knob")):
        made = _instance(kind, name)
        line = f"{spec}()" if spec else ""
        return dataclasses.replace(subject(made), name=name, spec=line, own=own)
    part = Part(name, kind)
    least = part.at(1, 0)
    _comparable(least, name)

    def at(budget: float, seed: int, dims: Dims) -> Any:
        most = budget * (work(least.target, dims) or 0)
        sizes = range(1, dims.l + 1)
        fitted = bisect.bisect_right(sizes, most, key=lambda m: work(part.at(m, 0), dims) or 0)
        return part.at(fitted, seed) if fitted else None

    return Subject(name, least.target, at, swept=True, spec=spec, own=own, files=_files(kind))


def _instance(kind: type, name: str) -> Any:
    try:
        return kind()
    except Exception as error:
        made = Part(name, kind).example if dataclasses.is_dataclass(kind) else None
        if made is not None:
            return made
        msg = (
            f"{name} is a class that cannot be made without arguments ({error}); give an object, "
            f"as {name}(...)."
        )
        raise ValueError(msg) from error


def _comparable(op: Any, name: str) -> None:
    if op.traits.replacement:
        msg = (
            f"{name} approximates no attention: it defines its own, so that there is no error to "
            "rank it by. Leave it out, or compare what approximates softmax."
        )
        raise ValueError(msg)


def called(op: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The answer to one head; ``ValueError`` for one that is no (n, e) tensor."""
    with torch.no_grad():
        out: Tensor = op(q, k, v)
    if tuple(out.shape) != (len(q), v.shape[1]):
        msg = (
            f"the answer has the shape {tuple(out.shape)} for {len(q)} queries and values of width "
            f"{v.shape[1]}; return ({len(q)}, {v.shape[1]})"
        )
        raise ValueError(msg)
    return out


def catalogue() -> list[str]:
    """The names of all approximations that there are, other distributions' after softlab's own."""
    found_ = []
    for part in operators():
        traits = part.example.traits
        if not (traits.exact or traits.replacement or traits.optimal or traits.blind):
            found_.append(part.name)
    return found_
