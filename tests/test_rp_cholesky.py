"""Randomly pivoted Cholesky: the law of its pivots, their published bound, and the weights."""

import math
import statistics

import pytest
import torch
from scipy import stats

from softlab import as_matrix
from softlab.inputs import Normal
from softlab.operators import ColumnSample, RPCholesky, Softmax
from softlab.pinv import Cholesky, Ridge

F64 = torch.float64


def draw(*lead, n=7, l=12, d=4, e=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    sizes = (n, d), (l, d), (l, e)
    return tuple(torch.randn(*lead, *s, generator=g, dtype=F64) for s in sizes)


def h(k, temperature=2.0):
    """The kernel matrix of the centred keys."""
    k = k - k.mean(0)
    return (k @ k.mT / (temperature**2 * math.sqrt(k.shape[-1]))).exp()


def left_after(a, at):
    """The Schur complement of a after eliminating ``at``."""
    core = a[at][:, at]
    return a - a[:, at] @ torch.linalg.pinv(core, hermitian=True) @ a[at]


def test_first_and_second_pivots_have_the_odds_of_the_diagonal_that_is_left():
    _, k, _ = draw(l=6)
    a, seeds = h(k, 1.0), 1000
    pairs = torch.stack([RPCholesky(2, 1.0, seed).pivots(k) for seed in range(seeds)])
    odds = torch.zeros(6, 6, dtype=F64)
    for i in range(6):
        rest = left_after(a, [i]).diagonal().clamp_min(0)
        rest[i] = 0
        odds[i] = a[i, i] / a.trace() * rest / rest.sum()
    counts = torch.zeros(6, 6, dtype=F64).index_put(
        tuple(pairs.mT), torch.ones(seeds, dtype=F64), accumulate=True
    )
    assert not bool(counts.diagonal().any())
    expected = (seeds * odds)[~torch.eye(6, dtype=torch.bool)]
    observed = counts[~torch.eye(6, dtype=torch.bool)]
    common = expected >= 5
    chi2 = (observed - expected).square() / expected
    statistic = float(chi2[common].sum())
    assert stats.chi2.sf(statistic, int(common.sum())) > 1e-5
    # Uniform pairs are told apart.
    uniform = seeds / 30
    against = float(((observed - uniform).square() / uniform).sum())
    assert stats.chi2.sf(against, 29) < 1e-12


def test_what_is_left_obeys_the_published_bound_and_uniform_pivots_leave_more():
    # Chen et al., Theorem 3.1: E tr(A - A_m) <= (1 + eps) sum_{i > r} s_i for
    # m >= r / eps + r log(1 / (eps eta)), eta = sum_{i > r} s_i / tr(A).
    _, k, _ = draw(l=60, d=3)
    k = k * torch.linspace(0.3, 1.5, 60, dtype=F64)[:, None]
    a = h(k, 1.0)
    s = torch.linalg.eigvalsh(a).flip(0)
    r, eps = 3, 1.0
    tail = float(s[r:].sum())
    m = math.ceil(r / eps + max(0.0, r * math.log(float(s.sum()) / (eps * tail))))
    assert m < 30

    def left(pivots):
        return float(left_after(a, pivots).trace())

    ours = torch.tensor([left(RPCholesky(m, 1.0, x).pivots(k).tolist()) for x in range(40)])
    g = torch.Generator().manual_seed(0)
    uniform = torch.tensor([left(torch.randperm(60, generator=g)[:m].tolist()) for _ in range(40)])
    spread = float(ours.std()) / math.sqrt(40)
    assert float(ours.mean()) + 5 * spread < (1 + eps) * tail
    assert float(ours.mean()) < float(uniform.mean()) / 2
    assert float(ours.min()) >= float(s[m:].sum()) * (1 - 1e-9)  # no m columns beat the best rank m


def test_kept_keys_stand_for_themselves():
    # W restricted to the pivots is the identity, so values on the pivots alone are weighted right.
    q, k, _ = draw()
    op = RPCholesky(5)
    at = op.pivots(k)
    matrix = as_matrix(op, q, k)
    weights = h(k)[at][:, at].inverse() @ h(k)[at]
    torch.testing.assert_close(weights[:, at], torch.eye(5, dtype=F64), rtol=1e-9, atol=1e-9)
    wanted = (q @ (k - k.mean(0))[at].mT / 2).exp() @ weights
    wanted = wanted / wanted.sum(-1, keepdim=True)
    torch.testing.assert_close(matrix, wanted, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(matrix.sum(-1), torch.ones(7, dtype=F64), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_shift_of_all_keys_changes_nothing(temperature):
    q, k, v = draw(2)
    op = RPCholesky(5, temperature)
    # On a grid that float64 moves by 2^20 without rounding.
    k = (k * 2**20).round() / 2**20
    torch.testing.assert_close(op(q, k + 2**20, v), op(q, k, v), rtol=1e-8, atol=1e-9)


def test_keys_that_repeat_are_drawn_once_and_stand_for_all():
    q, k, v = draw(2)
    k = k[:, :4].repeat(1, 3, 1)
    for rank in (4, 9):  # nothing is left after four
        op = RPCholesky(rank)
        torch.testing.assert_close(op(q, k, v), Softmax()(q, k, v), rtol=1e-9, atol=1e-10)
        assert all(len(set((row % 4).tolist())) == 4 for row in op.pivots(k))


def test_masked_keys_are_never_pivots_and_the_draw_is_that_of_the_rest():
    _, k, _ = draw(3)
    key_mask = torch.rand(3, 12, generator=torch.Generator().manual_seed(2)) < 0.6
    op = RPCholesky(4, seed=3)
    at = op.pivots(k, key_mask)
    assert bool(key_mask.gather(-1, at).all())
    for i in range(3):
        kept = key_mask[i].nonzero()[:, 0]
        assert torch.equal(at[i], kept[op.pivots(k[i][kept])])


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_it_beats_a_uniform_sample_of_as_many_keys(temperature):
    case = Normal(128, 4)(0, dtype=F64)
    exact = Softmax()(case.q, case.k, case.v)

    def error(op):
        return float((op(case.q, case.k, case.v) - exact).norm() / exact.norm())

    mean = float((case.v.mean(0) - exact).norm() / exact.norm())
    medians = []
    for rank in (16, 32):
        # Medians, for with few pivots a draw can leave a query with a denominator near zero.
        ours = statistics.median(error(RPCholesky(rank, temperature, seed)) for seed in range(9))
        theirs = statistics.median(error(ColumnSample(rank, seed)) for seed in range(9))
        assert ours < theirs / 2
        medians.append(ours)
    assert medians[1] < min(1, mean) / 4
    assert medians[1] < medians[0]


def test_a_ridge_is_no_claim_of_exactness():
    assert RPCholesky(4).traits.exact_at
    assert not RPCholesky(4, pinv=Ridge(Cholesky(), 0.1)).traits.exact_at
    assert not RPCholesky(4, pinv=Ridge(Cholesky(), 0.1)).traits.exact_at_rank_one
