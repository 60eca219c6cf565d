"""Training a pyramid through an iterative inverse: is the backward formula right on the way?

The pyramid in miniature with SOFT's 49 landmarks learns Fashion-MNIST; the inverse of its cores has
the implicit or the unrolled gradient of 20 Newton-Raphson steps, or is exact, without or with the
released ridge. Along the training every layer's cores and gradients are examined on the same
images.
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections import deque
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from softlab.datasets import fashion
from softlab.datasets.images import fashion_mnist
from softlab.engine.journal import Row
from softlab.figures import Lines
from softlab.gradients import by_rule, departure, range_residual, unrolled
from softlab.models import Pyramid
from softlab.models.soft import scaled
from softlab.models.soft_attention import Attention
from softlab.models.training import LossError, Recipe, Run, single
from softlab.operators import Soft
from softlab.pinv import Ridge, Solver
from softlab.study import Study

from .columns import IMPLICIT, RIDGED, UNROLLED

IMAGE, LANDMARKS = 32, 49
BATCH, LAST, EVERY = 32, 400, 25
PROBE = 16
"""Images on which cores and gradients are examined."""
RECIPE = Recipe(1, BATCH, rate=2e-3, warm_up=0, side=IMAGE)

STEPS = 20
RULES = (IMPLICIT, UNROLLED, "exact", RIDGED, "unrolled, ridge")


def measure(rule: str, seed: int, dtype: torch.dtype, device: torch.device) -> list[Row]:
    """Train once; a row a layer at every 25th step, with what it is like.

    A training whose loss is no longer finite ends there and has no later rows; ``broke`` is the
    step at which it did.
    """
    single(dtype)
    design = dataclasses.replace(scaled(IMAGE), rank=LANDMARKS)
    model = Pyramid(design, num_classes=10, channels=1, pinv=by_rule(rule, STEPS), seed=seed)
    train, test = fashion_mnist()
    images, labels = (x.to(device) for x in test.batch(list(range(PROBE)), IMAGE, None))
    recipe = dataclasses.replace(RECIPE, seed=seed)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        few = train.first(BATCH * LAST).unmoved()
        run = Run(model, recipe, few, test, Path(folder), device)
        losses: deque[float] = deque(maxlen=EVERY)
        batches = run.batches(0)
        for step in range(LAST + 1):
            if step % EVERY == 0:
                mean = sum(losses) / len(losses) if losses else float("nan")
                for layer, row in examined(model, images, labels).items():
                    rows.append({"step": step, "layer": layer, "loss": mean, "broke": None, **row})
            if step < LAST:
                try:
                    losses.append(run.learn(*next(batches)))
                except LossError:
                    return [row | {"broke": step} for row in rows]
    return rows


def examined(model: Pyramid, images: Tensor, labels: Tensor) -> dict[int, Row]:
    """By layer: the cores' condition and the residual of their inverses, the gradient's error.

    ``condition``, ``residual``: medians over images and heads, ``worst_condition`` and
    ``worst_residual`` the largest, of cores in float64; the residual is |P - A X|_2, of the ridged
    core where there is a ridge. ``cosine`` and ``gradient_error``: of dL/dW_q of the layer against
    that of the same map by unrolled steps in float64.
    """
    mode = model.training
    model.eval()
    found = gradients(model, images, labels)
    wide = copy.deepcopy(model).double()
    for attention in layers(wide).values():
        operator = soft_of(attention)
        attention.operator = dataclasses.replace(operator, pinv=unrolled(operator.pinv))
    true = gradients(wide, images.double(), labels)
    rows: dict[int, Row] = {}
    for layer, core in cores(wide, images.double()).items():
        solver: Solver = soft_of(layers(wide)[layer]).pinv
        if isinstance(solver, Ridge):
            core, solver = solver.shifted(core), solver.solver
        values = torch.linalg.eigvalsh(core)
        condition = (values[..., -1] / values[..., 0].clamp(min=1e-300)).flatten()
        with torch.no_grad():
            residual = range_residual(core, solver(core)).flatten()
        off = departure(found[layer].double(), true[layer])
        rows[layer] = {
            "condition": float(condition.median()),
            "worst_condition": float(condition.max()),
            "residual": float(residual.median()),
            "worst_residual": float(residual.max()),
            "unconverged": float((residual > 0.1).double().mean()),
            "cosine": float(off.cosine),
            "gradient_error": float(off.error),
        }
    model.train(mode)
    return rows


def layers(model: Pyramid) -> dict[int, Attention]:
    """The softmax-free layers, by their place from 1."""
    found = [m for m in model.modules() if isinstance(m, Attention) and m.landmarks is not None]
    return dict(enumerate(found, 1))


def soft_of(layer: Attention) -> Soft:
    """The operator of a softmax-free layer."""
    assert isinstance(layer.operator, Soft)
    return layer.operator


def gradients(model: Pyramid, images: Tensor, labels: Tensor) -> dict[int, Tensor]:
    """dL/dW_q of each layer."""
    loss = functional.cross_entropy(model(images), labels)
    weights = [attention.query.weight for attention in layers(model).values()]
    return dict(enumerate(torch.autograd.grad(loss, weights), 1))


@torch.no_grad()
def cores(model: Pyramid, images: Tensor) -> dict[int, Tensor]:
    """The cores (b, h, m, m) of each layer."""
    found: dict[int, Tensor] = {}
    hooks = []
    for layer, attention in layers(model).items():

        def keep(
            module: nn.Module, given: tuple[Tensor, tuple[int, int]], layer: int = layer
        ) -> None:
            assert isinstance(module, Attention)
            found[layer] = module.core(*given)

        hooks.append(attention.register_forward_pre_hook(keep))
    model(images)
    for hook in hooks:
        hook.remove()
    return found


BY_STEP = Lines(
    x="step",
    y="worst_condition",
    group="rule",
    panel="layer",
    xscale="linear",
    xlabel="training step",
    ylabel="condition number",
    name="condition",
    caption="The largest condition number of a core, over images and heads, by training step and "
    "layer (that of A + 0.01 I where there is a ridge). Medians and quartiles of the seeds.",
)

STUDY = Study(
    name="stability",
    needs="images",
    title="Training a pyramid through an iterative inverse",
    question="Does the training of a pyramid enter the regime where 20 Newton steps do not "
    "converge and SOFT's backward formula is wrong?",
    axes={
        "rule": RULES,
        "seed": range(3),
    },
    quick={"rule": (IMPLICIT, UNROLLED), "seed": [0]},
    measure=measure,
    within=("step", "layer"),
    inputs=fashion.chosen(),
    figures=(
        BY_STEP,
        dataclasses.replace(
            BY_STEP,
            y="worst_residual",
            ylabel="residual of the inverse",
            name="residual",
            caption="The largest residual |P - A X| of the inverse of a core, over images and "
            "heads. At 1 a direction of the core is not inverted at all.",
        ),
        dataclasses.replace(
            BY_STEP,
            y="gradient_error",
            ylabel="relative error of the gradient",
            name="gradient",
            caption="Relative error of dL/dW, W a layer's projection to queries and keys, against "
            "that of the computed map by unrolled steps in float64.",
        ),
        dataclasses.replace(
            BY_STEP,
            y="loss",
            panel="",
            where={"layer": 1},
            ylabel="training loss",
            name="loss",
            caption=f"Training loss, the mean of the {EVERY} steps before. Medians and quartiles "
            "of the seeds.",
        ),
    ),
)
