"""Names that the study gives and its chapter reads."""

NEWTON, CHEBYSHEV, MINIMAX = "Newton", "Chebyshev", "Minimax"
"""Methods; the degree follows in the names of the last two."""
DEFAULT = "default"
"""The scaling that a method has unless another is given."""
DUPLICATES = "near-duplicates"
"""The core that no operator made."""
PUBLISHED = (
    *("published_steps", "published_residual", "published_error", "freedom", "freedom_share"),
    "cutoff",
)
"""Measured of methods with a published number of steps."""
GROWN = ("onset", "observed_growth", "declared_growth")
"""Measured of methods whose error grows after its floor."""
