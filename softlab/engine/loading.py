"""A study file, anywhere on disk: Python that defines a Study or more at its top level.

That of a study's folder (``softlab.study_folders``) is a module of a package of its own, so that it
may import the folder's other modules relatively.

A worker loads the same file under the same name, and what the file defines can be sent by name.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from softlab import study_folders
from softlab.engine import sources
from softlab.engine.identity import STUDY


@dataclass(frozen=True)
class Loaded:
    """A study's file as it was loaded: its ``module``, the code that it is made of, neighbours.

    ``closure`` names the files, and ``states`` their contents at the time; ``neighbours`` are the
    modules among them.
    """

    module: ModuleType
    closure: sources.Closure
    states: dict[Path, str]
    neighbours: dict[str, ModuleType]


_LOADED: dict[str, Loaded] = {}
_LATEST: dict[Path, str] = {}


def load(file: Path | str) -> ModuleType:
    """The module of ``file``, which may import its neighbours; loaded once a state of them all.

    Its name holds a digest of path and text, so that nobody mistakes another state for this one;
    where a neighbour has changed since it was loaded, all of them are loaded anew.

    Raises ``ValueError`` for a file that is not there, is no Python file, or raises as it is read.
    """
    path = study_folders.study_file(file).absolute()
    known = _LOADED.get(_LATEST.get(path, ""))
    if known is None or any(_state(x) != state for x, state in known.states.items()):
        with _imports_beside(path):
            known = _fresh(path)
        _LATEST[path] = known.module.__name__
        _LOADED[known.module.__name__] = known
    return sys.modules.setdefault(known.module.__name__, known.module)


@contextlib.contextmanager
def at_home(module: str) -> Iterator[sources.Closure]:
    """Let the imports of a loaded study file find its own neighbours, those of functions too.

    Yields the code that the file is made of, as it was loaded; of no file where ``module`` is none.
    """
    if module not in _LOADED:
        yield sources.Closure(running=True)
        return
    loaded = _LOADED[module]
    with _imports_beside(Path(str(loaded.module.__file__))):
        before = set(sys.modules)
        sys.modules.update(loaded.neighbours)
        sources.remember(loaded.states)
        yield copy.deepcopy(loaded.closure)
        later = {x: file for x, file in _files(set(sys.modules) - before).items() if x != module}
        loaded.neighbours.update({x: sys.modules[x] for x in later})


@contextlib.contextmanager
def _imports_beside(file: Path) -> Iterator[None]:
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
        for name in _files(sys.stdlib_module_names & sys.modules.keys()):  # shadowed for others
            del sys.modules[name]


def _fresh(path: Path) -> Loaded:
    importlib.invalidate_caches()
    found = sources.Closure(running=False)
    found.file(path)
    states = {x: _state(x) for x in found.files.values()}
    _forget(found.named())
    words = "".join(f"{x} {state} " for x, state in states.items())
    digits = hashlib.sha256(words.encode(errors="surrogateescape")).hexdigest()[:8]
    inner = path.name == study_folders.STUDY
    stem = path.parent.name if inner else path.stem
    name = f"{STUDY}{re.sub(r'[^0-9A-Za-z_]', '_', stem)}_{digits}"
    if inner:
        study_folders.package(path.parent, name)
        name = f"{name}.{path.stem}"
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
    running = sources.Closure(running=True)  # with what was imported by a name that was computed
    running.file(path)
    running.names(name)
    states = {x: _state(x) for x in running.files.values()} | states
    sources.remember(states)
    neighbours = {x: sys.modules[x] for x in running.named() if x in sys.modules}
    return Loaded(module, running, states, neighbours)


def _forget(files: dict[str, Path]) -> None:
    """Drop the neighbours of other study files, and ours where one of them may have changed."""
    foreign = {x for other in _LOADED.values() for x in other.neighbours} - files.keys()
    running = _files(files.keys() & sys.modules.keys())
    if any(file != files[x] or sources.stale(file) for x, file in running.items()):
        foreign |= files.keys()
    tops = {x.partition(".")[0] for x in foreign}
    for name in [x for x in sys.modules if x.partition(".")[0] in tops]:
        del sys.modules[name]


def _files(names: Iterable[str]) -> dict[str, Path]:
    """Those of the loaded modules that nobody installed, with their files."""
    files = {x: getattr(sys.modules[x], "__file__", None) for x in names}
    return {x: Path(file) for x, file in files.items() if file and sources.own(Path(file))}


def _state(path: Path) -> str:
    try:
        return sources.content(path)
    except OSError:
        return "gone"
