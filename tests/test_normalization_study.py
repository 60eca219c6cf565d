"""What each normalisation bounds: exponents of made-up powers, theorems, and the released form."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from softlab.chapters.normalization import exponents, findings, scope, tables
from softlab.study import run
from softlab.study_file import load

NORMALIZATION = load(Path(__file__).parent.parent / "studies" / "normalization.py")


def made_up(**powers):
    """Norms n^p of exact attention by normalisation, noise n^(p - 1/2)."""
    rows = [
        {
            "status": "ok", "source": "there", "family": "exact", "normalization": how, "n": n,
            "spectral_norm": n**p, "noise_gain": n ** (p - 0.5), "ones_gain": n**p,
            "negative_rows": 0.0, "rank": None,
        }
        for how, p in powers.items()
        for n in (64, 128, 256)
    ]  # fmt: skip
    return pd.DataFrame(rows)


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


def test_exponents_of_powers_are_exact():
    fits = exponents(made_up(none=1.0, row=0.0, symmetric=0.25)).set_index("normalization")
    assert list(fits["spectral_norm"]) == pytest.approx([1, 0, 0.25], abs=1e-12)
    assert list(fits["noise_gain"]) == pytest.approx([0.5, -0.5, -0.25], abs=1e-12)
    assert list(fits["most"]) == pytest.approx([256, 1, 4])


def test_findings_say_what_grows_and_what_exceeds_one():
    table = made_up(none=1.0, row=0.0, symmetric=0.25)
    said = " ".join(findings(table))
    assert "none: n to the 1.00 (1.00 to 1.00), at most 256" in said
    assert "exact, row: in none of 3 cases" in said
    assert "exact, symmetric: in 3 of 3 cases, up to 4.00 (there, n = 256), 0 of them" in said
    lost = table.assign(negative_rows=0.1)
    assert "n = 256), 3 of them with row sums that are not positive" in " ".join(findings(lost))


def test_two_lengths_and_norms_of_zero_make_no_exponent():
    table = made_up(none=1.0)
    assert exponents(table[table["n"] < 256]).empty
    assert exponents(table.assign(noise_gain=0.0)).empty


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
    assert fits[head, "Soft, rank n/8", "published"] < 0.25
    assert abs(fits[head, "Soft, rank 32", "symmetric"]) < 0.01


def test_soft_loses_the_bounds_where_rows_lose_their_mass(table):
    lost = table[(table["source"] == "vit.layer8.head3") & (table["negative_rows"] > 0)]
    normalised = lost[lost["normalization"].isin(["row", "symmetric"])]
    assert len(normalised) >= 2
    assert (normalised["spectral_norm"] > 1.3).all()


def test_the_chapter_reads_the_table(table):
    assert "Tokens: 64, 128 and 256" in scope(table)
    assert len(findings(table)) == 4
    assert "On identical tokens it is n / m, within" in findings(table)[1]
    assert "On identical tokens" not in " ".join(findings(table.assign(rank=7)))
    (made,) = tables(table)
    assert len(made["rows"]) == 3 + 4 + 4
    assert {len(row) for row in made["rows"]} == {len(made["header"])}
