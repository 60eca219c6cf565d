"""MRA: what a coarse block weighs, how far it errs, which blocks are refined, and its limits."""

import re

import pytest
import torch
from draws import head_of

from softlab import as_matrix
from softlab.laws import tolerance
from softlab.operators import MRA, Softmax, Uniform
from softlab.profiling import peak_memory

F64 = torch.float64
draw = head_of(20, 22)


def smooth(spread, n=64, d=8, seed=0):
    """Tokens within ``spread`` of a point that eight neighbours share."""
    g = torch.Generator().manual_seed(seed)

    def tokens():
        points = 1.5 * torch.randn(n // 8, d, generator=g, dtype=F64)
        return points.repeat_interleave(8, 0) + spread * torch.randn(n, d, generator=g, dtype=F64)

    return tokens(), tokens(), torch.randn(n, 3, generator=g, dtype=F64)


def in_blocks(x, block):
    """(rows, columns) of x averaged over blocks of rows and of columns, as large as x."""
    row, column = (torch.arange(size) // block for size in x.shape)
    pick = (torch.eye(int(of[-1]) + 1, dtype=x.dtype)[of] for of in (row, column))
    r, c = (p @ (p / p.sum(0)).mT for p in pick)
    return r @ x @ c


@pytest.mark.parametrize(
    "op", [MRA(4, 6), MRA(30, 1), MRA(1, 1), MRA(4, 6, sparse=True), MRA(22, 1, sparse=True)]
)
def test_exact_where_nothing_is_left_coarse(op):
    for scale in (0.1, 1, 30):
        q, k, v = draw()
        exact = Softmax()(scale * q, k, v)
        torch.testing.assert_close(op(scale * q, k, v), exact, rtol=1e-12, atol=1e-12)
    assert float((MRA(4, 5)(q, k, v) - exact).abs().max()) > 1e-3


@pytest.mark.parametrize("block", [2, 4, 8])
def test_exact_where_tokens_of_a_block_are_equal(block):
    q, k, v = smooth(0.0)
    exact = Softmax()(q, k, v)
    torch.testing.assert_close(MRA(block, 1)(q, k, v), exact, rtol=0, atol=tolerance(F64, 64))
    assert float((MRA(block, 1, sparse=True)(q, k, v) - exact).abs().max()) > 1e-3
    assert float((MRA(3, 1)(q, k, v) - exact).abs().max()) > 1e-3


@pytest.mark.parametrize("spread", [0.001, 0.1, 0.5])
@pytest.mark.parametrize("refined", [1, 3])
def test_error_is_bounded_by_how_scores_vary_in_coarse_blocks(spread, refined):
    q, k, v = smooth(spread)
    s = q @ k.mT / 8**0.5
    t = in_blocks(s, 8)
    at = t.topk(8 * refined, -1).indices
    apart = (s - t).abs().scatter(-1, at, 0).amax(-1)
    allowed = (apart / 2).tanh() * torch.cdist(v, v).max() + tolerance(F64, 64)
    exact = Softmax()(q, k, v)

    def missed(out):
        return (out - exact).norm(dim=-1)

    assert bool((missed(MRA(8, refined)(q, k, v)) <= allowed).all())
    if spread == 0.001:
        for trivial in (0 * exact, Uniform()(q, k, v)):
            assert not bool((missed(trivial) <= allowed).any())


def test_a_coarse_block_never_weighs_more_than_its_entries():
    q, k, _ = draw(n=32, l=40)
    # One block of queries and a refined entry of known weight: the coarse mass is relative to it.
    s = q @ k.mT / 2
    exact, t = s.exp(), in_blocks(s, 8)
    matrix = as_matrix(MRA(8, 1), q, k)
    at = t.topk(8, -1).indices
    known = at[:, :1]
    unnormalised = matrix / matrix.gather(-1, known) * exact.gather(-1, known)
    torch.testing.assert_close(unnormalised, t.exp().scatter(-1, at, exact.gather(-1, at)))
    coarse, fine = in_blocks(t.exp(), 8), in_blocks(exact, 8)
    assert bool((coarse < fine).all())


def test_the_heaviest_blocks_are_refined():
    q, k, v = smooth(0.1, seed=3)
    kept = as_matrix(MRA(8, 2, sparse=True), q, k) > 0
    assert bool((kept.sum(-1) == 16).all())
    mass = (q @ k.mT / 8**0.5).softmax(-1)
    of_blocks = mass.unflatten(-1, (8, 8)).sum(-1).unflatten(0, (8, 8)).sum(1)
    chosen = kept[::8, ::8]
    assert bool((of_blocks.topk(2).values.sum(-1) == (of_blocks * chosen).sum(-1)).all())
    # Where blocks have one scale, refining those is better than refining none and than dropping.
    exact = Softmax()(q, k, v)
    errors = [
        float((op(q, k, v) - exact).norm())
        for op in (MRA(8, 2), MRA(8, 2, sparse=True), MRA(64, 1, sparse=True), Uniform())
    ]
    assert errors[0] < 0.5 * errors[1]
    assert errors[1] < errors[3]
    assert errors[2] < 1e-12


def test_one_large_score_in_a_block_is_lost():
    u = torch.tensor([6.0, 0, 0, 0], dtype=F64)
    q, k = torch.zeros(32, 4, dtype=F64), torch.zeros(32, 4, dtype=F64)
    q[:8], q[5], k[13] = -u, u, u
    exact, got = (as_matrix(op, q, k)[5, 13] for op in (Softmax(), MRA(8, 1)))
    assert float(exact) > 0.999
    assert float(got) < 0.1


def test_many_parts_give_what_one_part_gives():
    q, k, v = draw(n=9000, l=600)
    op, some = MRA(8, 3), torch.arange(0, 9000, 1000)
    out = op(q, k, v)
    for i in some.tolist():
        torch.testing.assert_close(
            out[i : i + 8], op(q[i : i + 8], k, v), rtol=0, atol=tolerance(F64, 600)
        )


def test_matrices_that_keep_different_numbers_of_keys_have_blocks_of_their_own():
    q, k, v = (torch.stack([x, x.flip(-1), -x]) for x in draw())
    key_mask = torch.arange(22) < torch.tensor([[22], [11], [3]])
    for op in (MRA(4, 2), MRA(4, 2, sparse=True)):
        out = op(q, k, v, key_mask)
        for i, kept in enumerate((22, 11, 3)):
            alone = op(q[i], k[i, :kept], v[i, :kept])
            torch.testing.assert_close(out[i], alone, rtol=1e-12, atol=1e-12)


def test_the_default_takes_little_memory_at_sixteen_thousand_tokens():
    q, k, v = (torch.randn(4, 16384, 32) for _ in range(3))
    peak = peak_memory(lambda: MRA()(q, k, v), q.device)
    assert peak < 10 * q.numel() * q.element_size()


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: MRA(0), ValueError, "MRA.block is 0; give an integer of at least 1"),
        (lambda: MRA(2, 0), ValueError, "MRA.refined is 0; give an integer of at least 1"),
        (lambda: MRA(2, 1.0), TypeError, "MRA.refined is 1.0; give an integer of at least 1"),
        (lambda: MRA(2, 1, sparse=1), TypeError, "MRA.sparse is 1; give True or False"),
    ],
)
def test_impossible_knobs_are_refused(build, error, message):
    with pytest.raises(error, match=re.escape(message)):
        build()
