"""What ``solve`` says of each matrix is true."""

import contextlib
import dataclasses
import math

import pytest
import torch
from matrices import F32, F64, frobenius, with_spectrum
from zoo import SOLVERS

from softlab.inputs import Normal, Recorded, Tied
from softlab.laws import tolerance
from softlab.laws.law import steps_of
from softlab.matrices import Clusters, Core, Flat, Geometric, LowRank
from softlab.operators import Nystromformer, Soft
from softlab.pinv import (
    BestIterate,
    Chebyshev,
    Cholesky,
    ConjugateGradients,
    Hyperpower,
    Iteration,
    Minimax,
    NewtonRaphson,
    NormProduct,
    NystromformerCubic,
    OneNorm,
    Optimal,
    OptimalDefinite,
    Purified,
    ResidualPolynomial,
    Ridge,
    SketchedFit,
    Status,
    Trace,
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
    assert int(result.steps[1]) in (10, 11, 12)  # they differ by rounding alone
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


# --- mixed batches -----------------------------------------------------------------------------


def same(together, alone, a):
    """One matrix of a batch against itself alone: how sums are ordered may differ, no more.

    So may the number of steps, where iterates differ by rounding alone.
    """
    assert together.status == alone.status
    assert torch.equal(together.x.isnan(), alone.x.isnan())
    if bool(alone.x.isfinite().all()):
        torch.testing.assert_close(together.x, alone.x, rtol=1e-8, atol=1e-8)
        # What products with an X of this size leave in a residual of a matrix of size 1.
        rounding = tolerance(F64, a.shape[-1], scale=float(a.abs().max() * alone.x.abs().max()))
        torch.testing.assert_close(together.residual, alone.residual, rtol=1e-3, atol=rounding)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_every_matrix_of_a_batch_ends_as_it_does_alone(solver):
    # Definite solvers meet definite matrices; the second takes longer, or more steps than there
    # are; the third is tiny.
    hard = 1e6 if steps_of(solver) else 1e3
    sound = [Geometric(8, 4.0)(0), Geometric(8, hard)(1), Geometric(8, 4.0)(2) * 1e-12]
    broken = [torch.full((8, 8), math.nan, dtype=F64), sound[0].clone()]
    broken[1][2, 3] = math.inf
    batch = torch.stack([sound[0], broken[0], sound[1], broken[1], sound[2]])
    result = solver.solve(batch)
    assert result.status[0] == Status.CONVERGED
    assert result.status[1] == result.status[3] == Status.NON_FINITE
    assert bool(result.x[[1, 3]].isnan().all())
    for i, a in enumerate(batch):
        same(type(result)(*(field[i] for field in result)), solver.solve(a), a)


def with_large_scaling(solver):
    """The solver started too far out for the identity, or None if it has no such start."""
    if hasattr(solver, "solver"):
        inner = with_large_scaling(solver.solver)
        return inner and dataclasses.replace(solver, solver=inner)
    if isinstance(solver, Chebyshev) and not solver.definite:
        return dataclasses.replace(solver, bounds=(0.1, 0.2))
    if hasattr(solver, "scaling") and not solver.scaling.definite:
        return dataclasses.replace(solver, scaling=NormProduct(5.0))
    return None


TOO_LARGE = [s for s in map(with_large_scaling, SOLVERS) if s is not None]


@pytest.mark.parametrize("solver", TOO_LARGE, ids=repr)
def test_one_converges_one_diverges_one_is_nan(solver):
    # Of an orthogonal matrix |A|_1 |A|_inf is far above sigma_1^2, of the identity it is that.
    good, m = Flat(32, symmetric=False)(0), 32
    one, infinity = good.abs().sum(0).max(), good.abs().sum(1).max()
    assert 5 / float(one * infinity) < 1
    if "bounds" in repr(solver):
        good = good * 0.15
    eye = torch.eye(m, dtype=F64)
    # A shift would make the identity's neighbour another matrix; it changes neither's fate.
    shift = solver.ridge if isinstance(solver, Ridge) else 0
    result = solver.solve(torch.stack([good - shift * eye, eye, torch.full_like(eye, math.nan)]))
    assert result.status.tolist() == [Status.CONVERGED, Status.DIVERGED, Status.NON_FINITE]
    assert frobenius(result.x[0] @ good - eye) < tolerance(F64, m, kappa=100)
    assert solver.solve(eye).status == Status.DIVERGED


# --- scales, ranks, shapes ---------------------------------------------------------------------

SCALES = [
    *((F64, scale) for scale in (1e-310, 1e-300, 1e-160, 1e160, 1e300)),
    *((F32, scale) for scale in (1e-40, 1e-38, 1e-30, 1e30, 1e37)),
]


@pytest.mark.sampled(1 / 2)
@pytest.mark.parametrize(("dtype", "scale"), SCALES, ids=str)
@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_no_scale_yields_a_silent_number(solver, dtype, scale):
    exact = Geometric(6, 8.0)(0)
    a = (exact * scale).to(dtype)
    unit = a.double() / scale
    if isinstance(solver, Ridge):
        unit = unit + solver.ridge / scale * torch.eye(6, dtype=F64)
    result = solver.solve(a)
    if scale < 10 * torch.finfo(dtype).tiny and not isinstance(solver, Ridge):
        # The inverse is out of range, or so near that something overflows on the way.
        assert result.status != Status.CONVERGED
        if not isinstance(solver, BestIterate):  # which may have one from before it overflowed
            with pytest.raises(ValueError, match=r"overflowed|broke down"):
                solver(a)
        return
    x = solver(a)
    inverse = torch.linalg.inv(unit)
    allowed = tolerance(dtype, 6, kappa=64, scale=frobenius(inverse))
    assert frobenius(x.double() * scale - inverse) <= allowed
    assert result.status == Status.CONVERGED
    assert frobenius(result.x.double() * scale - inverse) <= allowed


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
def test_of_a_zero_matrix_the_pseudo_inverse_is_zero_or_there_is_an_error(solver, dtype):
    zero = torch.zeros(3, 3, dtype=dtype)
    if isinstance(solver, Ridge):
        assert float((solver(zero) - torch.eye(3) / solver.ridge).abs().max()) < 1e-4
        return
    with contextlib.nullcontext() if solver.traits.singular else contextlib.suppress(ValueError):
        assert bool((solver(zero) == 0).all())
    result = solver.solve(zero)
    assert (result.status == Status.CONVERGED) == bool((result.x == 0).all())


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("shape", [(0, 0), (0, 4, 4), (2, 0, 0), (3, 4), (2, 4, 3), (4,)], ids=str)
def test_what_is_no_batch_of_square_matrices_is_refused(solver, shape):
    for call in (solver, solver.solve):
        with pytest.raises(ValueError, match=r"a (is empty|must be square|must have at least two)"):
            call(torch.ones(shape))


# --- symmetric solvers -------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [s for s in SOLVERS if s.traits.definite], ids=repr)
@pytest.mark.parametrize("gap", [1e-6, 0.3])
def test_solvers_for_symmetric_matrices_refuse_others(solver, gap):
    a = Geometric(6, 4.0)(0)
    a[0, 1] += gap
    for asked in (a, torch.stack([Geometric(6, 4.0)(1), a])):
        with pytest.raises(ValueError, match="symmetric"):
            solver(asked)
    result = solver.solve(a)
    converged = result.status == Status.CONVERGED
    assert not converged or true_residual(a, result.x) < 1e-11
    # What rounding leaves of symmetry is no reason to refuse.
    solver(Geometric(6, 4.0)(0) + 1e-15 * torch.triu(torch.ones(6, 6, dtype=F64), 1))


# --- the best iterate --------------------------------------------------------------------------

PLAIN = [
    NewtonRaphson(60),
    Hyperpower(3, 60),
    Hyperpower(4, 60),
    NystromformerCubic(60),
    Chebyshev(60),
    Chebyshev(60, degree=3),
    Minimax(1e3, 60),
    SketchedFit(60),
]


@pytest.mark.parametrize("solver", PLAIN, ids=repr)
@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
@pytest.mark.parametrize("symmetric", [True, False])
def test_solve_never_returns_the_spoiled_iterate(solver, dtype, symmetric):
    for seed in range(3):
        a = LowRank(24, 15, 30.0, symmetric=symmetric)(seed, dtype=dtype)
        inverse = torch.linalg.pinv(a.double(), rtol=1e-5)
        errors = [frobenius(x.double() - inverse) for x in solver.iterates(a)]
        best = min(e for e in errors if not math.isnan(e))
        assert not errors[-1] < 100 * best, "an iteration that spoils nothing would prove nothing"
        assert frobenius(solver.solve(a).x.double() - inverse) <= 10 * best


@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
@pytest.mark.parametrize(
    "solver",
    [
        NystromformerCubic(6),
        NystromformerCubic(9),
        NewtonRaphson(8),
        NewtonRaphson(14),
        Hyperpower(4, 5),
        Chebyshev(6),
        Minimax(1e3, 4),
        ConjugateGradients(12),
    ],
    ids=repr,
)
def test_no_iterate_has_a_smaller_residual_than_the_best(solver, dtype):
    """Before rounding decides: on cores of real shape, whose residuals creep while X moves."""
    for rank in (8, 64):
        for seed in range(4):
            x = Normal(256, 64)(seed, dtype=dtype)
            batch = torch.stack([op(rank).core(x.q, x.k) for op in (Nystromformer, Soft)])
            result = solver.solve(batch)
            residuals = torch.stack([true_residual(batch, x) for x in solver.iterates(batch)])
            least = residuals.amin(0)
            rounding = 100 * rank * torch.finfo(dtype).eps
            assert bool((result.residual <= least * 1.001 + rounding).all())
            at = result.steps.unsqueeze(0)
            there = residuals.gather(0, at)[0]
            torch.testing.assert_close(result.residual, there, rtol=1e-3, atol=rounding)
            torch.testing.assert_close(
                true_residual(batch, result.x), there, rtol=1e-3, atol=rounding
            )


# --- what is counted ---------------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_matmuls_are_those_of_the_steps_taken(solver):
    batch = torch.stack([Geometric(6, kappa)(0) for kappa in (1.5, 20.0, 300.0)])
    result = solver.solve(batch)
    closing = 2 if isinstance(solver, Purified) else 0
    assert torch.equal(result.matmuls, result.steps * solver.traits.products + closing)
    if isinstance(solver, Iteration):
        step = next(iter(solver.begin(batch)[1]))
        if isinstance(step, ResidualPolynomial):
            assert solver.traits.products == step.products
        assert int(result.steps[2]) >= int(result.steps[0]) > 0


@pytest.mark.parametrize("m", [2, 16, 49])
@pytest.mark.parametrize("matrix", [torch.eye, lambda m, dtype: torch.ones(m, m, dtype=dtype)])
def test_the_published_scaling_fails_where_row_sums_are_equal_and_nine_tenths_do_not(m, matrix):
    a = matrix(m, dtype=F64)
    failed = NewtonRaphson(40, scaling=OneNorm(2.0)).solve(a)
    assert failed.status != Status.CONVERGED
    assert float(failed.residual) > 0.9
    result = NewtonRaphson(40, scaling=OneNorm(1.8)).solve(a)
    assert result.status == Status.CONVERGED
    assert frobenius(result.x - torch.linalg.pinv(a)) < 1e-12


def test_a_residual_that_still_falls_by_squares_is_no_stagnation():
    # The step before the last one needed: X moves little, and the residual by five orders.
    a = Core(Soft(49), Tied(Recorded("minilm.layer0.head0")))(0)
    ends = [NewtonRaphson(steps).solve(a) for steps in (20, 21)]
    assert float(ends[0].residual) > 100 * float(ends[1].residual)
    assert [int(end.status) for end in ends] == [Status.OUT_OF_STEPS, Status.CONVERGED]


# --- what a residual does not see --------------------------------------------------------------


def error(a, x):
    exact = torch.linalg.pinv(a.double())
    return frobenius(x.double() - exact) / frobenius(exact)


@pytest.mark.parametrize(
    "a",
    [
        # 10 m eps is above 1 / kappa: the residual is met long before X is right.
        Core(Nystromformer(49), Recorded("minilm.layer0.head0"))(0, dtype=F32),
        # It rests at 1e-8 while the last cluster is not inverted, and at 2e-8 once it is.
        Clusters(64, 1e8, symmetric=False)(0),
    ],
    ids=["real core, float32", "clusters to 1e8"],
)
def test_an_iterate_is_not_kept_for_its_residual_alone(a):
    solver = NewtonRaphson(64)
    least = min(error(a, x) for x in solver.iterates(a))
    result = solver.solve(a)
    assert error(a, result.x) <= 4 * least < 1e-4
    assert result.status in (Status.STAGNATED, Status.CONVERGED)
    early = NewtonRaphson(24).solve(a)
    assert error(a, early.x) > 0.5
    assert early.status == Status.OUT_OF_STEPS


@pytest.mark.parametrize("scaling", [Trace(), OptimalDefinite()], ids=repr)
def test_a_definite_start_on_an_indefinite_matrix_is_an_error_and_no_zero(scaling):
    solver = NewtonRaphson(26, scaling)
    for a in (torch.tensor([[-3.0]]), torch.tensor([[1.0, 0.0], [0.0, -1.0]])):
        with pytest.raises(ValueError, match=r"overflowed.*solve\(a\)"):
            solver(a)
        assert solver.solve(a).status == Status.NON_FINITE
    assert not solver(torch.zeros(3, 3)).any()


def test_an_overflow_is_no_best_iterate():
    """The x, the residual and the steps of a run that overflows are of one iterate."""
    q = torch.linalg.qr(
        torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    ).Q
    a = ((q * torch.logspace(0, -12, 8, dtype=torch.float64)) @ q.mT).float()
    solver = NewtonRaphson(60, Optimal())
    found, iterates = solver.solve(a), list(solver.iterates(a))
    assert not iterates[-1].isfinite().all()
    assert found.residual.isfinite()
    torch.testing.assert_close(found.x, iterates[found.steps])
