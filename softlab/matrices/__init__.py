"""What solvers are tried on: matrices with a known spectrum, and the cores of real attention.

A matrix is a frozen dataclass of numbers, called with a seed: ``Geometric(64, 1e3)(seed=0)`` is
64 x 64. Those with a known spectrum say it in ``.singular_values``; see ``softlab.matrices.matrix``
for both protocols.
"""

from softlab.matrices.cores import Core, NearDuplicates
from softlab.matrices.extremes import Flat, Ones, Spiked
from softlab.matrices.given import Given
from softlab.matrices.matrix import KnownSpectrum, Matrix, haar
from softlab.matrices.prescribed import Clusters, Geometric, LowRank, Polynomial, Step

__all__ = [
    "Clusters",
    "Core",
    "Flat",
    "Geometric",
    "Given",
    "KnownSpectrum",
    "LowRank",
    "Matrix",
    "NearDuplicates",
    "Ones",
    "Polynomial",
    "Spiked",
    "Step",
    "haar",
]
