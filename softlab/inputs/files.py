"""Tensors of a user's files: .pt, .safetensors, .npy, .npz. No file may run code as it is read."""

from __future__ import annotations

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softlab.hints import first_line
from softlab.inputs.case import QKV

SUFFIXES = (".pt", ".pth", ".safetensors", ".npy", ".npz")
PICKLES = (".pkl", ".pickle", ".joblib", ".dill")


def read(file: Path | str, shown: Path | str = "") -> Any:
    """What a file holds, on the CPU: a tensor, a list or a dictionary of such.

    ``shown``: what messages call it, the file itself unless given.

    Raises ``ValueError`` for a file that is not there, of another kind, damaged, or that holds more
    than tensors, numbers and words: a pickle can run any code, and is never read as one.
    """
    path, shown = Path(file), shown or file
    wrong = ""
    if not path.is_file():
        wrong = "is a folder" if path.is_dir() else "is no file"
    elif path.suffix in PICKLES:
        wrong = f"ends in {path.suffix}: a pickle can run any code, and is not read"
    elif path.suffix not in SUFFIXES:
        wrong = f"ends in {path.suffix}" if path.suffix else "has no ending"
    if wrong:
        msg = f"{shown} {wrong}; give a file that ends in {', '.join(SUFFIXES)}."
        raise ValueError(msg)
    try:
        return _held(path)
    except Exception as error:  # of three libraries, at what any file may hold
        if found := _object(error):
            msg = (
                f"{shown} holds {found}. Objects are not read, for a pickle can run any code: save "
                "tensors, or a dictionary, list or tuple of tensors."
            )
            raise ValueError(msg) from error
        first = first_line(error).partition(". ")[0].rstrip(".")[:160]
        why = "" if isinstance(error, pickle.UnpicklingError) else f" ({first})"
        msg = (
            f"{shown} cannot be read{why}: it is damaged, or no {path.suffix} file. Save it again."
        )
        raise ValueError(msg) from error


def _object(error: Exception) -> str:
    """Which object of Python a file holds, in words; empty where that is not the matter."""
    if "allow_pickle" in str(error):
        return "pickled objects of Python"
    found = re.search(r"(?:GLOBAL|class) ([\w.]*\w)", str(error))
    if isinstance(error, pickle.UnpicklingError) and found:
        return f"an object of {found[1]}"
    return ""


def _held(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if path.suffix in {".npy", ".npz"}:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return _tensor(found)
        with found:
            return {name: _tensor(found[name]) for name in found.files}
    with torch.serialization.safe_globals([QKV]), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of old formats
        return torch.load(path, weights_only=True, map_location="cpu")


def _tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """The array as a tensor; ``TypeError`` for a dtype that torch lacks, such as words."""
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))
