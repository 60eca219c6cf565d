"""Twins of a subject: copies that share no state with it, nor with each other."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor

STATE = (dict, list, set, bytearray, Tensor, np.ndarray)
"""Types of globals, defaults and free variables in which functions keep something."""
OURS = ("torch", "softlab", "numpy", "functools")
"""Packages whose functions keep nothing by the sizes of tensors."""


def twin(subject: Any) -> Any:
    """The subject with copies of its attributes, and of what its functions keep outside of them.

    A function gets globals, defaults and free variables of its own, as far as they can hold a
    state, and so do functions of its module that it calls. The subject itself, where no copy can be
    made: a compiled function, a lock.
    """
    try:
        return _Copies().of(subject)
    except Exception:  # what cannot be copied is no fault
        return subject


class _Copies:
    """Copies made for one twin, by the identity of what they copy."""

    def __init__(self) -> None:
        self.made: dict[int, Any] = {}
        self.kept: list[Any] = []  # so that no identity is given twice

    def of(self, held: Any) -> Any:
        """The copy, or the same where there is nothing to copy."""
        if id(held) not in self.made:
            self.kept.append(held)
            self.made[id(held)] = held  # should it hold itself
            self.made[id(held)] = self._copied(held)
        return self.made[id(held)]

    def _copied(self, held: Any) -> Any:
        if isinstance(held, types.FunctionType):
            return held if _packaged(held) else self._function(held)
        if isinstance(held, types.MethodType):
            return types.MethodType(held.__func__, self.of(held.__self__))
        if isinstance(held, functools.partial):
            given = {name: self._state(x) for name, x in held.keywords.items()}
            return functools.partial(self.of(held.func), *map(self._state, held.args), **given)
        if isinstance(held, STATE):
            return _deep(held)
        if isinstance(held, (type, types.ModuleType)) or _packaged(type(held)):
            return self._parts(held)
        return self._object(held)

    def _parts(self, held: Any) -> Any:
        """Of an object of ours: what stands for a function holds that function."""
        if not dataclasses.is_dataclass(held) or isinstance(held, type):
            return held if isinstance(held, (type, types.ModuleType)) else _deep(held)
        calls = {x.name: getattr(held, x.name) for x in dataclasses.fields(held) if x.init}
        calls = {name: x for name, x in calls.items() if callable(x) and not isinstance(x, type)}
        return dataclasses.replace(held, **{name: self.of(x) for name, x in calls.items()})

    def _object(self, held: Any) -> Any:
        """With its attributes copied, of a class whose functions are twins."""
        made, kind = copy.deepcopy(held), type(held)
        functions = {
            name: self.of(x) for name, x in vars(kind).items() if isinstance(x, types.FunctionType)
        }
        with contextlib.suppress(TypeError):  # a class that has no other layout
            object.__setattr__(made, "__class__", type(kind.__name__, (kind,), functions))
        return made

    def _function(self, held: types.FunctionType) -> types.FunctionType:
        space = self.made.get(id(held.__globals__))
        if space is None:
            self.kept.append(held.__globals__)
            space = self.made[id(held.__globals__)] = dict(held.__globals__)
        cells = tuple(types.CellType() for _ in held.__closure__ or ())
        made = types.FunctionType(held.__code__, space, held.__name__, None, cells)
        self.made[id(held)] = made
        made.__defaults__ = self._several(held.__defaults__)
        made.__kwdefaults__ = {k: self._state(x) for k, x in (held.__kwdefaults__ or {}).items()}
        made.__dict__.update({name: self._state(x) for name, x in held.__dict__.items()})
        made.__qualname__, made.__module__ = held.__qualname__, held.__module__
        for name in set(_names(held.__code__)) & space.keys():
            space[name] = self._state(held.__globals__[name])
        for cell, old in zip(cells, held.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # an empty one
                cell.cell_contents = self._state(old.cell_contents)
        return made

    def _several(self, held: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        return None if held is None else tuple(self._state(x) for x in held)

    def _state(self, held: Any) -> Any:
        """The copy of what a function holds, if it may hold a state."""
        own = not isinstance(held, (type, types.ModuleType)) and not _packaged(type(held))
        return self.of(held) if own or isinstance(held, (types.FunctionType, *STATE)) else held


def _packaged(held: Any) -> bool:
    """Whether a class or function is of Python itself, or of a package that keeps no state."""
    module = str(getattr(held, "__module__", None))
    return module == "builtins" or module.partition(".")[0] in OURS


def _deep(held: Any) -> Any:
    """A deep copy, or the same where none can be made."""
    try:
        return copy.deepcopy(held)
    except Exception:  # a lock, a tensor of a graph
        return held


def _names(code: types.CodeType) -> Iterator[str]:
    """The names that a code may look up in its globals, inner functions included."""
    yield from code.co_names
    for held in code.co_consts:
        if isinstance(held, types.CodeType):
            yield from _names(held)
