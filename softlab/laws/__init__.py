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
from softlab.laws import (
    algebra,
    budget,
    cost,
    derivatives,
    estimates,
    geometry,
    honesty,
    interface,
    invariance,
    inverse,
    isolation,
    limits,
    precision,
    spectral,
    temperature,
)
from softlab.laws.law import BrokenLawError, Draws, Gap, Law, OutOfScopeError, tolerance
from softlab.pinv import Solver

OPERATOR_LAWS: tuple[Law[Operator], ...] = (
    interface.SHAPE_DTYPE_DEVICE,
    interface.DETERMINISTIC,
    honesty.SILENT,
    honesty.VIEWS,
    honesty.STATELESS,
    honesty.ANSWERS,
    algebra.LINEAR_IN_V,
    algebra.QUERY_EQUIVARIANT,
    algebra.KEY_INVARIANT,
    algebra.ROW_STOCHASTIC,
    algebra.NONNEGATIVE,
    algebra.SYMMETRIC,
    geometry.READS,
    geometry.SCALE,
    geometry.RECIPROCAL,
    algebra.PSD,
    spectral.BELOW,
    spectral.ECKART_YOUNG,
    algebra.RESTRICTED,
    isolation.BATCH_INDEPENDENT,
    isolation.MASK_IS_DELETION,
    isolation.PADDING_IS_IGNORED,
    isolation.CAUSAL,
    limits.APART,
    limits.IDENTICAL,
    temperature.WARM,
    temperature.COLD,
    temperature.ONE_KEY,
    limits.LOW_RANK,
    limits.EXACT_AT,
    limits.MONOTONE,
    limits.TARGET,
    limits.REPLACEMENT,
    limits.FINITE,
    precision.TWO_ERRORS,
    precision.HOMOGENEOUS,
    precision.DENORMAL,
    estimates.UNBIASED,
    estimates.VARIANCE,
    estimates.RESEEDED,
    cost.FLOPS,
    limits.LINEAR_MEMORY,
    budget.BUDGET,
    limits.GRADIENT,
    derivatives.SECOND,
    derivatives.FULL_GRADIENT,
)

SOLVER_LAWS: tuple[Law[Solver], ...] = (
    invariance.CALL,
    inverse.PENROSE,
    inverse.SINGULAR,
    inverse.SHIFTED,
    inverse.ADJOINT,
    invariance.UNITARY,
    invariance.INVOLUTION,
    inverse.SCALING,
    inverse.ORDER,
    inverse.GROWTH,
    inverse.INDEPENDENT,
    inverse.STATUS,
    inverse.COST,
    inverse.GRADIENT,
    inverse.GRADIENT_SINGULAR,
    invariance.SECOND,
)

FAMILIES = (
    *("interface", "algebraic", "isolation", "limits", "spectral", "statistical"),
    *("numerical", "gradients", "cost", "honesty"),
)
"""What laws are about, in the order of a report."""


def check(subject: Operator | Solver, *, seed: int = 0) -> None:
    """Check every law that applies; raise ``BrokenLawError`` at the first that fails."""
    if isinstance(subject, Solver):
        for solver_law in SOLVER_LAWS:
            solver_law.check(subject, seed=seed)
    else:
        for operator_law in OPERATOR_LAWS:
            operator_law.check(subject, seed=seed)


__all__ = [
    "FAMILIES",
    "OPERATOR_LAWS",
    "SOLVER_LAWS",
    "BrokenLawError",
    "Draws",
    "Gap",
    "Law",
    "OutOfScopeError",
    "check",
    "tolerance",
]
