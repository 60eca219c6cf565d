"""Square matrices with a prescribed spectrum, and cores of tokens."""

import torch

F64, F32 = torch.float64, torch.float32


def normal(*shape, seed=0, dtype=F64):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=F64).to(dtype)


def with_spectrum(*s, seed=0):
    """A matrix with these singular values, symmetric and with random eigenvectors."""
    q = torch.linalg.qr(normal(len(s), len(s), seed=seed)).Q
    a = q @ torch.tensor(s, dtype=F64).diag() @ q.T
    return (a + a.T) / 2


def gaussian_core(m, spread, *, d=32, seed=0):
    """K(z, z) of m normal points of the given spread, in bandwidths of SOFT: sigma = d^(1/4)."""
    z = spread * normal(m, d, seed=seed)
    return (-torch.cdist(z, z).square() / 2).exp()


def frobenius(a):
    return float(torch.linalg.matrix_norm(a))
