"""The studies of gradients: their grids, what their rows must obey, and the words about them."""

import csv
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from softlab.engine.loading import load
from softlab.gradients import by_rule, departure
from softlab.pinv import GolubPereyra, ImplicitGradient, NewtonRaphson, Ridge
from softlab.report.chapter import named
from softlab.study import run

STUDIES = Path(__file__).parents[2] / "studies"
MODULE = load(STUDIES / "gradients.py")
TRAIN = load(STUDIES / "training.py")
CPU = torch.device("cpu")


def table_of(study, folder, **axes):
    small = replace(study, axes={**study.axes, **axes}, quick={})
    outcome = run(small, folder, threads=1)
    with (outcome.folder / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert outcome.failed == 0, [row["error"] for row in rows if row["error"]]
    return pd.read_csv(outcome.folder / "table.csv")


@pytest.fixture(scope="module")
def gradients(tmp_path_factory):
    chosen = [MODULE.CONSTRUCTED[1], MODULE.CONSTRUCTED[4], *MODULE.DUPLICATES[3:7]]
    chosen.append(MODULE.HEADS[2])
    folder = tmp_path_factory.mktemp("gradients")
    return table_of(MODULE.STUDY, folder, matrix=chosen, seed=[0], steps=(12, 20, 26))


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TRAIN, "LAST", 100)
        return table_of(
            TRAIN.STUDY, folder, task=["near duplicates throughout"], steps=[20], seed=[0],
            rule=["implicit", "unrolled"],
        )  # fmt: skip


def test_the_grids_hold_what_they_promise():
    cases = list(MODULE.STUDY.cases())
    for case in cases:
        assert case["precision"] == "float64" or case["steps"] == 20
        assert not case["ridge"] or case["matrix"] not in MODULE.CONSTRUCTED
        assert case["loss"] == "random" or case["matrix"] in MODULE.HEADS
    heads = [case for case in cases if case["matrix"] in MODULE.HEADS and case["steps"] == 20]
    assert {(c["ridge"], c["loss"], c["precision"]) for c in heads} == {
        (ridge, loss, precision)
        for ridge in (0.0, 0.01)
        for loss in ("random", "regression")
        for precision in ("float64", "float32")
    }
    assert len({case["matrix"] for case in heads}) == 6
    rules = {case["rule"] for case in TRAIN.STUDY.cases() if case["steps"] == 6}
    assert rules == {"implicit", "unrolled"}


def test_the_unrolled_gradient_is_that_of_its_map_and_float32_rounds_it(gradients):
    own = gradients[gradients["rule"] == "unrolled"]
    assert (own.loc[own["precision"] == "float64", "map_error"] == 0).all()
    rounded = own.loc[own["precision"] == "float32", "map_error"]
    assert (rounded > 0).all()
    assert rounded.max() < 1e-2


def test_residuals_fall_and_the_rules_with_them(gradients):
    fine = gradients[(gradients["precision"] == "float64") & (gradients["loss"] == "random")]
    for source, rows in fine[fine["rule"] == "implicit"].groupby("source"):
        at = rows[rows["ridge"] == 0].set_index("steps")
        assert at["residual"][12] >= at["residual"][20] >= at["residual"][26] - 1e-12
        small = at["residual"] < 1e-9
        if "rank" not in source:
            assert (at.loc[small, "map_error"] < 1e-7).all()
    near = fine[(fine["rule"] == "implicit") & (fine["steps"] == 20) & (fine["ridge"] == 0)]
    near = near.dropna(subset=["matrix.spread"]).set_index("matrix.spread")["map_error"]
    assert near[0.15] < 0.01
    assert near[0.1] > 0.5


def test_only_golub_and_pereyra_know_the_rank(gradients):
    rows = gradients[(gradients["kind"] == "low rank") & (gradients["steps"] == 20)]
    at = rows[rows["precision"] == "float64"].set_index("rule")["inverse_error"]
    assert at["Golub-Pereyra"] < 1e-6
    assert at["implicit"] > 0.1
    assert at["unrolled"] > 10


def test_a_ridge_in_the_study_is_the_ridge_of_the_solver():
    matrix = MODULE.DUPLICATES[4]
    a, g = MODULE.drawn(matrix, "random", 0)
    row = MODULE.measure((a, g), matrix, 0.01, "float64", 20, "implicit", CPU)
    found = MODULE.bias(Ridge(ImplicitGradient(NewtonRaphson(20))), a, g, symmetric=True)
    assert row["map_error"] == pytest.approx(float(found.map.error), rel=1e-6)


def test_the_regression_reaches_the_core_as_autograd_says():
    head = MODULE.HEADS[2]
    _, g = MODULE.drawn(head, "regression", 0)
    q, k, v = head.input(0, dtype=torch.float64)
    exact = head.op.target(q, k, v)
    z = head.op.landmarks(k, 49)
    kernel = head.op.kernel(q.shape[-1])
    x = head.op.pinv(head.op.core(q, k)).requires_grad_()
    loss = (kernel.apply(q, z, x @ kernel.apply(z, k, v)) - exact).square().sum() / 2
    (true,) = torch.autograd.grad(loss, x)
    assert departure(g, true).error < 1e-9


def test_training_compares_gradients_of_one_map(training):
    start = training[training["step"] == 0].set_index("rule")
    assert start["loss"]["implicit"] == pytest.approx(start["loss"]["unrolled"], rel=1e-5)
    unrolled = training[training["rule"] == "unrolled"]
    assert unrolled["cosine"].min() > 0.98
    implicit = training[training["rule"] == "implicit"]
    assert implicit["cosine"].min() < 0.9
    for rows in (unrolled, implicit):
        losses = rows.sort_values("step")["loss"]
        assert losses.iloc[-1] < losses.iloc[0] / 10


def test_methods_are_what_they_are_called():
    newton = NewtonRaphson(6)
    assert by_rule("implicit", 6) == ImplicitGradient(newton)
    assert by_rule("Golub-Pereyra", 6) == GolubPereyra(newton)
    assert by_rule("unrolled", 6) == newton
    assert by_rule("implicit, ridge", 6) == Ridge(ImplicitGradient(newton), 0.01)
    assert by_rule("unrolled, ridge", 6) == Ridge(newton, 0.01)
    with pytest.raises(ValueError, match="rule is 'implied'; give exact, or one of implicit, Gol"):
        by_rule("implied", 6)


def test_the_words_follow_the_tables(gradients, training):
    said = " ".join(named("gradients").findings(gradients))
    assert "wrong by more than half on landmarks of spread 0.1 and below" in said
    assert "minilm.layer5.head2 (1 of 1 samples" in said
    assert " of 1 settings" in named("training").findings(training)[0]
