"""What a comparison says, on a small table where mean, median and maximum differ."""

import numpy as np
import pandas as pd
import pytest

from softlab.cli.compare import _without_answer
from softlab.report.compare import chapter

ERRORS = {  # by head, the errors of three samples
    "mine": {"a": (0.1, 0.2, 0.9), "b": (0.3, 0.5, 0.6), "c": (0.7, 0.8, 2.0)},
    "theirs": {"a": (0.2, 0.4, 0.5), "b": (0.1, 0.2, 0.3), "c": (0.9, 1.0, 1.1)},
}
SHARES = {"mine": 0.5, "theirs": 0.25}


def table(errors=ERRORS):
    rows = [
        {
            "status": "ok", "method": method, "kind": "method", "target": "softmax",
            "source": head, "sample": sample, "budget": 0.25, "asked": True, "fits": True,
            "share": SHARES.get(method), "output_error": error, "uniform_error": 1.0,
            "skill": 1 - error, "laws_held": 24.0 if method == "mine" else None,
            "laws_broken": "causal; seeds" if method == "mine" else None, "own": method != "mine",
            "op": method, "n": 64.0, "time": 0.5, "time_q1": 0.49, "time_q3": 0.52,
            "memory": 0.75, "case_cpu_share": 0.5, "error": None,
        }
        for method, heads in errors.items()
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
    rows = table()
    fewer = rows[~((rows["method"] == "theirs") & (rows["source"] == "c"))]
    assert "mine errs less than theirs on 1 of 2 heads." in " ".join(chapter.findings(fewer))


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
    rows = rows.assign(status="failed", output_error=float("nan"), laws_broken=None)
    assert chapter.findings(rows)[0].startswith("mine failed on 9 samples;")
    assert list(chapter.headlines(rows)) == []
    for none in (rows[:0], pd.DataFrame({"status": ["failed"]})):
        assert (chapter.scope(none), chapter.findings(none)) == ("", [])


def test_a_method_that_is_too_dear_for_the_budget_is_told_from_one_that_failed():
    rows = table()
    mine = rows["method"] == "mine"
    none = rows.assign(output_error=rows["output_error"].mask(mine), share=rows["share"].mask(mine))
    dear, lost = none.assign(fits=~mine), none.assign(status=np.where(mine, "failed", "ok"))
    dear, lost = dear.assign(laws_broken=None), lost.assign(laws_broken=None)
    ways = (dear, "none fits", "", []), (lost, "failed", "not counted", ["mine"])
    for rows, word, work, strict in ways:
        (cells,) = (x for x in chapter.cells(rows) if x[0].startswith("mine"))
        assert (cells[1], cells[3]) == (word, work)
        methods = chapter.summary(rows)
        assert _without_answer(methods, named=True) == ["mine"]
        assert _without_answer(methods, named=False) == strict  # of the whole catalogue


def varied():
    """Costs differ by head and sample; those of the longest head are told, at their medians."""
    rows = table()
    last = rows["source"] == "c"
    rows["n"] = rows["n"].where(~last, 128.0)
    for column, values in (("share", (1, 2, 7)), ("memory", (0.8, 1, 3)), ("time", (1, 1, 1.8))):
        rows[column] *= rows["sample"].map(dict(enumerate(values))).where(last, 9.0)
    rows["case_cpu_share"] = 0.9 - 0.2 * (rows["sample"] == 2)
    control = rows[rows["method"] == "theirs"].assign(
        method="uniform average", kind="control", output_error=0.05, share=0.0, time=float("nan")
    )
    return pd.concat(
        [control, rows.assign(time_q1=0.98 * rows["time"], time_q3=1.02 * rows["time"])]
    )


def test_the_table_has_the_least_error_first_and_controls_last():
    """At the longest head shares of 0.25, 0.5 and 1.75; times of 0.5, which two share, and 0.9."""
    best, other, control = chapter.cells(varied())
    assert best == [
        "theirs", "0.400 (0.20 to 1.0)", "0.60", "0.50", "0.70 (0.69 to 0.71, busy)", "0.75",
        "held by tests",
    ]  # fmt: skip
    assert other == [
        "mine", "0.500 (0.20 to 0.80)", "0.50", "1.0", "0.70 (0.69 to 0.71, busy)", "0.75",
        "causal, seeds",
    ]  # fmt: skip
    assert control == ["uniform average", "0.0500", "0.60", "0", "", "0.75", ""]
    first, each = chapter.tables(varied())
    assert (first["header"], first["rows"]) == (
        ["method", "error", "skill", "work", "time", "memory", "laws broken"],
        [best, other, control],
    )
    assert each["rows"] == [
        ["a", "softmax", "uniform average", "0.0500"], ["", "", "mine (least)", "0.200"],
        ["", "", "theirs", "0.400"], ["b", "softmax", "uniform average", "0.0500"],
        ["", "", "mine", "0.500"], ["", "", "theirs (least)", "0.200"],
        ["c", "softmax", "uniform average", "0.0500"], ["", "", "mine (least)", "0.800"],
        ["", "", "theirs", "1.00"],
    ]  # fmt: skip
    assert (first["left"], each["left"]) == (1, 3)
    assert each["header"] == ["head", "target", "method", "error"]
    head, *body = chapter.lines(varied()).split("\n")
    assert [line.index("theirs" if i == 0 else "mine") for i, line in enumerate(body[:2])] == [0, 0]
    assert {line.index("0.", 7) for line in body} == {head.index("error")}
    quiet = varied().assign(case_cpu_share=0.8, laws_broken="none", laws_held=24.0, fits=True)
    assert next(row[-3] for row in chapter.cells(quiet)) == "0.70 (0.69 to 0.71)"
    assert [row[-1] for row in chapter.cells(quiet)] == ["none of 24", "none of 24", ""]
    wide = varied().assign(time_q3=2.0 * varied()["time"])
    assert [row[4] for row in chapter.cells(wide)] == ["noisy", "noisy", ""]
    bare = varied().assign(laws_broken=None, own=False, share=None, memory=None)
    assert next(row[3:] for row in chapter.cells(bare)) == [
        "not counted", "0.70 (0.69 to 0.71, busy)", "", "not asked",
    ]  # fmt: skip


def test_rows_that_nobody_asked_for_are_in_no_number():
    """They are of a figure's lines: settings at other budgets."""
    more = pd.concat([varied(), table().assign(asked=False, output_error=1e-3, n=32.0)])
    for say in (chapter.cells, chapter.findings, chapter.headlines, chapter.tables):
        assert list(say(more)) == list(say(varied()))
    heads = [row[0] for row in list(chapter.tables(varied()[::-1]))[1]["rows"]]
    assert list(filter(None, heads)) == ["c", "b", "a"]


def test_what_failed_is_told_with_each_methods_own_first_reason():
    lost = table()
    lost["error"] = lost["method"] + lost["sample"].astype(str)
    lost = lost.assign(status="failed", output_error=float("nan"), laws_broken=None)
    (said,) = chapter.findings(lost)
    assert said == (
        "mine failed on 9 samples; the first: mine0. theirs failed on 9 samples; the first: "
        "theirs0."
    )
    assert len(chapter.drawn(table())) == 18
    assert len(chapter.drawn(table().assign(fits=lambda t: t["sample"] != 1))) == 12


def test_what_is_said_of_the_best_and_what_stands_below_the_table():
    first, *_ = chapter.findings(varied())
    assert first == (
        "Of 2 methods theirs errs least against softmax attention: its relative output error is "
        "0.400 in the median over 3 heads (range over 3 heads: 0.200 to 1.00), at 0.50 of the "
        "work. Head by head mine errs less than theirs on 2 of 3 heads."
    )
    (alone,) = chapter.findings(table({"mine": ERRORS["mine"]}).assign(laws_broken=None))
    assert alone.startswith("mine errs against softmax attention: its")
    assert alone.endswith("(range over 3 heads: 0.200 to 0.800), at 0.50 of the work.")
    (least,) = chapter.headlines(varied())
    assert (least["value"], least["interval"]) == ("0.400", "range over 3 heads: 0.200 to 1.00")
    assert least["text"].startswith("Of the methods compared theirs misses softmax attention least")
    assert chapter.about(varied()) == (
        "Error: relative, the median over 3 heads (each the median over 3 samples), in brackets "
        "the range (too few heads for an interval). All zeros have error 1. Skill: 1 is exact, 0 "
        "is no better than the mean of the values. Work, time, memory: times those of exact "
        "attention at n = 128; of time the quartiles. Busy: the machine did other work while this "
        "was timed, so do not compare it."
    )
    for count, words in ((5, "too few"), (6, "in brackets the 95 % interval.")):
        heads = table({"mine": {f"h{i}": (0.1, 0.2, 0.9) for i in range(count)}})
        assert words in chapter.about(heads.assign(case_cpu_share=0.8, n=None))
        assert "Busy" not in chapter.about(heads.assign(case_cpu_share=0.8))
    part = varied()[1:]  # a head has fewer samples, and the length of a row is not known
    part.loc[part["source"] == "b", "n"] = None
    assert "each the median over 3 samples" in chapter.about(part)
    assert "attention at n = 128; of time" in chapter.about(part)
    both = pd.concat([table(), table().assign(target="Gaussian")])
    assert "against different targets are not comparable. Busy" in chapter.about(both)
    assert [row[0] for row in chapter.cells(both)] == [
        f"{name} ({target})" for target in ("softmax", "Gaussian") for name in ("theirs", "mine")
    ]  # fmt: skip
    other = table({"other": ERRORS["theirs"]}).assign(target="Gaussian")
    first, second, *_ = chapter.findings(pd.concat([other, table()]))
    assert first.startswith("other errs against Gaussian attention")
    assert second.startswith("Of 2 methods theirs errs least against softmax")
    said = [x["text"].split(" misses ") for x in chapter.headlines(pd.concat([other, table()]))]
    assert [x[0].split()[-1] + " " + x[1].split()[0] for x in said] == [
        "other Gaussian", "theirs softmax",
    ]  # fmt: skip
    assert chapter.scope(varied()) == "Methods: mine; theirs. Heads: a; b; c."


def test_trivial_and_unplaced_methods_are_named_and_a_figure_has_twelve_heads_and_eight_lines():
    rows = table()
    mine = rows["method"] == "mine"
    said = " ".join(chapter.findings(rows.assign(skill=0.0)))
    assert "theirs and mine are no better than a trivial answer in the median" in said
    said = " ".join(chapter.findings(rows.assign(skill=rows["skill"].where(~mine, -1.0))))
    assert " mine is no better than a trivial" in said
    assert "trivial" not in " ".join(chapter.findings(rows.assign(skill=0.01)))
    bare = rows.assign(share=rows["share"].where(~mine))
    assert "No work is counted of mine, so" in " ".join(chapter.findings(bare))
    unfit = rows.assign(fits=~(mine & (rows["sample"] == 1)))
    assert "No setting of mine fits into the budget on 3 samples." in " ".join(
        chapter.findings(unfit)
    )
    for heads, methods in ((13, 1), (12, 1), (1, 8), (1, 9)):
        many = {f"m{i}": {f"h{j}": (i + 1.0,) for j in range(heads)} for i in range(methods)}
        made = table(many)
        control = made[made["method"] == "m0"].assign(method=chapter.CONTROLS[0], kind="control")
        made = pd.concat([made, control])
        said = " ".join(chapter.findings(made))
        assert ("The figure shows 12 of 13 heads; the table is of all." in said) == (heads == 13)
        assert ("The figure shows 8 of 9 methods, and not m8." in said) == (methods == 9)
        shown = chapter.drawn(made)
        assert shown["source"].nunique() == min(heads, 12)
        assert shown["method"].nunique() == min(methods, 8)
    control = made[made["method"] == "m8"].assign(kind="control")
    made = made[made["kind"] == "method"]
    for name, kept in zip(chapter.CONTROLS, (False, True, True), strict=True):
        more = chapter.drawn(pd.concat([made, control.assign(method=name)]))
        assert (name in set(more["method"])) == kept
