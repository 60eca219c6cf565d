"""The rank study keeps families apart, and its controls bound what they must."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from softlab import measures
from softlab.engine.loading import load
from softlab.inputs import Recorded, Tied
from softlab.operators import GaussianAttention, TruncatedSVD
from softlab.study import run

RANK = load(Path(__file__).parents[2] / "studies" / "rank")
HEAD = Recorded("minilm.layer5.head2")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    axes = {"input": [HEAD, Tied(HEAD)], "seed": [1], "op": RANK.operators((16, 64))}
    small = replace(RANK.STUDY, axes=axes, quick={})
    outcome = run(small, tmp_path_factory.mktemp("reports"), threads=1)
    assert outcome.failed == 0
    with (outcome.folder / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_target_meets_its_own_inputs_methods_and_controls():
    cases = list(RANK.STUDY.cases())
    for case in cases:
        gaussian = isinstance(case["op"].target, GaussianAttention)
        assert gaussian == isinstance(case["input"], Tied)
    for target in RANK.TARGETS:
        mine = {type(case["op"]).__name__ for case in cases if case["op"].target == target}
        assert {"Uniform", "TruncatedSVD", type(target).__name__} < mine
        assert mine & {"Soft", "Nystromformer"}
    assert len(list(RANK.STUDY.cases(quick=True))) < 150


def test_no_method_beats_the_svd_in_the_matrix(rows):
    assert len(rows) == 2 * (2 + 3) + 6 + 2
    for row in rows:
        if row["op.rank"]:
            assert float(row["ratio_to_bound"]) >= 1 - 1e-6
            assert float(row["ratio_to_bound_spectral"]) >= 1 - 1e-5
            assert float(row["matrix_error"]) >= float(row["svd_bound"]) * (1 - 1e-6)


def test_controls_and_exact_operators_are_what_they_say(rows):
    for row in rows:
        if row["method"] == "Uniform":
            assert float(row["output_error"]) == pytest.approx(float(row["uniform_error"]), 1e-4)
            assert float(row["skill"]) <= 1e-4
        if row["method"] == "exact":
            assert float(row["output_error"]) < 1e-5
    methods = {row["method"] for row in rows}
    assert methods == {"exact", "Uniform", "TruncatedSVD", "Nystromformer", "Soft"}


def test_more_rank_helps_on_this_head_and_both_methods_have_skill(rows):
    for target in RANK.TARGETS.values():
        for method in ("Soft", "Nystromformer", "TruncatedSVD"):
            mine = [r for r in rows if (r["target"], r["method"]) == (target, method)]
            errors = [
                float(r["output_error"]) for r in sorted(mine, key=lambda r: int(r["op.rank"]))
            ]
            assert errors == sorted(errors, reverse=True)
            assert all(float(r["skill"]) > 0 for r in mine)


def test_the_cached_truncated_svd_is_the_operators():
    q, k, v = (x[:96] for x in HEAD(0, dtype=torch.float64))
    op = TruncatedSVD(8)
    reference = measures.Reference(op.target, q, k, v)
    kept = measures.best_of_rank(8, reference)
    called = measures.accuracy(op, q, k, v, reference)
    assert kept == pytest.approx(called, rel=1e-6)
