"""Finished rows survive whatever stops a run, and the message says what happened."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from test_cli import call

from softlab import locks
from softlab.journal import FORMAT, Journal
from softlab.study import Study, run

ROOT = Path(__file__).parents[1]


def measure(op, x, *, dtype, device):
    return {"y": 10 * op + x}


STUDY = Study("grid", "Which?", {"op": [1, 2, 3], "x": range(4)}, measure)


def table(folder):
    with (folder / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: x for name, x in row.items() if name != "case_seconds"} for row in rows]


def test_fifty_kills_at_random_moments_lose_no_finished_row():
    command = [sys.executable, str(ROOT / "benchmarks/kills.py"), "--kills", "50"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    kills, runs, _, lost, unlike = map(int, re.findall(r"\d+", done.stdout))
    assert kills >= 50
    assert runs >= 1
    assert (lost, unlike) == (0, 0)


def test_two_runs_do_not_share_a_folder(tmp_path):
    with (
        locks.owned(tmp_path / "grid/.rows.lock"),
        pytest.raises(ValueError, match="is writing") as caught,
    ):
        run(STUDY, tmp_path)
    said = str(caught.value)
    assert f"process {os.getpid()} on" in said
    assert "Wait for it, or give --out another folder" in said
    assert run(STUDY, tmp_path).rows == 12, "a lock ends with its owner"


def test_a_corrupt_line_is_named_with_the_remedy_and_nothing_is_touched(tmp_path):
    run(STUDY, tmp_path)
    path = tmp_path / "grid/rows.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[4] = lines[4][:20] + b"\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(ValueError, match=r"line 5 of .*rows.jsonl is corrupt .*Delete that line"):
        run(STUDY, tmp_path)
    assert path.read_bytes() == b"".join(lines)
    path.write_bytes(b"".join(lines[:4] + lines[5:]))  # the remedy
    assert run(STUDY, tmp_path).reused == 11
    path.write_bytes(b"".join(lines))
    assert run(STUDY, tmp_path, fresh=True).reused == 0  # the other one


def test_a_torn_last_line_is_told_and_costs_its_row_alone(tmp_path):
    run(STUDY, tmp_path)
    path = tmp_path / "grid/rows.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    outcome = run(STUDY, tmp_path)
    assert outcome.reused == 11
    assert outcome.notes == (f"The last line of {path} was torn; its case is measured again.",)
    assert run(STUDY, tmp_path).notes == ()


def test_a_journal_of_a_newer_version_is_refused(tmp_path):
    run(STUDY, tmp_path)
    path = tmp_path / "grid/rows.jsonl"
    line = json.loads(path.read_text().splitlines()[0]) | {"format": FORMAT + 1}
    path.write_text(json.dumps(line) + "\n" + path.read_text())
    with pytest.raises(ValueError, match="written by a newer softlab; upgrade"):
        run(STUDY, tmp_path)


def test_rows_of_other_code_stay_for_the_day_it_is_back(tmp_path):
    path = tmp_path / "rows.jsonl"
    for digest in ("old", "new"):
        journal = Journal(path, digest)
        journal.append("a", {"y": digest})
        journal.close()
    assert Journal(path, "old").rows == {"a": {"y": "old"}}
    assert Journal(path, "new").rows == {"a": {"y": "new"}}


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_shards_merge_into_the_table_of_an_undivided_run(tmp_path, order):
    rows = 0
    for part in order:
        outcome = run(STUDY, tmp_path / "shards", shard=(part, 3))
        assert outcome.rows > rows
        assert outcome.reused == rows
        rows = outcome.rows
    assert rows == outcome.cases == 12
    run(STUDY, tmp_path / "whole")
    assert table(tmp_path / "shards/grid") == table(tmp_path / "whole/grid")
    assert json.loads((tmp_path / "shards/grid/meta.json").read_text())["complete"] is True
    assert run(STUDY, tmp_path / "shards").reused == 12, "an undivided run finds them too"


def test_shards_of_other_machines_merge_once_their_journals_are_together(tmp_path):
    for part in (1, 2):
        run(STUDY, tmp_path / str(part), shard=(part, 2))
    (tmp_path / "2/grid/rows-2-of-2.jsonl").rename(tmp_path / "1/grid/rows-2-of-2.jsonl")
    outcome = run(STUDY, tmp_path / "1")
    assert (outcome.rows, outcome.reused) == (12, 12)


def test_every_case_is_in_one_shard(tmp_path):
    for parts in (1, 2, 5, 12, 20):
        seen = []
        for part in range(1, parts + 1):
            out = tmp_path / f"{parts}-{part}"
            run(STUDY, out, shard=(part, parts))
            if (out / "grid/table.csv").exists():
                seen += [(row["op"], row["x"]) for row in table(out / "grid")]
        assert sorted(seen) == sorted((str(o), str(x)) for o in (1, 2, 3) for x in range(4))


OWN = """
    from softlab.study import Study
    def measure(x, *, dtype, device):
        return {"y": x}
    STUDY = Study("own", "Which?", {"x": range(3)}, measure)
"""


def test_a_read_only_folder_is_named_with_the_remedy(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(textwrap.dedent(OWN))
    folder = tmp_path / "out"
    folder.mkdir()
    folder.chmod(0o555)
    command = [sys.executable, "-c", "from softlab.cli import app; app()", "run", str(file),
               "--out", str(folder)]  # fmt: skip
    if os.getuid() == 0:  # who may write anywhere, unless that right is taken from him
        if not shutil.which("setpriv"):
            pytest.skip("root heeds no permissions")
        command = ["setpriv", "--bounding-set", "-dac_override", *command]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2, done.stderr
    assert "Permission denied" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Nothing there is touched; give --out a folder that can be written." in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--shard", "0/3"], "write i/n, with i from 1 to n"),
        (["--shard", "4/3"], "write i/n, with i from 1 to n"),
        (["--shard", "one"], "write i/n, with i from 1 to n"),
        (["--workers", "-1"], "--workers is -1"),
        (["--set", "y=1"], "own: no axis 'y'; there are x."),
        (["--set", "x"], "write --set axis=value,value"),
        (["--set", "x=1.5"], "axis 'x' of own takes int, and not '1.5'; it has 0, 1, 2."),
    ],
)
def test_bad_requests_exit_with_two_and_one_line(tmp_path, words, said):
    file = tmp_path / "own.py"
    file.write_text(textwrap.dedent(OWN))
    result = call("run", file, "--out", tmp_path / "out", *words)
    assert result.exit_code == 2
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_corrupt_journal_and_a_second_run_exit_with_two(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(textwrap.dedent(OWN))
    assert call("run", file, "--out", tmp_path).exit_code == 0
    journal = tmp_path / "own/rows.jsonl"
    journal.write_text("{\n" + journal.read_text())
    result = call("run", file, "--out", tmp_path)
    assert result.exit_code == 2
    assert "line 1 of" in result.stderr
    assert "Traceback" not in result.output + result.stderr
    with locks.owned(tmp_path / "own/.rows.lock"):
        result = call("run", file, "--out", tmp_path)
    assert result.exit_code == 2
    assert "is writing there" in result.stderr


def test_a_narrowed_grid_runs_with_values_old_and_new(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        textwrap.dedent("""
        from softlab.operators import Nystromformer, Soft
        from softlab.study import Study
        def measure(op, how, n, scale, *, dtype, device):
            return {"rank": op.rank}
        OPS = [Soft(rank=8), Soft(rank=16), Nystromformer(rank=8)]
        STUDY = Study("own", "Which?", {"op": OPS, "how": ["fast", "slow"], "n": [1, 2],
                      "scale": [0.5]}, measure, quick={"n": [1]})
    """)
    )
    chosen = ["--set", "op=Soft,Nystromformer(rank=8),Soft(rank=32, normalization='row')"]
    chosen += ["--set", "how=fast", "--set", "n=2,7", "--set", "scale=2"]
    result = call("run", file, "--out", tmp_path, "--quick", *chosen)
    assert result.exit_code == 0, result.stderr
    rows = table(tmp_path / "own")
    assert [row["op.rank"] for row in rows] == ["8", "8", "16", "16", "8", "8", "32", "32"]
    assert {row["n"] for row in rows} == {"2", "7"}
    assert {row["scale"] for row in rows} == {"2.0"}
    for wrong, said in (
        ("op=Sofd(rank=3)", "Did you mean Soft"),
        ("op=Soft(rnk=3)", "unexpected keyword argument 'rnk'"),
        ("op=Soft(rank=0)", "rank is 0"),
        ("op=__import__('os')", "there is no __import__"),
        ("how=fats", "Did you mean fast?"),
        ("hw=fast", "Did you mean how?"),
    ):
        result = call("run", file, "--out", tmp_path, "--set", wrong)
        assert result.exit_code == 2
        assert said in result.stderr.replace("\n", " "), wrong
