"""Every operator and solver of the zoo obeys every law that applies to it."""

import pytest
from zoo import FIDELITY, OPERATORS, SOLVERS

from softlab import laws


@pytest.mark.parametrize("law", laws.OPERATOR_LAWS, ids=lambda law: law.name)
@pytest.mark.parametrize("op", OPERATORS, ids=repr)
def test_operator_obeys(op, law):
    for seed in range(2):
        law.check(op, seed=seed)


@pytest.mark.parametrize("law", laws.SOLVER_LAWS, ids=lambda law: law.name)
@pytest.mark.parametrize("solver", SOLVERS + FIDELITY, ids=repr)
def test_solver_obeys(solver, law):
    for seed in range(5):
        law.check(solver, seed=seed)
