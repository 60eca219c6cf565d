"""Where numbers come from: the code, the libraries, the machine."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import platform
import subprocess
import uuid
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import torch

from softlab.extras import DISTRIBUTION

PACKAGE = Path(__file__).parent
# These read tables and make none, so a new colour in a figure leaves the rows valid.
PRESENTATION = {"chapters", "cli", "figures.py", "looks.py", "report"}


def source(function: Callable[..., object]) -> Path | None:
    """The file that defines ``function``; None for one typed at a prompt."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    path = Path(code.co_filename) if code else None
    return path if path is not None and path.is_file() else None


def digest(file: Path | None) -> str:
    """Sixteen hexadecimal digits that change when the package or ``file`` changes.

    Without a file there is nothing to compare, and every call returns other digits.
    """
    if file is None:
        return uuid.uuid4().hex[:16]
    return hashlib.sha256(file.read_bytes() + _package()).hexdigest()[:16]


@functools.cache
def _package() -> bytes:
    """A digest of the package's own files: of those that this process runs, if it asks in time."""
    state = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*")):
        inner = path.relative_to(PACKAGE)
        if path.is_file() and {*PRESENTATION, "__pycache__"}.isdisjoint(inner.parts):
            state.update(inner.as_posix().encode())
            state.update(path.read_bytes())
    return state.digest()


def versions() -> dict[str, str]:
    """Versions of Python, softlab and the libraries that its numbers pass through."""
    own = {"python": platform.python_version(), "softlab": _version(DISTRIBUTION)}
    # torch says +cu130 or +cpu of itself, which the metadata of its distribution may leave out.
    return (
        own | {"torch": torch.__version__} | {name: _version(name) for name in ("numpy", "scipy")}
    )


def commit(folder: Path) -> dict[str, str | bool | None]:
    """The git commit of ``folder`` and whether tracked files differ from it; None outside git."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def setting(device: torch.device, dtype: torch.dtype) -> dict[str, str | int | float | bool | None]:
    """What changes the numbers of a case, besides the case and the code."""
    return {
        "device": str(device),
        "device_name": device_name(device),
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def usable(name: str) -> torch.device:
    """The device of that name; ``ValueError`` if nothing can be stored on it."""
    try:
        device = torch.device(name)
        device = torch.zeros(1, device=device).device  # cuda becomes cuda:0
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        msg = f"device {name!r} cannot be used here ({reason}). Use cpu, or a machine that has it."
        raise ValueError(msg) from None
    return device


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Let torch use ``count`` threads inside the block; None leaves them as they are."""
    if count is not None and count < 1:
        msg = f"threads is {count}; give an integer of at least 1."
        raise ValueError(msg)
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@functools.cache
def device_name(device: torch.device) -> str:
    """The name that the maker gave the device."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
