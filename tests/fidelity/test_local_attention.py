"""Local beside the package local-attention."""

import pytest
import torch
from fidelity.peers import assert_agree, distance, draw, published
from torch.nn.functional import pad

from softlab.operators import Local

package = published("local_attention")

WINDOW = 4
OP = Local(WINDOW)


def layer(**knobs):
    """A window on either side, without its rotary positions."""
    return package.LocalAttention(WINDOW, look_forward=1, exact_windowsize=True, **knobs)


def inputs(n):
    return [draw(2, 3, n, 8, seed=s) for s in range(3)]


def test_equal_with_exact_windows():
    leaves = inputs(20)
    assert_agree(OP(*leaves), layer()(*leaves), leaves)


def test_equal_with_more_windows_to_look_at():
    leaves = inputs(20)
    of = package.LocalAttention(WINDOW, look_backward=2, look_forward=2, exact_windowsize=True)
    assert_agree(Local(2 * WINDOW)(*leaves), of(*leaves), leaves)


def test_causal_is_equal_with_exact_windows():
    leaves = inputs(20)
    of = package.LocalAttention(WINDOW, causal=True, exact_windowsize=True)
    assert_agree(Local(WINDOW, causal=True)(*leaves), of(*leaves), leaves)


def test_difference_by_default_a_window_is_of_whole_blocks():
    """What block diagonal and its neighbours keep: more keys than a band has."""
    leaves = inputs(20)
    of = package.LocalAttention(WINDOW, look_forward=1)
    assert distance(OP(*leaves), of(*leaves)) > 1e-2
    block = torch.arange(20) // WINDOW
    near = (block[:, None] - block).abs() <= 1
    q, k, v = leaves
    scores = (q @ k.mT / 8**0.5).masked_fill(~near, -torch.inf)
    assert_agree(scores.softmax(-1) @ v, of(*leaves), leaves)


@pytest.mark.parametrize("n", [18, 19])
def test_difference_its_automatic_padding_counts_as_tokens(n):
    leaves = inputs(n)
    of = layer(autopad=True)
    padded = [pad(x, (0, 0, 0, 20 - n)) for x in leaves]
    assert_agree(OP(*padded)[..., :n, :], of(*leaves), leaves)
    assert distance(OP(*leaves), of(*leaves)) > 1e-2
    everything = torch.ones(2, n, dtype=torch.bool)
    assert_agree(OP(*leaves), of(*leaves, mask=everything), leaves)


def test_masked_padding_at_the_end_is_equal_where_the_queries_are_cut_as_well():
    leaves = inputs(20)
    mask = torch.arange(20).expand(2, 20) < 14
    q, k, v = leaves
    theirs = layer()(q, k, v, mask=mask)
    mine = OP(q[..., :14, :], k, v, mask.unsqueeze(1))
    assert_agree(mine, theirs[..., :14, :], leaves)


def test_difference_the_keys_around_a_masked_one_do_not_close_up():
    q, k, v = inputs(20)
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[:, 6:9] = False
    kept = mask[0]
    theirs = layer()(q, k, v, mask=mask)[..., kept, :]
    assert distance(OP(q[..., kept, :], k, v, mask.unsqueeze(1)), theirs) > 1e-2
    place = torch.arange(20)[kept]
    near = (place[:, None] - place).abs() <= WINDOW
    scores = q[..., kept, :] @ k[..., kept, :].mT / 8**0.5
    assert_agree(scores.masked_fill(~near, -torch.inf).softmax(-1) @ v[..., kept, :], theirs)
