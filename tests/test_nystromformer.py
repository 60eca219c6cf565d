"""Nystromformer's skip connection: the layer's convolution, and no part of the approximation."""

import math
import re

import pytest
import torch

from softlab.operators import Nystromformer

F64 = torch.float64
OP = Nystromformer(rank=4)


def draw(*lead, n=11, l=11, d=4, e=3, dtype=F64, seed=0):
    g = torch.Generator().manual_seed(seed)
    sizes = (n, d), (l, d), (l, e)
    return tuple(torch.randn(*lead, *s, generator=g, dtype=F64).to(dtype) for s in sizes)


@pytest.mark.parametrize("width", [1, 5, 33])
def test_it_adds_what_the_published_layer_adds(width):
    q, k, v = draw(2, 3)
    g = torch.Generator().manual_seed(1)
    layer = torch.nn.Conv2d(
        3, 3, (width, 1), padding=(width // 2, 0), groups=3, bias=False, dtype=F64
    )
    weights = torch.randn(3, width, generator=g, dtype=F64)
    with torch.no_grad():
        layer.weight.copy_(weights[:, None, :, None])
        wanted = OP(q, k, v) + layer(v)
    got = OP(q, k, v, convolution=weights)
    torch.testing.assert_close(got, wanted, rtol=1e-13, atol=1e-13)


def test_each_matrix_has_its_own_weights_entry_by_entry():
    q, k, v = draw(2)
    weights = torch.tensor([[1.0, 2, -3], [0, 0, 1]], dtype=F64)
    added = OP(q, k, v, convolution=weights) - OP(q, k, v)
    ends = torch.nn.functional.pad(v, (0, 0, 1, 1))
    first = ends[0, :-2] + 2 * ends[0, 1:-1] - 3 * ends[0, 2:]
    torch.testing.assert_close(added, torch.stack((first, ends[1, 2:])), rtol=1e-12, atol=1e-13)


def test_masked_values_count_as_zeros_whatever_they_hold():
    q, k, v = draw()
    key_mask = torch.arange(11) < 8
    weights = torch.ones(3, dtype=F64)
    held = torch.where(key_mask[:, None], v, math.nan)
    got = OP(q, k, held, key_mask, convolution=weights)
    v = torch.where(key_mask[:, None], v, 0)
    around = torch.nn.functional.pad(v, (0, 0, 1, 1)).unfold(0, 3, 1).sum(-1)
    torch.testing.assert_close(got, OP(q, k, v, key_mask) + around, rtol=1e-13, atol=1e-13)


def test_the_weights_learn_and_half_precision_is_rounded_once():
    q, k, v = draw(2)
    weights = torch.randn(2, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    leaves = [x.requires_grad_() for x in (v, weights)]
    assert torch.autograd.gradcheck(lambda v, c: OP(q, k, v, convolution=c), leaves)
    half = [x.detach().bfloat16() for x in (q, k, v, weights)]
    out = OP(*half[:3], convolution=half[3])
    wide = [x.double() for x in half]
    exact = OP(*wide[:3], convolution=wide[3])
    assert out.dtype == torch.bfloat16
    # Half a unit in the last place, and float32's own rounding beside it.
    assert bool(((out - exact).abs() <= exact.abs() * 2**-8 + 1e-4).all())


C = torch.ones(3, dtype=F64)
BAD = {
    "even": (C[:2], ValueError, "convolution must be weights (..., w), w odd and"),
    "scalar": (C[0], ValueError, "broadcastable to (2,), got (). For a weight a head"),
    "heads": (C.expand(3, 3), ValueError, "broadcastable to (2,), got (3, 3)"),
    "more axes": (C.expand(5, 2, 3), ValueError, "broadcastable to (2,), got (5, 2, 3)"),
    "dtype": (C.float(), TypeError, "convolution must be a tensor of torch.float64, like v, got"),
    "list": ([1.0], TypeError, "like v, got list. Convert it"),
    "device": (C.to("meta"), ValueError, "convolution is on meta, not cpu. Move it there"),
    "NaN": (C * math.nan, ValueError, "convolution has 3 entries that are NaN or inf"),
}


@pytest.mark.parametrize("name", BAD)
def test_weights_that_do_not_fit_are_refused(name):
    bad, error, message = BAD[name]
    with pytest.raises(error, match=re.escape(message)):
        OP(*draw(2), convolution=bad)


def test_cross_attention_has_no_convolution():
    q, k, v = draw(n=9)
    with pytest.raises(ValueError, match=r"9 queries and 11 values.*cross-attention"):
        OP(q, k, v, convolution=C)
