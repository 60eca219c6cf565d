"""The repr of every part is a name that evaluates to an equal part."""

import dataclasses

import numpy as np
import pytest
from zoo import OPERATORS, SELECTORS, SOLVERS, WEIGHTS

from softlab import features, landmarks, operators, pinv
from softlab.operators import (
    Soft,
)

# --- names -------------------------------------------------------------------------------------

NAMES = {
    name: getattr(module, name)
    for module in (operators, pinv, landmarks, features)
    for name in module.__all__
}


@pytest.mark.parametrize("thing", OPERATORS + SOLVERS + SELECTORS + WEIGHTS, ids=repr)
def test_the_repr_is_a_name_that_evaluates_to_an_equal_object(thing):
    again = eval(repr(thing), dict(NAMES))
    assert again == thing
    assert type(again) is type(thing)
    assert hash(again) == hash(thing)
    assert repr(again) == repr(thing)
    for field in dataclasses.fields(thing):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(thing, field.name, 1)


def test_names_tell_unequal_things_apart():
    everything = OPERATORS + SOLVERS
    assert len({repr(thing) for thing in everything}) == len(set(everything)) == len(everything)


@pytest.mark.parametrize("number", [np.float64(1.3), np.float32(1.3)], ids=repr)
def test_numpy_numbers_do_not_spoil_the_name(number):
    try:
        op = Soft(4, bandwidth=number)
    except TypeError as refusal:
        assert "give a positive number" in str(refusal)  # noqa: PT017  either way is honest
        return
    assert eval(repr(op), dict(NAMES)) == op
