"""What an iterative pseudo-inverse does step by step, and what its scalar maps say it must do.

``trace`` observes the iterates that the solver itself yields; ``observed_order``,
``observed_steps``, ``precision_floor`` and ``onset_and_growth`` read a trace. ``residual_spectra``,
``predicted_steps``, ``filter_factors``, ``cutoff`` and ``degrees_of_freedom`` never run the
iteration: they apply its polynomials to numbers.

Every start is a multiple alpha of A^T, or of I for a definite A. With A = U diag(s) V^T then
X_k = V diag(phi_k(s) / s) U^T, where phi_k = 1 - r_k and r_k is what k steps make of the eigenvalue
r_0 = 1 - alpha s^2 (1 - alpha s) of I - A X_0: a truncated iteration is a spectral filter of the
pseudo-inverse. For a hyperpower of order p, r_k = r_0^(p^k), whose filter rises from
p^k alpha s^2 to 1 as that of Tikhonov does, at a cut-off about sigma_1 p^(-k/2).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from softlab import spectra, validation
from softlab.core import norm, own_precision
from softlab.pinv import Iteration, ResidualPolynomial, Solver, Status
from softlab.validation import Matrix

F64 = torch.float64

ASYMPTOTIC = 0.53
"""Residuals below which the ratio of logarithms is taken for the order. From here the steps of
Chebyshev of degree 5, whose residual is no pure power, show it to a tenth; those of degree 7 reach
the rounding of float64 from not much less."""

RESOLVED = 10.0
"""How far above sqrt(m) eps kappa a residual must lie for its logarithm to mean something, and how
many times the floor an error must be to have left it."""


@dataclass(frozen=True, eq=False)
class Trace:
    """What was measured of the iterates X_0, X_1, ... on one matrix A: float64, (steps + 1,) each.

    ``dtype``: the arithmetic of the run. ``m``, ``rank``, ``condition``: of A, the last being
    sigma_1 / sigma_rank.
    ``penrose_1`` to ``penrose_4``: |A X A - A| / |A|, |X A X - X| / |X|, |(A X)^T - A X| / |A X|,
    |(X A)^T - X A| / |X A| in Frobenius norms. ``right`` and ``left``: |P - A X|_2 and |Q - X A|_2
    with P and Q the orthogonal projectors on the ranges of A and A^T; |I - A X|_2 at full rank.
    ``defect``: |X - X^T| / |X|, which is meant for symmetric A. ``norm``: |X|_F. ``error``:
    |X - A^+| / |A^+|, and ``purified`` that of X A X, formed in float64. ``matmuls``: products of
    m x m matrices so far, without those of the scaling and those that close a wrapper.

    A measure is infinite where X is not finite, and 0 where 0 is divided by 0.
    """

    dtype: torch.dtype
    m: int
    rank: int
    condition: float
    penrose_1: Tensor
    penrose_2: Tensor
    penrose_3: Tensor
    penrose_4: Tensor
    right: Tensor
    left: Tensor
    defect: Tensor
    norm: Tensor
    error: Tensor
    purified: Tensor
    matmuls: Tensor

    @property
    def rounding(self) -> float:
        """The unit of the limiting accuracy: eps of the run times the condition number."""
        return torch.finfo(self.dtype).eps * self.condition

    def rows(self) -> Iterator[dict[str, float]]:
        """The measures of each iterate in turn, by name, with its ``step``."""
        names = [name for name, x in vars(self).items() if isinstance(x, Tensor)]
        columns = [getattr(self, name).tolist() for name in names]
        for step, values in enumerate(zip(*columns, strict=True)):
            yield {"step": step, **dict(zip(names, values, strict=True))}


class Floor(NamedTuple):
    """The least error of a trace, the first step that has it, and error / (eps kappa)."""

    error: float
    step: int
    constant: float


class Growth(NamedTuple):
    """Where the error has left its floor for good, and by what factor it then grows a step."""

    onset: int
    factor: float | None


@validation.arrays
@own_precision
def trace(
    solver: Solver, a: Matrix, *, reference: Matrix | None = None, rank: int | None = None
) -> Trace:
    """Measure every iterate of ``solver`` on one matrix.

    ``a`` (m, m), finite, in the dtype that the iteration is to run in, a tensor, a NumPy array or a
    pandas DataFrame; it answers for the rounded
    matrix that it is given, and everything is measured in float64. ``rank``: 0 to m, by default the
    number of singular values above m eps sigma_1, eps of the dtype of ``a``. ``reference`` (m, m):
    A^+, by default that of the float64 singular value decomposition cut at ``rank``, which errs as
    much as an iteration in float64 does: at full rank a Newton step with a residual in doubled
    precision takes that away. Costs two spectral norms and six products a step. Raises
    ``ValueError`` for a batch, a matrix that is not square or not finite, and a rank or reference
    that does not fit.
    """
    a = _single(a)
    with torch.no_grad():
        exact = a.double()
        u, s, v, rank = _decomposed(a, rank)
        inverse = (v / s) @ u.mT
        if reference is not None:
            inverse = _reference(reference, exact)
        elif rank == len(a):
            inverse = inverse + inverse @ _doubled_residual(exact, inverse)
        onto, onto_rows = u @ u.mT, v @ v.mT
        sizes = norm(torch.stack((exact, inverse)), (-2, -1))
        measured: list[list[float]] = []
        for step, found in enumerate(solver.iterates(a)):
            x = found.double()
            left, right = x @ exact, exact @ x
            closed = left @ x
            # All of one kind at once: of small matrices a norm takes as long as a product.
            differences = (
                *(right @ exact - exact, closed - x, right.mT - right, left.mT - left),
                *(x - x.mT, x - inverse, closed - inverse),
            )
            norms = norm(torch.stack((*differences, x, right, left)), (-2, -1))
            own, of_right, of_left = norms[7:]
            over = torch.stack((sizes[0], own, of_right, of_left, own, sizes[1], sizes[1]))
            relative = _finite(torch.where((norms[:7] == 0) & (over == 0), 0, norms[:7] / over))
            *penrose, defect, error, purified = relative.tolist()
            residuals = _largest(torch.stack((onto - right, onto_rows - left))).tolist()
            work = float(step * solver.traits.products)
            measured.append(
                [*penrose, *residuals, defect, float(_finite(own)), error, purified, work]
            )
    columns = torch.tensor(measured, dtype=F64, device="cpu").unbind(-1)
    return Trace(a.dtype, len(a), rank, _condition(s), *columns)


@validation.arrays
def observed_order(trace: Trace) -> float | None:
    """The order p of the residual, |R'| = c |R|^p, from three iterates in turn.

    p = log(r'' / r') / log(r' / r) with r the right residual on the range, in which the constant c
    cancels. Of the triples that start at most at 0.53 and end above 10 sqrt(m) eps kappa, and ten
    times above where the residual rests, the last is taken; None where there is none, as happens to
    high orders, which pass from one to the other in fewer than two steps. It is p for steps whose c
    has settled: those fitted to the residual, or made for another interval than the spectrum's,
    have a c that wanders, and show p on average.
    """
    triples = zip(*(trace.right[i:].tolist() for i in range(3)), strict=False)
    resolved = RESOLVED * math.sqrt(trace.m) * trace.rounding
    least, at = trace.right.min(0)
    if int(at) < len(trace.right) - 1:  # it rests: on singular A above eps kappa
        resolved = max(resolved, RESOLVED * float(least))
    kept = [r for r in triples if ASYMPTOTIC >= r[0] > r[1] > r[2] > resolved]
    if not kept:
        return None
    first, second, third = kept[-1]
    return math.log(third / second) / math.log(second / first)


@validation.arrays
def observed_steps(trace: Trace, tolerance: float) -> int | None:
    """The first step whose right residual on the range is at most ``tolerance``, or None."""
    met = (trace.right <= _fraction(tolerance)).nonzero()
    return int(met[0]) if len(met) else None


@validation.arrays
def precision_floor(trace: Trace) -> Floor:
    """The least error that any iterate reached, at which step, and c of c eps kappa.

    It is a floor of the arithmetic only for a run that converged: before, it is how far it came.
    """
    error, step = trace.error.min(0)
    return Floor(float(error), int(step), float(error) / trace.rounding)


@validation.arrays
def onset_and_growth(trace: Trace) -> Growth | None:
    """Where the error rises after its floor, and its factor a step; None where it never does.

    It has risen if the last iterate is

    - ten times above the floor, and
    - ten times above m eps kappa, below which errors wander.

    The onset is then the first step from which on the error stays above twice the floor. The factor
    is the median of the ratios of successive errors from there, of those that are ten times above
    the floor and below 1; None where there are no two such. On rank-deficient A compare it with
    ``traits.growth``.
    """
    floor, start, _ = precision_floor(trace)
    error = trace.error.tolist()
    if not error[-1] > RESOLVED * max(floor, trace.m * trace.rounding):
        return None
    calm = max(i for i, x in enumerate(error) if i >= start and not x > 2 * floor)
    ratios = [
        after / before
        for before, after in itertools.pairwise(error[calm + 1 :])
        if before > RESOLVED * floor and before > 0 and after < 1
    ]
    factor = float(torch.tensor(ratios, dtype=F64, device="cpu").quantile(0.5)) if ratios else None
    return Growth(calm + 1, factor)


@validation.arrays
def residual_spectra(
    solver: Solver, a: Matrix, *, rank: int | None = None, at: Matrix | None = None
) -> Iterator[Tensor] | None:
    """The eigenvalues of I - A X_k on the range of A for k = 0, 1, ..., predicted; (rank,) float64.

    From those of the start, 1 - alpha s^2 (1 - alpha s for a multiple of I), by the polynomials of
    the steps; in descending order of s. ``a`` (m, m) and ``rank`` as of ``trace``: the start is
    that of the dtype of ``a``, and all that follows is float64. ``at``: other singular values s, in
    the units of A, that the same polynomials are applied to. None for a solver that is no
    iteration, or one whose steps look at the residual they meet, and cannot be predicted so. Raises
    ``ValueError`` as ``trace`` does, and for a start that is neither a multiple of A^T nor, of
    definite A, one of I.
    """
    a = _single(a)
    if not isinstance(solver, Iteration):
        return None
    with torch.no_grad():
        _fits(rank, len(a))
        s = _decomposed(a, rank)[1] if at is None else _singular_values(at)
        # Estimates of norms and bounds are those of the run, in its own dtype.
        start, maps = solver.begin(a)
        steps: list[ResidualPolynomial] = []
        for step in maps:
            if not isinstance(step, ResidualPolynomial):
                return None
            steps.append(step)
        eigenvalues = _alpha(solver, a, start) * (s if solver.traits.definite else s.square())
        # A start at the very limit, alpha s^2 = 2, stays there; rounding would carry it off.
        limit = (eigenvalues - 2).abs() <= 4 * torch.finfo(a.dtype).eps
    return _carried(torch.where(limit, -1, 1 - eigenvalues), steps)


@validation.arrays
def predicted_steps(
    solver: Solver, a: Matrix, tolerance: float, *, rank: int | None = None
) -> int | None:
    """The first step at which every eigenvalue of the residual is at most ``tolerance``.

    For a hyperpower of order p the smallest k with rho^(p^k) <= tolerance, rho the largest at the
    start. None where the solver's own steps do not reach it, and where ``residual_spectra`` is.
    """
    limit, spectra = _fraction(tolerance), residual_spectra(solver, a, rank=rank)
    for step, r in enumerate(spectra or ()):
        if float(r.abs().amax() if len(r) else 0.0) <= limit:
            return step
    return None


@validation.arrays
def filter_factors(
    solver: Solver,
    a: Matrix,
    steps: int | None = None,
    *,
    rank: int | None = None,
    at: Matrix | None = None,
) -> Tensor:
    """The filter phi(s) of X = V diag(phi / s) U^T after ``steps`` steps; (rank,) float64.

    0 where a singular value is left out, 1 where it is inverted; steps that overshoot go beyond.
    ``steps``: 0 to those of the solver, by default all. ``rank`` and ``at`` as of
    ``residual_spectra``; factors below eps are lost. Raises ``TypeError`` for a solver that cannot
    be predicted, ``ValueError`` for steps that it does not take.
    """
    spectra = residual_spectra(solver, a, rank=rank, at=at)
    if spectra is None:
        msg = (
            f"{solver!r} has no residual polynomials that are known beforehand; give an iteration "
            "that has, or read the filter off an iterate: the diagonal of V^T X A V."
        )
        raise TypeError(msg)
    found = list(spectra)
    last = len(found) - 1
    taken = last if steps is None else steps
    if not 0 <= taken <= last:
        msg = f"steps is {steps!r}, and {solver!r} takes {last}; give an integer from 0 to {last}."
        raise ValueError(msg)
    return 1 - found[taken]


@validation.arrays
def degrees_of_freedom(
    solver: Solver, a: Matrix, steps: int | None = None, *, rank: int | None = None
) -> float:
    """The sum of the filter factors: of how many singular values X is the inverse, up to the rank.

    Arguments and errors as of ``filter_factors``.
    """
    return float(filter_factors(solver, a, steps, rank=rank).sum())


@validation.arrays
def cutoff(solver: Solver, a: Matrix, steps: int | None = None) -> float | None:
    """The smallest t such that all singular values in [t, 1] sigma_1 have a filter factor >= 1/2.

    It is about p^(-k/2) for k steps of order p from alpha near 1 / sigma_1^2. None where sigma_1
    itself has a smaller factor, and for a zero matrix. Arguments and errors as of
    ``filter_factors``.
    """
    a = _single(a)
    top = float(torch.linalg.matrix_norm(a.double(), 2))
    if top == 0:
        return None
    # At the lower end alpha s^2 is below the rounding of 1, so phi is 0 there.
    low, high = 1e-12, 1.0
    for _ in range(3):  # a thousand parts each: the filter need not be monotone
        grid = torch.logspace(math.log10(low), math.log10(high), 1024, dtype=F64, device=a.device)
        left_out = (filter_factors(solver, a, steps, at=grid * top) < 0.5).nonzero()
        if not len(left_out):
            return low
        i = int(left_out[-1])
        if i == len(grid) - 1:
            return None
        low, high = float(grid[i]), float(grid[i + 1])
    return math.sqrt(low * high)


@validation.arrays
def account(
    solver: Solver, a: Matrix, tolerance: float
) -> dict[str, str | int | float | bool | None]:
    """One run on one matrix as a row: how it ends, predicted beside observed, floor and growth.

    ``solve_*``: the outcome of ``solver.solve(a)``. ``predicted_steps``, ``observed_steps`` and the
    same in ``_matmuls``: to a right residual of ``tolerance``. ``floor``, ``c``, ``c_purified`` (of
    the least error of X A X), ``onset`` and growth are None where the run did not arrive there, as
    is what its function says to be None. Arguments and errors as of ``trace``.
    """
    a = _single(a)
    seen, ended = trace(solver, a), solver.solve(a)
    predicted = predicted_steps(solver, a, tolerance)
    observed = observed_steps(seen, tolerance)
    floor, grown = precision_floor(seen), onset_and_growth(seen)
    arrived, products = observed is not None, solver.traits.products
    return {
        "m": seen.m,
        "rank": seen.rank,
        "condition": seen.condition,
        "eps_kappa": seen.rounding,
        "solve_status": Status(int(ended.status)).name,
        "solve_residual": float(ended.residual),
        "solve_steps": int(ended.steps),
        "solve_matmuls": int(ended.matmuls),
        "tolerance": tolerance,
        "predicted_steps": predicted,
        "observed_steps": observed,
        "predicted_matmuls": None if predicted is None else predicted * products,
        "observed_matmuls": None if observed is None else observed * products,
        "declared_order": solver.traits.order,
        "observed_order": observed_order(seen),
        "floor": floor.error if arrived else None,
        "floor_step": floor.step if arrived else None,
        "c": floor.constant if arrived else None,
        "c_purified": float(seen.purified.min()) / seen.rounding if arrived else None,
        "onset": grown.onset if grown and arrived else None,
        "declared_growth": solver.traits.growth,
        "observed_growth": grown.factor if grown and arrived else None,
        "last_error": float(seen.error[-1]),
        "last_purified": float(seen.purified[-1]),
    }


def _carried(r: Tensor, steps: list[ResidualPolynomial]) -> Iterator[Tensor]:
    yield r
    for step in steps:
        r = step.residual(r)
        yield r


def _alpha(solver: Solver, a: Tensor, start: Tensor) -> float:
    """The factor of the start; raises unless it is one, which the filter rests on."""
    definite = solver.traits.definite
    if definite and not (torch.equal(a, a.mT) and bool(torch.linalg.eigvalsh(a.double())[0] > 0)):
        msg = f"{solver!r} is for symmetric positive definite matrices, and a is not one."
        raise ValueError(msg)
    precision = torch.finfo(a.dtype).eps
    a, start = a.double(), start.double()
    base = torch.eye(len(a), dtype=F64, device=a.device) if definite else a.mT
    # Scaled, so that no square overflows or vanishes.
    unit = base / torch.where(base.abs().max() > 0, base.abs().max(), 1)
    alpha = (start * unit).sum() / unit.square().sum().clamp_min(torch.finfo(F64).tiny)
    if float((start - alpha * unit).norm()) > max(1e-8, 4 * precision) * float(start.norm()):
        msg = (
            f"{solver!r} starts from no multiple of {'I' if definite else 'A^T'} on this matrix, "
            "so its residual has no spectrum to predict from. Give a scaling that does."
        )
        raise ValueError(msg)
    size = base.abs().max()
    return float(alpha / torch.where(size > 0, size, 1))


def _single(a: Matrix) -> Tensor:
    a = validation.tensor("a", a)
    validation.square(a)
    if a.ndim != 2:
        msg = f"a must be one matrix (m, m), got {tuple(a.shape)}. Take the batch one by one."
        raise ValueError(msg)
    validation.finite("a", a)
    return a


def _decomposed(a: Tensor, rank: int | None) -> tuple[Tensor, Tensor, Tensor, int]:
    """U (m, rank), s (rank,), V (m, rank) in float64, and the rank."""
    _fits(rank, len(a))
    u, s, vh = torch.linalg.svd(a.double())
    if rank is None:
        unit = len(s) * torch.finfo(a.dtype).eps
        rank = int(spectra.numerical_rank(spectra.Spectrum(s, unit)))
    if rank and not float(s[rank - 1]) > 0:
        msg = f"rank is {rank}, and a has only {int((s > 0).sum())} singular values that are not 0."
        raise ValueError(msg)
    return u[:, :rank], s[:rank], vh[:rank].mT, rank


def _fits(rank: int | None, m: int) -> None:
    if rank is not None and not 0 <= rank <= m:
        msg = f"rank is {rank!r} for a matrix {m} x {m}; give an integer of 0 to {m}."
        raise ValueError(msg)


def _singular_values(at: Matrix) -> Tensor:
    at = validation.tensor("at", at)
    values = at.double()
    if at.ndim != 1 or not bool(((values >= 0) & values.isfinite()).all()):
        msg = f"at holds singular values (k,), finite and not negative, got {tuple(at.shape)}."
        raise ValueError(msg)
    return values


def _reference(given: Matrix, a: Tensor) -> Tensor:
    given = validation.tensor("reference", given)
    validation.matrix(given, "reference")
    if given.shape != a.shape:
        msg = f"reference must be A^+, {tuple(a.shape)}, got {tuple(given.shape)}."
        raise ValueError(msg)
    return given.to(a)


def _doubled_residual(a: Tensor, x: Tensor) -> Tensor:
    """I - A X to twice the digits of float64, of which it cancels the first half.

    A and X are cut into slices so narrow that the products of slices are exact, and these are
    taken from I in descending order (Ozaki, Ogita, Oishi and Rump 2012).
    """
    bits = (53 - math.ceil(math.log2(len(a)))) // 2
    left = _sliced(a, bits, -1)
    right = _sliced(x, bits, -2)
    r = torch.eye(len(a), dtype=F64, device=a.device)
    for total in range(4):
        for i in range(total + 1):
            r = r - left[i] @ right[total - i]
    return r


def _sliced(a: Tensor, bits: int, dim: int) -> list[Tensor]:
    """Four matrices that sum to A, the first three of so many bits along ``dim``."""
    slices = []
    for _ in range(3):
        # Adding and taking away a large power of two rounds to a multiple of its last digit.
        exponent = a.abs().amax(dim, keepdim=True).clamp_min(torch.finfo(F64).tiny).log2().ceil()
        anchor = 0.75 * 2.0 ** (exponent + 54 - bits)
        slices.append((a + anchor) - anchor)
        a = a - slices[-1]
    return [*slices, a]


def _condition(s: Tensor) -> float:
    return float(s[0] / s[-1]) if len(s) else 1.0


def _largest(x: Tensor) -> Tensor:
    """|x|_2 of each matrix, infinite where an entry is not finite."""
    finite = x.isfinite().all(-1).all(-1)
    whole = torch.linalg.matrix_norm(torch.where(finite[..., None, None], x, 0), 2)
    return torch.where(finite, whole, math.inf)


def _finite(x: Tensor) -> Tensor:
    """Infinite where it is no number."""
    return x.nan_to_num(math.inf, math.inf)


def _fraction(tolerance: float) -> float:
    if not 0 < tolerance < 1:
        msg = f"tolerance is {tolerance!r}; give a number between 0 and 1."
        raise ValueError(msg)
    return tolerance
