"""Operators where users and data are unkind: degenerate tokens, odd tensors, autograd modes."""

import dataclasses

import pytest
import torch
from twins import twin
from zoo import OPERATORS

from softlab.core import own_precision
from softlab.landmarks import GridConv, KMeans
from softlab.laws.law import lengths
from softlab.operators import RPCholesky, Soft, Softmax, TopK, TruncatedSVD
from softlab.pinv import Cholesky, Inverting, NewtonRaphson, Ridge

F64, F32 = torch.float64, torch.float32
DIFFERENTIABLE = [op for op in OPERATORS if not isinstance(op, TruncatedSVD)]
"""The truncation has no gradient where two singular values meet, as most of these make them."""


def draw(op, *, lead=(2,), dtype=F64, d=5, e=3):
    m = getattr(op, "rank", 1)
    g = torch.Generator().manual_seed(0)
    n, l = lengths(op, m + 4, m + 6)
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


@pytest.mark.sampled(1 / 10)
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
    op = TopK(k=3)
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
    if not op.traits.blind:  # one key alone is read, which the mask need not hide
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


NORMS = [1e-3, 1e-2, 0.1, 1.0, *(10 ** (i / 8) for i in range(6, 25))]
"""Mean norms of tokens over six orders, dense where kernels of ordinary heads under-flow."""


def well_posed(op, q, k):
    """Whether the core that the operator inverts, if any, leaves float32 some digits."""
    if not isinstance(op, Inverting):
        return True
    return bool((torch.linalg.cond(op.core(q, k)) < 1e3).all())


def by_norm(op, norm, *, tied, n, d, seed=0):
    """Output and gradients at this mean norm of tokens, in float32 and in float64."""
    g = torch.Generator().manual_seed(seed)
    n, l = lengths(op, n, n)
    q, k, v, w = (torch.randn(*s, generator=g) for s in ((n, d), (l, d), (l, 3), (n, 3)))
    q, k = q * norm / d**0.5, k * norm / d**0.5
    found = []
    for dtype in (F32, F64):
        leaves = [x.to(dtype).requires_grad_() for x in ((q, v) if tied else (q, k, v))]
        out = op(leaves[0], leaves[0] if tied else leaves[1], leaves[-1])
        grads = torch.autograd.grad((out * w).sum(), leaves, materialize_grads=True)
        found.append([out.detach(), *grads])
    # What rounds a gradient that vanishes: products of this size.
    size = float(v.detach().norm() * w.norm() * max(norm, 1))
    return *found, size, well_posed(op, q.double(), (q if tied else k).double())


@pytest.mark.sampled(1 / 10)
@pytest.mark.parametrize("op", DIFFERENTIABLE, ids=repr)
def test_a_finite_output_has_a_finite_gradient_over_six_orders_of_token_norms(op):
    for number, norm in enumerate(NORMS):
        for tied in (True, False) if number < 4 else (number % 2 == 0,):
            single, double, size, posed = by_norm(op, norm, tied=tied, n=24, d=16)
            where = f"norm {norm:.3g}, tied {tied}"
            assert all(bool(x.isfinite().all()) for x in (*single, *double)), where
            if not posed or float((single[0] - double[0]).norm()) > 1e-4 * float(double[0].norm()):
                continue  # another choice of keys or landmarks, or a core that amplifies rounding
            for got, wanted in zip(single[1:], double[1:], strict=True):
                allowed = 1e-2 * float(wanted.norm()) + 1e-4 * size
                assert float((got - wanted).norm()) < allowed, where


FAINT = [
    *(Soft(rank=m, normalization=x) for m in (8, 16) for x in ("row", "symmetric")),
    Soft(rank=9, landmarks=KMeans(), normalization="symmetric"),
    Soft(rank=9, normalization="row", pinv=Cholesky()),
    Soft(rank=9, normalization="symmetric", pinv=Ridge(Cholesky(), ridge=0.01)),
    RPCholesky(rank=16),
    RPCholesky(rank=30, temperature=1.0),
]


@pytest.mark.parametrize("op", FAINT, ids=repr)
def test_where_kernels_underflow_their_quotients_are_right(op):
    """Degrees of 1e-26 and of 1e-40 have quotients of ordinary size, and so have gradients."""
    for number, norm in enumerate((3, 12, 20, 25, 30, 40, 60, 100, 150, 220)):
        for tied in (True, False) if norm in (20, 60) else (number % 2 == 0,):
            single, double, size, _ = by_norm(op, float(norm), tied=tied, n=128, d=32)
            if double[0].abs().max() > 1e12:
                continue  # queries far from all keys: see Soft
            for i, (got, wanted) in enumerate(zip(single, double, strict=True)):
                allowed = 1e-3 * float(wanted.norm()) + (1e-6 * size if i else 1e-12)
                assert float((got - wanted).norm()) < allowed, (norm, tied, i)


@pytest.mark.parametrize("op", [FAINT[0], FAINT[1], FAINT[-2]], ids=repr)
def test_an_underflowing_matrix_leaves_its_neighbours_alone(op):
    g = torch.Generator().manual_seed(0)
    q, v = (torch.randn(3, 40, 32, generator=g) for _ in range(2))
    q = q * torch.tensor([1.0, 9.0, 0.5])[:, None, None]
    out = op(q, q, v)
    for i in range(3):
        torch.testing.assert_close(out[i], op(q[i], q[i], v[i]), rtol=1e-4, atol=1e-5)
    mask = torch.ones(3, 40, dtype=torch.bool)
    mask[1, 30:] = False
    kept = op(q[1], q[1, :30], v[1, :30])
    torch.testing.assert_close(op(q, q, v, mask)[1], kept, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("d", "scale"), [(8, 8), (16, 15)])
@pytest.mark.parametrize("normalization", ["row", "symmetric"])
def test_quotients_of_underflowing_sums_are_those_of_exact_arithmetic(normalization, d, scale):
    mpmath = pytest.importorskip("mpmath")
    g = torch.Generator().manual_seed(0)
    x, v = (torch.randn(12, d, generator=g) for _ in range(2))
    x = (scale * x).double()
    op = Soft(3, normalization=normalization, pinv=NewtonRaphson(40))

    def kernel(a, b):
        def entry(x, y):
            squares = ((mpmath.mpf(float(p)) - float(q)) ** 2 for p, q in zip(x, y, strict=True))
            return mpmath.exp(-sum(squares) / (2 * mpmath.sqrt(d)))

        return mpmath.matrix([[entry(x, y) for y in b] for x in a])

    with mpmath.workdps(60):
        z = op.landmarks(x, 3)
        across = kernel(x, z)
        whole = across * kernel(z, z) ** -1 * across.T
        degree = [sum(whole[i, j] for j in range(12)) for i in range(12)]
        assert 0 < min(degree) < 1e-60
        power = -1 if normalization == "row" else mpmath.mpf(-0.5)
        left = [x**power for x in degree]
        right = [1] * 12 if normalization == "row" else left
        entries = [[float(left[i] * whole[i, j] * right[j]) for j in range(12)] for i in range(12)]
    exact = torch.tensor(entries, dtype=F64) @ v.double()
    torch.testing.assert_close(op(x, x, v.double()), exact, rtol=1e-10, atol=1e-10)
    x = x.float()
    torch.testing.assert_close(op(x, x, v).double(), exact, rtol=1e-4, atol=1e-4)
