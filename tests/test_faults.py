"""Every law has a planted fault, and catches it."""

import operator_faults
import pytest
from operator_faults import OPERATOR_FAULTS, Faulty
from solver_faults import SOLVER_FAULTS

from softlab import laws
from softlab.operators import Softmax

OPERATOR_CASES = [(law, f) for law in laws.OPERATOR_LAWS for f in OPERATOR_FAULTS.get(law.name, [])]
SOLVER_CASES = [(law, f) for law in laws.SOLVER_LAWS for f in SOLVER_FAULTS.get(law.name, [])]


@pytest.mark.parametrize(
    ("suite", "faults"),
    [(laws.OPERATOR_LAWS, OPERATOR_FAULTS), (laws.SOLVER_LAWS, SOLVER_FAULTS)],
    ids=["operators", "solvers"],
)
def test_every_law_has_a_fault(suite, faults):
    assert {law.name for law in suite} == {name for name, planted in faults.items() if planted}


def cases(pairs):
    return pytest.mark.parametrize(
        ("law", "fault"), pairs, ids=lambda x: x.name if isinstance(x, laws.Law) else repr(x)
    )


FIRST = {id(one[0]): one for one in reversed([*OPERATOR_CASES, *SOLVER_CASES])}
"""One fault of each law."""


@cases(list(FIRST.values())[::-1])
def test_law_catches_its_first_fault(law, fault):
    caught(law, fault)


@pytest.mark.sampled(1 / 4)
@cases([one for one in (*OPERATOR_CASES, *SOLVER_CASES) if one is not FIRST[id(one[0])]])
def test_law_catches_fault(law, fault):
    caught(law, fault)


def caught(law, fault):
    seeds = range(min(law.examples, laws.EXAMPLES))  # what a default check draws
    with pytest.raises(laws.BrokenLawError, match=law.name):
        checked(law, fault, seeds)


def checked(law, fault, seeds):
    for seed in seeds:
        law.check(fault, seed=seed)


def test_a_law_leaves_alone_what_claims_nothing():
    nothing = OPERATOR_FAULTS["row-stochastic"][1].base
    laws.limits.EXACT_AT.check(nothing)
    laws.algebra.ROW_STOCHASTIC.check(nothing)


@pytest.mark.parametrize("wrong", ["zeros", "mean_of_v"])
def test_no_draw_passes_an_operator_that_does_not_answer(wrong):
    """A published accuracy test passes zeros in 200 of 200 draws."""
    subject = Faulty(Softmax(), getattr(operator_faults, wrong))
    assert all(laws.purity.ANSWERS.broken(subject, seed=seed) for seed in range(200))
