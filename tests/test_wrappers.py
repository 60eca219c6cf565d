"""What Purified, BestIterate and Polished make of the iteration inside them."""

import itertools
import math

import pytest
import torch
from matrices import F32, F64, frobenius, with_spectrum
from zoo import SOLVERS

from softlab.laws import tolerance
from softlab.matrices import Geometric, LowRank
from softlab.pinv import (
    SVD,
    BestIterate,
    Hyperpower,
    NewtonRaphson,
    NystromformerCubic,
    Polished,
    Purified,
    Status,
    applier,
)

SPOILING = [NewtonRaphson(60), Hyperpower(3, 40), NystromformerCubic(40)]


def deficient(seed, dtype=F64):
    """A matrix of rank 15 of 24, and its pseudo-inverse."""
    a = LowRank(24, 15, 30.0)(seed, dtype=dtype)
    return a, torch.linalg.pinv(a.double(), rtol=1e-5)


def missed(x, inverse):
    return frobenius(x.double() - inverse) / frobenius(inverse)


# --- a closing product -------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [*SPOILING[1:], NewtonRaphson(48)], ids=repr)
@pytest.mark.parametrize("seed", range(3))
def test_purified_restores_what_growing_null_space_errors_spoiled(solver, seed):
    a, inverse = deficient(seed)
    *_, spoiled = solver.iterates(a)
    start = min(missed(x, inverse) for x in solver.iterates(a))
    assert missed(spoiled, inverse) > 1e5 * start
    # An error E in the null space leaves E A E = 0 up to the rounding of A E, which E multiplies.
    grown = max(1, frobenius(spoiled) / frobenius(inverse))
    allowed = tolerance(F64, 24, kappa=30 * grown**2)
    assert allowed < 1e-8 * grown
    assert missed(Purified(solver)(a), inverse) < max(allowed, 100 * start)


@pytest.mark.parametrize("steps", [1, 3, 6])
def test_purified_squares_what_is_inverted_and_costs_two_products(steps):
    a, solver = Geometric(8, 100.0)(0), NewtonRaphson(steps)
    *_, x = solver.iterates(a)
    inverted = a @ x
    assert frobenius(inverted - torch.eye(8)) > 1, "a converged iterate would prove nothing"
    closed = a @ Purified(solver)(a)
    assert frobenius(closed - inverted @ inverted) <= tolerance(F64, 8, kappa=100)
    assert Purified(solver).cost(8).flops - solver.cost(8).flops == 2 * 2 * 8**3
    # An unconverged X is the worse for it, and solve's residual is that of what it returns.
    result = Purified(solver).solve(a)
    assert float(result.residual) > float(solver.solve(a).residual)
    assert float(result.residual) == pytest.approx(
        frobenius(a @ result.x @ a - a) / frobenius(a), rel=1e-9
    )


def test_purifying_the_answer_of_a_direct_solver_changes_nothing():
    a, inverse = deficient(0)
    assert missed(Purified(SVD())(a), inverse) < tolerance(F64, 24, kappa=30)


# --- the best iterate --------------------------------------------------------------------------


@pytest.mark.parametrize("solver", SPOILING, ids=repr)
@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
def test_best_iterate_is_what_solve_returns_and_as_good_as_any(solver, dtype):
    a, inverse = deficient(1, dtype)
    best = min(missed(x, inverse) for x in solver.iterates(a) if bool(x.isfinite().all()))
    x = BestIterate(solver)(a)
    assert torch.equal(x, solver.solve(a).x)
    assert missed(x, inverse) <= 10 * best


def test_best_iterate_takes_each_matrix_at_its_own_step():
    batch = torch.stack([Geometric(8, kappa)(0) for kappa in (1.5, 30.0, 1e3)])
    solver = NewtonRaphson(40)
    steps = solver.solve(batch).steps.tolist()
    assert len(set(steps)) == 3
    iterates = list(solver.iterates(batch))
    for i, (x, step) in enumerate(zip(BestIterate(solver)(batch), steps, strict=True)):
        assert torch.equal(x, iterates[step][i])


@pytest.mark.parametrize("solver", [BestIterate(NewtonRaphson(9)), Polished(NewtonRaphson(9))])
def test_wrappers_refuse_what_is_not_finite(solver):
    a = Geometric(4, 3.0)(0)
    a[1, 1] = math.nan
    with pytest.raises(ValueError, match="a has 1 entries that are NaN or inf"):
        solver(a)


# --- low precision, then float64 ---------------------------------------------------------------

PRECISIONS = {"float32": F32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_each_float64_step_squares_the_residual(precision, symmetric):
    a = Geometric(16, 10.0, symmetric=symmetric)(2)
    eye = torch.eye(16, dtype=F64)
    residuals = [eye - a @ x for x in Polished(NewtonRaphson(20), precision, 3).iterates(a)]
    first = frobenius(residuals[0])
    # Else the low precision would be none, or the steps could not mend it.
    assert 0.1 * torch.finfo(PRECISIONS[precision]).eps < first < 0.5
    for before, after in itertools.pairwise(residuals):
        assert frobenius(after - before @ before) <= tolerance(F64, 16, kappa=10)
    assert frobenius(residuals[1]) <= first**2 + tolerance(F64, 16, kappa=10)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e6, 1e30])
def test_polishing_does_not_depend_on_the_scale_of_the_matrix(precision, scale):
    # float16 itself ends at 65504 and begins at 6e-8.
    a = Geometric(16, 10.0)(2)
    inverse = torch.linalg.inv(a)
    x = Polished(NewtonRaphson(20), precision, steps=4)(scale * a)
    assert missed(scale * x, inverse) < tolerance(F64, 16, kappa=10)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_polishing_cannot_mend_a_residual_of_one_and_says_so(precision):
    # eps * kappa of bfloat16 is 8e4, of float16 1e4: nothing of the smallest values is inverted.
    result = Polished(NewtonRaphson(40), precision, steps=2).solve(Geometric(16, 1e7)(0))
    assert result.status != Status.CONVERGED
    assert result.status != Status.NON_FINITE
    assert float(result.residual) > 1e-9


def test_polishing_pays_in_products_of_low_precision_and_few_of_float64():
    inner = NewtonRaphson(20)
    assert Polished(inner, steps=2).cost(8).flops == inner.cost(8).flops + 2 * 2 * 2 * 8**3
    assert Polished(inner, steps=2).traits.precision == "float32"


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (
            lambda: Polished(NewtonRaphson(3), "float8"),
            ValueError,
            "Polished.precision is 'float8'",
        ),
        (lambda: Polished(NewtonRaphson(3), steps=0), ValueError, "Polished.steps is 0; give an"),
        (lambda: Polished(torch.inverse), TypeError, "Polished.solver is"),
        (lambda: Purified("svd"), TypeError, "Purified.solver is 'svd', which is no Solver"),
        (lambda: BestIterate(SVD), TypeError, "BestIterate.solver is <class"),
    ],
)
def test_bad_fields_are_refused(build, error, message):
    with pytest.raises(error, match=message):
        build()


# --- applied to columns ------------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, F32, F64], ids=str)
def test_columns_come_in_the_dtype_of_the_matrix(solver, dtype):
    a = with_spectrum(1, 0.5, 0.2).to(dtype)
    a = (a + a.mT) / 2
    b = torch.eye(3)[:, :2].to(dtype)
    ways = [applier(solver, a), *([solver.applier(a)] if hasattr(solver, "applier") else [])]
    for way in ways:
        x = way(b)
        assert x.dtype == dtype
        wide = solver(a.to(F64 if dtype == F64 else F32)) @ b.to(F64 if dtype == F64 else F32)
        torch.testing.assert_close(x, wide.to(dtype))
