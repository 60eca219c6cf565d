"""Certificates: what they say of operators without one, their parts, and a run of many cases."""

import math
from unittest import mock

import pytest
import torch

from softlab import laws
from softlab.kernels import Gaussian
from softlab.laws import certificates
from softlab.laws.law import generator
from softlab.operators import (
    BigBird,
    GaussianAttention,
    Local,
    Nystromformer,
    Pages,
    Performer,
    Quantized,
    RPCholesky,
    Skyformer,
    Soft,
    Softmax,
    TopK,
)
from softlab.pinv import Cholesky, NewtonRaphson
from softlab.primitives import nystrom_bounds
from softlab.primitives.pages import pages

F64 = torch.float64
CERTIFIED = [
    TopK(k=3),
    Local(2),
    Local(1, dilation=3, sinks=2, causal=True),
    BigBird(1, 1, 1, block=2),
    Pages(4, 1),
    Quantized("int8"),
    Soft(4),
    Soft(4, normalization="row"),
    Skyformer(4),
    RPCholesky(3),
]


def draw(*shape, seed=0, dtype=F64):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=F64).to(dtype)


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
    from softlab.landmarks import Strided

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


def test_the_law_draws_masks_ties_and_precisions():
    drawn = [
        (case, dtype)
        for seed in range(20)
        for case, dtype in certificates.cases(Local(2), generator(seed))
    ]
    assert {dtype for _, dtype in drawn} == set(certificates.DTYPES)
    assert {case.mask is None for case, _ in drawn} == {True, False}
    assert {case.q is case.k for case, _ in drawn} == {True, False}
