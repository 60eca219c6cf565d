"""Any study is reported: every group, whatever its knob, in words, table and figure."""

import pandas as pd
import pytest
from test_cli import call

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


@pytest.mark.parametrize("rows", [0, 1])
def test_no_row_and_one_row(rows):
    table = solvers()[:rows]
    assert len(groups.findings(table)) == rows
    assert len([*groups.tables(table)]) == rows


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
    assert "1960" in entries
