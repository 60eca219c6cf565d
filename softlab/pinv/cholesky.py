"""The inverse of a positive definite core through its Cholesky factor."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from softlab import validation
from softlab.core import Cost, own_precision, transformed, value
from softlab.pinv.solver import PinvResult, SolverTraits, admit, deliver, working
from softlab.pinv.stopping import judge
from softlab.validation import Positive


@value
class Cholesky:
    """X = (A + nu I)^-1 = L^-T L^-1 with L L^T = A + nu I.

    ``shift``: nu, positive, in the units of A; None means 4 eps tr(A) per matrix, just above the
    rounding of a kernel matrix (cf. Tropp, Yurtsever, Udell and Cevher 2017, Alg. 3). For
    symmetric positive semidefinite A; reads the lower triangle alone. On singular A the result is
    the huge inverse of the shift, not a pseudo-inverse. Raises ``ValueError`` where the
    factorisation breaks down; ``solve`` reports that per matrix as NON_FINITE.
    """

    shift: Positive | None = None

    @property
    def traits(self) -> SolverTraits:
        """Direct, for definite matrices."""
        return SolverTraits(singular=False, definite=True)

    @own_precision
    def iterates(self, a: Tensor) -> Iterator[Tensor]:
        """The inverse, alone; NaN for a matrix that is not positive definite."""
        a = working(a)
        eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
        if self.shift is None:
            trace = a.detach().diagonal(dim1=-2, dim2=-1).sum(-1)
            shift = 4 * torch.finfo(a.dtype).eps * trace[..., None, None]
        else:
            shift = torch.tensor(self.shift, dtype=a.dtype, device=a.device)
        sound = a.isfinite().all(-1).all(-1)[..., None, None]
        factor, info = torch.linalg.cholesky_ex(torch.where(sound, a + shift * eye, eye))
        sound = sound & (info == 0)[..., None, None]
        factor = torch.where(sound, factor, eye)
        # In forward mode torch's derivative of ``cholesky_inverse`` is wrong.
        x = torch.cholesky_solve(eye, factor) if transformed() else torch.cholesky_inverse(factor)
        yield torch.where(sound, x, torch.nan)

    @own_precision
    def __call__(self, a: Tensor) -> Tensor:
        """The inverse of the shifted matrix."""
        wide = admit(a, self.traits)
        (x,) = self.iterates(wide)
        lost = x.isnan().any(-1).any(-1)
        if not validation.unseen(x) and (broken := int(validation.values_of(lost).sum())):
            msg = (
                f"{self!r} broke down on {broken} matrices that are not positive definite to "
                "working precision. Give a larger shift, or use SVD() or Ridge(Cholesky(), r)."
            )
            raise ValueError(msg)
        return deliver(x, a)

    def solve(self, a: Tensor) -> PinvResult:
        """The inverse with its status."""
        return judge(self.iterates, working(a), self.traits)

    def cost(self, m: int, batch: int = 1) -> Cost:
        """m^3 / 3 for the factor and 2 m^3 / 3 for the inverse from it; no plain product."""
        return Cost(flops=0, factorization_flops=batch * m**3)
