"""The command line has the habits that users of others know: version, info, completion, JSON."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import typer.main
from command_line import call

import softlab
from softlab.cli import app, console
from softlab.cli.console import say_json
from softlab.datasets import download

ROOT = Path(__file__).parents[1]
COMMANDS = typer.main.get_command(app).commands

OWN = """
    from softlab.study import Study

    def measure(x):
        return {"y": 1 / x}

    STUDY = Study("own", "Does it?", {"x": [1, 2, 0]}, measure)
"""


def parsed(result):
    def refuse(word):
        raise AssertionError(word)

    return json.loads(result.stdout, parse_constant=refuse)


def test_version():
    assert call("--version").stdout == f"softlab {softlab.__version__}\n"


def test_python_m_softlab():
    ended = subprocess.run(
        [sys.executable, "-m", "softlab", "--version"],
        capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    assert ended.stdout == f"softlab {softlab.__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_json_and_says_its_exit_codes(name):
    shown = " ".join(call(name, "--help").stdout.split())
    assert "--json" in shown
    assert "Exit codes: 0" in shown
    assert "Example" in shown


def test_exit_codes_of_all_are_in_the_first_help():
    shown = " ".join(call("--help").stdout.split())
    assert "Exit codes of every command: 0 done, 1 a finding" in shown
    assert (console.FINDING, console.COULD_NOT) == (1, 2)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("softlab ru", ["run"]),
        ("softlab fetch vi", ["vit"]),
        ("softlab run ran", ["rank"]),
        ("softlab run {folder}/m", ["{folder}/mine.py", "{folder}/more/"]),
        ("softlab info --js", ["--json"]),
    ],
)
def test_a_shell_completes(words, expected, tmp_path):
    (tmp_path / "mine.py").touch()
    (tmp_path / "mine.txt").touch()
    (tmp_path / "more").mkdir()
    words = words.format(folder=tmp_path)
    expected = [x.format(folder=tmp_path) for x in expected]
    asked = {"_SOFTLAB_COMPLETE": "complete_bash", "COMP_WORDS": words}
    ended = subprocess.run(
        [sys.executable, "-m", "softlab"],
        env=os.environ | asked | {"COMP_CWORD": str(len(words.split()) - 1)},
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert ended.stdout.split() == expected, ended.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_that_a_shell_reads(shell):
    ended = subprocess.run(
        [sys.executable, "-c", "from softlab.cli import app; app(prog_name='softlab')"],
        env=os.environ | {"_SOFTLAB_COMPLETE": f"source_{shell}"},
        capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    assert "_SOFTLAB_COMPLETE=complete_" + shell in ended.stdout


def test_info_says_what_there_is(monkeypatch, tmp_path):
    monkeypatch.setenv("SOFTLAB_CACHE", str(tmp_path))
    found = parsed(call("info", "--json"))
    assert found["softlab"] == softlab.__version__
    assert found["libraries"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["devices"]["cpu"]
    assert found["threads"]["torch"] == torch.get_num_threads()
    assert any("blas" in name for name in found["pools"])
    assert found["torch's own"]
    assert found["studies"]["can run here"] is True
    assert "rank" in found["studies"]["names"]
    assert found["fetched"]["cache"] == str(tmp_path)
    assert {found["fetched"][name] for name in download.CATALOGUE} == {None}
    shown = call("info").stdout
    assert f"softlab: {softlab.__version__}" in shown
    assert "  minilm: no" in shown


def test_list_as_json_holds_what_the_table_shows():
    found = parsed(call("list", "--json"))
    soft = next(x for x in found["parts"]["Operators"] if x["name"] == "Soft")
    assert soft["example"] == "Soft(rank=64)"
    assert soft["claims"]["linear_in_v"] is True
    assert "rank" in {x["name"] for x in found["studies"]}
    assert found["left_out"] == []
    names = {x["name"] for of in found["parts"].values() for x in of}
    shown = call("list").stdout
    assert all(f" {name} " in shown for name in names)


def test_run_and_compare_as_json(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(textwrap.dedent(OWN))
    result = call("run", path, "--out", tmp_path / "a", "--json")
    assert result.exit_code == console.FINDING
    (found,) = parsed(result)
    assert (found["study"], found["rows"], found["failed"]) == ("own", 3, 1)
    assert Path(found["table"]).is_file()
    assert found["findings"]
    path.write_text(textwrap.dedent(OWN).replace("1 / x", "3 / x"))
    call("run", path, "--out", tmp_path / "b")
    result = call("report", "--compare", tmp_path / "a", tmp_path / "b", "--json")
    assert result.exit_code == console.FINDING
    (found,) = parsed(result)
    assert found["study"] == "own"
    assert [(x["column"], x["factor"], x["changed"]) for x in found["changes"]] == [("y", 3.0, 2)]
    result = call("report", "--compare", tmp_path / "a", tmp_path / "a", "--json")
    assert result.exit_code == 0
    assert parsed(result)[0]["changes"] == []


def test_report_as_json_says_where_it_is(tmp_path):
    pytest.importorskip("typst")
    path = tmp_path / "own.py"
    path.write_text(textwrap.dedent(OWN))
    call("run", path, "--out", tmp_path)
    assert parsed(call("report", tmp_path, "--json")) == {
        "pdf": str(tmp_path / "report.pdf"),
        "html": str(tmp_path / "report.html"),
        "left_out": [],
    }


def test_fetch_as_json_says_where_each_is(monkeypatch):
    monkeypatch.setattr(download, "fetch", lambda name, progress: Path("cache", name))
    found = parsed(call("fetch", "vit", "minilm", "--json"))
    assert found == [{"name": x, "folder": f"cache/{x}"} for x in ("vit", "minilm")]


def test_json_is_json_whatever_the_numbers(capsys):
    say_json({"a": [float("nan"), float("inf"), -float("inf"), 1.5], "b": (Path("x"), {1: None})})
    assert json.loads(capsys.readouterr().out) == {
        "a": [None, "inf", "-inf", 1.5],
        "b": ["x", {"1": None}],
    }
