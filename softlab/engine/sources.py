"""The code that decides numbers: a file, and all that it imports which no distribution installed.

Imports are read off the text, those inside functions too, and off the names of modules that are
loaded, where ``importlib`` was asked for them. The standard library is left out (the version of
Python stands for it), and installed distributions count by their version.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib.util
import sys
import sysconfig
import time
import types
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from importlib.machinery import ModuleSpec
from pathlib import Path

from softlab.engine.identity import MAIN, STUDY, home

PACKAGE = Path(__file__).parents[1]
# These read tables and make none, so a new colour in a figure leaves the rows valid. What a claim
# of the docket measures is in its own file: docket.py holds the words and the rule beside it.
# Studies within an installed package count by their own files, as those of a clone do.
PRESENTATION = {"__main__.py", "cli", "docket.py", "figures.py", "report", "studies", "verdicts.py"}
READERS = ("gguf", "onnx", "pillow", "safetensors", "tokenizers")
"""What ``softlab.pretrained`` and ``softlab.datasets`` read weights and images with."""
READ_BY = ("softlab.datasets", "softlab.models", "softlab.pretrained")
BORN = time.time()
"""About when this process began: files that are older are as they were when they were loaded."""

_LIBRARY = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))
_RUN: dict[Path, str] = {}
"""The state of files as this process runs them."""


class Closure:
    """The files that code is made of: ``files`` by kind and name, ``packages`` by their files.

    ``file`` is the one to begin with. What is in ``sys.modules`` counts only where ``running``;
    otherwise a module is what an import would find now.
    """

    def __init__(self, *, running: bool) -> None:
        self.running = running
        self.files: dict[str, Path] = {}
        self.packages: dict[str, Path] = {}
        self.lost: set[str] = set()
        self._seen: set[str] = set()
        self._root: Path | None = None

    def file(self, path: Path, package: str = "") -> None:
        """Add a file that is no module, and what it imports.

        ``package`` is the one that its relative imports begin at; without it they are files beside.
        """
        self._root = self._root or path.parent
        inner = path.is_relative_to(self._root)
        name = f"file {path.relative_to(self._root).as_posix() if inner else path.name}"
        if name not in self.files:
            self.files[name] = path
            self.modules(imported(path, package))
            for file in () if package else relative_imports(path):
                self.file(file)

    def modules(self, names: Iterable[str]) -> None:
        """Add modules by name, and what they import in turn."""
        for name in sorted({*names} - {"", *self._seen}):
            self._seen.add(name)
            top = name.partition(".")[0]
            if top == "softlab":
                readers = READERS if name.startswith(READ_BY) else ()
                self.packages |= dict.fromkeys(readers, PACKAGE)
            elif home(name) != name:
                running = sys.modules[name]
                package = getattr(running, "__package__", None) or ""
                self.file(Path(str(running.__file__)), "" if package.startswith(STUDY) else package)
                self.names(name)
            elif name in MAIN:  # typed at a prompt
                self.lost.add(name)
            else:
                self._module(name, top)

    def names(self, name: str) -> None:
        """Add the modules that a loaded module has under names: itself imported, or of objects."""
        for attribute, x in list(vars(sys.modules.get(name, types)).items()):
            if isinstance(x, types.ModuleType):
                if x.__name__ != f"{name}.{attribute}":  # Python puts submodules there
                    self.modules([x.__name__])
            else:
                kind = x if isinstance(x, type | types.FunctionType) else type(x)
                self.modules([kind.__module__ or ""])

    def named(self) -> dict[str, Path]:
        """The files that are modules, by the modules' names."""
        return {x[7:]: path for x, path in self.files.items() if x.startswith("module ")}

    def parts(self) -> dict[str, str]:
        """The state of each: digits of a file's content, the version of a package."""
        files = {
            name: content(path, running=name.startswith("file ") or name[7:] in sys.modules)
            for name, path in self.files.items()
        }
        return files | {f"package {x}": version(x, at) for x, at in self.packages.items()}

    def _module(self, name: str, top: str) -> None:
        found = False
        for part, path in located(name, running=self.running):
            found = True
            if path is None or _installed(path):
                if path is not None and not _standard(path):
                    self.packages[top] = path
                return
            if f"module {part}" not in self.files:
                self.files[f"module {part}"] = path
                package = part if path.stem == "__init__" else part.rpartition(".")[0]
                self._seen.add(part)
                self.modules(imported(path, package))
                if self.running:
                    self.names(part)
        if not found:
            self.lost.add(name)


def located(name: str, *, running: bool) -> Iterator[tuple[str, Path | None]]:
    """The file of each package on the way to a module and its own; None for a built-in one."""
    search: Iterable[str] | None = None
    full = ""
    for part in name.split("."):
        full = f"{full}.{part}".strip(".")
        loaded = sys.modules.get(full) if running else None
        spec = getattr(loaded, "__spec__", None) or _spec(full, search)
        file = getattr(loaded, "__file__", None)
        if spec is None and file is None:
            return
        if file is None and spec is not None and spec.has_location:
            file = spec.origin
        search = getattr(spec, "submodule_search_locations", None)
        if file is not None or search is None:
            yield full, Path(file) if file else None
        if search is None:
            return


def _spec(name: str, search: Iterable[str] | None) -> ModuleSpec | None:
    """What an import would find, without importing anything."""
    for finder in sys.meta_path:
        with contextlib.suppress(Exception):  # of foreign finders
            spec = finder.find_spec(name, search)  # type: ignore[arg-type]
            if spec is not None:
                return spec
    return None


def imported(path: Path, package: str = "") -> frozenset[str]:
    """The names of all modules that the text of a file may import; of ``package``, if relative."""
    try:
        return _imports(path.read_bytes(), package) if path.suffix == ".py" else frozenset()
    except OSError:
        return frozenset()


@functools.lru_cache(maxsize=512)
def _imports(text: bytes, package: str) -> frozenset[str]:
    found: set[str] = set()
    try:
        nodes = list(ast.walk(ast.parse(text)))
    except (SyntaxError, ValueError, RecursionError):
        return frozenset()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            with contextlib.suppress(ImportError):  # beyond the top of its package
                base = "." * node.level + (node.module or "")
                base = importlib.util.resolve_name(base, package)
                found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called in {"import_module", "__import__"}:
                found.add(str(node.args[0].value))
    return frozenset(found)


def relative_imports(path: Path) -> Iterator[Path]:
    """The files that a file's relative imports may mean, such as ``from .columns import X``."""
    try:
        nodes = list(ast.walk(ast.parse(path.read_bytes()))) if path.suffix == ".py" else []
    except (OSError, SyntaxError, ValueError, RecursionError):
        return
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.level:
            base = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            for place in (base, *(base / alias.name for alias in node.names)):
                for file in (place.with_suffix(".py"), place / "__init__.py"):
                    if file.is_file():
                        yield file


def content(path: Path, *, running: bool = False) -> str:
    """Digits of the content of a file, or of all files of a folder and their names.

    ``running``: of the content that this process has loaded, if it was asked about in time.
    Raises ``OSError`` for what cannot be read.
    """
    if running and path in _RUN:
        return _RUN[path]
    state = hashlib.sha256()
    if path.is_dir():
        for inner in sorted(x for x in path.rglob("*") if x.is_file()):
            state.update(f"{inner.relative_to(path).as_posix()!a} {content(inner)} ".encode())
    else:
        with path.open("rb") as file:
            state = hashlib.file_digest(file, "sha256")
    if running:
        _RUN[path] = state.hexdigest()[:16]
    return state.hexdigest()[:16]


def remember(states: Mapping[Path, str]) -> None:
    """Tell in which states the files are that now count as loaded."""
    _RUN.update(states)


def stale(path: Path) -> bool:
    """Whether a file may have changed since this process loaded it."""
    try:
        if path in _RUN:
            return _RUN[path] != content(path)
        return path.stat().st_mtime > BORN
    except OSError:
        return True


@functools.cache
def package() -> str:
    """The state of softlab's own files: of those that this process runs, if it asks in time."""
    state = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*")):
        inner = path.relative_to(PACKAGE)
        if path.is_file() and {*PRESENTATION, "__pycache__"}.isdisjoint(inner.parts):
            state.update(inner.as_posix().encode())
            state.update(path.read_bytes())
    return state.hexdigest()[:16]


def version(name: str, path: Path | None = None) -> str:
    """The version of the distribution that brings a top-level module; else its file's state."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        known = _distributions().get(name, ())
        if known:
            return ", ".join(sorted(f"{x} {metadata.version(x)}" for x in set(known)))
        return content(path) if path is not None and path.is_file() else "not installed"


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()


def own(path: Path) -> bool:
    """Whether a file is the user's: neither softlab's, nor of a distribution, nor of Python."""
    return not _installed(path) and not path.is_relative_to(PACKAGE)


def _installed(path: Path) -> bool:
    return _standard(path) or not {"site-packages", "dist-packages"}.isdisjoint(path.parts)


def _standard(path: Path) -> bool:
    """Whether the file is of the standard library."""
    apart = {"site-packages", "dist-packages"}.isdisjoint(path.parts)
    return apart and any(path.is_relative_to(folder) for folder in _LIBRARY)
