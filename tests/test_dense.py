"""Canvases, the head on a pyramid's scales, and the intersection over union; the study of them."""

import dataclasses
from pathlib import Path

import pandas as pd
import pytest
import torch
from glyphs import glyphs

from softlab.datasets.images import Held
from softlab.datasets.scenes import THRESHOLD, Canvases
from softlab.engine.loading import load
from softlab.models import Design, Pyramid
from softlab.models.segmentation import Dense, confusion, intersection_over_union
from softlab.study import run

STUDY = load(Path(__file__).parent.parent / "studies" / "segmentation")
LEAST = Design(
    (1, 1, 1, 1), (8, 8, 8, 8), (1, 1, 1, 1), (2, 2, 2, 2), (2, 1, 1), 4, (3, 0, 0), 4, 32
)


def squares(side=8):
    """Two classes: full squares, bright and less so, in a margin of one dark pixel."""
    pixels = torch.zeros(2, 1, side, side, dtype=torch.uint8)
    pixels[:, :, 1:-1, 1:-1] = torch.tensor([200, 100], dtype=torch.uint8)[:, None, None, None]
    return Held(pixels, torch.tensor([0, 1]), ("bright", "dull"), mean=0.0, std=1.0)


# --- canvases ------------------------------------------------------------------------------------


def test_labels_are_where_the_things_are_seen():
    """Every lit pixel is of the class whose brightness it has; the ground is dark."""
    scenes = Canvases(squares(), 24, 20)
    for i in range(len(scenes)):
        pixels, labels = scenes.scene(i)
        assert torch.equal(labels == 1, pixels == 200)
        assert torch.equal(labels == 2, pixels == 100)
        assert torch.equal(labels == 0, pixels <= THRESHOLD)
        assert not torch.equal(labels.roll(1, 0) == 1, pixels == 200) or bool((labels != 1).all())


def test_things_keep_their_size_and_a_larger_canvas_has_more():
    lone = Canvases(squares(), 8, 4).scene(0)[1]
    assert int((lone > 0).sum()) == 36
    for side, count in ((24, 9), (48, 36)):
        areas = [int((Canvases(squares(), side, 30).scene(i)[1] > 0).sum()) for i in range(30)]
        assert 36 < max(areas) <= 36 * count
        assert sum(areas) / 30 > 0.4 * 36 * count  # some stand before others


def test_scenes_are_functions_of_seed_and_index():
    scenes = Canvases(glyphs(30), 48, 5, seed=3)
    x, labels = scenes.batch([4, 1])
    assert (x.shape, labels.shape) == ((2, 1, 48, 48), (2, 48, 48))
    again = Canvases(glyphs(30), 48, 9, seed=3)
    assert torch.equal(again.batch([1])[0][0], x[1])
    assert not torch.equal(Canvases(glyphs(30), 48, 5, seed=4).batch([1])[0][0], x[1])
    assert not torch.equal(x[0], x[1])
    assert x.min() == pytest.approx(-0.15 / 0.3)  # the ground, normalised as the images are
    assert scenes.classes == ("ground", *"AHKST0")


# --- intersection over union ---------------------------------------------------------------------


def test_intersection_over_union_by_hand():
    labels = torch.tensor([[0, 0, 1], [1, 1, 2]])
    predicted = torch.tensor([[0, 1, 1], [1, 0, 2]])
    counts = confusion(predicted, labels, 4)
    assert counts.tolist() == [[1, 1, 0, 0], [1, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    found = intersection_over_union(counts)
    assert found[:3].tolist() == pytest.approx([1 / 3, 2 / 4, 1])
    assert found[3].isnan()


def test_the_perfect_answer_has_one_and_a_shifted_one_less():
    _, labels = Canvases(squares(), 24, 10).batch(list(range(10)))
    perfect = intersection_over_union(confusion(labels, labels, 3))
    assert perfect.tolist() == [1, 1, 1]
    shifted = intersection_over_union(confusion(labels.roll(1, 1), labels, 3))
    assert float(shifted.max()) < 0.95
    wrong = intersection_over_union(confusion((labels + 1) % 3, labels, 3))
    assert wrong.tolist() == [0, 0, 0]


# --- the head ------------------------------------------------------------------------------------


@pytest.mark.parametrize("sides", [(32, 32), (48, 64)])
def test_every_pixel_is_scored_by_all_four_scales(sides):
    model = Dense(Pyramid(LEAST, num_classes=0, channels=1), 5, width=6)
    scores = model(torch.randn(2, 1, *sides, generator=torch.Generator().manual_seed(0)))
    assert scores.shape == (2, 5, *sides)
    scores.square().sum().backward()
    assert all(float(layer.weight.grad.norm()) > 0 for layer in model.lateral)
    assert all(float(stage.positions.grad.norm()) > 0 for stage in model.backbone.stages)


def test_the_heads_weights_are_functions_of_the_seed():
    pyramid = Pyramid(LEAST, num_classes=0, channels=1)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, same, other = (Dense(pyramid, 5, seed=seed).head.weight for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


BAD = [
    (lambda: Dense(Pyramid(LEAST, channels=1), 3), TypeError, "num_classes=0"),
    (lambda: Dense(torch.nn.Identity(), 3), TypeError, "takes a Pyramid"),
    (lambda: Canvases(squares(), 6, 1), ValueError, "8 x 8 pixels do not stand on a canvas of 6"),
    (lambda: Canvases(squares(), 16, 0), ValueError, "Canvases.count is 0"),
    (lambda: confusion(torch.tensor([3]), torch.tensor([0]), 3), ValueError, "predicted must be"),
    (lambda: confusion(torch.tensor([1]), torch.tensor([[0]]), 3), ValueError, "one each"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[text for *_, text in BAD])
def test_bad_input_is_one_clear_line(call, error, message):
    with pytest.raises(error, match=message):
        call()


# --- the study -----------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(STUDY, "fashion_mnist", lambda: (glyphs(40), glyphs(20, seed=1)))
    for name, value in (("STEPS", 3), ("BATCH", 2), ("TEST", 4)):
        monkeypatch.setattr(STUDY, name, value)
    monkeypatch.setattr(STUDY, "RECIPE", STUDY.Recipe(3, 2, warm_up=0))


def test_a_head_learns_squares(small, monkeypatch):
    monkeypatch.setattr(STUDY, "STEPS", 80)
    monkeypatch.setattr(STUDY, "BATCH", 4)
    monkeypatch.setattr(STUDY, "RECIPE", STUDY.Recipe(80, 4, rate=1e-2, warm_up=4))
    model = Dense(Pyramid(LEAST, num_classes=0, channels=1), 3, width=8)
    before = STUDY.judged(model, Canvases(squares(), 32, 8, seed=1), "cpu")
    STUDY.learn(model, Canvases(squares(), 32, 320), "cpu")
    after = STUDY.judged(model, Canvases(squares(), 32, 8, seed=1), "cpu")
    assert after["miou"] > 0.5 > before["miou"]
    assert after["blank"] == before["blank"] < 0.34


def test_a_training_serves_the_rows_of_its_sides(small, tmp_path):
    axes = {**STUDY.STUDY.axes, "method": ["Soft, symmetric", "Uniform"], "seed": [0]}
    outcome = run(dataclasses.replace(STUDY.STUDY, axes=axes, quick={}), tmp_path)
    assert (outcome.rows, outcome.failed) == (4, 0)
    table = pd.read_csv(outcome.folder / "table.csv")
    assert table["n"].tolist() == [576, 2304] * 2
    assert table["lost"][::2].tolist() == [0, 0]
    model = STUDY.network("Softmax", 0, 7)
    with torch.no_grad():
        model.head.bias[0] = float("nan")
    with pytest.raises(STUDY.LossError, match="the loss is nan at step 0"):
        STUDY.learn(model, Canvases(glyphs(9), 48, 6), "cpu")
