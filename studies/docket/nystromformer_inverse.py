"""Nystromformer: a better pseudo-inverse of its core makes a better attention."""

from __future__ import annotations

import torch

from softlab import measures
from softlab.docket import Challenge, Claim
from softlab.inputs import Recorded, recorded_names
from softlab.operators import Nystromformer, Softmax
from softlab.verdicts import Rule

SUBJECT, SIX, MEAN, BEST = "exact inverse", "6 steps", "the mean of v", "best of the rank"


def of_head(head: str, seed: int, device: torch.device) -> measures.Sample:
    """A recorded head with its exact answers."""
    return measures.sample(Recorded(head), seed, dtype=torch.float64, device=device)


def measure(setup: measures.Sample, landmarks: int) -> dict[str, float]:
    """Errors of the output: core inverted exactly, by the published steps, and of the controls."""
    reference = setup.reference(Softmax())
    op = Nystromformer(landmarks)

    def error(of: Nystromformer) -> float:
        found = measures.output_error(of, setup.q, setup.k, setup.v, reference)
        return float(found["output_error"])

    return {
        SUBJECT: error(op.inverted_exactly()),
        SIX: error(op),
        MEAN: reference.uniform_error,
        BEST: float(measures.best_of_rank(landmarks, reference)["output_error"]),
    }


def by_torch(head: str, seed: int, landmarks: int) -> dict[str, float]:
    """The same written out, with the segments that torch cuts."""
    q, k, v = Recorded(head)(seed, dtype=torch.float64)
    q = q / q.shape[-1] ** 0.5
    zq, zk = (torch.stack([x.mean(0) for x in y.tensor_split(landmarks)]) for y in (q, k))
    matrix, left, core, right = (
        torch.softmax(x @ y.mT, -1) for x, y in ((q, k), (q, zk), (zq, zk), (zq, k))
    )
    exact, eye = matrix @ v, torch.eye(landmarks, dtype=torch.float64)
    x = core.mT / (core.sum(0).max() * core.sum(1).max())
    for _ in range(6):
        ax = core @ x
        x = x @ (13 * eye - ax @ (15 * eye - ax @ (7 * eye - ax))) / 4
    u, s, vh = torch.linalg.svd(matrix)
    best = (u[:, :landmarks] * s[:landmarks]) @ (vh[:landmarks] @ v)
    outputs = {
        SUBJECT: left @ (torch.linalg.pinv(core) @ (right @ v)),
        SIX: left @ (x @ (right @ v)),
        MEAN: v.mean(0).expand_as(exact),
        BEST: best,
    }
    return {name: float((out - exact).norm() / exact.norm()) for name, out in outputs.items()}


CLAIM = Claim(
    name="nystromformer-inverse",
    title="A better inverse makes Nystromformer better",
    who="Xiong et al. 2021",
    place="arXiv 2102.03902, the analysis of its error",
    states="The iteration errs less the closer it is to the pseudo-inverse: with the core inverted "
    "exactly the output errs no more than with the six steps.",
    published="the error falls to that of the exact pseudo-inverse (an argument, no number)",
    setting="softmax attention of trained BERT models.",
    lacking="weights trained with Nystromformer: the heads are of softmax models. No more "
    "allows for the rounding of an inverse, a millionth, where the six steps have converged. It "
    "allowed 1 % at first, which was set when rows were known and nothing published says.",
    measured="error of the output",
    axes={"head": recorded_names(), "seed": range(4), "landmarks": (16, 32, 64, 128)},
    quick={"head": recorded_names()[::2], "seed": range(2), "landmarks": (16, 64)},
    setup=of_head,
    measure=measure,
    subject=SUBJECT,
    controls={MEAN: "null", BEST: "optimal"},
    rule=Rule(at_most=1 + 1e-6, of=SIX, where={"landmarks": 64}),
    across="landmarks",
    challenge=Challenge(
        about="the formula written out in torch alone",
        axes={"head": recorded_names(), "seed": range(4), "landmarks": (64,)},
        quick={"head": recorded_names()[::2], "seed": range(2)},
        measure=by_torch,
    ),
)
