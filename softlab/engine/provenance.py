"""Where numbers come from: the code, the libraries, the machine."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import json
import os
import platform
import re
import subprocess
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from softlab.engine import sources
from softlab.engine.identity import MAIN, UnstableError, identity
from softlab.extras import DISTRIBUTION
from softlab.validation import is_integer

ENVIRONMENT = (
    *("ATEN_CPU_CAPABILITY", "MKL_CBWR", "MKL_DEBUG_CPU_TYPE", "MKL_ENABLE_INSTRUCTIONS"),
    *("OPENBLAS_CORETYPE", "DNNL_MAX_CPU_ISA", "ONEDNN_MAX_CPU_ISA", "DNNL_DEFAULT_FPMATH_MODE"),
    *("ONEDNN_DEFAULT_FPMATH_MODE", "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE"),
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)
"""Variables that libraries of linear algebra choose their arithmetic by."""
MOST = 8
"""Threads, or worker processes, for each processor of the machine, at most."""


class Code(NamedTuple):
    """The code and the data that decide the numbers of a study.

    ``parts``: the state of each by kind and name, as "module helper" or "package pandas"; "measure"
    is the function itself with what it captured. ``unsure`` says why rows cannot be known again,
    and is empty where they can.
    """

    parts: dict[str, str]
    unsure: str

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that change when any part does."""
        words = json.dumps(self.parts, sort_keys=True)
        return hashlib.sha256(words.encode()).hexdigest()[:16]


def code(
    measure: object,
    closure: sources.Closure | None = None,
    modules: Iterable[str] = (),
    inputs: Sequence[Path | str] = (),
    folder: Path = Path(),
) -> Code:
    """The code of a measure, of a study's file and further ``modules``, and the ``inputs``.

    ``measure`` may be a tuple of functions, one that measures and a set-up. ``closure`` is
    that of the file, and gains what the others are made of; ``inputs`` are named from ``folder``.
    Raises ``ValueError`` for an input that cannot be read.
    """
    closure = closure or sources.Closure(running=True)
    parts, unsure, needed = {}, "", {*modules}
    try:
        digits, own = identity(measure)
        parts["measure"] = digits[:16]
        needed |= own
    except UnstableError as error:
        unsure = f"the measure holds {error}"
    closure.modules(needed)
    if lost := sorted(closure.lost & needed):
        unsure = unsure or f"the code of {', '.join(lost)} is in no file"
    if unsure:
        parts["measure"] = uuid.uuid4().hex[:16]
    states = closure.parts() | data(inputs, folder)
    return Code({"softlab": sources.package()} | states | parts, unsure)


def data(inputs: Iterable[Path | str], folder: Path) -> dict[str, str]:
    """The states of files or folders; ``ValueError`` for one that cannot be read."""
    found = {}
    for name in map(str, inputs):
        try:
            found[f"input {name}"] = sources.content(folder / name)
        except OSError as error:
            msg = f"the input {name!r} cannot be read ({error}). Correct Study.inputs."
            raise ValueError(msg) from None
    return found


def here(parts: Mapping[str, str], closure: sources.Closure, folder: Path) -> dict[str, str]:
    """The states that the same parts have in this process; arguments as of ``code``."""
    if any(name.startswith("file ") and name not in closure.files for name in parts):
        closure.modules(MAIN)
    closure.modules(name[7:] for name in parts if name.startswith("module "))
    found = {"softlab": sources.package(), "measure": parts["measure"]} | closure.parts()
    found |= data([name[6:] for name in parts if name.startswith("input ")], folder)
    return {name: found.get(name, "not there") for name in parts}


def versions() -> dict[str, str]:
    """Versions of Python, softlab and the libraries that its numbers pass through."""
    return {
        "python": platform.python_version(),
        "softlab": sources.version(DISTRIBUTION),
    } | libraries()


def libraries() -> dict[str, str]:
    """The versions of the libraries that this process computes with, their builds included."""
    found = (importlib.import_module(name) for name in ("torch", "numpy", "scipy"))
    return {module.__name__: str(module.__version__) for module in found}


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
        "arithmetic": arithmetic(),
        "python": platform.python_version(),
        **libraries(),
    }


def arithmetic() -> str:
    """The flags of torch, and the variables of the environment, that numbers depend on."""
    found = []
    for name, flag in FLAGS.items():
        try:
            found.append(f"{name}={flag()}")
        except (RuntimeError, AttributeError):  # set both in torch's old way and in its new one
            found.append(f"{name}=mixed")
    found += [f"{name}={os.environ[name]}" for name in ENVIRONMENT if name in os.environ]
    return " ".join(found)


_CUDA, _CUDNN = torch.backends.cuda, torch.backends.cudnn
_MKLDNN: Any = torch.backends.mkldnn
FLAGS: dict[str, Callable[[], object]] = {
    "default_dtype": torch.get_default_dtype,
    "default_device": torch.get_default_device,
    "matmul_precision": torch.get_float32_matmul_precision,
    "flush_denormal": lambda: not (torch.full((1,), 1e-40, device="cpu") * 1).item(),
    "deterministic": torch.are_deterministic_algorithms_enabled,
    "grad": torch.is_grad_enabled,
    "inference": torch.is_inference_mode_enabled,
    "autocast": lambda: torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"),
    "cpu": torch.backends.cpu.get_cpu_capability,
    "mkldnn": lambda: _MKLDNN.enabled,
    "mkldnn_matmul": lambda: _rounding(_MKLDNN.matmul),
    "cuda_matmul": lambda: _rounding(_CUDA.matmul),
    "cuda_fp16_sums": lambda: _CUDA.matmul.allow_fp16_reduced_precision_reduction,
    "cuda_bf16_sums": lambda: _CUDA.matmul.allow_bf16_reduced_precision_reduction,
    "cuda_fp16_accumulation": lambda: _CUDA.matmul.allow_fp16_accumulation,
    "cuda_autocast": lambda: torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda"),
    "cudnn": lambda: _CUDNN.enabled,
    "cudnn_convolution": lambda: _rounding(getattr(_CUDNN, "conv", _CUDNN)),
    "cudnn_deterministic": lambda: _CUDNN.deterministic,
    "cudnn_benchmark": lambda: _CUDNN.benchmark,
    "flash": _CUDA.flash_sdp_enabled,
    "efficient": _CUDA.mem_efficient_sdp_enabled,
    "math": _CUDA.math_sdp_enabled,
    "cudnn_attention": _CUDA.cudnn_sdp_enabled,
}
"""Each by a short name; ``cpu`` is the instruction set that torch's kernels use."""


def _rounding(part: Any) -> object:
    """How products of float32 are rounded: a flag of older torch, a word of newer ones."""
    word = getattr(part, "fp32_precision", None)
    return part.allow_tf32 if word is None else word.replace("none", "ieee")


def usable(name: str) -> torch.device:
    """The device of that name; ``ValueError`` if no number can be computed and read there."""
    try:
        device = torch.device(name)
        if device.type == "cpu" and device.index:
            raise RuntimeError("the processor is one device, cpu")  # noqa: EM101, TRY301
        device = torch.ones(1, device=device).device  # cuda becomes cuda:0
        torch.ones(1, device=device).add(1).item()
    except Exception as error:
        reason = re.split(r"[.;] |\n", str(error))[0][:120] or type(error).__name__
        msg = f"device {name!r} cannot be used here ({reason}). Use cpu, or a machine that has it."
        raise ValueError(msg) from None
    return device


def sensible(name: str, count: int) -> None:
    """Raise ``ValueError`` for a count of threads or processes that is none, or far too many."""
    processors = os.cpu_count() or 1
    if not is_integer(count) or not 1 <= count <= MOST * processors:
        msg = (
            f"{name} is {count!r}; give an integer of at least 1, and of at most "
            f"{MOST * processors}: this machine has {processors} processors."
        )
        raise ValueError(msg)


def cpu_alone(device: torch.device) -> None:
    """Raise ``ValueError`` for another device, where a study runs on the CPU whatever is asked."""
    if device.type != "cpu":
        msg = (
            f"this study runs on the CPU alone, and its rows would be named after {device}. Run it "
            "with --device cpu."
        )
        raise ValueError(msg)


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Let torch use ``count`` threads inside the block, and NumPy's library no more than torch.

    None leaves those of torch as they are.
    """
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    if count is not None:
        sensible("threads", count)
    with threadpool_limits(count or before):
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
