"""Matrix-free estimates: exact where nothing is random, intervals that cover, no n x n matrix."""

import dataclasses
import inspect
import math

import pytest
import torch
from scipy.stats import chi2, norm, t

from softlab import as_matrix, estimators
from softlab.core import Stream
from softlab.estimators import (
    ExactRows,
    LinearMap,
    effective_rank,
    eigenvalues,
    frobenius_norm,
    hutch_plus_plus,
    hutchinson,
    matrix_error,
    output_error,
    probed_error,
    singular_values,
    spectral_norm,
    x_trace,
)
from softlab.estimators.densities import Density, _both, _density, _entropy
from softlab.estimators.estimate import (
    Estimate,
    check_held,
    magnitude,
    of_mean,
    of_ratio,
    of_squares,
)
from softlab.estimators.krylov import bidiagonal
from softlab.inputs import Normal, Smooth
from softlab.matrices import haar
from softlab.operators import (
    ColumnSample,
    GaussianAttention,
    KDEFormer,
    Linformer,
    Local,
    Nystromformer,
    Performer,
    Soft,
    Softmax,
)
from softlab.profiling import peak_memory

F64 = torch.float64
N, TRIALS = 1000, 400
TRACES = [hutchinson, hutch_plus_plus, x_trace]


def spectrum(name, n=N):
    j = torch.arange(1, n + 1, dtype=F64)
    return {"1/j": 1 / j, "j^-1/2": j**-0.5, "exp": torch.exp(-j / 20)}[name]


def diagonal(s):
    """Normal probes see of a matrix its singular values alone, so a diagonal one stands for all."""
    return LinearMap((len(s), len(s)), lambda x: s[:, None] * x, symmetric=True)


def rotated(s, columns=None):
    rng = Stream(1, "tests")
    n, l = len(s), columns or len(s)
    return (haar(n, rng)[:, : min(n, l)] * s[: min(n, l)]) @ haar(l, rng)[:, : min(n, l)].mT


def coverage(estimate, truth, trials=TRIALS):
    found = [estimate(seed) for seed in range(trials)]
    return sum(e.low <= truth <= e.high for e in found) / trials


# --- coverage: 93 to 97 % of 400 seeded trials at n = 1000 ----------------------------------------


@pytest.mark.parametrize("op", [Soft(16), Nystromformer(16), ColumnSample(64)], ids=repr)
def test_sampled_output_error_covers_the_dense_one(op):
    q, k, v = Smooth(N, 32, length=32.0)(0, dtype=F64)
    out, true = op(q, k, v), op.target(q, k, v)
    truth = float((out - true).norm() / true.norm())
    exact = ExactRows(op.target, q, k, v, rows=2)

    def estimate(seed):
        exact.at = ExactRows(op.target, q, k, v, rows=256, seed=seed).at
        exact.__dict__["output"] = true[exact.at]  # what a test below shows the rows to be
        return output_error(Given(op, out), q, k, v, exact)

    assert 0.93 <= coverage(estimate, truth) <= 0.97


class Given:
    """An operator whose output is known."""

    def __init__(self, op, out):
        self.target, self.out = op.target, out

    def __call__(self, q, k, v):
        return self.out


@pytest.mark.parametrize("name", ["1/j", "j^-1/2", "exp"])
def test_frobenius_norm_covers(name):
    s = spectrum(name)
    assert 0.93 <= coverage(lambda x: frobenius_norm(diagonal(s), seed=x), float(s.norm())) <= 0.97


@pytest.mark.parametrize(("trace", "probes"), [(hutchinson, 64), (hutch_plus_plus, 24)])
def test_traces_cover(trace, probes):
    w = rotated(torch.cat((torch.arange(1, 41, dtype=F64) ** -0.5, torch.zeros(N - 40))), 40)
    a = LinearMap((N, N), lambda x: w @ (w.mT @ x), symmetric=True)
    truth = float(w.square().sum())
    assert 0.93 <= coverage(lambda s: trace(a, probes=probes, seed=s), truth) <= 0.97


@pytest.mark.parametrize("name", ["1/j", "j^-1/2", "exp"])
def test_x_trace_covers_at_the_least(name):
    s = spectrum(name)
    truth = float(s.sum())
    found = [x_trace(diagonal(s), probes=16, seed=i) for i in range(TRIALS)]
    assert sum(e.low <= truth <= e.high for e in found) / TRIALS >= 0.94
    # Not by being vague: the half width is within three of what 95 % of the errors need.
    errors = torch.tensor([abs(e.value - truth) for e in found], dtype=F64)
    widths = torch.tensor([(e.high - e.low) / 2 for e in found], dtype=F64)
    assert float(widths.median()) < 3 * float(errors.quantile(0.95))


def test_errors_of_the_matrix_cover():
    q, k, _ = Smooth(N, 32, length=32.0)(0, dtype=F64)
    op = Nystromformer(16)
    a, m = as_matrix(op, q, k), as_matrix(op.target, q, k)
    truth = float((a - m).norm() / m.norm())
    rows = [x.square().sum(1) for x in (a - m, m)]

    def by_rows(seed):  # what matrix_error does with the rows that it draws
        at = ExactRows(op.target, q, k, k, rows=128, seed=seed).at
        return of_ratio(*(x[at] for x in rows), 0.95, share=128 / N).root()

    assert 0.93 <= coverage(by_rows, truth) <= 0.97
    drawn = torch.randn(N, TRIALS * 16, dtype=F64, generator=torch.Generator().manual_seed(0))
    probed = [(x @ drawn).square().sum(0).view(TRIALS, 16) for x in (a - m, m)]
    # Fewer than 95 %: normal probes make squares more skewed than Student's interval allows for.
    assert 0.90 <= coverage(lambda i: of_ratio(*(x[i] for x in probed), 0.95).root(), truth) <= 0.97
    assert matrix_error(op, q, k, rows=128, seed=3).high == pytest.approx(by_rows(3).high)
    assert probed_error(op, q, k, seed=3).value == pytest.approx(truth, rel=0.3)


@pytest.mark.parametrize("values", [[1.0, *[1e-9] * 29], [1.0, *[1e-3] * 29], [1.0] * 30])
def test_effective_rank_lies_between_one_and_all(values):
    a = diagonal(torch.tensor(values, dtype=torch.float64))
    for seed in range(12):
        found = effective_rank(a, steps=3, probes=2, seed=seed)
        assert 1 <= found.low <= found.value <= found.high <= 30 * (1 + 1e-12)


def test_effective_rank_covers_where_probes_decide_and_is_wide_where_steps_do():
    s = spectrum("j^-1/2", 200)
    share = s / s.sum()
    truth = math.exp(-float((share * share.log()).sum()))
    few, more = (
        [effective_rank(diagonal(s), steps=k, probes=5, seed=i) for i in range(12)] for k in (4, 16)
    )
    for found in (few, more):
        assert sum(e.low <= truth <= e.high for e in found) >= 10
    assert few[0].high / few[0].low > 1.2 * more[0].high / more[0].low


# --- exact where nothing is left to chance --------------------------------------------------------


@pytest.mark.parametrize("trace", TRACES)
@pytest.mark.parametrize("n", [1, 2, 7])
def test_as_many_probes_as_rows_read_the_diagonal(trace, n):
    a = torch.randn(n, n, dtype=F64, generator=torch.Generator().manual_seed(n))
    found = trace(LinearMap.of_matrix(a), probes=n)
    assert found.low == found.high == found.value == pytest.approx(float(a.trace()))
    norm = frobenius_norm(LinearMap.of_matrix(a), probes=n)
    assert norm.low == norm.high == pytest.approx(float(a.norm()))


@pytest.mark.parametrize("trace", [hutch_plus_plus, x_trace])
@pytest.mark.parametrize("rank", [0, 1, 3])
def test_traces_of_low_rank_are_exact(trace, rank):
    s = torch.cat((torch.tensor([3.0, 2.0, 1.0], dtype=F64)[:rank], torch.zeros(60 - rank)))
    a = rotated(s)
    found = trace(LinearMap.of_matrix(a), probes=24)
    assert found.value == pytest.approx(float(a.trace()), abs=1e-12)
    assert found.high - found.low < 1e-12


@pytest.mark.parametrize("trace", TRACES)
def test_traces_are_unbiased_also_of_a_matrix_that_is_not_symmetric(trace):
    a = rotated(spectrum("1/j", 40)) + torch.eye(40, dtype=F64) / 40
    of_a = LinearMap.of_matrix(a)
    found = torch.tensor([trace(of_a, probes=8, seed=s).value for s in range(300)])
    error = float(found.std()) / math.sqrt(300)
    assert abs(float(found.mean() - a.trace())) < 4 * error


def test_x_trace_leaves_out_each_column_as_its_formula_says():
    a, n, m = rotated(spectrum("1/j", 30)), 30, 5
    omega = Stream(0, "estimators.x_trace").normal(n, m)

    def without(i, omega):
        return torch.cat((omega[:, :i], omega[:, i + 1 :]), 1)

    def mean_left_out(omega):
        total, m = 0.0, omega.shape[1]
        for i in range(m):
            q = torch.linalg.qr(a @ without(i, omega)).Q
            w = omega[:, i] - q @ (q.mT @ omega[:, i])
            total += float((q.mT @ a @ q).trace() + w @ a @ w * (n - m + 1) / (w @ w))
        return total / m

    found = x_trace(LinearMap.of_matrix(a), probes=2 * m, seed=0)
    assert found.value == pytest.approx(mean_left_out(omega), rel=1e-10)
    again = torch.tensor([mean_left_out(without(i, omega)) for i in range(m)], dtype=F64)
    jackknife = math.sqrt((m - 1) / m * float((again - again.mean()).square().sum()))
    assert (found.high - found.low) / 2 == pytest.approx(2.7764451 * jackknife, rel=1e-6)


# --- spectra --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(60, 60), (60, 25), (25, 60), (1, 1), (1, 9), (9, 1)])
def test_spectral_norm_of_any_shape(shape):
    a = torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(2))
    found = spectral_norm(LinearMap.of_matrix(a))
    truth = float(torch.linalg.matrix_norm(a, 2))
    assert found.converged
    assert found.value == pytest.approx(truth, rel=1e-9)
    assert found.residual < 1e-5 * truth
    assert truth <= found.high * (1 + 1e-12)


def test_spectral_norm_says_when_it_stopped_early_and_how_far_it_can_be():
    s = 1 - torch.arange(400, dtype=F64) / 4000  # crowded at the top
    found = spectral_norm(diagonal(s), steps=30)
    assert not found.converged
    assert found.value < 1 <= found.high < 1.2
    x = (math.log(1.648 * math.sqrt(400) / 0.05) / (2 * 30 - 1)) ** 2
    assert found.high == pytest.approx(found.value / math.sqrt(1 - x), rel=1e-12)
    assert (s - found.value).abs().min() <= found.residual
    assert spectral_norm(diagonal(s), steps=2).high == math.inf
    assert spectral_norm(diagonal(s), steps=2, tolerance=0.0).value == pytest.approx(
        spectral_norm(diagonal(s), steps=2).value
    )


def test_spectral_norm_agrees_with_arpack_on_an_operator():
    from scipy.sparse.linalg import LinearOperator, svds

    q, k, _ = Normal(300, 8)(0, dtype=F64)
    a = LinearMap.of_operator(Local(32), q, k) - LinearMap.of_operator(Softmax(), q, k)

    def product(of):
        return lambda x: (of @ torch.from_numpy(x.copy()).reshape(-1)).numpy()

    scipy = LinearOperator(a.shape, matvec=product(a), rmatvec=product(a.T), dtype=float)
    start = torch.randn(300, dtype=F64, generator=torch.Generator().manual_seed(1)).numpy()
    (truth,) = svds(scipy, k=1, v0=start, return_singular_vectors=False)
    assert spectral_norm(a).value == pytest.approx(truth, rel=1e-9)


SCALES = [1e-310, 1e-300, 1e-200, 1e-162, 1e-155, 1e150, 1e155, 1e200, 1e300]


def ends(found):
    return found.value, found.low, found.high


@pytest.mark.parametrize("scale", SCALES)
def test_no_square_overflows_or_vanishes_on_the_way(scale):
    """What is made of A at any scale is what is made of A, times the scale or as it is."""
    g = torch.Generator().manual_seed(0)
    a = torch.randn(40, 30, generator=g, dtype=F64)
    square = a @ a.mT
    plain, symmetric = LinearMap.of_matrix(a), LinearMap.of_matrix(square)
    scaled, of_square = LinearMap.of_matrix(scale * a), LinearMap.of_matrix(scale * square)
    norms = [spectral_norm(x, steps=12) for x in (plain, scaled)]
    assert norms[1].value == pytest.approx(scale * norms[0].value, rel=1e-9)
    assert norms[1].high == pytest.approx(scale * norms[0].high, rel=1e-9)
    assert norms[1].value <= float(torch.linalg.matrix_norm(a, 2)) * scale * (1 + 1e-9)
    assert norms[1].high >= float(torch.linalg.matrix_norm(a, 2)) * scale
    for probes in (10, 30):
        kept = frobenius_norm(plain, probes=probes), frobenius_norm(scaled, probes=probes)
        wanted = [scale * x for x in ends(kept[0])]
        assert ends(kept[1]) == pytest.approx(wanted, rel=1e-9)
    ranks = [effective_rank(x, steps=8, probes=3) for x in (plain, scaled)]
    assert ends(ranks[1]) == pytest.approx(ends(ranks[0]), rel=1e-6)
    for trace in TRACES:
        found = [trace(x, probes=12) for x in (symmetric, of_square)]
        assert ends(found[1]) == pytest.approx([scale * x for x in ends(found[0])], rel=1e-6)
    sums = [
        eigenvalues(x, steps=8, probes=3).sum(lambda s: s).value for x in (symmetric, of_square)
    ]
    assert sums[1] == pytest.approx(scale * sums[0], rel=1e-6)


@pytest.mark.parametrize("scale", [1e-300, 1e-170, 1e170, 1e290])
def test_relative_errors_know_no_scale(scale):
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(20, 4, generator=g, dtype=F64) for _ in range(3))
    op = Nystromformer(rank=3)
    found, wanted = (output_error(op, q, k, v * x, rows=10) for x in (scale, 1.0))
    assert ends(found) == pytest.approx(ends(wanted), rel=1e-9)


def test_what_estimates_give_cannot_be_changed_by_who_receives_it():
    a = diagonal(torch.tensor([3.0, 2.0, 1.0], dtype=F64))
    (*_, last) = bidiagonal(a, torch.ones(3, dtype=F64), 2)
    given = {"rest": last, "size": eigenvalues(a, probes=2), "low": hutchinson(a, probes=2),
             "high": spectral_norm(a), "shape": a}  # fmt: skip
    for name, found in given.items():
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(found, name, 1)


def test_exact_rows_of_another_input_are_refused():
    q, k, v = (torch.randn(20, 4) for _ in range(3))
    exact = ExactRows(Softmax(), q, k, v, rows=10)
    assert output_error(Local(2), q.clone(), k, v, exact).value > 0
    for other in ((q + 1, k, v), (q, k[:19], v[:19]), (q, k, 2 * v)):
        with pytest.raises(ValueError, match="another input"):
            output_error(Local(2), *other, exact)


@pytest.mark.parametrize("of", ["zero", "repeated", "one value"])
def test_exhausted_spaces_end_early_and_exactly(of):
    values = {
        "zero": [0.0] * 50,
        "repeated": [2.0] * 20 + [1.0] * 29 + [0.0],
        "one value": [3.0] * 50,
    }
    s = torch.tensor(values[of], dtype=F64)
    a = LinearMap.of_matrix(rotated(s))
    norm = spectral_norm(a)
    assert norm.converged
    assert norm.steps <= 4
    assert norm.value == pytest.approx(float(s[0]), abs=1e-12)
    share = s[s > 0] / s.sum()
    truth = 0.0 if of == "zero" else math.exp(-float((share * share.log()).sum()))
    rank = effective_rank(a, probes=40)
    assert rank.value == pytest.approx(truth, rel=0.1)
    assert (of == "repeated") != (rank.low == pytest.approx(rank.high, rel=1e-6))
    known = torch.tensor([-0.01, 0.5, 1.5, 2.5, 3.5], dtype=F64)
    shares = (s <= known[:, None]).double().mean(1)
    assert torch.allclose(singular_values(a, probes=40).below(known), shares, atol=0.06)


def test_density_of_all_steps_has_the_values_as_its_nodes():
    s = torch.linspace(-1, 2, 12, dtype=F64)
    u = rotated(torch.ones(12, dtype=F64))
    a = (u * s) @ u.mT
    density = eigenvalues(LinearMap.of_matrix((a + a.mT) / 2), steps=12, probes=3)
    assert torch.allclose(density.nodes.sort().values, s.expand(3, 12), atol=1e-9)
    assert torch.allclose(density.weights.sum(-1), torch.ones(3, dtype=F64))
    total = density.sum(lambda x: 2 * x + 1)
    assert total.low < 2 * float(s.sum()) + 12 < total.high


def test_density_of_a_kernel_matrix_has_its_moments():
    x = Smooth(500, 4, length=32.0)(0, dtype=F64).q
    kernel = GaussianAttention().kernel(4).matrix(x, x)
    a = LinearMap.of_operator(GaussianAttention(), x, x)
    assert a.symmetric
    for density in (eigenvalues(a, steps=20), singular_values(a, steps=20)):
        found = density.sum(lambda s: s * s)
        assert found.low < float(kernel.norm() ** 2) < found.high
        assert float(density.nodes.max()) == pytest.approx(spectral_norm(a).value, rel=1e-6)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_a_matrix_is_symmetric_up_to_rounding_and_no_further(dtype):
    eps = torch.finfo(dtype).eps
    for scale in (1e-30, 1.0, 1e30):
        for gap, symmetric in ((0.0, True), (99 * eps, True), (100.5 * eps, False)):
            a = torch.tensor([[-1.0, 0.0], [gap, 0.5]], dtype=dtype) * scale
            assert LinearMap.of_matrix(a).symmetric == symmetric
            assert LinearMap.of_matrix(a.mT).symmetric == symmetric
    x = torch.randn(40, 7, dtype=dtype, generator=torch.Generator().manual_seed(0))[:, :4]
    assert LinearMap.of_matrix(x @ x.mT).symmetric  # whatever the order that sums are formed in
    assert not LinearMap.of_matrix(x).symmetric
    assert LinearMap.of_matrix(torch.zeros(3, 3, dtype=dtype)).symmetric


# --- operators as maps ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "op", [Softmax(), Soft(6), Local(8), Linformer(6), Performer(16)], ids=repr
)
def test_a_map_of_an_operator_is_its_matrix_and_its_transpose(op):
    q, k, _ = Normal(40, 4)(0, dtype=F64)
    a, m = LinearMap.of_operator(op, q, k), as_matrix(op, q, k)
    eye = torch.eye(40, dtype=F64)
    assert torch.allclose(a @ eye, m, atol=1e-12)
    assert torch.allclose(a.T @ eye, m.mT, atol=1e-12)
    assert torch.allclose((a - a.T.T) @ eye[0], torch.zeros(40, dtype=F64))


@pytest.mark.parametrize(
    "target",
    [
        Softmax(),
        Softmax(causal=True),
        GaussianAttention(),
        GaussianAttention(normalization="row", causal=True),
        GaussianAttention(normalization="symmetric"),
    ],
    ids=repr,
)
def test_exact_rows_are_rows(target):
    q, k, v = Smooth(64, 4, length=8.0)(0)
    few = ExactRows(target, q, k, v, rows=9, seed=1)
    true = target(q.double(), k.double(), v.double())
    assert torch.allclose(few.output, true[few.at], atol=1e-12)
    assert len(set(few.at.tolist())) == 9


def test_all_rows_give_the_error_itself_and_one_draw_serves_many_operators():
    q, k, v = Normal(80, 8)(0)
    exact = ExactRows(Softmax(), q, k, v, rows=80)
    for op in (Nystromformer(8), Local(8), KDEFormer(8)):
        found = output_error(op, q, k, v, exact)
        difference = (op(q, k, v) - exact.output).norm() / exact.output.norm()
        assert found.low == found.high == pytest.approx(float(difference), rel=1e-6)
    causal = output_error(Local(8, causal=True), q, k, v, rows=40)
    assert 0 < causal.low < causal.value < causal.high < math.inf


def test_an_output_that_is_not_finite_has_an_infinite_error():
    q, k, v = Normal(20, 4)(0)
    broken = Given(Softmax(), torch.full_like(v, math.nan))
    assert output_error(broken, q, k, v, rows=5).value == math.inf


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "estimate",
    [
        lambda op, x: output_error(op, x, x, x, rows=64),
        lambda op, x: matrix_error(op, x, x, rows=8),
        lambda op, x: spectral_norm(LinearMap.of_operator(op, x, x), steps=4),
        lambda op, x: frobenius_norm(LinearMap.of_operator(op, x, x), probes=8),
        lambda op, x: x_trace(LinearMap.of_operator(op, x, x), probes=8),
        lambda op, x: effective_rank(LinearMap.of_operator(op, x, x), steps=4, probes=2),
    ],
    ids=["output", "matrix", "spectral", "frobenius", "trace", "rank"],
)
def test_memory_is_far_below_that_of_the_matrix(estimate):
    n = 16384
    x, _, _ = Normal(n, 16)(0)
    peak = peak_memory(lambda: estimate(Soft(16), x), x.device)
    assert peak < 0.05 * 4 * n * n


# --- bad input ------------------------------------------------------------------------------------


def of(a):
    return LinearMap.of_matrix(torch.as_tensor(a, dtype=F64))


Q, K, V = Normal(12, 4)(0)
EYE = torch.eye(12, dtype=F64)
CAUSAL = Local(4, causal=True)
FLAT = Density(torch.ones(2, 1, dtype=F64), torch.ones(2, 1, dtype=F64), 3)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: of(torch.full((3, 3), math.nan)), "NaN or inf"),
        (lambda: of(torch.zeros(0, 3)), "not empty"),
        (lambda: of(torch.zeros(2, 3, 3)), "one matrix"),
        (lambda: LinearMap.of_matrix(torch.eye(3, dtype=torch.int64)), "floating"),
        (lambda: LinearMap((0, 3), lambda x: x), "both at least 1"),
        (lambda: LinearMap((2, 3), lambda x: x, symmetric=True), "square"),
        (lambda: LinearMap((12, 12), lambda x: x[:5]) @ EYE, r"gave \(5, 12\)"),
        (lambda: LinearMap((12, 12), lambda x: x * math.nan) @ EYE, "NaN or inf"),
        (lambda: LinearMap((12, 12), lambda x: x).T, "no adjoint"),
        (lambda: of(EYE) - of(EYE[:5]), "no difference"),
        (lambda: LinearMap.of_operator(KDEFormer(4), Q, K), "not linear in v"),
        (lambda: hutchinson(of(EYE[:5])), "no trace"),
        (lambda: hutchinson(of(EYE), probes=13), "2 to 12"),
        (lambda: hutchinson(of(EYE), probes=1), "2 to 12"),
        (lambda: hutch_plus_plus(of(EYE), probes=5), "6 to 12"),
        (lambda: x_trace(of(EYE), probes=3), "4 to 12"),
        (lambda: frobenius_norm(of(EYE), probes=13), "2 to 12"),
        (lambda: frobenius_norm(of(EYE), probes=2.0), "give an integer"),
        (lambda: frobenius_norm(EYE), "give a LinearMap; LinearMap.of_matrix makes one"),
        (lambda: of(EYE) - EYE, "give a LinearMap; LinearMap.of_matrix makes one"),
        (lambda: hutchinson(of(EYE), probes=4, confidence=1.0), "between 0 and 1"),
        (lambda: spectral_norm(of(EYE), confidence=0), "between 0 and 1"),
        (lambda: spectral_norm(of(EYE), steps=0), "steps is 0"),
        (lambda: spectral_norm(of(EYE), tolerance=1.0), "from 0 to below 1"),
        (lambda: spectral_norm(of(EYE), tolerance=-1e-9), "from 0 to below 1"),
        (lambda: FLAT.sum(torch.square, confidence=95.0), "between 0 and 1"),
        (lambda: FLAT.below(torch.tensor([1.0, math.nan])), "holds NaN"),
        (lambda: Estimate(2.0, 1.0, 3.0, 0.9).times(0.0), "factor is 0"),
        (lambda: frobenius_norm(of(EYE), probes=4, seed=-1), "at least 0"),
        (lambda: eigenvalues(of(EYE[:5])), "symmetric"),
        (lambda: singular_values(of(EYE), probes=1), "at least 2"),
        (lambda: effective_rank(of(EYE), confidence=95), "between 0 and 1"),
        (lambda: output_error(Local(4), Q, K, V, rows=13), "2 to 12"),
        (lambda: output_error(Local(4), Q[None], K[None], V[None]), "two dimensions"),
        (lambda: output_error(Soft(4), Q, K, V, ExactRows(Softmax(), Q, K, V, rows=4)), "aims at"),
        (lambda: matrix_error(CAUSAL, Q, K, rows=4), "probed_error"),
        (lambda: matrix_error(KDEFormer(4), Q, K, rows=4), "not linear in v"),
        (lambda: probed_error(Local(4), Q, K, probes=13), "2 to 12"),
    ],
)
def test_bad_input_is_refused(call, said):
    with pytest.raises((ValueError, TypeError), match=said):
        call()


PROBES, DENSITY = {"probes": 32, "seed": 0}, {"steps": 40, "probes": 10, "seed": 0}
STATED = {
    **dict.fromkeys(
        ("frobenius_norm", "hutch_plus_plus", "hutchinson", "probed_error", "x_trace"), PROBES
    ),
    **dict.fromkeys(("effective_rank", "eigenvalues", "singular_values"), DENSITY),
    "matrix_error": {"rows": 64, "seed": 0},
    "output_error": {"exact": None, "rows": 256, "seed": 0},
    "ExactRows": {"rows": 256, "seed": 0},
    "spectral_norm": {"steps": 100, "tolerance": 1e-6, "seed": 0},
}


def test_defaults_are_the_stated_ones():
    """A default is part of every number that was made without the keyword."""
    for name, due in STATED.items():
        asked = inspect.signature(getattr(estimators, name)).parameters.values()
        found = {x.name: x.default for x in asked if x.default is not x.empty}
        assert found.pop("confidence", 0.95) == 0.95, name
        assert found == due, name


def test_estimates_without_keywords_are_those_of_the_stated_defaults():
    a = diagonal(1 / torch.arange(1, 51, dtype=F64))
    for name, due in STATED.items():
        if {"probes", "steps"} & due.keys() and name != "probed_error":
            find = getattr(estimators, name)
            assert str(find(a)) == str(find(a, **due))


# --- intervals against their formulas ------------------------------------------------------------


def student_of(values, confidence):
    """Mean and Student's interval, from the textbook."""
    m, mean = len(values), sum(values) / len(values)
    error = math.sqrt(sum((x - mean) ** 2 for x in values) / (m - 1) / m)
    reach = t.ppf((1 + confidence) / 2, m - 1) * error
    return pytest.approx((mean, mean - reach, mean + reach))


@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_intervals_of_traces_are_students_over_the_forms(confidence):
    n, probes = 30, 9
    w = rotated(1 / torch.arange(1, n + 1, dtype=F64)) + torch.eye(n, dtype=F64).roll(1, 0)
    a, how = LinearMap.of_matrix(w), {"probes": probes, "confidence": confidence, "seed": 4}
    signs = Stream(4, "estimators.hutchinson").signs(n, probes)
    forms = [float(x @ w @ x) for x in signs.mT]
    assert ends(hutchinson(a, **how)) == student_of(forms, confidence)
    signs = Stream(4, "estimators.hutch_plus_plus").signs(n, 6).mT
    q = torch.linalg.qr(w @ signs[:3].mT).Q
    inside = float((q.mT @ w @ q).trace())
    outer = [x - q @ (q.mT @ x) for x in signs[3:]]
    forms = [inside + float(x @ w @ x) for x in outer]
    assert ends(hutch_plus_plus(a, **how)) == student_of(forms, confidence)
    found = x_trace(a, **how)
    assert found.high - found.value == pytest.approx(found.value - found.low)
    assert found.confidence == confidence


@pytest.mark.parametrize("share", [0.0, 0.36])
def test_the_interval_of_a_ratio_is_the_jackknifes_on_the_logarithm(share):
    a, b = [1.0, 4.0, 2.0, 0.5], [3.0, 5.0, 1.0, 2.0]
    left = [math.log((7.5 - x) / (11 - y)) for x, y in zip(a, b, strict=True)]
    mean = sum(left) / 4
    error = math.sqrt((1 - share) * 3 / 4 * sum((x - mean) ** 2 for x in left))
    reach = math.exp(t.ppf(0.95, 3) * error)
    found = of_ratio(torch.tensor(a), torch.tensor(b), 0.9, share=share)
    assert ends(found) == pytest.approx((7.5 / 11, 7.5 / 11 / reach, 7.5 / 11 * reach), rel=1e-6)
    assert ends(of_ratio(torch.tensor(a), torch.tensor(b), 0.9, share=1.0)) == (7.5 / 11,) * 3
    zero, one = torch.zeros(3), torch.tensor([0.0, 0.0, 2.0])
    assert ends(of_ratio(zero, one, 0.9)) == (0, 0, 0)
    assert ends(of_ratio(one, zero, 0.9)) == (math.inf,) * 3
    assert ends(of_ratio(one, torch.ones(3), 0.9)) == (pytest.approx(2 / 3), 0, math.inf)
    assert ends(of_ratio(one, torch.ones(3), 0.9, share=1.0)) == (pytest.approx(2 / 3),) * 3


def test_the_interval_of_a_sum_of_squares_is_a_chi_squares():
    gram = torch.tensor([[4.0, 1.0, -1.0], [1.0, 6.0, 2.0], [-1.0, 2.0, 11.0]], dtype=F64)
    products = 2 * (4 * 6 + 4 * 11 + 6 * 11)
    freedom = 3 * products / (2 * (1 + 1 + 4))  # 66.7, cut to the size 3 * 20
    for size, f in ((200, freedom), (20, 60.0), (1, 3.0)):
        f *= (norm.ppf(0.975) / t.ppf(0.975, 2)) ** 2
        found = of_squares(gram, size, 0.95)
        due = (7, 7 * f / chi2.ppf(0.975, f), 7 * f / chi2.ppf(0.025, f))
        assert ends(found) == pytest.approx(due)
        assert ends(of_squares(gram / 7, size, 0.95)) == pytest.approx([x / 7 for x in due])
    assert ends(of_squares(0 * gram, 5, 0.95)) == (0, 0, 0)
    alone = of_squares(torch.diag(torch.tensor([1.0, 2.0], dtype=F64)), 7, 0.95)  # f is the size
    f = 14 * (norm.ppf(0.975) / t.ppf(0.975, 1)) ** 2
    assert alone.high == pytest.approx(1.5 * f / chi2.ppf(0.025, f))


def test_no_more_squares_make_a_norm_than_the_shorter_side_has():
    a = torch.eye(40, 3, dtype=F64)
    seen = a @ Stream(5, "estimators.frobenius_norm").normal(3, 2)
    found = frobenius_norm(LinearMap.of_matrix(a), probes=2, seed=5)
    due, more = (ends(of_squares(seen.mT @ seen, size, 0.95).root()) for size in (3, 40))
    assert ends(found) == pytest.approx(due)
    assert due != more  # what the two probes alone would allow for


def test_estimates_are_scaled_and_rooted_end_by_end():
    found = Estimate(9.0, 4.0, 16.0, 0.9)
    assert found.root() == Estimate(3.0, 2.0, 4.0, 0.9)
    assert found.times(0.5) == Estimate(4.5, 2.0, 8.0, 0.9)
    assert ends(of_mean(5.0, 2.0, 3, 0.8)) == pytest.approx(
        (5, 5 - 2 * t.ppf(0.9, 3), 5 + 2 * t.ppf(0.9, 3))
    )
    sizes = [magnitude(torch.tensor([x, -x / 3])) for x in (0.0, 1.0, 1.99, -2.0, 0.3, -5e8)]
    assert sizes == [1, 1, 1, 2, 0.25, 2.0**28]


def test_a_density_sums_and_counts_with_its_weights():
    nodes = torch.tensor([[1.0, 2.0], [0.5, 4.0], [2.0, 3.0]], dtype=F64)
    weights = torch.tensor([[0.25, 0.75], [0.5, 0.5], [1.0, 0.0]], dtype=F64)
    found = Density(nodes, weights, 10)
    sums = [10 * (0.25 + 0.75 * 4), 10 * (0.125 + 8), 10 * 4.0]
    assert found.sums(torch.square).tolist() == pytest.approx(sums)
    assert ends(found.sum(torch.square, confidence=0.9)) == student_of(sums, 0.9)
    at = torch.tensor([0.4, 0.5, 1.0, 2.0, 4.0], dtype=F64)
    shares = [0, 0.5 / 3, 0.75 / 3, 2.5 / 3, 1]
    assert found.below(at).tolist() == pytest.approx(shares)


def test_recursions_of_different_lengths_stand_side_by_side():
    ends = [([1.0, 2.0, 5.0], [0.2, 0.3, 0.5]), ([4.0], [1.0]), ([3.0, 0.0], [0.9, 0.1])]
    found = _density([tuple(torch.tensor(x, dtype=F64) for x in one) for one in ends], 7)
    assert found.size == 7
    assert found.nodes.shape == found.weights.shape == (3, 3)
    sums = [7 * sum(w * (x + 1) for x, w in zip(*one, strict=True)) for one in ends]
    assert found.sums(lambda x: x + 1).tolist() == pytest.approx(sums)


@pytest.mark.parametrize("scale", [1e-200, 1e-3, 1.0, 1e3, 1e200])
@pytest.mark.parametrize("find", [eigenvalues, singular_values])
def test_a_recursion_takes_a_step_a_distinct_value(find, scale):
    for values in ([2.0], [1.0, 3.0]):
        s = scale * torch.tensor(values, dtype=F64).repeat_interleave(20)
        found = find(diagonal(s), steps=9, probes=2)
        assert found.nodes.shape == (2, len(values))
        assert found.nodes[0].sort().values.tolist() == pytest.approx([scale * x for x in values])


def entropy_of(density, confidence=0.9):
    """Of shares s / sum s, each node counted size times its weight over the probes, with its ends.

    By loops, with the jackknife over the probes.
    """
    nodes, weights = density.nodes.tolist(), density.weights.tolist()

    def entropy(some):
        pairs = [(s, density.size * w / len(some)) for i in some
                 for s, w in zip(nodes[i], weights[i], strict=True) if s]  # fmt: skip
        total = sum(w * s for s, w in pairs)
        return -sum(w * s / total * math.log(s / total) for s, w in pairs)

    m = len(nodes)
    left = [entropy([j for j in range(m) if j != i]) for i in range(m)]
    error = math.sqrt((m - 1) / m * sum((x - sum(left) / m) ** 2 for x in left))
    return entropy(range(m)), error, t.ppf((1 + confidence) / 2, m - 1) * error


def test_the_entropy_of_a_density_has_the_jackknifes_error():
    nodes = torch.tensor([[1.0, 2.0], [0.5, 4.0], [2.0, 0.0], [3.0, 0.1]], dtype=F64)
    weights = torch.tensor([[0.25, 0.75], [0.5, 0.5], [0.9, 0.1], [0.3, 0.7]], dtype=F64)
    density = Density(nodes, weights, 10)
    for unit in (1.0, 4.0):  # what the values are taken in changes nothing
        assert _entropy(density, unit) == pytest.approx(entropy_of(density)[:2])


@pytest.mark.parametrize("steps", [3, 6])
def test_the_effective_rank_lies_midway_between_two_rules_and_its_interval_beyond_both(steps):
    a, how = diagonal(1 / torch.arange(1, 61, dtype=F64)), {"steps": steps, "probes": 4, "seed": 2}
    (gauss, _, over), (radau, _, under) = (entropy_of(rule) for rule in _both(a, steps, 4, 2))
    assert radau < gauss  # a node at 0 takes weight from the others
    low, high = min(gauss - over, radau - under), max(gauss + over, radau + under)
    due = [math.exp(min(max(x, 0), math.log(60))) for x in ((gauss + radau) / 2, low, high)]
    assert ends(effective_rank(a, confidence=0.9, **how)) == pytest.approx(due)


@pytest.mark.parametrize(
    ("find", "what", "least"),
    [
        (hutchinson, "probes", 2), (hutch_plus_plus, "probes", 6), (x_trace, "probes", 4),
        (frobenius_norm, "probes", 2), (spectral_norm, "steps", 1), (eigenvalues, "probes", 2),
        (eigenvalues, "steps", 1), (singular_values, "probes", 2), (singular_values, "steps", 1),
        (effective_rank, "probes", 2), (effective_rank, "steps", 1),
    ],
)  # fmt: skip
def test_the_least_of_probes_and_steps_is_served_and_one_less_refused(find, what, least):
    a = diagonal(1 / torch.arange(1, 13, dtype=F64))
    assert find(a, **{what: least})
    with pytest.raises(ValueError, match=f"{what} is {least - 1}"):
        find(a, **{what: least - 1})


WIDE = 1 << 20


@pytest.mark.parametrize(
    ("find", "what", "most"),
    [
        *((find, "probes", 1 << 10) for find in (*TRACES, frobenius_norm)),
        *((find, what, 1 << 10) for find in (eigenvalues,) for what in ("probes", "steps")),
        *((find, "probes", 1 << 10) for find in (singular_values, effective_rank)),
        *((find, "steps", 1 << 9) for find in (singular_values, effective_rank, spectral_norm)),
    ],
)
def test_what_would_not_fit_into_memory_is_refused_before_it_is_formed(find, what, most):
    touched = LinearMap((WIDE, WIDE), lambda x: pytest.fail("a product"), symmetric=True)
    for many in (most + 1, 10_000 if what == "probes" else WIDE):
        with pytest.raises(ValueError, match=f"{what} is {many}, .*; give at most {most}, so that"):
            find(touched, **{what: many})
    with pytest.raises(pytest.fail.Exception, match="a product"):  # as many as fit are begun
        find(LinearMap((64, 64), touched.apply, symmetric=True), **{what: 8})


def test_the_longer_side_is_what_has_to_fit_and_as_much_as_fits_is_served():
    many, few = torch.zeros(WIDE, 1), torch.zeros(2000, 1)
    for find, what in ((matrix_error, "rows"), (probed_error, "probes")):
        for q, k in ((many, many), (many, few), (few, many)):
            with pytest.raises(ValueError, match=rf"{what} is 1025, .*; give at most 1024"):
                find(Softmax(), q, k, **{what: 1025})
    for shape in ((WIDE, 2000), (2000, WIDE)):
        a = LinearMap(shape, lambda x: pytest.fail("a product"))
        with pytest.raises(ValueError, match=r"probes is 1025, .*; give at most 1024"):
            frobenius_norm(a, probes=1025)
    check_held("probes", 1024, WIDE)


@pytest.mark.parametrize("confidence", [0.0, 1.0])
def test_every_estimate_asks_for_a_confidence_between_none_and_certainty(confidence):
    q, k, v = Normal(8, 2)(0, dtype=F64)
    of_maps = (*TRACES, frobenius_norm, spectral_norm, effective_rank)
    calls = [(find, (diagonal(torch.ones(8, dtype=F64)),)) for find in of_maps]
    calls += [(find, (Soft(4), q, k)) for find in (matrix_error, probed_error)]
    calls += [(output_error, (Soft(4), q, k, v, ExactRows(Soft(4).target, q, k, v, rows=4)))]
    for find, given in calls:
        with pytest.raises(ValueError, match="confidence is"):
            find(*given, confidence=confidence)


# --- errors and densities of matrices that are not square -----------------------------------------


@pytest.mark.parametrize("op", [Nystromformer(3), Local(4)], ids=repr)
@pytest.mark.parametrize(("n", "l"), [(9, 7), (7, 9)])
def test_errors_are_ratios_of_sums_of_squares_row_by_row_or_probe_by_probe(op, n, l):
    q, (k, v) = Normal(n, 3)(0, dtype=F64).q, Normal(l, 3)(1, dtype=F64)[1:]
    a, m = as_matrix(op, q, k), as_matrix(op.target, q, k)
    how = {"confidence": 0.9, "seed": 3}

    def due(difference, true, dim, share):
        sums = (x.square().sum(dim) for x in (difference, true))
        return pytest.approx(ends(of_ratio(*sums, 0.9, share=share).root()))

    at = ExactRows(op.target, q, k, v, rows=4, seed=3).at
    wanted = due((a @ v - m @ v)[at], (m @ v)[at], 1, 4 / n)
    assert ends(output_error(op, q, k, v, rows=4, **how)) == wanted
    assert ends(matrix_error(op, q, k, rows=4, **how)) == due((a - m)[at], m[at], 1, 4 / n)
    drawn = Stream(3, "estimators.probed_error").normal(l, 4)
    wanted = due((a - m) @ drawn, m @ drawn, 0, 0.0)
    assert ends(probed_error(op, q, k, probes=4, **how)) == wanted
    whole = float((a - m).norm() / m.norm())
    assert ends(probed_error(op, q, k, probes=l, **how)) == pytest.approx((whole,) * 3)
    assert ends(matrix_error(op, q, k, rows=n, **how)) == pytest.approx((whole,) * 3)


@pytest.mark.parametrize("shape", [(9, 4), (4, 9)])
def test_a_density_of_singular_values_is_of_as_many_as_the_shorter_side(shape):
    a = torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(7))
    s = torch.linalg.svdvals(a)
    for of_a in (LinearMap.of_matrix(a), LinearMap.of_matrix(a).T):
        found = singular_values(of_a, steps=4, probes=3, seed=2)
        assert found.size == 4
        for nodes in found.nodes:
            torch.testing.assert_close(nodes, s)
        # A probe weighs each value by the square of its own part along the right singular vector.
        probes = Stream(2, "estimators.singular_values").normal(4, 3).mT
        vectors = torch.linalg.eigh(a.mT @ a if shape[1] == 4 else a @ a.mT).eigenvectors.flip(-1)
        weights = (probes / probes.norm(dim=-1, keepdim=True) @ vectors).square()
        torch.testing.assert_close(found.weights, weights)
    assert effective_rank(LinearMap.of_matrix(a), steps=4, probes=3).high <= 4 * (1 + 1e-12)


@pytest.mark.parametrize("name", ["q", "k", "v"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_exact_rows_of_what_is_not_finite_are_refused(name, bad):
    given = {"q": Q.clone(), "k": K.clone(), "v": V.clone()}
    given[name][3, 1] = bad
    with pytest.raises(ValueError, match=f"{name} has 1 entries that are NaN or inf"):
        ExactRows(Softmax(), **given, rows=4)
