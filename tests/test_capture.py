"""Recording sees every attention call of a model and changes nothing."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from softlab.capture import record

SDPA, MHA = functional.scaled_dot_product_attention, functional.multi_head_attention_forward


def naive(call):
    """Attention of a recorded call from its parts, written out: what the model must have got."""
    group = call.q.shape[-3] // call.k.shape[-3] if call.enable_gqa else 1
    k, v = (x.repeat_interleave(group, -3) for x in (call.k, call.v))
    scores = call.scale * call.q @ k.mT
    if call.is_causal:
        scores = scores.masked_fill(~torch.ones_like(scores).tril().bool(), -torch.inf)
    if call.mask is not None and call.mask.dtype == torch.bool:
        scores = scores.masked_fill(~call.mask, -torch.inf)
    elif call.mask is not None:
        scores = scores + call.mask
    return scores.softmax(-1) @ v


class Plain(nn.Module):
    """Calls SDPA once with whatever arguments it is given."""

    def __init__(self, **arguments):
        super().__init__()
        self.arguments = arguments

    def forward(self, q, k, v):
        return functional.scaled_dot_product_attention(q, k, v, **self.arguments)


class Block(nn.Module):
    """A named attention inside another module."""

    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, *args, **kwargs):
        return self.attention(*args, **kwargs)


class Eager(nn.Module):
    def forward(self, x):
        return (x @ x.mT).softmax(-1) @ x


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(autouse=True)
def torch_stays_as_it_was():
    yield
    assert functional.scaled_dot_product_attention is SDPA
    assert functional.multi_head_attention_forward is MHA
    assert not torch.overrides._len_torch_function_stack()


@pytest.mark.parametrize(
    ("arguments", "scale"),
    [
        ({}, 0.5),
        ({"scale": 0.3}, 0.3),
        ({"is_causal": True}, 0.5),
        ({"attn_mask": draw(6, 7) > -0.5}, 0.5),
        ({"attn_mask": draw(2, 1, 6, 7)}, 0.5),
        ({"enable_gqa": True}, 0.5),
    ],
    ids=str,
)
def test_every_argument_is_recorded_as_it_was_used(arguments, scale):
    heads = 2 if "enable_gqa" in arguments else 4
    q, k, v = draw(2, 4, 6, 4), draw(2, heads, 7, 4, seed=1), draw(2, heads, 7, 3, seed=2)
    model = Block(Plain(**arguments))
    with record(model) as calls:
        out = model(q, k, v)
    (call,) = calls
    assert torch.equal(out, model(q, k, v))
    assert (call.order, call.module, call.scale) == (0, "attention", scale)
    assert torch.equal(call.q, q)
    assert torch.equal(call.k, k)
    assert torch.equal(call.v, v)
    torch.testing.assert_close(naive(call), out)


def test_dropout_is_recorded_and_draws_the_same_numbers():
    q = draw(1, 2, 6, 4)
    model = Plain(dropout_p=0.5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        out = model(q, q, q)
        torch.manual_seed(0)
        with record(model) as calls:
            assert torch.equal(out, model(q, q, q))
    assert calls[0].dropout_p == 0.5


def test_a_grouped_head_comes_with_the_key_head_that_serves_it():
    q, k, v = draw(1, 6, 5, 4), draw(1, 2, 7, 4, seed=1), draw(1, 2, 7, 4, seed=2)
    model = Plain(enable_gqa=True)
    with record(model) as calls:
        out = model(q, k, v)
    for head in range(6):
        case = calls[0].case(0, head)
        alone = functional.scaled_dot_product_attention(*(x[None] for x in case))
        torch.testing.assert_close(alone[0], out[0, head])
    with pytest.raises(ValueError, match="leading dimensions"):
        calls[0].case(0)
    with pytest.raises(ValueError, match="leading dimensions"):
        calls[0].case(0, 6)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("mask", ["none", "causal", "boolean", "float", "padding"])
def test_multihead_attention_is_seen_and_left_alone(need_weights, mask):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
    x = draw(3, 5, 8)
    upper = torch.ones(5, 5).triu(1).bool()
    arguments = {
        "none": {},
        "causal": {"attn_mask": upper, "is_causal": True},
        "boolean": {"attn_mask": upper},
        "float": {"attn_mask": draw(5, 5)},
        "padding": {"key_padding_mask": torch.arange(5) >= torch.tensor([[5], [3], [1]])},
    }[mask] | {"need_weights": need_weights}
    model = Block(attention)
    with record(model) as calls:
        out, weights = model(x, x, x, **arguments)
    plain_out, plain_weights = model(x, x, x, **arguments)
    assert torch.equal(out, plain_out)
    assert (weights is not None) == need_weights
    assert not need_weights or torch.equal(weights, plain_weights)
    (call,) = calls
    assert (call.module, tuple(call.q.shape)) == ("attention", (3, 2, 5, 4))
    mixed = attention.out_proj(naive(call).transpose(1, 2).flatten(-2))
    torch.testing.assert_close(mixed, out)


def test_multihead_dropout_and_gradients_are_unchanged():
    torch.manual_seed(0)
    model = nn.MultiheadAttention(8, 2, dropout=0.5)
    x = draw(5, 3, 8).float()
    found = []
    for recording in (False, True):
        model.zero_grad()
        torch.manual_seed(1)
        if recording:
            with record(model):
                out, _ = model(x, x, x)
        else:
            out, _ = model(x, x, x)
        out.sum().backward()
        found.append((out.detach(), model.in_proj_weight.grad.clone()))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_the_fused_encoder_path_gives_way_to_the_ordinary_one():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    x, padding = draw(2, 5, 8).float(), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    with torch.no_grad():
        fused = model(x, src_key_padding_mask=padding)
        with record(model) as calls:
            out = model(x, src_key_padding_mask=padding)
        assert torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            ordinary = model(x, src_key_padding_mask=padding)
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
    assert [call.module for call in calls] == ["layers.0.self_attn", "layers.1.self_attn"]
    assert torch.equal(out, ordinary)
    torch.testing.assert_close(out[~padding], fused[~padding])


def test_seeing_nothing_is_an_error():
    with pytest.raises(RuntimeError, match=r"saw 0 .* in Eager.*sdpa"), record(Eager()) as calls:
        Eager()(draw(3, 4))
    assert calls == []
    with pytest.raises(TypeError, match="got str"), record("a model"):
        pass


def test_keep_limits_what_is_stored_and_must_be_met():
    q = draw(1, 1, 4, 4)
    model = Plain()
    with record(model, keep=[1]) as calls:
        model(q, q, q)
        model(2 * q, q, q)
        model(3 * q, q, q)
    assert [call.order for call in calls] == [1]
    assert torch.equal(calls[0].q, 2 * q)
    with (
        pytest.raises(RuntimeError, match=r"saw 1 .*\[1\] were to be kept"),
        record(model, keep=[1]),
    ):
        model(q, q, q)


def test_what_is_recorded_is_a_copy():
    q = draw(1, 1, 4, 4)
    before, model = q.clone(), Plain()
    with record(model) as calls:
        model(q, q, q)
    q.zero_()
    assert torch.equal(calls[0].q, before)


@pytest.mark.parametrize("need_weights", [True, False])
def test_nested_recordings_each_hold_their_own(need_weights):
    torch.manual_seed(0)
    one, two = nn.MultiheadAttention(4, 1), Plain()
    x = draw(3, 4).float()
    with record(one) as outer:
        with record(two) as inner, record(one) as again:
            one(x, x, x, need_weights=need_weights)
            two(x, x, x)
        one(x, x, x, need_weights=need_weights)
    assert [len(calls) for calls in (outer, inner, again)] == [2, 1, 1]
    assert torch.equal(outer[0].q, again[0].q)


@pytest.mark.parametrize("need_weights", [True, False])
def test_an_exception_inside_passes_through_and_leaves_torch_clean(need_weights):
    model = nn.MultiheadAttention(4, 1)
    x = draw(3, 4).float()
    with pytest.raises(AssertionError), record(model):
        model(x, x[:, :3], x, need_weights=need_weights)
    with pytest.raises(ZeroDivisionError), record(model):
        raise ZeroDivisionError
    with record(model) as calls:  # and the next recording works
        model(x, x, x)
    assert len(calls) == 1


def test_the_checks_above_can_fail():
    """A recorder that forgets the mask, or takes keys for queries, is caught by ``naive``."""
    q, k = draw(1, 1, 5, 4), draw(1, 1, 5, 4, seed=1)
    model = Plain(is_causal=True)
    with record(model) as calls:
        out = model(q, k, k)
    (call,) = calls
    for fault in ({"is_causal": False}, {"q": call.k}, {"scale": 1 / math.sqrt(3)}):
        wrong = type(call)(**{**call.__dict__, **fault})
        assert not torch.allclose(naive(wrong), out)
