"""Diagnostics say what is known of matrices of prescribed spectrum, and obey their symmetries."""

import dataclasses
import itertools
import math
import time

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import eigh
from scipy.stats import entropy, linregress
from scipy.stats import norm as normal_law
from scipy.stats import t as student

from softlab import spectra
from softlab.core import Stream, as_matrix
from softlab.inputs import Recorded
from softlab.kernels import Gaussian
from softlab.matrices import Flat, Geometric, LowRank, Ones, Polynomial, Spiked, haar
from softlab.operators import Softmax, TruncatedSVD

F64 = torch.float64
EPS = torch.finfo(F64).eps

OF_VALUES = {
    "effective_rank": spectra.effective_rank,
    "stable_rank": spectra.stable_rank,
    "participation_ratio": spectra.participation_ratio,
    "numerical_rank": spectra.numerical_rank,
    "energy_rank": spectra.energy_rank,
    "condition": spectra.condition,
    "condition_on_range": spectra.condition_on_range,
    "decay": lambda a: spectra.decay(a).rate,
    "tails": lambda a: torch.stack(spectra.tails(a).relative(1)),
}
"""What singular values decide and no factor changes."""

OF_MATRICES = {
    "leverage_scores": spectra.leverage_scores,
    "coherence": spectra.coherence,
    "row_entropy": lambda a: spectra.row_entropy(a.abs()),
    "row_spectral_norm": lambda a: spectra.row_spectral_norm(a.abs()),
    "spectral_gap": lambda a: spectra.spectral_gap(a.abs()),
    "symmetry_defect": spectra.symmetry_defect,
    "positivity_defect": spectra.positivity_defect,
}
"""What the matrix itself decides and no factor changes."""

RANKS = ("effective_rank", "stable_rank", "participation_ratio", "numerical_rank", "energy_rank")


def normal(*shape, seed=0):
    return Stream(seed, "tests").normal(*shape)


def with_values(s, n=None, m=None, seed=0):
    """A matrix (n, m) with these singular values and Haar axes."""
    s = torch.as_tensor(s, dtype=F64)
    n, m, rng = n or len(s), m or len(s), Stream(seed, "tests")
    u, v = haar(n, rng)[:, : len(s)], haar(m, rng)[:, : len(s)]
    return (u * s) @ v.mT


def close(a, b, **tolerance):
    torch.testing.assert_close(a, b, **({"rtol": 1e-9, "atol": 1e-12} | tolerance))


SPECTRA = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=9).map(
    lambda s: torch.tensor(sorted(s, reverse=True), dtype=F64)
)


@settings(deadline=None, max_examples=40)
@given(SPECTRA, st.integers(0, 4), st.integers(0, 3))
def test_diagnostics_of_singular_values_are_those_of_the_prescribed_ones(s, more, seed):
    a = with_values(s, len(s) + more, len(s), seed)
    p = (s / s.sum()).tolist()
    close(spectra.singular_values(a), s, rtol=1e-8)
    assert float(spectra.effective_rank(a)) == pytest.approx(math.exp(entropy(p)), rel=1e-8)
    assert float(spectra.stable_rank(a)) == pytest.approx(float((s / s[0]).square().sum()))
    ratio = float(s.sum() ** 2 / s.square().sum())
    assert float(spectra.participation_ratio(a)) == pytest.approx(ratio)
    assert int(spectra.numerical_rank(a)) == len(s)
    for found in (spectra.condition(a), spectra.condition_on_range(a)):
        assert float(found) == pytest.approx(float(s[0] / s[-1]), rel=1e-7)
    known = spectra.tails(a)
    for rank in range(len(s) + 1):
        rest = s[rank:]
        assert float(known.spectral[rank]) == pytest.approx(float(rest[0]) if len(rest) else 0)
        assert float(known.frobenius[rank]) == pytest.approx(float(rest.norm()), abs=1e-9)
        assert float(known.trace[rank]) == pytest.approx(float(rest.sum()), abs=1e-9)


@settings(deadline=None, max_examples=40)
@given(SPECTRA)
def test_ranks_are_between_one_and_the_rank_and_in_order(s):
    """stable <= participation <= effective <= rank: entropies of order infinity, 2 and 1."""
    a = with_values(s)
    stable, participation, effective = (
        float(f(a))
        for f in (spectra.stable_rank, spectra.participation_ratio, spectra.effective_rank)
    )
    slack = 1 + 1e-9
    assert stable * slack >= 1
    assert participation <= effective * slack
    assert effective <= len(s) * slack
    assert stable <= participation * slack


@pytest.mark.parametrize("name", [*OF_VALUES, *OF_MATRICES])
@pytest.mark.parametrize("power", [-160, -40, 0, 40, 160])
def test_no_factor_changes_a_diagnostic(name, power):
    a = normal(7, 7)
    a[2, 3] = 0.0  # the least magnitude is no size to divide by
    find = (OF_VALUES | OF_MATRICES)[name]
    close(find(a * 10.0**power).double(), find(a).double())


@pytest.mark.parametrize("name", OF_VALUES)
def test_orthogonal_factors_and_transposition_change_no_diagnostic_of_singular_values(name):
    a, find = normal(6, 9), OF_VALUES[name]
    turned = haar(6, Stream(1, "tests")) @ a @ haar(9, Stream(2, "tests"))
    close(find(turned).double(), find(a).double(), rtol=1e-8)
    close(find(a.mT).double(), find(a).double(), rtol=1e-8)


@pytest.mark.parametrize("name", OF_VALUES)
def test_a_spectrum_serves_as_well_as_its_matrix(name):
    a, find = normal(2, 6, 9), OF_VALUES[name]
    close(find(spectra.spectrum(a)), find(a), rtol=0, atol=0)
    assert spectra.spectrum(spectra.spectrum(a)).unit == 9 * EPS


@pytest.mark.parametrize("name", [*OF_VALUES, *OF_MATRICES])
def test_a_batch_is_its_matrices(name):
    a = normal(3, 2, 5, 5) * torch.tensor([1.0, 1e6, 0.01], dtype=F64)[:, None, None, None]
    find = (OF_VALUES | OF_MATRICES)[name]
    found = find(a)
    for i, j in itertools.product(range(3), range(2)):
        mine = found[:, i, j] if name == "tails" else found[i, j]
        close(mine.double(), find(a[i, j]).double())


@pytest.mark.parametrize("name", OF_MATRICES)
def test_permuting_rows_and_columns_alike_permutes_rows_of_the_result(name):
    a, find = normal(8, 8), OF_MATRICES[name]
    order = Stream(3, "tests").permutation(8)
    found = find(a)
    close(find(a[order][:, order]), found[order] if found.ndim else found)


def test_the_zero_matrix_has_no_rank_and_no_condition():
    zero = torch.zeros(2, 4, 3)
    for name in RANKS:
        assert OF_VALUES[name](zero).tolist() == [0, 0], name
    assert spectra.condition(zero).tolist() == [math.inf, math.inf]
    assert spectra.condition_on_range(zero).tolist() == [1, 1]
    assert spectra.leverage_scores(zero).abs().max() == 0
    assert spectra.coherence(zero).tolist() == [0, 0]
    assert spectra.ridge_leverage_scores(zero, 1.0).abs().max() == 0
    assert spectra.effective_dimension(zero, 1.0).tolist() == [0, 0]
    assert spectra.row_entropy(zero).abs().max() == 0
    assert spectra.spectral_norm(zero).tolist() == [0, 0]
    assert all(float(x.abs().max()) == 0 for x in spectra.tails(zero))
    assert all(float(x.abs().max()) == 0 for x in spectra.tails(zero).relative(0))
    assert spectra.decay(zero).points.tolist() == [0, 0]
    assert spectra.decay(zero).rate.isnan().all()
    square = torch.zeros(3, 3)
    assert float(spectra.symmetry_defect(square)) == float(spectra.positivity_defect(square)) == 0
    assert spectra.eigenvalues(square).abs().max() == 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1)])
def test_one_row_or_one_column_has_rank_one(shape):
    a = normal(*shape).abs()
    for name in RANKS:
        assert float(OF_VALUES[name](a)) == pytest.approx(1), name
    assert float(spectra.condition(a)) == float(spectra.condition_on_range(a)) == 1
    assert float(spectra.leverage_scores(a).sum()) == pytest.approx(1)
    norm = float(spectra.row_normalised(a).norm())
    assert float(spectra.row_spectral_norm(a)) == pytest.approx(norm)
    assert norm >= math.sqrt(shape[0] / shape[1])
    assert spectra.row_entropy(a).shape == shape[:1]
    if shape == (1, 1):
        assert float(spectra.spectral_gap(a)) == 1
        assert float(spectra.positivity_defect(-a)) == 1
        assert float(spectra.symmetry_defect(a)) == 0


@pytest.mark.parametrize("count", [1, 2, 5])
def test_equal_singular_values_count_alike(count):
    a = with_values([3.0] * count, 8, 7)
    for name in RANKS:
        assert float(OF_VALUES[name](a)) == pytest.approx(count), name
    assert float(spectra.condition_on_range(a)) == pytest.approx(1)
    # Of seven values beyond the range there are only those that rounding left.
    assert float(spectra.condition(a)) > 1e14


def test_energy_rank_counts_the_fewest_that_suffice():
    s = spectra.Spectrum(torch.tensor([2.0, 1.0, 1.0, 0.0], dtype=F64), EPS)
    shares = {0.1: 1, 4 / 6: 1, 0.667: 2, 5 / 6: 2, 0.84: 3, 1.0: 3}
    assert {share: int(spectra.energy_rank(s, share)) for share in shares} == shares


def test_energy_rank_is_what_recordings_say_of_themselves():
    head = Recorded("minilm.layer5.head2")
    q, k, _ = head(0, dtype=F64)
    assert int(spectra.energy_rank(as_matrix(Softmax(), q, k))) == head.origin["rank99"][0]


@pytest.mark.parametrize("rank", [0, 1, 3, 6])
def test_numerical_rank_of_a_product_is_the_inner_size(rank):
    a = normal(9, rank) @ normal(rank, 6, seed=1)
    assert int(spectra.numerical_rank(a)) == rank
    assert int(spectra.numerical_rank(a.float() if rank < 6 else a)) == rank
    assert int(spectra.numerical_rank(LowRank(12, 4, 100.0)(0))) == 4


def test_numerical_rank_by_tolerance_counts_above_it():
    a = Geometric(5, 1e4)(0)  # 1, .1, .01, .001, .0001
    assert [int(spectra.numerical_rank(a, t)) for t in (0.5, 0.05, 5e-4, 0.0)] == [1, 2, 4, 5]
    assert float(spectra.condition_on_range(a, 0.05)) == pytest.approx(10)


def test_values_known_to_fifty_digits():
    """The Hilbert matrix of order 8 in mpmath: condition, effective rank and trace tail."""
    n = 8
    with mpmath.workdps(50):
        exact = mpmath.eigsy(mpmath.hilbert(n), eigvals_only=True)
        s = sorted((abs(x) for x in exact), reverse=True)
        total = sum(s)
        effective = mpmath.exp(-sum(x / total * mpmath.log(x / total) for x in s))
        known = float(s[0] / s[-1]), float(effective), float(sum(s[2:]))
    i = torch.arange(n, dtype=F64)
    a = 1 / (i[:, None] + i + 1)
    assert float(spectra.condition(a)) == pytest.approx(known[0], rel=1e-5)  # eps kappa
    assert float(spectra.effective_rank(a)) == pytest.approx(known[1], rel=1e-13)
    assert float(spectra.tails(a).trace[2]) == pytest.approx(known[2], rel=1e-13)


def test_eigenvalues_of_a_rotation_a_triangle_and_a_symmetric_matrix():
    angle = 0.3
    turn = torch.tensor(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=F64
    )
    found = spectra.eigenvalues(turn)
    close(found.real, torch.full((2,), math.cos(angle), dtype=F64))
    close(found.imag.abs(), torch.full((2,), math.sin(angle), dtype=F64))
    triangle = torch.tensor([[1.0, 5.0, 7.0], [0.0, -3.0, 2.0], [0.0, 0.0, 2.0]])
    close(spectra.eigenvalues(triangle).real, torch.tensor([-3.0, 2.0, 1.0], dtype=F64))
    a = normal(6, 6)
    reference = torch.from_numpy(eigh(((a + a.mT) / 2).numpy(), eigvals_only=True)).flip(-1)
    close(spectra.symmetric_eigenvalues(a), reference)
    close(spectra.symmetric_eigenvalues(Geometric(6, 50.0)(1)), Geometric(6, 50.0).singular_values)


def test_leverage_is_the_diagonal_of_the_projector():
    a = normal(9, 4) @ normal(4, 7, seed=1)
    projector = a @ torch.linalg.pinv(a, rtol=1e-10)
    close(spectra.leverage_scores(a), projector.diagonal())
    assert float(spectra.leverage_scores(a, 2).sum()) == pytest.approx(2)
    assert float(spectra.leverage_scores(a, 7).sum()) == pytest.approx(4)  # no more than the rank


def test_coherence_of_its_extremes():
    assert float(spectra.coherence(Ones(8)(0))) == pytest.approx(1)
    assert float(spectra.coherence(Flat(8)(0))) == pytest.approx(1)
    assert float(spectra.coherence(Spiked(32, 100.0, spikes=2)(0), 2)) == pytest.approx(32 / 2)
    haar_like = float(spectra.coherence(Geometric(256, 10.0)(0), 16))
    assert 1 < haar_like < 5  # of rows of a Haar matrix: chi-squared of 16 over 16, 256 of them


@pytest.mark.parametrize("ridge", [1e-3, 1.0, 1e3])
def test_ridge_leverage_is_its_definition_and_sums_to_the_effective_dimension(ridge):
    a = Geometric(7, 1e3)(0)
    inverse = torch.linalg.inv(a + ridge * torch.eye(7, dtype=F64))
    close(spectra.ridge_leverage_scores(a, ridge), (a @ inverse).diagonal())
    close(spectra.effective_dimension(a, ridge), (a @ inverse).trace())
    uneven = normal(5, 8)
    scores = spectra.ridge_leverage_scores(uneven, ridge)
    close(scores.sum(), spectra.effective_dimension(uneven, ridge))


def test_ridge_leverage_tends_to_leverage_and_effective_dimension_to_the_rank():
    a = LowRank(9, 4, 10.0)(0)
    close(spectra.ridge_leverage_scores(a, 1e-9), spectra.leverage_scores(a), atol=1e-6, rtol=0)
    dims = [float(spectra.effective_dimension(a, 10.0**p)) for p in (-8, -2, 0, 2, 8)]
    assert dims == sorted(dims, reverse=True)
    assert dims[0] == pytest.approx(4, rel=1e-6)
    assert dims[-1] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("rate", [0.25, 1.0, 2.5])
@pytest.mark.parametrize("exponential", [False, True])
def test_a_law_of_decay_is_recognised_with_its_rate(rate, exponential):
    i = torch.arange(1, 13, dtype=F64)
    s = (-rate * i).exp() if exponential else i**-rate
    found = spectra.decay(spectra.Spectrum(s, 1e-15))
    assert bool(found.exponential) == exponential
    assert (float(found.advantage) > 0) == exponential
    for x in (found.rate, found.low, found.high):
        assert float(x) == pytest.approx(rate, rel=1e-9)
    assert int(found.points) == 12


def test_the_matrices_of_these_names_decay_so():
    assert bool(spectra.decay(Geometric(24, 1e4)(0)).exponential)
    assert float(spectra.decay(Geometric(24, 1e4)(0)).rate) == pytest.approx(math.log(1e4) / 23)
    assert not spectra.decay(Polynomial(24, 1e4)(0)).exponential


@pytest.mark.parametrize("exponential", [False, True])
def test_the_fit_is_that_of_scipy_and_the_interval_covers(exponential):
    """20000 spectra with independent errors in ln s, too small to change the order."""
    i = torch.arange(1, 31, dtype=F64)
    x, rate = (i, 0.5) if exponential else (i.log(), 3.0)
    s = (0.01 * normal(20000, 30, seed=5) - rate * x).exp()
    found = spectra.decay(spectra.Spectrum(s, 1e-15))
    assert bool((found.exponential == exponential).all())
    first = linregress(x.numpy(), s[0].log().numpy())
    assert float(found.rate[0]) == pytest.approx(-first.slope)
    half = student.ppf(0.975, 28) * first.stderr
    assert float(found.high[0] - found.rate[0]) == pytest.approx(half)
    assert float(found.rate[0] - found.low[0]) == pytest.approx(half)
    covered = ((found.low <= rate) & (rate <= found.high)).double().mean()
    assert 0.945 <= float(covered) <= 0.955  # three standard errors are 0.005


def test_the_advantage_is_a_difference_of_log_likelihoods():
    i = torch.arange(1, 21, dtype=F64)
    y = 0.05 * normal(20, seed=2) - 0.4 * i
    likelihoods = []
    for x in (i.log(), i):
        fit = linregress(x.numpy(), y.numpy())
        error = y.numpy() - fit.intercept - fit.slope * x.numpy()
        likelihoods.append(normal_law.logpdf(error, scale=error.std()).sum())
    found = spectra.decay(spectra.Spectrum(y.exp(), 1e-15))
    assert float(found.advantage) == pytest.approx(likelihoods[1] - likelihoods[0])


def test_decay_is_of_the_values_above_rounding_and_says_when_they_are_too_few():
    a = LowRank(40, 8, 1e3)(0)
    found = spectra.decay(torch.stack((a, Ones(40)(0), LowRank(40, 2, 5.0)(0))))
    assert found.points.tolist() == [8, 1, 2]
    assert found.rate.isnan().tolist() == [False, True, True]
    assert found.advantage[1:].tolist() == [0, 0]
    # One more digit of confidence widens; noise in the middle makes an interval at all.
    s = spectra.Spectrum(torch.tensor([1.0, 0.9, 0.4, 0.3, 0.05], dtype=F64), 1e-15)
    narrow, wide = spectra.decay(s, 0.5), spectra.decay(s, 0.99)
    assert float(wide.low) < float(narrow.low) < float(narrow.rate) < float(narrow.high)
    assert float(narrow.high) < float(wide.high)


def test_a_flat_spectrum_does_not_decay():
    found = spectra.decay(Flat(12)(0))
    assert not bool(found.exponential)
    assert float(found.rate) == pytest.approx(0, abs=1e-12)


def test_row_entropy_is_that_of_scipy_and_has_its_extremes():
    a = normal(6, 9).abs()
    close(spectra.row_entropy(a), torch.from_numpy(entropy(a.numpy(), axis=1)))
    close(spectra.row_entropy(Ones(8)(0)), torch.full((8,), math.log(8), dtype=F64))
    close(spectra.row_entropy(torch.eye(8)), torch.zeros(8, dtype=F64))


def test_the_row_normalised_matrix_between_its_bounds():
    close(spectra.row_spectral_norm(Ones(9)(0)), torch.tensor(1.0, dtype=F64))
    a = normal(12, 12).abs()
    p = spectra.row_normalised(a)
    close(p.sum(-1), torch.ones(12, dtype=F64))
    norm = float(spectra.row_spectral_norm(a))
    assert 1 <= norm <= math.sqrt(float(p.sum(0).max()))
    sink = torch.zeros(12, 12)
    sink[:, 3] = 1.0  # every row on one column: the worst there is
    assert float(spectra.row_spectral_norm(sink)) == pytest.approx(math.sqrt(12))


def test_the_gap_of_known_chains():
    assert float(spectra.spectral_gap(Ones(6)(0))) == pytest.approx(1)
    assert float(spectra.spectral_gap(torch.eye(6))) == pytest.approx(0)
    stay = 0.7  # two states: eigenvalues 1 and 2 stay - 1
    chain = torch.tensor([[stay, 1 - stay], [1 - stay, stay]], dtype=F64)
    assert float(spectra.spectral_gap(chain)) == pytest.approx(1 - (2 * stay - 1))
    n = 8  # a lazy walk on a cycle: 1/2 + 1/2 cos(2 pi / n)
    walk = torch.eye(n, dtype=F64).roll(1, 0)
    walk = torch.eye(n, dtype=F64) / 2 + (walk + walk.mT) / 4
    expected = 0.5 - 0.5 * math.cos(2 * math.pi / n)
    assert float(spectra.spectral_gap(walk)) == pytest.approx(expected)
    x = normal(20, 3)
    kernel = Gaussian(1.0).matrix(x, x)
    root = kernel.sum(-1).rsqrt()
    similar = spectra.symmetric_eigenvalues(root[:, None] * kernel * root)
    assert float(spectra.spectral_gap(kernel)) == pytest.approx(1 - float(similar[1]))


def test_defects_have_their_extremes():
    a = normal(7, 7)
    assert float(spectra.symmetry_defect(a + a.mT)) == 0
    assert float(spectra.symmetry_defect(a - a.mT)) == pytest.approx(2)
    assert float(spectra.positivity_defect(a @ a.mT)) < 10 * EPS
    assert float(spectra.positivity_defect(-a @ a.mT)) == pytest.approx(1)
    assert float(spectra.positivity_defect(a - a.mT)) <= 1  # nothing but rounding is symmetric
    shifted = torch.tensor([2.0, 1.0, -0.5], dtype=F64).diag()
    assert float(spectra.positivity_defect(shifted)) == pytest.approx(0.25)


@pytest.mark.parametrize("shape", [(3, 8, 5), (2, 300, 280)])
def test_spectral_norms_of_a_batch_are_the_largest_singular_values(shape):
    a = normal(*shape)
    close(spectra.spectral_norm(a), spectra.singular_values(a)[..., 0], rtol=1e-6)
    close(spectra.tails(a).spectral[..., 0], spectra.spectral_norm(a), rtol=1e-6)


@pytest.mark.parametrize("shape", [(300, 300), (520, 270), (270, 520)])
def test_spectral_norm_by_lanczos_equals_svd(shape):
    a, b = (normal(*shape, seed=i).softmax(-1) for i in (1, 2))
    # a - b maps the vector of ones to zero, the trap for a constant start.
    found = float(spectra.spectral_norm(a - b))
    assert found == pytest.approx(float(torch.linalg.svdvals(a - b)[0]), rel=1e-6)
    assert float(spectra.spectral_norm(torch.zeros(shape))) == 0


def test_spectral_norm_leaves_no_thread_spinning():
    # OpenBLAS's helpers would burn a core for a while and slow the next thing that is timed.
    spectra.spectral_norm(normal(600, 600))
    spent = time.process_time()
    time.sleep(0.05)
    assert time.process_time() - spent < 0.025


def test_tails_are_the_errors_of_the_truncated_svd_and_nothing_of_that_rank_errs_less():
    x = normal(24, 4)
    a = Gaussian(1.5).matrix(x, x + 0.1)
    u, s, vh = torch.linalg.svd(a)
    rank = 5
    known = spectra.tails(a).relative(rank)
    best = a - (u[:, :rank] * s[:rank]) @ vh[:rank]
    rivals = [normal(24, rank, seed=i) for i in range(5)]
    errors = [best, *(a - y @ torch.linalg.lstsq(y, a).solution for y in rivals)]
    for bound, order in zip(known, (2, "fro", "nuc"), strict=True):
        size = torch.linalg.matrix_norm(a, order)
        found = [float(torch.linalg.matrix_norm(e, order) / size) for e in errors]
        assert found[0] == pytest.approx(float(bound), rel=1e-9)
        assert min(found[1:]) > float(bound)
    assert [float(x) for x in spectra.tails(a).relative(24)] == [0, 0, 0]
    assert [float(x) for x in spectra.tails(a).relative(99)] == [0, 0, 0]


def test_half_precision_answers_for_its_own_rounding():
    a = Geometric(16, 1e6)(0)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        found = spectra.spectrum(a.to(dtype))
        assert found.values.dtype == F64
        assert found.unit == 16 * torch.finfo(dtype).eps
        kept = spectra.numerical_rank(found)
        known = (Geometric(16, 1e6).singular_values > found.unit).sum()
        assert abs(int(kept) - int(known)) <= 1


EVERY = {
    name: getattr(spectra, name)
    for name in (
        "singular_values", "eigenvalues", "symmetric_eigenvalues", *RANKS, "condition",
        "condition_on_range", "leverage_scores", "coherence", "decay", "row_entropy",
        "row_normalised", "row_spectral_norm", "spectral_gap", "symmetry_defect",
        "positivity_defect", "spectral_norm", "tails",
    )
} | {
    "ridge_leverage_scores": lambda a: spectra.ridge_leverage_scores(a, 1.0),
    "effective_dimension": lambda a: spectra.effective_dimension(a, 1.0),
}  # fmt: skip


@pytest.mark.parametrize("name", EVERY)
def test_what_is_no_finite_matrix_is_refused(name):
    find = EVERY[name]
    with pytest.raises(
        TypeError, match=r"a must be a torch.Tensor, got list\. Use torch.as_tensor"
    ):
        find([[1.0]])
    with pytest.raises(TypeError, match=r"a must be floating point.*got torch.int64\. Convert"):
        find(torch.ones(2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"at least two dimensions .* got \(3,\)\. Add"):
        find(torch.ones(3))
    with pytest.raises(ValueError, match=r"a is empty, shape \(0, 0\); every axis must be"):
        find(torch.ones(0, 0))
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="1 entries that are NaN or inf"):
            find(torch.tensor([[1.0, bad], [1.0, 1.0]]))


@pytest.mark.parametrize("name", ["eigenvalues", "symmetric_eigenvalues", "spectral_gap",
                                  "symmetry_defect", "positivity_defect"])  # fmt: skip
def test_what_needs_a_square_matrix_says_so(name):
    with pytest.raises(ValueError, match=r"a must be square \(\.\.\., m, m\), got \(2, 3\)"):
        EVERY[name](torch.ones(2, 3))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda a: spectra.numerical_rank(a, 1.0), "tolerance is 1.0, a fraction of s_1; give"),
        (lambda a: spectra.numerical_rank(a, -0.1), "tolerance is -0.1"),
        (lambda a: spectra.numerical_rank(a, math.nan), "tolerance is nan"),
        (lambda a: spectra.energy_rank(a, 0.0), "share is 0.0; give a number above 0"),
        (lambda a: spectra.energy_rank(a, 1.1), "share is 1.1"),
        (lambda a: spectra.leverage_scores(a, 0), "rank is 0; give an integer from 1 to 3"),
        (lambda a: spectra.coherence(a, 4), "rank is 4; give an integer from 1 to 3"),
        (lambda a: spectra.ridge_leverage_scores(a, 0.0), "ridge is 0.0; give a positive"),
        (lambda a: spectra.effective_dimension(a, math.inf), "ridge is inf"),
        (lambda a: spectra.decay(a, 1.0), "confidence is 1.0; give a number between 0 and 1"),
        (lambda a: spectra.decay(a, 0), "confidence is 0;"),
        (lambda a: spectra.row_entropy(-a), "9 negative entries.*Give the exact kernel's"),
        (lambda a: spectra.row_normalised(0 * a), "3 rows that sum to 0.*Drop these rows"),
        (lambda a: spectra.Spectrum(a[0].double() - 2, EPS), "finite, falling and not negative"),
        (lambda a: spectra.Spectrum(a[0], EPS), "got \\(3,\\) torch.float32"),
        (lambda a: spectra.Spectrum(torch.arange(3.0).double(), EPS), "sort what you have"),
    ],
)
def test_settings_out_of_range_are_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call(torch.ones(3, 3))


def test_the_operator_of_best_rank_meets_the_tails():
    q, k = normal(12, 4), normal(12, 4, seed=1)
    exact = as_matrix(Softmax(), q, k)
    error = exact - as_matrix(TruncatedSVD(3), q, k)
    close(torch.linalg.matrix_norm(error), spectra.tails(exact).frobenius[3])


def test_a_spectrum_is_itself_alone_and_stays_as_it_is():
    found, other = (spectra.spectrum(normal(3, 3)) for _ in range(2))
    assert found != other  # and no comparison of tensors is asked for a truth value
    assert {found: 1}[found] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.unit = 0.5


def test_one_point_has_no_slope_and_no_error_and_none_has_neither():
    x = torch.tensor([[3.0, 5.0, 7.0], [2.0, 9.0, 1.0], [2.0, 4.0, 9.0]]).double()
    y = torch.tensor([[4.0, 1.0, 2.0], [8.0, 3.0, 3.0], [5.0, 9.0, 1.0]]).double()
    kept = torch.tensor([[False, True, False], [False] * 3, [True, True, False]])
    slope, errors, spread = spectra._line(x, y, kept)
    assert slope.tolist() == pytest.approx([0, 0, 2])
    assert errors.tolist() == pytest.approx([0, 0, 0])
    assert spread.tolist() == pytest.approx([0, 0, 2])


def test_three_values_are_the_fewest_with_a_rate_and_have_one_degree_of_freedom():
    y = torch.tensor([[0.0, -1.2, -1.9], [0.0, -1.2, -1.2]], dtype=F64)
    found = spectra.decay(spectra.Spectrum(y.exp(), 1e-15), 0.9)
    assert found.points.tolist() == [3, 3]
    for i, exponential in enumerate(found.exponential.tolist()):
        x = torch.arange(1, 4, dtype=F64)
        fit = linregress((x if exponential else x.log()).numpy(), y[i].numpy())
        half = student.ppf(0.95, 1) * fit.stderr
        got = [float(z[i]) for z in (found.rate, found.low, found.high)]
        assert got == pytest.approx([-fit.slope, -fit.slope - half, -fit.slope + half])


@pytest.mark.parametrize("shape", [(256, 300), (300, 256), (257, 300), (300, 257)])
def test_matrices_of_up_to_256_rows_or_columns_are_decomposed(shape, monkeypatch):
    monkeypatch.setattr(spectra, "_largest", lambda a: 7.0)
    a = torch.ones(2, *shape)
    due = 7.0 if min(shape) > 256 else math.sqrt(math.prod(shape))
    assert spectra.spectral_norm(a).tolist() == pytest.approx([due, due])


@pytest.mark.parametrize("scale", [1e-200, -1e-200, 1e200, -1e200])
def test_the_norm_by_lanczos_knows_no_scale(scale):
    a = normal(40, 30).abs()
    a[0, 0] = 0.0  # neither the least magnitude nor the greatest entry is a size to divide by
    size = float(torch.linalg.matrix_norm(a, 2))
    assert spectra._largest(scale * a) == pytest.approx(abs(scale) * size, rel=1e-6)


@pytest.mark.parametrize(("dtype", "n"), [(torch.bfloat16, 128), (torch.bfloat16, 300),
                                          (torch.float16, 1024)], ids=str)  # fmt: skip
def test_of_a_matrix_that_is_all_rounding_the_largest_value_is_left(dtype, n):
    """max(n, m) eps of these is 1 or more, and was refused as a unit that nobody had given."""
    a = torch.ones(n, 3, dtype=dtype)
    a[: n // 2, 1] = -1
    assert n * torch.finfo(dtype).eps >= 1
    assert spectra.spectrum(a).unit < 1
    assert int(spectra.numerical_rank(a)) == 1
    assert int(spectra.numerical_rank(a, 1e-3)) == 2
    assert float(spectra.leverage_scores(a).sum()) == pytest.approx(1)
    assert float(spectra.condition_on_range(a)) == 1


@pytest.mark.parametrize(
    ("values", "unit", "said"),
    [
        (torch.tensor(1.0), EPS, "finite, falling"), (torch.ones(0), EPS, "finite, falling"),
        (torch.tensor([math.inf, 1.0]), EPS, "finite, falling"),
        (torch.tensor([2.0, math.nan]), EPS, "finite, falling"),
        (torch.tensor([2.0, -1.0]), EPS, "finite, falling"),
        (torch.ones(2), 1.0, "unit is 1.0"), (torch.ones(2), -0.1, "unit is -0.1"),
    ],
)  # fmt: skip
def test_what_is_no_spectrum_is_refused(values, unit, said):
    with pytest.raises(ValueError, match=said):
        spectra.Spectrum(values.double(), unit)


def test_the_ends_of_the_ranks_are_served():
    a = normal(5, 3)
    assert float(spectra.leverage_scores(a, 1).sum()) == pytest.approx(1)
    assert float(spectra.leverage_scores(a, 3).sum()) == pytest.approx(3)
    assert [float(x) for x in spectra.tails(a).relative(3)] == [0, 0, 0]
    assert [float(x) for x in spectra.tails(a).relative(4)] == [0, 0, 0]
    with pytest.raises(ValueError, match="rank is -1"):
        spectra.tails(a).relative(-1)


def test_a_spectrum_in_a_notebook_counts_its_matrices():
    for lead, said in (((), ""), ((1,), ""), ((2,), ", median and range of 2 matrices")):
        page = spectra.spectrum(normal(*lead, 4, 3))._repr_html_()
        assert f"3 singular values{said}<" in page
    assert "1 singular values<" in spectra.spectrum(normal(4, 1))._repr_html_()
    s = spectra.spectrum(normal(4, 3)).values
    page = spectra.spectrum(normal(4, 3))._repr_html_()
    for x in (s[0], s[-1], s[0] / s[-1]):
        assert f"{float(x):.3g}" in page
