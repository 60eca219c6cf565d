"""Every number of the length chapter, against powers of n with known bends."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t
from tables import below, three

from studies.length.chapter import exponents, findings, headlines, scope, tables

LENGTHS = {"smooth": (1024, 4096, 8192, 16384, 32768), "normal": (1024, 4096, 8192)}
METHODS = {
    # name: target, error at 1024; exponents of error by input, time, memory; seconds to estimate
    "Soft(64)": ("Gaussian", 0.21, {"smooth": 0.4, "normal": 0.12}, 1.1, 1.0, 3.1),
    "Zeta(64)": ("Gaussian", 0.13, {"smooth": 0.3, "normal": 0.05}, 1.3, 0.9, 1.7),
    "Low(64)": ("Dense", 0.33, {"smooth": 0.21, "normal": -0.11}, 0.9, 1.2, 2.4),
    "Local(64)": ("Dense", 0.08, {"smooth": 0.55, "normal": 0.31}, 1.0, 1.1, 9.2),
    "Uniform": ("Dense", 0.9, {"smooth": 0.9, "normal": -0.9}, 0.1, 0.1, 99.0),
}
BEND = 0.03
SECONDS = {"Gaussian": 700.0, "Dense": 450.0}
"""Of a whole target of 32768 tokens."""


def signs(count):
    return np.array([1.0, -1.0] * 3)[:count]


def error(method, source, n):
    base, power = METHODS[method][1], METHODS[method][2][source]
    at = LENGTHS[source].index(n)
    return base * (n / 1024) ** power * np.exp(BEND * signs(5)[at])


def table(**more):
    rows = []
    for method, (target, _, _, time, memory, estimate) in METHODS.items():
        for source, lengths in LENGTHS.items():
            for n in lengths:
                e = error(method, source, n)
                timed = source == "smooth" and method != "Uniform"
                held = (method, n) != ("Low(64)", 4096)
                seconds = 1e-6 * n**time * np.exp(BEND * signs(5)[lengths.index(n)])
                rows.append({
                    "status": "ok", "sampled_error": e, "input": source, "n": n, "method": method,
                    "target": target, "rows": 256 if target == "Gaussian" else 200,
                    "low": 0.9 * e, "high": 1.2 * e, "error_seconds": estimate * n / 32768,
                    "exact_error": (e * (1.1 if held else 1.3) if n <= 8192 else None),
                    "seconds_q1": seconds if timed else None,
                    "seconds": 1.05 * seconds, "seconds_q3": 1.1 * seconds,
                    "peak_bytes": 40.0 * n**memory if timed else None,
                    "target_seconds": SECONDS[target] * n / 32768, "certified_error": np.nan,
                })  # fmt: skip
    made = pd.DataFrame(rows).assign(**more)
    failed = made[made["method"] == "Soft(64)"].assign(status="failed", n=65536, error_seconds=1e9)
    return pd.concat([made, failed], ignore_index=True)


def fit(n, y, together):
    """Least squares and Student's interval by the textbook's formulas."""
    x, y = np.log(np.array(n, float)), np.log(np.array(y, float))
    slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
    left = y - y.mean() - slope * (x - x.mean())
    error = np.sqrt((left**2).sum() / (len(x) - 2) / ((x - x.mean()) ** 2).sum())
    half = t.ppf(1 - 0.025 / together, len(x) - 2) * error
    return slope, slope - half, slope + half


def fits():
    """By method and input: error, time, memory; ten of errors and four of times together."""
    found = {}
    for method in METHODS:
        for source, n in LENGTHS.items():
            rows = table()
            rows = rows[(rows["method"] == method) & (rows["input"] == source)]
            rows = rows[(rows["status"] == "ok")]
            long = rows[rows["n"] >= 4096]
            found[method, source] = {"error": fit(n, rows["sampled_error"], 10)}
            if long["seconds_q1"].notna().all():
                found[method, source] |= {
                    "time": fit(long["n"], long["seconds_q1"], 4),
                    "memory": fit(long["n"], long["peak_bytes"], 4),
                }
    return found


def power(x):
    value, low, high = (f"{y:.2f}" for y in x)
    return f"{value} ({low} to {high})" if low != high else value


def test_exponents_have_students_intervals_together():
    expected = fits()
    rows = exponents(table())
    assert len(rows) == 10
    for row in rows.to_dict("records"):
        due = expected[row["method"], row["input"]]
        assert row["error"] == pytest.approx(due["error"])
        for what in ("time", "memory"):
            if what in due:
                assert row[what] == pytest.approx(due[what])
            else:
                assert np.isnan(row[what].value)
        assert row["last"]["n"] == max(LENGTHS[row["input"]])


def test_the_greatest_length_target_by_target():
    first = findings(table())[0]
    words = {}
    for method in ("Soft(64)", "Zeta(64)", "Low(64)", "Local(64)"):
        e = error(method, "smooth", 32768)
        words[method] = f"{method} {three(e)} ({three(0.9 * e)} to {three(1.2 * e)})"
    assert first == (
        "At n = 32768 the sampled relative output errors on smooth input, with their 95 % "
        f"intervals, are: against Gaussian, {words['Soft(64)']} and {words['Zeta(64)']}; against "
        f"Dense, {words['Low(64)']} and {words['Local(64)']}. Errors against different targets "
        "are not comparable, nor those of methods of different work. The 256 exact rows of a "
        f"target, which all its operators share, took at most {three(700 * 256 / 32768)} seconds, "
        "and an estimate beside them at most 9.20 (Local(64)), each timed once. The whole target "
        "would take 450 to 700 seconds."
    )
    hours = table()
    hours["target_seconds"] *= 100
    assert "would take 12.5 to 19.4 hours." in findings(hours)[0]
    hours["target_seconds"] *= 0.06
    assert "would take 2700 to 4200 seconds." in findings(hours)[0]
    assert "take 10.1 to 10.1 hours." in findings(table(target_seconds=10.0501 * 3600))[0]
    assert "take 1.00 to 1.00 hours." in findings(table(target_seconds=3600.5))[0]
    hour = table(target_seconds=3600.0)
    assert "would take 3600 to 3600 seconds." in findings(hour)[0]
    rough = table()
    rough = rough[rough["input"] == "normal"]
    assert "errors on normal input" in findings(rough)[0]
    short = table()
    short = short[short["n"] <= 8192]
    assert "At n = 8192 the sampled relative output errors on smooth input" in findings(short)[0]


def test_how_far_estimates_are_from_exact_errors():
    second = findings(table())[1]
    # 5 methods, 3 + 3 lengths with an exact error; Low misses at 4096 on both inputs.
    offs = [1 / 1.3 - 1 if (m, n) == ("Low(64)", 4096) else 1 / 1.1 - 1
            for m in METHODS for s in LENGTHS for n in LENGTHS[s] if n <= 8192]  # fmt: skip
    assert len(offs) == 30
    assert second == (
        "Where the exact output exists too, up to n = 8192, 28 of 30 intervals hold the exact "
        "error (93 %; cases of one length share their rows), and the estimate is off by "
        f"{three(100 * abs(np.median(offs)))} % in the median and "
        f"{three(100 * max(map(abs, offs)))} % at most."
    )
    edge = table()
    edge["exact_error"] = edge["low"].where(edge["n"] <= 8192)
    assert "30 of 30 intervals hold" in findings(edge)[1]
    edge["exact_error"] = edge["high"].where(edge["n"] <= 8192)
    assert "30 of 30 intervals hold" in findings(edge)[1]
    edge["exact_error"] = 0.99 * edge["low"].where(edge["n"] <= 8192)
    assert "0 of 30 intervals hold" in findings(edge)[1]
    assert len(findings(table(exact_error=None))) == 2


def test_growth_of_time_memory_and_error():
    third = findings(table())[2]
    due = fits()
    own = [m for m in METHODS if m != "Uniform"]
    each = {
        what: [f"{m} {power(due[m, 'smooth'][what])}" for m in own] for what in ("time", "memory")
    }
    errors = {key: x["error"] for key, x in due.items() if key[0] != "Uniform"}
    most, least = (pick(errors, key=lambda key: errors[key][0]) for pick in (max, min))
    assert third == (
        f"From n = 4096 on time grows with the exponents {', '.join(each['time'][:-1])} and "
        f"{each['time'][-1]}. From n = 4096 on memory grows with the exponents "
        f"{', '.join(each['memory'][:-1])} and {each['memory'][-1]}. The greatest of 8 exponents "
        f"of the error, at a fixed knob, is that of {most[0]} on {most[1]} input: n to the "
        f"{power(errors[most])}. The least of 8 exponents of the error, at a fixed knob, is that "
        f"of {least[0]} on {least[1]} input: n to the {power(errors[least])}. In brackets: "
        "Student's "
        "intervals, 95 % for all of a kind together."
    )
    few = table()
    few = few[few["n"] <= 4096]
    assert len(findings(few)) == 2
    none = table()
    none.loc[(none["method"] == "Low(64)") & (none["input"] == "normal"), "sampled_error"] = 0.0
    assert "The least of 7 exponents of the error" in findings(none)[2]


def test_headlines_name_no_winner():
    """Local errs least; what is said is each target's first."""
    found = list(headlines(table()))
    values = [error(m, "smooth", 32768) for m in ("Soft(64)", "Low(64)")]
    assert found == [
        {
            "text": f"At 32768 tokens {name} errs by {{}} on smooth input, by {rows} of its rows.",
            "value": three(e),
            "interval": f"95 % {three(0.9 * e)} to {three(1.2 * e)}",
        }
        for name, rows, e in zip(("Soft(64)", "Low(64)"), (256, 200), values, strict=True)
    ]
    assert list(headlines(table(status="failed"))) == []


def test_the_table():
    (made,) = tables(table())
    assert made["left"] == 2
    assert made["header"] == ["operator (target)", "input", "error", "time", "memory", "n",
                              "error at n"]  # fmt: skip
    expected, due = [], fits()

    def cell(x):
        low, high = f"{x[1]:.2f}", f"{x[2]:.2f}"
        return [f"{x[0]:.2f}", f"{low} to {high}"] if low != high else f"{x[0]:.2f}"

    for method, (target, *_) in METHODS.items():
        for source in ("smooth", "normal"):
            n = max(LENGTHS[source])
            e = error(method, source, n)
            own = due[method, source]
            expected.append([
                f"{method} ({target})" if source == "smooth" else "", source, cell(own["error"]),
                *(cell(own[what]) if what in own else "" for what in ("time", "memory")),
                str(n), [three(e), f"{three(0.9 * e)} to {three(1.2 * e)}"],
            ])  # fmt: skip
    assert made["rows"] == expected


def test_noisy_timings_are_left_out():
    rows = table()
    at = (rows["method"] == "Low(64)") & (rows["n"] == 8192)
    rows.loc[at, "seconds_q3"] = 1.5 * rows["seconds_q1"]
    found = exponents(rows).set_index(["method", "input"])
    kept = rows[(rows["method"] == "Low(64)") & (rows["input"] == "smooth") & (rows["n"] > 1024)]
    kept = kept[kept["n"] != 8192]
    assert found.loc[("Low(64)", "smooth"), "time"] == pytest.approx(
        fit(kept["n"], kept["seconds_q1"], 4)
    )
    rows.loc[rows["method"] == "Low(64)", "seconds_q3"] = 1.5 * rows["seconds_q1"]
    assert "Low(64) 0.9" not in findings(rows)[2]
    every = exponents(rows).set_index(["method", "input"])
    mine = table()
    mine = mine[(mine["method"] == "Zeta(64)") & (mine["input"] == "smooth") & (mine["n"] > 1024)]
    assert every.loc[("Zeta(64)", "smooth"), "time"] == pytest.approx(
        fit(mine["n"], mine["seconds_q1"], 3)
    )


def test_the_scope_and_what_is_missing():
    assert scope(table()) == (
        "Operators: Soft(64), Zeta(64), Low(64), Local(64) and Uniform. Inputs: smooth and normal. "
        "Tokens: 1024 to 32768; the exact output up to 8192."
    )
    alone = table()
    alone = alone[alone["method"] == "Uniform"]
    assert len(findings(alone)) == 1  # of agreement


def test_certificates_and_sampled_intervals_check_each_other():
    """Finite on smooth input alone, 2 to 32 times the error, and none of the uniform average."""
    held = table()
    times = held["n"].map(dict(zip(LENGTHS["smooth"], (2, 32, 8, 4, 8), strict=True)))
    finite = np.where(held["input"] == "smooth", times * held["sampled_error"], np.inf)
    certified = held.assign(certified_error=np.where(held["method"] == "Uniform", np.nan, finite))
    (text,) = (x for x in findings(certified) if "certificate" in x)
    each = three(2 ** ((1 + 5 + 3 + 2 + 3) / 5))
    parts = [f"{each} for {name} (5 of 8 cases; 1 input)" for name in METHODS if name != "Uniform"]
    beyond = error("Local(64)", "smooth", 32768)
    assert text.startswith(
        "A certificate, a bound of the error that needs no exact output, is below the output's "
        "norm in 20 of 32 cases with one, on 2 inputs; there it is, over the sampled error, "
        f"{', '.join(parts[:-1])} and {parts[-1]}. None is below the lower end of the sampled "
        "interval. Where there is no exact output, up to n = 32768, it is below the output in 8 of "
        "8 cases. There it and the sampled interval check each other: 8 of 8 certificates lie "
        "above its lower end. At n = 32768 Soft(64) on smooth input is certified to err by at most "
    )
    first = error("Soft(64)", "smooth", 32768)
    assert text.endswith(
        f"{three(8 * first)}, and its sampled error is {three(first)} ({three(0.9 * first)} to "
        f"{three(1.2 * first)})."
    )
    assert first != beyond
    broken = certified.assign(certified_error=0.8 * certified["sampled_error"])
    (text,) = (x for x in findings(broken) if "certificate" in x)
    assert "40 of 40 are below the lower end of the sampled interval: a bug, or" in text
    assert "0 of 10 certificates lie above its lower end" in text
    silent = certified.assign(certified_error=np.inf)
    (text,) = (x for x in findings(silent) if "certificate" in x)
    assert text.endswith(
        "it is below the output in 0 of 10 cases: the sampled interval stands alone."
    )
    assert not [x for x in findings(held) if "certificate" in x]
    found = below("Certificates", tables(certified))
    assert [row[:4] for row in found["rows"][:2]] == [
        ["Soft(64)", "smooth", "5 of 5", "1"], ["", "normal", "0 of 3", "1"]
    ]  # fmt: skip
    at = sorted(f * error("Soft(64)", "smooth", n)
                for n, f in zip(LENGTHS["smooth"], (2, 32, 8, 4, 8), strict=True))  # fmt: skip
    assert found["rows"][0][4:] == [three(at[2]), [each, "2.00 to 32.0"]]
