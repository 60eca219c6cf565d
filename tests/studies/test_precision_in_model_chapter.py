"""Every number of the chapter on low precision in models, on a table counted by hand."""

import pandas as pd

from studies.precision_in_model.chapter import findings, scope, tables

ROWS = [  # model, op, precision, change against the model, change against float32
    ("two", "B(1)", "int8", 0.2, 0.03), ("two", "B(1)", "bfloat16", 7.0, 0.5),
    ("two", "C(3)", "bfloat16", float("inf"), None), ("two", "C(3)", "int8", 8.0, 0.2),
    ("one", "B(1)", "float32", 0.2, 0.0), ("one", "B(1)", "bfloat16", 0.25, 0.1),
    ("one", "B(1)", "int8", 0.9, 0.11), ("one", "A(2)", "float32", 0.3, 0.0),
    ("one", "A(2)", "bfloat16", 0.31, 0.004),
]  # fmt: skip


def made():
    names = ["model", "op", "precision", "change", "rounding_change"]
    found = pd.DataFrame(ROWS, columns=names).assign(status="ok", float32_change=0.2)
    found["method"] = found["op"].str[0]
    lost = found.iloc[[5]].assign(status="failed", rounding_change=99.0)
    return pd.concat([found, lost], ignore_index=True)


def test_what_breaks_is_named_and_the_others_have_a_range():
    """Of bfloat16 0.1 and 0.004 hold, 0.1 being at the threshold; of int8 0.03 alone."""
    assert findings(made()) == [
        "int8: rounding alone moves the output by more than 0.1 for C in two (0.200) and B in one "
        "(0.110). The other 1 pairs move it by 0.0300.",
        "bfloat16: rounding alone moves the output by more than 0.1 for B in two (0.500) and C in "
        "two (refused). The other 2 pairs move it by 0.00400 to 0.100.",
    ]
    assert "∞" not in findings(made().assign(rounding_change=float("inf")))[0]  # refused
    fine = made().query("op == 'A(2)'")
    assert findings(fine) == [
        "bfloat16: rounding alone moves the output by more than 0.1 for none. The other 1 pairs "
        "move it by 0.00400."
    ]
    (bad,) = findings(made().query("op == 'C(3)' and precision == 'int8'"))
    assert bad.endswith("for C in two (0.200).")


def test_the_table_has_both_changes_in_each_format():
    (table,) = tables(made())
    assert table["header"] == ["model", "operator", "int8", "bfloat16", "float32"]
    assert table["rows"] == [
        ["two", "B(1)", ["0.200", "0.030"], ["7.00", "0.50"], ""],
        ["", "C(3)", ["8.00", "0.20"], "refused", ""],
        ["one", "B(1)", ["0.900", "0.11"], ["0.250", "0.10"], "0.200"],
        ["", "A(2)", "", ["0.310", "0.0040"], "0.300"],
    ]
    assert table["left"] == 2


def test_the_scope_and_what_failed():
    assert scope(made()) == (
        "Models: two and one. Operators: B(1), C(3) and A(2). Formats: int8, bfloat16 and float32."
    )
    assert scope(made().assign(status="failed")[["model", "op", "status"]]) == ""
    failed = made().assign(status="failed")
    assert findings(failed) == list(tables(failed)) == []
