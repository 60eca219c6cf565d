"""Names that the study gives and its chapter reads."""

PLAIN, EXACT = "Soft", "Softmax"
