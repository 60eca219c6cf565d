"""A pyramid trained at one resolution and used at higher ones, with each normalisation of SOFT.

Without normalisation a row of SOFT's matrix sums to about the number of tokens that are alike,
which grows with the image: the journal paper's reason for its symmetric form. It is trained on
random parts of images, as the paper's is: things that grow with the image would else be of a size
in pixels that no network has met, and every attention would fail for that.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from softlab.core import Operator
from softlab.datasets import fashion
from softlab.datasets.images import LEAST, Images, fashion_mnist
from softlab.engine.journal import Row
from softlab.figures import Lines
from softlab.models import Pyramid
from softlab.models.output_gain import gains
from softlab.models.soft import scaled
from softlab.models.training import Recipe, Run, single
from softlab.operators import Softmax, Uniform
from softlab.study import Study

from .columns import CONTROL, GROWING, NORMALIZED, PLAIN, WHOLE

SIDE, SIDES = 16, (16, 24, 32, 48)
TRAIN, TEST, EPOCHS = 8_320, 2_000, 3
RECIPE = Recipe(EPOCHS, 64, rate=4e-3, side=SIDE)
SCALED = 64
"""Test images of which activations are measured."""
STAGES = (1, 2, 3)

OTHERS: dict[str, Operator] = {CONTROL: Softmax(), "Uniform": Uniform(), WHOLE: Softmax()}
SOFTS = {
    PLAIN: ("none", True),
    "Soft, row": ("row", True),
    NORMALIZED: ("symmetric", True),
    "Soft, published": ("published", True),
    GROWING.format(PLAIN): ("none", False),
    GROWING.format(NORMALIZED): ("symmetric", False),
    GROWING.format("Soft, published"): ("published", False),
}
"""Normalisation; whether the landmarks are as many at any size, or their cells as large."""
METHODS = (*SOFTS, *OTHERS)


def pyramid(method: str, seed: int) -> Pyramid:
    """The pyramid in miniature with an attention; queries serve as keys for SOFT alone."""
    how: dict[str, Any] = {"num_classes": 10, "channels": 1, "seed": seed}
    if method in OTHERS:
        return Pyramid(scaled(SIDE), operator=OTHERS[method], tied=False, **how)
    normalization, fixed = SOFTS[method]
    return Pyramid(scaled(SIDE), normalization=normalization, fixed=fixed, **how)


def measure(method: str, seed: int, dtype: torch.dtype, device: torch.device) -> Iterator[Row]:
    """Train once; a row a side, with accuracy and the size of the activations there."""
    single(dtype)
    train, test = fashion_mnist()
    model, zoom = pyramid(method, seed), 1.0 if method == WHOLE else LEAST
    few = dataclasses.replace(train.first(TRAIN).unmoved(), zoom=zoom)
    with tempfile.TemporaryDirectory() as folder:
        recipe = dataclasses.replace(RECIPE, seed=seed)
        run = Run(model, recipe, few, test.first(TEST), Path(folder), device)
        run.finish()
        found = {side: run.evaluate(side) for side in SIDES}
    sizes = {side: activations(model, test, side, device) for side in SIDES}
    for side in SIDES:
        growth = [size / own for size, own in zip(sizes[side], sizes[SIDE], strict=True)]
        yield {
            "side": side,
            **found[side],
            "n": side**2,
            "drop": found[SIDE]["accuracy"] - found[side]["accuracy"],
            **{f"growth_{stage}": x for stage, x in zip(STAGES, growth, strict=True)},
            "growth": max(growth),
        }


def activations(model: Pyramid, images: Images, side: int, device: torch.device) -> list[float]:
    """Root mean square of what the attention of each of three stages makes, at a side."""
    x, _ = images.batch(list(range(SCALED)), side, None)
    return [gain.output for gain in gains(model, x.to(device))][: len(STAGES)]


BY_SIDE = Lines(
    x="side",
    y="growth",
    group="method",
    references=["Uniform"],
    xlabel="side of the image, pixels",
    ylabel="size of the activations",
    name="growth",
    caption="Root mean square of the attention's output relative to that at the 16 pixels of the "
    "training, of the stage where it grows most. Medians and quartiles of the seeds.",
)

STUDY = Study(
    name="transfer",
    needs="images",
    title="From one resolution to a higher one",
    question="What becomes of a pyramid that was trained at one resolution and is used at higher "
    "ones, with each normalisation of SOFT?",
    axes={"method": METHODS, "seed": range(3)},
    quick={"method": METHODS[:2], "seed": [0]},
    measure=measure,
    within=("side",),
    inputs=fashion.chosen(),
    figures=(
        BY_SIDE,
        dataclasses.replace(
            BY_SIDE,
            y="accuracy",
            yscale="linear",
            ylabel="accuracy on test images",
            name="accuracy",
            caption="Accuracy of networks trained at 16 pixels on test images at higher "
            "resolutions. Medians and quartiles of the seeds.",
        ),
    ),
)
