"""Certificates: what they say of operators without one, their parts, and a run of many cases."""

import dataclasses
import json
import math
from unittest import mock

import pytest
import torch
from matrices import normal as draw
from typer.testing import CliRunner

import softlab
from softlab import laws
from softlab.cli import app
from softlab.estimators.estimate import student
from softlab.features import IID
from softlab.kernels import Gaussian
from softlab.landmarks import Strided
from softlab.laws import certificates
from softlab.laws.law import generator
from softlab.operators import (
    AdaptiveSample,
    BigBird,
    ColumnSample,
    GaussianAttention,
    Local,
    Monarch,
    Nystromformer,
    Pages,
    Performer,
    Quantized,
    RandomFourier,
    RPCholesky,
    Skyformer,
    Soft,
    Softmax,
    TopK,
)
from softlab.pinv import Cholesky, NewtonRaphson
from softlab.primitives import nystrom_bounds
from softlab.primitives.draws_intervals import from_draws
from softlab.primitives.pages import page_size, pages

F64 = torch.float64
CERTIFIED = [
    TopK(k=3),
    Local(2),
    Local(1, dilation=3, sinks=2, causal=True),
    BigBird(1, 1, 1, block=2),
    Pages(4, 1),
    Monarch(3, 2),
    Quantized("int8"),
    Soft(4),
    Soft(4, normalization="row"),
    Skyformer(4),
    RPCholesky(3),
]


@pytest.mark.parametrize("op", CERTIFIED, ids=repr)
def test_a_hundred_cases(op):
    for seed in range(100, 106):
        laws.certificates.CERTIFICATE.check(op, seed=seed)


@pytest.mark.parametrize(
    "op", [Performer(8), Nystromformer(4), Softmax(), GaussianAttention()], ids=repr
)
def test_an_operator_without_the_claim_says_what_can_be_had(op):
    q = draw(6, 4)
    assert not op.traits.certified
    with pytest.raises(ValueError, match=r"output_error.*sample of exact rows"):
        op.bound(q, q, q)


@pytest.mark.parametrize("normalization", ["symmetric", "published"])
def test_a_form_for_which_nothing_is_derived_claims_nothing(normalization):
    op, q = Soft(4, normalization=normalization), draw(6, 4)
    assert not op.traits.certified
    with pytest.raises(ValueError, match="at these settings"):
        op.bound(q, q, q)


def test_bad_input_is_refused_as_by_the_call():
    q = draw(6, 4)
    with pytest.raises(ValueError, match="NaN or inf"):
        Local(1).bound(q, q, q / 0)
    with pytest.raises(ValueError, match="leaves no key"):
        Local(1).bound(q, q, q, torch.zeros(6, dtype=torch.bool))
    with pytest.raises(ValueError, match="rank 8 is asked of 6"):
        Soft(8).bound(q, q, q)
    with pytest.raises(ValueError, match="Pass that, or leave it out"):
        Local(1).bound(q, q, q, out=q[:3])
    with pytest.raises(ValueError, match="Pass that, or leave it out"):
        Local(1).bound(q, q, q, out=q.float())


@pytest.mark.parametrize("op", CERTIFIED, ids=repr)
def test_a_given_output_is_what_is_certified(op):
    q, v = draw(2, 12, 4), draw(2, 12, 3, seed=1)
    out = op(q, q, v)
    torch.testing.assert_close(op.bound(q, q, v, out=out), op.bound(q, q, v))
    wrong = out + 100
    assert (op.bound(q, q, v, out=wrong) >= (wrong - op.target(q, q, v)).norm(dim=-1)).all()


def test_an_output_that_is_not_finite_has_no_bound():
    q, v = draw(12, 4), draw(12, 3, seed=1)
    out = TopK(k=3)(q, q, v)
    out[2, 1] = math.nan
    found = TopK(k=3).bound(q, q, v, out=out)
    assert found.isinf().tolist() == [i == 2 for i in range(12)]


def test_an_inverse_that_has_not_converged_enters_per_matrix():
    """One matrix of a batch is hard to invert: its rows alone have larger bounds."""
    easy = 3 * draw(12, 4)
    hard = 0.2 * draw(12, 4, seed=1)
    q, v = torch.stack((easy, hard)), draw(2, 12, 3, seed=2)
    few, exact = Soft(6, pinv=NewtonRaphson(steps=12)), Soft(6, pinv=Cholesky())
    ratio = (few.bound(q, q, v) / exact.bound(q, q, v)).amax(-1)
    assert ratio[0] < 1.001
    assert ratio[1] > 2


def test_one_key_beyond_the_landmarks_has_the_error_that_is_certified():
    """With tied tokens of which one is no landmark, |R_jj v_j| is the error and the bound."""
    op, x = Soft(3, landmarks=Strided(), pinv=Cholesky()), draw(4, 3)
    v = torch.ones(4, 1, dtype=F64)
    error = (op(x, x, v) - op.target(x, x, v)).abs().max()
    assert op.bound(x, x, v).max() == pytest.approx(float(error), rel=1e-6)


def residuals(dtype, *, scale):
    """The residual's diagonal of clustered points, and as it is in exact arithmetic, nearly."""
    x = scale * (draw(1, 5, 4).repeat(1, 20, 1) + 1e-3 * draw(1, 100, 4, seed=1))
    x = x.to(dtype)
    z, kernel = x[:, :12], Gaussian(1.5)
    found = nystrom_bounds.Landmarks(kernel, z)
    wide = nystrom_bounds.Landmarks(kernel, z)
    wide.m, wide.z = found.m.double(), z.double()
    w = kernel.matrix(x.double(), z.double()) @ wide.m.mT
    exact = 1 - found.shrink.double() * w.square().sum(-1)
    return found.features(x).residual.double(), exact


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("scale", [0.3, 1.0, 5.0])
def test_a_residual_is_never_below_what_it_is(dtype, scale):
    found, exact = residuals(dtype, scale=scale)
    assert (found >= exact - 1e-13).all()


def test_a_residual_with_the_wrong_sign_of_rounding_is_seen():
    real = nystrom_bounds.lengths

    def longer(x):  # as if rounding were added to |w|, and not taken off
        return real(x) * (1 + 1e-5)

    with mock.patch.object(nystrom_bounds, "lengths", longer):
        found, exact = residuals(torch.float32, scale=1.0)
    assert (found < exact - 1e-13).any()


def test_pages_hold_their_scores():
    """Of every page the box bounds each score, and the spread the variance of scores."""
    k, q = draw(2, 23, 5), draw(2, 7, 5, seed=1)
    keys = torch.tensor([[23], [18]])
    found = pages(k, keys, 4)
    scores = q @ k.mT
    for b, many in enumerate(keys.flatten().tolist()):
        for p in range(6):
            some = scores[b, :, 4 * p : min(4 * p + 4, many)]
            assert found.counts[b, p] == some.shape[-1]
            if some.shape[-1]:
                assert (some <= found.most(q)[b, :, p, None] + 1e-12).all()
                most = q[b].square().sum(-1) * found.spread[b, p]
                assert (some.var(-1, correction=0) <= most + 1e-12).all()


def test_a_page_is_of_a_size_that_keeps_the_work_of_a_query_below_that_of_the_keys():
    """An even share, l / seen, grows with l: the pages at the ends of a band would be quadratic."""
    for seen in (1, 3, 33, 129, 1000):
        for l in (1, 9, 100, 4096, 2**17, 2**20):
            size, even = page_size(l, seen), -(-l // seen)
            assert l / size + 2 * size <= 3 * seen + 3 * l**0.5 + 12
            if seen**2 >= l > 4 * seen:
                assert size == even  # no more pages than keys that are seen
    assert page_size(2**20, 129) == 1024 < 2**20 / 129


def test_the_law_draws_masks_ties_and_precisions():
    drawn = [
        (case, dtype)
        for seed in range(20)
        for case, dtype in certificates.cases(Local(2), generator(seed))
    ]
    assert {dtype for _, dtype in drawn} == set(certificates.DTYPES)
    assert {case.mask is None for case, _ in drawn} == {True, False}
    assert {case.q is case.k for case, _ in drawn} == {True, False}


def test_certify_says_of_each_matrix_what_is_certain_and_what_a_sample_says():
    q, v = draw(2, 3, 40, 4), draw(2, 3, 40, 3, seed=1)
    found = softlab.certify(TopK(k=30), q, q, v, rows=8)
    assert [one.at for one in found] == [(i, j) for i in range(2) for j in range(3)]
    for one in found:
        assert one.held
        assert one.ratio == pytest.approx(1, rel=1e-6)
        assert one.error.low < one.error.value < one.error.high
    exact = softlab.certify(TopK(k=30), q, q, v, rows=40)
    for one in exact:
        case = (x[one.at] for x in (q, q, v))
        assert one.certified >= one.error.value
        assert one.error.low == one.error.high
        assert one.row == TopK(k=30).bound(*case).max()
        assert one.work == 1


def test_certify_deletes_what_a_mask_deletes():
    q, v = draw(2, 20, 4), draw(2, 20, 3, seed=1)
    mask = torch.arange(20) < torch.tensor([[20], [13]])
    for op in (Local(2), Local(2, causal=True)):
        short = softlab.certify(op, q, q, v, mask)[1]
        x, keys = q[1, :13] if op.causal else q[1], q[1, :13]
        assert short == dataclasses.replace(softlab.certify(op, x, keys, v[1, :13])[0], at=(1,))


def test_certify_samples_what_claims_nothing_and_says_so():
    q = draw(30, 4)
    (found,) = softlab.certify(Performer(16), q, q, q)
    assert found.certified is found.ratio is found.held is None
    assert "output_error" in found.says
    with pytest.raises(ValueError, match="confidence is 2"):
        softlab.certify(Local(2), q, q, q, confidence=2.0)
    with pytest.raises(TypeError, match="op is"):
        softlab.certify(3, q, q, q)


def test_a_bound_below_the_error_is_seen():
    class Lying(TopK):
        def bound(self, *tensors, **named):
            return super().bound(*tensors, **named) / 2

    q = draw(30, 4)
    (found,) = softlab.certify(Lying(k=3), q, q, q)
    assert found.held is False


@pytest.mark.parametrize(
    "op",
    [TopK(k=1), Local(1), Pages(4, 1), Soft(1, landmarks=Strided(), pinv=Cholesky())],
    ids=repr,
)
def test_at_most_is_the_smallest_setting_that_is_certified(op):
    q, v = 0.5 * draw(24, 4), draw(24, 3, seed=1)
    name = op.traits.exact_at
    bounds = [
        float(dataclasses.replace(op, **{name: m}).bound(q, q, v).max()) for m in range(1, 25)
    ]
    error = sorted(bounds)[8] * 1.001
    found = op.at_most(error, q, q, v)
    m = getattr(found, name)
    assert bounds[m - 1] <= error
    assert m == 1 or bounds[m - 2] > error


def test_at_most_refuses_with_the_best_that_it_reached():
    q = draw(12, 4)
    with pytest.raises(ValueError, match=r"no window up to 12 .* the best is .*e-1\d, at window="):
        Local(1).at_most(1e-20, q, q, q)
    with pytest.raises(ValueError, match="no rank and no budget"):
        Quantized("int8").at_most(0.1, q, q, q)
    with pytest.raises(ValueError, match="claims no bound"):
        Performer(8).at_most(0.1, q, q, q)
    with pytest.raises(ValueError, match="error is 0"):
        Local(1).at_most(0.0, q, q, q)


def test_the_command_certifies_saved_tensors(tmp_path):
    q = draw(2, 40, 4, dtype=torch.float32)
    torch.save({"q": q, "k": q, "v": q}, tmp_path / "qkv.pt")
    call = CliRunner().invoke
    result = call(app, ["certify", "TopK(k=30)", str(tmp_path / "qkv.pt"), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["operator"] == "TopK(k=30)"
    assert [row["held"] for row in found["rows"]] == [True, True]
    told = call(app, ["certify", "Performer(16)", str(tmp_path / "qkv.pt")])
    assert told.exit_code == 0
    assert "claims no bound" in told.stdout
    for words in (["Performer", str(tmp_path / "qkv.pt")], ["TopK(k=3)", "nowhere.pt"]):
        assert call(app, ["certify", *words]).exit_code == 2


def test_intervals_say_why_they_have_no_end():
    q, v = draw(50, 4), draw(50, 3, seed=1)
    few = ColumnSample(5).interval(q, q, v)
    assert few.high.isinf().all()
    assert "5 draws are fewer than 30" in few.says
    far = Performer(64).interval(4 * q, 4 * q, v)
    assert far.high.isinf().any()
    assert "in a tail that no draw met" in far.says
    unsure = RandomFourier(64).interval(3 * q, 3 * q, v)
    assert "the normaliser is not told from zero" in unsure.says
    calm = ColumnSample(40).interval(0.1 * q, q, v)
    assert calm.high.isfinite().all()
    assert not calm.says
    assert (ColumnSample(50).interval(q, q, v).high == 0).all()


def of_a_mean(x, confidence):
    """Intervals of means of draws x (studies, m), in one dimension."""
    mean = x.mean(-1, keepdim=True)
    none = torch.zeros(len(x), dtype=F64)
    return from_draws((x - mean).square(), none, None, confidence)


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("m", [64, 256])
def test_an_interval_that_is_given_keeps_its_odds_where_draws_are_skewed(m, confidence):
    """Squares of normal numbers: with m - 1 degrees of freedom 15 % would miss of 10 %."""
    x = draw(20000, m).square()
    missed = (x.mean(-1) - 1).abs()
    found = of_a_mean(x, confidence)
    given = found.high.isfinite()
    misses = float((missed > found.high)[given].double().mean())
    four = 4 * math.sqrt(confidence * (1 - confidence) / int(given.sum()))
    assert given.double().mean() > 0.85
    assert misses <= 1 - confidence + four
    plain = student(m - 1, confidence) * found.spread
    assert m > 64 or float((missed > plain).double().mean()) > 1 - confidence + four


def test_normal_draws_have_a_third_of_their_degrees_of_freedom():
    x = draw(1, 100000)
    found = of_a_mean(x, 0.95)
    assert float(found.high / found.spread) == pytest.approx(student(33333, 0.95), rel=1e-6)
    few = torch.zeros(1, 64, dtype=F64)
    few[0, 0] = 1.0
    assert "a few draws make most of the spread" in from_draws(few, few[:, 1], None, 0.9).says


def test_monarchs_certificate_is_pinskers_and_never_more_than_the_diameter():
    q, k, v = draw(20, 4), draw(24, 4, seed=1), draw(24, 3, seed=2)
    op = Monarch(4, 2)
    bound = op.bound(q, k, v)
    radius = (v - v.mean(0)).norm(dim=-1).max()
    gap = op.divergence(q, k)
    both = torch.minimum(gap / 2, 1 - (-gap).exp()).sqrt()
    torch.testing.assert_close(bound, 2 * radius * both, rtol=1e-6, atol=1e-7)
    far = op.bound(20 * q, k, v)
    assert float(far.max()) <= 2 * float(radius) * (1 + 1e-9)
    with pytest.raises(ValueError, match="has no setting at which its certificate"):
        op.at_most(0.1, q, k, v)


def test_an_interval_widens_with_its_confidence_and_is_refused_for_others():
    q, v = 0.1 * draw(50, 4), draw(50, 3, seed=1)
    op = Performer(256, weights=IID())
    assert (op.interval(q, q, v, confidence=0.99).high > op.interval(q, q, v).high).all()
    with pytest.raises(ValueError, match=r"give 0.8 or more"):
        op.interval(q, q, v, confidence=0.5)
    with pytest.raises(ValueError, match=r"op.bound\(q, k, v\) is certain"):
        Local(2).interval(q, q, v)
    with pytest.raises(ValueError, match=r"op.interval\(q, k, v\) says by how much"):
        op.bound(q, q, v)
    with pytest.raises(ValueError, match="at these settings"):
        Performer(16, estimator="hyperbolic").interval(q, q, v)
    mask = torch.arange(50) < 40
    deleted = op.interval(q, q[:40], v[:40])
    torch.testing.assert_close(op.interval(q, q, v, mask).high, deleted.high)


def slopes(of, x, seed):
    """The derivative of a number along one direction, by autograd and by a central difference."""
    along, step = draw(*x.shape, seed=seed), 1e-6
    y = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(of(y), y)
    with torch.no_grad():
        apart = float(of(x + step * along) - of(x - step * along)) / (2 * step)
    return float((slope * along).sum()), apart


MASK = torch.arange(12) != 5


@pytest.mark.parametrize("op", CERTIFIED, ids=repr)
def test_a_bound_is_differentiable(op):
    given = [0.7 * draw(12, 4), 0.7 * draw(12, 4, seed=1), draw(12, 3, seed=2)]
    weight = draw(12, seed=3).square()
    for mask in (None, MASK):
        for i in range(3):

            def bound(x, i=i, mask=mask):
                tensors = [x if i == j else y for j, y in enumerate(given)]
                return (weight * op.bound(*tensors, mask)).sum()

            found, apart = slopes(bound, given[i], seed=4 + i)
            assert found == pytest.approx(apart, rel=1e-5, abs=1e-7)
            assert found != 0


def test_landmarks_move_a_residual_also_where_some_of_them_are_nearly_one():
    """Equal eigenvalues, those that are left out, and neither: all through one formula."""
    kernel, x = Gaussian(1.5), draw(9, 4)
    apart = draw(5, 4, seed=1)
    near, square = apart.clone(), torch.eye(4, dtype=F64)
    near[3] = near[0] + 1e-4 * draw(4, seed=2)
    for z, cut in ((apart, False), (near, True), (square, False)):

        def residual(z):
            return nystrom_bounds.Landmarks(kernel, z).features(x).residual.sum()

        assert bool(nystrom_bounds.Landmarks(kernel, z).theta.isinf()) == cut
        found, wanted = slopes(residual, z, seed=3)
        assert found == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("op", [*CERTIFIED, Soft(12), RPCholesky(12), Monarch(1)], ids=repr)
def test_a_derivative_of_a_bound_is_a_number(op):
    q, k, v = draw(12, 4), draw(12, 4, seed=1), draw(12, 3, seed=2)
    none = torch.zeros_like(v)
    for x, y, z in (
        (q, k, v), (0 * q, k, v), (q, 0 * k, v), (q, k, none), (0 * q, 0 * k, none),
        (q, k[:3].repeat(4, 1), v), (30 * q, 30 * k, v), (1e-9 * q, k, torch.ones_like(v)),
    ):  # fmt: skip
        given = [x.clone().requires_grad_(), y.clone().requires_grad_(), z.clone().requires_grad_()]
        bound = op.bound(*given)
        slopes_of = torch.autograd.grad(bound[bound.isfinite()].sum(), given)
        assert all(bool(slope.isfinite().all()) for slope in slopes_of)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("op", CERTIFIED, ids=repr)
def test_a_bound_is_as_large_as_the_values_however_small_or_large(op, dtype):
    """Squares of 1e-30 are 0 in float32, and of 1e20 infinite: no bound may be."""
    q, k, v = (draw(12, width, seed=width, dtype=dtype) for width in (4, 4, 3))
    bound = op.bound(q, k, v)
    for power in (-100, 60) if dtype == torch.float32 else (-1000, -500, 500):
        torch.testing.assert_close(
            op.bound(q, k, v * 2.0**power) * 2.0**-power, bound, rtol=1e-4, atol=1e-4
        )
    (found,) = softlab.certify(op, q, k, v * 2.0**-100)
    assert found.held


@pytest.mark.parametrize("op", [Local(2), BigBird(1, 1, 1, block=2), Pages(4, 1)], ids=repr)
@pytest.mark.parametrize("power", [-50, 40])
def test_scores_are_bounded_whatever_shares_queries_and_keys_have_of_them(op, power):
    q, k, v = (draw(12, width, seed=width, dtype=torch.float32) for width in (4, 4, 3))
    moved = op.bound(q * 2.0**power, k * 2.0**-power, v)
    torch.testing.assert_close(moved, op.bound(q, k, v), rtol=1e-3, atol=1e-4)


def test_a_value_that_no_draw_met_leaves_no_end():
    """One of 300 values is a thousand times the others: a draw without it knew nothing of it."""
    q, k = 0.3 * draw(1, 4), 0.3 * draw(300, 4, seed=1)
    v = torch.ones(300, 1, dtype=F64)
    v[7] = 1e3
    op = ColumnSample(100)
    exact = op.target(q, k, v)
    for seed in range(12):
        one = dataclasses.replace(op, seed=seed)
        found = one.interval(q, k, v)
        assert (one(q, k, v) - exact).norm() <= found.high[0]
        assert found.high.isfinite().all() or found.says


def test_values_that_no_light_draw_met_leave_no_end_either():
    q, k = 0.3 * draw(1, 4), 0.3 * draw(6000, 4, seed=1)
    v = torch.ones(6000, 1, dtype=F64)
    v[4007] = 1e4
    exact = AdaptiveSample(eps=0.1).target(q, k, v)
    for seed in range(4):
        op = AdaptiveSample(eps=0.1, seed=seed)
        found = op.interval(q, k, v)
        assert (op(q, k, v) - exact).norm() <= found.high[0]
    calm = AdaptiveSample(eps=0.1).interval(q, k, draw(6000, 1, seed=2))
    assert calm.high.isfinite().all()


def test_intervals_are_as_large_as_the_values():
    q, v = (draw(50, 4, seed=i, dtype=torch.float32) for i in range(2))
    op = ColumnSample(40)
    high = op.interval(0.1 * q, q, v).high
    for power in (-90, 50):
        small = op.interval(0.1 * q, q, v * 2.0**power).high
        torch.testing.assert_close(small * 2.0**-power, high)


def test_what_is_no_input_is_said_in_a_sentence():
    q = draw(40, 4)
    for wrong in (None, [1.0]):
        with pytest.raises(TypeError, match=r"k must be a torch.Tensor"):
            Local(1).at_most(0.1, q, wrong, q)
    meta = q.to("meta")
    for ask in (
        lambda x: Local(1).at_most(0.1, x, x, x),
        lambda x: softlab.certify(Local(1), x, x, x),
    ):
        with pytest.raises(RuntimeError, match="a tensor on 'meta' has none"):
            ask(meta)
    for wrong in ("a", None, True):
        with pytest.raises(TypeError, match=r"confidence is .*give a number between 0 and 1"):
            ColumnSample(40).interval(q, q, q, confidence=wrong)
    for wrong in (0, 1, math.nan, -1, 2):
        with pytest.raises(ValueError, match=r"confidence is .*give a number between 0 and 1"):
            ColumnSample(40).interval(q, q, q, confidence=wrong)


def test_certify_and_at_most_take_tensors_that_require_a_gradient():
    q = draw(20, 4).requires_grad_()
    (found,) = softlab.certify(Local(2), q, q, q)
    assert found.held
    assert isinstance(Local(1).at_most(0.5, q, q, q), Local)
