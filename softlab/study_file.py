"""A study file, anywhere on disk: Python that defines a Study or more at its top level.

A worker loads the same file under the same name, and what the file defines can be sent by name.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def load(file: Path | str) -> ModuleType:
    """The module of ``file``, which may import its neighbours; loaded once a state of the file.

    Its name holds a digest of path and text, so that nobody mistakes another state for this one.

    Raises ``ValueError`` for a file that is not there, is no Python file, or raises as it is read.
    """
    file = Path(file)
    if not file.is_file():
        msg = f"there is no file {file}. Give the path of a Python file that defines a Study."
        raise ValueError(msg)
    state = hashlib.sha256(str(file.absolute()).encode() + file.read_bytes()).hexdigest()[:8]
    name = f"softlab_study_{file.stem}_{state}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file.absolute())
    if spec is None or spec.loader is None:
        msg = f"{file} is not a Python file; its name must end in .py."
        raise ValueError(msg)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    sys.path.insert(0, str(file.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        msg = f"{file} cannot be loaded: {type(error).__name__}: {error}"
        raise ValueError(msg) from error
    finally:
        sys.path.pop(0)
    return module
