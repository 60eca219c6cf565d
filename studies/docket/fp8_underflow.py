"""How many probabilities underflow in FP8 is a closed formula of the sink's margin."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from softlab.core import Stream
from softlab.docket import Challenge, Claim
from softlab.verdicts import Rule

SUBJECT, BARE, AGAIN = "published formula", "formula without the sink", "another draw"
LEAST = 10 * math.log(2)
"""-log of 2^-10, half the least number of float8_e4m3fn: 6.93."""
RISE = 1.029
"""Mean of the greatest of four standard normal numbers: the published "about 1 for 4 sinks"."""
ROWS, KEYS, SINKS = 512, 2048, 4


def normal_below(x: float) -> float:
    """The standard normal distribution function."""
    return math.erfc(-x / math.sqrt(2)) / 2


def scores(margin: float, seed: int, part: str) -> Tensor:
    """Rows of standard normal scores, of which four, the sinks', are higher by the margin."""
    s = Stream(seed, f"docket.fp8-underflow.{part}").normal(ROWS, KEYS)
    s[:, :SINKS] += margin
    return s


def underflown(s: Tensor, scale: float) -> float:
    """The share of exp(s - max) that float8_e4m3fn has as 0, when it is scaled before."""
    p = torch.exp(s - s.amax(-1, keepdim=True))
    return float((scale * p).float().to(torch.float8_e4m3fn).float().eq(0).double().mean())


def compared(seen: float, again: float, margin: float, scale: float) -> dict[str, float]:
    """What is seen over what is said."""
    said = normal_below(margin + RISE - LEAST - math.log(scale))
    bare = normal_below(RISE - LEAST - math.log(scale))
    return {SUBJECT: seen / said, BARE: seen / bare, AGAIN: seen / again if again else math.inf}


def measure(margin: float, scale: float, seed: int) -> dict[str, float]:
    """Shares that torch's own cast sets to zero."""
    first, second = (underflown(scores(margin, seed, part), scale) for part in ("one", "two"))
    return compared(first, second, margin, scale)


def by_threshold(margin: float, scale: float, seed: int) -> dict[str, float]:
    """The same without the format: scores below the threshold."""
    shares = []
    for part in ("three", "four"):
        s = scores(margin, seed, part)
        below = s - s.amax(-1, keepdim=True) < -LEAST - math.log(scale)
        shares.append(float(below.double().mean()))
    return compared(shares[0], shares[1], margin, scale)


def seen(margin: float, scale: float) -> bool:
    """Without the cases in which next to nothing underflows."""
    return scale == 1 or margin >= 8


CLAIM = Claim(
    name="fp8-underflow",
    title="A formula tells the underflow of FP8 probabilities",
    who="P-cast",
    place="arXiv 2606.06521, the underflow law",
    states="With standard normal scores and sinks at a margin D a share Phi(D + d_k - 6.93 - ln S) "
    "of the probabilities underflows, d_k about 1 for four sinks, S the scale of the cast.",
    published="Phi(D + d_k - 6.93 - ln S)",
    setting="e4m3 cast of exp(s - max), scaled by S = 1 or 256.",
    lacking="the text of the paper: the formula is that of a summary. Within 10 % is ours.",
    measured="measured share over that of the formula",
    axes={"margin": (4.0, 6.0, 8.0, 10.0, 12.0), "scale": (1.0, 256.0), "seed": range(4)},
    quick={"margin": (4.0, 8.0, 12.0), "scale": (1.0, 256.0), "seed": range(2)},
    keep=seen,
    measure=measure,
    subject=SUBJECT,
    controls={BARE: "null", AGAIN: "optimal"},
    rule=Rule(at_least=1 / 1.1, at_most=1.1),
    across="margin",
    xlabel="margin of the sinks",
    xscale="linear",
    challenge=Challenge(
        about="a threshold in place of the format",
        axes={"margin": (4.0, 6.0, 8.0, 10.0, 12.0), "scale": (1.0, 256.0), "seed": range(4)},
        quick={"margin": (4.0, 8.0, 12.0), "scale": (1.0, 256.0), "seed": range(2)},
        keep=seen,
        measure=by_threshold,
    ),
)
