"""Labelled images for training: Fashion-MNIST, a folder for each class, or tensors at hand.

Every batch is a function of its indices and a seed, so that a run can be taken up again anywhere.
"""

from __future__ import annotations

import dataclasses
import gzip
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from softlab import checks
from softlab.inputs import fashion

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")
LEAST = 0.08
"""Share of its area that a random part of an image has at least; usual on ImageNet."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


class Images(Protocol):
    """Labelled images, in batches (b, c, side, side), normalised, with labels (b,)."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, by label."""
        ...

    @property
    def channels(self) -> int:
        """1 or 3."""
        ...

    def __len__(self) -> int:
        """How many there are."""
        ...

    def batch(self, indices: list[int], side: int, seed: int | None) -> tuple[Tensor, Tensor]:
        """Some of them at a size; with a seed, changed at random for training."""
        ...


@dataclass(frozen=True)
class Held:
    """Images held in memory, bytes (n, c, H, W), and their labels (n,).

    In training they are shifted by up to ``shift`` pixels, 4 as is usual on CIFAR, mirrored where
    ``mirror``, and shown in part: a random one of ``zoom``, in (0, 1], to all of the area.
    Normalised by ``mean`` and ``std``, in units of 255. Sizes other than theirs are resampled
    bilinearly; an image that is smaller than ``frame`` is first set in a frame of zeros of that
    side.
    """

    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    mean: float = 0.5
    std: float = 0.5
    mirror: bool = True
    shift: int = 4
    frame: int = 0
    zoom: float = 1.0

    def __post_init__(self) -> None:
        checks.positive(self, zoom=self.zoom)
        checks.share(self, zoom=self.zoom)
        if self.pixels.dtype != torch.uint8 or self.pixels.ndim != 4:
            msg = (
                f"pixels must be bytes (n, c, H, W), got {self.pixels.dtype}, {self.pixels.ndim}-D."
            )
            raise ValueError(msg)
        if self.labels.shape != self.pixels.shape[:1] or not len(self.labels):
            msg = (
                f"{len(self.pixels)} images have {tuple(self.labels.shape)} labels; give one each."
            )
            raise ValueError(msg)
        if not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
            msg = f"labels must be 0 to {len(self.classes) - 1}, one a class."
            raise ValueError(msg)

    @property
    def channels(self) -> int:
        """1 or 3."""
        return int(self.pixels.shape[1])

    def __len__(self) -> int:
        """How many there are."""
        return len(self.labels)

    def first(self, n: int) -> Held:
        """The first n of them."""
        return dataclasses.replace(self, pixels=self.pixels[:n], labels=self.labels[:n])

    def unmoved(self) -> Held:
        """The same, shown as they are in training: few steps learn more from them."""
        return dataclasses.replace(self, shift=0, mirror=False, zoom=1.0)

    def batch(self, indices: list[int], side: int, seed: int | None) -> tuple[Tensor, Tensor]:
        """Some of them at a size; with a seed, changed at random for training."""
        x = self.pixels[indices].float() / 255
        lack = max(0, self.frame - x.shape[-1])
        x = functional.pad(x, (lack // 2, lack - lack // 2) * 2)
        if seed is not None:
            rng = torch.Generator().manual_seed(seed)
            x = shifted(x, self.shift, rng)
            if self.mirror:
                flip = torch.rand(len(x), 1, 1, 1, generator=rng) < 0.5
                x = torch.where(flip, x.flip(-1), x)
            if self.zoom < 1:
                x = torch.cat(
                    [
                        _resampled(part(y, self.zoom, seed + place), side)
                        for place, y in enumerate(x)
                    ]
                )
        if x.shape[-1] != side or x.shape[-2] != side:
            x = _resampled(x, side)
        return (x - self.mean) / self.std, self.labels[indices]


@dataclass(frozen=True)
class Folder:
    """The layout of ImageFolder: ``root/<class>/<image>``, classes in alphabetical order.

    In training a random part of the image, at least ``LEAST`` of its area, mirrored every other
    time; otherwise the central square, seven eighths of the side. Read by eight threads as they
    are needed. Needs pillow.
    """

    root: Path
    paths: tuple[Path, ...] = field(init=False, repr=False)
    labels: tuple[int, ...] = field(init=False, repr=False)
    classes: tuple[str, ...] = field(init=False)
    channels: int = 3

    def __post_init__(self) -> None:
        folders = sorted(p for p in self.root.iterdir() if p.is_dir()) if self.root.is_dir() else []
        found = [
            (path, label)
            for label, folder in enumerate(folders)
            for path in sorted(folder.rglob("*"))
            if path.suffix.lower() in SUFFIXES
        ]
        if not found:
            msg = f"{self.root} holds no images: put those of each class in a folder of its own."
            raise ValueError(msg)
        object.__setattr__(self, "paths", tuple(path for path, _ in found))
        object.__setattr__(self, "labels", tuple(label for _, label in found))
        object.__setattr__(self, "classes", tuple(folder.name for folder in folders))

    def __len__(self) -> int:
        """How many there are."""
        return len(self.paths)

    def batch(self, indices: list[int], side: int, seed: int | None) -> tuple[Tensor, Tensor]:
        """Some of them at a size; with a seed, changed at random for training."""
        seeds = [None if seed is None else seed + place for place in range(len(indices))]
        with ThreadPoolExecutor(8) as pool:
            x = torch.stack(list(pool.map(self._read, indices, [side] * len(seeds), seeds)))
        mean, std = (torch.tensor(c)[:, None, None] for c in (MEAN, STD))
        return (x - mean) / std, torch.tensor([self.labels[i] for i in indices])

    def _read(self, index: int, side: int, seed: int | None) -> Tensor:
        import numpy as np
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(self.paths[index]) as image:
                wide, high = image.size
                cut = _box(wide, high, seed, LEAST) if seed is not None else _centre(wide, high)
                small = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC, cut)
        except (OSError, UnidentifiedImageError) as broken:
            msg = f"{self.paths[index]} is no readable image ({broken}). Replace or remove it."
            raise ValueError(msg) from None
        x = torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255
        return x.flip(-1) if seed is not None and seed % 2 else x


def shifted(x: Tensor, most: int, rng: torch.Generator) -> Tensor:
    """Each image moved by up to so many pixels either way, zeros coming in."""
    padded = functional.pad(x, (most,) * 4)
    high, wide = x.shape[-2:]
    down, right = torch.randint(2 * most + 1, (2, len(x)), generator=rng).tolist()
    parts = zip(padded, down, right, strict=True)
    return torch.stack([p[:, i : i + high, j : j + wide] for p, i, j in parts])


def _resampled(x: Tensor, side: int) -> Tensor:
    return functional.interpolate(x, (side, side), mode="bilinear", antialias=True)


def part(image: Tensor, least: float, seed: int) -> Tensor:
    """A random part of an image (c, H, W), as a batch of one; at least a pixel."""
    high, wide = image.shape[-2:]
    left, top, right, low = map(round, _box(wide, high, seed, least))
    left, top = min(left, wide - 1), min(top, high - 1)
    return image[None, :, top : max(low, top + 1), left : max(right, left + 1)]


def _box(wide: int, high: int, seed: int, least: float) -> tuple[float, float, float, float]:
    """A box of ``least`` to all of the area, its sides in a ratio of 3:4 to 4:3, anywhere."""
    rng = torch.Generator().manual_seed(seed)
    area, ratio, left, top = torch.rand(4, generator=rng).tolist()
    size, stretch = (wide * high * (least + (1 - least) * area)) ** 0.5, (4 / 3) ** (ratio - 0.5)
    w, h = min(wide, size * stretch), min(high, size / stretch)
    x, y = left * (wide - w), top * (high - h)
    return x, y, x + w, y + h


def _centre(wide: int, high: int) -> tuple[float, float, float, float]:
    side = min(wide, high) * 0.875
    x, y = (wide - side) / 2, (high - side) / 2
    return x, y, x + side, y + side


GARMENTS = (
    *("t-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)


def fashion_mnist(folder: Path | None = None) -> tuple[Held, Held]:
    """Fashion-MNIST, for training and for testing: 60,000 and 10,000 images of 28 x 28 pixels.

    ``folder``: of the four idx files, packed or not, as Debian's package dataset-fashion-mnist has
    them; None for that of ``softlab.inputs.fashion``. Set in a frame of 32 pixels. Raises
    ``FileNotFoundError``, and ``ValueError`` for a file that is cut short. Source: Xiao et al. 2017
    (arXiv 1708.07747); MIT licence.
    """
    folder = fashion.folder() if folder is None else folder
    held = []
    for name in ("train", "t10k"):
        pixels = idx(_one(folder, f"{name}-images-idx3-ubyte")).unsqueeze(1)
        labels = idx(_one(folder, f"{name}-labels-idx1-ubyte")).long()
        held.append(Held(pixels, labels, GARMENTS, mean=0.286, std=0.353, frame=32))
    return held[0], held[1]


def idx(path: Path) -> Tensor:
    """The bytes of an idx file, in its shape; ``ValueError`` where it is none or cut short."""
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (EOFError, gzip.BadGzipFile) as broken:
        msg = f"{path} is damaged ({broken}). Fetch it again."
        raise ValueError(msg) from None
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        msg = f"{path} is no idx file of bytes. Fetch it again."
        raise ValueError(msg)
    start = 4 + 4 * raw[3]
    shape = struct.unpack(f">{raw[3]}I", raw[4:start])
    due = 1
    for size in shape:
        due *= size
    if len(raw) - start != due:
        msg = f"{path} has {len(raw) - start} bytes of {due}: it was cut short. Fetch it again."
        raise ValueError(msg)
    return torch.frombuffer(bytearray(raw[start:]), dtype=torch.uint8).reshape(shape)


def _one(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    msg = (
        f"{folder} has no {name}[.gz]. Run: softlab fetch {fashion.NAME}, or put the four files "
        f"into a folder and name it in {fashion.VARIABLE}."
    )
    raise FileNotFoundError(msg)
