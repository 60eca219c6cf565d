"""Names that the study gives and its chapter reads."""

TUNED, HELD_OUT = "tuned", "held out"
"""Halves of the faults that were planted by a stranger to the laws."""
