"""Thinformer: how keys are halved, that it is fair, what caution costs, and its limits."""

import math

import pytest
import torch
from draws import head_of
from scipy import stats

from softlab import Dims
from softlab.operators import ColumnSample, Softmax, Thinformer, Uniform
from softlab.profiling import peak_memory

F64 = torch.float64
draw = head_of(12, 16)


def mean_square(make, q, k, v, seeds=8):
    """Of the relative error, over seeds."""
    exact = Softmax()(q, k, v)
    errors = [float((make(s)(q, k, v) - exact).norm() / exact.norm()) for s in range(seeds)]
    return sum(e**2 for e in errors) / seeds


@pytest.mark.parametrize("l", [1, 2, 5, 16, 17, 31, 100, 4096, 5000])
@pytest.mark.parametrize("size", [1, 3, 4, 20, 64])
def test_a_coreset_of_at_most_the_size_and_more_than_half_of_it(l, size):
    op = Thinformer(size)
    m = l >> op.halvings(l)
    assert min(l, (size + 1) // 2) <= m <= size
    kept, uniforms = op.draws(l)
    assert l - l / m < len(kept) <= l
    assert len(kept) == m << len(uniforms)
    pairs = [len(u) for u in uniforms]
    assert pairs == [m << i for i in range(len(pairs))][::-1]
    # The last halving sees all that is left in one bucket.
    assert not pairs or op.buckets(l)[-1] == max(2, m)


def test_what_is_kept_is_one_of_each_pair_of_neighbours():
    _, k, v = draw(l=32)
    at = Thinformer(16, seed=3).coreset(k, v)
    assert (at // 2).tolist() == list(range(16))
    q, _, _ = draw(n=5)
    torch.testing.assert_close(Thinformer(16, seed=3)(q, k, v), Softmax()(q, k[at], v[at]))
    at = Thinformer(4).coreset(torch.stack([k, -k]), torch.stack([v, v.flip(0)]))
    assert at.shape == (2, 4)
    assert bool((at.diff(dim=-1) > 0).all())


@pytest.mark.parametrize("op", [Thinformer(16), Thinformer(99)])
def test_exact_where_nothing_is_dropped(op):
    q, k, v = draw()
    exact = Softmax()(q, k, v)
    torch.testing.assert_close(op(q, k, v), exact, rtol=1e-12, atol=1e-12)
    assert float((Thinformer(15)(q, k, v) - exact).abs().max()) > 1e-3


def test_equal_neighbours_are_halved_without_error():
    q, k, v = draw(l=64)
    twice = (x.repeat_interleave(4, 0) for x in (k, v))
    k4, v4 = twice
    exact = Softmax()(q, k4, v4)
    for caution in (0.01, 1.0):
        out = Thinformer(64, caution)(q, k4, v4)
        torch.testing.assert_close(out, exact, rtol=1e-12, atol=1e-12)
    assert float((ColumnSample(64)(q, k4, v4) - exact).abs().max()) > 1e-2


@pytest.mark.parametrize("caution", [0.01, 1.0])
def test_every_key_is_kept_as_often_as_any_other(caution):
    # 21 keys to 5: one dropped, two halvings. A share of 5 / 21 each, though one key is far.
    _, k, v = draw(l=21)
    k[7] *= 4
    seeds = 1500
    times = torch.zeros(21)
    for s in range(seeds):
        times[Thinformer(5, caution, seed=s).coreset(k, v)] += 1
    p = 5 / 21
    z = stats.norm.isf(1e-6)
    assert float((times / seeds - p).abs().max()) < z * math.sqrt(p * (1 - p) / seeds)


def test_the_kernel_balances_what_pairs_keep_and_drop():
    # Pairs (a, b), (a, b), ...: all f_i are one function, which the walk returns to 0.
    k = torch.tensor([[1.0, 0], [0, 1.0]], dtype=F64).repeat(128, 1)
    v = torch.ones(256, 1, dtype=F64)
    spread = {}
    for caution in (1e4, 1.0, 1e-6):
        kept = [Thinformer(128, caution, seed=s).coreset(k, v) % 2 for s in range(100)]
        away = torch.stack([one.double().sum() - 64 for one in kept])
        spread[caution] = float(away.square().mean().sqrt())
    assert spread[1e4] == pytest.approx(math.sqrt(128) / 2, rel=0.2)  # fair coins
    assert spread[1.0] < 1.5
    assert spread[1e-6] == 0


def test_less_caution_falls_as_one_over_m_where_a_sample_falls_as_its_root():
    q, k, _ = draw(n=200, l=4096, d=3, scale=0.5)
    few, many = (mean_square(lambda s, m=m: Thinformer(m, 0.01, s), q, k, k) for m in (32, 256))
    sampled = [mean_square(lambda s, m=m: ColumnSample(m, s), q, k, k) for m in (32, 256)]
    assert few / many > 25  # 64 for 1 / m
    assert sampled[0] / sampled[1] < 16  # 8 for its root
    assert many < 0.1 * sampled[1]
    for trivial in (Uniform(), _Zeros()):
        assert many < 0.1 * mean_square(lambda s, op=trivial: op, q, k, k, 1)


class _Zeros:
    def __call__(self, q, k, v):
        return 0 * Softmax()(q, k, v)


def test_with_the_published_caution_it_beats_a_sample_in_three_dimensions():
    q, k, _ = draw(n=200, l=4096, d=3, scale=0.5)
    ours, sample = (
        mean_square(make, q, k, k)
        for make in (lambda s: Thinformer(256, seed=s), lambda s: ColumnSample(256, s))
    )
    assert ours < 0.5 * sample


def test_a_halving_costs_few_kernel_entries_at_any_length():
    for l in (4096, 16384, 65536, 10**6):
        op = Thinformer(1 << ((l.bit_length() - 1) // 2 + 1))  # twice the root of a power of four
        m, r = l >> op.halvings(l), op.halvings(l)
        cost = op.cost(Dims(1, 1, l, 8, 8)).kernel_entries - m
        assert cost <= 4.3 * r * m**2
    short = Thinformer(4).cost(Dims(1, 1, 4096, 8, 8)).kernel_entries
    assert short <= 8 * 4096 + 4  # buckets of four keys: no more than 4 l, 2 l, l, ...


def test_matrices_that_keep_different_numbers_of_keys_are_halved_apart():
    q, k, v = (torch.stack([x, x.flip(-1), -x]) for x in draw(l=20, d=3))
    key_mask = torch.arange(20) < torch.tensor([[20], [11], [3]])
    op = Thinformer(4, seed=1)
    out = op(q, k, v, key_mask)
    for i, kept in enumerate((20, 11, 3)):
        alone = op(q[i], k[i, :kept], v[i, :kept])
        torch.testing.assert_close(out[i], alone, rtol=1e-12, atol=1e-12)


def test_parts_of_a_long_sequence_are_halved_like_the_whole():
    _, k, v = draw(l=8192, d=8)
    op = Thinformer(64, seed=2)
    whole = op.coreset(k, v)
    # Eight at once have shares of the buckets that are computed together that differ from one's.
    for at in op.coreset(k.expand(8, -1, -1), v):
        assert torch.equal(at, whole)


def test_scales_of_the_values_do_not_matter_and_values_do():
    _, k, v = draw(l=64)
    op = Thinformer(16, 0.1)
    assert torch.equal(op.coreset(k, v), op.coreset(k, 1e-20 * v))
    assert not torch.equal(op.coreset(k, v), op.coreset(k, v.flip(0)))


def test_the_default_takes_little_memory_at_sixteen_thousand_tokens():
    q, k, v = (torch.randn(4, 16384, 32) for _ in range(3))
    peak = peak_memory(lambda: Thinformer()(q, k, v), q.device)
    assert peak < 10 * q.numel() * q.element_size()
