"""The atlas measures what it says, and its chapter reads off what is in the table."""

import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from softlab.engine.loading import load
from softlab.inputs import Recorded, Tied
from softlab.matrices import Core, Flat, Geometric, LowRank, NearDuplicates
from softlab.operators import Soft
from softlab.pinv import (
    Chebyshev,
    InfinityNorm,
    Minimax,
    NewtonRaphson,
    NormProduct,
    NystromformerCubic,
)
from softlab.study import run
from studies.convergence import chapter as chapter

ATLAS = load(Path(__file__).parents[2] / "studies" / "convergence")
HARD = NearDuplicates(spread=0.1)
HEAD = Core(Soft(49), Tied(Recorded("vit.layer11.head4")))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    chosen = (NewtonRaphson, NystromformerCubic, Chebyshev, Minimax)
    solvers = [s for s in ATLAS.METHODS if isinstance(s, chosen) and s != Chebyshev(30, degree=3)]
    axes = {
        "matrix": [Flat(64), Geometric(64, 1e3), LowRank(64, 32, 1e3), HARD, HEAD],
        "seed": [0],
        "precision": ["float64", "float32"],
        "solver": [*solvers, NewtonRaphson(60, InfinityNorm()), NewtonRaphson(60, NormProduct(2))],
    }
    small = replace(ATLAS.STUDY, axes=axes, quick={})
    outcome = run(small, tmp_path_factory.mktemp("reports"), threads=1)
    assert outcome.failed == 0
    return pd.read_csv(outcome.folder / "table.csv")


@pytest.fixture(scope="module")
def spoiling(tmp_path_factory):
    solvers = [NewtonRaphson(60), NystromformerCubic(40)]
    small = replace(ATLAS.SPOILING, axes={**ATLAS.SPOILING.axes, "solver": solvers}, quick={})
    outcome = run(small, tmp_path_factory.mktemp("reports"), threads=1)
    assert outcome.failed == 0
    return pd.read_csv(outcome.folder / "table.csv")


def said(table, of):
    (found,) = [text for text in chapter.findings(table) if of in text]
    return found


def test_each_solver_meets_the_matrices_that_it_is_for():
    cases = list(ATLAS.STUDY.cases())
    assert 500 < len(cases) < 1300
    for case in cases:
        if case["solver"].traits.definite:
            assert case["matrix"].symmetric
            assert case["precision"] == "float64"
            assert not isinstance(case["matrix"], LowRank)
    met = {(type(c["matrix"]).__name__, c["precision"]) for c in cases}
    assert {("Core", "float32"), ("NearDuplicates", "float64"), ("Ones", "float64")} <= met
    assert len(list(ATLAS.STUDY.cases(quick=True))) < 200


def test_predictions_hold_in_every_row(table):
    both = table.dropna(subset=["predicted_steps", "observed_steps"])
    assert len(both) > 30
    assert (both["predicted_steps"] - both["observed_steps"]).abs().max() <= 1


def test_the_claims_of_cost_hold_and_bounds_are_counted(table):
    text = said(table, "(Minimax 5)")
    assert re.search(r"Chebyshev 5 takes of Newton's products [^,]*, at most 0.6 everywhere", text)
    assert "Minimax 5 takes never more than Chebyshev 5" in text
    setup = table[table["m"] == 64].groupby("method")["setup_matmuls"].first()
    # 24 bidiagonalisation sweeps: two products with vectors, twice orthogonalised; a small SVD.
    sweeps = 2 * 64**2 + 24 * 2 * (2 * 64**2 + 8 * 64 * 24) + 21 * 24**3
    assert setup["Chebyshev 5"] == pytest.approx(sweeps / (2 * 64**3))
    assert 0 <= setup["Newton"] < 0.1


def test_the_factor_of_two_never_arrives_on_the_identity(table):
    assert "Under norms 2.0 it never arrives in 1 cases, on Flat" in said(table, "By its scaling")


def test_precision_is_the_axis_and_not_the_runs(table):
    rows = table[(table["method"] == "Newton") & (table["spectrum"] == "Geometric")]
    rows = rows[rows["scaling"] == "default"].set_index("precision")
    assert 1e8 < rows.loc["float32", "floor"] / rows.loc["float64", "floor"] < 1e10
    assert rows["c"].between(0.01, 1).all()


def test_null_space_errors_grow_and_one_product_takes_them_back(table, spoiling):
    singular = table[(table["spectrum"] == "LowRank") & (table["precision"] == "float64")]
    grown = singular.dropna(subset=["observed_growth"])
    assert len(grown) == len(singular)
    assert (grown["observed_growth"] / grown["declared_growth"] - 1).abs().max() < 1e-3
    assert (singular["c_purified"] < singular["c"] / 5).all()
    assert "3.25 (Nystromformer, declared 3.25)" in said(table, "error grows a step")
    shown = spoiling[spoiling["declared_error"].notna()]
    assert (shown["declared_error"] / shown["inverse_error"] - 1).abs().max() < 0.5
    late = spoiling[(spoiling["inverse_error"] < 1e-2) & (spoiling["step"] >= spoiling["onset"])]
    assert late["inverse_error"].max() > 1e-3
    assert late["purified"].max() < 1e-11
    assert "Newton, then 2.00 times a step" in said(spoiling, "lose what they have gained")


def test_the_published_steps_leave_this_head_unconverged(table):
    text = said(table, "steps of Soft leave")
    assert "The 20 steps of Soft leave 1 of 1 recorded cores" in text
    assert "vit.layer11.head4" in text
    row = table[(table["core"] == "Soft") & (table["method"] == "Newton")].iloc[0]
    assert row["freedom"] < row["rank"] - 1
    cured = table.assign(published_residual=1e-9)
    assert "leave 0 of 1 recorded cores" in said(cured, "steps of Soft leave")


def test_tables_are_rectangular_and_scopes_name_the_methods(table, spoiling):
    for one, count in ((table, 5), (spoiling, 1)):
        made = list(chapter.tables(one))
        assert len(made) == count
        for each in made:
            assert {len(row) for row in each["rows"]} == {len(each["header"])}
        assert "Newton" in chapter.scope(one)
