"""Landmark selectors: from the tokens of each matrix to m points that stand for them.

A selector is a frozen dataclass called as ``selector(x, m, key_mask=None)`` on tokens x (..., n, d)
and returns landmarks (..., m, d). Only tokens that ``key_mask`` (..., n) keeps count, so that
masking equals deletion; any n >= m is handled. Selectors whose landmarks are tokens also offer
``indices(x, m, key_mask=None)``, (..., m), distinct, and ``subset`` says so. Each matrix of a batch
is treated alone.
"""

from softlab.landmarks.segment_means import SegmentMeans
from softlab.landmarks.selector import Selector
from softlab.landmarks.strided import Strided
from softlab.landmarks.uniform_random import UniformRandom

__all__ = ["SegmentMeans", "Selector", "Strided", "UniformRandom"]
