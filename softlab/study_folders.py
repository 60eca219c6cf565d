"""Where studies lie: the folder of one, its file, its chapter. Imports no torch.

A study is a folder that holds ``study.py``, and beside it what knows its columns: ``chapter.py``,
which turns its table into words and tables, and ``method.typ``, how its numbers were measured. It
may hold more modules; they import each other relatively (``from .columns import UNIFORM``). A study
without a chapter can be a single file.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from softlab.hints import hint

STUDY, CHAPTER, METHOD = "study.py", "chapter.py", "method.typ"
GENERAL = "operators"
"""The chapter of a study that has none of its own and compares operators; the package brings it."""
DOCKET = "docket"
"""The chapter of published claims; the package brings it."""
COMPARED = "compare"
"""The chapter of what ``softlab compare`` measures; the package brings it."""

_PACKAGE = Path(__file__).parent


def built_in() -> dict[str, Path]:
    """The folders of softlab's own studies by name: of the installed package, or of the clone."""
    # The wheel has them inside; beside an installed package may be anybody's folder of that name.
    for place in (_PACKAGE / "studies", _PACKAGE.parent / "studies"):
        if found := {path.parent.name: path.parent for path in sorted(place.glob(f"*/{STUDY}"))}:
            return found
    return {}


def docket() -> dict[str, Path]:
    """The files of softlab's own claims by name, "soft-steps" for ``docket/soft_steps.py``."""
    for place in (_PACKAGE / "studies", _PACKAGE.parent / "studies"):
        if found := sorted(place.glob("docket/*.py")):
            return {path.stem.replace("_", "-"): path for path in found}
    return {}


def study_file(named: Path | str) -> Path:
    """The file that defines a study.

    Args:
        named: A Python file; a folder that holds ``study.py``; ``studies/rank.py`` for
            ``studies/rank/study.py``; or the name of one of softlab's own studies.

    Raises:
        ValueError: There is no such file, or the folder holds no study.
    """
    path = Path(named)
    if path.is_dir():
        if not (path / STUDY).is_file():
            beside = f" beside its {CHAPTER}" if (path / CHAPTER).is_file() else ""
            msg = f"the folder {path} holds no {STUDY}{beside}; a study's folder has one."
            raise ValueError(msg)
        return path / STUDY
    if path.is_file():
        return path
    if (inner := path.with_suffix("") / STUDY).is_file():
        return inner
    known = built_in()
    if str(named) in known:
        return known[str(named)] / STUDY
    msg = f"there is no file {path}. Give the path of a Python file that defines a Study."
    if path.suffix != ".py" and len(path.parts) == 1 and known:
        msg = (
            f"there is no file or folder {path}, and no study of that name.{hint(str(path), known)}"
        )
    raise ValueError(msg)


def chapters() -> dict[str, Path]:
    """The folders of the chapters that softlab brings, by name."""
    own = {name: x for name, x in built_in().items() if (x / CHAPTER).is_file()}
    general = {name: _PACKAGE / "report" / name for name in (GENERAL, DOCKET, COMPARED)}
    return general | own


def chapter_folder(name: str, recorded: str = "") -> Path:
    """The folder of a chapter.

    Args:
        name: Of a chapter that softlab brings, or of the folder of a user's study.
        recorded: Where the user's study lay when it was run; empty for softlab's own.

    Raises:
        ValueError: There is no such chapter, or it is no longer where it was.
    """
    if recorded:
        if (Path(recorded) / CHAPTER).is_file():
            return Path(recorded)
        msg = (
            f"the chapter {name!r} was in the folder {recorded}, which holds no {CHAPTER} now; "
            "put it back, or run the study again."
        )
        raise ValueError(msg)
    known = chapters()
    if name not in known:
        msg = (
            f"there is no chapter {name!r}; the chapters are {', '.join(sorted(known))}."
            f"{hint(str(name), known)}"
        )
        raise ValueError(msg)
    return known[name]


def package(folder: Path, name: str) -> None:
    """See to a package of that name whose modules are the files of a folder."""
    if name not in sys.modules:
        made = ModuleType(name, f"The modules of {folder.name}.")
        made.__path__ = [str(folder)]
        made.__package__ = name
        sys.modules[name] = made


def chapter_module(folder: Path) -> ModuleType:
    """The module of a folder's ``chapter.py``, loaded once a state of the folder's Python files."""
    state = hashlib.sha256(str(folder.absolute()).encode(errors="surrogateescape"))
    for path in sorted(folder.glob("*.py")):
        state.update(path.name.encode() + path.read_bytes())
    name = f"softlab_chapter_{state.hexdigest()[:12]}"
    package(folder, name)
    importlib.invalidate_caches()
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        return importlib.import_module(f"{name}.{Path(CHAPTER).stem}")
    finally:
        sys.dont_write_bytecode = written
