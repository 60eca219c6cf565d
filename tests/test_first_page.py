"""The first page: what is unfinished, then findings by their effect, each with its mark."""

import math
import re
from types import SimpleNamespace

import pandas as pd
import pytest

from softlab import report
from softlab.figures import Lines
from softlab.report import (
    _answer,
    _disturbed,
    _numbered,
    _printed,
    _ranked,
    _with_knobless,
)
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


@pytest.mark.parametrize(
    ("text", "value", "interval", "effect"),
    [
        ("It errs {} times.", "4.00", "95 % 2.00 to 8.00", math.log(4)),
        ("It errs {} times.", "4.00", "95 % 1.00 to 8.00", 0),
        ("It errs {} times.", "0.500", "95 % 0.250 to 1.00", 0),
        ("It errs {} times.", "2.00", "the two heads: 0.500 and 4.00", 0),
        ("It errs {} times.", "1.20 × 10⁻³", "", -math.log(1.2e-3)),
        ("It errs {} times.", "8.00 to 3.00", "range over the grid", math.log(3)),
        ("It errs {} times.", "none", "", math.log(1.25)),
        ("It errs {} times.", "0", "", math.log(1.25)),
        ("It errs {} times.", "-2.00", "", math.log(1.25)),
        ("It errs by {}.", "3.00", "", math.log(1.25)),
    ],
)
def test_the_effect_is_the_logarithm_of_a_ratio_that_is_not_one(text, value, interval, effect):
    found = {"text": text, "value": value, "interval": interval}
    assert effect_of(found) == pytest.approx(effect)
    assert effect_of(found | {"effect": 0.3}) == 0.3
    assert (surprise(0.0), surprise(0.5)) == (0, math.log(2))


@pytest.mark.parametrize(
    ("rows", "busy", "told"), [(20, 1, 0), (20, 2, 2), (19, 1, 1), (40, 2, 0), (3, 0, 0)]
)
def test_a_busy_machine_is_told_of_where_it_timed_more_than_one_case_in_twenty(rows, busy, told):
    table = pd.DataFrame({"case_cpu_share": [0.5] * busy + [1.0] * (rows - busy)})
    assert _disturbed(table, {"timed": ["t"]}) == told
    assert _disturbed(table, {"timed": []}) == _disturbed(table, {}) == 0


def test_figures_and_tables_are_numbered_through_all_studies():
    """The figure that could not be drawn has no number, and the last tables are the report's."""
    one, lost = {"file": "0.svg"}, {"file": None}
    studies = [
        {"name": "a", "figures": [dict(one), dict(lost), dict(one)], "tables": [{}]},
        {"name": "b", "figures": [], "tables": [{}, {}]},
        {"name": "c", "figures": [], "tables": [{}]}, {"name": "d", "figures": [], "tables": []},
    ]  # fmt: skip
    data = {"lead": {}, "studies": studies, "findings": [{"study": x} for x in "bd"],
            "environment": {}}  # fmt: skip
    _numbered(data)
    assert data["lead"] == {"number": 1, "id": "figure-lead"}
    assert [x.get("number") for x in studies[0]["figures"]] == [2, None, 3]
    assert [x.get("id") for x in studies[0]["figures"]] == ["figure-a-1", None, "figure-a-2"]
    assert [[(x["number"], x["id"]) for x in y["tables"]] for y in studies[:3]] == [
        [(1, "table-a-1")], [(2, "table-b-1"), (3, "table-b-2")], [(4, "table-c-1")],
    ]  # fmt: skip
    assert [x["shown"] for x in studies] == [
        "Figures 2 to 3 and Table 1 show it.", "Tables 2 to 3 show it.", "Table 4 shows it.", "",
    ]  # fmt: skip
    assert [x["rows"] for x in data["findings"]] == ["table-b-1", ""]
    assert [(x["number"], x["id"]) for x in data["environment"]["captions"]] == [
        (5, "environment-1"), (6, "environment-2"),
    ]  # fmt: skip


def test_the_lead_is_the_figure_that_the_first_chapter_offers_and_can_draw(tmp_path, monkeypatch):
    table = pd.DataFrame({"x": [1.0, 2.0], "status": "ok", "y": [3.0, 4.0], "op": "A"})
    lines = Lines(x="x", y="y", group="op", xlabel="n", ylabel="e", caption="All.", name="lead")
    offered = {
        "none": None,
        "bad": Lines(**{**vars(lines), "y": "z"}),
        "good": lines,
        "late": lines,
    }
    monkeypatch.setattr(report, "named", lambda name, _: SimpleNamespace(LEAD=offered[name]))
    runs = [(tmp_path / name, table, {"chapter": name, "figures": []}) for name in offered]
    for run, *_ in runs:
        run.mkdir()
    files = {}
    lead = report._lead(runs, files)
    assert (lead["study"], lead["file"], lead["caption"]) == ("good", "figures/0.svg", "All.")
    assert list(files) == ["figures/0.svg"]
    assert report._lead(runs[:2], {}) is None


def test_an_answer_is_the_first_two_headlines_with_a_number():
    said = [("All {}.", ""), ("{} or {}.", "1"), ("Then {}.", "2"), ("Last {}.", "3")]
    assert _answer([{"text": x, "value": y} for x, y in said]) == "1 or {}. Then 2."
    assert _answer([{"text": "All.", "value": ""}]) == ""


def test_against_a_knob_a_method_without_it_is_flat():
    rows = pd.DataFrame({
        "op": ["A", "B", "C", "exact", "R", "D"], "op.rank": [4.0, *[None] * 4, 8.0],
        "status": "ok", "y": [1.0, 2.0, None, 0.0, 3.0, None],
    })  # fmt: skip
    lines = Lines(x="op.rank", y="y", group="op", xlabel="", ylabel="", references=("R",))
    made, said = _with_knobless(rows, lines)
    assert (made.references, said) == (["R", "B"], ["Flat: B, without a rank."])
    assert _with_knobless(rows.dropna(subset="op.rank"), lines) == (lines, [])
    assert _with_knobless(rows, Lines(**{**vars(lines), "x": "y", "y": "op.rank"}))[1] == []


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
    short = parted(" ".join(f"It is {i}." for i in range(13)))
    assert [len(FIGURES.findall(part)) for part in short] == [12, 1]
    long = "It is " + ", ".join(map(str, range(40))) + ". And 1."
    assert [len(re.findall(r"\d+", x)) for x in parted(long)] == [40, 1]
