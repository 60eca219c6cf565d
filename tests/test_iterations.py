"""Published facts about the iterations: their costs, their optimality, their defects."""

import itertools

import numpy as np
import pytest
import torch
from matrices import F64, frobenius, with_spectrum
from scipy.optimize import linprog
from torch.utils.flop_counter import FlopCounterMode

from softlab.matrices import Clusters, Geometric, NearDuplicates, Polynomial, Spiked, Step
from softlab.pinv import (
    Chebyshev,
    Hyperpower,
    InfinityNorm,
    Minimax,
    NewtonRaphson,
    NormProduct,
    NystromformerCubic,
    OneNorm,
    PublishedNystromformer,
    PublishedSoftNorm,
    ResidualPolynomial,
    SketchedFit,
    Status,
)
from softlab.pinv.polynomial import equioscillating, products

# --- costs -------------------------------------------------------------------------------------


def products_to_invert(a, solver, *, tolerance=1e-8):
    """Products until |I - A X|_2 is below the tolerance."""
    eye = torch.eye(len(a), dtype=a.dtype)
    for step, x in enumerate(solver.iterates(a)):
        if float(torch.linalg.matrix_norm(eye - a @ x, 2)) < tolerance:
            return step * solver.traits.products
    return None


# numerics.md, section 0.1: products from x0 = 1 / kappa^2 to a residual of 1e-8 at kappa = 1e3.
PUBLISHED_COUNTS = {
    NewtonRaphson(60): 50,
    Hyperpower(3, 60): 48,
    Hyperpower(4, 60): 52,
    NystromformerCubic(60): 60,
    Chebyshev(60, degree=2): 28,
    Chebyshev(60, degree=3): 27,
    Chebyshev(60, degree=5): 24,  # not in that list: four products a step, evaluated in blocks
}


@pytest.mark.parametrize("solver", PUBLISHED_COUNTS, ids=repr)
def test_products_to_a_residual_of_1e8_at_condition_1e3(solver):
    # A diagonal matrix: the scalar model itself. Both ends of the spectrum, from alpha = 1.
    a = torch.tensor([1.0, 1e-3], dtype=F64).diag()
    if not isinstance(solver, Chebyshev):
        solver = type(solver)(**{**vars(solver), "scaling": NormProduct(1.0)})
    assert products_to_invert(a, solver) == PUBLISHED_COUNTS[solver_key(solver)]


def solver_key(solver):
    plain = {k: v for k, v in vars(solver).items() if k != "scaling"}
    return next(
        key
        for key in PUBLISHED_COUNTS
        if type(key) is type(solver)
        and {k: v for k, v in vars(key).items() if k != "scaling"} == plain
    )


@pytest.mark.parametrize("kind", [Geometric, Polynomial, Step, Clusters, Spiked])
@pytest.mark.parametrize("seed", range(3))
def test_scaled_for_the_interval_they_need_at_most_six_tenths_of_newtons_products(kind, seed):
    a = kind(64, 1e3)(seed)
    newton = products_to_invert(a, NewtonRaphson(60))
    chebyshev = products_to_invert(a, Chebyshev(60))
    assert chebyshev <= 0.6 * newton
    assert products_to_invert(a, Minimax(condition=1e3, steps=60)) <= chebyshev
    assert products_to_invert(a, SketchedFit(60)) < 0.8 * newton


def test_a_multiple_of_the_identity_saves_ten_steps_on_near_duplicates():
    # numerics.md, section 0.3: below 1e-8 at step 16 to 17 instead of 27 to 28.
    a = NearDuplicates(49, 0.1)(0)
    from_range = products_to_invert(a, NewtonRaphson(60)) / 2
    from_identity = products_to_invert(a, NewtonRaphson(60, InfinityNorm())) / 2
    assert from_range - from_identity >= 9
    assert from_identity <= 17


@pytest.mark.parametrize("degree", range(1, 9))
def test_a_polynomial_takes_the_products_that_it_says_and_is_the_polynomial(degree):
    a, x = with_spectrum(1, 0.9, 0.6, 0.5), with_spectrum(1.1, 1.2, 1.4, 1.7, seed=1)
    coefficients = tuple(torch.linspace(0.3, 1.7, degree + 1, dtype=F64).tolist())
    step = ResidualPolynomial(coefficients)
    with FlopCounterMode(display=False) as counter:
        out = step(a, x)
    assert counter.get_total_flops() == step.products * 2 * 4**3
    assert step.products == products(degree) <= degree + 1
    r = torch.eye(4, dtype=F64) - a @ x
    plain = x @ sum(c * torch.linalg.matrix_power(r, i) for i, c in enumerate(coefficients))
    torch.testing.assert_close(out, plain, rtol=1e-13, atol=1e-13)
    eigenvalues = torch.linspace(-0.5, 1, 7, dtype=F64)
    g = sum(c * eigenvalues**i for i, c in enumerate(coefficients))
    torch.testing.assert_close(
        step.residual(eigenvalues), 1 - (1 - eigenvalues) * g, rtol=1e-13, atol=1e-13
    )
    assert step.growth == pytest.approx(sum(coefficients))


# --- optimality --------------------------------------------------------------------------------


@pytest.mark.parametrize("degree", [2, 3, 5, 7])
@pytest.mark.parametrize("t", [0.999, 0.9, 0.5])
def test_no_step_of_the_degree_leaves_a_smaller_residual(degree, t):
    # By linear programming on a grid: minimise e with |1 - (1 - r) g(r)| <= e over [-t, t]. No
    # Chebyshev polynomial is used, and the basis is Legendre's, to keep the problem well posed.
    r = t * np.cos(np.linspace(0, np.pi, 400))
    basis = np.polynomial.legendre.legvander(r / t, degree - 1) * (1 - r)[:, None]
    ones = np.ones((len(r), 1))
    bounds = np.block([[-basis, -ones], [basis, -ones]])
    right = np.concatenate([-np.ones(len(r)), np.ones(len(r))])
    cost = np.zeros(degree + 1)
    cost[-1] = 1
    best = linprog(cost, bounds, right, bounds=[(None, None)] * (degree + 1), method="highs").fun
    step, gap = equioscillating(1 - t, degree)
    left = float(step.residual(torch.from_numpy(r)).abs().max())
    assert left == pytest.approx(1 - gap, rel=1e-12)
    assert left == pytest.approx(best, rel=1e-3, abs=1e-6)
    assert left <= best * (1 + 1e-3) + 1e-6


def test_the_gap_keeps_its_digits_where_t_rounds_to_one():
    gap = 1e-18
    for _ in range(3):
        step, after = equioscillating(gap, 5)
        assert after == pytest.approx(25 * gap, rel=0.02)  # grows by p^2
        assert step.growth == pytest.approx(25, rel=1e-6)
        gap = after


# --- singular values beyond the bounds ---------------------------------------------------------


def test_a_lower_bound_that_is_too_high_only_costs_steps_and_an_upper_one_too_low_diverges():
    a = Geometric(16, 1e3)(0)
    assert Chebyshev(30, bounds=(0.1, 1.0)).solve(a).status == Status.CONVERGED
    assert Chebyshev(30, bounds=(1e-3, 0.6)).solve(a).status == Status.DIVERGED
    with pytest.raises(ValueError, match=r"overflowed.*solve\(a\)"):
        Chebyshev(30, bounds=(1e-3, 0.6))(a)


def test_the_estimated_interval_holds_the_spectrum():
    for matrix, seed in itertools.product((Geometric(64, 1e3), Spiked(64, 1e3)), range(3)):
        s = matrix.singular_values
        low, high = (float(x) for x in Chebyshev().interval(matrix(seed)))
        assert float(s[0]) <= high <= 1.1001 * float(s[0])
        assert low <= 3 * float(s[-1])
    exact = Chebyshev(sweeps=16).interval(Geometric(12, 1e3)(0))
    assert float(exact[0]) == pytest.approx(1e-3, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("solver", [Minimax(1e4, 25), Chebyshev(25)], ids=repr)
def test_in_low_precision_the_interval_is_cushioned(monkeypatch, solver, dtype):
    a = Spiked(32, 30.0)(0).to(dtype)
    exact = torch.linalg.pinv(a.double())

    def least_error():
        errors = [frobenius(x.double() - exact) / frobenius(exact) for x in solver.iterates(a)]
        return min(e for e in errors if e == e)  # an overflow is NaN

    # The residual is summed where the product is made, so X ends near its own rounding.
    assert least_error() <= 4 * torch.finfo(dtype).eps
    for module in ("minimax", "chebyshev"):
        monkeypatch.setattr(f"softlab.pinv.{module}.cushion", lambda dtype, m: 0.0)
    if isinstance(solver, Minimax):  # Chebyshev knows that this matrix needs no wide interval
        assert least_error() > 20 * torch.finfo(dtype).eps


# --- published defects -------------------------------------------------------------------------


@pytest.mark.parametrize("scaling", [PublishedNystromformer(), PublishedSoftNorm()], ids=repr)
def test_published_scalings_let_a_neighbour_change_a_result(scaling):
    a, peaky = NearDuplicates(8, 0.5)(0), 3 * torch.ones(8, 8, dtype=F64)
    alone, beside = scaling(a), scaling(torch.stack((a, peaky)))[0]
    assert frobenius(alone - beside) > 0.5 * frobenius(alone)
    for own in (NormProduct(1.0), OneNorm()):
        assert torch.equal(own(a), own(torch.stack((a, peaky)))[0])


def test_the_published_soft_norm_sends_the_identity_to_zero():
    # soft.md, section 4.7: |I - 2 I|_1 = 1 passes its test, and the next iterate is 0.
    eye = torch.eye(6, dtype=F64)
    x0, x1, *_ = NewtonRaphson(3, PublishedSoftNorm()).iterates(eye)
    assert torch.equal(x0, 2 * eye)
    assert not x1.any()


def test_the_published_soft_norm_halves_its_start_many_times_on_a_core():
    # soft.md, section 4.7: 7 to 8 halvings are typical.
    a = NearDuplicates(49, 0.3)(0)
    full = 2 * a / a.sum(-1).max() ** 2
    halvings = torch.log2(frobenius(full) / torch.tensor(frobenius(PublishedSoftNorm()(a))))
    assert 2 <= float(halvings) <= 10
