"""Diagnostics of dense matrices: ranks, conditioning, leverage, decay, defects and best errors.

Each takes matrices (..., n, m), batched over the leading dimensions and computed in float64: as
tensors, as NumPy arrays or as a pandas DataFrame. Answers are tensors. Those that need no more than
singular values s_1 >= s_2 >= ... take a ``Spectrum`` as well, so that one decomposition serves
many: ``s = spectrum(a)``, then ``effective_rank(s)``, ``tails(s)``. None is changed by a positive
factor of the matrix unless it says so. All raise ``TypeError`` for what holds no floating numbers,
``ValueError`` for matrices that are empty or not finite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from softlab import notebook, validation
from softlab.core import Stream
from softlab.validation import Matrix

F64 = torch.float64
TINY = torch.finfo(F64).tiny


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular values (..., k), float64, falling.

    ``unit``: what rounding leaves of zeros, over s_1; of a matrix (n, m) it is max(n, m) eps, eps
    of the dtype that it came in, cut to just below 1, so that s_1 counts. Raises ``ValueError`` for
    values that are not finite, negative, or not falling.
    """

    values: Tensor
    unit: float

    def __post_init__(self) -> None:
        validation.fields(self)
        validation.in_range(self, validation.Fraction, unit=self.unit)
        s = self.values
        fine = s.ndim >= 1 and s.shape[-1] >= 1 and s.dtype == F64 and bool(s.isfinite().all())
        if not (fine and bool((s >= 0).all()) and bool((s.diff(dim=-1) <= 0).all())):
            msg = (
                f"Spectrum.values must be finite, falling and not negative, (..., k) float64, got "
                f"{tuple(s.shape)} {s.dtype}. Use spectrum(a), or sort what you have."
            )
            raise ValueError(msg)

    @property
    def relative(self) -> Tensor:
        """S / s_1, whose squares neither overflow nor vanish together; 0 for the zero matrix."""
        top = self.values[..., :1]
        return torch.where(top > 0, self.values / torch.where(top > 0, top, 1), 0)

    def _repr_html_(self) -> str:
        def cell(x: Tensor) -> float | str:
            return notebook.middle(x.flatten().tolist())

        rows = [
            ("largest", cell(self.values[..., 0])),
            ("least", cell(self.values[..., -1])),
            ("condition", cell(condition(self))),
            ("condition on the range", cell(condition_on_range(self))),
            ("numerical rank", cell(numerical_rank(self))),
            ("rank of 99 % of the energy", cell(energy_rank(self))),
            ("effective rank", cell(effective_rank(self))),
            ("stable rank", cell(stable_rank(self))),
        ]
        many = self.values[..., 0].numel()
        over = f", median and range of {many} matrices" if many > 1 else ""
        return notebook.table(f"{self.values.shape[-1]} singular values{over}", ("", ""), rows)


@validation.arrays
def spectrum(a: Matrix | Spectrum) -> Spectrum:
    """The singular values of a (..., n, m), min(n, m) of them; a ``Spectrum`` as it is."""
    if isinstance(a, Spectrum):
        return a
    a = validation.tensor("a", a)
    return Spectrum(torch.linalg.svdvals(_admitted(a)), _unit(a))


@validation.arrays
def singular_values(a: Matrix) -> Tensor:
    """s_1 >= s_2 >= ..., (..., min(n, m)), float64."""
    return spectrum(a).values


@validation.arrays
def eigenvalues(a: Matrix) -> Tensor:
    """Eigenvalues (..., m), complex128, magnitudes falling.

    ``a``: square, of any symmetry. Those of a matrix far from normal carry errors far above eps.
    """
    found: Tensor = torch.linalg.eigvals(_square(a))
    return found.gather(-1, found.abs().argsort(-1, descending=True))


@validation.arrays
def symmetric_eigenvalues(a: Matrix) -> Tensor:
    """Eigenvalues (..., m) of the symmetric part (A + A^T) / 2, float64, falling; ``a`` square."""
    a = _square(a)
    found: Tensor = torch.linalg.eigvalsh(a / 2 + a.mT / 2)
    return found.flip(-1)


@validation.arrays
def effective_rank(a: Matrix | Spectrum) -> Tensor:
    """exp(-sum p_i ln p_i) with p = s / sum s, from 1 to min(n, m); 0 for the zero matrix.

    Reference: Roy and Vetterli, EUSIPCO 2007.
    """
    s = spectrum(a).relative
    total = s.sum(-1)
    p = s / total.clamp_min(1).unsqueeze(-1)
    return torch.where(total > 0, -torch.xlogy(p, p).sum(-1), -math.inf).exp()


@validation.arrays
def stable_rank(a: Matrix | Spectrum) -> Tensor:
    """|A|_F^2 / |A|_2^2, from 1 to the rank; 0 for the zero matrix."""
    return spectrum(a).relative.square().sum(-1)


@validation.arrays
def participation_ratio(a: Matrix | Spectrum) -> Tensor:
    """(sum s)^2 / sum s^2, from 1 to the rank; 0 for the zero matrix.

    Of a semidefinite matrix the same of its eigenvalues, (tr A)^2 / tr A^2.
    """
    s = spectrum(a).relative
    return s.sum(-1).square() / s.square().sum(-1).clamp_min(1)


@validation.arrays
def numerical_rank(a: Matrix | Spectrum, tolerance: float | None = None) -> Tensor:
    """The number of singular values above ``tolerance`` times s_1, int64.

    ``tolerance``: from 0 to below 1, by default max(n, m) eps with eps of the dtype of ``a``.
    """
    return _above(spectrum(a), tolerance).sum(-1)


@validation.arrays
def energy_rank(a: Matrix | Spectrum, share: float = 0.99) -> Tensor:
    """The fewest singular values whose squares hold ``share`` of |A|_F^2, int64; 0 for none.

    ``share``: above 0, at most 1, where every value counts whose square is not lost beside the sum.
    """
    if not 0 < share <= 1:
        msg = f"share is {share!r}; give a number above 0 and at most 1."
        raise ValueError(msg)
    left = _remaining(spectrum(a).relative.square())
    # A relative eps more is granted: sums of equal squares miss a simple fraction by rounding.
    slack = 8 * torch.finfo(F64).eps
    return (left[..., :-1] > (1 - share + slack) * left[..., :1]).sum(-1)


@validation.arrays
def condition(a: Matrix | Spectrum) -> Tensor:
    """s_1 / s_min; infinite where s_min is 0, for the zero matrix too."""
    s = spectrum(a).relative
    return torch.where(s[..., -1] > 0, s[..., 0] / s[..., -1], math.inf)


@validation.arrays
def condition_on_range(a: Matrix | Spectrum, tolerance: float | None = None) -> Tensor:
    """s_1 / s_r with r the ``numerical_rank`` of that tolerance; 1 for the zero matrix."""
    found = spectrum(a)
    kept = _above(found, tolerance)
    least = torch.where(kept, found.relative, 1).amin(-1)
    return 1 / least


@validation.arrays
def leverage_scores(a: Matrix, rank: int | None = None) -> Tensor:
    """|U_r[i, :]|^2 of each row, (..., n), from 0 to 1; their sum is r.

    U_r: the first r left singular vectors, r the least of ``rank`` (1 to min(n, m), or None) and
    the ``numerical_rank``: rows of the zero matrix score 0. Not defined, whatever is returned,
    where s_r = s_{r+1}.
    """
    u, s = _left(a)
    kept = _above(s, None)
    if rank is not None:
        _rank(rank, kept.shape[-1])
        kept = kept & (torch.arange(kept.shape[-1], device=kept.device) < rank)
    return torch.where(kept.unsqueeze(-2), u, 0).square().sum(-1)


@validation.arrays
def coherence(a: Matrix, rank: int | None = None) -> Tensor:
    """(n / r) max_i |U_r[i, :]|^2, from 1 (no row matters more) to n / r; 0 for the zero matrix.

    r and U_r as of ``leverage_scores``.
    """
    scores = leverage_scores(a, rank)
    r = scores.sum(-1).round()
    return scores.shape[-1] * scores.amax(-1) / r.clamp_min(1)


@validation.arrays
def ridge_leverage_scores(a: Matrix, ridge: float) -> Tensor:
    """(A (A + ridge I)^-1)_ii of a semidefinite A, (..., n), from 0 to 1.

    ``ridge``: positive, in the units of the matrix. Of any other matrix the same of
    (A A^T)^(1/2), which has its left singular vectors and singular values. The sum is the
    ``effective_dimension``.
    """
    validation.span("ridge", ridge)
    u, s = _left(a)
    return (u.square() @ (s.values / (s.values + float(ridge))).unsqueeze(-1)).squeeze(-1)


@validation.arrays
def effective_dimension(a: Matrix | Spectrum, ridge: float) -> Tensor:
    """Sum s / (s + ridge), for a semidefinite A the trace of A (A + ridge I)^-1.

    ``ridge``: positive, in the units of the matrix, so that both must be scaled alike.
    """
    validation.span("ridge", ridge)
    s = spectrum(a).values
    return (s / (s + float(ridge))).sum(-1)


class Decay(NamedTuple):
    """A law of decay for each matrix, of which all fields are (...).

    ``exponential``: s_i ~ exp(-rate i) was more likely than the polynomial s_i ~ i^-rate.
    ``advantage``: the log-likelihood of the exponential above that of the polynomial. ``rate`` with
    its interval ``low`` to ``high``, of the likelier law, and ``points``, the number of singular
    values that were fitted. Rate and interval are NaN where these are fewer than three.
    """

    exponential: Tensor
    advantage: Tensor
    rate: Tensor
    low: Tensor
    high: Tensor
    points: Tensor


@validation.arrays
def decay(
    a: Matrix | Spectrum, confidence: float = 0.95, *, tolerance: float | None = None
) -> Decay:
    """Fit a polynomial and an exponential decay to the singular values, and choose.

    Least squares of ln s_i on ln i and on i, i from 1, over the values above ``tolerance`` s_1 (as
    of ``numerical_rank``): the greatest likelihood for independent errors of one size in ln s. The
    interval is Student's, of ``confidence`` within (0, 1). Singular values that bend away from the
    line err together, and not independently: the interval then is of the line's slope over these
    indices and promises nothing beyond them. Laws that fit alike count as polynomial.
    """
    from scipy.special import stdtrit

    if not 0 < confidence < 1:
        msg = f"confidence is {confidence!r}; give a number between 0 and 1, such as 0.95."
        raise ValueError(msg)
    found = spectrum(a)
    kept = _above(found, tolerance)
    points = kept.sum(-1)
    y = found.relative.clamp_min(TINY).log()
    index = torch.arange(1, y.shape[-1] + 1, dtype=F64, device=y.device)
    fits = [_line(x.expand_as(y), y, kept) for x in (index.log(), index)]
    enough = points > 2
    # Below the rounding of logarithms one fit is as good as another.
    floor = points * (16 * torch.finfo(F64).eps) ** 2
    polynomial, exponential = (torch.maximum(fit[1], floor).clamp_min(TINY) for fit in fits)
    advantage = torch.where(enough, points / 2 * (polynomial / exponential).log(), 0)
    chosen = advantage > 0
    slope, rest, spread = (torch.where(chosen, e, p) for p, e in zip(*fits, strict=True))
    free = (points - 2).clamp_min(1)
    quantile = torch.as_tensor(stdtrit(free.cpu().numpy(), (1 + confidence) / 2)).to(y)
    half = quantile * (rest / free / spread.clamp_min(TINY)).sqrt()
    rate, half = (torch.where(enough, x, math.nan) for x in (-slope, half))
    return Decay(chosen, advantage, rate, rate - half, rate + half, points)


@validation.arrays
def row_entropy(a: Matrix) -> Tensor:
    """-sum_j p_j ln p_j of each row divided by its sum, (..., n), from 0 to ln m.

    0 for a row of zeros. Raises ``ValueError`` for a negative entry.
    """
    p = _normalised(_nonnegative(a))
    return -torch.xlogy(p, p).sum(-1)


@validation.arrays
def row_normalised(a: Matrix) -> Tensor:
    """D^-1 A with D the row sums, (..., n, m), float64; raises ``ValueError`` where one is not > 0.

    Entries must not be negative.
    """
    a = _nonnegative(a)
    empty = int((a.amax(-1) == 0).sum())
    if empty:
        msg = (
            f"a has {empty} rows that sum to 0, which cannot be normalised. Drop these rows, or "
            "widen the kernel that underflows there."
        )
        raise ValueError(msg)
    return _normalised(a)


@validation.arrays
def row_spectral_norm(a: Matrix) -> Tensor:
    """|D^-1 A|_2 with D the row sums, (...).

    At least (n / m)^(1/2), which the vector of ones gives, and at most (n c)^(1/2) for c the
    greatest column mean: for m = n it is 1 where the columns sum to one too. Raises as
    ``row_normalised`` does.
    """
    return spectral_norm(row_normalised(a))


@validation.arrays
def spectral_gap(a: Matrix) -> Tensor:
    """1 - |lambda_2| of D^-1 A, (...), from 0 to 1: how fast repeated averaging forgets its start.

    ``a``: square, without negative entries; of one row the gap is 1. Raises as ``row_normalised``
    does.
    """
    found = eigenvalues(row_normalised(_square(a))).abs()
    return 1 - found[..., 1] if found.shape[-1] > 1 else torch.ones_like(found[..., 0])


@validation.arrays
def symmetry_defect(a: Matrix) -> Tensor:
    """|A - A^T|_F / |A|_F, (...), from 0 to 2; ``a`` square, 0 for the zero matrix."""
    a = _unit_sized(_square(a))
    size = torch.linalg.matrix_norm(a)
    defect: Tensor = torch.linalg.matrix_norm(a - a.mT) / size.clamp_min(TINY)
    return defect


@validation.arrays
def positivity_defect(a: Matrix) -> Tensor:
    """-lambda_min / max |lambda| of (A + A^T) / 2 where lambda_min < 0, (...), from 0 to 1.

    0 for a semidefinite matrix up to rounding, about n eps, and for the zero matrix; 1 where no
    eigenvalue is larger than the most negative. ``a`` square.
    """
    found = symmetric_eigenvalues(_unit_sized(_square(a)))
    return (-found[..., -1]).clamp_min(0) / found.abs().amax(-1).clamp_min(TINY)


@validation.arrays
def spectral_norm(a: Matrix) -> Tensor:
    """|A|_2, (...), to a relative 1e-6.

    All singular values of matrices of up to 256 rows or columns, Lanczos bidiagonalisation beyond.
    """
    a = _admitted(a)
    if min(a.shape[-2:]) <= 256:
        small: Tensor = torch.linalg.matrix_norm(a, 2)
        return small
    norms = [_largest(one) for one in a.reshape(-1, *a.shape[-2:])]
    return torch.tensor(norms, dtype=F64, device=a.device).reshape(a.shape[:-2])


class Tails(NamedTuple):
    """The least error of any matrix of rank 0, 1, ..., min(n, m), in three norms, (..., k + 1).

    In the units of the matrix: the first entry is its norm, the last 0. Divide by the first for
    relative errors.
    """

    spectral: Tensor
    frobenius: Tensor
    trace: Tensor

    @validation.arrays
    def relative(self, rank: int) -> Tails:
        """Those at this rank over the norms of the matrix, (...); 0 beyond min(n, m)."""
        validation.count("rank", rank, 0)
        if rank >= self.spectral.shape[-1]:
            return Tails(*(torch.zeros_like(x[..., 0]) for x in self))
        return Tails(*(x[..., rank] / torch.where(x[..., 0] > 0, x[..., 0], 1) for x in self))


@validation.arrays
def tails(a: Matrix | Spectrum) -> Tails:
    """s_{r+1}, (sum_{i > r} s_i^2)^(1/2) and sum_{i > r} s_i at every rank r.

    Reference: Eckart and Young, Psychometrika 1 (1936); Mirsky, Quarterly J. Math. 11 (1960), for
    every unitarily invariant norm.
    """
    found = spectrum(a)
    s, unit, top = found.values, found.relative, found.values[..., :1]
    spectral = torch.cat((s, torch.zeros_like(top)), -1)
    return Tails(spectral, top * _remaining(unit.square()).sqrt(), top * _remaining(unit))


def _admitted(a: Matrix) -> Tensor:
    """The matrices in float64, checked."""
    a = validation.tensor("a", a)
    validation.matrix(a)
    return a.detach().double()


def _square(a: Matrix) -> Tensor:
    a = validation.tensor("a", a)
    validation.square(a)
    return _admitted(a)


def _nonnegative(a: Matrix) -> Tensor:
    a = _admitted(a)
    bad = int((a < 0).sum())
    if bad:
        msg = (
            f"a has {bad} negative entries, and its rows must be weights. Give the exact kernel's "
            "matrix, or abs() of an approximation."
        )
        raise ValueError(msg)
    return a


def _normalised(a: Tensor) -> Tensor:
    """Rows over their sums, zeros for rows of zeros; scaled first, so that no sum overflows."""
    top = a.amax(-1, keepdim=True)
    a = a / torch.where(top > 0, top, 1)
    return a / a.sum(-1, keepdim=True).clamp_min(1)


def _unit_sized(a: Tensor) -> Tensor:
    """Each matrix over its largest magnitude: squares can neither overflow nor vanish."""
    top = a.abs().amax((-2, -1), keepdim=True)
    return a / torch.where(top > 0, top, 1)


def _unit(a: Tensor) -> float:
    # Below 1, for the largest value counts even where max(n, m) eps is more, as of 128 in bfloat16.
    return min(max(a.shape[-2:]) * torch.finfo(a.dtype).eps, 1 - torch.finfo(F64).eps)


def _left(a: Matrix) -> tuple[Tensor, Spectrum]:
    """Left singular vectors (..., n, k) and the spectrum."""
    a = validation.tensor("a", a)
    u, s, _ = torch.linalg.svd(_admitted(a), full_matrices=False)
    return u, Spectrum(s, _unit(a))


def _above(found: Spectrum, tolerance: float | None) -> Tensor:
    """Which singular values are above ``tolerance`` times the largest, (..., k)."""
    limit = found.unit if tolerance is None else tolerance
    if not 0 <= limit < 1:
        msg = f"tolerance is {limit!r}, a fraction of s_1; give a number from 0 to below 1."
        raise ValueError(msg)
    return found.relative > limit


def _rank(rank: int, most: int) -> None:
    if not 1 <= rank <= most:
        msg = f"rank is {rank!r}; give an integer from 1 to {most}, min(n, m), or None."
        raise ValueError(msg)


def _remaining(x: Tensor) -> Tensor:
    """Sums of x from index r on for r = 0, ..., k, the small ones first; the last is 0."""
    sums = x.flip(-1).cumsum(-1).flip(-1)
    return torch.cat((sums, torch.zeros_like(sums[..., :1])), -1)


def _line(x: Tensor, y: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Slope of the line through the points kept, its sum of squared errors, and that of x."""
    count = kept.sum(-1, keepdim=True).clamp_min(1)
    x, y = (torch.where(kept, z, 0) for z in (x, y))
    x, y = (torch.where(kept, z - z.sum(-1, keepdim=True) / count, 0) for z in (x, y))
    spread = x.square().sum(-1)
    slope = (x * y).sum(-1) / spread.clamp_min(TINY)
    return slope, (y - slope.unsqueeze(-1) * x).square().sum(-1), spread


def _largest(a: Tensor) -> float:
    """|A|_2 of one matrix by Lanczos."""
    from scipy.sparse.linalg import ArpackError, svds
    from threadpoolctl import threadpool_limits

    unit = float(a.abs().max()) or 1.0  # ARPACK squares what it is given
    # Ones would be an unlucky start: differences of row-stochastic matrices map them to zero.
    start = Stream(0, "spectra.largest").normal(min(a.shape)).to(a.dtype)
    dense = (a / unit).cpu().numpy()
    try:
        # OpenBLAS's idle threads spin on after the call and would slow whatever is timed next.
        with threadpool_limits(1, user_api="blas"):
            found = svds(dense, k=1, v0=start.numpy(), tol=1e-6, return_singular_vectors=False)
    except ArpackError:  # the zero matrix, or no convergence
        return float(torch.linalg.matrix_norm(a, 2))
    return float(found[0]) * unit
