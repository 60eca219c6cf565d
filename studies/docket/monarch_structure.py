"""MonarchAttention: attention matrices are nearer to Monarch matrices than to low-rank ones."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from softlab.core import Stream, as_matrix
from softlab.docket import Challenge, Claim
from softlab.inputs import Recorded, recorded_names
from softlab.operators import Softmax
from softlab.verdicts import Rule

SUBJECT, LOW_RANK = "best Monarch", "best low rank"
SHUFFLED, MEAN, SPARSE = "best Monarch, keys shuffled", "mean of v", "best top-k"
BAND = "band plus low rank"
EXACT = "exact"
ROUNDS = 10
HEADS = recorded_names()


def matrix(head: str) -> Tensor:
    """The attention matrix of a recorded head, cut to 256 tokens."""
    q, k, _ = Recorded(head)(0, dtype=torch.float64)
    return as_matrix(Softmax(), q[:256], k[:256])


def monarch(p: Tensor, block: int) -> float:
    """What the nearest Monarch matrix misses: of each slab all but its largest singular value."""
    m = len(p) // block
    slabs = p.reshape(m, block, m, block).permute(1, 2, 0, 3)
    s = torch.linalg.svdvals(slabs)
    return float(s[..., 1:].square().sum().sqrt())


def shares(each: int) -> tuple[int, int]:
    """Half-width of a band and rank that take ``each`` numbers a row together, half of them each.

    A band has 2 h + 1 numbers a row, a matrix of rank r has 2 r.
    """
    half = max(0, each // 2 - 1) // 2
    return half, (each - 2 * half - 1) // 2


def banded(p: Tensor, each: int) -> float:
    """What is missed by a band plus a low rank, each fitted to what the other leaves.

    Neither step adds to what is missed. The end need not be the nearest of all such matrices.
    """
    half, rank = shares(each)
    places = torch.arange(len(p))
    near = (places[:, None] - places).abs() <= half
    low = torch.zeros_like(p)
    for _ in range(ROUNDS):
        u, s, vh = torch.linalg.svd(torch.where(near, low, p))  # the band holds p - low
        low = (u[:, :rank] * s[:rank]) @ vh[:rank]
    return float(torch.where(near, 0, p - low).norm())


def measure(setup: Tensor, block: int, seed: int) -> dict[str, float]:
    """What the nearest matrix of each structure misses, with n (block + n / block) numbers each."""
    p, n = setup, len(setup)
    each = block + n // block  # numbers a row
    s = torch.linalg.svdvals(p)
    left = p.sort(dim=-1).values[:, : n - each]
    order = Stream(seed, "docket, order of keys").permutation(n)
    missed = {
        SUBJECT: monarch(p, block),
        LOW_RANK: float(s[each // 2 :].norm()),
        SPARSE: float(left.norm()),
        BAND: banded(p, each),
        SHUFFLED: monarch(p[:, order], block),
        MEAN: float((p - 1 / n).norm()),
        EXACT: 0.0,
    }
    return {name: x / float(p.norm()) for name, x in missed.items()}


def by_alternation(setup: Tensor, block: int, seed: int) -> dict[str, float]:
    """The same by power iteration and least squares in numpy, of another part of the head."""
    p = setup.numpy()
    n, each = len(p), block + len(p) // block
    rng = np.random.default_rng(Stream(seed, "monarch-structure, challenge").number)

    def best(a: np.ndarray, rank: int) -> float:
        x = rng.standard_normal((a.shape[1], rank))
        for _ in range(10):
            x = np.linalg.qr(a.T @ (a @ np.linalg.qr(x)[0]))[0]
        return float(np.linalg.norm(a - a @ x @ x.T) ** 2)

    def slabs(a: np.ndarray) -> float:
        m = n // block
        parts = a.reshape(m, block, m, block)
        left = sum(best(parts[:, j, k], 1) for j in range(block) for k in range(m))
        return float(left**0.5)

    def by_rows() -> float:
        """Band plus low rank: rows and columns of the low rank in turn, outside of the band."""
        half, rank = shares(each)
        apart = np.abs(np.subtract.outer(np.arange(n), np.arange(n))) > half
        left, right = rng.standard_normal((2, n, rank))

        def fitted(a: np.ndarray, factor: np.ndarray, among: np.ndarray) -> np.ndarray:
            each_row = zip(a, among, strict=True)
            return np.array([np.linalg.lstsq(factor[m], x[m], rcond=None)[0] for x, m in each_row])

        for _ in range(ROUNDS):
            left = fitted(p, right, apart)
            right = fitted(p.T, left, apart.T)
        return float(np.linalg.norm((p - left @ right.T)[apart]))

    kept = np.sort(p, axis=1)[:, -each:]
    missed = {
        SUBJECT: slabs(p),
        LOW_RANK: best(p, each // 2) ** 0.5,
        SPARSE: max(0.0, (p**2).sum() - (kept**2).sum()) ** 0.5,
        BAND: by_rows(),
        SHUFFLED: slabs(p[:, rng.permutation(n)]),
        MEAN: float(np.linalg.norm(p - 1 / n)),
        EXACT: 0.0,
    }
    return {name: x / float(np.linalg.norm(p)) for name, x in missed.items()}


def later(head: str) -> Tensor:
    """The attention of the head's last 256 tokens among themselves.

    Of 144 tokens, 24 numbers a row are a sixth of the matrix and not an eighth: another question.
    """
    q, k, _ = Recorded(head)(0, dtype=torch.float64)
    return as_matrix(Softmax(), q[-256:], k[-256:])


CLAIM = Claim(
    name="monarch-structure",
    title="Attention matrices are Monarch rather than low rank",
    who="Yaras et al. 2025 (MonarchAttention)",
    place="arXiv 2505.18698, Sec. 1 and 3",
    states="At equal numbers of parameters the nearest Monarch matrix is nearer than the nearest "
    "low-rank one.",
    published="no number for matrices: better models at equal work",
    setting="Trained vision and language transformers, block sqrt(n).",
    lacking="their models: six recorded heads, the first 256 tokens of each. Six orders of the "
    "keys, since after two the interval of the shuffled control held the bound.",
    measured="relative Frobenius error over that of the best low rank",
    axes={"head": HEADS, "block": (16, 32), "seed": range(6)},
    quick={"head": HEADS[::2], "block": (16,), "seed": range(4)},
    setup=matrix,
    measure=measure,
    subject=SUBJECT,
    controls={SHUFFLED: "contrast", MEAN: "null", EXACT: "optimal"},
    rule=Rule(at_most=1.0, of=LOW_RANK),
    across="block",
    xlabel="keys of a block",
    challenge=Challenge(
        about="numpy, subspace iteration in place of singular values, the last 256 tokens",
        axes={"head": HEADS, "block": (16,), "seed": range(4)},
        quick={"head": HEADS[::2], "seed": range(3)},
        setup=later,
        measure=by_alternation,
    ),
)
