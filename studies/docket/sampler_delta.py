"""vAttention: the estimate of the denominator misses eps with probability delta at most."""

from __future__ import annotations

import dataclasses
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from softlab.core import Stream
from softlab.docket import Challenge, Claim
from softlab.inputs import Recorded, recorded_names
from softlab.operators import AdaptiveSample
from softlab.verdicts import Rule

SUBJECT, CORRECTED = "published budget", "two-sided, Student, without replacement"
FEWER, ALL = "a quarter of the draws", "all keys"
HEADS = recorded_names()
EPS, DELTA, ROUNDS = 0.1, 0.1, 4


def tokens(head: str) -> tuple[Tensor, Tensor]:
    """The first queries and all keys of a recorded head in float64."""
    q, k, _ = Recorded(head)(0, dtype=torch.float64)
    return q[:256], k


def measure(setup: tuple[Tensor, Tensor], top: float, seed: int) -> dict[str, float]:
    """How often eps is missed, over delta, by all queries of a head and a few draws."""
    q, k = setup
    published = AdaptiveSample(EPS, DELTA, top=round(top * len(k)), base=0.05, form="published")
    forms = {
        SUBJECT: published,
        CORRECTED: dataclasses.replace(published, form="corrected"),
        FEWER: dataclasses.replace(published, eps=2 * EPS),
        ALL: dataclasses.replace(published, top=len(k)),
    }
    return {
        name: sum(
            float(
                (dataclasses.replace(op, seed=ROUNDS * seed + i).denominators(q, k) - 1)
                .abs()
                .gt(EPS)
                .double()
                .mean()
            )
            for i in range(ROUNDS)
        )
        / ROUNDS
        / DELTA
        for name, op in forms.items()
    }


def lognormal(sigma: float, seed: int) -> dict[str, float]:
    """In numpy, for lognormal weights: no head, no operator, a fresh draw each time."""
    rng = np.random.default_rng(Stream(seed, "sampler-delta, challenge").number)
    l, rounds = 8000, 150
    missed = dict.fromkeys((SUBJECT, CORRECTED, FEWER, ALL), 0)
    z = NormalDist().inv_cdf(1 - DELTA)
    two = NormalDist().inv_cdf(1 - DELTA / 2)
    for _ in range(rounds):
        w = np.sort(np.exp(sigma * rng.standard_normal(l)))[::-1]
        heavy, light = w[: l // 50].sum(), w[l // 50 :]
        r = len(light)
        base = rng.choice(light, r // 20)
        wanted = base.std(ddof=1) * r / (EPS / 4 * (heavy + r * base.mean()))
        for name, factor in ((SUBJECT, z), (CORRECTED, two), (FEWER, z / 2)):
            b = int(np.clip((factor * wanted) ** 2, 2, r))
            if name == CORRECTED:
                b = int(np.ceil(b / (1 + b / r)))
            got = heavy + r * rng.choice(light, b, replace=name != CORRECTED).mean()
            missed[name] += abs(got / w.sum() - 1) > EPS / 4
    return {name: count / rounds / DELTA for name, count in missed.items()}


CLAIM = Claim(
    name="sampler-delta",
    title="A sampler with stated error and probability keeps both",
    who="Desai et al. 2025 (vAttention)",
    place="arXiv 2510.05688, Sec. 4; adaptive_sampling.py of sparse-attention-hub",
    states="The sampled denominator is off by more than eps with probability delta at most.",
    published="eps and delta as stated, by the central limit theorem",
    setting="Heavy keys exactly, a base sample of a few per cent, eps and delta of some per cent, "
    "32k tokens.",
    lacking="32k tokens: 256 queries of six heads of 512 and 1025 keys, eps = delta = 0.1. "
    "Heavy keys are found by an index there, and exactly here.",
    measured="share of misses over delta",
    axes={"head": HEADS, "top": (0.02, 0.1), "seed": range(4)},
    quick={"head": HEADS[::2], "top": (0.02,), "seed": range(3)},
    setup=tokens,
    measure=measure,
    subject=SUBJECT,
    controls={FEWER: "contrast", ALL: "optimal"},
    rule=Rule(at_most=1.0, scale="linear", span=(0.0, 1 / DELTA)),
    across="top",
    xlabel="share of keys that are exact",
    challenge=Challenge(
        about="numpy, lognormal weights, 8000 of them, eps = 0.025, every draw afresh",
        axes={"sigma": (0.5, 1.0), "seed": range(6)},
        quick={"sigma": (1.0,), "seed": range(4)},
        measure=lognormal,
    ),
)
