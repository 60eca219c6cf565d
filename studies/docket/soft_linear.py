"""SOFT: the cost is linear in the number of tokens."""

from __future__ import annotations

import math
from collections.abc import Callable

from softlab.core import Dims, Operator
from softlab.docket import Claim
from softlab.operators import GaussianAttention, LinearAttention, Soft
from softlab.verdicts import Rule

FIXED, RELEASED = "49 of any n", "n / 16, as released"


def exponent(op_at: Callable[[int], Operator], n: int) -> float:
    """The exponent of the counted work from n to 2 n tokens."""
    small, large = (op_at(x).cost(Dims(1, x, x, 32, 32)).work for x in (n, 2 * n))
    return math.log2(large / small)


def measure(landmarks: str, n: int) -> dict[str, float]:
    """Exponents of SOFT, of the exact matrix, and of linear attention."""

    def soft(tokens: int) -> Soft:
        return Soft(49 if landmarks == FIXED else tokens // 16)

    exact = GaussianAttention()
    return {
        "SOFT": exponent(soft, n),
        "exact Gaussian attention": exponent(lambda _: exact, n),
        "linear attention": exponent(lambda _: LinearAttention(), n),
    }


CLAIM = Claim(
    name="soft-linear",
    title="SOFT is linear in the tokens",
    who="Lu et al. 2021",
    place="arXiv 2110.11945, Table 2 and Fig. 1b",
    states="SOFT costs O(n) in the number n of tokens.",
    published="O(n)",
    setting="SOFT-Tiny with 49 landmarks; the released code fixes the stride of its convolution "
    "instead, so that stages have n/64, n/16 and n/4 landmarks.",
    lacking="nothing: the work is counted, at 6272 and 12544 tokens, heads of width 32.",
    measured="exponent of the counted work from n to 2n",
    axes={"landmarks": (FIXED, RELEASED), "n": (784, 1568, 3136, 6272)},
    quick={"n": (1568, 6272)},
    measure=measure,
    subject="SOFT",
    controls={"exact Gaussian attention": "contrast", "linear attention": "optimal"},
    rule=Rule(at_most=1.05, where={"n": 6272}, scale="linear", span=(0, 4)),
    across="n",
    xlabel="tokens n",
)
