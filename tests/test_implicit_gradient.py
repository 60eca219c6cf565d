"""The implicit gradient: exact where the solver converged, wrong where it did not."""

import pytest
import torch
from matrices import frobenius, gaussian_core, normal

from softlab.pinv import (
    ImplicitGradient,
    NewtonRaphson,
    Status,
)

# --- the implicit gradient ---------------------------------------------------------------------


def gradient(solver, a, g):
    a = a.clone().requires_grad_()
    (grad,) = torch.autograd.grad((solver(a) * g).sum(), a)
    return grad


def bias(solver, a, g):
    """Relative error of the implicit gradient against that of its own forward map, and cosine."""
    implicit, unrolled = gradient(ImplicitGradient(solver), a, g), gradient(solver, a, g)
    cosine = float((implicit * unrolled).sum()) / (frobenius(implicit) * frobenius(unrolled))
    return frobenius(implicit - unrolled) / frobenius(unrolled), cosine


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_implicit_gradient_is_exact_where_the_solver_converged(symmetric):
    a, g = gaussian_core(16, 0.5), normal(16, 16, seed=1)
    a = a if symmetric else a @ torch.linalg.qr(normal(16, 16, seed=2)).Q
    solver = NewtonRaphson(steps=20)
    assert solver.solve(a).status == Status.CONVERGED
    inverse = torch.linalg.inv(a)
    exact = -inverse.T @ g @ inverse.T
    assert frobenius(gradient(ImplicitGradient(solver), a, g) - exact) < 1e-11 * frobenius(exact)
    assert bias(solver, a, g)[0] < 1e-8


def test_the_implicit_gradient_is_wrong_on_near_duplicate_landmarks():
    # SOFT's 20 steps leave the small eigenvalues uninverted: the rule differentiates A X = I,
    # which does not hold. On every one of these draws the result has the wrong sign.
    errors, cosines = [], []
    for seed in range(8):
        a, g = gaussian_core(49, 0.02, seed=seed), normal(49, 49, seed=100 + seed)
        assert NewtonRaphson(steps=20).solve(a).status != Status.CONVERGED
        error, cosine = bias(NewtonRaphson(steps=20), a, (g + g.T) / 2)
        errors.append(error)
        cosines.append(cosine)
    assert min(errors) > 0.9
    assert max(cosines) < 0


def test_the_gradient_law_detects_an_implicit_gradient_that_is_wrong():
    a = gaussian_core(6, 0.05).requires_grad_()
    solver = NewtonRaphson(steps=8)
    symmetric = lambda solver: lambda a: solver((a + a.T) / 2)  # noqa: E731
    assert torch.autograd.gradcheck(symmetric(solver), a)
    implicit = symmetric(ImplicitGradient(solver))
    assert not torch.autograd.gradcheck(implicit, a, raise_exception=False)


def test_the_implicit_gradient_stores_no_graph_of_the_loop():
    a = gaussian_core(5, 0.5).requires_grad_()
    assert not any(x.requires_grad for x in ImplicitGradient(NewtonRaphson(3)).iterates(a))
    out = ImplicitGradient(NewtonRaphson(3))(a)
    assert out.grad_fn.next_functions[0][0].variable is a
