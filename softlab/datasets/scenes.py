"""Scenes for dense prediction: several labelled images on one canvas, and whose each pixel is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from softlab import validation
from softlab.core import Stream
from softlab.datasets.images import Held

THRESHOLD = 25
"""Bytes above this are the thing, the others its background."""


@dataclass(frozen=True)
class Canvases:
    """``count`` scenes of ``side`` pixels, of images in their own size at random places.

    ``images``: of one channel, on a dark ground, no larger than the canvas. A scene has as many as
    would cover it, side^2 over the area of an image, at least one; where they overlap the later one
    is seen. Label 0 is the ground, label c + 1 an image of class c where it is brighter than 25 of
    255. Scene i is a function of ``seed``, i, ``side`` and ``purpose`` alone; scenes for testing
    need a purpose of their own, or things stand where those of training do. Raises ``ValueError``.
    """

    images: Held
    side: int
    count: int
    seed: int = 0
    purpose: str = "training"

    def __post_init__(self) -> None:
        validation.in_range(self, validation.Size, side=self.side, count=self.count)
        validation.in_range(self, validation.Seed, seed=self.seed)
        high, wide = self.images.pixels.shape[-2:]
        if self.images.channels != 1 or max(high, wide) > self.side:
            msg = (
                f"images of {self.images.channels} channels and {high} x {wide} pixels do not "
                f"stand on a canvas of {self.side}: give grey ones, and a side that holds them."
            )
            raise ValueError(msg)

    def __len__(self) -> int:
        """How many there are."""
        return self.count

    @property
    def classes(self) -> tuple[str, ...]:
        """The ground, and the classes of the images."""
        return ("ground", *self.images.classes)

    def scene(self, index: int) -> tuple[Tensor, Tensor]:
        """Bytes and labels (side, side)."""
        high, wide = self.images.pixels.shape[-2:]
        rng = Stream(self.seed, f"canvases, {self.purpose} scene {index} of side {self.side}")
        pixels = torch.zeros(self.side, self.side, dtype=torch.uint8)
        labels = torch.zeros(self.side, self.side, dtype=torch.long)
        for _ in range(max(1, round(self.side**2 / (high * wide)))):
            which = int(rng.integers(len(self.images)))
            top = int(rng.integers(self.side - high + 1))
            left = int(rng.integers(self.side - wide + 1))
            thing = self.images.pixels[which, 0]
            seen = thing > THRESHOLD
            place = slice(top, top + high), slice(left, left + wide)
            pixels[place] = torch.where(seen, thing, pixels[place])
            labels[place] = torch.where(seen, self.images.labels[which] + 1, labels[place])
        return pixels, labels

    def batch(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Scenes (b, 1, side, side), normalised as the images are, and labels (b, side, side)."""
        pixels, labels = zip(*(self.scene(i) for i in indices), strict=True)
        x = torch.stack(pixels).unsqueeze(1).float() / 255
        return (x - self.images.mean) / self.images.std, torch.stack(labels)
