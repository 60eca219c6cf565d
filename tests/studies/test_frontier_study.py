"""The frontier: equal work, fronts and profiles by their definitions, and the headline on a run."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from softlab import catalogue, measures
from softlab.core import Dims
from softlab.engine.loading import load
from softlab.inputs import Recorded, Smooth, Tied
from softlab.operators import GaussianAttention, Softmax, TopK
from softlab.report import _made
from softlab.report.drawing import draw, pages
from softlab.study import run
from studies.frontier import chapter as chapter

FRONTIER = load(Path(__file__).parents[2] / "studies" / "frontier")
DIMS = Dims(1, 512, 512, 32, 32)
INPUTS = [
    FRONTIER.Clustered(512, 32, clusters=32),
    Smooth(512, 32, 32.0),
    Tied(Smooth(512, 32, 32.0)),
]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    axes = {
        "input": INPUTS,
        "seed": [0, 1],
        "method": FRONTIER.METHODS,
        "budget": [1 / 32, 1 / 8, 1.0],
    }
    small = replace(FRONTIER.STUDY, axes=axes, quick={})
    outcome = run(small, tmp_path_factory.mktemp("reports"), threads=1)
    assert outcome.failed == 0
    return pd.read_csv(outcome.folder / "table.csv")


def made(**errors):
    """A table of methods and their errors on inputs a, b, c at one budget; None: no setting."""
    rows = []
    for method, values in errors.items():
        for source, error in zip("abc", values, strict=True):
            rows.append({
                "status": "ok", "family": "made up", "method": method, "target": "softmax",
                "source": source, "real": False, "n": 512, "seed": 0, "budget": 0.125,
                "fits": error is not None, "share": 0.12, "output_error": error,
                "uniform_error": 0.5, "skill": None if error is None else 1 - error / 0.5,
                "time": 2.0, "memory": 3.0, "time_q1": None, "time_q3": None,
                "certified_error": None,
            })  # fmt: skip
    return pd.DataFrame(rows)


def test_every_approximation_takes_part_against_its_own_target():
    ops = {
        name: FRONTIER.operator(name, 0.5, 0, DIMS) for name in (*FRONTIER.SWEPT, *FRONTIER.FIXED)
    }
    made = {type(op).__name__ for op in ops.values()}
    for part in catalogue.operators():
        traits = part.example.traits  # dense ones are oracles here, or controls
        left = traits.replacement or traits.blind or not traits.linear_memory
        assert part.example.target == part.example or (part.name in made) != left, part
    assert {"Softmax", "GaussianAttention"} <= made
    assert not {"LinearAttention", "CosFormer"} & made
    for case in FRONTIER.STUDY.cases():
        gaussian = FRONTIER.target(case["method"]) == GaussianAttention()
        assert gaussian == isinstance(case["input"], Tied)
    assert len(list(FRONTIER.STUDY.cases(quick=True))) < 250


@pytest.mark.parametrize("method", FRONTIER.SWEPT)
def test_a_method_gets_the_greatest_knob_that_the_budget_affords(method):
    make = FRONTIER.SWEPT[method][1]
    for budget in FRONTIER.BUDGETS:
        most = budget * FRONTIER.work(FRONTIER.target(method), DIMS)
        knob = FRONTIER.knob(method, budget, DIMS)
        assert knob == 0 or FRONTIER.work(make(knob, 0), DIMS) <= most
        assert FRONTIER.work(make(knob + 1, 0), DIMS) > most
    assert FRONTIER.knob(method, 0.5, DIMS) > 0


def test_the_heaviest_keys_are_the_operators():
    q, k, v = (x[:96] for x in Recorded("minilm.layer5.head2")(0, dtype=torch.float64))
    reference = measures.Reference(Softmax(), q, k, v)
    called = measures.output_error(TopK(8), q, k, v, reference)
    assert measures.best_of_keys(8, reference) == pytest.approx(called, rel=1e-9)


def test_a_profile_counts_inputs_and_what_has_no_setting_is_infinitely_far():
    # Ratios of A: 1, 1, 4; of B: 2, none, 1; of C 5, 5, 20 of the least, by which none is C's.
    rows = made(A=[0.1, 0.1, 0.4], B=[0.2, None, 0.1], C=[0.5, 0.5, 2.0])
    profiles = chapter._profiles(chapter._done(rows))

    def at(tau):
        return chapter._within(profiles, 0.125, tau).round(3).to_dict()

    assert at(1) == {"A": 0.667, "B": 0.333, "C": 0, "uniform average": 0}
    assert at(2) == {"A": 0.667, "B": 0.667, "C": 0, "uniform average": 0}
    assert at(4) == {"A": 1, "B": 0.667, "C": 0, "uniform average": 0}
    assert at(16)["B"] == pytest.approx(0.667, abs=1e-3)
    assert at(16)["uniform average"] == 1  # 5 times the least; it sets no mark
    for method in "ABC":
        assert profiles[profiles.method == method].share_within.is_monotonic_increasing


def test_errors_of_rounding_are_no_merit():
    profiles = chapter._profiles(chapter._done(made(A=[1e-9, 0.1, 0.1], B=[9e-7, 0.1, 0.1])))
    assert chapter._within(profiles, 0.125, 1)[["A", "B"]].tolist() == [1, 1]


def test_trivial_answers_have_no_skill_and_win_nothing():
    rows = made(A=[0.1, 0.2, 0.3], mean=[0.5, 0.5, 0.5], zeros=[1.0, 1.0, 1.0])
    said = " ".join(chapter.findings(rows))
    assert "A is best on every input" in said
    assert (
        "6 are without skill, no better than a trivial answer: mean (3 of 3) and zeros (3 of 3)"
        in said
    )
    assert "With skill in every cell: A." in said
    # Cheapest of all, and on no front: a trivial answer does no work.
    cheap = rows.assign(share=rows.share.where(rows.method == "A", 0.01))
    (front,) = (t for t in chapter.tables(cheap) if "non-dominated" in t["caption"])
    assert {row[1]: row[2] for row in front["rows"]} == {"A": "WTM", "mean": "·", "zeros": "·"}
    other = rows.assign(
        output_error=rows.output_error.where(rows.source != "c", 0.01 * rows.output_error.rank())
    )
    assert chapter.findings(other) != chapter.findings(rows)


def test_the_headline_no_method_is_best_everywhere(table):
    """Clusters are won by pivots among the keys, a smooth sequence by its order."""
    rows = table[(table.target == "softmax") & (table.family != "oracle") & (table.share <= 1 / 8)]
    errors = rows.groupby(["source", "method"]).output_error.median()
    best = {source: errors[source].idxmin() for source in ("Clustered", "Smooth")}
    assert best["Clustered"] != best["Smooth"]
    for source, other in (("Clustered", "Smooth"), ("Smooth", "Clustered")):
        assert errors[source][best[source]] < 0.9 * errors[source][best[other]]
        skill = rows[(rows.source == source) & (rows.method == best[source])].skill
        assert skill.max() > 0.3
    said = " ".join(chapter.findings(table))
    methods = rows.loc[rows.budget < 1, "method"].nunique()
    assert f"no method of {methods} is best everywhere" in said
    assert "are without skill" in said


def test_costs_are_within_the_budget_and_controls_are_what_they_say(table):
    swept = table[(table.budget < 1) & table.fits.astype(bool)]
    assert (swept.share <= swept.budget * 1.001).all()
    exact = table[table.family == "exact"]
    assert (exact.share == 1).all()
    assert (exact.time == 1).all()
    assert (exact.output_error < 1e-5).all()
    assert table.loc[~table.fits.astype(bool), "output_error"].isna().all()
    assert not table.fits.all()  # some method has no setting at the least budget


def test_every_figure_is_drawn_and_the_best_of_all_lies_below_all(table):
    for lines in FRONTIER.STUDY.figures:
        rows = _made(table, {"chapter": "frontier"}, lines)
        for page in pages(rows, lines):
            assert draw(rows, lines, page).axes
    rows = chapter.by_family(table)
    rows = rows[(rows.target == "softmax") & (rows.source == "Smooth")]
    best = rows[rows.method == chapter.BEST].drop_duplicates(["share", "output_error"])
    points = chapter._points(rows[(rows.method != chapter.BEST) & (rows.family != "oracle")])
    points = points[points.method.isin(FRONTIER.SWEPT) & (points.skill > 0)]
    assert len(points) > 5
    for point in points.itertuples():
        assert best[best.share <= point.share].output_error.min() <= point.output_error


def test_tables_have_whole_rows(table):
    tables = list(chapter.tables(table))
    of_certificates = [one for one in tables if "Certificates" in one["caption"]]
    assert len(tables) == 2 * 4 + len(of_certificates)
    assert [one["header"][0] for one in of_certificates] == ["method"]  # bfloat16 says something
    for one in tables:
        assert {len(row) for row in one["rows"]} == {len(one["header"])}
    assert "Methods for softmax: Linformer" in chapter.scope(table)
