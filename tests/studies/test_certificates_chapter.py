"""Every number of the chapter of certificates, and a case of its study."""

import re

import pandas as pd
import torch

from softlab.inputs import Recorded, Tied
from studies.certificates.chapter import findings, headlines, scope, tables
from studies.certificates.study import METHODS, STUDY, affordable, keep, measure

SOURCES = {"a": 1, "b": 2, "c": 5}
"""The heads and what they multiply or add: the mean of these is not their median."""


def table():
    rows = []
    for j, method in enumerate(("TopK", "Local", "Soft")):
        for source, s in SOURCES.items():
            for stretch in (1.0, 3.0) if method == "Soft" else (1.0,):
                for share in (0.25, 0.5):
                    ratio = (1.0, 9.0, 40.0)[j] * s / share / 8 / stretch
                    rows.append({
                        "status": "ok", "method": method, "source": source, "stretch": stretch,
                        "setting": "tied Gaussian" if method == "Soft" else "plain",
                        "share": share, "work": share * (0.4 + s / 4), "ratio": ratio,
                        "ratio_low": ratio / 2, "ratio_high": ratio * 3, "below": 0,
                        "bound_over_output": 0.04 * ratio, "error_over_output": 0.05 + s / 100,
                        "time_ratio": 1.3 + s / 10 + j,
                        "time_over_exact": 0.2 + s / 10 + 0.5 * j,
                        "left_out": 0.1 + s / 10 if j < 2 else None,
                        "known_ratio": 1.0 + s if j < 2 else None,
                        "unknown": 0.3 * s / stretch if j == 2 else None,
                        "condition": 10.0**stretch * s if j == 2 else None,
                    })  # fmt: skip
    made = pd.DataFrame(rows)
    return pd.concat([made, made.assign(status="failed", ratio=1e9)], ignore_index=True)


def test_what_is_found():
    said = findings(table())
    assert said[0] == "No row of 24 cases errs by more than its bound."
    assert (
        "at most 3 times its error for TopK (1.00), and more for Local (9.00) and Soft (40.0)"
        in (said[1])
    )
    assert "A call of TopK costs what the exact answer does." in said[1]
    assert said[2] == (
        "The bound is as large as the output, and so says nothing, on some for Soft (2 of 3)."
    )
    assert said[3].endswith(
        "In the median row Local leaves out 0.300 of the mass, times the diameter 3.00 times the "
        "error, its bound 9.00 times."
    )
    assert "0.600 at 1 (condition 20.0, ratio 40.0) and 0.200 at 3 (condition 2000" in said[4]
    assert "1.60 of the output at 1 and 0.533 of the output at 3 times" in said[5]
    assert said[6].startswith("A bound takes 1.50 to 3.50 times its call, and 0.400 to 1.40 times")
    assert "in less time than the bound of Soft: a" in said[6]
    slow = findings(table().assign(time_over_exact=1.5))[6]
    assert "in less time than any of these bounds: a" in slow
    assert scope(table()).startswith("Methods: TopK, Local and Soft. Heads: a, b and c.")


def test_where_bounds_say_nothing_on_all_heads_or_none():
    every = findings(table().assign(bound_over_output=2.0))[2]
    assert "says nothing, on all heads for TopK, Local and Soft." in every
    assert "No bound is as large" in findings(table().assign(bound_over_output=0.5))[2]


def test_headlines_count_the_cases_in_which_a_certificate_says_something():
    named = table().replace({"method": {"TopK": "Quantized int8"}})
    useful, rounded = headlines(named)
    assert useful["value"] == "4 of 6"
    assert "(2 methods on 3 heads)" in useful["text"]
    assert "quarter" not in useful["text"]
    assert rounded["value"] == "0.0400"
    assert rounded["text"].startswith("The certificate of Quantized int8 is {} of the output")


def test_a_broken_bound_is_told_first():
    assert findings(table().assign(below=1))[0].startswith("24 rows err by more than their bound")


def test_the_table_has_a_row_a_method():
    (found,) = tables(table())
    assert [row[0] for row in found["rows"]] == ["TopK", "Local", "Soft"]
    assert found["rows"][1] == [
        "Local", "0.23", ["9.00", "4.50 to 22.5"], ["2.25", "to 67.5"], "0.070", "0.36", "2.5",
        "0.90",
    ]  # fmt: skip
    assert [row[-1] for row in found["rows"]] == ["0.40", "0.90", "1.4"]
    assert len(found["rows"][0]) == len(found["header"])


def test_what_lies_on_a_border_belongs_to_one_side():
    assert "error for TopK, Local and Soft, and more for none." in re.sub(
        r" \(3\.00\)", "", findings(table().assign(ratio=3.0))[1]
    )
    silent = table().assign(bound_over_output=1.0)
    assert "says nothing, on all heads for TopK, Local and Soft." in findings(silent)[2]
    assert next(iter(headlines(silent)))["value"] == "0 of 6"
    assert "than any of these bounds: a" in findings(table().assign(time_over_exact=1.0))[6]


def test_smaller_shares_and_bandwidths_are_not_taken_for_those_of_the_sentences():
    whole = table()
    less = whole[whole["share"] == 0.25].assign(share=0.125, ratio=1e6, bound_over_output=7.0)
    narrow = whole[whole["stretch"] == 3.0].assign(stretch=0.3, ratio=1e6, bound_over_output=7.0)
    more = pd.concat([whole, less], ignore_index=True)
    assert findings(more)[1:] == findings(whole)[1:]
    more = pd.concat([more, narrow], ignore_index=True)
    assert [findings(more)[i] for i in (1, 2, 3, 6)] == [findings(whole)[i] for i in (1, 2, 3, 6)]
    for say in (tables, headlines):
        assert list(say(more)) == list(say(whole))


def test_nothing_is_said_of_nothing():
    empty = table()[:0]
    assert findings(empty) == []
    assert scope(empty) == ""
    assert list(tables(empty)) == []
    assert list(headlines(empty)) == []
    assert list(headlines(table().query("method == 'TopK'"))) == []  # it saves no work


def test_a_case_is_within_its_share_and_its_bound_holds():
    head = Recorded("minilm.layer0.head0")
    row = measure(head, 0, "Local", 0.25, 1.0, torch.float32, torch.device("cpu"))
    assert row["below"] == 0
    assert row["ratio"] > 1
    assert 0.2 < row["work"] <= 0.25
    assert 1 < row["known_ratio"] < row["ratio"]
    assert 0 < row["left_out"] < 1
    assert row["unknown"] is row["condition"] is None


def test_landmarks_leave_less_of_a_wider_kernel():
    narrow, wide = (
        measure(
            Tied(Recorded("minilm.layer0.head0")), 0, "Soft", 0.25, stretch, torch.float32,
            torch.device("cpu"),
        )
        for stretch in (1.0, 10.0)
    )  # fmt: skip
    assert 1 > narrow["unknown"] > 10 * wide["unknown"] > 0
    assert 1 < narrow["condition"] < wide["condition"]


def test_every_method_has_cases():
    kept = [
        (x, m, s, t)
        for x in STUDY.axes["input"]
        for m in METHODS
        for s in STUDY.axes["share"]
        for t in STUDY.axes["stretch"]
        if keep(x, m, s, t)
    ]
    assert {m for _, m, *_ in kept} == set(METHODS)
    assert all(isinstance(x, Tied) == m.startswith("Soft") for x, m, *_ in kept)
    assert affordable.__doc__
