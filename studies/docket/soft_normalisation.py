"""SOFT: the symmetric normalisation keeps the norm of the matrix from growing with the tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from softlab.core import Operator, Stream, as_matrix
from softlab.docket import Challenge, Claim
from softlab.inputs import Clustered, Input, Normal, Smooth
from softlab.operators import GaussianAttention, Soft
from softlab.verdicts import Rule

SUBJECT, BARE, EXACT = "released normalisation", "not normalised", "exact normalisation"
CONTROLS = {BARE: "contrast", EXACT: "optimal"}
LENGTHS = (196, 392, 784)
POWERS = 40


def family(name: str, n: int) -> Input:
    """Drawn tokens of one kind."""
    if name == "clustered":
        return Clustered(n, 32, clusters=16, spread=0.2)
    return Smooth(n, 32, length=32.0) if name == "smooth" else Normal(n, 32, scale=0.5)


def norm(matrix: Tensor) -> float:
    """The spectral norm of a symmetric matrix with entries of one sign at its top, by powers."""
    x = Stream(0, "docket.soft-normalisation").normal(len(matrix), 4)
    for _ in range(POWERS):
        x = torch.linalg.qr(matrix @ x).Q
    return float(torch.linalg.matrix_norm(x.mT @ matrix @ x, 2))


def growth(op: Operator, name: str, seed: int, n: int) -> float:
    """The exponent of the norm from n to 2 n tokens."""
    found = []
    for length in (n, 2 * n):
        q = family(name, length)(seed, dtype=torch.float64).q
        found.append(norm(as_matrix(op, q, q)))
    return math.log2(found[1] / found[0])


def measure(tokens: str, n: int, seed: int) -> dict[str, float]:
    """Exponents with the released normalisation, with none, and with the exact one."""
    return {
        SUBJECT: growth(Soft(49, normalization="published"), tokens, seed, n),
        BARE: growth(Soft(49), tokens, seed, n),
        EXACT: growth(GaussianAttention(normalization="symmetric"), tokens, seed, n),
    }


def by_formula(repeats: int, seed: int) -> dict[str, float]:
    """Of 49 distinct tokens, each so many times over, and twice as many: the m x m problem alone.

    With landmarks at the distinct tokens P repeats the core A: the norm of P^T M P is that of
    A^(1/2) M A^(1/2) times the repeats.
    """
    x = Stream(seed, "docket.soft-normalisation.again").normal(49, 32) * 0.5
    a = torch.exp(-torch.cdist(x, x).square() / (2 * math.sqrt(32)))
    root = a.sum(0).rsqrt()
    inverse = torch.linalg.pinv(a, hermitian=True)

    def of(times: int, core: Tensor) -> float:
        p = a.repeat(1, times)
        return float(torch.linalg.matrix_norm(p.mT @ core @ p, 2))

    def exact(times: int) -> float:
        s = a.repeat(times, times)
        scale = s.sum(0).rsqrt()
        return float(torch.linalg.matrix_norm(scale[:, None] * s * scale, 2))

    scaled = root[:, None] * inverse * root
    return {
        SUBJECT: math.log2(of(2 * repeats, scaled) / of(repeats, scaled)),
        BARE: math.log2(of(2 * repeats, inverse) / of(repeats, inverse)),
        EXACT: math.log2(exact(2 * repeats) / exact(repeats)),
    }


CLAIM = Claim(
    name="soft-normalisation",
    title="SOFT's normalisation bounds the norm",
    who="Lu et al. 2024",
    place="arXiv 2207.03341, abstract, and the released code",
    states="The symmetric normalisation D^-1/2 A^+ D^-1/2 of the m x m core keeps the spectral "
    "norm of the matrix from growing with the number of tokens, so that long sequences can be had.",
    published="an efficient symmetric normalisation (no number)",
    setting="SOFT++ for dense prediction, n up to 16384 tokens.",
    lacking="trained weights, and the body of the journal paper, which was not read: the formula "
    "is that of the released code.",
    measured="exponent of the spectral norm from n to 2n tokens",
    axes={"tokens": ("clustered", "smooth", "normal"), "n": LENGTHS, "seed": range(4)},
    quick={"n": (196, 784), "seed": range(2), "tokens": ("clustered", "normal")},
    measure=measure,
    subject=SUBJECT,
    controls=CONTROLS,
    rule=Rule(at_most=0.1, where={"n": 784}, scale="linear", span=(-4, 4)),
    across="n",
    xlabel="tokens n",
    challenge=Challenge(
        about="repeated tokens, by torch's own pseudo-inverse",
        axes={"repeats": (2, 4, 8), "seed": range(4)},
        quick={"repeats": (2, 4), "seed": range(2)},
        measure=by_formula,
        rule=Rule(at_most=0.1, scale="linear", span=(-4, 4)),
    ),
)
