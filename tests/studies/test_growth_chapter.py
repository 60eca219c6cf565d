"""Every number of the growth chapter, against powers of n with a known bend and known noise."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t
from tables import three

from studies.growth.chapter import exponents, findings, headlines, scope, tables

N = np.array([1024, 2048, 4096, 8192])
OPS = {
    # name: family, exponent of work, of time, bend of the time, factor, memory over q, its exponent
    "Dense": ("exact", 2.0, 1.9, 0.02, 1e-9, 55.0, 2.0),
    "A": ("low", 1.0, 1.2, 0.01, 3e-7, 4.0, 1.0),  # 0.2 apart and beyond its interval
    "B": ("low", 1.0, 1.3, 0.01, 6e-7, 11.0, 1.2),  # 0.3 apart, beyond its interval
    "C": ("low", 1.4, 1.0, 0.6, 9e-7, 2.0, 1.09),  # 0.4 apart, within
    "D": ("features", 1.0, 0.6, 0.02, 5e-4, 10.0, 1.0),  # 0.4 less, beyond its interval
    "E": ("features", 1.55, 1.5, 0.005, 1e-8, 3.0, 1.0),  # 1.55 is not less than quadratic
    "F": ("features", None, 1.1, 0.02, 7e-8, 5.0, 0.5),  # no product at all
}
BEND = np.array([1.0, -1.0, -1.0, 1.0])  # of log t, at right angles to log n and to the level


def table(**changes):
    rows = []
    for name, (family, work, power, bend, factor, memory, grows) in OPS.items():
        times = factor * N**power * np.exp(bend * BEND)
        for n, seconds in zip(N, times, strict=True):
            rows.append({
                "status": "ok", "error": None, "family": family, "method": name, "n": int(n),
                "work": 0 if work is None else 7.0 * n**work, "seconds_q1": seconds,
                "seconds": 1.05 * seconds, "seconds_q3": 1.1 * seconds,
                "peak_bytes": 128.0 * memory * (n / 8192) ** grows, "memory": memory * (n / 8192),
                "exact_seconds": 2e-9 * n**1.9 if n < 8192 else None,
                "exact_seconds_q1": None, "exact_seconds_q3": None,
            })  # fmt: skip
    made = pd.DataFrame(rows).assign(**changes)
    bad = made[made["n"] == 8192].assign(n=16384, status="failed", seconds_q1=9.0, memory=99.0)
    short = made[(made["method"] == "A") & (made["n"] > 2048)].assign(method="Short")
    return pd.concat([made, bad, short], ignore_index=True)


def half(bend, verdicts=7):
    """Of Student's interval: four points whose residuals are plus and minus the bend."""
    x = np.log(N)
    error = np.sqrt(4 * bend**2 / 2 / ((x - x.mean()) ** 2).sum())
    return t.ppf(1 - 0.025 / verdicts, 2) * error


def test_exponents_have_students_interval_for_all_operators_together():
    fits = exponents(table()).set_index("method")
    assert list(fits.index) == list(OPS)
    for name, (family, work, power, bend, _, memory, grows) in OPS.items():
        row = fits.loc[name]
        assert row["family"] == family
        assert row["n"] == 8192
        assert row["claimed"] == pytest.approx(1.0 if work is None else work)
        assert row["measured"] == pytest.approx(power)
        assert (row["low"], row["high"]) == pytest.approx((power - half(bend), power + half(bend)))
        assert row["last"] == pytest.approx(power + 2 * bend / np.log(2))
        assert row["growth"] == pytest.approx(grows)
        assert row["memory"] == memory
        assert row["time"].value == pytest.approx(OPS[name][4] * 8192**power * np.exp(bend))


def test_the_paragraphs_say_the_tables_numbers():
    memory, growth, crossings = findings(table())
    assert memory == (
        "At n = 8192 the 5 operators of less than quadratic work take between 2.00 (C) and 11.0 "
        "(B) times the memory of q above what they are given. More than 10 times takes B (11.0). "
        "Over the last doubling the memory of B (1.20) grows faster than n^1.1."
    )
    b, d = (half(OPS[name][3]) for name in "BD")
    assert growth == (
        "The exponent of time agrees with that of the counted work for 5 of 7 operators, within "
        "0.25 or within its interval (Student's, 95 % for all operators together). In the median "
        "over the 5 of less than quadratic work it is 1.10, the counted one 1.00. "
        f"It is less than counted for D (0.60, {0.6 - d:.2f} to {0.6 + d:.2f}, counted 1.00). "
        f"It is more than counted for B (1.30, {1.3 - b:.2f} to {1.3 + b:.2f}, counted 1.00)."
    )
    # A at 4096: 3e-7 n^1.2 e^-0.01 1.1 = 7.0e-3 s, exact 1.46e-2; at 2048 3.1e-3 and 3.9e-3.
    assert crossings == (
        "Faster than exact softmax attention at every length from here on are F from n = 1024; A "
        "and C from n = 2048. Never at the lengths where both were timed: B and D."
    )


def test_two_standard_errors_of_four_points_are_no_proof():
    """An exponent that is 0.3 and two and a half standard errors off may be luck."""
    ops = table()
    assert "more than counted for B" in findings(ops)[1]
    x = np.log(N)
    error = 0.3 / 2.5  # two and a half standard errors
    bend = error * np.sqrt(((x - x.mean()) ** 2).sum() * 2 / 4)
    mine = (ops["method"] == "B") & (ops["status"] == "ok")
    ops.loc[mine, "seconds_q1"] = 6e-7 * N**1.3 * np.exp(bend * BEND)
    assert "B (" not in findings(ops)[1]


def test_the_headline_is_a_range_over_operators_which_are_no_sample():
    (found,) = headlines(table())
    assert found == {
        "text": "Time grows with the number of tokens to the power {}, over a designed grid of 5 "
        "operators of less than quadratic work.",
        "value": "0.600 to 1.30",
        "interval": "range over the grid",
    }


def test_the_table_has_all_of_it():
    (made,) = tables(table())
    assert made["left"] == 2
    assert made["header"] == ["family", "operator", "claimed", "time", "last", "memory", "n", "ms",
                              "over q", "faster from"]  # fmt: skip
    first = {"Dense": "exact", "A": "low", "D": "features"}
    starts = {"A": "2048", "C": "2048", "F": "1024", "Dense": "1024", "E": "1024"}
    for row, (name, (_, work, power, bend, factor, memory, grows)) in zip(
        made["rows"], OPS.items(), strict=True
    ):
        ms = 1e3 * factor * 8192**power * np.exp(bend)
        assert row[:2] == [first.get(name, ""), name]
        assert row[2] == f"{1.0 if work is None else work:.2f}"
        assert row[3] == [f"{power:.2f}", f"{power - half(bend):.2f} to {power + half(bend):.2f}"]
        assert row[4] == f"{power + 2 * bend / np.log(2):.2f}"
        assert row[5:7] == [f"{grows:.2f}", "8192"]
        assert row[7][0] == three(ms)
        assert row[7][1] == f"{two(ms)}\u2013{two(1.1 * ms)}"
        assert row[8] == three(memory)
        assert row[9] == starts.get(name, "never")


def two(x):
    return f"{x:#.2g}".rstrip(".") if x < 100 else f"{x:.0f}"


def test_noisy_timings_are_left_out_and_said():
    rows = table()
    own = (rows["method"] == "B") & (rows["status"] == "ok")
    wide = own & (rows["n"] >= 4096)
    rows.loc[wide, "seconds_q3"] = rows["seconds_q1"] + 0.26 * rows["seconds"]
    fits = exponents(rows).set_index("method")
    assert fits.loc["B", ["measured", "last"]].isna().all()
    growth = findings(rows)[1]
    assert "for 5 of 6 operators" in growth
    assert "In the median over the 4 of less" in growth
    assert growth.endswith("Too noisy for an exponent are the timings of B.")
    line = next(row for row in tables(rows).__next__()["rows"] if row[1] == "B")
    assert (line[3], line[4], line[7]) == ("noisy", "noisy", "noisy")
    rows.loc[wide, "seconds_q3"] = rows["seconds_q1"] + 0.25 * rows["seconds"]  # wide is more
    assert exponents(rows).set_index("method").loc["B", "measured"] == pytest.approx(1.3)
    every = rows.assign(seconds_q3=3 * rows["seconds_q1"])
    assert [text.split(" are")[0] for text in findings(every)[1:2]] == ["Too noisy for an exponent"]
    assert list(headlines(every)) == []


def test_the_last_doubling_needs_its_own_two_timings_alone():
    rows = table()
    own = (rows["method"] == "A") & (rows["status"] == "ok")
    rows.loc[own & (rows["n"] == 2048), "seconds_q3"] = 3 * rows["seconds_q1"]
    assert exponents(rows).set_index("method").loc["A", "last"] == pytest.approx(
        1.2 + 0.02 / np.log(2)
    )
    rows.loc[own & (rows["n"] == 4096), "seconds_q3"] = 3 * rows["seconds_q1"]
    assert np.isnan(exponents(rows).set_index("method").loc["A", "last"])


def test_memory_is_compared_at_the_greatest_length_of_all():
    rows = table()
    rows = rows[(rows["method"] != "B") | (rows["n"] < 8192)]
    memory, _, crossings = findings(rows)
    assert memory.startswith("At n = 8192 the 4 operators of less than quadratic work take between")
    assert "None takes more than 10 times." in memory
    light = rows[~rows["method"].isin(["B", "D"])]
    assert "Never" in crossings
    assert "Never" not in findings(light)[2]


def test_a_race_is_won_where_the_upper_quartile_is_below_the_others_lower():
    rows = table()
    own = (rows["method"] == "F") & (rows["status"] == "ok")
    at = own & (rows["n"] == 2048)
    assert exponents(rows).set_index("method").loc["F", "from"] == 1024
    rows.loc[at, "exact_seconds"] = 1.1 * rows["seconds_q1"]  # equal is not less
    rows.loc[at, "seconds_q3"] = 1.1 * rows["seconds_q1"]
    assert exponents(rows).set_index("method").loc["F", "from"] == 4096
    rows.loc[at, "seconds"] = 0.1 * rows["seconds_q1"]  # too noisy to count
    assert exponents(rows).set_index("method").loc["F", "from"] == 1024
    noisy = rows.assign(
        exact_seconds_q1=rows["exact_seconds"], exact_seconds_q3=2 * rows["exact_seconds"]
    )
    assert exponents(noisy)["from"].isna().all()


def test_the_scope_and_what_is_missing():
    assert scope(table()) == (
        "Operators: exact (Dense); low (A, B, C and Short); features (D, E and F). Tokens: 1024, "
        "2048, 4096 and 8192."
    )
    few = table()
    few = few[few["n"] > 2048]
    assert findings(few) == []
    assert list(headlines(few)) == []
    assert list(tables(few)) == []
    three_lengths = table()
    assert len(exponents(three_lengths[three_lengths["n"] > 1024])) == len(OPS)
    dense = table()
    (said,) = findings(dense[dense["method"] == "Dense"])
    assert said.endswith("for all operators together).")
    none = table(exact_seconds=None)
    assert findings(none)[2].startswith(
        "Faster than exact softmax attention at every length from here on are none. Never"
    )
    light = table(memory=1.0)
    assert "None takes more than 10 times." in findings(light)[0]
    calm = table()
    calm["peak_bytes"] = 128.0 * calm["n"]
    assert "grows faster" not in findings(calm)[0]
