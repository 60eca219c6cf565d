"""What the strategies draw is what its name says, and what fails shrinks to something short."""

import pytest
import torch
from hypothesis import find, given, settings
from hypothesis import strategies as st

from softlab import operators
from softlab.laws import tolerance
from softlab.laws.strategies import (
    GEOMETRIES,
    Tokens,
    batch_shapes,
    dtypes,
    masks,
    matrices,
    parts,
    tokens,
)
from softlab.operators import Softmax
from softlab.pinv import SVD

F64 = torch.float64


@given(tokens(batch=batch_shapes(), dtype=dtypes()))
def test_tokens_have_the_shapes_of_their_name_and_can_be_had_again(case):
    assert case.q.shape == (*case.batch, case.n, case.d)
    assert case.k.shape == (*case.batch, case.l, case.d)
    assert case.v.shape == (*case.batch, case.l, case.e)
    assert {x.dtype for x in (case.q, case.k, case.v)} == {getattr(torch, case.dtype)}
    again = eval(repr(case))
    assert again == case
    assert all(torch.equal(getattr(again, x), getattr(case, x)) for x in "qkv")
    assert not case.tied or torch.equal(case.q, case.k)


@given(tokens(geometries=["spectral"], tied=False))
def test_a_spectrum_is_the_prescribed_one(case):
    for x in (case.q, case.k):
        s = torch.linalg.svdvals(x) / len(x) ** 0.5 / case.scale
        wanted = case.condition ** -torch.linspace(0, 1, case.rank, dtype=F64)
        torch.testing.assert_close(s[: case.rank], wanted, rtol=1e-8, atol=1e-14)
        assert float(s[case.rank :].sum()) < 1e-12


@given(tokens(geometries=["identical", "clustered", "apart"]))
def test_a_geometry_is_what_it_says(case):
    x = case.q / case.scale
    away = torch.cdist(x, x)
    if case.geometry == "identical":
        assert float(away.max()) == 0
    elif case.geometry == "clustered":
        assert len(torch.unique((away < 0.05).double(), dim=0)) <= case.rank
    else:
        few = away[: case.d, : case.d]
        assert float((few + 99 * torch.eye(len(few), dtype=F64)).min()) > 16


@given(st.data(), st.integers(1, 7), batch_shapes())
def test_a_mask_leaves_each_matrix_a_key(data, keys, batch):
    mask = data.draw(masks(keys, batch))
    assert mask.shape == (*batch, keys)
    assert mask.dtype == torch.bool
    assert bool(mask.any(-1).all())


@given(matrices(singular=None, scales=(1.0, 1e-30, 1e30)))
def test_a_matrix_has_the_prescribed_singular_values(drawn):
    s = torch.linalg.svdvals(drawn.a) / drawn.scale
    wanted = drawn.singular_values / drawn.scale
    torch.testing.assert_close(s, wanted, rtol=1e-9, atol=1e-13)
    if drawn.matrix.symmetric:
        assert torch.equal(drawn.a, drawn.a.mT)


@given(matrices(singular=None, scales=(1.0, 1e-30, 1e30)))
@settings(max_examples=20)
def test_the_svd_solver_is_a_pseudo_inverse_of_them_all(drawn):
    a = drawn.a / drawn.scale
    x = SVD()(a)
    allowed = tolerance(F64, len(a), kappa=1e3)
    assert float((a @ x @ a - a).norm() / a.norm()) < allowed


@given(tokens())
@settings(max_examples=20)
def test_softmax_is_an_average_of_them_all(case):
    ones = torch.ones_like(case.v)
    assert float((Softmax()(case.q, case.k, ones) - 1).abs().max()) < 1e-14


def test_every_geometry_is_drawn():
    for geometry in GEOMETRIES:
        assert find(tokens(), lambda case, g=geometry: case.geometry == g).geometry == geometry


@pytest.mark.parametrize(
    ("broken", "shortest"),
    [
        (lambda case: True, Tokens(1, 1)),
        (lambda case: case.l > 2, Tokens(1, 3)),
        (  # a normaliser that counts one key too many
            lambda case: case.l < 9 and case.n > 1,
            Tokens(2, 1),
        ),
    ],
)
def test_a_counterexample_shrinks_to_a_short_one(broken, shortest):
    found = find(tokens(tied=False), broken)
    assert found == shortest
    assert len(repr(found)) < 30


def test_a_faulty_operator_gives_a_readable_counterexample():
    def flattened(q, k, v):
        w = (q @ k.mT).exp()
        return w @ v / (w.sum(-1, keepdim=True) + 1e-3)

    case = find(
        tokens(tied=False),
        lambda c: float((flattened(c.q, c.k, torch.ones_like(c.v)) - 1).abs().max()) > 1e-3,
    )
    assert case.geometry == "lattice"
    assert max(case.n, case.l, case.d) <= 2
    assert case.q.numel() + case.k.numel() <= 4


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"n": 0, "l": 1}, "Tokens.n is 0"),
        ({"n": 2, "l": 3, "tied": True}, "as many of each"),
        ({"n": 1, "l": 1, "rank": 2}, "at most n, l and d"),
        ({"n": 1, "l": 1, "geometry": "round"}, "give one of lattice"),
    ],
)
def test_tokens_that_cannot_be_are_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        Tokens(**fields)


@pytest.mark.parametrize("name", operators.__all__)
def test_operators_of_any_declared_knobs_answer_or_say_why_not(name):
    @settings(max_examples=5, deadline=None)
    @given(parts(getattr(operators, name)))
    def holds(op):
        assert type(op).__name__ == name
        q = torch.ones(9, 4, dtype=F64)
        if getattr(op, "rank", 1) <= 9:
            assert op(q, q, q).shape == (9, 4)

    holds()
