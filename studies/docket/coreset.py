"""Discrepancy coresets of keys beat uniform samples of the same size."""

from __future__ import annotations

import torch
from torch import Tensor

from softlab import measures
from softlab.core import Operator, Stream
from softlab.docket import Challenge, Claim
from softlab.inputs import Clustered, Input, Normal, Recorded, Smooth, recorded_names
from softlab.operators import Softmax, Thinformer
from softlab.verdicts import Rule

SUBJECT, UNIFORM, MEAN, HEAVY = "coreset", "uniform sample", "the mean of v", "heaviest keys"
EXACT = "exact, float32"
DRAWS = 8
FAMILIES: dict[str, Input] = {
    "normal": Normal(512, 16, scale=0.5),
    "clustered": Clustered(512, 16, clusters=32, spread=0.3),
    "smooth": Smooth(512, 16, length=16.0, scale=0.7),
}


def sample(source: Input, seed: int) -> measures.Sample:
    """The input with its exact answers."""
    return measures.sample(source, seed, dtype=torch.float64, device=torch.device("cpu"))


def of_head(head: str, seed: int) -> measures.Sample:
    """A recorded head with its exact answers."""
    return sample(Recorded(head), seed)


def compared(found: measures.Sample, size: int, seed: int, caution: float) -> dict[str, float]:
    """Root mean square errors over draws, and those of the controls."""
    q, k, v = found.q, found.k, found.v
    reference = found.reference(Softmax())
    thin = Thinformer(size, caution=caution)
    kept = len(k) >> thin.halvings(len(k))

    def error(op: Operator, k: Tensor, v: Tensor) -> float:
        return measures.relative(op(q, k, v) - reference.output, reference.output)

    coreset, uniform = [], []
    for draw in range(DRAWS):
        number = DRAWS * seed + draw
        coreset.append(error(Thinformer(size, caution=caution, seed=number), k, v))
        at = Stream(number, "docket.coreset").permutation(len(k))[:kept]
        uniform.append(error(Softmax(), k[at], v[at]))
    return {
        SUBJECT: float(torch.tensor(coreset).square().mean().sqrt()),
        UNIFORM: float(torch.tensor(uniform).square().mean().sqrt()),
        MEAN: reference.uniform_error,
        EXACT: measures.relative(
            Softmax()(q.float(), k.float(), v.float()).double() - reference.output,
            reference.output,
        ),
        HEAVY: float(measures.best_of_keys(kept, reference)["output_error"]),
    }


def measure(setup: measures.Sample, size: int, seed: int) -> dict[str, float]:
    """With the published caution."""
    return compared(setup, size, seed, 1.0)


def of_family(family: str, seed: int) -> measures.Sample:
    """Drawn tokens with their exact answers."""
    return sample(FAMILIES[family], seed)


CLAIM = Claim(
    name="coreset",
    title="Coresets beat uniform samples of keys",
    who="Han et al. 2025 (BalanceKV), Carrell et al. 2025 (Thinformer)",
    place="arXiv 2502.07861, Table 1 and Fig. 1; arXiv 2502.12063",
    states="Keys that are kept by balancing (a discrepancy coreset) make a smaller error than as "
    "many keys kept uniformly.",
    published="LongBench-E 48.84 against 48.76 (Qwen-32B), 50.62 against 49.88 (Qwen-14B)",
    setting="Llama-3.1-8B and Qwen, rates 1/2 to 1/16, causal; Thinformer on T2T-ViT and BigGAN.",
    lacking="these models: kernel halving by Thinformer's published rule, which is not causal, on "
    "six recorded heads.",
    measured="error of the output, root mean square over 8 draws",
    axes={"head": recorded_names(), "seed": range(4), "size": (32, 64, 128)},
    quick={"head": recorded_names()[::3], "seed": range(3), "size": (64,)},
    setup=of_head,
    measure=measure,
    subject=SUBJECT,
    controls={MEAN: "null", EXACT: "optimal"},
    rule=Rule(at_most=1.0, of=UNIFORM, where={"size": 64}),
    across="size",
    xlabel="keys kept, at most",
    challenge=Challenge(
        about="three families of drawn tokens",
        axes={"family": list(FAMILIES), "seed": range(4), "size": (64,)},
        quick={"seed": range(3)},
        setup=of_family,
        measure=measure,
    ),
)
