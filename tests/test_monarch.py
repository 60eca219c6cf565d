"""Monarch: what its alternation raises, what its gap is, where it is exact, and what it loses."""

import math
import re

import pytest
import torch
from draws import head_of

from softlab import as_matrix
from softlab.laws import tolerance
from softlab.operators import Monarch, Softmax, Uniform
from softlab.profiling import peak_memory

F64 = torch.float64

CASES = [
    Monarch(block=2, steps=1),
    Monarch(block=3, steps=2),
    Monarch(block=4, steps=3),
]


def twin(op: Monarch, q, k, v):
    n, s, b = len(q), len(k), min(op.block, len(k))
    stands = [(2 * i + 1) * s // (2 * n) // b for i in range(n)]
    of_class = [stands[:i].count(stands[i]) for i in range(n)]
    blocks = [slice(x, x + b) for x in range(0, s, b)]
    out = [None] * n
    for c in range(max(of_class) + 1):
        mine = [i for i in range(n) if of_class[i] == c]
        x = q[mine]
        L = torch.zeros(len(mine), len(blocks), dtype=q.dtype)
        L[range(len(mine)), [stands[i] for i in mine]] = 1
        share = L.mT
        for step in range(op.steps):
            # At the start L selects a query, or none and R is uniform: no product.
            a = (
                share @ x
                if step
                else torch.stack([x[int(row.argmax())] if row.any() else 0 * x[0] for row in share])
            )
            R = [
                torch.softmax(a[j : j + 1] @ k[y].mT / q.shape[-1] ** 0.5, -1)
                for j, y in enumerate(blocks)
            ]
            z = torch.cat([r @ k[y] for r, y in zip(R, blocks, strict=True)])
            H = torch.stack([-torch.special.xlogy(r, r).sum() for r in R])
            L = torch.softmax(x @ z.mT / q.shape[-1] ** 0.5 + H, -1)
            share = (L / L.sum(0)).mT
        rows = L @ torch.cat([r @ v[y] for r, y in zip(R, blocks, strict=True)])
        for i, row in zip(mine, rows, strict=True):
            out[i] = row
    return torch.stack(out)


draw = head_of(24, 24)


def objective(matrix, q, k):
    """<A, s> + H(A) of each row, from the dense matrix."""
    scores = q @ k.mT / q.shape[-1] ** 0.5
    return (matrix * scores - torch.special.xlogy(matrix, matrix)).sum(-1)


def divergence(matrix, q, k):
    """KL(A || P) of each row, from the dense matrices."""
    logs = (q @ k.mT / q.shape[-1] ** 0.5).log_softmax(-1)
    return (torch.special.xlogy(matrix, matrix) - matrix * logs).sum(-1)


@pytest.mark.parametrize(("n", "l"), [(24, 24), (23, 23), (9, 26), (40, 22), (1, 7), (7, 1)])
@pytest.mark.parametrize("block", [1, 2, 5, 8, 100])
@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_the_objective_never_falls_and_misses_by_the_divergences(n, l, block, scale):
    q, k, _ = draw(n, l, scale=scale)
    scores = q @ k.mT / 2
    before = -math.inf
    for steps in (1, 2, 3, 4, 8):
        op = Monarch(block, steps)
        matrix = as_matrix(op, q, k)
        reached, missed = op.objective(q, k), op.divergence(q, k)
        allowed = {"rtol": 0, "atol": tolerance(F64, l, scale=float(scores.abs().max()) + 4)}
        torch.testing.assert_close(reached, objective(matrix, q, k), **allowed)
        torch.testing.assert_close(missed, divergence(matrix, q, k), **allowed)
        torch.testing.assert_close(scores.logsumexp(-1) - reached, missed, **allowed)
        assert float(reached.sum()) >= before - n * allowed["atol"]
        before = float(reached.sum())


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_rows_err_within_pinskers_bound(scale):
    for seed in range(4):
        q, k, v = draw(scale=scale, seed=seed)
        op, exact = Monarch(4, 2), Softmax()(q, k, v)
        allowed = (op.divergence(q, k) / 2).sqrt() * torch.cdist(v, v).max() + 1e-12
        assert bool(((op(q, k, v) - exact).norm(dim=-1) <= allowed).all())
    if scale == 0.3:  # where the divergence is small it refuses zeros
        assert not bool((exact.norm(dim=-1) <= allowed).all())


@pytest.mark.parametrize(("n", "l"), [(12, 12), (5, 12), (31, 12), (1, 12), (12, 1)])
def test_exact_with_blocks_of_one_and_with_one_block(n, l):
    for scale in (0.1, 1, 30):
        q, k, v = draw(n, l, scale=scale)
        exact = Softmax()(q, k, v)
        for op in (Monarch(1, 1), Monarch(1, 3), Monarch(l, 1), Monarch(l, 4), Monarch(99, 2)):
            torch.testing.assert_close(op(q, k, v), exact, rtol=1e-10, atol=1e-10)


def test_between_the_ends_it_is_not_exact():
    q, k, v = draw()
    exact = Softmax()(q, k, v)
    for op in (Monarch(2, 3), Monarch(8, 3), Monarch(23, 3)):
        assert float((op(q, k, v) - exact).abs().max()) > 1e-2


def test_a_single_query_is_exact_from_the_second_step_on():
    q, k, v = draw(n=1, l=20, scale=2)
    exact = Softmax()(q, k, v)
    torch.testing.assert_close(Monarch(4, 2)(q, k, v), exact, rtol=1e-12, atol=1e-12)
    assert float((Monarch(4, 1)(q, k, v) - exact).abs().max()) > 1e-2


def test_a_class_has_rank_one_in_every_block():
    q, k, _ = draw(n=32, l=32)
    matrix = as_matrix(Monarch(8, 3), q, k).reshape(4, 8, 4, 8)
    for c in range(8):
        for x in range(4):
            s = torch.linalg.svdvals(matrix[:, c, x])
            assert float(s[1]) < 1e-12 * float(s[0])
    dense = as_matrix(Softmax(), q, k).reshape(4, 8, 4, 8)[:, 0, 0]
    assert float(torch.linalg.svdvals(dense)[1]) > 1e-3


def test_exact_on_the_structure_that_it_has():
    """Queries of a class with one direction inside the blocks and scores of blocks of their own."""
    g = torch.Generator().manual_seed(0)
    within = torch.randn(8, 5, generator=g, dtype=F64)  # of class c, and of key j of a block
    across = torch.randn(4, 3, generator=g, dtype=F64)
    keys_within = torch.randn(4, 8, 5, generator=g, dtype=F64)
    keys_across = torch.randn(4, 3, generator=g, dtype=F64)
    q = torch.cat((within.expand(4, 8, 5), across[:, None].expand(4, 8, 3)), -1).reshape(32, 8)
    k = torch.cat((keys_within, keys_across[:, None].expand(4, 8, 3)), -1).reshape(32, 8)
    v = torch.randn(32, 3, generator=g, dtype=F64)
    out = Monarch(8, 2)(3 * q, k, v)
    torch.testing.assert_close(out, Softmax()(3 * q, k, v), rtol=1e-10, atol=1e-12)
    shuffled = torch.randperm(32, generator=g)
    out = Monarch(8, 2)(3 * q, k[shuffled], v[shuffled])
    assert float((out - Softmax()(3 * q, k, v)).abs().max()) > 1e-2


def test_on_scattered_scores_it_is_near_the_mean_of_v():
    q, k, _ = draw(n=256, l=256, d=64)
    exact, mean = as_matrix(Softmax(), q, k), as_matrix(Uniform(), q, k)
    monarch = as_matrix(Monarch(16, 3), q, k)

    def error(x):
        return float((x - exact).norm() / exact.norm())

    assert error(mean) > error(monarch) > 0.85 * error(mean)
    gaps = [float(Monarch(16, steps).divergence(q, k).sum()) for steps in (1, 4)]
    assert gaps[1] < gaps[0]
    # At twice the scale the divergence still falls below the mean's, and the norm of the error not.
    exact = as_matrix(Softmax(), 2 * q, k)
    monarch = as_matrix(Monarch(16, 3), 2 * q, k)
    assert float(Monarch(16, 3).divergence(2 * q, k).sum()) < float(
        divergence(mean, 2 * q, k).sum()
    )
    assert error(monarch) > error(mean)


def test_masked_keys_leave_their_blocks():
    q, k, v = (torch.stack([x, x.flip(-1), -x]) for x in draw(n=20, l=22))
    key_mask = torch.rand(3, 22, generator=torch.Generator().manual_seed(0)) < 0.6
    op = Monarch(4, 3)
    out, reached = op(q, k, v, key_mask), op.objective(q, k, key_mask)
    missed = op.divergence(q, k, key_mask)
    for i, kept in enumerate(key_mask):
        alone = q[i], k[i, kept]
        torch.testing.assert_close(out[i], op(*alone, v[i, kept]), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(reached[i], op.objective(*alone), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(missed[i], op.divergence(*alone), rtol=1e-12, atol=1e-12)


def test_many_parts_give_what_one_part_gives():
    q, k, v = draw(n=3000, l=3000, d=8)
    op = Monarch(60, 2)
    first = slice(0, 3000, 60)  # one class
    among = op(q[first], k, v)  # of as many queries as blocks: one stands in each
    torch.testing.assert_close(op(q, k, v)[first], among, rtol=0, atol=tolerance(F64, 3000))


def test_at_blocks_of_the_root_it_takes_little_memory_at_sixteen_thousand_tokens():
    q, k, v = (torch.randn(4, 16384, 32) for _ in range(3))
    peak = peak_memory(lambda: Monarch(128, 2)(q, k, v), q.device)
    assert peak < 16 * q.numel() * q.element_size()


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: Monarch(0), ValueError, "Monarch.block is 0; give an integer of at least 1"),
        (lambda: Monarch(8, 0), ValueError, "Monarch.steps is 0; give an integer of at least 1"),
        (lambda: Monarch(8.0), TypeError, "Monarch.block is 8.0; give an integer of at least 1"),
    ],
)
def test_impossible_knobs_are_refused(build, error, message):
    with pytest.raises(error, match=re.escape(message)):
        build()
