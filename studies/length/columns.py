"""Names that the study gives and its chapter reads."""

UNIFORM, SMOOTH = "Uniform", "smooth"
"""A method and an input."""
OF_SOME = ("exact_error", "seconds", "seconds_q1", "seconds_q3", "peak_bytes")
"""Measured where the exact output is affordable; on smooth input."""
