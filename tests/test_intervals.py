"""Intervals hold what they say in simulated studies, and headlines say what varies."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, t

from softlab.report.chapter import named
from softlab.report.headlines import constant, headline, headlines
from softlab.report.intervals import (
    Mean,
    Median,
    bracketed,
    by_unit,
    cell,
    confidence,
    difference,
    exponent,
    in_common,
    interval,
    mean,
    median,
    of_draws,
    percent,
    share,
    words,
)
from softlab.report.intervals import headline as of_seeds


def least_hits(draws, level):
    """Fewer hits than this have a probability below 1e-4 at the level."""
    return int(binom.ppf(1e-4, draws, level))


def nested(rng, units, samples, icc):
    """Normal values of median 0: what units share and what samples add, so correlated."""
    shared = math.sqrt(icc) * rng.normal(size=(units, 1))
    values = shared + math.sqrt(1 - icc) * rng.normal(size=(units, samples))
    return pd.Series(values.ravel()), pd.Series(np.repeat(np.arange(units), samples))


def test_units_cover_nested_data_and_pooled_samples_do_not():
    """Six heads of four samples each, correlated as those of the rank study."""
    rng, draws, hits = np.random.default_rng(0), 100, {"units": 0, "pooled": 0}
    for _ in range(draws):
        values, unit = nested(rng, 6, 4, 0.95)
        found = median(values, unit)
        assert found.known
        hits["units"] += found.low <= 0 <= found.high
        low, high = interval(values)
        hits["pooled"] += low <= 0 <= high
    assert hits["units"] >= least_hits(draws, 0.95)
    assert hits["pooled"] < least_hits(draws, 0.95)


@pytest.mark.parametrize(("n", "rank"), [(6, 1), (8, 1), (9, 2), (12, 3), (25, 8)])
def test_an_interval_of_a_median_is_the_innermost_order_statistics_that_suffice(n, rank):
    """P(fewer than ``rank`` of n fair coins fall heads), both sides, is at most 5 %."""
    assert 2 * binom.cdf(rank - 1, n, 0.5) <= 0.05 < 2 * binom.cdf(rank, n, 0.5)
    x = pd.Series(np.random.default_rng(n).exponential(size=n))
    ordered = sorted(x)
    assert interval(x) == (ordered[rank - 1], ordered[-rank])
    found = median(x)
    assert found == Median(np.median(x), ordered[rank - 1], ordered[-rank], n, known=True)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_units_have_a_range_and_no_interval(n):
    x = pd.Series(np.arange(n) + 1.0)
    assert interval(x) == (-math.inf, math.inf)
    assert median(x) == Median((n + 1) / 2, 1, n, n, known=False)
    expected = {1: "", 2: "the two heads: 1.00 and 2.00", 5: "range over 5 heads: 1.00 to 5.00"}
    assert median(x).span("heads") == expected[n]


def test_many_verdicts_widen_each_interval():
    assert confidence(1) == 0.95
    assert confidence(28) == pytest.approx(1 - 0.05 / 28)
    assert confidence(0) == 0.95
    x = pd.Series(range(12), dtype=float)
    assert median(x)[1:3] == (2, 9)
    # 2 P(X < 2) = 0.00635 lies between 0.05 / 8 and 0.05 / 7.
    assert median(x, verdicts=7)[1:3] == (1, 10)
    assert median(x, verdicts=8)[1:3] == (0, 11)
    assert not median(x[:6], verdicts=2).known


def test_many_means_and_differences_of_seeds_widen_each():
    """Two degrees of freedom: t is 4.3027 at 95 %, 6.2053 at 97.5 % and 9.9248 at 99 %."""
    x = pd.Series([0.0, 1.0, 5.0])
    rows = pd.DataFrame({
        "seed": [0, 1, 2] * 2, "method": ["a"] * 3 + ["b"] * 3, "x": [3.0, 3, 3, 3, 2, -2],
    })  # fmt: skip
    for verdicts, quantile in ((1, 4.3027), (2, 6.2053), (5, 9.9248)):
        half = quantile * math.sqrt(7 / 3)
        due = pytest.approx((2, 2 - half, 2 + half), rel=1e-4)
        assert in_common(rows[1:], "a", "b") == in_common(rows[:-1], "a", "b") == 2
        assert mean(x, verdicts=verdicts) == due
        assert difference(rows, "x", "a", "b", verdicts=verdicts) == due


def test_an_interval_without_width_is_no_interval():
    twelve = pd.Series([1.0] * 11 + [1.54])
    assert interval(twelve) == (1, 1)
    assert median(twelve) == Median(1, 1, 1.54, 12, known=False)
    assert median(twelve).span("inputs") == "range over 12 inputs: 1.00 to 1.54"
    alike = pd.Series([1.0, 1.0001, 1.0, 1.0, 1.0, 1.0, 1.0])
    assert median(alike).span("inputs") == "the same for all 7 inputs"


def test_units_are_reduced_by_medians_and_ratios_by_geometric_means():
    values = pd.Series([1.0, 2.0, 30.0, 8.0, 2.0, math.nan, math.nan])
    unit = pd.Series(["a", "a", "a", "b", "b", "b", "c"])
    assert by_unit(values, unit).to_dict() == pytest.approx(
        {"a": 2, "b": 5, "c": math.nan}, nan_ok=True
    )
    found = by_unit(values, unit, ratios=True)
    assert found["a"] == pytest.approx(60 ** (1 / 3))
    assert found["b"] == pytest.approx(4)
    assert median(values, unit) == Median(3.5, 2, 5, 2, known=False)
    assert median(values, unit, ratios=True).value == pytest.approx((60 ** (1 / 3) + 4) / 2)
    assert median(pd.Series([math.nan])).units == 0


def test_what_is_infinite_counts_as_beyond_all_others():
    found = median(pd.Series([1.0, 2.0, math.inf, math.inf]))
    assert (found.low, found.high, found.units) == (1, math.inf, 4)
    most = median(pd.Series([1.0, 2.0, 3.0, 4.0, math.inf, math.inf, math.inf]))
    assert most == Median(4, 1, math.inf, 7, known=True)


def test_the_interval_of_an_exponent_is_students_and_covers():
    n = pd.Series([1024, 2048, 4096, 8192])
    rng, draws, hits, close = np.random.default_rng(1), 200, 0, 0
    for _ in range(draws):
        y = n**1.3 * np.exp(0.1 * rng.normal(size=4))
        found = exponent(n, y)
        hits += found.low <= 1.3 <= found.high
        half = (found.high - found.low) / 2 / t.ppf(0.975, 2)
        close += abs(found.value - 1.3) <= 2 * half
    assert hits >= least_hits(draws, 0.95)
    assert close < least_hits(draws, 0.95)  # two standard errors, of two degrees of freedom
    x = np.log(n)
    slope, level = np.polyfit(x, np.log(y), 1)
    error = math.sqrt(
        ((np.log(y) - slope * x - level) ** 2).sum() / 2 / ((x - x.mean()) ** 2).sum()
    )
    half = t.ppf(1 - 0.05 / 2 / 27, 2) * error
    assert exponent(n, y, verdicts=27) == pytest.approx((slope, slope - half, slope + half))


def test_all_exponents_of_a_table_hold_together():
    """Of 27 operators none is told from its law but in 5 % of the tables."""
    n, rng, draws, whole = pd.Series([1024, 2048, 4096]), np.random.default_rng(2), 20, 0
    for _ in range(draws):
        made = [n * np.exp(0.1 * rng.normal(size=3)) for _ in range(27)]
        found = [exponent(n, y, verdicts=27) for y in made]
        whole += all(x.low <= 1 <= x.high for x in found)
    assert whole >= least_hits(draws, 0.95)


@pytest.mark.parametrize(
    ("x", "y"), [([1, 2], [1, 2]), ([1, 2, 4], [1, 0, 2]), ([1, 2, 4], [1, -1, 2])]
)
def test_two_points_and_what_is_not_positive_have_no_exponent(x, y):
    assert np.isnan(exponent(pd.Series(x), pd.Series(y))).all()
    assert exponent(pd.Series([1, 2, 4]), pd.Series([0.1, 0.2, 0.4])).value == pytest.approx(1)


def test_the_interval_of_a_share_is_exact():
    """At its ends the tail of the count that was seen has probability 2.5 %."""
    low, high = share(7, 11)
    assert binom.sf(6, 11, low) == pytest.approx(0.025, abs=1e-6)
    assert binom.cdf(7, 11, high) == pytest.approx(0.025, abs=1e-6)
    low, high = share(7, 11, verdicts=10)
    assert binom.sf(6, 11, low) == pytest.approx(0.0025, abs=1e-6)
    assert share(0, 4)[0] == 0
    assert share(4, 4)[1] == 1


def test_the_mean_of_seeds_covers_and_equal_seeds_have_no_interval():
    rng, draws = np.random.default_rng(3), 300
    found = [mean(pd.Series(rng.normal(2, 0.3, size=3))) for _ in range(draws)]
    hits = sum(x.low <= 2 <= x.high for x in found)
    assert hits >= least_hits(draws, 0.95)
    assert np.mean([x.high - x.low for x in found]) == pytest.approx(
        2 * t.ppf(0.975, 2) * 0.3 / math.sqrt(3) * 0.8862,
        rel=0.1,  # mean of chi_2 over sqrt(2)
    )
    for equal in ([0.5, 0.5], [0.1 + 0.2, 0.3, 0.3], [0.5]):
        assert mean(pd.Series(equal)) == Mean(pytest.approx(np.mean(equal)), -math.inf, math.inf)
        assert mean(pd.Series(equal)).sign == 0
    assert np.isnan(mean(pd.Series([], dtype=float)).value)


def test_a_sign_is_told_where_the_interval_lies_on_one_side_of_zero():
    two = mean(pd.Series([1.0, 1.1]))  # t of one degree of freedom: 12.706
    assert two == pytest.approx((1.05, 1.05 - 12.7062 * 0.05, 1.05 + 12.7062 * 0.05), rel=1e-5)
    assert [Mean(0.0, *ends).sign for ends in ((1, 2), (-2, -1), (-1, 1), (0, 1), (-1, 0))] == [
        1, -1, 0, 0, 0,
    ]  # fmt: skip
    assert [Mean(0.0, low, 1).known for low in (0.5, -math.inf)] == [True, False]
    large = mean(pd.Series([1e6, 1e6 + 1e-5]))
    assert large.known  # apart by more than rounding
    assert not mean(pd.Series([1e6, 1e6 * (1 + 1e-12) - 1e-7])).known


def test_differences_are_of_the_seeds_that_both_have():
    rows = pd.DataFrame({
        "method": ["a", "a", "a", "b", "b", "b"], "seed": [0, 1, 2, 1, 2, 3],
        "x": [9.0, 1.0, 4.0, 0.5, 2.0, 7.0],
    })  # fmt: skip
    found = difference(rows, "x", "a", "b")
    assert found == pytest.approx(tuple(mean(pd.Series([0.5, 2.0]))))
    assert np.isnan(difference(rows, "x", "a", "c").value)


def test_a_mean_in_words_has_its_interval_where_it_has_one_with_width():
    assert bracketed(Mean(1.321, 1.1, 1.54)) == "1.32 (1.10 to 1.54)"
    assert bracketed(Mean(1.321, 1.1, 1.54), "{:.1f}".format) == "1.3 (1.1 to 1.5)"
    assert bracketed(Mean(1.0, -math.inf, math.inf)) == "1.00"
    assert bracketed(Mean(1.0, 0.9999, 1.0001)) == "1.00"
    assert words(Mean(0.5, 0.49, 0.52)) == "50.0 % (49.0 to 52.0)"
    assert (percent(0.5), percent(0.5, signed=True)) == ("50.0", "+50.0")
    assert words(Mean(0.5, 0.4999, 0.5001), signed=True) == "+50.0 points"
    assert cell(Mean(0.5, 0.49, 0.52), signed=True) == ["+50.0", "+49.0 to +52.0"]
    assert cell(Mean(0.5, 0.4999, 0.5001)) == "50.0"
    low = of_seeds("By {}.", Mean(0.5, 0.49, 0.52), 3)
    assert low == {"text": "By {}.", "value": "+50.0", "interval": "95 % +49.0 to +52.0; seeds: 3"}
    assert of_seeds("By {}.", Mean(0.5, 0.5, 0.5), 3)["interval"] == "seeds: 3"


# --- headlines -----------------------------------------------------------------------------------

HEADS = pd.Series(np.repeat(list("abcdefg"), 4))
ERRORS = pd.Series(
    [0.1 * i + 0.01 * j + (2.0 if j == 3 else 0) for i in range(7) for j in range(4)]
)
"""Medians of the heads: 0.015, 0.115, ... 0.615, far from means, maxima and pooled values."""


def test_a_headline_says_over_how_many_of_what_it_is_a_median():
    (found,) = headline("It errs by {}.", ERRORS, "heads", unit=HEADS, nested="samples")
    assert found == {
        "text": "It errs by {}, in the median over 7 heads (each the median over its samples).",
        "value": "0.315",
        "interval": "95 % 0.0150 to 0.615",
    }
    (plain,) = headline("It errs by {}", pd.Series([1.0, 2.0, 4.0]), "inputs")
    assert plain["text"] == "It errs by {}, in the median over 3 inputs."
    assert (plain["value"], plain["interval"]) == ("2.00", "range over 3 inputs: 1.00 to 4.00")
    (known,) = headline("It errs by {}", pd.Series([1.0, math.nan, 2.0, 4.0]), "inputs")
    assert known == plain  # what has no answer is no input
    lost = ERRORS.where(HEADS != "g")
    (known,) = headline("It errs by {}", lost, "heads", unit=HEADS, nested="samples")
    assert known["text"].endswith("over 6 heads (each the median over its samples).")
    assert not list(headline("It errs by {}", pd.Series([math.nan]), "inputs"))
    ratios = pd.Series([1.0, 4.0, 8.0, 2.0])
    (said,) = headline("{} times", ratios, "inputs", unit=HEADS[2:6].reset_index(drop=True),
                       nested="ranks", ratios=True)  # fmt: skip
    assert said["text"].endswith("(each the geometric mean over its ranks).")
    assert (said["value"], said["interval"]) == ("3.00", "the two inputs: 2.00 and 4.00")
    (bare,) = headline("It errs by {}", ERRORS[:8], "heads", unit=HEADS[:8])
    assert (
        bare["text"]
        == "It errs by {}, in the median over 2 heads (each the median over its cases)."
    )
    (alone,) = headline("It errs by {}", ERRORS[::4], "heads", unit=HEADS[::4], nested="samples")
    assert alone["text"] == "It errs by {}, in the median over 7 heads."
    (one,) = headline("It errs by {}", pd.Series([1.0]), "heads")
    assert (one["text"], one["interval"]) == ("It errs by {} (heads: 1).", "")


def test_a_designed_grid_has_a_range_and_no_median():
    """Two condition numbers right, two wrong: no value is near the median 0.624."""
    cosines = pd.Series([1.0, 1.0, 0.248, -0.221])
    (found,) = headline("It has a cosine of {}.", cosines, "condition numbers", grid=True)
    assert found == {
        "text": "It has a cosine of {}, over a designed grid of 4 condition numbers.",
        "value": "-0.221 to 1.00",
        "interval": "range over the grid",
    }
    (same,) = headline("It has a cosine of {}.", cosines[:2], "spreads", grid=True)
    assert same["value"] == "1.00"


def test_a_sentence_that_its_study_contradicts_is_not_said():
    """c of "c eps kappa" falls 3,000 times with kappa: no number stands for it."""
    kappa = pd.Series([1.0, 10.0, 100.0, 1e4]).repeat(3).reset_index(drop=True)
    falling = pd.Series([0.244, 0.0240, 0.0025, 0.00008]).repeat(3).reset_index(drop=True)
    level = pd.Series([0.5, 0.9, 0.6, 0.7]).repeat(3).reset_index(drop=True)
    text = "The least error is {} eps kappa."
    assert not list(headline(text, falling, "runs", holds=constant(falling, kappa)))
    assert len(list(headline(text, level, "runs", holds=constant(level, kappa)))) == 1


@pytest.mark.parametrize(
    ("levels", "held"),
    [
        ([1.0, 2.0], True), ([1.0, 2.01], False), ([-1.0, -1.9], True), ([-1.0, 1.0], False),
        ([0.0, 1.0], False), ([1.0, math.inf], False), ([3.0], True),
        ([0.0, 0.0], False), ([1.0, -math.inf], False), ([2.0, 1.0, 1.5], True),
    ],
)  # fmt: skip
def test_constant_is_within_a_factor_of_two_at_every_condition(levels, held):
    values = pd.Series([x for level in levels for x in (level - 100, level, level + 9)])
    along = pd.Series(np.repeat(np.arange(len(levels)), 3))
    assert constant(values, along) == held


def test_a_study_has_three_headlines_at_most(monkeypatch):
    many = [{"text": f"{i} is {{}}.", "value": "1", "interval": ""} for i in range(4)]
    monkeypatch.setattr(named("operators"), "headlines", lambda table: iter(many))
    assert headlines(pd.DataFrame(), {"chapter": "operators"}, []) == many[:3]


def test_a_bootstrap_of_few_units_covers_and_plain_percentiles_do_not():
    """The mean of eight normal numbers, 500 draws each."""
    rng, studies, hits, plain = np.random.default_rng(3), 300, 0, 0
    for _ in range(studies):
        x = rng.normal(size=8)
        means = x[rng.integers(0, 8, (500, 8))].mean(1)
        low, high = of_draws(np.append(means, math.nan), 8)
        hits += low <= 0 <= high
        low, high = np.quantile(means, [0.025, 0.975])
        plain += low <= 0 <= high
    assert hits >= least_hits(studies, 0.95)
    assert plain < least_hits(studies, 0.95)
    # Phi(-sqrt(8 / 7) 2.36462) = 0.005738: of 0, 1, ..., 10000
    assert of_draws(np.arange(10001.0), 8) == pytest.approx((57.38, 9942.62), abs=0.05)
    assert np.isnan(of_draws(means, 1)).all()
    assert np.isnan(of_draws(np.array([math.nan]), 8)).all()
