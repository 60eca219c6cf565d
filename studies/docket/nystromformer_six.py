"""Nystromformer: six iterations suffice for the pseudo-inverse of its core."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from softlab.docket import Challenge, Claim
from softlab.inputs import Clustered, Input, Normal, Recorded, Smooth, recorded_names
from softlab.operators import Nystromformer
from softlab.pinv import NystromformerCubic
from softlab.verdicts import Rule

SUBJECT = "published iteration"
STEPS = (2, 4, 6, 9, 12, 18)
FAMILIES: dict[str, Input] = {
    "normal": Normal(512, 64),
    "clustered": Clustered(512, 64, clusters=64),
    "smooth": Smooth(512, 64, length=32.0),
}


class Core(NamedTuple):
    """A core as the method has it, the same in float64, and its pseudo-inverse."""

    a: Tensor
    wide: Tensor
    inverse: Tensor


def of_head(head: str, seed: int, dtype: torch.dtype) -> Core:
    """The core of a recorded head with 64 landmarks."""
    q, k, _ = Recorded(head)(seed, dtype=dtype)
    a = Nystromformer(64).core(q, k)
    return Core(a, a.double(), torch.linalg.pinv(a.double()))


def judged(found: Core, x: Tensor) -> dict[str, float]:
    """Residuals |A X A - A| / |A| of an inverse x and of the controls."""

    def residual(inverse: Tensor) -> float:
        a = found.wide
        return float(torch.linalg.norm(a @ inverse @ a - a) / torch.linalg.norm(a))

    return {
        SUBJECT: residual(x),
        "zeros": residual(torch.zeros_like(x)),
        "SVD": residual(found.inverse),
    }


def measure(setup: Core, steps: int) -> dict[str, float]:
    """Residuals after so many steps."""
    return judged(setup, NystromformerCubic(steps)(setup.a).double())


def of_family(family: str, seed: int) -> Core:
    """The core of drawn tokens: a softmax of segment means, by torch alone."""
    q, k, _ = FAMILIES[family](seed, dtype=torch.float64)
    means = [torch.stack([x.mean(0) for x in y.tensor_split(64)]) for y in (q, k)]
    a = torch.softmax(means[0] @ means[1].mT / q.shape[-1] ** 0.5, -1)
    return Core(a, a, torch.linalg.pinv(a))


def by_singular_values(setup: Core, steps: int) -> dict[str, float]:
    """The same without a matrix product: a residual r becomes (3 r^3 + r^4) / 4 in each step."""
    u, s, vh = torch.linalg.svd(setup.a)
    left = 1 - s * s / (setup.a.abs().sum(0).max() * setup.a.abs().sum(1).max())
    for _ in range(steps):
        left = (3 * left**3 + left**4) / 4
    return judged(setup, vh.mT @ (((1 - left) / s)[:, None] * u.mT))


CLAIM = Claim(
    name="nystromformer-six",
    title="Six iterations invert Nystromformer's core",
    who="Xiong et al. 2021",
    place="arXiv 2102.03902, section on the approximation of the pseudo-inverse",
    states="Six iterations suffice for a good approximation of the pseudo-inverse of the core.",
    published="6 iterations",
    setting="BERT-small and BERT-base with 64 landmarks, trained.",
    lacking="weights trained with Nystromformer: the cores are those of six softmax heads. The "
    "paper names no tolerance: 10 % is ours.",
    measured="relative residual after 6 steps",
    axes={"head": recorded_names(), "seed": range(4), "steps": STEPS},
    quick={"head": recorded_names()[::2], "seed": range(2), "steps": (6, 12)},
    setup=of_head,
    measure=measure,
    subject=SUBJECT,
    controls={"zeros": "null", "SVD": "optimal"},
    rule=Rule(at_most=0.1, where={"steps": 6}),
    across="steps",
    challenge=Challenge(
        about="singular values in place of products, on three families of drawn tokens",
        axes={"family": list(FAMILIES), "seed": range(4), "steps": (6,)},
        quick={"seed": range(2)},
        setup=of_family,
        measure=by_singular_values,
    ),
)
