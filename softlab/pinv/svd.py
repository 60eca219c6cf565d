"""The reference: a truncated singular value decomposition."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from softlab import validation
from softlab.core import Cost, own_precision, value
from softlab.pinv.solver import PinvResult, SolverTraits, last, working
from softlab.pinv.stopping import judge


@value
class SVD:
    """A^+ = V diag(1/s if s > rtol * s_1 else 0) U^T.

    ``rtol``: relative cut-off, in (0, 1); None means m * eps of the working precision, as SciPy
    and LAPACK users expect. Differentiable along matrices of constant rank (Golub and Pereyra
    1973); the cut-off itself has no gradient.
    """

    rtol: float | None = None

    def __post_init__(self) -> None:
        if self.rtol is not None:
            validation.in_range(self, validation.Positive, rtol=self.rtol)
            validation.in_range(self, validation.Fraction, rtol=self.rtol)

    @property
    def traits(self) -> SolverTraits:
        """Direct, and exact on singular input, gradient included."""
        return SolverTraits(constant_rank=True)

    @own_precision
    def iterates(self, a: Tensor) -> Iterator[Tensor]:
        """The pseudo-inverse, alone; NaN for a matrix that is not finite."""
        a = working(a)
        # LAPACK refuses the whole batch for one NaN: let each matrix fail alone.
        finite = a.isfinite().all(-1).all(-1)[..., None, None]
        rtol = a.shape[-1] * torch.finfo(a.dtype).eps if self.rtol is None else self.rtol
        x = torch.linalg.pinv(torch.where(finite, a, 0), rtol=rtol)
        yield torch.where(finite, x, torch.nan)

    def __call__(self, a: Tensor) -> Tensor:
        """The pseudo-inverse."""
        return last(self.iterates, a, self.traits)

    def solve(self, a: Tensor) -> PinvResult:
        """The pseudo-inverse with its status."""
        return judge(self.iterates, working(a), self.traits)

    def cost(self, m: int, batch: int = 1) -> Cost:
        """One product and U, S, V in 21 m^3 (Golub and Van Loan, 4th ed., Fig. 8.6.1)."""
        return Cost(flops=batch * 2 * m**3, factorization_flops=batch * 21 * m**3)
