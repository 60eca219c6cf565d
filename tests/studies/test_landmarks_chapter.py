"""Every number of the landmarks chapter, against lists in which means and medians differ."""

import math
from statistics import median

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom
from tables import below, three

from softlab.report.profiles import known_to, shares_within
from studies.landmarks.chapter import (
    _within,
    bounds,
    comparisons,
    findings,
    headlines,
    profile,
    ratios,
    scope,
    tables,
    times,
    traces,
)

SEEDS = (0.3, 1.0, 4.1)
SOURCES = ("m", "c", "a", "z", "k", "b", "y")
IMAGES = ("a", "z")
RANKS = (64, 16, 4)
ALLOWED = {"softmax": (*RANKS, 0.25), "plain": RANKS}  # in no order of the alphabet
BASE = {"m": 0.31, "c": 0.05, "a": 0.12, "z": 0.52, "k": 0.02, "b": 0.23, "y": 0.09}
FACTORS = {  # of the error, by input: more at 16 landmarks
    "uniform": (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0),
    "k-means": (0.5, 0.9, 1.3, 0.2, 0.7, 1.24, 0.6),
    "segment means": (1.5, 0.8, 0.4, 2.2, 1.1, 0.99, 1.25),
    "k-means, 1 step": (0.8, 0.95, 1.1, 0.5, 0.8, 1.1, 0.7),
    "grid means": (9.0, 9.0, 0.3, 0.6, 9.0, 9.0, 9.0),
}
AT_64 = {"uniform": 1.0, "k-means": 0.7, "segment means": 1.2, "k-means, 1 step": 0.9,
         "grid means": 1.5}  # fmt: skip
AT_4 = {"uniform": 1.0, "k-means": 0.8, "segment means": 1.3, "k-means, 1 step": 0.6,
        "grid means": 0.9}  # fmt: skip
AT_WORK = {"uniform": 0.5, "k-means": 1.4, "segment means": 0.6, "k-means, 1 step": 0.7,
           "grid means": 0.8}  # fmt: skip


def error(setting, selector, source, allowance):
    base = BASE[source] * FACTORS[selector][SOURCES.index(source)]
    base *= {
        64: 0.6 * AT_64[selector], 16: 1.0, 4: 1.5 * AT_4[selector], 0.25: 0.4 * AT_WORK[selector],
    }[allowance]  # fmt: skip
    return base if setting == "softmax" else base**1.5


def selectors(source):
    return [name for name in FACTORS if name != "grid means" or source in IMAGES]


def table():
    rows = []
    for setting, allowances in ALLOWED.items():
        for source in SOURCES:
            for allowance in allowances:
                for selector in selectors(source):
                    for seed, wobble in enumerate(SEEDS):
                        least = 0.004 if source == "c" else 0.0009 if source == "k" else 0.1
                        made = error(setting, selector, source, allowance)
                        rows.append({
                            "status": "ok", "setting": setting, "source": source, "seed": seed,
                            "equal": "landmarks" if allowance >= 1 else "work",
                            "allowance": allowance, "selector": selector, "fits": True,
                            "n": 512 if source == "m" else 300, "output_error": made * wobble,
                            "uniform_error": 0.3 if source == "m" else 3.0,
                            "matrix_error": 2 * made * wobble,
                            "best_error": 0.1 * BASE[source] * wobble,
                            "time": 1.5 + list(FACTORS).index(selector) * wobble,
                            "time_q1": None, "time_q3": None,
                            "trace_error": least * (2 + 10 * made * wobble),
                            "best_trace_error": least,
                        })  # fmt: skip
    made = pd.DataFrame(rows)
    failed = made[made["selector"] == "uniform"].assign(status="failed", output_error=77.0)
    return pd.concat([made, failed], ignore_index=True)


def geometric(values):
    return math.exp(sum(map(math.log, values)) / len(values))


def over(setting, asked, rival, allowances):
    return [
        geometric([error(setting, asked, source, a) / error(setting, rival, source, a)
                   for a in allowances])
        for source in SOURCES
    ]  # fmt: skip


def finished(rows):
    return rows[rows["status"] == "ok"]


def test_ratios_are_geometric_means_of_medians():
    rows = table()
    rows = rows[(rows["setting"] == "softmax") & (rows["equal"] == "landmarks")]
    rows = rows[rows["status"] == "ok"]
    found = ratios(rows, "k-means", "uniform")
    assert list(found.index) == list(SOURCES)
    assert found.tolist() == pytest.approx(over("softmax", "k-means", "uniform", RANKS))
    skewed = rows.copy()
    skewed.loc[(rows["selector"] == "k-means") & (rows["seed"] == 2), "output_error"] *= 10
    assert ratios(skewed, "k-means", "uniform").equals(found)  # medians of the seeds, not means
    assert 0 < float(_within(rows, 1.1)["uniform"].iloc[0]) < 1
    assert _within(skewed, 1.1).equals(_within(rows, 1.1))
    rows.loc[(rows["source"] == "m") & (rows["allowance"] == 16), "output_error"] = np.nan
    assert ratios(rows, "k-means", "uniform")["m"] == pytest.approx(geometric([0.35, 0.4]))
    tiny = rows.assign(output_error=rows["output_error"] * 1e-9)
    assert set(ratios(tiny, "k-means", "uniform")) == {1.0}  # of rounding, and no merit
    assert ratios(rows, "k-means", "nobody").empty


def test_each_paragraph_of_k_means_says_the_tables_numbers():
    """Seven inputs and 12 intervals: none is known at that level; 1 - 2/128 = 0.984 < 0.9958."""
    said = findings(table())[:2]
    for setting, text in zip(ALLOWED, said, strict=True):
        parts = []
        for lead, allowances in (("equally many landmarks", RANKS), ("equal work", (0.25,))):
            if set(allowances) <= set(ALLOWED[setting]):
                for asked in ("k-means", "k-means, 1 step"):
                    words = []
                    for rival in ("uniform", "segment means"):
                        each = over(setting, asked, rival, allowances)
                        words.append(
                            f"{three(median(each))} times that with {rival} (less on "
                            f"{sum(x < 1 for x in each)} of 7)"
                        )
                    parts.append(f"at {lead} with {asked} {words[0]} and {words[1]}")
        assert text == (
            f"{setting.capitalize()}: the output error is, in the median over the inputs (with its "
            "interval, 95 % for all such intervals together, and on how many it is less), "
            f"{'; '.join(parts)}."
        )


def test_few_comparisons_have_intervals_and_many_share_their_level():
    rows = finished(table())
    each = over("plain", "k-means", "uniform", RANKS)
    two = rows[rows["selector"].isin(["uniform", "k-means"])]
    plain = two["setting"] == "plain"
    (first, *_) = findings(two[plain])
    ends = f"{three(min(each))} to {three(max(each))}"
    assert f"uniform ({ends}; less on 5 of 7)" in first
    found = comparisons(two[plain | (two["equal"] == "work")])  # 0.05 / 2 > 2 / 128
    assert found["known"].all()
    assert found["low"].iloc[-1] == pytest.approx(min(each))
    both = rows[rows["selector"].isin(["uniform", "k-means", "segment means"])]
    both = both[(both["setting"] == "plain") | (both["equal"] == "work")]
    assert not comparisons(both)["known"].any()  # of four intervals: 0.05 / 4 < 2 / 128
    assert findings(rows[rows["selector"] == "uniform"])[0].startswith("Within a quarter")
    few = rows[(rows["setting"] == "softmax") | rows["selector"].isin(["uniform", "k-means"])]
    assert not any("nan" in text for text in findings(few))


def test_the_headline_says_both_comparisons_in_one_sentence():
    first, second = headlines(table())
    equal, work = (over("softmax", "k-means", "uniform", x) for x in (RANKS, (0.25,)))
    assert first == {
        "text": "For softmax, landmarks by k-means make {} times the output error of as many "
        f"uniform draws, and {three(median(work))} times at equal work, which counts how they are "
        f"chosen (less error on {sum(x < 1 for x in work)} of 7 inputs), in the median over 7 "
        "inputs.",
        "value": three(median(equal)),
        "interval": f"95 % {three(min(equal))} to {three(max(equal))}",
    }
    assert median(work) > 1 > median(equal)
    plain = over("plain", "k-means", "uniform", RANKS)
    assert second["value"] == three(median(plain))
    assert second["text"].startswith("For plain, landmarks by k-means")
    assert "not counting the work of choosing them, in the median" in second["text"]


def test_equal_errors_are_not_less_and_a_setting_has_only_its_own_comparisons():
    def less(rows):
        keys = ["setting", "equal", "asked", "rival"]
        found = comparisons(finished(rows)).set_index(keys)["less"]
        return found["softmax", "work", "k-means", "uniform"]

    rows = table()
    before = less(rows)
    assert before == sum(x < 1 for x in over("softmax", "k-means", "uniform", (0.25,)))
    rows.loc[(rows["source"] == "z") & (rows["equal"] == "work"), "output_error"] = 1e-9
    assert less(rows) == before - 1
    assert f"(less error on {before - 1} of 7 inputs)" in next(headlines(rows))["text"]
    named = table().replace({"setting": {"softmax": "alpha"}})  # before "plain"
    assert findings(named)[1] == findings(table())[1]
    bare = list(tables(table().assign(uniform_error=lambda x: x["output_error"].clip(upper=1))))
    at_most = [one["rows"] for one in bare[::2]]
    assert {row[-1] for body in at_most for row in body} == {"1.00"}  # as bad is no skill


def test_of_thirty_inputs_half_may_be_a_third():
    assert known_to(30, 1).startswith("15 of 30 inputs may stand for a share of 31 to 69 %")


def shares(setting, allowances, tau):
    """On how many inputs and allowances each selector's median error is within tau of the least."""
    found = {}
    for name in FACTORS:
        near = [
            error(setting, name, s, a)
            <= tau * min(error(setting, other, s, a) for other in selectors(s))
            for s in SOURCES
            if name in selectors(s)
            for a in allowances
        ]
        found[name] = sum(near) / len(near)
    return found


def test_who_is_near_the_best_and_how_little_that_says():
    (said,) = (text for text in findings(table()) if text.startswith("Within a quarter"))
    parts = []
    for setting, equal, allowances in (
        ("softmax", "landmarks", RANKS), ("softmax", "work", (0.25,)),
        ("plain", "landmarks", RANKS),
    ):  # fmt: skip
        best = sorted(shares(setting, allowances, 1.25).items(), key=lambda item: -item[1])[:3]
        words = [f"{name} ({100 * x:.0f} %)" for name, x in best]
        parts.append(f"{setting} at equal {equal}, {words[0]}, {words[1]} and {words[2]}")
    assert said == (
        f"Within a quarter of the least error of all selectors are most often: {'; '.join(parts)} "
        "(in parentheses: on how many of the inputs and allowances that it takes part in). "
        f"So few inputs tell little apart: {known_to(7, 15)}."
    )


def test_how_little_a_share_of_few_inputs_says():
    text = known_to(7, 15)  # 4 of 7
    assert text.startswith("4 of 7 inputs may stand for a share of ")
    low, high = (int(x) / 100 for x in text.split(" share of ")[1].split(" %")[0].split(" to "))
    tail = 0.025 / 15
    assert binom.sf(3, 7, low - 0.005) < tail < binom.sf(3, 7, low + 0.005)
    assert binom.cdf(4, 7, high + 0.005) < tail < binom.cdf(4, 7, high - 0.005)
    assert text.endswith(" % (95 % for all 15 shares together)")


def test_bounds_and_traces_are_medians_over_inputs():
    _, _, _, of_bounds, of_traces, *_ = findings(table())
    words = []
    for setting in ALLOWED:
        each = [
            geometric([20 * min(error(setting, name, s, a) for name in selectors(s)) / BASE[s]
                       for a in RANKS])
            for s in SOURCES
        ]  # fmt: skip
        words.append(f"{three(median(each))} ({setting})")
    assert of_bounds == (
        "With the landmarks that do best, chosen afterwards, the error of the matrix is this many "
        "times that of the best matrix of the rank, in the median over the inputs, each the "
        f"geometric mean over the ranks: {words[0]} and {words[1]}."
    )
    parts = []
    for setting in ALLOWED:
        left = {
            name: median(
                geometric([2 + 10 * error(setting, name, s, a) * f for a in RANKS for f in SEEDS])
                for s in SOURCES
                if name in selectors(s) and s != "k"  # leaves 0.0009
            )
            for name in FACTORS
        }
        names = [f"{name} {three(left[name])}" for name in sorted(left, key=left.get)]
        parts.append(f"{setting}: {', '.join(names[:-1])} and {names[-1]}")
    assert of_traces == (
        "Trace of the kernel that is left, over the least that any matrix of the rank leaves where "
        "that is above 0.001, in the median over the inputs, each the geometric mean over samples "
        f"and ranks: {'; '.join(parts)}."
    )
    rows = finished(table())
    assert traces(rows.assign(best_trace_error=1e-3)) == {}
    work = rows[rows["equal"] == "work"]
    assert (bounds(work), traces(work)) == ({}, {})
    assert not any("Trace" in text or "best matrix" in text for text in findings(work))


def test_times_are_those_of_the_greatest_length_with_their_noise():
    rows = table().assign(time_q1=lambda x: 0.9 * x["time"], time_q3=lambda x: 1.1 * x["time"])
    more = rows = rows[rows["equal"] == "work"]
    grid = pd.concat([rows, more.assign(allowance=0.5, time=88.0), more.assign(allowance=0.125)])
    said = findings(grid)[-1]
    names = ["uniform", "k-means", "segment means", "k-means, 1 step"]
    words = []
    for i, name in enumerate(names):  # of m alone, which no grid selector takes part in
        time = 1.5 + i
        words.append(f"{name} {three(time)} (quartiles {three(0.9 * time)} to {three(1.1 * time)})")
    assert said == (
        "At 1/4 of the work of exact attention and n = 512, the time of a call over that of exact "
        f"attention, selection included: softmax: {words[0]}, {words[1]}, {words[2]} and "
        f"{words[3]}. Tokens chosen in turn take a pass each, which counted work does not see."
    )
    noisy = grid.assign(time_q3=lambda x: np.where(x["selector"] == "k-means", 2, 1.1) * x["time"])
    assert not times(noisy)["times"]["softmax"]["k-means"].known
    assert findings(noisy)[-1].index("k-means, 1 step") < findings(noisy)[-1].index("withheld")
    twice = pd.concat([grid, more.assign(setting="plain")])
    assert findings(twice)[-1] == said  # settings of the same cost are timed once
    rows = table()
    rows = rows[rows["equal"] == "landmarks"]
    assert times(rows) == {}


def test_the_scope_and_what_is_missing():
    assert scope(table()) == (
        "Settings: softmax and plain. Selectors: uniform; k-means; segment means; k-means, 1 step; "
        "grid means. Inputs: m (n = 512), c (n = 300), a (n = 300), z (n = 300), k (n = 300), "
        "b (n = 300), y (n = 300)."
    )
    rows = table()
    for gone in (rows.assign(fits=False), rows.assign(status="failed")):
        assert (scope(gone), findings(gone), list(headlines(gone)), list(tables(gone))) == (
            "", [], [], [],
        )  # fmt: skip
    lost = rows.assign(output_error=None)
    assert findings(lost) == []


def test_the_tables_of_selectors_and_of_winners():
    made = list(tables(table()))
    assert [one["left"] for one in made] == [1, 1, 1, 1]
    selectors_, winners = made[:2]
    assert selectors_["header"] == [
        "selector", "64", "16", "4", "1/4", *["\u00d71", "\u00d71.25", "\u00d72"] * 2, "no skill",
    ]  # fmt: skip
    expected = []
    for name in FACTORS:
        mine = [s for s in SOURCES if name in selectors(s)]
        cells = [three(median(error("softmax", name, s, a) for s in mine)) for a in (*RANKS, 0.25)]
        near = [f"{shares('softmax', which, tau)[name]:.2f}"
                for which in (RANKS, (0.25,)) for tau in (1, 1.25, 2)]  # fmt: skip
        bad = [error("softmax", name, s, a) * f >= (0.3 if s == "m" else 1.0)
               for s in mine for a in (*RANKS, 0.25) for f in SEEDS]  # fmt: skip
        expected.append([name, *cells, *near, f"{sum(bad) / len(bad):.2f}"])
    assert selectors_["rows"] == expected
    assert winners["header"] == [
        "input", "64 landmarks", "16 landmarks", "4 landmarks", "1/4 of the work",
    ]  # fmt: skip
    assert winners["rows"] == [
        [s, *(
            [best := min(selectors(s), key=lambda x: error("softmax", x, s, a)),
             three(error("softmax", best, s, a))]
            for a in (*RANKS, 0.25)
        )]
        for s in SOURCES
    ]  # fmt: skip
    assert below("Plain: the selector of the least", made)["header"] == [
        "input", "64 landmarks", "16 landmarks", "4 landmarks",
    ]  # fmt: skip
    assert [one["caption"].split(": ")[0] for one in made] == [
        "Softmax",
        "Softmax",
        "Plain",
        "Plain",
    ]
    few = table()
    few = few[~((few["source"] == "y") & (few["allowance"] == 16))]
    assert list(tables(few))[1]["rows"][-1][2] == ""


def test_profiles_are_of_each_seed():
    rows = profile(table())
    assert set(rows["seed"]) == {0, 1, 2}
    assert set(rows["status"]) == {"ok"}
    mine = rows[(rows["setting"] == "softmax") & (rows["equal"] == "work") & (rows["seed"] == 1)]
    at = mine[np.isclose(mine["tau"], 2)].set_index("selector")["share_within"]
    near = shares("softmax", (0.25,), 2)
    for name in ("uniform", "k-means"):
        assert at[name] == pytest.approx(near[name])
    assert at["grid means"] == pytest.approx(near["grid means"] * 2 / 7)  # no answer elsewhere
    assert sorted(set(rows["tau"])) == pytest.approx([2 ** (i / 8) for i in range(17)])
    assert list(profile(table().assign(fits=False))) == [
        "selector", "tau", "share_within", "setting", "equal", "seed", "status",
    ]  # fmt: skip


def test_shares_within_count_problems_and_controls_set_no_mark():
    errors = pd.DataFrame({"A": [1.0, 4.0, 1e-9], "B": [2.0, None, 9e-7]})
    control = pd.DataFrame({"mean": [0.5, 40.0, 1.0]})
    found = shares_within(errors, [1.0, 2.0], control).set_index(["method", "tau"])
    assert found["share_within"].round(3).to_dict() == {
        ("A", 1.0): 1, ("A", 2.0): 1, ("B", 1.0): 0.333, ("B", 2.0): 0.667,
        ("mean", 1.0): 0.333, ("mean", 2.0): 0.333,
    }  # fmt: skip
    assert shares_within(errors, [1.0])["share_within"].tolist() == pytest.approx([1, 1 / 3])
    half = shares_within(pd.DataFrame({"A": [1e-6], "B": [2.1e-6], "C": [1.9e-6]}), [2.0])
    assert half["share_within"].tolist() == [1, 0, 1]  # rounding ends at a millionth
