"""Independent normal weights."""

from __future__ import annotations

from torch import Tensor

from softlab.core import Stream, value
from softlab.validation import Seed


@value
class IID:
    """W with independent N(0, 1) entries: plain Monte Carlo.

    ``seed``: integer >= 0. Reference: Rahimi and Recht, Random Features for Large-Scale Kernel
    Machines (2007), Alg. 1; arXiv 2009.14794, Lemma 1.
    """

    seed: Seed = 0

    normal = True
    independent = True
    orthogonal = False

    def __call__(self, m: int, d: int) -> Tensor:
        """The matrix W, (m, d)."""
        return Stream(self.seed, "features.IID").normal(m, d)
