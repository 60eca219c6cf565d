"""Selectors meet at equal numbers and at equal work; on made-up errors the words are known."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from softlab import landmarks
from softlab.core import Dims, as_matrix
from softlab.engine.loading import load
from softlab.inputs import Clustered, Patches, Recorded, Tied
from softlab.report import _made
from softlab.report.drawing import draw, pages
from softlab.study import run
from studies.landmarks import chapter as chapter

LANDMARKS = load(Path(__file__).parents[2] / "studies" / "landmarks")
DIMS = Dims(1, 512, 512, 32, 32)
SMALL = Clustered(96, 8, clusters=12)
SELECTED = ("segment means", "uniform", "k-means", "RPCholesky")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    axes = {
        "input": [SMALL, Tied(SMALL)],
        "seed": [0, 1],
        "setting": LANDMARKS.SETTINGS,
        "allowance": [12, 24, 1 / 2],
        "selector": SELECTED,
    }
    small = replace(LANDMARKS.STUDY, axes=axes, quick={})
    outcome = run(small, tmp_path_factory.mktemp("reports"), threads=1)
    assert outcome.failed == 0
    return pd.read_csv(outcome.folder / "table.csv")


def made(sources=12, allowances=(16, 64), **factors):
    """Errors that are a factor times what the input makes of it; None: no answer."""
    rows = [
        {
            "status": "ok", "setting": "softmax", "source": f"input {i}", "n": 512, "seed": seed,
            "equal": "landmarks" if allowance >= 1 else "work", "allowance": allowance,
            "selector": selector, "fits": factor is not None,
            "output_error": None if factor is None else factor * (1 + i) / 100,
            "uniform_error": 0.5, "matrix_error": 0.2, "best_error": 0.1, "time": 2.0,
            "time_q1": None, "time_q3": None, "trace_error": None, "best_trace_error": None,
        }
        for i in range(sources)
        for seed in range(2)
        for allowance in allowances
        for selector, factor in factors.items()
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_every_selector_takes_part_and_grids_meet_images_alone():
    made = {type(LANDMARKS.SELECTORS[name](0, None)).__name__ for name in LANDMARKS.SELECTORS}
    assert made == set(landmarks.__all__) - {"Selector"}
    for case in LANDMARKS.STUDY.cases():
        tied = isinstance(case["input"], Tied)
        assert tied == (case["setting"] in LANDMARKS.STRETCHES)
        if case["selector"] in LANDMARKS.ON_GRIDS:
            assert "Patches" in repr(case["input"])
    assert len(list(LANDMARKS.STUDY.cases(quick=True))) < 300


@pytest.mark.parametrize("selector", LANDMARKS.SELECTORS)
@pytest.mark.parametrize("setting", ["softmax", "Gaussian"])
def test_a_selector_gets_the_greatest_rank_that_the_work_affords(setting, selector):
    def work(rank):
        return LANDMARKS.work(LANDMARKS.operator(setting, rank, selector, 0, 32), DIMS)

    exact = LANDMARKS.work(LANDMARKS.operator(setting, 1, selector, 0, 32).target, DIMS)
    for share in LANDMARKS.BUDGETS:
        rank = LANDMARKS.rank_of(setting, share, selector, DIMS)
        assert rank == 0 or work(rank) <= share * exact
        assert work(rank + 1) > share * exact
    assert LANDMARKS.rank_of(setting, 64, selector, DIMS) == 64


def test_choosing_is_paid_for():
    ranks = {name: LANDMARKS.rank_of("Gaussian", 1 / 4, name, DIMS) for name in LANDMARKS.SELECTORS}
    assert ranks["uniform"] == ranks["segment means"] == max(ranks.values())
    assert ranks["k-means"] < ranks["k-means, 1 step"] < ranks["uniform"]
    assert ranks["greedy residual"] == ranks["RPCholesky"] < ranks["farthest point"]


def test_selectors_see_the_kernel_of_the_operator():
    for name in LANDMARKS.SELECTORS:
        op = LANDMARKS.operator("wide Gaussian", 8, name, 0, 16)
        assert op.bandwidth == 2 * 16**0.25
        assert getattr(op.landmarks, "bandwidth", op.bandwidth) == op.bandwidth


def test_a_trace_that_is_left_is_that_of_the_difference_and_above_the_tail(table):
    gaussian = table[table["setting"].isin(LANDMARKS.STRETCHES)]
    assert (gaussian["trace_error"] >= gaussian["best_trace_error"] - 1e-6).all()
    assert (table["matrix_error"] >= table["best_error"] * (1 - 1e-5)).all()
    row = gaussian[(gaussian["setting"] == "Gaussian") & (gaussian["selector"] == "uniform")]
    row = row[(row["seed"] == 1) & (row["allowance"] == 12)].iloc[0]
    k = Tied(SMALL)(1, dtype=torch.float64).k
    op = LANDMARKS.operator("Gaussian", 12, "uniform", 1, 8)
    exact = as_matrix(op.target, k, k)
    left = (exact - as_matrix(op, k, k)).trace() / exact.trace()
    assert row["trace_error"] == pytest.approx(float(left), abs=1e-5)
    assert table.loc[table["setting"] == "softmax", "trace_error"].isna().all()


def test_the_headline_k_means_helps_where_tokens_are_clustered(table):
    rows = table[(table["setting"] == "wide Gaussian") & (table["equal"] == "landmarks")]
    assert float(chapter.ratios(rows, "k-means", "uniform").iloc[0]) < 0.8
    assert float(chapter.ratios(rows, "k-means", "segment means").iloc[0]) < 0.8


def test_a_selector_without_an_answer_is_infinitely_far_and_one_without_images_is_not_counted():
    rows = made(A=1.0, B=1.2, C=3.0)
    rows.loc[(rows["selector"] == "B") & (rows["source"] > "input 5"), "fits"] = False
    rows.loc[(rows["selector"] == "B") & (rows["allowance"] == 16), "fits"] = False
    grid = rows["selector"].eq("C") & rows["source"].gt("input 5")
    near = chapter._within(chapter._done(rows[~grid]), 1.25).loc[("softmax", "landmarks")]
    assert near["A"] == 1
    assert near["B"] == pytest.approx(0.5)
    assert near["C"] == 0
    within = chapter._within(chapter._done(rows[~grid]), 4.0).loc[("softmax", "landmarks")]
    assert within["C"] == 1


def test_every_figure_is_drawn_and_tables_have_whole_rows(table):
    for lines in LANDMARKS.STUDY.figures:
        rows = _made(table, {"chapter": "landmarks"}, lines)
        for page in pages(rows, lines):
            assert draw(rows, lines, page).axes
    made = list(chapter.tables(table))
    assert len(made) == 2 * len(LANDMARKS.SETTINGS)
    for one in made:
        assert {len(row) for row in one["rows"]} == {len(one["header"])}
    said = " ".join(chapter.findings(table))
    for words in (
        "Within a quarter of the least",
        "Trace of the kernel",
        "the time of a call over",
    ):
        assert words in said
    assert "Inputs: Clustered (n = 96)" in chapter.scope(table)


def test_patches_leave_out_the_class_token():
    vit = Recorded("vit.layer8.head3")
    patches = Patches(vit)
    assert eval(repr(patches)) == patches
    assert patches.n == 1024
    for whole, rest in zip(vit(1), patches(1), strict=True):
        assert torch.equal(whole[1:], rest)
    with pytest.raises(ValueError, match="Use an input of two tokens or more"):
        Patches(Clustered(1, 4, clusters=1))(0)
