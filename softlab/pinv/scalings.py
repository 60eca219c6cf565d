"""Initial guesses X0 of iterative pseudo-inverses, each matrix scaled by its own norms.

For any square A: ``NormProduct``, ``OneNorm`` (SOFT's), ``Frobenius``, ``Optimal``,
``PowerEstimate``, ``KrylovEstimate``; all are multiples of A^T, so that the iterations stay in the
range of A^T and converge to the pseudo-inverse. For symmetric positive definite A:
``InfinityNorm``, ``Trace``, ``OptimalDefinite``, multiples of I whose residual starts from 1/kappa
and not 1/kappa^2.

``PublishedNystromformer``, ``PublishedSoft`` and ``PublishedSoftNorm`` are what those codes do; the
first and the last have one number for the whole batch, so that a sample's result depends on its
neighbours. They are kept as baselines, and ``softlab.laws`` exempts them by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from softlab import validation
from softlab.core import Cost, Stream, own_precision, value, widened
from softlab.pinv.golub_kahan import interval_cost, singular_interval
from softlab.validation import Positive, Seed, Steps


@runtime_checkable
class Scaling(Protocol):
    """A frozen dataclass of numbers that maps A (..., m, m) to an initial guess X0 alike.

    Norms are taken in the working precision, X0 is in the dtype of A. One with ``published`` true
    keeps a defect of published code, as a baseline: laws that it breaks are not asked of it.
    """

    @property
    def definite(self) -> bool:
        """Requires symmetric positive definite A, since X0 lies outside the range of A^T."""
        ...

    def __call__(self, a: Tensor) -> Tensor:
        """The initial guess."""
        ...

    def cost(self, m: int, batch: int = 1) -> Cost:
        """Arithmetic of the estimate on ``batch`` matrices m x m."""
        ...


class _WithoutProduct:
    """A scaling that forms norms and no product."""

    def cost(self, m: int, batch: int = 1) -> Cost:  # noqa: ARG002
        """No product."""
        return Cost(0)


def one_norm(a: Tensor) -> Tensor:
    """|A|_1, the largest column sum of magnitudes, (..., 1, 1)."""
    return widened(a).abs().sum(-2).amax(-1)[..., None, None]


def infinity_norm(a: Tensor) -> Tensor:
    """|A|_inf, the largest row sum of magnitudes, (..., 1, 1)."""
    return widened(a).abs().sum(-1).amax(-1)[..., None, None]


def _or_one(x: Tensor) -> Tensor:
    """The divisor, or 1 where it is zero: a zero matrix then gets X0 = 0, its pseudo-inverse."""
    return torch.where(x > 0, x, 1)


def _transposed(a: Tensor, factor: float, first: Tensor, second: Tensor) -> Tensor:
    """The guess factor A^T / (first second), forming no squared norm, which could overflow."""
    x = (widened(a).mT / _or_one(first)) * (factor / _or_one(second))
    return x.to(a.dtype)


def _identity(a: Tensor, inverse: Tensor, factor: float = 1.0) -> Tensor:
    """The guess factor I / inverse; 0 for a zero matrix, NaN where ``inverse`` is not positive.

    No definite matrix has such a norm, and an iteration from NaN ends in an error.
    """
    eye = torch.eye(a.shape[-1], dtype=inverse.dtype, device=a.device)
    sound = inverse > 0
    # Divided by 1 elsewhere, in both branches, so that no gradient is NaN.
    x = factor * eye / torch.where(sound, inverse, 1)
    zero = (a == 0).all(-1).all(-1)[..., None, None]
    return torch.where(sound, x, torch.where(zero, 0.0, torch.nan)).to(a.dtype)


@value
class NormProduct(_WithoutProduct):
    """X0 = factor * A^T / (|A|_1 |A|_inf).

    As sigma_1^2 <= |A|_1 |A|_inf, Newton-type iterations converge for every 0 < factor < 2. For
    symmetric A this is factor * A / |A|_1^2: SOFT's with factor 1.8 = 0.9 * 2 (arXiv 2110.11945,
    Alg. 2), the published Nystromformer's exact option with factor 1 (arXiv 2102.03902). At
    factor 2 itself, identity and all-ones matrices map to X1 = 0 and stay there. A zero matrix
    gets X0 = 0, its pseudo-inverse. Never forms a squared norm, so it scales over the whole range
    of the dtype.
    """

    factor: Positive
    definite: ClassVar[bool] = False

    def __call__(self, a: Tensor) -> Tensor:
        """The initial guess, (..., m, m)."""
        magnitude = widened(a).abs()
        one, infinity = (magnitude.sum(axis).amax(-1)[..., None, None] for axis in (-2, -1))
        return _transposed(a, self.factor, one, infinity)


@value
class OneNorm(_WithoutProduct):
    """X0 = factor * A^T / |A|_1^2, SOFT's: factor 1.8 with its 0.9, factor 2 without.

    For symmetric A the same as ``NormProduct``. For other A the iteration may diverge, since
    sigma_1 can exceed |A|_1. Factor 2 leaves identity and all-ones matrices at X1 = 0 for ever.
    Reference: arXiv 2110.11945, Alg. 2; the 0.9 is in the submission and the code of July 2022.
    """

    factor: Positive = 1.8
    definite: ClassVar[bool] = False

    def __call__(self, a: Tensor) -> Tensor:
        """The initial guess, (..., m, m)."""
        return _transposed(a, self.factor, one_norm(a), one_norm(a))


@value
class Frobenius(_WithoutProduct):
    """X0 = factor * A^T / |A|_F^2, convergent for 0 < factor < 2, as sigma_1 <= |A|_F.

    Starts up to a factor of the rank lower than ``Optimal`` where the spectrum is flat.
    """

    factor: Positive = 1.0
    definite: ClassVar[bool] = False

    def __call__(self, a: Tensor) -> Tensor:
        """The initial guess, (..., m, m)."""
        wide = widened(a)
        # Of unit scale first: the squares under the root must neither overflow nor vanish.
        scale = _or_one(wide.detach().abs().amax((-2, -1), keepdim=True))
        norm = scale * torch.linalg.matrix_norm(wide / scale, keepdim=True)
        return _transposed(a, self.factor, norm, norm)


@value
class Optimal:
    """X0 = 2 A^T / (sigma_1^2 + sigma_r^2), the least residual among multiples of A^T.

    sigma_r: the smallest singular value above ``rtol`` * sigma_1; None means m * eps. Knows the
    spectrum, so it is the yardstick of the others and no method: it starts from a residual of
    (kappa^2 - 1) / (kappa^2 + 1). The singular values are constants of the backward pass.
    Reference: Ben-Israel and Cohen 1966.
    """

    rtol: float | None = None
    definite: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.rtol is not None:
            validation.in_range(self, validation.Positive, rtol=self.rtol)
            validation.in_range(self, validation.Fraction, rtol=self.rtol)

    def __call__(self, a: Tensor) -> Tensor:
        """The initial guess, (..., m, m)."""
        s = _values(torch.linalg.svdvals, a)
        rtol = a.shape[-1] * torch.finfo(s.dtype).eps if self.rtol is None else self.rtol
        top = s[..., :1]
        least = torch.where(s > rtol * top, s, torch.inf).amin(-1, keepdim=True)
        ratio = torch.where(top > 0, least / _or_one(top), 0)[..., None]
        top = top[..., None]
        return _transposed(a, 2.0, top, top * (1 + ratio.square()))

    def cost(self, m: int, batch: int = 1) -> Cost:
        """Singular values in 8 m^3 / 3 (Golub and Van Loan, 4th ed., Fig. 8.6.1)."""
        return Cost(0, factorization_flops=batch * 8 * m**3 // 3)


@value
class PowerEstimate:
    """X0 = A^T / (safety s^2) with s an estimate of sigma_1 by power iteration on A^T A.

    ``sweeps``: products with A^T A, at least 1; each costs two matrix-vector products. ``seed`` of
    the normal starting vector, the same for every matrix. s never exceeds sigma_1, and falls short
    of it by a factor near 1 that ``safety`` >= 1 makes up for: Newton's iteration converges while
    safety s^2 > sigma_1^2 / 2, and needs no safety. Falls back to 0 for a zero matrix, and is a
    constant of the backward pass.
    """

    sweeps: Steps = 8
    safety: Positive = 1.2
    seed: Seed = 0
    definite: ClassVar[bool] = False

    @own_precision
    def __call__(self, a: Tensor) -> Tensor:
        """The initial guess, (..., m, m)."""
        wide = widened(a).detach()
        scale = _or_one(wide.abs().amax((-2, -1), keepdim=True))
        unit = wide / scale
        v = Stream(self.seed, "pinv.PowerEstimate").normal(a.shape[-1], 1).to(wide)
        for _ in range(self.sweeps):
            v = v / _or_one(torch.linalg.matrix_norm(v, keepdim=True))
            u = unit @ v
            v = unit.mT @ u
        norm = scale * torch.linalg.matrix_norm(u, keepdim=True)
        return _transposed(a, 1 / self.safety, norm, norm)

    def cost(self, m: int, batch: int = 1) -> Cost:
        """Two matrix-vector products a sweep."""
        return Cost(batch * self.sweeps * 2 * 2 * m * m)


@value
class KrylovEstimate:
    """X0 = A^T / u^2 with u an upper estimate of sigma_1 from Golub-Kahan bidiagonalisation.

    u is ``safety`` >= 1 times the largest Ritz value after ``sweeps`` steps, but at most
    sqrt(|A|_1 |A|_inf): far nearer to sigma_1 than norms, and unlike power iteration not fooled by
    a few singular values close together. For methods that must not meet a singular value above u.
    ``seed`` of the normal starting vector. A constant of the backward pass.
    """

    sweeps: Steps = 12
    safety: Positive = 1.1
    seed: Seed = 0
    definite: ClassVar[bool] = False

    @own_precision
    def interval(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """The lower estimate of the smallest non-zero singular value, and u, (..., 1, 1) each."""
        wide = widened(a).detach()
        low, high = singular_interval(wide, self.sweeps, self.seed)
        bound = one_norm(wide).sqrt() * infinity_norm(wide).sqrt()
        return low, torch.minimum(self.safety * high, bound)

    def __call__(self, a: Tensor) -> Tensor:
        """The initial guess, (..., m, m)."""
        _, high = self.interval(a)
        return _transposed(a, 1.0, high, high)

    def cost(self, m: int, batch: int = 1) -> Cost:
        """The bidiagonalisation's."""
        return interval_cost(m, self.sweeps, batch)


@value
class InfinityNorm(_WithoutProduct):
    """X0 = factor * I / |A|_inf for symmetric positive definite A, as lambda_1 <= |A|_inf.

    The residual starts from 1 - lambda / |A|_inf: half the Newton steps of any multiple of A^T.
    Convergent for 0 < factor < 2. On singular A the null space keeps factor / |A|_inf and every
    step multiplies it: not a pseudo-inverse.
    """

    factor: Positive = 1.0
    definite: ClassVar[bool] = True

    def __call__(self, a: Tensor) -> Tensor:
        """The initial guess, (..., m, m)."""
        return _identity(a, infinity_norm(a), self.factor)


@value
class Trace(_WithoutProduct):
    """X0 = factor * I / tr A for symmetric positive definite A, as lambda_1 <= tr A.

    Convergent for 0 < factor < 2; NaN where the trace is not positive, 0 for a zero matrix.
    """

    factor: Positive = 1.0
    definite: ClassVar[bool] = True

    def __call__(self, a: Tensor) -> Tensor:
        """The initial guess, (..., m, m)."""
        trace = widened(a).diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
        return _identity(a, trace, self.factor)


@value
class OptimalDefinite:
    """X0 = 2 I / (lambda_1 + lambda_m), the least residual among multiples of I.

    For symmetric positive definite A; reads its lower triangle alone. Knows the spectrum: a
    yardstick, with a residual of (kappa - 1) / (kappa + 1). A constant of the backward pass.
    """

    definite: ClassVar[bool] = True

    def __call__(self, a: Tensor) -> Tensor:
        """The initial guess, (..., m, m)."""
        s = _values(torch.linalg.eigvalsh, a)
        # An eigenvalue that is not positive makes the whole NaN, as a negative sum would be.
        least = torch.where(s[..., 0] > 0, s[..., 0], -torch.inf)
        return _identity(a, (least + s[..., -1])[..., None, None], 2.0)

    def cost(self, m: int, batch: int = 1) -> Cost:
        """Eigenvalues in 4 m^3 / 3 (Golub and Van Loan, 4th ed., section 8.3)."""
        return Cost(0, factorization_flops=batch * 4 * m**3 // 3)


@value
class PublishedNystromformer(_WithoutProduct):
    """X0 = A^T / (max |A|_1 max |A|_inf), the maxima over the whole batch and all heads.

    The published default: one peaky head slows the convergence of all others, and a sample's
    result depends on its neighbours (mlpen/Nystromformer, issue 3). A baseline; use
    ``NormProduct(1.0)``.
    """

    definite: ClassVar[bool] = False
    published: ClassVar[bool] = True

    def __call__(self, a: Tensor) -> Tensor:
        """The initial guess, (..., m, m)."""
        return _transposed(a, 1.0, one_norm(a).max(), infinity_norm(a).max())


@value
class PublishedSoft(_WithoutProduct):
    """X0 = 1.8 A^T / (|A|_1 - ridge)^2, for A that is a core with ``ridge`` on its diagonal.

    What the released SOFT code does since July 2022: alpha = 0.9 * 2 / |.|_1^2 is that of the core
    before the ridge is added, and the iteration starts from alpha times the matrix after. On cores
    of unit diagonal it converges, as 1.8 (1 + 0.01)^2 < 2. ``ridge``: positive, that of the
    ``Ridge`` around the solver. A baseline; use ``OneNorm(1.8)``. Reference: fudan-zvg/SOFT,
    newton_inv in SOFT/kernel/inverse.py.
    """

    ridge: Positive = 0.01
    definite: ClassVar[bool] = False
    published: ClassVar[bool] = True

    def __call__(self, a: Tensor) -> Tensor:
        """The initial guess, (..., m, m)."""
        norm = one_norm(a) - self.ridge
        return _transposed(a, 1.8, norm, norm)


@value
class PublishedSoftNorm:
    """X0 = alpha A, alpha from 2 / (largest row sum)^2 of the whole batch, halved up to ten times.

    What the released SOFT code does in its normalised kernel (and did everywhere in 2021): alpha
    is halved while some |I - A X0|_1 of the batch exceeds 1.01. For A near the identity the test
    passes at once with X0 = 2 I, and then X1 = 0: attention vanishes without a word. Row sums are
    signed, as there. A baseline; use ``OneNorm(1.8)``. Reference: fudan-zvg/SOFT, newton_inv of
    SoftmaxFreeNormAttentionKernel.
    """

    definite: ClassVar[bool] = False
    published: ClassVar[bool] = True

    def __call__(self, a: Tensor) -> Tensor:
        """The initial guess, (..., m, m)."""
        wide = widened(a)
        alpha = 2 / wide.sum(-1).max().square()
        eye = torch.eye(a.shape[-1], dtype=wide.dtype, device=a.device)
        for _ in range(10):
            if not bool(one_norm(eye - alpha * (wide @ wide)).max() > 1.01):
                break
            alpha = alpha / 2
        return (alpha * wide).to(a.dtype)

    def cost(self, m: int, batch: int = 1) -> Cost:
        """At least one product a test; the number of tests depends on the matrices."""
        return Cost(batch * 2 * m**3)


def _values(decompose: Callable[[Tensor], Tensor], a: Tensor) -> Tensor:
    """Singular or eigenvalues as constants; NaN for a matrix that is not finite."""
    wide = widened(a).detach()
    finite = wide.isfinite().all(-1).all(-1)[..., None, None]
    found = decompose(torch.where(finite, wide, 0))
    return torch.where(finite[..., 0], found, torch.nan)
