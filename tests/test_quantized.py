"""Rounded scores err within their bounds, reach them where they are sharp, and cost their digits.

Allowances of 1e-12 beside the bounds are float64's rounding of sums of a few terms of size one.
"""

import math
import re

import pytest
import torch

from softlab import as_matrix
from softlab.operators import Quantized, Softmax, Uniform

F64 = torch.float64
KNOBS = [
    Quantized(precision, smoothing)
    for precision in ("bfloat16", "float16", "float8", "int8")
    for smoothing in (False, True)
]


def draw(n=12, l=16, d=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(s, generator=g, dtype=F64) for s in ((n, d), (l, d), (l, 3)))


def scores(q, k):
    return q @ k.mT / q.shape[-1] ** 0.5


def score_errors(op, q, k, key_mask=None):
    """What rounding changes; with smoothing, of scores less their common part."""
    centre = k.mean(0) if key_mask is None else k[key_mask].mean(0)
    return (scores(*op.rounded(q, k, key_mask)) - scores(q, k - centre * op.smoothing)).abs()


def output_bound(op, q, k, v):
    delta = op.score_error(q, k).amax(-1)
    return torch.tanh(delta / 2) * torch.cdist(v, v).max()


@pytest.mark.parametrize("op", KNOBS, ids=repr)
def test_no_entry_errs_by_more_than_its_rounding(op):
    for scale in (1e-6, 1e-3, 1, 100):
        x = scale * draw(n=500)[0]
        error = (Quantized(op.precision).rounded(x, x)[0] - x).abs()
        bound = op.rounding(x)
        assert bool((error <= bound * (1 + 1e-12)).all())
        # Of 4000 entries some lie nearly half-way between numbers, not far above a power of two.
        assert float((error / bound).max()) > 0.9


@pytest.mark.parametrize("op", KNOBS, ids=repr)
def test_scores_and_outputs_err_within_their_bounds(op):
    for seed in range(5):
        for scale in (0.1, 1, 5):
            q, k, v = draw(seed=seed)
            q = scale * q
            assert bool((score_errors(op, q, k) <= op.score_error(q, k) + 1e-12).all())
            missed = (op(q, k, v) - Softmax()(q, k, v)).norm(dim=-1)
            assert bool((missed <= output_bound(op, q, k, v) + 1e-12).all())


def test_masked_keys_enter_neither_the_mean_nor_the_bound():
    q, k, _ = draw()
    key_mask = torch.arange(16) < 11
    for op in KNOBS:
        bound = op.score_error(q, 1 * k, key_mask)[:, :11]
        torch.testing.assert_close(bound, op.score_error(q, k[:11]), rtol=1e-12, atol=1e-14)
        assert bool((score_errors(op, q, k, key_mask)[:, :11] <= bound + 1e-12).all())


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "int8"])
def test_the_bound_refuses_zeros_and_the_mean(precision):
    q, k, v = draw()
    exact, allowed = Softmax()(q, k, v), output_bound(Quantized(precision), q, k, v)
    for trivial in (0 * exact, Uniform()(q, k, v)):
        assert not bool(((trivial - exact).norm(dim=-1) <= allowed).all())


@pytest.mark.parametrize("delta", [1e-3, 0.1, 1.0, 5.0])
def test_the_hyperbolic_tangent_is_reached(delta):
    # Two keys of weights e^d and e^-d in proportion; moved apart by d and -d they swap.
    weights = torch.tensor([-delta, delta], dtype=F64).div(2).softmax(-1)
    tilted = torch.tensor([delta, -delta], dtype=F64).div(2).softmax(-1)
    assert float((tilted - weights)[0]) == pytest.approx(math.tanh(delta / 2), rel=1e-12)


def test_the_score_bound_is_reached_half_way_between_two_numbers():
    for precision, digits in (("bfloat16", 8), ("float16", 11)):
        op = Quantized(precision)
        x = torch.full((1, 4), 1 + 2.0**-digits, dtype=F64)  # rounds down to 1, to even
        assert float(score_errors(op, x, x) / op.score_error(x, x)) > 1 - 2.0 ** (2 - digits)
    # 127 sets the scale, and 0.5 rounds to 0, to even.
    x = torch.tensor([[127, 0.5, 0.5, 0.5]], dtype=F64)
    rounded, _ = Quantized("int8").rounded(x, x)
    assert torch.equal(rounded, torch.tensor([[127, 0, 0, 0]], dtype=F64))


def test_three_more_digits_cut_the_error_by_eight():
    q, k, _ = draw(n=64, l=64)
    by_precision = {op: score_errors(op, q, k).square().mean().sqrt() for op in KNOBS}
    coarse, fine = by_precision[Quantized("bfloat16")], by_precision[Quantized("float16")]
    assert float(coarse / fine) == pytest.approx(8, rel=0.05)
    # Of float8, four fewer than bfloat16, the largest entry of each token is exact.
    coarse, fine = by_precision[Quantized("float8")], by_precision[Quantized("bfloat16")]
    assert 8 < float(coarse / fine) < 16


def test_numbers_of_the_format_are_left_alone():
    g = torch.Generator().manual_seed(0)
    x = torch.randint(-126, 127, (9, 4), generator=g).to(F64)
    x[:, 0] = 127
    v = draw(l=9)[2]
    for precision in ("int8", "bfloat16", "float16"):
        op = Quantized(precision)
        assert torch.equal(op.rounded(x, x)[0], x)
        torch.testing.assert_close(op(x / 8, x / 8, v), Softmax()(x / 8, x / 8, v))
    small = torch.randint(-14, 15, (9, 4), generator=g).to(F64)
    small[:, 0] = 14  # 448 is 14 times 32
    assert torch.equal(Quantized("float8").rounded(small, small)[0], small)


@pytest.mark.parametrize("precision", ["bfloat16", "float8", "int8"])
def test_smoothing_saves_the_digits_that_a_common_offset_takes(precision):
    q, k, v = draw(n=64, l=64)
    k = k + 30 * torch.tensor([1, -1, 0, 0, 0, 0, 0, 0], dtype=F64)  # two channels, as outliers
    rough, smooth = (
        float((Quantized(precision, smoothing)(q, k, v) - Softmax()(q, k, v)).norm())
        for smoothing in (False, True)
    )
    assert smooth < rough / 5
    mean = float((Uniform()(q, k, v) - Softmax()(q, k, v)).norm())
    assert smooth < 0.1 * mean


def test_float16_ends_at_its_largest_number():
    x = torch.tensor([[1e6, -1e6, 1.0]], dtype=F64)
    op = Quantized("float16")
    assert torch.equal(op.rounded(x, x)[0], torch.tensor([[65504, -65504, 1]], dtype=F64))
    assert op.rounding(x).isinf().tolist() == [[True, True, False]]


def test_every_precision_perturbs():
    q, k, _ = draw()
    exact = as_matrix(Softmax(), q, k)
    for op in KNOBS:
        assert float((as_matrix(op, q, k) - exact).abs().max()) > 1e-6


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: Quantized("int4"), ValueError, "Quantized.precision is 'int4'; give one of bfloa"),
        (lambda: Quantized(smoothing=1), TypeError, "Quantized.smoothing is 1; give True or False"),
    ],
)
def test_impossible_knobs_are_refused(build, error, message):
    with pytest.raises(error, match=re.escape(message)):
        build()
