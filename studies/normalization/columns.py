"""Names that the study gives and its chapter reads."""

EXACT, RELEASED, IDENTICAL = "exact", "published", "identical tokens"
"""A family, a normalisation, an input."""
