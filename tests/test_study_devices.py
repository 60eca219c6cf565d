"""Every study's measure on a pretended CUDA device: nothing stays behind on the CPU.

What it measures there is what it measures on the CPU, but for times and for numbers that are
nothing but rounding. Times themselves need a GPU: ``benchmarks/gpu.py``.
"""

import contextlib
import math
from dataclasses import replace

import pytest
import small_studies
import torch
from pretended import CUDA, MixedDevicesError, pretending
from small_studies import STUDIES, cases

from softlab.engine.workers import called
from softlab.study import Study

small_study = small_studies.small_study
HERE = torch.device("cpu")
ON_CPU = {"in_model", "precision_in_model", "peers"}
"""Studies of whole models and packages, which say that they run on the CPU alone."""
MOST = 2
"""Cases of a study that are measured twice; one of those that train a network."""
TRAINED = {"classification", "transfer", "stability", "segmentation", "training", "memory"}
ALIKE = {"classification", "transfer"}
"""They train the network that ``stability`` trains, and are asked by ``make test-all``."""
NEAR = 0.05
"""Of rounding that an inverse or a few steps of training have amplified."""
DIGITS = 1e8
"""Condition numbers beyond have no digits in float32."""


def some(study):
    """Cases of different kinds, from the first to the last."""
    kinds = {}
    for case in cases(study):
        kinds.setdefault(tuple(x if isinstance(x, str) else type(x) for x in case.values()), case)
    found = list(kinds.values())
    most = 1 if study.name in TRAINED else MOST
    return found[:: max(1, -(-len(found) // most))]


def rows(study, case, device):
    with pretending() if device == CUDA else contextlib.nullcontext():
        given = {**case, "dtype": torch.float32, "device": device}
        if study.setup is not None:
            given["setup"] = called(study.setup, given)
        made = called(study.measure, given)
        return list(made) if study.within else [made]


def alike(x, y):
    if not isinstance(x, float) or not math.isfinite(x):
        return type(x) is type(y) and (x == y or x != x)
    return abs(x) > DIGITS < abs(y) or math.isclose(x, y, rel_tol=NEAR, abs_tol=1e-4)


@pytest.mark.parametrize("name", sorted({*STUDIES} - ON_CPU))
def test_a_measure_stays_on_its_device_and_finds_what_it_finds_here(
    name,
    small_study,
    request,
):
    if name in ALIKE and not request.config.getoption("--all"):
        pytest.skip("of a network that another study trains")
    studies = [x for x in vars(small_study(name)).values() if isinstance(x, Study)]
    for study in studies:
        chosen = some(study)
        assert chosen
        for case in chosen:
            for mine, theirs in zip(rows(study, case, HERE), rows(study, case, CUDA), strict=True):
                assert mine.keys() == theirs.keys()
                apart = {x: (mine[x], theirs[x]) for x in mine if not alike(mine[x], theirs[x])}
                assert not apart.keys() - {*study.timed}, case


@pytest.mark.parametrize("name", sorted(ON_CPU))
def test_a_study_of_the_cpu_alone_says_so(name, small_study):
    for study in [x for x in vars(small_study(name)).values() if isinstance(x, Study)]:
        with pytest.raises(ValueError, match="this study runs on the CPU alone"):
            rows(study, some(study)[0], CUDA)


def test_a_tensor_left_behind_would_be_seen(small_study):
    study = small_study("rank").STUDY
    case = some(study)[0]
    with pretending():
        given = {**case, "dtype": torch.float32, "device": CUDA}
        drawn = called(study.setup, given)
        given["setup"] = replace(drawn, k=drawn.k.cpu())
        with pytest.raises((MixedDevicesError, ValueError), match="cuda:0"):
            called(study.measure, given)
