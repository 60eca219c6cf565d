"""The laws that every operator and every solver must obey.

A law states an identity or a bound, says from the traits when it applies, and measures by how much
a subject misses it on inputs that it draws itself::

    from softlab import laws
    from softlab.operators import Soft

    laws.check(Soft(rank=8))  # raises laws.BrokenLawError at the first law that fails

``check`` takes any callable ``f(q, k, v)`` or ``f(a)`` as well. ``examine`` goes through all laws
and says of each whether it holds, fails and on what, or does not apply and why; ``softlab check``
does that in a process of its own, ``parametrize`` and ``pytest --laws`` in a test suite. ``power``
plants faults into a subject and says which laws would see them.
``softlab.laws.strategies`` draws inputs for laws of one's own.

``OPERATOR_LAWS`` and ``SOLVER_LAWS`` list them all; each says what it states, when it applies, what
it allows, and which fault, planted in the tests of this repository, makes it fail.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from softlab.core import Operator
from softlab.hints import hint
from softlab.laws import (
    algebra,
    certificates,
    cost,
    dependence,
    derivatives,
    error_parts,
    estimates,
    faults,
    gradient_consistency,
    interface,
    invariance,
    inverse,
    isolation,
    limits,
    precision,
    purity,
    runner,
    solving,
    spectral,
    temperature,
)
from softlab.laws.adapters import adapted, is_solver, load
from softlab.laws.grouping import Cause, causes
from softlab.laws.law import BrokenLawError, Draws, Gap, Law, OutOfScopeError, tolerance
from softlab.laws.regimes import Coverage, coverage
from softlab.laws.runner import EXAMPLES, SECONDS, Examination, Outcome, Verdict, budgeted, outcome
from softlab.pinv import Solver
from softlab.validation import typed

OPERATOR_LAWS: tuple[Law[Operator], ...] = (
    interface.SHAPE_DTYPE_DEVICE,
    interface.DETERMINISTIC,
    purity.SILENT,
    purity.VIEWS,
    purity.STATELESS,
    purity.ANSWERS,
    algebra.LINEAR_IN_V,
    algebra.QUERY_EQUIVARIANT,
    algebra.KEY_INVARIANT,
    algebra.ROW_STOCHASTIC,
    algebra.NONNEGATIVE,
    algebra.SYMMETRIC,
    dependence.KERNEL,
    dependence.READS,
    dependence.FAR_AWAY,
    dependence.SCALE,
    dependence.RECIPROCAL,
    algebra.PSD,
    spectral.BELOW,
    spectral.ECKART_YOUNG,
    algebra.RESTRICTED,
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
    precision.SHOWN,
    estimates.UNBIASED,
    estimates.VARIANCE,
    estimates.RESEEDED,
    certificates.CERTIFICATE,
    certificates.INFORMATIVE,
    certificates.COVERAGE,
    cost.FLOPS,
    limits.LINEAR_MEMORY,
    error_parts.BUDGET,
    limits.GRADIENT,
    derivatives.SECOND,
    derivatives.PARAMETERS,
    derivatives.FULL_GRADIENT,
    *gradient_consistency.EVERYWHERE,
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
    solving.SOLVE,
    solving.SIZES,
    solving.TRACES,
    solving.SHOWN,
    solving.FULL_GRADIENT,
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


def suite(subject: Any) -> tuple[Law[Any], ...]:
    """The laws to ask of an operator, or of a solver."""
    if not callable(subject):
        msg = f"{subject!r} is no operator and no solver; give f(q, k, v) or f(a)."
        raise TypeError(msg)
    return SOLVER_LAWS if is_solver(subject) else OPERATOR_LAWS


@typed
def check(
    subject: Any,
    *,
    seed: int = 0,
    only: str | None = None,
    draws: Draws | None = None,
    expected: Mapping[str, str] | None = None,
) -> None:
    """Check every law that applies; raise ``BrokenLawError`` at the first that fails.

    Args:
        subject: an operator, a solver, or a callable as ``laws.adapted`` takes it.
        seed: of the inputs.
        only: the name of one law.
        draws: dtype and device of the inputs.
        expected: laws that are known to fail, each with the reason. Such a law must fail at
            this seed or at one of the four after it.

    Raises:
        BrokenLawError: a law fails, or one that is expected to fail holds.
        ValueError: there is no law of that name.
    """
    subject = adapted(subject)
    reasons = _reasons(subject, expected)
    for law in _chosen(subject, only):
        if law.name not in reasons:
            law.check(subject, seed=seed, draws=draws)
            continue
        seeds = range(seed, seed + EXAMPLES)
        found = outcome(subject, law, seeds=seeds, draws=draws, simplest=False)
        found = runner.expecting(found, reasons[law.name])
        if found.verdict is Verdict.FAILS:
            msg = f"{law.name}: {found.detail}."
            raise BrokenLawError(msg)


@typed
def examine(
    subject: Any,
    *,
    examples: int | None = None,
    seconds: float | None = None,
    draws: Draws | None = None,
    only: str | None = None,
    name: str = "op",
    thorough: bool = False,
    expected: Mapping[str, str] | None = None,
) -> Examination:
    """What becomes of each law: holds, fails with a counterexample, or does not apply and why.

    ``subject``: as of ``check``. ``examples``: seeds of each law, 5. ``seconds``: the most that one
    may take, where Python can interrupt it, 30; ``softlab check`` runs in a process that it can
    end. ``draws``: dtype and device. ``name``: of the subject, in lines that reproduce failures.
    ``thorough``: minutes instead of seconds, 20 seeds and every size up to some thousand keys.
    ``expected``: laws that are known to fail, each with the reason; one that does not is a failure.
    ``laws.causes`` puts failures of one cause together, ``laws.coverage`` counts what was drawn.
    """
    subject = adapted(subject)
    found = _chosen(subject, only)
    examples, seconds = budgeted(examples, seconds, thorough=thorough)
    draws = dataclasses.replace(draws or Draws(), thorough=thorough)
    reasons = _reasons(subject, expected)
    outcomes = runner.examine(
        subject, found, examples=examples, seconds=seconds, draws=draws, name=name
    )
    return Examination(
        runner.expecting(one, reasons[one.law]) if one.law in reasons else one for one in outcomes
    )


@typed
def power(
    subject: Any,
    *,
    examples: int | None = None,
    seconds: float | None = None,
    draws: Draws | None = None,
    thorough: bool = False,
) -> Examination:
    """Plant faults into a subject, one at a time, and say which laws see each.

    A law that the subject itself breaks is left out: it would see everything.

    Args:
        subject: as of ``check``.
        examples: seeds of each law, 5.
        seconds: the most that one law may take, 30.
        draws: dtype and device of the inputs.
        thorough: name every law that sees a fault; else only the first.

    Returns:
        One outcome per fault, whose ``law`` is the fault's name. HOLDS: a law sees it, and
        ``detail`` names the law. FAILS: no law does. SKIPPED: it changes nothing in this subject.
    """
    subject = adapted(subject)
    examples, seconds = budgeted(examples, seconds, thorough=False)
    asked = faults.power(
        subject, suite(subject), examples=examples, seconds=seconds, draws=draws, thorough=thorough
    )
    return Examination(one for one in asked if one.family == faults.FAMILY)


@typed
def parametrize(subjects: Sequence[Any], *, expected: Mapping[str, str] | None = None) -> Any:
    """A mark for pytest: a test of ``(subject, law)`` runs once for each law of each subject.

    Laws that do not apply are skipped, and say why. ``expected``: laws that are known to fail, each
    with the reason; such a test is an expected failure of pytest, and a success fails::

        @laws.parametrize([Soft(rank=8), my_attention])
        def test_laws(subject, law):
            law.check(subject)
    """
    import pytest

    cases = []
    for subject in map(adapted, subjects):
        reasons = _reasons(subject, expected)
        for law in suite(subject):
            marks: tuple[Any, ...] = ()
            if not law.applies(subject):
                marks = (pytest.mark.skip(reason=f"{law.name} is for what {law.when}"),)
            elif law.name in reasons:
                marks = (pytest.mark.xfail(reason=reasons[law.name], strict=True),)
            cases.append(pytest.param(subject, law, marks=marks, id=f"{subject!r}-{law.name}"))
    return pytest.mark.parametrize(("subject", "law"), cases)


def _reasons(subject: Any, expected: Mapping[str, str] | None) -> Mapping[str, str]:
    """Why laws are expected to fail, by their names; ``ValueError`` for a name of none."""
    for name in expected or {}:
        _chosen(subject, name)
    return expected or {}


def _chosen(subject: Any, only: str | None) -> tuple[Law[Any], ...]:
    """The laws of a subject, or the one of that name."""
    found = suite(subject)
    if only is None:
        return found
    names = [law.name for law in found]
    if only not in names:
        msg = f"there is no law {only!r}; there are {', '.join(names)}.{hint(only, names)}"
        raise ValueError(msg)
    return tuple(law for law in found if law.name == only)


__all__ = [
    "EXAMPLES",
    "FAMILIES",
    "OPERATOR_LAWS",
    "SECONDS",
    "SOLVER_LAWS",
    "BrokenLawError",
    "Cause",
    "Coverage",
    "Draws",
    "Examination",
    "Gap",
    "Law",
    "OutOfScopeError",
    "Outcome",
    "Verdict",
    "adapted",
    "budgeted",
    "causes",
    "check",
    "coverage",
    "examine",
    "load",
    "outcome",
    "parametrize",
    "power",
    "suite",
    "tolerance",
]
