"""Autocast rounds nothing of softlab's, forwards or backwards, wherever a block is opened."""

import contextlib

import pytest
import torch
from matrices import with_spectrum
from torch.autograd import grad
from zoo import OPERATORS, SCALINGS, SELECTORS, SOLVERS

from softlab.core import own_precision
from softlab.kernels import Exponential, Gaussian
from softlab.operators import Nystromformer, SketchedTaylor, Soft, Softmax, TopK
from softlab.pinv import Checkpointed, NewtonRaphson, applier

F32 = torch.float32


def rounding():
    return torch.autocast("cpu", dtype=torch.bfloat16)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradients(call, points, *, forwards, backwards, twice=False):
    """Of the call, or of a penalty on them, with the passes inside blocks or not."""
    leaves = [x.clone().requires_grad_() for x in points]
    inputs = [1.0 * x for x in leaves]  # nodes of the caller's own around those of the call
    with forwards():
        out = call(*inputs)
    weights = normal(*out.shape, seed=7)
    with backwards():
        found = grad((out * weights).sum(), leaves, create_graph=twice, materialize_grads=True)
        if twice:
            found = grad(sum(x.square().sum() for x in found), leaves, materialize_grads=True)
    assert not torch.is_autocast_enabled("cpu")
    return found


def same_everywhere(call, points, *, twice):
    wanted = gradients(
        call, points, forwards=contextlib.nullcontext, backwards=contextlib.nullcontext, twice=twice
    )
    for forwards in (rounding, contextlib.nullcontext):
        found = gradients(call, points, forwards=forwards, backwards=rounding, twice=twice)
        for mine, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6 * float(theirs.norm()))


@pytest.mark.sampled(1 / 2)
@pytest.mark.parametrize("op", OPERATORS, ids=repr)
def test_the_backward_pass_of_an_operator(op):
    same_everywhere(op, [normal(2, 9, 4, seed=s) for s in range(3)], twice=False)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_the_backward_pass_of_a_solver(solver):
    a = with_spectrum(1, 0.5, 0.2).float()
    same_everywhere(lambda x: solver((x + x.mT) / 2), [a], twice=False)


TWICE = [
    Softmax(),
    Gaussian(1.3).apply,
    Gaussian(1.3).average,
    Exponential().average,
    Soft(rank=4, normalization="symmetric"),
    Soft(rank=4, pinv=Checkpointed(NewtonRaphson(steps=12))),
    TopK(k=3),
]


@pytest.mark.parametrize("call", TWICE, ids=lambda x: getattr(x, "__qualname__", repr(x)))
def test_a_gradient_penalty(call):
    same_everywhere(call, [normal(2, 9, 4, seed=s) for s in range(3)], twice=True)


def test_the_backward_pass_is_rounded_where_nothing_guards_it():
    # The planted fault: without the guard torch rounds the products of the backward pass.
    op, points = TopK(k=3), [normal(2, 9, 4, seed=s) for s in range(3)]
    bare = type(op).__call__.__wrapped__
    plain = {"forwards": contextlib.nullcontext, "backwards": contextlib.nullcontext}
    wanted = gradients(lambda *x: bare(op, *x), points, **plain)
    found = gradients(lambda *x: bare(op, *x), points, **plain | {"backwards": rounding})
    assert max(float((a - b).norm() / b.norm()) for a, b in zip(found, wanted, strict=True)) > 1e-4


def test_the_callers_own_nodes_keep_autocast():
    x, weight = normal(4, 8).requires_grad_(), normal(8, 8)
    seen = []
    hidden = x @ weight
    hidden.grad_fn.register_prehook(lambda _: seen.append(torch.is_autocast_enabled("cpu")))
    out = Softmax()(hidden, hidden, hidden)
    for _ in range(2):
        with rounding():
            out.sum().backward(retain_graph=True)
            assert torch.is_autocast_enabled("cpu")
    assert seen == [True, True]


def test_a_graph_is_freed_with_its_output():
    import gc
    import weakref

    class Note:
        pass

    def run(create_graph):
        x, note = normal(6, 4).requires_grad_(), Note()
        out = Soft(rank=2)(x, x, x)
        out.grad_fn.metadata["note"] = note
        with rounding():
            grad(out.sum(), x, create_graph=create_graph)
        return weakref.ref(note)

    gc.disable()
    try:
        assert [run(True)(), run(False)()] == [None, None]
    finally:
        gc.enable()


# --- forwards --------------------------------------------------------------------------------


def unrounded(call):
    wanted = call()
    with rounding():
        found = call()
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("selector", SELECTORS, ids=repr)
def test_landmarks(selector):
    unrounded(lambda: [selector(normal(12, 4), 4)])


@pytest.mark.parametrize("scaling", SCALINGS, ids=repr)
def test_initial_guesses(scaling):
    a = with_spectrum(1, 0.5, 0.2).float()
    unrounded(lambda: [scaling(a)])


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_iterates_and_appliers(solver):
    a = with_spectrum(1, 0.5, 0.2).float()
    unrounded(lambda: list(solver.iterates(a)))
    unrounded(lambda: [applier(solver, a)(normal(3, 2))])


def test_what_else_an_operator_tells():
    q, k = (normal(9, 4, seed=s) for s in range(2))
    for op in (Nystromformer(rank=4), Soft(rank=4)):
        unrounded(lambda op=op: [op.core(q, k)])
    for op in (TopK(k=3), TopK(p=0.8, causal=True)):
        unrounded(lambda op=op: [op.kept_mass(q, k)])
    unrounded(lambda: [SketchedTaylor(8).kernel_variance(q, k)])


def test_a_generator_is_off_in_its_steps_alone():
    @own_precision
    def steps(x):
        yield x @ x
        yield torch.is_autocast_enabled("cpu")

    with rounding():
        each = steps(normal(3, 3))
        assert next(each).dtype == F32
        assert torch.is_autocast_enabled("cpu")
        assert list(each) == [False]
