"""Randomly pivoted Cholesky errs less than uniform and greedy pivots on two point sets."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from softlab.core import Stream
from softlab.docket import Challenge, Claim
from softlab.verdicts import Rule

SUBJECT, ZEROS, BEST = "random pivots", "zeros", "best of the rank"
PIVOTS = (10, 25, 50, 100, 150)
MANY = 400
"""Pivots whose factor stands for the matrix where its eigenvalues are asked."""
Array = np.ndarray


def smile(n: int, rng: np.random.Generator) -> tuple[Array, float]:
    """Two round eyes, a mouth, and a face around them; the bandwidth."""
    eye, mouth = int(np.ceil(n**0.5)), int(np.ceil(n / 10))
    parts = []
    for shift in (-4.0, 4.0):
        radius, angle = np.sqrt(rng.random(eye)), 2 * np.pi * rng.random(eye)
        parts.append(np.stack([radius * np.cos(angle) + shift, radius * np.sin(angle) + 4], 1))
    x = np.linspace(-5, 5, mouth)
    parts.append(np.stack([x, x**2 / 16 - 5], 1))
    angle = np.linspace(0, 2 * np.pi, n - 2 * eye - mouth)
    parts.append(10 * np.stack([np.cos(angle), np.sin(angle)], 1))
    return np.concatenate(parts), 2.0


def spiral(n: int, rng: np.random.Generator) -> tuple[Array, float]:  # noqa: ARG001
    """Points that thin out along an exponential spiral; the bandwidth."""
    t = np.linspace(0, 2, n)[::-1] ** 6
    return np.exp(0.2 * t)[:, None] * np.stack([np.cos(t), np.sin(t)], 1), 1000.0


SETS = {"smile": smile, "spiral": spiral}
Choice = Callable[[Array, int], int]


def factored(points: Array, width: float, choose: Choice, count: int) -> tuple[Array, Array]:
    """A partial Cholesky factor (n, count), and the relative trace error after each pivot."""
    n = len(points)
    left, factor, errors = np.ones(n), np.zeros((n, count)), np.zeros(count)
    for i in range(count):
        at = choose(left, i)
        column = np.exp(-((points - points[at]) ** 2).sum(1) / (2 * width**2))
        column -= factor[:, :i] @ factor[at, :i]
        if left[at] > 1e-14:
            factor[:, i] = column / np.sqrt(left[at])
            left = np.maximum(left - factor[:, i] ** 2, 0)
        errors[i] = left.sum() / n
    return factor, errors


def setup(points: str, n: int, seed: int) -> dict[str, Array]:
    """The errors of each method with 1, 2, ... pivots."""
    rng = np.random.default_rng(Stream(seed, f"rpcholesky-points, {n} points").number)
    x, width = SETS[points](n, rng)
    order = rng.permutation(n)
    last = PIVOTS[-1]

    def drawn(left: Array, _: int) -> int:
        return int(rng.choice(n, p=left / left.sum())) if left.sum() > 0 else int(rng.integers(n))

    many, _ = factored(x, width, drawn, MANY)
    values = np.linalg.eigvalsh(many.T @ many)[::-1]
    return {
        SUBJECT: factored(x, width, drawn, last)[1],
        "uniform": factored(x, width, lambda _, i: int(order[i]), last)[1],
        "greedy": factored(x, width, lambda left, _: int(left.argmax()), last)[1],
        BEST: np.maximum(1 - values.cumsum() / n, 0),
    }


def measure(setup: dict[str, Array], rival: str, pivots: int) -> dict[str, float]:
    """Relative trace errors with so many pivots."""
    return {
        SUBJECT: float(setup[SUBJECT][pivots - 1]),
        "the rival": float(setup[rival][pivots - 1]),
        BEST: float(setup[BEST][pivots - 1]),
        ZEROS: 1.0,
    }


def dense(points: str, rival: str, pivots: int, seed: int) -> dict[str, float]:
    """The same of 800 points, by the whole matrix and numpy's pseudo-inverse."""
    rng = np.random.default_rng(Stream(seed, "rpcholesky-points, pivots").number)
    x, width = SETS[points](800, rng)
    a = np.exp(-((x[:, None] - x) ** 2).sum(-1) / (2 * width**2))

    def error(at: list[int]) -> float:
        p = a[at]
        inverse = np.linalg.pinv(a[np.ix_(at, at)], hermitian=True)
        return 1 - float((p * (inverse @ p)).sum() / 800)

    def chosen(rule: Callable[[Array], int]) -> list[int]:
        at: list[int] = []
        rest = a.copy()
        for _ in range(pivots):
            i = rule(np.maximum(rest.diagonal(), 0))
            at.append(i)
            rest = rest - np.outer(rest[:, i], rest[i]) / max(rest[i, i], 1e-14)
        return at

    random = chosen(lambda left: int(rng.choice(800, p=left / left.sum())))
    uniform = [int(i) for i in rng.permutation(800)[:pivots]]
    other = uniform if rival == "uniform" else chosen(lambda left: int(left.argmax()))
    return {
        SUBJECT: error(random),
        "the rival": error(other),
        BEST: float(np.linalg.eigvalsh(a)[::-1][pivots:].clip(0).sum() / 800),
        ZEROS: 1.0,
    }


CLAIM = Claim(
    name="rpcholesky-points",
    title="Random pivots beat uniform and greedy ones",
    who="Chen et al. 2022",
    place="arXiv 2207.06503, Fig. 1",
    states="On the smile and the spiral randomly pivoted Cholesky errs less than uniform and "
    "greedy pivots of the same number.",
    published="least error of all (curves, 100 trials)",
    setting="n = 10000 points, Gaussian kernel of bandwidth 2 and 1000, 10 to 150 pivots, relative "
    "trace error; also determinantal and ridge leverage sampling.",
    lacking="100 trials (32 here, since 8 had not decided), and the two slower rivals.",
    measured="relative trace error",
    axes={"points": tuple(SETS), "rival": ("uniform", "greedy"), "n": (10000,), "seed": range(32),
          "pivots": PIVOTS},
    quick={"n": (2000,), "seed": range(3), "pivots": (25, 100)},
    setup=setup,
    measure=measure,
    subject=SUBJECT,
    controls={ZEROS: "null", BEST: "optimal"},
    rule=Rule(at_most=1.0, of="the rival", where={"pivots": 100}),
    across="pivots",
    challenge=Challenge(
        about="800 points, the whole matrix, numpy's pseudo-inverse, 50 pivots",
        axes={"points": tuple(SETS), "rival": ("uniform", "greedy"), "seed": range(6),
              "pivots": (50,)},
        quick={"seed": range(3)},
        measure=dense,
        rule=Rule(at_most=1.0, of="the rival"),
    ),
)  # fmt: skip
