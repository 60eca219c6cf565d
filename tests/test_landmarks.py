"""Landmark selectors against naive references, one matrix at a time."""

import math
import re
from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from zoo import SELECTORS

from softlab import Dims
from softlab.landmarks import (
    FarthestPoint,
    GreedyResidual,
    GridConv,
    GridPool,
    KMeans,
    LeverageScores,
    RPCholeskyPivots,
    SegmentMeans,
    Strided,
    UniformRandom,
)
from softlab.landmarks.grids import cells

F64 = torch.float64
SUBSETS = [selector for selector in SELECTORS if selector.subset]
MEANS = [selector for selector in SELECTORS if selector.means]
NESTED = [selector for selector in SELECTORS if selector.nested]


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


@pytest.mark.parametrize("selector", MEANS, ids=repr)
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


# --- what selectors promise --------------------------------------------------------------------


def of_equal_tokens(selector):
    x = normal(1, 3).expand(9, 3)
    torch.testing.assert_close(selector(x, 4), x[:4], rtol=1e-14, atol=0)


@pytest.mark.parametrize("selector", MEANS, ids=repr)
def test_landmarks_of_equal_tokens_equal_them(selector):
    of_equal_tokens(selector)


def test_a_layer_norm_makes_no_means():
    with pytest.raises(AssertionError):
        of_equal_tokens(GridConv())


def as_sets(at):
    return [set(row.tolist()) for row in at]


def equivariant(selector):
    for seed in range(5):
        x, order = normal(3, 12, 3, seed=seed), torch.randperm(12)
        assert as_sets(order[selector.indices(x[:, order], 5)]) == as_sets(selector.indices(x, 5))


def nested(selector):
    x = normal(3, 12, 3)
    for m in range(1, 12):
        fewer, more = (as_sets(selector.indices(x, rank)) for rank in (m, m + 1))
        assert all(a < b for a, b in zip(fewer, more, strict=True))


@pytest.mark.parametrize("selector", SUBSETS, ids=repr)
@pytest.mark.parametrize(("claim", "check"), [("equivariant", equivariant), ("nested", nested)])
def test_claims_hold_and_fail_where_they_are_not_made(selector, claim, check):
    if getattr(selector, claim):
        check(selector)
    else:
        with pytest.raises(AssertionError):
            check(selector)


def kernel(x, y):
    """SOFT's Gaussian."""
    return (-torch.cdist(x, y).square() / (2 * x.shape[-1] ** 0.5)).exp()


def left_over(x, z):
    """What Nystrom's approximation with landmarks z leaves of the kernel matrix of x."""
    across = kernel(x, z)
    return kernel(x, x) - across @ torch.linalg.pinv(kernel(z, z), hermitian=True) @ across.mT


def assert_leftover_of_nystrom(a, left, m):
    """No less than nothing, no less than the best matrix of rank m leaves in trace."""
    s = torch.linalg.eigvalsh(a).flip(-1)
    assert float(torch.linalg.eigvalsh(left).min()) > -1e-9
    assert bool((left.diagonal(dim1=-2, dim2=-1).sum(-1) > s[..., m:].sum(-1) - 1e-9).all())


@pytest.mark.parametrize("selector", SELECTORS, ids=repr)
@given(m=st.integers(1, 14), seed=st.integers(0, 3))
def test_nystrom_never_exceeds_the_matrix_nor_beats_the_tail(selector, m, seed):
    x = normal(2, 14, 3, seed=seed)
    left = left_over(x, selector(x, m))
    assert_leftover_of_nystrom(kernel(x, x), left, m)
    if m == 14 and selector.means:
        assert float(left.abs().max()) < 1e-9


def test_a_core_of_other_landmarks_would_be_caught():
    x = normal(2, 14, 3)
    z = SegmentMeans()(x, 5)
    across = kernel(x, z)
    left = kernel(x, x) - across @ torch.linalg.inv(kernel(1.1 * z, 1.1 * z)) @ across.mT
    with pytest.raises(AssertionError):
        assert_leftover_of_nystrom(kernel(x, x), left, 5)
    s, u = torch.linalg.eigh(kernel(x, x))
    s[..., -6:] = 0
    with pytest.raises(AssertionError):  # the best matrix of a larger rank
        assert_leftover_of_nystrom(kernel(x, x), u @ (s.unsqueeze(-1) * u.mT), 5)


@pytest.mark.parametrize("selector", NESTED, ids=repr)
def test_more_of_nested_landmarks_never_leave_more(selector):
    x = normal(2, 14, 3)
    left = torch.stack([left_over(x, selector(x, m)) for m in range(1, 15)])
    traces = left.diagonal(dim1=-2, dim2=-1).sum(-1)
    assert float(traces.diff(dim=0).max()) < 1e-9
    assert float(torch.linalg.eigvalsh(left[:-1] - left[1:]).min()) > -1e-8


@pytest.mark.parametrize("selector", SELECTORS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_choice_does_not_hang_on_the_precision(selector, dtype):
    x = normal(2, 50, 4).to(dtype)
    got, wanted = selector(x, 7), selector(x.double(), 7)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), wanted, rtol=2 * torch.finfo(dtype).eps, atol=1e-2)


# --- FarthestPoint and GreedyResidual ----------------------------------------------------------


def radius(x, at):
    return float(torch.cdist(x, x[at]).amin(-1).max())


@pytest.mark.parametrize("seed", range(5))
def test_no_token_is_twice_as_far_as_the_best_landmarks_would_allow(seed):
    x = normal(10, 2, seed=seed)
    best = min(radius(x, list(at)) for at in combinations(range(10), 3))
    assert radius(x, FarthestPoint().indices(x, 3)) <= 2 * best


def test_the_greedy_choice_has_most_left_to_explain():
    x = normal(12, 3)
    for m in range(1, 8):
        at = GreedyResidual().indices(x, m)
        new = set(GreedyResidual().indices(x, m + 1).tolist()) - set(at.tolist())
        assert new == {int(left_over(x, x[at]).diagonal().argmax())}


# --- KMeans ------------------------------------------------------------------------------------


def inertia(x, z):
    return float(torch.cdist(x, z).amin(-1).square().sum())


def test_steps_of_lloyd_never_raise_the_sum_of_squares_and_end_at_a_fixed_point():
    x = normal(60, 3)
    found = [inertia(x, KMeans(steps)(x, 6)) for steps in range(1, 31)]
    assert all(after <= before + 1e-9 for before, after in pairwise(found))
    z = KMeans(30)(x, 6)
    owner = torch.cdist(x, z).argmin(-1)
    means = torch.stack([x[owner == j].mean(0) for j in range(6)])
    torch.testing.assert_close(z, means, rtol=1e-12, atol=1e-12)


def test_seeds_of_k_means_have_the_odds_of_squared_distances():
    # Four groups far apart: without ties in odds every group gets one of four seeds.
    centre = 100 * torch.eye(4, dtype=F64)
    x = centre.repeat_interleave(torch.tensor([1, 2, 30, 50]), 0) + normal(83, 4)
    for seed in range(20):
        z = KMeans(3, seed)(x, 4)
        assert sorted((z / 100).round().argmax(-1).tolist()) == [0, 1, 2, 3]
    uniform = [UniformRandom(seed)(x, 4).argmax(-1).unique().numel() for seed in range(20)]
    assert max(uniform) < 4


def test_repeated_tokens_empty_no_landmark():
    x = normal(3, 2).repeat(4, 1)
    z = KMeans()(x, 7)
    assert set(map(tuple, z.tolist())) == set(map(tuple, x.tolist()))


# --- RPCholeskyPivots --------------------------------------------------------------------------


def test_pairs_of_pivots_have_the_odds_of_the_diagonal_that_is_left():
    x, seeds = 1.5 * normal(6, 2), 1000
    x[5] = x[4] + 0.2
    counts = torch.zeros(6, 6, dtype=F64)
    for seed in range(seeds):
        i, j = RPCholeskyPivots(seed=seed).indices(x, 2)
        counts[i, j] += 1
    odds = torch.zeros(6, 6, dtype=F64)
    for i in range(6):
        rest = left_over(x, x[[i]]).diagonal().clamp_min(0)
        odds[i] = rest / rest.sum() / 6
    odds = (odds + odds.mT).triu(1)
    above = torch.ones(6, 6, dtype=torch.bool).triu(1)
    expected = seeds * odds[above]
    observed, common = counts[above], expected > 5
    assert int(common.sum()) == 14  # all but the pair of near-copies
    statistic = ((observed - expected).square() / expected)[common].sum()
    assert stats.chi2.sf(float(statistic), 14) > 1e-4
    uniform = seeds / 15
    assert stats.chi2.sf(float(((observed - uniform).square() / uniform).sum()), 14) < 1e-6


def clustered(*sizes, spread):
    """Tokens of well separated groups of these sizes, in order."""
    centre = 4 * normal(len(sizes), 8)
    return centre.repeat_interleave(torch.tensor(sizes), 0) + spread * normal(sum(sizes), 8, seed=1)


def test_on_clusters_it_beats_uniform_draws_by_the_published_factor():
    # Chen et al., Theorem 3.1: E tr(K - K_m) <= (1 + eps) sum_{i > r} s_i for
    # m >= r / eps + r log(1 / (eps eta)), eta = sum_{i > r} s_i / tr(K). A uniform draw of m of n
    # leaves each of a group that it misses, for groups do not explain each other. Groups of equal
    # size it seldom misses at such an m, so the factor is one of small groups.
    sizes, eps, draws = (48,) * 8 + (1,) * 8, 1.0, 20
    x, r, n = clustered(*sizes, spread=0.01), len(sizes), sum(sizes)
    s = torch.linalg.eigvalsh(kernel(x, x)).flip(0)
    tail = float(s[r:].sum())
    m = math.ceil(r / eps + r * math.log(n / (eps * tail)))
    assert m < n / 2
    ours, uniform = (
        torch.tensor(
            [float(left_over(x, selector(seed=seed)(x, m)).trace()) for seed in range(draws)]
        )
        for selector in (RPCholeskyPivots, UniformRandom)
    )
    missed = sum(size * math.comb(n - size, m) / math.comb(n, m) for size in sizes)
    promised = missed / ((1 + eps) * tail)
    assert promised > 10
    error = 5 * float(uniform.std()) / math.sqrt(draws)
    assert missed - error < float(uniform.mean()) < missed + error + tail
    assert float(ours.max()) < (1 + eps) * tail
    assert float(uniform.mean() / ours.mean()) > promised


def test_a_block_has_no_repeats_and_wastes_draws_on_a_cluster():
    x = clustered(16, 16, 16, 16, spread=0.0)
    for seed in range(10):
        groups = RPCholeskyPivots(seed=seed).indices(x, 4) // 16
        assert sorted(groups.tolist()) == [0, 1, 2, 3]
    repeats = [
        4 - (RPCholeskyPivots(4, seed=seed).indices(x, 4) // 16).unique().numel()
        for seed in range(40)
    ]
    # Of four without replacement out of 64, sixteen each.
    mean = 4 * math.comb(48, 4) / math.comb(64, 4)
    assert abs(sum(repeats) / 40 - mean) < 5 * torch.tensor(repeats).double().std() / 40**0.5


# --- LeverageScores ----------------------------------------------------------------------------


def test_scores_of_the_whole_sample_are_the_ridge_leverage_scores():
    x, m = normal(2, 20, 3), 5
    c = 0.1 * 20 / m
    a = kernel(x, x)
    wanted = (a @ torch.linalg.inv(a + c * torch.eye(20, dtype=F64))).diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(LeverageScores(sample=4).scores(x, m), wanted)
    # A sample gives an estimate: near, and no longer equal.
    rough = LeverageScores(sample=2).scores(x, m)
    assert float((rough / wanted - 1).abs().max()) > 0.01
    assert 0.5 < float(rough.sum() / wanted.sum()) < 2


def test_copies_share_a_score_and_the_lone_token_is_drawn_first():
    x = torch.cat((normal(1, 3).expand(30, 3), 9 + normal(1, 3)))
    score = LeverageScores(sample=16).scores(x, 2)
    c = 0.1 * 31 / 2
    wanted = torch.full((31,), 1 / (30 + c), dtype=F64)
    wanted[-1] = 1 / (1 + c)
    torch.testing.assert_close(score, wanted)
    drawn = [bool((LeverageScores(sample=31, seed=i).indices(x, 1) == 30).any()) for i in range(99)]
    assert abs(sum(drawn) / 99 - float(wanted[-1] / wanted.sum())) < 0.25


# --- grids -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "by", "m"), [(6, 8, 2, 12), (9, 9, 3, 9), (4, 8, 4, 2)]
)
def test_equal_cells_are_pooling_and_convolution_of_images(height, width, by, m):
    x = normal(2, height * width, 3)
    image = x.unflatten(-2, (height, width)).movedim(-1, 1)
    pooled = torch.nn.functional.avg_pool2d(image, by).flatten(2).mT
    torch.testing.assert_close(GridPool(height, width)(x, m), pooled)
    conv = GridConv(height, width, seed=2)
    weight = conv.weight(cells(height, width, m), 3)
    z = torch.nn.functional.conv2d(image, weight, stride=by).flatten(2).mT
    z = torch.nn.functional.gelu(torch.nn.functional.layer_norm(z, (3,)))
    torch.testing.assert_close(conv(x, m), z)
    assert conv.cost(Dims(2, 1, height * width, 3, 1), m).flops == 2 * 2 * height * width * 9


@given(high=st.integers(1, 9), wide=st.integers(1, 9), part=st.floats(0, 1))
def test_any_number_of_cells_divides_the_grid(high, wide, part):
    m = 1 + int(part * (high * wide - 1))
    found = cells(high, wide, m)
    sizes = torch.bincount(found.owner, minlength=m)
    assert len(sizes) == m
    assert int(sizes.min()) >= 1
    assert int(sizes.max()) <= found.height * found.width
    slots = found.owner * found.height * found.width + found.place
    assert slots.unique().numel() == high * wide


@pytest.mark.parametrize("selector", [GridPool, GridConv])
def test_sides_must_multiply_to_the_tokens(selector):
    x = normal(12, 2)
    assert torch.equal(selector(3, 4)(x, 6), selector(height=3)(x, 6))
    assert torch.equal(selector(3, 4)(x, 6), selector(width=4)(x, 6))
    assert torch.equal(selector(3, 4)(x, 6), selector()(x, 6))
    for sides, got in (((3, 5), "3 x 5"), ((5, None), "5 x ?"), ((None, 7), "? x 7")):
        with pytest.raises(ValueError, match=re.escape(f"of {got} does not hold the 12 tokens")):
            selector(*sides)(x, 6)
    with pytest.raises(ValueError, match="a grid of 3 x 4 does not hold the 11 tokens"):
        selector(3, 4)(x, 6, torch.arange(12) > 0)


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
