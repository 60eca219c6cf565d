"""Diagnostics of matrices too large to form: norms, traces, spectra and errors, with intervals.

A matrix is a ``LinearMap``: its products, streamed. Nothing here holds n x l numbers. Random
probes, starts and rows come from a ``seed``; every estimate says how sure it is.
"""

from softlab.estimators.densities import Density, effective_rank, eigenvalues, singular_values
from softlab.estimators.estimate import Estimate
from softlab.estimators.linear_map import LinearMap
from softlab.estimators.norms import SpectralNorm, frobenius_norm, spectral_norm
from softlab.estimators.sampled import ExactRows, matrix_error, output_error, probed_error
from softlab.estimators.traces import hutch_plus_plus, hutchinson, x_trace

__all__ = [
    "Density",
    "Estimate",
    "ExactRows",
    "LinearMap",
    "SpectralNorm",
    "effective_rank",
    "eigenvalues",
    "frobenius_norm",
    "hutch_plus_plus",
    "hutchinson",
    "matrix_error",
    "output_error",
    "probed_error",
    "singular_values",
    "spectral_norm",
    "x_trace",
]
