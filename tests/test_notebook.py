"""Results show themselves in a notebook, every word escaped; arrays and frames are taken."""

import html.parser
import importlib.util

import numpy as np
import pandas as pd
import pytest
import torch

from softlab import convergence, error_budget, gradients, laws, notebook, spectra, study
from softlab.core import Stream
from softlab.engine.identity import identity
from softlab.figures import Lines
from softlab.matrices import Geometric, Given, Matrix
from softlab.operators import Soft
from softlab.pinv import NewtonRaphson
from softlab.report.drawing import draw


class Cells(html.parser.HTMLParser):
    """The words of a page by row, its tags balanced."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.open = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, _):
        self.open.append(tag)
        if tag in {"tr", "caption"}:
            self.rows.append([])
        elif tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "caption" in self.open:
            self.rows[-1].append(data)
        else:
            self.rows[-1][-1] += data


def shown(result):
    return Cells(result._repr_html_()).rows


def test_every_word_is_escaped():
    evil = "<script>alert('&')</script>"
    text = notebook.table(evil, [evil], [[evil], [1.23456], [True]])
    assert "<script" not in text
    assert Cells(text).rows == [[evil], [evil], [evil], ["1.23"], ["True"]]
    outcome = laws.Outcome(evil, evil, evil, laws.Verdict.FAILS, evil, counterexample=evil, at=evil)
    for one in (outcome, laws.Examination([outcome])):
        assert "<script" not in one._repr_html_()
        assert evil in str(shown(one)).replace('"', "").replace("\\", "")


def test_an_examination_is_a_list_whose_failures_come_first():
    def wrong(q, k, v):
        return (q @ k.mT / q.abs().max()).softmax(-1) @ v + torch.zeros(())

    found = laws.examine(wrong, examples=1, only="batch independence")
    assert isinstance(found, list)
    assert [one.verdict for one in found] == ["fails"]
    held = laws.examine(wrong, examples=1, only="row-stochastic")
    skipped = laws.examine(wrong, examples=1, only="causal")
    title, head, *rows = shown(laws.Examination([*skipped, *held, *found]))
    assert title == ["1 hold, 1 fail, 1 do not apply"]
    assert head[:2] == ["law", "verdict"]
    assert [row[:2] for row in rows] == [
        ["batch independence", "fails"],
        ["row-stochastic", "holds"],
        ["causal", "does not apply"],
    ]
    assert "again: " in rows[0][2]
    assert shown(found[0])[0] == [f"{found[0].law} ({found[0].family}): {found[0].statement}"]


def test_a_budget_shows_its_parts_and_one_of_many_its_range():
    q, v = Stream(0, "tests").normal(3, 24, 4), Stream(1, "tests").normal(3, 24, 4)
    many = error_budget.split(Soft(rank=6), q, q, v)
    title, _, *rows = shown(many)
    assert title == ["The error's parts, median and range of 3 matrices"]
    assert [row[0] for row in rows] == [*error_budget.PARTS, "all"]
    sizes = many.size(many.error).sort().values
    assert rows[-1][1] == f"{sizes[1]:.3g} ({sizes[0]:.3g} to {sizes[2]:.3g})"
    one = error_budget.split(Soft(rank=6), q[0], q[0], v[0])
    assert shown(one)[2][1] == f"{float(one.size(one.parts['landmarks'])):.3g}"
    assert shown(one)[0] == ["The error's parts"]


def test_a_spectrum_shows_its_ranks():
    values = torch.tensor([8.0, 4.0, 2.0, 0.0], dtype=torch.float64)
    rows = dict(shown(spectra.Spectrum(values, 1e-15))[2:])
    assert rows["largest"] == "8"
    assert rows["least"] == "0"
    assert rows["condition"] == "inf"
    assert rows["condition on the range"] == "4"
    assert rows["numerical rank"] == "3"
    assert rows["stable rank"] == "1.31"
    both = spectra.Spectrum(torch.stack([values, 2 * values]), 1e-15)
    assert dict(shown(both)[2:])["largest"] == "12 (8 to 16)"


def test_a_figure_shows_itself_without_the_inline_backend():
    table = pd.DataFrame(
        {"rank": [1, 2], "method": ["Soft"] * 2, "y": [0.5, 0.25], "status": ["ok"] * 2}
    )
    figure = draw(table, Lines(x="rank", y="y", group="method", xlabel="rank", ylabel="error"))
    assert figure._repr_svg_().startswith("<?xml")
    assert figure._repr_svg_() == figure._repr_svg_()


def test_a_run_says_how_far_it_is_where_no_bar_can_move(monkeypatch, tmp_path, capsys):
    mine = study.Study("mine", "Does it?", {"x": [1, 2, 3]}, lambda x: {"y": x})
    study.run(mine, tmp_path, progress=True, threads=1)
    assert capsys.readouterr().err == "mine: 3 of 3 cases in 0:00:00\n"
    monkeypatch.setattr(study, "EVERY", 0.0)
    # A notebook without the library of moving bars; rich would warn there, and show nothing.
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda x, *y: None if x == "ipywidgets" else find(x, *y)
    )
    study.run(mine, tmp_path, progress=True, threads=1, fresh=True)
    lines = capsys.readouterr().err.splitlines()
    assert [x.partition(" cases")[0] for x in lines] == [f"mine: {i} of 3" for i in (1, 2, 3)]
    study.run(mine, tmp_path, threads=1, fresh=True)
    assert capsys.readouterr().err == ""


# NumPy and pandas ------------------------------------------------------------------------------

A = Geometric(12, condition=100.0)(seed=0)
SPECTRAL = {name for name, x in vars(spectra).items() if hasattr(x, "__wrapped__")} - {"spectrum"}


def kinds(a):
    """The same numbers as other libraries hold them."""
    return {
        "array": a.numpy(),
        "read-only": np.broadcast_to(a.numpy(), a.shape),
        "reversed twice": a.flip(0).numpy()[::-1],
        "big-endian": a.numpy().astype(">f8"),
        "frame": pd.DataFrame(a.numpy()),
    }


@pytest.mark.parametrize("name", sorted(SPECTRAL))
def test_spectra_take_arrays_and_frames(name):
    more = {"ridge": 0.5} if "ridge" in name or name == "effective_dimension" else {}
    a = A.abs() if name.startswith(("row_", "spectral_gap")) else A
    expected = getattr(spectra, name)(a, **more)
    for kind, held in kinds(a).items():
        found = getattr(spectra, name)(held, **more)
        both = (x if isinstance(x, tuple) else (x,) for x in (expected, found))
        assert type(found) is (type(expected) if isinstance(expected, tuple) else np.ndarray)
        for x, y in zip(*both, strict=True):
            assert isinstance(y, np.ndarray), kind
            assert np.array_equal(x.numpy(), y), kind


def test_convergence_takes_arrays_and_frames():
    solver = NewtonRaphson(steps=12)
    expected = convergence.account(solver, A, 1e-6)
    for kind, held in kinds(A).items():
        assert convergence.account(solver, held, 1e-6) == expected, kind
        assert convergence.cutoff(solver, held, 4) == convergence.cutoff(solver, A, 4)
    inverse = torch.linalg.inv(A)
    seen = convergence.trace(solver, A.numpy(), reference=inverse.numpy())
    assert torch.equal(seen.error, convergence.trace(solver, A, reference=inverse).error)
    at = np.array([1.0, 0.1])
    found = convergence.filter_factors(solver, pd.DataFrame(A.numpy()), 3, at=at)
    expected = convergence.filter_factors(solver, A, 3, at=torch.tensor(at))
    assert isinstance(found, np.ndarray)
    assert np.array_equal(found, expected.numpy())
    table = pd.DataFrame(seen.rows())
    assert list(table["step"]) == list(range(13))


def test_gradients_take_and_give_arrays():
    solver = NewtonRaphson(steps=12)
    other = A.mT.contiguous()  # rounding is that of the order in memory
    a, g = A.numpy(), other.numpy()
    for name in ("gradient", "bias"):
        expected, found = (getattr(gradients, name)(solver, *x) for x in ((A, other), (a, g)))
        parts = (
            ((expected, found),)
            if name == "gradient"
            else zip(*map(_flat, (expected, found)), strict=True)
        )
        for x, y in parts:
            assert isinstance(y, np.ndarray)
            assert np.array_equal(x.numpy(), y)
    found = gradients.reference_gradient(pd.DataFrame(a), g)
    assert np.array_equal(found, gradients.reference_gradient(A, other).numpy())
    assert np.array_equal(gradients.symmetrized(a), (a + a.T) / 2)
    assert isinstance(gradients.range_residual(a, np.linalg.inv(a)), np.ndarray)
    with pytest.raises(TypeError, match="grad, a ndarray, holds complex128"):
        gradients.symmetrized(a * 1j)


def _flat(bias):
    return [*bias.inverse, *bias.map, bias.residual]


def test_a_matrix_of_ones_own_is_a_case_by_its_numbers(tmp_path):
    a = A.numpy().copy()
    given = Given(a)
    assert (given.m, given(3).dtype) == (len(a), torch.float64)
    assert torch.equal(given(0), A)
    assert isinstance(given, Matrix)
    assert given == Given(pd.DataFrame(a)) == Given(A) == Given(a.tolist())
    name = repr(given)
    a[0, 0] += 1e-9
    assert (repr(given), given(0)[0, 0]) == (name, A[0, 0])  # a copy
    assert Given(a) != given
    assert repr(Given(a)) != name
    assert identity(Given(a)).digits != identity(given).digits == identity(Given(A)).digits
    given(0).zero_()
    assert torch.equal(given(0, dtype=torch.float32), A.float())
    one = study.Study("own", "Size?", {"matrix": [given, Given(a)]}, _size)
    assert study.run(one, tmp_path).rows == 2
    for bad, error, said in (
        (a[:2], ValueError, "array must be square"),
        (np.full((2, 2), np.nan), ValueError, "array has 4 entries that are NaN"),
        (np.ma.masked_equal(np.eye(3), 0), ValueError, r"array has 6 masked entries.*filled"),
        (np.zeros((0, 0)), ValueError, "empty"),
        (a * 1j, TypeError, "array, a ndarray, holds complex128"),
        ([["a"]], TypeError, "holds <U1"),
        (np.stack([a, a]), ValueError, "one at a time"),
        (3.0, ValueError, "two dimensions"),
    ):
        with pytest.raises(error, match=said):
            Given(bad)


def _size(matrix):
    return {"size": float(matrix(0).norm())}


def test_whole_numbers_are_computed_in_float64_and_words_are_refused():
    counts = pd.DataFrame({"a": [3, 0], "b": [4, 0]})
    assert spectra.singular_values(counts).tolist() == [5.0, 0.0]
    assert spectra.singular_values(np.eye(2) == 1).tolist() == [1.0, 1.0]
    assert spectra.singular_values(np.eye(2, dtype="float32")).dtype == np.float64
    assert spectra.spectrum(np.eye(2, dtype="float32")).unit == 2 * torch.finfo(torch.float32).eps
    for bad in (counts.assign(a=["x", "y"]), np.eye(2) * 1j):
        with pytest.raises(TypeError, match=r"a, a \w+, holds \w+, and numbers .* Select"):
            spectra.spectrum(bad)
    with pytest.raises(ValueError, match=r"a has 1 entries that are NaN or inf"):
        spectra.spectrum(pd.DataFrame({"a": [1, None], "b": [1, 2]}))


def test_what_takes_tensors_alone_says_how_a_frame_becomes_one():
    frame = pd.DataFrame(A.numpy())
    with pytest.raises(TypeError, match=r"got DataFrame\. Use torch\.as_tensor\(a\.to_numpy\(\)\)"):
        NewtonRaphson(steps=2)(frame)
