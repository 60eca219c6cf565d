"""Skyformer: the lifted approximation lies below its kernel, by at most its shift at full rank."""

import re

import pytest
import torch

from softlab import as_matrix
from softlab.laws import tolerance
from softlab.operators import GaussianAttention, Skyformer
from softlab.pinv import SVD, Cholesky, NewtonRaphson, NystromformerCubic

F64 = torch.float64


def draw(*lead, n=7, l=9, d=4, e=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    sizes = (n, d), (l, d), (l, e)
    return tuple(torch.randn(*lead, *s, generator=g, dtype=F64) for s in sizes)


@pytest.mark.parametrize("gamma", [1e-3, 0.1, 2.0])
def test_at_full_rank_it_is_a_block_of_the_shifted_lift(gamma):
    q, k, _ = draw()
    op = Skyformer(16, gamma, pinv=Cholesky())
    lift = as_matrix(op.target, torch.cat((q, k)), torch.cat((q, k)))
    s, u = torch.linalg.eigh(lift)
    block = ((u * (s**2 / (s + gamma))) @ u.mT)[:7, 7:]
    got = as_matrix(op, q, k)
    kappa = float((s[-1] + gamma) / (s[0] + gamma))
    assert float((got - block).abs().max()) < tolerance(F64, 16, kappa=kappa)
    # s - s^2 / (s + gamma) < gamma, so the block errs by less than gamma.
    error = torch.linalg.matrix_norm(got - as_matrix(op.target, q, k), 2)
    assert float(error) < gamma
    for trivial in (0 * block, torch.full_like(block, 1 / 9)):
        missed = torch.linalg.matrix_norm(trivial - as_matrix(op.target, q, k), 2)
        assert float(missed) > 0.1


SOLVERS = [SVD(), NystromformerCubic(steps=6), NewtonRaphson(steps=3)]


@pytest.mark.parametrize("gamma", [0.0, 0.1])
@pytest.mark.parametrize("pinv", SOLVERS, ids=repr)
def test_the_lift_is_approximated_from_below(pinv, gamma):
    # 0 <= A_m <= K in the order of quadratic forms, for any rank, and any number of steps whose
    # residual stays within [0, 1].
    x, _, _ = draw(n=12)
    for rank in (1, 4, 12):
        op = Skyformer(rank, gamma, pinv=pinv)
        approximate, exact = as_matrix(op, x, x), as_matrix(op.target, x, x)
        for above in (approximate, exact - approximate):
            least = torch.linalg.eigvalsh((above + above.mT) / 2)[0]
            assert float(least) > -tolerance(F64, 12, scale=12, kappa=1e3)


def test_the_core_has_its_eigenvalues_in_the_unit_interval():
    q, k, _ = draw(3)
    for gamma in (0.01, 0.1, 10.0):
        s = torch.linalg.eigvalsh(Skyformer(8, gamma).core(q, k))
        assert float(s.min()) > 0
        assert float((s[:, -1] - 1).abs().max()) < 1e-14  # that of the vector of square roots


def test_the_scaling_cancels_where_the_core_is_inverted():
    q, k, v = draw(2)
    op = Skyformer(5, 0.1, pinv=SVD())
    z = op.landmarks(torch.cat((q, k), -2), 5)
    kernel = op.target.kernel(4)
    shifted = kernel.matrix(z, z) + 0.1 * torch.eye(5, dtype=F64)
    plain = kernel.matrix(q, z) @ torch.linalg.pinv(shifted) @ (kernel.matrix(z, k) @ v)
    torch.testing.assert_close(op(q, k, v), plain, rtol=1e-11, atol=1e-12)


def test_more_landmarks_err_less_and_beat_nothing_and_the_mean():
    q, k, v = draw(n=40, l=48)
    exact = GaussianAttention()(q, k, v)
    error = [
        float((Skyformer(m, 1e-3, pinv=Cholesky())(q, k, v) - exact).norm() / exact.norm())
        for m in (4, 16, 64, 88)
    ]
    assert error == sorted(error, reverse=True)
    mean = float((v.mean(0) - exact).norm() / exact.norm())
    assert error[2] < 0.3 * min(1, mean)


def test_masked_queries_are_no_landmarks():
    q, k, v = draw(2)
    query_mask = torch.arange(7) < torch.tensor([[5], [3]])
    op = Skyformer(6)
    out = op(q, k, v, query_mask=query_mask)
    for i, kept in enumerate((5, 3)):
        alone = op(q[i, :kept], k[i], v[i])
        torch.testing.assert_close(out[i, :kept], alone, rtol=1e-12, atol=1e-13)
    with pytest.raises(ValueError, match="rank 13 is asked of 12 queries and keys"):
        Skyformer(13)(q, k, v, query_mask=query_mask)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (
            lambda: Skyformer(4, gamma=-0.1),
            ValueError,
            "Skyformer.gamma is -0.1; give a finite number of at least 0",
        ),
        (
            lambda: Skyformer(4, gamma="0"),
            TypeError,
            "Skyformer.gamma is '0'; give a number of at least 0",
        ),
        (lambda: Skyformer(4, bandwidth=0.0), ValueError, "Skyformer.bandwidth is 0.0; give a"),
        (lambda: Skyformer(0), ValueError, "Skyformer.rank is 0; give an integer of at least 1"),
    ],
)
def test_impossible_knobs_are_refused(build, error, message):
    with pytest.raises(error, match=re.escape(message)):
        build()
