"""The PDF holds what the tables hold, and equal tables give equal bytes."""

import json
import re
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from tables import INPUTS, RANKS, rank_table
from test_figures import RANK

from softlab.findings import findings, number
from softlab.report import read, report
from softlab.study import Study, run

META = {
    "name": "rank",
    "title": "A title of some length",
    "question": "What is asked here?",
    "quick": False,
    "seeds": [0, 1, 2],
    "axes": {"input": 4, "seed": 3, "op": 48},
    "figures": [asdict(RANK)],
    "commit": "0" * 39 + "f",
    "dirty": True,
    "digest": "0123456789abcdef",
    "device": "cpu",
    "device_name": "a processor",
    "dtype": "float32",
    "threads": 2,
    "versions": {"python": "3.11.0", "torch": "2.13.0"},
    "platform": "Linux",
    "started": "2026-01-01T10:00:00+00:00",
    "finished": "2026-01-01T10:03:00+00:00",
    "wall_seconds": 180.0,
    "rows": 576,
    "failed": 1,
    "reused": 0,
    "complete": True,
}


def write(folder, table, **changes):
    run = folder / "rank"
    run.mkdir(parents=True)
    table.to_csv(run / "table.csv", index=False)
    (run / "meta.json").write_text(json.dumps(META | changes))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    pytest.importorskip("typst")
    folder = write(tmp_path_factory.mktemp("reports"), rank_table())
    report(folder)
    return folder


@pytest.fixture(scope="module")
def text(made):
    pypdf = pytest.importorskip("pypdf")
    pages = pypdf.PdfReader(made / "report.pdf").pages
    raw = " ".join(page.extract_text() for page in pages)
    # Undo hyphenation and line breaks, which are the typesetter's.
    return re.sub(r"\s+", " ", raw.replace("-\n", "").replace("\u00ad", ""))


def test_pdf_says_what_was_asked_and_where_the_numbers_come_from(text):
    for expected in (
        META["title"], META["question"], META["commit"], META["device_name"], "torch 2.13.0",
        "What was asked", "How it was measured", "Environment", "2 threads", "Eckart and Young",
    ):  # fmt: skip
        assert expected in text


def test_pdf_holds_the_findings_and_they_are_the_tables_numbers(made, text):
    table = rank_table()
    real = table[table.real & (table.status == "ok") & (table["op.rank"] == 64)]
    for target, method in (("softmax", "Nystromformer"), ("Gaussian", "Soft")):
        mine = real[(real.target == target) & (real.method == method)]
        svd = real[(real.target == target) & (real.method == "TruncatedSVD")]
        expected = (
            f"median relative output error of {method} against {target} attention over 3 real "
            f"inputs (9 cases) is {np.median(mine.output_error):.3g}"
        )
        assert expected in text
        assert f"that of the truncated SVD {np.median(svd.output_error):.3f}" in text
    assert "1 of 576 cases failed; the first: LinAlgError: no (svd.py:3)." in text
    assert "(skill at most 0) in 12 of 84 cases: at rank 4, on" in text
    # The negative control: another table, other findings.
    assert findings(table.assign(output_error=table.output_error * 2)) != findings(table)
    assert (made / "rank/findings.txt").read_text().startswith("1 of 576 cases failed")


def test_pdf_has_every_table_cell_and_figure(made, text):
    table = rank_table()
    points = table[(table.target == "softmax") & (table.method == "Nystromformer")]
    for rank in RANKS:
        mine = points[(points["op.rank"] == rank) & (points.source == INPUTS[2])]
        assert number(mine.output_error.median()) in text
    assert len(list((made / "rank/figures").glob("*.svg"))) == 3
    for figure in range(1, 4):
        assert f"Figure {figure}." in text


def test_equal_tables_give_equal_bytes(made, tmp_path):
    again = report(write(tmp_path / "again", rank_table()))
    assert again.read_bytes() == (made / "report.pdf").read_bytes()


def test_text_from_tables_is_never_markup(tmp_path):
    pypdf = pytest.importorskip("pypdf")
    pytest.importorskip("typst")
    nasty = 'KeyError: #panic("x") $a_b$ *bold* <label> \\ [0] @here'
    table = rank_table(seeds=1)
    table.loc[table.index[-1], "error"] = nasty
    path = report(
        write(tmp_path, table, title="The #title $x$", quick=True, complete=False, figures=[])
    )
    words = " ".join(page.extract_text() for page in pypdf.PdfReader(path).pages)
    assert '#panic("x") $a_b$ *bold* <label>' in re.sub(r"\s+", " ", words)
    assert "The #title $x$" in words
    assert "quick grid" in words
    assert "interrupted" in words


def test_a_study_of_other_columns_still_gets_a_report(tmp_path):
    pytest.importorskip("typst")
    table = pd.DataFrame({"x": [1, 2], "status": "ok", "y": [3.0, 4.0]})
    assert report(write(tmp_path, table, figures=[])).exists()
    assert findings(table) == ["All 2 cases finished."]


def test_an_interrupted_run_still_gets_a_report(tmp_path):
    pytest.importorskip("typst")

    def measure(x, *, dtype, device):
        if x == 2:
            raise KeyboardInterrupt
        return {"y": x}

    with pytest.raises(KeyboardInterrupt):
        run(Study("half", "Is half a table a table?", {"x": [1, 2]}, measure), tmp_path)
    assert report(tmp_path).exists()
    assert read(tmp_path / "half")[1]["complete"] is False


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("table.csv", b"", "table.csv is not a table"),
        ("table.csv", b"a,b\n1,2,3\n1,2,3,4\n", "table.csv is not a table"),
        ("table.csv", b"\xff\xfe\x00\x01", "table.csv is not a table"),
        ("table.csv", b"a,b\n1,2\n", "no rows with a 'status' column"),
        ("table.csv", b"status,b\n", "no rows with a 'status' column"),
        ("meta.json", b"{", "meta.json cannot be read"),
        ("meta.json", b"[]", "meta.json cannot be read"),
        ("meta.json", None, "meta.json cannot be read"),
    ],
)
def test_a_corrupt_run_is_named(tmp_path, file, content, said):
    path = write(tmp_path, rank_table(seeds=1)) / "rank" / file
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read(tmp_path / "rank")


def test_no_table_is_said_with_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match="run one first: softlab run"):
        report(tmp_path)


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (0, "0"), (0.12345, "0.123"), (9.999, "10.0"), (12.345, "12.3"), (1234.5, "1230"),
        (0.00034, "3.40 \u00d7 10⁻⁴"),
        (1e-9, "1.00 \u00d7 10⁻⁹"), (2.5e7, "2.50 \u00d7 10⁷"), (-0.5, "-0.500"),
        (float("inf"), "∞"), (float("nan"), "n/a"),
    ],
)  # fmt: skip
def test_number_has_three_digits(x, said):
    assert number(x) == said


def test_findings_say_where_more_rank_does_not_help_and_where_rows_vanish():
    table = rank_table()
    soft = (table.method == "Soft") & (table.target == "Gaussian")
    flat = soft & (table.source == INPUTS[1]) & (table["op.rank"] > 4)
    table.loc[flat, "output_error"] = 0.3
    table.loc[(table.target == "Gaussian") & (table.source == INPUTS[0]), "row_mass"] = 1e-6
    (said,) = [text for text in findings(table) if "Soft against Gaussian" in text]
    assert f"gains less than a tenth over the best smaller rank on {INPUTS[1]}" in said
    assert f"lies between 1.00 \u00d7 10⁻⁶ ({INPUTS[0]})" in said
    assert "does not help" not in " ".join(t for t in findings(table) if "Nystromformer" in t)


def test_findings_count_the_cores_that_were_left_unconverged():
    table = rank_table()
    of_soft = (table.method == "Soft") & (table.target == "Gaussian")
    table["core_status"], table["core_residual"] = None, 1e-7
    table.loc[of_soft, "core_status"] = "CONVERGED"

    def said(of):
        return next(text for text in findings(table) if f"of {of}" in text)

    assert f"core in 0 of {of_soft.sum()} cases." in said("Soft against Gaussian")
    assert "solver stopped" not in said("Nystromformer")
    first = table.index[of_soft][:2]
    table.loc[first, "core_status"] = ["OUT_OF_STEPS", "DIVERGED"]
    table.loc[first, "core_residual"] = [0.25, 0.5]
    text = said("Soft against Gaussian")
    assert f"core in 2 of {of_soft.sum()} cases, relative residual up to 0.500." in text
