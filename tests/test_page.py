"""The page says what the PDF says, needs nothing else, and works in a browser."""

import html
import json
import re
import shutil
import subprocess

import pytest
from tables import RANKS, rank_table
from test_report import META, write

from softlab.report import report
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
    assert all(x.startswith(("#", "data:image/svg+xml;base64,")) for x in addresses)
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


def test_every_point_knows_its_case(page):
    said = [json.loads(html.unescape(x)) for x in re.findall(r'data-said="([^"]*)"', page)]
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


def test_equal_tables_give_an_equal_page(made, page, tmp_path):
    for run in ("rank", "second"):
        for file in ("table.csv", "meta.json"):
            (tmp_path / run).mkdir(exist_ok=True)
            shutil.copy(made / run / file, tmp_path / run / file)
    report(tmp_path)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page


ASKED = """
<script>
{
  const answers = {};
  const table = document.querySelector("table.sortable");
  const heads = [...table.querySelectorAll("th")];
  const column = heads.findIndex((head) => head.textContent === "64");
  const read = () => [...table.tBodies[0].rows].map((row) => row.cells[column].firstChild.data);
  answers.before = read();
  heads[column].querySelector("button").click();
  answers.up = read();
  answers.groups = [...table.tBodies[0].rows].map((row) => row.cells[0].textContent);
  heads[column].querySelector("button").click();
  answers.down = read();
  answers.sort = heads[column].getAttribute("aria-sort");
  const tip = document.getElementById("tip");
  const mark = document.querySelectorAll(".marks circle")[3];
  answers.hidden = tip.hidden;
  mark.dispatchEvent(new MouseEvent("mouseenter"));
  answers.said = tip.innerText;
  answers.shown = !tip.hidden;
  const [at, frame] = [mark, mark.closest("figure")].map((x) => x.getBoundingClientRect());
  answers.inside = frame.left < at.left && at.right < frame.right && at.bottom < frame.bottom;
  mark.dispatchEvent(new MouseEvent("mouseleave"));
  answers.gone = tip.hidden;
  answers.formula = document.querySelector("math").getBoundingClientRect().width > 0;
  document.body.textContent = JSON.stringify(answers);
}
</script>
"""


def test_tables_sort_and_points_tell_their_case_in_a_browser(page, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no Chromium here")
    path = tmp_path / "page.html"
    path.write_text(page.replace("</body>", ASKED + "</body>"), encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
               f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    answers = json.loads(html.unescape(re.search(r"<body>(.*)</body>", done.stdout, re.S)[1]))
    numbers = [float(x) for x in answers["up"]]
    assert numbers == sorted(numbers)
    assert numbers != [float(x) for x in answers["before"]]
    assert [float(x) for x in answers["down"]] == numbers[::-1]
    assert answers["sort"] == "descending"
    assert all(answers["groups"]), "a row keeps the name of its group"
    assert (answers["hidden"], answers["shown"], answers["gone"]) == (True, True, True)
    assert "rank: 32" in answers["said"]
    assert "case" in answers["said"]
    assert answers["inside"]
    assert answers["formula"]


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
