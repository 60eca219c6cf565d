"""Published layers beside operators of softlab: their import, their heads, and how they agree."""

import warnings

import pytest
import torch

F64 = torch.float64


def published(name):
    """The module ``name`` of a package of the extra ``fidelity``, or this test file is skipped.

    The warnings of its import are its own; those of its calls are not silenced.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


def draw(*shape, seed=0):
    """A leaf of normal entries, float64."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=F64).requires_grad_()


def seeded(layer, scale=1.0):
    """The layer in float64 with weights drawn here: those of matrices as wide as they are long."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in layer.double().parameters():
            spread = scale * p.shape[-1] ** -0.5
            p.copy_(spread * torch.randn(p.shape, generator=g, dtype=F64))
    return layer


def split(x, heads):
    """(batch, n, heads * d) as (batch, heads, n, d)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merged(x):
    """(batch, heads, n, e) as (batch, n, heads * e)."""
    return x.transpose(1, 2).flatten(2)


def gradients(out, leaves):
    """Of a fixed weighting of the output, 0 where a leaf takes no part."""
    weighting = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=F64)
    return torch.autograd.grad(
        (out * weighting).sum(), leaves, retain_graph=True, materialize_grads=True
    )


def distance(x, y):
    """|x - y| / |y|."""
    x, y = x.detach(), y.detach()
    return float((x - y).norm() / y.norm())


def assert_agree(ours, theirs, leaves=(), tolerance=1e-11):
    """Outputs, and gradients by every leaf, agree; the rows differ, so that a mean would not do."""
    leaves = list(leaves)
    assert distance(theirs.mean(-2, keepdim=True).expand_as(theirs), theirs) > 0.05
    assert distance(ours, theirs) < tolerance
    if leaves:
        wanted = gradients(theirs, leaves)
        assert all(bool(x.norm() > 0) for x in wanted)
        for mine, other in zip(gradients(ours, leaves), wanted, strict=True):
            assert distance(mine, other) < 10 * tolerance
