"""Names that the study gives and its chapter reads."""

IMPLICIT, FUSED, TRAINING = "SOFT (implicit)", "fused softmax", "training"
"""Two of the methods, and a mode."""
