"""A time stands with its noise, or does not stand; every number against hand arithmetic."""

import math

import pandas as pd
import pytest

from softlab.report.timings import BUSY, WIDE, busy, noise, ratio, steady, timing


def table(**columns):
    """Three steady timings and a wild one: median 3 ms with it, 2 ms without; mean 2.33, most 4."""
    base = {
        "seconds": [1e-3, 4e-3, 2e-3, 9e-3],
        "seconds_q1": [0.9e-3, 3.9e-3, 1.8e-3, 5e-3],
        "seconds_q3": [1.1e-3, 4.5e-3, 2.3e-3, 20e-3],
    }
    return pd.DataFrame(base | columns)


def test_a_timing_is_the_median_of_the_steady_with_the_medians_of_their_quartiles():
    found = timing(table())
    assert found == (2e-3, 1.8e-3, 2.3e-3, 4, 1, 0)
    assert found.known
    assert found.words(" ms", 1e3) == (
        "2.00 ms (quartiles 1.80 to 2.30; 1 of 4 timings noisy: quartiles wider than 25 % of the "
        "median)"
    )
    assert found.cell(1e3) == ["2.00", "1.8\u20132.3"]
    assert timing(table()[:3]).words(" ms", 1e3) == "2.00 ms (quartiles 1.80 to 2.30)"


def test_steady_is_a_quarter_of_the_median_and_the_quarter_itself():
    rows = pd.DataFrame(
        {"t": [1.0] * 4, "t_q1": [0.9, 0.875, 0.87, math.nan], "t_q3": [1.1, 1.125, 1.13, 1.0]}
    )
    assert noise(rows, "t").tolist()[:3] == pytest.approx([0.2, 0.25, 0.26])
    assert WIDE == 0.25
    for column in ("t", "t_q1", "t_q3"):
        expected = [True, True, False, column != "t_q1"]  # an own noise unknown is none too wide
        assert steady(rows, column).tolist() == expected
    assert steady(rows.assign(t=[1.0, math.nan, 1.0, 1.0]), "t").tolist() == [
        True,
        False,
        False,
        True,
    ]


def test_the_first_quartile_is_a_timing_with_the_noise_of_its_median():
    assert timing(table(), "seconds_q1") == (1.8e-3, 1.8e-3, 2.3e-3, 4, 1, 0)


def test_more_noisy_than_steady_timings_are_withheld():
    half = table(seconds_q3=[1.1e-3, 4.5e-3, 20e-3, 20e-3])
    assert timing(half).known
    assert timing(half).value == 2.5e-3
    wide = table(seconds_q3=[1.1e-3, 20e-3, 20e-3, 20e-3])
    found = timing(wide)
    assert not found.known
    assert found.words(" ms", 1e3) == (
        "a time that is withheld (3 of 4 timings noisy: quartiles wider than 25 % of the median)"
    )
    assert found.cell(1e3) == "noisy"
    assert not timing(wide[1:]).known
    assert math.isnan(timing(wide[1:]).value)


def test_a_busy_machine_is_marked():
    rows = table(case_cpu_share=[1.0, BUSY, 0.79, math.nan])
    assert busy(rows).tolist() == [False, False, True, False]
    assert timing(rows[:3]).words(" ms", 1e3) == (
        "2.00 ms (quartiles 1.80 to 2.30; 1 of 3 timings taken on a busy machine)"
    )
    assert busy(table()).tolist() == [False] * 4


def test_without_quartiles_the_noise_is_not_recorded_and_without_timings_there_is_no_time():
    bare = pd.DataFrame({"time": [1.0, 2.0, 30.0, math.nan]})
    found = timing(bare, "time")
    assert found.words(" times") == "2.00 times (noise not recorded)"
    assert found.cell() == "2.00"
    assert found.timings == 3
    assert timing(bare[3:], "time").words() == "a time that was not measured"
    assert timing(bare[3:], "time").cell() == ""
    assert not timing(bare[3:], "time").known


def test_a_ratio_has_the_widest_quartiles_and_is_withheld_with_either():
    exact = pd.DataFrame({"seconds": [8e-3], "seconds_q1": [7.5e-3], "seconds_q3": [8.4e-3]})
    found = ratio(table(), exact)
    assert found[:3] == pytest.approx((2 / 8, 1.8 / 8.4, 2.3 / 7.5))
    assert found[3:] == (5, 1, 0)
    assert found.words(" times").startswith("0.250 times (quartiles 0.214 to 0.307; 1 of 5")
    loud = ratio(table(case_cpu_share=[0.1, 1, 1, 1]), exact.assign(case_cpu_share=0.1))
    assert loud.busy == 2
    wild = exact.assign(seconds_q3=30e-3)
    for pair in ((table(), wild), (wild, table())):
        assert not ratio(*pair).known
        assert "withheld" in ratio(*pair).words()
    wide = table(seconds_q3=[1.1e-3, 20e-3, 20e-3, 20e-3])
    many = pd.concat([exact] * 5)
    for pair in ((wide, many), (many, wide)):  # three of nine are noisy, but three of the four
        assert not ratio(*pair).known
