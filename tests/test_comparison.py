"""What changed between two runs is told, and what is noise is not."""

import json

import numpy as np
import pytest
from tables import rank_table
from test_cli import call
from test_report import META, write

from softlab.report import FORMAT
from softlab.report.comparison import compare

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


def test_a_slower_run_is_told_with_its_factor(tmp_path):
    rng = np.random.default_rng(1)

    def slower(table):
        for name in TIMED:
            table[name] *= 1.5 * (1 + 0.08 * rng.standard_normal(len(table)))
        return table

    found = both(tmp_path, slower)
    assert [x.column for x in found.changes] == TIMED
    for x in found.changes:
        assert x.low < x.factor < x.high
        assert x.factor == pytest.approx(1.5, rel=0.03)


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
        f"{(cases()['op.rank'] == 128).sum()} cases are in the old run alone",
        "1 cases failed in the new run alone",
    )
    assert found.environment == (f"commit: {META['commit']} to {'f' * 40}", "torch: 2.13.0 to 3.0")


def test_the_command_says_it(tmp_path):
    write(tmp_path / "a", cases(1), timed=TIMED)
    write(tmp_path / "b", cases(1).assign(flops=1.0), timed=TIMED)
    result = call("report", "--compare", tmp_path / "a", tmp_path / "b")
    assert result.exit_code == 1, result.stderr
    same = call("report", "--compare", tmp_path / "a", tmp_path / "a")
    assert same.exit_code == 0, same.stderr
    assert "rank: 1 of " in result.stdout
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
