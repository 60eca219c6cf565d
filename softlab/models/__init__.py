"""SOFT as a vision backbone, and trained models small enough for a laptop as sources of attention.

``soft_tiny`` and its siblings build a ``Pyramid``; ``Pyramid`` itself takes a ``Design`` of other
sizes and any operator of the catalogue.
"""

from softlab.models.pyramid import Design, Pyramid
from softlab.models.soft import (
    soft_huge,
    soft_large,
    soft_medium,
    soft_small,
    soft_small_7,
    soft_small_20,
    soft_tiny,
)

__all__ = [
    "Design",
    "Pyramid",
    "soft_huge",
    "soft_large",
    "soft_medium",
    "soft_small",
    "soft_small_7",
    "soft_small_20",
    "soft_tiny",
]
