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

from softlab.chapters import classification as told
from softlab.chapters import stability as steady
from softlab.chapters import transfer as moved
from softlab.chapters.intervals import headline, mean, words
from softlab.gradients import unrolled
from softlab.models import Pyramid
from softlab.models.soft import scaled
from softlab.pinv import SVD, ImplicitGradient, NewtonRaphson
from softlab.study import run
from softlab.study_file import load

STUDIES = Path(__file__).parent.parent / "studies"
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
            "sampling": ["pool"], "epoch": [1, 2]}  # fmt: skip
    outcome = run(dataclasses.replace(CLASSIFICATION.STUDY, axes=axes, quick={}), tmp_path)
    assert (outcome.rows, outcome.failed) == (4, 0)
    table = pd.read_csv(outcome.folder / "table.csv")
    assert (table["accuracy"] + table["error"]).to_numpy() == pytest.approx(1)
    assert table["loss"].nunique() == 4
    assert CLASSIFICATION.trained("Uniform", 9, "pool", 0, CPU)[1]["loss"] == pytest.approx(
        table["loss"].iloc[-1], rel=1e-4
    )


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


def accuracies(**by_method):
    """A table of three seeds, each method's mean and what it has beside a common course."""
    rows = []
    for method, (level, noise) in by_method.items():
        for seed, own in enumerate((0, noise, -noise)):
            rows.append({
                "status": "ok", "method": method, "m": 9, "sampling": "pool", "seed": seed,
                "epoch": 3, "accuracy": level + 0.02 * seed + own,
            })  # fmt: skip
    return pd.DataFrame(rows)


def test_differences_are_taken_seed_by_seed():
    """Seeds differ by 2 %, methods by 1 % on each: told apart all the same; noise hides it."""
    table = accuracies(Softmax=(0.80, 0), Soft=(0.81, 1e-4), Performer=(0.79, 0.01))
    text = " ".join(told.findings(table))
    assert "beyond doubt: Soft by +1.0 points. Not told apart from it: Performer" in text
    assert "of the paper's 3 orders" in text.lower()
    assert "confirms 1 (Soft over Softmax) and reverses 0" in text
    table = accuracies(Softmax=(0.82, 0), Soft=(0.81, 1e-4))
    assert "confirms 0 and reverses 1 (Soft over Softmax)" in " ".join(told.findings(table))
    (first,) = told.headlines(table)
    assert first["value"] == "-1.0"


def test_the_null_control_bounds_what_attention_adds():
    text = " ".join(told.findings(accuracies(Softmax=(0.82, 0), Uniform=(0.79, 1e-4))))
    assert "reaches 81.0 %" in text
    assert "Softmax, is +3.0 points" in text


def test_the_chapter_of_ablations_and_costs():
    table = accuracies(Softmax=(0.82, 0), Soft=(0.82, 1e-4))
    more = accuracies(Soft=(0.80, 2e-4)).assign(m=12)
    conv = accuracies(Soft=(0.83, 1e-3)).assign(sampling="conv")
    both = pd.concat([table, more, conv])
    text = " ".join(told.findings(both))
    assert "of 1 pairs told apart are 9 and 12" in text
    assert (
        "as many, reach 85.0 % (80.2 to 89.8): +1.0 points (+0.8 to +1.2) from pooled ones." in text
    )
    plain, ablations = told.tables(both)
    assert [row[0] for row in plain["rows"]] == ["Softmax", "Soft"]
    assert [row[:2] for row in ablations["rows"]] == [["pool", "9"], ["pool", "12"], ["conv", "9"]]
    costs = pd.DataFrame({
        "status": "ok", "method": ["Softmax", "Soft"], "n": 576, "seconds": [0.2, 0.1],
        "seconds_q1": [0.19, 0.09], "seconds_q3": [0.21, 0.11], "megabytes": [8.0, 2.0],
        "multiply_adds": 1e6, "parameters": 5, "gain": [1.0, 500.0],
    })  # fmt: skip
    (said,) = told.findings(costs)
    assert said.endswith("in time and memory over that: Soft 0.500 and 0.250.")
    assert [line["value"] for line in told.headlines(costs)] == ["0.500"]


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
    axes = {**STABILITY.STUDY.axes, "rule": ["implicit"], "seed": [0], "step": [0, 2]}
    outcome = run(dataclasses.replace(STABILITY.STUDY, axes=axes, quick={}), tmp_path)
    assert (outcome.rows, outcome.failed) == (6, 0)
    table = pd.read_csv(outcome.folder / "table.csv")
    assert table["loss"].isna().tolist() == [True] * 3 + [False] * 3
    assert steady.findings(table)


def test_a_training_that_breaks_keeps_its_rows(monkeypatch):
    learn = STABILITY.Run.learn

    def broken(run, x, labels):
        return learn(run, x * (math.nan if run.step == 1 else 1), labels)

    monkeypatch.setattr(STABILITY.Run, "learn", broken)
    STABILITY.trace.cache_clear()
    row = STABILITY.measure("implicit", 0, 0, 1, dtype=torch.float32, device=CPU)
    assert row["worst_residual"] > 0
    with pytest.raises(STABILITY.LossError, match="not finite before step 2"):
        STABILITY.measure("implicit", 0, 2, 1, dtype=torch.float32, device=CPU)
    STABILITY.trace.cache_clear()


def test_the_chapter_of_stability_says_what_the_table_holds():
    rows = [
        {"status": "ok", "rule": rule, "seed": seed, "step": step, "layer": layer,
         "loss": 1.0 + 0.1 * seed + (rule == "implicit"), "worst_condition": 10.0**step,
         "worst_residual": 1.0, "unconverged": 0.25 if rule == "implicit" else 0.0,
         "cosine": -0.1 if rule == "implicit" and layer == 2 else 1.0,
         "gradient_error": 0.8 if rule == "implicit" else 1e-3}
        for rule, seed, step, layer in product(("implicit", "unrolled"), range(3), (1, 4), (1, 2))
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    cores, gradients, losses = steady.findings(table)
    assert "layer 1 10.0 and 1.00 × 10⁴" in cores  # noqa: RUF001
    assert "not converged in 25 % and 25 %" in cores
    assert "implicit is off by 0.800 in the median and 0.800 at most" in gradients
    assert (
        "a half in 12 of 12 places (a step, layer and seed each), with the wrong sign in 6."
        in gradients
    )
    assert "implicit +91.4 % (+70.7 % to +112.1 %). Beyond the interval differ impl" in losses
    (line,) = steady.headlines(table)
    assert (line["value"], "25 %" in line["text"]) == ("0.800", True)
    (made,) = steady.tables(table)
    assert {len(row) for row in made["rows"]} == {len(made["header"])}


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
    axes = {"method": ["Soft, published, m grows", "Softmax"], "seed": [0], "side": [16, 24]}
    outcome = run(dataclasses.replace(TRANSFER.STUDY, axes=axes, quick={}), tmp_path)
    assert (outcome.rows, outcome.failed) == (4, 0)
    table = pd.read_csv(outcome.folder / "table.csv")
    assert table["drop"][::2].tolist() == [0, 0]
    assert table["growth"][::2].tolist() == [1, 1]
    assert table["n"].tolist() == [256, 576] * 2


def test_the_chapter_of_transfer_says_what_the_table_holds():
    rows = [
        {"status": "ok", "method": method, "seed": seed, "side": side,
         "accuracy": 0.8 + 0.01 * seed - lost * (side > 16),
         "drop": lost * (0.99 + 0.01 * seed) * (side > 16),
         "growth": (side / 16) ** (2 * power * (0.99 + 0.01 * seed))}
        for method, lost, power in (("Soft, none", 0.3, 1.0), ("Soft, symmetric", 0.1, 0.0))
        for seed, side in product(range(3), (16, 48))
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    grows, lost, verdict = moved.findings(table)
    assert "Soft, none 1.00 (0.975 to 1.02) and Soft, symmetric 0." in grows
    assert "At 3 times the resolution" in lost
    assert "Soft, symmetric +10.0 points (+9.8 to +10.2) and Soft, none +30.0 points" in lost
    assert (
        "loses +20.0 points (+19.5 to +20.5) more than Soft, symmetric: normalisation keeps"
        in verdict
    )
    (line,) = moved.headlines(table)
    assert line["value"] == "+20.0"
    (made,) = moved.tables(table)
    assert {len(row) for row in made["rows"]} == {len(made["header"])}
    table.loc[table["method"] == "Soft, symmetric", "method"] = "Softmax"
    assert moved.findings(table)[2] == ""
    table = pd.concat([table, table.assign(method="Soft, symmetric")])
    assert "Softmax attention, which nothing of this concerns" in moved.findings(table)[2]
    whole = table[table["method"] == "Softmax"].assign(method=moved.WHOLE, drop=0.6)
    said = moved.findings(pd.concat([table, whole]))[2]
    assert "and +60.0 points where it learnt from whole images alone" in said
    table = table[~table.duplicated(["method", "seed", "side"])].copy()
    table.loc[table["method"] == "Soft, none", "drop"] *= 0.1
    assert "normalisation loses more" in moved.findings(table)[2]
