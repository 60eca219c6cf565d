"""Weights from a low-discrepancy sequence."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from softlab.core import Stream, value
from softlab.validation import OneOf, Seed

SEQUENCES = ("sobol", "halton")
CELL = 2.0**-53
"""Spacing of the points: half of it moves them off 0, where the quantile is infinite."""


@value
class QuasiMonteCarlo:
    """W = Phi^-1(U), Phi the normal distribution function, U the first m points of a sequence.

    ``seed``: integer >= 0, of the scrambling. ``sequence``: ``"sobol"`` (random linear matrix
    scramble and digital shift) or ``"halton"`` (random digit permutations); both by
    ``scipy.stats.qmc``. Scrambling makes every point uniform on the cube, so each row alone is
    N(0, I_d) and estimates are unbiased; rows depend on each other so as to fill the cube evenly,
    which pays where d is small beside m. No bound on the variance is claimed. Halton's
    permutations have as many digits as float64 holds.

    The sequences have at most 21,201 (Sobol) coordinates. Reference: Avron et al., arXiv
    1412.8293 (there with trigonometric features).
    """

    seed: Seed = 0
    sequence: Annotated[str, OneOf(*SEQUENCES)] = "sobol"

    normal = True
    independent = False
    orthogonal = False

    def __call__(self, m: int, d: int) -> Tensor:
        """The matrix W, (m, d)."""
        from scipy.stats import qmc  # slow to import, and of use here alone

        seed = Stream(self.seed, "features.QuasiMonteCarlo").number
        if self.sequence == "sobol":
            # Sobol sets are drawn by powers of two; a part of one is as uniform, point by point.
            sobol = qmc.Sobol(d, scramble=True, bits=53, seed=seed)
            points = sobol.random_base2((m - 1).bit_length())[:m]
        else:
            points = qmc.Halton(d, scramble=True, seed=seed).random(m)
        uniform = torch.from_numpy(points).double() + CELL / 2
        w: Tensor = torch.special.ndtri(uniform.clamp_max(1 - CELL))
        return w
