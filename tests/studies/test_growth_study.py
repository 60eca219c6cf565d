"""The growth study: every operator takes part, exponents are the rows', memory is linear."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from softlab import operators
from softlab.engine.loading import load
from softlab.operators import ColumnSample, Softmax, TopK
from softlab.profiling import peak_memory
from softlab.study import run
from studies.growth.chapter import LIMIT, exponents, scope, tables

GROWTH = load(Path(__file__).parents[2] / "studies" / "growth")
LIGHT = [op for op in GROWTH.PARTS if GROWTH.keep(op, 16384)]


def powers(**of):
    """A table of operators whose seconds are powers of n: name -> (exponent, factor, memory)."""
    rows = []
    for name, (exponent, factor, memory) in of.items():
        for n in (1024, 2048, 4096, 8192):
            rows.append({
                "status": "ok", "family": "made up", "method": name, "n": n, "work": n**exponent,
                "seconds_q1": factor * n**exponent, "peak_bytes": memory * n, "memory": memory,
                "exact_seconds": 1e-9 * n**2 if n < 8192 else None, "seconds": None,
                "seconds_q3": factor * n**exponent, "exact_seconds_q1": None,
                "exact_seconds_q3": None,
            })  # fmt: skip
    return pd.DataFrame(rows)


def test_every_operator_takes_part_but_the_dense_control():
    shown = {type(op).__name__ for op in GROWTH.PARTS}
    assert shown == set(operators.__all__) - {"TruncatedSVD"}


def test_quadratic_work_ends_earlier():
    lengths = {op: [n for n in GROWTH.LENGTHS if GROWTH.keep(op, n)] for op in GROWTH.PARTS}
    assert lengths[Softmax()] == [1024, 2048, 4096, 8192]
    assert lengths[TopK(64)] == [512, 1024, 2048]
    assert lengths[ColumnSample(64)] == [1024, 2048, 4096, 8192, 16384]


@pytest.mark.sampled(1 / 2)
@pytest.mark.parametrize("op", LIGHT, ids=repr)
def test_memory_at_16384_tokens_is_at_most_ten_times_q(op):
    q, k, v = GROWTH.drawn(16384, torch.float32, torch.device("cpu"))
    assert peak_memory(lambda: op(q, k, v), q.device) <= LIMIT * q.numel() * 4


def test_a_lost_race_counts_until_its_last_length():
    table = powers(Late=(1, 2.5e-6, 4))
    assert exponents(table)["from"].item() == 4096
    table.loc[table["n"] == 4096, ["seconds_q1", "seconds_q3"]] = 1.0
    assert np.isnan(exponents(table)["from"].item())


def test_the_study_runs_and_its_chapter_reads_it(tmp_path):
    axes = {"n": (512, 1024, 2048, 4096), "op": [Softmax(), ColumnSample(64)]}
    small = replace(GROWTH.STUDY, axes=axes, quick={})
    outcome = run(small, tmp_path, threads=1)
    assert (outcome.failed, outcome.rows) == (0, 3 + 3)
    table = pd.read_csv(outcome.folder / "table.csv")
    assert table["memory"].gt(0).all()
    assert "sampling (ColumnSample)" in scope(table)
    assert list(exponents(table)["claimed"]) == pytest.approx([2, 1])
    (made,) = tables(table)
    assert {len(row) for row in made["rows"]} == {len(made["header"])}
