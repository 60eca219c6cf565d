"""What certificates are worth, in words and in a table, on a table counted by hand."""

import math

import pandas as pd
import pytest

from softlab.report.certificates import paragraph, tables, worth

INF = math.inf
ROWS = [  # method, rank, input, error, certificate
    ("B", 8, "a", 0.1, 0.2), ("B", 8, "a", 0.2, 1.6), ("B", 8, "b", 0.1, 0.1),
    ("B", 8, "c", 0.5, INF), ("B", 4, "a", 0.5, INF), ("A", 2, "a", 0.1, 0.3),
    ("A", 2, "b", 0.2, 0.1), ("A", 2, "a", 0.0, 0.9), ("C", None, "a", 0.3, INF),
    ("D", 1, "a", 0.1, None),
]  # fmt: skip


def table():
    return pd.DataFrame(ROWS, columns=["method", "rank", "source", "error", "certified_error"])


def found(by=("method", "rank")):
    return worth(table(), by, error="error", unit="source")


def test_each_group_is_counted_in_the_order_of_the_table():
    """Ratios of B at 8: 2 and 8 on a, 1 on b; a bound that equals the error is kept."""
    made = found()
    assert made["method"].tolist() == ["B", "B", "A", "C"]
    counts = made[["cases", "units", "told", "broken"]].to_numpy().tolist()
    assert counts == [[4, 3, 3, 0], [1, 1, 0, 0], [3, 2, 3, 1], [1, 1, 0, 0]]
    first, none, third, _ = made["ratio"]
    assert (first.value, first.low, first.high) == pytest.approx((2.5, 1, 4))
    assert none.units == 0
    assert third.value == pytest.approx((3 + 0.5) / 2)  # nothing is over an error of 0
    floor = table().assign(floor=0.05)
    kept = worth(floor, ["method"], error="error", unit="source", floor="floor")
    assert kept["broken"].tolist() == [0, 0, 0]


def test_the_paragraph_counts_what_says_something_and_what_is_broken():
    names = ["one", "two", "three", "four"]
    words = (
        "A certificate, a bound of the error that needs no exact output, is below the output's norm"
        " in 6 of 9 cases with one, on 3 inputs; there it is, over the error, 2.50 for one (3 of 4 "
        "cases; the two inputs: 1.00 and 4.00) and 1.75 for three (3 of 3 cases; the two inputs: "
        "0.500 and 3.00). It says nothing of two and four."
    )
    assert paragraph(found(), names, 3) == f"{words} 1 of 9 are below the error: this is a bug."
    whole = found().assign(broken=0)
    assert paragraph(whole, names, 3) == f"{words} None is below the error."
    alone = paragraph(whole[:1], names[:1], 1, sampled=True)
    assert alone.startswith(
        "A certificate, a bound of the error that needs no exact output, is bel"
    )
    assert alone.endswith(" and 4.00). None is below the lower end of the sampled interval.")
    assert "on 1 input; there it is, over the sampled error, 2.50 for one" in alone
    silent = paragraph(whole[1:2], names[1:2], 2)
    assert silent.endswith("in 0 of 1 case with one, on 2 inputs. It says nothing of two.")
    assert paragraph(pd.DataFrame(), [], 3) == ""


def test_the_table_has_medians_and_ranges_and_names_a_group_once():
    (made,) = tables(found(), ["method", "rank"], ["method", "rank"])
    assert made["rows"] == [
        ["B", "8", "3 of 4", "3", "0.200", ["2.50", "1.00 to 8.00"]],
        ["", "4", "0 of 1", "1", "none", "none"],
        ["A", "2", "3 of 3", "2", "0.200", ["1.75", "0.500 to 3.00"]],
        ["C", "", "0 of 1", "1", "none", "none"],
    ]
    assert made["header"] == ["method", "rank", "below output", "inputs", "certified", "over error"]
    assert made["left"] == 2
    (plain,) = tables(found(["method"]), ["method"], ["method"], sampled=True)
    assert [row[0] for row in plain["rows"]] == ["B", "A", "C"]
    assert plain["header"][-1] == "over sampled error"
    assert not list(tables(found()[1:2], ["method"], ["method"]))
    assert not list(tables(pd.DataFrame(), ["method"], ["method"]))
