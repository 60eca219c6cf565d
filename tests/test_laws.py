"""Every operator and solver of the zoo obeys every law that applies to it."""

import zlib

import pytest
from zoo import FIDELITY, OPERATORS, SOLVERS

from softlab import laws
from softlab.laws.gradient_consistency import EVERYWHERE
from softlab.operators import RandomFourier


def applying(suite, subjects):
    pairs = [
        (law, subject)
        for subject in subjects
        for law in suite
        if law.applies(subject) and (law not in EVERYWHERE or subject.traits.exact)
    ]
    return pytest.mark.parametrize(
        ("law", "subject"), pairs, ids=[f"{subject!r}-{law.name}" for law, subject in pairs]
    )


def seed_of(law, subject):
    """One seed of a law for each subject, another for its neighbour: together they meet all."""
    return zlib.crc32(f"{subject!r}-{law.name}".encode()) % min(3, law.examples)


@pytest.mark.sampled(1 / 9, each=True)
@applying(laws.OPERATOR_LAWS, OPERATORS)
def test_operator_obeys(law, subject):
    law.check(subject, seed=seed_of(law, subject))


@pytest.mark.sampled(1 / 5, each=True)
@applying(laws.SOLVER_LAWS, SOLVERS + FIDELITY)
def test_solver_obeys(law, subject):
    law.check(subject, seed=seed_of(law, subject))


@pytest.mark.parametrize("law", ["low rank", "half precision everywhere"])
def test_features_whose_mass_vanishes_are_no_fault(law):
    """Of few features some rows are zero, and quotients in float16 can overflow: both are right."""
    (asked,) = (x for x in laws.OPERATOR_LAWS if x.name == law)
    for seed in range(3):
        asked.check(RandomFourier(features=16), seed=seed)


@pytest.mark.parametrize("law", [*laws.OPERATOR_LAWS, *laws.SOLVER_LAWS], ids=lambda x: x.name)
def test_a_law_says_what_it_is(law):
    for words in (law.statement, law.family, law.when, law.allows, law.catches):
        assert words.strip()
    assert law.family in laws.FAMILIES


@pytest.mark.parametrize("suite", [laws.OPERATOR_LAWS, laws.SOLVER_LAWS], ids=["ops", "solvers"])
def test_names_tell_laws_apart(suite):
    assert len({law.name for law in suite}) == len(suite)


@pytest.mark.parametrize("test", [test_operator_obeys, test_solver_obeys], ids=["ops", "solvers"])
def test_the_sample_asks_every_law_and_every_subject(request, test):
    if request.config.option.keyword or any("::" in name for name in request.config.args):
        pytest.skip("not all tests were collected")
    (mark,) = (x for x in test.pytestmark if x.name == "parametrize")
    cases = [x.callspec.params for x in request.session.items if x.name.startswith(test.__name__)]
    for i, argument in enumerate(("law", "subject")):
        assert {id(x[argument]) for x in cases} == {id(pair[i]) for pair in mark.args[1]}
