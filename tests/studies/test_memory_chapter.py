"""Every number of the memory chapter, against polynomials whose roots are known."""

import numpy as np
import pandas as pd
import pytest

from studies.memory.chapter import ROOM, findings, fitted, growth, headlines, scope, tables

LENGTHS = (1000, 2000, 4000)
PEAKS = {
    # bytes at each length: a + b n + c n^2, each method with other powers
    "materialised softmax": lambda n: 1e6 + 5e3 * n + 40 * n * n,
    "fused softmax": lambda n: 2e6 + 1e5 * n,
    "SOFT (implicit)": lambda n: 3e6 + 4e4 * n,
}


def made(lengths=LENGTHS):
    """Training takes twice what inference does; rows not in the order of lengths; one failed."""
    rows = [{"status": "ok", "method": "once", "mode": "training", "n": 1000, "peak_bytes": 5e9}]
    rows += [
        {"status": "ok", "method": method, "mode": mode, "n": n, "peak_bytes": times * peak(n)}
        for mode, times in (("training", 2), ("inference", 1))
        for method, peak in PEAKS.items()
        for n in reversed(lengths)
        if not (method == "materialised softmax" and n == 4000)
    ]
    rows.append({"status": "failed", "method": "SOFT (implicit)", "mode": "training", "n": 8000,
                 "peak_bytes": 1e12})  # fmt: skip
    return pd.DataFrame(rows)


def test_the_scope_counts_finished_rows_alone():
    assert scope(made()) == (
        "Methods: once, materialised softmax, fused softmax and SOFT (implicit); in training and "
        "inference, with 1000, 2000 and 4000 tokens as far as each goes."
    )


def test_memory_is_compared_at_the_greatest_length_that_all_have():
    """2000 tokens: 171, 202 and 83 MB; exponents of the last step of each method's own lengths."""
    training, inference = findings(made())
    steep = [np.log2(171e6 / 46e6), np.log2(402e6 / 202e6), np.log2(163e6 / 83e6)]
    assert [f"{x:.2f}" for x in steep] == ["1.89", "0.99", "0.97"]
    lines = [(ROOM - 2e6) / 1e5, (ROOM - 3e6) / 4e4]  # roots of the two straight lines
    assert lines == [159980, 399925]
    assert inference == (
        "In inference with 2000 tokens, in MB: materialised softmax takes 171, fused softmax takes "
        "202 and SOFT (implicit) takes 83.0. fused softmax takes 2.43 times what SOFT (implicit) "
        "does. Over the last step of lengths the peak grows with the exponents 1.89 (materialised "
        "softmax), 0.99 (fused softmax) and 0.97 (SOFT (implicit)). Into 16 GB fit, by the "
        "polynomial through what was measured, so many tokens: 1.60 × 10⁵ (fused softmax) and "
        "4.00 × 10⁵ (SOFT (implicit))."
    )
    assert training.startswith(
        "In training with 2000 tokens, in MB: materialised softmax takes 342,"
    )


def test_without_three_lengths_nothing_is_said_to_fit():
    (_, said) = findings(made(LENGTHS[:2]))
    assert said.endswith("0.99 (fused softmax) and 0.95 (SOFT (implicit)).")
    assert list(headlines(made(LENGTHS[:2]))) == []


def test_the_headline_says_from_where_it_is_extrapolated():
    (line,) = headlines(made())
    assert line == {
        "text": "In training, 16 GB hold {} times as long a sequence of SOFT as of fused softmax "
        "attention.",
        "value": "2.50",  # (8e9 - 3e6) / 4e4 over (8e9 - 2e6) / 1e5
        "interval": "extrapolated from 4000 tokens, one measurement a length",
    }
    long = made((1000, 2000, 300_000))
    (line,) = headlines(long)
    assert line["interval"].startswith("measured up to 300000 tokens")
    short = (long["n"] == 300_000) & (long["method"] == "SOFT (implicit)")
    (line,) = headlines(long.assign(n=long["n"].where(~short, 4000), peak_bytes=long[
        "peak_bytes"].where(~short, 326e6)))  # fmt: skip
    assert line["interval"].startswith("extrapolated from 4000 tokens")
    assert list(headlines(long[long["mode"] == "inference"])) == []
    assert list(headlines(long[long["method"] != "fused softmax"])) == []
    flat = long.assign(peak_bytes=7.0)
    assert list(headlines(flat)) == []  # any length fits


def test_the_table_has_a_row_a_method_and_mode():
    (table,) = tables(made())
    assert [row[:5] for row in table["rows"]] == [
        ["training", "materialised softmax", "2000", "342", "1.89"],
        ["", "fused softmax", "4000", "804", "0.99"],
        ["", "SOFT (implicit)", "4000", "326", "0.97"],
        ["inference", "materialised softmax", "2000", "171", "1.89"],
        ["", "fused softmax", "4000", "402", "0.99"],
        ["", "SOFT (implicit)", "4000", "163", "0.97"],
    ]
    assert [row[5:] for row in table["rows"]][:3] == [
        ["n/a", "too few"], ["79980", "extrapolated"], ["2.00e5", "extrapolated"],
    ]  # fmt: skip
    assert table["header"] == ["mode", "method", "n", "MB", "exponent", "fit 16 GB", "which is"]
    (table,) = tables(made((1000, 2000, 300_000)))
    which = [row[6] for row in table["rows"]]
    assert which == ["measured"] * 5 + ["extrapolated"]
    assert table["left"] == 2


def test_growth_has_a_row_where_there_are_two_lengths():
    fits = growth(made())
    assert "once" not in set(fits["method"])
    assert fits["n"].tolist() == [2000, 4000, 4000] * 2
    assert fits["longest"].isna().tolist() == [True, False, False] * 2
    edge = pd.DataFrame({
        "status": "ok", "method": "a", "mode": "inference", "n": [1, 2, 4],
        "peak_bytes": [4e9, 8e9, 16e9],
    })  # fmt: skip
    assert growth(edge)["longest"].iloc[0] == pytest.approx(4)  # exactly full at the greatest


N = np.array([1.0, 2.0, 4.0])


@pytest.mark.parametrize(
    ("peak", "room", "longest"),
    [
        (1 + 2 * N + 3 * N**2, 321.0, 10.0),
        (5 + 7 * N, 75.0, 10.0),
        (3 * N**2, 300.0, 10.0),
        (np.full(3, 7.0), 100.0, np.inf),
        # A square of 1.1e-3 of the greatest peak counts, one of 9e-4 is taken for none.
        (1 + N + 3.4e-4 * N**2, 1 + 1e4 + 3.4e4, 1e4),
        (1 + N + 2.8e-4 * N**2, 1e4, pytest.approx(1e4 - 1, rel=2e-3)),
    ],
)
def test_a_polynomial_through_the_peaks_is_followed_to_its_root(peak, room, longest):
    assert fitted(N, peak, room) == pytest.approx(longest)


def test_a_coefficient_below_zero_is_none():
    """n - n^2 / 10 is bent down: the best line of relative errors through 0.9, 1.6 and 2.4."""
    peak = N - N**2 / 10
    weighted = np.stack([np.ones(3), N], 1) / peak[:, None]
    (a, b), *_ = np.linalg.lstsq(weighted, np.ones(3), rcond=None)
    assert fitted(N, peak, 20.0) == pytest.approx((20 - a) / b)


def test_relative_errors_are_what_is_least():
    """Five points of no polynomial: the small peaks weigh as much as the great ones."""
    n = np.array([1.0, 2.0, 3.0, 5.0, 8.0])
    peak = np.array([3.0, 9.0, 11.0, 40.0, 75.0])
    weighted = np.stack([np.ones(5), n, n**2], 1) / peak[:, None]
    (a, b, c), *_ = np.linalg.lstsq(weighted, np.ones(5), rcond=None)
    assert min(a, b, c) > 0
    assert fitted(n, peak, 1000.0) == pytest.approx(max(np.roots([c, b, a - 1000.0])))
