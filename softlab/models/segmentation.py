"""Dense prediction on the four scales of a pyramid: a light head, and how right it is."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from softlab import validation
from softlab.core import Stream
from softlab.models.pyramid import Pyramid


class Dense(nn.Module):
    """Scores (b, classes, H, W) of every pixel of images (b, channels, H, W).

    ``backbone``: a ``Pyramid`` of ``num_classes=0``. Its four maps, each brought to ``width``
    channels by a 1 x 1 convolution, are enlarged to the finest and summed; after a ReLU a 3 x 3
    convolution scores the ``classes``, bilinearly enlarged to the image. ``seed``: of its weights.
    In the manner of the semantic branch of panoptic feature pyramids (Kirillov et al. 2019, arXiv
    1901.02446, Sec. 3), with less in it.
    """

    def __init__(self, backbone: Pyramid, classes: int, width: int = 32, seed: int = 0) -> None:
        super().__init__()
        validation.in_range(self, validation.Size, classes=classes, width=width)
        if not isinstance(backbone, Pyramid) or backbone.num_classes:
            msg = "Dense takes a Pyramid without a classifier; build it with num_classes=0."
            raise TypeError(msg)
        self.backbone = backbone
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(Stream(seed, "models.Dense").number)
            self.lateral = nn.ModuleList(nn.Conv2d(w, width, 1) for w in backbone.design.widths)
            self.head = nn.Conv2d(width, classes, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Score every pixel."""
        maps = [
            layer(x) for layer, x in zip(self.lateral, self.backbone.features(image), strict=True)
        ]
        whole: Tensor = maps[0]
        for x in maps[1:]:
            whole = whole + enlarged(x, maps[0])
        return enlarged(self.head(functional.relu(whole)), image)


def enlarged(x: Tensor, to: Tensor) -> Tensor:
    """A map (b, c, ., .) at the height and width of another, bilinearly."""
    size = (to.shape[-2], to.shape[-1])
    return functional.interpolate(x, size, mode="bilinear", align_corners=False)


def confusion(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """How many pixels of each label (rows) were given each class (columns): (classes, classes)."""
    for name, x in (("predicted", predicted), ("labels", labels)):
        if x.numel() and not 0 <= int(x.min()) <= int(x.max()) < classes:
            msg = f"{name} must be 0 to {classes - 1}."
            raise ValueError(msg)
    if predicted.shape != labels.shape:
        msg = f"predicted is {tuple(predicted.shape)}, labels {tuple(labels.shape)}: one each."
        raise ValueError(msg)
    pairs = (labels * classes + predicted).flatten()
    return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def intersection_over_union(counts: Tensor) -> Tensor:
    """By class, from ``confusion``: both / (either), NaN for a class that is nowhere. (classes,).

    Source: Everingham et al. 2010, The Pascal Visual Object Classes Challenge, Sec. 4.
    """
    both = counts.diagonal().double()
    return both / (counts.sum(0) + counts.sum(1) - both)
