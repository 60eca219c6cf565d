"""SOFT: between 36 and 81 landmarks their number hardly matters."""

from __future__ import annotations

import torch

from softlab import measures
from softlab.docket import Challenge, Claim
from softlab.inputs import Clustered, Input, Normal, Recorded, Smooth, Tied, recorded_names
from softlab.operators import GaussianAttention, Soft
from softlab.verdicts import Rule

LANDMARKS = (36, 49, 64, 81)
SUBJECT, BEST, MEAN = "SOFT", "best of the rank", "the mean of v"
FAMILIES: dict[str, Input] = {
    "normal": Normal(512, 32, scale=0.7),
    "clustered": Clustered(512, 32, clusters=100),
    "smooth": Smooth(512, 32, length=16.0),
}


def of_head(head: str, seed: int, dtype: torch.dtype, device: torch.device) -> measures.Sample:
    """A recorded head with its keys tied, and its exact answers."""
    return measures.sample(Tied(Recorded(head)), seed, dtype=dtype, device=device)


def measure(setup: measures.Sample, landmarks: int) -> dict[str, float]:
    """The errors of the output over those with 36 landmarks."""
    target = GaussianAttention()
    reference = setup.reference(target)
    qkv = setup.q, setup.k, setup.v

    def error(rank: int) -> float:
        return float(measures.output_error(Soft(rank), *qkv, reference)["output_error"])

    def best(rank: int) -> float:
        return float(measures.best_of_rank(rank, reference)["output_error"])

    first = LANDMARKS[0]
    return {
        SUBJECT: error(landmarks) / error(first),
        BEST: best(landmarks) / best(first),
        MEAN: 1.0,
    }


def of_family(family: str, seed: int) -> torch.Tensor:
    """The Gaussian matrix of drawn tokens."""
    q = FAMILIES[family](seed, dtype=torch.float64).q
    return torch.exp(-torch.cdist(q, q).square() / (2 * q.shape[-1] ** 0.5))


def of_matrix(setup: torch.Tensor, landmarks: int) -> dict[str, float]:
    """The same of the matrix, with strided tokens as landmarks and torch's own solver."""
    s = setup

    def error(m: int) -> float:
        at = torch.arange(m) * len(s) // m
        solved = torch.linalg.lstsq(s[at][:, at], s[at], driver="gelsd").solution
        return float((s[:, at] @ solved - s).norm())

    values = torch.linalg.eigvalsh(s).flip(0)

    def best(m: int) -> float:
        return float(values[m:].norm())

    first = LANDMARKS[0]
    return {
        SUBJECT: error(landmarks) / error(first),
        BEST: best(landmarks) / best(first),
        MEAN: 1.0,
    }


CLAIM = Claim(
    name="soft-rank",
    title="SOFT's rank hardly matters",
    who="Lu et al. 2021",
    place="arXiv 2110.11945, Table 4a",
    states="From 36 to 81 landmarks the number of them hardly matters.",
    published="top-1 79.0, 79.3, 79.3, 78.9 with 36, 49, 64, 81",
    setting="SOFT-Tiny trained on ImageNet with each number, top-1 accuracy.",
    lacking="training: the error of the output on six heads with tied keys stands for accuracy, "
    "and 10 % for hardly. A network may train around an error that we see.",
    measured="error of the output over that with 36 landmarks",
    axes={"head": recorded_names(), "seed": range(4), "landmarks": LANDMARKS},
    quick={"head": recorded_names()[::2], "seed": range(2), "landmarks": (36, 81)},
    setup=of_head,
    measure=measure,
    subject=SUBJECT,
    controls={BEST: "contrast", MEAN: "optimal"},
    rule=Rule(at_least=1 / 1.1, at_most=1.1, where={"landmarks": 81}),
    across="landmarks",
    challenge=Challenge(
        about="the error of the matrix on drawn tokens, strided landmarks, least squares",
        axes={"family": list(FAMILIES), "seed": range(4), "landmarks": (36, 81)},
        quick={"seed": range(2)},
        setup=of_family,
        measure=of_matrix,
    ),
)
