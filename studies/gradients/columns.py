"""Names that the study gives and its chapter reads."""

RECORDED, DUPLICATES, LOW_RANK = "recorded", "near duplicates", "low rank"
"""Kinds of matrices."""
IMPLICIT, GOLUB_PEREYRA, UNROLLED = "implicit", "Golub-Pereyra", "unrolled"
"""The rules."""
RANDOM = "random"
"""The loss that a random G = dL/dX belongs to."""
SOFTS = 20
"""Newton steps of SOFT."""
