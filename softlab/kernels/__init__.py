"""Kernels of attention: as a matrix, as a sum, and as an average, the last two in linear memory."""

from softlab.kernels.functions import (
    Exponential,
    Gaussian,
    Kernel,
    Sum,
    kernel_cost,
    lifted_sum,
)

__all__ = ["Exponential", "Gaussian", "Kernel", "Sum", "kernel_cost", "lifted_sum"]
