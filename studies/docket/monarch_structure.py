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
EXACT = "exact"
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

    kept = np.sort(p, axis=1)[:, -each:]
    missed = {
        SUBJECT: slabs(p),
        LOW_RANK: best(p, each // 2) ** 0.5,
        SPARSE: max(0.0, (p**2).sum() - (kept**2).sum()) ** 0.5,
        SHUFFLED: slabs(p[:, rng.permutation(n)]),
        MEAN: float(np.linalg.norm(p - 1 / n)),
        EXACT: 0.0,
    }
    return {name: x / float(np.linalg.norm(p)) for name, x in missed.items()}


def later(head: str) -> Tensor:
    """The attention of the head's last 144 tokens among themselves."""
    q, k, _ = Recorded(head)(0, dtype=torch.float64)
    return as_matrix(Softmax(), q[-144:], k[-144:])


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
        about="numpy, subspace iteration in place of singular values, the last 144 tokens",
        axes={"head": HEADS, "block": (12,), "seed": range(4)},
        quick={"head": HEADS[::2], "seed": range(3)},
        setup=later,
        measure=by_alternation,
    ),
)
