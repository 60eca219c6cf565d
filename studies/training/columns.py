"""Names that the study gives and its chapter reads."""

IMPLICIT, UNROLLED, EXACT = "implicit", "unrolled", "exact"
"""Rules for the gradient of the inverse."""
