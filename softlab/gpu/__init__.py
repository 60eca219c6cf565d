"""Triton kernels for CUDA tensors, optional: the extra ``gpu``, on Linux.

What a kernel computes has a plain form elsewhere, which is the truth and serves wherever no kernel
does: on a CPU, without Triton, in float64, beyond the widths below, in transforms of ``torch.func``
and under ``torch.compile``. A kernel that Triton cannot compile or the GPU cannot hold is given up
for the rest of the process with a warning, and the plain form takes its place.

With ``SOFTLAB_KERNELS=interpreted`` in the environment, Triton's interpreter runs the kernels on
CPU tensors: slow, for tests and laws. Where Triton is imported earlier, by torch perhaps, set its
own ``TRITON_INTERPRET=1`` too.

=====================  ==========================================================================
``gaussian_sum``       sum_j exp(-|q_i - k_j|^2 / (2 s^2)) v_j, any n and l, widths to 256
``newton_raphson``     the steps X <- 2 X - X A X of many matrices in one launch, m to 64
``landmark_inverse``   the kernel of landmarks and its inverse by such steps, in one launch, m to
                       128 without a gradient and to 64 with one
=====================  ==========================================================================
"""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from softlab.core import transformed
from softlab.hints import first_line

WIDEST = 256
"""Widths of points and values that a program holds."""
LARGEST = 64
"""Rows of a matrix that a program inverts, forward and backward."""
LARGEST_LANDMARKS = 128
"""Landmarks whose kernel a program forms and inverts, without a gradient."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MODULES = ("gaussian_sum", "newton_raphson")

T = TypeVar("T")
_GIVEN_UP: set[str] = set()


def serves(name: str, *tensors: Tensor, dtypes: tuple[torch.dtype, ...] = DTYPES) -> bool:
    """Whether the kernel of this name takes these tensors: device, dtype, and where it is called.

    ``name``: of a module of this package. Sizes are the caller's to compare.
    """
    first = tensors[0]
    if not first.is_cuda and not (first.device.type == "cpu" and interpreted()):
        return False
    if name in _GIVEN_UP or any(x.dtype not in dtypes or x.numel() == 0 for x in tensors):
        return False
    if len({x.dtype for x in tensors}) > 1 or transformed() or torch.compiler.is_compiling():
        return False
    return (not first.is_cuda or _capable(first.device.index or 0)) and _imports()


def interpreted() -> bool:
    """Whether Triton's interpreter is asked for, which takes CPU tensors."""
    return os.environ.get("SOFTLAB_KERNELS") == "interpreted"


def kernel(module: str, name: str) -> Callable[..., Any]:
    """The function of that name in a module of this package, which imports Triton."""
    call: Callable[..., Any] = getattr(importlib.import_module(f"softlab.gpu.{module}"), name)
    return call


def attempt(module: str, plain: Callable[[], T], call: Callable[..., T], *args: Any) -> T:
    """``call(*args)``, or ``plain()`` where Triton gives up; the module is not asked again then."""
    from triton.errors import TritonError  # where it imports alone

    try:
        return call(*args)
    except TritonError as error:
        _GIVEN_UP.add(module)
        why = first_line(error)
        msg = f"softlab goes on without its kernels of {module}, with torch alone: {why}"
        warnings.warn(msg, stacklevel=3)
        return plain()


@functools.cache
def _imports() -> bool:
    """Whether Triton does; a broken installation counts as none, with a warning."""
    if interpreted():
        os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported
    try:
        importlib.import_module("triton")
        for module in MODULES:
            importlib.import_module(f"softlab.gpu.{module}")
    except ModuleNotFoundError as error:
        if error.name == "triton":
            return False
        _broken(error)
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        _broken(error)
    else:
        return True
    return False


def _broken(error: Exception) -> None:
    msg = f"Triton does not import, so softlab uses torch alone: {type(error).__name__}: {error}"
    warnings.warn(msg, stacklevel=3)


@functools.cache
def _capable(device: int) -> bool:
    """Whether the GPU has matrix units for bfloat16 and TF32: compute capability 8 and newer."""
    return bool(torch.cuda.get_device_capability(device)[0] >= 8)
