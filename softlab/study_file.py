"""A study file, anywhere on disk: Python that defines a Study or more at its top level."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from softlab.study import Study


def load(file: Path | str) -> ModuleType:
    """The module of ``file``, which may import its neighbours.

    Raises ``ValueError`` for a file that is not there, is no Python file, or raises as it is read.
    """
    file = Path(file)
    if not file.is_file():
        msg = f"there is no file {file}. Give the path of a Python file that defines a Study."
        raise ValueError(msg)
    spec = importlib.util.spec_from_file_location(f"softlab_study_{file.stem}", file)
    if spec is None or spec.loader is None:
        msg = f"{file} is not a Python file; its name must end in .py."
        raise ValueError(msg)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    sys.path.insert(0, str(file.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        msg = f"{file} cannot be loaded: {type(error).__name__}: {error}"
        raise ValueError(msg) from error
    finally:
        sys.path.pop(0)
    return module


def studies(file: Path | str) -> list[Study]:
    """The studies at the top level of ``file``; ``ValueError`` if there are none."""
    found = {id(x): x for x in vars(load(file)).values() if isinstance(x, Study)}
    if not found:
        msg = f"{file} defines no softlab.study.Study at its top level; add STUDY = Study(...)."
        raise ValueError(msg)
    return list(found.values())
