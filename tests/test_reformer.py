"""Reformer: its hash, the union of its rounds, its limits, and why it has no causal form."""

import dataclasses
import math
import re

import pytest
import torch
from draws import head_of
from scipy import stats

from softlab import as_matrix
from softlab.laws import tolerance
from softlab.operators import ColumnSample, Local, Reformer, Softmax, Uniform
from softlab.profiling import peak_memory

F64 = torch.float64
draw = head_of(20, 16)


def support(op, q, k):
    return as_matrix(op, q, k) > 0


# --- the hash ----------------------------------------------------------------------------------


def test_a_hash_sees_the_direction_alone_and_opposite_tokens_hash_half_the_buckets_apart():
    x = torch.cat(draw()[:2])
    op = Reformer(buckets=8, rounds=5)
    assert torch.equal(op.hashes(1e-6 * x), op.hashes(1e6 * x))
    assert bool(((op.hashes(x) - op.hashes(-x)).abs() == 4).all())
    assert int(op.hashes(x).max()) < 8


@pytest.mark.parametrize("degrees", [10, 60, 90, 150])
def test_two_buckets_part_a_pair_in_proportion_to_its_angle(degrees):
    # R is one random direction, of which both signs must agree.
    t, seeds = math.radians(degrees), 4000
    pair = torch.tensor([[1.0, 0, 0], [math.cos(t), math.sin(t), 0]], dtype=F64)
    hashes = Reformer(buckets=2, rounds=seeds).hashes(pair)
    alike = int((hashes[:, 0] == hashes[:, 1]).sum())
    assert stats.binomtest(alike, seeds, 1 - t / math.pi).pvalue > 1e-5


def test_more_buckets_part_far_pairs_from_near_ones_more():
    pair = {t: torch.tensor([[1.0, 0], [math.cos(t), math.sin(t)]], dtype=F64) for t in (0.3, 1.2)}

    def alike(buckets, t):
        hashes = Reformer(buckets=buckets, rounds=4000).hashes(pair[t])
        return float((hashes[:, 0] == hashes[:, 1]).double().mean())

    ratios = [alike(buckets, 0.3) / alike(buckets, 1.2) for buckets in (2, 8, 32)]
    assert ratios[0] < 0.8 * ratios[1] < 0.64 * ratios[2]


# --- which keys --------------------------------------------------------------------------------


def test_a_key_counts_once_however_many_rounds_find_it():
    q, k, _ = draw(l=24)
    for rounds in (1, 2, 5, 30):
        op = Reformer(buckets=4, chunk=6, rounds=rounds)
        exact, matrix = as_matrix(Softmax(), q, k), as_matrix(op, q, k)
        kept = exact * (matrix > 0)
        wanted = kept / kept.sum(-1, keepdim=True)
        torch.testing.assert_close(matrix, wanted, rtol=0, atol=tolerance(F64, 24))


def test_further_rounds_keep_the_first_ones():
    few, many = (Reformer(buckets=6, rounds=r).rotations(5) for r in (3, 7))
    assert torch.equal(few, many[:3])


def test_rounds_only_add_keys_and_shrink_the_error():
    q, k, v = draw(n=64, l=64)
    exact = Softmax()(q, k, v)
    errors, before = [], torch.zeros(64, 64, dtype=torch.bool)
    for rounds in (1, 2, 4, 8, 32):
        op = Reformer(buckets=8, chunk=8, rounds=rounds)
        now = support(op, q, k)
        assert bool((now | ~before).all())
        assert int(now.sum()) > int(before.sum())
        before = now
        errors.append(float((op(q, k, v) - exact).norm() / exact.norm()))
    assert errors[-1] < 0.25 * errors[0]


def test_a_query_meets_its_hash_in_its_part_and_the_one_before():
    op = Reformer(buckets=2, chunk=4, rounds=1)
    x, _, _ = draw(n=32)
    hashes = op.hashes(x)[0]
    order = hashes.argsort(stable=True).tolist()
    met = support(op, x, x)
    for i, a in enumerate(order):
        for j, b in enumerate(order):
            near = i // 4 - j // 4 in (0, 1)
            assert bool(met[a, b]) == (near and bool(hashes[a] == hashes[b]))


def test_the_first_part_has_none_before_it():
    # The released code takes the last part for it.
    x, _, _ = draw(n=12)
    met = support(Reformer(buckets=1, chunk=4, rounds=1), x, x)
    part = torch.arange(12) // 4
    ahead = part[:, None] - part
    assert torch.equal(met, (ahead == 0) | (ahead == 1))


def test_where_queries_are_the_keys_each_finds_itself():
    for seed in range(5):
        x, _, _ = draw(n=50, seed=seed)
        assert bool(support(Reformer(buckets=16, chunk=4, rounds=1, seed=seed), x, x).diag().all())


def test_a_query_without_a_key_of_its_hash_meets_all_of_its_two_parts():
    op = Reformer(buckets=2, chunk=2, rounds=3)
    k = torch.ones(8, 3, dtype=F64)
    parts = support(op, -k, k)  # opposite directions never hash alike
    block = torch.arange(8) // 2
    ahead = block[:, None] - block
    assert torch.equal(parts, (ahead == 0) | (ahead == 1))


# --- limits and accuracy -----------------------------------------------------------------------


@pytest.mark.parametrize("op", [Reformer(1, 16, 1), Reformer(1, 99, 3)], ids=repr)
def test_exact_where_nothing_is_hashed_and_a_part_holds_all(op):
    for scale in (0.1, 1, 30):
        q, k, v = draw()
        exact = Softmax()(scale * q, k, v)
        torch.testing.assert_close(op(scale * q, k, v), exact, rtol=1e-12, atol=1e-12)
    q, k, v = draw()
    one_less = dataclasses.replace(op, chunk=5)
    assert float((one_less(q, k, v) - Softmax()(q, k, v)).abs().max()) > 1e-2


def test_one_part_errs_by_the_angles_that_no_round_joins():
    # The part holds all keys, so that the hash alone decides.
    q, k, _ = draw(n=200, l=200)
    cosine = torch.nn.functional.normalize(q, dim=-1) @ torch.nn.functional.normalize(k, dim=-1).mT
    for rounds in (1, 3):
        joined = 1 - (torch.arccos(cosine) / math.pi) ** rounds
        seeds = [support(Reformer(2, 200, rounds, seed=s), q, k).double() for s in range(60)]
        # Each of 40,000 pairs is drawn 60 times.
        gap = (torch.stack(seeds).mean(0) - joined) / (joined * (1 - joined) / 60).sqrt()
        assert float(gap.abs().mean()) < 1
        assert abs(float(gap.mean())) < 0.3


def clusters(size=16, count=16, d=32, seed=0):
    """Tokens in far and tight clusters, shuffled; queries attend to their own cluster's keys."""
    g = torch.Generator().manual_seed(seed)
    centres = 8 * torch.nn.functional.normalize(
        torch.randn(count, d, generator=g, dtype=F64), dim=-1
    )
    q, k = (
        (centres.repeat(size, 1) + 0.1 * torch.randn(size * count, d, generator=g, dtype=F64))[
            torch.randperm(size * count, generator=g)
        ]
        for _ in range(2)
    )
    return q, k, torch.randn(size * count, 3, generator=g, dtype=F64)


def error(op, q, k, v):
    exact = Softmax()(q, k, v)
    return float((op(q, k, v) - exact).norm() / exact.norm())


def test_clusters_are_found_where_a_sample_of_as_many_keys_misses_them():
    q, k, v = clusters()
    errors = [error(Reformer(16, 32, 4, seed=s), q, k, v) for s in range(20)]
    met = max(int(support(Reformer(16, 32, 4, seed=s), q, k).sum(-1).max()) for s in range(20))
    sampled = [error(ColumnSample(min(met, 256), seed=s), q, k, v) for s in range(20)]
    trivial = min(1.0, error(Uniform(), q, k, v))  # zeros, and the mean of v
    assert sum(errors) < sum(sampled)
    assert max(errors) < 0.5 * trivial


# --- no causal form ----------------------------------------------------------------------------


def causal(op, x, v):
    """Attention of x to the keys that ``op`` keeps, later ones masked as the paper does it."""
    weights = as_matrix(Softmax(), x, x) * support(op, x, x).tril()
    return weights / weights.sum(-1, keepdim=True) @ v


def seen_ahead(op, seeds=20):
    """The largest change of an output by a change of the last token, in how many of the draws."""
    changes = []
    for seed in range(seeds):
        x, _, v = draw(n=32, l=32, seed=seed)
        other = torch.cat((x[:-1], -x[-1:]))
        changes.append(float((causal(op, x, v) - causal(op, other, v))[:-1].abs().max()))
    return changes


def test_masking_later_keys_does_not_keep_later_tokens_out():
    # A later token moves the cuts of the sorted order, and so which earlier keys are met.
    changes = seen_ahead(Reformer(buckets=4, chunk=4, rounds=2))
    assert sum(change > 1e-2 for change in changes) > 10
    # Where positions alone decide, the same mask is enough.
    assert max(seen_ahead(Local(window=4))) < 1e-14


# --- sizes -------------------------------------------------------------------------------------


def test_many_parts_and_one_at_a_time_give_the_same():
    q, k, v = draw(n=3000, l=2000, d=8)
    op, some = Reformer(buckets=8, chunk=16, rounds=3), torch.arange(0, 3000, 97)
    exact = (q @ k.mT / 8**0.5).softmax(-1)
    kept = exact * support(op, q, k)
    wanted = (kept / kept.sum(-1, keepdim=True) @ v)[some]
    torch.testing.assert_close(op(q, k, v)[some], wanted, rtol=0, atol=tolerance(F64, 2000))


def test_matrices_that_keep_different_numbers_of_keys_have_parts_of_their_own():
    q, k, v = (torch.stack([x, x.flip(-1), -x]) for x in draw(l=20, d=3))
    key_mask = torch.arange(20) < torch.tensor([[20], [11], [3]])
    op = Reformer(4, 3, 2, seed=1)
    out = op(q, k, v, key_mask)
    for i, kept in enumerate((20, 11, 3)):
        alone = op(q[i], k[i, :kept], v[i, :kept])
        torch.testing.assert_close(out[i], alone, rtol=1e-12, atol=1e-12)


def test_the_default_takes_little_memory_at_sixteen_thousand_tokens():
    q, k, v = (torch.randn(4, 16384, 32) for _ in range(3))
    peak = peak_memory(lambda: Reformer()(q, k, v), q.device)
    assert peak < 10 * q.numel() * q.element_size()


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: Reformer(0), ValueError, "Reformer.buckets is 0; give an integer of at least 1"),
        (lambda: Reformer(7), ValueError, "Reformer.buckets is 7, and every direction has an opp"),
        (lambda: Reformer(4, 0), ValueError, "Reformer.chunk is 0; give an integer of at least 1"),
        (lambda: Reformer(4, 2.0), TypeError, "Reformer.chunk is 2.0; give an integer of at lea"),
        (lambda: Reformer(rounds=0), ValueError, "Reformer.rounds is 0; give an integer of at le"),
        (lambda: Reformer(seed=-1), ValueError, "Reformer.seed is -1; give an integer of at leas"),
    ],
)
def test_impossible_knobs_are_refused(build, error, message):
    with pytest.raises(error, match=re.escape(message)):
        build()
