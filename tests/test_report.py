"""The PDF holds what the tables hold, and equal tables give equal bytes."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_line import call
from hypothesis import given
from hypothesis import strategies as st
from tables import INPUTS, RANKS, rank_table
from test_figures import RANK

from softlab import study_folders
from softlab.engine import journal
from softlab.report import FORMAT, _marks, findings, read, report
from softlab.report import chapter as chapters
from softlab.report.numbers import number
from softlab.report.overview import _seeds, environments, failures, grid, notes
from softlab.study import Study, run

META = {
    "name": "rank",
    "title": "A title of some length",
    "question": "What is asked here?",
    "chapter": "operators",
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


def write(folder, table, name="rank", **changes):
    run = folder / name
    run.mkdir(parents=True)
    table.to_csv(run / "table.csv", index=False)
    (run / "meta.json").write_text(json.dumps(META | {"name": name} | changes))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    pytest.importorskip("typst")
    folder = write(tmp_path_factory.mktemp("reports"), rank_table())
    report(folder)
    return folder


def words(path):
    """The text of a PDF, without the typesetter's hyphens and line breaks."""
    pypdf = pytest.importorskip("pypdf")
    raw = " ".join(page.extract_text() for page in pypdf.PdfReader(path).pages)
    return re.sub(r"\s+", " ", raw.replace("-\n", "").replace("\u00ad", ""))


def sections(path):
    """The headings of a PDF in order, one string each, from its outline."""
    pypdf = pytest.importorskip("pypdf")

    def flat(outline):
        for item in outline:
            yield from flat(item) if isinstance(item, list) else [item.title]

    return list(flat(pypdf.PdfReader(path).outline))


@pytest.fixture(scope="module")
def text(made):
    return words(made / "report.pdf")


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
            f"the relative output error of {method} against {target} attention is "
            f"{np.median(mine.groupby('source').output_error.median()):.3g}, in the median over 3 "
            "recorded inputs"
        )
        assert expected in text
        assert f"that of the truncated SVD {np.median(svd.output_error):.3f}" in text
    assert "1 of 576 cases failed; the first: LinAlgError: no (svd.py:3)." in text
    assert "(skill at most 0) in 12 of 84 cases: at rank 4, on" in text
    # The negative control: another table, other findings.
    doubled = table.assign(output_error=table.output_error * 2)
    assert findings(doubled, META) != findings(table, META)
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
    assert "short grid" in words
    assert "interrupted" in words


LEVELS = """
def scope(table):
    return f"Levels: {table['level'].nunique()}."


def findings(table):
    return ["The #highest level is $" + f"{table['level'].max()}$."]


def tables(table):
    yield {"caption": "_The_ levels.", "header": ["#level", "times"], "left": 1,
           "rows": [[f"$a_{x}$", str(n)] for x, n in table["level"].value_counts().items()]}
"""
FRAGMENT = "A level is $ell = #data.first$, and *bold* is bold: $ x = 1. $ <levels-one>\n"


@pytest.fixture
def levels(tmp_path, monkeypatch):
    """A chapter for the time of a test, in a folder beside softlab's own."""
    folder = tmp_path / "chapters/levels"
    folder.mkdir(parents=True)
    (folder / "chapter.py").write_text(LEVELS)
    (folder / "method.typ").write_text(FRAGMENT.replace("#data.first", "1"))
    known = study_folders.chapters
    monkeypatch.setattr(study_folders, "chapters", lambda: known() | {"levels": folder})
    return pd.DataFrame({"level": [1, 2, 2], "status": "ok"})


def test_studies_of_two_kinds_share_a_document(tmp_path, levels, monkeypatch):
    pytest.importorskip("typst")
    folder = tmp_path / "reports"
    title = "The #levels of $x_1$"
    write(folder, levels, "levels", title=title, chapter="levels", figures=[])
    write(folder, rank_table(seeds=1), "b_rank", title="One rank")
    write(folder, rank_table(seeds=2), "c_rank", title="More rank", figures=[])
    path = report(folder)
    parts = ["How it was measured", "Findings", "Figures", "Tables"]
    # By folder; without figures no section of figures; the text of a chapter stands once.
    expected = ["Findings", "What was asked", "One rank", *parts]
    expected += ["More rank", "Findings", "Tables", title, *parts[:2], "Tables"]
    expected += ["Glossary", "References", "Environment"]
    found = [re.sub(r"^[\d.]+ ", "", heading) for heading in sections(path)]
    assert found == expected
    said = words(path)
    assert "Approximations of attention" in said
    assert said.count("One case is one attention head") == 1
    assert said.count("Measured as in Section 2.1.") == 1
    assert "bold is bold" in said  # the fragment is markup ...
    for literal in ("The #highest level is $2$.", "_The_ levels.", "$a_2$", "#level", title):
        assert literal in said  # ... and words are not
    assert "Levels: 2." in said
    page = path.with_suffix(".html").read_text(encoding="utf-8")
    assert "Measured by softlab: b_rank, c_rank and levels<" in page
    assert (folder / "levels/findings.txt").read_text().endswith("The #highest level is $2$.\n")
    first = path.read_bytes()
    assert report(folder).read_bytes() == first
    monkeypatch.setattr("softlab.report.MANY", 1)  # by several processes
    assert report(folder).read_bytes() == first
    assert path.with_suffix(".html").read_text(encoding="utf-8") == page


def test_an_unknown_chapter_is_refused_with_the_file_and_the_known_ones(tmp_path):
    folder = write(tmp_path, rank_table(seeds=1), chapter="operatrs")
    with pytest.raises(ValueError, match=r"rank.meta\.json: .*'operatrs'.*Did you mean 'oper"):
        report(folder)
    assert not (folder / "report.pdf").exists()


def test_a_run_of_before_there_were_chapters_is_of_operators(tmp_path):
    folder = write(tmp_path, rank_table(seeds=1))
    path = folder / "rank/meta.json"
    old = {name: x for name, x in META.items() if name != "chapter"}
    path.write_text(json.dumps(old))
    assert read(folder / "rank")[1]["chapter"] == "operators"


def test_a_figure_that_cannot_be_drawn_says_why_and_costs_nothing_else(tmp_path):
    pytest.importorskip("typst")
    wrong = asdict(replace(RANK, y="output_#error"))
    folder = write(tmp_path, rank_table(seeds=1), figures=[wrong, asdict(RANK)])
    said = words(report(folder))
    assert "Not drawn: output_#error against op.rank: the table has no column" in said
    assert len(list((folder / "rank/figures").glob("*.svg"))) == 3
    failed = rank_table(seeds=1).assign(status="failed")[["input", "op.rank", "status", "error"]]
    said = words(report(write(tmp_path / "failed", failed)))
    assert "Not drawn: output_error against op.rank: the table has no finished row" in said
    assert f"The {len(failed)} cases that failed, by reason." in said


def test_figures_of_the_same_columns_do_not_overwrite_each_other(tmp_path):
    pytest.importorskip("typst")
    halves = [asdict(replace(RANK, where={"real": real})) for real in (True, False)]
    named = asdict(replace(RANK, name="All inputs, once", caption="All, for {page}."))
    folder = write(tmp_path, rank_table(seeds=1), figures=[*halves, named])
    said = words(report(folder))
    stem = "output_error-op_rank"
    assert {path.name for path in (folder / "rank/figures").glob("*softmax*.svg")} == {
        f"{stem}-softmax.svg", f"{stem}-softmax-2.svg", "All-inputs-once-softmax.svg"
    }  # fmt: skip
    first, second = (folder / f"rank/figures/{stem}-softmax{n}.svg" for n in ("", "-2"))
    papers = {x.stem for x in (folder / "rank/figures").glob("*.pdf")}
    assert papers == {x.stem for x in (folder / "rank/figures").glob("*.svg")}
    assert first.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    assert first.read_bytes() != second.read_bytes()
    assert "All, for row-normalised Gaussian." in said


def test_a_study_of_other_columns_still_gets_a_report(tmp_path):
    pytest.importorskip("typst")
    table = pd.DataFrame({"x": [1, 2], "status": "ok", "y": [3.0, 4.0]})
    assert report(write(tmp_path, table, figures=[])).exists()
    assert findings(table, META) == [
        "All 2 cases finished.",
        "The cases fall into 2 groups, told apart by x. "
        "The median y goes from 3.00 (1) to 4.00 (2).",
    ]


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
        ("meta.json", json.dumps(META | {"format": 99}).encode(), "from a newer softlab"),
        ("meta.json", b"[]", "meta.json cannot be read"),
        ("meta.json", None, "meta.json cannot be read"),
    ],
)
def test_a_corrupt_run_is_named(tmp_path, file, content, said):
    path = write(tmp_path, rank_table(seeds=1)) / "rank" / file
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read(tmp_path / "rank")


ODD_WORDS = (
    *("", "NA", "null", "nan", "None", "True", "007", "7", "1e5", "inf", "-", "=1+1", "@a", "+b"),
    *(
        "a\rb",
        "a\r\nb",
        "a\nb",
        "\n",
        "a\x00b",
        "caf\udce9.pt",
        '"',
        '"quoted"',
        "a,b",
        " a ",
        "\t",
    ),
    *("[1, 2]", "{}", "\u8aa4\u5dee", "\ufeffa", "#", "\x1b[0m", "\x85", "\u2028"),
)


def same(found, wanted):
    """Equal in value and, but for integers among floats, in type; None and NaN are missing."""
    if wanted is None or wanted != wanted:
        return bool(pd.isna(found))
    if isinstance(wanted, float | int) and not isinstance(wanted, bool):
        return not isinstance(found, str | bool | np.bool_) and found == wanted
    return isinstance(found, bool | np.bool_ if isinstance(wanted, bool) else str) and (
        found == wanted
    )


def through_a_file(tmp_path, columns):
    rows = [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
    rows = [{"case": i} | row | {"status": "ok"} for i, row in enumerate(rows)]
    run = tmp_path / "run"
    journal.replace(run / "table.csv", journal.as_csv(rows))
    meta = META | {"columns": journal.kinds(rows)}
    journal.replace(run / "meta.json", json.dumps(meta))
    return read(run)[0]


@pytest.mark.parametrize(
    "values",
    [
        [*ODD_WORDS], [*ODD_WORDS, None], [*ODD_WORDS, 7, 7.5, True, None, float("nan"), 2**70],
        [None, 0.5, 3.0], [None, 1, 2], [True, False], [True, None, False], [True, 1, 0.5],
        [2**63, 1], [2**64, -1], [2**70, 0.5], [2**53 + 1, 0.5], [2**53 + 1, None], [10**400, 0.5],
        [1, 2.5, float("inf"), float("-inf"), float("nan")], [0.1, 5e-324, 1 / 3, 1.7e308, -0.0],
        [None, None], ["None", None, "full"], [7, "007", "7", 7.0], ["a", "a\rb"],
        [np.float64(0.1), np.float64(2)], ["x" * 1_000_000, "y"],
    ],
    ids=lambda values: str(values)[:40],
)  # fmt: skip
def test_every_value_of_a_row_comes_back_from_the_file(tmp_path, values):
    found = through_a_file(tmp_path, {"v": values, "=w": values[::-1]})
    assert list(found) == ["case", "v", "=w", "status"]
    for column, wanted in (("v", values), ("=w", values[::-1])):
        pairs = [*zip(found[column].tolist(), wanted, strict=True)]
        assert [pair for pair in pairs if not same(*pair)] == []


@given(
    st.lists(
        st.none() | st.booleans() | st.integers() | st.floats()
        | st.text(st.characters(exclude_categories=())), min_size=1, max_size=5,
    )
)  # fmt: skip
def test_any_values_come_back_from_the_file(tmp_path_factory, values):
    found = through_a_file(tmp_path_factory.mktemp("any"), {"v": values})["v"].tolist()
    assert all(map(same, found, values)), (found, values)


def test_columns_are_of_the_type_that_chapters_count_with(tmp_path):
    columns = {
        "whole": [1, 2, 3], "some": [1, None, 3], "part": [0.5, 1, 2], "truth": [True, False, True],
        "word": ["a", "NA", None], "none": [None] * 3, "long": [2**70, 2.5, None],
    }  # fmt: skip
    found = through_a_file(tmp_path, columns)
    assert [str(found[x].dtype) for x in ("whole", "some", "part", "truth", "none", "long")] == [
        "int64", "float64", "float64", "bool", "float64", "float64"
    ]  # fmt: skip
    assert pd.api.types.infer_dtype(found["word"], skipna=True) == "string"
    assert found["word"].isna().tolist() == [False, False, True]
    # Other readers find plain words and numbers, and no cell that a spreadsheet would run.
    columns["formula"] = ["=cmd|' /C calc'!A0", "@SUM(1)", "-1+1"]
    through_a_file(tmp_path, columns)
    raw = pd.read_csv(tmp_path / "run/table.csv", dtype=str, na_filter=False)
    assert raw["word"].tolist() == ["a", "NA", ""]
    assert raw["part"].tolist() == ["0.5", "1", "2"]
    assert raw["formula"].tolist() == [json.dumps(x) for x in columns["formula"]]
    text = (tmp_path / "run/table.csv").read_text()
    assert not re.search(r"(^|,)\"?[=@]", text, re.M)


def test_columns_that_the_meta_file_does_not_know_are_guessed_and_words_stay(tmp_path):
    table = pd.DataFrame({"status": "ok", "kind": ["NA", "None", ""], "y": [1.0, np.nan, 2.0]})
    found = read(write(tmp_path, table.assign(n=3)) / "rank")[0]
    assert found["kind"].fillna("missing").tolist() == ["NA", "None", "missing"]
    assert (found["y"].dtype, found["n"].dtype) == (float, int)
    columns = {"status": "word", "kind": "word"}
    found = read(write(tmp_path / "part", table, columns=columns) / "rank")[0]
    assert found["kind"].fillna("missing").tolist() == ["NA", "None", "missing"]
    assert found["y"].dtype == float


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": "x"}, "is of format 'x', which is no number"),
        ({"columns": {"seed": "complex"}}, "of kind 'complex'; the kinds are bool, int"),
        ({"columns": {"source": "int"}}, "column 'source' is not what meta.json says"),
        ({"columns": {"source": "bool"}}, "column 'source' is not what meta.json says"),
        ({"columns": {"source": "json"}}, "column 'source' is not what meta.json says"),
        ({"chapter": 7}, "there is no chapter 7"),
        ({"name": None}, "cannot be read"),
    ],
)
def test_a_meta_file_that_does_not_fit_is_named(tmp_path, changes, said):
    path = write(tmp_path, rank_table(seeds=1)) / "rank/meta.json"
    path.write_text(json.dumps(META | changes))
    with pytest.raises(ValueError, match=said) as caught:
        read(tmp_path / "rank")
    assert str(tmp_path) in str(caught.value)


def test_what_a_meta_file_lacks_is_replaced_and_named(tmp_path):
    path = write(tmp_path, rank_table(seeds=1)) / "rank/meta.json"
    path.write_text(json.dumps({"name": "rank", "figures": 3, "versions": "new"}))
    meta = read(tmp_path / "rank")[1]
    assert (meta["figures"], meta["versions"], meta["chapter"]) == ([], {}, "operators")
    assert {"figures", "versions", "question", "axes"} <= set(meta["lacking"])
    assert [meta[x] for x in ("quick", "complete", "dirty")] == [False] * 3
    path.write_text(json.dumps(META))
    assert read(tmp_path / "rank")[1]["lacking"] == []


def test_numpy_scalars_on_an_axis_are_the_numbers_that_they_are(tmp_path):
    axes = {"n": np.array([16, 64]), "x": np.float32([0.1, 0.5]), "flag": [np.bool_(True)]}
    study = Study("s", "q?", axes, lambda n, x, flag, dtype, device: {"y": 1.0})
    table = read(run(study, tmp_path).folder)[0]
    assert (table["n"].dtype, table["x"].dtype, table["flag"].dtype) == (int, float, bool)
    assert table["n"].tolist() == [16, 16, 64, 64]
    assert table["x"].tolist() == [float(np.float32(0.1)), 0.5] * 2


def test_a_report_reads_what_a_run_writes():
    assert FORMAT == journal.FORMAT


def test_what_studies_share_stands_once_and_the_rest_by_study():
    other = META | {"name": "b", "dtype": "bfloat16", "dirty": False}
    table = rank_table(seeds=1)
    found = environments([(table, META), (table, other)])
    assert ["Platform", "Linux"] in found["shared"]
    assert "Arithmetic" not in dict(found["shared"])
    assert found["header"][:3] == ["study", "Commit", "Arithmetic"]
    assert [row[2] for row in found["rows"]] == ["float32, 2 threads", "bfloat16, 2 threads"]
    assert found["rows"][0][1].endswith(", with changes")


def test_the_same_journal_gives_the_same_bytes(tmp_path):
    pytest.importorskip("typst")

    def measure(x, *, dtype, device):
        values = {"y": np.float64(x) / 3, "z": 0.1 + x, "flag": x > 1, "none": None}
        return values | {"huge": float("inf"), "word": 'a, "b"\n'}

    figure = replace(RANK, x="x", y="y", group="word", panel="", page="")
    study = Study("same", "Is it the same?", {"x": [1, 2, 3]}, measure, figures=(figure,))
    made = []
    for _ in range(2):
        outcome = run(study, tmp_path)
        path = report(tmp_path)
        files = [outcome.folder / "table.csv", path, path.with_suffix(".html")]
        files += sorted((outcome.folder / "figures").iterdir())
        made.append([file.read_bytes() for file in files])
    assert outcome.reused == 3
    assert len(made[0]) == 5
    assert made[0] == made[1]


def test_no_table_is_said_with_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match="run one first: softlab run"):
        report(tmp_path)


def test_a_chapter_makes_the_rows_that_no_case_knows(tmp_path, levels):
    pytest.importorskip("typst")
    made = chapters.named("levels")
    made.doubled = lambda table: table.assign(twice=2 * table["level"])
    figure = replace(RANK, x="level", y="twice", group="status", panel="", page="", rows="doubled")
    missing = replace(figure, rows="tripled")
    folder = write(
        tmp_path, levels, "levels", chapter="levels", figures=[asdict(figure), asdict(missing)]
    )
    said = words(report(folder))
    assert (folder / "levels/figures/twice-level.svg").exists()
    assert (
        "Not drawn: twice against level: the chapter levels makes no rows called 'tripled'" in said
    )


def test_a_table_that_cannot_be_read_is_named_and_the_others_are_set(tmp_path):
    pytest.importorskip("typst")
    write(tmp_path, rank_table(seeds=1), "good", figures=[])
    for name, text in (("empty", ""), ("cut", "a,b\n1,2,3\n1,2,3,4\n"), ("bare", "status,y\n")):
        (write(tmp_path, rank_table(seeds=1), name) / name / "table.csv").write_text(text)
    (write(tmp_path, rank_table(seeds=1), "later") / "later/meta.json").write_text(
        json.dumps(META | {"format": 99})
    )
    told = []
    path = report(tmp_path, tell=told.append)
    said, page = words(path), path.with_suffix(".html").read_text(encoding="utf-8")
    assert len(told) == 4
    assert said.count("Not in this report:") == page.count("Not in this report:") == 4
    assert META["title"] in said
    result = call("report", tmp_path)
    assert result.exit_code == 2
    assert str(path) in result.stdout
    assert "later/meta.json is of format 99" in result.stderr.replace("\n", "")


@pytest.mark.parametrize("many", [1, 2000], ids=["several processes", "one"])
def test_a_chapter_that_raises_costs_its_own_words_alone(tmp_path, levels, monkeypatch, many):
    pytest.importorskip("typst")
    made = chapters.named("levels")
    made.findings = lambda table: [table["nonsense"]]

    def tables(table):
        yield from ()
        raise ZeroDivisionError("no levels")

    made.tables = tables
    (tmp_path / "chapters/levels/method.typ").write_text("$ x \n#nonsense(")
    folder = tmp_path / "reports"
    monkeypatch.setattr("softlab.report.MANY", many)
    write(folder, levels, "levels", chapter="levels", figures=[])
    write(folder, rank_table(seeds=1), "rank", title="Ranks", figures=[{"x": 3}, 7, asdict(RANK)])
    told = []
    said = words(report(folder, tell=told.append))
    assert [x.split(":")[0] for x in told] == [
        "levels", "levels", "The text of chapters/levels.typ cannot be set"
    ]  # fmt: skip
    assert "The chapter levels cannot say its findings: KeyError: 'nonsense'" in said
    assert "cannot say its tables: ZeroDivisionError: no levels (test_report.py:" in said
    assert "Levels: 2." in said
    assert "Not drawn: a figure described as 7" in said
    assert "Not drawn: None against 3: TypeError" in said
    assert len(list((folder / "rank/figures").glob("*.svg"))) == 3


def test_an_unfinished_run_says_how_many_of_how_many_on_the_first_page_too(tmp_path):
    pypdf = pytest.importorskip("pypdf")
    pytest.importorskip("typst")
    table = rank_table(seeds=1)
    meta = META | {"complete": False, "cases": 500}
    part = f"{len(table)} of 500 cases are measured; the run was interrupted"
    assert findings(table, meta)[0].startswith(part)
    assert "1 of 192 cases failed; the first: LinAlgError" in findings(table, meta)[0]
    assert not findings(table[:-1], meta)[0].startswith("All ")
    path = report(write(tmp_path, table, complete=False, cases=500))
    first = re.sub(r"\s+", " ", pypdf.PdfReader(path).pages[0].extract_text())
    assert part in first
    assert "The study has 500 cases" in words(path)
    page = path.with_suffix(".html").read_text(encoding="utf-8")
    assert page.index(part) < page.index("What was asked</h2>")
    # Earlier runs did not say how many cases there are.
    early = {name: x for name, x in meta.items() if name != "cases"}
    assert findings(table, early)[0].startswith(f"{len(table)} cases are measured; the run was")


def test_studies_of_one_title_are_told_apart_by_their_folder(tmp_path):
    pytest.importorskip("typst")
    for folder in ("one", "two"):
        write(tmp_path, rank_table(seeds=1), folder, figures=[])
        path = tmp_path / folder / "meta.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"name": "rank"}))
    said = words(report(tmp_path))
    assert f"{META['title']} (one)" in said
    assert f"{META['title']} (two)" in said


def test_a_failed_case_without_a_reason_and_a_busy_machine_are_said():
    table = pd.DataFrame({"x": [1, 2, 3], "status": ["ok", "failed", "ok"], "error": [None] * 3})
    assert findings(table, META)[0] == "1 of 3 cases failed; the first: no reason recorded."
    assert findings(table.drop(columns="error"), META)[0].endswith("no reason recorded.")
    (failed,) = failures(table)
    assert failed["rows"] == [["no reason recorded", "1"]]
    busy = table.assign(case_cpu_share=[0.5, 0.9, 0.7])
    said = " ".join(notes(busy, META | {"timed": ["t"], "lacking": ["axes", "seeds"]}))
    assert "2 of 3 cases were measured while the machine was busy." in said
    assert "Its meta.json says nothing usable of axes, seeds." in said
    assert "busy" not in " ".join(notes(table, META | {"timed": ["t"]}))


def test_every_sentence_of_a_run_is_said_where_it_is_true_and_nowhere_else():
    table = pd.DataFrame({
        "x": range(5), "status": ["ok", "failed", "failed", "ok", "ok"], "case_seconds": [1.5] * 5,
        "error": [None, "E: a", "E: a", None, None],
    })  # fmt: skip
    calm = META | {"dirty": False}
    assert list(notes(table[3:], calm)) == []
    sentences = {
        "quick": "This is a trial run on the short grid; do not quote its numbers.",
        "dirty": "The code had changes that no commit holds.",
    }
    for name, said in sentences.items():
        assert list(notes(table[3:], calm | {name: True})) == [said]
    (said,) = notes(table[3:], calm | {"complete": False})
    assert said.startswith("The run was interrupted, or other shards of it are to come;")
    assert list(notes(table, calm)) == ["2 of 5 cases failed and are in no number or figure."]
    assert list(notes(table[3:], calm | {"timed": ["t"]})) == [
        "Timings are those of a processor; the ranking by time may differ elsewhere."
    ]
    assert grid(table, META | {"cases": 7}) == (
        "The study has 7 cases (values on each axis: input 4, seed 3, op 48; the others of 576 "
        "combinations are left out by its rule)."
    )
    assert grid(table, META | {"cases": 576}).endswith(
        "(values on each axis: input 4, seed 3, op 48)."
    )
    assert grid(table[:1], META).startswith("The study has 1 case (")
    assert findings(table[3:4], META | {"chapter": "operators"}) == ["The one case finished."]
    assert findings(table[3:], META | {"chapter": "operators"}) == ["All 2 cases finished."]
    (cases,) = failures(table)
    assert (cases["rows"], cases["left"]) == ([["E: a", "2"]], 1)
    assert list(failures(table[3:])) == []
    other = META | {"name": "b", "dtype": "float64", "dirty": False, "seeds": []}
    made = environments([(table, META), (table[3:].drop(columns="case_seconds"), other)])
    assert made["header"][:6] == ["study", "Commit", "Arithmetic", "seeds", "rows", "failed"]
    assert made["rows"] == [
        ["rank", f"{META['commit']}, with changes", "float32, 2 threads", "0, 1, 2", "5", "2", "8",
         *made["rows"][0][7:]],
        ["b", META["commit"], "float64, 2 threads", "none", "2", "0", "", *made["rows"][1][7:]],
    ]  # fmt: skip
    assert [name for name, _ in made["shared"]] == ["Versions", "Device", "Platform"]


def test_many_seeds_in_a_row_are_said_by_their_ends():
    assert _seeds(range(36)) == "0 to 35"
    assert _seeds([0, 1, 2]) == "0, 1, 2"
    assert _seeds([0, 1, 2, 3, 4, 5, 9]) == "0, 1, 2, 3, 4, 5, 9"
    assert _seeds([]) == "none"
    assert (_seeds(range(6)), _seeds(range(2, 9))) == ("0, 1, 2, 3, 4, 5", "2 to 8")


def test_seconds_and_cases_are_counted_once_a_case_and_setups_once_a_setup():
    """Two cases of two rows share one set-up."""
    table = pd.DataFrame({
        "x": [1, 1, 2, 2], "model": "m", "step": [0, 1, 0, 1], "status": "ok",
        "case_seconds": [3.0, 3.0, 5.0, 5.0], "case_setup_seconds": 20.0,
    })  # fmt: skip
    meta = META | {"axes": {"x": 2, "model": 1}, "within": ["step"], "shared": ["model"]}
    made = environments([(table, meta)])
    row = dict(zip(made["header"], made["rows"][0], strict=True))
    assert (row["rows"], row["failed"], row["seconds"], row["code"]) == ("4", "0", "28", "01234567")
    assert findings(table, meta)[0] == "All 2 cases finished."
    assert grid(table, meta) == "The study has 2 cases (values on each axis: x 2, model 1)."


def test_marks_of_several_studies_are_one_sentence_each():
    rows = pd.DataFrame({
        "x": range(4), "status": "ok", "case_cpu_share": [0.2, 0.2, 1.0, 1.0],
        "case_load": [9.0, 9.0, 0.5, 0.5],
    })  # fmt: skip
    timed, calm = META | {"timed": ["t"]}, META | {"timed": []}
    runs = [(Path("a"), rows, timed | {"quick": True}), (Path("b"), rows, calm | {"quick": False})]
    assert list(_marks(runs)) == [
        "Trial runs: a, on the short grid; do not quote their numbers.",
        "The machine did other work while the study a ran; do not compare its times. Other "
        "times, errors and counted work are not affected.",
    ]
    both = [(run, rows, calm | {"quick": True}) for run, _, _ in runs]
    assert list(_marks(both)) == [
        "This is a trial run on the short grid; do not quote its numbers."
    ]
    assert list(_marks([(Path("b"), rows, calm | {"quick": False})])) == []
