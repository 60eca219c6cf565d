"""The bandwidth study keeps its bounds; real heads have their windows beyond SOFT's bandwidth."""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from softlab.engine.loading import load
from softlab.inputs import Clustered, Tied
from softlab.study import run
from studies.bandwidth.chapter import findings, scope, windows

BANDWIDTH = load(Path(__file__).parents[2] / "studies" / "bandwidth")


def run_on(tmp_path, **axes):
    axes = {"seed": [0], "op": list(BANDWIDTH.METHODS)} | axes
    outcome = run(replace(BANDWIDTH.STUDY, axes=axes, quick={}), tmp_path, threads=1)
    assert outcome.failed == 0
    return pd.read_csv(outcome.folder / "table.csv")


def test_the_study_keeps_its_bounds_on_a_small_input(tmp_path):
    small = Clustered(96, 16, clusters=12)
    table = run_on(tmp_path, input=[small, Tied(small)], stretch=(0.25, 1.0, 8.0))
    assert set(table["setting"]) == {"softmax", "tied Gaussian", "untied Gaussian"}
    assert (table["matrix_error"] >= table["best_error"] * (1 - 1e-5)).all()
    assert (table["best_error"] <= table["rank_one_error"]).all()
    wide = table[table["stretch"] == 8.0]
    assert (wide["effective_rank"] < 3).all()
    assert (wide["rank_one_error"] < 0.1).all()
    tied = table[(table["setting"] == "tied Gaussian") & (table["method"] == "Soft")]
    assert tied["core_condition"].is_monotonic_increasing
    assert "Inputs: Clustered. Stretches from 0.25 to 8." in scope(table)
    drawn = table[(table["method"] == "Skyformer") & (table["stretch"] == 1.0)]
    apart = drawn.groupby("setting")["matrix_error"].nunique()
    assert set(apart) == {BANDWIDTH.DRAWS}
    assert findings(table)[-1].endswith("Skyformer: the median of 5 draws of landmarks.")
    one = table[~(table["draw"] > 0)]
    assert findings(one)[-1].endswith("how another draw would do it does not say.")


def test_soft_succeeds_only_where_rank_one_nearly_does(tmp_path):
    """The headline, on one head: the best rank has a window, beyond SOFT's bandwidth; Soft none."""
    head = Tied(BANDWIDTH.HEADS[0])
    methods = list(BANDWIDTH.METHODS)
    table = run_on(
        tmp_path, input=[head], stretch=(1.0, 1.4, 2.0), op=[methods[3], methods[4], methods[5]]
    )
    found = windows(table).set_index("method")
    assert 1.05 < found.loc["best rank", "low"] < found.loc["best rank", "high"]
    assert found.loc["Soft", "low"] > found.loc["Soft", "high"]
    assert found.loc["Soft, exact inverse", "low"] > found.loc["Soft, exact inverse", "high"]
