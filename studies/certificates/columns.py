"""Names that the study gives and its chapter reads."""

PLAIN = "as the models have it"
"""The setting of untied heads and softmax attention."""
TIED = "tied Gaussian"
"""The setting of ``Soft``: keys are queries, at several bandwidths."""
EXACT_COST = ("TopK", "Quantized int8", "Quantized bfloat16")
"""Methods whose call costs what the exact answer does, at every share."""
