"""The kernel of a selector that looks at one."""

from __future__ import annotations

from torch import Tensor

from softlab.kernels import Gaussian


def gaussian(bandwidth: float | None, x: Tensor) -> Gaussian:
    """The Gaussian of this bandwidth, or of SOFT's d**0.25, for tokens x (..., d)."""
    return Gaussian(float(x.shape[-1]) ** 0.25 if bandwidth is None else bandwidth)
