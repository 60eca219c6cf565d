"""What a biased gradient of the inverse does to a few hundred steps of training.

A small attention layer learns a teacher's Gaussian attention through Soft, whose inverse has the
implicit, the Golub-Pereyra or the unrolled gradient, in the run's dtype.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from softlab.core import Stream, value
from softlab.engine.journal import Row
from softlab.figures import Lines
from softlab.gradients import RULES, by_rule, departure, range_residual, unrolled
from softlab.inputs import Smooth
from softlab.operators import GaussianAttention, Soft
from softlab.pinv import Ridge, Solver
from softlab.study import Study

from .columns import EXACT, IMPLICIT, UNROLLED

F64 = torch.float64
RANK = 49
SOFTS = 20
SEQUENCES, TOKENS, WIDTH, RATE, LAST = 3, 128, 32, 1e-2, 200
EVERY = 10


@value
class Task:
    """Regression onto a teacher's Gaussian attention, each sequence's mean taken off.

    ``length``: of the tokens' correlation along the sequence, in tokens. ``spread``: standard
    deviation of the learner's queries at the start, in bandwidths; ``teacher``: of the teacher's.
    """

    length: float
    spread: float
    teacher: float


TASKS = {
    "well spread": Task(8.0, 0.4, 0.4),
    "near duplicates at the start": Task(8.0, 0.05, 0.4),
    "near duplicates throughout": Task(1.0, 0.05, 0.1),
}


def keep(steps: int, rule: str) -> bool:
    """Few Newton steps for the two rules that differ most."""
    return steps == SOFTS or rule in (IMPLICIT, UNROLLED)


def measure(
    task: str, steps: int, rule: str, seed: int, dtype: torch.dtype, device: torch.device
) -> list[Row]:
    """Train once; the loss, and how true the gradient was, at every tenth step."""
    teacher, student = (Stream(seed, f"training, {who}") for who in ("teacher", "student"))
    set_up, solver, bandwidth = TASKS[task], by_rule(rule, steps), WIDTH**0.25

    def normal(rng: Stream, std: float) -> Tensor:
        return (rng.normal(WIDTH, WIDTH) * (std / math.sqrt(WIDTH))).to(device, dtype)

    tokens = Smooth(TOKENS, WIDTH, set_up.length)
    seeds = range(SEQUENCES * seed, SEQUENCES * (seed + 1))
    x = torch.stack([tokens(s, dtype=dtype, device=device).q for s in seeds])
    to_q, to_v = normal(teacher, set_up.teacher * bandwidth), normal(teacher, 1.0)
    target = centred(GaussianAttention()(x @ to_q, x @ to_q, x @ to_v))
    target = target / target.std()
    w, v = normal(student, set_up.spread * bandwidth), normal(student, 1.0)
    start = centred(Soft(RANK, pinv=solver)(x @ w, x @ w, x @ v)).std()
    out = torch.eye(WIDTH, dtype=dtype, device=device) / start
    weights = [y.requires_grad_() for y in (w, v, out)]
    adam = torch.optim.Adam(weights, lr=RATE)
    rows: list[Row] = []
    for step in range(LAST + 1):
        adam.zero_grad()
        loss = misfit(solver, x, target, *weights)
        loss.backward()
        if step % EVERY == 0:
            wide = [y.detach().double().requires_grad_() for y in (*weights,)]
            true = misfit(unrolled(solver), x.double(), target.double(), *wide)
            (grad,) = torch.autograd.grad(true, wide[0])
            assert w.grad is not None
            off = departure(w.grad.double(), grad)
            row: Row = {
                "step": step,
                "newton": f"{steps} Newton steps",
                "loss": float(loss.detach()),
                "cosine": float(off.cosine),
                "gradient_error": float(off.error),
                **landmarks_of((x @ w.detach()).double(), solver, bandwidth),
            }
            rows.append(row)
        adam.step()
    return rows


def misfit(solver: Solver, x: Tensor, target: Tensor, w: Tensor, v: Tensor, out: Tensor) -> Tensor:
    """Mean squared error of the layer, in units of the target's variance."""
    q = x @ w
    return (centred(Soft(RANK, pinv=solver)(q, q, x @ v)) @ out - target).square().mean()


def centred(y: Tensor) -> Tensor:
    """Each sequence less its mean, which needs no attention."""
    return y - y.mean(-2, keepdim=True)


def landmarks_of(q: Tensor, solver: Solver, bandwidth: float) -> Row:
    """The worst residual that the solver leaves over the sequences, and the landmarks' spread."""
    op = Soft(RANK, pinv=solver)
    core = op.core(q, q)
    if isinstance(solver, Ridge):
        core, solver = solver.shifted(core), solver.solver
    with torch.no_grad():
        worst = float(range_residual(core, solver(core)).max())
    z = centred(op.landmarks(q, RANK))
    return {"residual": worst, "spread": float(z.square().mean().sqrt()) / bandwidth}


BY_STEP = Lines(
    x="step",
    y="loss",
    group="rule",
    panel="task",
    page="newton",
    xlabel="training step",
    ylabel="loss",
    xscale="linear",
    caption="Loss by training step with {page}; medians and quartiles of the seeds.",
    name="loss",
)

STUDY = Study(
    name="training",
    title="Training through an iterative inverse",
    question="How does a biased gradient of the inverse change a few hundred steps of training a "
    "small attention layer?",
    axes={
        "task": tuple(TASKS),
        "steps": (SOFTS, 6),
        "rule": (*RULES, EXACT, "implicit, ridge", "unrolled, ridge"),
        "seed": range(2),
    },
    quick={
        "task": ["near duplicates throughout"],
        "steps": [SOFTS],
        "rule": [IMPLICIT, UNROLLED],
        "seed": [0],
    },
    measure=measure,
    within=("step",),
    keep=keep,
    figures=(
        BY_STEP,
        replace(
            BY_STEP,
            y="cosine",
            yscale="linear",
            where={"rule": [IMPLICIT, "Golub-Pereyra", UNROLLED, "implicit, ridge"]},
            ylabel="cosine with the true gradient",
            caption="Cosine of dL/dW, W the projection to queries and keys, with that of the "
            "computed map by training step, with {page}. Medians and quartiles.",
            name="cosine",
        ),
    ),
)
