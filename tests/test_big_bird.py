"""BigBird keeps its four kinds of entries at any length, draws uniformly, errs within its bound."""

import math
import re

import pytest
import torch
from draws import head_of

from softlab.core import as_matrix
from softlab.laws import tolerance
from softlab.operators import BigBird, Softmax, Uniform

F64 = torch.float64
KNOBS = [
    BigBird(1, 0, 0),
    BigBird(2, 3, 0, block=5),
    BigBird(1, 0, 4, block=3, seed=2),
    BigBird(1, 2, 3, block=4, seed=1),
    BigBird(2, 1, 30, block=7),
]


draw = head_of(18, 18)


def support(op, n, l):
    """Which keys each query keeps, (n, l), entry by entry from the definition."""
    kept, shares = torch.zeros(n, l, dtype=torch.bool), op.shares(math.ceil(n / op.block)).tolist()
    for i in range(n):
        p = i if n == l else (2 * i + 1) * l // (2 * n)
        drawn = {int(share * l) for share in shares[i // op.block]}
        for j in range(l):
            listed = j < op.globals or p < op.globals or j in drawn
            kept[i, j] = listed or abs(p - j) <= op.window
    return kept


@pytest.mark.parametrize("op", KNOBS, ids=repr)
@pytest.mark.parametrize(("n", "l"), [(18, 18), (7, 23), (50, 6), (1, 9), (130, 130)])
def test_each_query_keeps_band_globals_and_draws(op, n, l):
    q, k, _ = draw(n, l)
    assert torch.equal(as_matrix(op, q, k) > 0, support(op, n, l))


def test_short_sequences_do_not_turn_into_full_attention():
    q, k, _ = draw(6, 6)
    left_out = (as_matrix(BigBird(1, 1, 0), q, k) == 0).sum(-1)
    assert left_out.tolist() == [0, 3, 2, 2, 2, 3]


@pytest.mark.parametrize("op", KNOBS, ids=repr)
def test_a_row_errs_by_at_most_the_mass_left_out_times_the_diameter(op):
    for seed in range(5):
        q, k, v = draw(seed=seed)
        exact = as_matrix(Softmax(), q, k)
        allowed = (exact * ~support(op, 18, 18)).sum(-1) * torch.cdist(v, v).max()
        missed = (op(q, k, v) - exact @ v).norm(dim=-1)
        assert bool((missed <= allowed + tolerance(F64, 18)).all())


def test_the_bound_refuses_zeros_and_the_mean():
    # Queries that look for their neighbours, as the window supposes.
    _, k, v = draw()
    exact, op = as_matrix(Softmax(), 5 * k, k), BigBird(2, 1, 2)
    allowed = (exact * ~support(op, 18, 18)).sum(-1) * torch.cdist(v, v).max()
    assert bool(((op(5 * k, k, v) - exact @ v).norm(dim=-1) <= allowed + tolerance(F64, 18)).all())
    for trivial in (0 * v, Uniform()(k, k, v)):
        assert not bool(((trivial - exact @ v).norm(dim=-1) <= allowed).all())


@pytest.mark.parametrize("op", [BigBird(17, 0, 0), BigBird(1, 18, 0), BigBird(1, 99, 5, block=2)])
def test_exact_where_nothing_is_left_out(op):
    for scale in (0.1, 1, 30):
        q, k, v = draw()
        exact = Softmax()(scale * q, k, v)
        allowed = tolerance(F64, 18, kappa=max(1, scale))
        torch.testing.assert_close(op(scale * q, k, v), exact, rtol=0, atol=allowed)


def test_draws_are_uniform_apart_by_block_and_a_prefix_of_longer_ones():
    blocks, drawn = 500, 8
    shares = BigBird(1, 0, drawn, seed=3).shares(blocks)
    size = blocks * drawn
    assert abs(float(shares.mean()) - 0.5) < 6 / math.sqrt(12 * size)
    counts = torch.histc(shares, 10, 0, 1)
    assert float((counts - size / 10).abs().max()) < 6 * math.sqrt(size * 0.09)
    assert len(shares.flatten().unique()) == size
    assert torch.equal(BigBird(1, 0, drawn, seed=3).shares(20), shares[:20])
    assert not torch.equal(BigBird(1, 0, drawn, seed=4).shares(20), shares[:20])


@pytest.mark.parametrize("op", KNOBS, ids=repr)
def test_masked_keys_close_up_in_each_matrix(op):
    q, k, v = (x.expand(3, *x.shape) for x in draw())
    key_mask = torch.rand(3, 18, generator=torch.Generator().manual_seed(1)) < 0.6
    out = op(q, k, v, key_mask)
    for i in range(3):
        keep = key_mask[i]
        alone = op(q[i], k[i][keep], v[i][keep])
        torch.testing.assert_close(out[i], alone, rtol=0, atol=tolerance(F64, 18))


def test_impossible_knobs_are_refused():
    for build, error, message in (
        (lambda: BigBird(0, 1, 1), ValueError, "BigBird.window is 0; give an integer of at least"),
        (lambda: BigBird(1, -1, 1), ValueError, "BigBird.globals is -1; give an integer of at"),
        (lambda: BigBird(1, 1, 1.5), TypeError, "BigBird.random is 1.5; give an integer of at"),
        (lambda: BigBird(1, 1, 1, block=0), ValueError, "BigBird.block is 0; give an integer of"),
        (lambda: BigBird(1, 1, 1, seed=-1), ValueError, "BigBird.seed is -1; give an integer of"),
    ):
        with pytest.raises(error, match=re.escape(message)):
            build()
