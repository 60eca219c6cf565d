"""Facts about FAVOR+: the published package's eps, redraws, convergence, and extreme features."""

import dataclasses

import pytest
import torch

from softlab.features import IID, Orthogonal
from softlab.operators import Performer, Softmax, Uniform

F64 = torch.float64


def draw(n=24, d=16, scale=1.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    q, k = (scale * torch.randn(n, d, generator=g, dtype=F64) for _ in range(2))
    return q, k, torch.randn(n, 5, generator=g, dtype=F64)


def error(out, exact):
    return float((out - exact).norm() / exact.norm())


@pytest.mark.parametrize("estimator", ["positive", "hyperbolic"])
def test_many_features_approach_softmax_at_the_rate_of_monte_carlo(estimator):
    q, k, v = draw(scale=0.4)  # short: else few features carry each sum, and no rate is seen
    exact = Softmax()(q, k, v)

    def mean_square(m):
        ops = (Performer(m, Orthogonal(seed), estimator) for seed in range(8))
        return sum(error(op(q, k, v), exact) ** 2 for op in ops) / 8

    few, many = mean_square(64), mean_square(4096)
    assert many**0.5 < 0.5 * error(Uniform()(q, k, v), exact)
    # 64 times the features: 64 times less, within what eight seeds say of a variance.
    assert 16 < few / many < 256


def test_the_published_eps_returns_nearly_the_mean_of_v():
    """At unit scale in 64 dimensions, in the numbers of performer-pytorch (eps = 1e-4)."""
    q, k, v = draw(n=64, d=64)
    exact, mean = Softmax()(q, k, v), Uniform()(q, k, v)
    op = Performer(256)
    published = dataclasses.replace(op, eps=1e-4)
    # What is left of the deviation from the mean of v, in each.
    left = float((published(q, k, v) - mean).norm() / (op(q, k, v) - mean).norm())
    assert left < 0.5
    assert error(published(2 * q, 2 * k, v), mean) < 1e-2
    assert error(op(2 * q, 2 * k, v), mean) > 0.5
    assert error(exact, mean) > 0.5


def test_a_vanishing_eps_changes_nothing():
    q, k, v = draw(scale=0.5)
    plain, tiny = (Performer(32, eps=eps)(q, k, v) for eps in (0.0, 1e-15))
    torch.testing.assert_close(tiny, plain, rtol=1e-9, atol=1e-9)


def test_another_seed_redraws():
    q, k, v = draw()
    outs = [Performer(16, IID(seed))(q, k, v) for seed in (0, 0, 1)]
    assert torch.equal(outs[0], outs[1])
    assert error(outs[2], outs[0]) > 1e-2


def test_features_that_underflow_apart_leave_rows_that_sum_to_one():
    """One feature is large for the queries alone, another for the keys: their product underflows.

    A stabiliser that is one number a matrix leaves 0 / 0 here; one a feature does not.
    """
    q = 100 * torch.eye(4, dtype=torch.float32)[:2]
    k = -150 * torch.eye(4, dtype=torch.float32)[:3]
    out = Performer(8, IID(3))(q, k, torch.ones(3, 1))
    torch.testing.assert_close(out, torch.ones(2, 1))
    projected = q @ IID(3)(8, 4).float().mT / 2**0.5, k @ IID(3)(8, 4).float().mT / 2**0.5
    one_number = [(x - x.max()).exp() for x in projected]
    assert bool(((one_number[0] @ one_number[1].mT).sum(-1) == 0).any())


@pytest.mark.parametrize(
    ("build", "error_type", "message"),
    [
        (lambda: Performer(0), ValueError, "Performer.features is 0; give an integer of at least"),
        (lambda: Performer(7, estimator="hyperbolic"), ValueError, "come in pairs, so give an ev"),
        (lambda: Performer(estimator="relu"), ValueError, "give one of positive, hyperbolic"),
        (lambda: Performer(weights=IID), TypeError, "Performer.weights is <class"),
        (lambda: Performer(scale=-1.0), ValueError, "scale is -1.0; give a positive finite number"),
        (
            lambda: Performer(eps=-1e-4),
            ValueError,
            "Performer.eps is -0.0001; give a finite number of at least 0",
        ),
        (lambda: Performer(eps=1e-30), ValueError, "so give 0 or 1e-15 to 1"),
    ],
)
def test_bad_fields_are_refused(build, error_type, message):
    with pytest.raises(error_type, match=message):
        build()
