"""Every solver and scaling equals its plain float64 twin, step by step and not only at the end."""

import pytest
import torch
from matrices import F64, frobenius
from twins import inverse, scaled
from zoo import FIDELITY, SCALINGS, SOLVERS

from softlab.laws import tolerance
from softlab.laws.law import after_steps
from softlab.matrices import Geometric
from softlab.pinv import BestIterate, Chebyshev, Polished, PublishedNystromformer, PublishedSoft

KAPPA = 30.0
# These two have no result of their own: which iterate is returned depends on rounding.
WITH_TWINS = [s for s in SOLVERS + FIDELITY if not isinstance(s, (BestIterate, Polished))]


def matrices(solver, m=9):
    yield Geometric(m, KAPPA)(0)
    if not solver.traits.definite:
        yield Geometric(m, KAPPA, symmetric=False)(1)


def allowed(x, solver):
    # Rounding of each step is carried through the growth of those after it, bounded by kappa^2.
    return tolerance(F64, 9, kappa=KAPPA**2, scale=frobenius(x)) * max(1, solver.traits.growth)


@pytest.mark.parametrize("solver", WITH_TWINS, ids=repr)
@pytest.mark.parametrize("steps", [1, 2, 4, None])
def test_a_solver_equals_its_twin(solver, steps):
    solver = solver if steps is None else after_steps(solver, steps)
    for a in matrices(solver):
        if solver in FIDELITY and not torch.equal(a, a.mT):
            continue  # the published SOFT code is for symmetric matrices
        x = inverse(solver, a)
        assert frobenius(solver(a) - x) <= allowed(x, solver)


@pytest.mark.parametrize("degree", [2, 3, 4, 5, 6, 7, 8, 9])
def test_given_bounds_of_any_degree(degree):
    solver = Chebyshev(steps=2, degree=degree, bounds=(0.05, 1.2))
    for a in matrices(solver):
        x = inverse(solver, a)
        assert frobenius(solver(a) - x) <= allowed(x, solver)
        assert frobenius(solver(a) - torch.linalg.pinv(a)) > 1e-4 * frobenius(x)


@pytest.mark.parametrize(
    "scaling", [*SCALINGS, PublishedNystromformer(), PublishedSoft(0.1)], ids=repr
)
def test_a_scaling_equals_its_formula(scaling):
    for a in (Geometric(9, KAPPA)(0), Geometric(9, KAPPA)(1), 7 * Geometric(12, 3.0)(2)):
        x = scaled(scaling, a)
        assert frobenius(scaling(a) - x) <= tolerance(F64, 9, kappa=KAPPA, scale=frobenius(x))
        if not scaling.definite:
            b = Geometric(9, KAPPA, symmetric=False)(3)
            assert frobenius(scaling(b) - scaled(scaling, b)) <= 1e-12 * frobenius(scaling(b))


def test_the_twins_see_a_wrong_coefficient():
    a = Geometric(9, KAPPA)(0)
    x = inverse(Chebyshev(steps=2, bounds=(0.05, 1.0)), a)
    wrong = Chebyshev(steps=2, bounds=(0.05, 1.0 + 1e-6))(a)
    assert frobenius(wrong - x) > 100 * tolerance(F64, 9, kappa=KAPPA**2, scale=frobenius(x))
