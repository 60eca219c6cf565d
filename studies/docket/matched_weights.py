"""At equal keys, what is matched to queries errs less than what the keys alone say (WildCat)."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from softlab.core import Stream
from softlab.docket import Challenge, Claim
from softlab.inputs import Clustered, Input, Normal, Recorded, Smooth, recorded_names
from softlab.operators import RPCholesky, Softmax
from softlab.operators.attention_matching import matched
from softlab.verdicts import Rule

SUBJECT, NYSTROM, MEAN = "matched to queries", "Nystrom weights", "the mean of v"
WEIGHTS, PLAIN, EXACT = "weights alone matched", "no weights", "exact, float32"
REFERENCES, RIDGE = 128, 0.01
FAMILIES: dict[str, Input] = {
    "normal": Normal(512, 16, scale=0.5),
    "clustered": Clustered(512, 16, clusters=32, spread=0.3),
    "smooth": Smooth(512, 16, length=16.0, scale=0.7),
}


def parted(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Reference queries, drawn, and all others."""
    order = Stream(seed, "docket.matched-weights").permutation(n)
    return order[:REFERENCES], order[REFERENCES:]


def error(out: Tensor, exact: Tensor) -> float:
    """Relative, in the Frobenius norm."""
    return float((out - exact).norm() / exact.norm())


def measure(head: str, size: int, seed: int) -> dict[str, float]:
    """Errors on queries that are no references, all with the pivots of one factorisation."""
    q, k, v = Recorded(head)(0, dtype=torch.float64)
    seen, others = parted(len(q), seed)
    x, exact = q[others], Softmax()(q[others], k, v)
    op = RPCholesky(size, seed=seed)
    at = op.pivots(k).sort().values
    scores = (q[seen] @ k.mT / k.shape[-1] ** 0.5).unsqueeze(0)
    found = matched(scores, scores.softmax(-1), v.unsqueeze(0), at.unsqueeze(0), RIDGE)
    weighed = (x @ k[at].mT / k.shape[-1] ** 0.5 + found.logs[0]).softmax(-1)
    return {
        SUBJECT: error(weighed @ found.values[0], exact),
        NYSTROM: error(op(x, k, v), exact),
        MEAN: error(v.mean(0).expand_as(exact), exact),
        WEIGHTS: error(weighed @ v[at], exact),
        PLAIN: error(Softmax()(x, k[at], v[at]), exact),
        EXACT: error(Softmax()(x.float(), k.float(), v.float()).double(), exact),
    }


def written_out(family: str, size: int, seed: int) -> dict[str, float]:
    """The same in numpy and scipy: Nystrom's weights by a pseudo-inverse, drawn tokens."""
    q, k, v = (x.numpy() for x in FAMILIES[family](seed, dtype=torch.float64))
    seen, others = (x.numpy() for x in parted(len(q), seed))
    root = k.shape[-1] ** 0.5
    y = k - k.mean(0)
    h = np.exp(y @ y.T / (4 * root))  # at WildCat's temperature of 2
    rng = np.random.default_rng(Stream(seed, "docket.matched-weights, pivots").number)
    at, rest = [], h.copy()
    for _ in range(size):
        left = np.maximum(rest.diagonal(), 0)
        at.append(int(rng.choice(len(k), p=left / left.sum())))
        rest -= np.outer(rest[:, at[-1]], rest[at[-1]]) / rest[at[-1], at[-1]]
    scores = q @ k.T / root
    a = np.exp(scores - scores.max(1, keepdims=True))
    exact = a / a.sum(1, keepdims=True) @ v
    stands = np.linalg.lstsq(h[np.ix_(at, at)], h[at], rcond=1e-12)[0]  # size x l
    sums = a[seen].sum(1)
    relative = a[seen][:, at] / sums[:, None]
    ridge = (RIDGE * (relative**2).sum() / size) ** 0.5 * np.eye(size)
    w = nnls(np.vstack((relative, ridge)), np.append(np.ones(len(seen)), ridge.sum(0)))[0]
    x = a[:, at] * w
    x /= x.sum(1, keepdims=True)
    ridge = (RIDGE * (x[seen] ** 2).sum() / size) ** 0.5 * np.eye(size)
    missing = exact[seen] - x[seen] @ v[at]
    added = np.linalg.lstsq(np.vstack((x[seen], ridge)), np.vstack((missing, 0 * v[at])))[0]
    plain = a[:, at] / a[:, at].sum(1, keepdims=True)

    def missed(out: np.ndarray) -> float:
        return float(np.linalg.norm((out - exact)[others]) / np.linalg.norm(exact[others]))

    return {
        SUBJECT: missed(x @ (v[at] + added)),
        NYSTROM: missed(a[:, at] @ (stands @ v) / (a[:, at] @ stands.sum(1))[:, None]),
        MEAN: missed(np.broadcast_to(v.mean(0), exact.shape)),
        WEIGHTS: missed(x @ v[at]),
        PLAIN: missed(plain @ v[at]),
        EXACT: missed(exact.astype(np.float32)),
    }


CLAIM = Claim(
    name="matched-weights",
    title="Weights and values matched to queries beat those of the keys alone",
    who="Zweiger et al. 2026 (Attention Matching), Schroeder and Mackey 2026 (WildCat)",
    place="arXiv 2602.16284, Sec. 3.2, and 2602.10056",
    states="With the same kept keys, pivots of a random Cholesky factorisation, weights and values "
    "fitted to sample queries err less than Nystrom's, which no query has a part in.",
    published="no number: both report models, and neither has the other's weights on its keys",
    setting="Language models, and image models; keys by each paper's own rule.",
    lacking="these models: six recorded heads, 128 of their queries as references, errors on the "
    "others.",
    measured="relative error of the output on queries that are no references",
    axes={"head": recorded_names(), "seed": range(4), "size": (16, 64, 128)},
    quick={"head": recorded_names()[::3], "size": (64,), "seed": range(2)},
    measure=measure,
    subject=SUBJECT,
    controls={MEAN: "null", EXACT: "optimal"},
    rule=Rule(at_most=1.0, of=NYSTROM, where={"size": 64}),
    across="size",
    xlabel="keys kept",
    challenge=Challenge(
        about="numpy and scipy, pivots by elimination of the whole matrix, drawn tokens",
        axes={"family": list(FAMILIES), "seed": range(4), "size": (64,)},
        quick={"seed": range(2)},
        measure=written_out,
    ),
)
