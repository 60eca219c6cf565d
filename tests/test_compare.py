"""Operators side by side: what is measured, what is refused, what a result file must say."""

import json
import math

import pandas as pd
import pytest
import torch
from command_line import call

from softlab import compare as package
from softlab.compare import Verdicts, compare, results
from softlab.compare.heads import heads
from softlab.compare.subjects import subject, work
from softlab.core import Dims
from softlab.features import Orthogonal
from softlab.inputs import Recorded
from softlab.laws.runner import Outcome, Verdict
from softlab.operators import Nystromformer, Performer, Soft, Softmax
from softlab.report.compare import chapter

SMALL = "Normal(24, 8)"
HEAD = "vit.layer8.head3"


def mean(q, k, v):
    return v.mean(-2, keepdim=True).expand(*q.shape[:-1], v.shape[-1]).clone()


def nothing(q, k, v):
    return torch.zeros(*q.shape[:-1], v.shape[-1], dtype=v.dtype)


def raises(q, k, v):
    if len(k) > 4 and q.ndim == 2 and q.dtype == torch.float32:
        msg = "no such length"
        raise RuntimeError(msg)
    return mean(q, k, v)


class Layer(torch.nn.Module):
    def forward(self, q, k, v):
        return torch.softmax(q @ k.mT / 8**0.5, -1) @ v


@pytest.fixture(scope="module")
def found():
    """Four kinds of subject on drawn heads of two lengths."""
    return compare(
        mean, Layer(), Nystromformer(rank=4), "Performer", inputs=[SMALL, "Sink(40, 8)"],
        budget=1 / 2, quick=True, laws="none",
    )  # fmt: skip


def of(found, method, **where):
    return [
        row
        for row in found.rows
        if row["method"] == method and row["asked"] and all(row[x] == y for x, y in where.items())
    ]


def test_a_callable_a_module_an_operator_and_a_class_stand_in_one_table(found):
    named = {"mean", "Layer", "Nystromformer(rank=4)", "Performer"}
    rows = {row["method"]: row for row in found.summary()}
    assert named | {"uniform average", "heaviest keys"} <= set(rows)
    words = " ".join([chapter.scope(found.table), *chapter.findings(found.table)])
    (cells, each) = chapter.tables(found.table)
    figure = chapter.drawn(found.table)
    for name in named:
        assert rows[name]["error"].units == 2
        assert name in words
        assert any(row[0] == name for row in cells["rows"])
        assert any(row[2].startswith(name) for row in each["rows"])
        assert (figure["method"] == name).any()
        assert name in str(found)
    assert "<table>" in found._repr_html_()


@pytest.mark.parametrize("source", [SMALL, "Sink(40, 8)"])
def test_the_error_is_that_of_the_definition(found, source):
    (head,) = heads([source])
    q, k, v = head.draw(1)
    exact = torch.softmax(q.double() @ k.double().mT / 8**0.5, -1) @ v.double()
    (row,) = of(found, "Nystromformer(rank=4)", source=source, sample=1)
    miss = (Nystromformer(rank=4)(q, k, v).double() - exact).norm() / exact.norm()
    assert row["output_error"] == pytest.approx(float(miss), rel=1e-9)
    (row,) = of(found, "mean", source=source, sample=1)
    assert row["skill"] == pytest.approx(0, abs=1e-5) or row["uniform_error"] > 1
    (row,) = of(found, "Layer", source=source, sample=1)
    assert row["output_error"] < 1e-5


def test_a_function_typed_at_a_prompt_is_in_no_file():
    space = {}
    exec(compile("def typed(q, k, v):\n    return v", "<stdin>", "exec"), space)
    assert results.code_of(subject(space["typed"])) == ""
    assert len(results.code_of(subject(mean))) == 64


def test_zeros_have_error_one():
    found = compare(nothing, inputs=SMALL, quick=True, laws="none")
    assert [row["output_error"] for row in of(found, "nothing")] == [1.0, 1.0]


def test_a_class_gets_the_greatest_setting_that_the_budget_affords(found):
    for row in of(found, "Performer"):
        dims = Dims(1, row["n"], row["l"], 8, 8)
        op = eval(row["op"], {"Performer": Performer, "Orthogonal": Orthogonal})
        most = work(Softmax(), dims) / 2
        assert work(op, dims) <= most < work(Performer(op.features + 1), dims)
        assert op.weights.seed == row["sample"]


def test_what_the_budget_affords_nothing_of_is_named():
    found = compare("Performer", mean, inputs=SMALL, budget=1e-6, quick=True, laws="none")
    assert not any(row["fits"] for row in of(found, "Performer"))
    assert "No setting of Performer fits into the budget on 2 samples." in " ".join(
        chapter.findings(found.table)
    )


def test_the_work_of_a_callable_is_what_torch_multiplies():
    dims = Dims(1, 24, 40, 8, 16)
    fused = subject(torch.nn.functional.scaled_dot_product_attention)
    assert work(fused.at(1, 0, dims), dims) == Softmax().cost(dims).work
    assert work(subject(mean).at(1, 0, dims), dims) is None


def test_methods_of_several_targets_stand_apart():
    found = compare(Soft(rank=8), mean, inputs=SMALL, quick=True, laws="none")
    assert [(x["target"], x["kind"]) for x in found.summary()][:2] == [
        ("Gaussian", "method"),
        ("Gaussian", "control"),
    ]
    (row,) = of(found, "Soft(rank=8)", sample=0)
    q, _, v = heads([SMALL])[0].draw(0)
    exact = Soft(rank=8).target(q.double(), q.double(), v.double())
    miss = (Soft(rank=8)(q, q, v) - exact).norm() / exact.norm()
    assert row["output_error"] == pytest.approx(float(miss), rel=1e-5)  # keys tied to queries


def test_a_method_that_raises_is_a_row_with_the_reason():
    found = compare(raises, mean, inputs=SMALL, quick=True, laws="none")
    rows = of(found, "raises")
    assert {row["status"] for row in rows} == {"failed"}
    assert "no such length" in rows[0]["error"]
    assert "raises failed on 2 samples" in " ".join(chapter.findings(found.table))
    (line,) = (x for x in chapter.cells(found.table) if x[0] == "raises")
    assert line[1] == "failed"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("Nystromfomer(rank=4)", "Did you mean 'Nystromformer'"),
        ("Nystromformer(rank=-1)", "rank"),
        ("LinearAttention", "approximates no attention"),
        ("SVD()", "no operator"),
        ("nowhere.py:attend", "no file"),
        ("1 + 1", "no operator"),
        (3, "cannot be called"),
        (lambda a: a, "one argument"),
    ],
)
def test_a_bad_subject_is_refused(given, says):
    with pytest.raises(ValueError, match=says):
        subject(given)


def test_a_file_without_a_name_says_what_it_defines(tmp_path):
    (tmp_path / "mine.py").write_text("def attend(q, k, v): ...\ndef _hidden(): ...\n")
    with pytest.raises(ValueError, match=r"mine\.py:attend\. It defines attend\.$"):
        subject(str(tmp_path / "mine.py"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"budget": 0.0}, "above 0"),
        ({"budget": math.nan}, "above 0"),
        ({"laws": "some"}, "one of yours, all, none"),
        ({"inputs": "recoded"}, "Did you mean 'recorded'"),
        ({"inputs": []}, "no input"),
        ({"inputs": [SMALL, SMALL]}, "named twice"),
        ({"inputs": "Normal(0, 8)"}, "no input"),
    ],
    ids=str,
)
def test_bad_requests_are_refused(words, says):
    with pytest.raises(ValueError, match=says):
        compare(mean, **{"laws": "none", **words})
    with pytest.raises(ValueError, match="named twice"):
        compare(mean, mean)
    with pytest.raises(ValueError, match="nothing to compare"):
        compare()


@pytest.mark.parametrize(
    ("shape", "names", "samples"),
    [
        ((5, 4), ["qkv.head0"], 1),
        ((2, 5, 4), ["qkv.head0", "qkv.head1"], 1),
        ((3, 2, 5, 4), ["qkv.head0", "qkv.head1"], 3),
    ],
)
def test_a_file_holds_heads_and_samples(tmp_path, shape, names, samples):
    q = torch.randn(shape)
    torch.save({"q": q, "k": q, "v": 2 * q}, tmp_path / "qkv.pt")
    found = heads([str(tmp_path / "qkv.pt")])
    assert [head.name for head in found] == names
    assert {head.samples for head in found} == {samples}
    last = found[-1].draw(samples - 1)
    assert torch.equal(last.q, q.reshape(samples, len(names), 5, 4)[-1, -1])
    assert torch.equal(last.v, 2 * last.q)
    assert found[-1].digest(0) != found[0].digest(samples - 1) or len(names) * samples == 1


def test_a_folder_of_files_is_compared_on_and_queries_share_keys(tmp_path):
    for name in "ab":
        q, k = torch.randn(4, 12, 4), torch.randn(2, 12, 4)
        torch.save({"q": q, "k": k, "v": k}, tmp_path / f"{name}.pt")
    found = heads([str(tmp_path)])
    assert len(found) == 8
    assert [torch.equal(head.draw(0).k, k[i // 2]) for i, head in enumerate(found[4:])] == [
        True
    ] * 4
    made = compare(mean, inputs=str(tmp_path), laws="none")
    assert made.summary()[0]["error"].units == 8


@pytest.mark.parametrize("held", [{"q": torch.ones(2, 2)}, [1], "text"], ids=["q", "list", "text"])
def test_a_file_that_will_not_do_is_refused(tmp_path, held):
    torch.save(held, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt"):
        heads([str(tmp_path / "x.pt")])


# --- laws and exit codes ---------------------------------------------------------------------


def outcomes(*verdicts):
    for law, verdict, detail in verdicts:
        yield Outcome(law, "interface", "", verdict, detail)


HOLDS = ("silent", Verdict.HOLDS, "")


def test_a_late_law_is_no_broken_one():
    late = ("gradient", Verdict.FAILS, "gave no answer within 10 s")
    broken = ("views", Verdict.FAILS, "missed by 1")
    found = package._judged(outcomes(HOLDS, late, broken))
    assert found == Verdicts(("silent",), (("views", "missed by 1"),), ("gradient",))


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("def attend(q, k, v):\n    return v + 0 * (q @ k.mT @ v)\n")
    monkeypatch.chdir(tmp_path)
    return "mine.py:attend"


@pytest.mark.parametrize(("verdict", "code"), [(Verdict.HOLDS, 0), (Verdict.FAILS, 1)])
def test_a_broken_law_is_a_finding(mine, monkeypatch, verdict, code):
    asked = []

    def examined(request):
        asked.append(request.spec)
        return outcomes(HOLDS, ("views", verdict, "missed by 1"))

    monkeypatch.setattr(package, "examined", examined)
    said = call("compare", mine, "Nystromformer(rank=4)", "--inputs", SMALL, "--quick")
    assert said.exit_code == code, said.output
    assert asked == [mine]
    assert "mine.py:attend" in said.output
    assert "error on each head" in said.output
    assert ("breaks the law 'views'" in said.output) == (code == 1)


@pytest.mark.parametrize(
    "words",
    [
        ["nowhere.py:attend"],
        ["Softmax()", "--budget", "much"],
        ["Softmax()", "--budget", "2"],
        ["Softmax()", "--inputs", "nothing"],
    ],
    ids=lambda words: words[-1],
)
def test_what_cannot_be_done_is_code_two(words):
    said = call("compare", *words, "--laws", "none")
    assert said.exit_code == 2
    assert said.stderr.startswith("error: ")


def test_json_has_the_summary_and_the_rows(mine):
    said = call("compare", mine, "--inputs", SMALL, "--quick", "--laws", "none", "--json")
    found = json.loads(said.stdout)
    assert found["summary"][0]["method"] == mine
    assert {row["method"] for row in found["rows"]} >= {mine, "uniform average"}


def test_a_report_is_set(found, tmp_path):
    pytest.importorskip("typst")
    path = found.save(tmp_path)
    page = path.with_suffix(".html").read_text()
    assert path.read_bytes().startswith(b"%PDF")
    for name in ("Layer", "Performer", "Nystromformer(rank=4)"):
        assert page.count(name) > 3


# --- result files and the board --------------------------------------------------------------


@pytest.fixture(scope="module")
def entries():
    found = compare("Nystromformer(rank=8)", mean, inputs=HEAD, quick=True, laws="none")
    laws = {"Nystromformer(rank=8)": Verdicts(asked=False), "mean": Verdicts(("silent",))}
    return list(
        results.entries(type(found)(found.rows, found.meta, laws, found.hashes, found.code))
    )


def saved(folder, entry, name="entry.json"):
    (folder / name).write_text(json.dumps(entry))
    return folder / name


def signed(entry):
    return entry | {"digest": results.digest_of(entry)}


def test_result_files_hold_what_was_measured(entries, tmp_path):
    for entry in entries:
        assert results.read(saved(tmp_path, entry)) == entry
    sample = entries[0]["heads"][0]["samples"][1]
    q, k, v = Recorded(HEAD)(1)
    exact = Softmax()(q.double(), k.double(), v.double())
    miss = (Nystromformer(rank=8)(q, k, v) - exact).norm() / exact.norm()
    assert sample["output_error"] == pytest.approx(float(miss), rel=1e-6)


def lower(entry):
    sample = entry["heads"][0]["samples"][1]
    sample["output_error"] /= 2
    sample["skill"] = 1 - sample["output_error"] / min(1, sample["uniform_error"])


def skilled(entry):
    entry["heads"][0]["samples"][0]["skill"] = 0.99


def other_input(entry):
    entry["heads"][0]["samples"][0]["input"] = "0" * 64


def strange_law(entry):
    entry["laws"]["held"].append("no such law")


def unasked(entry):
    entry["laws"]["asked"] = False


def newer(entry):
    entry["format"] = 99


def no_number(entry):
    entry["heads"][0]["samples"][0]["output_error"] = "small"


def negative(entry):
    entry["heads"][0]["samples"][0]["output_error"] = -0.1


def no_head(entry):
    entry["heads"] = []


def uniform(entry):
    for sample in entry["heads"][0]["samples"]:
        sample["uniform_error"] *= 1.5
        sample["skill"] = 1 - sample["output_error"] / min(1, sample["uniform_error"])


WRONG = {
    lower: (0, "here, and the file says"),
    skilled: (0, "the skill is"),
    other_input: (0, "not the input"),
    strange_law: (1, "no law 'no such law'"),
    unasked: (1, "not asked"),
    newer: (0, "its format is 99"),
    no_number: (0, "no number"),
    negative: (0, "no number"),
    no_head: (0, "no heads"),
    uniform: (1, "uniform error"),
}


@pytest.mark.parametrize("fault", WRONG, ids=lambda fault: fault.__name__)
def test_a_planted_wrong_entry_is_refused_with_the_reason(entries, tmp_path, fault):
    which, says = WRONG[fault]
    entry = json.loads(json.dumps(entries[which]))
    fault(entry)
    with pytest.raises(ValueError, match=r"changed after|format is|no heads"):
        results.read(saved(tmp_path, entry))
    with pytest.raises(ValueError, match=says):
        results.read(saved(tmp_path, signed(entry)))


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"format": NaN}', "[" * 9999])
def test_what_is_no_result_file_is_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"cannot be read|no JSON object|has no"):
        results.read(tmp_path / "x.json")


def test_a_board_shows_what_holds_and_says_what_does_not(entries, tmp_path):
    place = tmp_path / "results"
    place.mkdir()
    hostile = signed(entries[1] | {"method": "<script>alert(1)</script>\x00"})
    wrong = json.loads(json.dumps(entries[0]))
    lower(wrong)
    for i, entry in enumerate([*entries, hostile, signed(wrong)]):
        saved(place, entry, f"{i}.json")
    out = tmp_path / "site" / "board.html"
    said = call("board", place, "--out", out)
    assert said.exit_code == 1, said.output
    assert "3.json is refused" in said.output
    page = out.read_text()
    assert page.count("<summary>") == 3
    assert "<script>alert" not in page
    assert "3.json is refused" in page
    assert len(json.loads(out.with_suffix(".json").read_text())) == 3
    (place / "3.json").unlink()
    assert call("board", place, "--out", out).exit_code == 0
    assert call("board", tmp_path / "none").exit_code == 2


def test_of_two_results_the_later_stays(entries, tmp_path):
    old = signed(entries[0] | {"finished": "2001-01-01T00:00:00+00:00"})
    paths = [saved(tmp_path, entries[0], "a.json"), saved(tmp_path, old, "b.json")]
    kept, refused = results.merged(paths, print)
    assert (refused, [entry["digest"] for entry in kept]) == (0, [entries[0]["digest"]])


def test_ten_thousand_rows_and_one(found):
    table = found.table
    many = pd.concat([table.assign(source=table["source"] + f" {i}") for i in range(300)])
    assert len(many) > 10_000
    said = " ".join(chapter.findings(many))
    assert "The figure shows 12 of 600 heads" in said
    assert chapter.drawn(many)["source"].nunique() == 12
    one = table[table["method"] == "mean"].head(1)
    assert len(chapter.cells(one)) == 1
