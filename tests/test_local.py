"""Local keeps what it says, errs within its bound, is exact where nothing is left out."""

import re

import pytest
import torch
from draws import head_of

from softlab.core import as_matrix
from softlab.laws import tolerance
from softlab.operators import Local, Softmax, Uniform

F64 = torch.float64
KNOBS = [
    Local(1),
    Local(5),
    Local(1, sinks=4),
    Local(2, dilation=3),
    Local(3, dilation=2, sinks=5),
    Local(1, dilation=40, sinks=1),
]


draw = head_of(18, 18)


def support(op, n, l):
    """Which keys each query keeps, (n, l), entry by entry from the definition."""
    kept = torch.zeros(n, l, dtype=torch.bool)
    for i in range(n):
        p = i if n == l else (2 * i + 1) * l // (2 * n)
        for j in range(l):
            near = abs(p - j) <= op.window * op.dilation and (p - j) % op.dilation == 0
            kept[i, j] = near or j < op.sinks
    return kept


@pytest.mark.parametrize("op", KNOBS, ids=repr)
@pytest.mark.parametrize(("n", "l"), [(18, 18), (7, 23), (50, 6), (1, 9), (130, 130)])
def test_each_query_keeps_its_band_and_the_sinks(op, n, l):
    q, k, _ = draw(n, l)
    assert torch.equal(as_matrix(op, q, k) > 0, support(op, n, l))


@pytest.mark.parametrize("op", KNOBS, ids=repr)
def test_a_row_errs_by_at_most_the_mass_left_out_times_the_diameter(op):
    for seed in range(5):
        q, k, v = draw(seed=seed)
        exact = as_matrix(Softmax(), q, k)
        allowed = (exact * ~support(op, 18, 18)).sum(-1) * torch.cdist(v, v).max()
        missed = (op(q, k, v) - exact @ v).norm(dim=-1)
        assert bool((missed <= allowed + tolerance(F64, 18)).all())


def test_the_bound_refuses_zeros_and_the_mean():
    # Queries that look for their neighbours, as local attention supposes.
    _, k, v = draw()
    exact = as_matrix(Softmax(), 5 * k, k)
    op = Local(2, sinks=1)
    allowed = (exact * ~support(op, 18, 18)).sum(-1) * torch.cdist(v, v).max()
    assert bool(((op(5 * k, k, v) - exact @ v).norm(dim=-1) <= allowed + tolerance(F64, 18)).all())
    for trivial in (0 * v, Uniform()(k, k, v)):
        assert not bool(((trivial - exact @ v).norm(dim=-1) <= allowed).all())


@pytest.mark.parametrize("op", [Local(17), Local(40), Local(1, sinks=18), Local(9, 2, sinks=99)])
def test_exact_where_nothing_is_left_out(op):
    for scale in (0.1, 1, 30):
        q, k, v = draw()
        exact = Softmax()(scale * q, k, v)
        allowed = tolerance(F64, 18, kappa=max(1, scale))
        torch.testing.assert_close(op(scale * q, k, v), exact, rtol=0, atol=allowed)
    q, k, v = draw()
    assert float((Local(16)(q, k, v) - Softmax()(q, k, v)).abs().max()) > 1e-6


@pytest.mark.parametrize("op", KNOBS, ids=repr)
def test_masked_keys_close_up_in_each_matrix(op):
    q, k, v = (x.expand(3, *x.shape) for x in draw())
    key_mask = torch.rand(3, 18, generator=torch.Generator().manual_seed(1)) < 0.6
    out = op(q, k, v, key_mask)
    for i in range(3):
        keep = key_mask[i]
        alone = op(q[i], k[i][keep], v[i][keep])
        torch.testing.assert_close(out[i], alone, rtol=0, atol=tolerance(F64, 18))


def test_many_blocks_give_what_one_row_at_a_time_gives():
    # Long enough for several parts of several blocks, and no multiple of either.
    op = Local(6, dilation=2, sinks=3)
    n = 2501
    q, k, v = draw(n, n, d=2)
    out, exact = op(q, k, v), torch.empty(n, 3, dtype=F64)
    for i in range(n):
        at = sorted({j for j in range(i - 12, i + 13, 2) if 0 <= j < n} | {0, 1, 2})
        exact[i] = torch.softmax(q[i] @ k[at].mT / 2**0.5, -1) @ v[at]
    torch.testing.assert_close(out, exact, rtol=0, atol=tolerance(F64, 28))


def test_impossible_knobs_are_refused():
    for build, error, message in (
        (lambda: Local(0), ValueError, "Local.window is 0; give an integer of at least 1"),
        (lambda: Local(2.0), TypeError, "Local.window is 2.0; give an integer of at least 1"),
        (lambda: Local(2, dilation=0), ValueError, "Local.dilation is 0; give an integer of at"),
        (lambda: Local(2, sinks=-1), ValueError, "Local.sinks is -1; give an integer of at least"),
    ):
        with pytest.raises(error, match=re.escape(message)):
            build()
