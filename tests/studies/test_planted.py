"""Planted faults are wrong and their right forms right, by comparison and without any law."""

from collections import Counter

import pytest

from softlab import laws
from softlab.laws.faults import undisturbed
from studies.mutations.planted import correct, operators, solvers, tuned
from studies.mutations.planted.shown import At, Of, attend

FAULTS = (*operators.OPERATORS, *solvers.SOLVERS)


def test_there_are_enough_of_each_kind():
    assert len(operators.OPERATORS) >= 110
    assert len(solvers.SOLVERS) >= 40
    assert len(correct.CORRECT) >= 60
    names = [one.name for one in (*FAULTS, *correct.CORRECT)]
    assert len(set(names)) == len(names)
    assert min(Counter(one.kind for one in FAULTS).values()) >= 12


def test_both_halves_have_every_kind():
    kinds = {one.kind for one in FAULTS}
    halves = [[one for one in FAULTS if tuned(one.name) == half] for half in (True, False)]
    assert min(map(len, halves)) > 0.4 * len(FAULTS)
    for half in halves:
        assert {one.kind for one in half} == kinds


@pytest.mark.parametrize("fault", FAULTS, ids=lambda x: x.name)
def test_a_fault_is_wrong_beyond_rounding_where_the_right_form_is_not(fault):
    with undisturbed():
        assert fault.shown(fault.make()) > 1
    assert fault.shown(fault.right()) <= 1


@pytest.mark.parametrize("subject", correct.CORRECT, ids=lambda x: x.name)
def test_a_correct_subject_is_right(subject):
    assert subject.shown(subject.make()) <= 1


@pytest.mark.parametrize(
    ("name", "law"),
    [("the four largest", "two errors"), ("lstsq", "shape, dtype and trace")],
)
def test_a_law_that_raised_a_false_alarm_raises_none(name, law):
    made = next(one for one in correct.CORRECT if one.name == name).make()
    subject = laws.adapted(made)
    chosen = next(one for one in laws.suite(subject) if one.name == law)
    for seed in range(25):
        chosen.check(subject, seed=seed)


def test_what_is_compared_is_seen():
    assert At()(lambda q, k, v: attend(q, k, v) * (1 + 1e-12)) > 1
    assert At(of="gradient")(lambda q, k, v: attend(q, k.detach(), v)) > 1
    assert Of()(lambda a: 1.0000001 * a.inverse()) > 1
