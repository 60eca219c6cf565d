"""Clustered attention: its clusters, its two propositions, and the knobs at their limits."""

import itertools
import re

import pytest
import torch
from draws import head_of

from softlab.core import as_matrix
from softlab.laws import tolerance
from softlab.operators import Clustered, Softmax, Uniform

F64 = torch.float64
draw = head_of(20, 16)


def bunches(spread, seed=0):
    """Thirty queries within ``spread`` of five far points, in turn, and the usual keys."""
    g = torch.Generator().manual_seed(seed)
    points = 3 * torch.linalg.qr(torch.randn(5, 5, generator=g, dtype=F64)).Q
    q = points.repeat(6, 1) + spread * torch.randn(30, 5, generator=g, dtype=F64)
    return q, *draw(d=5, seed=seed)[1:]


def means(op, q):
    owner = op.owners(q)
    return torch.stack([q[owner == c].mean(0) for c in owner.tolist()])


def test_k_means_only_lowers_the_sum_of_squares_and_ends_at_a_fixed_point():
    q, _, _ = draw(n=200)
    spread = [
        float((q - means(Clustered(7, iterations=i), q)).square().sum()) for i in range(1, 80)
    ]
    falls = [a - b for a, b in itertools.pairwise(spread)]
    assert min(falls) >= -tolerance(F64, 200, scale=spread[0])
    assert spread[-1] < 0.95 * spread[0]
    op = Clustered(7, iterations=80)
    owner = op.owners(q)
    centres = torch.stack([q[owner == c].mean(0) for c in range(7)])
    assert torch.equal(torch.cdist(q, centres).argmin(-1), owner)


def test_bunches_are_found_where_each_has_a_start():
    q, _, _ = bunches(0.01)
    bunch = torch.arange(30) % 5
    found = [Clustered(5, seed=seed).owners(q) for seed in range(200)]
    whole = [all(len(owner[bunch == b].unique()) == 1 for b in range(5)) for owner in found]
    assert any(whole)
    owner = found[whole.index(True)]
    assert len(owner.unique()) > 1


@pytest.mark.parametrize("spread", [0.001, 0.1, 1.0])
def test_a_row_is_within_the_distance_to_its_mean(spread):
    # Proposition 1 of the paper, with the scale 1/sqrt(d).
    q, k, _ = bunches(spread)
    for seed in range(5):
        op = Clustered(8, top=0, seed=seed)
        missed = (as_matrix(op, q, k) - as_matrix(Softmax(), q, k)).norm(dim=-1)
        apart = (q - means(op, q)).norm(dim=-1)
        allowed = apart * torch.linalg.matrix_norm(k, 2) / 5**0.5
        assert bool((missed <= allowed + tolerance(F64, 16)).all())


def test_that_bound_refuses_zeros_and_the_mean():
    q, k, _ = bunches(0.001)
    op, exact = Clustered(20, top=0), as_matrix(Softmax(), q, k)
    allowed = (q - means(op, q)).norm(dim=-1) * torch.linalg.matrix_norm(k, 2) / 5**0.5
    for trivial in (0 * exact, as_matrix(Uniform(), q, k)):
        assert not bool(((trivial - exact).norm(dim=-1) <= allowed).all())


@pytest.mark.parametrize("top", [1, 2, 8, 15])
def test_top_keys_never_add_to_the_absolute_differences_of_a_row(top):
    # Proposition 2: on T the query's own proportions carry the mass of the mean.
    for seed in range(5):
        q, k, _ = draw(seed=seed)
        exact, plain = as_matrix(Softmax(), q, k), as_matrix(Clustered(4, top=0), q, k)
        matrix = as_matrix(Clustered(4, top=top), q, k)
        missed, before = ((m - exact).abs().sum(-1) for m in (matrix, plain))
        assert bool((missed <= before + tolerance(F64, 16)).all())
        # One key has no proportions to correct.
        assert (float(missed.mean()) < 0.99 * float(before.mean())) == (top > 1)
        kept = plain >= plain.topk(top, -1).values[:, -1:]
        assert bool((kept.sum(-1) == top).all())
        share = exact * kept / (exact * kept).sum(-1, keepdim=True)
        wanted = share * (plain * kept).sum(-1, keepdim=True) + plain * ~kept
        torch.testing.assert_close(matrix, wanted, rtol=0, atol=tolerance(F64, 16))


@pytest.mark.parametrize(
    "op", [Clustered(20), Clustered(99, top=0), Clustered(2, top=16)], ids=repr
)
def test_exact_where_no_query_or_no_key_is_left_to_a_mean(op):
    q, k, v = draw()
    exact = Softmax()(q, k, v)
    torch.testing.assert_close(op(q, k, v), exact, rtol=0, atol=tolerance(F64, 16))
    near = Clustered(19, top=0)(q, k, v)
    assert float((near - exact).abs().max()) > 1e-3


def test_without_top_keys_the_matrix_has_one_row_a_cluster():
    q, k, _ = draw()
    singular = torch.linalg.svdvals(as_matrix(Clustered(3, top=0), q, k))
    assert float(singular[3]) < tolerance(F64, 20)
    assert float(singular[2]) > 1e-3


def test_many_parts_give_what_one_part_gives():
    q, k, v = draw(n=6000, l=64)
    op = Clustered(10, top=20)
    owner, some = op.owners(q), torch.arange(0, 6000, 97)
    weights = torch.stack([q[owner == c].mean(0) for c in range(10)]) @ k.mT / 2
    weights = weights.softmax(-1)
    kept = weights >= weights.topk(20, -1).values[:, -1:]
    own = (q[some] @ k.mT / 2).exp() * kept[owner[some]]
    share = own / own.sum(-1, keepdim=True) * (weights * kept).sum(-1, keepdim=True)[owner[some]]
    wanted = (share + (weights * ~kept)[owner[some]]) @ v
    torch.testing.assert_close(op(q, k, v)[some], wanted, rtol=0, atol=tolerance(F64, 600))


def test_impossible_knobs_are_refused():
    for build, error, message in (
        (
            lambda: Clustered(0),
            ValueError,
            "Clustered.clusters is 0; give an integer of at least 1",
        ),
        (lambda: Clustered(2, top=-1), ValueError, "Clustered.top is -1; give an integer of at"),
        (lambda: Clustered(2, iterations=0), ValueError, "Clustered.iterations is 0; give an int"),
        (lambda: Clustered(2, seed=0.5), TypeError, "Clustered.seed is 0.5; give an integer of"),
    ):
        with pytest.raises(error, match=re.escape(message)):
            build()
