"""A user's own queries, keys and values, from files, known by what these hold."""

from __future__ import annotations

import hashlib
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softlab import validation
from softlab.core import value
from softlab.hints import hint
from softlab.inputs.case import QKV, delivered
from softlab.inputs.files import SUFFIXES, read
from softlab.validation import Natural, fields, typed

NAMES = {
    **dict.fromkeys(("q", "query", "queries"), "q"),
    **dict.fromkeys(("k", "key", "keys"), "k"),
    **dict.fromkeys(("v", "value", "values"), "v"),
    "key_mask": "key_mask",
}
"""What the tensors of a file may be called."""
ALTERS = {
    *("mask", "attn_mask", "attention_mask", "bias", "attn_bias", "position_bias"),
    *("scale", "causal", "is_causal", "softcap", "sinks"),
}
"""Names of what would make another attention of q, k and v, and is not read."""
DIGITS = 12
"""Letters of a digest in a name."""

FRESH = 5_000_000_000
"""Nanoseconds after which the time of a file tells that it has been written again."""

Layer = Mapping[str, Tensor]
"""The tensors q, k, v of a layer, (samples, heads, tokens, width), and perhaps ``key_mask``."""


@value
class Saved:
    """Queries, keys and values of your own files, each (n, d), (heads, n, d) or (b, heads, n, d).

    ``Saved("qkv.pt")(seed)`` is its case number ``seed``, 0 <= seed < ``samples``; the cases of
    all samples and heads are counted with the heads fastest. With ``head`` they are the samples of
    that head alone.

    A file is a .pt (tensors only), .npz or .safetensors with tensors ``q``, ``k`` and ``v``; a .npy
    or .pt may hold the three stacked, (3, ..., n, d). Keys may have a length of their own, values a
    width of their own, and fewer heads that divide those of q serve several of them in turn. A
    boolean ``key_mask``, (l,) or (b, l), deletes the keys where it is False; a warning says what
    else would change the attention, such as a ``scale``, and is not read. A folder holds such
    files, one a layer, in folders of any depth; three files q, k and v are a layer, too. ``layer``
    is one of ``layers``, the names of the files.

    ``content`` is a digest of the numbers, and is found unless it is given. It is part of the name,
    so that changed data are another case of a study; two inputs are equal where their numbers are,
    wherever the files lie.

    Raises ``ValueError`` for what cannot be read, lacks a tensor, or holds other shapes, integers,
    NaN or inf; for a layer or head that is not there; for a seed beyond the samples; and where the
    files have changed since ``content`` was found.
    """

    file: str | Path = field(compare=False)
    layer: str = field(default="", compare=False)
    head: Natural | None = field(default=None, compare=False)
    content: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.file, Path):
            object.__setattr__(self, "file", str(self.file))
        fields(self)
        found = self._content()
        if self.content and self.content != found:
            raise ValueError(self._changed(found))
        object.__setattr__(self, "content", found)

    @property
    def name(self) -> str:
        """What tables call it: the file without its ending, the layer, the head."""
        path = Path(self.file)
        words = [str(path.with_suffix("") if path.suffix in SUFFIXES else path), self.layer]
        if self.head is not None:
            words.append(f"head{self.head}")
        return ".".join(filter(None, words))

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers of a folder; of a file its own."""
        return tuple(self._read())

    @property
    def n(self) -> int:
        """The number of queries, the least of them where layers differ."""
        return min(layer["q"].shape[-2] for layer in self._chosen().values())

    @property
    def heads(self) -> int:
        """The number of heads, of all layers."""
        return sum(layer["q"].shape[1] for layer in self._chosen().values())

    @property
    def samples(self) -> int:
        """The number of cases, and of seeds."""
        return sum(layer["q"].shape[:2].numel() for layer in self._chosen().values())

    def parts(self) -> list[Saved]:
        """The same data head by head: an input for each head of each layer."""
        several = len(self.layers) > 1
        return [
            Saved(self.file, name if several else self.layer, head)
            for name, layer in self._chosen(whole=True).items()
            for head in range(layer["q"].shape[1])
            if self.head is None or head == self.head
        ]

    @typed
    def __call__(
        self,
        seed: int = 0,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> QKV:
        """Read case ``seed``."""
        if not 0 <= seed < self.samples:
            msg = (
                f"{self!r} holds {self.samples} cases, so its seeds are 0 to {self.samples - 1}; "
                f"got {seed}. Save more samples."
            )
            raise ValueError(msg)
        if (found := self._content()) != self.content:
            raise ValueError(self._changed(found))
        for layer in self._chosen().values():
            heads = layer["q"].shape[1]
            here = layer["q"].shape[:2].numel()
            if seed < here:
                return _case(layer, *divmod(seed, heads), dtype, device)
            seed -= here
        raise AssertionError

    @cached_property
    def _path(self) -> Path:
        """Absolute, for processes that start in another folder."""
        return Path(self.file).absolute()

    def _read(self) -> Mapping[str, Layer]:
        return _layers(self._path, str(self.file), _stamp(self._path))

    def _chosen(self, *, whole: bool = False) -> dict[str, Layer]:
        """The layers that are meant, and of these the head, unless all are wanted."""
        found = self._read()
        if self.layer and self.layer not in found:
            msg = (
                f"{self.file} has no layer {self.layer!r}; it has {', '.join(found)}."
                f"{hint(self.layer, found)}"
            )
            raise ValueError(msg)
        chosen = {self.layer: found[self.layer]} if self.layer else dict(found)
        if self.head is None or whole:
            return chosen
        return {name: _head(layer, self.head, str(self.file)) for name, layer in chosen.items()}

    def _content(self) -> str:
        return _digest(self._path, str(self.file), self.layer, self.head, _stamp(self._path))

    def _changed(self, found: str) -> str:
        return (
            f"{self.name} has changed: its content is {found}, and was {self.content}. Put the old "
            "files back, or make the input anew without content."
        )


@lru_cache(maxsize=1024)
def _digest(path: Path, shown: str, layer: str, head: int | None, stamp: object) -> str:  # noqa: ARG001
    """The digest of the cases that are meant; ``stamp`` is that of the files as they are."""
    probe = object.__new__(Saved)
    for name, held in (("file", shown), ("layer", layer), ("head", head), ("_path", path)):
        object.__setattr__(probe, name, held)
    found = hashlib.sha256()
    for one in probe._chosen().values():
        for name, x in one.items():
            found.update(f"{name} {x.dtype} {tuple(x.shape)} ".encode())
            found.update(x.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:DIGITS]


def _head(layer: Layer, head: int, shown: str) -> Layer:
    heads = layer["q"].shape[1]
    if head >= heads:
        msg = f"{shown} has {heads} heads, 0 to {heads - 1}; got head {head}."
        raise ValueError(msg)
    shared = heads // layer["k"].shape[1]
    return {
        name: x if name == "key_mask" else x[:, [head if name == "q" else head // shared]]
        for name, x in layer.items()
    }


def _case(
    layer: Layer, sample: int, head: int, dtype: torch.dtype, device: torch.device | str
) -> QKV:
    shared = layer["q"].shape[1] // layer["k"].shape[1]
    q, k, v = layer["q"][sample, head], *(layer[x][sample, head // shared] for x in "kv")
    if "key_mask" in layer:
        kept = layer["key_mask"][sample]
        k, v = k[kept], v[kept]
    return delivered(q, k, v, dtype, device)


def _stamp(path: Path) -> tuple[tuple[str, int, int, str], ...]:
    """What tells that files have been written again: their names, sizes, times.

    A clock has steps: of a file of the last seconds the bytes tell.
    """
    found = []
    for file in [path] if path.is_file() else _files(path):
        state = file.stat()
        fresh = time.time_ns() - state.st_mtime_ns < FRESH
        content = hashlib.sha256(file.read_bytes()).hexdigest() if fresh else ""
        found.append((str(file), state.st_size, state.st_mtime_ns, content))
    return tuple(found)


def _files(folder: Path) -> list[Path]:
    """The files with tensors of a folder, as people count: layer2 before layer10."""
    found = [x for x in folder.rglob("*") if x.suffix in SUFFIXES and x.is_file()]
    inner = {x: x.relative_to(folder).parts for x in found}
    hidden = [x for x in found if any(part.startswith(".") for part in inner[x])]
    return sorted({*found} - {*hidden}, key=lambda x: [_counted(part) for part in inner[x]])


def _counted(word: str) -> list[tuple[int, str]]:
    return [(int(x), "") if x.isdecimal() else (-1, x) for x in re.split(r"(\d+)", word) if x]


@lru_cache(maxsize=2)
def _layers(path: Path, shown: str, stamp: object) -> Mapping[str, Layer]:  # noqa: ARG001
    """The layers of a file or folder, by name; ``stamp`` is that of the files as they are."""
    if not path.exists():
        msg = (
            f"there is no file or folder {shown}; give one with tensors q, k and v, that ends in "
            f"{', '.join(SUFFIXES)}."
        )
        raise ValueError(msg)
    if path.is_file():
        return {path.stem: _layer(read(path, shown), shown)}
    found: dict[str, Layer] = {}
    for name, held, where in _held(path, Path(shown)):
        if name in found:
            msg = f"{shown} has two files for layer {name!r}; keep one of them."
            raise ValueError(msg)
        found[name] = _layer(held, where)
    if not found:
        msg = (
            f"the folder {shown} holds no tensors; put files with q, k and v there, that end in "
            f"{', '.join(SUFFIXES)}."
        )
        raise ValueError(msg)
    return found


def _held(folder: Path, shown: Path) -> Iterator[tuple[str, Any, str]]:
    """Name, content and place of each layer: a file, or the three files q, k and v of a folder."""
    groups: dict[Path, list[Path]] = {}
    for file in _files(folder):
        groups.setdefault(file.parent, []).append(file)
    for parent, files in groups.items():
        parts = {x.stem.lower(): x for x in files if x.stem.lower() in NAMES}
        inner = ".".join(parent.relative_to(folder).parts)
        if parts:
            held = {name: read(x, shown / x.relative_to(folder)) for name, x in parts.items()}
            yield inner or folder.name, held, str(shown / parent.relative_to(folder))
        for file in files:
            if file not in parts.values():
                where = shown / file.relative_to(folder)
                yield ".".join(filter(None, (inner, file.stem))), read(file, where), str(where)


def _layer(held: Any, where: str) -> Layer:
    """The tensors of a layer, checked, (samples, heads, tokens, width)."""
    named = _named(held, where)
    for name in "qkv":
        _numbers(named[name], f"{name} in {where}")
    q, k, v = (named[name].detach() for name in "qkv")
    if not q.ndim == k.ndim == v.ndim or q.ndim > 4:
        shapes = ", ".join(f"{x} {tuple(named[x].shape)}" for x in "qkv")
        msg = (
            f"{where} holds {shapes}; give each as (tokens, width), (heads, tokens, width) or "
            "(samples, heads, tokens, width)."
        )
        raise ValueError(msg)
    q, k, v = (x.reshape(*[1] * (4 - x.ndim), *x.shape) for x in (q, k, v))
    _fitting(q, k, v, where)
    layer = {"q": q, "k": k, "v": v}
    keep = torch.ones(len(k), k.shape[-2], dtype=torch.bool)
    if (mask := named.get("key_mask")) is not None:
        try:
            keep = validation.admit_mask(mask, k[:, 0])
        except (TypeError, ValueError) as error:
            msg = f"{where}: {error}"
            raise ValueError(msg) from error
        layer["key_mask"] = keep
    for name, x in layer.items():
        if name != "key_mask":
            seen = x if name == "q" else torch.where(keep[:, None, :, None], x, 0)
            validation.finite(f"{name} in {where}", seen)
    return layer


def _named(held: Any, where: str) -> dict[str, Tensor]:
    """The tensors by the names q, k, v and key_mask."""
    if isinstance(held, Tensor):
        if held.ndim < 3 or len(held) != 3:
            msg = (
                f"{where} holds one tensor of shape {tuple(held.shape)}; stack q, k and v, "
                "(3, tokens, width) or (3, heads, tokens, width), or save them by name."
            )
            raise ValueError(msg)
        held = list(held)
    if isinstance(held, list | tuple):
        if len(held) != 3:
            msg = f"{where} holds a list of {len(held)}; give q, k and v, in this order."
            raise ValueError(msg)
        held = dict(zip("qkv", held, strict=True))
    if not isinstance(held, dict):
        msg = f"{where} holds {type(held).__name__}; save tensors q, k and v."
        raise ValueError(msg)  # noqa: TRY004, as for all that a file may hold
    found: dict[str, Tensor] = {}
    for name, x in held.items():
        if (known := NAMES.get(str(name).lower())) is not None:
            if known in found:
                msg = f"{where} holds {known} twice, under two names; keep one of them."
                raise ValueError(msg)
            found[known] = x
    if unread := [str(name) for name in held if str(name).lower() in ALTERS]:
        msg = (
            f"{where} holds {' and '.join(unread)}, which is not read: measured is attention of q, "
            "k and v, unmasked, at the scale 1 / sqrt(d). Put another scale into q, and hide keys "
            "from all queries by a boolean key_mask, (l,) or (b, l), False where hidden."
        )
        warnings.warn(msg, stacklevel=2)
    if missing := [name for name in "qkv" if name not in found]:
        there = ", ".join(map(str, [*held][:8])) or "nothing"
        msg = (
            f"{where} has no {' and no '.join(missing)}; it holds {there}. Save the three tensors "
            "by the names q, k and v."
        )
        raise ValueError(msg)
    return found


def _numbers(x: object, name: str) -> None:
    if not isinstance(x, Tensor):
        msg = f"{name} is a {type(x).__name__}; save a tensor."
        raise ValueError(msg)  # noqa: TRY004
    if not x.is_floating_point() or x.dtype not in validation.FLOATING:
        msg = (
            f"{name} holds {str(x.dtype).removeprefix('torch.')}, and floating-point numbers of 16 "
            "bits or more are needed: save what reaches the attention, or convert it by .float()."
        )
        raise ValueError(msg)
    if x.is_nested or x.layout != torch.strided:
        msg = f"{name} is ragged or sparse; save a dense tensor, .to_dense() or padded."
        raise ValueError(msg)
    if x.ndim < 2 or not x.numel():
        what = "is empty" if x.ndim > 1 else "has too few axes"
        msg = f"{name} {what}, shape {tuple(x.shape)}; give (tokens, width), each at least 1."
        raise ValueError(msg)


def _fitting(q: Tensor, k: Tensor, v: Tensor, where: str) -> None:
    """Raise ``ValueError`` unless these are the tensors of an attention."""
    shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in zip("qkv", (q, k, v), strict=True))
    if k.shape[-2] != v.shape[-2]:
        wrong = f"{k.shape[-2]} keys and {v.shape[-2]} values; give a value for every key"
    elif q.shape[-1] != k.shape[-1]:
        wrong = (
            f"queries of width {q.shape[-1]} and keys of width {k.shape[-1]}; give them one width"
        )
    elif not len(q) == len(k) == len(v):
        wrong = f"{len(q)}, {len(k)} and {len(v)} samples; give as many of each"
    elif k.shape[1] != v.shape[1] or q.shape[1] % k.shape[1]:
        wrong = (
            f"{q.shape[1]}, {k.shape[1]} and {v.shape[1]} heads; give as many of each, or a "
            "divisor of the query heads for keys and values"
        )
    else:
        return
    msg = f"{where} has {wrong} ({shapes})."
    raise ValueError(msg)
