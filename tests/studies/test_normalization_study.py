"""What each normalisation bounds: theorems, and the released form."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from softlab.engine.loading import load
from softlab.study import run
from studies.normalization.chapter import exponents, findings, scope, tables

NORMALIZATION = load(Path(__file__).parents[2] / "studies" / "normalization")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Heads, clusters and identical tokens at 64 to 256 tokens."""
    inputs = [NORMALIZATION.INPUTS[i] for i in (1, 3, 6, 7)]
    axes = NORMALIZATION.STUDY.axes | {"input": inputs, "seed": (0,), "n": (64, 128, 256)}
    study = replace(NORMALIZATION.STUDY, axes=axes, quick={})
    outcome = run(study, tmp_path_factory.mktemp("reports"), threads=1)
    assert (outcome.failed, outcome.rows) == (0, 4 * 3 * (3 + 4 + 4))
    return pd.read_csv(outcome.folder / "table.csv")


def of(table, family, how):
    found = table[table["family"].str.contains(family, regex=False)]
    return found[found["normalization"] == how]


def test_exact_matrices_keep_to_the_theorems(table):
    plain = of(table, "exact", "none")
    assert (plain["spectral_norm"] <= plain["n"] * (1 + 1e-5)).all()
    assert (plain["spectral_norm"] >= 1 - 1e-5).all()
    assert of(table, "exact", "symmetric")["spectral_norm"].sub(1).abs().max() < 1e-5
    assert of(table, "exact", "row")["ones_gain"].sub(1).abs().max() < 1e-5


def test_identical_tokens_are_the_worst_case_of_every_form(table):
    same = table[table["source"] == "identical tokens"]
    for family in ("exact", "Soft, rank 32", "Soft, rank n/8"):
        alike = of(same, family, "none")
        assert list(alike["spectral_norm"]) == pytest.approx(list(alike["n"]), rel=1e-4)
        for how in ("row", "symmetric"):
            assert of(same, family, how)["spectral_norm"].sub(1).abs().max() < 1e-4
    for family in ("Soft, rank 32", "Soft, rank n/8"):
        released = of(same, family, "published")
        share = released["n"] / released["rank"]
        assert list(released["spectral_norm"]) == pytest.approx(list(share), rel=1e-4)


def test_the_released_form_grows_at_fixed_rank_and_not_at_a_fixed_share(table):
    """The headline, on a real head: damped, but not bounded in the number of tokens."""
    fits = exponents(table).set_index(["source", "family", "normalization"])["spectral_norm"]
    head = "minilm.layer5.head2"
    assert fits[head, "Soft, rank 32", "none"] > 0.7
    assert fits[head, "Soft, rank 32", "published"] > 0.45
    fixed, share = (fits[head, f"Soft, rank {m}", "published"] for m in (32, "n/8"))
    assert share < fixed - 0.2
    assert abs(fits[head, "Soft, rank 32", "symmetric"]) < 0.01


def test_soft_loses_the_bounds_where_rows_lose_their_mass(table):
    lost = table[(table["source"] == "vit.layer8.head3") & (table["negative_rows"] > 0)]
    normalised = lost[lost["normalization"].isin(["row", "symmetric"])]
    assert len(normalised) >= 2
    assert (normalised["spectral_norm"] > 1.1).sum() >= 2


def test_the_chapter_reads_the_table(table):
    assert "Tokens: 64, 128 and 256" in scope(table)
    assert len(findings(table)) == 4
    assert "On identical tokens it is n / m, within" in findings(table)[1]
    assert "On identical tokens" not in " ".join(findings(table.assign(rank=7)))
    (made,) = tables(table)
    assert len(made["rows"]) == 3 + 4 + 4
    assert {len(row) for row in made["rows"]} == {len(made["header"])}
