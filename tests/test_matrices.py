"""Each matrix is what it says: the spectrum that was asked for is the spectrum drawn."""

import dataclasses
import itertools
import math

import pytest
import torch
from matrices import F32, F64
from matrices import frobenius as norm

from softlab import matrices, operators
from softlab.core import Stream
from softlab.inputs import Normal, Recorded, Tied
from softlab.laws import tolerance
from softlab.matrices import (
    Clusters,
    Core,
    Flat,
    Geometric,
    KnownSpectrum,
    LowRank,
    Matrix,
    NearDuplicates,
    Ones,
    Polynomial,
    Spiked,
    Step,
    haar,
)
from softlab.operators import Nystromformer, Soft, Softmax

SYMMETRIC = [
    Flat(12),
    Geometric(12, 1e3),
    Geometric(1, 1),
    Polynomial(12, 1e3),
    Polynomial(1, 1),
    Step(12, 1e3),
    Step(12, 1e3, small=1),
    Clusters(12, 1e3),
    Clusters(13, 1e6, clusters=5, width=0.0),
    Clusters(2, 10.0, clusters=2, width=5.0),
    LowRank(12, 5, 1e2),
    LowRank(12, 1, 1),
    Spiked(12, 1e3),
    Spiked(12, 1.5, spikes=4),
    Spiked(3, 1e3, spikes=2),
    Geometric(40, 1e12),
]
GENERAL = [
    dataclasses.replace(a, symmetric=False) for a in SYMMETRIC if a.m > 1 and a.m - 1 != a.m // 2
]
CORES = [
    NearDuplicates(),
    NearDuplicates(7, spread=1.0, d=3),
    Core(Soft(5), Tied(Normal(40, 8))),
    Core(Nystromformer(6), Normal(40, 8)),
]
KNOWN = [*SYMMETRIC, *GENERAL, Ones(9)]
ALL = [*KNOWN, *CORES]
FIXED = (Flat(12), Ones(9), Geometric(1, 1), Polynomial(1, 1))
FEW = (Spiked(3, 1e3, spikes=2),)

NAMES = {
    name: getattr(module, name) for module in (matrices, operators) for name in module.__all__
} | {"Normal": Normal, "Tied": Tied, "Recorded": Recorded}


# --- values ------------------------------------------------------------------------------------


@pytest.mark.parametrize("matrix", ALL, ids=repr)
def test_a_matrix_is_a_value_with_a_name(matrix):
    assert isinstance(matrix, Matrix)
    again = eval(repr(matrix), dict(NAMES))
    assert again == matrix
    assert hash(again) == hash(matrix)
    assert again.m == matrix.m
    assert torch.equal(again(2), matrix(2))


@pytest.mark.parametrize("matrix", ALL, ids=repr)
def test_one_seed_is_one_matrix(matrix):
    state = torch.get_rng_state()
    a = matrix(3)
    assert a.shape == (matrix.m, matrix.m)
    assert a.dtype == F64
    assert torch.equal(a, matrix(3))
    apart = [norm(a - matrix(seed)) / norm(a) for seed in range(4, 10)]
    if matrix in FIXED:
        assert apart == [0] * 6
    else:  # all differ, but for the matrices of which there are only three
        assert (max if matrix in FEW else min)(apart) > 1e-3
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("matrix", ALL, ids=repr)
@pytest.mark.parametrize("dtype", [F32, torch.bfloat16, torch.float16])
def test_dtype_only_rounds(matrix, dtype):
    rounded = matrix(1, dtype=dtype)
    assert rounded.dtype == dtype
    assert torch.equal(matrix(1).to(dtype), rounded)
    assert matrix(1, device="meta").device.type == "meta"


# --- spectra -----------------------------------------------------------------------------------


@pytest.mark.parametrize("matrix", KNOWN, ids=repr)
def test_the_spectrum_drawn_is_the_one_prescribed(matrix):
    assert isinstance(matrix, KnownSpectrum)
    s = matrix.singular_values
    assert (s.dtype, s.shape) == (F64, (matrix.m,))
    assert bool((s.diff() <= 0).all())
    scale = float(s[0])
    assert scale == (matrix.m if isinstance(matrix, Ones) else 1)
    # 1/condition is one rounding off, and pow a few more.
    least = float(s[s > 0][-1])
    assert scale / least == pytest.approx(matrix.condition, rel=8 * torch.finfo(F64).eps)
    for seed in range(3):
        missed = float((torch.linalg.svdvals(matrix(seed)) - s).abs().max())
        assert missed <= tolerance(F64, matrix.m, scale=scale)


@pytest.mark.parametrize("matrix", [*SYMMETRIC, Ones(9), NearDuplicates()], ids=repr)
def test_symmetric_means_exactly_symmetric_and_semidefinite(matrix):
    for seed in range(3):
        for dtype in (F64, F32, torch.bfloat16):
            a = matrix(seed, dtype=dtype)
            assert torch.equal(a, a.mT)
        a = matrix(seed)
        least = float(torch.linalg.eigvalsh(a)[0])
        assert least >= -tolerance(F64, matrix.m, scale=float(torch.linalg.matrix_norm(a, 2)))


@pytest.mark.parametrize("matrix", GENERAL, ids=repr)
def test_not_symmetric_has_its_own_axes_on_either_side(matrix):
    a = matrix(0)
    assert not matrix.symmetric
    assert norm(a - a.mT) > 0.1 * norm(a)
    # Of the symmetric matrix of this seed it keeps the left axes and nothing on the right.
    b = dataclasses.replace(matrix, symmetric=True)(0)
    if not isinstance(matrix, Flat):
        assert norm(a @ a.mT - b @ b) <= tolerance(F64, matrix.m)
        assert norm(a.mT @ a - b @ b) > 0.1 * norm(b @ b)


def test_each_spectrum_has_the_shape_of_its_name():
    assert torch.equal(Flat(7)(), torch.eye(7, dtype=F64))
    ratio = Geometric(7, 1e3).singular_values
    torch.testing.assert_close(ratio[1:] / ratio[:-1], torch.full((6,), 10**-0.5, dtype=F64))
    # i^-p doubles its argument by the same factor everywhere
    s = Polynomial(8, 1e3).singular_values
    torch.testing.assert_close(s[[1, 3, 7]] / s[[0, 1, 3]], torch.full((3,), 0.1, dtype=F64))
    assert Step(7, 100.0).singular_values.tolist() == [1] * 4 + [0.01] * 3
    assert Step(7, 100.0, small=5).singular_values.tolist() == [1] * 2 + [0.01] * 5
    assert LowRank(4, 2, 10.0).singular_values.tolist() == [1, 0.1, 0, 0]
    assert Spiked(5, 100.0, spikes=2).singular_values[:3].tolist() == [1, 1, 0.02]
    assert Ones(3).singular_values.tolist() == [3, 0, 0]


@pytest.mark.parametrize("width", [0.0, 0.01, 0.5])
@pytest.mark.parametrize("clusters", [2, 3, 5])
def test_clusters_are_tight_and_far_apart(clusters, width):
    s = Clusters(23, 1e6, clusters=clusters, width=width).singular_values
    steps = (s[:-1] / s[1:]).log()
    between = steps.sort(descending=True).indices[: clusters - 1].sort().values.tolist()
    edges = [0, *(i + 1 for i in between), 23]
    sizes = [b - a for a, b in itertools.pairwise(edges)]
    assert max(sizes) - min(sizes) <= 1
    widths = [float(s[a] / s[b - 1]) - 1 for a, b in itertools.pairwise(edges)]
    shrunk = 1 / (1 + math.log1p(width) / math.log(1e6))  # the exponents end at 0 and 1
    assert widths == pytest.approx([(1 + width) ** shrunk - 1] * clusters, abs=1e-12)
    assert max(widths) <= width + 1e-12
    # centres: mid-points of the groups in the logarithm, equidistant but for the stretching
    middle = torch.stack([(s[a] * s[b - 1]).log() / 2 for a, b in itertools.pairwise(edges)])
    gaps = -middle.diff()
    assert float(gaps.max() - gaps.min()) <= 1e-12


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("m", "rank"), [(12, 5), (64, 1), (200, 100)])
def test_low_rank_is_numerically_of_that_rank(m, rank, symmetric):
    s = torch.linalg.svdvals(LowRank(m, rank, 1 if rank == 1 else 1e3, symmetric)(1))
    assert float(s[rank]) <= torch.finfo(F64).eps * m
    assert float(s[rank - 1]) > 0.9e-3
    assert int(torch.linalg.matrix_rank(LowRank(m, rank, 1, symmetric)(1))) == rank


def test_full_rank_is_no_other_matrix_and_equal_seeds_have_equal_axes():
    for symmetric in (True, False):
        full, part = LowRank(9, 9, 50.0, symmetric), LowRank(9, 4, 50.0, symmetric)
        assert torch.equal(full(2), Geometric(9, 50.0, symmetric)(2))
        # The range of the one is that of the four leading singular vectors of the other.
        u = torch.linalg.svd(full(2)).U[:, :4]
        a = part(2)
        assert norm(a - u @ (u.mT @ a)) <= tolerance(F64, 9, kappa=50.0)


def coherence(a, k):
    """(m / k) max_i |U_k[i]|^2: 1 to m / k."""
    u = torch.linalg.svd(a).U[:, :k]
    return len(a) / k * float(u.square().sum(-1).max())


@pytest.mark.parametrize("symmetric", [True, False])
def test_spikes_are_coordinates(symmetric):
    m, spikes = 64, 3
    at = set()
    for seed in range(5):
        a = Spiked(m, 1e4, spikes, symmetric)(seed)
        assert coherence(a, spikes) == pytest.approx(m / spikes)
        assert coherence(Step(m, 1e4, m - spikes, symmetric)(seed), spikes) < m / spikes / 2
        rows = torch.linalg.vector_norm(a, dim=-1)
        high = (rows > 0.5).nonzero().flatten()
        assert rows[high] == pytest.approx([1.0] * spikes)
        at |= set(high.tolist())
        off = a - a.diagonal().diag()
        if symmetric:
            assert float(torch.linalg.matrix_norm(a, 1)) == 1
            assert 0.01e-4 < float(off.abs().max()) < 2e-4  # the rest has axes of its own
        # and among the columns no coordinate is special unless the matrix is symmetric
        columns = float(torch.linalg.vector_norm(a, dim=-2).max())
        assert columns == pytest.approx(1) if symmetric else columns < 0.8
    assert len(at) > spikes  # the seed chooses them


def test_ones_has_equal_row_sums():
    a = Ones(49)()
    assert torch.equal(a.sum(-1), torch.full((49,), 49.0, dtype=F64))
    assert float(torch.linalg.matrix_norm(a, 1)) == float(Ones(49).singular_values[0])


# --- Haar measure ------------------------------------------------------------------------------


def unsigned(m, rng):
    """The planted fault: Q as the factorisation returns it."""
    return torch.linalg.qr(rng.normal(m, m)).Q


def moments(draw, m, draws=400):
    """Deviations, in standard errors, of moments that Haar measure on O(m) fixes."""
    rng = Stream(0, "tests")
    q = torch.stack([draw(m, rng) for _ in range(draws)])
    trace = q.diagonal(dim1=-2, dim2=-1).sum(-1)
    # E q_ij = 0, E q_ij^2 = 1/m, E q_ij^4 = 3 / (m (m + 2)); E tr = 0 (its variance is 1), m > 1
    first = q.mean(0).abs().max() * math.sqrt(m * draws)
    spread = math.sqrt(3 / (m * (m + 2)) - 1 / m**2)
    second = (q.square().mean(0) - 1 / m).abs().max() / spread * math.sqrt(draws)
    return [float(x) for x in (first, second, trace.mean().abs() * math.sqrt(draws))]


@pytest.mark.parametrize("m", [2, 3, 8])
def test_axes_are_haar_distributed_and_without_the_signs_they_are_not(m):
    # The largest of m^2 <= 64 deviations exceeds 4.5 normal standard errors once in 2000 draws.
    assert max(moments(haar, m)) < 4.5
    first, _, trace = moments(unsigned, m)
    assert first > 4.5
    assert trace > 4.5 or m == 2  # there, all of them are reflections of trace 0
    q = haar(m, Stream(1, "tests"))
    assert norm(q.mT @ q - torch.eye(m, dtype=F64)) <= tolerance(F64, m)


def test_a_matrix_of_one_entry_takes_either_sign():
    signs = [float(Flat(1, symmetric=False)(seed)) for seed in range(40)]
    assert {round(s, 12) for s in signs} == {-1.0, 1.0}


# --- cores -------------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [0.01, 0.05, 1.0])
@pytest.mark.parametrize(("m", "d"), [(49, 32), (7, 3)])
def test_near_duplicates_are_the_gaussian_core_that_soft_inverts(m, d, spread):
    a = NearDuplicates(m, spread, d)(2)
    # The twin forms squared distances by products; they are at most some 16 d spread^2.
    allowed = tolerance(F64, d, scale=16 * d * spread**2 + 1)
    points = spread * Stream(2, "matrices.NearDuplicates").normal(m, d)
    assert float((a - (-torch.cdist(points, points).square() / 2).exp()).abs().max()) <= allowed
    tokens = d**0.25 * spread * Stream(2, "matrices.NearDuplicates").normal(m, d)
    assert torch.equal(Soft(m).core(tokens, tokens), a)


def test_near_duplicates_grow_nearer_with_the_spread():
    condition = [
        float(torch.linalg.cond(NearDuplicates(spread=s)())) for s in (0.5, 0.2, 0.05, 0.02)
    ]
    assert condition == sorted(condition)
    # 48 dimensions of differences, 32 of them linear in the points: the rest falls as spread^4.
    assert condition[3] / condition[2] == pytest.approx((0.05 / 0.02) ** 4, rel=0.1)


@pytest.mark.parametrize("op", [Soft(49), Nystromformer(64), Soft(5, normalization="row")])
def test_a_core_is_the_operators_own(op):
    for inp in (Recorded("minilm.layer0.head0"), Tied(Recorded("vit.layer8.head3"))):
        core = Core(op, inp)
        assert core.m == op.rank
        for seed in (0, 3):
            q, k, _ = inp(seed, dtype=F64)
            assert torch.equal(core(seed), op.core(q, k))
            # Computed in float64 and then rounded, not computed from rounded tokens.
            assert torch.equal(core(seed, dtype=F32), op.core(q, k).to(F32))
        with pytest.raises(ValueError, match="4 stored samples"):
            core(4)


def test_a_core_of_too_few_tokens_is_refused():
    with pytest.raises(ValueError, match="rank 9 is asked of 8"):
        Core(Soft(9), Normal(8, 4))()


# --- bad fields --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: Flat(0), ValueError, "Flat.m is 0; give an integer of at least 1"),
        (lambda: Ones(2.0), TypeError, "integer"),
        (lambda: Geometric(4, 0.5), ValueError, "Geometric.condition is 0.5.*at least 1"),
        (lambda: Geometric(4, math.inf), ValueError, "finite"),
        (lambda: Geometric(4, math.nan), ValueError, "finite"),
        (lambda: Geometric(4, "1e3"), TypeError, "positive number"),
        (lambda: Geometric(0, 10.0), ValueError, "at least 1"),
        (lambda: Geometric(1, 10.0), ValueError, "one size only.*condition=1"),
        (lambda: Polynomial(1, 10.0), ValueError, "one size only"),
        (lambda: Step(1, 10.0), ValueError, "one size only"),
        (lambda: Step(4, 10.0, small=0), ValueError, "one size only"),
        (lambda: Step(4, 10.0, small=4), ValueError, "small = 4; give 0 to 3"),
        (lambda: Step(4, 10.0, small=True), TypeError, "integer"),
        (lambda: Clusters(4, 1e3, clusters=5), ValueError, "clusters = 5; give 2 to 4"),
        (lambda: Clusters(4, 1e3, clusters=1), ValueError, "give 2 to 4"),
        (lambda: Clusters(1, 1, clusters=2), ValueError, "m must be at least 2"),
        (lambda: Clusters(4, 1e3, width=-0.1), ValueError, "width is -0.1"),
        (lambda: Clusters(9, 2.0, width=0.5), ValueError, "a factor 1.414 apart"),
        (lambda: Clusters(9, 1, width=0.0), ValueError, "larger condition"),
        (lambda: LowRank(4, 5, 10.0), ValueError, "rank = 5; give 1 to 4"),
        (lambda: LowRank(4, 0, 1), ValueError, "rank = 0; give 1 to 4"),
        (lambda: LowRank(4, 1, 10.0), ValueError, "one size only"),
        (lambda: Spiked(4, 10.0, spikes=5), ValueError, "spikes = 5; give 1 to 4"),
        (lambda: Spiked(4, 10.0, spikes=4), ValueError, "one size only"),
        (lambda: NearDuplicates(spread=0.0), ValueError, "NearDuplicates.spread is 0"),
        (lambda: NearDuplicates(0), ValueError, "at least 1"),
        (lambda: NearDuplicates(d=0), ValueError, "NearDuplicates.d"),
        (lambda: Core(Softmax(), Normal(8, 4)), TypeError, "Core.op is Softmax"),
        (lambda: Core(Soft, Normal(8, 4)), TypeError, "Core.op"),
        (lambda: Core(Soft(4), "vit"), TypeError, "Core.input is 'vit'"),
        *(
            (lambda matrix=matrix: matrix(-1), ValueError, "seed is -1")
            for matrix in (Flat(3), Ones(3), Step(3, 2), Spiked(3, 2), NearDuplicates())
        ),
        *(
            (lambda matrix=matrix: matrix(dtype=torch.int64), TypeError, "floating")
            for matrix in (Flat(3), Ones(3), Step(3, 2), Spiked(3, 2), CORES[0], CORES[2])
        ),
    ],
)
def test_bad_arguments_are_refused(make, error, says):
    with pytest.raises(error, match=says):
        make()
