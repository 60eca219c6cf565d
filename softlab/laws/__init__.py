"""The laws that every operator and every solver must obey.

A law states an identity or a bound, says from the traits when it applies, and measures by how much
a subject misses it on inputs that it draws itself::

    from softlab import laws
    from softlab.operators import Soft

    laws.check(Soft(rank=8))  # raises laws.BrokenLawError at the first law that fails

``OPERATOR_LAWS`` and ``SOLVER_LAWS`` list them all. Each has a planted fault in the tests of this
repository that makes it fail.
"""

from __future__ import annotations

from softlab.core import Operator
from softlab.laws import algebra, budget, estimates, interface, inverse, isolation, limits
from softlab.laws.law import BrokenLawError, Gap, Law, tolerance
from softlab.pinv import Solver

OPERATOR_LAWS: tuple[Law[Operator], ...] = (
    interface.SHAPE_DTYPE_DEVICE,
    interface.DETERMINISTIC,
    algebra.LINEAR_IN_V,
    algebra.QUERY_EQUIVARIANT,
    algebra.KEY_INVARIANT,
    algebra.ROW_STOCHASTIC,
    algebra.NONNEGATIVE,
    algebra.SYMMETRIC,
    algebra.PSD,
    algebra.RESTRICTED,
    isolation.BATCH_INDEPENDENT,
    isolation.MASK_IS_DELETION,
    isolation.PADDING_IS_IGNORED,
    isolation.CAUSAL,
    limits.APART,
    limits.IDENTICAL,
    limits.LOW_RANK,
    limits.EXACT_AT,
    limits.MONOTONE,
    limits.TARGET,
    limits.REPLACEMENT,
    limits.FINITE,
    estimates.UNBIASED,
    estimates.VARIANCE,
    limits.LINEAR_MEMORY,
    budget.BUDGET,
    limits.GRADIENT,
)

SOLVER_LAWS: tuple[Law[Solver], ...] = (
    inverse.PENROSE,
    inverse.SINGULAR,
    inverse.SHIFTED,
    inverse.ADJOINT,
    inverse.SCALING,
    inverse.ORDER,
    inverse.GROWTH,
    inverse.INDEPENDENT,
    inverse.STATUS,
    inverse.COST,
    inverse.GRADIENT,
    inverse.GRADIENT_SINGULAR,
)


def check(subject: Operator | Solver, *, seed: int = 0) -> None:
    """Check every law that applies; raise ``BrokenLawError`` at the first that fails."""
    if isinstance(subject, Solver):
        for solver_law in SOLVER_LAWS:
            solver_law.check(subject, seed=seed)
    else:
        for operator_law in OPERATOR_LAWS:
            operator_law.check(subject, seed=seed)


__all__ = ["OPERATOR_LAWS", "SOLVER_LAWS", "BrokenLawError", "Gap", "Law", "check", "tolerance"]
