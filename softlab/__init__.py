"""softlab: the laboratory for attention approximation."""

from softlab.core import Cost, Dims, Operator, Traits, as_matrix

__all__ = ["Cost", "Dims", "Operator", "Traits", "as_matrix"]
__version__ = "0.1.0"
