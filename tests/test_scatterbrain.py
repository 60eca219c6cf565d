"""Scatterbrain is exact where it says, an estimate elsewhere, and never the one less the other."""

import dataclasses
import math
import re

import pytest
import torch
from draws import head_of

from softlab import as_matrix
from softlab.features import IID
from softlab.laws import tolerance
from softlab.operators import Local, Performer, Scatterbrain, Softmax, Uniform
from softlab.primitives.prefix_sums import sums_before
from softlab.profiling import peak_memory

F64 = torch.float64
draw = head_of(18, 18)


def parts(op):
    """The features of the same weights, alone."""
    return Performer(op.features, op.weights, op.estimator, op.scale)


def logs(op, q, k):
    """Logarithms of w, each entry by itself: nothing over- or underflows."""
    w = op.weights(op.features, q.shape[-1]) * q.shape[-1] ** -0.25
    a, b = (x @ w.mT - x.square().sum(-1, keepdim=True) / (2 * q.shape[-1] ** 0.5) for x in (q, k))
    estimate = (a.unsqueeze(-2) + b.unsqueeze(-3)).logsumexp(-1) - math.log(op.features)
    n, l = len(q), len(k)
    at = torch.tensor([(2 * i + 1) * l // (2 * n) for i in range(n)])[:, None]
    band = ((at - torch.arange(l)).abs() <= op.window) | (torch.arange(l) < op.sinks)
    return torch.where(band, q @ k.mT / q.shape[-1] ** 0.5, estimate)


SIZES = [
    (300, 300, Scatterbrain(3, 16)),
    (300, 200, Scatterbrain(5, 8, sinks=3)),
    (50, 700, Scatterbrain(2, 16, sinks=1)),
    (700, 50, Scatterbrain(1, 16, weights=IID(3))),
    (1, 500, Scatterbrain(2, 16)),
    (333, 333, Scatterbrain(40, 16, sinks=50)),
]


@pytest.mark.parametrize("scale", [1, 8, 30])
@pytest.mark.parametrize(("n", "l", "op"), SIZES, ids=lambda x: repr(x))
def test_many_blocks_give_what_one_entry_at_a_time_gives(n, l, op, scale):
    q, k, v = draw(n, l, d=8, scale=scale)
    for keep in (torch.ones(l, dtype=torch.bool), torch.arange(l) % 7 != 2):
        wanted = logs(op, q, k[keep]).softmax(-1) @ v[keep]
        allowed = tolerance(F64, 8, kappa=scale**2, scale=float(v.abs().max()))
        torch.testing.assert_close(op(q, k, v, keep), wanted, rtol=0, atol=allowed)


@pytest.mark.parametrize("scale", [1, 8])
@pytest.mark.parametrize("op", [Scatterbrain(3, 16), Scatterbrain(40, 8, sinks=50)], ids=repr)
def test_causal_blocks_give_what_one_entry_at_a_time_gives(op, scale):
    n = 200
    q, k, v = draw(n, n, d=8, scale=scale)
    causal = dataclasses.replace(op, causal=True)
    later = torch.ones(n, n, dtype=torch.bool).triu(1)
    wanted = logs(op, q, k).masked_fill(later, -math.inf).softmax(-1) @ v
    out = causal(q, k, v)
    allowed = tolerance(F64, 8, kappa=scale**2, scale=float(v.abs().max()))
    torch.testing.assert_close(out, wanted, rtol=0, atol=allowed)
    for first in (1, 32, 77, 199):
        changed = [torch.where((torch.arange(n) < first)[:, None], x, 1e4 * x) for x in (q, k, v)]
        assert torch.equal(causal(*changed)[:first], out[:first])


def test_gradients_cross_the_blocks():
    op = Scatterbrain(3, 8, sinks=2)
    x = [t.requires_grad_() for t in draw(100, 90)]
    weight = torch.randn(100, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    got = torch.autograd.grad((op(*x) * weight).sum(), x)
    dense = (logs(op, *x[:2]).softmax(-1) @ x[2] * weight).sum()
    for mine, theirs in zip(got, torch.autograd.grad(dense, x), strict=True):
        allowed = tolerance(F64, 100, scale=float(theirs.abs().max()))
        torch.testing.assert_close(mine, theirs, rtol=0, atol=allowed)


def test_subtracting_the_band_from_a_sum_over_all_keys_loses_what_is_far():
    """The paper's form, in float64, where one token lies along a weight w of the features.

    Its estimate of its own score is exp(|w|^2 / 2) / m times the score, which a sum over all keys
    holds and the band's share must cancel.
    """
    op = Scatterbrain(1, 16)
    q, k, v = draw(60, 60, d=64, scale=0.3)
    w = op.weights(16, 64)
    q[30] = k[30] = w[w.norm(dim=-1).argmax()] / 2 * 64**0.25
    wanted = logs(op, q, k).softmax(-1) @ v

    phi_q, phi_k = (parts(op).feature_map(x) for x in (q, k))
    less = (Softmax().kernel(64).matrix(q, k) - phi_q @ phi_k.mT) * op.support(60, 60)
    numerator = phi_q @ (phi_k.mT @ v) + less @ v
    degree = phi_q @ phi_k.sum(0)[:, None] + less.sum(-1, keepdim=True)
    lost = float((numerator / degree - wanted).abs().max())
    kept = float((op(q, k, v) - wanted).abs().max())
    assert kept < 1e-12
    assert lost > 1e-8


# --- what is exact, and what is estimated ------------------------------------------------------


def shares(matrix, exact, band):
    """By how much a row's shares within its band miss those of the exact one."""
    mine, theirs = (x * band / (x * band).sum(-1, keepdim=True) for x in (matrix, exact))
    return float((mine - theirs).abs().max())


@pytest.mark.parametrize(
    "op", [Scatterbrain(2, 8), Scatterbrain(1, 8, sinks=3), Scatterbrain(2, 8, scale=0.9)], ids=repr
)
@pytest.mark.parametrize(("n", "l"), [(18, 18), (7, 23), (50, 6)])
def test_the_kernel_is_exact_on_the_band_and_the_features_off_it(op, n, l):
    q, k, _ = draw(n, l)
    exact, estimate = op.target.kernel(4).matrix(q, k), op.kernel_matrix(q, k)
    band = as_matrix(Local(op.window, sinks=op.sinks), q, k) > 0
    assert torch.equal(estimate[band], exact[band])
    assert torch.equal(estimate[~band], parts(op).kernel_matrix(q, k)[~band])
    matrix = as_matrix(op, q, k)
    assert shares(matrix, exact, band) < tolerance(F64, l)
    mass = estimate.sum(-1, keepdim=True)
    torch.testing.assert_close(matrix, estimate / mass, rtol=0, atol=tolerance(F64, l, c=100))


def test_two_averages_side_by_side_are_seen():
    # Planted: the mean of a band's average and the features', which counts the band twice.
    q, k, _ = draw()
    op = Scatterbrain(2, 8)
    band, exact = op.support(18, 18), Softmax().kernel(4).matrix(q, k)
    for wrong in (
        (as_matrix(Local(2), q, k) + as_matrix(parts(op), q, k)) / 2,
        as_matrix(parts(op), q, k),
        as_matrix(Uniform(), q, k),
    ):
        assert shares(wrong, exact, band) > 1e-3


@pytest.mark.parametrize("op", [Scatterbrain(17), Scatterbrain(40), Scatterbrain(1, sinks=99)])
def test_exact_where_the_band_holds_all_keys(op):
    for scale in (0.1, 1, 30):
        q, k, v = draw(scale=scale**0.5)
        allowed = tolerance(F64, 18, kappa=max(1, scale))
        torch.testing.assert_close(op(q, k, v), Softmax()(q, k, v), rtol=0, atol=allowed)


# --- the claim of a lower error ----------------------------------------------------------------


def short_tokens(n=48, d=8):
    """x = d^(-1/4) q and y of length sqrt(2): |x + y|^2 <= 8 < log(1 + 4096)."""
    g = torch.Generator().manual_seed(0)
    q, k = (torch.randn(n, d, generator=g, dtype=F64) for _ in range(2))
    q, k = ((2 * d**0.5) ** 0.5 * torch.nn.functional.normalize(x, dim=-1) for x in (q + k, k))
    return q, k, torch.randn(n, 5, generator=g, dtype=F64)


def test_less_error_than_the_band_or_the_features_where_features_pay():
    q, k, v = short_tokens()
    exact, out = Softmax().kernel(8).matrix(q, k), Softmax()(q, k, v)
    op = Scatterbrain(4, 4096)
    band = op.support(48, 48)
    alone = (exact * ~band).norm()
    # What must hold: the variance of every pair off the band is less than its square.
    assert bool((op.kernel_variance(q, k) < exact.square())[~band].all())
    mine = theirs = 0.0
    outputs = torch.zeros(2, dtype=F64)
    for seed in range(12):
        drawn = dataclasses.replace(op, weights=IID(seed))
        of_both = (drawn.kernel_matrix(q, k) - exact).norm()
        of_features = (parts(drawn).kernel_matrix(q, k) - exact).norm()
        assert of_both < of_features  # draw by draw: the same errors off the band, none on it
        mine, theirs = mine + float(of_both) / 12, theirs + float(of_features) / 12
        errors = [(x(q, k, v) - out).norm() for x in (drawn, parts(drawn))]
        outputs += torch.stack(errors) / 12
    trivial = float(exact.norm()), float((exact - exact.mean(-1, keepdim=True)).norm())
    assert mine < 0.5 * min(float(alone), *trivial)
    assert mine < 0.8 * theirs
    # And of outputs, with rows normalised.
    rivals = [float((x(q, k, v) - out).norm()) for x in (Local(4), Uniform())]
    assert outputs[0] < outputs[1]
    assert float(outputs[0]) < 0.5 * min(*rivals, float(out.norm()))


def test_at_long_tokens_a_draw_gives_what_the_band_gives():
    """What the docstring owns to: most estimates are far too small, and few are far too large.

    The features alone err more in every draw; beside the band they are lost, or do harm.
    """
    q, k, v = (x * scale for x, scale in zip(short_tokens(), (5, 5, 1), strict=True))
    op = Scatterbrain(4, 64)
    exact, out = Softmax().kernel(8).matrix(q, k), Softmax()(q, k, v)
    wild = op.kernel_variance(q, k) > 1e6 * exact.square()
    assert float(wild.float().mean()) > 0.5
    drawn = [dataclasses.replace(op, weights=IID(seed)) for seed in range(15)]
    too_small = torch.stack([(x.kernel_matrix(q, k) < 0.01 * exact)[wild] for x in drawn])
    assert float(too_small.float().mean()) > 0.9
    band = Local(4)(q, k, v)
    gaps = sorted(float((x(q, k, v) - band).norm() / (band - out).norm()) for x in drawn)
    assert gaps[7] < 1e-3
    assert min(float((parts(x)(q, k, v) - out).norm()) for x in drawn) > (band - out).norm()


# --- the sums before a query's keys ------------------------------------------------------------


def test_keys_that_a_query_does_not_gather_change_no_bit_of_its_sums():
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, 150, 6, generator=g, dtype=F64) for _ in range(2))
    v = torch.randn(2, 150, 3, generator=g, dtype=F64)
    counts = torch.arange(150).unsqueeze(0)
    before = sums_before(a, b, v, counts)
    for first in (1, 31, 32, 77, 149):
        later = (torch.arange(150) >= first)[:, None]
        after = sums_before(a, torch.where(later, 1e4, b), torch.where(later, 1e9, v), counts)
        seen = counts[0] <= first
        for x, y in zip(before, after, strict=True):
            assert torch.equal(x[:, seen], y[:, seen])
        assert not torch.equal(before.values[:, ~seen], after.values[:, ~seen]) or first == 149


def test_nothing_gathered_is_an_empty_sum():
    a, b = torch.zeros(1, 5, 2, dtype=F64), torch.zeros(1, 4, 2, dtype=F64)
    v = torch.tensor([[[1.0], [10], [100], [1000]]], dtype=F64)
    sums = sums_before(a, b, v, torch.tensor([[0, 0, 1, 3, 4]]))
    assert (sums.log_scale.flatten() == -math.inf).tolist() == [True, True, False, False, False]
    scale = sums.log_scale.exp()
    # Two features of one each.
    assert (sums.values * scale).flatten().tolist() == pytest.approx([0, 0, 2, 222, 2222])
    assert (sums.weights * scale).flatten().tolist() == pytest.approx([0, 0, 2, 6, 8])


def test_the_default_takes_little_memory_at_sixteen_thousand_tokens():
    q, k, v = (torch.randn(4, 16384, 32) for _ in range(3))
    peak = peak_memory(lambda: Scatterbrain(32)(q, k, v), q.device)
    assert peak < 10 * q.numel() * q.element_size()


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: Scatterbrain(0), ValueError, "Scatterbrain.window is 0; give an integer of at"),
        (lambda: Scatterbrain(2, 0), ValueError, "Scatterbrain.features is 0; give an integer"),
        (lambda: Scatterbrain(2, sinks=-1), ValueError, "Scatterbrain.sinks is -1; give an integ"),
        (lambda: Scatterbrain(2, weights=IID), TypeError, "Scatterbrain.weights is <class"),
        (lambda: Scatterbrain(2, estimator="cos"), ValueError, "one of positive, hyperbolic"),
        (lambda: Scatterbrain(2, 7, estimator="hyperbolic"), ValueError, "come in pairs, so give"),
        (lambda: Scatterbrain(2, scale=0), ValueError, "scale is 0; give a positive finite number"),
    ],
)
def test_impossible_knobs_are_refused(build, error, message):
    with pytest.raises(error, match=re.escape(message)):
        build()
