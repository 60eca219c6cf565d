"""The page says what the PDF says, needs nothing else, and works in a browser."""

import base64
import gzip
import html
import json
import re
import shutil
import subprocess

import pytest
from tables import RANKS, rank_table
from test_report import META, write

from softlab.report import QUESTION, report
from softlab.report import html as pages
from softlab.report.headlines import headlines
from softlab.report.numbers import number


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    pytest.importorskip("typst")
    folder = write(tmp_path_factory.mktemp("page"), rank_table(), title="The <title> & more")
    write(folder, rank_table(seeds=2), "second", title="Second", quick=True)
    report(folder)
    return folder


@pytest.fixture(scope="module")
def page(made):
    return (made / "report.html").read_text(encoding="utf-8")


def test_the_page_asks_nothing_of_the_network(page):
    addresses = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]{1,40})""", page)
    assert addresses
    assert all(x.startswith(("#", "URL.createObjectURL(")) for x in addresses)
    assert not re.search(r"https?://(?!www\.w3\.org/)", page)
    assert "@import" not in page


def test_the_page_holds_what_the_tables_hold(page):
    for expected in (
        META["question"], META["commit"], META["device_name"], "torch 2.13.0", "Glossary",
        "What was asked", "How it was measured", "Environment", "Eckart and Young", "Contents",
        "This is a trial run on the short grid",
        "1 of 576 cases failed and are in no number or figure.",
        "Skill", "<math",
    ):  # fmt: skip
        assert expected in page, expected
    assert "The &lt;title&gt; &amp; more" in page
    assert "The <title>" not in page
    table = rank_table()
    for rank in RANKS:
        mine = table[(table.method == "Nystromformer") & (table["op.rank"] == rank)]
        mine = mine[mine.source == "vit.layer8.head3"]
        assert number(mine.output_error.median()) in page


def figures(page):
    """What is packed in the page: a picture and its points, a figure each."""
    packed = re.findall(r'<script type="application/gzip">([^<]*)</script>', page)
    return [json.loads(gzip.decompress(base64.b64decode(x))) for x in packed]


def test_every_point_knows_its_case(page):
    said = [mark["said"] for figure in figures(page) for mark in figure["marks"]]
    rows = rank_table()
    drawn = rows[(rows.status == "ok") & rows.method.isin(["Nystromformer", "Soft"])]
    points = len(drawn.groupby(["target", "source", "method", "op.rank"]))
    assert len(said) == 2 * points
    mine = rows[(rows.target == "Gaussian") & (rows.source == "vit.layer8.head3")]
    mine = mine[(mine.method == "Soft") & (mine["op.rank"] == 64)].output_error
    q1, median, q3 = mine.quantile([0.25, 0.5, 0.75])
    assert [
        "Soft · vit.layer8.head3", "rank: 64",
        f"relative output error: {median:.4g} ({q1:.3g} to {q3:.3g})", "3 cases",
        "input = Recorded(name='vit.layer8.head3')",
    ] in said  # fmt: skip
    assert all(figure["svg"].startswith("<?xml") for figure in figures(page))


def test_figures_and_tables_are_numbered_and_the_findings_refer_to_them(page):
    for word in ("Figure", "Table"):
        numbers = [int(x) for x in re.findall(rf"<b>{word} (\d+)\.</b>", page)]
        assert numbers == list(range(1, len(numbers) + 1))
    assert re.search(r"Figures 1 to \d+ and Tables 1 to \d+ show it\.", page)
    for target in re.findall(r'href="#([^"]+)"', page):
        assert f'id="{target}"' in page, target


def test_a_study_answers_before_it_tells_how(page):
    start = page.index('id="study-rank"')
    answer = page.index("<b>Answer.</b> Nystromformer of rank 64 misses softmax attention", start)
    method = page.index("How it was measured")
    assert start < answer < page.index('id="figure-rank-1"') < method
    for later in ("figure-rank-2", "table-rank-1"):
        assert page.index(f'id="{later}"') > method
    assert page.index(QUESTION) < start
    assert '<p class="soft">Figure' not in page  # where they are is said beside the answer


def luminance(colour):
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in channels)
    return sum(w * x for w, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_words_stand_out_from_the_page(page, theme):
    start = page.index(":root {" if theme == "light" else ':root[data-theme="dark"]')
    block = page[start : page.index("}", start)]
    colours = dict(re.findall(r"--(\w+): (#\w+);", block))
    colours = {
        name: x if len(x) == 7 else "#" + "".join(2 * c for c in x[1:])
        for name, x in colours.items()
    }
    for word in ("ink", "soft", "link"):
        for ground in ("paper", "hit") if word == "ink" else ("paper",):
            pair = sorted((luminance(colours[word]), luminance(colours[ground])))
            assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, (word, ground)


def test_equal_tables_give_an_equal_page(made, page, tmp_path):
    for run in ("rank", "second"):
        for file in ("table.csv", "meta.json"):
            (tmp_path / run).mkdir(exist_ok=True)
            shutil.copy(made / run / file, tmp_path / run / file)
    report(tmp_path)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page


ASKED = """
<script>
addEventListener("load", async () => {
  const answers = {};
  const press = (at, key) => at.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  answers.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  const table = document.querySelector("table.sortable");
  const heads = [...table.tHead.rows[0].cells];
  const column = heads.findIndex((head) => head.textContent === "64");
  const read = () => [...table.tBodies[0].rows].map((row) => row.cells[column].firstChild.data);
  answers.before = read();
  heads[column].querySelector("button").click();
  answers.up = read();
  answers.groups = [...table.tBodies[0].rows].map((row) => row.cells[0].textContent);
  heads[column].querySelector("button").click();
  answers.down = read();
  answers.sort = heads[column].getAttribute("aria-sort");
  answers.csv = csv(table).split("\\n")[0];
  answers.tex = latex(table);
  const figure = document.querySelector("figure.plot");
  await drawn(figure);
  const tip = document.getElementById("tip");
  const marks = [...figure.querySelectorAll("circle")];
  answers.hidden = tip.hidden;
  marks[3].dispatchEvent(new MouseEvent("mouseover", { bubbles: true }));
  answers.said = tip.innerText;
  answers.shown = !tip.hidden;
  marks[3].dispatchEvent(new MouseEvent("mouseout", { bubbles: true }));
  answers.gone = tip.hidden;
  marks[0].focus();
  press(marks[0], "ArrowRight");
  answers.next = document.activeElement === marks[1] && tip.innerText.includes("rank");
  press(marks[1], "ArrowLeft");
  press(marks[0], "ArrowLeft");
  answers.round = document.activeElement === marks[marks.length - 1];
  const method = document.getElementById("method");
  method.value = "Soft";
  method.dispatchEvent(new Event("change"));
  const chosen = [...figure.querySelectorAll("circle.chosen")];
  answers.chosen = chosen.every((x) => x.mark.group === "Soft");
  answers.followed = chosen.length + document.querySelectorAll("figure.off").length;
  answers.hits = document.querySelectorAll("tr.hit").length;
  method.value = "";
  method.dispatchEvent(new Event("change"));
  answers.none = document.querySelectorAll(".chosen, .off, .hit").length;
  const search = document.getElementById("search");
  search.value = "singular";
  search.dispatchEvent(new Event("input"));
  answers.left = [...document.querySelectorAll("main > section")].filter((x) => !x.hidden).length;
  answers.places = document.getElementById("count").textContent;
  search.value = "";
  search.dispatchEvent(new Event("input"));
  answers.back = document.querySelectorAll("main [hidden]").length;
  const before = document.documentElement.dataset.theme;
  document.getElementById("theme").click();
  answers.themed = document.documentElement.dataset.theme !== before;
  answers.formula = document.querySelector("math").getBoundingClientRect().width > 0;
  document.title = "asked";
  document.body.textContent = JSON.stringify(answers);
});
</script>
"""


def browsed(page, tmp_path, width=1400):
    """The answers of a page of that width in a browser; an error there is a failure."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no Chromium here")
    path = tmp_path / "page.html"
    path.write_text(page.replace("</body>", ASKED + "</body>"), encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
               f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900",
               "--virtual-time-budget=20000", "--enable-logging=stderr", "--dump-dom",
               path.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr, done.stderr
    return json.loads(html.unescape(re.search(r"<body[^>]*>(.*)</body>", done.stdout, re.S)[1]))


def test_the_page_works_in_a_browser(page, tmp_path):
    answers = browsed(page, tmp_path)
    numbers = [float(x) for x in answers["up"]]
    assert numbers == sorted(numbers)
    assert numbers != [float(x) for x in answers["before"]]
    assert [float(x) for x in answers["down"]] == numbers[::-1]
    assert answers["sort"] == "descending"
    assert all(answers["groups"]), "a row keeps the name of its group"
    assert (answers["hidden"], answers["shown"], answers["gone"]) == (True, True, True)
    assert "rank: 32" in answers["said"]
    assert "case" in answers["said"]
    assert answers["formula"]
    assert answers["csv"].startswith('"input","uniform","method"')
    assert "\\toprule" in answers["tex"]
    assert answers["next"]
    assert answers["round"]
    assert answers["chosen"]
    assert answers["followed"] > 0
    assert answers["hits"] > 0
    assert answers["none"] == 0
    assert 0 < answers["left"] < 6
    assert re.fullmatch(r"[1-9]\d* places", answers["places"])
    assert answers["back"] == 0
    assert answers["themed"]
    assert answers["wide"] <= 0


def test_what_a_point_says():
    mark = {"group": "A", "panel": "p", "x": 1234.56, "y": 0.123456, "q1": 0.1, "q3": 0.23456,
            "cases": 2, "case": {"n": "64"}}  # fmt: skip
    axes = {"x": r"rank $\kappa$", "y": "error"}
    assert pages._said(mark, axes) == [
        "A · p", "rank kappa: 1235", "error: 0.1235 (0.1 to 0.235)", "2 cases", "n = 64"
    ]  # fmt: skip
    assert pages._said(mark | {"panel": "", "q3": 0.1, "cases": 1}, axes)[::2] == [
        "A", "error: 0.1235", "n = 64"
    ]  # fmt: skip
    assert pages._said(mark | {"cases": 1}, axes)[3] == "1 case"


def test_a_point_lies_in_percent_and_a_headline_holds_its_number_once():
    mark = {"left": 0.1234567, "top": 0.5, "group": "A", "panel": "", "x": 1.0, "y": 2.0, "q1": 1.0,
            "q3": 3.0, "cases": 5, "case": {}}  # fmt: skip
    item = {
        "file": "f",
        "id": "i",
        "number": 1,
        "caption": "c",
        "x": "n",
        "y": "e",
        "marks": [mark],
    }
    (found,) = figures("".join(pages._figure(item, {"f": b"<svg/>"})))
    assert found["svg"] == "<svg/>"
    assert [(x["left"], x["top"], x["group"]) for x in found["marks"]] == [(12.346, 50.0, "A")]
    line = {
        "text": "{} or {}",
        "value": "<1>",
        "study": "s",
        "rows": "t",
        "interval": "",
        "mark": "m",
    }
    assert pages._headline(line) == (
        '<p class="headline"><b>&lt;1&gt;</b> or {} <span class="soft">m · <a href="#study-s">s</a>'
        ' · <a href="#t">rows</a></span></p>'
    )


def test_rows_of_a_table_keep_their_group_and_words_are_left():
    item = {"id": "t", "number": 3, "caption": "c" * 90, "header": ["a", "b"], "left": 1,
            "rows": [["G", "1"], ["", ["2", "3"]], [["H", "h"], "<"], ["", "4"]]}  # fmt: skip
    said = "\n".join(pages._table(item))
    assert re.findall(r'<tr data-group="(\w*)">', said) == ["G", "G", "G", "G"]
    assert re.findall(r"<t[hd](?: scope=\"col\")?( class=\"left\")?>", said) == [
        ' class="left"', ""
    ] * 5  # fmt: skip
    assert "<td>2<small>3</small></td>" in said
    assert "<td>&lt;</td>" in said
    assert f'aria-label="{"c" * 80}"' in said
    shared = {"captions": [item, item], "shared": [["P", "Linux"]]}
    said = "".join(pages._environment(shared | {"header": ["s", "c"], "rows": [["a", "1"]]}))
    assert re.findall(r'class="left"><?[a-z]*(?: type="button")?>?(\w+)', said) == [
        "P", "Linux", "s", "a"
    ]  # fmt: skip
    assert pages._choice("method", ["A"]) == ""
    assert pages._choice("input", ["A", "B"]).count("<option") == 3


def test_headlines_are_the_tables_numbers_or_what_the_chapter_says_first():
    table = rank_table()
    found = headlines(table, META, [])
    at = table[(table.method == "Nystromformer") & (table["op.rank"] == 64) & table.real]
    assert found[0]["text"].startswith("Nystromformer of rank 64 misses softmax attention")
    assert found[0]["value"] == number(at.output_error.median())
    doubled = headlines(table.assign(output_error=2 * table.output_error), META, [])
    assert doubled[0]["value"] == number(2 * at.output_error.median())
    bare = table[["input", "status"]]
    (said,) = headlines(bare, META, ["It is {so}. And more."])
    assert said == {"text": "It is (so).", "value": "", "interval": ""}
    assert headlines(bare, META, []) == []
