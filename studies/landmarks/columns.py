"""Names that the study gives and its chapter reads."""

LANDMARKS, WORK = "landmarks", "work"
"""What is equal."""
KMEANS, ONE_STEP, UNIFORM, SEGMENTS = "k-means", "k-means, 1 step", "uniform", "segment means"
"""Selectors that the chapter holds against each other."""
ANSWER = (
    *("time", "time_q1", "time_q3", "uniform_error", "output_error", "matrix_error", "best_error"),
    *("trace_error", "best_trace_error"),
)
"""Measured where a rank fits the allowance, of the trace where the kernel has one."""
