"""Verdicts of small tables where they are known, and what flips them."""

import dataclasses
import math

import pytest

from softlab.verdicts import (
    BLIND,
    FAILS,
    HOLDS,
    NONE,
    OPEN,
    PARTLY,
    Entry,
    Rule,
    decide,
    interval,
)

CONTROLS = {"mean": "null", "best": "optimal"}


def cases(places, controls=(0.9, 0.01), spread=1.1, seeds=3, unstated=None):
    """Cases at places, each with the subject's number and a little spread over the seeds."""
    for at, number in enumerate(places):
        for seed in range(seeds):
            wobble = spread ** (seed - (seeds - 1) / 2)
            yield Entry(
                place={} if unstated else {"head": f"h{at}"},
                values={
                    "ours": number * wobble,
                    "mean": controls[0] * wobble,
                    "best": controls[1] * wobble,
                },
                seed=seed,
                unstated={"n": str(unstated[at])} if unstated else {},
            )


def verdict(*args, rule=None, **kwargs):
    return decide(rule or Rule(at_most=0.5), "ours", CONTROLS, list(cases(*args, **kwargs)))


@pytest.mark.parametrize(
    ("numbers", "controls", "kind", "says"),
    [
        ([0.1, 0.2], (0.9, 0.01), HOLDS, "holds"),
        ([0.8, 0.9], (0.9, 0.01), FAILS, "does not hold"),
        ([0.1, 0.9], (0.9, 0.01), PARTLY, "holds only where head h0; not at head h1"),
        ([0.1, 0.2], (0.2, 0.01), BLIND, "the metric cannot tell: mean does as well"),
        ([0.8, 0.9], (0.2, 0.01), BLIND, "mean does as well"),
        ([0.1, 0.1], (0.9, 0.80), BLIND, "best does as well"),
        ([0.8, 0.9], (0.9, 0.80), FAILS, "does not hold"),
        ([0.5, 0.5], (0.9, 0.01), OPEN, "more seeds"),
        ([0.5, 0.9], (0.9, 0.01), FAILS, "unsure at head h0"),
        (
            [0.1, 0.5],
            (0.9, 0.01),
            OPEN,
            "more seeds are needed; holds at head h0; unsure at head h1",
        ),
    ],
)
def test_a_verdict_is_what_the_rows_say(numbers, controls, kind, says):
    found = verdict(numbers, controls)
    assert found.kind == kind
    assert says in found.words


def test_what_fails_with_one_unstated_value_and_is_unsure_with_another_is_open():
    found = verdict([0.8, 0.5], unstated=[1024, 4096])
    assert found.kind == OPEN
    assert "with n not stated; unsure with n 4096, and not with n 1024" in found.words
    assert verdict([0.8, 0.9], unstated=[1024, 4096]).kind == FAILS
    assert verdict([0.8, 0.5]).kind == FAILS


def test_what_is_unsure_leaves_it_open_where_it_could_change_the_verdict_and_only_there():
    """Beside a place where the metric is blind it never holds everywhere, however it turns out."""
    known = list(cases([0.1, 0.1, 0.5, 0.5]))
    blind = [
        dataclasses.replace(x, values={**x.values, "mean": 0.2}) if x.place == {"head": "h1"} else x
        for x in known
    ]
    rule = Rule(at_most=0.5)
    assert decide(rule, "ours", CONTROLS, known).kind == OPEN
    assert decide(rule, "ours", CONTROLS, blind).kind == PARTLY


@pytest.mark.parametrize("numbers", [[0.1], [0.8], [0.1, 0.2], [0.1, 0.9], [0.5, 0.6]])
def test_the_margin_is_where_the_verdict_flips_and_not_before(numbers):
    found = verdict(numbers)
    assert found.margin_of == "subject"
    short = found.margin ** (1 - 1e-6)
    beyond = found.margin ** (1 + 1e-6)
    assert verdict([x * short for x in numbers]).kind == found.kind
    assert verdict([x * beyond for x in numbers]).kind != found.kind


def test_the_margin_of_a_blind_metric_is_that_of_its_controls():
    found = verdict([0.1], (0.2, 0.01))
    assert (found.kind, found.margin_of) == (BLIND, "controls")
    moved = found.margin * (1 + 1e-6)
    assert verdict([0.1], (0.2 * moved, 0.01 * moved)).kind == HOLDS


def test_a_difference_has_a_margin_that_is_added():
    rule = Rule(at_most=1.05, scale="linear", span=(0, 3))

    def slope(x):
        entries = [Entry({}, {"ours": x, "mean": 2.0, "best": 1.0})]
        return decide(rule, "ours", CONTROLS, entries)

    found = slope(1.0)
    assert found.kind == HOLDS
    assert found.margin == pytest.approx(0.05, abs=1e-6)
    assert slope(1.0 + found.margin * (1 - 1e-6)).kind == HOLDS
    assert slope(1.0 + found.margin * (1 + 1e-6)).kind == FAILS


def test_a_ratio_is_taken_seed_by_seed():
    rule = Rule(at_most=0.9, of="rival")
    entries = [
        Entry({}, {"ours": 0.8 * x, "rival": x, "mean": 2 * x, "best": x / 9}, seed)
        for seed, x in enumerate((1.0, 100.0, 1e4))  # wide apart, and of one ratio
    ]
    found = decide(rule, "ours", CONTROLS, entries)
    assert (found.kind, found.value) == (HOLDS, pytest.approx(0.8))
    assert found.margin == pytest.approx(0.9 / 0.8, rel=1e-6)


def test_what_the_publication_leaves_open_makes_it_undecidable_where_it_decides():
    same = verdict([0.1, 0.2], unstated=(1024, 4096))
    torn = verdict([0.1, 0.9], unstated=(1024, 4096))
    assert same.kind == HOLDS
    assert torn.kind == OPEN
    assert "depends on n, which is not stated (it holds with n 1024 and not" in torn.words


def test_missing_data_are_no_verdict():
    whole = list(cases([0.1]))
    cut = [*whole, Entry({"head": "h9"}, {}, missing="GloVe is not here")]
    assert decide(Rule(at_most=0.5), "ours", CONTROLS, cut).words == (f"{NONE}: GloVe is not here")
    for name in ("ours", "mean", "best"):
        lost = [Entry(x.place, {**x.values, name: math.nan}, x.seed) for x in whole]
        found = decide(Rule(at_most=0.5), "ours", CONTROLS, lost)
        assert (found.kind, found.words) == (NONE, f"{NONE}: {name} has no number at head h0")
    assert decide(Rule(at_most=0.5), "ours", CONTROLS, []).words == f"{NONE}: nothing was measured"
    negative = [Entry({}, {"ours": -1.0, "mean": 1.0, "best": 0.1})]
    assert "scale='linear'" in decide(Rule(at_most=0.5), "ours", CONTROLS, negative).words


def test_one_seed_of_what_is_drawn_decides_nothing():
    assert verdict([0.1], seeds=1).kind == OPEN
    fixed = [Entry({}, {"ours": 0.1, "mean": 0.9, "best": 0.01})]
    assert decide(Rule(at_most=0.5), "ours", CONTROLS, fixed).kind == HOLDS


def test_an_infinite_error_fails():
    assert verdict([math.inf]).kind == FAILS


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "no bound and cannot fail"),
        ({"at_most": math.inf}, "finite numbers"),
        ({"at_most": 1.0, "span": (0, 1)}, "cannot fail"),
        ({"at_least": 0.0, "at_most": 2.0, "span": (0, 1)}, "cannot fail"),
        ({"at_least": 2.0, "span": (0, 1)}, "cannot hold"),
        ({"at_least": 2.0, "at_most": 1.0}, "exchange them"),
        ({"at_most": -1.0}, "scale='linear'"),
        ({"at_most": 1.0, "scale": "ratio"}, "'log' or 'linear'"),
    ],
)
def test_a_rule_that_cannot_decide_is_refused(fields, says):
    with pytest.raises(ValueError, match=says):
        Rule(**fields)


def test_the_interval_is_students():
    from scipy.stats import ttest_1samp

    values = [1.0, 2.0, 4.0]
    known = ttest_1samp([math.log(x) for x in values], 0).confidence_interval(0.95)
    found = interval(values, "log")
    assert found == pytest.approx((2.0, math.exp(known.low), math.exp(known.high)))


def test_places_share_the_level():
    alone, both = verdict([0.1]), verdict([0.1, 0.1])
    assert alone.places[0].subject.high < both.places[0].subject.high
