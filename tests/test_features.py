"""Weights of random features: each row's law, right angles, independence of seeds."""

import dataclasses
import math
from dataclasses import dataclass

import pytest
import torch
from scipy import stats
from zoo import WEIGHTS

from softlab.core import Stream
from softlab.features import IID, SORF, Orthogonal, QuasiMonteCarlo, Weights
from softlab.laws import tolerance

F64 = torch.float64
SEEDS = 800
SHAPES = [(1, 1), (3, 1), (5, 4), (4, 4), (12, 4), (9, 6), (2, 8), (16, 3)]


def draws(weights, m, d, seeds=SEEDS):
    return torch.stack([dataclasses.replace(weights, seed=s)(m, d) for s in range(seeds)])


@dataclass(frozen=True)
class EqualLengths(Orthogonal):
    """The planted fault: orthogonal rows of length sqrt(d), claimed to be normal."""

    def __call__(self, m, d):
        w = super().__call__(m, d)
        return math.sqrt(d) * w / w.norm(dim=-1, keepdim=True)


@dataclass(frozen=True)
class Transposed(Orthogonal):
    """The planted fault: lengths on the columns, so that the rows are not orthogonal."""

    def __call__(self, m, d):
        w = super().__call__(m, d)
        lengths = w.norm(dim=-1, keepdim=True)
        return w / lengths * lengths[:d].mT if m >= d else w


@dataclass(frozen=True)
class Unscrambled(QuasiMonteCarlo):
    """The planted fault: the same points for every seed."""

    def __call__(self, m, d):
        return QuasiMonteCarlo(0, self.sequence)(m, d)


@dataclass(frozen=True)
class FixedSigns(Orthogonal):
    """The planted fault: QR as it comes, whose first column has one sign."""

    def __call__(self, m, d):
        rng = Stream(self.seed, "features.Orthogonal")
        q = torch.linalg.qr(rng.normal(-(-m // d), d, d)).Q
        lengths = rng.normal(m, d).norm(dim=-1, keepdim=True)
        return lengths * q.reshape(-1, d)[:m]


def assert_rows_are_normal(weights, m=7, d=4):
    """Kolmogorov-Smirnov at 1e-6: projections are N(0, 1), squared lengths chi-square."""
    w = draws(weights, m, d)
    directions = torch.linalg.qr(
        torch.randn(d, d, generator=torch.Generator().manual_seed(1), dtype=F64)
    ).Q
    for row in (0, 2, m - 1):
        for u in (*directions, torch.eye(d, dtype=F64)[0]):
            assert stats.kstest((w[:, row] @ u).numpy(), "norm").pvalue > 1e-6, row
        squares = w[:, row].square().sum(-1)
        assert stats.kstest(squares.numpy(), stats.chi2(d).cdf).pvalue > 1e-6, row


def assert_second_moments(weights, m=7, d=4):
    """E[w w^T] = I for every row, within six standard errors."""
    w = draws(weights, m, d)
    products = w.unsqueeze(-1) * w.unsqueeze(-2)
    error = (products.mean(0) - torch.eye(d, dtype=F64)).abs()
    assert bool((error <= 6 * products.std(0) / math.sqrt(SEEDS) + 1e-12).all())
    assert bool((w.mean(0).abs() <= 6 * w.std(0) / math.sqrt(SEEDS)).all())


def assert_right_angles(weights, m, d):
    for block in weights(m, d).split(d):
        gram = block @ block.mT
        off = gram - gram.diagonal().diag()
        assert float(off.abs().max()) <= tolerance(F64, d, scale=float(gram.diagonal().max()))


@pytest.mark.parametrize("weights", WEIGHTS, ids=repr)
def test_shape_dtype_and_protocol(weights):
    assert isinstance(weights, Weights)
    for m, d in SHAPES:
        w = weights(m, d)
        assert w.shape == (m, d)
        assert w.dtype == F64
        assert bool(w.isfinite().all())


@pytest.mark.parametrize("weights", [w for w in WEIGHTS if w.normal], ids=repr)
def test_each_row_alone_is_normal(weights):
    assert_rows_are_normal(weights)


@pytest.mark.parametrize("weights", WEIGHTS, ids=repr)
def test_rows_are_isotropic(weights):
    assert_second_moments(weights)


@pytest.mark.parametrize("fault", [SORF(), EqualLengths(), FixedSigns(), Unscrambled()], ids=repr)
def test_rows_that_are_not_normal_are_caught(fault):
    with pytest.raises(AssertionError):
        assert_rows_are_normal(fault)


def test_rows_that_are_not_isotropic_are_caught():
    @dataclass(frozen=True)
    class Signless(SORF):
        def __call__(self, m, d):
            return SORF(0)(m, d)

    with pytest.raises(AssertionError):
        assert_second_moments(Signless())


@pytest.mark.parametrize("shape", [(4, 4), (8, 4), (7, 4), (3, 8), (5, 1)], ids=str)
@pytest.mark.parametrize("weights", [Orthogonal(1), SORF(1)], ids=repr)
def test_rows_of_a_block_are_orthogonal(weights, shape):
    assert_right_angles(weights, *shape)


def test_rows_that_are_not_orthogonal_are_caught():
    for fault in (IID(), Transposed()):
        with pytest.raises(AssertionError):
            assert_right_angles(fault, 8, 4)


def test_sorf_rows_have_one_length_and_their_product_is_the_definition():
    d, seed = 8, 5
    w = SORF(seed)(d, d)
    torch.testing.assert_close(w.norm(dim=-1), torch.full((d,), math.sqrt(d), dtype=F64))
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=F64) / math.sqrt(2)
    H = torch.kron(torch.kron(two, two), two)
    D = [signs.flatten().diag() for signs in Stream(seed, "features.SORF").signs(3, d)]
    torch.testing.assert_close(w, math.sqrt(d) * H @ D[0] @ H @ D[1] @ H @ D[2])


def test_independent_rows_have_random_angles_and_orthogonal_blocks_too():
    """E<w, w'>^2 = d for independent rows: IID throughout, Orthogonal from one block to another."""
    d = 4
    for weights, i, j in ((IID(), 0, 1), (Orthogonal(), 0, d), (Orthogonal(), 2, d + 1)):
        w = draws(weights, 2 * d, d)
        squares = (w[:, i] * w[:, j]).sum(-1).square()
        assert abs(float(squares.mean()) - d) <= 6 * float(squares.std()) / math.sqrt(SEEDS)


@pytest.mark.parametrize("weights", WEIGHTS, ids=repr)
def test_seeds_differ_and_one_seed_agrees(weights):
    m, d = 6, 4
    assert torch.equal(weights(m, d), weights(m, d))
    other = dataclasses.replace(weights, seed=weights.seed + 1)
    assert not torch.equal(weights(m, d), other(m, d))
    # Uncorrelated: entries of neighbouring seeds, over many pairs.
    w = draws(weights, m, d)
    products = w[:-1] * w[1:]
    assert bool((products.mean(0).abs() <= 6 * products.std(0) / math.sqrt(SEEDS - 1)).all())


@pytest.mark.parametrize("weights", WEIGHTS, ids=repr)
def test_the_global_generators_are_left_alone(weights):
    before = torch.get_rng_state()
    weights(6, 4)
    assert torch.equal(before, torch.get_rng_state())


def test_quasi_monte_carlo_fills_the_cube_more_evenly():
    """The mean of a smooth function over 256 points of the plane errs far less than by chance."""

    def spread(weights):
        return float(draws(weights, 256, 2, seeds=100).cos().prod(-1).mean(-1).std())

    for sequence in ("sobol", "halton"):
        assert spread(QuasiMonteCarlo(0, sequence)) < spread(IID()) / 3


@pytest.mark.parametrize("cls", [IID, Orthogonal, SORF, QuasiMonteCarlo])
@pytest.mark.parametrize("seed", [-1, 1.5, True, "0", None])
def test_seeds_that_are_none_are_refused(cls, seed):
    with pytest.raises((TypeError, ValueError), match=rf"{cls.__name__}\.seed is .*; give an int"):
        cls(seed)


def test_an_unknown_sequence_is_refused():
    with pytest.raises(ValueError, match=r"QuasiMonteCarlo\.sequence is 'faure'; give one of so"):
        QuasiMonteCarlo(sequence="faure")
