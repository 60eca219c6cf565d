"""Sketched Taylor: what the sketch means on average, by how much it varies, where it is exact."""

import math

import pytest
import torch

from softlab import as_matrix
from softlab.laws import tolerance
from softlab.operators import Performer, SketchedTaylor, Softmax, Taylor, Uniform
from softlab.profiling import peak_memory

F64 = torch.float64


def draw(n=12, l=14, d=6, length=1.0, seed=0):
    """Queries and keys of the given length after the scale d^(-1/4) of each."""
    g = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(s, generator=g, dtype=F64) for s in ((n, d), (l, d), (l, 3)))
    q, k = (length * d**0.25 * torch.nn.functional.normalize(x, dim=-1) for x in (q, k))
    return q, k, v


def mean_square(make, q, k, v, seeds=12):
    """Of the relative error, over seeds."""
    exact = Softmax()(q, k, v)
    errors = [float((make(s)(q, k, v) - exact).norm() / exact.norm()) for s in range(seeds)]
    return sum(e**2 for e in errors) / seeds


@pytest.mark.parametrize("degree", [2, 3, 5])
def test_the_mean_over_seeds_is_the_polynomial_and_neither_zero_nor_the_exponential(degree):
    q, k, _ = draw(length=1.2)
    q = torch.cat((q, k))  # scores of 1.44 among them, where degrees part
    seeds = 4000
    ops = (SketchedTaylor(8, degree, seed=s) for s in range(seeds))
    drawn = torch.stack([op.kernel_matrix(q, k) for op in ops])
    wanted = SketchedTaylor(8, degree).polynomial(q, k)
    error = drawn.std(0) / math.sqrt(seeds)

    def off(matrix):
        return float(((drawn.mean(0) - matrix).abs() / (6 * error)).max())

    assert off(wanted) < 1
    s = q @ k.mT / 6**0.5
    for other in (0 * s, s.exp(), SketchedTaylor(8, degree + 1).polynomial(q, k)):
        assert degree == 5 or off(other) > 1
    assert off(0 * s) > 1
    claimed = SketchedTaylor(8, degree).kernel_variance(q, k)
    away = (drawn - drawn.mean(0)).square()
    noise = 6 * away.std(0) / math.sqrt(seeds)
    assert bool(((away.mean(0) - claimed).abs() < noise).all())
    # As if each degree had signs of its own: what they share is seen.
    alone = [SketchedTaylor(8, p).kernel_variance(q, k) for p in (2, 3)]
    if degree == 3:
        x, y = q / 6**0.25, k / 6**0.25
        c = x.square().sum(-1)[:, None] * y.square().sum(-1) + 2 * (
            s.square() - x.square() @ y.square().mT
        )
        apart = alone[0] + (c**3 - s**6) / 36 / 8
        assert not bool(((away.mean(0) - apart).abs() < noise).all())


@pytest.mark.parametrize("degree", [2, 4, 9])
def test_the_polynomial_is_within_its_remainder_of_the_exponential(degree):
    s = torch.linspace(-4, 4, 161, dtype=F64)
    p = SketchedTaylor(degree=degree, scale=1.0).polynomial(s[:, None], s.new_ones(1, 1))[:, 0]
    left = s.abs() ** (degree + 1) * s.clamp_min(0).exp() / math.factorial(degree + 1)
    assert bool(((p - s.exp()).abs() <= left + tolerance(F64, degree, scale=60)).all())
    powers = sum(s**r / math.factorial(r) for r in range(degree + 1))
    torch.testing.assert_close(p, powers, rtol=1e-12, atol=1e-12)
    assert float((p - s.exp()).abs().max()) > 0.5 * float(left.min())


def test_exact_for_its_polynomial_in_one_dimension():
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(9, 1, generator=g, dtype=F64) for _ in range(3))
    for degree in (2, 4):
        op = SketchedTaylor(3, degree)
        p = op.polynomial(q, k)
        torch.testing.assert_close(op.kernel_matrix(q, k), p, rtol=1e-12, atol=1e-12)
        assert float(op.kernel_variance(q, k).abs().max()) < 1e-12
        torch.testing.assert_close(op(q, k, v), p @ v / p.sum(-1, keepdim=True))
    torch.testing.assert_close(SketchedTaylor(1, 2)(q, k, v), Taylor()(q, k, v))


def test_its_matrix_is_the_estimate_with_its_rows_normalised():
    q, k, _ = draw(length=0.8)
    op = SketchedTaylor(32, seed=5)
    estimate = op.kernel_matrix(q, k)
    mass = estimate.sum(-1, keepdim=True)
    wanted = torch.where(mass > 0, estimate / mass, 0)
    torch.testing.assert_close(as_matrix(op, q, k), wanted, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("length", [0.5, 1.5, 3.0])
def test_the_variance_has_the_size_that_the_docstring_says(length):
    q, k, _ = draw(length=length, d=32)
    product = length**2
    spread = SketchedTaylor(64, 12).kernel_variance(q, k).sqrt()
    assert float(spread.max()) < math.exp(3**0.5 * product) / 8
    if length < 1:
        about = product**2 / 2 / 8
        assert bool((spread > 0.7 * about).all())
        assert bool((spread < 1.5 * about).all())


def test_for_short_tokens_it_beats_random_exponentials_and_more_features_help():
    q, k, v = draw(n=256, l=256, d=16, length=1.0)
    few, many = (
        mean_square(lambda s, m=m: SketchedTaylor(m, 4, seed=s), q, k, v) for m in (64, 1024)
    )
    assert 8 < few / many < 32  # 16 times the features
    positive = mean_square(lambda s: Performer(209, _weights(s)), q, k, v)
    assert few < 0.25 * positive
    for trivial in (Uniform(), _Zeros()):
        assert many < 0.1 * mean_square(lambda s, op=trivial: op, q, k, v, 1)


def test_for_longer_tokens_a_higher_degree_needs_more_features():
    q, k, v = draw(n=256, l=256, d=16, length=1.8)
    error = {
        (p, m): mean_square(lambda s, p=p, m=m: SketchedTaylor(m, p, seed=s), q, k, v)
        for p in (2, 4)
        for m in (64, 4096)
    }
    assert error[4, 4096] < 0.5 * error[2, 4096]
    assert error[4, 64] > error[2, 64]


def _weights(seed):
    from softlab.features import Orthogonal

    return Orthogonal(seed)


class _Zeros:
    def __call__(self, q, k, v):
        return 0 * Softmax()(q, k, v)


def test_rows_without_a_positive_sum_are_zero():
    q, k, v = draw(length=3.0, d=32)
    op = SketchedTaylor(1, seed=3)
    mass = op.kernel_matrix(q, k).sum(-1)
    assert bool((mass <= 0).any())
    assert torch.equal((op(q, k, v) == 0).all(-1), mass <= 0)


def test_another_seed_redraws():
    q, k, v = draw()
    outs = [SketchedTaylor(16, seed=s)(q, k, v) for s in (0, 0, 1)]
    assert torch.equal(outs[0], outs[1])
    assert float((outs[2] - outs[0]).norm() / outs[0].norm()) > 1e-3


def test_many_blocks_of_tokens_give_what_one_gives():
    q, k, v = draw(n=6000, l=5000, d=8)
    op = SketchedTaylor(32)
    some = torch.arange(0, 6000, 977)
    estimate = op.kernel_matrix(q[some], k)
    wanted = estimate @ v / estimate.sum(-1, keepdim=True)
    torch.testing.assert_close(op(q, k, v)[some], wanted, rtol=0, atol=tolerance(F64, 5000, c=100))


def test_the_default_takes_little_memory_at_sixteen_thousand_tokens():
    q, k, v = (torch.randn(4, 16384, 32) for _ in range(3))
    peak = peak_memory(lambda: SketchedTaylor()(q, k, v), q.device)
    assert peak < 10 * q.numel() * q.element_size()
