"""The chapter of the docket, on a made-up table."""

import json

import pandas as pd
import pytest

from softlab.report.claims import _figure, tried
from softlab.report.docket import chapter

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
