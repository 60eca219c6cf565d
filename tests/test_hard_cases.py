"""Operators where users and data are unkind: degenerate tokens, odd tensors, autograd modes."""

import dataclasses

import pytest
import torch
from twins import twin
from zoo import OPERATORS

from softlab.core import own_precision
from softlab.landmarks import GridConv
from softlab.laws.law import lengths
from softlab.operators import Soft, Softmax, TruncatedSVD

F64, F32 = torch.float64, torch.float32
DIFFERENTIABLE = [op for op in OPERATORS if not isinstance(op, TruncatedSVD)]
"""The truncation has no gradient where two singular values meet, as most of these make them."""


def draw(op, *, lead=(2,), dtype=F64, d=5, e=3):
    m = getattr(op, "rank", 1)
    g = torch.Generator().manual_seed(0)
    n, l = lengths(op, m + 4, m + 6)  # noqa: E741
    sizes = (n, d), (l, d), (l, e)
    return [torch.randn(*lead, *size, generator=g, dtype=F64).to(dtype) for size in sizes]


def output_and_gradients(op, *tensors):
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    out = op(*leaves)
    return [out.detach(), *torch.autograd.grad(out.sum(), leaves, materialize_grads=True)]


DEGENERATE = {
    "q = 0": lambda q, k, v: (0 * q, k, v),
    "k = 0": lambda q, k, v: (q, 0 * k, v),
    "identical tokens": lambda q, k, v: (0 * q + 1, 0 * k + 1, v),
    "v = 0": lambda q, k, v: (q, k, 0 * v),
    "v of 1e30": lambda q, k, v: (q, k, 1e30 * v),
    "a common offset": lambda q, k, v: (q + 1e4, k + 1e4, v),
    "far apart": lambda q, k, v: (q + 100, k - 100, v),
    "spread over 1e4": lambda q, k, v: (1e4 * q, 1e4 * k, v),
    "spread over 1e17": lambda q, k, v: (1e17 * q, 1e17 * k, v),
    "within 1e-30": lambda q, k, v: (1e-30 * q, 1e-30 * k, v),
    "d = 1": lambda q, k, v: (q[..., :1], k[..., :1], v),
    "e = 1": lambda q, k, v: (q, k, v[..., :1]),
}


@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize("op", DIFFERENTIABLE, ids=repr)
def test_output_and_gradients_stay_finite(op, name):
    for dtype in (F64, F32):
        tensors = DEGENERATE[name](*draw(op, dtype=dtype))
        assert all(bool(x.isfinite().all()) for x in output_and_gradients(op, *tensors)), dtype


@pytest.mark.parametrize("op", OPERATORS, ids=repr)
def test_the_largest_half_precision_numbers_do_not_overflow_on_the_way(op):
    q, k, v = (100 * x for x in draw(op, dtype=torch.float16))
    v = torch.full_like(v, 6e4)
    exact = twin(op, q.double(), k.double(), v.double())
    representable = exact.abs() < torch.finfo(torch.float16).max
    assert bool((op(q, k, v).isfinite() | ~representable).all())


@pytest.mark.parametrize("op", OPERATORS, ids=repr)
def test_tensors_are_read_as_they_look(op):
    q, k, v = draw(op, d=6)
    out = op(q[..., ::2], k[..., ::2], v.flip(-2))
    torch.testing.assert_close(
        out, op(*(x.contiguous() for x in (q[..., ::2], k[..., ::2], v.flip(-2))))
    )
    column_major = q.mT.contiguous().mT
    torch.testing.assert_close(op(column_major, k, v), op(q, k, v), rtol=1e-11, atol=1e-12)
    expanded = q[:1].expand_as(q)
    repeated = op(expanded.contiguous(), k, v)
    torch.testing.assert_close(op(expanded, k, v), repeated, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("op", OPERATORS, ids=repr)
def test_many_more_values_than_width(op):
    q, k, v = draw(op, e=300)
    torch.testing.assert_close(op(q, k, v), twin(op, q, k, v), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("op", OPERATORS, ids=repr)
def test_every_autograd_mode_gives_the_same_output(op):
    tensors = draw(op)
    plain = op(*tensors)
    with torch.no_grad():
        assert torch.equal(op(*tensors), plain)
    with torch.inference_mode():
        assert torch.equal(op(*tensors), plain)
    recorded = output_and_gradients(op, *tensors)[0]
    torch.testing.assert_close(recorded, plain, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("op", OPERATORS, ids=repr)
def test_the_gradient_of_one_argument_does_not_need_the_others(op):
    tensors = draw(op)
    whole = output_and_gradients(op, *tensors)[1:]
    for i, wanted in enumerate(whole):
        leaves = [x.clone().requires_grad_(i == j) for j, x in enumerate(tensors)]
        out = op(*leaves)
        if not out.requires_grad:  # as of the queries of a uniform average
            assert not bool(wanted.any())
            continue
        (alone,) = torch.autograd.grad(out.sum(), leaves[i])
        torch.testing.assert_close(alone, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("op", OPERATORS, ids=repr)
def test_autocast_does_not_round_the_products(op):
    tensors = draw(op, dtype=F32)
    unrecorded, plain = op(*tensors), output_and_gradients(op, *tensors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = op(*tensors)
        leaves = [x.clone().requires_grad_() for x in tensors]
        recorded = op(*leaves)
    assert out.dtype == F32
    # Recording a call can choose another fused kernel, so like is compared with like.
    assert torch.equal(out, unrecorded)
    assert torch.equal(recorded, plain[0])
    grads = torch.autograd.grad(recorded.sum(), leaves, materialize_grads=True)
    for ours, wanted in zip(grads, plain[1:], strict=True):
        torch.testing.assert_close(ours, wanted)


def test_autocast_rounds_where_nothing_guards_against_it():
    # The planted fault: an operator of its own products without the guard.
    op = Soft(rank=4)
    tensors = draw(op, dtype=F32)
    bare = type(op).__call__.__wrapped__
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, guarded = bare(op, *tensors), own_precision(bare)(op, *tensors)
    assert float((rounded - op(*tensors)).abs().max()) > 1e-4
    assert torch.equal(guarded, op(*tensors))


@pytest.mark.parametrize("op", OPERATORS, ids=repr)
def test_a_mask_on_one_head_leaves_the_others_alone(op):
    q, k, v = draw(op, lead=(2, 3))
    key_mask = torch.ones(3, k.shape[-2], dtype=torch.bool)
    key_mask[1, :4] = False
    out, plain = op(q, k, v, key_mask), op(q, k, v)
    torch.testing.assert_close(out, twin(op, q, k, v, key_mask), rtol=1e-8, atol=1e-8)
    for unmasked in (0, 2):
        torch.testing.assert_close(out[:, unmasked], plain[:, unmasked], rtol=1e-11, atol=1e-12)
    assert not torch.allclose(out[:, 1], plain[:, 1], rtol=1e-6)


@pytest.mark.parametrize("op", [op for op in OPERATORS if hasattr(op, "rank")], ids=repr)
def test_rank_one(op):
    tensors = draw(op)
    op = dataclasses.replace(op, rank=1)
    torch.testing.assert_close(op(*tensors), twin(op, *tensors), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    "op", [Softmax(), Soft(rank=4), Soft(rank=4, normalization="row")], ids=repr
)
def test_shapes_can_be_traced_without_numbers(op):
    q, k, v = (x.to("meta") for x in draw(op))
    out = op(q, k, v)
    assert out.is_meta
    assert out.shape == (2, q.shape[-2], 3)


def travels(op):
    """Whether what the operator puts among the tokens, if anything, moves along with them."""
    return not hasattr(op, "landmarks") or op.landmarks.means


def on_a_grid(x):
    """Tokens that float64 moves by 1e4 without rounding them."""
    return (x * 2**20).round() / 2**20


@pytest.mark.parametrize(
    "op",
    [op for op in DIFFERENTIABLE if "Gaussian" in repr(op.target) and travels(op)],
    ids=repr,
)
def test_the_gaussian_family_does_not_see_a_translation(op):
    q, k, v = draw(op)
    q, k = on_a_grid(q), on_a_grid(k)
    torch.testing.assert_close(op(q + 1e4, k + 1e4, v), op(q, k, v), rtol=1e-9, atol=1e-9)


def test_landmarks_that_are_no_means_see_a_translation():
    # A layer norm leaves them at its own scale, so that far tokens have none near them.
    op = Soft(rank=4, landmarks=GridConv(seed=14))
    assert not travels(op)
    q, k, v = draw(op)
    assert float(op(q, k, v).abs().max()) > 1e-3
    assert float(op(q + 1e4, k + 1e4, v).abs().max()) == 0
