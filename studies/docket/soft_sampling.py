"""SOFT: how landmarks are sampled does not matter."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from softlab import measures
from softlab.core import Stream
from softlab.docket import Challenge, Claim
from softlab.inputs import Clustered, Input, Normal, Recorded, Smooth, Tied, recorded_names
from softlab.landmarks import SegmentMeans, UniformRandom
from softlab.operators import GaussianAttention, Soft
from softlab.pinv import SVD
from softlab.verdicts import Rule

SUBJECT, ONE, AGAIN = "this sampling", "one token for all", "another draw"
SAMPLERS = ("random", "first tokens")
FAMILIES: dict[str, Input] = {
    "normal": Normal(512, 32, scale=0.7),
    "clustered": Clustered(512, 32, clusters=32),
    "smooth": Smooth(512, 32, length=32.0),
}


class Setting(NamedTuple):
    """Tokens, values, and the exact output."""

    q: Tensor
    v: Tensor
    exact: Tensor


def of_head(head: str, seed: int) -> Setting:
    """A recorded head with its keys tied."""
    q, _, v = Tied(Recorded(head))(seed, dtype=torch.float64)
    return Setting(q, v, kernel(q, q) @ v)


def kernel(x: Tensor, y: Tensor) -> Tensor:
    """SOFT's Gaussian kernel."""
    return torch.exp(-torch.cdist(x, y).square() / (2 * x.shape[-1] ** 0.5))


def error(found: Setting, z: Tensor) -> float:
    """That of the output by Nystrom's formula with landmarks z, solved exactly."""
    p = kernel(z, found.q)
    inverse = torch.linalg.pinv(kernel(z, z), hermitian=True, rtol=1e-10)
    return float((p.mT @ (inverse @ (p @ found.v)) - found.exact).norm() / found.exact.norm())


def measure(setup: Setting, sampler: str, m: int, seed: int) -> dict[str, float]:
    """Errors over that of pooling."""
    q = setup.q
    pooled = torch.stack([x.mean(0) for x in q.tensor_split(m)])

    def draw(number: int) -> Tensor:
        return q[Stream(seed, f"docket.soft-sampling.{number}").permutation(len(q))[:m]]

    z = draw(0) if sampler == "random" else q[:m]
    base = error(setup, pooled)
    return {
        SUBJECT: error(setup, z) / base,
        ONE: error(setup, q[:1]) / base,
        AGAIN: error(setup, draw(1)) / error(setup, draw(2)),
    }


def of_family(family: str, seed: int) -> measures.Sample:
    """Drawn tokens with tied keys."""
    return measures.sample(
        Tied(FAMILIES[family]), seed, dtype=torch.float64, device=torch.device("cpu")
    )


def by_operator(setup: measures.Sample, sampler: str, m: int, seed: int) -> dict[str, float]:
    """The same by softlab's operator and selectors."""
    reference = setup.reference(GaussianAttention())

    def error(op: Soft) -> float:
        out = op(setup.q, setup.k, setup.v)
        return measures.relative(out - reference.output, reference.output)

    base = error(Soft(m, landmarks=SegmentMeans(), pinv=SVD()))
    draws = [error(Soft(m, landmarks=UniformRandom(3 * seed + i), pinv=SVD())) for i in range(3)]
    mine = draws[0]
    if sampler != "random":
        p = kernel(setup.q[:m], setup.q)
        core = SVD()(kernel(setup.q[:m], setup.q[:m]))
        mine = measures.relative(p.mT @ (core @ (p @ setup.v)) - reference.output, reference.output)
    return {
        SUBJECT: mine / base,
        ONE: error(Soft(1, landmarks=UniformRandom(seed))) / base,
        AGAIN: draws[1] / draws[2],
    }


CLAIM = Claim(
    name="soft-sampling",
    title="SOFT's sampling does not matter",
    who="Lu et al. 2021",
    place="arXiv 2110.11945, Table 4b",
    states="Pooled, random and convolved landmarks serve alike, and the first tokens nearly so.",
    published="top-1 79.3 pooled, 79.3 random, 79.3 convolved, 79.0 the first",
    setting="SOFT-Tiny trained on ImageNet with each sampling, top-1 accuracy.",
    lacking="training, and with it learned convolutions: the error of the output on six heads with "
    "tied keys stands for accuracy, and 10 % for alike.",
    measured="error of the output over that with pooled landmarks",
    axes={"head": recorded_names(), "sampler": SAMPLERS, "seed": range(4), "m": (16, 49, 100)},
    quick={"head": recorded_names()[::2], "seed": range(2), "m": (49,)},
    setup=of_head,
    measure=measure,
    subject=SUBJECT,
    controls={ONE: "null"},
    rule=Rule(at_least=1 / 1.1, at_most=1.1, where={"m": 49}),
    across="m",
    xlabel="landmarks",
    challenge=Challenge(
        about="softlab's operator and selectors on drawn tokens",
        axes={"family": list(FAMILIES), "sampler": SAMPLERS, "seed": range(4), "m": (49,)},
        quick={"seed": range(2)},
        setup=of_family,
        measure=by_operator,
    ),
)
