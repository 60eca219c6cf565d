"""Names that the study gives and its chapter reads."""

PLAIN, NORMALIZED = "Soft, none", "Soft, symmetric"
GROWING = "{}, m grows"
"""The same, with more landmarks in larger images."""
CONTROL, WHOLE = "Softmax", "Softmax, whole images"
"""Controls; the second never sees a part of an image alone."""
