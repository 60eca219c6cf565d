"""Names that the study gives and its chapter reads."""

EVERYWHERE, GREEDY, THIRD = "all layers", "greedy", "third"
"""Parts of a model; the names of three end with the last word."""
EXACT = "exact"
"""The method that substitutes exact attention for itself."""
OF_SOME = ("matrix_error", "output_error", "lack_of_skill", "work", "change", "task_loss")
"""Measured where a layer is substituted: the first of operators that are a matrix, the last of
models with a task."""
