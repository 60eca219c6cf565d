"""Rounded scores err within their bounds, reach them where they are sharp, and cost their digits.

Allowances of 1e-12 beside the bounds are float64's rounding of sums of a few terms of size one.
"""

import dataclasses
import math
import re

import pytest
import torch
from draws import head_of

from softlab import as_matrix
from softlab.operators import Quantized, Softmax, Uniform
from softlab.operators.quantized import lloyd_max

F64 = torch.float64
KNOBS = [
    Quantized(precision, smoothing)
    for precision in ("bfloat16", "float16", "float8", "int8")
    for smoothing in (False, True)
]


draw = head_of(12, 16, 8)


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


# --- other parts, scales and forms -----------------------------------------------------------


def missed(x, rounded):
    """The mean square of what is lost, relative to the tokens' length."""
    return float((x - rounded).square().sum() / x.square().sum())


def test_centroids_meet_maxs_conditions_and_lose_what_is_published():
    # Max, 1960, Table I: centroids at two and three bits; TurboQuant's distortions.
    two, three = lloyd_max(2)[2:], lloyd_max(3)[4:]
    torch.testing.assert_close(two, torch.tensor([0.4528, 1.510], dtype=F64), atol=1e-3, rtol=0)
    wanted = torch.tensor([0.2451, 0.7560, 1.344, 2.152], dtype=F64)
    torch.testing.assert_close(three, wanted, atol=1e-3, rtol=0)
    x = draw(n=2000, d=128)[0]
    for bits, published in ((1, 0.363), (2, 0.1175), (3, 0.0345), (4, 0.0095)):
        op = Quantized("turboquant", bits=bits, parts="k")
        got = missed(x, op.rounded(x[:1], x)[1])
        # Coordinates of unit vectors in 128 dimensions have tails a little lighter than normal.
        assert got == pytest.approx(published, rel=0.03)
        assert got < math.sqrt(3) * math.pi / 2 / 4**bits
    for bits in range(1, 9):
        c = lloyd_max(bits)
        assert len(c) == 2**bits
        assert bool((c.diff() > 0).all())
        assert torch.equal(c, -c.flip(0))


@pytest.mark.parametrize("sketch", ["gaussian", "orthogonal"])
@pytest.mark.parametrize("bits", [1, 3])
def test_products_of_the_second_form_are_unbiased(sketch, bits):
    k, y = draw(n=1, d=8)[0], draw(n=1, d=8, seed=1)[0]
    seeds = 3000
    got = torch.stack(
        [
            y
            @ Quantized("turboquant-product", parts="k", bits=bits, sketch=sketch, seed=s)
            .rounded(y, k)[1]
            .mT
            for s in range(seeds)
        ]
    ).flatten()
    away = float(got.mean() - y @ k.mT)
    assert abs(away) < 5 * float(got.std()) / math.sqrt(seeds)
    plain = torch.stack(
        [
            y @ Quantized("turboquant", bits=1, parts="k", seed=s).rounded(y, k)[1].mT
            for s in range(300)
        ]
    )
    shrunk = float((plain.mean() - y @ k.mT).abs())
    assert shrunk > 5 * float(plain.std()) / math.sqrt(300)  # which the first form is not


def test_the_gaussian_sketch_has_the_variance_that_it_says_and_the_orthogonal_one_less():
    d, seeds = 32, 3000
    k, y = draw(n=1, d=d)[0], draw(n=1, d=d, seed=1)[0]
    spread = {}
    for sketch in ("gaussian", "orthogonal"):
        op = Quantized("turboquant-product", bits=1, parts="k", sketch=sketch)
        got = [y @ dataclasses.replace(op, seed=s).rounded(y, k)[1].mT for s in range(seeds)]
        spread[sketch] = float(torch.stack(got).var())
    squares = float(y.square().sum() * k.square().sum())
    wanted = (math.pi / 2 * squares - float(y @ k.mT) ** 2) / d
    assert spread["gaussian"] == pytest.approx(wanted, rel=6 * math.sqrt(2 / seeds))
    assert spread["orthogonal"] < 0.5 * wanted


def test_the_published_sketch_is_worth_less_than_its_bit():
    """Outputs at three bits of a key: the first form, and the second with either sketch."""
    q, k, v = draw(n=128, l=512, d=64)
    exact = Softmax()(q, k, v)

    def error(precision, bits, sketch="gaussian"):
        ops = (Quantized(precision, parts="k", bits=bits, sketch=sketch, seed=s) for s in range(3))
        return sum(float((op(q, k, v) - exact).norm() / exact.norm()) for op in ops) / 3

    first, less = error("turboquant", 3), error("turboquant", 2)
    gaussian, orthogonal = (
        error("turboquant-product", 3, sketch) for sketch in ("gaussian", "orthogonal")
    )
    assert first < orthogonal < less < gaussian


def test_a_scale_a_channel_saves_what_an_outlying_channel_takes():
    q, k, v = draw(n=64, l=64)
    k[:, 2] *= 100
    q[:, 2] /= 100
    exact = Softmax()(q, k, v)

    def error(**fields):
        return float((Quantized("int", bits=4, parts="k", **fields)(q, k, v) - exact).norm())

    assert error(granularity="channel") < 0.2 * min(error(), error(granularity="tensor"))
    # Turned, its error is in all channels, those that queries weigh most among them: worse than
    # channels that are rounded to zero.
    assert error(rotation=True) > 2 * error()


def test_a_turn_spares_the_digits_that_one_large_entry_takes():
    k = draw(n=50, d=64)[0]
    k[:, 0] = 10
    plain, turned = (
        missed(k, Quantized("int", bits=4, rotation=x).rounded(k, k)[1]) for x in (False, True)
    )
    assert turned < 0.5 * plain


@pytest.mark.parametrize("fields", [{"granularity": "channel"}, {"rotation": True, "seed": 3}])
@pytest.mark.parametrize("parts", ["qk", "k"])
def test_bounds_hold_for_other_scales_and_turned_tokens(fields, parts):
    for precision in ("int8", "float8", "float8_e5m2"):
        op = Quantized(precision, parts=parts, **fields)
        q, k, v = draw(n=40, l=50)
        assert bool((score_errors(op, q, k) <= op.score_error(q, k) + 1e-12).all())
        away = (op(q, k, v) - Softmax()(q, k, v)).norm(dim=-1)
        assert bool((away <= output_bound(op, q, k, v) + 1e-12).all())
        assert float((score_errors(op, q, k) / op.score_error(q, k)).max()) > 0.1


@pytest.mark.parametrize("precision", ["int8", "float8", "float8_e5m2", "bfloat16"])
def test_rounded_weights_err_by_half_a_step_of_the_largest(precision):
    q, k, _ = draw(n=30, l=40)
    op, exact = Quantized(precision, parts="p"), Softmax()(q, k, torch.eye(40, dtype=F64))
    got = op(q, k, torch.eye(40, dtype=F64))
    top = exact.amax(-1, keepdim=True)
    u = {"int8": 0, "float8": 2**-4, "float8_e5m2": 2**-3, "bfloat16": 2**-8}[precision]
    least = {"int8": 0.5 / 127, "float8": 2**-10 / 448, "float8_e5m2": 2**-17 / 57344}
    allowed = torch.maximum(u * exact, least.get(precision, 0) * top)
    assert bool(((got - exact).abs() <= allowed * (1 + 1e-6)).all())
    assert float((got - exact).abs().max()) > 1e-6
    # What is rounded is divided by the sum of what is not: rows sum to one no more.
    assert not op.traits.row_stochastic
    assert float((got.sum(-1) - 1).abs().max()) > 1e-6


def test_values_are_rounded_where_they_are_among_the_parts():
    q, k, v = draw(n=30, l=40)
    op = Quantized("int", bits=3, parts="v")
    largest = v.abs().amax(-1, keepdim=True)
    torch.testing.assert_close(
        op(q, k, v), Softmax()(q, k, (3 * v / largest).round() * largest / 3)
    )
    assert not op.traits.linear_in_v


def test_a_turn_is_undone_and_one_for_all_tokens():
    q, k, v = draw(n=30, l=40, d=16)
    fine = Quantized("int", bits=8, parts="qk", rotation=True)
    plain = Quantized("int", bits=8, parts="qk")
    for op in (fine, plain):
        assert float((op(q, k, v) - Softmax()(q, k, v)).abs().max()) < 0.05
    assert not torch.equal(fine(q, k, v), plain(q, k, v))
    assert not torch.equal(fine(q, k, v), dataclasses.replace(fine, seed=1)(q, k, v))


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: Quantized("int4"), ValueError, "Quantized.precision is 'int4'; give one of bfloa"),
        (lambda: Quantized(smoothing=1), TypeError, "Quantized.smoothing is 1; give True or False"),
        (lambda: Quantized("int"), ValueError, "bits is None, with precision='int'; give bits"),
        (lambda: Quantized("int8", bits=4), ValueError, "bits is 4, with precision='int8'; give b"),
        (lambda: Quantized("int", bits=1), ValueError, "leaves an integer no sign; give 2 to 8"),
        (lambda: Quantized(parts="kq"), ValueError, "Quantized.parts is 'kq'; give one of qk, q"),
        (
            lambda: Quantized("turboquant", bits=2, rotation=True),
            ValueError,
            "turns tokens itself and rounds no weights; give rotation=False",
        ),
        (
            lambda: Quantized("float16", granularity="tensor"),
            ValueError,
            "float16 has no scale to share; give 'token'",
        ),
        (
            lambda: Quantized(granularity="channel", causal=True),
            ValueError,
            "a scale that later tokens move; with causal=True give 'token'",
        ),
        (
            lambda: Quantized("turboquant", bits=2).rounding(torch.ones(2, 2)),
            ValueError,
            "bounds no entry's error",
        ),
    ],
)
def test_impossible_knobs_are_refused(build, error, message):
    with pytest.raises(error, match=re.escape(message)):
        build()


@pytest.mark.parametrize("parts", ["v", "p", "pv"])
def test_the_bound_of_rounded_values_and_weights_is_what_they_do(parts):
    """Scores are exact, so that all of the error is measured: the bound is the error."""
    q, k, v = draw()
    op = Quantized("int", bits=3, parts=parts)
    error = (op(q, k, v) - Softmax()(q, k, v)).norm(dim=-1)
    assert float(error.max()) > 1e-2
    torch.testing.assert_close(op.bound(q, k, v), error, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize(
    "op",
    [
        Quantized("int", bits=3, granularity="channel", rotation=True),
        Quantized("turboquant", bits=2, parts="qk"),
        Quantized("turboquant-product", bits=2, parts="kv", seed=1),
        Quantized("float8", parts="qkpv"),
    ],
    ids=repr,
)
def test_every_format_is_certified_by_the_tokens_that_it_makes(op):
    q, k, v = draw()
    for scale in (1.0, 0.1, 1e-9):
        error = (op(scale * q, k, v) - Softmax()(scale * q, k, v)).norm(dim=-1)
        bound = op.bound(scale * q, k, v)
        assert bool((error <= bound).all())
    # Equal scores are not rounded: what is left is what rounding does to values and weights.
    assert float((bound - error).abs().max()) < 1e-6
