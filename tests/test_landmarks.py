"""Landmark selectors against naive references, one matrix at a time."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from zoo import SELECTORS

from softlab.landmarks import SegmentMeans, Strided, UniformRandom

F64 = torch.float64
SUBSETS = [selector for selector in SELECTORS if selector.subset]


def normal(*shape, seed=0, dtype=F64):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=F64).to(dtype)


def some_mask(*shape, keep, seed=0):
    """A mask that keeps ``keep`` tokens of each matrix, others in each."""
    scores = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return scores.argsort(-1).argsort(-1) < keep


def segments(n, m):
    """Token numbers of each segment: token r belongs to floor(r m / n)."""
    return [[r for r in range(n) if r * m // n == j] for j in range(m)]


# n and m with 1 <= m <= n.
ANY_SIZE = st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))


@given(size=ANY_SIZE, lead=st.sampled_from([(), (2,), (2, 3)]))
def test_segment_means_are_means_of_segments(size, lead):
    n, m = size
    x = normal(*lead, n, 3)
    wanted = torch.stack([x[..., rows, :].mean(-2) for rows in segments(n, m)], -2)
    torch.testing.assert_close(SegmentMeans()(x, m), wanted, rtol=1e-14, atol=1e-14)


@given(size=ANY_SIZE)
def test_segments_differ_by_at_most_one_in_length(size):
    # The mean of the positions 0 .. n-1 gives each segment's middle, and so its ends.
    n, m = size
    middle = SegmentMeans()(torch.arange(n, dtype=F64)[:, None], m).squeeze(-1)
    start, lengths = 0, []
    for centre in middle.tolist():
        length = round(2 * (centre - start) + 1)
        lengths.append(length)
        start += length
    assert start == n
    assert max(lengths) - min(lengths) <= 1


@given(size=ANY_SIZE)
def test_strided_takes_the_first_token_of_equal_steps(size):
    n, m = size
    wanted = [j * n // m for j in range(m)]
    assert Strided().indices(normal(n, 2), m).tolist() == wanted


@pytest.mark.parametrize("selector", SUBSETS, ids=repr)
@given(size=ANY_SIZE, masked=st.booleans())
def test_indices_are_distinct_increasing_survivors_and_the_landmarks(selector, size, masked):
    n, m = size
    x = normal(2, n, 3)
    key_mask = some_mask(2, n, keep=(m + n) // 2 + (m == n)) if masked else None
    at = selector.indices(x, m, key_mask)
    assert at.shape == (2, m)
    assert bool((at.diff(dim=-1) > 0).all())
    assert int(at.min()) >= 0
    assert int(at.max()) < n
    if key_mask is not None:
        assert bool(key_mask.gather(-1, at).all())
    picked = torch.stack([x[b][at[b]] for b in range(2)])
    assert torch.equal(selector(x, m, key_mask), picked)


@pytest.mark.parametrize("selector", SELECTORS, ids=repr)
def test_as_many_landmarks_as_tokens_are_the_tokens(selector):
    x = normal(2, 7, 3)
    assert torch.equal(selector(x, 7), x)
    key_mask = some_mask(2, 7, keep=4)
    survivors = torch.stack([x[b][key_mask[b]] for b in range(2)])
    assert torch.equal(selector(x, 4, key_mask), survivors)


@pytest.mark.parametrize("selector", SELECTORS, ids=repr)
@given(size=ANY_SIZE, seed=st.integers(0, 20))
def test_masking_equals_deletion_even_of_nan(selector, size, seed):
    s, m = size
    x = normal(2, s + 5, 3)
    key_mask = some_mask(2, s + 5, keep=s, seed=seed)
    x = torch.where(key_mask.unsqueeze(-1), x, 0)
    out = selector(x, m, key_mask)
    for b in range(2):
        deleted = selector(x[b][key_mask[b]], m)
        torch.testing.assert_close(out[b], deleted, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("selector", SELECTORS, ids=repr)
def test_every_matrix_alone(selector):
    x = normal(3, 2, 11, 4) * torch.tensor([1, 1e8, 1e-8])[:, None, None, None]
    key_mask = some_mask(3, 2, 11, keep=7)
    key_mask[0, 0] = True  # unequal numbers of survivors
    out = selector(x, 5, key_mask)
    for i in range(3):
        for j in range(2):
            alone = selector(x[i, j], 5, key_mask[i, j])
            torch.testing.assert_close(out[i, j], alone, rtol=1e-13, atol=0)


def test_a_selector_that_couples_the_batch_would_be_caught():
    # The planted fault: one common mask for all matrices.
    x, key_mask = normal(2, 9, 3), some_mask(2, 9, keep=6)
    coupled = SegmentMeans()(x, 4, key_mask[:1].expand(2, 9))
    assert not torch.allclose(coupled[1], SegmentMeans()(x[1], 4, key_mask[1]))


@pytest.mark.parametrize("selector", SELECTORS, ids=repr)
def test_more_landmarks_than_survivors_are_refused(selector):
    x = normal(2, 6, 3)
    with pytest.raises(ValueError, match=r"rank 7 is asked of 6 tokens; use a rank of 1 to 6"):
        selector(x, 7)
    with pytest.raises(ValueError, match=r"rank 0 is asked of 6 tokens"):
        selector(x, 0)
    key_mask = torch.ones(2, 6, dtype=torch.bool)
    key_mask[1, 2:] = False
    with pytest.raises(ValueError, match=r"rank 3 is asked of 2 tokens"):
        selector(x, 3, key_mask)


# --- UniformRandom -----------------------------------------------------------------------------


def test_uniform_random_draws_every_token_and_every_pair_alike():
    n, m, draws = 8, 3, 3000
    x = normal(n, 1)
    singles, pairs = torch.zeros(n), torch.zeros(n, n)
    for seed in range(draws):
        chosen = torch.zeros(n)
        chosen[UniformRandom(seed).indices(x, m)] = 1
        singles += chosen
        pairs += chosen.outer(chosen)
    # Draws without replacement vary less than a chi-square's cells, so the test is conservative
    # for singles; scaled by (n - 1) / (n - m) it is the statistic of a simple random sample.
    expected = draws * m / n
    statistic = float(((singles - expected) ** 2 / expected).sum()) * (n - 1) / (n - m)
    assert stats.chi2.sf(statistic, n - 1) > 1e-3
    above = pairs[torch.triu(torch.ones(n, n, dtype=torch.bool), 1)]
    expected = draws * m * (m - 1) / (n * (n - 1))
    assert float(((above - expected).abs() / expected**0.5).max()) < 5


def test_a_draw_that_favours_the_front_would_be_caught():
    counts = torch.zeros(8)
    for seed in range(3000):
        g = torch.Generator().manual_seed(seed)
        counts[torch.randint(0, 7, (3,), generator=g).unique()] += 1  # never the last token
    expected = counts.sum() / 8
    assert stats.chi2.sf(float(((counts - expected) ** 2 / expected).sum()), 7) < 1e-3


def test_uniform_random_is_a_function_of_seed_and_survivors_alone():
    x = normal(4, 12, 2)
    at = UniformRandom(5).indices(x, 4)
    assert bool((at == at[0]).all())
    assert torch.equal(UniformRandom(5).indices(normal(12, 2, seed=7), 4), at[0])
    assert not torch.equal(UniformRandom(6).indices(x, 4), at)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    UniformRandom(5)(x, 4)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("seed", [-1, 1.5, True, "0", None])
def test_seeds_that_are_none_are_refused(seed):
    with pytest.raises(
        (TypeError, ValueError), match=r"UniformRandom\.seed is .*; give an integer"
    ):
        UniformRandom(seed)


# --- numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [4000, 4001])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_means_in_half_precision_neither_overflow_nor_stall(dtype, n):
    # A running float16 sum of these overflows after 65 tokens; a bfloat16 one stalls at 256.
    x = torch.full((n, 2), 1000.0 if dtype == torch.float16 else 1.0, dtype=dtype)
    x[: n // 2] *= 0.5
    out = SegmentMeans()(x, 2)
    assert out.dtype == dtype
    torch.testing.assert_close(
        out.float(), SegmentMeans()(x.double(), 2).float(), rtol=4e-3, atol=0
    )
    masked = SegmentMeans()(x, 2, torch.arange(n) != 3)
    torch.testing.assert_close(masked.float(), out.float(), rtol=4e-3, atol=0)


@pytest.mark.parametrize("selector", SELECTORS, ids=repr)
def test_gradients(selector):
    x = normal(2, 7, 2).requires_grad_()
    key_mask = some_mask(2, 7, keep=5)
    assert torch.autograd.gradcheck(lambda x: selector(x, 3), x)
    assert torch.autograd.gradcheck(lambda x: selector(x, 3, key_mask), x)
    (dx,) = torch.autograd.grad(selector(x, 3, key_mask).sum(), x)
    assert bool((dx[~key_mask] == 0).all())


@pytest.mark.parametrize("selector", SELECTORS, ids=repr)
def test_views_are_read_as_they_look(selector):
    x = normal(2, 4, 3, 11).permute(0, 2, 3, 1)
    assert torch.equal(selector(x, 5), selector(x.contiguous(), 5))
