"""BandLowRank is the blend that it says, of what it says, and no more accurate than it says."""

import dataclasses

import pytest
import torch
from draws import head_of

from softlab import as_matrix
from softlab.laws import tolerance
from softlab.operators import BandLowRank, LinearAttention, Local, Softmax, Uniform
from softlab.profiling import peak_memory

F64 = torch.float64
draw = head_of(18, 18)


@pytest.mark.parametrize(("n", "l"), [(18, 18), (7, 23), (50, 6)])
def test_the_ends_of_the_blend_are_the_two_methods(n, l):
    q, k, v = draw(n, l)
    for mask in (None, torch.arange(l) % 3 != 1):
        for window in (1, 4):
            band = BandLowRank(window, kernels=3, blend=1.0)(q, k, v, mask)
            assert torch.equal(band, Local(window)(q, k, v, mask))
            far = BandLowRank(window, blend=0.0)(q, k, v, mask)
            assert torch.equal(far, LinearAttention()(q, k, v, mask))


def test_the_ends_of_the_causal_blend_are_the_causal_methods():
    q, k, v = draw(40, 40)
    for mask in (None, torch.arange(40) % 3 != 1):
        band = BandLowRank(4, kernels=3, blend=1.0, causal=True)(q, k, v, mask)
        assert torch.equal(band, Local(4, causal=True)(q, k, v, mask))
        far = BandLowRank(4, blend=0.0, causal=True)(q, k, v, mask)
        assert torch.equal(far, LinearAttention(causal=True)(q, k, v, mask))


def test_the_blend_is_the_line_between_its_ends():
    q, k, v = draw()
    near, far = (BandLowRank(2, 3, blend)(q, k, v) for blend in (1.0, 0.0))
    assert float((near - far).abs().max()) > 0.1
    for blend in (0.1, 0.5, 0.9):
        wanted = blend * near + (1 - blend) * far
        got = BandLowRank(2, 3, blend)(q, k, v)
        torch.testing.assert_close(got, wanted, rtol=0, atol=tolerance(F64, 18))


def test_the_second_kernel_is_the_first_of_opposite_points():
    q, k, v = draw()
    both = BandLowRank(1, 2, blend=0.0)(q, k, v)
    one, mirrored = (LinearAttention()(sign * q, sign * k, v) for sign in (1, -1))
    torch.testing.assert_close(both, (one + mirrored) / 2, rtol=0, atol=tolerance(F64, 18))


def test_the_third_kernel_keeps_its_digits_where_tanh_is_minus_one():
    # tanh(x) + 1 ~ 2 exp(2 x): a softmax of the keys' one coordinate, and 0 / 0 if taken as is.
    k = torch.tensor([[-30.0], [-31.0], [-40.0]], dtype=F64)
    v = torch.eye(3, dtype=F64)
    third = 3 * BandLowRank(1, 3, blend=0.0)(k, k, v) - 2 * BandLowRank(1, 2, blend=0.0)(k, k, v)
    wanted = (2 * k.mT).softmax(-1).expand(3, 3)
    torch.testing.assert_close(third, wanted, rtol=0, atol=1e-12)
    assert bool((k.tanh() + 1 == 0).any())


def test_off_the_band_the_rank_is_that_of_the_features_less_one_shared_direction():
    # The left factors of every kernel hold the vector of ones, for each kernel's rows sum to one.
    q, k, _ = draw(40, 40, d=3)
    for kernels in (1, 2, 3):
        matrix = as_matrix(BandLowRank(2, kernels, blend=0.5), q, k)
        band = as_matrix(Local(2), q, k) / 2
        s = torch.linalg.svdvals(matrix - band)
        rank = 3 * kernels - (kernels - 1)
        assert float(s[rank]) < tolerance(F64, 40, scale=float(s[0]))
        assert float(s[rank - 1]) > 1e-6 * float(s[0])


def test_near_and_far_together_beat_either_where_the_target_is_such_a_blend():
    """Targets that put half of a row on its own key and half evenly elsewhere.

    Neither zeros, nor the mean of v, nor one part alone comes near.
    """
    n, d = 64, 64
    # Own score log(n - 1), other scores 0: the target's rows are 1/2 at their own key.
    x = torch.eye(n, dtype=F64) * (d**0.5 * torch.tensor(n - 1.0).log()) ** 0.5
    v = torch.randn(n, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    v[:, 0] = (-1.0) ** torch.arange(n)  # what a window averages away
    exact = Softmax()(x, x, v)

    def error(out):
        return float((out - exact).norm() / exact.norm())

    both = BandLowRank(1, blend=0.5)
    parts = [error(dataclasses.replace(both, blend=blend)(x, x, v)) for blend in (0.0, 1.0)]
    trivial = error(Uniform()(x, x, v)), 1.0
    assert error(both(x, x, v)) < 0.25 * min(*parts, *trivial)


def test_no_blend_below_one_follows_a_row_on_one_key():
    # What the docstring owns to: far tokens still mix, by the share of the far field.
    x = 15 * torch.eye(12, dtype=F64)
    v = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    torch.testing.assert_close(Softmax()(x, x, v), v, rtol=0, atol=1e-12)
    missed = float((BandLowRank(1, blend=0.5)(x, x, v) - v).norm() / v.norm())
    assert 0.3 < missed < 0.6


def test_the_default_takes_little_memory_at_sixteen_thousand_tokens():
    q, k, v = (torch.randn(4, 16384, 32) for _ in range(3))
    peak = peak_memory(lambda: BandLowRank(32)(q, k, v), q.device)
    assert peak < 10 * q.numel() * q.element_size()
