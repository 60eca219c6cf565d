"""Tracing, transforms and tensors without plain numbers: right, or refused in a sentence."""

import warnings

import pytest
import torch
from matrices import with_spectrum
from zoo import OPERATORS, SOLVERS


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
