"""Linformer's projections: their distribution, those given at the call, and what they do not do."""

import math
import re

import pytest
import torch
from scipy import stats

from softlab.operators import Linformer, Softmax

F64 = torch.float64
Z = stats.norm.isf(5e-6)
"""One in 10^5 choices of seeds would leave the interval of the central limit theorem."""

CASES = [
    Linformer(rank=4),
    Linformer(rank=3, seed=2, sharing="key-value"),
]


def twin(op: Linformer, q, k, v):
    E, F = (x.to(k.dtype) for x in op.projections(len(k)))
    return torch.softmax(q @ (E @ k).mT / q.shape[-1] ** 0.5, -1) @ (F @ v)


def draw(*lead, n=7, l=12, d=4, e=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(*lead, *s, generator=g, dtype=F64) for s in ((n, d), (l, d), (l, e)))


def test_the_projection_keeps_inner_products_in_expectation():
    seeds, rank, keys = 4000, 5, 6
    grams = []
    for seed in range(seeds):
        e, f = Linformer(rank, seed).projections(keys)
        grams.append(torch.stack((e.mT @ e, f.mT @ f, e.mT @ f)))
    gram = torch.stack(grams)
    eye = torch.eye(keys, dtype=F64)
    wanted = torch.stack((eye, eye, 0 * eye))
    # A sum of m products of normals of variance 1/m: variance 1/m, and 2/m for squares.
    spread = torch.stack(((1 + eye) / rank, (1 + eye) / rank, 0 * eye + 1 / rank)).sqrt()
    assert bool(((gram.mean(0) - wanted).abs() < Z * spread / math.sqrt(seeds)).all())


def test_sharing_shares():
    e, f = Linformer(3, sharing="key-value").projections(8)
    assert torch.equal(e, f)
    e, f = Linformer(3).projections(8)
    assert not torch.allclose(e, f)


def test_with_equal_scores_the_mean_over_draws_is_zero_and_not_the_mean_of_v():
    q, k, v = draw(n=1, e=1)
    v = v + 3
    out = torch.stack([Linformer(4, seed)(0 * q, k, v) for seed in range(2000)]).flatten()
    # A mean of m rows of F v, each normal of variance |v|^2 / m.
    deviation = float(v.norm()) / 4
    assert abs(float(out.mean())) < Z * deviation / math.sqrt(len(out))
    assert float(v.mean()) > 2 * Z * deviation / math.sqrt(len(out))


@pytest.mark.parametrize("masked", [False, True], ids=["full", "masked"])
def test_given_identities_are_exact(masked):
    q, k, v = draw(2, 3)
    key_mask = None
    rows = torch.eye(12, dtype=F64)
    if masked:  # a projection that merely keeps nine keys, the three masked ones not among them
        key_mask = torch.arange(12) % 4 != 1
        rows = rows[key_mask]
    op = Linformer(len(rows))
    out = op(q, k, v, key_mask, projections=(rows, rows))
    torch.testing.assert_close(out, Softmax()(q, k, v, key_mask), rtol=1e-13, atol=1e-14)


def test_given_means_are_exact_on_keys_that_repeat():
    q, k, v = draw(2)
    k = k[:, ::3].repeat_interleave(3, dim=1)
    means = torch.eye(4, dtype=F64).repeat_interleave(3, dim=1) / 3
    out = Linformer(4)(q, k, v, projections=(means, means))
    torch.testing.assert_close(out, Softmax()(q, k, v), rtol=1e-13, atol=1e-14)


def test_columns_of_masked_keys_are_dropped_and_the_rest_learns():
    q, k, v = draw(2)
    key_mask = torch.arange(12) < 9
    e, f = (p.requires_grad_() for p in draw(2, n=4, l=4, d=12)[:2])
    out = Linformer(4)(q, k, v, key_mask, projections=(e, f))
    kept = Linformer(4)(q, k[:, :9], v[:, :9], projections=(e[..., :9], f[..., :9]))
    torch.testing.assert_close(out, kept, rtol=1e-13, atol=1e-14)
    for grad in torch.autograd.grad(out.sum(), (e, f)):
        assert not bool(grad[..., 9:].any())
        assert bool(grad[..., :9].abs().amin((0, 1)).gt(0).all())


def test_each_matrix_of_a_masked_batch_has_the_draw_of_its_own_length():
    q, k, v = draw(3, 2)
    key_mask = torch.rand(3, 2, 12, generator=torch.Generator().manual_seed(1)) < 0.7
    assert len(key_mask.sum(-1).unique()) > 1
    op = Linformer(3, seed=4)
    out = op(q, k, v, key_mask)
    for i in range(3):
        for j in range(2):
            kept = key_mask[i, j]
            alone = op(q[i, j], k[i, j][kept], v[i, j][kept])
            torch.testing.assert_close(out[i, j], alone, rtol=1e-12, atol=1e-14)


GOOD = torch.zeros(4, 12, dtype=F64)
BAD = {
    "shape": (GOOD[:, :7], ValueError, "projection F must be (..., 4, 12), a row a rank and"),
    "rank": (GOOD[:3], ValueError, "got (3, 12). Set rank to its rows"),
    "vector": (GOOD[0], ValueError, "projection F must be (..., 4, 12)"),
    "dtype": (GOOD.float(), TypeError, "must be a tensor of torch.float64, got torch.float32"),
    "list": ([[1.0]], TypeError, "projection F must be a tensor of torch.float64, got list"),
    "device": (GOOD.to("meta"), ValueError, "projection F is on meta, not cpu. Move it there"),
    "NaN": (GOOD + math.nan, ValueError, "projection F has 48 entries that are NaN or inf"),
}


@pytest.mark.parametrize("name", BAD)
def test_projections_that_do_not_fit_are_refused(name):
    bad, error, message = BAD[name]
    with pytest.raises(error, match=re.escape(message)):
        Linformer(4)(*draw(), projections=(GOOD, bad))


def test_an_unknown_sharing_is_refused():
    with pytest.raises(ValueError, match="'heads'; give one of none, key-value"):
        Linformer(4, sharing="heads")
