"""Studies that train a pyramid: on glyphs, in seconds; and what their chapters compute."""

import dataclasses
import math
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from glyphs import glyphs

from softlab.engine.loading import load
from softlab.gradients import unrolled
from softlab.models import Pyramid
from softlab.models.soft import scaled
from softlab.pinv import SVD, ImplicitGradient, NewtonRaphson
from softlab.report.intervals import headline, mean, words
from softlab.study import run
from studies.stability import chapter as steady

STUDIES = Path(__file__).parents[2] / "studies"
CLASSIFICATION = load(STUDIES / "classification.py")
STABILITY = load(STUDIES / "stability.py")
TRANSFER = load(STUDIES / "transfer.py")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Glyphs in the place of Fashion-MNIST, six of ten classes, and a few steps."""
    some, others = (
        dataclasses.replace(glyphs(n, seed=seed), classes=tuple("AHKST01234"))
        for seed, n in enumerate((64, 32))
    )
    for study in (CLASSIFICATION, STABILITY, TRANSFER):
        monkeypatch.setattr(study, "fashion_mnist", lambda: (some, others))
    monkeypatch.setattr(CLASSIFICATION, "TRAIN", 32)
    monkeypatch.setattr(CLASSIFICATION, "RECIPE", CLASSIFICATION.Recipe(2, 16, side=24))
    monkeypatch.setattr(TRANSFER, "TRAIN", 32)
    monkeypatch.setattr(TRANSFER, "RECIPE", TRANSFER.Recipe(1, 16, side=16))
    monkeypatch.setattr(TRANSFER, "SCALED", 2)
    monkeypatch.setattr(STABILITY, "PROBE", 2)
    monkeypatch.setattr(STABILITY, "LAST", 2)
    monkeypatch.setattr(STABILITY, "EVERY", 1)
    monkeypatch.setattr(STABILITY, "BATCH", 4)
    monkeypatch.setattr(STABILITY, "RECIPE", STABILITY.Recipe(1, 4, warm_up=0, side=32))


# --- intervals -----------------------------------------------------------------------------------


def test_the_interval_of_a_mean_is_students():
    """The quantile 4.3027 of two degrees of freedom is in every table of t."""
    x = pd.Series([0.80, 0.82, 0.87])
    found = mean(x)
    half = 4.30265 * x.std() / np.sqrt(3)
    assert found == pytest.approx((x.mean(), x.mean() - half, x.mean() + half), rel=1e-5)
    assert words(found) == "83.0 % (74.0 to 92.0)"
    assert mean(x - 0.9).sign == 0
    assert mean(x).sign == 1
    assert mean(-x).sign == -1
    assert words(mean(x[:1])) == "80.0 %"
    assert mean(pd.Series([0.5, 0.5])) == (0.5, -math.inf, math.inf)
    assert words(mean(pd.Series([0.5, 0.5]))) == "50.0 %"
    assert headline("By {}.", found, 3)["interval"] == "95 % +74.0 to +92.0; seeds: 3"
    assert headline("By {}.", mean(x[:1]), 1)["interval"] == "seeds: 1"


# --- classification ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", CLASSIFICATION.METHODS)
def test_methods_share_all_but_the_attention(method):
    model = CLASSIFICATION.pyramid(method, 9, "pool", 24, 0)
    exact = CLASSIFICATION.pyramid("Softmax", 9, "pool", 24, 0)
    shared = {name: x.shape for name, x in model.named_parameters()}
    due = {name: x.shape for name, x in exact.named_parameters()}
    own = shared.keys() ^ due.keys()
    assert all(".key." in name or "landmarks" in name for name in own)
    assert all(shared[name] == due[name] for name in shared.keys() & due.keys())
    assert isinstance(model, Pyramid)


def test_landmarks_are_as_many_however_they_are_sampled():
    for m, sampling in product(CLASSIFICATION.COUNTS, CLASSIFICATION.SAMPLINGS):
        model = CLASSIFICATION.pyramid("Soft", m, sampling, 24, 0)
        counts = [
            stage.blocks[0].attention.landmarks.count(stage.grid) for stage in model.stages[:3]
        ]
        assert counts == ([m] * 3 if sampling == "pool" else [min(m, 9)] * 3)


def test_a_training_serves_the_rows_of_its_epochs(tmp_path):
    axes = {**CLASSIFICATION.STUDY.axes, "method": ["Soft", "Uniform"], "seed": [0], "m": [9],
            "sampling": ["pool"]}  # fmt: skip
    outcome = run(dataclasses.replace(CLASSIFICATION.STUDY, axes=axes, quick={}), tmp_path)
    assert (outcome.rows, outcome.failed) == (4, 0)
    table = pd.read_csv(outcome.folder / "table.csv")
    assert (table["accuracy"] + table["error_rate"]).to_numpy() == pytest.approx(1)
    assert table["loss"].nunique() == 4
    assert table["epoch"].tolist() == [1, 2] * 2
    again = CLASSIFICATION.measure("Uniform", 9, "pool", 0, torch.float32, CPU)
    assert again[1]["loss"] == pytest.approx(table["loss"].iloc[-1], rel=1e-4)


def test_what_a_step_costs():
    rows = [
        CLASSIFICATION.measure_cost(method, 24, dtype=torch.float32, device=CPU)
        for method in ("Soft", "Softmax")
    ]
    assert rows[0]["n"] == 576
    assert all(row["seconds_q1"] <= row["seconds"] <= row["seconds_q3"] for row in rows)
    assert rows[0]["parameters"] < rows[1]["parameters"]  # no keys of its own
    with pytest.raises(ValueError, match="trains in float32"):
        CLASSIFICATION.measure_cost("Soft", 24, dtype=torch.float64, device=CPU)


# --- stability -----------------------------------------------------------------------------------


def model_of(solver):
    design = dataclasses.replace(scaled(32), rank=4)
    return Pyramid(design, num_classes=6, channels=1, pinv=solver).train()


def examined(solver):
    images, labels = glyphs(4).batch([0, 1, 2, 3], 32, None)
    model = model_of(solver)
    with torch.no_grad():  # queries far enough apart for cores that can be inverted
        for attention in STABILITY.layers(model).values():
            attention.query.weight.mul_(60)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    rows = STABILITY.examined(model, images, labels)
    assert model.training
    assert all(torch.equal(before[name], x) for name, x in model.state_dict().items())
    return rows


def test_unrolled_steps_have_their_own_gradient_and_few_implicit_ones_another():
    """The planted fault: three Newton steps leave what the implicit rule takes for an inverse."""
    true = examined(NewtonRaphson(3))
    false = examined(ImplicitGradient(NewtonRaphson(3)))
    assert set(true) == {1, 2, 3}
    for layer in true:
        assert true[layer]["gradient_error"] < 2e-3
        assert true[layer]["worst_residual"] == pytest.approx(false[layer]["worst_residual"])
    assert max(row["gradient_error"] for row in false.values()) > 0.1


def test_an_exact_inverse_has_converged():
    for row in examined(SVD()).values():
        assert row["worst_residual"] < 1e-8
        assert row["unconverged"] == 0
        assert row["condition"] <= row["worst_condition"]


def test_the_core_is_what_the_solver_is_given():
    seen = []

    class Spy(type(NewtonRaphson())):
        def __call__(self, a):
            seen.append(a)
            return super().__call__(a)

    model = model_of(Spy(2)).double().eval()
    images, _ = glyphs(2).batch([0, 1], 32, None)
    found = STABILITY.cores(model, images.double())
    assert len(seen) == len(found) == 3
    for mine, theirs in zip(found.values(), seen, strict=True):
        assert torch.equal(mine, theirs)
    with pytest.raises(TypeError, match="has no core"):
        model.stages[3].blocks[0].attention.core(torch.zeros(1, 4, 64), (2, 2))
    assert unrolled(ImplicitGradient(NewtonRaphson(2))) == NewtonRaphson(2)


def test_a_training_serves_the_rows_of_its_steps_and_layers(tmp_path):
    axes = {**STABILITY.STUDY.axes, "rule": ["implicit"], "seed": [0]}
    outcome = run(dataclasses.replace(STABILITY.STUDY, axes=axes, quick={}), tmp_path)
    assert (outcome.rows, outcome.failed) == (9, 0)
    table = pd.read_csv(outcome.folder / "table.csv")
    assert table["step"].tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert table["loss"].isna().tolist() == [True] * 3 + [False] * 6
    assert steady.findings(table)


def test_a_training_that_breaks_keeps_its_rows(monkeypatch):
    learn = STABILITY.Run.learn

    def broken(run, x, labels):
        return learn(run, x * (math.nan if run.step == 1 else 1), labels)

    monkeypatch.setattr(STABILITY.Run, "learn", broken)
    rows = STABILITY.measure("implicit", 0, torch.float32, CPU)
    assert [(row["step"], row["layer"]) for row in rows] == [*product((0, 1), (1, 2, 3))]
    assert rows[0]["worst_residual"] > 0
    assert {row["broke"] for row in rows} == {1}
    said = steady.findings(pd.DataFrame(rows).assign(status="ok", rule="implicit", seed=0))
    assert said[-1].endswith("finite end there: implicit, seed 0, at step 1.")


# --- transfer ------------------------------------------------------------------------------------


def test_activations_are_those_of_the_operator_and_the_model_is_left_alone():
    """Equal tokens: a mean keeps its size, a sum over the tokens grows with their number."""
    images = glyphs(2)
    flat = dataclasses.replace(images, pixels=torch.full_like(images.pixels, 200))
    found = {}
    for method in ("Uniform", "Soft, none", "Soft, row"):
        model = TRANSFER.pyramid(method, 0)
        own = [vars(m).copy() for m in model.modules()]
        sizes = [TRANSFER.activations(model, flat, side, CPU) for side in (16, 32)]
        assert [vars(m).keys() for m in model.modules()] == [x.keys() for x in own]
        found[method] = sizes[1][2] / sizes[0][2]
    assert found["Uniform"] == pytest.approx(1, abs=0.3)
    assert found["Soft, row"] == pytest.approx(1, abs=0.3)
    assert found["Soft, none"] == pytest.approx(4, rel=0.3)


def test_a_training_serves_the_rows_of_its_sides(tmp_path):
    axes = {"method": ["Soft, published, m grows", "Softmax"], "seed": [0]}
    outcome = run(dataclasses.replace(TRANSFER.STUDY, axes=axes, quick={}), tmp_path)
    assert (outcome.rows, outcome.failed) == (8, 0)
    table = pd.read_csv(outcome.folder / "table.csv")
    assert table["drop"][::4].tolist() == [0, 0]
    assert table["growth"][::4].tolist() == [1, 1]
    assert table["n"].tolist() == [256, 576, 1024, 2304] * 2
