"""Newton-Schulz makes almost no progress for its first 17 steps towards the polar factor."""

from __future__ import annotations

import torch

from softlab.docket import Claim
from softlab.verdicts import Rule

SUBJECT, JORDAN = "Newton-Schulz", "Jordan's quintic"
QUINTICS = {SUBJECT: (15 / 8, -10 / 8, 3 / 8), JORDAN: (3.4445, -4.7750, 2.0315)}


def measure(steps: int) -> dict[str, float]:
    """The spectral distance to the polar factor, which is that of the singular values to 1."""
    start = torch.logspace(-6, 0, 1000, dtype=torch.float64)
    found = {"no step": float((start - 1).abs().max()), "the polar factor": 0.0}
    for name, (a, b, c) in QUINTICS.items():
        s = start
        for _ in range(steps):
            s = a * s + b * s**3 + c * s**5
        found[name] = float((s - 1).abs().max())
    return found


CLAIM = Claim(
    name="newton-schulz-stalls",
    title="Newton-Schulz stalls for 17 steps",
    who="Amsel et al. 2025",
    place="arXiv 2505.16932, Fig. 4, left",
    states="Newton-Schulz of degree 5 makes almost no progress for the first 17 steps, where the "
    "singular values reach from 1e-6 to 1.",
    published="almost no progress for the first 17 iterations",
    setting="singular values spaced evenly in the logarithm from 1e-6 to 1, degree 5, spectral "
    "error.",
    lacking="nothing; almost none is read as an error of 0.9 at least.",
    measured="spectral distance to the polar factor",
    axes={"steps": tuple(range(1, 26))},
    quick={"steps": (5, 11, 17, 24)},
    measure=measure,
    subject=SUBJECT,
    controls={JORDAN: "contrast", "no step": "optimal", "the polar factor": "contrast"},
    rule=Rule(at_least=0.9, where={"steps": 17}, span=(0, 1)),
    across="steps",
    xscale="linear",
)
