"""Blocks bring together what hashes alike; the sample stands for the rest, without bias."""

import dataclasses
import math
import re

import pytest
import torch
from draws import head_of
from scipy import stats

from softlab import as_matrix
from softlab.operators import ColumnSample, HyperAttention, Softmax, Uniform
from softlab.primitives.causal import by_halves
from softlab.primitives.weighted_sums import Sums
from softlab.profiling import peak_memory

F64 = torch.float64
draw = head_of(12, 16)


def error(op, q, k, v):
    exact = Softmax()(q, k, v)
    return float((op(q, k, v) - exact).norm() / exact.norm())


# --- sortLSH -----------------------------------------------------------------------------------


def in_order_of(place, bits):
    """All sign patterns (2^bits, bits), sorted by ``place`` of their numbers."""
    numbers = torch.arange(2**bits)
    patterns = (numbers[:, None] >> torch.arange(bits - 1, -1, -1)) & 1
    return patterns[place(patterns).argsort()]


@pytest.mark.parametrize("bits", [1, 2, 3, 7])
def test_neighbouring_places_differ_in_one_sign(bits):
    op = HyperAttention(bits=bits, seed=3)
    planes = op.hyperplanes(8)

    def place(patterns):
        tokens = (2.0 * patterns - 1).to(F64) @ torch.linalg.pinv(planes)  # these have those signs
        return op.places(tokens)

    ordered = in_order_of(place, bits)
    assert bool((ordered.diff(dim=0).abs().sum(-1) == 1).all())


def test_sorting_by_the_code_instead_of_the_place_in_it_brings_unlike_signs_together():
    # The released code's order: from three signs on, some neighbours differ in more than one.
    def released(patterns):
        number = (patterns << torch.arange(2, -1, -1)).sum(-1)
        return number ^ (number >> 1)

    assert int(in_order_of(released, 3).diff(dim=0).abs().sum(-1).max()) == 2


def clusters(size=16, count=16, d=32, seed=0):
    """Tokens in far and tight clusters, shuffled; queries attend to their own cluster's keys."""
    g = torch.Generator().manual_seed(seed)
    centres = 8 * torch.nn.functional.normalize(
        torch.randn(count, d, generator=g, dtype=F64), dim=-1
    )
    q, k = (
        (centres.repeat(size, 1) + 0.1 * torch.randn(size * count, d, generator=g, dtype=F64))[
            torch.randperm(size * count, generator=g)
        ]
        for _ in range(2)
    )
    return q, k, torch.randn(size * count, 3, generator=g, dtype=F64)


def test_clusters_are_found_where_a_sample_of_as_many_keys_misses_them():
    q, k, v = clusters()
    errors = [error(HyperAttention(64, 0, bits=12, seed=s), q, k, v) for s in range(20)]
    sampled = [error(ColumnSample(64, seed=s), q, k, v) for s in range(20)]
    trivial = min(1.0, error(Uniform(), q, k, v))  # zeros, and the mean of v
    assert max(errors) < min(sampled)
    # The cuts between blocks fall where they will, so a draw may part a cluster; not most.
    assert sum(errors) / 20 < 0.8 * trivial


# --- the sample --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "op", [HyperAttention(16, 0), HyperAttention(40), HyperAttention(3, 14), HyperAttention(1, 99)]
)
def test_exact_where_block_and_sample_reach_all_keys(op):
    for scale in (0.1, 1, 30):
        q, k, v = draw()
        exact = Softmax()(scale * q, k, v)
        torch.testing.assert_close(op(scale * q, k, v), exact, rtol=1e-12, atol=1e-12)


def test_no_key_counts_twice():
    q, k, _ = draw(n=30, l=30)
    for samples in range(12):
        op = HyperAttention(block=7, samples=samples, seed=samples)
        weights = op.kernel_matrix(q, k) / Softmax().kernel(4).matrix(q, k)
        # 30 keys in five blocks of six: six of weight 1, and those drawn share 24.
        inside = (weights - 1).abs() < 1e-12
        drawn = (weights - 24 / max(1, samples)).abs() < 1e-12
        assert bool((inside.sum(-1) == 6).all())
        assert bool((drawn.sum(-1) == samples).all())
        assert bool((inside | drawn | (weights == 0)).all())


@pytest.mark.parametrize("samples", [1, 5, 20])
def test_with_equal_scores_mean_and_variance_are_those_of_a_sample_without_replacement(samples):
    # Where q = k = 0 tokens hash alike and keep their order, so the blocks are known.
    l, block, seeds = 30, 6, 1500
    v = torch.randn(l, 1, generator=torch.Generator().manual_seed(0), dtype=F64)
    zero = torch.zeros(l, 2, dtype=F64)
    got = torch.stack(
        [HyperAttention(block, samples, bits=2, seed=s)(zero, zero, v) for s in range(seeds)]
    )
    z = stats.norm.isf(5e-7)  # five blocks, two tests: one in 10^5 choices of seeds would fail
    for b in range(0, l, block):
        outside = torch.cat((v[:b], v[b + block :]))
        variance = (24 / 30) ** 2 * float((1 / samples - 1 / 24) * outside.var())
        mine = got[:, b, 0]
        assert abs(float(mine.mean() - v.mean())) < z * math.sqrt(variance / seeds)
        spread = (mine - v.mean()).square()
        assert abs(float(spread.mean()) - variance) < z * float(spread.std()) / math.sqrt(seeds)
        # The block alone, or with its keys drawn too, has another mean.
        wrong = v[b : b + block].mean()
        assert samples < 20 or abs(float(wrong - v.mean())) > z * math.sqrt(variance / seeds)


def test_elsewhere_the_squared_error_is_that_of_a_ratio_estimator():
    q, k, v = draw(n=64, l=256)
    exact, weights = Softmax()(q, k, v), (q @ k.mT / 2).softmax(-1)
    planes_fixed = HyperAttention(16, 1, bits=3)
    inside = dataclasses.replace(planes_fixed, samples=0).kernel_matrix(q, k) > 0
    seeds, c = 400, 240

    @dataclasses.dataclass(frozen=True, repr=False)
    class Redrawn(HyperAttention):
        """Another sample for the same hyperplanes."""

        draw: int = 0

        def offsets(self, outside):
            return dataclasses.replace(planes_fixed, samples=self.samples, seed=self.draw).offsets(
                outside
            )

    measured = {}
    for m in (60, 180):
        # Cochran, Eq. 2.46: the residuals p_j (v_j - exact) of the keys outside the block.
        residual = weights[..., None] * (v - exact[:, None]) * ~inside[..., None]
        mean = residual.sum(-2, keepdim=True) / c
        about = (residual - mean).square() * ~inside[..., None]
        wanted = float((1 / m - 1 / c) * c**2 / (c - 1) * about.sum())
        ops = (Redrawn(16, m, 3, draw=s) for s in range(seeds))
        got = torch.stack([(op(q, k, v) - exact).square().sum() for op in ops])
        noise = stats.norm.isf(5e-6) * float(got.std()) / math.sqrt(seeds)
        # Terms of the next order are smaller by 1 / m; they are a few units of it.
        assert abs(float(got.mean()) - wanted) < noise + 3 / m * wanted
        assert noise < 0.1 * wanted  # or the comparison would say nothing
        measured[m] = float(got.mean())
    # The finite population's form of m^(-1/2), in squares.
    fall = (1 / 60 - 1 / c) / (1 / 180 - 1 / c)
    assert measured[60] / measured[180] == pytest.approx(fall, rel=0.15)
    # At the larger sample neither zeros nor the mean of v would do.
    for trivial in (0 * exact, Uniform()(q, k, v)):
        assert float((trivial - exact).square().sum()) > 1.5 * measured[180]


# --- sizes -------------------------------------------------------------------------------------


def test_one_query_meets_its_own_block_alone():
    q, k, _ = draw(n=1, l=64)
    assert int((as_matrix(HyperAttention(8, 0), q, k) > 0).sum()) == 8


def test_matrices_that_keep_different_numbers_of_keys_have_blocks_of_their_own():
    q, k, v = (torch.stack([x, x.flip(-1), -x]) for x in draw(l=20, d=3))
    key_mask = torch.arange(20) < torch.tensor([[20], [11], [3]])
    op = HyperAttention(4, 3, seed=1)
    out = op(q, k, v, key_mask)
    for i, kept in enumerate((20, 11, 3)):
        alone = op(q[i], k[i, :kept], v[i, :kept])
        torch.testing.assert_close(out[i], alone, rtol=1e-12, atol=1e-12)


def test_the_default_takes_little_memory_at_sixteen_thousand_tokens():
    q, k, v = (torch.randn(4, 16384, 32) for _ in range(3))
    peak = peak_memory(lambda: HyperAttention()(q, k, v), q.device)
    assert peak < 10 * q.numel() * q.element_size()


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: HyperAttention(0), ValueError, "HyperAttention.block is 0; give an integer of at"),
        (lambda: HyperAttention(4, -1), ValueError, "HyperAttention.samples is -1; give an intege"),
        (lambda: HyperAttention(4, 2.0), TypeError, "HyperAttention.samples is 2.0; give an integ"),
        (
            lambda: HyperAttention(bits=0),
            ValueError,
            "HyperAttention.bits is 0, and a hash must fit 64-bit integers; give 1 to 62",
        ),
        (lambda: HyperAttention(bits=63), ValueError, "bits is 63, and a hash must fit 64-bit int"),
        (lambda: HyperAttention(seed=-1), ValueError, "HyperAttention.seed is -1; give an integer"),
    ],
)
def test_impossible_knobs_are_refused(build, error, message):
    with pytest.raises(error, match=re.escape(message)):
        build()


# --- no causal form ----------------------------------------------------------------------------


def causal_by_halves(op, q, k, v):
    """The published recursion: queries of a second half meet the keys of the first through op."""

    def meet(of_queries, of_keys):
        (x,), (y, z) = of_queries, of_keys
        weights = op.kernel_matrix(x, y)
        return Sums(weights @ z, weights.sum(-1, keepdim=True), torch.zeros_like(x[..., :1]))

    return by_halves(meet, (q,), (k, v), held=64).average()


def test_the_published_causal_recursion_leaks_through_the_sort_of_queries():
    q, k, v = draw(64, 64)
    # With all keys in one block it is causal attention itself.
    whole = causal_by_halves(HyperAttention(block=64), q, k, v)
    torch.testing.assert_close(whole, Softmax(causal=True)(q, k, v))
    changed = torch.cat((q[:-1], -q[-1:]))
    op = HyperAttention(block=4, samples=2, bits=3)
    moved = causal_by_halves(op, changed, k, v) - causal_by_halves(op, q, k, v)
    # The last query alone was changed, and earlier outputs are others.
    assert float(moved[:-1].abs().max()) > 0.01
