"""Every number of the chapter of certificates, and a case of its study."""

import pandas as pd
import torch

from softlab.inputs import Recorded, Tied
from studies.certificates.chapter import findings, scope, tables
from studies.certificates.study import METHODS, STUDY, affordable, keep, measure

SOURCES = ("a", "b", "c")


def table():
    rows = []
    for j, method in enumerate(("TopK", "Local", "Soft")):
        for i, source in enumerate(SOURCES):
            for stretch in (1.0, 3.0) if method == "Soft" else (1.0,):
                for share in (0.25, 0.5):
                    ratio = (1.0, 9.0, 40.0)[j] * (i + 1) / share / 8 / stretch
                    rows.append({
                        "status": "ok", "method": method, "source": source, "stretch": stretch,
                        "setting": "tied Gaussian" if method == "Soft" else "plain",
                        "share": share, "work": share * 0.9, "ratio": ratio,
                        "ratio_low": ratio / 2, "ratio_high": ratio * 3, "below": 0,
                        "bound_over_output": 0.04 * ratio, "error_over_output": 0.05 + i / 100,
                        "time_ratio": 1.5 + j,
                    })  # fmt: skip
    made = pd.DataFrame(rows)
    return pd.concat([made, made.assign(status="failed", ratio=1e9)], ignore_index=True)


def test_what_is_found():
    said = findings(table())
    assert said[0] == "No row of 24 cases errs by more than its bound."
    assert "at most 3 times its error for TopK (1.0), and more for Local (9.0) and Soft (40)" in (
        said[1].replace("1.00", "1.0").replace("9.00", "9.0").replace("40.0", "40")
    )
    assert "A call of TopK costs what the exact answer does." in said[1]
    assert "for Soft on 2 of 3 heads" in said[2]
    assert "at 1 and " in said[3]
    assert said[4].startswith("A bound takes 1.5")
    assert scope(table()).startswith("Methods: TopK, Local and Soft. Heads: a, b and c.")


def test_a_broken_bound_is_told_first():
    assert findings(table().assign(below=1))[0].startswith("24 rows err by more than their bound")


def test_the_table_has_a_row_a_method():
    (found,) = tables(table())
    assert [row[0] for row in found["rows"]] == ["TopK", "Local", "Soft"]
    assert found["rows"][1][2][0] == "9.00"
    assert len(found["rows"][0]) == len(found["header"])


def test_nothing_is_said_of_nothing():
    empty = table()[:0]
    assert findings(empty) == []
    assert scope(empty) == ""
    assert list(tables(empty)) == []


def test_a_case_is_within_its_share_and_its_bound_holds():
    head = Recorded("minilm.layer0.head0")
    row = measure(head, 0, "Local", 0.25, 1.0, torch.float32, torch.device("cpu"))
    assert row["below"] == 0
    assert row["ratio"] > 1
    assert 0.2 < row["work"] <= 0.25


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
