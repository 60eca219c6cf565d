"""MRA beside the attention of the package transformers, whose kernels run on CUDA alone."""

import pytest
import torch
from fidelity.peers import F64, assert_agree, distance, draw, published

from softlab.operators import MRA

code = published("transformers.models.mra.modeling_mra")

BLOCK, BLOCKS, WIDTH = 32, 4, 8
MODES = {"full": MRA(BLOCK, 1), "sparse": MRA(BLOCK, 1, sparse=True)}


class InTorch:
    """What its kernels compute, of the blocks of pairs ``at``, keys before queries."""

    def mm_to_sparse(self, x, y, at):
        batch, i, j = self.places(at, y.shape[1])
        return y[batch, j].mT @ x[batch, i]

    def sparse_dense_mm(self, weights, at, y, blocks):
        batch, i, j = self.places(at, y.shape[1])
        out = y.new_zeros(len(y), blocks, *y.shape[2:])
        return out.index_put((batch, i), y[batch, j] @ weights, accumulate=True)

    def index_max(self, values, at, blocks, keys):
        batch, i, _ = self.places(at, keys)
        top = values.new_full((len(values), blocks, BLOCK), -torch.inf)
        index = i.unsqueeze(-1).expand(-1, -1, BLOCK)
        top = top.scatter_reduce(1, index, values.mT, "amax")
        return top.flatten(1), top[batch, i].mT

    def places(self, at, keys):
        at = at.long()
        return torch.arange(len(at))[:, None].expand_as(at), at // keys, at % keys


def theirs(q, k, v, mode, blocks=BLOCKS):
    ones = torch.ones(q.shape[0] * q.shape[1], q.shape[2], dtype=F64)
    return code.mra2_attention(q, k, v, ones, blocks, approx_mode=mode)


def inputs():
    """Queries and keys near a direction of their block: the heaviest blocks are the diagonal."""
    q, k, v = (draw(2, 3, BLOCK * BLOCKS, WIDTH, seed=s) for s in range(3))
    towards = 3 * torch.eye(WIDTH, dtype=F64)[:BLOCKS].repeat_interleave(BLOCK, 0)
    return (q, k, v), (q + towards, k + towards, v)


def test_difference_without_its_kernels_it_returns_zeros():
    _, (q, k, v) = inputs()
    assert code.mra_cuda_kernel is None
    assert not theirs(q, k, v, "full").any()


@pytest.mark.parametrize("mode", MODES)
def test_equal_where_each_row_refines_one_block(mode, monkeypatch):
    monkeypatch.setattr(code, "mra_cuda_kernel", InTorch())
    leaves, (q, k, v) = inputs()
    # It adds 1e-6 to the normaliser, and to the number of tokens in a block.
    assert_agree(MODES[mode](q, k, v), theirs(q, k, v, mode), leaves, tolerance=1e-5)
    other = MODES["sparse" if mode == "full" else "full"]
    assert distance(other(q, k, v), theirs(q, k, v, mode)) > 1e-2


def test_difference_the_rows_share_its_blocks_unevenly(monkeypatch):
    monkeypatch.setattr(code, "mra_cuda_kernel", InTorch())
    _, (q, k, v) = inputs()
    mine = MRA(BLOCK, 2)(q, k, v)
    assert distance(mine, theirs(q, k, v, "full", 2 * BLOCKS)) > 1e-3
    everything = MRA(BLOCK, BLOCKS)
    assert distance(everything(q, k, v), theirs(q, k, v, "full", BLOCKS**2)) < 1e-5
