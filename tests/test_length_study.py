"""The length study: sampled errors agree with exact ones, exponents are the rows'."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from softlab.chapters.length import exponents, findings, scope, slope, tables
from softlab.operators import Local, Nystromformer, Soft, Uniform
from softlab.study import run
from softlab.study_file import load

LENGTH = load(Path(__file__).parent.parent / "studies" / "length.py")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    ops = [Soft(64), Nystromformer(64), Local(64), Uniform()]
    axes = {"input": LENGTH.INPUTS, "n": (256, 512, 1024), "op": ops}
    outcome = run(
        replace(LENGTH.STUDY, axes=axes, quick={}), tmp_path_factory.mktemp("length"), threads=1
    )
    assert (outcome.failed, outcome.rows) == (0, 36)
    return pd.read_csv(outcome.folder / "table.csv")


def test_sampled_errors_agree_with_exact_ones(table):
    held = (table["low"] <= table["exact_error"]) & (table["exact_error"] <= table["high"])
    assert held.mean() >= 0.85
    assert (table["error"] / table["exact_error"] - 1).abs().median() < 0.05
    assert (table["low"] < table["error"]).all()


def test_the_knob_is_fixed_so_the_error_of_landmarks_grows(table):
    smooth = table[(table["input"] == "smooth") & (table["method"] == "Soft(rank=64)")]
    assert smooth["error"].is_monotonic_increasing
    assert slope(smooth["n"], smooth["error"])[0] > 0.5


def test_the_chapter_reads_the_study(table):
    assert "the exact output up to 1024" in scope(table)
    said = " ".join(findings(table))
    assert "At n = 1024 the sampled relative output errors on smooth input" in said
    assert "of 36 intervals hold the exact error" in said
    (made,) = tables(table)
    assert {len(row) for row in made["rows"]} == {len(made["header"])}


def test_exponents_of_powers_are_exact(table):
    n = pd.Series([4096, 8192, 16384])
    one = table[(table["method"] == "Local(window=64)") & (table["input"] == "smooth")]
    made = one.assign(n=n.values, seconds_q1=1e-6 * n.values, peak_bytes=9.0 * n.values**2)
    (row,) = exponents(made.assign(error=n.values**0.25)).to_dict("records")
    assert [row[x][0] for x in ("error", "time", "memory")] == pytest.approx([0.25, 1, 2])
    assert row["time"][1] < 1e-9
    assert np.isnan(slope(n[:2], n[:2])[0])
    said = " ".join(findings(made))
    assert "time grows with the exponents Local(window=64) 1.00." in said


def test_the_grid_ends_at_a_million_tokens_with_the_headline():
    cases = list(LENGTH.STUDY.cases())
    last = [case["op"] for case in cases if case["n"] == 2**20]
    assert Soft(256) in last
    assert len(last) == len(LENGTH.OPERATORS)
    assert sum(case["op"] == Soft(256) for case in cases) == 1
