"""Every count of the chapter on published packages, on a table small enough to count by hand."""

import pandas as pd

from studies.peers.chapter import LONG, findings, scope, tables

ROWS = [  # package, version, layer, law, claimed, verdict
    ("torch", "2.9", "Linear", "causal", True, "fails"),
    ("torch", "2.9", "Linear", "mask", True, "holds"),
    ("torch", "2.9", "Linear", "rank", False, "fails"),
    ("torch", "2.9", "Linear", "batch", True, "fails"),
    ("torch", "2.9", "Linear", "order", True, "does not apply"),
    ("old", "0.1", "Linear", "causal", True, "fails"),  # another package's layer of that name
    ("old", "0.1", "Linear", "mask", False, "holds"),
    ("old", "0.2", "Linear", "causal", False, "fails"),
    ("old", "0.2", "Good", "causal", True, "holds"),
    ("old", "0.2", "Good", "mask", True, "holds"),
]
LAYER = ["package", "version", "layer"]


def made(rows=ROWS):
    found = pd.DataFrame(rows, columns=[*LAYER, "law", "claimed", "verdict"])
    found = found.assign(status="ok", detail=None, counterexample="q = 1")
    failed = found.iloc[:1].assign(status="failed", layer="Lost")
    return pd.concat([found, failed], ignore_index=True)


def test_layers_of_one_name_in_two_packages_are_two():
    assert scope(made()) == "Packages: torch 2.9, old 0.1 and old 0.2; 4 layers."
    assert findings(made()) == [
        "Of 4 layers 2 break a law that they claim, most often causal (2).",
        "torch 2.9, Linear, keeps 1 of 4 laws; breaks of what it claims: causal and batch; and of "
        "what it never claimed: rank.",
        "old 0.1, Linear, keeps 1 of 2 laws; breaks of what it claims: causal.",
        "old 0.2, Linear, keeps 0 of 1 laws; breaks none that it claims; and of what it never "
        "claimed: causal.",
        "old 0.2, Good, keeps 2 of 2 laws; breaks none that it claims.",
    ]
    assert findings(made(ROWS[7:]))[0] == "Of 2 layers none breaks a law that it claims."
    assert findings(made([ROWS[0], ROWS[3]]))[0].endswith("most often causal (1) and batch (1).")


def test_the_table_shows_what_breaks_and_cuts_long_counterexamples():
    whole = made()
    whole.loc[0, "counterexample"] = "x" * (LONG + 1)
    whole.loc[2, "counterexample"] = None
    whole.loc[3, ["detail", "counterexample"]] = ["by 3", "y" * LONG]
    (table,) = tables(whole)
    assert table["rows"] == [
        [["Linear", "torch 2.9"], ["causal", "claimed"], ["", "x" * 110 + " ..."]],
        ["", ["batch", "claimed"], ["by 3", "y" * 110]],
        ["", ["rank", "never claimed"], ["", ""]],
        [["Linear", "old 0.1"], ["causal", "claimed"], ["", "q = 1"]],
        [["Linear", "old 0.2"], ["causal", "never claimed"], ["", "q = 1"]],
    ]
    assert (table["header"], table["left"]) == (["layer", "law", "counterexample"], 2)
    assert list(tables(made(ROWS[8:]))) == []
    failed = made().assign(status="failed")
    assert (scope(failed), findings(failed), list(tables(failed))) == ("", [], [])
