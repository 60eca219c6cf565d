"""Tracing, transforms and tensors without plain numbers: right, or refused in a sentence."""

import warnings

import pytest
import torch
from matrices import with_spectrum
from zoo import OPERATORS, SELECTORS, SOLVERS

from softlab.inputs import Decaying
from softlab.matrices import Geometric, LowRank
from softlab.operators import KDEFormer


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def draw():
    return [normal(2, 9, 4, seed=s) for s in range(3)]


# --- torch.jit.trace -------------------------------------------------------------------------


def traced(call, *tensors):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit itself
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        return torch.jit.trace(call, tensors, check_trace=False)


@pytest.mark.parametrize("op", OPERATORS, ids=repr)
def test_a_trace_of_an_operator_is_refused(op):
    with pytest.raises(RuntimeError, match=r"torch.jit.trace cannot record.*torch.compile it"):
        traced(lambda q, k, v: op(q, k, v), *draw())


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_a_trace_of_a_solver_is_refused(solver):
    with pytest.raises(RuntimeError, match=r"torch.jit.trace cannot record.*torch.compile it"):
        traced(lambda a: solver(a), with_spectrum(1, 0.5, 0.2))


# --- a default device ------------------------------------------------------------------------


def same_elsewhere(call):
    wanted = call()
    with torch.device("meta"):  # stands for any other device
        found = call()
    for mine, theirs in zip(found, wanted, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("op", OPERATORS, ids=repr)
def test_an_operator_does_not_heed_the_default_device(op):
    q, k, v = draw()
    mask = torch.tensor([[True] * 7 + [False] * 2, [True] * 9])
    kernel = (
        [op.kernel_matrix] if hasattr(op, "kernel_matrix") and not isinstance(op, KDEFormer) else []
    )
    same_elsewhere(lambda: [op(q, k, v), op(q, k, v, mask), *(call(q, k) for call in kernel)])


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_a_solver_does_not_heed_the_default_device(solver):
    a = with_spectrum(1, 0.5, 0.2)
    same_elsewhere(lambda: [solver(a), solver.solve(a).x, *solver.iterates(a)])


@pytest.mark.parametrize("selector", SELECTORS, ids=repr)
def test_a_selector_does_not_heed_the_default_device(selector):
    x = draw()[0]
    same_elsewhere(lambda: [selector(x, 4)])


def test_inputs_and_matrices_do_not_heed_the_default_device():
    same_elsewhere(
        lambda: [*Decaying(6, 4, rate=0.3)(0), Geometric(6, 1e3)(0), LowRank(6, 3, 10.0)(0)]
    )
