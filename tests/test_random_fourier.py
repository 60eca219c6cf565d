"""Facts about trigonometric features, beside the positive ones."""

import dataclasses
import re

import pytest
import torch

from softlab.core import as_matrix
from softlab.features import IID, Orthogonal
from softlab.laws import tolerance
from softlab.operators import (
    CosFormer,
    GaussianAttention,
    LinearAttention,
    Performer,
    RandomFourier,
    Softmax,
    Taylor,
    TruncatedSVD,
    Uniform,
)

F64 = torch.float64


def draw(n=24, d=8, scale=1.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    q, k = (scale * torch.randn(n, d, generator=g, dtype=F64) for _ in range(2))
    return q, k, torch.randn(n, 5, generator=g, dtype=F64)


def error(out, exact):
    return float((out - exact).norm() / exact.norm())


@pytest.mark.parametrize(
    "target",
    [Softmax(), GaussianAttention(), GaussianAttention(bandwidth=2.0, normalization="row")],
    ids=repr,
)
def test_many_features_approach_the_target_at_the_rate_of_monte_carlo(target):
    q, k, v = draw(scale=0.5)
    exact = target(q, k, v)

    def mean_square(m):
        ops = (RandomFourier(m, target, Orthogonal(seed)) for seed in range(8))
        return sum(error(op(q, k, v), exact) ** 2 for op in ops) / 8

    few, many = mean_square(64), mean_square(4096)
    assert many**0.5 < 0.5 * error(Uniform()(q, k, v), exact)
    # 64 times the features: 64 times less, within what eight seeds say of a variance.
    assert 16 < few / many < 256


def test_entries_can_be_negative_and_the_traits_say_so():
    q, k, _ = draw(scale=2.0)
    op = RandomFourier(16)
    assert float(as_matrix(op, q, k).min()) < 0
    assert not op.traits.nonnegative
    assert not op.traits.row_stochastic


def test_a_row_whose_estimated_sum_is_negative_is_zero():
    q, k, v = draw(scale=3.0)
    op = RandomFourier(4)
    lost = op.kernel_matrix(q, k).sum(-1) <= 0
    assert 0 < int(lost.sum()) < len(q)
    out = op(q, k, v)
    assert bool((out[lost] == 0).all())
    assert bool((out[~lost] != 0).all())


def test_near_points_suit_cosines_and_opposite_points_positive_features():
    """Published variances, and so the estimates: each method has the pairs that it is made for."""
    q, _, _ = draw(n=6, scale=0.8)
    waves, positive = RandomFourier(32, weights=IID()), Performer(32, IID())
    near, opposite = q + 1e-3, 1e-3 - q
    diagonal = range(6), range(6)
    for k, better, worse in ((near, waves, positive), (opposite, positive, waves)):
        small, large = (op.kernel_variance(q, k)[diagonal] for op in (better, worse))
        assert bool((1e3 * small < large).all())


@pytest.mark.parametrize(
    ("build", "error_type", "message"),
    [
        (lambda: RandomFourier(7), ValueError, "RandomFourier.features is 7; a cosine and a sine"),
        (lambda: RandomFourier(0), ValueError, "RandomFourier.features is 0; give an integer of"),
        (lambda: RandomFourier(weights=3), TypeError, "RandomFourier.weights is 3, which is no We"),
        (lambda: RandomFourier(target=TruncatedSVD(2)), TypeError, "give a Softmax or a GaussianA"),
        (
            lambda: RandomFourier(target=GaussianAttention(normalization="symmetric")),
            ValueError,
            "give normalization='none' or 'row'",
        ),
    ],
)
def test_bad_fields_are_refused(build, error_type, message):
    with pytest.raises(error_type, match=re.escape(message)):
        build()


def test_another_seed_redraws():
    q, k, v = draw()
    op = RandomFourier(16, weights=IID(0))
    other = dataclasses.replace(op, weights=IID(1))
    assert error(other(q, k, v), op(q, k, v)) > 1e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "op", [RandomFourier(16), Performer(16), Taylor(), LinearAttention(), CosFormer()], ids=repr
)
def test_kernel_matrices_of_half_precision_are_rounded_once(op, dtype):
    q, k, _ = (x.to(dtype) for x in draw(scale=0.7))
    exact = op.kernel_matrix(q.double(), k.double())
    working = tolerance(torch.float32, 16, scale=float(exact.abs().max()))
    gap = (op.kernel_matrix(q, k).double() - exact).abs()
    assert bool((gap <= torch.finfo(dtype).eps * exact.abs() + working).all())
