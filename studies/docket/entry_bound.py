"""Fast attention: the entries of queries and keys are below the root of log n."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from softlab.docket import Challenge, Claim
from softlab.inputs import Normal, Recorded, recorded_names
from softlab.verdicts import Rule

SUBJECT, WILD, TAME = "trained head", "normal, scale 8", "normal, scale 0.1"
LENGTHS = (64, 128, 256, 512)


def bound(q: Tensor, k: Tensor, n: int) -> float:
    """B / sqrt(log n) of the first n tokens, B the largest entry of q and k for exp(q k^T / d)."""
    d = q.shape[-1]
    largest = torch.cat((q[:n], k[:n])).abs().max()
    return float(largest) * math.sqrt(math.sqrt(d) / math.log(n))


def least_bound(q: Tensor, k: Tensor, n: int) -> float:
    """The least that B / sqrt(log n) can be after any common rotation and exchange of scales."""
    longest = math.prod(float(x[:n].norm(dim=-1).max()) for x in (q, k))
    return math.sqrt(longest / math.sqrt(q.shape[-1]) / math.log(n))


def of(
    rule: Callable[[Tensor, Tensor, int], float], head: str, seed: int, n: int
) -> dict[str, float]:
    """A head's, and that of drawn tokens, far outside and far inside."""
    q, k, _ = Recorded(head)(seed, dtype=torch.float64)
    found = {SUBJECT: rule(q, k, n)}
    for name, scale in ((WILD, 8.0), (TAME, 0.1)):
        x, y, _ = Normal(n, q.shape[-1], scale=scale)(seed, dtype=torch.float64)
        found[name] = rule(x, y, n)
    return found


def measure(head: str, seed: int, n: int) -> dict[str, float]:
    """Of the entries."""
    return of(bound, head, seed, n)


def of_lengths(head: str, seed: int, n: int) -> dict[str, float]:
    """Of the lengths."""
    return of(least_bound, head, seed, n)


CLAIM = Claim(
    name="entry-bound",
    title="Entries are small enough for fast attention",
    who="Alman and Song 2023",
    place="arXiv 2302.13214, Theorem 1.4",
    states="Attention can be approximated in almost linear time where the entries of queries and "
    "keys are below sqrt(log n), as they are said to be in practice.",
    published="B = o(sqrt(log n))",
    setting="exp(q k^T / d) with d = O(log n), n to infinity.",
    lacking="n to infinity: the first 512 tokens of six heads. The constant in o() is taken as 1.",
    measured="largest entry over sqrt(log n)",
    axes={"head": recorded_names(), "seed": range(4), "n": LENGTHS},
    quick={"seed": range(2), "n": (64, 512)},
    measure=measure,
    subject=SUBJECT,
    controls={WILD: "contrast", TAME: "optimal"},
    rule=Rule(at_most=1.0, where={"n": 512}),
    across="n",
    xlabel="tokens n",
    challenge=Challenge(
        about="the least bound that any rotation and rescaling of queries and keys leaves",
        axes={"head": recorded_names(), "seed": range(4), "n": (512,)},
        quick={"seed": range(2)},
        measure=of_lengths,
    ),
)
