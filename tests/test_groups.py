"""Any study is reported: every group, whatever its knob, in words, table and figure."""

import numpy as np
import pandas as pd
import pytest
from command_line import call

from softlab.report import groups, references

OWN = """
import torch

from softlab import measures
from softlab.figures import Lines
from softlab.inputs import Normal
from softlab.operators import Nystromformer, Performer, Softmax
from softlab.study import Study


def mine(q, k, v, key_mask=None):
    return v.mean(0).expand(len(q), -1)


mine.traits, mine.target = Softmax().traits, Softmax()
OPS = {"mine": mine}


def measure(input, seed, method, knob, *, dtype, device):
    q, k, v = input(seed, dtype=dtype)
    made = {"Nystromformer": lambda: Nystromformer(rank=knob), "Performer": lambda: Performer(knob)}
    op = OPS[method] if method in OPS else made[method]()
    row = {"target": "softmax", "source": "Normal", "n": len(q)}
    own = {"op.rank": knob} if method == "Nystromformer" else {"op.features": knob}
    row |= own if method not in OPS else {}
    return row | measures.output_error(op, q, k, v, measures.Reference(Softmax(), q, k, v))


STUDY = Study(
    "own", "Which?",
    {"input": [Normal(24, 8)], "seed": [0, 1], "method": ["Nystromformer", "Performer", "mine"],
     "knob": [4, 8]},
    measure,
    figures=(Lines(x="op.rank", y="output_error", group="method", xlabel="rank", ylabel="error"),),
)
"""


def test_three_methods_one_a_plain_callable_are_in_words_table_and_figure(tmp_path):
    pytest.importorskip("typst")
    (tmp_path / "own.py").write_text(OWN)
    said = call("run", tmp_path / "own.py", "--out", tmp_path / "out")
    assert said.exit_code == 0, said.output
    assert call("report", tmp_path / "out").exit_code == 0
    words = (tmp_path / "out/own/findings.txt").read_text()
    page = (tmp_path / "out/report.html").read_text()
    for method in ("Nystromformer", "Performer", "mine"):
        assert method in words
        assert f">{method}" in page[page.index("<h3>Tables</h3>") :]
    assert "Flat: Performer, mine, without a rank." in page
    assert "features 4" in page


def solvers(rows=40):
    return pd.DataFrame(
        {
            "solver": [f"S{i % 4}" for i in range(rows)],
            "seed": [i // 4 for i in range(rows)],
            "status": ["failed" if i % 4 == 3 else "ok" for i in range(rows)],
            "residual": [None if i % 4 == 3 else 10.0 ** -(i % 4) for i in range(rows)],
            "steps": [None if i % 4 == 3 else i % 4 for i in range(rows)],
        }
    )


def test_a_study_of_anything_has_every_group_the_best_marked_and_the_lost_named():
    (said,) = groups.findings(solvers())
    assert "4 groups, told apart by solver" in said
    assert "The least median residual is 0.0100, of S2." in said
    assert "The median steps goes from 0 (S0) to 2.00 (S2)." in said
    assert "Of S3 no case finished." in said
    (table,) = groups.tables(solvers())
    assert [row[0] for row in table["rows"]] == ["S0", "S1", "S2", "S3"]
    assert [row[1] for row in table["rows"]] == ["1.00", "0.100", "0.0100 (best)", "failed"]
    assert [row[-1] for row in table["rows"]] == ["10"] * 4


def test_what_a_table_has_no_room_for_is_counted():
    table = solvers(400).assign(solver=[f"S{i}" for i in range(400)])
    for i in range(8):
        table[f"m{i}"] = 1.0
    (made,) = groups.tables(table)
    assert len(made["rows"]) == groups.ROWS
    assert f"{400 - groups.ROWS} more groups are in table.csv." in made["caption"]
    assert "Not shown: m4, m5, m6, m7." in made["caption"]
    (made,) = groups.tables(table.drop(columns=[f"m{i}" for i in range(4, 8)])[: groups.ROWS])
    assert made["caption"].endswith("below them the quartiles.")
    for lost, said in ((6, "S5 and S6 no case"), (8, "S5 and S6 and 2 more no case")):
        names = [f"S{i}" for i in range(lost + 1)]
        few = pd.DataFrame({"solver": names, "status": ["ok"] + ["failed"] * lost, "y": 1.0})
        assert said in groups.findings(few)[0]


@pytest.mark.parametrize("rows", [0, 1])
def test_no_row_and_one_row(rows):
    bare = solvers()[["solver", "status"]]  # nothing was measured
    assert groups.findings(bare) == list(groups.tables(bare)) == []
    table = solvers()[:rows]
    assert len(groups.findings(table)) == rows
    assert len([*groups.tables(table)]) == rows
    assert "(best)" not in str([*groups.tables(table)])
    assert groups.findings(table)[:1] == rows * [
        "The cases fall into 1 group, told apart by solver. The median residual is 1.00 in every "
        "group. The median steps is 0 in every group."
    ]


UNEVEN = (1.0, 2.0, 3.0, 5.0, 90.0)
"""Of five seeds: mean, median, extremes and count differ."""
GROUPS = [(n, method) for n in (64, 16) for method in ("Zeta", "Alpha", "Mid")]


def uneven():
    """One group has no finished case, one a lost one, and one no skill."""
    rows = []
    for i, (n, method) in enumerate(GROUPS):
        for seed, x in enumerate(UNEVEN):
            lost = i == 5 or (i, seed) == (0, 4)
            made = {"loss": x * (i % 3 + 1) + n / 100, "skill": x / (i + 2), "size": x * n}
            made |= {"skill": None} if i == 4 else {}
            made = dict.fromkeys(made) if lost else made
            rows.append({
                "n": n, "method": method, "kind": "one", "seed": seed,
                "status": "failed" if lost else "ok", "error": "E: no" if lost else None,
                "op.rank": n, "case_seconds": 1.0, **made, "steps": 7.0, "flag": True, "none": None,
                "draw": 1.0 * seed,
            })  # fmt: skip
    return pd.DataFrame(rows)


def test_a_group_has_the_medians_of_its_finished_cases_and_their_quartiles():
    """Losses: 2.5, 6 and 9 with 0.64, 3 and 6 with 0.16; skills: 1.25, 1, 0.75 and 0.6."""
    assert groups.findings(uneven()) == [
        "The cases fall into 6 groups, told apart by method and n. The least median loss is 3.14, "
        "of Zeta, 64. The greatest median skill is 1.25, of Zeta, 64. The median size goes from "
        "48.0 (Zeta, 16) to 192 (Alpha, 64). The median steps is 7.00 in every group. Of Mid, 16 "
        "no case finished."
    ]
    (made,) = groups.tables(uneven())
    assert made["header"] == ["method", "n", "loss", "skill", "size", "steps", "cases"]
    assert made["left"] == 2
    words = {"loss": [], "skill": []}
    for i in range(5):
        values = np.array(UNEVEN[:4] if i == 0 else UNEVEN)
        for name, of in (("loss", values * (i % 3 + 1) + GROUPS[i][0] / 100),
                         ("skill", values / (i + 2))):  # fmt: skip
            q1, middle, q3 = np.quantile(of, [0.25, 0.5, 0.75])
            ends = [f"{x:#.2g}".rstrip(".") for x in (q1, q3)]
            best = " (best)" if i == 0 else ""
            words[name].append([f"{middle:#.3g}{best}", "\u2013".join(ends)])
    words["skill"][4] = ""
    for column, name in enumerate(words, 2):
        assert [row[column] for row in made["rows"]] == [*words[name], "failed"]
    assert [row[5:] for row in made["rows"]] == [["7.00", "5"]] * 5 + [["failed", "5"]]
    assert [row[:2] for row in made["rows"]] == [[method, str(n)] for n, method in GROUPS]


def test_what_tells_groups_apart():
    """Axes that vary, words before numbers, three at most; without them words that repeat."""
    table = uneven()
    assert groups.axes_of(table) == ["n", "method", "kind", "seed"]
    assert groups.keys_of(table.assign(kind=table["n"] + table["seed"])) == ["method", "n", "kind"]
    more = table.assign(kind=table["n"].astype(str))
    more.insert(0, "z", table["seed"])
    assert groups.keys_of(more) == ["method", "kind", "z"]
    table.attrs["axes"] = ("method", "gone")
    assert groups.keys_of(table) == ["method"]
    for count, keys in ((2, ["name"]), (60, ["name"]), (61, ["x"])):
        names = [f"N{i % count}" for i in range(122)]
        bare = pd.DataFrame({"x": 1, "status": "ok", "name": names, "p.q": names, "other": "o"})
        assert groups.keys_of(bare) == keys


@pytest.mark.parametrize(
    ("name", "end"),
    [("Output_Error", "least"), ("skill", "greatest"), ("error_of_skill", "greatest"),
     ("seconds", "least"), ("steps", "")],
)  # fmt: skip
def test_the_name_of_a_measure_tells_its_good_end(name, end):
    assert groups.good_end(name) == end


def test_papers_are_cited_where_their_methods_are_named():
    assert references.of_methods()["Soft"] == ("2110.11945", "2207.03341")
    assert references.paper("2999.00001").words == "arXiv. 2999.00001. arXiv:2999.00001, 2029."
    (one,) = references.cited(["Nystromformer errs by 0.4."])
    assert one["of"] == "Nystromformer"
    assert "2102.03902" in one["text"]
    assert references.cited(["Softly spoken."]) == []
    found = references.cited(["Soft, as of Mirsky."])
    entries = references.bibtex(found)
    assert entries.count("@misc{") == len(found) == 3
    assert "eprint = {2110.11945}" in entries
    assert "author = {Lu and others}" in entries
    assert "howpublished = {Quarterly Journal of Mathematics 11}" in entries
    assert sorted(one.year for one in references.CITED.values()) == [1936, 1960, 1973, 2002, 2007]
