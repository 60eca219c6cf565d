"""Names that the study gives and its chapter reads."""

EXACT = "best rank"
"""The method that stands for the best matrix of the rank."""
SOFTMAX, TIED = "softmax", "tied Gaussian"
"""Two of the settings."""
OF_CORES = ("core_condition", "core_status")
"""Measured of methods that invert a core."""
