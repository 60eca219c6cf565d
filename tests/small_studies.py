"""Every study, made small: few tokens, a few steps of training, small models, no timing."""

import itertools
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest
import torch
from glyphs import glyphs
from torch import nn
from torch.nn import functional

from softlab import laws, measures, study_folders
from softlab.engine.loading import load
from softlab.pretrained.tasks import UnderTest
from studies.in_model import study as in_model
from studies.precision_in_model import study as precision_in_model

ROOT = Path(__file__).parents[1]
STUDIES = sorted(study_folders.built_in())


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Attend(nn.Module):
    def forward(self, q, k, v, **more):
        return functional.scaled_dot_product_attention(q, k, v, **more)


class Net(nn.Module):
    """Layers that project, attend and add, in a row."""

    def __init__(self, depth=3, width=16, heads=2, causal=False):
        super().__init__()
        torch.manual_seed(0)
        self.heads, self.causal = heads, causal
        self.project = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(depth))
        self.attend = nn.ModuleList(Attend() for _ in range(depth))

    def forward(self, x):
        for project, attend in zip(self.project, self.attend, strict=True):
            parts = 3 * project(functional.layer_norm(x, x.shape[-1:]))
            q, k, v = (
                y.unflatten(-1, (self.heads, -1)).transpose(-3, -2) for y in parts.chunk(3, -1)
            )
            x = x + attend(q, k, v, is_causal=self.causal).transpose(-3, -2).flatten(-2)
        return x


def small(name, tokens=None):
    model = Net(depth=in_model.DEPTH[name], causal=name == "smollm2").eval().requires_grad_(False)
    x = draw(2, 70, 16)
    names = tuple(f"attend.{i}" for i in range(in_model.DEPTH[name]))
    return UnderTest(
        name, model, lambda: model(x), lambda out: ("a loss", float(out.std())), names, 70
    )


def use_small_models(monkeypatch):
    """The studies of trained models are of small networks with as many layers."""
    monkeypatch.setattr(in_model, "under_test", small)
    monkeypatch.setattr(precision_in_model, "under_test", small)


def drawn_input(value):
    return "Recorded" not in repr(value)


def drawn_matrix(value):
    usual = getattr(value, "condition", None) in (1, 10) or getattr(value, "spread", None) == 0.1
    return usual and "Core" not in repr(value)


def random_solver(value):
    return any(word in repr(value) for word in ("Sketch", "Estimate", "Chebyshev"))


DRAWN = {
    "bandwidth": {"input": drawn_input, "op": all, "stretch": 1},
    "certificates": {"method": lambda name: name in ("BigBird", "RPCholesky", "Skyformer")},
    "budget": {"input": drawn_input, "op": lambda op: op.rank == 16, "precision": 1},
    "frontier": {"input": drawn_input, "method": all, "budget": lambda share: share == 0.5},
    "growth": {"op": all, "n": lambda n: n == 1024},
    "landmarks": {"input": drawn_input, "setting": all, "allowance": lambda x: x == 16,
                  "selector": all},
    "length": {"input": all, "op": all},
    "normalization": {"input": drawn_input},
    "rank": {"input": drawn_input, "op": lambda op: getattr(op, "rank", 4) == 4},
    "convergence": {"matrix": drawn_matrix, "solver": random_solver},
    "spoiling": {"solver": random_solver},
    "gradients": {"matrix": drawn_matrix},
    "precision": {"matrix": drawn_matrix, "solver": random_solver},
    "classification": {"method": 1, "sampling": all},
    "transfer": {"method": 1},
    "segmentation": {"method": 1},
    "in_model": {"method": all, "part": 1},
    "peers": {"law": lambda law: law in ("linear in v", "seeds")},
    "mutations": {"specimen": lambda one: "KDEFormer" in one.base},
}  # fmt: skip
"""Of each study the values that are measured: all, the first few, or those that will do. Of every
other axis it is the first."""


def few(values, which):
    if which is all:
        return list(values)
    return list(values)[:which] if isinstance(which, int) else [x for x in values if which(x)]


def tiny(value, most=64):
    """The input or matrix with few tokens."""
    if not is_dataclass(value):
        return value
    held = {field.name: tiny(getattr(value, field.name)) for field in fields(value)}
    return replace(value, **{k: min(x, most) if k in ("n", "m") else x for k, x in held.items()})


def cases(study):
    """The cases of the grid that are measured, tiny."""
    wanted = DRAWN.get(study.name, {})
    axes = {axis: few(x, wanted.get(axis, 1)) for axis, x in study.axes.items()}
    for values in itertools.product(*axes.values()):
        case = dict(zip(axes, values, strict=True))
        if study._keeps(case):
            yield {axis: tiny(x) if axis in ("input", "matrix") else x for axis, x in case.items()}


def untimed(call, *_, **__):
    call()
    return dict.fromkeys(("seconds", "seconds_q1", "seconds_q3", "repeats"), 1.0)


def unheld(call, *_):
    call()
    return 1


@pytest.fixture
def small_study(monkeypatch):
    """Glyphs for garments, a few steps of training, and no time for timing."""
    use_small_models(monkeypatch)
    changed = []

    def load_small(name):
        module = load(ROOT / "studies" / name)
        module = {"in_model": in_model, "precision_in_model": precision_in_model}.get(name, module)
        classes = tuple("AHKST01234")
        held = [replace(glyphs(n, seed=n), classes=classes) for n in (32, 16)]
        smaller = {
            "fashion_mnist": lambda: held, "TRAIN": 16, "TEST": 2, "PROBE": 2, "SCALED": 2,
            "LAST": 1, "EVERY": 1, "BATCH": 2, "STEPS": 1, "SEQUENCES": 2,
            "seconds": untimed, "peak_memory": unheld, "in_turn": untimed,
        }  # fmt: skip
        for key in smaller.keys() & vars(module).keys():
            monkeypatch.setattr(module, key, smaller[key])
        if hasattr(module, "RECIPE"):
            recipe = replace(module.RECIPE, epochs=1, batch=2, warm_up=0)
            monkeypatch.setattr(module, "RECIPE", recipe)
        changed.append(module)
        return module

    monkeypatch.setattr(measures, "seconds", untimed)
    monkeypatch.setattr(measures, "peak_memory", unheld)
    suite = laws.suite
    monkeypatch.setattr(
        laws, "suite", lambda x: [law for law in suite(x) if law.name in ("seeds", "linear in v")]
    )
    yield load_small
    # What was kept of a small study is no answer for another test.
    for module in changed:
        for held in vars(module).values():
            if hasattr(held, "cache_clear"):
                held.cache_clear()
