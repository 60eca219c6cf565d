"""Pseudo-inverses: published facts about the iterations, shapes, dtypes and bad input."""

import math
import re
from itertools import pairwise

import pytest
import torch
from matrices import F32, F64, frobenius, gaussian_core, normal, with_spectrum
from zoo import SOLVERS

from softlab.laws import tolerance
from softlab.pinv import (
    SVD,
    BestIterate,
    Chebyshev,
    Checkpointed,
    Cholesky,
    GolubPereyra,
    Hyperpower,
    ImplicitGradient,
    Minimax,
    NewtonRaphson,
    NormProduct,
    NystromformerCubic,
    Polished,
    Ridge,
    SketchedFit,
    Status,
)

# --- documented facts --------------------------------------------------------------------------

DEGENERATE = {"identity": torch.eye(49, dtype=F64), "all ones": torch.ones(49, 49, dtype=F64)}


@pytest.mark.parametrize("name", DEGENERATE)
def test_the_published_scaling_sends_equal_row_sums_to_zero_for_ever(name):
    # alpha = 2 / |A|_1^2 of the 2021 code: the residual starts at -1 and X_1 = 0.
    a = DEGENERATE[name]
    iterates = list(NewtonRaphson(steps=20, scaling=NormProduct(2.0)).iterates(a))
    assert frobenius(iterates[0]) > 0.1 * frobenius(torch.linalg.pinv(a))
    for x in iterates[1:]:
        assert frobenius(a @ x @ a) <= 1e-8 * frobenius(a)
    assert NewtonRaphson(steps=20, scaling=NormProduct(2.0)).solve(a).status != Status.CONVERGED


@pytest.mark.parametrize("name", DEGENERATE)
def test_nine_tenths_of_it_converges(name):
    a = DEGENERATE[name]
    x = NewtonRaphson(steps=20)(a)
    assert frobenius(a @ x @ a - a) / frobenius(a) < 1e-13


def test_the_defaults_are_the_published_starts():
    # SOFT, Alg. 2: 0.9 * 2 / |A|_1^2 times A, and 20 steps. Nystromformer, Sec. 3.2 and its code:
    # A^T / (|A|_1 |A|_inf), and 6 steps.
    a = gaussian_core(5, 0.3)
    start = next(iter(NewtonRaphson().iterates(a)))
    torch.testing.assert_close(start, 0.9 * 2 * a / a.abs().sum(0).max() ** 2)
    b = normal(5, 5)
    start = next(iter(NystromformerCubic().iterates(b)))
    torch.testing.assert_close(start, b.T / (b.abs().sum(0).max() * b.abs().sum(1).max()))
    assert (NewtonRaphson().steps, NystromformerCubic().steps) == (20, 6)


@pytest.mark.parametrize("steps", [1, 2, 5, 9])
@pytest.mark.parametrize("factor", [0.5, 1.0, 1.8])
def test_newton_raphson_is_a_spectral_filter(steps, factor):
    # X_k = V diag(f(s) / s) U^T with f(s) = 1 - (1 - alpha s^2)^(2^k), for any singular values.
    a = normal(7, 7, seed=3) @ torch.logspace(0, -3, 7, dtype=F64).diag()
    u, s, vh = torch.linalg.svd(a)
    alpha = factor / float(a.abs().sum(0).max() * a.abs().sum(1).max())
    t, power = alpha * s**2, 2**steps
    # log1p keeps the digits of a small filter factor, and knows no negative base.
    kept = torch.where(t < 0.5, torch.expm1(power * torch.log1p(-t.clamp_max(0.5))), -1)
    inverted = torch.where(t < 0.5, -kept, 1 - (1 - t) ** power)
    assert float(inverted.min()) < 0.01, "a converged iteration would prove nothing"
    predicted = (vh.T * (inverted / s)) @ u.T
    *_, x = NewtonRaphson(steps=steps, scaling=NormProduct(factor)).iterates(a)
    assert frobenius(x - predicted) <= tolerance(F64, 7, scale=2**steps * frobenius(predicted))


def test_nystromformer_maps_a_residual_r_to_a_quarter_of_3r3_plus_r4():
    s = torch.tensor([1.0, 0.7, 0.4, 0.1], dtype=F64)
    a = with_spectrum(*s.tolist())
    basis = torch.linalg.eigh(a).eigenvectors.flip(-1)
    iterates = list(NystromformerCubic(steps=6).iterates(a))
    for before, after in pairwise(iterates):
        r, mapped = ((basis.T @ (torch.eye(4) - a @ x) @ basis).diagonal() for x in (before, after))
        torch.testing.assert_close(mapped, (3 * r**3 + r**4) / 4, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("solver", "order"), [(NewtonRaphson(steps=20), 2), (NystromformerCubic(steps=14), 3)], ids=repr
)
def test_the_order_is_observed(solver, order):
    # Where r' = c r^p exactly, log(r''/r') / log(r'/r) is p whatever c is.
    a = with_spectrum(1, 1, 0.6, 0.2)
    r = [float(torch.linalg.matrix_norm(torch.eye(4) - a @ x, 2)) for x in solver.iterates(a)]
    r = [x for x in r if 1e-13 < x < 0.7][-3:]
    observed = math.log(r[2] / r[1]) / math.log(r[1] / r[0])
    assert observed == pytest.approx(order, abs=0.15)
    assert solver.traits.order == order


# --- shapes and dtypes -------------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_batches_one_by_one_and_views(solver):
    batch = torch.stack([with_spectrum(1, 0.8, 0.6, seed=seed) for seed in range(6)])
    whole = solver(batch.reshape(2, 3, 3, 3))
    assert whole.shape == (2, 3, 3, 3)
    for i, a in enumerate(batch):
        torch.testing.assert_close(whole.flatten(0, 1)[i], solver(a), rtol=1e-12, atol=1e-12)
    view = batch.reshape(2, 3, 3, 3).permute(1, 0, 3, 2)
    assert not view.is_contiguous()
    torch.testing.assert_close(solver(view), solver(view.contiguous()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("entry", [4.0, 1e-20, 1e20])
def test_one_by_one_is_division(solver, entry):
    shift = solver.ridge if isinstance(solver, Ridge) else 0
    out = solver(torch.full((1, 1), entry, dtype=F64))
    assert float(out) == pytest.approx(1 / (entry + shift), rel=1e-12)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_rounded_once(solver, dtype):
    a = with_spectrum(1, 0.5, 0.2).to(dtype)
    out = solver(a)
    assert out.dtype == dtype
    assert torch.equal(out, solver(a.float()).to(dtype))
    result = solver.solve(a)
    assert result.x.dtype == F32
    assert result.status == Status.CONVERGED


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_autocast_does_not_round_the_products(solver):
    a = with_spectrum(1, 0.5, 0.2).float()
    plain, result = solver(a), solver.solve(a)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(solver(a), plain)
        assert torch.equal(solver.solve(a).residual, result.residual)


# --- bad input ---------------------------------------------------------------------------------

BAD = {
    "not square": (torch.ones(3, 4), ValueError, r"a must be square .*got \(3, 4\).*Pass"),
    "a vector": (torch.ones(3), ValueError, r"a must have at least two dimensions.*\(3,\).*Add"),
    "empty": (torch.ones(2, 0, 0), ValueError, r"a is empty, shape \(2, 0, 0\).*at least 1"),
    "integers": (torch.ones(3, 3, dtype=torch.long), TypeError, r"floating point.*int64.*Convert"),
    "complex": (torch.ones(3, 3, dtype=torch.cfloat), TypeError, r"floating.*complex64.*Convert"),
    "a list": ([[1.0]], TypeError, r"a must be a torch.Tensor, got list.*Use"),
    "NaN": (torch.full((3, 3), math.nan), ValueError, r"a has 9 entries that are NaN.*must be"),
    "one inf": (torch.tensor([[1.0, math.inf], [0, 1]]), ValueError, r"a has 1 entries.*of 4"),
}


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("name", BAD)
def test_bad_matrices_are_refused_with_a_way_out(solver, name):
    a, error, message = BAD[name]
    with pytest.raises(error, match=message):
        solver(a)


FIELDS = [
    (lambda: NewtonRaphson(steps=0), ValueError, "NewtonRaphson.steps is 0; give an integer"),
    (lambda: NewtonRaphson(steps=2.0), TypeError, "NewtonRaphson.steps is 2.0; give an integer"),
    (lambda: NystromformerCubic(steps=True), TypeError, "NystromformerCubic.steps is True; give"),
    (lambda: NormProduct(0.0), ValueError, "NormProduct.factor is 0.0; give a positive"),
    (lambda: NormProduct("2"), TypeError, "NormProduct.factor is '2'; give a positive number"),
    (lambda: Ridge(SVD(), ridge=-1), ValueError, "Ridge.ridge is -1; give a positive"),
    (lambda: Cholesky(shift=math.nan), ValueError, "Cholesky.shift is nan; give a positive"),
    (lambda: SVD(rtol=0.0), ValueError, "SVD.rtol is 0.0; give a positive"),
    (lambda: Ridge(SVD), TypeError, "Ridge.solver is <class"),
    (lambda: ImplicitGradient("svd"), TypeError, "ImplicitGradient.solver is 'svd', which is no"),
    (lambda: NewtonRaphson(scaling=2.0), TypeError, "NewtonRaphson.scaling is 2.0, which is no"),
    (
        lambda: NystromformerCubic(scaling=NormProduct),
        TypeError,
        "NystromformerCubic.scaling is <class",
    ),
]


FIELDS += [
    (lambda: Hyperpower(order=1), ValueError, "Hyperpower.order is 1, which never moves; give 2"),
    (lambda: Chebyshev(degree=1), ValueError, "Chebyshev.degree is 1, which never moves; give 2"),
    (lambda: Chebyshev(bounds=(2.0, 1.0)), ValueError, "give (lower, upper), lower <= upper"),
    (lambda: Chebyshev(bounds=(0.0, 1.0)), ValueError, "Chebyshev.bounds is 0.0; give a positive"),
    (lambda: Chebyshev(seed=-1), ValueError, "Chebyshev.seed is -1; give an integer of at least 0"),
    (lambda: Minimax(condition=0.5), ValueError, "Minimax.condition is 0.5; give a number of at"),
    (lambda: SketchedFit(columns=0), ValueError, "SketchedFit.columns is 0; give an integer"),
    (lambda: Polished(NewtonRaphson(), precision="int8"), ValueError, "give one of float32, bfl"),
    (lambda: Checkpointed(SVD()), TypeError, "Checkpointed.solver is SVD(rtol=None), which is no"),
    (lambda: GolubPereyra(Ridge(SVD())), ValueError, "Ridge(GolubPereyra(solver))"),
    (
        lambda: BestIterate(ImplicitGradient(SVD())),
        ValueError,
        "ImplicitGradient(BestIterate(NewtonRaphson()))",
    ),
]


@pytest.mark.parametrize(("build", "error", "message"), FIELDS, ids=[m for *_, m in FIELDS])
def test_bad_fields_are_refused_at_construction(build, error, message):
    with pytest.raises(error, match=re.escape(message)):
        build()


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own use
@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_the_forward_derivative_is_that_of_the_backward_pass_or_refused(solver):
    a, along, against = with_spectrum(1, 0.5, 0.2), normal(3, 3), normal(3, 3, seed=1)

    def inverse(x):
        return solver((x + x.mT) / 2)

    leaf = a.clone().requires_grad_()
    (wanted,) = torch.autograd.grad((inverse(leaf) * against).sum(), leaf)
    if isinstance(solver, (ImplicitGradient, GolubPereyra)):
        with pytest.raises(RuntimeError):
            torch.func.jvp(inverse, (a,), (along,))
        return
    _, found = torch.func.jvp(inverse, (a,), (along,))
    torch.testing.assert_close((found * against).sum(), (wanted * along).sum())
