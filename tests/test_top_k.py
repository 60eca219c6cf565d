"""The oracle keeps what it says, errs within its bound, and reaches the bound where it is sharp."""

import re

import pytest
import torch
from draws import head_of

from softlab.operators import Softmax, TopK, Uniform

F64 = torch.float64
KNOBS = [TopK(k=1), TopK(k=4), TopK(k=15), TopK(p=0.1), TopK(p=0.5), TopK(p=0.99)]

CASES = [
    TopK(k=3),
    TopK(p=0.8),
    TopK(k=3, causal=True),
    TopK(p=0.8, causal=True),
]


def twin(op: TopK, q, k, v):
    P = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1)
    kept = torch.zeros_like(P)
    for row, weights in enumerate(P.tolist()):
        mass, count = 0.0, 0
        for j in sorted(range(len(k)), key=lambda j: -weights[j]):
            if count >= op.k if op.k else mass >= op.p:
                break
            kept[row, j], mass, count = 1, mass + weights[j], count + 1
    P = P * kept
    return (P / P.sum(-1, keepdim=True)) @ v


draw = head_of(12, 16)


def bound(op, q, k, v):
    """(1 - kept mass) times the diameter of the values, a query."""
    return (1 - op.kept_mass(q, k)) * torch.cdist(v, v).max()


def errors(op, q, k, v):
    return (op(q, k, v) - Softmax()(q, k, v)).norm(dim=-1)


@pytest.mark.parametrize("op", KNOBS, ids=repr)
def test_a_row_errs_by_at_most_the_mass_left_out_times_the_diameter(op):
    for seed in range(5):
        tensors = draw(seed=seed)
        assert bool((errors(op, *tensors) <= bound(op, *tensors) + 1e-13).all())


def test_the_bound_refuses_zeros_and_the_mean():
    q, k, v = draw()
    exact, allowed = Softmax()(5 * q, k, v), bound(TopK(k=8), 5 * q, k, v)
    for trivial in (0 * exact, Uniform()(q, k, v)):
        assert not bool(((trivial - exact).norm(dim=-1) <= allowed).all())


@pytest.mark.parametrize("op", KNOBS, ids=repr)
def test_the_bound_is_reached_by_values_that_tell_kept_keys_from_the_others(op):
    q, k, _ = draw(n=1)
    kept = op(q, k, torch.eye(16, dtype=F64)) > 0
    v = torch.where(kept.mT, 1.0, -1.0).to(F64)
    torch.testing.assert_close(errors(op, q, k, v), bound(op, q, k, v), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("op", KNOBS, ids=repr)
def test_what_is_kept_is_least_and_in_proportion(op):
    q, k, _ = draw()
    exact = Softmax()(q, k, torch.eye(16, dtype=F64))
    matrix = op(q, k, torch.eye(16, dtype=F64))
    kept = matrix > 0
    mass = (exact * kept).sum(-1)
    torch.testing.assert_close(op.kept_mass(q, k), mass, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(matrix * mass[:, None], exact * kept, rtol=1e-12, atol=1e-14)
    least = exact.where(kept, 2).amin(-1)
    assert bool((exact.where(~kept, 0).amax(-1) <= least).all())
    if op.k is not None:
        assert bool((kept.sum(-1) == op.k).all())
    else:
        assert bool((mass >= op.p).all())
        assert bool((mass - least < op.p).all())  # one key fewer would not do


@pytest.mark.parametrize("op", [TopK(k=16), TopK(k=40), TopK(p=1.0)], ids=repr)
def test_exact_where_nothing_is_left_out(op):
    for scale in (0.1, 1, 30):
        q, k, v = draw()
        exact = Softmax()(scale * q, k, v)
        torch.testing.assert_close(op(scale * q, k, v), exact, rtol=1e-13, atol=1e-13)


def test_keys_that_tie_stay_or_go_together():
    # On a grid where products are exact: equal keys may else differ by their rounding.
    q, k, v = ((8 * x).round() / 8 for x in draw())
    twice = torch.cat((k, k)), torch.cat((v, -v))
    assert float(TopK(k=3)(q, *twice).abs().max()) < 1e-14  # four keys: two pairs that cancel
    assert float(TopK(p=0.3)(q, *twice).abs().max()) < 1e-14
    torch.testing.assert_close(TopK(k=1)(0 * q, k, v), Uniform()(q, k, v))  # every key ties


def test_weights_that_underflow_do_not_tie():
    q = torch.ones(1, 1, dtype=F64)
    k = torch.tensor([0.0, -800, -900, -1000], dtype=F64)[:, None]
    assert TopK(k=2)(q, k, k).isfinite().all()
    # In float32 all weights but the first are zero: none of them may push the first aside.
    out = TopK(k=1)(q.float(), k.float(), torch.eye(4))
    assert torch.equal(out, torch.eye(4)[:1])


def test_masked_keys_are_neither_kept_nor_counted():
    q, k, v = draw()
    key_mask = torch.arange(16) != int((q @ k.mT)[0].argmax())
    for op in KNOBS:
        alone = op(q, k[key_mask], v[key_mask])
        torch.testing.assert_close(op(q, k, v, key_mask), alone, rtol=1e-12, atol=1e-14)
        mass = op.kept_mass(q, k[key_mask])
        torch.testing.assert_close(op.kept_mass(q, k, key_mask), mass, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (TopK, ValueError, "TopK has k=None and p=None; give one of them: k, how many keys"),
        (lambda: TopK(k=3, p=0.5), ValueError, "TopK has k=3 and p=0.5; give one of them"),
        (lambda: TopK(k=0), ValueError, "TopK.k is 0; give an integer of at least 1"),
        (lambda: TopK(k=2.0), TypeError, "TopK.k is 2.0; give an integer of at least 1"),
        (lambda: TopK(p=0.0), ValueError, "TopK.p is 0.0; give a positive finite number"),
        (lambda: TopK(p=1.5), ValueError, "TopK.p is 1.5, a mass that no row has; give a number"),
    ],
)
def test_impossible_knobs_are_refused(build, error, message):
    with pytest.raises(error, match=re.escape(message)):
        build()
