"""Linformer beside the packages linformer and linformer-pytorch."""

import pytest
import torch
from fidelity.peers import F64, assert_agree, distance, draw, merged, published, seeded, split

from softlab.operators import Linformer

HEADS, RANK, LENGTH = 3, 6, 20


class TestLinformer:
    @pytest.fixture
    def package(self):
        return published("linformer.linformer")

    def layer(self, package, **knobs):
        return seeded(package.LinformerSelfAttention(24, LENGTH, RANK, HEADS, **knobs))

    def ours(self, of, x, context=None, **masks):
        context = x if context is None else context
        keys = of.to_k(context)
        values = keys if of.share_kv else of.to_v(context)
        e = of.proj_k[: context.shape[1]].mT
        f = e if of.share_kv else of.proj_v[: context.shape[1]].mT
        q = split(of.to_q(x), HEADS)
        # One head of keys and values serves all.
        k, v = (
            split(y, y.shape[-1] // of.dim_head).expand(-1, HEADS, -1, -1) for y in (keys, values)
        )
        return of.to_out(merged(Linformer(RANK)(q, k, v, projections=(e, f), **masks)))

    @pytest.mark.parametrize("knobs", [{}, {"share_kv": True}, {"one_kv_head": True}], ids=str)
    @pytest.mark.parametrize("length", [LENGTH, 13])
    def test_equal_in_each_sharing_and_at_shorter_lengths(self, package, knobs, length):
        of, x = self.layer(package, **knobs), draw(2, length, 24)
        assert_agree(self.ours(of, x), of(x), [x, *of.parameters()])

    def test_equal_in_cross_attention(self, package):
        of, x, context = self.layer(package), draw(2, 9, 24), draw(2, LENGTH, 24, seed=3)
        assert_agree(self.ours(of, x, context), of(x, context=context), [x, context])

    def test_difference_it_takes_a_mask_and_ignores_it(self, package):
        of, x = self.layer(package), draw(2, LENGTH, 24)
        mask = torch.arange(LENGTH).expand(2, LENGTH) < 15
        assert torch.equal(of(x, mask=mask), of(x))
        mine = self.ours(of, x, key_mask=mask.unsqueeze(1))
        assert distance(of(x), mine) > 1e-2
        # The first tokens alone, with the first columns, are what deletion means.
        assert distance(of(x[:, :15]), mine[:, :15]) < 1e-12

    def test_difference_its_projections_start_at_a_third_of_our_variance(self, package):
        torch.manual_seed(0)
        of = package.LinformerSelfAttention(24, 4096, RANK, HEADS)
        e, _ = Linformer(RANK).projections(4096)
        assert float(of.proj_k.detach().square().mean()) * RANK == pytest.approx(1 / 3, rel=0.05)
        assert float(e.square().mean()) * RANK == pytest.approx(1, rel=0.05)


class TestLinformerPytorch:
    @pytest.fixture
    def package(self):
        return published("linformer_pytorch.linformer_pytorch")

    def head(self, package, causal=False):
        e, f = (torch.nn.Linear(LENGTH, RANK) for _ in "ef")
        mask = package.gen_causal_mask(LENGTH, RANK) if causal else None
        return seeded(package.LinearAttentionHead(8, 0.0, e, f, mask))

    def inputs(self):
        return [draw(2, LENGTH, 8, seed=s) for s in range(3)]

    def test_equal_without_the_biases_of_its_projections(self, package):
        of, leaves = self.head(package), self.inputs()
        with torch.no_grad():
            of.E.bias.zero_()
            of.F.bias.zero_()
        weights = of.E.weight, of.F.weight
        mine = Linformer(RANK)(*leaves, projections=weights)
        assert_agree(mine, of(*leaves), [*leaves, *weights])

    def test_difference_a_bias_is_one_more_token_of_ones(self, package):
        of, leaves = self.head(package), self.inputs()
        q, k, v = leaves
        one = torch.ones(2, 1, 8, dtype=F64)
        weights = tuple(torch.cat((p.weight, p.bias.unsqueeze(-1)), -1) for p in (of.E, of.F))
        mine = Linformer(RANK)(
            q, torch.cat((k, one), 1), torch.cat((v, one), 1), projections=weights
        )
        assert_agree(mine, of(q, k, v), [*leaves, *of.parameters()])
        bare = Linformer(RANK)(q, k, v, projections=(of.E.weight, of.F.weight))
        assert distance(bare, of(q, k, v)) > 1e-2

    def test_difference_its_causal_mask_lets_the_future_through(self, package):
        """It hides projected keys, each of which is a mixture of all tokens."""
        of, (q, k, v) = self.head(package, causal=True), self.inputs()
        later = torch.zeros(LENGTH, 1, dtype=F64)
        later[-1] = 1
        assert distance(of(q, k, v + later)[:, 0], of(q, k, v)[:, 0]) > 1e-2
