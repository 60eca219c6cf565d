"""Nystromformer beside the package nystrom-attention."""

import dataclasses

import pytest
import torch
from fidelity.peers import assert_agree, distance, draw, merged, published, seeded, split
from torch.nn.functional import pad

from softlab.core import value
from softlab.landmarks import SegmentMeans
from softlab.operators import Nystromformer
from softlab.pinv import NystromformerCubic, PublishedNystromformer

package = published("nystrom_attention.nystrom_attention")

HEADS, RANK, WIDTH = 3, 4, 8
AS_PUBLISHED = Nystromformer(RANK, NystromformerCubic(6, PublishedNystromformer()))


def layer(**knobs):
    knobs = {"num_landmarks": RANK, "residual_conv_kernel": 5, **knobs}
    return seeded(package.NystromAttention(24, WIDTH, HEADS, **knobs), scale=2.0)


def ours(of, x, op=AS_PUBLISHED, **masks):
    q, k, v = (split(part, HEADS) for part in of.to_qkv(x).chunk(3, -1))
    convolution = of.res_conv.weight[:, 0, :, 0] if of.residual else None
    return of.to_out(merged(op(q, k, v, convolution=convolution, **masks)))


@value
class Consecutive(SegmentMeans):
    """Means of the tokens kept among each ``length`` consecutive ones, counted from the end."""

    length: int

    def __call__(self, x, m, key_mask=None):
        kept = x.new_ones(x.shape[:-1]) if key_mask is None else key_mask.to(x).expand(x.shape[:-1])
        front = m * self.length - x.shape[-2]
        x, kept = pad(x, (0, 0, front, 0)), pad(kept, (front, 0))
        total = (x * kept.unsqueeze(-1)).unflatten(-2, (m, -1)).sum(-2)
        return total / kept.unflatten(-1, (m, -1)).sum(-1, keepdim=True)


@pytest.mark.parametrize("residual", [True, False])
def test_equal_with_the_start_that_the_batch_shares(residual):
    of, x = layer(residual=residual), draw(2, 32, 24)
    assert_agree(ours(of, x), of(x), [x, *of.parameters()])


@pytest.mark.parametrize("iterations", [1, 12])
def test_equal_at_other_numbers_of_steps(iterations):
    of, x = layer(pinv_iterations=iterations), draw(2, 32, 24)
    op = dataclasses.replace(
        AS_PUBLISHED, pinv=NystromformerCubic(iterations, PublishedNystromformer())
    )
    assert_agree(ours(of, x, op), of(x), [x, *of.parameters()])


def test_one_matrix_alone_is_equal_by_default():
    of = seeded(package.NystromAttention(24, WIDTH, 1, RANK, residual=False), scale=2.0)
    x = draw(1, 32, 24)
    q, k, v = (split(part, 1) for part in of.to_qkv(x).chunk(3, -1))
    assert_agree(of.to_out(merged(Nystromformer(RANK)(q, k, v))), of(x), [x, *of.parameters()])


def test_difference_a_neighbour_in_the_batch_changes_its_output_and_not_ours():
    of, x = layer(residual=False), draw(2, 32, 24).detach()
    other = torch.stack((x[0], 4 * x[1]))
    assert distance(of(other)[0], of(x)[0]) > 1e-3
    mine = Nystromformer(RANK)
    assert distance(ours(of, other, mine)[0], ours(of, x, mine)[0]) < 1e-14
    # Converged, the start is forgotten.
    of = layer(residual=False, pinv_iterations=60)
    assert distance(of(other)[0], of(x)[0]) < 1e-6


def test_difference_without_a_mask_its_padding_counts_as_tokens():
    of, x = layer(residual=False), draw(2, 30, 24)
    assert_agree(ours(of, pad(x, (0, 0, 2, 0)))[:, 2:], of(x), [x, *of.parameters()])
    assert distance(ours(of, x), of(x)) > 1e-2


def test_difference_with_a_mask_segments_are_of_equal_length_but_the_first():
    of, x = layer(eps=0.0), draw(2, 30, 24)
    everything = torch.ones(2, 30, dtype=torch.bool)
    op = dataclasses.replace(AS_PUBLISHED, landmarks=Consecutive(8))
    assert_agree(ours(of, x, op), of(x, mask=everything), [x, *of.parameters()])
    assert distance(ours(of, x), of(x, mask=everything)) > 1e-2


def test_difference_masked_tokens_leave_gaps_in_the_segments():
    of, x = layer(), draw(2, 32, 24)
    mask = torch.arange(32).expand(2, 32) < torch.tensor([[26], [29]])
    out = of(x, mask=mask)[mask]
    each = mask.unsqueeze(1)
    op = dataclasses.replace(AS_PUBLISHED, landmarks=Consecutive(8))
    mine = ours(of, x, op, key_mask=each, query_mask=each)[mask]
    # Its eps of 1e-8 stands beside two to eight tokens.
    assert 0 < distance(mine, out) < 1e-7
    assert_agree(mine, layer(eps=0.0)(x, mask=mask)[mask], [x], tolerance=1e-11)
    assert distance(ours(of, x, key_mask=each, query_mask=each)[mask], out) > 1e-2


def test_difference_a_segment_that_is_masked_whole_spoils_its_unconverged_core():
    """Deletion of the segment is rank 3 on what is left, which its core is once it converged."""
    x, mask = draw(1, 32, 24), (torch.arange(32) < 24).unsqueeze(0)
    for steps, equal in ((6, False), (60, True)):
        of = layer(residual=False, pinv_iterations=steps)
        op = Nystromformer(RANK - 1, NystromformerCubic(steps, PublishedNystromformer()))
        apart = distance(ours(of, x[:, :24], op), of(x, mask=mask)[:, :24])
        assert apart < 1e-6 if equal else apart > 1e-3, (steps, apart)
