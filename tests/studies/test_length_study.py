"""The length study: sampled errors agree with exact ones, exponents are the rows'."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from softlab.engine.loading import load
from softlab.operators import Local, Nystromformer, Soft, Uniform
from softlab.report.intervals import exponent
from softlab.study import run
from studies.length.chapter import findings, scope, tables

LENGTH = load(Path(__file__).parents[2] / "studies" / "length")


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
    assert (table["sampled_error"] / table["exact_error"] - 1).abs().median() < 0.05
    assert (table["low"] < table["sampled_error"]).all()


def test_the_knob_is_fixed_so_the_error_of_landmarks_grows(table):
    smooth = table[(table["input"] == "smooth") & (table["method"] == "Soft(rank=64)")]
    assert smooth["sampled_error"].is_monotonic_increasing
    assert exponent(smooth["n"], smooth["sampled_error"]).value > 0.5


def test_the_chapter_reads_the_study(table):
    assert "the exact output up to 1024" in scope(table)
    said = " ".join(findings(table))
    assert "At n = 1024 the sampled relative output errors on smooth input" in said
    assert "of 36 intervals hold the exact error" in said
    (made,) = tables(table)
    assert {len(row) for row in made["rows"]} == {len(made["header"])}


def test_the_grid_ends_at_a_million_tokens_with_the_headline():
    cases = list(LENGTH.STUDY.cases())
    last = [case["op"] for case in cases if case["n"] == 2**20]
    assert Soft(256) in last
    assert len(last) == len(LENGTH.OPERATORS)
    assert sum(case["op"] == Soft(256) for case in cases) == 1
