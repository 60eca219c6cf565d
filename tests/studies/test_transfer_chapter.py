"""Every number of the chapter on higher resolutions, against Student's t from a table."""

import math

import pandas as pd
from students import cell, points

from studies.transfer.chapter import findings, headlines, scope, tables

LOST = {  # accuracy lost by seed at 48 pixels
    "Soft, none": (0.30, 0.32, 0.35), "Softmax": (0.08, 0.10, 0.15),
    "Soft, symmetric": (0.10, 0.11, 0.16), "Softmax, whole images": (0.20, 0.28, 0.26),
}  # fmt: skip
GROWTH = {"Soft, none": (8.0, 9.0, 12.0), "Softmax": (1.0, 1.1, 1.3),
          "Soft, symmetric": (2.0, 2.2, 2.9), "Softmax, whole images": (0.9, 1.0, 1.2)}  # fmt: skip
START = (0.80, 0.81, 0.85)


def made(lost=LOST, growth=GROWTH):
    """At 24 pixels a tenth of what is lost at 48, and a growth of 7 in all; one row failed."""
    rows = [
        {"status": "ok", "method": method, "seed": seed, "side": side,
         "accuracy": START[seed] - part * lost[method][seed], "drop": part * lost[method][seed],
         "growth": {16: 1.0, 24: 7.0, 48: growth.get(method, (1.0, 1.5, 3.0))[seed]}[side]}
        for method in lost
        for side, part in ((48, 1.0), (16, 0.0), (24, 0.1))
        for seed in range(3)
    ]  # fmt: skip
    return pd.DataFrame([*rows, {**rows[0], "status": "failed", "drop": 9.0, "side": 96}])


def powers(method, verdicts):
    """log growth over log tokens: tokens grow by 9 from 16 to 48 pixels."""
    found = [math.log(x) / math.log(9) / 100 for x in GROWTH[method]]
    value, (low, high) = (
        cell(found, verdicts, "{}")[0],
        cell(found, verdicts, "{}")[1].split(" to "),
    )
    return [float(x) for x in (value, low, high)]


def test_growth_drops_and_verdict_hold_together():
    grows, drops, verdict = findings(made())
    one, two, three, four = (
        f"{m} {{:#.3g}} ({{:#.3g}} to {{:#.3g}})".format(*powers(m, 4)) for m in GROWTH
    )
    assert grows == (
        "From 16 to 48 pixels the attention's output grows with the number of tokens to the powers,"
        " in brackets intervals that hold together in 95 % of studies: "
        f"{one}, {two}, {three} and {four}."
    )
    assert drops == (
        "At 3 times the resolution of the training this much accuracy is lost: "
        f"Softmax {points(LOST['Softmax'], verdicts=4)}, "
        f"Soft, symmetric {points(LOST['Soft, symmetric'], verdicts=4)}, "
        f"Softmax, whole images {points(LOST['Softmax, whole images'], verdicts=4)} and "
        f"Soft, none {points(LOST['Soft, none'], verdicts=4)}."
    )
    saved = points(LOST["Soft, none"], LOST["Soft, symmetric"], 1)
    assert verdict == (
        f"Soft, none loses {saved} more than Soft, symmetric: normalisation keeps what is lost "
        "without it. Softmax attention, which nothing of this concerns, loses "
        f"{points(LOST['Softmax'], verdicts=4)} itself, and "
        f"{points(LOST['Softmax, whole images'], verdicts=4)} where it learnt from whole images "
        "alone: so much comes with the size of the things in pixels."
    )


def test_two_forms_are_two_verdicts():
    """Gaps of 1, 2 and 2.1 points are told apart alone (t = 4.9 of 4.3) and not as one of two."""
    near = {"Soft, none": (0.11, 0.13, 0.181), "Soft, symmetric": LOST["Soft, symmetric"]}
    (*_, alone) = findings(made(near))
    assert alone == (
        f"Soft, none loses {points(near['Soft, none'], near['Soft, symmetric'], 1)} more than "
        "Soft, symmetric: normalisation keeps what is lost without it."
    )
    both = near | {"Soft, none, m grows": (0.05, 0.06, 0.07),
                   "Soft, symmetric, m grows": (0.15, 0.165, 0.172)}  # fmt: skip
    (*_, two) = findings(made(both))
    assert "Soft, symmetric: these seeds do not tell the two apart. Soft, none, m grows" in two
    assert two.endswith("Soft, symmetric, m grows: normalisation loses more.")
    control = {"Softmax": LOST["Softmax"]}
    assert findings(made(near | control))[2].endswith("itself: so much comes with the size of the "
                                                      "things in pixels.")  # fmt: skip
    assert findings(made(control))[2] == ""


def test_the_headline_counts_the_seeds_that_both_have():
    whole = made()
    gone = (whole["method"] == "Soft, symmetric") & (whole["seed"] == 2)
    (line,) = headlines(whole[~gone])
    half = 12.7062 * 0.5  # differences of 20 and 21 points, one degree of freedom
    assert line == {
        "text": "In a small pyramid on one data set, at 3 times the resolution of its training, "
        "SOFT without normalisation loses {} percentage points of accuracy more than with the "
        "symmetric one.",
        "value": "+20.5",
        "interval": f"95 % {20.5 - half:+.1f} to {20.5 + half:+.1f}; seeds: 2",
    }
    assert list(headlines(whole[whole["side"] == 48])) == []
    few = whole[whole["method"].str.startswith("Soft,") & (whole["side"] != 24)]
    assert len(list(headlines(few))) == 1
    assert len(findings(few)) == 3
    assert list(headlines(whole[whole["method"] != "Soft, none"])) == []


def test_the_table_has_a_column_a_side():
    whole = made()
    fresh = {"method": "New", "side": 48, "seed": 0, "status": "ok", "accuracy": 0.5, "drop": 0.1,
             "growth": 2.0}  # fmt: skip
    (table,) = tables(pd.concat([whole, pd.DataFrame([fresh])]))  # never seen at 16 pixels
    assert table["header"] == ["attention", "at 16", "lost at 24", "lost at 48", "growth, 24",
                               "growth, 48"]  # fmt: skip
    assert table["rows"] == [
        [method, cell(START, 5), cell([x / 10 for x in LOST[method]], 5, "{:+.1f}"),
         cell(LOST[method], 5, "{:+.1f}"), "7.00", f"{sum(GROWTH[method]) / 3:#.3g}"]
        for method in LOST
    ]  # fmt: skip
    assert table["caption"].startswith("Accuracy at 16 pixels")
    assert table["left"] == 1


def test_the_scope_and_what_failed():
    assert scope(made()) == (
        "Attention: Soft, none; Softmax; Soft, symmetric; Softmax, whole images. Sides: 16, 24 and "
        "48 pixels; seeds: 3."
    )
    failed = made().assign(status="failed")
    assert (scope(failed), findings(failed), list(tables(failed))) == ("", [], [])
    assert findings(made().query("side == 16")) == []
