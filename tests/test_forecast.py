"""What ``softlab run --all`` says beforehand of the time that it will take."""

import time

import pytest
from typer.testing import CliRunner

from softlab import forecast, study
from softlab.cli import app
from softlab.study import Study
from softlab.study_folders import built_in


def waiting(x: int) -> dict[str, float]:
    """A case of a hundredth of a second."""
    time.sleep(0.01)
    return {"y": x}


def named(name, cases=4, **more):
    return Study(name, "How long?", {"x": range(cases)}, waiting, **more)


def cost(seconds, cases=4, probe=0.01):
    held = {"cases": cases, "seconds": seconds}
    return {"quick": held, "probe": {"case": {"x": "1"}, "seconds": probe}}


def test_the_pace_is_the_probes_seconds_here_over_those_there():
    costs = {"a": cost(1, probe=0.005), "b": cost(1, probe=0.005)}
    found = forecast.pace([named("a"), named("b"), named("unknown")], costs, threads=1)
    assert 1.9 < found < 6  # 0.01 s here, 0.005 there; a busy machine is slower, and is to be
    assert forecast.pace([named("unknown")], costs) is None


def test_a_probe_that_is_gone_or_raises_is_left_out():
    def broken(x):
        raise ValueError("no")

    costs = {"a": cost(1) | {"probe": {"case": {"x": "77"}, "seconds": 1.0}}, "b": cost(1)}
    assert forecast.pace([named("a")], costs) is None
    study_b = Study("b", "How long?", {"x": range(4)}, broken)
    assert forecast.pace([study_b], costs) is None


def test_probes_end_when_their_time_is_over():
    studies, costs = [named(f"s{i}") for i in range(50)], {f"s{i}": cost(1) for i in range(50)}
    start = time.perf_counter()
    assert forecast.pace(studies, costs, seconds=0.05) is not None
    assert time.perf_counter() - start < 0.4


def test_seconds_are_of_the_cases_that_there_are_over_the_workers_but_for_timed_ones(monkeypatch):
    monkeypatch.setattr(forecast.os, "cpu_count", lambda: 2)
    costs = {"plain": cost(100), "timed": cost(100), "longer": cost(100)}
    studies = [named("plain"), named("timed", timed=("y",)), named("longer", 8), named("new")]
    found = forecast.ahead(studies, costs, 2.0, quick=True, workers=4)
    told = {x.study: x.seconds for x in found}
    started = forecast.STARTED
    assert told == {
        "plain": started + 100, "timed": started + 200, "longer": started + 200, "new": None,
    }  # fmt: skip
    said = forecast.sentence(found)
    assert "3 studies will take about 8 minutes" in said
    assert "No time is known of new." in said
    assert "No time is known of new." in forecast.sentence(found[-1:])


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "5 s"), (62, "60 s"), (170, "3 minutes"), (7300, "2.0 hours")]
)
def test_a_length_of_time_has_two_digits(seconds, words):
    assert forecast.spoken(seconds) == words


def test_every_study_of_make_report_has_a_cost_and_most_a_probe_that_is_a_case_of_it():
    costs = forecast.recorded()
    own = [x for folder in built_in().values() for x in study.defined_in(folder) if not x.needs]
    assert {x.name for x in own} == set(costs)
    probes = {x.name: costs[x.name].get("probe") for x in own}
    lost = [
        x.name
        for x in own
        if probes[x.name] and probes[x.name]["case"] not in map(forecast.named, x.cases(quick=True))
    ]
    assert not lost, "tools/costs.py finds others"
    assert sum(map(bool, probes.values())) > len(own) / 2


def test_the_command_says_it_before_the_first_case_and_what_is_left_before_each(
    monkeypatch, tmp_path
):
    from softlab.cli import run

    both = [named("one"), named("two")]
    monkeypatch.setattr(run, "_asked", lambda *_, **__: both)
    monkeypatch.setattr(forecast, "recorded", lambda: {"one": cost(40.0), "two": cost(80.0)})
    monkeypatch.setattr(forecast, "pace", lambda *_, **__: 1.0)
    said = CliRunner().invoke(app, ["run", "--all", "--out", str(tmp_path)])
    assert said.exit_code == 0, said.output
    first, *others = said.stderr.splitlines()
    assert first == "2 studies will take about 2 minutes here from nothing (two 80 s, one 40 s)."
    assert "one, 1 of 2: 4 cases; of all are left about 2 minutes" in others
    assert "two, 2 of 2: 4 cases; of all are left about 80 s" in others
    assert any(line.startswith("one: 4 of 4 cases in") for line in others)  # in logs, no bar moves


def test_a_log_has_a_line_now_and_then_where_no_status_moves(monkeypatch, capsys):
    from softlab.cli import console

    with console.err.status("starting") as status:
        tell = console.told(status)
        tell("head 1 of 3")
        tell("head 2 of 3")
        monkeypatch.setattr(console, "EVERY", 0.0)
        tell("head 3 of 3")
    assert capsys.readouterr().err.splitlines() == ["head 1 of 3", "head 3 of 3"]
