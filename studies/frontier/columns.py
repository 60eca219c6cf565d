"""Names that the study gives and its chapter reads."""

UNIFORM, BEST = "uniform average", "best of all"
"""The methods of what is drawn beside the methods."""
ORACLE, EXACT = "oracle", "exact"
"""Families of what is no method, and of what approximates nothing."""
ANSWER = (
    *("share", "time", "time_q1", "time_q3", "memory"),
    *("output_error", "skill", "uniform_error"),
)
"""Measured where the method fits into the budget, costs not of the oracles."""
