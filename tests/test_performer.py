"""Facts about FAVOR+: the published package's eps, redraws, convergence, and extreme features."""

import dataclasses
import math

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


# --- the optimal parameter -------------------------------------------------------------------


def log_moments(op, q, k):
    """Of each entry, the logarithm of the second moment over the square of the kernel."""
    return (
        op.features
        * op.kernel_variance(q, k)
        / Softmax(op.scale).kernel(q.shape[-1]).matrix(q, k).square()
    ).log1p()


@pytest.mark.parametrize("scale", [0.01, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("d", [1, 4, 16])
def test_the_best_rho_has_the_least_mean_logarithm_of_second_moments(d, scale):
    q, k, _ = draw(d=d, scale=scale)
    k = k + 0.3 * scale
    op = Performer(8, IID(), "optimal")
    best = float(op.best_rho(q, k))
    assert 0 < best < 1
    mean = {
        rho: float(log_moments(dataclasses.replace(op, rho=rho), q, k).mean())
        for rho in (best, 0.97 * best, 1 - 0.97 * (1 - best), 1.0)
    }
    assert min(mean, key=mean.get) == best
    # Never worse than A = 0, which is rho = 1: positive features, to the digit.
    positive = Performer(8, IID())
    torch.testing.assert_close(
        log_moments(dataclasses.replace(op, rho=1.0), q, k), log_moments(positive, q, k)
    )
    assert mean[best] <= float(log_moments(positive, q, k).mean())
    torch.testing.assert_close(
        log_moments(op, q, k), log_moments(dataclasses.replace(op, rho=best), q, k)
    )


def test_where_all_pairs_are_as_long_no_entry_is_worse_than_of_positive_features():
    x = torch.eye(4, dtype=F64) * 1.7
    q, k = x[:2], x[2:]  # |x + y| is one number
    ours, theirs = (Performer(8, IID(), e).kernel_variance(q, k) for e in ("optimal", "positive"))
    assert bool((ours < theirs).all())
    # And at x = -y, where positive features have no variance, they are.
    q, k = torch.cat((x, -x)), x
    ours, theirs = (Performer(8, IID(), e).kernel_variance(q, k) for e in ("optimal", "positive"))
    assert float(theirs[4, 0]) == 0 < float(ours[4, 0])


def test_with_rho_one_they_are_positive_features():
    q, k, v = draw()
    ours, theirs = Performer(16, estimator="optimal", rho=1.0), Performer(16)
    for x, y in (
        (ours(q, k, v), theirs(q, k, v)),
        (ours.kernel_matrix(q, k), theirs.kernel_matrix(q, k)),
        (ours.feature_map(q), theirs.feature_map(q)),
    ):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-14)


def test_features_are_bounded_in_the_weights_below_rho_one():
    x = torch.full((1, 1), 0.5, dtype=F64)
    op = Performer(20000, IID(5), "optimal", scale=1.0, rho=0.5)
    # A = -1/8, a = 3/2: the largest is at w = sqrt(a) x / (2 |A|) = 2.4, which draws come near.
    largest = 1.5**0.25 * math.exp(1.5 * 0.25 / 0.5 - 0.125) / 20000**0.5
    found = float(op.feature_map(x).max())
    assert 0.999 * largest < found <= largest
    plain = Performer(20000, IID(5), scale=1.0).feature_map(x)
    assert float(plain.max()) > 1.5 * found  # and grows with their number


def test_the_gain_at_trained_norms_is_orders_of_magnitude_and_not_enough():
    """Relative variances at d = 64: at |x + y|^2 = 16 and 64, of a draw of one feature."""
    for squares, positive, optimal in ((16, 8.9e6, 1.1e5), (64, 6.2e27, 1e13)):
        x = torch.zeros(1, 64, dtype=F64)
        x[0, 0] = math.sqrt(squares) / 2
        q = x / 64**-0.25
        kernel = float(Softmax().kernel(64).matrix(q, q))
        theirs, ours = (
            float(Performer(1, IID(), e).kernel_variance(q, q)) / kernel**2
            for e in ("positive", "optimal")
        )
        assert theirs == pytest.approx(positive, rel=0.05)
        assert ours == pytest.approx(optimal, rel=0.2)


def test_masked_keys_have_no_part_in_rho():
    q, k, _ = draw()
    kept = torch.arange(24) < 17
    op = Performer(8, estimator="optimal")
    torch.testing.assert_close(op.best_rho(q, 10 * k, kept), op.best_rho(q, 10 * k[:17]))
    both = torch.stack([q, 3 * q])
    torch.testing.assert_close(op.best_rho(both, both)[1], op.best_rho(3 * q, 3 * q))
    assert float(op.best_rho(0 * q, 0 * k)) == pytest.approx(1, rel=1e-14)


def test_queries_alone_have_no_best_rho():
    q, _, _ = draw()
    op = Performer(8, estimator="optimal")
    with pytest.raises(ValueError, match="give rho a number, or ask kernel_matrix"):
        op.feature_map(q)


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
        (lambda: Performer(rho=0.5), ValueError, "rho is 0.5, and belongs to estimator='optimal'"),
        (
            lambda: Performer(estimator="optimal", eps=0.1),
            ValueError,
            "which has no optimal features; with estimator='optimal' give eps=0",
        ),
        (
            lambda: Performer(estimator="optimal", causal=True),
            ValueError,
            "with causal=True give a number, such as best_rho says",
        ),
        (
            lambda: Performer(estimator="optimal", rho=1.5),
            ValueError,
            "Performer.rho is 1.5; give a number from 1e-6 to 1",
        ),
        (lambda: Performer(eps=1e-30), ValueError, "so give 0 or 1e-15 to 1"),
    ],
)
def test_bad_fields_are_refused(build, error_type, message):
    with pytest.raises(error_type, match=message):
        build()
