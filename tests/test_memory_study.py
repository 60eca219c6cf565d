"""The memory study: exact fits of polynomials, and what its rows must obey."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from softlab.chapters.memory import ROOM, findings, fitted, growth, headlines, scope, tables
from softlab.study import run
from softlab.study_file import load

MEMORY = load(Path(__file__).parent.parent / "studies" / "memory.py")


def made():
    """Peaks that are polynomials: a square for one method, straight lines for the others."""
    rows = []
    for mode in ("inference", "training"):
        for n in (784, 1568, 3136):
            for method, peak in (
                ("materialised softmax", 1e6 + 1e4 * n + 100 * n**2),
                ("fused softmax", 1e6 + 2e5 * n),
                ("SOFT (implicit)", 2e6 + 1e5 * n),
            ):
                rows.append({
                    "status": "ok", "method": method, "mode": mode, "n": n, "peak_bytes": peak,
                })  # fmt: skip
    return pd.DataFrame(rows)


def test_the_longest_sequence_of_a_polynomial_is_its_root():
    longest = growth(made()).set_index(["mode", "method"])["longest"]["training"]
    assert longest["fused softmax"] == pytest.approx((ROOM - 1e6) / 2e5)
    assert longest["SOFT (implicit)"] == pytest.approx((ROOM - 2e6) / 1e5)
    n = longest["materialised softmax"]
    assert 1e6 + 1e4 * n + 100 * n**2 == pytest.approx(ROOM)
    assert np.isnan(fitted(np.array([1.0, 2.0]), np.array([1.0, 4.0]), ROOM))
    n = np.array([1.0, 2.0, 3.0])
    assert fitted(n, np.full(3, 7.0), ROOM) == np.inf


def test_the_chapter_says_what_the_table_holds():
    said = findings(made())
    assert len(said) == 2
    assert said[1].startswith("In training with 3136 tokens, in MB: materialised softmax takes ")
    assert "materialised softmax takes 3.22 times what SOFT (implicit) does" in said[1]
    (first,) = headlines(made())
    assert first["value"] == "2.00"
    assert "784, 1568 and 3136 tokens" in scope(made())
    (table,) = tables(made())
    assert {len(row) for row in table["rows"]} == {len(table["header"])}
    assert [row[0] for row in table["rows"]] == ["inference", "", "", "training", "", ""]


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
