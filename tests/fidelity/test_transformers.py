"""Nystromformer, Local, BigBird and Softmax beside the layers of the package transformers."""

import numpy as np
import pytest
import torch
from fidelity.peers import F64, assert_agree, distance, draw, merged, published, seeded, split

from softlab.operators import BigBird, Local, Nystromformer, Softmax
from softlab.pinv import NystromformerCubic, PublishedNystromformer

published("transformers")

HEADS, WIDTH = 3, 8
SIZES = {
    "hidden_size": HEADS * WIDTH,
    "num_attention_heads": HEADS,
    "num_hidden_layers": 1,
    "intermediate_size": 8,
    "vocab_size": 16,
    "attention_probs_dropout_prob": 0.0,
    "hidden_dropout_prob": 0.0,
}


def projected(of, x):
    return [split(to(x), HEADS) for to in (of.query, of.key, of.value)]


class TestNystromformer:
    RANK, LENGTH = 4, 32
    AS_PUBLISHED = Nystromformer(RANK, NystromformerCubic(6, PublishedNystromformer()))

    def layer(self, landmarks=RANK, convolution=True):
        models = published("transformers.models.nystromformer")
        code = published("transformers.models.nystromformer.modeling_nystromformer")
        config = models.NystromformerConfig(
            **SIZES,
            segment_means_seq_len=self.LENGTH,
            num_landmarks=landmarks,
            conv_kernel_size=5,
        )
        of = seeded(code.NystromformerSelfAttention(config), scale=2.0)
        if not convolution:
            of.conv_kernel_size = None
            del of.conv
        return of

    def ours(self, of, x, op):
        q, k, v = projected(of, x)
        if of.conv_kernel_size is None:
            return merged(op(q, k, v))
        return merged(op(q, k, v, convolution=of.conv.weight[:, 0, :, 0]))

    @pytest.mark.parametrize("convolution", [True, False])
    def test_equal_with_the_start_that_the_batch_shares(self, convolution):
        of, x = self.layer(convolution=convolution), draw(2, self.LENGTH, HEADS * WIDTH)
        # Of softmax rows a bias of the keys is no part.
        leaves = [x, *(p for p in of.parameters() if p is not of.key.bias)]
        assert_agree(self.ours(of, x, self.AS_PUBLISHED), of(x)[0], leaves)
        assert distance(self.ours(of, x, Nystromformer(self.RANK)), of(x)[0]) > 1e-3

    def test_its_other_start_is_our_default(self):
        """Rows of the core sum to one, so that only its columns count."""
        of, x = self.layer(), draw(2, self.LENGTH, HEADS * WIDTH)
        of.init_option = "exact"
        assert_agree(self.ours(of, x, Nystromformer(self.RANK)), of(x)[0], [x])

    def test_difference_as_many_landmarks_as_tokens_is_softmax(self):
        of = self.layer(landmarks=self.LENGTH, convolution=False)
        x = draw(2, self.LENGTH, HEADS * WIDTH)
        assert_agree(self.ours(of, x, Softmax()), of(x)[0], [x])
        exact = self.ours(of, x, Softmax())
        assert distance(self.ours(of, x, Nystromformer(self.LENGTH)), exact) > 1e-2

    def test_difference_masked_tokens_are_part_of_its_landmarks(self):
        of, x = self.layer(convolution=False), draw(2, self.LENGTH, HEADS * WIDTH)
        kept = torch.arange(self.LENGTH) < 26
        bias = torch.zeros(1, 1, 1, self.LENGTH, dtype=F64).masked_fill(~kept, -1e9)
        other = torch.where(kept[:, None], x, x.flip(-1))
        assert distance(of(other, bias)[0][:, kept], of(x, bias)[0][:, kept]) > 1e-2

        def ours(x):
            q, k, v = projected(of, x)
            return self.AS_PUBLISHED(q, k, v, kept, query_mask=kept)[..., kept, :]

        assert distance(ours(other), ours(x)) < 1e-13


class TestLongformer:
    WINDOW, LENGTH = 3, 24
    TOLERANCE = 1e-6  # its softmax is in float32, whatever the inputs

    def layer(self):
        models = published("transformers.models.longformer")
        code = published("transformers.models.longformer.modeling_longformer")
        config = models.LongformerConfig(**SIZES, attention_window=[2 * self.WINDOW])
        of = seeded(code.LongformerSelfAttention(config, layer_id=0), scale=2.0)
        for name in ("query", "key", "value"):
            getattr(of, f"{name}_global").load_state_dict(getattr(of, name).state_dict())
        return of

    def theirs(self, of, x, everywhere=0, kept=LENGTH):
        mask = torch.zeros(x.shape[:2], dtype=F64)
        mask[:, :everywhere], mask[:, kept:] = 10000.0, -10000.0
        return of(x, mask, mask < 0, mask > 0, everywhere > 0)[0]

    def test_a_band_is_equal(self):
        of, x = self.layer(), draw(2, self.LENGTH, HEADS * WIDTH)
        mine = merged(Local(self.WINDOW)(*projected(of, x)))
        assert_agree(mine, self.theirs(of, x), [x], self.TOLERANCE)
        twice = merged(Local(2 * self.WINDOW)(*projected(of, x)))
        assert distance(twice, self.theirs(of, x)) > 1e-2

    @pytest.mark.parametrize("everywhere", [1, 2])
    def test_global_tokens_are_equal_where_their_projections_are_those_of_all(self, everywhere):
        of, x = self.layer(), draw(2, self.LENGTH, HEADS * WIDTH)
        theirs = self.theirs(of, x, everywhere)
        mine = merged(BigBird(self.WINDOW, everywhere, 0, block=8)(*projected(of, x)))
        assert_agree(mine, theirs, [x], self.TOLERANCE)
        # Sinks are seen by all, and see no more than their band.
        sinks = merged(Local(self.WINDOW, sinks=everywhere)(*projected(of, x)))
        later = slice(everywhere, None)
        assert_agree(sinks[:, later], theirs[:, later], [x], self.TOLERANCE)
        assert distance(sinks, theirs) > 1e-2

    def test_masked_padding_at_the_end_is_equal_where_the_queries_are_cut_as_well(self):
        # In float32: in float64 its rows without a key are NaN before they are set to 0.
        of, x = self.layer().float(), draw(2, self.LENGTH, HEADS * WIDTH).float()
        q, k, v = projected(of, x)
        kept = torch.arange(self.LENGTH) < 19
        mine = merged(Local(self.WINDOW)(q[..., kept, :], k, v, kept))
        assert_agree(mine, self.theirs(of, x, kept=19)[:, kept], [x], self.TOLERANCE)


class TestBigBird:
    """Another pattern than ours, of blocks; here is what it keeps and how often."""

    BLOCK, RANDOM, LENGTH = 2, 2, 24

    @property
    def code(self):
        return published("transformers.models.big_bird.modeling_big_bird")

    def config(self):
        return published("transformers.models.big_bird").BigBirdConfig(
            **SIZES, block_size=self.BLOCK, num_random_blocks=self.RANDOM, sep_token_id=3
        )

    def layer(self):
        return seeded(self.code.BigBirdBlockSparseAttention(self.config(), seed=0), scale=2.0)

    def theirs(self, of, x):
        """Its output, and the weights that it says it applied."""
        kept = torch.ones(x.shape[:2], dtype=F64)
        masks = self.code.BigBirdModel.create_masks_for_block_sparse_attn(kept, self.BLOCK)
        blocked, band, rows, keys = masks
        return of(x, band, rows, keys, blocked, blocked)

    def counted(self, of, x, times):
        """Softmax attention where a key counts so often."""
        q, k, v = projected(of, x)
        scores = q @ k.mT / WIDTH**0.5 + times.to(F64).log()
        return merged(scores.softmax(-1) @ v)

    def test_difference_out_of_training_its_random_blocks_are_all_the_first(self):
        """So there are none, and the first block counts once more for each."""
        of, x = self.layer().eval(), draw(2, self.LENGTH, HEADS * WIDTH)
        block = torch.arange(self.LENGTH) // self.BLOCK
        last = int(block[-1])
        ends = (block == 0) | (block == last)
        once = ((block[:, None] - block).abs() <= 1) | ends | ends[:, None]
        times = once.long() + self.RANDOM * ((block == 0) & ~ends[:, None])
        theirs = self.theirs(of, x)[0]
        assert_agree(self.counted(of, x, times), theirs, [x])
        assert distance(self.counted(of, x, once), theirs) > 1e-2

    def test_in_training_it_is_the_target_restricted_as_ours_is(self):
        of, x = self.layer().train(), draw(2, self.LENGTH, HEADS * WIDTH)
        out, weights = self.theirs(of, x)
        kept = weights.detach() > 0
        per_row = kept.sum(-1)[..., 2 * self.BLOCK : -2 * self.BLOCK]
        assert bool((per_row == self.BLOCK * (5 + self.RANDOM)).all())
        assert_agree(self.counted(of, x, kept), out, [x])

    def test_difference_it_seeds_the_generator_that_all_share(self):
        of, x = self.layer().train(), draw(2, self.LENGTH, HEADS * WIDTH)
        before = np.random.get_state()
        try:
            after = []
            for seed in (1, 2):
                np.random.seed(seed)
                self.theirs(of, x)
                after.append(np.random.random())
        finally:
            np.random.set_state(before)
        assert after[0] == after[1]

    def test_difference_after_a_short_sequence_it_is_full_attention_for_good(self):
        model = self.code.BigBirdModel(self.config(), add_pooling_layer=False).eval()
        long = torch.randint(4, 16, (1, 40), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            sparse = model(long).last_hidden_state
            model(long[:, : self.BLOCK * (5 + 2 * self.RANDOM)])
            full = model(long).last_hidden_state
        assert model.attention_type == "original_full"
        assert distance(sparse, full) > 1e-3
