"""The gradient meter against fifty digits, differences and a closed form; and what it shows."""

import dataclasses
import itertools
import math
import re

import mpmath
import pytest
import torch
from matrices import F32, F64, frobenius, gaussian_core, normal, with_spectrum

from softlab.gradients import (
    bias,
    departure,
    gradient,
    range_residual,
    reference_gradient,
    symmetrized,
    unrolled,
)
from softlab.laws.law import tolerance
from softlab.pinv import (
    SVD,
    Checkpointed,
    Cholesky,
    GolubPereyra,
    ImplicitGradient,
    NewtonRaphson,
    NormProduct,
    OneNorm,
    OptimalDefinite,
    Polished,
    Purified,
    Ridge,
    Status,
)
from softlab.pinv.golub_pereyra import golub_pereyra
from softlab.pinv.gradient_rule import by_rule
from softlab.pinv.implicit_gradient import implicit


def general(*s, seed=0):
    """A matrix with these singular values whose left and right axes differ."""
    turn = torch.linalg.qr(normal(len(s), len(s), seed=100 + seed)).Q
    return with_spectrum(*s, seed=seed) @ turn


def of_rank(m, rank, seed=0):
    return general(*torch.linspace(1, 0.4, rank).tolist(), *[0.0] * (m - rank), seed=seed)


def missed(found, true):
    return frobenius(found - true) / frobenius(true)


@dataclasses.dataclass(frozen=True)
class ByRule:
    """A solver with any formula for its gradient: for planted faults."""

    solver: object
    rule: object

    @property
    def traits(self):
        return self.solver.traits

    def iterates(self, a):
        return self.solver.iterates(a)

    def solve(self, a):
        return self.solver.solve(a)

    def cost(self, m, batch=1):
        return self.solver.cost(m, batch)

    def __call__(self, a):
        return by_rule(self.solver, self.rule, a)


# --- the reference against mpmath ---------------------------------------------------------------


def in_digits(x):
    return mpmath.matrix([[mpmath.mpf(float(entry)) for entry in row] for row in x])


def differentiated(loss, *matrices):
    """dloss/dM for each of the matrices by central differences, at the digits of mpmath."""
    step, found = mpmath.mpf(10) ** -15, []
    for matrix in matrices:
        grad = torch.zeros(matrix.rows, matrix.cols, dtype=F64)
        for i, j in itertools.product(range(matrix.rows), range(matrix.cols)):
            held, sides = matrix[i, j], []
            for sign in (1, -1):
                matrix[i, j] = held + sign * step
                sides.append(loss())
            matrix[i, j] = held
            grad[i, j] = float((sides[0] - sides[1]) / (2 * step))
        found.append(grad)
    return found


def against_inverse(reference):
    """At full rank: the derivative of <G, A^-1>, truncated at 1e-30."""
    with mpmath.workdps(50):
        for m, kappa in ((1, 1.0), (4, 10.0), (7, 100.0)):
            a = general(*torch.logspace(0, -math.log10(kappa), m, dtype=F64).tolist())
            g = normal(m, m, seed=m)
            exact, weights = in_digits(a), in_digits(g)
            products = list(itertools.product(range(m), range(m)))

            def loss(exact=exact, weights=weights, products=products):
                x = exact**-1
                return mpmath.fsum(weights[i, j] * x[i, j] for i, j in products)

            (true,) = differentiated(loss, exact)
            assert missed(reference(a, g), true) < tolerance(F64, m, kappa=kappa)


def against_factors(reference):
    """At constant rank: the derivative of <G, (B C^T)^+> by B and by C, of full column rank."""
    with mpmath.workdps(50):
        for m, rank in ((6, 3), (8, 5)):
            b, c, g = normal(m, rank, seed=1), normal(m, rank, seed=2), normal(m, m, seed=3)
            left, right, weights = in_digits(b), in_digits(c), in_digits(g)

            def loss(left=left, right=right, weights=weights, m=m):
                gram = (right.T * right) ** -1 * (left.T * left) ** -1
                x = right * gram * left.T
                pairs = itertools.product(range(m), range(m))
                return mpmath.fsum(weights[i, j] * x[i, j] for i, j in pairs)

            of_left, of_right = differentiated(loss, left, right)
            s = torch.linalg.svdvals(b @ c.T)[:rank]
            allowed = tolerance(F64, m, kappa=float(s[0] / s[-1]) ** 2)
            found = reference(b @ c.T, g)
            assert missed(found @ c, of_left) < allowed
            assert missed(found.T @ b, of_right) < allowed
            # Out of the tangent space of that rank there is no derivative, and none is claimed.
            out_of_range, out_of_rows = (
                torch.eye(m, dtype=F64) - x @ torch.linalg.pinv(x) for x in (b, c)
            )
            assert frobenius(out_of_range @ found @ out_of_rows) < allowed * frobenius(found)


def against_differences(reference):
    """At constant rank and size 32: central differences of torch's own pinv, moving the factors."""
    m, rank, h = 32, 12, 1e-5
    b, c, g = normal(m, rank, seed=1), normal(m, rank, seed=2), normal(m, m, seed=3)
    found = reference(b @ c.T, g)
    for seed in range(4):
        db, dc = normal(m, rank, seed=10 + seed), normal(m, rank, seed=20 + seed)
        up, down = (
            (g * torch.linalg.pinv((b + t * db) @ (c + t * dc).T, rtol=1e-9)).sum() for t in (h, -h)
        )
        along = float((found * (db @ c.T + b @ dc.T)).sum())
        # Differences of step h leave h^2 times the third derivative, and eps / h of rounding.
        assert along == pytest.approx(float(up - down) / (2 * h), rel=1e-6)


REFERENCES = (against_inverse, against_factors, against_differences)
WRONG_REFERENCES = {
    "the sign": (lambda a, g: -reference_gradient(a, g), REFERENCES),
    "a millionth": (lambda a, g: (1 + 1e-6) * reference_gradient(a, g), REFERENCES[:2]),
    "the gradient of the transpose": (lambda a, g: reference_gradient(a, g.T), REFERENCES),
    "A for its transpose": (lambda a, g: reference_gradient(a.T, g), REFERENCES),
    "no terms across the range": (
        lambda a, g: implicit(a, torch.linalg.pinv(a, rtol=1e-9), g),
        REFERENCES[1:],
    ),
    "terms across the range for the transpose": (
        lambda a, g: (
            golub_pereyra(a, torch.linalg.pinv(a, rtol=1e-9), g.T)
            - implicit(a, torch.linalg.pinv(a, rtol=1e-9), g.T - g)
        ),
        REFERENCES[1:],
    ),
}


@pytest.mark.parametrize("law", REFERENCES)
def test_the_reference_is_the_derivative_of_the_pseudo_inverse(law):
    law(reference_gradient)


@pytest.mark.parametrize("fault", WRONG_REFERENCES)
def test_a_wrong_reference_is_found(fault):
    wrong, laws = WRONG_REFERENCES[fault]
    for law in laws:
        with pytest.raises(AssertionError):
            law(wrong)


def test_a_stated_rank_truncates():
    a, g = general(1, 0.5, 0.25, 1e-9), normal(4, 4, seed=1)
    u, s, vh = torch.linalg.svd(a)
    truncated = (u[:, :3] * s[:3]) @ vh[:3]
    assert missed(reference_gradient(a, g, rank=3), reference_gradient(truncated, g)) < 1e-8
    assert missed(reference_gradient(a, g), reference_gradient(a, g, rank=4)) == 0
    assert frobenius(reference_gradient(a, g, rank=0)) == 0
    assert frobenius(reference_gradient(torch.zeros(3, 3, dtype=F64), normal(3, 3))) == 0


def test_each_matrix_of_a_batch_has_its_own_rank_and_bias():
    a = torch.stack((of_rank(6, 3), of_rank(6, 6, seed=1), torch.zeros(6, 6, dtype=F64)))
    g, solver = normal(3, 6, 6, seed=1), ImplicitGradient(NewtonRaphson(6))
    together = bias(solver, a, g)
    for i in range(3):
        alone = bias(solver, a[i], g[i])
        assert missed(reference_gradient(a[:2], g[:2])[i % 2],
                      reference_gradient(a[i % 2], g[i % 2])) < 1e-13  # fmt: skip
        for x, y in zip(together, alone, strict=True):
            for one, other in zip(x if isinstance(x, tuple) else (x,),
                                  y if isinstance(y, tuple) else (y,), strict=True):  # fmt: skip
                assert float(one[i]) == pytest.approx(float(other), rel=1e-9, abs=1e-12)


# --- the computed map against a closed form -----------------------------------------------------


def filtered_gradient(a, g, steps, factor=1.8):
    """The gradient of Newton's filter f on symmetric A > 0, by divided differences.

    f(l) = (1 - (1 - c l^2)^K) / l with K = 2^steps and c = factor / n^2, n the largest row sum,
    through which the loss depends on A once more.
    """
    values, axes = torch.linalg.eigh(a)
    sums = a.sum(1)
    c, k = factor / sums.max() ** 2, 2.0**steps
    rest = 1 - c * values**2
    f = (1 - rest**k) / values
    slope = 2 * c * k * rest ** (k - 1) - f / values
    apart = values[:, None] - values[None, :] + torch.eye(len(a), dtype=F64)
    divided = (f[:, None] - f[None, :]) / apart + slope.diag()
    by_filter = axes @ (divided * (axes.T @ g @ axes)) @ axes.T
    by_scale = ((axes.T @ g @ axes).diagonal() * k * rest ** (k - 1) * values).sum()
    row = torch.zeros_like(a)
    row[sums.argmax()] = 1
    return symmetrized(by_filter - 2 * factor / sums.max() ** 3 * by_scale * row)


@pytest.mark.parametrize("steps", [1, 4, 8, 12, 16])
def test_the_unrolled_gradient_is_that_of_the_filter(steps):
    a, g = gaussian_core(6, 0.12, d=8), symmetrized(normal(6, 6, seed=1))
    values = torch.linalg.eigvalsh(a)
    kappa = float(values[-1] / values[0])
    found = symmetrized(gradient(NewtonRaphson(steps), a, g))
    allowed = tolerance(F64, 6, kappa=kappa**2)
    assert missed(found, filtered_gradient(a, g, steps)) < allowed
    # The scale is a part of the map: without it the gradient is another one.
    wrong = filtered_gradient(a, g, steps, factor=1.8 * (1 + 1e-3))
    assert steps > 12 or missed(found, wrong) > max(1e-6, allowed)


# --- at convergence -----------------------------------------------------------------------------

RULES = {
    "unrolled": lambda solver: solver,
    "checkpointed": lambda solver: Checkpointed(solver, every=3),
    "implicit": ImplicitGradient,
    "Golub-Pereyra": GolubPereyra,
}
WRONG_RULES = {
    "the sign": lambda a, x, g: -golub_pereyra(a, x, g),
    "a transpose": lambda a, x, g: golub_pereyra(a, x, g.mT),
    "x for its transpose": lambda a, x, g: -x @ g @ x,
    "a millionth": lambda a, x, g: (1 + 1e-6) * golub_pereyra(a, x, g),
}


def agree_at_convergence(rule):
    for kappa, symmetric in itertools.product((1.0, 10.0, 100.0), (True, False)):
        made = with_spectrum if symmetric else general
        a = made(*torch.logspace(0, -math.log10(kappa), 12, dtype=F64).tolist())
        solver = NewtonRaphson(steps=26)
        assert solver.solve(a).status == Status.CONVERGED
        found = bias(rule(solver), a, normal(12, 12, seed=1), symmetric=symmetric)
        allowed = tolerance(F64, 12, kappa=kappa**2)
        assert found.residual < allowed
        assert found.inverse.error < allowed
        assert found.map.error < allowed


@pytest.mark.parametrize("rule", RULES)
def test_all_rules_agree_where_the_solver_converged(rule):
    agree_at_convergence(RULES[rule])


@pytest.mark.parametrize("fault", WRONG_RULES)
def test_a_wrong_rule_is_found_at_convergence(fault):
    with pytest.raises(AssertionError):
        agree_at_convergence(lambda solver: ByRule(solver, WRONG_RULES[fault]))


@pytest.mark.parametrize("solver", [SVD(), Cholesky(), Purified(NewtonRaphson(26))], ids=repr)
def test_other_solvers_have_the_gradient_of_the_inverse(solver):
    a, g = with_spectrum(1, 0.7, 0.3, 0.1), normal(4, 4, seed=1)
    assert bias(solver, a, g, symmetric=True).inverse.error < tolerance(F64, 4, kappa=100)


def test_checkpointing_changes_no_number():
    a, g = gaussian_core(9, 0.05), normal(9, 9, seed=1)
    kept = gradient(Checkpointed(NewtonRaphson(20), every=3), a, g)
    assert torch.equal(kept, gradient(NewtonRaphson(20), a, g))


# --- symmetric input ----------------------------------------------------------------------------


def along_symmetric_directions(reader):
    """<reader(gradient), D> is the derivative along every symmetric D, whatever the solver."""
    a, g = with_spectrum(1, 0.8, 0.5, 0.2), normal(4, 4, seed=1)
    for solver in (NewtonRaphson(5), NewtonRaphson(5, OneNorm()), Cholesky(), SVD()):
        found = reader(gradient(solver, a, g))
        for seed in range(3):
            d, h = symmetrized(normal(4, 4, seed=10 + seed)), 1e-5
            up, down = (float((g * solver(a + t * d)).sum()) for t in (h, -h))
            # Differences leave h^2 of the third derivative, here some 1e2 of the first.
            assert float((found * d).sum()) == pytest.approx((up - down) / (2 * h), abs=1e-5)


def test_symmetrized_gradients_are_the_derivative_along_symmetric_matrices():
    along_symmetric_directions(symmetrized)
    along_symmetric_directions(lambda grad: grad)  # an antisymmetric part is not seen there


def test_a_gradient_of_a_triangle_is_no_gradient_along_symmetric_matrices():
    with pytest.raises(AssertionError):
        along_symmetric_directions(torch.triu)


def test_rules_that_differ_off_the_symmetric_matrices_agree_on_them():
    # |A|_1 alone depends on a column, and no row: the gradient is not symmetric, nor is G.
    a, g = with_spectrum(1, 0.8, 0.5, 0.2), normal(4, 4, seed=1)
    by_column, by_both = NewtonRaphson(5, OneNorm()), NewtonRaphson(5)
    assert missed(gradient(by_column, a, g), gradient(by_both, a, g)) > 1e-3
    both = (symmetrized(gradient(solver, a, g)) for solver in (by_column, by_both))
    assert missed(*both) < tolerance(F64, 4, kappa=25)


def test_symmetric_is_refused_for_another_matrix():
    with pytest.raises(ValueError, match=r"must equal its transpose .* differs by"):
        bias(SVD(), general(1, 0.5), normal(2, 2), symmetric=True)


# --- singular input -----------------------------------------------------------------------------


def right_at_constant_rank(rule):
    """By the factor trick: the gradients that reach a and b of solver(a b^T), whatever the rank."""
    for m, rank in ((12, 5), (32, 9)):
        b, c = (torch.linalg.qr(normal(m, rank, seed=seed)).Q for seed in (1, 2))
        s = torch.linspace(1, 0.5, rank, dtype=F64)
        g, matrix = normal(m, m, seed=3), (b * s) @ c.T
        # Ten steps converge; each doubles the rounding in the null space.
        for solver in (SVD(rtol=1e-9), NewtonRaphson(10, NormProduct(1.8)), Purified(SVD(1e-9))):
            if not hasattr(solver, "solver") and solver.traits.order:
                solver = dataclasses.replace(solver, steps=16)
            left, right = (x.clone().requires_grad_() for x in (b * s, c))
            loss = (g * rule(solver)(left @ right.T)).sum()
            found = torch.autograd.grad(loss, (left, right))
            true = reference_gradient(matrix, g)
            allowed = tolerance(F64, m, kappa=4) * (2.0**16 if solver.traits.order else 1)
            assert missed(found[0], true @ c) < allowed
            assert missed(found[1], true.T @ (b * s)) < allowed


def test_golub_pereyra_is_right_at_constant_rank():
    right_at_constant_rank(GolubPereyra)


@pytest.mark.parametrize("rule", [ImplicitGradient, *(
    lambda solver, wrong=wrong: ByRule(solver, wrong) for wrong in WRONG_RULES.values())],
    ids=["implicit", *WRONG_RULES])  # fmt: skip
def test_other_rules_are_found_wrong_on_singular_input(rule):
    with pytest.raises(AssertionError):
        right_at_constant_rank(rule)


@pytest.mark.parametrize("seed", range(4))
def test_the_implicit_rule_misses_the_gradient_of_a_singular_matrix(seed):
    a, g = of_rank(12, 5, seed=seed), normal(12, 12, seed=seed)
    found = bias(ImplicitGradient(SVD()), a, g)
    assert found.residual < tolerance(F64, 12, kappa=2.5)
    assert found.inverse.error > 0.1
    assert bias(GolubPereyra(SVD()), a, g).inverse.error < tolerance(F64, 12, kappa=2.5**2)
    # Along one matrix of that rank, as a training step would see it.
    x = torch.linalg.pinv(a, rtol=1e-9)
    direction = a @ normal(12, 12, seed=50 + seed) + normal(12, 12, seed=60 + seed) @ a
    h = 1e-6
    moved = [
        (torch.eye(12, dtype=F64) + t * normal(12, 12, seed=60 + seed))
        @ a
        @ (torch.eye(12, dtype=F64) + t * normal(12, 12, seed=50 + seed))
        for t in (h, -h)
    ]
    up, down = (float((g * torch.linalg.pinv(y, rtol=1e-9)).sum()) for y in moved)
    observed = (up - down) / (2 * h)
    # Differences leave eps / h of rounding.
    assert float((reference_gradient(a, g) * direction).sum()) == pytest.approx(observed, rel=1e-5)
    assert abs(float((implicit(a, x, g) * direction).sum()) - observed) > 0.1 * abs(observed)


@pytest.mark.parametrize("steps", [12, 14])
def test_the_unrolled_gradient_of_a_singular_matrix_grows_across_its_rank(steps):
    # There the filter still rises with the slope c 2^k; along the matrices of the rank it is right.
    a, g = of_rank(10, 4), normal(10, 10, seed=1)
    u, _, vh = torch.linalg.svd(a)
    found = gradient(NewtonRaphson(steps), a, g)
    true = reference_gradient(a, g)
    across = u[:, 4:].T @ found @ vh[4:].T
    scale = 1.8 / float(a.abs().sum(0).max() * a.abs().sum(1).max())
    allowed = tolerance(F64, 10, kappa=2.5**2) * 2.0**steps
    assert missed(across, 2.0**steps * scale * (vh[4:] @ g @ u[:, 4:]).T) < allowed
    assert missed(found - u[:, 4:] @ across @ vh[4:], true) < allowed
    assert missed(found, true) > 100


# --- the bias as a function of the residual -----------------------------------------------------


def slope(rule, reading):
    """d log reading / d log residual, fitted where the residual is between rounding and 0.003."""
    a = general(*torch.logspace(0, -2.5, 24, dtype=F64).tolist())
    g, points = normal(24, 24, seed=1), []
    for factor in torch.logspace(-0.5, 0.25, 8).tolist():
        found = bias(rule(NewtonRaphson(22, NormProduct(factor))), a, g)
        if 1e-7 < found.residual < 3e-3:
            points.append((math.log(found.residual), math.log(reading(found))))
    x, y = torch.tensor(points, dtype=F64).T
    assert len(x) > 3
    assert x.max() - x.min() > math.log(1000)
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def of_inverse(found):
    return found.inverse.error


def less_logarithm(found):
    return found.map.error / (1 - 2 * math.log(found.residual))


def vanishes_with_the_residual(rule):
    assert slope(rule, of_inverse) == pytest.approx(1, abs=0.05)
    assert slope(rule, less_logarithm) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("rule", ["implicit", "Golub-Pereyra"])
def test_the_bias_is_of_the_order_of_the_residual(rule):
    # Against the inverse r enters with each factor X. The derivative of the computed map has that
    # of the residual in it, r log(1/r) where r = exp(-K c l^2), which is more, if hardly.
    vanishes_with_the_residual(RULES[rule])


def test_the_unrolled_gradient_comes_later_to_that_of_the_inverse():
    # It is the gradient of what was computed; the formula is nearer to what was meant.
    assert 0.8 < slope(RULES["unrolled"], of_inverse) < 0.97


@pytest.mark.parametrize("error", [1e-2, 1e-5])
def test_a_bias_that_does_not_vanish_with_the_residual_is_found(error):
    with pytest.raises(AssertionError):
        vanishes_with_the_residual(
            lambda solver: ByRule(solver, lambda a, x, g: (1 + error) * implicit(a, x, g))
        )


@pytest.mark.parametrize("steps", [10, 12, 13, 14, 15, 16, 18])
def test_one_small_eigenvalue_has_the_wrong_sign_from_a_residual_of_0_285(steps):
    # diag(1, l): the norm, and with it the scale, is that of the other eigenvalue.
    small = 0.01
    a, g = torch.tensor([1, small], dtype=F64).diag(), torch.tensor([0, 1], dtype=F64).diag()
    found = bias(ImplicitGradient(NewtonRaphson(steps)), a, g)
    start = 1 - 1.8 * small**2
    r = start ** (2.0**steps)
    assert float(found.residual) == pytest.approx(r, rel=1e-9)
    rise = 2 * r * 2.0**steps * (1.8 * small**2) / start  # nearly 2 r log(1/r)
    # Times l^2: the derivative by l, and by the other eigenvalue, which is the norm.
    by_itself, by_norm = rise - (1 - r), -rise * small
    error = math.hypot((1 - r) ** 2 + by_itself, by_norm) / math.hypot(by_itself, by_norm)
    assert float(found.map.error) == pytest.approx(error, rel=1e-7)
    assert float(found.inverse.error) == pytest.approx(2 * r - r * r, rel=1e-7)
    assert (found.map.cosine < 0) == (r > 0.285)


# --- near-duplicate landmarks -------------------------------------------------------------------


def wrong_on_near_duplicates(rule, steps=20):
    for seed in range(8):
        a, g = gaussian_core(49, 0.02, seed=seed), normal(49, 49, seed=100 + seed)
        assert NewtonRaphson(steps).solve(a).status != Status.CONVERGED
        found = bias(rule(NewtonRaphson(steps)), a, g, symmetric=True)
        assert found.residual > 0.9
        assert found.map.error > 0.5
        assert found.map.cosine < 0


def test_the_implicit_rule_is_wrong_on_near_duplicate_landmarks():
    # SOFT's 20 steps leave the small eigenvalues uninverted: the rule differentiates A X = I,
    # which does not hold. On every one of these draws the result has the wrong sign.
    wrong_on_near_duplicates(ImplicitGradient)


@pytest.mark.parametrize("rule", ["unrolled", "checkpointed"])
def test_the_meter_does_not_call_the_true_gradient_wrong(rule):
    with pytest.raises(AssertionError):
        wrong_on_near_duplicates(RULES[rule])


def test_twice_the_steps_mend_it_where_the_residual_is_gone():
    a, g = gaussian_core(49, 0.1), normal(49, 49, seed=100)
    before, after = (
        bias(ImplicitGradient(NewtonRaphson(steps)), a, g, symmetric=True) for steps in (20, 40)
    )
    assert before.map.error > 0.5
    assert after.map.error < tolerance(F64, 49, kappa=2e4**2)
    assert after.residual < tolerance(F64, 49, kappa=2e4)


def test_the_gradient_law_detects_an_implicit_gradient_that_is_wrong():
    a = gaussian_core(6, 0.05).requires_grad_()
    solver = NewtonRaphson(steps=8)
    symmetric = lambda solver: lambda a: solver((a + a.T) / 2)  # noqa: E731
    assert torch.autograd.gradcheck(symmetric(solver), a)
    wrong = symmetric(ImplicitGradient(solver))
    assert not torch.autograd.gradcheck(wrong, a, raise_exception=False)


def test_the_implicit_gradient_stores_no_graph_of_the_loop():
    a = gaussian_core(5, 0.5).requires_grad_()
    assert not any(x.requires_grad for x in ImplicitGradient(NewtonRaphson(3)).iterates(a))
    out = ImplicitGradient(NewtonRaphson(3))(a)
    assert out.grad_fn.next_functions[0][0].variable is a


# --- wrappers, departures, precisions -----------------------------------------------------------


def test_every_rule_is_taken_off_wherever_it_sits():
    plain = NewtonRaphson(7)
    for rule in (ImplicitGradient, GolubPereyra, Checkpointed):
        assert unrolled(rule(plain)) == plain
        assert unrolled(Ridge(rule(plain), 0.1)) == Ridge(plain, 0.1)
        assert unrolled(Purified(rule(plain))) == Purified(plain)
    nested = ImplicitGradient(Purified(GolubPereyra(Checkpointed(plain))))
    assert unrolled(nested) == Purified(plain)
    assert unrolled(SVD()) == SVD()


def test_a_ridge_stands_for_its_solver_on_the_shifted_matrix():
    a, g = gaussian_core(9, 0.1), normal(9, 9, seed=1)
    inner = ImplicitGradient(NewtonRaphson(12))
    shifted = bias(inner, a + 0.01 * torch.eye(9, dtype=F64), g)
    outside = ImplicitGradient(Ridge(NewtonRaphson(12), 0.01))
    for solver in (Ridge(inner, 0.01), outside):
        found = bias(solver, a, g)
        assert float(found.inverse.error) == pytest.approx(float(shifted.inverse.error), rel=1e-9)
        assert float(found.map.error) == pytest.approx(float(shifted.map.error), rel=1e-9)
        assert float(found.residual) == pytest.approx(float(shifted.residual), rel=1e-9)


def test_departure_of_multiples_and_of_nothing():
    x, zero = normal(3, 3), torch.zeros(3, 3, dtype=F64)
    turned = torch.tensor([[0.0, -1], [1, 0]], dtype=F64)
    for found, true, error, cosine, angle in (
        (x, x, 0, 1, 0),
        (-2 * x, x, 3, -1, 180),
        (1e-200 * x, 1e-200 * x, 0, 1, 0),
        (turned, torch.eye(2, dtype=F64), math.sqrt(2), 0, 90),
        (zero, x, 1, 0, 90),
        (zero, zero, 0, 1, 0),
        (x, zero, math.inf, 0, 90),
    ):
        seen = departure(found, true)
        assert float(seen.error) == pytest.approx(error, rel=1e-12)
        assert float(seen.cosine) == pytest.approx(cosine, abs=1e-12)
        assert float(seen.angle) == pytest.approx(
            angle, abs=1e-4
        )  # acos near 1 has half the digits


def test_the_residual_is_that_of_the_range():
    a = of_rank(7, 3)
    s = torch.linalg.svdvals(a)
    assert range_residual(a, torch.linalg.pinv(a, rtol=1e-9)) < tolerance(F64, 7, kappa=4)
    assert float(range_residual(a, torch.zeros_like(a))) == pytest.approx(1)
    x, *_ = NewtonRaphson(1, NormProduct(1.0)).iterates(a)
    scale = 1 / float(a.abs().sum(0).max() * a.abs().sum(1).max())
    assert float(range_residual(a, x)) == pytest.approx(1 - scale * float(s[2]) ** 2)


def test_in_float32_the_bias_is_that_of_its_rounding():
    a, g = with_spectrum(1, 0.7, 0.3, 0.1).float(), normal(4, 4, seed=1, dtype=F32)
    for rule in RULES.values():
        found = bias(rule(NewtonRaphson(20)), a, g)
        assert 0 < found.map.error < tolerance(F32, 4, kappa=10**2)
        assert found.map.error.dtype == F64
    half = bias(ImplicitGradient(NewtonRaphson(20)), a.bfloat16(), g.bfloat16())
    assert 1e-4 < half.map.error < tolerance(torch.bfloat16, 4, kappa=10)
    assert gradient(SVD(), a, g.double()).dtype == F32
    assert bias(Polished(NewtonRaphson(20), "bfloat16", steps=3), a.double(), g).residual < 1e-6


# --- bad input ----------------------------------------------------------------------------------

GOOD = torch.eye(3, dtype=F64)
BAD = {
    "not square": (torch.ones(3, 4), GOOD, ValueError, r"square .*got \(3, 4\)"),
    "another shape": (GOOD, torch.ones(2, 3, 3), ValueError, r"shape of a, \(3, 3\).*\(2, 3, 3\)"),
    "empty": (torch.ones(0, 0), torch.ones(0, 0), ValueError, "empty"),
    "integers": (torch.ones(3, 3, dtype=torch.long), GOOD, TypeError, "floating point.*int64"),
    "integer g": (GOOD, torch.ones(3, 3, dtype=torch.long), TypeError, "floating point.*int64"),
    "NaN": (torch.full((3, 3), math.nan), GOOD, ValueError, "a has 9 entries that are NaN"),
    "inf in g": (GOOD, GOOD * math.inf, ValueError, "g has 9 entries that are NaN or inf"),
    "no tensor": ([[1.0]], GOOD, TypeError, "must be a torch.Tensor"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_matrices_are_refused(name):
    a, g, error, message = BAD[name]
    for call in (reference_gradient, lambda a, g: gradient(SVD(), a, g),
                 lambda a, g: bias(SVD(), a, g)):  # fmt: skip
        with pytest.raises(error, match=message):
            call(a, g)


@pytest.mark.parametrize("rank", [-1, 4, 6])
def test_a_rank_that_no_matrix_reaches_is_refused(rank):
    message = re.escape(f"rank is {rank!r}; give an integer of 0 to 3")
    with pytest.raises(ValueError, match=message):
        reference_gradient(torch.stack((of_rank(5, 3), of_rank(5, 4))), normal(2, 5, 5), rank=rank)


def test_a_gradient_that_overflows_is_refused():
    a = torch.tensor([1.0, 1e-30], dtype=F32).diag()
    with pytest.raises(ValueError, match=r"gradient of .* overflowed torch.float32 on 1 of 1"):
        gradient(ImplicitGradient(Cholesky(shift=1e-30)), a, torch.ones(2, 2))


def test_a_solver_for_definite_input_refuses_no_gradient():
    a, g = with_spectrum(1, 0.6, 0.3), normal(3, 3, seed=1)
    solver = ImplicitGradient(NewtonRaphson(20, OptimalDefinite()))
    assert bias(solver, a, g, symmetric=True).map.error < tolerance(F64, 3, kappa=16)
