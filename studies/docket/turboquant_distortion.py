"""TurboQuant: what rotated scalar quantisation loses at one to four bits."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from softlab.core import Stream
from softlab.docket import Challenge, Claim
from softlab.operators import Quantized
from softlab.verdicts import Rule

SUBJECT = "TurboQuant"
PUBLISHED = {1: 0.36, 2: 0.117, 3: 0.03, 4: 0.009}


def vectors(d: int, seed: int) -> Tensor:
    """Random unit vectors of width d."""
    x = Stream(seed, "docket, unit vectors").normal(2000, d)
    unit: Tensor = x / x.norm(dim=-1, keepdim=True)
    return unit


def over_published(lost: float, bits: int) -> dict[str, float]:
    """The mean square of what is lost over the published one; of zeros all is lost."""
    return {SUBJECT: lost / PUBLISHED[bits], "zeros": 1 / PUBLISHED[bits]}


def measure(bits: int, d: int, seed: int) -> dict[str, float]:
    """By the operator's rounding of keys."""
    x = vectors(d, seed)
    rounded = Quantized("turboquant", bits=bits, parts="k", seed=seed).rounded(x[:1], x)[1]
    return over_published(float((x - rounded).square().sum(-1).mean()), bits)


def by_samples(bits: int, d: int, seed: int) -> dict[str, float]:
    """Without a formula of the normal law: k-means of drawn coordinates, and a plain numpy sum."""
    rng = np.random.default_rng(Stream(seed, "turboquant-distortion, challenge").number)
    x = rng.standard_normal((4000, d))
    x = x / np.linalg.norm(x, axis=1, keepdims=True) * d**0.5
    train, test = np.sort(x[:2000].ravel()), x[2000:].ravel()
    centres = np.quantile(train, (np.arange(2**bits) + 0.5) / 2**bits)
    sums = np.concatenate([[0], np.cumsum(train)])
    for _ in range(300):
        cuts = np.searchsorted(train, (centres[1:] + centres[:-1]) / 2)
        ends = np.concatenate([[0], cuts, [len(train)]])
        centres = np.diff(sums[ends]) / np.diff(ends)
    nearest = np.searchsorted((centres[1:] + centres[:-1]) / 2, test)
    return over_published(float(np.mean((test - centres[nearest]) ** 2)), bits)


CLAIM = Claim(
    name="turboquant-distortion",
    title="What TurboQuant loses at 1 to 4 bits",
    who="Zandieh et al. 2025",
    place="arXiv 2504.19874, Theorem 1",
    states="The mean square error of unit vectors is 0.36, 0.117, 0.03 and 0.009 at 1 to 4 bits.",
    published="0.36, 0.117, 0.03, 0.009",
    setting="Unit vectors in high dimension, a random rotation, Lloyd-Max centroids.",
    lacking="nothing but the width, which the theorem leaves open",
    measured="mean square error over the published one; within 10 % counts as equal",
    axes={"bits": (1, 2, 3, 4), "d": (64, 128), "seed": range(4)},
    quick={"d": (128,), "seed": range(2)},
    measure=measure,
    subject=SUBJECT,
    controls={"zeros": "null"},
    rule=Rule(at_least=0.9, at_most=1.1),
    across="bits",
    xlabel="bits a coordinate",
    xscale="linear",
    challenge=Challenge(
        about="centroids by k-means of drawn coordinates, in numpy, on other vectors",
        axes={"bits": (1, 2, 3, 4), "d": (128,), "seed": range(3)},
        quick={"seed": range(2)},
        measure=by_samples,
    ),
)
