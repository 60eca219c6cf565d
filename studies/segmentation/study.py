"""Dense prediction in miniature: whose is each pixel of a canvas with several garments?

A light head on the four scales of the pyramid, trained on small canvases and used on larger ones,
on which more garments stand in the same size.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from softlab.core import Operator
from softlab.datasets import fashion
from softlab.datasets.images import fashion_mnist
from softlab.datasets.scenes import Canvases
from softlab.engine.journal import Row
from softlab.figures import Lines
from softlab.models import Pyramid
from softlab.models.segmentation import Dense, confusion, intersection_over_union
from softlab.models.soft import scaled
from softlab.models.training import LossError, Recipe, decayed, single
from softlab.operators import Softmax, Uniform
from softlab.study import Study

from .columns import EXACT, PLAIN

SIDE, SIDES = 48, (48, 96)
BATCH, STEPS, TEST = 16, 500, 200
RECIPE = Recipe(STEPS, BATCH, rate=4e-3, warm_up=50, side=SIDE)
"""Its epochs are steps here."""

SOFTS = {PLAIN: "none", "Soft, symmetric": "symmetric"}
OTHERS: dict[str, Operator] = {EXACT: Softmax(), "Uniform": Uniform()}
METHODS = (*SOFTS, *OTHERS)


def network(method: str, seed: int, classes: int) -> Dense:
    """Head and pyramid: 576, 144, 36 and 9 tokens at 48 pixels, 9 landmarks."""
    design = dataclasses.replace(scaled(SIDE), strides=(2, 2, 2, 2), rank=9)
    how: dict[str, Any] = {"num_classes": 0, "channels": 1, "seed": seed}
    if method in OTHERS:
        return Dense(
            Pyramid(design, operator=OTHERS[method], tied=False, **how), classes, seed=seed
        )
    return Dense(Pyramid(design, normalization=SOFTS[method], **how), classes, seed=seed)


def learn(model: nn.Module, scenes: Canvases, device: torch.device) -> float:
    """All steps of training; the mean loss of the last tenth. ``LossError`` where not finite."""
    optimiser = torch.optim.AdamW(decayed(model, RECIPE.decay), lr=RECIPE.rate)
    model.train()
    losses = []
    for step in range(STEPS):
        for group in optimiser.param_groups:
            group["lr"] = RECIPE.rate_at(step + 1)
        some = list(range(step * BATCH, (step + 1) * BATCH))
        x, labels = (part.to(device) for part in scenes.batch(some))
        optimiser.zero_grad()
        loss = functional.cross_entropy(model(x), labels)
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            msg = f"the loss is {losses[-1]} at step {step}."
            raise LossError(msg)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), RECIPE.clip)
        optimiser.step()
    late = losses[-max(1, STEPS // 10) :]
    return sum(late) / len(late)


@torch.no_grad()
def judged(model: nn.Module, scenes: Canvases, device: torch.device) -> dict[str, float]:
    """Mean intersection over union, of all classes and of things alone; share of pixels right.

    ``blank``: the mean that an answer of the ground alone would have.
    """
    model.eval()
    classes = len(scenes.classes)
    counts = torch.zeros(classes, classes, dtype=torch.long)
    for first in range(0, len(scenes), BATCH):
        x, labels = scenes.batch(list(range(first, min(first + BATCH, len(scenes)))))
        counts += confusion(model(x.to(device)).argmax(1).cpu(), labels, classes)
    each = intersection_over_union(counts)
    ground = torch.zeros_like(counts)
    ground[:, 0] = counts.sum(1)
    return {
        "miou": float(each.nanmean()),
        "things": float(each[1:].nanmean()),
        "right": float(counts.diagonal().sum() / counts.sum()),
        "blank": float(intersection_over_union(ground).nanmean()),
    }


def measure(method: str, seed: int, dtype: torch.dtype, device: torch.device) -> list[Row]:
    """Train once; a row a side, with how right it is there."""
    single(dtype)
    train, test = (dataclasses.replace(part, frame=0) for part in fashion_mnist())
    scenes = Canvases(train, SIDE, BATCH * STEPS, seed)
    model = network(method, seed, len(scenes.classes)).to(device)
    loss = learn(model, scenes, device)
    found: dict[int, dict[str, float]] = {}
    for side in SIDES:
        # As many pixels at any side; the same scenes for every method and seed.
        unseen = Canvases(test, side, max(1, TEST * SIDE**2 // side**2), purpose="test")
        found[side] = {"train_loss": loss, "n": (side // 2) ** 2, **judged(model, unseen, device)}
    here = found[SIDE]["miou"]
    return [{"side": side, **row, "lost": here - row["miou"]} for side, row in found.items()]


STUDY = Study(
    name="segmentation",
    needs="images",
    title="Dense prediction in miniature",
    question="How well does a light head on the pyramid's four scales tell garments on a canvas "
    "apart, with each attention, and on larger canvases than it was trained on?",
    axes={"method": METHODS, "seed": range(3)},
    quick={"method": METHODS[:2], "seed": [0]},
    measure=measure,
    within=("side",),
    inputs=fashion.chosen(),
    figures=(
        Lines(
            x="side",
            y="miou",
            group="method",
            references=["Uniform"],
            guides={"blank": "all ground"},
            yscale="linear",
            xlabel="side of the canvas, pixels",
            ylabel="mean intersection over union",
            name="miou",
            caption="Mean intersection over union of the eleven classes, on canvases of the "
            "training's side and on larger ones with more garments. Medians and quartiles of the "
            "seeds; grey: an answer of the ground alone.",
        ),
    ),
)
