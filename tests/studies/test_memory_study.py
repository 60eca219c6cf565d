"""The memory study: what its rows must obey."""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from softlab.engine.loading import load
from softlab.study import run

MEMORY = load(Path(__file__).parents[2] / "studies" / "memory")


def test_soft_takes_no_more_than_fused_softmax_and_far_less_than_its_matrix(tmp_path):
    """Two layers of the study's twelve: what holds for each holds for all."""
    MEMORY.LAYERS = 2
    axes = {"method": MEMORY.METHODS, "mode": MEMORY.MODES, "p": (1,)}
    outcome = run(replace(MEMORY.STUDY, axes=axes, quick={}), tmp_path, threads=1)
    assert (outcome.failed, outcome.rows) == (0, 8)
    table = pd.read_csv(outcome.folder / "table.csv")
    peak = table.set_index(["mode", "method"])["peak_bytes"]
    for mode in MEMORY.MODES:
        assert peak[mode, MEMORY.IMPLICIT] <= 1.1 * peak[mode, MEMORY.FUSED]
        assert peak[mode, MEMORY.DENSE] > 1.5 * peak[mode, MEMORY.FUSED]
    assert peak["training", MEMORY.UNROLLED] > peak["training", MEMORY.IMPLICIT]


def test_the_grid_stops_where_the_matrix_would_fill_the_machine():
    cases = list(MEMORY.STUDY.cases())
    dense = [case["p"] for case in cases if case["method"] == MEMORY.DENSE]
    assert max(dense) == 4
    assert max(case["p"] for case in cases if case["method"] == MEMORY.FUSED) == 8
