"""Keys are drawn by the lengths of their values, count what they stand for, and never twice."""

import dataclasses
import math
import re

import pytest
import torch
from draws import head_of
from scipy import stats

from softlab import as_matrix
from softlab.laws import tolerance
from softlab.operators import HyperAttention, KDEFormer, Softmax, Uniform
from softlab.profiling import peak_memory

F64 = torch.float64
draw = head_of(12, 16)


def uneven(l=256, d=8, spread=2.0):
    """Keys of which few hold large values, all to one side, so that zeros are no good answer."""
    g = torch.Generator().manual_seed(3)
    q, k = (torch.randn(l, d, generator=g, dtype=F64) for _ in range(2))
    size = torch.exp(spread * torch.randn(l, 1, generator=g, dtype=F64))
    return q, k, size * (1 + 0.3 * torch.randn(l, 4, generator=g, dtype=F64))


def error(op, q, k, v):
    exact = Softmax()(q, k, v)
    return float((op(q, k, v) - exact).norm() / exact.norm())


# --- the distribution --------------------------------------------------------------------------


def test_half_of_it_goes_by_the_lengths_and_half_is_even():
    v = torch.tensor([[3.0, 4], [0, 0], [0, 15], [0, 0]], dtype=F64)
    p = KDEFormer().probabilities(v)
    torch.testing.assert_close(p, torch.tensor([0.25, 0.125, 0.5, 0.125], dtype=F64))
    nothing = KDEFormer().probabilities(0 * v)
    assert torch.equal(nothing, torch.full((4,), 0.25, dtype=F64))


@pytest.mark.parametrize("scale", [1e-200, 1e-3, 1e3, 1e200])
def test_it_does_not_change_with_the_scale_and_the_output_follows_it(scale):
    q, k, v = draw()
    op = KDEFormer(4, 3, 2)
    torch.testing.assert_close(op.probabilities(scale * v), op.probabilities(v))
    torch.testing.assert_close(op(q, k, scale * v), scale * op(q, k, v), rtol=1e-12, atol=0)


def test_draws_follow_it():
    v = draw(l=12)[2]
    op = KDEFormer(samples=100_000)
    p = op.probabilities(v)
    counts = op.drawn(p).bincount(minlength=12)
    assert stats.chisquare(counts.numpy(), (100_000 * p).numpy()).pvalue > 1e-5
    assert stats.chisquare(counts.numpy()).pvalue < 1e-9  # even draws would be seen


def test_it_is_not_linear_in_v_and_says_so():
    q, k, v = draw()
    op = KDEFormer(4, 3, 2)
    halves = torch.cat((v[:8], 0 * v[8:])), torch.cat((0 * v[:8], v[8:]))
    apart = sum(op(q, k, x) for x in halves)
    assert float((op(q, k, v) - apart).abs().max()) > 1e-2
    with pytest.raises(ValueError, match="not linear in v, so it has no matrix"):
        as_matrix(op, q, k)
    # Without a sample it is, and is what HyperAttention is without one.
    same = as_matrix(KDEFormer(4, 0, 2), q, k), as_matrix(HyperAttention(4, 0, 2), q, k)
    assert torch.equal(*same)


# --- what a key counts -------------------------------------------------------------------------


def test_keys_of_the_block_count_once_and_others_by_their_draws():
    q, k, v = draw(n=30, l=30)
    kernel = Softmax().kernel(4).matrix(q, k)
    inside = HyperAttention(7, 0, 3, seed=1).kernel_matrix(q, k) > 0
    for m in (1, 4, 50):
        op = KDEFormer(7, m, 3, seed=1)
        p = op.probabilities(v)
        times = op.drawn(p).bincount(minlength=30)
        wanted = torch.where(inside, 1, times / (m * p))
        torch.testing.assert_close(op.kernel_matrix(q, k, v) / kernel, wanted)


@pytest.mark.parametrize("op", [KDEFormer(16, 0), KDEFormer(40), KDEFormer(16, 99)], ids=repr)
def test_exact_where_a_block_holds_all_keys(op):
    for scale in (0.1, 1, 30):
        q, k, v = draw()
        exact = Softmax()(scale * q, k, v)
        torch.testing.assert_close(op(scale * q, k, v), exact, rtol=1e-12, atol=1e-12)
    q, k, v = draw()
    assert error(KDEFormer(8, 10_000), q, k, v) > 1e-4  # draws repeat


def test_large_scores_do_not_overflow():
    q, k, v = (x.float() for x in draw())
    out = KDEFormer(4, 3, 2)(1e4 * q, 1e4 * k, v)
    assert bool(out.isfinite().all())
    assert float(out.abs().max()) <= float(v.abs().max()) * (1 + 1e-5)


# --- the error ---------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [1, 5, 20])
def test_the_numerator_has_the_mean_and_the_variance_of_weighted_draws(m):
    # Where q = k = 0 tokens hash alike and keep their order, so the blocks are known.
    l, block, seeds = 30, 6, 1500
    v = 1 + torch.randn(l, 1, generator=torch.Generator().manual_seed(0), dtype=F64).exp()
    zero = torch.zeros(l, 2, dtype=F64)
    p = KDEFormer().probabilities(v)
    got = torch.stack(
        [KDEFormer(block, m, 2, seed=s).kernel_matrix(zero, zero, v) @ v for s in range(seeds)]
    )
    z = stats.norm.isf(5e-7)  # five blocks, two tests: one in 10^5 choices of seeds would fail
    for b in range(0, l, block):
        outside = torch.ones(l, dtype=torch.bool)
        outside[b : b + block] = False
        terms = v[outside, 0]
        variance = float((terms.square() / p[outside]).sum() - terms.sum() ** 2) / m
        mine = got[:, b, 0]
        assert abs(float(mine.mean() - v.sum())) < z * math.sqrt(variance / seeds)
        spread = (mine - v.sum()).square()
        assert abs(float(spread.mean()) - variance) < z * float(spread.std()) / math.sqrt(seeds)
        # Draws that also count in the block would have a mean beyond that.
        assert m < 20 or float(v[b : b + block].sum()) > z * math.sqrt(variance / seeds)


def test_the_squared_error_is_that_of_a_ratio_estimator():
    q, k, v = uneven(l=128)
    exact, weights = Softmax()(q, k, v), (q @ k.mT / 8**0.5).softmax(-1)
    planes_fixed = KDEFormer(16, 0, 3)
    inside = planes_fixed.kernel_matrix(q, k, v) > 0
    p, seeds = planes_fixed.probabilities(v), 300

    @dataclasses.dataclass(frozen=True, repr=False)
    class Redrawn(KDEFormer):
        """Another sample for the same hyperplanes."""

        draw: int = 0

        def drawn(self, p):
            return KDEFormer(16, self.samples, seed=self.draw).drawn(p)

    # Of the residuals P_j (v_j - exact) of the keys outside the block, drawn with probability p.
    residual = weights[..., None] * (v - exact[:, None]) * ~inside[..., None]
    once = (residual.square() / p[:, None]).sum(-2) - residual.sum(-2).square()
    measured = {}
    for m in (400, 1600):
        wanted = float(once.sum()) / m
        ops = (Redrawn(16, m, 3, draw=s) for s in range(seeds))
        got = torch.stack([(op(q, k, v) - exact).square().sum() for op in ops])
        noise = stats.norm.isf(5e-6) * float(got.std()) / math.sqrt(seeds)
        # Terms of the next order are smaller by 1 / m; they are a few units of it.
        assert abs(float(got.mean()) - wanted) < noise + 5 / m * wanted
        assert noise < 0.25 * wanted  # or the comparison would say nothing
        measured[m] = float(got.mean())
    assert measured[400] / measured[1600] == pytest.approx(4, rel=0.3)
    for trivial in (0 * exact, Uniform()(q, k, v)):
        assert float((trivial - exact).square().sum()) > 2 * measured[1600]


def test_uneven_values_are_met_where_even_draws_miss_them():
    q, k, v = uneven(l=1024)
    mine, even = (
        [error(made(16, 128, 6, seed=s), q, k, v) for s in range(20)]
        for made in (KDEFormer, HyperAttention)
    )
    assert sum(mine) < 0.8 * sum(even)
    assert sum(mine) / 20 < 0.8 * min(1.0, error(Uniform(), q, k, v))  # zeros, and the mean of v


# --- sizes -------------------------------------------------------------------------------------


def test_matrices_that_keep_different_numbers_of_keys_draw_for_themselves():
    q, k, v = (torch.stack([x, x.flip(-1), -x]) for x in draw(l=20, d=3))
    key_mask = torch.arange(20) < torch.tensor([[20], [11], [3]])
    op = KDEFormer(4, 3, seed=1)
    out = op(q, k, v, key_mask)
    for i, kept in enumerate((20, 11, 3)):
        alone = op(q[i], k[i, :kept], v[i, :kept])
        torch.testing.assert_close(out[i], alone, rtol=1e-12, atol=1e-12)


def test_many_draws_are_an_average_in_every_row():
    q, k, v = draw(n=40, l=60)
    out = KDEFormer(4, 200, 3)(q, k, v)
    slack = tolerance(F64, 60)
    assert bool((out <= v.amax(0) + slack).all())
    assert bool((out >= v.amin(0) - slack).all())


def test_the_default_takes_little_memory_at_sixteen_thousand_tokens():
    q, k, v = (torch.randn(4, 16384, 32) for _ in range(3))
    peak = peak_memory(lambda: KDEFormer()(q, k, v), q.device)
    assert peak < 10 * q.numel() * q.element_size()


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: KDEFormer(0), ValueError, "KDEFormer.block is 0; give an integer of at least 1"),
        (lambda: KDEFormer(4, -1), ValueError, "KDEFormer.samples is -1; give an integer of at"),
        (lambda: KDEFormer(4, 2.0), TypeError, "KDEFormer.samples is 2.0; give an integer of"),
        (lambda: KDEFormer(bits=63), ValueError, "bits is 63, and a hash must fit 64-bit int"),
        (lambda: KDEFormer(seed=-1), ValueError, "KDEFormer.seed is -1; give an integer of at"),
    ],
)
def test_impossible_knobs_are_refused(build, error, message):
    with pytest.raises(error, match=re.escape(message)):
        build()
