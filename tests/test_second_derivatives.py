"""Second derivatives: right by every way of asking, or an error, never a silent number."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.autograd import grad
from torch.autograd.functional import hessian
from zoo import OPERATORS, SOLVERS

from softlab.kernels import fused, tiled
from softlab.operators import GaussianAttention, Performer, Quantized, Skyformer, Soft, Softmax
from softlab.operators import TruncatedSVD as Truncated
from softlab.pinv import SVD, GolubPereyra, ImplicitGradient, NewtonRaphson

F64 = torch.float64
MASK = torch.tensor([[True] * 6 + [False], [True, False] + [True] * 5])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def penalized(call, leaves, weights):
    """A loss that is linear in the output, and the square of its gradient."""
    loss = (call(*leaves) * weights).sum()
    first = grad(loss, leaves, create_graph=True, materialize_grads=True)
    return loss + sum(g.square().sum() for g in first)


def agrees(call, points, along, step=1e-6):
    """Both ways of asking give the differences of the first gradient."""
    weights = normal(*call(*points).shape, seed=5)
    sides = (
        penalized(call, [(x + s * d).requires_grad_() for x, d in moved], weights).item()
        for s in (step, -step)
        for moved in [list(zip(points, along, strict=True))]
    )
    expected = (next(sides) - next(sides)) / (2 * step)
    for ask in (by_backward, by_grad):
        leaves = [x.clone().requires_grad_() for x in points]
        total = penalized(call, leaves, weights)
        found = sum(float((g * d).sum()) for g, d in zip(ask(total, leaves), along, strict=True))
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5 * (1 + abs(total.item())))


def by_backward(total, leaves):
    total.backward()
    return [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]


def by_grad(total, leaves):
    return grad(total, leaves, materialize_grads=True)


def draw(op):
    """Batched queries and keys, tied or not, and directions that leave every rounding alone."""
    rounds = isinstance(op, Quantized)
    q, k, v = (normal(2, 7, 3, seed=s) for s in range(3))
    along = [normal(2, 7, 3, seed=s) * (not rounds or s == 8) / 10 for s in (6, 7, 8)]
    return (q, k, v), along


@pytest.mark.sampled(1 / 3)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "apart"])
@pytest.mark.parametrize("op", OPERATORS, ids=repr)
def test_a_masked_batch(op, tied):
    points, along = draw(op)
    if tied:
        points, along = points[::2], along[::2]
        agrees(lambda q, v: op(q, q, v, MASK), points, along)
    else:
        agrees(lambda q, k, v: op(q, k, v, MASK), points, along)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_a_batch_of_cores(solver):
    b, d = normal(2, 4, 4), normal(2, 4, 4, seed=1)
    core = b @ b.mT / 4 + torch.eye(4, dtype=F64)
    agrees(lambda a: solver((a + a.mT) / 2), [core], [d / 10])


# --- against dense formulas ------------------------------------------------------------------


def gaussian(q, k, v):
    return (-(q[:, None] - k).square().sum(-1) / (2 * q.shape[-1] ** 0.5)).exp() @ v


def softmax(q, k, v):
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v


def nystrom(q, k, v):
    z = k[:3]
    return gaussian(
        q, z, torch.linalg.inv(gaussian(z, z, torch.eye(3, dtype=F64))) @ gaussian(z, k, v)
    )


@dataclasses.dataclass(frozen=True)
class First:
    """The first tokens as landmarks."""

    subset = means = True
    equivariant = nested = False

    def cost(self, dims, m):
        raise NotImplementedError

    def __call__(self, x, m, key_mask=None):
        return x[..., :m, :]


DENSE = [
    (Softmax(), softmax),
    (GaussianAttention(), gaussian),
    (Soft(3, landmarks=First(), pinv=SVD()), nystrom),
    (Soft(3, landmarks=First(), pinv=NewtonRaphson(40)), nystrom),
    (Soft(3, landmarks=First(), pinv=ImplicitGradient(NewtonRaphson(40))), nystrom),
    (Soft(3, landmarks=First(), pinv=GolubPereyra(SVD())), nystrom),
    (Truncated(5), softmax),
    (Truncated(5, target=GaussianAttention()), gaussian),
]


@pytest.mark.parametrize("vectorize", [False, True])
@pytest.mark.parametrize(("op", "dense"), DENSE, ids=lambda x: getattr(x, "__name__", repr(x))[:60])
def test_the_whole_hessian_is_that_of_the_dense_formula(op, dense, vectorize):
    tensors = 2 * normal(5, 3), 2 * normal(5, 3, seed=1), normal(5, 2, seed=2)

    def loss(call):
        return lambda *x: call(*x).square().sum()

    found = hessian(loss(op), tensors, vectorize=vectorize)
    for mine, theirs in zip(found, hessian(loss(dense), tensors), strict=True):
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)


def best_rank(m, rank):
    """By autograd through the SVD, which needs singular values apart."""
    u, s, vh = torch.linalg.svd(m, full_matrices=False)
    return u[:, :rank] * s[:rank] @ vh[:rank]


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (5, 5)])
def test_the_best_rank_has_four_derivatives(shape):
    from softlab.operators import truncated_svd

    m, v = normal(*shape), torch.eye(shape[1], dtype=F64)
    direction = normal(*shape, seed=1)

    def along(call, order):
        t = torch.zeros((), dtype=F64, requires_grad=True)
        value = (call(m + t * direction) * normal(*shape, seed=2)).sum()
        for _ in range(order):
            (value,) = grad(value, t, create_graph=True)
        return value.item()

    def mine(x):
        return truncated_svd.derived(
            lambda a, b: truncated_svd._BestRank.apply(2, a, b),
            lambda a, b: truncated_svd.plain_best_rank(2, a, b),
            x,
            v,
        )

    for order in range(1, 5):
        expected = along(lambda x: best_rank(x, 2), order)
        assert along(mine, order) == pytest.approx(expected, rel=1e-6)


def test_the_best_rank_of_masked_keys_has_a_second_derivative():
    # Their singular values are all zero: autograd through the SVD is NaN here.
    tensors = [normal(6, 3, seed=s) for s in range(3)]
    mask = torch.tensor([True, False, True, True, False, True])
    kept = [tensors[0], *(x[mask] for x in tensors[1:])]
    found = hessian(lambda q: Truncated(2)(q, *tensors[1:], mask).square().sum(), tensors[0])
    wanted = hessian(lambda q: Truncated(2)(q, *kept[1:]).square().sum(), tensors[0])
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("solver", [GolubPereyra(SVD()), SVD()], ids=repr)
def test_singular_cores_of_constant_rank(solver):
    left, right = normal(5, 3), normal(5, 3, seed=1)

    def loss(inverse):
        return lambda b, c: inverse(b @ c.mT).sin().sum()

    found = hessian(loss(solver), (left, right))
    # (B C^T)^+ = (C^T)^+ B^+, whole rank each.
    wanted = hessian(
        lambda b, c: (
            (c @ torch.linalg.inv(c.mT @ c) @ torch.linalg.inv(b.mT @ b) @ b.mT).sin().sum()
        ),
        (left, right),
    )
    for mine, theirs in zip(found, wanted, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


# --- the way there ---------------------------------------------------------------------------


def test_third_derivatives():
    q, k, v = (x.requires_grad_() for x in (normal(3, 2), normal(4, 2, seed=1), normal(4, 2)))
    for op in (Softmax(), GaussianAttention(), Soft(2, pinv=ImplicitGradient(NewtonRaphson(40)))):

        def slope(q, op=op):
            (g,) = grad(op(q, k, v).sum(), q, create_graph=True)
            return g.square().sum()

        assert torch.autograd.gradgradcheck(slope, (q,))


@pytest.mark.parametrize("held", [1, 1 << 20])
def test_blocks_of_rows(held, monkeypatch):
    monkeypatch.setattr(tiled, "TILE_ENTRIES", held)
    monkeypatch.setattr(fused, "HELD_ENTRIES", held)
    for op in (Softmax(), Softmax(causal=True), GaussianAttention()):
        agrees(op, [normal(2, 4, 3, seed=s) for s in range(3)], [normal(2, 4, 3)] * 3)


def test_a_model_with_a_gradient_penalty_learns_what_the_dense_one_does():
    """Weights that a penalty reaches through the operator alone, after one step."""
    x, v = normal(12, 4), normal(12, 4, seed=1)

    def stepped(call):
        layer = nn.Linear(4, 4, bias=False).double()
        with torch.no_grad():
            layer.weight.copy_(torch.eye(4))
        inputs = x.clone().requires_grad_()
        (g,) = grad(call(layer(inputs), inputs, v).sum(), inputs, create_graph=True)
        (g.norm() - 1).square().backward()
        return layer.weight.grad

    torch.testing.assert_close(stepped(GaussianAttention()), stepped(gaussian))
    torch.testing.assert_close(stepped(Softmax()), stepped(softmax))


def test_gradients_of_a_batch_of_directions_at_once():
    tensors = [normal(5, 3, seed=s).requires_grad_() for s in range(3)]
    for op in (GaussianAttention(), Softmax(), Skyformer(3), Performer(8), Truncated(2)):
        out = op(*tensors)
        directions = normal(4, 5, 3, seed=3)
        both = grad(out, tensors, directions, is_grads_batched=True, retain_graph=True)
        each = [grad(out, tensors, x, retain_graph=True) for x in directions]
        for mine, theirs in zip(both, map(torch.stack, zip(*each, strict=True)), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)
