"""A study's rows are complete, honest about failure, durable, and reused only when still true."""

import csv
import json
import os
import re
import resource
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from softlab.core import value
from softlab.engine.journal import Journal, as_csv
from softlab.study import Study, flat, run


@value
class Solver:
    steps: int = 6


@value
class Op:
    rank: int
    solver: Solver = Solver()


def square(op, seed, *, dtype, device):
    return {"square": op.rank**2, "noise": seed / 3, "where": str(device), "what": str(dtype)}


STUDY = Study(
    name="squares",
    question="Which square?",
    axes={"op": [Op(1), Op(2), Op(3)], "seed": [0, 1]},
    measure=square,
    keep=lambda op, seed: (op.rank, seed) != (3, 1),
    quick={"op": [Op(2)]},
)


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def timeless(rows):
    return [{k: v for k, v in row.items() if not k.endswith("_seconds")} for row in rows]


def test_one_row_a_case_with_the_fields_of_the_axes_as_columns(tmp_path):
    outcome = run(STUDY, tmp_path, dtype=torch.float64)
    rows = table(outcome.folder)
    assert (outcome.rows, outcome.reused, outcome.failed) == (5, 0, 0)
    assert [(r["op"], r["seed"]) for r in rows] == [
        ("Op(rank=1)", "0"), ("Op(rank=1)", "1"), ("Op(rank=2)", "0"), ("Op(rank=2)", "1"),
        ("Op(rank=3)", "0"),
    ]  # fmt: skip
    assert rows[3]["op.rank"] == "2"
    assert rows[3]["op.type"] == "Op"
    assert rows[3]["op.solver.steps"] == "6"
    assert float(rows[3]["noise"]) == 1 / 3
    assert rows[3]["what"] == "torch.float64"


def test_meta_says_where_the_numbers_come_from(tmp_path):
    meta = json.loads((run(STUDY, tmp_path, threads=1).folder / "meta.json").read_text())
    assert meta["threads"] == 1
    assert meta["chapter"] == "operators"
    assert meta["seeds"] == [0, 1]
    assert (meta["rows"], meta["failed"], meta["complete"]) == (5, 0, True)
    assert meta["versions"]["torch"] == torch.__version__
    assert meta["versions"]["python"].startswith("3.")
    assert {"commit", "dirty", "device_name", "platform", "started", "finished"} <= meta.keys()
    assert meta["wall_seconds"] >= 0


def test_flat_nests_and_keeps_numbers():
    assert flat({"op": Op(4, Solver(9)), "dtype": torch.float32}) == {
        "op": "Op(rank=4, solver=Solver(steps=9))",
        "op.type": "Op",
        "op.rank": 4,
        "op.solver": "Solver(steps=9)",
        "op.solver.type": "Solver",
        "op.solver.steps": 9,
        "dtype": "torch.float32",
    }


def test_a_failing_case_is_a_row_and_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setenv("BROKEN", "2")

    def measure(op, seed, *, dtype, device):
        if str(op.rank) in os.environ["BROKEN"]:
            msg = "core is singular"
            raise ArithmeticError(msg)
        return {"square": op.rank**2}

    study = replace(STUDY, measure=measure)
    outcome = run(study, tmp_path)
    rows = table(outcome.folder)
    assert (outcome.rows, outcome.failed) == (5, 2)
    assert [r["status"] for r in rows] == ["ok", "ok", "failed", "failed", "ok"]
    assert rows[2]["error"].startswith("ArithmeticError: core is singular (test_study.py:")
    assert rows[2]["square"] == ""
    monkeypatch.setenv("BROKEN", "")
    outcome = run(study, tmp_path)
    assert (outcome.rows, outcome.reused, outcome.failed) == (5, 3, 0)
    assert table(outcome.folder)[2]["square"] == "4"


def test_a_want_of_memory_is_a_row(tmp_path):
    def measure(op, seed, *, dtype, device):
        if op.rank == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
        if op.rank == 3:
            torch.empty(2**60)
        return {}

    outcome = run(replace(STUDY, measure=measure), tmp_path)
    errors = [row["error"] for row in table(outcome.folder) if row["status"] == "failed"]
    assert outcome.failed == 3
    assert errors[0].startswith("OutOfMemoryError: CUDA out of memory. Tried to allocate 9 GiB.")
    assert "can't allocate memory" in errors[2]


def test_a_measure_that_returns_a_tensor_fails_that_row_only(tmp_path):
    def measure(op, seed, *, dtype, device):
        return {"square": torch.ones(()) if op.rank == 1 else 4.0}

    outcome = run(replace(STUDY, measure=measure), tmp_path)
    assert outcome.failed == 2
    assert "square is a Tensor" in table(outcome.folder)[0]["error"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupt_keeps_the_finished_rows_and_the_next_run_resumes(tmp_path, monkeypatch, stop):
    append = Journal.append

    def interrupted(self, key, row):
        if len(self.rows) == 3:
            raise stop
        append(self, key, row)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", interrupted)
        with pytest.raises(type(stop)) as caught:
            run(STUDY, tmp_path)
    assert "3 of 5 rows are kept" in caught.value.__notes__[0]
    assert len(table(tmp_path / "squares")) == 3
    assert json.loads((tmp_path / "squares/meta.json").read_text())["complete"] is False

    resumed = run(STUDY, tmp_path)
    assert (resumed.rows, resumed.reused) == (5, 3)
    straight = run(STUDY, tmp_path / "straight")
    assert timeless(table(resumed.folder)) == timeless(table(straight.folder))


def test_an_interrupt_before_the_first_row_leaves_the_old_table(tmp_path):
    run(STUDY, tmp_path)

    def measure(op, seed, *, dtype, device):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(replace(STUDY, measure=measure), tmp_path, fresh=True)
    assert len(table(tmp_path / "squares")) == 5


def test_rows_are_reused_only_under_the_same_code_and_setting(tmp_path, monkeypatch):
    run(STUDY, tmp_path)
    assert run(STUDY, tmp_path).reused == 5
    assert run(STUDY, tmp_path, dtype=torch.float64).reused == 0
    assert run(STUDY, tmp_path, quick=True).reused == 2
    assert len(table(tmp_path / "squares")) == 2
    assert run(STUDY, tmp_path).reused == 5, "a quick run must not cost the rows of a full one"
    assert run(STUDY, tmp_path, fresh=True).reused == 0
    monkeypatch.setattr("softlab.engine.sources.package", lambda: "another state")
    assert run(STUDY, tmp_path).reused == 0


SCRIPT = """
    import time
    from pathlib import Path
    from softlab.study import Study, run

    def measure(x, *, dtype, device):
        if x == 3 and not Path("again").exists():
            Path("reached").touch()
            time.sleep(60)
        return {"y": 7 * x, "filler": "." * FILLER}

    STUDY = Study("demo", "Does it last?", {"x": range(6)}, measure)
    if __name__ == "__main__":
        print(run(STUDY, "out"))
"""


def script(folder: Path, filler: int = 0) -> list[str]:
    text = textwrap.dedent(SCRIPT).replace("FILLER", str(filler))
    (folder / "demo.py").write_text(text)
    return [sys.executable, "demo.py"]


def test_kill_minus_nine_keeps_the_finished_rows(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = script(tmp_path)
    with subprocess.Popen(command, cwd=tmp_path, env=environment) as process:
        limit = time.monotonic() + 60
        while not (tmp_path / "reached").exists() and time.monotonic() < limit:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert len((tmp_path / "out/demo/rows.jsonl").read_text().splitlines()) == 3
    (tmp_path / "again").touch()
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert "rows=6, reused=3, failed=0" in done.stdout
    assert [r["y"] for r in table(tmp_path / "out/demo")] == ["0", "7", "14", "21", "28", "35"]


def test_a_full_disk_keeps_the_finished_rows(tmp_path):
    # A limit on the size of a file stands in for the disk: the third row does not fit.
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = script(tmp_path, filler=4000)
    (tmp_path / "again").touch()

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

    full = subprocess.run(
        command, cwd=tmp_path, env=environment | {"PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=limit, capture_output=True, text=True,
    )  # fmt: skip
    assert full.returncode != 0
    assert "OSError" in full.stderr
    assert "2 of 6 rows are kept in out/demo; the same command resumes." in full.stderr
    assert len(table(tmp_path / "out/demo")) == 2
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert "rows=6, reused=2, failed=0" in done.stdout


@pytest.mark.parametrize("torn", [b'{"key": "b", "dig', b"\xff\xfe\x00", b'{"key": "b"}', b"7"])
def test_a_torn_line_costs_its_own_row_only(tmp_path, torn):
    path = tmp_path / "rows.jsonl"
    Journal(path, "d").append("a", [{"y": 1.5}])
    with path.open("ab") as file:
        file.write(torn)
    journal = Journal(path, "d")
    assert journal.rows == {"a": [{"y": 1.5}]}
    journal.append("b", [{"y": float("inf")}])
    assert Journal(path, "d").rows == {"a": [{"y": 1.5}], "b": [{"y": float("inf")}]}
    assert Journal(path, "other").rows == {}


def test_csv_keeps_every_digit_and_unites_columns():
    text = as_csv([{"a": 0.1 + 0.2}, {"a": None, "b": "x,\ny"}])
    assert text == 'a,b\n0.30000000000000004,\n,"x,\ny"\n'


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "../up"}, "names a folder"),
        ({"chapter": "../up"}, "names the folder of a study"),
        ({"needs": "a cluster"}, "needs is .a cluster.; it is one of .*models"),
        ({"axes": {"op": [], "seed": [0]}}, "'op' has no values"),
        ({"quick": {"rank": [4]}}, "'rank' is not one of the axes"),
        ({"measure": lambda op, rank, *, dtype: {}}, "must take op, seed, dtype, device, or some"),
        ({"measure": lambda op, *, dtype, device: {}}, "neither measure nor setup takes seed"),
        ({"keep": lambda rank: True}, "must take op, seed, or some of them: missing .* 'rank'"),
        ({"setup": lambda dtype: 0}, "setup names no axis, and is the same for all cases"),
        ({"setup": lambda rank: 0}, "must take op, seed, dtype, device, or some .* 'rank'"),
        ({"setup": lambda op: 0}, "measure does not take setup"),
        ({"within": [1]}, "within has 1; give names"),
        ({"within": ("seed",)}, "within has 'seed', which is an axis"),
        ({"within": ("error",)}, "within has 'error', which softlab fills itself"),
        ({"within": ("step", "step")}, "within has 'step' twice"),
        ({"axes": {"op": [Op(1)], "setup": [0]}}, "'setup' has a name that softlab keeps"),
    ],
)
def test_a_study_that_cannot_run_is_refused_at_construction(change, said):
    with pytest.raises(ValueError, match=said):
        replace(STUDY, **change)


def test_bad_settings_are_refused_before_any_work(tmp_path):
    with pytest.raises(ValueError, match="threads is 0"):
        run(STUDY, tmp_path, threads=0)
    with pytest.raises(ValueError, match="device 'toaster' cannot be used here"):
        run(STUDY, tmp_path, device="toaster")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device 'cuda' cannot be used here"):
            run(STUDY, tmp_path, device="cuda")
    with pytest.raises(ValueError, match="keep refuses every case"):
        run(replace(STUDY, keep=lambda op, seed: False), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_at_the_very_end_says_what_is_kept(tmp_path, monkeypatch):
    def full(path, text):
        if path.name == "table.csv":
            raise OSError(28, "No space left on device")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    with monkeypatch.context() as patch:
        patch.setattr("softlab.study.replace", full)
        with pytest.raises(OSError, match="No space left") as caught:
            run(STUDY, tmp_path)
    assert "5 of 5 rows are kept" in caught.value.__notes__[0]
    assert run(STUDY, tmp_path).reused == 5


def failing(tmp_path, row, axes=None):
    axes = axes or {"x": [1, 2]}
    study = Study("names", "Whose?", axes, lambda dtype, device, **case: row(**case))
    return table(run(study, tmp_path).folder)


@pytest.mark.parametrize(
    "name", ["status", "error", "case_seconds", "case_cpu_share", "case_load", "case_setup_seconds"]
)
def test_a_name_that_softlab_fills_is_refused_for_columns_and_axes(tmp_path, name):
    rows = failing(tmp_path, lambda x: {name: x})
    assert {row["status"] for row in rows} == {"failed"}
    assert f"the measure returns a column {name!r}; softlab fills" in rows[0]["error"]
    with pytest.raises(ValueError, match=f"axis '{name}' has a name that softlab keeps"):
        Study("names", "Whose?", {name: [1]}, lambda **case: {})


def test_a_measure_cannot_replace_what_the_case_is(tmp_path):
    rows = failing(tmp_path, lambda x: {"x": 99})
    assert [row["x"] for row in rows] == ["1", "2"]
    assert "the measure returns x, which the case has" in rows[0]["error"]
    rows = failing(tmp_path / "a", lambda op: {"op.rank": 99}, {"op": [Op(1)]})
    assert rows[0]["op.rank"] == "1"
    assert rows[0]["status"] == "failed"


def test_values_that_print_alike_are_cases_of_their_own_and_resume(tmp_path):
    def axes():
        a, b = torch.zeros(5000), torch.zeros(5000)
        b[2500] = 1
        return {"x": [a, b, a.numpy(), b.numpy(), torch.tensor([1.00001]), torch.tensor([1.0])]}

    study = Study("alike", "Which?", axes(), lambda x, dtype, device: {"y": float(x.sum())})
    rows = table(run(study, tmp_path).folder)
    assert [float(row["y"]) for row in rows[:4]] == [0, 1, 0, 1]
    assert len({row["x"] for row in rows}) == 6
    assert run(replace(study, axes=axes()), tmp_path).reused == 6


def test_timed_rows_say_how_busy_the_machine_was(tmp_path):
    def burn(x, *, dtype, device):
        end = time.thread_time() + 0.05
        while time.thread_time() < end:
            pass
        time.sleep(0.5 * x)
        return {"y": x}

    study = Study("busy", "Was it?", {"x": [0, 1]}, burn, timed=("y",))
    rows = table(run(study, tmp_path).folder)
    assert float(rows[1]["case_cpu_share"]) < 0.2
    assert 0.05 <= float(rows[0]["case_cpu_share"]) * float(rows[0]["case_seconds"]) < 0.08
    assert float(rows[0]["case_load"]) >= 0
    untimed = table(run(replace(study, timed=()), tmp_path / "a").folder)
    assert "case_cpu_share" not in untimed[0]


def test_an_error_that_cannot_be_said_or_has_no_end_is_a_row(tmp_path):
    class MuteError(Exception):
        def __str__(self):
            raise RuntimeError

    def raises(x):
        raise MuteError if x == 1 else ValueError("a" * 10**6)

    rows = failing(tmp_path, raises)
    assert rows[0]["error"].startswith("MuteError: its message cannot be read")
    assert len(rows[1]["error"]) < 1200
    (row,) = failing(tmp_path / "a", lambda x: {"y": 10**400}, {"x": [1]})
    assert "y is an integer of 1329 bits" in row["error"]
    (row,) = failing(tmp_path / "b", lambda x: None, {"x": [1]})
    assert "the measure returns a NoneType" in row["error"]


def blocks_of(calls):
    """A study whose set-up is called for each depth and seed, and whose cases have a row a step."""

    def setup(depth, seed, device):
        calls.append((depth, seed, device.type))
        if depth == 3:
            raise ArithmeticError(depth)
        return 10 * depth + seed

    def measure(setup, probe, dtype):
        return ({"y": setup + probe * i, "step": i, "what": str(dtype)} for i in range(probe))

    axes = {"probe": [1, 2], "depth": [1, 2, 3], "seed": [0, 1]}
    return Study("blocks", "Which?", axes, measure, setup=setup, within=("step",))


def test_a_set_up_serves_all_cases_that_agree_in_its_axes(tmp_path):
    calls = []
    outcome = run(blocks_of(calls), tmp_path)
    assert calls == [(depth, seed, "cpu") for depth in (1, 2, 3) for seed in (0, 1)]
    assert (outcome.rows, outcome.measured, outcome.cases, outcome.failed) == (16, 12, 12, 4)
    rows = table(outcome.folder)
    told = [(r["probe"], r["depth"], r["seed"], r["step"]) for r in rows if r["status"] == "ok"]
    assert told == [
        (str(probe), str(depth), str(seed), str(step))
        for probe in (1, 2) for depth in (1, 2) for seed in (0, 1) for step in range(probe)
    ]  # fmt: skip
    assert [r["y"] for r in rows if r["probe"] == "2" and r["seed"] == "1" and r["y"]] == [
        *("11", "13"), *("21", "23"),
    ]  # fmt: skip
    lost = [r for r in rows if r["status"] == "failed"]
    assert {r["error"].partition(" (")[0] for r in lost} == {"ArithmeticError: 3"}
    assert all(float(r["case_setup_seconds"]) >= 0 for r in rows)
    assert list(rows[0])[:5] == ["probe", "depth", "seed", "step", "status"]
    calls.clear()
    again = run(replace(blocks_of(calls), measure=lambda setup, probe: []), tmp_path)
    assert (len(calls), again.failed) == (6, 12), "what a set-up made for a run serves no other"


def test_cases_of_many_rows_are_kept_and_resumed_whole(tmp_path, monkeypatch):
    study = Study(
        "many", "Which?", {"x": [1, 2, 3]}, many_rows, within=("step", "layer"),
    )  # fmt: skip
    append = Journal.append

    def interrupted(self, key, rows):
        if len(self.rows) == 2:
            raise KeyboardInterrupt
        append(self, key, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", interrupted)
        with pytest.raises(KeyboardInterrupt) as caught:
            run(study, tmp_path)
    assert "2 of 3 cases are kept" in caught.value.__notes__[0]
    meta = json.loads((tmp_path / "many/meta.json").read_text())
    assert (meta["rows"], meta["measured"], meta["cases"], meta["complete"]) == (8, 2, 3, False)
    outcome = run(study, tmp_path)
    assert (outcome.rows, outcome.reused, outcome.measured, outcome.cases) == (12, 2, 3, 3)
    meta = json.loads((tmp_path / "many/meta.json").read_text())
    assert (meta["rows"], meta["measured"], meta["complete"]) == (12, 3, True)
    lines = (tmp_path / "many/rows.jsonl").read_text().splitlines()
    assert [len(json.loads(line)["rows"]) for line in lines] == [4, 4, 4]
    for part in (1, 2):
        run(study, tmp_path / "shards", shard=(part, 2))
    assert timeless(table(tmp_path / "shards/many")) == timeless(table(tmp_path / "many"))


def many_rows(x):
    return [{"step": i, "layer": j, "y": x * i + j} for i in (0, 1) for j in (0, 1)]


@pytest.mark.parametrize(
    ("returned", "within", "said"),
    [
        ([], ("step",), "the measure returns no rows; give one at least"),
        ({"step": 1}, ("step",), "returns a dict; give a list of mappings"),
        (3, ("step",), "returns a int; give a list of mappings, one a row"),
        ([3], ("step",), "a row is a int; give a mapping"),
        ([{"y": 1}], ("step",), "a row has no step, which tells the rows of a case apart"),
        ([{"step": 1}, {"step": 1.0}], ("step",), "returns 2 rows of step=1; make one of them"),
        ([{"step": 1, "x": 2}], ("step",), "the measure returns x, which the case has"),
        ([{"step": 1}], (), "returns a list; give a mapping .* Study.within"),
    ],
)
def test_rows_that_cannot_be_told_apart_are_one_row_that_failed(tmp_path, returned, within, said):
    study = Study("many", "Which?", {"x": [1]}, lambda x: x and returned, within=within)
    outcome = run(study, tmp_path)
    assert (outcome.rows, outcome.measured, outcome.failed) == (1, 1, 1)
    assert re.search(said, table(outcome.folder)[0]["error"])


def test_functions_are_called_with_what_they_name(tmp_path):
    class Callable:
        def __call__(self, x, *, scale=2):
            return {"y": scale * x}

    axes = {"x": [1, 2], "seed": [0]}
    study = Study("named", "Which?", axes, lambda x, **rest: {"y": sorted(rest)[1]})
    study = replace(study, keep=lambda x: x == 1)
    (row,) = table(run(study, tmp_path).folder)
    assert row["y"] == "dtype"
    rows = table(run(Study("own", "Which?", {"x": [1, 2]}, Callable()), tmp_path).folder)
    assert [row["y"] for row in rows] == ["2", "4"]
