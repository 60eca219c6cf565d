"""A method looks alike in all figures, and differs from its neighbours in grey too."""

import itertools
import random

from matplotlib.lines import Line2D

from softlab import operators
from softlab.report.style import METHODS, NAMES, looks, own


def test_every_operator_has_a_look_of_its_own():
    assert set(NAMES) <= {*operators.__all__}  # one more takes a free look
    made = [own(name) for name in NAMES]
    assert len({(x.marker, x.filled) for x in made}) == len(NAMES)
    for one, other in itertools.combinations(made, 2):
        assert one.colour != other.colour or one.line != other.line
    for look in made:
        assert look.marker in Line2D.filled_markers
        assert look.colour in {x.colour for x in METHODS}


def test_a_method_looks_alike_whatever_stands_beside_it():
    rng = random.Random(0)
    for _ in range(200):
        names = rng.sample(NAMES, 10)
        found = looks(names)
        assert found == [own(name) for name in names]
    assert looks(["anything", "Soft(rank=64)"])[1] == own("Soft")


def test_forms_keep_the_colour_and_differ_in_marker_and_dashes():
    names = [
        "Soft, exact inverse",
        "Soft",
        "Soft (row)",
        "Nystromformer",
        "Nystromformer, converged",
    ]
    found = dict(zip(names, looks(names), strict=True))
    assert found["Soft"] == own("Soft")
    assert len({x.colour for x in found.values()}) == 2
    assert len({(x.marker, x.filled) for x in found.values()}) == len(names)
    alone = looks(["Local, 4 sinks"])
    assert alone == looks(["Local", "Local, 4 sinks"])[1:]
    assert alone != looks(["Local"])


def test_the_dashes_of_a_form_are_not_those_of_its_method():
    for name in NAMES:
        plain, form = looks([name, f"{name}, form"])
        assert (form.colour == plain.colour) is (form.line != plain.line) is True
        assert (form.marker, form.filled) == (plain.marker, not plain.filled)


def test_groups_without_a_name_take_what_is_left():
    found = looks(["first", "Nystromformer", "second", "third"])
    assert found[0] == METHODS[0]
    assert found[1] == own("Nystromformer") == METHODS[1]
    assert found[2:] == list(METHODS[2:4])
    assert looks([f"group {i}" for i in range(10)]) == list(METHODS)
    assert looks([NAMES[10], "first"])[1] == METHODS[1]  # the first colour is taken
