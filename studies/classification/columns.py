"""Names that the study gives and its chapter reads."""

SOFT, SOFTMAX, CONTROL = "Soft", "Softmax", "Uniform"
LINFORMER, NYSTROMFORMER, PERFORMER = "Linformer", "Nystromformer", "Performer"
POOL, CONV = "pool", "conv"
"""How landmarks are sampled."""
