"""Traces, orders, predictions and filters, against identities and against the iteration itself."""

import itertools
import math
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from matrices import F32, F64, frobenius, normal, with_spectrum
from zoo import FIDELITY, SOLVERS

from softlab import convergence
from softlab.laws import tolerance
from softlab.laws.law import after_steps
from softlab.matrices import Flat, Geometric, LowRank, Ones, Polynomial, Step
from softlab.pinv import (
    SVD,
    Chebyshev,
    ConjugateGradients,
    Hyperpower,
    InfinityNorm,
    Iteration,
    KrylovEstimate,
    Minimax,
    NewtonRaphson,
    NormProduct,
    NystromformerCubic,
    OptimalDefinite,
    PublishedSoftNorm,
    Purified,
    ResidualPolynomial,
    SketchedFit,
)

ITERATIONS = [solver for solver in (*SOLVERS, *FIDELITY) if isinstance(solver, Iteration)]
PREDICTED = [solver for solver in ITERATIONS if not isinstance(solver, SketchedFit)]
GENERAL = normal(7, 7, seed=3) @ torch.logspace(0, -2, 7, dtype=F64).diag()


def powers(solver, order):
    """The same solver with an order that it does not have."""
    traits = replace(solver.traits, order=order)

    class Lying(type(solver)):
        @property
        def traits(self):
            return traits

    return Lying(**{name: getattr(solver, name) for name in solver.__dataclass_fields__})


@dataclass(frozen=True)
class Spoilt:
    """A solver whose iterates are changed by ``fault(step, x)`` on their way out."""

    solver: object
    fault: object

    @property
    def traits(self):
        return self.solver.traits

    def iterates(self, a):
        for step, x in enumerate(self.solver.iterates(a)):
            yield self.fault(step, x)


# --- traces ------------------------------------------------------------------------------------


def test_a_trace_of_the_answer_is_clean():
    seen = convergence.trace(SVD(), GENERAL)
    assert (seen.m, seen.rank, len(seen.error)) == (7, 7, 1)
    allowed = tolerance(F64, 7, kappa=seen.condition)
    for row in seen.rows():
        for name in ("penrose_1", "penrose_2", "penrose_3", "penrose_4", "right", "left", "error"):
            assert row[name] <= allowed, name
        assert row["norm"] == pytest.approx(frobenius(torch.linalg.pinv(GENERAL)), rel=1e-12)
        assert row["matmuls"] == row["step"] == 0


def planted(seen, x, exact):
    """X = A^+ + D for some D that one Penrose identity sees and another does not."""
    return convergence.trace(Spoilt(SVD(), lambda _, y: y + x), exact), seen


def test_each_measure_sees_its_own_fault_and_no_other():
    a = LowRank(6, 3, 4.0, symmetric=False)(2)
    u, _, vh = torch.linalg.svd(a)
    null_left, null_right, range_left, range_right = u[:, 3:4], vh[3:4].mT, u[:, :1], vh[:1].mT
    faults = {
        "null space": (null_right @ null_left.mT, {"penrose_2"}),
        "A X not symmetric": (range_right @ null_left.mT, {"penrose_3", "right"}),
        "X A not symmetric": (null_right @ range_left.mT, {"penrose_4", "left"}),
    }
    clean = convergence.trace(SVD(), a)
    for name, (fault, seen_by) in faults.items():
        spoilt = convergence.trace(Spoilt(SVD(), lambda _, x, d=fault: x + 1e-3 * d), a)
        for measure in ("penrose_1", "penrose_2", "penrose_3", "penrose_4", "right", "left"):
            value = float(getattr(spoilt, measure)[0])
            assert (value > 1e-5) == (measure in seen_by), (name, measure, value)
        assert float(spoilt.error[0]) == pytest.approx(1e-3 / float(clean.norm[0]), rel=1e-6)
    # A X A annihilates an error in the null space alone.
    null = convergence.trace(Spoilt(SVD(), lambda _, x: x + faults["null space"][0]), a)
    assert float(null.purified[0]) < 1e-13 < 0.1 < float(null.error[0])


def test_residuals_on_the_range_are_those_of_the_identity_at_full_rank():
    solver = NewtonRaphson(steps=9)
    seen = convergence.trace(solver, GENERAL)
    eye = torch.eye(7, dtype=F64)
    for step, x in enumerate(solver.iterates(GENERAL)):
        for side, product in (("right", GENERAL @ x), ("left", x @ GENERAL)):
            expected = float(torch.linalg.matrix_norm(eye - product, 2))
            assert float(getattr(seen, side)[step]) == pytest.approx(expected, rel=1e-9)
    assert seen.matmuls.tolist() == [2.0 * k for k in range(10)]


def test_on_rank_deficient_input_the_range_residual_vanishes_and_that_of_the_identity_is_one():
    a = LowRank(8, 4, 3.0)(0)
    solver = NewtonRaphson(steps=14)
    seen = convergence.trace(solver, a)
    *_, x = solver.iterates(a)
    assert seen.rank == 4
    assert float(torch.linalg.matrix_norm(torch.eye(8, dtype=F64) - a @ x, 2)) > 0.99
    assert float(seen.right[-1]) < 1e-12


def test_the_run_is_in_its_own_dtype_and_the_measures_in_float64():
    a = Geometric(12, 30.0)(0)
    low, high = (convergence.trace(NewtonRaphson(steps=24), a.to(t)) for t in (F32, F64))
    assert (low.dtype, low.error.dtype) == (F32, F64)
    ratio = convergence.precision_floor(low).error / convergence.precision_floor(high).error
    assert 1e7 < ratio < 1e11  # eps differs by 5e8
    # Against the exact inverse of the unrounded matrix the rounding of A counts too.
    other = convergence.trace(NewtonRaphson(24), a.to(F32), reference=torch.linalg.pinv(a))
    assert not torch.equal(other.error, low.error)


def rational_inverse(a):
    """The inverse of the very numbers in A, by elimination in fractions, rounded once."""
    m = len(a)
    rows = [[*map(Fraction, row), *(Fraction(i == j) for j in range(m))]
            for i, row in enumerate(a.tolist())]  # fmt: skip
    for i in range(m):
        pivot = max(range(i, m), key=lambda j: abs(rows[j][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [x / rows[i][i] for x in rows[i]]
        for j in range(m):
            if j != i:
                rows[j] = [x - rows[j][i] * y for x, y in zip(rows[j], rows[i], strict=True)]
    return torch.tensor([[float(x) for x in row[m:]] for row in rows], dtype=F64)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("condition", [10.0, 1e4, 1e7])
def test_the_reference_is_the_exact_inverse(condition, symmetric):
    a = Step(10, condition, symmetric=symmetric)(0)
    exact = rational_inverse(a)
    for solver in (NewtonRaphson(70), SVD()):
        seen = convergence.trace(solver, a).error[-1]
        assert float(seen) == pytest.approx(
            float(convergence.trace(solver, a, reference=exact).error[-1]), rel=1e-3, abs=3e-16
        )
    # The plain decomposition is no reference for errors of this size.
    assert condition < 1e4 or float(seen) > 0.01 * torch.finfo(F64).eps * condition


def test_rank_is_of_the_precision_of_the_run_unless_given():
    a = torch.diag(torch.tensor([1.0, 0.5, 1e-9], dtype=F64))
    assert convergence.trace(SVD(), a).rank == 3
    assert convergence.trace(SVD(), a.float()).rank == 2
    assert convergence.trace(SVD(), a, rank=2).condition == pytest.approx(2.0)


def test_what_is_not_finite_is_infinite_and_never_nan():
    a = with_spectrum(1, 0.5)
    for bad in (math.nan, math.inf):
        spoil = Spoilt(NewtonRaphson(8), lambda k, x, bad=bad: x * bad if k > 3 else x)
        seen = convergence.trace(spoil, a)
        for name in ("penrose_1", "penrose_2", "right", "left", "norm", "error", "purified"):
            assert bool((getattr(seen, name)[4:] == math.inf).all()), name
        assert not any(math.isnan(x) for row in seen.rows() for x in row.values())
    seen = convergence.trace(NewtonRaphson(2), torch.zeros(3, 3, dtype=F64))
    assert (seen.rank, seen.condition, seen.error.tolist()) == (0, 1.0, [0.0] * 3)


# --- order -------------------------------------------------------------------------------------


def orders(solver, matrices):
    seen = (convergence.observed_order(convergence.trace(solver, a)) for a in matrices)
    return [order for order in seen if order is not None]


def settled(solver):
    """The solver and matrices whose asymptotic regime float64 resolves, the constant settled."""
    while hasattr(solver, "solver"):
        solver = solver.solver
    # A high order passes from 0.53 to rounding in two steps on few matrices: many are tried.
    high = solver.traits.order >= 5
    conditions = torch.logspace(0.1, 0.6 if high else 2, 200 if high else 14, dtype=F64).tolist()
    for seed, condition in enumerate(conditions):
        if isinstance(solver, Minimax):
            # Such steps show their order where the spectrum reaches the end of their interval.
            margin = 1.1 if isinstance(solver.scaling, KrylovEstimate) else 1.0
            diagonal = Geometric(2, condition).singular_values.diag()
            yield replace(solver, condition=condition * margin), diagonal
        else:
            yield solver, Geometric(2 if high else 4, condition)(seed)


@pytest.mark.sampled(1 / 3)
@pytest.mark.parametrize("solver", PREDICTED, ids=repr)
def test_every_observed_order_is_within_a_tenth_of_the_declared(solver):
    seen = (order for one, a in settled(solver) for order in orders(one, [a]))
    found = list(itertools.islice(seen, 6))
    assert len(found) >= 2
    assert max(abs(order - solver.traits.order) for order in found) < 0.1


@pytest.mark.parametrize("solver", [s for s in ITERATIONS if s not in PREDICTED], ids=repr)
def test_a_fitted_step_has_its_order_in_the_median(solver):
    # Its constant follows the sketch from step to step, and three points cannot tell it from p.
    spectra = (Geometric, Step, Polynomial)
    conditions = torch.logspace(0.1, 3, 16).tolist()
    found = orders(solver, (one(64, k)(0) for k in conditions for one in spectra))
    assert len(found) >= 20
    assert float(torch.tensor(found).quantile(0.5)) == pytest.approx(solver.traits.order, abs=0.1)


def test_a_wrong_declared_order_is_told_from_the_right_one():
    for solver, wrong in ((NewtonRaphson(24), 3), (NystromformerCubic(14), 4)):
        liar = powers(solver, wrong)
        found = orders(liar, (Geometric(4, k)(0) for k in (2.0, 5.0, 20.0)))
        assert found
        assert all(abs(order - liar.traits.order) > 0.5 for order in found)


def made(right, *, error=None, dtype=F64):
    """A trace with these residuals and errors, all else zero."""
    right = torch.tensor(right, dtype=F64)
    error = right if error is None else torch.tensor(error, dtype=F64)
    zero = torch.zeros_like(error)
    fields = dict.fromkeys(("penrose_1", "penrose_2", "penrose_3", "penrose_4"), zero)
    fields |= dict.fromkeys(("left", "defect", "norm", "purified", "matmuls"), zero)
    return convergence.Trace(dtype, 4, 4, 2.0, right=right, error=error, **fields)


@pytest.mark.parametrize("order", [2, 3, 5])
@pytest.mark.parametrize("constant", [1.0, 0.75, 0.1])
def test_the_order_of_an_exact_power_law_does_not_depend_on_its_constant(order, constant):
    r = [0.5]
    while r[-1] > 1e-40:
        r.append(constant * r[-1] ** order)
    # What lies at the rounding of float64 is not taken for an order.
    r = [max(x, 3e-16) for x in r] + [3e-16]
    assert convergence.observed_order(made(r)) == pytest.approx(order, rel=1e-9)


def test_no_order_is_read_from_too_few_points_or_from_the_slow_start():
    assert convergence.observed_order(made([0.5, 1e-3])) is None
    assert convergence.observed_order(made([0.99, 0.98, 0.96, 0.92])) is None
    assert convergence.observed_order(made([0.5, 1e-9, 1e-16])) is None
    assert convergence.observed_order(made([0.1, 0.5, 0.01])) is None
    assert convergence.observed_order(made([0.5, 0.1, 1e-3], dtype=torch.bfloat16)) is None


# --- steps -------------------------------------------------------------------------------------


@pytest.mark.sampled(1 / 4)
@pytest.mark.parametrize("condition", [10.0, 1e4])
@pytest.mark.parametrize("spectrum", [Geometric, Step, Polynomial])
@pytest.mark.parametrize("solver", PREDICTED, ids=repr)
def test_predicted_steps_are_within_one_of_the_observed(solver, spectrum, condition):
    solver = after_steps(solver, 60)
    a = spectrum(24, condition)(1)
    predicted = convergence.predicted_steps(solver, a, 1e-8)
    observed = convergence.observed_steps(convergence.trace(solver, a), 1e-8)
    assert predicted is not None
    assert observed is not None
    assert abs(predicted - observed) <= 1


@pytest.mark.parametrize(
    "solver",
    [NewtonRaphson(60), Hyperpower(3, 40), Hyperpower(5, 40), NewtonRaphson(60, InfinityNorm())],
    ids=repr,
)
@pytest.mark.parametrize("condition", [10.0, 1e3])
def test_steps_of_a_hyperpower_are_those_of_the_closed_form(solver, condition):
    a = Geometric(16, condition)(0)
    s = torch.linalg.eigvalsh(a)
    norm = float(a.abs().sum(0).max())
    least = s / norm if solver.traits.definite else 1.8 * s.square() / norm**2
    rho = float((1 - least).abs().max())
    for tol in (1e-2, 1e-8):
        k = math.ceil(math.log(math.log(tol) / math.log(rho)) / math.log(solver.traits.order))
        assert convergence.predicted_steps(solver, a, tol) == k
        assert convergence.predicted_steps(solver, a.float(), tol) == k


def test_the_reference_counts_of_newton_from_the_plain_start():
    # shared reference, section 2b: 11, 18, 25, 31 for alpha = 1 / sigma_1^2 and tolerance 1e-8.
    counts = []
    for condition in (10.0, 1e2, 1e3, 1e4):
        a = torch.diag(Geometric(4, condition).singular_values)
        counts.append(convergence.predicted_steps(NewtonRaphson(60, NormProduct(1.0)), a, 1e-8))
    assert counts == [11, 18, 25, 31]


def test_a_prediction_with_the_wrong_start_or_map_would_be_caught():
    a = Geometric(16, 1e3)(0)
    observed = convergence.observed_steps(convergence.trace(NewtonRaphson(60), a), 1e-8)
    for wrong in (NewtonRaphson(60, NormProduct(0.2)), Hyperpower(3, 40), Chebyshev(40, degree=2)):
        assert abs(convergence.predicted_steps(wrong, a, 1e-8) - observed) > 1


def test_what_cannot_be_predicted_or_is_not_reached_is_none():
    a = Geometric(8, 1e3)(0)
    for solver in (SketchedFit(), SVD(), ConjugateGradients(), Purified(NewtonRaphson())):
        assert convergence.predicted_steps(solver, a, 1e-8) is None
    assert convergence.predicted_steps(NewtonRaphson(5), a, 1e-8) is None
    assert convergence.observed_steps(convergence.trace(NewtonRaphson(5), a), 1e-8) is None
    assert convergence.predicted_steps(NewtonRaphson(5), torch.zeros(3, 3, dtype=F64), 1e-8) == 0


@pytest.mark.parametrize("a", [Flat(49)(), Ones(49)()], ids=["identity", "ones"])
def test_the_published_factor_of_two_is_predicted_never_to_arrive(a):
    # Where products are not exact, rounding doubles a step and would arrive after 52.
    stuck = NewtonRaphson(40, NormProduct(2.0))
    assert convergence.predicted_steps(stuck, a, 1e-8) is None
    assert convergence.observed_steps(convergence.trace(stuck, a), 1e-8) is None
    assert convergence.predicted_steps(NewtonRaphson(40), a, 1e-8) is not None


# --- floor and growth --------------------------------------------------------------------------


def test_the_floor_is_the_least_error_in_units_of_eps_kappa():
    floor = convergence.precision_floor(made([0.5] * 4, error=[1.0, 1e-3, 4.44e-16, 1e-15]))
    assert (floor.step, floor.error) == (2, 4.44e-16)
    assert floor.constant == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("factor", [2.0, 3.0, 3.25])
def test_onset_and_growth_of_a_made_trace(factor):
    error = [1.0, 1e-6, 1e-13, 1.2e-13, *(1e-13 * factor**k for k in range(1, 60))]
    found = convergence.onset_and_growth(made([0.5] * 4, error=error))
    assert found.onset == (5 if factor < 2.5 else 4)  # the first that stays above twice the floor
    assert found.factor == pytest.approx(factor, rel=1e-12)


def test_an_error_that_wanders_near_its_floor_has_not_left_it():
    wandering = [1.0, 1e-6, 1e-13, 3e-13, 1e-12, 2e-13, 5e-13]
    assert convergence.onset_and_growth(made([0.5], error=wandering)) is None
    assert convergence.onset_and_growth(made([0.5], error=[1.0, 1e-2, 1e-4])) is None
    blown = convergence.onset_and_growth(made([0.5], error=[1.0, 1e-13, math.inf, math.inf]))
    assert blown == (2, None)


@pytest.mark.parametrize(
    "solver",
    [
        NewtonRaphson(50),
        Hyperpower(3, 32),
        Hyperpower(5, 24),
        NystromformerCubic(32),
        Chebyshev(50, degree=2),
        Chebyshev(20, degree=5),
        Minimax(steps=20),
        SketchedFit(32),
    ],
    ids=repr,
)
@pytest.mark.parametrize("symmetric", [True, False])
def test_after_convergence_on_singular_input_the_error_grows_as_declared(solver, symmetric):
    a = LowRank(24, 12, 10.0, symmetric=symmetric)(0)
    seen = convergence.trace(solver, a)
    found = convergence.onset_and_growth(seen)
    floor = convergence.precision_floor(seen)
    assert found.onset > floor.step
    assert found.factor == pytest.approx(solver.traits.growth, rel=1e-2)
    # X A X takes the whole of it back, while it is small beside X.
    last = int((seen.error < 1e-3).nonzero()[-1])
    assert float(seen.error[last]) > 1e-6
    assert float(seen.purified[last]) < 10 * floor.error
    full = convergence.trace(solver, Geometric(12, 10.0, symmetric=symmetric)(0))
    assert convergence.onset_and_growth(full) is None


# --- the filter --------------------------------------------------------------------------------


def observed_filter(solver, a, steps):
    """V^T X_k A V, which must be diagonal, and its diagonal."""
    vh = torch.linalg.svd(a).Vh
    x = list(solver.iterates(a))[steps]
    inside = vh @ x @ a @ vh.mT
    return inside - inside.diagonal().diag(), inside.diagonal()


@pytest.mark.parametrize("steps", [0, 1, 3, 5])
@pytest.mark.parametrize("solver", PREDICTED, ids=repr)
def test_the_filter_is_what_the_iteration_applies(solver, steps):
    spd = Geometric(9, 50.0)(4)
    # The released code starts from alpha A, no multiple of A^T.
    only_symmetric = solver.traits.definite or "PublishedSoftNorm" in repr(solver)
    for a in [spd] if only_symmetric else [spd, GENERAL, LowRank(9, 4, 20.0, symmetric=False)(1)]:
        rest, found = observed_filter(solver, a, steps)
        rank = convergence.trace(SVD(), a).rank
        predicted = convergence.filter_factors(solver, a, steps)
        allowed = tolerance(F64, len(a), kappa=50.0 * solver.traits.growth**steps)
        assert float(rest.abs().max()) <= allowed
        assert float((found[:rank] - predicted).abs().max()) <= allowed
        assert float(found[rank:].abs().sum()) <= allowed
        assert steps != 1 or float(predicted.min()) < 0.5, "a converged filter proves nothing"


def test_a_filter_of_another_start_is_caught():
    a = Geometric(9, 50.0)(4)
    _, found = observed_filter(NewtonRaphson(9), a, 3)
    wrong = convergence.filter_factors(NewtonRaphson(9, NormProduct(1.0)), a, 3)
    assert float((found - wrong).abs().max()) > 0.1


@pytest.mark.parametrize(("order", "steps"), [(2, 0), (2, 7), (2, 20), (3, 6), (5, 4)])
def test_a_hyperpower_filter_has_the_closed_form_and_its_cutoff(order, steps):
    a = torch.diag(torch.logspace(0, -5, 30, dtype=F64))
    solver = Hyperpower(order, max(steps, 1), NormProduct(1.0))  # alpha = 1 / sigma_1^2
    s = a.diagonal()
    closed = -torch.expm1(order**steps * torch.log1p(-s.square()))
    factors = convergence.filter_factors(solver, a, steps)
    assert float((factors - closed).abs().max()) < 1e-9  # 1 - s^2 is rounded, order^steps times
    half = math.sqrt(-math.expm1(math.log(0.5) / order**steps))
    assert convergence.cutoff(solver, a, steps) == pytest.approx(half, rel=1e-5)
    rough = order ** (-steps / 2)
    assert steps == 0 or 0.8 < half / rough < 1.0  # sqrt(log 2) = 0.83
    freedom = convergence.degrees_of_freedom(solver, a, steps)
    assert freedom == pytest.approx(float(closed.sum()), rel=1e-9)


@pytest.mark.parametrize("solver", [NewtonRaphson(60), Chebyshev(40), NystromformerCubic(40)])
def test_degrees_of_freedom_grow_to_the_rank(solver):
    for a, rank in ((Geometric(16, 1e3)(0), 16), (LowRank(16, 5, 1e2)(0), 5)):
        freedom = [convergence.degrees_of_freedom(solver, a, k) for k in (0, 2, 5, 10, 40)]
        assert freedom[0] < rank / 2
        assert all(x <= y + 0.2 for x, y in pairwise(freedom))
        assert freedom[-1] == pytest.approx(rank, abs=1e-9)


def test_a_cutoff_is_looked_for_on_the_device_of_the_matrix():
    a = torch.diag(torch.tensor([1.0, 0.3, 0.01], dtype=F64))
    solver = Chebyshev(8)
    wanted = convergence.cutoff(solver, a)
    with torch.device("meta"):  # stands for any other device
        assert convergence.cutoff(solver, a) == wanted


def test_a_cutoff_that_is_not_there_is_none():
    a = Geometric(16, 10.0)(0)
    assert convergence.cutoff(NewtonRaphson(5, NormProduct(1e-6)), a, 2) is None
    assert convergence.cutoff(NewtonRaphson(5), torch.zeros(3, 3, dtype=F64), 2) is None


def test_the_filter_of_a_definite_start_needs_only_the_condition():
    a = Geometric(16, 1e3)(0)
    plain, definite = NewtonRaphson(20), NewtonRaphson(20, OptimalDefinite())
    freedom = [convergence.degrees_of_freedom(s, a, 8) for s in (plain, definite)]
    assert freedom[1] > 1.5 * freedom[0]
    eigenvalues = torch.linalg.eigvalsh(a).flip(0)
    alpha = 2 / (eigenvalues[0] + eigenvalues[-1])
    expected = 1 - (1 - alpha * eigenvalues) ** 256
    found = convergence.filter_factors(definite, a, 8)
    assert float((found - expected).abs().max()) < 1e-10


# --- one run as a row -------------------------------------------------------------------------


def test_an_account_is_what_its_parts_say():
    solver, a = NewtonRaphson(40), Geometric(16, 1e2)(0)
    row = convergence.account(solver, a, 1e-8)
    seen, ended = convergence.trace(solver, a), solver.solve(a)
    assert (row["solve_status"], row["solve_steps"]) == ("CONVERGED", int(ended.steps))
    assert row["observed_matmuls"] == 2 * convergence.observed_steps(seen, 1e-8)
    assert row["observed_steps"] == row["predicted_steps"]
    assert row["floor"] == convergence.precision_floor(seen).error
    assert row["c"] == pytest.approx(row["floor"] / row["eps_kappa"])
    assert row["onset"] is None
    assert convergence.account(solver, LowRank(16, 8, 5.0)(0), 1e-8)["observed_growth"] is not None


def test_an_account_of_a_run_that_did_not_arrive_claims_no_floor():
    row = convergence.account(NewtonRaphson(5), Geometric(16, 1e3)(0), 1e-8)
    assert row["solve_status"] == "OUT_OF_STEPS"
    for name in ("observed_steps", "predicted_matmuls", "floor", "c", "c_purified", "onset"):
        assert row[name] is None, name
    assert 0 < row["last_error"] <= 1


# --- bad input ---------------------------------------------------------------------------------

NAN = torch.full((3, 3), math.nan)
CALLS = {
    "trace": lambda a: convergence.trace(NewtonRaphson(3), a),
    "predicted_steps": lambda a: convergence.predicted_steps(NewtonRaphson(3), a, 1e-8),
    "filter_factors": lambda a: convergence.filter_factors(NewtonRaphson(3), a),
    "cutoff": lambda a: convergence.cutoff(NewtonRaphson(3), a),
    "degrees_of_freedom": lambda a: convergence.degrees_of_freedom(NewtonRaphson(3), a),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    ("a", "error", "message"),
    [
        (torch.ones(3, 4), ValueError, r"a must be square"),
        (torch.ones(2, 3, 3), ValueError, r"a must be one matrix .*got \(2, 3, 3\).*one by one"),
        (NAN, ValueError, r"a has 9 entries that are NaN"),
        (torch.ones(0, 0), ValueError, r"a is empty"),
        ([[1.0]], TypeError, r"a must be a torch.Tensor"),
    ],
)
def test_bad_matrices_are_refused(name, a, error, message):
    with pytest.raises(error, match=message):
        CALLS[name](a)


def test_other_bad_arguments_are_refused_with_a_way_out():
    a, seen = Geometric(4, 3.0)(0), made([0.5, 0.1])
    newton = NewtonRaphson(3)
    with pytest.raises(ValueError, match=r"rank is 5 for a matrix 4 x 4; give an integer of 0 to"):
        convergence.trace(newton, a, rank=5)
    with pytest.raises(ValueError, match="rank is 2, and a has only 1 singular values"):
        convergence.trace(newton, torch.diag(torch.tensor([1.0, 0.0])), rank=2)
    with pytest.raises(ValueError, match=r"reference must be A\^\+, \(4, 4\), got \(3, 3\)"):
        convergence.trace(newton, a, reference=torch.ones(3, 3))
    with pytest.raises(ValueError, match="reference has 9 entries that are NaN"):
        convergence.trace(newton, a, reference=NAN)
    for bad in (0, 1.0, -1e-8):
        with pytest.raises(ValueError, match=r"tolerance is .*; give a number between 0 and 1"):
            convergence.observed_steps(seen, bad)
    for steps in (-1, 4):
        with pytest.raises(ValueError, match="takes 3; give an integer from 0 to 3"):
            convergence.filter_factors(newton, a, steps)
    for solver in (SVD(), SketchedFit()):
        with pytest.raises(TypeError, match=r"no residual polynomials .*V\^T X A V"):
            convergence.filter_factors(solver, a)
    with pytest.raises(ValueError, match="is for symmetric positive definite matrices"):
        convergence.predicted_steps(NewtonRaphson(3, InfinityNorm()), GENERAL, 1e-8)
    with pytest.raises(ValueError, match=r"starts from no multiple of A\^T on this matrix"):
        convergence.predicted_steps(NewtonRaphson(3, PublishedSoftNorm()), GENERAL, 1e-8)


def test_the_maps_of_every_predicted_iteration_are_polynomials():
    for solver in PREDICTED:
        _, maps = solver.begin(with_spectrum(1, 0.5))
        assert all(isinstance(step, ResidualPolynomial) for step in maps)
