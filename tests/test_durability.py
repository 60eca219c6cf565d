"""Finished rows survive whatever stops a run, and the message says what happened."""

import contextlib
import csv
import errno
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace as replace_study
from pathlib import Path

import pytest
from command_line import call

from softlab.engine import locks
from softlab.engine.journal import FORMAT, Journal, replace, rows_of
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
        locks.file_lock(tmp_path / "grid/.rows.lock"),
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
        journal.append("a", [{"y": digest}])
        journal.close()
    assert Journal(path, "old").rows == {"a": [{"y": "old"}]}
    assert Journal(path, "new").rows == {"a": [{"y": "new"}]}


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
    with locks.file_lock(tmp_path / "own/.rows.lock"):
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
        ("op=Sofd(rank=3)", "Did you mean 'Soft'?"),
        ("op=Soft(rnk=3)", "unexpected keyword argument 'rnk'"),
        ("op=Soft(rank=0)", "rank is 0"),
        ("op=__import__('os')", "there is no __import__"),
        ("how=fats", "Did you mean 'fast'?"),
        ("hw=fast", "Did you mean 'how'?"),
    ):
        result = call("run", file, "--out", tmp_path, "--set", wrong)
        assert result.exit_code == 2
        assert said in result.stderr.replace("\n", " "), wrong


def test_each_row_is_on_the_disk_before_the_next(tmp_path, monkeypatch):
    seen = []
    sync = os.fsync

    def watched(handle):
        sync(handle)
        seen.append(os.fstat(handle))

    monkeypatch.setattr(os, "fsync", watched)
    path = tmp_path / "rows.jsonl"
    journal = Journal(path, "d")
    assert any(os.path.samestat(x, tmp_path.stat()) for x in seen), "the file's name"
    for key in "abc":
        seen.clear()
        journal.append(key, [{"y": 1}])
        assert [x.st_size for x in seen if os.path.samestat(x, path.stat())] == [
            path.stat().st_size
        ]
    seen.clear()
    replace(tmp_path / "table.csv", "x\n")
    assert any(os.path.samestat(x, (tmp_path / "table.csv").stat()) for x in seen)
    assert any(os.path.samestat(x, tmp_path.stat()) for x in seen)


def test_no_changed_byte_of_a_journal_is_a_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    journal = Journal(path, "d")
    for key, y in (("a", 1.25), ("b", "word"), ("c", None)):
        journal.append(key, [{"y": y, "status": "ok"}, {"y": 0}])
    journal.close()
    right, text = rows_of(path, "d"), path.read_bytes()
    start = text.index(b"\n") + 1  # the last two lines
    for i in range(start, len(text)):
        for new in (bytes([text[i] ^ 1]), b"", text[i : i + 1] * 2, b"\r", b"\n", b"\0", b"\xff"):
            changed = text[:i] + new + text[i + 1 :]
            path.write_bytes(changed)
            found = {}
            with contextlib.suppress(ValueError):  # refused, with the line's number
                found = rows_of(path, "d")
            assert found.items() <= right.items(), (i, new)
    for end in range(len(text)):
        path.write_bytes(text[:end])
        assert rows_of(path, "d").items() <= right.items()


def summed(text):
    return text + b', "sum": "' + hashlib.sha256(text).hexdigest()[:16].encode() + b'"}'


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 100_000 + b"]" * 100_000,
        b'{"key": "a", "digest": "d", "format": "x", "row": {"y": 1}}',
        b'{"key": ["a"], "digest": "d", "row": {"y": 1}}',
        b'{"key": "a", "digest": "d", "row": {"y": {"z": 1}}}',
        b'{"key": "a", "digest": "d", "row": [1]}',
        b'{"key": "a", "digest": "d", "row": {"y": 1}, "format": true}',
        b'{"key": "a", "digest": "d", "row": {"y": 1}, "format": 2}',
        b'{"key": "a", "row": {"y": 1}}',
        b'{"key": "a", "digest": "d", "rows": [{"y": 1}]}',
        summed(b'{"format": 3, "key": "a", "digest": "d", "rows": []'),
        summed(b'{"format": 3, "key": "a", "digest": "d", "rows": {"y": 1}'),
        summed(b'{"format": 3, "key": "a", "digest": "d", "rows": [[1]]'),
        summed(b'{"format": 3, "key": "a", "digest": "d", "row": {"y": 1}'),
        b"7",
        b"\xff\xfe",
    ],
)
def test_a_line_that_is_no_entry_is_named(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    journal = Journal(path, "d")
    journal.append("a", [{"y": 1}])
    journal.close()
    path.write_bytes(line + b"\n" + path.read_bytes())
    with pytest.raises(ValueError, match=r"line 1 of .* is corrupt .*Delete that line"):
        Journal(path, "d")


def test_journals_without_sums_and_of_single_rows_are_still_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"key": "a", "digest": "d", "row": {"y": 1.5}}\n')
    assert Journal(path, "d").rows == {"a": [{"y": 1.5}]}


def test_a_failed_case_of_another_shard_stays_and_is_tried_by_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("FAILS", "yes")

    def fails(op, x, *, dtype, device):
        if (op, x) == (1, 0) and os.environ["FAILS"]:
            raise ArithmeticError("one")
        return {"y": op}

    study = replace_study(STUDY, measure=fails)
    outcomes = [run(study, tmp_path, shard=(i, 3)) for i in (1, 2, 3)]
    assert [x.failed for x in outcomes] == [1, 1, 1]
    assert [x.share_failed for x in outcomes] == [1, 0, 0]
    assert outcomes[-1].rows == outcomes[-1].cases == 12
    meta = json.loads((tmp_path / "grid/meta.json").read_text())
    assert (meta["rows"], meta["cases"], meta["failed"], meta["complete"]) == (12, 12, 1, True)
    assert [row["status"] for row in table(tmp_path / "grid")].count("failed") == 1
    monkeypatch.setenv("FAILS", "")
    assert run(study, tmp_path, shard=(2, 3)).failed == 1, "another shard's to try again"
    assert run(study, tmp_path, shard=(1, 3)).failed == 0


def test_without_locks_a_run_says_so_and_cuts_nothing_off(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", none)
    outcome = run(STUDY, tmp_path)
    assert "Locks do not work in" in outcome.notes[0]
    path = tmp_path / "full.jsonl"
    mine, other = Journal(path, "d"), Journal(path, "d")
    mine.append("a", [{"y": 1}])
    other.append("b", [{"y": 2}])
    write = os.write

    def full(handle, data):
        if len(data) > 20:
            return write(handle, data[:20])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            mine.append("c", [{"y": 3}])
    other.append("e", [{"y": 4}])
    mine.append("c", [{"y": 3}])
    assert rows_of(path, "d") == {
        key: [{"y": y}] for key, y in zip("abec", (1, 2, 4, 3), strict=True)
    }


def test_a_folder_taken_away_is_written_anew_and_said(tmp_path):
    def takes(op, x, *, dtype, device):
        if (op, x) == (2, 0):
            shutil.rmtree(tmp_path / "grid")
        return {"y": op}

    study = replace_study(STUDY, measure=takes)
    outcome = run(study, tmp_path)
    assert outcome.rows == 12
    assert "was taken away meanwhile, and is written anew" in outcome.notes[-1]
    kept = (tmp_path / "grid/rows.jsonl").read_text().splitlines()
    assert len(kept) == 12


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_polite_end_leaves_a_table_that_says_how_far_it_came(tmp_path, name):
    def ends(op, x, *, dtype, device):
        if (op, x) == (2, 0):
            os.kill(os.getpid(), getattr(signal, name))
        return {"y": op}

    own = signal.signal(getattr(signal, name), signal.SIG_DFL)  # nohup has it ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            run(replace_study(STUDY, measure=ends), tmp_path)
        assert signal.getsignal(getattr(signal, name)) is signal.SIG_DFL
    finally:
        signal.signal(getattr(signal, name), own)
    meta = json.loads((tmp_path / "grid/meta.json").read_text())
    assert (meta["rows"], meta["cases"], meta["complete"]) == (4, 12, False)
    assert len(table(tmp_path / "grid")) == 4


ENDS = """
    import sys
    from softlab.study import Study
    def measure(x, *, dtype, device):
        if x in WHICH:
            sys.exit(3)
        return {"y": x}
    STUDY = Study("own", "Which?", {"x": range(3)}, measure)
"""


@pytest.mark.parametrize(("which", "code"), [([], 0), ([1], 1), ([0, 1, 2], 2)])
def test_the_exit_code_says_whether_cases_failed(tmp_path, which, code):
    file = tmp_path / "own.py"
    file.write_text(textwrap.dedent(ENDS).replace("WHICH", repr(which)))
    result = call("run", file, "--out", tmp_path / "out")
    assert result.exit_code == code
    rows = table(tmp_path / "out/own")
    assert [row["error"][:13] for row in rows if row["error"]] == ["SystemExit: 3"] * len(which)


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        (OWN, ["--threads", "100000"], "threads is 100000; give an integer"),
        (OWN, ["--workers", "100000"], "workers is 100000; give an integer"),
        (OWN, ["--device", "meta"], "device 'meta' cannot be used here"),
        (OWN, ["--device", "cpu:7"], "device 'cpu:7' cannot be used here"),
        (OWN, ["--out", ""], "out is empty"),
        ("import sys\nsys.exit(3)", [], "cannot be loaded: SystemExit: 3"),
        (OWN.replace("{'x': range(3)}", "{}").replace('{"x": range(3)}', "{}"), [], "has no axes"),
        (OWN.replace("measure)", "measure, keep=lambda x: 1 / x)"), [],
         "keep raises ZeroDivisionError at x=0"),
        (OWN.replace("range(3)", "[1, 2, 1]"), [], "axis 'x' has two equal values, 1 and 1"),
        (OWN.replace("range(3)", "[1, True]"), [], "axis 'x' has two equal values, 1 and True"),
        (OWN.replace("range(3)", "[__import__('threading').Lock()]"), [],
         "axis 'x' has a value that cannot be known again"),
        (OWN.replace("range(3)", "[10**400]"), [], "an integer of 1329 bits"),
        (OWN.replace("range(3)", "'abc'"), [], "is the word 'abc': give a list of values"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_a_sentence(tmp_path, text, words, said):
    file = tmp_path / "own.py"
    file.write_text("".join(textwrap.dedent(text)))
    result = call("run", file, "--out", tmp_path / "out", *words)
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_shard_without_cases_says_so(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(textwrap.dedent(OWN))
    result = call("run", file, "--out", tmp_path / "out", "--shard", "9/9")
    assert result.exit_code == 0, result.output + result.stderr
    assert "none of the 3 cases falls to this shard" in result.stdout
