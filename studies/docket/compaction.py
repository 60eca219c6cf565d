"""Attention Matching: a fiftieth of the keys, matched, beats as many that are kept."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from softlab.core import Stream
from softlab.docket import Challenge, Claim
from softlab.inputs import Clustered, Input, Normal, Recorded, Smooth, recorded_names
from softlab.operators import AttentionMatching, Softmax
from softlab.verdicts import Rule

SUBJECT, EVICTED, MEAN = "keys, weights and values matched", "others evicted", "the mean of v"
WEIGHTS, BEST = "weights matched, values kept", "best of the rank"
REFERENCES = 128
RATIOS = (10, 20, 50)
Parts = tuple[Tensor, Tensor, Tensor]
FAMILIES: dict[str, Input] = {
    "normal": Normal(512, 16, scale=0.5),
    "clustered": Clustered(512, 16, clusters=32, spread=0.3),
    "smooth": Smooth(512, 16, length=16.0, scale=0.7),
}


def parted(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Reference queries, drawn, and all others."""
    order = Stream(seed, "docket.compaction").permutation(n)
    return order[:REFERENCES], order[REFERENCES:]


def error(out: Tensor, exact: Tensor) -> float:
    """Relative, in the Frobenius norm."""
    return float((out - exact).norm() / exact.norm())


def of_head(head: str, seed: int) -> Parts:
    """The singular value decomposition of the matrix of the queries that are no references."""
    q, k, _ = Recorded(head)(0, dtype=torch.float64)
    scores = q[parted(len(q), seed)[1]] @ k.mT / k.shape[-1] ** 0.5
    u, s, vh = torch.linalg.svd(scores.softmax(-1), full_matrices=False)
    return u, s, vh


def measure(setup: Parts, head: str, ratio: int, seed: int) -> dict[str, float]:
    """Errors on queries that are no references."""
    q, k, v = Recorded(head)(0, dtype=torch.float64)
    seen, others = parted(len(q), seed)
    m, exact = round(len(k) / ratio), Softmax()(q[others], k, v)
    u, s, vh = setup
    found = AttentionMatching(m, references=REFERENCES).compact(q[seen], k, v)
    most = AttentionMatching(m, references=REFERENCES, choice="attention").compact(q[seen], k, v).at
    scores = q[others] @ k.mT / k.shape[-1] ** 0.5
    weighed = (scores[:, found.at] + found.logs).softmax(-1)
    return {
        SUBJECT: error(weighed @ found.values, exact),
        EVICTED: error(Softmax()(q[others], k[most], v[most]), exact),
        MEAN: error(v.mean(0).expand_as(exact), exact),
        WEIGHTS: error(weighed @ v[found.at], exact),
        BEST: error((u[:, :m] * s[:m]) @ (vh[:m] @ v), exact),
    }


def by_scipy(family: str, ratio: int, seed: int) -> dict[str, float]:
    """The same in numpy, as published: sums less a factor of the row, no ridge, drawn tokens."""
    q, k, v = (x.numpy() for x in FAMILIES[family](seed, dtype=torch.float64))
    seen, others = (x.numpy() for x in parted(len(q), seed))
    m, scores = round(len(k) / ratio), q @ k.T / k.shape[-1] ** 0.5
    a = np.exp(scores - scores.max(1, keepdims=True))
    p = a / a.sum(1, keepdims=True)
    exact, sums = p @ v, a[seen].sum(1)
    at: list[int] = []
    w = np.zeros(0)
    while len(at) < m:  # a key that loses its weight stays
        slope = (sums - a[seen][:, at] @ w) @ a[seen]
        slope[at] = -np.inf
        at.append(int(slope.argmax()))
        w = nnls(a[seen][:, at], sums)[0]
    x = a[:, at] * np.maximum(w, 1e-12)
    x /= x.sum(1, keepdims=True)
    values = np.linalg.lstsq(x[seen], exact[seen], rcond=1e-6)[0]
    most = np.argsort(-(p[seen] ** 2).sum(0))[:m]
    kept = a[:, most] / a[:, most].sum(1, keepdims=True)
    u, s, vh = np.linalg.svd(p[others], full_matrices=False)

    def missed(out: np.ndarray) -> float:
        return float(np.linalg.norm(out - exact[others]) / np.linalg.norm(exact[others]))

    return {
        SUBJECT: missed(x[others] @ values),
        EVICTED: missed(kept[others] @ v[most]),
        MEAN: missed(np.broadcast_to(v.mean(0), exact[others].shape)),
        WEIGHTS: missed(x[others] @ v[at]),
        BEST: missed((u[:, :m] * s[:m]) @ (vh[:m] @ v)),
    }


CLAIM = Claim(
    name="compaction",
    title="A fiftieth of the keys, matched, beats as many that are kept",
    who="Zweiger et al. 2026 (Attention Matching)",
    place="arXiv 2602.16284, abstract and Sec. 3",
    states="Compacted 50 times with keys, weights and values that match sample queries, attention "
    "errs less than where all but as many keys are evicted.",
    published="up to 50 times with little loss of accuracy, where eviction loses much",
    setting="Qwen3 and Llama on QuALITY and LongHealth, prompts of 5 to 60 thousand tokens, other "
    "budgets for each head, queries of a prompt that asks to repeat the context.",
    lacking="these models and their accuracy: six recorded heads of 512 and 1025 tokens, 128 of "
    "their queries as references, errors on all others.",
    measured="relative error of the output on queries that are no references",
    axes={"head": recorded_names(), "ratio": RATIOS, "seed": range(4)},
    quick={"head": recorded_names()[::3], "ratio": (50,), "seed": range(2)},
    setup=of_head,
    measure=measure,
    subject=SUBJECT,
    controls={MEAN: "null", BEST: "optimal"},
    rule=Rule(at_most=1.0, of=EVICTED, where={"ratio": 50}),
    across="ratio",
    xlabel="keys over those that are left",
    challenge=Challenge(
        about="scipy's nonnegative least squares, no ridge, three families of drawn tokens",
        axes={"family": list(FAMILIES), "ratio": (50,), "seed": range(4)},
        quick={"seed": range(2)},
        measure=by_scipy,
    ),
)
