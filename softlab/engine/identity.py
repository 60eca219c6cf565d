"""What a value is, whatever it prints as: the same digits in every process for equal values alone.

Two tensors that print alike are two values; two objects that print their addresses are one, if
their classes and their contents are. The name of a value in a table is made here too.
"""

from __future__ import annotations

import copyreg
import dataclasses
import enum
import functools
import hashlib
import re
import sys
import types
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from softlab.engine.journal import Row, Scalar
from softlab.hints import first_line

ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
MAIN = {"__main__", "__mp_main__"}
STUDY = "softlab_study_"
"""How the names of the modules of study files begin; ``softlab.engine.loading`` gives them."""
LONGEST = 200
"""Letters of a value's name in a table."""
LARGEST = sys.float_info.max
MACHINERY = {
    *("__dict__", "__weakref__", "__doc__", "__module__", "__hash__", "__slots__", "_abc_impl"),
    *("__dataclass_fields__", "__dataclass_params__", "__annotations__", "__abstractmethods__"),
}
"""Members of a class that Python makes."""
IN_C = (
    *(types.MemberDescriptorType, types.GetSetDescriptorType, types.MethodDescriptorType),
    *(types.WrapperDescriptorType, types.ClassMethodDescriptorType, types.BuiltinFunctionType),
)


class UnstableError(ValueError):
    """A value that cannot be known again: it holds a lock, a file, a generator, or the like."""


class Identity(NamedTuple):
    """``digits`` of a value, and the ``modules`` of the classes and functions within it."""

    digits: str
    modules: frozenset[str]


def identity(x: object) -> Identity:
    """Digits that are the same for equal values in every process, and differ for all others.

    Numbers and words by type and value (NumPy's as Python's); tensors and arrays by dtype, shape
    and every byte; containers, enums and dataclasses by their parts, but for fields that these do
    not compare; paths by their name; classes
    by their name; functions by module, name, code, defaults and what they captured; other objects
    by their class and what pickle would keep of them.

    Raises ``UnstableError`` for what has none of these.
    """
    walk = _Walk()
    try:
        token = walk.token(x)
    except RecursionError:
        msg = f"a {type(x).__qualname__} that is nested too deeply"
        raise UnstableError(msg) from None
    return Identity(hashlib.sha256(token.encode()).hexdigest(), frozenset(walk.modules))


def flat(case: Mapping[str, Any]) -> Row:
    """The columns that name a case: a dataclass gives its repr, its type, and its fields in turn.

    ``{"op": Soft(rank=64)}`` becomes ``op = "Soft(rank=64)"``, ``op.type = "Soft"``,
    ``op.rank = 64``, ``op.pinv = "NewtonRaphson(steps=20)"``, ``op.pinv.steps = 20``, ...
    """
    row: Row = {}
    for name, x in case.items():
        row[name] = shown(x)
        if dataclasses.is_dataclass(x) and not isinstance(x, type):
            row[f"{name}.type"] = type(x).__name__
            row |= flat({f"{name}.{f.name}": getattr(x, f.name) for f in dataclasses.fields(x)})
    return row


def shown(x: object) -> Scalar:
    """The value in a cell of a table: a number or a word as it is, anything else by a short name.

    Where the ``repr`` does not tell (an elided tensor, an address), eight digits of the identity
    follow, if there is one.
    """
    if isinstance(x.item() if isinstance(x, np.generic) else x, Scalar):
        return scalar(x)
    if isinstance(x, Tensor | np.ndarray):
        dtype = str(x.dtype).removeprefix("torch.")
        return marked(f"{type(x).__name__}({', '.join(map(str, x.shape))}; {dtype})", x)
    if isinstance(x, types.FunctionType | types.BuiltinFunctionType):
        return x.__qualname__ if isinstance(x, types.FunctionType) else x.__name__
    if type(x).__repr__ is object.__repr__:
        return marked(type(x).__qualname__, x)
    try:
        words = " ".join(repr(x).split())
    except Exception:  # of a dataclass that compares a tensor with its default
        return marked(type(x).__qualname__, x)
    name = ADDRESS.sub("", words)
    if len(name) > LONGEST:
        return marked(f"{name[:LONGEST]}...", x)
    return name if name == words else marked(name, x)


def marked(name: str, x: object) -> str:
    """The name with eight digits of the identity of ``x``, where it has one."""
    try:
        return f"{name} #{identity(x).digits[:8]}"
    except UnstableError:
        return name


def scalar(x: object) -> Scalar:
    """A number, a word, a truth value or None as the plain type of Python that it is.

    NumPy's scalars and subclasses (an ``IntEnum``) become int, float, bool or str. Raises
    ``TypeError`` for anything else, and ``ValueError`` for an integer that no float can hold.
    """
    if isinstance(x, np.generic):
        x = x.item()
    if x is None or isinstance(x, bool):
        return x
    if isinstance(x, int):
        if abs(x) > LARGEST:
            msg = f"an integer of {x.bit_length()} bits; numbers end at {LARGEST:.1e}."
            raise ValueError(msg)
        return int(x)
    if isinstance(x, float):
        return float(x)
    if isinstance(x, str):
        return str.__str__(x)
    msg = f"a {type(x).__name__}; give a number, a word, True, False, None."
    raise TypeError(msg)


def home(name: str) -> str:
    """A module's name, or that of its file where the name depends on how the file was loaded."""
    if name in MAIN or name.startswith(STUDY):
        file = getattr(sys.modules.get(name), "__file__", None)
        inner = name.partition(".")[2]  # of a study's folder
        return (f"{inner.replace('.', '/')}.py" if inner else Path(file).name) if file else name
    return name


class _Walk:
    """A value as a word: ``token`` of its parts, and the modules met on the way."""

    def __init__(self) -> None:
        self.modules: set[str] = set()
        self.inside: list[int] = []

    def token(self, x: Any) -> str:
        if isinstance(x, np.generic) and isinstance(x.item(), Scalar):
            x = x.item()
        if x is None or type(x) in {bool, int, str, bytes, complex} or x is Ellipsis:
            return f"{type(x).__name__} {hex(x) if type(x) is int else ascii(x)}"
        if type(x) is float:
            return f"float {x.hex()}"
        if id(x) in self.inside:  # a cycle: what it leads back to is known by its place
            return f"up {len(self.inside) - self.inside.index(id(x))}"
        self.inside.append(id(x))
        try:
            return self._compound(x)
        finally:
            self.inside.pop()

    def all(self, kind: str, parts: Iterable[str]) -> str:
        return f"{kind}({','.join(parts)})"

    def _compound(self, x: Any) -> str:
        if isinstance(x, type):
            return self._class(x)
        if isinstance(x, types.ModuleType):
            self.modules.add(x.__name__)
            return f"module {home(x.__name__)}"
        if isinstance(x, types.CodeType):
            return self._code(x)
        if isinstance(x, types.FunctionType):
            return self._function(x)
        if isinstance(x, types.BuiltinFunctionType):
            bound = x.__self__
            named = bound is None or isinstance(bound, type | types.ModuleType)
            return f"builtin {x.__module__} {x.__qualname__} {'' if named else self.token(bound)}"
        if isinstance(x, types.MethodType):
            return self.all("method", map(self.token, (x.__self__, x.__func__)))
        if isinstance(x, types.CellType):
            try:
                return self.all("cell", [self.token(x.cell_contents)])
            except ValueError as error:
                if isinstance(error, UnstableError):
                    raise
                return "cell()"
        if isinstance(x, Tensor):
            return self._tensor(x)
        if type(x) is np.ndarray and x.dtype != object:
            content = hashlib.sha256(x.tobytes()).hexdigest()
            return f"array {x.dtype.descr} {x.shape} {content}"
        return self._container(x)

    def _container(self, x: Any) -> str:
        kind = self.token(type(x))
        if isinstance(x, enum.Enum):
            return self.all(kind, [ascii(x.name), self.token(x.value)])
        if isinstance(x, PurePath):
            return f"path {str(x)!a}"
        if dataclasses.is_dataclass(x):
            compared = [f.name for f in dataclasses.fields(x) if f.compare]
            fields = {name: getattr(x, name, None) for name in compared}
            left = {f.name for f in dataclasses.fields(x)} - {*compared}
            return self.all(
                kind, [self.token(fields | _state(x, getattr(x, "__dict__", {}), left))]
            )
        if type(x) in {tuple, list}:
            return self.all(kind, map(self.token, x))
        if type(x) in {set, frozenset}:
            return self.all(kind, sorted(map(self.token, x)))
        if type(x) in {dict, types.MappingProxyType}:
            return self.all(kind, sorted(f"{self.token(k)}:{self.token(v)}" for k, v in x.items()))
        if isinstance(x, property):
            return self.all(kind, map(self.token, (x.fget, x.fset, x.fdel)))
        if isinstance(x, staticmethod | classmethod | functools.cached_property):
            return self.all(kind, [self.token(getattr(x, "__func__", getattr(x, "func", None)))])
        if not isinstance(x, functools.partial) and hasattr(x, "__wrapped__"):
            return self.all(kind, [self.token(x.__wrapped__)])  # functools.cache
        return self.all(kind, self._kept(x))

    def _kept(self, x: Any) -> list[str]:
        """What pickle would keep of an object."""
        reduce = copyreg.dispatch_table.get(type(x))
        try:
            kept: Any = x.__reduce_ex__(4) if reduce is None else reduce(x)
        except RecursionError:
            raise
        except Exception as error:
            msg = f"a {type(x).__qualname__} ({error})"
            raise UnstableError(msg) from error
        if isinstance(kept, str):
            self.modules.add(str(getattr(x, "__module__", None) or type(x).__module__))
            return [ascii(kept)]
        made, given, state, *items = (*kept, None)[: max(3, len(kept))]
        state = _state(x, state) if isinstance(state, dict) else state
        return [*map(self.token, (made, given, state)), *(self.token(list(i or ())) for i in items)]

    def _class(self, x: type) -> str:
        self.modules.add(x.__module__)
        name = f"class {home(x.__module__)} {x.__qualname__}"
        if _named(x):
            return name
        members = {
            key: part
            for key, part in vars(x).items()
            if key not in MACHINERY and not isinstance(part, IN_C)
        }
        return self.all(name, [self.token(x.__bases__), self.token(members)])

    def _function(self, x: types.FunctionType) -> str:
        self.modules.add(x.__module__ or "")
        parts = (x.__code__, x.__defaults__, x.__kwdefaults__, x.__closure__, vars(x))
        kind = f"function {home(x.__module__ or '')} {x.__qualname__}"
        return self.all(kind, map(self.token, parts))

    def _code(self, x: types.CodeType) -> str:
        counts = x.co_argcount, x.co_posonlyargcount, x.co_kwonlyargcount, x.co_flags
        names = x.co_names, x.co_varnames, x.co_freevars, x.co_cellvars
        parts = (*counts, *names, x.co_code, getattr(x, "co_exceptiontable", b""), x.co_consts)
        return self.all("code", map(self.token, parts))

    def _tensor(self, x: Tensor) -> str:
        try:
            if x.layout != torch.strided or x.is_nested or x.is_quantized:
                msg = f"layout {x.layout}"
                raise TypeError(msg)  # noqa: TRY301
            plain = x.detach().resolve_conj().resolve_neg().cpu().contiguous()
            held: np.ndarray[Any, Any] = plain.reshape(-1).view(torch.uint8).numpy()
            content = hashlib.sha256(held.tobytes()).hexdigest()
        except (RuntimeError, NotImplementedError, TypeError) as error:
            msg = f"a tensor whose entries cannot be read ({first_line(error)})"
            raise UnstableError(msg) from error
        kind = self.token(type(x))
        return f"{kind} {x.dtype} {tuple(x.shape)} {x.requires_grad} {content}"


def _state(x: object, held: Mapping[str, Any], left: Collection[str] = ()) -> dict[str, Any]:
    """The attributes of an object but those ``left`` out, and that it computes once and keeps."""
    lazy = functools.cached_property
    kept = {k: v for k, v in held.items() if k not in left}
    return {k: v for k, v in kept.items() if not isinstance(getattr(type(x), str(k), None), lazy)}


def _named(x: type) -> bool:
    """Whether the class is what its module calls by its name."""
    found: Any = sys.modules.get(x.__module__)
    for part in x.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is x
