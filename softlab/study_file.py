"""A study file, anywhere on disk: Python that defines a Study or more at its top level.

A worker loads the same file under the same name, and what the file defines can be sent by name.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from softlab import sources
from softlab.identity import STUDY


@dataclass(frozen=True)
class _Loaded:
    """A study's module, the states of the files that it is made of, and its neighbours."""

    module: ModuleType
    states: dict[Path, str]
    neighbours: dict[str, ModuleType]


_LOADED: dict[Path, _Loaded] = {}


def load(file: Path | str) -> ModuleType:
    """The module of ``file``, which may import its neighbours; loaded once a state of them all.

    Its name holds a digest of path and text, so that nobody mistakes another state for this one;
    where a neighbour has changed since it was loaded, all of them are loaded anew.

    Raises ``ValueError`` for a file that is not there, is no Python file, or raises as it is read.
    """
    file = Path(file)
    if not file.is_file():
        msg = f"there is no file {file}. Give the path of a Python file that defines a Study."
        raise ValueError(msg)
    path = file.absolute()
    known = _LOADED.get(path)
    if known is None or any(_state(x) != state for x, state in known.states.items()):
        with _beside(path):
            known = _LOADED[path] = _fresh(path)
    return sys.modules.setdefault(known.module.__name__, known.module)


@contextlib.contextmanager
def at_home(file: Path | None) -> Iterator[None]:
    """Let a study's imports find its own neighbours inside the block, those of functions too."""
    if file is None:
        yield
        return
    load(file)
    with _beside(file):
        sys.modules.update(_LOADED[file.absolute()].neighbours)
        yield


@contextlib.contextmanager
def _beside(file: Path) -> Iterator[None]:
    """Let imports look in the folder of the file first, and leave no bytecode there.

    Python takes old bytecode for that of a file of the same second and size.
    """
    folder, written = str(file.resolve().parent), sys.dont_write_bytecode
    sys.path.insert(0, folder)
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.path.remove(folder)
        sys.dont_write_bytecode = written


def _fresh(path: Path) -> _Loaded:
    importlib.invalidate_caches()
    found = sources.Closure(running=False)
    found.file(path)
    states = {x: _state(x) for x in found.files.values()}
    _forget(found.files)
    words = "".join(f"{x} {state} " for x, state in states.items())
    digits = hashlib.sha256(words.encode(errors="surrogateescape")).hexdigest()[:8]
    name = f"{STUDY}{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}_{digits}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        msg = f"{path} is not a Python file; its name must end in .py."
        raise ValueError(msg)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        msg = f"{path} cannot be loaded: {type(error).__name__}: {error}"
        raise ValueError(msg) from error
    names = {x.removeprefix("module "): at for x, at in found.files.items()}
    neighbours = {x: sys.modules[x] for x in names if x in sys.modules}
    sources.loaded([path, *(names[x] for x in neighbours)], states)
    return _Loaded(module, states, neighbours)


def _forget(files: dict[str, Path]) -> None:
    """Drop loaded neighbours, all of them, where one is another file or may have changed."""
    names = {x.removeprefix("module "): at for x, at in files.items() if x.startswith("module ")}
    running = {x: getattr(sys.modules[x], "__file__", None) for x in names if x in sys.modules}
    if any(file != str(names[x]) or sources.stale(names[x]) for x, file in running.items()):
        tops = {x.partition(".")[0] for x in names}
        for name in [x for x in sys.modules if x.partition(".")[0] in tops]:
            del sys.modules[name]


def _state(path: Path) -> str:
    try:
        return sources.content(path)
    except OSError:
        return "gone"
