"""Workers make the table that one process makes, and their deaths are rows."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import TestCase

import pandas as pd
import pytest
import torch

from softlab.engine import loading, workers
from softlab.engine.locks import device_lock
from softlab.engine.workers import Crew, blocks, measured_there, processes
from softlab.study import defined_in, run

OWN = """
    import os, signal, time
    from dataclasses import dataclass
    from pathlib import Path
    from softlab.study import Study

    HERE = Path(__file__).parent

    @dataclass(frozen=True)
    class Op:
        rank: int

    def measure(op, x, *, dtype, device):
        if x == 3 and (HERE / "deadly").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        if x == 2 and op.rank == 1 and (HERE / "once").exists():
            (HERE / "once").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        if x == 4:
            raise ArithmeticError("four")
        return {"y": op.rank * x / 3, "dtype": str(dtype)}

    def timed(x, *, dtype, device):
        start = time.time()
        time.sleep(0.03)
        return {"start": start, "end": time.time(), "pid": os.getpid()}

    def made(x, seed):
        (HERE / f"{x}.{os.getpid()}.{time.time_ns()}.made").touch()
        if x == 3:
            raise ArithmeticError("three")
        return 10 * x

    def steps(setup, op):
        time.sleep(0.01)
        return [{"step": i, "y": setup * op.rank * i} for i in range(op.rank)]

    OPS = [Op(1), Op(2), Op(3)]
    SHARED = Study("shared", "Whose?", {"op": OPS, "x": range(5), "seed": [0]}, steps,
                   setup=made, within=("step",))
    OWN = Study("own", "Which?", {"op": OPS, "x": [1, 2, 3, 4, 5]}, measure)
    TIMED = Study("timed", "When?", {"x": range(6)}, timed, timed=("start", "end"))
    NAMELESS = Study("nameless", "Who?", {"x": [1]}, lambda x, dtype, device: {"y": x})
"""


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(textwrap.dedent(OWN))
    return {study.name: study for study in defined_in(path)}


def table(outcome):
    return pd.read_csv(outcome.folder / "table.csv").drop(columns="case_seconds")


def test_workers_make_the_table_that_one_process_makes(tmp_path, own):
    here = run(own["own"], tmp_path / "here", threads=1)
    there = run(own["own"], tmp_path / "there", threads=1, crew=processes(2))
    assert (there.rows, there.reused, there.failed) == (15, 0, 3)
    pd.testing.assert_frame_equal(table(here), table(there), check_exact=True)
    # The rows are the same rows: either resumes the other.
    assert run(own["own"], tmp_path / "there", threads=1).reused == 12


def test_workers_share_set_ups_and_return_many_rows(tmp_path, own):
    drop = ["case_setup_seconds"]
    here = run(own["shared"], tmp_path / "here", threads=1)
    assert (here.rows, here.measured, here.failed) == (4 * 6 + 3, 15, 3)
    assert len(list(tmp_path.glob("*.made"))) == 5
    there = run(own["shared"], tmp_path / "there", threads=1, crew=processes(2))
    pd.testing.assert_frame_equal(
        table(here).drop(columns=drop), table(there).drop(columns=drop), check_exact=True
    )
    assert len(list(tmp_path.glob("*.made"))) - 5 <= 10, "once in each of two workers at most"


def test_a_dead_worker_costs_one_case_and_only_the_second_time(tmp_path, own):
    (tmp_path / "once").touch()
    whole = run(own["own"], tmp_path / "a", threads=1, crew=processes(2))
    assert not (tmp_path / "once").exists()
    pd.testing.assert_frame_equal(table(whole), table(run(own["own"], tmp_path / "b", threads=1)))
    (tmp_path / "deadly").touch()
    outcome = run(own["own"], tmp_path / "c", threads=1, crew=processes(2))
    rows = table(outcome)
    dead = rows[rows["x"] == 3]
    assert set(dead["error"]) == {"WorkerDied: 2 times: out of memory, or a crash outside Python"}
    assert set(rows.loc[rows["x"].isin([1, 2, 5]), "status"]) == {"ok"}, "no case for a neighbour"
    (tmp_path / "deadly").unlink()
    again = run(own["own"], tmp_path / "c", threads=1, crew=processes(2))
    assert (again.reused, again.failed) == (9, 3)


def test_timed_cases_have_the_device_alone(tmp_path, own):
    outcome = run(own["timed"], tmp_path, crew=processes(3))
    rows = table(outcome).sort_values("start")
    assert (rows["end"].to_numpy()[:-1] <= rows["start"].to_numpy()[1:]).all()
    assert rows["pid"].nunique() == 1
    assert os.getpid() not in set(rows["pid"])


def test_alone_waits_for_all_and_is_passed_by_nobody():
    device, order = f"test-{os.getpid()}", []

    def enter(name, alone, hold):
        with device_lock(device, alone=alone):
            order.append(name)
            time.sleep(hold)
            order.append(f"{name} out")

    threads = []
    for name, alone in (("a", False), ("b", False), ("lone", True), ("late", False)):
        threads.append(threading.Thread(target=enter, args=(name, alone, 0.4)))
        threads[-1].start()
        time.sleep(0.1)
    for thread in threads:
        thread.join()
    assert order[:2] == ["a", "b"], "others share"
    assert order[4:6] == ["lone", "lone out"]
    assert order[6] == "late"


def test_a_case_that_waits_long_for_its_device_says_so(monkeypatch):
    monkeypatch.setattr("softlab.engine.locks.PATIENCE", 0.1)
    held = threading.Event()

    def hold():
        with device_lock("busy", alone=True):
            held.set()
            time.sleep(0.5)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    with TestCase().assertLogs("softlab") as seen, device_lock("busy", alone=False):
        assert not thread.is_alive() or thread.join(1) is None
    thread.join()
    (said,) = (record.getMessage() for record in seen.records)
    assert said == "waiting for the device busy, where another run of softlab measures"


def test_anything_that_speaks_executor_will_do(tmp_path, own):
    with_threads = Crew(lambda: ThreadPoolExecutor(3), lambda: 3)
    outcome = run(own["own"], tmp_path / "a", threads=1, crew=with_threads)
    pd.testing.assert_frame_equal(table(outcome), table(run(own["own"], tmp_path / "b", threads=1)))


class Closing(ThreadPoolExecutor):
    """Takes so many cases, and then no more."""

    def __init__(self, cases):
        super().__init__(1)
        self.left = cases

    def submit(self, *words, **named):
        if self.left == 0:
            msg = "closed"
            raise RuntimeError(msg)
        self.left -= 1
        return super().submit(*words, **named)


@pytest.mark.parametrize(
    ("cases", "said"),
    [(0, r"has no worker that starts \(closed\)"), (3, r"no more cases \(closed\)")],
)
def test_an_executor_that_takes_no_more_is_an_interrupt(tmp_path, own, cases, said):
    crew = Crew(lambda: Closing(cases), lambda: 1)
    with pytest.raises(ConnectionError, match=said) as caught:
        run(own["own"], tmp_path, threads=1, crew=crew)
    kept = max(0, cases - 1)  # the first is to see that workers start
    assert f"{kept} of 15 rows are kept" in caught.value.__notes__[0]
    assert run(own["own"], tmp_path, threads=1).reused == kept


def test_a_measure_without_a_name_is_refused(tmp_path, own):
    with pytest.raises(ValueError, match="by name at the top level of a file"):
        run(own["nameless"], tmp_path, crew=processes(1))
    assert run(own["nameless"], tmp_path).rows == 1


def test_a_worker_of_another_state_refuses(tmp_path, own):
    seen = []

    def keep(self):
        seen.append(self)
        return packed(self)

    packed = workers.Task.packed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers.Task, "packed", keep)
        run(own["own"], tmp_path, threads=1, crew=Crew(lambda: ThreadPoolExecutor(1), lambda: 1))
    task = seen[0]
    file = str(task.file)
    assert measured_there(file, packed(task))[0]["status"] == "ok"
    other = dataclasses.replace(task, parts=task.parts | {"file own.py": "another"})
    assert "file own.py is" in measured_there(file, packed(other))[0]["error"]
    other = dataclasses.replace(task, setting=task.setting | {"arithmetic": "another"})
    assert "arithmetic is" in measured_there(file, packed(other))[0]["error"]
    other = dataclasses.replace(task, setting=task.setting | {"device_name": "abacus"})
    assert "device_name is" in measured_there(file, packed(other))[0]["error"]
    assert "device_name is" in measured_there(file, packed(other))[0]["error"]
    # A long-lived worker meets the file as it is now, not as it was loaded.
    before = loading.load(file)
    assert loading.load(file) is before
    Path(file).write_text(textwrap.dedent(OWN) + "\n# changed\n")
    assert loading.load(file) is not before


def test_blocks_agree_in_what_a_set_up_names_wherever_it_stands():
    cases = {f"{i}{j}{k}": {"i": i, "j": j, "k": k} for i in "01" for j in "012" for k in "01"}
    assert [lot[0] for lot in blocks(cases, 1, ("k", "j"))] == ["000", "001", *("010", "011"),
                                                               *("020", "021")]  # fmt: skip
    assert {len(lot) for lot in blocks(cases, 6, ("k", "j"))} == {2}
    assert blocks(cases, 2, ("k",)) == [[x for x in cases if x[2] == k] for k in "01"]
    assert {(x[0], x[2]) for x in blocks(cases, 3, ("k",))[0]} == {("0", "0")}


def test_blocks_keep_neighbours_together_and_are_many_enough():
    cases = {
        f"{i}{j}{k}": {"i": i, "j": j, "k": k}
        for i in range(3) for j in range(5) for k in range(4)
    }  # fmt: skip
    for parts in (1, 2, 3, 5, 40):
        lots = blocks(cases, parts)
        assert [key for lot in lots for key in lot] == list(cases)
        assert len(lots) == next(x for x in (3, 15, 60) if x >= min(parts, 60))
    assert blocks({}, 2) == []


def test_workers_end_when_the_run_is_killed(tmp_path):
    (tmp_path / "slow.py").write_text(
        textwrap.dedent("""
        import os, time
        from pathlib import Path
        from softlab.study import Study, defined_in, run
        from softlab.engine.workers import processes

        def measure(x, *, dtype, device):
            Path(f"{os.getpid()}.pid").touch()
            time.sleep(60)
            return {}

        STUDY = Study("slow", "When?", {"x": range(8)}, measure)
        if __name__ == "__main__":
            run(defined_in("slow.py")[0], "out", crew=processes(2), threads=1)
    """)
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen([sys.executable, "slow.py"], cwd=tmp_path, env=environment) as process:
        _until(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
        process.send_signal(signal.SIGKILL)
    workers = [int(path.stem) for path in tmp_path.glob("*.pid")]
    _until(lambda: not any(map(_alive, workers)))


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def _until(holds, seconds=60):
    limit = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.05)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore:Port .* is already in use")
def test_a_dask_cluster_survives_the_death_of_a_worker(tmp_path, own):
    pytest.importorskip("distributed")
    (tmp_path / "once").touch()
    with workers.dask("local", 2) as crew:
        assert crew.size() == 2
        outcome = run(own["own"], tmp_path / "a", threads=1, crew=crew)
        timed = run(own["timed"], tmp_path / "a", crew=crew)
    assert not (tmp_path / "once").exists()
    pd.testing.assert_frame_equal(table(outcome), table(run(own["own"], tmp_path / "b", threads=1)))
    rows = table(timed).sort_values("start")
    assert (rows["end"].to_numpy()[:-1] <= rows["start"].to_numpy()[1:]).all()


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nonsense"])
def test_a_scheduler_that_does_not_answer_is_said_with_the_remedy(address):
    pytest.importorskip("distributed")
    with (
        pytest.raises(ValueError, match=r"no dask scheduler answers .* Start one with"),
        workers.dask(address, timeout=0.5),
    ):
        pass


def test_dask_that_is_not_installed_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(ModuleNotFoundError, match=r"pip install 'dask-jobqueue.* 'distributed"),
        workers.dask("local"),
    ):
        pass


def test_threads_are_shared_by_processes_and_whole_for_timed_cases(tmp_path, own, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    seen = []
    monkeypatch.setattr(
        "softlab.engine.provenance.threads",
        lambda count: seen.append(count) or contextlib.nullcontext(),
    )
    monkeypatch.setattr("softlab.study.elsewhere", lambda *_: iter(()))
    for name in ("own", "timed"):
        run(own[name], tmp_path, crew=Crew(ThreadPoolExecutor, lambda: 2, shares=2))
    assert seen == [2, None]


def test_threads_of_a_worker_that_meet_a_file_at_once_load_it_once(tmp_path, own):
    slow = tmp_path / "slow.py"
    slow.write_text("import time\ntime.sleep(0.3)\n" + textwrap.dedent(OWN))
    study = {study.name: study for study in defined_in(slow)}["own"]
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        packed = workers.Task.packed
        patch.setattr(workers.Task, "packed", lambda self: seen.append(packed(self)) or seen[-1])
        run(study, tmp_path, threads=1, crew=Crew(lambda: ThreadPoolExecutor(1), lambda: 1))
    del sys.modules[study.measure.__module__]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda one: measured_there(str(slow), one)[0]["status"], seen))
    assert found.count("ok") == 12
