"""Every operator equals its plain twin: output, gradients, arithmetic, and never another's output.

Tolerances are ``laws.tolerance`` times the condition of the drawn core: once for outputs, squared
for gradients (the differential of an inverse holds the inverse twice).
"""

import dataclasses
from itertools import product

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, bmm_flop
from twins import Exponentials, twin
from zoo import OPERATORS

from softlab import Dims
from softlab.core import value
from softlab.laws import tolerance
from softlab.laws.law import lengths
from softlab.operators import (
    AttentionMatching,
    CosFormer,
    GaussianAttention,
    Nystromformer,
    RandomFourier,
    SketchedTaylor,
    Soft,
    Softmax,
    TruncatedSVD,
)
from softlab.pinv import SVD, Cholesky, Inverting, NewtonRaphson

F64, F32 = torch.float64, torch.float32
HALVES = [torch.bfloat16, torch.float16]
WORST_CONDITION = 1e4
"""A draw beyond this would make a comparison say nothing."""


def rank_of(op):
    return getattr(op, "rank", 1)


def shapes(op):
    """(lead, n, l, d, e): n above and below l, l a multiple of the rank or not, n = l = rank."""
    m = rank_of(op)
    if op.traits.causal:
        return [
            ((), 14, 14, 5, 4),
            ((2,), 7, 7, 3, 1),
            ((2, 2), 17, 17, 6, 2),
            ((1, 2), 2, 2, 8, 3),
        ]
    return [
        ((), m + 9, m + 6, 5, 4),
        ((2,), m + 2, 3 * m, 3, 1),
        ((2, 2), m + 3, 2 * m + 5, 6, 2),
        ((1, 2), m, m, 8, 3),
    ]


def draw(shape, *, seed=0, dtype=F64):
    lead, n, l, d, e = shape
    g = torch.Generator().manual_seed(seed)
    sizes = (*lead, n, d), (*lead, l, d), (*lead, l, e), (*lead, n, e)
    q, k, v, weight = (torch.randn(size, generator=g, dtype=F64) for size in sizes)
    return [x.to(dtype) for x in (1.5 * q, 1.5 * k, v, weight)]


def mask_for(op, k, seed=0):
    """As many keys as the rank allows are dropped, others in each matrix; None where none can."""
    l = k.shape[-2]
    most = min(l - rank_of(op), l - 1)
    if most < 1:
        return None
    order = torch.rand(k.shape[:-1], generator=torch.Generator().manual_seed(seed)).argsort(-1)
    dropped = torch.arange(k[..., 0, 0].numel()).reshape(k.shape[:-2]) % most + 1
    return order >= dropped.unsqueeze(-1)


def results(call, q, k, v, weight, key_mask=None):
    """The output and the gradients of <weight, output> in q, k and v, in float64."""
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    out = call(*leaves, key_mask)
    grads = torch.autograd.grad((out * weight).sum(), leaves, materialize_grads=True)
    return {
        name: x.detach().double()
        for name, x in zip(("output", "dq", "dk", "dv"), (out, *grads), strict=True)
    }


def plain(op):
    return lambda q, k, v, key_mask: twin(op, q, k, v, key_mask)


def condition(op, q, k, key_mask=None):
    """Of the drawn problem: of the core, or of the gap that a truncation cuts."""
    if isinstance(op, Inverting):
        core = op.core(q, k, key_mask)
    elif isinstance(op, TruncatedSVD):
        eye = torch.eye(k.shape[-2], dtype=F64)
        full = torch.linalg.svdvals(op.target(q, k, eye, key_mask))
        s = torch.nn.functional.pad(full, (0, 1))
        return float((s[..., 0] / (s[..., op.rank - 1] - s[..., op.rank])).max())
    elif isinstance(op, AttentionMatching):
        return 1 + op.rank / op.ridge
    elif isinstance(op, (CosFormer, RandomFourier, SketchedTaylor)):
        return cancellation(op, q, k, key_mask)
    else:
        return 1.0
    return float(torch.linalg.cond(core).max())


def cancellation(op, q, k, key_mask=None):
    """What the terms of a row sum, and of its gradient, can reach, over that sum; at least 1."""
    if not op.traits.exact and not op.target.traits.row_stochastic:
        return 1.0
    worst = [1.0]
    lead = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2])
    keep = torch.ones(k.shape[:-1], dtype=torch.bool) if key_mask is None else key_mask
    keep = keep.expand(*lead, k.shape[-2])
    q, k = (x.expand(*lead, *x.shape[-2:]) for x in (q, k))
    for i in product(*map(range, lead)):
        x, y = q[i], k[i][keep[i]]
        of_x, of_y = (op.kernel_matrix(z, z).diagonal().sqrt() for z in (x, y))  # |phi(z)|
        terms = torch.maximum(of_x[:, None] * of_y, torch.maximum(of_x[:, None], of_y)).sum(-1)
        mass = op.kernel_matrix(x, y).sum(-1)
        worst.append(float(torch.where(mass > 0, terms / mass, 1).max()))
    return max(worst)


def miss(got, wanted, name):
    return float((got[name] - wanted[name]).abs().max())


def assert_equals_twin(op, q, k, v, weight, key_mask=None):
    got = results(op, q, k, v, weight, key_mask)
    wanted = results(plain(op), q, k, v, weight, key_mask)
    kappa = condition(op, q, k, key_mask)
    assert kappa < WORST_CONDITION, f"draw another problem: condition {kappa:.1e}"
    for name, exact in wanted.items():
        scale = max(1.0, float(exact.abs().max()))
        kappas = kappa if name == "output" else kappa**2
        terms = max(k.shape[-2], getattr(op, "features", 1))  # of the longest sum
        allowed = tolerance(F64, terms, kappa=kappas, scale=scale)
        assert miss(got, wanted, name) <= allowed, f"{name} of {op!r}, q {tuple(q.shape)}"


@pytest.mark.parametrize("masked", [False, True], ids=["full", "masked"])
@pytest.mark.parametrize("op", OPERATORS, ids=repr)
def test_equals_its_twin_in_float64(op, masked):
    for seed, shape in enumerate(shapes(op)):
        q, k, v, weight = draw(shape, seed=seed)
        assert_equals_twin(op, q, k, v, weight, mask_for(op, k) if masked else None)


@pytest.mark.parametrize("op", OPERATORS, ids=repr)
def test_equals_its_twin_where_leading_dimensions_broadcast(op):
    m = rank_of(op)
    n, _ = lengths(op, m + 4, m + 5)
    q, _, _, weight = draw(((2, 3), n, m + 5, 4, 2))
    _, k, _, _ = draw(((3,), m + 4, m + 5, 4, 2), seed=1)
    _, _, v, _ = draw(((2, 1), m + 4, m + 5, 4, 2), seed=2)
    one_head_masked = torch.ones(3, m + 5, dtype=torch.bool)
    one_head_masked[1, 2] = False
    assert_equals_twin(op, q, k, v, weight)
    assert_equals_twin(op, q, k, v, weight, one_head_masked)


@pytest.mark.sampled(1 / 4)
@pytest.mark.parametrize("op", OPERATORS, ids=repr)
def test_float32_errs_no_more_than_the_plain_form(op):
    """Nor than the condition of its core allows: in one draw of a few the plain form is lucky."""
    for seed, shape in enumerate(shapes(op)):
        x = draw(shape, seed=seed, dtype=F32)
        mask = mask_for(op, x[1])
        exact = results(plain(op), *(t.double() for t in x), mask)
        theirs = results(plain(op), *x, mask)
        ours = results(op, *x, mask)
        kappa = condition(op, *(t.double() for t in x[:2]), mask)
        for name, reference in exact.items():
            scale = max(1.0, float(reference.abs().max()))
            floor = tolerance(F32, shape[2], kappa=kappa, scale=scale, c=4)
            assert miss(ours, exact, name) <= 8 * miss(theirs, exact, name) + floor, (name, shape)


@pytest.mark.sampled(1 / 4)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("op", OPERATORS, ids=repr)
def test_half_precision_rounds_the_answer_and_nothing_before(op, dtype):
    eps = torch.finfo(dtype).eps
    for seed, shape in enumerate(shapes(op)):
        x = draw(shape, seed=seed, dtype=dtype)
        exact = results(plain(op), *(t.double() for t in x))
        ours = results(op, *x)
        kappa = condition(op, *(t.double() for t in x[:2]))
        for name, reference in exact.items():
            scale = max(1.0, float(reference.abs().max()))
            kappas = kappa if name == "output" else kappa**2
            working = tolerance(F32, shape[2], kappa=kappas, scale=scale, c=1)
            # An output is rounded once; a gradient once for each use of its argument.
            rounding = eps * (reference.abs() if name == "output" else 4 * scale) / 1.9
            gap = (ours[name] - reference).abs()
            assert bool((gap <= rounding + min(working, eps * scale)).all()), (name, shape)


def test_masked_queries_give_no_landmarks_to_nystromformer():
    op = Nystromformer(rank=3)
    q, k, v, _ = draw(((2,), 9, 11, 4, 3))
    query_mask = torch.rand(2, 9, generator=torch.Generator().manual_seed(1)).argsort(-1) < 6
    out = op(q, k, v, query_mask=query_mask)
    for i in range(2):
        kept = query_mask[i]
        alone = twin(op, q[i][kept], k[i], v[i])
        torch.testing.assert_close(out[i][kept], alone, rtol=1e-10, atol=1e-12)


# --- never silently another operator ---------------------------------------------------------


def far_from_target(op, *, seed=0):
    """Rank = n = l = 6, tokens so near each other that the stopped iteration is far from A^-1."""
    g = torch.Generator().manual_seed(seed)
    x = 0.3 * torch.randn(6, 2, generator=g, dtype=F64)
    return dataclasses.replace(op, rank=6), x, torch.randn(6, 3, generator=g, dtype=F64)


def assert_is_itself_at_full_rank(op, x, v):
    """Within what twenty doublings of a rounding error leave, and far inside the gap to target."""
    wanted = twin(op, x, x, v)
    gap = float((wanted - op.target(x, x, v)).abs().max())
    missed = float((op(x, x, v) - wanted).abs().max())
    assert gap > 1e-4, "the draw does not tell the operator from its target"
    assert missed < 1e-3 * gap


STOPPED = [
    Soft(rank=6, pinv=NewtonRaphson(steps=20)),
    Soft(rank=6, normalization="symmetric", pinv=NewtonRaphson(steps=10)),
    Soft(rank=6, normalization="row", pinv=NewtonRaphson(steps=10)),
    Soft(rank=6, normalization="published"),
    Nystromformer(rank=6),
]


@pytest.mark.parametrize("op", STOPPED, ids=repr)
def test_full_rank_is_no_excuse_for_the_exact_operator(op):
    assert_is_itself_at_full_rank(*far_from_target(op))


class _Sneaky(Soft):
    """The planted fault: exact attention where the rank reaches the number of keys."""

    def __call__(self, q, k, v, key_mask=None):
        approximate = self.rank < k.shape[-2]
        return super().__call__(q, k, v, key_mask) if approximate else self.target(q, k, v)


def test_an_operator_that_turns_into_its_target_is_caught():
    with pytest.raises(AssertionError):
        assert_is_itself_at_full_rank(*far_from_target(_Sneaky(rank=6)))


@pytest.mark.parametrize("op", OPERATORS, ids=repr)
def test_tiny_sequences_equal_the_twin(op):
    if hasattr(op, "rank"):
        op = dataclasses.replace(op, rank=1)
    for n, l in ((1, 1), (2, 2)) if op.traits.causal else ((1, 1), (1, 2), (2, 1)):
        assert_equals_twin(op, *draw(((), n, l, 1, 1), seed=n + l))


# --- arithmetic ------------------------------------------------------------------------------

SIZES = [(1, 12, 12, 4, 4), (3, 17, 11, 5, 2), (2, 7, 26, 3, 6), (4, 30, 24, 8, 1)]


def twin_cost(op, batch, n, l, d, e):
    q, k, v, _ = draw(((batch,), n, l, d, e))
    with torch.no_grad(), FlopCounterMode(display=False) as flops, Exponentials() as exponentials:
        twin(op, q, k, v)
    return flops.get_total_flops(), exponentials.total


@pytest.mark.sampled(1 / 4)
@pytest.mark.parametrize("op", OPERATORS, ids=repr)
def test_cost_is_what_the_twin_spends(op):
    for size in SIZES:
        if op.traits.causal:
            size = (*size[:2], size[1], *size[3:])
        cost = op.cost(Dims(*size))
        assert (cost.flops, cost.kernel_entries) == twin_cost(op, *size), size


TIED = [
    Soft(rank=4),
    Soft(rank=4, normalization="row"),
    Soft(rank=4, normalization="symmetric"),
    Soft(rank=4, normalization="published"),
]


@pytest.mark.parametrize("op", TIED, ids=repr)
def test_tied_tokens_cost_one_kernel_matrix_less_where_it_is_formed_once(op):
    q, _, v, _ = draw(((3,), 17, 17, 5, 2))
    dims = Dims.of(q, q, v)
    assert dims == Dims(3, 17, 17, 5, 2, tied=True)
    assert Dims.of(q, q.clone(), v) == Dims(3, 17, 17, 5, 2)

    def spent(k):
        # In place, as tiles are formed, torch counts no product unless told how.
        seen = {torch.ops.aten.baddbmm_: lambda out, a, b, **_: bmm_flop(a, b)}
        seen[torch.ops.aten._cdist_forward] = lambda x, y, *_, **__: 2 * 3 * 4 * 4 * 5
        with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=seen) as flops:
            op(q, k, v)
        return flops.get_total_flops()

    assert op.cost(dims).flops == spent(q)
    assert op.cost(Dims(3, 17, 17, 5, 2)).flops == spent(q.clone())
    saved = op.cost(Dims(3, 17, 17, 5, 2)).kernel_entries - op.cost(dims).kernel_entries
    assert saved == (3 if op.normalization == "symmetric" else 1) * 3 * 17 * 4


@value
class _Understated(Softmax):
    """The planted fault: forgets the product with v."""

    def cost(self, dims):
        cost = super().cost(dims)
        return dataclasses.replace(cost, flops=cost.flops // 2)


def test_an_understated_cost_is_caught():
    size = SIZES[1]
    assert _Understated().cost(Dims(*size)).flops != twin_cost(_Understated(), *size)[0]


def test_factorizations_cost_what_the_textbooks_say():
    dims = Dims(batch=2, n=40, l=30, d=4, e=3)
    # Cholesky m^3 / 3, and the inverse from the factor 2 m^3 / 3; LAPACK Working Note 41, App. C.
    assert Soft(rank=6, pinv=Cholesky()).cost(dims).factorization_flops == 2 * 6**3
    # U, S and V of a square matrix, 21 m^3; U_1, S and V of a tall one, 6 n l^2 + 20 l^3, by R-SVD:
    # Golub and Van Loan, Matrix Computations, 4th ed., Fig. 8.6.1.
    assert Soft(rank=6, pinv=SVD()).cost(dims).factorization_flops == 2 * 21 * 6**3
    tall = TruncatedSVD(rank=3).cost(dims).factorization_flops
    assert tall == 2 * (6 * 40 * 30**2 + 20 * 30**3)
    wide = TruncatedSVD(rank=3).cost(Dims(batch=2, n=30, l=40, d=4, e=3)).factorization_flops
    assert wide == tall
    assert GaussianAttention().cost(dims).factorization_flops == 0
