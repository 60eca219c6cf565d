"""Names that the study gives and its chapter reads."""

IMPLICIT, UNROLLED, RIDGED = "implicit", "unrolled", "implicit, ridge"
"""Rules for the gradient of the inverse."""
