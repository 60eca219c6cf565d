"""What methods are compared on: recorded heads, heads in files, drawn inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softlab import inputs
from softlab.hints import hint
from softlab.inputs import QKV, Input, Recorded, Tied, recorded_names

SUFFIXES = (".pt", ".pth", ".safetensors", ".npz")
SEEDS = 4
"""Draws of an input that is drawn."""
SHAPES = "(tokens, width), (heads, tokens, width) or (samples, heads, tokens, width)"


@dataclass(frozen=True)
class Head:
    """One attention head, the unit that a median is over, with the samples that it was seen on.

    ``draw(sample)`` gives q (n, d), k (l, d), v (l, e) in float32. ``real``: recorded and not
    drawn.
    """

    name: str
    draw: Callable[[int], QKV]
    samples: int
    real: bool

    def digest(self, sample: int) -> str:
        """SHA-256 of the numbers of a sample, which stands for them in a result file."""
        state = hashlib.sha256()
        for x in self.draw(sample):
            state.update(repr(tuple(x.shape)).encode() + x.contiguous().numpy().tobytes())
        return state.hexdigest()


def heads(words: Iterable[str]) -> list[Head]:
    """The heads that words name.

    Args:
        words: each ``"recorded"`` (all that the package holds), one recorded name, a drawn input
            as ``"Normal(512, 32)"``, a file of q, k and v, or a folder of such files.

    Raises:
        ValueError: a word names nothing, or two name the same head.
    """
    found_: dict[str, Head] = {}
    for word in words:
        for head in _named(word):
            if head.name in found_:
                msg = f"the input {head.name!r} is named twice; name it once."
                raise ValueError(msg)
            found_[head.name] = head
    if not found_:
        msg = "no input is named; give recorded, a file or a folder."
        raise ValueError(msg)
    return list(found_.values())


def _named(word: str) -> list[Head]:
    if word == "recorded":
        return [_of_input(Recorded(name), name, real=True) for name in recorded_names()]
    if word in recorded_names():
        return [_of_input(Recorded(word), word, real=True)]
    path = Path(word)
    if path.is_dir():
        files = [x for x in sorted(path.iterdir()) if x.suffix in SUFFIXES]
        if not files:
            msg = f"the folder {path} holds no file that ends in {', '.join(SUFFIXES)}."
            raise ValueError(msg)
        return [head for file in files for head in from_file(file)]
    if path.is_file():
        return from_file(path)
    if "(" in word:
        return [_of_input(_drawn(word), word, real=False)]
    known = ["recorded", *recorded_names()]
    msg = (
        f"{word!r} is no file, no folder and no input. Give one of {', '.join(known)}, or a drawn "
        f"input, as 'Normal(512, 32)'.{hint(word, known)}"
    )
    raise ValueError(msg)


def _of_input(held: Input, name: str, *, real: bool) -> Head:
    return Head(name, held, getattr(held, "samples", SEEDS), real)


def _drawn(word: str) -> Input:
    from softlab.compare.subjects import evaluated

    classes = {x: y for x, y in vars(inputs).items() if isinstance(y, type)}
    try:
        held: Any = evaluated(word, classes)
    except (SyntaxError, ValueError, TypeError) as error:
        msg = f"{word!r} is no input: {error}."
        raise ValueError(msg) from None
    if not isinstance(held, Input):
        msg = f"{word!r} is a {type(held).__name__}, and no input of softlab.inputs."
        raise ValueError(msg)  # noqa: TRY004
    return held


def tied(head: Head) -> Head:
    """The head with its queries for keys, as a layer with one projection would have it."""

    def draw(sample: int) -> QKV:
        return Tied(head.draw)(sample)  # type: ignore[arg-type]

    return Head(head.name, draw, head.samples, head.real)


def from_file(path: Path) -> list[Head]:
    """The heads of a file that holds q, k and v.

    Args:
        path: ``.pt`` (a dictionary of tensors), ``.safetensors`` or ``.npz``, with the names q, k
            and v. Each has the shape (tokens, width), (heads, tokens, width) or (samples, heads,
            tokens, width); keys and values may have fewer heads, which queries then share.

    Raises:
        ValueError: it cannot be read, lacks one of the three, or their shapes or numbers will not
            do.
    """
    held = _read(path)
    lacking = [name for name in "qkv" if name not in held]
    if lacking:
        msg = f"{path} has no {' and no '.join(lacking)}; it has {', '.join(held) or 'nothing'}."
        raise ValueError(msg)
    q, k, v = (_as_four(path, name, held[name]) for name in "qkv")
    q, k, v = _matched(path, q, k, v)
    names = [path.name] if q.shape[1] == 1 else [f"{path.name} head {i}" for i in range(q.shape[1])]
    return [
        Head(name, _Stored(q[:, i], k[:, i], v[:, i]), len(q), real=True)
        for i, name in enumerate(names)
    ]


@dataclass(frozen=True, eq=False)
class _Stored:
    """Samples of one head: q (samples, n, d) and so on."""

    q: Tensor
    k: Tensor
    v: Tensor

    def __call__(self, sample: int = 0, **_: Any) -> QKV:
        return QKV(self.q[sample], self.k[sample], self.v[sample])


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        if path.suffix not in SUFFIXES:
            msg = f"it ends in {path.suffix or 'nothing'}; give one of {', '.join(SUFFIXES)}"
            raise ValueError(msg)  # noqa: TRY301
        held = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # a file may be anything
        msg = f"{path} cannot be read: {error}."
        raise ValueError(msg) from None
    if not isinstance(held, dict):
        msg = f"{path} holds a {type(held).__name__}; save a dictionary of q, k and v."
        raise ValueError(msg)  # noqa: TRY004
    return held


def _as_four(path: Path, name: str, x: Any) -> Tensor:
    """As (samples, heads, tokens, width), float32."""
    if not isinstance(x, Tensor) or not 2 <= x.ndim <= 4 or 0 in x.shape:
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        msg = f"{name} of {path} is {got}; give {SHAPES}."
        raise ValueError(msg)
    if not x.is_floating_point() or not bool(x.isfinite().all()):
        what = f"of {x.dtype}" if not x.is_floating_point() else "not all finite"
        msg = f"{name} of {path} is {what}; give finite floating-point numbers."
        raise ValueError(msg)
    return x.float().reshape(*(1,) * (4 - x.ndim), *x.shape)


def _matched(path: Path, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """With keys and values repeated to the heads of the queries."""
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    heads_fit = q.shape[1] % k.shape[1] == 0 and k.shape[1] == v.shape[1]
    if not (heads_fit and q.shape[0] == k.shape[0] == v.shape[0]):
        msg = f"{path}: {shapes} differ in samples or heads; give as many of each."
        raise ValueError(msg)
    if q.shape[3] != k.shape[3] or k.shape[2] != v.shape[2]:
        msg = f"{path}: {shapes}; q and k need one width, k and v as many tokens."
        raise ValueError(msg)
    times = q.shape[1] // k.shape[1]
    return q, k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
