"""Words from elsewhere are set in every part of a report, or stand as what they are."""

import io
import json
import time
import warnings
from dataclasses import asdict

import pandas as pd
import pytest
from matplotlib.figure import Figure
from tables import rank_table
from test_figures import RANK
from test_report import META, words, write

from softlab.figures import Lines
from softlab.report import report
from softlab.report.drawing import STYLE, draw, rc_context
from softlab.report.words import (
    LONGEST,
    SENTENCE,
    brief,
    cut,
    drawn,
    every,
    legible,
    safe,
    spelled,
)
from softlab.study import Study, run

SCRIPTS = {
    "誤差": r"\u8aa4\u5dee", "오차": r"\uc624\ucc28", "🙂": r"\U0001f642", "ไท": r"\u0e44\u0e17",
    "हि": r"\u0939\u093f", "a\x00b": r"a\x00b", "\udcff": r"\udcff", "\u202eab": r"\u202eab",
    "\x1b[0m": r"\x1b[0m", "\ufffe": r"\ufffe", "Größe": "Größe", "ошибка": "ошибка",
    "λ₂ ≤ ½": "λ₂ ≤ ½", "a\tb": "a\tb", "tầm": "tầm",
    "x\u0302": "x\u0302", "\u05d0\u20d2": r"\u05d0\u20d2", "誤\u0302": r"\u8aa4\u0302",
}  # fmt: skip


@pytest.mark.parametrize(("word", "said"), SCRIPTS.items(), ids=ascii)
def test_letters_without_a_glyph_are_their_code_points(word, said):
    assert spelled(word) == said


def test_only_what_no_document_holds_is_spelled_out_on_a_page():
    assert safe("誤差 🙂 a\x00b \udcff \u202e\n\t#$") == r"誤差 🙂 a\x00b \udcff \u202e" + "\n\t#$"
    assert drawn("a\n\tb  c") == "a b c"


def test_every_letter_that_is_not_spelled_out_has_a_glyph_in_document_and_figure():
    typst, pypdf = pytest.importorskip("typst"), pytest.importorskip("pypdf")
    letters = [chr(c) for c in range(0x21, 0x1F000) if spelled(chr(c)) == chr(c)]
    assert len(letters) > 4000
    text = (
        '#set text(font: "Libertinus Serif")\n#let d = json("d.json")\n#for x in d [#x #parbreak()]'
    )
    pdf = typst.compile(
        {"main.typ": text.encode(), "d.json": json.dumps(letters).encode()},
        ignore_system_fonts=True,
    )
    said = "".join(page.extract_text() for page in pypdf.PdfReader(io.BytesIO(pdf)).pages)
    assert "\x00" not in said  # where a font has no glyph
    assert sum(x in said for x in letters) > 0.95 * len(letters)
    assert "\x00" in pypdf_of(typst, pypdf, "誤")  # and so would it be seen
    with rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = Figure()
        figure.text(0, 0, drawn(" ".join(letters)), parse_math=False)
        figure.savefig(io.BytesIO(), format="svg")


def pypdf_of(typst, pypdf, letter):
    pdf = typst.compile({"main.typ": letter.encode()}, ignore_system_fonts=True)
    return pypdf.PdfReader(io.BytesIO(pdf)).pages[0].extract_text()


def test_long_words_are_cut_and_stay_apart():
    long = "a" * 20_000
    found = cut(["short", long, long[:-1] + "b", long[:-1], "x" * LONGEST])
    assert list(found.values()) == [
        "short",
        "a" * LONGEST + "… (20000 letters)",
        "a" * LONGEST + "… (20000 letters, 2)",
        "a" * LONGEST + "… (19999 letters)",
        "x" * LONGEST,
    ]
    assert brief("a" * SENTENCE) == "a" * SENTENCE
    assert brief("a" * (SENTENCE + 1)) == "a" * SENTENCE + "… (20001 letters)"


def test_a_table_for_chapters_has_its_words_cut_and_nothing_else_changed():
    table = pd.DataFrame({"word": ["a" * 500, "b", None], "mixed": ["c" * 301, 7, True], "y": 1.5})
    table.attrs["name"] = "own"
    found, count = legible(table)
    assert count == 2
    assert found["word"][0] == "a" * LONGEST + "… (500 letters)"
    assert (found["word"][1], found["word"].isna()[2]) == ("b", True)
    assert found["mixed"].tolist() == ["c" * LONGEST + "… (301 letters)", 7, True]
    assert found["y"].equals(table["y"])
    assert found.attrs == {"name": "own"}
    assert table["word"][0] == "a" * 500
    # A headline's number stands where its braces are, and no word of a table may hold such.
    assert "{}" not in legible(pd.DataFrame({"m": ["f{}"]}))[0]["m"][0]


def test_every_word_of_nested_data_is_changed_and_numbers_are_not():
    data = {"a": ["x", ("y", 1)], "b": {"c": None}}
    assert every(data, str.upper) == {"A": ["X", ["Y", 1]], "B": {"C": None}}


NASTY = (
    *("a\x00b", "caf\udce9.pt", "誤差", "🙂", "\u202eab", "#panic(1)", "$x", "$a_b$", "\\", "_own"),
    *(
        "<script>alert(1)</script>",
        "*b*",
        "{}",
        "",
        "None",
        '"',
        "a\rb",
        "@x",
        "=1+1",
        "]]>",
        "&amp;",
    ),
)


@pytest.mark.sampled(1 / 4)
@pytest.mark.parametrize("nasty", NASTY, ids=ascii)
def test_no_word_stops_a_report_or_a_figure(tmp_path, nasty):
    pytest.importorskip("typst")

    def measure(data, x, *, dtype, device):
        if x == 3:
            raise RuntimeError(nasty)
        return {"y": x * (1 + len(data)), nasty or "empty": nasty, "z": {1: nasty}.get(x, 0.5)}

    figure = Lines(
        x="x", y="y", group="data", panel="case", page="said", xlabel=f"x {nasty}", ylabel=nasty,
        guides={"most": nasty}, expected="y", expected_label=nasty,
    )  # fmt: skip
    table = pd.DataFrame(
        [
            {"data": data, "case": case, "x": x, "status": "ok", "said": said, "most": 9.0, "y": x}
            for data in (nasty, "plain") for case in (nasty, "plain") for x in (1, 2)
            for said in (nasty, "plain")
        ]
    )  # fmt: skip
    for page in (nasty, "plain"):
        one = draw(table, figure, page)
        assert len(one.marks) == 8
        with rc_context(STYLE):
            one.savefig(io.BytesIO(), format="png")
    simple = Lines(
        x="x", y="y", group="data", xlabel=nasty, ylabel="y", caption=f"{nasty} {{page}}"
    )
    study = Study(
        "own", nasty, {"data": [nasty, "plain"], "x": [1, 2, 3]}, measure, title=f"t {nasty}",
        figures=[simple, figure],
    )  # fmt: skip
    run(study, tmp_path)
    told = []
    path = report(tmp_path, tell=told.append)
    assert told == []
    text = words(path)
    assert "\x00" not in text
    assert "2 of 6 cases failed" in text
    page = path.with_suffix(".html").read_text(encoding="utf-8")
    assert "\x00" not in page
    assert "<script>alert" not in page
    assert (tmp_path / "own/findings.txt").read_text(encoding="utf-8").startswith("2 of 6 cases")
    assert len(list((tmp_path / "own/figures").glob("y-x*.svg"))) == 1


def test_a_missing_glyph_is_said_in_the_document_and_kept_on_the_page(tmp_path):
    pytest.importorskip("typst")
    path = report(write(tmp_path, rank_table(seeds=1), title="誤差", figures=[]))
    assert r"\u8aa4\u5dee" in words(path)
    assert "lack stand as their code points" in words(path)
    assert "誤差" in path.with_suffix(".html").read_text(encoding="utf-8")
    path = report(write(tmp_path / "plain", rank_table(seeds=1), title="Größe", figures=[]))
    assert "code points" not in words(path)


def test_a_word_of_twenty_thousand_letters_is_cut_in_what_is_set_and_whole_in_the_table(tmp_path):
    pytest.importorskip("typst")
    table = rank_table(seeds=1)
    table["source"] = [f"{source}{'x' * 20_000}" for source in table["source"]]
    table["input"] = table["source"]
    table.loc[table.index[:2], "status"] = "failed"
    table.loc[table.index[:2], "error"] = ["e" * 1_000_000, "f" * 1_000_000]
    start = time.perf_counter()
    path = report(write(tmp_path, table))
    assert time.perf_counter() - start < 60
    page = path.with_suffix(".html").read_text(encoding="utf-8")
    assert len(page) < 3e6
    assert "x" * 2 * LONGEST not in page
    assert "e" * 2 * LONGEST not in page
    assert f"words of more than {LONGEST} letters are cut; table.csv has them." in page
    assert path.stat().st_size < 3e6
    assert "minilm.layer0.head0" in page
    assert len(list((tmp_path / "rank/figures").glob("*.svg"))) == 3


def test_a_label_that_is_no_mathematics_stands_as_written_and_is_named(tmp_path):
    pytest.importorskip("typst")
    wrong = asdict(RANK) | {
        "xlabel": r"rank $\nonsense{$",
        "page": "",
        "where": {"target": "Gaussian"},
    }
    path = report(write(tmp_path, rank_table(seeds=1), figures=[wrong, asdict(RANK)]))
    said = words(path)
    assert "is no mathematics that can be set, and stands as written" in said
    assert len(list((tmp_path / "rank/figures").glob("*.svg"))) == 4
    good = draw(rank_table(seeds=1), Lines(**asdict(RANK) | {"xlabel": r"$\kappa$"}), "Gaussian")
    assert not any("mathematics" in x for x in good.left_out)
    assert META["title"] in said
