"""``softlab info``: what this installation computes with, and what it has fetched."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from typing import Annotated, Any

import typer

from softlab.cli.console import say, say_json

EXAMPLES = "Examples:  softlab info   |   softlab info --json > info.json"
LIBRARIES = (
    *("torch", "numpy", "scipy", "pandas", "matplotlib", "safetensors", "typer", "rich"),
    *("typst", "distributed", "hypothesis", "transformers", "tokenizers", "onnx", "gguf"),
)
"""Whose versions are said: what softlab needs, then what its extras bring."""


def info(
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False,
) -> None:
    """Say what there is: versions, devices, BLAS, threads, what is fetched and what cannot be run.

    Put it beside a question or a fault that you report. Exit codes: 0 done, 2 it could not be done.
    """
    found = _found()
    if as_json:
        say_json(found)
        return
    for title, held in found.items():
        if isinstance(held, dict):
            say(f"{title}:")
            for name, one in held.items():
                say(f"  {name}: {_words(one)}")
        else:
            say(f"{title}: {_words(held)}")


def _found() -> dict[str, Any]:
    """All that is said, by title."""
    import torch
    from threadpoolctl import threadpool_info

    from softlab import __version__, inputs, study_folders
    from softlab.engine import locks, provenance

    devices = {"cpu": provenance.device_name(torch.device("cpu"))} | {
        f"cuda:{i}": torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())
    }
    if torch.backends.mps.is_available():
        devices["mps"] = platform.processor() or platform.machine()
    pools = {
        f"{pool['user_api']} {i}": " ".join(
            str(pool[x])
            for x in ("internal_api", "version", "architecture", "threading_layer")
            if pool.get(x)
        )
        + f", {pool['num_threads']} threads"
        for i, pool in enumerate(threadpool_info())
    }
    studies = study_folders.built_in()
    return {
        "softlab": __version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "devices": devices,
        "processors": os.cpu_count(),
        "threads": {"torch": torch.get_num_threads(), "between": torch.get_num_interop_threads()},
        "torch's own": re.findall(r"(?:BLAS|LAPACK)_INFO=\w+", torch.__config__.show()),
        "pools": pools,
        "arithmetic": provenance.arithmetic(),
        "studies": {
            "folder": next(iter(studies.values())).parent if studies else None,
            "names": list(studies),
            "can run here": not (why := locks.missing()),
            **({"why not": why} if why else {}),
        },
        "recorded": inputs.recorded_names(),
        "fetched": _fetched(),
    }


def _fetched() -> dict[str, Any]:
    """The cache's folder, and of each thing to fetch where it is, or None."""
    from softlab.datasets import download, fashion

    places: dict[str, Any] = {"cache": download.cache_folder()}
    for name in download.CATALOGUE:
        try:
            places[name] = download.folder(name)
        except FileNotFoundError:
            places[name] = None
    images = fashion.folder()
    return places | {fashion.NAME: images if images.is_dir() else None}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _words(held: Any) -> str:
    if isinstance(held, list | tuple):
        return ", ".join(map(str, held)) or "none"
    if held is None or isinstance(held, bool):
        return "yes" if held else "no"
    return str(held)
