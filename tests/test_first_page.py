"""The first page: what is unfinished, then findings by their effect, each with its mark."""

import math
import re

import pandas as pd
import pytest

from softlab.report import _printed, _ranked
from softlab.report.headlines import effect_of, headline, surprise
from softlab.report.numbers import FIGURES, parted


def ratio(*values):
    (found,) = headline("With it this errs {} times as much", pd.Series(values), "heads")
    return found


def study(name, *headlines, busy=False, mark=""):
    return {"name": name, "headlines": [*headlines], "mark": mark, "busy": busy}


def test_findings_are_ranked_by_their_effect_and_not_by_name():
    small = ratio(1.2, 1.2, 1.3, 1.25, 1.3, 1.22)
    halved = ratio(0.25, 0.24, 0.26, 0.25, 0.23, 0.27)
    doubled = ratio(2.0, 2.1, 1.9, 2.2, 2.0, 1.8)
    useless = {"text": "In {} settings.", "value": "9 of 10", "interval": "",
               "effect": surprise(0.9)}  # fmt: skip
    found = _ranked([study("a", small), study("b", doubled, useless), study("c", halved)])
    assert [(x["study"], x["text"] == useless["text"]) for x in found] == [
        ("b", True), ("c", False), ("b", False), ("a", False)
    ]  # fmt: skip
    assert effect_of(halved) == pytest.approx(math.log(4))


def test_a_ratio_whose_interval_holds_one_is_no_finding_unless_there_is_no_other():
    nothing = ratio(0.9, 1.1, 1.2, 0.8, 1.3, 1.0)
    doubled = ratio(2.0, 2.1, 1.9, 2.2, 2.0, 1.8)
    assert [x["value"] for x in _ranked([study("a", nothing), study("b", doubled)])] == ["2.00"]
    assert len(_ranked([study("a", nothing)])) == 1


def test_what_is_unfinished_stands_first_and_marks_are_kept():
    part = {"text": "3 of 9 cases.", "value": "", "interval": "", "unfinished": True}
    timed = {"text": "It takes {} of the time.", "value": "0.5", "interval": "", "effect": 3.0}
    found = _ranked([study("a", timed, busy=True), study("b", part, mark="interrupted")])
    assert [x["study"] for x in found] == ["b", "a"]
    assert [x["mark"] for x in found] == ["interrupted", "timed on a busy machine"]


def test_what_all_studies_are_is_said_once_and_not_beside_each_finding():
    both = [study("a", ratio(2.0), mark="trial run"), study("b", ratio(3.0), mark="trial run")]
    assert [x["mark"] for x in _ranked(both)] == ["", ""]
    other = study("c", ratio(4.0), mark="interrupted")
    assert [x["mark"] for x in _ranked([*both, other])] == ["interrupted", "trial run", "trial run"]


def test_the_figure_of_the_first_page_is_printed_with_those_of_its_study(tmp_path):
    (tmp_path / "a" / "figures").mkdir(parents=True)
    figures = [{"file": "0.svg", "name": "error"}, {"file": None, "caption": "cannot be drawn"}]
    lead = {"file": "1.svg", "name": "abstract", "study": "a"}
    files = {"0.svg": b"<svg>0</svg>", "1.svg": b"<svg>1</svg>"}
    _printed(tmp_path, [{"name": "a", "figures": figures}], lead, files, lambda x: x["figure.svg"])
    made = {x.name: x.read_bytes() for x in (tmp_path / "a/figures").iterdir()}
    assert made == {"error.pdf": b"<svg>0</svg>", "abstract.pdf": b"<svg>1</svg>"}


def test_two_ratios_on_either_side_of_one_are_no_finding():
    assert effect_of(ratio(0.2, 1.04)) == 0
    assert effect_of(ratio(0.2, 0.4)) > 0


def test_a_first_page_has_seven_findings_at_most():
    many = [study(f"s{i}", ratio(*[2.0 + i] * 5, 2.1 + i)) for i in range(12)]
    found = _ranked(many)
    assert len(found) == 7
    assert found[0]["study"] == "s11"


@pytest.mark.parametrize("count", [0, 1, 5, 30])
def test_a_paragraph_has_at_most_twelve_numbers_and_loses_no_word(count):
    text = " ".join(
        f"On layer{i}.head2 it is 0.5 to 1.2 × 10⁻³ in {i} cases." for i in range(count)
    )
    parts = parted(text)
    assert " ".join(parts) == text
    assert all(len(FIGURES.findall(part)) <= 12 for part in parts)
    assert len(FIGURES.findall("On layer5.head2 it is 1.2 × 10⁻³.")) == 1
    long = "It is " + ", ".join(map(str, range(40))) + ". And 1."
    assert [len(re.findall(r"\d+", x)) for x in parted(long)] == [40, 1]
