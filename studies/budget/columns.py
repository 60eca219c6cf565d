"""Names that the study gives and its chapter reads."""

SUBJECT = "Nystromformer"
PUBLISHED, CONVERGED, SHIFTED = "as published", "converged", "ridge 0.01"
"""How a core is inverted."""


def soft(form: str) -> str:
    """The method that is Soft with this normalisation."""
    return f"Soft ({form})"
