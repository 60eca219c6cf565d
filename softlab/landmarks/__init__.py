"""Landmark selectors: from the tokens of each matrix to m points that stand for them.

A selector is a frozen dataclass called as ``selector(x, m, key_mask=None)`` on tokens x (..., n, d)
and returns landmarks (..., m, d). Only tokens that ``key_mask`` (..., n) keeps count, so that
masking equals deletion; any n >= m is handled. Selectors whose landmarks are tokens also offer
``indices(x, m, key_mask=None)``, (..., m), distinct, and ``subset`` says so; ``means``,
``equivariant`` and ``nested`` are what else they promise. ``cost(dims, m)`` is what they spend.
Each matrix of a batch is treated alone.
"""

from softlab.landmarks.farthest_point import FarthestPoint
from softlab.landmarks.greedy_residual import GreedyResidual
from softlab.landmarks.grid_conv import GridConv
from softlab.landmarks.grid_pool import GridPool
from softlab.landmarks.k_means import KMeans
from softlab.landmarks.leverage_scores import LeverageScores
from softlab.landmarks.rp_cholesky_pivots import RPCholeskyPivots
from softlab.landmarks.segment_means import SegmentMeans
from softlab.landmarks.selector import Selector
from softlab.landmarks.strided import Strided
from softlab.landmarks.uniform_random import UniformRandom

__all__ = [
    "FarthestPoint",
    "GreedyResidual",
    "GridConv",
    "GridPool",
    "KMeans",
    "LeverageScores",
    "RPCholeskyPivots",
    "SegmentMeans",
    "Selector",
    "Strided",
    "UniformRandom",
]
