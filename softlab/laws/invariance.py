"""Laws of solvers under orthogonal factors and repetition, and of the call itself."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from softlab.laws.derivatives import twice
from softlab.laws.inverse import KAPPA, faithful, relative, well_conditioned
from softlab.laws.law import (
    Gap,
    Law,
    always,
    is_plain,
    largest,
    need_gradient,
    normal,
    refused,
    tolerance,
    uniform_int,
)
from softlab.laws.purity import printed
from softlab.pinv import Solver

F64 = torch.float64


def _unitary(solver: Solver, rng: torch.Generator) -> Iterator[Gap]:
    m = uniform_int(rng, 2, 9)
    a = well_conditioned(rng, m)
    u, v = (torch.linalg.qr(normal(rng, m, m, dtype=F64)).Q.to(a) for _ in range(2))
    v = u if solver.traits.definite or solver.traits.regularized else v
    b = u @ a @ v.mT
    b = (b + b.mT) / 2 if v is u else b
    wanted = v @ solver(a) @ u.mT
    precision = getattr(torch, solver.traits.precision or "float64")
    where = "(U A U^T)^+ = U A^+ U^T" if v is u else "(U A V^T)^+ = V A^+ U^T"
    allowed = tolerance(precision, m, kappa=KAPPA**2)
    yield Gap(relative(solver(b), wanted), allowed, f"{where}, m={m}")


def _involution(solver: Solver, rng: torch.Generator) -> Iterator[Gap]:
    m = uniform_int(rng, 2, 9)
    a = well_conditioned(rng, m)
    x = solver(a)
    back = solver((x + x.mT) / 2)
    yield Gap(relative(back, a), tolerance(F64, m, kappa=KAPPA**3), f"A^++ = A, m={m}")


def _call(solver: Solver, rng: torch.Generator) -> Iterator[Gap]:
    a, other = well_conditioned(rng, 5), well_conditioned(rng, 3)
    for lead in ((), (2,), (2, 3)):
        for dtype in (F64, torch.float32, torch.bfloat16, torch.float16):
            given = a.to(dtype).expand(*lead, 5, 5)
            given = (given + given.mT) / 2
            try:
                x = solver(given)
            except RuntimeError as error:
                if refused(solver, error, dtype):
                    continue
                raise
            wrong = (x.shape != given.shape) + (x.dtype != dtype) + (x.device != given.device)
            wrong += not bool(x.isfinite().all())
            yield Gap(float(wrong), 0, f"lead {lead}, {dtype}: got {tuple(x.shape)}, {x.dtype}")
            if not solver.traits.regularized:
                missed = largest(given.double() @ x.double() - torch.eye(5, dtype=F64))
                # Its own rounding alone spoils an inverse of that precision so far.
                allowed = tolerance(dtype, 5, kappa=KAPPA, c=2 if dtype.itemsize < 4 else 100)
                yield Gap(missed, allowed, f"lead {lead}, {dtype}: A X = I")
    kept, state = a.clone(), torch.get_rng_state()
    first = solver(a)
    solver(other)
    # LAPACK's least squares round by where their memory lies, and a function may call them.
    rounding = tolerance(F64, 5, kappa=KAPPA) if is_plain(solver) else 0
    again = solver(a)
    missed = 0.0 if torch.equal(again, first) else relative(again, first)
    yield Gap(missed, rounding, "two equal calls, another between")
    yield Gap(float(not torch.equal(state, torch.get_rng_state())), 0, "the global generator")
    yield Gap(float(not torch.equal(a, kept)), 0, "the caller's matrix")
    text = printed(lambda: solver(a))
    yield Gap(len(text), 0, f"characters printed: {text.strip()[:60]!r}")
    with torch.no_grad():
        alone = solver(a)
    strided = solver(a.mT.contiguous().mT)
    allowed = tolerance(F64, 5, kappa=KAPPA**2)
    yield Gap(relative(alone, first), allowed, "under no_grad")
    yield Gap(relative(strided, first), allowed, "transposed in memory")


def _second(solver: Solver, rng: torch.Generator) -> Iterator[Gap]:
    need_gradient(solver, well_conditioned(rng, 3))
    yield from twice(lambda b: solver((b + b.mT) / 2), [well_conditioned(rng, 3)], rng)


UNITARY: Law[Solver] = Law(
    "orthogonal factors",
    "(U A V^T)^+ = V A^+ U^T for orthogonal U and V; V = U for symmetric and shifted matrices",
    faithful,
    _unitary,
    family="algebraic",
    when="is no copy of published code with its defects",
    allows="rounding times the squared condition of the drawn matrix",
    catches="a transposed factor; an inverse of the diagonal alone",
    any_dtype=True,
)
INVOLUTION: Law[Solver] = Law(
    "inverse of the inverse",
    "A^++ = A",
    lambda s: not s.traits.regularized and faithful(s),
    _involution,
    family="algebraic",
    when="is not regularised",
    allows="rounding times the cubed condition of the drawn matrix",
    catches="a shift that is not claimed; three steps",
    any_dtype=True,
)
CALL: Law[Solver] = Law(
    "shape, dtype and trace",
    "A (..., m, m) gives a finite X like it; equal calls agree to the bit, those of a function to "
    "rounding, print nothing, draw nothing from the global generator and change no argument",
    faithful,
    _call,
    family="interface",
    when="is no copy of published code with its defects",
    allows="no bit; between memory layouts, and calls of a function, rounding",
    catches="a result in float64; noise; an update in place; a print",
)
SECOND: Law[Solver] = Law(
    "second derivative",
    "the gradient of a loss with a gradient penalty equals central differences, by backward and by "
    "grad, for a loss that is linear in the inverse and one that is not; or torch refuses it",
    always,
    _second,
    family="gradients",
    when="torch can differentiate twice",
    allows="1e-4 of the difference, and rounding over the step, in float64",
    catches="a backward pass with a constant for the inverse",
    examples=1,
)
