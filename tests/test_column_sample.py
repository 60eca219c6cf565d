"""The sample of keys: unbiased with the textbook's variance where all scores are equal."""

import math

import pytest
import torch
from scipy import stats

from softlab.landmarks import UniformRandom
from softlab.operators import ColumnSample, Softmax

F64 = torch.float64
SEEDS = 2000

CASES = [
    ColumnSample(rank=4),
    ColumnSample(rank=3, seed=2),
]


def twin(op: ColumnSample, q, k, v):
    drawn = UniformRandom(op.seed).indices(k, op.rank)
    return torch.softmax(q @ k[drawn].mT / q.shape[-1] ** 0.5, -1) @ v[drawn]


def equal_scores(l):
    g = torch.Generator().manual_seed(0)
    k, v = torch.randn(l, 3, generator=g, dtype=F64), torch.randn(l, 1, generator=g, dtype=F64)
    return torch.zeros(1, 3, dtype=F64), k, v


@pytest.mark.parametrize("rank", [1, 3, 11])
def test_with_equal_scores_mean_and_variance_are_those_of_a_sample_without_replacement(rank):
    l = 12
    q, k, v = equal_scores(l)
    got = torch.stack([ColumnSample(rank, seed)(q, k, v) for seed in range(SEEDS)]).flatten()
    variance = float((1 / rank - 1 / l) * v.var())  # Cochran, Theorem 2.2
    # One in 10^5 draws of seeds would leave the interval of the central limit theorem.
    z = stats.norm.isf(5e-6)
    assert abs(float(got.mean() - v.mean())) < z * math.sqrt(variance / SEEDS)
    spread = (got - v.mean()).square()
    assert abs(float(spread.mean()) - variance) < z * float(spread.std()) / math.sqrt(SEEDS)
    # With replacement the variance would be larger by (l - 1) / (l - m): told apart at m = 11.
    if rank == 11:
        replaced = float(v.var(correction=0) / rank)
        assert abs(float(spread.mean()) - replaced) > z * float(spread.std()) / math.sqrt(SEEDS)


@pytest.mark.parametrize("rank", [64, 128, 192])
def test_elsewhere_the_squared_error_is_that_of_a_ratio_estimator(rank):
    g = torch.Generator().manual_seed(1)
    l, seeds = 256, 400
    q, k, v = (torch.randn(l, 4, generator=g, dtype=F64) for _ in range(3))
    q = q / 2
    weights = (q @ k.mT / 2).softmax(-1)
    exact = Softmax()(q, k, v)
    # Cochran, Eq. 2.46 with numerators p_j v_j, denominators p_j and ratio ``exact``.
    residual = weights[..., None] * (v - exact[:, None])
    wanted = float((1 / rank - 1 / l) * l**2 / (l - 1) * residual.square().sum())
    got = [(ColumnSample(rank, seed)(q, k, v) - exact).square().sum() for seed in range(seeds)]
    got = torch.stack(got)
    noise = stats.norm.isf(5e-6) * float(got.std()) / math.sqrt(seeds)
    # Terms of the next order are smaller by 1 / m, and 1 / 64 of a few units is at most 0.05.
    assert abs(float(got.mean()) - wanted) < noise + 0.05 * wanted
    assert noise < 0.15 * wanted  # or the comparison would say nothing


def test_the_whole_sample_is_exact_whatever_the_order():
    g = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(9, 4, generator=g, dtype=F64) for _ in range(3))
    torch.testing.assert_close(ColumnSample(9)(q, k, v), Softmax()(q, k, v), rtol=1e-14, atol=1e-14)
