"""The comparison of SOFT's paper in miniature: one pyramid, its attention exchanged, real images.

Two studies. ``classification``: the pyramid trained on Fashion-MNIST with each attention in its
first three stages; test accuracy after every epoch, and SOFT's ablations of the number of landmarks
and of their sampling. ``classification_cost``: time, memory and counted work of a training step of
each, at several image sizes.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from softlab.core import Operator, Stream
from softlab.datasets import fashion
from softlab.datasets.images import fashion_mnist
from softlab.engine.journal import Row
from softlab.figures import Lines
from softlab.landmarks import GridPool
from softlab.models import Pyramid
from softlab.models.output_gain import gains
from softlab.models.soft import scaled
from softlab.models.training import Recipe, Run, single
from softlab.operators import Linformer, Nystromformer, Performer, Softmax, Uniform
from softlab.profiling import peak_memory, seconds
from softlab.study import Study

from .columns import CONTROL, CONV, LINFORMER, NYSTROMFORMER, PERFORMER, POOL, SOFT, SOFTMAX

IMAGE, LANDMARKS, FEATURES = 24, 9, 32
COUNTS = (6, 9, 12, 15)
"""Numbers of landmarks: 36, 49, 64 and 81 of the paper's ablation at the same share of the tokens,
to the nearest grid of cells, 2 x 3 to 3 x 5."""
TRAIN, TEST, EPOCHS = 8_320, 5_000, 3
RECIPE = Recipe(EPOCHS, 64, rate=4e-3, side=IMAGE)
"""390 steps: images that are neither shifted nor mirrored, which so few steps learn most from."""

SOFTS = {SOFT: "none", "Soft, symmetric": "symmetric"}
METHODS = (*SOFTS, SOFTMAX, LINFORMER, NYSTROMFORMER, PERFORMER, CONTROL)
SAMPLINGS = (POOL, CONV)


def pyramid(method: str, m: int, sampling: str, image: int, seed: int) -> Pyramid:
    """The pyramid with an attention: keys of their own but for Soft, landmarks of the grid."""
    design = dataclasses.replace(scaled(image), rank=m)
    how: dict[str, Any] = {"num_classes": 10, "channels": 1, "seed": seed}
    if method in SOFTS:
        # Convolved landmarks are bounded by ``fixed`` to as many as pooled ones.
        return Pyramid(design, normalization=SOFTS[method], sampling=sampling, fixed=True, **how)
    grids = list(design.grids(image, image))[:-1]
    operators: Mapping[str, list[Operator]] = {
        SOFTMAX: [Softmax()] * 3,
        LINFORMER: [Linformer(m)] * 3,
        NYSTROMFORMER: [Nystromformer(m, landmarks=GridPool(*grid)) for grid in grids],
        PERFORMER: [Performer(FEATURES)] * 3,
        CONTROL: [Uniform()] * 3,
    }
    return Pyramid(design, operator=operators[method], tied=False, **how)


def keep(method: str, m: int, sampling: str) -> bool:
    """All methods as the paper compares them; of plain Soft one change at a time as well."""
    usual = (m == LANDMARKS) + (sampling == SAMPLINGS[0])
    return usual == 2 or (method == SOFT and usual == 1)


def measure(
    method: str, m: int, sampling: str, seed: int, dtype: torch.dtype, device: torch.device
) -> list[Row]:
    """Train once; a row an epoch, with loss and accuracy after it."""
    single(dtype)
    train, test = fashion_mnist()
    recipe = dataclasses.replace(RECIPE, seed=seed)
    model = pyramid(method, m, sampling, IMAGE, seed)
    with tempfile.TemporaryDirectory() as folder:
        few = train.first(TRAIN).unmoved()
        run = Run(model, recipe, few, test.first(TEST), Path(folder), device)
        return [
            {
                "epoch": epoch,
                "train_loss": row["train_loss"],
                "loss": row["loss"],
                "accuracy": row["accuracy"],
                "error_rate": 1 - row["accuracy"],
            }
            for epoch, row in enumerate(run.finish(), 1)
        ]


BATCH = 8


def measure_cost(method: str, image: int, *, dtype: torch.dtype, device: torch.device) -> Row:
    """Parameters, multiply-adds of an image, time and peak memory of a step of training.

    ``gain``: the size of the first attention's output over that of its values, before training.
    """
    single(dtype)
    model = pyramid(method, (image // 8) ** 2, SAMPLINGS[0], image, 0).to(device)
    x = Stream(0, "classification, images").normal(BATCH, 1, image, image).to(device, dtype)
    labels = (torch.arange(BATCH) % 10).to(device)
    call = partial(step, model, x, labels)
    clock = seconds(call, device, repeats=7)
    return {
        "n": image**2,
        "parameters": sum(p.numel() for p in model.parameters()),
        "multiply_adds": model.cost(image, image).flops // 2,
        "seconds": clock["seconds"],
        "seconds_q1": clock["seconds_q1"],
        "seconds_q3": clock["seconds_q3"],
        "megabytes": peak_memory(call, device) / 1e6,
        "gain": gains(model, x)[0].ratio,
    }


def step(model: Pyramid, x: torch.Tensor, labels: torch.Tensor) -> None:
    """Forward and backward."""
    model.zero_grad(set_to_none=True)
    functional.cross_entropy(model(x), labels).backward()


STUDY = Study(
    name="classification",
    needs="images",
    title="SOFT's comparison in miniature",
    question="Does the attention of a small pyramid decide how well it classifies images, and do "
    "the number of landmarks and the way they are sampled?",
    axes={
        "method": METHODS,
        "m": COUNTS,
        "sampling": SAMPLINGS,
        "seed": range(3),
    },
    quick={"method": METHODS[:3], "m": [LANDMARKS], "sampling": SAMPLINGS[:1], "seed": [0]},
    measure=measure,
    within=("epoch",),
    inputs=fashion.chosen(),
    keep=keep,
    figures=(
        Lines(
            x="epoch",
            y="error_rate",
            group="method",
            where={"m": LANDMARKS, "sampling": SAMPLINGS[0]},
            references=[CONTROL],
            xscale="linear",
            xlabel="epoch",
            ylabel="error on test images",
            name="learning",
            caption="Share of test images that are classified wrongly, after each epoch; medians "
            "and quartiles of the seeds. Uniform, the mean of all tokens, is the null control.",
        ),
        Lines(
            x="m",
            y="error_rate",
            group="seed",
            where={"method": SOFT, "sampling": SAMPLINGS[0], "epoch": EPOCHS},
            xlabel="landmarks $m$",
            ylabel="error on test images",
            name="landmarks",
            caption="Error of Soft after the last epoch against the number of landmarks, a line "
            "for each seed.",
        ),
    ),
)

COST = Study(
    name="classification_cost",
    needs="images",
    title="What a step of the pyramid costs",
    question="What time, memory and counted work does a training step of the pyramid take with "
    "each attention, as images grow and landmarks with them?",
    axes={"method": METHODS, "image": (24, 48, 96)},
    quick={"method": METHODS[:3], "image": (24,)},
    measure=measure_cost,
    timed=("seconds", "seconds_q1", "seconds_q3"),
    figures=(
        Lines(
            x="n",
            y="seconds",
            group="method",
            references=[CONTROL],
            xlabel="tokens of the first stage",
            ylabel="seconds a step",
            name="seconds",
            caption=f"Time of a forward and a backward pass of {BATCH} images against the tokens "
            "of the first stage, one of 64 of them a landmark.",
        ),
        Lines(
            x="n",
            y="megabytes",
            group="method",
            references=[CONTROL],
            xlabel="tokens of the first stage",
            ylabel="peak memory of a step, MB",
            name="megabytes",
            caption=f"Peak memory of a forward and a backward pass of {BATCH} images above the "
            "weights.",
        ),
    ),
)
