"""A user's model and its inputs, as the commands that run one take them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

FACTORY = "package.module:f or path/file.py:f."
INPUT = (
    "The model's input: a tensor, a tuple of positional or a dictionary of keyword arguments, as "
    ".pt (tensors only), .safetensors, .npy or .npz"
)


def model_of(factory: str) -> nn.Module:
    """The model that a factory makes, or that stands under its name."""
    from torch import nn

    from softlab.laws.adapters import found

    named = found(factory)
    made = named
    if callable(named) and not isinstance(named, nn.Module):
        try:
            made = named()
        except Exception as error:  # of a user's code
            msg = (
                f"{factory} raised {type(error).__name__}: {error}. It is called without "
                "arguments, and must return the model."
            )
            raise ValueError(msg) from error
    if not isinstance(made, nn.Module):
        msg = (
            f"{factory} gives a {type(made).__name__}, and a torch.nn.Module is needed. Return the "
            "model itself."
        )
        raise TypeError(msg)
    return made


def inputs_of(
    files: Sequence[Path], device: Any
) -> Iterator[tuple[Path, tuple[tuple[Any, ...], dict[str, Any]]]]:
    """Positional and keyword arguments of a run, by file; a folder is all its files."""
    from softlab.inputs.files import SUFFIXES

    for file in files:
        if not file.is_dir():
            yield file, _arguments(file, device)
            continue
        inner = sorted(x for x in file.iterdir() if x.suffix in SUFFIXES)
        if not inner:
            msg = (
                f"the folder {file} holds no inputs; put files there that end in "
                f"{', '.join(SUFFIXES)}."
            )
            raise ValueError(msg)
        for one in inner:
            yield one, _arguments(one, device)


def _arguments(file: Path, device: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    from softlab.inputs.files import read

    held = read(file)
    if isinstance(held, dict):
        return (), {str(name): _tensor(x, name, file, device) for name, x in held.items()}
    if isinstance(held, tuple | list):
        return tuple(_tensor(x, i, file, device) for i, x in enumerate(held)), {}
    return (_tensor(held, "", file, device),), {}


def _tensor(x: Any, name: object, file: Path, device: Any) -> Any:
    """A tensor on the device; numbers, words and None as they are."""
    import torch

    if isinstance(x, torch.Tensor):
        return x.to(device)
    if x is None or isinstance(x, bool | int | float | str):
        if name == "":
            msg = f"{file} holds {x!r}; save a tensor, a tuple, or a dictionary of arguments."
            raise ValueError(msg)
        return x
    if isinstance(x, list | tuple | dict):
        inner = x.values() if isinstance(x, dict) else x
        parts = [_tensor(one, name or "its part", file, device) for one in inner]
        return dict(zip(x, parts, strict=True)) if isinstance(x, dict) else type(x)(parts)
    msg = f"{file}: argument {name} is a {type(x).__name__}; save tensors."
    raise TypeError(msg)


def tried(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], file: Path) -> Any:
    """What the model gives; ``ValueError``, with what the file holds, unless it takes its input."""
    import torch

    try:
        with torch.no_grad():
            return model(*args, **kwargs)
    except Exception as error:  # of anybody's model
        given = ", ".join([
            *(str(tuple(getattr(x, "shape", ()))) for x in args),
            *(f"{name} {tuple(getattr(x, 'shape', ()))}" for name, x in kwargs.items()),
        ])  # fmt: skip
        msg = (
            f"the model raised {type(error).__name__}: {error}{_where(model, error)}. {file} "
            f"gives it {given}. Save what it takes: a tensor, a tuple, or a dictionary of "
            "arguments, such as input_ids."
        )
        raise ValueError(msg) from error


def _where(model: nn.Module, error: Exception) -> str:
    """In which layer of the model it was raised, with what that layer says of itself."""
    names = {id(module): name for name, module in model.named_modules() if name}
    inner, at = None, error.__traceback__
    while at is not None:
        one = at.tb_frame.f_locals.get("self")
        inner = one if id(one) in names else inner
        at = at.tb_next
    if inner is None:
        return ""
    told = " ".join(repr(inner).split())
    return f", in layer {names[id(inner)]}, {told[:120]}{'...' if len(told) > 120 else ''}"
