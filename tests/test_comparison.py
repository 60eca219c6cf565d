"""What changed between two runs is told, and what is noise is not."""

import json
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_line import call
from tables import rank_table
from test_report import META, write

from softlab.engine import journal
from softlab.report import FORMAT, comparison
from softlab.report.comparison import Change, Comparison, compare
from softlab.study import defined_in, run

ROOT = Path(__file__).parents[1]
AXES = ["input", "seed", "op"]


def cases(seeds=3):
    """The table with its axes ahead, as a run writes it, one row a case, and times with noise."""
    table = rank_table(seeds)
    table["op"] = table["op"] + table["method"] + table["target"]
    table = table[AXES + [x for x in table.columns if x not in AXES]]
    rng = np.random.default_rng(0)
    noise = 1 + 0.05 * rng.standard_normal(len(table))
    return table.assign(
        seconds=1e-3 * noise, seconds_q1=0.9e-3 * noise, seconds_q3=1.1e-3 * noise,
        core_status="CONVERGED",
    )  # fmt: skip


TIMED = ["seconds", "seconds_q1", "seconds_q3"]


def both(tmp_path, change, seeds=3, **meta):
    write(tmp_path / "old", cases(seeds), timed=TIMED)
    write(tmp_path / "new", change(cases(seeds)), timed=TIMED, **meta)
    (found,) = compare(tmp_path / "old", tmp_path / "new")
    return found


def test_equal_runs_differ_in_nothing(tmp_path):
    found = both(tmp_path, lambda table: table.sample(frac=1, random_state=0))
    assert (found.study, found.cases) == ("rank", len(cases()) - 1)
    assert found.columns > 15
    assert (found.changes, found.environment, found.coverage) == ((), (), ())


def test_noise_of_clocks_and_of_rounding_is_no_change(tmp_path):
    rng = np.random.default_rng(1)

    def jitter(table):
        for name in TIMED:
            table[name] *= 1 + 0.08 * rng.standard_normal(len(table))
        return table.assign(output_error=table.output_error * (1 + 1e-6))

    assert both(tmp_path, jitter).changes == ()


def slowed(table, by, pace=1.0):
    """Seconds with noise, ``pace`` times as many, and those of Soft another ``by`` times."""
    rng = np.random.default_rng(1)
    noise = 1 + 0.02 * rng.standard_normal(len(table))
    factor = pace * noise * np.where(table.method == "Soft", by, 1)
    return table.assign(**{x: table[x] * factor for x in TIMED})


@pytest.mark.parametrize("pace", [1.0, 3.0, 0.4])
def test_a_slower_method_is_told_with_its_factor_at_any_pace(tmp_path, pace):
    found = both(tmp_path, lambda table: slowed(table, 1.5, pace))
    names = {x for x in cases().op if x.startswith("Soft(")}
    assert len(names) > 2
    assert {x.column for x in found.changes} == {f"seconds of op={x}" for x in names}
    for x in found.changes:
        assert x.low < x.factor < x.high
        assert x.factor == pytest.approx(1.5, rel=0.08)


def test_a_slower_run_is_told_as_its_pace_and_is_no_change(tmp_path):
    found = both(tmp_path, lambda table: slowed(table, 1.0, 1.5))
    assert found.changes == ()
    (line,) = found.environment
    words = line.split()
    assert words[0] == "pace:"
    assert float(words[5]) == pytest.approx(1.5, rel=0.03)
    assert f"median of {found.cases} times" in line
    old, new = ({"x": [1, 2], "status": "ok", "seconds": x} for x in ([1.0, 2.0], [3.0, 4.0]))
    alone = pair(tmp_path / "b", old, new, timed=["seconds"])
    assert alone.environment[-1].startswith(
        "pace: the new run took 2.50 times as long (median of 2"
    )


def test_a_time_that_cases_share_is_one_and_few_times_are_not_judged(tmp_path):
    """Four cases of "slow" have one time, ten times as long; those of "own" have one each."""
    op = [*4 * ["slow"], *4 * ["own"], *8 * ["fast"]]
    old = {"op": op, "x": range(16), "status": "ok", "seconds": [*4 * [1.0], *range(2, 14)]}
    factor = [*4 * [10.0], *4 * [2.0], *8 * [1.0]]
    new = old | {"seconds": [x * y for x, y in zip(old["seconds"], factor, strict=True)]}
    axes = {"op": 3, "x": 16}
    found = pair(tmp_path, old, new, timed=["seconds"], axes=axes)
    (change,) = found.changes
    assert (change.column, change.factor) == ("seconds of op=own", 2.0)
    assert (change.changed, change.cases) == (4, 4)
    assert found.environment == ()  # of thirteen times eight kept their pace
    assert found.coverage == (
        "seconds is not compared for 1 of 3 values of op: fewer than 3 times",
    )


def test_one_number_of_one_case_is_found_and_named(tmp_path):
    def wrong(table):
        at = (table.method == "Soft") & (table["op.rank"] == 64) & (table.seed == 1)
        table.loc[table.index[at][0], "output_error"] *= 1.01
        return table

    (change,) = both(tmp_path, wrong).changes
    assert (change.column, change.changed) == ("output_error", 1)
    assert change.factor == 1
    assert "seed=1" in change.most
    assert "op=Soft(rank=64)" in change.most
    # In half precision a hundredth is rounding.
    (tmp_path / "half").mkdir()
    assert both(tmp_path / "half", wrong, dtype="bfloat16").changes == ()


def test_words_failures_cases_and_machines_are_told(tmp_path):
    def other(table):
        table.loc[table.index[5], "core_status"] = "DIVERGED"
        table.loc[table.index[7], "status"] = "failed"
        table.loc[table.index[9], "output_error"] = np.nan
        return table[table["op.rank"] != 128]

    found = both(tmp_path, other, commit="f" * 40, versions=META["versions"] | {"torch": "3.0"})
    assert [x.column for x in found.changes] == ["output_error", "core_status"]
    assert found.changes[1].most.endswith(": CONVERGED to DIVERGED")
    assert found.changes[0].changed == 1
    assert found.coverage == (
        f"{(cases()['op.rank'] == 128).sum()} cases in the old run alone",
        "1 case failed in the new run alone",
    )
    assert found.environment == (f"commit: {META['commit']} to {'f' * 40}", "torch: 2.13.0 to 3.0")


def pair(tmp_path, old, new, **meta):
    """The comparison of two small tables of the axis x."""
    known = {"axes": {"x": len(old["x"])}, "timed": ["t"]} | meta
    write(tmp_path / "old", pd.DataFrame(old), **known)
    write(tmp_path / "new", pd.DataFrame(new), **known)
    (found,) = compare(tmp_path / "old", tmp_path / "new")
    return found


EIGHT = {"x": [1, 2, 3, 4, 5, 6, 7, 8], "status": ["ok"] * 8}


@pytest.mark.parametrize(
    ("dtype", "unit"),
    [
        ("float64", 2**-26),
        ("float32", 2**-12),
        ("float16", 2**-5),
        ("bfloat16", 2**-4),
        ("?", 2**-12),
    ],
)
def test_a_change_is_more_than_the_root_of_the_rounding_unit(tmp_path, dtype, unit):
    old = EIGHT | {"y": [4.0] * 8}
    below = pair(tmp_path / "a", old, EIGHT | {"y": [4.0 * (1 - 0.9 * unit)] * 8}, dtype=dtype)
    assert below.changes == ()
    just = EIGHT | {"y": [4.0 * (1 - unit)] * 8}  # of the greater of the two
    assert pair(tmp_path / "d", old, just, dtype=dtype).changes == ()
    above = [4.0 * (1 - 1.1 * unit), *[4.0] * 7]
    (change,) = pair(tmp_path / "b", old, EIGHT | {"y": above}, dtype=dtype).changes
    assert (change.changed, change.cases, change.most[:4]) == (1, 8, "x=1:")
    # The greater of the two is what the difference is held against, and the coarser of two dtypes.
    (again,) = pair(tmp_path / "c", EIGHT | {"y": above}, old, dtype=dtype).changes
    assert again.changed == 1


def test_a_change_has_the_median_of_the_ratios_and_the_case_of_the_greatest(tmp_path):
    factors = [1.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 70.0]
    old = EIGHT | {"y": [2.0] * 8}
    (change,) = pair(tmp_path / "a", old, EIGHT | {"y": [2.0 * x for x in factors]}).changes
    assert (change.changed, change.cases) == (6, 8)
    assert change.factor == 3.5  # the mean is 11.5
    assert (change.low, change.high) == (1.0, 70.0)  # eight numbers: from the first to the last
    assert change.most == "x=8: 2.00 to 140"
    (few,) = pair(tmp_path / "b", {"x": [1, 2, 3], "status": "ok", "y": 1.0},
                  {"x": [1, 2, 3], "status": "ok", "y": [1.0, 2.0, 4.0]}).changes  # fmt: skip
    assert (few.factor, few.low, few.high) == (2.0, 1.0, 4.0)  # the range of three
    signs = pair(tmp_path / "c", old, EIGHT | {"y": [-2.0, *[2.0] * 7]}).changes[0]
    assert (signs.changed, signs.factor, signs.most) == (1, 1.0, "x=1: 2.00 to -2.00")
    turned = pair(tmp_path / "e", old, EIGHT | {"y": [-6.0, -2.0, *[2.0] * 6]}).changes[0]
    assert turned.most == "x=2: 2.00 to -2.00"  # by twice the greater, and the first by 4/3
    order = {"x": [3, 1, 2], "status": "ok"}
    (change,) = pair(tmp_path / "f", order | {"y": 1.0}, order | {"y": 2.0}).changes
    assert change.where == ("x=3", "x=1", "x=2")
    zero = pair(tmp_path / "d", EIGHT | {"y": [0.0] * 8}, EIGHT | {"y": [0.0] * 7 + [3.0]}).changes[
        0
    ]
    assert (zero.changed, np.isnan(zero.factor), zero.most) == (1, True, "x=8: 0 to 3.00")


def timings(factor, noise, **more):
    t = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    new = factor * t
    return EIGHT | {"t": new, "t_q1": new * (1 - noise / 2), "t_q3": new * (1 + noise / 2)} | more


def test_a_time_changed_where_its_interval_is_beyond_the_noise_of_either_run(tmp_path):
    for i, (one, factor, other, changed) in enumerate((
        (0.1, 1.09, 0.1, False), (0.1, 1.11, 0.1, True), (0.1, 1 / 1.09, 0.1, False),
        (0.1, 1 / 1.11, 0.1, True), (0.2, 1.15, 0.1, False), (0.1, 1.15, 0.2, False),
        (0.2, 1.21, 0.2, True), (0.24, 1.3, 0.24, True),
    )):  # fmt: skip
        found = pair(tmp_path / str(i), timings(1, one), timings(factor, other))
        assert ("t" in [x.column for x in found.changes]) is changed
        assert found.coverage == ()
    loud = np.array([0.1] * 7 + [0.9])  # of which a mean would be 0.2
    wild = pair(tmp_path / "c", timings(1, loud), timings(1.15, loud))
    assert "t" in [x.column for x in wild.changes]
    assert found.changes[0].changed == 8
    assert found.changes[0].factor == pytest.approx(1.3)
    assert found.changes[0].most.startswith("x=")
    without = {"x": EIGHT["x"], "status": "ok"}
    for i, (factor, changed) in enumerate(((1.09, 0), (1.11, 1))):  # a tenth, where none is known
        found = pair(tmp_path / f"b{i}", without | {"t": [1.0] * 8}, without | {"t": [factor] * 8})
        assert len(found.changes) == changed


def test_wide_times_and_those_of_a_busy_machine_are_no_changes(tmp_path):
    wide = pair(tmp_path / "a", timings(1, 0.1), timings(3, 0.26))
    assert wide.changes == ()
    assert wide.coverage == (
        "t is not compared: the quartiles of repeated calls are wider than 25 % of the median",
    )
    shares = {"case_cpu_share": [0.3] * 3 + [0.9] * 5}
    slow = timings(np.array([9.0] * 3 + [1.0] * 5), 0.1, **shares)
    found = pair(tmp_path / "b", timings(1, 0.1, case_cpu_share=1.0), slow)
    assert found.changes == ()
    assert found.coverage == (
        "3 of 8 times of t were taken on a busy machine and are not compared",
    )
    slow = timings(np.array([9.0] * 3 + [2.0] * 5), 0.1, **shares)
    for one, other in ((timings(1, 0.1), slow), (slow, timings(1, 0.1))):
        (change,) = pair(tmp_path / str(len([*tmp_path.iterdir()])), one, other).changes
        assert (change.changed, change.cases) == (5, 5)
        assert change.factor in {2.0, 0.5}


def nested(effects, each=5, column="source", **more):
    """Times that are the same within each unit, and ``each`` cases a unit."""
    of = np.repeat(np.arange(len(effects)), each)
    ratio = np.repeat(effects, each)
    table = {"x": np.arange(len(of)), "status": "ok", column: [f"u{i}" for i in of]}
    return table | {"t": 1.0} | more, table | {"t": ratio} | more


@pytest.mark.parametrize(
    ("column", "axes", "of"),
    [
        ("source", ["x"], "inputs"), ("input", ["x", "input"], "inputs"),
        ("model", ["x", "model"], "models"), ("seed", ["x", "seed"], "seeds"),
        ("op", ["x", "op"], "cases"), ("seed", ["x"], "cases"),
    ],
)  # fmt: skip
def test_a_median_is_over_what_its_cases_are_nested_in(tmp_path, column, axes, of):
    effects = [1.2, 1.3, 1.4, 1.6, 1.9, 2.0, 2.1]
    old, new = nested(effects, column=column)
    axes = dict.fromkeys(axes, 2)
    change = next(x for x in pair(tmp_path, old, new, axes=axes).changes if x.column == "t")
    assert (change.units, change.of) == ((35, of) if of == "cases" else (7, of))
    assert (change.changed, change.cases, change.factor) == (35, 35, 1.6)
    if of != "cases":  # seven units: from the first to the last
        assert (change.low, change.high, change.known) == (1.2, 2.1, True)
        assert change.span == f"1.20 to 2.10 (95 %, 7 {of})"
    else:
        assert 1.2 < change.low < change.high < 2.1


def test_few_units_have_a_range_and_one_is_no_unit(tmp_path):
    old, new = nested([1.3, 1.5, 1.8])
    (change,) = pair(tmp_path / "a", old, new).changes
    assert (change.known, change.span) == (False, "1.30 to 1.80 (range of 3 inputs)")
    old, new = nested([1.5], each=8)
    (change,) = pair(tmp_path / "b", old, new).changes
    assert (change.units, change.of, change.span) == (8, "cases", "1.50 to 1.50 (95 %, 8 cases)")
    # Cases of an input count once: five of eleven did not change, whatever forty of one say.
    old, new = nested([1.0] * 6 + [2.0] * 5, each=1)
    more, after = nested([2.0], each=40)
    old, new = ({k: [*np.broadcast_to(x[k], len(x["x"])), *np.broadcast_to(y[k], 40)] for k in x}
                for x, y in ((old, more), (new, after)))  # fmt: skip
    known = {"x": range(len(old["x"])), "source": [*map(str, range(11)), *["0"] * 40]}
    assert pair(tmp_path / "c", old | known, new | known).changes == ()


def test_an_interval_of_nested_cases_covers_the_factor_of_all(tmp_path):
    """Inputs vary by a tenth, cases of one by a hundredth: as independent cases it covers half."""
    held, alone, trials = 0, 0, 60
    rng = np.random.default_rng(0)
    for _ in range(trials):
        effects = 1.5 * np.exp(0.1 * rng.standard_normal(12))
        ratio = pd.Series(np.repeat(effects, 20) * np.exp(0.01 * rng.standard_normal(240)))
        for of in ("inputs", "cases"):
            units = pd.Series(np.arange(240) // (20 if of == "inputs" else 1), name=of)
            found = comparison._median(ratio, units)
            inside = found[1] <= 1.5 <= found[2]
            held, alone = held + (inside and of == "inputs"), alone + (inside and of == "cases")
    assert held / trials >= 0.9
    assert alone / trials <= 0.7


@pytest.mark.parametrize("column", ["error", "error.max", "x_error", "skill", "y.x"])
def test_every_measured_column_is_compared_whatever_its_name(tmp_path, column):
    old = EIGHT | {"error": [None] * 8, column: [float(x) for x in range(8)], "case_seconds": 1.0}
    new = EIGHT | {"error": [None] * 8, column: [10.0 * x for x in range(8)], "case_seconds": 9.0}
    found = pair(tmp_path, old, new)
    assert [x.column for x in found.changes] == [column]
    assert (found.columns, found.changes[0].changed) == (1, 7)


def test_fields_of_an_axis_are_no_measured_columns_wherever_they_stand(tmp_path):
    old = {"x": ["f(1)", "g(2)"], "status": "ok", "y": 1.0, "x.k": [None, 2.0]}
    found = pair(tmp_path, old, old | {"x.k": [None, 3.0]})
    assert (found.columns, found.changes) == (1, ())


def test_cases_that_cannot_be_told_apart_are_named_and_the_others_compared(tmp_path):
    old = {"x": [1, 1, 2, 3], "status": "ok", "y": [1.0, 2.0, 3.0, 4.0]}
    new = {"x": [1, 2, 3, 3, 3], "status": "ok", "y": [9.0, 9.0, 9.0, 9.0, 9.0]}
    found = pair(tmp_path, old, new)
    assert found.coverage == (
        "2 cases of the old run have the x of another (x=1) and are not compared",
        "3 cases of the new run have the x of another (x=3) and are not compared",
    )
    assert (found.cases, found.changes[0].most) == (1, "x=2: 3.00 to 9.00")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ([64, 128], [64.0, 128.0]),
        ([64, 128, None], [64, 128]),
        ([True, False], [True, False]),
        (["NA", "007", "7"], ["7", "007", "NA"]),
        ([0.1, 1e-9], [1e-9, 0.1]),
    ],
)
def test_cases_are_matched_by_value(tmp_path, old, new):
    rows = [{"x": x, "status": "ok", "y": hash(x) % 100} for x in old]
    more = [{"x": x, "status": "ok", "y": hash(x) % 100} for x in new]
    for name, table in (("old", rows), ("new", more)):
        run = write(tmp_path / name, pd.DataFrame(), axes={"x": 2}, columns=journal.kinds(table))
        (run / "rank/table.csv").write_text(journal.as_csv(table))
    (found,) = compare(tmp_path / "old", tmp_path / "new")
    assert (found.cases, found.changes) == (len(new), ())


def test_numbers_and_words_of_one_column_are_each_compared(tmp_path):
    old = [1.0, 2.0, "low", "high", True, None, 3.0, "x" * 5000]
    new = [1.0, 2.5, "low", "mid", False, 1.0, "3", "y" * 5000]
    for name, values in (("old", old), ("new", new)):
        rows = [{"x": i, "status": "ok", "y": y} for i, y in enumerate(values)]
        run = write(tmp_path / name, pd.DataFrame(), axes={"x": 8}, columns=journal.kinds(rows))
        (run / "rank/table.csv").write_text(journal.as_csv(rows))
    (found,) = compare(tmp_path / "old", tmp_path / "new")
    numbers, others = found.changes
    assert (numbers.changed, numbers.most) == (2, "x=5: n/a to 1.00")
    assert (others.changed, others.most) == (4, "x=3: high to mid")
    assert all(len(x.most) < 1000 for x in found.changes)


def test_columns_of_one_run_alone_and_unreadable_runs_are_named(tmp_path):
    found = pair(tmp_path / "a", EIGHT | {"y": 1.0, "old": 2.0}, EIGHT | {"y": 1.0, "new": 2.0})
    assert found.coverage == (
        "columns of the old run alone: old",
        "columns of the new run alone: new",
    )
    for name in ("one", "two"):
        write(tmp_path / "b", cases(1), name)
        write(tmp_path / "c", cases(1), name)
    named = compare(tmp_path / "b/one", tmp_path / "c/two")  # one run each, whatever its name
    assert [found.study for found in named] == ["one"]
    (tmp_path / "c/one/table.csv").write_text("")
    comparisons = compare(tmp_path / "b", tmp_path / "c")
    assert next(comparisons).study == "two"
    with pytest.raises(ValueError, match="is not a table"):
        next(comparisons)
    write(tmp_path / "d", pd.DataFrame(EIGHT | {"y": 1.0}), axes={"x": 8})
    write(tmp_path / "e", pd.DataFrame(EIGHT | {"y": 1.0, "x": range(50, 58)}), axes={"x": 8})
    result = call("report", "--compare", tmp_path / "d", tmp_path / "e")
    assert result.exit_code == 2
    assert "share no finished case" in result.stderr


def test_the_command_says_it(tmp_path):
    write(tmp_path / "a", cases(1), timed=TIMED)
    write(tmp_path / "b", cases(1).assign(flops=1.0), timed=TIMED)
    result = call("report", "--compare", tmp_path / "a", tmp_path / "b")
    assert result.exit_code == 1, result.stderr
    same = call("report", "--compare", tmp_path / "a", tmp_path / "a")
    assert same.exit_code == 0, same.stderr
    assert "rank: not reproduced; 1 of " in result.stdout
    assert "rank: equal to rounding; 0 of " in same.stdout
    assert "flops" in result.stdout
    one = call("report", "--compare", tmp_path / "a/rank", tmp_path / "b/rank")
    assert one.stdout == result.stdout
    assert not list(tmp_path.rglob("report.*"))
    write(tmp_path / "c", cases(1), "other")
    refused = call("report", "--compare", tmp_path / "a", tmp_path / "c")
    assert refused.exit_code == 2
    assert "no study in common: rank there, other here" in refused.stderr
    newer = META | {"format": FORMAT + 1}
    (tmp_path / "b/rank/meta.json").write_text(json.dumps(newer))
    refused = call("report", "--compare", tmp_path / "a", tmp_path / "b")
    assert refused.exit_code == 2
    assert "from a newer softlab" in refused.stderr


def exactly(tmp_path, change):
    """What the exact mode finds between a table and a changed one."""
    write(tmp_path / "old", cases(), timed=TIMED)
    write(tmp_path / "new", change(cases()), timed=TIMED)
    (found,) = compare(tmp_path / "old", tmp_path / "new", exact=True)
    return found


def test_the_exact_mode_sees_the_last_digit_and_names_the_cases(tmp_path):
    def last_digit(table):
        at = table.index[(table.method == "Soft") & (table["op.rank"] == 64)][:2]
        table.loc[at, "output_error"] = np.nextafter(table.loc[at, "output_error"], 9)
        return slowed(table, 3.0)  # times are no part of it

    found = exactly(tmp_path, last_digit)
    (change,) = found.changes
    assert (change.column, change.changed, len(change.where)) == ("output_error", 2, 2)
    assert all("op=Soft(rank=64)" in where for where in change.where)
    first = next(compare(tmp_path / "old", tmp_path / "new")).changes[0]
    assert first.column.startswith("seconds of op=Soft(")
    told = call("report", "--compare", tmp_path / "old", tmp_path / "new", "--exact")
    assert told.exit_code == 1
    assert "columns without times differ" in told.stdout
    assert "output_error differs at input=" in told.stdout


def test_the_exact_mode_sees_words_and_what_is_missing(tmp_path):
    def code(case):
        folders = tmp_path / case / "old", tmp_path / case / "new"
        return call("report", "--compare", *folders, "--exact").exit_code

    assert exactly(tmp_path / "same", lambda table: table).changes == ()
    assert code("same") == 0
    other = {"core_status": {"CONVERGED": "ended"}}
    word = exactly(tmp_path / "word", lambda table: table.replace(other))
    assert [x.column for x in word.changes] == ["core_status"]
    lost = exactly(tmp_path / "lost", lambda table: table.drop(columns="skill"))
    assert lost.changes == ()
    assert lost.coverage == ("columns of the old run alone: skill",)
    assert code("lost") == 1
    fewer = exactly(tmp_path / "fewer", lambda table: table[1:])
    assert "1 case in the old run alone" in fewer.coverage


def test_the_exact_mode_is_one_of_comparing():
    told = call("report", "--exact")
    assert told.exit_code == 2
    assert "--compare OLD NEW" in told.stderr


def test_the_verdict_is_by_rounding_by_interval_or_against(tmp_path):
    assert both(tmp_path / "a", lambda table: table).verdict == "equal to rounding"
    # Up in half of the inputs, down in the other half: the median ratio may be one.
    signs = {name: (-1) ** i for i, name in enumerate(cases().input.unique())}

    def mixed(table):
        return table.assign(output_error=table.output_error * 1.1 ** table.input.map(signs))

    found = both(tmp_path / "b", mixed)
    (change,) = found.changes
    assert change.low <= 1 <= change.high
    assert found.verdict == ("within the interval" if change.known else "not reproduced")
    assert len(change.where) == change.changed
    worse = both(tmp_path / "c", lambda table: table.assign(output_error=2 * table.output_error))
    assert worse.verdict == "not reproduced"
    said = both(tmp_path / "d", lambda table: table.assign(core_status="DIVERGED"))
    assert said.verdict == "not reproduced"


def test_times_alone_decide_no_verdict(tmp_path):
    """Another machine has another pace; a number that changed beside them still decides."""
    found = both(tmp_path / "a", lambda table: slowed(table, 3.0))
    assert found.changes
    assert all(x.timed and not x.where for x in found.changes)
    assert found.verdict == "equal to rounding but for times"
    worse = both(tmp_path / "b", lambda x: slowed(x, 3.0).assign(flops=2 * x.flops))
    assert [x.column for x in worse.changes if not x.timed] == ["flops"]
    assert worse.verdict == "not reproduced"


@pytest.mark.parametrize(
    ("low", "high", "known", "held"),
    [(1.0, 2.0, True, True), (0.5, 1.0, True, True), (1.01, 2.0, True, False),
     (0.5, 0.99, True, False), (0.5, 2.0, False, False)],
)  # fmt: skip
def test_a_verdict_is_within_the_interval_where_each_of_all_holds_one(low, high, known, held):
    wide = Change("x", 1, 9, 1.0, 0.5, 2.0, 8, "inputs", known=True, most="")
    change = replace(wide, low=low, high=high, known=known)
    said = "within the interval" if held else "not reproduced"
    found = Comparison("s", 9, 2, (wide, change), (), ())
    assert found.verdict == said
    assert change.span.endswith("8 inputs)")
    for one in (found, change):
        with pytest.raises(FrozenInstanceError):
            one.cases = 1


@pytest.mark.parametrize(
    ("name", "axes", "columns"),
    [
        ("normalization", {}, ["spectral_norm", "noise_gain", "core_degree"]),
        ("rank", {"seed": [1]}, ["output_error", "skill", "flops"]),
    ],
)
def test_the_reference_report_is_reproduced_here(tmp_path, name, axes, columns):
    """Two studies at the quick grid, against the tables that the repository holds."""
    reference = ROOT / "reports/reference" / name
    (study,) = defined_in(ROOT / "studies" / name)
    done = run(replace(study, quick={**study.quick, **axes}), tmp_path, quick=True, threads=1)
    (compared,) = compare(reference, tmp_path / name)
    assert compared.cases == done.rows > 40
    # What rounding decides, as a residual at its floor, may be another on another processor.
    assert not {x.column for x in compared.changes} & {*columns}, compared.changes
    spoilt = pd.read_csv(tmp_path / name / "table.csv", dtype=str, keep_default_na=False)
    spoilt[columns[0]] = [x and repr(1.01 * float(x)) for x in spoilt[columns[0]]]
    spoilt.to_csv(tmp_path / name / "table.csv", index=False)
    (compared,) = compare(reference, tmp_path / name)
    assert columns[0] in {x.column for x in compared.changes}
    assert compared.verdict == "not reproduced"
