"""Pseudo-inverses: the truth of ``solve``, published facts about the iterations, and gradients."""

import math
import re
from itertools import pairwise

import pytest
import torch
from zoo import SOLVERS

from softlab.laws import tolerance
from softlab.pinv import (
    SVD,
    Cholesky,
    ImplicitGradient,
    NewtonRaphson,
    NormProduct,
    NystromformerCubic,
    Ridge,
    Status,
)

F64, F32 = torch.float64, torch.float32


def normal(*shape, seed=0, dtype=F64):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=F64).to(dtype)


def with_spectrum(*s, seed=0):
    """A matrix with these singular values, symmetric and with random eigenvectors."""
    q = torch.linalg.qr(normal(len(s), len(s), seed=seed)).Q
    a = q @ torch.tensor(s, dtype=F64).diag() @ q.T
    return (a + a.T) / 2


def gaussian_core(m, spread, *, d=32, seed=0):
    """K(z, z) of m normal points of the given spread, in bandwidths of SOFT: sigma = d^(1/4)."""
    z = spread * normal(m, d, seed=seed)
    return (-torch.cdist(z, z).square() / 2).exp()


def frobenius(a):
    return float(torch.linalg.matrix_norm(a))


# --- status ------------------------------------------------------------------------------------


def true_residual(a, x):
    return torch.linalg.matrix_norm(a @ x @ a - a) / torch.linalg.matrix_norm(a)


def test_each_matrix_of_a_mixed_batch_is_told_its_own_truth():
    nan = torch.full((4, 4), math.nan, dtype=F64)
    batch = torch.stack(
        [
            with_spectrum(1, 0.9, 0.8, 0.7),
            with_spectrum(1, 0.5, 0.1, 1e-5),
            nan,
            torch.full((4, 4), math.inf, dtype=F64),
            torch.zeros(4, 4, dtype=F64),
        ]
    )
    result = NewtonRaphson(steps=12).solve(batch)
    wanted = [
        Status.CONVERGED,
        Status.OUT_OF_STEPS,
        Status.NON_FINITE,
        Status.NON_FINITE,
        Status.CONVERGED,
    ]
    assert result.status.tolist() == wanted
    for i in (0, 1, 4):
        assert bool(result.x[i].isfinite().all())
    for i in (0, 1):
        assert float(result.residual[i]) == pytest.approx(
            float(true_residual(batch[i], result.x[i])), rel=1e-6, abs=1e-14
        )
    assert float(result.residual[0]) <= 10 * 4 * torch.finfo(F64).eps
    assert float(result.residual[1]) > 1e-6
    assert int(result.steps[0]) < 12
    assert int(result.steps[1]) == 12
    assert int(result.steps[4]) == 0
    assert bool(result.x[2:4].isnan().all())


def test_a_scaling_that_is_too_large_diverges_where_it_is_and_says_so():
    # I - alpha A^2 has an eigenvalue 1 - 4 = -3 where sigma_1^2 = |A|_1 |A|_inf, as for I.
    batch = torch.stack([torch.eye(3, dtype=F64), with_spectrum(1, 1, 1e-3)])
    solver = NewtonRaphson(steps=30, scaling=NormProduct(4.0))
    result = solver.solve(batch)
    assert result.status[0] == Status.DIVERGED
    assert solver.solve(batch[0]).status == Status.DIVERGED
    assert solver.solve(batch[1]).status == result.status[1]


def test_a_singular_matrix_has_no_cholesky_factor_and_its_neighbour_has():
    indefinite = with_spectrum(1, 0.5, -0.5)
    batch = torch.stack([with_spectrum(1, 0.5, 0.2), indefinite])
    result = Cholesky().solve(batch)
    assert result.status.tolist() == [Status.CONVERGED, Status.NON_FINITE]
    assert frobenius(result.x[0] @ batch[0] - torch.eye(3)) < 1e-13
    with pytest.raises(
        ValueError, match=r"Cholesky.* broke down on 1 matrices .*Give a larger shift"
    ):
        Cholesky()(batch)


def test_growing_null_space_errors_are_not_called_convergence_after_the_best_step():
    # Rank 1: the best iterate is kept, however many steps follow it.
    ones = torch.ones(6, 6, dtype=F32) * 0.3
    result = NewtonRaphson(steps=60).solve(ones)
    assert result.status == Status.CONVERGED
    assert int(result.steps) < 20
    assert frobenius(result.x.double() - torch.linalg.pinv(ones.double())) < 1e-5


def test_float32_stops_where_its_precision_ends():
    # The small singular value is below float32's rounding of the large one.
    a = with_spectrum(1, 0.3, 1e-9).float()
    result = NewtonRaphson(steps=60).solve(a)
    assert float(result.residual) < 1e-5
    assert result.status in (Status.CONVERGED, Status.STAGNATED)
    assert (result.status == Status.CONVERGED) == (float(result.residual) <= 10 * 3 * 2**-23)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_solve_is_the_truth_about_the_call(solver):
    a = with_spectrum(1, 0.8, 0.6, 0.5)
    shifted = a + solver.ridge * torch.eye(4, dtype=F64) if isinstance(solver, Ridge) else a
    result = solver.solve(a)
    assert result.status == Status.CONVERGED
    assert float(true_residual(shifted, solver(a))) < 1e-13
    assert frobenius(solver(a) - result.x) < 1e-11


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


# --- the implicit gradient ---------------------------------------------------------------------


def gradient(solver, a, g):
    a = a.clone().requires_grad_()
    (grad,) = torch.autograd.grad((solver(a) * g).sum(), a)
    return grad


def bias(solver, a, g):
    """Relative error of the implicit gradient against that of its own forward map, and cosine."""
    implicit, unrolled = gradient(ImplicitGradient(solver), a, g), gradient(solver, a, g)
    cosine = float((implicit * unrolled).sum()) / (frobenius(implicit) * frobenius(unrolled))
    return frobenius(implicit - unrolled) / frobenius(unrolled), cosine


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_implicit_gradient_is_exact_where_the_solver_converged(symmetric):
    a, g = gaussian_core(16, 0.5), normal(16, 16, seed=1)
    a = a if symmetric else a @ torch.linalg.qr(normal(16, 16, seed=2)).Q
    solver = NewtonRaphson(steps=20)
    assert solver.solve(a).status == Status.CONVERGED
    inverse = torch.linalg.inv(a)
    exact = -inverse.T @ g @ inverse.T
    assert frobenius(gradient(ImplicitGradient(solver), a, g) - exact) < 1e-11 * frobenius(exact)
    assert bias(solver, a, g)[0] < 1e-8


def test_the_implicit_gradient_is_wrong_on_near_duplicate_landmarks():
    # SOFT's 20 steps leave the small eigenvalues uninverted: the rule differentiates A X = I,
    # which does not hold. On every one of these draws the result has the wrong sign.
    errors, cosines = [], []
    for seed in range(8):
        a, g = gaussian_core(49, 0.02, seed=seed), normal(49, 49, seed=100 + seed)
        assert NewtonRaphson(steps=20).solve(a).status != Status.CONVERGED
        error, cosine = bias(NewtonRaphson(steps=20), a, (g + g.T) / 2)
        errors.append(error)
        cosines.append(cosine)
    assert min(errors) > 0.9
    assert max(cosines) < 0


def test_the_gradient_law_detects_an_implicit_gradient_that_is_wrong():
    a = gaussian_core(6, 0.05).requires_grad_()
    solver = NewtonRaphson(steps=8)
    symmetric = lambda solver: lambda a: solver((a + a.T) / 2)  # noqa: E731
    assert torch.autograd.gradcheck(symmetric(solver), a)
    implicit = symmetric(ImplicitGradient(solver))
    assert not torch.autograd.gradcheck(implicit, a, raise_exception=False)


def test_the_implicit_gradient_stores_no_graph_of_the_loop():
    a = gaussian_core(5, 0.5).requires_grad_()
    assert not any(x.requires_grad for x in ImplicitGradient(NewtonRaphson(3)).iterates(a))
    out = ImplicitGradient(NewtonRaphson(3))(a)
    assert out.grad_fn.next_functions[0][0].variable is a


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


@pytest.mark.parametrize(("build", "error", "message"), FIELDS, ids=[m for *_, m in FIELDS])
def test_bad_fields_are_refused_at_construction(build, error, message):
    with pytest.raises(error, match=re.escape(message)):
        build()
