"""Taylor attention: its remainder, its blocks, and the reach of its approximation."""

import math

import pytest
import torch

from softlab.core import as_matrix
from softlab.laws import tolerance
from softlab.operators import Softmax, Taylor, Uniform
from softlab.primitives import feature_maps
from softlab.profiling import peak_memory

F64 = torch.float64


def draw(n=24, d=8, scale=1.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    q, k = (scale * torch.randn(n, d, generator=g, dtype=F64) for _ in range(2))
    return q, k, torch.randn(n, 5, generator=g, dtype=F64)


def within_remainder(kernel, s):
    """|exp(s) - kernel| <= |s|^3 exp(|s|) / 6, Lagrange's, up to rounding."""
    rounding = tolerance(F64, 8, scale=float(s.exp().max()))
    return bool(((s.exp() - kernel).abs() <= s.abs() ** 3 * s.abs().exp() / 6 + rounding).all())


@pytest.mark.parametrize("scale", [0.1, 0.5, 1.0, 2.0])
def test_the_kernel_is_within_its_remainder(scale):
    q, k, _ = draw(scale=scale)
    s = q @ k.mT / math.sqrt(8)
    assert within_remainder(Taylor().kernel_matrix(q, k), s)
    # And the operator is that kernel with rows normalised.
    M = as_matrix(Taylor(), q, k)
    K = Taylor().kernel_matrix(q, k)
    allowed = tolerance(
        F64, 24, scale=1 + float((q.norm(dim=-1).max() * k.norm(dim=-1).max()) ** 2)
    )
    assert float((M - K / K.sum(-1, keepdim=True)).abs().max()) <= allowed


def test_the_remainder_catches_the_wrong_polynomial():
    q, k, _ = draw(scale=0.3)
    s = q @ k.mT / math.sqrt(8)
    for wrong in (1 + s, 1 + s + s**2, 1 + s + s**2 / 2 + 0.01, torch.zeros_like(s)):
        assert not within_remainder(wrong, s)


def test_the_error_falls_with_the_cube_of_the_scores_and_skill_is_lost_with_large_ones():
    def errors(scale):
        q, k, v = draw(n=64, scale=scale)
        exact = Softmax()(q, k, v)
        return [float((op(q, k, v) - exact).norm() / exact.norm()) for op in (Taylor(), Uniform())]

    # Scores go with the square of the points' scale, so halving it divides their cube by 64.
    (coarse, floor), (fine, _) = errors(0.4), errors(0.2)
    assert coarse < floor / 10
    assert 40 < coarse / fine < 100
    far, far_floor = errors(4.0)
    assert far > 0.5 * far_floor


@pytest.mark.parametrize("masked", [False, True])
def test_blocks_change_nothing(monkeypatch, masked):
    q, k, v = draw()
    key_mask = torch.arange(24) % 3 > 0 if masked else None
    leaves = [x.requires_grad_() for x in (q, k, v)]
    whole = Taylor()(*leaves, key_mask)
    wanted = torch.autograd.grad(whole.square().sum(), leaves)
    monkeypatch.setattr(feature_maps, "HELD_NUMBERS", 5 * 45)
    blocked = Taylor()(*leaves, key_mask)
    torch.testing.assert_close(blocked, whole, rtol=1e-11, atol=1e-12)
    for ours, theirs in zip(
        torch.autograd.grad(blocked.square().sum(), leaves), wanted, strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)


def test_features_of_a_long_sequence_are_never_held_at_once():
    x = torch.randn(1, 8192, 32, generator=torch.Generator().manual_seed(0))
    features = 8192 * (1 + 32 + 32 * 33 // 2) * 4
    assert peak_memory(lambda: Taylor()(x, x, x), x.device) < features
