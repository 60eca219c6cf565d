"""The chapter of the docket, on a made-up table."""

import json
from dataclasses import FrozenInstanceError

import pandas as pd
import pytest
from test_report import META, write

from softlab.report.claims import Tried, _figure, _lost, gathered, tried
from softlab.report.docket import chapter
from softlab.verdicts import BLIND, FAILS, HOLDS, OPEN, Found, Place, Verdict

WORDS = {
    "who": "Somebody 2020", "place": "Table 1", "states": "It errs little.", "published": "0.5",
    "setting": "a large model", "lacking": "the model", "measured": "relative error",
    "subject": "ours", "across": "rank", "xlabel": "", "xscale": "log", "unstated": [],
    "axes": ["rank", "seed"], "controls": {"mean": "null", "best": "optimal"}, "quick": False,
    "unfinished": [],
}  # fmt: skip
RULE = {"at_least": None, "at_most": 0.5, "of": "", "where": {}, "scale": "log", "span": None}


def claim(name, challenge=False):
    again = {"about": "another input", "rule": RULE, "axes": ["rank", "seed"]}
    more = {"name": name, "title": f"Claim {name}", "rule": RULE}
    return WORDS | more | {"challenge": again if challenge else None}


def rows(name, error, way="first"):
    for case, (rank, seed) in enumerate((r, s) for r in (8, 32) for s in (0, 1)):
        for contender, value in (
            ("ours", error + seed / 100 + rank / 1e4),
            ("mean", 0.9),
            ("best", 0.01),
        ):
            yield {
                "claim": name, "way": way, "case": case, "place": json.dumps({"rank": str(rank)}),
                "unstated": "none", "panel": " ", "decides": True, "seed": seed, "x": float(rank),
                "status": "ok", "error": None, "case_seconds": 0.1, "contender": contender,
                "role": "", "value": value,
            }  # fmt: skip


def table():
    made = pd.DataFrame([*rows("good", 0.1), *rows("bad", 0.8), *rows("bad", 0.85, "again")])
    made.attrs["claims"] = [claim("good"), claim("bad", challenge=True)]
    return made


def test_one_line_a_claim_with_its_verdict():
    said = chapter.findings(table())
    assert said[0] == "Of 2 claims: 1 holds and 1 does not hold."
    assert said[1].startswith("Claim good (Somebody 2020, Table 1): holds. The claim: It errs ")
    assert "Theirs: 0.5. Ours, relative error, of ours: 0.107 (range over 2 places" in said[1]
    assert "Controls: mean (null) 0.900; best (optimal) 0.0100." in said[1]
    assert "Confirmed by another input: does not hold." in said[2]
    (only,) = chapter.tables(table())
    assert [row[0][0] for row in only["rows"]] == ["Claim good", "Claim bad"]
    assert only["left"] == len(only["header"]) == 5
    (first,) = chapter.headlines(table())
    assert (first["value"], first["text"].count("{}")) == ("1", 1)


def test_a_challenge_that_finds_otherwise_does_not_confirm():
    made = table()
    again = (made["way"] == "again") & (made["contender"] == "ours")
    made.loc[again, "value"] = 0.1
    _, bad = tried(made)
    assert bad.confirmed is False
    assert "not confirmed by another input: holds" in bad.challenged


def test_on_the_same_places_a_challenge_confirms_what_it_does_not_contradict():
    def with_(first, again):
        made = table()
        for way, numbers in (("first", first), ("again", again)):
            for x, number in zip((8.0, 32.0), numbers, strict=True):
                rows = (made["claim"] == "bad") & (made["way"] == way) & (made["x"] == x)
                made.loc[rows & (made["contender"] == "ours"), "value"] = [number, number * 1.001]
        return tried(made)[1].confirmed

    assert with_((0.8, 0.8), (0.9, 0.9)) is True
    assert with_((0.1, 0.8), (0.2, 0.9)) is True
    assert with_((0.1, 0.8), (0.9, 0.1)) is False
    assert with_((0.8, 0.8), (0.9, 0.1)) is False
    assert with_((0.8, 0.49999), (0.9, 0.1)) is True  # the second is unsure at first
    assert with_((0.49999, 0.49999), (0.9, 0.9)) is None


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        ({"status": "failed", "error": "MissingError: no vectors (x.py:3)"}, "no vectors"),
        ({"value": None}, "ours has no number"),
    ],
)
def test_missing_data_are_said_in_place_of_a_verdict(spoil, says):
    made = table()
    made.loc[0, list(spoil)] = list(spoil.values())
    good, _ = tried(made)
    assert good.verdict.kind == "no verdict"
    assert says in good.verdict.words
    assert good.ours == "none"


def test_a_run_that_is_not_whole_has_no_verdict():
    made = table()
    made.attrs["claims"][0]["unfinished"] = ["3 of 4 cases are measured"]
    assert tried(made)[0].verdict.words == "no verdict: 3 of 4 cases are measured"


def test_a_control_far_from_all_else_is_told_of_and_not_drawn():
    def figure(best, scale="log"):
        made = [
            row | {"value": best if row["contender"] == "best" else row["value"]}
            for row in rows("one", 0.1)
        ]
        return _figure(claim("one") | {"rule": RULE | {"scale": scale}}, made)

    far, near = figure(1e-7), figure(1e-3)
    assert far["where"]["contender"] == ["ours", "mean"]
    assert far["caption"].endswith("Off the figure: best (median 1.00 × 10⁻⁷).")
    assert "contender" not in near["where"]
    assert "Off the figure" not in near["caption"]
    assert "contender" not in figure(1e-7, "linear")["where"]
    for best, drawn in ((1.1e-4, True), (1e-4, False), (880.0, True), (920.0, False)):
        assert ("contender" not in figure(best)["where"]) == drawn  # a thousandfold of the others


def test_runs_become_rows_one_a_case_and_contender(tmp_path):
    """Decided by rank 8 alone; what is not stated and what is across are no place."""
    rule = RULE | {"where": {"rank": 8}}
    told = claim("mine", challenge=True) | {
        "rule": rule, "unstated": ["n"], "axes": ["rank", "head", "n", "seed"],
    }  # fmt: skip
    runs = pd.DataFrame({
        "rank": [8, 32], "head": ["a", "b"], "n": [16, 16], "seed": [0, 1],
        "status": ["ok", "failed"], "error": [None, "E: no (x.py:3)"], "case_seconds": [1.5, 2.5],
        "case_load": 0.1, "ours": [0.1, None], "mean": [0.9, None], "rival": [0.2, None],
    })  # fmt: skip
    write(tmp_path, runs, "mine", complete=False, measured=2, cases=5, seeds=[1, 0], dirty=False)
    other = pd.DataFrame({"rank": [8], "seed": [3], "status": "ok", "ours": 0.3})
    write(tmp_path, other, "mine.again", quick=True, seeds=[3])
    (tmp_path / "mine/claim.json").write_text(json.dumps(told))
    rows, meta = gathered(tmp_path)
    first = {
        "claim": "mine", "way": "first", "case": 0, "place": '{"head": "a"}',
        "unstated": '{"n": "16"}', "panel": "head a", "decides": True, "seed": 0, "x": 8.0,
        "at_least": None, "at_most": 0.5, "status": "ok", "error": None, "case_seconds": 1.5,
    }  # fmt: skip
    assert rows[:3] == [
        first | {"contender": name, "role": role, "value": x}
        for name, role, x in (("ours", "subject", 0.1), ("mean", "null", 0.9),
                              ("rival", "other", 0.2))
    ]  # fmt: skip
    assert rows[3] == first | {
        "case": 1, "place": '{"head": "b"}', "panel": "head b", "decides": False, "seed": 1,
        "x": 32.0, "status": "failed", "error": "E: no (x.py:3)", "case_seconds": 2.5,
        "contender": "", "role": "", "value": None,
    }  # fmt: skip
    assert [(x["way"], x["place"], x["panel"], x["unstated"], x["decides"]) for x in rows[4:]] == [
        ("again", '{"rank": "8"}', " ", "none", True)
    ]
    assert [meta[x] for x in ("quick", "complete", "seeds", "cases", "measured", "failed")] == [
        True, False, [0, 1, 3], 3, 3, 1,
    ]  # fmt: skip
    assert (meta["axes"], meta["digest"], meta["commit"]) == ({"claim": 1}, "0101", META["commit"])
    (again,) = meta["claims"]
    assert (again["quick"], again["unfinished"]) == (True, ["2 of 5 cases are measured"])
    (figure,) = meta["figures"]
    assert figure["guides"] == {"at_most": "claimed, at most"}
    assert (figure["xlabel"], figure["xscale"], figure["yscale"]) == ("rank", "log", "log")
    assert figure["caption"] == (
        "Claim mine (Somebody 2020, Table 1). The claim asks ours for at most 0.5, at rank 8. "
        "Controls: mean (null); best (optimal). Medians and quartiles over the seeds."
    )
    write(tmp_path, runs, "no", dirty=False)
    (tmp_path / "no/claim.json").write_text(json.dumps(told | {"name": "no", "challenge": None}))
    meta = gathered(tmp_path)[1]  # a quick run makes the report a trial, and no other claim one
    assert ([x["quick"] for x in meta["claims"]], meta["quick"]) == ([True, False], True)
    assert meta["failed"] == 2
    (tmp_path / "no/claim.json").unlink()
    ratio = told | {"rule": rule | {"of": "mean"}, "across": "seed", "xlabel": "Seed"}
    (tmp_path / "mine/claim.json").write_text(json.dumps(ratio))
    rows, meta = gathered(tmp_path)
    assert (rows[0]["at_most"], rows[0]["panel"]) == (None, "rank 8, head a")
    assert (meta["figures"][0]["guides"], meta["figures"][0]["xscale"]) == ({}, "linear")
    assert meta["figures"][0]["xlabel"] == "Seed"
    (tmp_path / "mine.again/table.csv").unlink()
    assert {row["way"] for row in gathered(tmp_path)[0]} == {"first"}
    assert [_lost(x) for x in (None, float("nan"), 0.0, "a")] == [True, True, False, False]
    with pytest.raises(ValueError, match="no claim was run into"):
        gathered(tmp_path / "mine")


def place(value, low, high, at="a", mean=0.9):
    controls = {"mean": Found(mean, 0.5, 1.0, "out"), "best": Found(0.01, 0.01, 0.01, "in")}
    return Place({"head": at}, {}, Found(value, low, high, "in"), controls, "holds")


ONE, TWO = (place(0.1, 0.05, 0.2),), (place(0.1, 0.05, 0.2), place(0.3, 0.3, 0.3, "b", 1.5))


@pytest.mark.parametrize(
    ("verdict", "rule", "said"),
    [
        ((ONE, 0.1, 0.05, 0.2, 2.0, "subject"), {},
         ("0.100 (95 % 0.0500 to 0.200)", "our numbers times 2.00 flips it")),
        ((TWO, 0.2, 0.1, 0.3, None, ""), {},
         ("0.200 (range over 2 places: 0.100 to 0.300)", "no change of the numbers flips it")),
        ((ONE, 0.1, 0.1, 0.1, 0.25, "controls"), {"scale": "linear"},
         ("0.100", "+0.25 on the controls' numbers flips it")),
        (((),), {}, ("none", "no change of the numbers flips it")),
    ],
)  # fmt: skip
def test_a_verdicts_number_and_its_margin_in_words(verdict, rule, said):
    found = Tried(claim("one") | {"rule": RULE | rule}, Verdict(HOLDS, HOLDS, *verdict), None)
    assert (found.ours, found.flips) == said
    with pytest.raises(FrozenInstanceError):
        found.claim = {}


def test_controls_are_a_range_over_places_and_a_number_is_over_that_of_another():
    two = Tried(claim("one"), Verdict(HOLDS, HOLDS, TWO), None)
    assert two.controls == "mean (null) 0.900 to 1.50; best (optimal) 0.0100"
    assert Tried(claim("one"), Verdict(HOLDS, HOLDS), None).controls == ""
    assert two.number == "relative error"
    over = Tried(claim("one") | {"rule": RULE | {"of": "mean"}}, Verdict(HOLDS, HOLDS), None)
    assert over.number == "relative error, over that of mean"


@pytest.mark.parametrize(
    ("kind", "challenge", "again", "said"),
    [
        (HOLDS, False, None, ""),
        (FAILS, False, None, "not challenged yet"),
        (BLIND, False, None, "not challenged yet"),
        (OPEN, False, None, ""),
        (FAILS, True, None, "the challenge (another input) has not run"),
        (FAILS, True, FAILS, "confirmed by another input: so"),
        (FAILS, True, HOLDS, "not confirmed by another input: so"),
        (FAILS, True, OPEN, "in another way (another input): so"),
        (HOLDS, True, FAILS, "in another way (another input): so"),
        (HOLDS, True, HOLDS, "confirmed by another input: so"),
    ],
)
def test_what_a_challenge_says_of_a_verdict(kind, challenge, again, said):
    other = None if again is None else Verdict(again, "so", ONE)
    found = Tried(claim("one", challenge=challenge), Verdict(kind, "thus", ONE), other)
    assert found.challenged == said


def test_a_challenge_that_has_not_run_has_no_verdict():
    made = table()
    made = made[made["way"] == "first"]
    assert [one.again for one in tried(made)] == [None, None]


def test_a_docket_without_a_verdict_has_no_headline():
    made = table()
    good, bad = made.attrs["claims"]
    bad["unfinished"] = ["1 of 4 cases are measured"]
    (found,) = chapter.headlines(made)
    assert (found["value"], found["text"][:25]) == ("1", "Of 1 published claims tha")
    good["unfinished"] = bad["unfinished"]
    assert list(chapter.headlines(made)) == []
    assert chapter.findings(made)[0] == "Of 2 claims: 2 no verdict."
