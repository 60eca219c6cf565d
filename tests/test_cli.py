"""The command line does what it says, and says what is wrong, with a code that is not zero."""

import itertools
import sys
import textwrap

import pytest
import torch
from command_line import call

from softlab.engine.journal import Journal

OWN = """
    from softlab.study import Study

    def measure(x, *, dtype, device):
        return {"y": 1 / x, "dtype": str(dtype)}

    STUDY = Study("own", "Does my own file run?", {"x": [1, 2, 0]}, measure, quick={"x": [2]})
    SECOND = Study("second", "And a second one?", {"x": [4]}, measure)
"""


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "elsewhere.py"
    path.write_text(textwrap.dedent(OWN))
    return path


def test_a_users_own_file_runs_with_all_its_studies(tmp_path, own):
    result = call("run", own, "--out", tmp_path, "--dtype", "float64", "--threads", 1)
    assert result.exit_code == 1, result.output
    assert "own: 3 rows" in result.stdout
    assert "(0 reused, 1 failed)" in result.stdout
    assert "1 of 3 cases failed; the first: ZeroDivisionError: division by zero" in result.stdout
    assert "second: 1 rows" in result.stdout
    assert "float64" in (tmp_path / "own/table.csv").read_text()
    again = call("run", own, "--out", tmp_path, "--dtype", "float64", "--threads", 1)
    assert "(2 reused, 1 failed)" in again.stdout
    quick = call("run", own, "--out", tmp_path, "--quick", "--fresh")
    assert "own: 1 rows" in quick.stdout


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        (None, [], "there is no file"),
        ("x = 1", [], "defines no softlab.study.Study at its top level"),
        ("1 / 0", [], "cannot be loaded: ZeroDivisionError: division by zero"),
        ("def f(:", [], "cannot be loaded: SyntaxError"),
        (OWN, ["--dtype", "int8"], "dtype 'int8' is not one of bfloat16, float16"),
        (OWN, ["--device", "toaster"], "device 'toaster' cannot be used here"),
        (OWN, ["--threads", "0"], "threads is 0"),
        (OWN + "    THIRD = Study('own', 'Twice?', {'x': [1]}, measure)", [], "share a name"),
        (OWN.replace("[1, 2, 0]", "[]"), [], "axis 'x' has no values"),
    ],
)
def test_bad_requests_are_refused(tmp_path, text, words, said):
    path = tmp_path / "bad.py"
    if text is not None:
        path.write_text(textwrap.dedent(text))
    result = call("run", path, "--out", tmp_path / "out", *words)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_where_there_is_none(tmp_path, own):
    result = call("run", own, "--out", tmp_path, "--device", "cuda")
    assert result.exit_code == 2
    assert "device 'cuda' cannot be used here" in result.stderr


@pytest.mark.parametrize(
    ("stop", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted."),
        (OSError(28, "No space left"), 2, "No space left"),
    ],
)
def test_an_interrupt_says_what_was_kept_and_where(tmp_path, own, monkeypatch, stop, code, said):
    append = Journal.append

    def one(self, key, row):
        if self.rows:
            raise stop
        append(self, key, row)

    monkeypatch.setattr(Journal, "append", one)
    result = call("run", own, "--out", tmp_path)
    assert result.exit_code == code
    assert said in result.stderr
    assert f"1 of 3 rows are kept in {tmp_path / 'own'}; the same command resumes." in result.stderr


def test_report_says_what_is_missing(tmp_path):
    result = call("report", tmp_path)
    assert result.exit_code == 2
    assert "run one first: softlab run" in result.stderr


def test_report_without_typst_names_the_extra(tmp_path, own, monkeypatch):
    call("run", own, "--out", tmp_path)
    monkeypatch.setitem(sys.modules, "typst", None)
    result = call("report", tmp_path)
    assert result.exit_code == 2
    assert "typst is not installed. Run: python -m pip install 'typst" in result.stderr


def test_report_prints_where_the_pdf_is(tmp_path, own):
    pytest.importorskip("typst")
    call("run", own, "--out", tmp_path)
    result = call("report", tmp_path)
    assert result.exit_code == 0, result.output
    assert result.stdout.split() == [str(tmp_path / f"report.{x}") for x in ("pdf", "html")]


def test_list_names_every_part_with_its_claims():
    from softlab import operators, pinv

    result = call("list")
    assert result.exit_code == 0
    for name in (
        *operators.__all__,
        "SVD",
        "PowerEstimate",
        "SegmentMeans",
        "SORF",
        "Recorded",
        "LowRank",
    ):
        assert f" {name} " in result.stdout
    assert "row_stochastic" in result.stdout
    assert "order 2" in result.stdout
    assert not hasattr(pinv, "Solver") or " Solver " not in result.stdout
    solvers = result.stdout.split("Solvers")[1].split("Initial scalings")[0]
    assert " Chebyshev " in solvers
    assert " PowerEstimate " not in solvers


def test_fetch_of_an_unknown_name():
    result = call("fetch", "minilm", "fashion-mnst")
    assert result.exit_code == 2
    assert "glove, fashion-mnist. Did you mean 'fashion-mnist'?" in result.stderr
    assert "minilm-" not in result.stdout  # none is fetched where one is misspelt


@pytest.mark.parametrize("command", ["run", "report", "check", "substitute", "list", "fetch"])
def test_paragraphs_of_help_fill_the_lines_of_a_narrow_terminal(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    said = call(command, "--help").stdout.partition("─")[0].splitlines()
    assert len(said) > 3
    for line, after in itertools.pairwise(said):
        if line.strip() and after.strip():
            assert len(line.rstrip()) + 1 + len(after.split()[0]) > 78, line


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["report", "--help"]])
def test_help_shows_examples(words):
    result = call(*words)
    assert result.exit_code == 0
    assert words == ["--help"] or "Example" in result.stdout
