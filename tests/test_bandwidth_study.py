"""Windows of bandwidths are where made-up errors put them; real heads have theirs beyond SOFT's."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from softlab.chapters.bandwidth import findings, scope, tables, windows
from softlab.inputs import Clustered, Tied
from softlab.study import run
from softlab.study_file import load

BANDWIDTH = load(Path(__file__).parent.parent / "studies" / "bandwidth.py")
STRETCHES = np.array([0.25, 0.5, 1.0, 2.0, 4.0])


def made_up(lows, high, stretches=STRETCHES):
    """Errors 0.1 (low / t)^2 of each method, and of rank one 0.3 high / t."""
    rows = [
        {
            "status": "ok", "setting": "made up", "source": "there", "method": method,
            "stretch": t, "matrix_error": 0.1 * (low / t) ** 2, "best_error": 0.01 / t,
            "rank_one_error": 0.3 * high / t, "effective_rank": 9.0, "underflow": 0.0,
            "row_mass": 1.0,
        }
        for method, low in lows.items()
        for t in stretches
    ]  # fmt: skip
    return pd.DataFrame(rows)


def run_on(tmp_path, **axes):
    axes = {"seed": [0], "op": list(BANDWIDTH.METHODS)} | axes
    outcome = run(replace(BANDWIDTH.STUDY, axes=axes, quick={}), tmp_path, threads=1)
    assert outcome.failed == 0
    return pd.read_csv(outcome.folder / "table.csv")


def test_edges_of_powers_are_exact():
    found = windows(made_up({"best rank": 0.7, "Method": 1.9}, high=1.5)).set_index("method")
    assert list(found["low"]) == pytest.approx([0.7, 1.9])
    assert list(found["high"]) == pytest.approx([1.5, 1.5])
    assert list(found["width"]) == pytest.approx([1.5 / 0.7, 1.5 / 1.9])


def test_an_error_that_rises_again_counts_from_its_last_fall():
    table = made_up({"best rank": 0.7}, high=1.5)
    table.loc[table.stretch == 2.0, "matrix_error"] = 0.4
    low = windows(table)["low"].item()
    end = 0.1 * (0.7 / 4) ** 2
    assert low == pytest.approx(2 * 2 ** (np.log(0.25) / np.log(end / 0.4)))


def test_edges_beyond_the_grid_are_none_and_all():
    assert list(windows(made_up({"best rank": 0.01}, high=0.01))["width"]) == [0.0]
    found = windows(made_up({"best rank": 0.01, "Never": 9.0}, high=100.0))
    assert list(found["low"]) == [0.0, np.inf]
    assert list(found["high"]) == [np.inf, np.inf]
    assert list(found["width"]) == [np.inf, 0.0]
    (made,) = tables(made_up({"best rank": 0.01, "Never": 9.0}, high=100.0))
    assert made["rows"] == [["there", "none", "all", "none"]]


def test_findings_name_who_has_a_window():
    said = " ".join(findings(made_up({"best rank": 0.7, "Method": 1.9}, high=1.5)))
    assert (
        "does not on 1 of 1 inputs: there (0.700 to 1.50). Method has such stretches on 0." in said
    )
    said = " ".join(findings(made_up({"best rank": 1.7, "Method": 1.2}, high=1.5)))
    assert "does not on 0 of 1 inputs. Method has such stretches on 1 (there)." in said


def test_findings_see_a_kernel_that_lost_its_rows():
    table = made_up({"best rank": 0.01}, high=0.05)
    assert "for a bad reason" not in " ".join(findings(table))
    lost = table.assign(row_mass=np.where(table.stretch < 1, 1e-6, 1.0))
    said = " ".join(findings(lost))
    assert "In 2 cases (made up) a single rank errs at most 0.1" in said
    assert "is 0.5 (there" in said


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
