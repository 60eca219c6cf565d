"""What a comparison says, on a small table where mean, median and maximum differ."""

import pandas as pd
import pytest

from softlab.report.compare import chapter

ERRORS = {  # by head, the errors of three samples
    "mine": {"a": (0.1, 0.2, 0.9), "b": (0.3, 0.5, 0.6), "c": (0.7, 0.8, 2.0)},
    "theirs": {"a": (0.2, 0.4, 0.5), "b": (0.1, 0.2, 0.3), "c": (0.9, 1.0, 1.1)},
}
SHARES = {"mine": 0.5, "theirs": 0.25}


def table():
    rows = [
        {
            "status": "ok", "method": method, "kind": "method", "target": "softmax",
            "source": head, "sample": sample, "budget": 0.25, "asked": True, "fits": True,
            "share": SHARES[method], "output_error": error, "uniform_error": 1.0,
            "skill": 1 - error, "laws_held": 24.0 if method == "mine" else None,
            "laws_broken": "causal; seeds" if method == "mine" else None, "own": method != "mine",
            "op": method, "n": 64.0, "time": 0.5, "time_q1": 0.49, "time_q3": 0.52,
            "memory": 0.75, "case_cpu_share": 0.5, "error": None,
        }
        for method, heads in ERRORS.items()
        for head, errors in heads.items()
        for sample, error in enumerate(errors)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_errors_are_medians_over_heads_of_medians_over_samples():
    first, second = chapter.summary(table())
    assert [first["method"], second["method"]] == ["theirs", "mine"]
    assert first["error"].value == pytest.approx(0.4)  # of 0.4, 0.2, 1.0
    assert second["error"].value == pytest.approx(0.5)  # of 0.2, 0.5, 0.8
    assert second["skill"].value == pytest.approx(0.5)
    assert (second["share"], first["share"]) == (0.5, 0.25)


def test_the_first_method_is_compared_head_by_head_and_broken_laws_are_named():
    said = " ".join(chapter.findings(table()))
    assert "Of 2 methods theirs errs least against softmax attention" in said
    assert "Head by head mine errs less than theirs on 2 of 3 heads." in said
    assert "mine breaks 2 laws: causal and seeds." in said


def test_a_failed_sample_is_counted_and_the_first_reason_given():
    rows = table()
    lost = (rows["method"] == "mine") & (rows["source"] == "b") & (rows["sample"] < 2)
    rows.loc[lost, ["status", "error"]] = ["failed", "ValueError: no"]
    rows.loc[lost, "output_error"] = float("nan")
    found = {row["method"]: row for row in chapter.summary(rows)}["mine"]
    assert found["failed"] == 2
    assert found["error"].value == pytest.approx(0.6)  # of 0.2, 0.6, 0.8
    assert "mine failed on 2 samples; the first: ValueError: no." in " ".join(
        chapter.findings(rows)
    )
