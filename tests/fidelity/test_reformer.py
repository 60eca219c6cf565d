"""Reformer beside the packages reformer-pytorch and transformers, whose queries are their keys."""

import pytest
import torch
from fidelity.peers import F64, assert_agree, distance, draw, merged, published, seeded, split
from torch.nn.functional import normalize

from softlab.operators import Reformer

LENGTH, CHUNK, BUCKETS, WIDTH = 32, 4, 8, 8


def within(hashes, *, around=False, across=False):
    """Whether pairs of tokens (..., n, n) meet in one round, from hashes (..., n)."""
    n = hashes.shape[-1]
    place = hashes.argsort(dim=-1, stable=True).argsort(-1)
    apart = place.unsqueeze(-1) // CHUNK - place.unsqueeze(-2) // CHUNK
    if around:
        apart = apart % (n // CHUNK)
    near = (apart >= 0) & (apart <= 1)
    return near if across else near & (hashes.unsqueeze(-1) == hashes.unsqueeze(-2))


def attended(q, k, v, times):
    """Softmax attention where a key counts so often, and a token itself only if it is alone."""
    itself = torch.eye(q.shape[-2], dtype=torch.bool)
    others = times.to(F64).masked_fill(itself, 0)
    alone = (others.sum(-1, keepdim=True) == 0) & itself
    scores = q @ k.mT / WIDTH**0.5 + torch.where(alone, 1, others).log()
    return scores.softmax(-1) @ v


def without_self(op, q, k, v):
    """Our operator where a token does not attend to itself unless it is alone."""
    n = q.shape[-2]
    weights = op(q, k, torch.eye(n, dtype=F64).expand(*q.shape[:-2], n, n))
    others = weights * (1 - torch.eye(n, dtype=F64))
    found = others.detach().sum(-1, keepdim=True) > 0
    weights = torch.where(found, others, weights)
    return weights / weights.sum(-1, keepdim=True) @ v


class TestReformerPytorch:
    def layer(self, op, *, across=False, twice=False):
        """Its attention with our hashes; by default it is across buckets and counts twice."""
        package = published("reformer_pytorch.reformer_pytorch")

        class Hashed(package.LSHAttention):
            def hash_vectors(self, n_buckets, vecs, **_):
                assert n_buckets == op.buckets
                apart = op.buckets * torch.arange(op.rounds)[:, None, None]
                return (op.hashes(vecs) + apart).transpose(0, 1).flatten(1)

        return Hashed(
            bucket_size=CHUNK,
            n_hashes=op.rounds,
            attend_across_buckets=across,
            allow_duplicate_attention=twice,
        )

    def inputs(self):
        return draw(2, LENGTH, WIDTH), draw(2, LENGTH, WIDTH, seed=1)

    @pytest.mark.parametrize("rounds", [1, 2, 4])
    def test_equal_with_keys_of_length_one_and_no_token_its_own_key(self, rounds):
        op = Reformer(BUCKETS, CHUNK, rounds)
        qk, v = leaves = self.inputs()
        theirs = self.layer(op)(qk, v)[0]
        # It divides by how often a pair was found, and 1e-9.
        mine = without_self(op, qk, normalize(qk, dim=-1), v)
        assert_agree(mine, theirs, leaves, tolerance=1e-7)
        assert distance(op(qk, normalize(qk, dim=-1), v), theirs) > 1e-2
        assert distance(without_self(op, qk, qk, v), theirs) > 1e-2

    def test_difference_by_default_it_meets_all_keys_of_two_parts(self):
        """And the last part, as the one before the first."""
        op = Reformer(BUCKETS, CHUNK, rounds=1)
        qk, v = leaves = self.inputs()
        theirs = self.layer(op, across=True)(qk, v)[0]
        times = within(op.hashes(qk)[0], across=True, around=True)
        assert_agree(attended(qk, normalize(qk, dim=-1), v, times), theirs, leaves)
        assert distance(self.layer(op)(qk, v)[0], theirs) > 1e-2

    def test_difference_by_default_a_key_counts_in_every_round_that_finds_it(self):
        op = Reformer(BUCKETS, CHUNK, rounds=4)
        qk, v = leaves = self.inputs()
        theirs = self.layer(op, twice=True)(qk, v)[0]
        times = within(op.hashes(qk)).sum(0)
        assert_agree(attended(qk, normalize(qk, dim=-1), v, times), theirs, leaves)
        assert distance(self.layer(op)(qk, v)[0], theirs) > 1e-3


class TestTransformers:
    def layer(self):
        models = published("transformers.models.reformer")
        code = published("transformers.models.reformer.modeling_reformer")
        config = models.ReformerConfig(
            hidden_size=3 * WIDTH,
            num_attention_heads=3,
            attention_head_size=WIDTH,
            attn_layers=["lsh"],
            lsh_attn_chunk_length=CHUNK,
            num_buckets=BUCKETS,
            num_hashes=1,
        )
        return seeded(code.LSHSelfAttention(config, layer_idx=0).eval(), scale=2.0)

    def shared(self, of, x):
        """Queries, keys and values: keys of a length that our 1/sqrt(d) makes one."""
        q, v = split(of.query_key(x), 3), split(of.value(x), 3)
        return q, q / (q.square().mean(-1, keepdim=True) + 1e-6).sqrt(), v

    def test_a_short_sequence_is_softmax_attention_to_all_others(self):
        of, x = self.layer(), draw(2, CHUNK, 3 * WIDTH)
        mine = without_self(Reformer(1, CHUNK), *self.shared(of, x))
        assert_agree(merged(mine), of(x).hidden_states, [x])

    def test_difference_it_meets_all_keys_of_two_parts_and_the_last_before_the_first(self):
        of, x = self.layer(), draw(2, LENGTH, 3 * WIDTH)
        with torch.random.fork_rng():
            out = of(x)
        hashes = out.buckets[..., 0, :]
        times = within(hashes, across=True, around=True)
        q, k, v = self.shared(of, x)
        assert_agree(merged(attended(q, k, v, times)), out.hidden_states, [x])
        restricted = attended(q, k, v, within(hashes))
        assert distance(merged(restricted), out.hidden_states) > 1e-2

    def test_difference_its_scores_are_sqrt_d_times_those_of_reformer_pytorch(self):
        """Keys of length one in both, and only that package divides by sqrt(d) besides."""
        of, x = self.layer(), draw(2, CHUNK, 3 * WIDTH)
        package = published("reformer_pytorch.reformer_pytorch")
        q, _, v = (t.flatten(0, 1) for t in self.shared(of, x))
        theirs = merged(package.FullQKAttention()(q, v)[0].unflatten(0, (2, 3)))
        assert distance(theirs, of(x).hidden_states) > 1e-2
        longer = merged(package.FullQKAttention()(q * WIDTH**0.5, v)[0].unflatten(0, (2, 3)))
        assert distance(longer, of(x).hidden_states) < 1e-5  # its 1e-6 beside |k|^2 / d
