"""A claim is one file: refused where it could not be judged, else tried by one command."""

import json
import textwrap

import pytest
from command_line import call

from softlab import docket
from softlab.study_folders import docket as own
from softlab.verdicts import Rule

CLAIM = """
from softlab.docket import Challenge, Claim, MissingError
from softlab.verdicts import Rule


def measure(rank, seed):
    {before}
    return {{"ours": {number} * (1 + seed / 50), "mean": 0.9, "best": 0.01 / rank}}


def again(head, seed):
    return {{"ours": {second} * (1 + seed / 50), "mean": 0.9, "best": 0.01}}


CLAIM = Claim(
    name="mine", title="Errs little", who="Somebody 2020", place="Table 1",
    states="It errs little.", published="0.5", setting="a large model", lacking="the model",
    measured="relative error", axes={{"rank": [8, 32], "seed": [0, 1, 2]}},
    quick={{"seed": [0, 1]}}, measure=measure, subject="ours", across="rank",
    controls={{"mean": "null", "best": "optimal"}}, rule=Rule(at_most=0.5),
    challenge=Challenge(
        about="other heads", axes={{"head": ["a", "b"], "seed": [0, 1, 2]}}, measure=again
    ),
)
"""


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"

    def written(number=0.1, second=0.1, before="pass"):
        text = CLAIM.format(number=number, second=second, before=before)
        path.write_text(textwrap.dedent(text))
        return path

    return written


def test_a_users_claim_is_tried_listed_and_reported(mine, tmp_path):
    pytest.importorskip("typst")
    out = tmp_path / "out"
    said = call("docket", "run", mine(), "--out", out)
    assert said.exit_code == 0, said.output
    assert "mine: holds" in said.stdout
    assert "controls: mean (null) 0.900; best (optimal) 3.13 × 10⁻⁴ to 0.00125" in said.stdout
    told = json.loads(call("docket", "run", mine(), "--out", out, "--json").stdout)
    assert [(x["name"], x["verdict"], x["confirmed"]) for x in told] == [("mine", "holds", True)]
    assert told[0]["low"] <= told[0]["value"] <= told[0]["high"]
    listed = {x["name"]: x for x in json.loads(call("docket", "--out", out, "--json").stdout)}
    assert listed["mine"]["verdict"] == "holds"
    assert listed["soft-steps"]["verdict"] is None
    assert "not run yet" in call("docket", "--out", out).stdout

    assert call("report", out).exit_code == 0
    page = (out / "report.html").read_text()
    assert "Errs little" in page
    assert page.index('id="table-docket-1"') < page.index("How it was measured")
    assert page.index("How it was measured") < page.index('id="figure-docket-1"')
    assert (out / "docket/figures/mine.svg").is_file()
    assert "Of 1 claim: 1 holds." in (out / "docket/findings.txt").read_text()


def test_a_run_resumes(mine, tmp_path):
    (claim,) = docket.claims_in(mine())
    assert [x.reused for x in docket.run(claim, tmp_path / "out")] == [0, 0]
    assert [x.reused for x in docket.run(claim, tmp_path / "out")] == [6, 6]
    (changed,) = docket.claims_in(mine(0.2))
    assert [x.reused for x in docket.run(changed, tmp_path / "out")] == [0, 0]


def test_a_verdict_flips_past_its_margin_and_not_before(mine, tmp_path):
    def verdict(number):
        said = call("docket", "run", mine(number), "--out", tmp_path / "out", "--json")
        return json.loads(said.stdout)[0]

    margin = verdict(0.1)["margin"]
    assert verdict(0.1 * margin * 0.999)["verdict"] == "holds"
    assert verdict(0.1 * margin * 1.001)["verdict"] != "holds"


def test_a_verdict_against_a_claim_that_its_challenge_does_not_confirm_is_a_finding(mine, tmp_path):
    agreed = call("docket", "run", mine(0.8, 0.9), "--out", tmp_path / "a")
    assert agreed.exit_code == 0
    assert "confirmed by other heads: does not hold" in agreed.stdout
    torn = call("docket", "run", mine(0.8, 0.1), "--out", tmp_path / "b")
    assert torn.exit_code == 1
    assert "not confirmed by other heads: holds" in torn.stdout


def test_missing_data_are_a_row_that_says_so_and_no_verdict(mine, tmp_path):
    lacks = 'raise MissingError("GloVe is not here; run softlab fetch glove")'
    said = call("docket", "run", mine(before=lacks), "--out", tmp_path)
    assert said.exit_code == 0, said.output
    assert "mine: no verdict: GloVe is not here; run softlab fetch glove\n" in said.stdout
    told = json.loads(call("docket", "run", mine(before=lacks), "--out", tmp_path, "--json").stdout)
    assert told[0]["verdict"] == "no verdict"
    assert told[0]["value"] is None
    assert "GloVe" in (tmp_path / "docket/table.csv").read_text()


def test_a_case_that_fails_is_a_finding(mine, tmp_path):
    said = call("docket", "run", mine(before="1 / (rank - 8)"), "--out", tmp_path)
    assert said.exit_code == 1
    assert "mine: 3 cases failed; the first: ZeroDivisionError" in said.stdout


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('controls={{"mean": "null", "best": "optimal"}}, ', "", "there are no controls"),
        (", rule=Rule(at_most=0.5)", "", "there is no rule"),
        ("at_most=0.5", "", "no bound and cannot fail"),
        ("at_most=0.5", "at_most=1, span=(0, 1)", "cannot fail"),
        ('"mean": "null", ', "", "no control must fail"),
        ('"null"', '"nul"', "kind 'nul'"),
        ('across="rank"', 'across="steps"', "across names 'steps'"),
        ("at_most=0.5", "at_most=0.5, where={{'rank': 9}}", "decides at rank=9"),
        ('subject="ours"', 'subject="mean"', "among its controls"),
        ('who="Somebody 2020"', 'who=" "', "who is empty"),
        ("def measure(rank, seed)", "def measure(rank)", "neither measure nor setup takes seed"),
        ('name="mine"', 'name="mine.again"', "as that of a challenge"),
        ('"rank": [8, 32]', '"rank": ["a", "b"]', "give an axis of numbers"),
        ("at_most=0.5", "at_most=0.5, where={{'rank': 8}}", "in the challenge the rule decides"),
        ("CLAIM = Claim(", "def claim(): return dict(", "defines no softlab.docket.Claim"),
    ],
)
def test_a_claim_that_could_not_be_judged_is_refused_when_it_is_loaded(old, new, says, tmp_path):
    assert old in CLAIM
    text = CLAIM.replace(old, new).format(number=0.1, second=0.1, before="pass")
    path = tmp_path / "mine.py"
    path.write_text(text)
    said = call("docket", "run", path, "--out", tmp_path / "out")
    assert said.exit_code == 2
    assert says in " ".join(said.stderr.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", "soft-step"], "Did you mean 'soft-steps'?"),
        (["run", "soft-steps", "soft-steps"], "two claims are called soft-steps"),
        (["run", "soft-steps", "--workers", "-1"], "--workers is -1"),
    ],
)
def test_what_cannot_be_done_is_said(words, says, tmp_path):
    said = call("docket", *words, "--out", tmp_path / "out")
    assert said.exit_code == 2
    assert says in " ".join(said.stderr.split())


@pytest.mark.parametrize("name", sorted(own()))
def test_each_own_claim_loads_under_its_name_with_controls_that_decide(name):
    (claim,) = docket.claims_in(name)
    assert claim.name == name
    assert isinstance(claim.rule, Rule)
    assert set(claim.controls.values()) & {"null", "noise", "contrast"}
    for study, _ in claim.studies():
        assert list(study.cases(quick=True))
