"""A chapter is two files, found by name; its words are computed from the table's numbers."""

import math
import re

import numpy as np
import pandas as pd
import pytest
from tables import INPUTS, SOLVERS, rank_table, steps_table
from typer.testing import CliRunner

from softlab.cli import app
from softlab.report import chapter as chapters
from softlab.report.numbers import counted, joined, listed, median, number, sentence, short, span
from softlab.report.operators.chapter import findings, scope, tables
from softlab.report.quartiles import cell, quartiles_of, summary


def test_known_chapters_are_modules_that_offer_the_three_functions():
    assert "operators" in chapters.known()
    for name in chapters.known():
        for function in ("scope", "findings", "tables"):
            assert callable(getattr(chapters.named(name), function)), (name, function)
        assert chapters.fragment(name).decode().strip()


def test_labels_of_a_fragment_begin_with_its_name_and_it_has_no_great_headings():
    for name in chapters.known():
        text = chapters.fragment(name).decode()
        for label in re.findall(r"(?:^|\s)<([\w:.-]+)>", text, re.M):
            assert label.startswith(f"{name}-"), (name, label)
        assert not re.search(r"^={1,2} ", text, re.M), name
        # Typst would begin a list in the middle of a sentence; the others are meant where they are.
        assert not re.search(r"^\d+\. ", text, re.M), name


@pytest.mark.parametrize("name", ["operator", "numbers", "../report", "", "Operators"])
def test_an_unknown_chapter_is_named_beside_the_known(name):
    with pytest.raises(ValueError, match=r"the chapters are .*\boperators\b") as caught:
        chapters.named(name)
    assert repr(name) in str(caught.value)
    if name == "operator":
        assert str(caught.value).endswith("Did you mean 'operators'?")


@pytest.mark.parametrize("name", chapters.known())
@pytest.mark.parametrize(
    "table",
    [
        pd.DataFrame({"x": [1, 2], "status": "failed", "error": ["E: no", "E: none"]}),
        steps_table().assign(status="failed"),
        rank_table().assign(status="failed"),
    ],
)
def test_a_chapter_does_without_its_columns_and_without_finished_rows(name, table):
    chapter = chapters.named(name)
    assert isinstance(chapter.scope(table), str)
    assert all(isinstance(text, str) for text in chapter.findings(table))
    for made in chapter.tables(table):
        assert {len(row) for row in made["rows"]} <= {len(made["header"])}


def test_of_a_table_without_their_columns_the_operators_tell_the_groups():
    table = steps_table()
    assert scope(table) == ""
    (said,) = findings(table)
    assert said.startswith("The cases fall into 6 groups, told apart by solver and spectrum.")
    (made,) = tables(table)
    assert {row[0] for row in made["rows"]} == {*SOLVERS}
    assert len(made["rows"]) == 6


def test_every_row_of_a_table_is_as_long_as_its_header():
    made = list(tables(rank_table()))
    assert len(made) == 3 + 1  # a target each, and the costs
    for one in made:
        assert {len(row) for row in one["rows"]} == {len(one["header"])}
        assert 0 < one["left"] < len(one["header"])


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (0, "0"), (0.12345, "0.123"), (9.999, "10.0"), (12.345, "12.3"), (1234.5, "1230"),
        (0.00034, "3.40 \u00d7 10⁻⁴"), (0.001234, "0.00123"), (12345, "1.23 \u00d7 10⁴"),
        (1e-9, "1.00 \u00d7 10⁻⁹"), (2.5e7, "2.50 \u00d7 10⁷"), (-0.5, "-0.500"),
        (float("inf"), "∞"), (float("nan"), "n/a"),
    ],
)  # fmt: skip
def test_number_has_three_digits(x, said):
    assert number(x) == said


def test_findings_say_where_more_rank_does_not_help_and_where_rows_vanish():
    table = rank_table()
    soft = (table.method == "Soft") & (table.target == "Gaussian")
    flat = soft & (table.source == INPUTS[1]) & (table["op.rank"] > 4)
    table.loc[flat, "output_error"] = 0.3
    table.loc[(table.target == "Gaussian") & (table.source == INPUTS[0]), "row_mass"] = 1e-6
    (said,) = [text for text in findings(table) if "Soft against Gaussian" in text]
    assert f"gains less than a tenth over the best smaller rank on {INPUTS[1]}" in said
    assert f"lies between 1.00 \u00d7 10⁻⁶ ({INPUTS[0]})" in said
    assert "does not help" not in " ".join(t for t in findings(table) if "Nystromformer" in t)


def test_findings_count_the_cores_that_were_left_unconverged():
    table = rank_table()
    of_soft = (table.method == "Soft") & (table.target == "Gaussian")
    table["core_status"], table["core_residual"] = None, 1e-7
    table.loc[of_soft, "core_status"] = "CONVERGED"

    def said(of):
        return next(text for text in findings(table) if f"of {of}" in text)

    assert f"core in 0 of {of_soft.sum()} cases." in said("Soft against Gaussian")
    assert "solver stopped" not in said("Nystromformer")
    first = table.index[of_soft][:2]
    table.loc[first, "core_status"] = ["OUT_OF_STEPS", "DIVERGED"]
    table.loc[first, "core_residual"] = [0.25, 0.5]
    text = said("Soft against Gaussian")
    assert f"core in 2 of {of_soft.sum()} cases, relative residual up to 0.500." in text


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (0.01234, "0.0123"), (12.345, "12.3"), (1.234e-5, "1.23e-5"), (1234.5, "1234"),
        (1e6, "1.00e6"), (1e5, "1.00e5"), (99999, "99999"), (1000, "1000"), (-1234.5, "-1234"),
        (999.4, "999"), (math.inf, "∞"), (math.nan, "n/a"),
    ],
)  # fmt: skip
def test_short_fits_a_column(x, said):
    assert short(x) == said


@pytest.mark.parametrize(
    ("words", "said"),
    [([], ""), (["a"], "a"), (["a", 2], "a and 2"), (iter("abc"), "a, b and c")],
)
def test_joined_is_a_list_in_a_sentence(words, said):
    assert joined(words) == said
    assert (listed(["a", "b"]), listed(["a", "b, c", "d"])) == ("a and b", "a; b, c; d")


def test_a_sentence_is_clauses_with_facts_in_their_places():
    clauses = (
        "{count} of {all:g} err", ("worst", ", most {worst} by {error}"), ("on", " on {on}"), ".",
    )  # fmt: skip
    facts = {"count": 2, "all": 3.0, "worst": "{Soft}", "error": 0.12345, "on": ["a", "b"]}
    assert sentence(clauses, facts) == "2 of 3 err, most {Soft} by 0.123 on a and b."
    assert sentence(clauses, {"count": 0, "all": 3.0, "worst": "", "on": []}) == "0 of 3 err."
    assert sentence(clauses, {}) == ""
    assert sentence(("{x}.",), {"x": {"a": 3, "b": 0.5, "c": "1 of 2"}}) == (
        "a (3), b (0.500) and c (1 of 2)."
    )
    with pytest.raises(KeyError):
        sentence(clauses, {"count": 1})


def test_what_is_counted_is_one_or_many():
    assert [counted(n, "case") for n in (0, 1, 2)] == ["0 cases", "1 case", "2 cases"]


def test_a_median_in_words_has_its_unit():
    rows = pd.DataFrame({"x": [1.0, 2.0, 30.0, math.nan]})
    assert (median(rows, "x"), median(rows, "x", 1e3)) == ("2.00", "2000")


def test_a_span_goes_from_the_least_to_the_greatest():
    assert span(pd.Series([3.0, 1.0, 2.0])) == "1.00 to 3.00"
    assert span(pd.Series([3.0001, math.nan, 3.0])) == "3.00"
    assert span(pd.Series([20.0, 7.0]), "{:g}".format) == "7 to 20"


def test_a_cell_is_a_median_over_its_quartiles():
    assert cell(None) == ""
    assert cell({"q1": 0.1, "median": 0.25, "q3": 0.5}) == ["0.250", ".10\u2013.50"]
    assert cell({"q1": 0.251, "median": 0.2512, "q3": 0.254}) == "0.251"
    assert cell({"q1": 1.0, "median": math.inf, "q3": math.inf}) == ["∞", "1.0\u2013∞"]


def test_summary_is_quartiles():
    table = rank_table(seeds=4)
    mine = table[(table.method == "Soft") & (table.target == "Gaussian")]
    points = summary(mine, ["source", "op.rank"], "output_error")
    errors = mine[(mine.source == INPUTS[0]) & (mine["op.rank"] == 16)].output_error
    row = points[(points.source == INPUTS[0]) & (points["op.rank"] == 16)].iloc[0]
    assert list(row[["q1", "median", "q3"]]) == pytest.approx(
        np.quantile(errors, [0.25, 0.5, 0.75])
    )


def test_quartiles_at_places_lie_between_numbers_as_those_of_a_summary():
    places = np.repeat([2, 0, 1, 3], [4, 1, 2, 6])
    numbers = np.random.default_rng(0).exponential(size=13)
    found = quartiles_of(places, numbers)
    for place in range(4):
        expected = np.quantile(numbers[places == place], [0.25, 0.5, 0.75])
        assert found[:, place] == pytest.approx(expected)


def test_summary_of_no_rows_has_its_columns():
    points = summary(rank_table()[:0], ["source", "op.rank"], "output_error")
    assert list(points) == ["source", "op.rank", "q1", "median", "q3"]
    assert points.empty


def test_a_study_of_an_unknown_chapter_is_refused_before_it_runs(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(
        "from softlab.study import Study\n"
        "def measure(x, *, dtype, device):\n    return {}\n"
        "STUDY = Study('own', 'Which?', {'x': [1]}, measure, chapter='operatrs')\n"
    )
    result = CliRunner().invoke(app, ["run", str(path), "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "own: there is no chapter 'operatrs'" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("ranked", [True, False])
def test_a_studys_own_operator_without_a_rank_is_in_words_and_tables(ranked):
    table = rank_table()
    mine = table[(table.method == "Uniform") & (table.target == "softmax")]
    mine = mine.assign(method="MyOwn", output_error=[*range(1, len(mine) + 1)], skill=0.5)
    mine.loc[mine.index[:2], "skill"] = 0.0
    table = pd.concat([table, mine], ignore_index=True) if ranked else mine.drop(columns="op.rank")
    (said,) = [text for text in findings(table) if text.startswith("MyOwn has no rank.")]
    middles = [2.0, 5.0, 8.0]  # three seeds of each of three recorded inputs
    assert f"is {number(np.median(middles))}, in the median over 3" in said
    assert f"in 2 of {len(mine)} cases" in said
    (made,) = [x for x in tables(table) if "without a rank" in x["caption"]]
    assert [row[-1][0] for row in made["rows"]] == ["2.00", "5.00", "8.00", "11.0"]
    assert [row[1] for row in made["rows"]] == list(INPUTS)
    assert not any("without a rank" in x["caption"] for x in tables(rank_table()))
