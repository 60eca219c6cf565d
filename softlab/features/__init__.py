"""Weight matrices of random features: rows w with E[w w^T] = I, as frozen values.

A kernel such as exp(<x, y>) or exp(-|x - y|^2 / 2) is the mean of a product phi_w(x) phi_w(y) over
w from N(0, I_d). A matrix W of m such rows turns that mean into one over m terms, and the choice of
W decides by how much the sum misses the mean.

Weights are called as ``weights(m, d)`` and return W, (m, d), float64, on the CPU: a function of
``seed``, m and d alone, so the same draw serves every matrix of a batch, every dtype and device.
"""

from softlab.features.iid import IID
from softlab.features.orthogonal import Orthogonal
from softlab.features.quasi_monte_carlo import QuasiMonteCarlo
from softlab.features.sorf import SORF
from softlab.features.weights import Weights

__all__ = ["IID", "SORF", "Orthogonal", "QuasiMonteCarlo", "Weights"]
