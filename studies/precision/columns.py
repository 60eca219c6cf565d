"""Names that the study gives and its chapter reads."""

SOUND = "none"
"""The failure of a run that does not fail."""
LAW = "Geometric"
"""The family on which condition numbers are compared: log-spaced singular values."""
