"""Labelled images for training: Fashion-MNIST, a folder for each class, or tensors at hand.

Every batch is a function of its indices and a seed, so that a run can be taken up again anywhere.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import struct
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from softlab import validation
from softlab.core import Stream
from softlab.datasets import fashion
from softlab.engine.identity import identity

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
SYSTEM = {
    *("__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "lost+found"),
    "System Volume Information",
}
"""Folders that a system or a tool puts beside those of the classes."""
UNSURE = 2**14
"""A 16-bit image whose values are all below this may be of 10, 12 or 14 bits."""
SAMPLED = 2**15
"""Bytes at either end of a larger file that count in the fingerprint of a folder."""
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


@runtime_checkable
class Checked(Protocol):
    """Images that can be looked at before they are used."""

    def check(self, first: int = 0, step: int = 1) -> None:
        """Raise ``ValueError`` for those, from ``first`` on in steps, that cannot be read."""
        ...


@runtime_checkable
class Marked(Protocol):
    """Images that know what they are."""

    def fingerprint(self) -> str:
        """A text that changes with the images and their labels."""
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
        validation.in_range(self, validation.Positive, zoom=self.zoom)
        validation.in_range(self, validation.Share, zoom=self.zoom)
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

    def fingerprint(self) -> str:
        """Hexadecimal digits that change with pixels, labels, and how the images are shown."""
        return identity(self).digits

    def batch(self, indices: list[int], side: int, seed: int | None) -> tuple[Tensor, Tensor]:
        """Some of them at a size; with a seed, changed at random for training."""
        x = self.pixels[indices].float() / 255
        lack = max(0, self.frame - x.shape[-1])
        x = functional.pad(x, (lack // 2, lack - lack // 2) * 2)
        if seed is not None:
            x = shifted(x, self.shift, Stream(seed, "images, shifts"))
            if self.mirror:
                flip = Stream(seed, "images, flips").uniform(len(x), 1, 1, 1) < 0.5
                x = torch.where(flip, x.flip(-1), x)
            if self.zoom < 1:
                rng = Stream(seed, "images, parts")
                x = torch.cat([_resampled(part(y, self.zoom, rng), side) for y in x])
        if x.shape[-1] != side or x.shape[-2] != side:
            x = _resampled(x, side)
        return (x - self.mean) / self.std, self.labels[indices]


@dataclass(frozen=True)
class Folder:
    """The layout of ImageFolder: ``root/<class>/<image>``, classes in alphabetical order.

    In training a random part of the image, at least ``LEAST`` of its area, mirrored half the
    time; otherwise the central square, seven eighths of the side. Read by eight threads as they
    are needed. Needs pillow.

    Hidden files and folders, and those of ``SYSTEM``, are left out. An image is turned as its EXIF
    orientation says and made RGB: transparent parts show white, other modes as pillow converts
    them, the first frame of several. Grey of more than 8 bits is divided by ``white``, the value
    of white, positive: by default 65535 for 16 bits that are in use, and needed for others.

    Raises ``ValueError`` for a folder without classes, a class without images, two classes of one
    name, and, when it is read, an image that is damaged or whose range is not known.
    """

    root: Path
    paths: tuple[Path, ...] = field(init=False, repr=False)
    labels: tuple[int, ...] = field(init=False, repr=False)
    classes: tuple[str, ...] = field(init=False)
    channels: int = 3
    white: float | None = None

    def __post_init__(self) -> None:
        if self.white is not None:
            validation.in_range(self, validation.Positive, white=self.white)
        folders = sorted(p for p in _shown(self.root) if p.is_dir()) if self.root.is_dir() else []
        # Decomposed letters, as some systems store them, are the same name.
        names = [unicodedata.normalize("NFC", folder.name) for folder in folders]
        found = [sorted(_images(folder)) for folder in folders]
        if not any(found):
            msg = f"{self.root} holds no images: put those of each class in a folder of its own."
            raise ValueError(msg)
        for folder, some in zip(folders, found, strict=True):
            if not some:
                msg = f"{folder} holds no image ({', '.join(SUFFIXES)}). Fill or remove it."
                raise ValueError(msg)
        distinct(names)
        object.__setattr__(self, "paths", tuple(path for some in found for path in some))
        labels = tuple(label for label, some in enumerate(found) for _ in some)
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "classes", tuple(names))

    def __len__(self) -> int:
        """How many there are."""
        return len(self.paths)

    def batch(self, indices: list[int], side: int, seed: int | None) -> tuple[Tensor, Tensor]:
        """Some of them at a size; with a seed, changed at random for training."""
        names = [f"images, place {place}" for place in range(len(indices))]
        streams = [None if seed is None else Stream(seed, name) for name in names]
        with ThreadPoolExecutor(8) as pool:
            x = torch.stack(list(pool.map(self._read, indices, [side] * len(names), streams)))
        mean, std = (torch.tensor(c)[:, None, None] for c in (MEAN, STD))
        return (x - mean) / std, torch.tensor([self.labels[i] for i in indices])

    def check(self, first: int = 0, step: int = 1) -> None:
        """Read every image, or every ``step``-th; ``ValueError`` names those that cannot be."""
        with ThreadPoolExecutor(8) as pool:
            broken = [why for why in pool.map(self._broken, range(first, len(self), step)) if why]
        if broken:
            more = f" So are {len(broken) - 1} more." if len(broken) > 1 else ""
            raise ValueError(broken[0] + more)

    def fingerprint(self) -> str:
        """Hexadecimal digits that change with the names, sizes and contents of the files.

        Of a file larger than twice ``SAMPLED`` bytes the first and the last so many count.
        """
        with ThreadPoolExecutor(8) as pool:
            parts = list(pool.map(_content, self.paths))
        names = [path.relative_to(self.root).as_posix() for path in self.paths]
        return identity((names, self.white, parts)).digits

    def _broken(self, index: int) -> str:
        """Why an image cannot be read; nothing where it can."""
        try:
            self._read(index, 8, None)
        except ValueError as why:
            return str(why)
        return ""

    def _read(self, index: int, side: int, rng: Stream | None) -> Tensor:
        import numpy as np
        from PIL import Image, ImageOps

        try:
            with Image.open(self.paths[index]) as image:
                ImageOps.exif_transpose(image, in_place=True)
                wide, high = image.size
                cut = _box(wide, high, rng, LEAST) if rng is not None else _centre(wide, high)
                plain = _plain(image, self.white)
                small = plain.resize((side, side), Image.Resampling.BICUBIC, cut)
        except Exception as broken:  # pillow raises what its formats' readers raise
            msg = f"{self.paths[index]} is no readable image ({broken}). Replace or remove it."
            raise ValueError(msg) from None
        x = torch.from_numpy(np.array(small)).float()
        # Cubic weights reach beyond the range, where pillow cuts bytes itself.
        x = x.clamp(0, 1).expand(3, -1, -1) if x.ndim == 2 else x.permute(2, 0, 1) / 255
        return x.flip(-1) if rng is not None and rng.integers(2) else x


def _shown(folder: Path) -> Iterator[Path]:
    """What a folder holds, but for what is hidden or the system's."""
    return (p for p in folder.iterdir() if not p.name.startswith(".") and p.name not in SYSTEM)


def _images(folder: Path) -> Iterator[Path]:
    """The images in a folder and in those that it holds."""
    for path in _shown(folder):
        if path.is_dir():
            yield from _images(path)
        elif path.suffix.lower() in SUFFIXES:
            yield path


def _content(path: Path) -> str:
    """Digits of a file's content, or of its size and both its ends."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= 2 * SAMPLED:
            return hashlib.sha256(file.read()).hexdigest()
        first = file.read(SAMPLED)
        file.seek(-SAMPLED, 2)
        return f"{size} {hashlib.sha256(first + file.read()).hexdigest()}"


def _plain(image: Image, white: float | None) -> Image:
    """In RGB, or, of more than 8 bits, in grey of 0 to 1 (mode F)."""
    from PIL import Image as Pillow

    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _deep(image, white)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        paper = Pillow.new("RGBA", image.size, "white")
        return Pillow.alpha_composite(paper, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _deep(image: Image, white: float | None) -> Image:
    """Grey of more than 8 bits, from 0 to 1; ``ValueError`` where what is white is not known."""
    import numpy as np
    from PIL import Image as Pillow

    values = np.array(image).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    whole = image.mode.startswith("I;16") or image.format in ("PNG", "PPM")
    # Files of 10, 12 or 14 bits are written as such of 16, and do not say so.
    sure = whole and (high == 0 or high >= UNSURE)
    most = white if white is not None else 65535.0 if sure else None
    if most is None or not 0 <= low <= high <= most:
        msg = (
            f"its grey values are {low:g} to {high:g} in mode {image.mode}, and white is "
            f"{'not known' if most is None else format(most, 'g')}; give Folder(root, white=...) "
            "or --white, 4095 for 12 bits, 65535 for 16, or save it with 8 bits"
        )
        raise ValueError(msg)
    return Pillow.fromarray((values / most).astype(np.float32))


def distinct(names: list[str] | tuple[str, ...]) -> None:
    """Raise ``ValueError`` for a name that two classes have."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        msg = f"two classes are named {twice[0]!r}; give each a name of its own."
        raise ValueError(msg)


def by_name(test: Images, train: Images) -> Tensor:
    """For each label of ``test``, that of the class of the same name in ``train``.

    Raises ``ValueError`` for a class that ``train`` has not.
    """
    for images in (train, test):
        distinct(images.classes)
    strange = [name for name in test.classes if name not in train.classes]
    if strange:
        msg = (
            f"the test images have classes that the training images have not: "
            f"{', '.join(map(repr, strange))}. Those have {', '.join(map(repr, train.classes))}. "
            "Give a class the same name in both."
        )
        raise ValueError(msg)
    return torch.tensor([train.classes.index(name) for name in test.classes])


def shifted(x: Tensor, most: int, rng: Stream) -> Tensor:
    """Each image moved by up to so many pixels either way, zeros coming in."""
    padded = functional.pad(x, (most,) * 4)
    high, wide = x.shape[-2:]
    down, right = rng.integers(2 * most + 1, 2, len(x)).tolist()
    parts = zip(padded, down, right, strict=True)
    return torch.stack([p[:, i : i + high, j : j + wide] for p, i, j in parts])


def _resampled(x: Tensor, side: int) -> Tensor:
    return functional.interpolate(x, (side, side), mode="bilinear", antialias=True)


def part(image: Tensor, least: float, rng: Stream) -> Tensor:
    """A random part of an image (c, H, W), as a batch of one; at least a pixel."""
    high, wide = image.shape[-2:]
    left, top, right, low = map(round, _box(wide, high, rng, least))
    left, top = min(left, wide - 1), min(top, high - 1)
    return image[None, :, top : max(low, top + 1), left : max(right, left + 1)]


def _box(wide: int, high: int, rng: Stream, least: float) -> tuple[float, float, float, float]:
    """A box of ``least`` to all of the area, its sides in a ratio of 3:4 to 4:3, anywhere."""
    area, ratio, left, top = rng.uniform(4).tolist()
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
    them; None for that of ``softlab.datasets.fashion``. Set in a frame of 32 pixels. Raises
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
