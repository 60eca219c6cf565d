"""A board's rows are the numbers of its entries, in order, as words of their own."""

import json
import re
from html import unescape

import pytest

from softlab.report.board import HEADS, board, write

ERRORS = {"b": (0.3, 0.5, 0.6), "c": (0.7, 0.8, 2.0), "a": (0.1, 0.2, 0.9)}
"""By head, of three samples: mean, median and maximum differ."""
LENGTHS = {"a": 64, "b": 128, "c": 128}
TIME = {"time": 0.5, "time_q1": 0.45, "time_q3": 0.55, "case_cpu_share": 1.0}


def entry(method="mine", factor=1.0, **changes):
    heads = [
        {"head": head, "n": LENGTHS[head], "samples": [
            {"operator": f"{method}({head}, {i})", "output_error": x * factor, "skill": 1 - x,
             "share": 0.05 * x * LENGTHS[head]} for i, x in enumerate(errors)]}
        for head, errors in ERRORS.items()
    ]  # fmt: skip
    known = {
        "method": method, "target": "softmax", "budget": 0.25, "heads": heads, "time": TIME,
        "memory": 0.75, "laws": {"asked": True, "broken": {}}, "quick": False,
        "versions": {"torch": "2.9", "python": "3.12"}, "device": "cpu", "code": "0123456789abcdef",
        "finished": "2026-01-01", "digest": "fedcba9876543210",
    }  # fmt: skip
    return known | changes


def rows(page):
    """The words of each row's cells, that of the method without what opens below it."""
    body = page[page.index("<tbody>") : page.rindex("</tbody>")]
    for row in body.split('<tr><td class="left"><details>')[1:]:
        method = re.search("<summary>(.*?)</summary>", row)[1]
        cells = re.findall("<td[^>]*>(.*?)</td>", row[row.index("</details>") :])
        yield [unescape(x) for x in (method, *cells)]


def test_a_row_has_the_medians_over_heads_and_costs_at_the_longest():
    """Medians of heads 0.2, 0.5, 0.8; of the work at 128 tokens 1.92 to 12.8: 4.2 in the middle."""
    (row,) = rows(board([entry()]))
    assert dict(zip(HEADS, row, strict=True)) == {
        "method": "mine", "target": "softmax", "budget": "1/4", "error": "0.500",
        "interval": "0.200 to 0.800", "skill": "0.50", "work": "4.2", "time": "0.50",
        "memory": "0.75", "laws broken": "none", "heads": "3",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "name", "said"),
    [
        ({"budget": None}, "budget", ""), ({"budget": 0.3}, "budget", "0.3"),
        ({"budget": 1 / 3}, "budget", "1/3"), ({"budget": 1.0}, "budget", "1"),
        ({"time": None}, "time", ""), ({"time": TIME | {"time_q3": 0.575}}, "time", "0.50"),
        ({"time": TIME | {"time_q3": 0.58}}, "time", "noisy"),
        ({"time": TIME | {"case_cpu_share": 0.79}}, "time", "0.50 (busy)"),
        ({"time": TIME | {"case_cpu_share": 0.8}}, "time", "0.50"),
        ({"memory": None}, "memory", ""), ({"quick": True}, "method", "mine (trial run)"),
        ({"laws": {"asked": False, "broken": {}}}, "laws broken", "held by softlab's tests"),
        ({"laws": {"asked": True, "broken": {"mask": "by 1", "causal": "by 2"}}}, "laws broken",
         "mask, causal"),
        ({"heads": entry()["heads"][:1]}, "interval", ""),
    ],
)  # fmt: skip
def test_what_is_absent_or_unsure_is_said(changes, name, said):
    (row,) = rows(board([entry(**changes)]))
    assert row[HEADS.index(name)] == said


def test_what_opens_below_a_row():
    page = unescape(board([entry(laws={"asked": True, "broken": {"mask": "by 1", "seeds": "2"}})]))
    heads = (("b", "0.500", "0.50"), ("c", "0.800", "0.20"), ("a", "0.200", "0.80"))
    assert "\n".join(
        f"<tr><td>{head}</td><td>{error}</td><td>{skill}</td><td>mine({head}, 0)</td></tr>"
        for head, error, skill in heads
    ) in page  # fmt: skip
    assert (
        "cpu; torch 2.9, python 3.12; code 0123456789ab; measured 2026-01-01; digest fedcba987654<"
    ) in page
    assert ">mask: by 1; seeds: 2<" in page
    plain = board([entry(code="")])
    assert "code in no file;" in plain
    assert plain.count('<p class="soft">') == page.count('<p class="soft">') - 1


def test_words_of_more_than_three_hundred_letters_are_cut():
    law, why, place = "l" * 301, "w" * (2001 - 303), "d" * 1000
    (row,) = rows(
        page := board([entry("m" * 301, target="t" * 301, device=place,
                             laws={"asked": True, "broken": {law: why}})])
    )  # fmt: skip
    for letter, word in zip("mtl", (row[0], row[1], row[9]), strict=True):
        assert word == letter * 300 + "\u2026 (301 letters)"
    assert "w\u2026 (2001 letters)" in page
    assert f"{place}\u2026 (" in page
    assert "m" * 300 + "\u2026 (" in page[page.index("<th>operator") :]


def test_rows_are_sorted_by_target_budget_and_error_and_what_failed_is_last():
    failed = entry("lost")
    for head in failed["heads"]:
        for sample in head["samples"]:
            sample |= {"output_error": "inf", "skill": "-inf", "share": None}
    made = [
        entry("own", budget=None), failed, entry("late", 2.0), entry("more", budget=0.5),
        entry("other", target="Gaussian"), entry("early", 0.5),
    ]  # fmt: skip
    page = board(made, ["x.json is <refused>"])
    assert [row[0] for row in rows(page)] == ["early", "late", "lost", "more", "own", "other"]
    lost = list(rows(page))[2]
    assert (lost[3], lost[5], lost[6]) == ("∞", "-inf", "not counted")
    assert '<p class="soft">6 results of softlab compare</p>' in page
    assert "<b>Refused:</b> x.json is &lt;refused&gt;</p>" in page


def test_beside_the_page_stand_its_entries(tmp_path):
    for _ in range(2):
        write(tmp_path / "site/board.html", [entry()], [])
    assert (tmp_path / "site/board.html").read_text() == board([entry()])
    assert json.loads((tmp_path / "site/board.json").read_text()) == [entry()]
