"""What ``solve`` says of each matrix is true."""

import math

import pytest
import torch
from matrices import F32, F64, frobenius, with_spectrum
from zoo import SOLVERS

from softlab.pinv import (
    Cholesky,
    NewtonRaphson,
    NormProduct,
    Ridge,
    Status,
)

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
    assert int(result.steps[1]) in (11, 12)  # they differ by rounding alone
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
