"""Recording sees every attention call of a model and changes nothing."""

import math
import re
import warnings

import pytest
import sdpa
import torch
from matrices import normal as draw
from sdpa import SDPA, Plain
from torch import nn
from torch.nn import functional

from softlab.capture import record, substitute
from softlab.operators import Nystromformer, Softmax, TopK

torch_stays_as_it_was = sdpa.torch_stays_as_it_was


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


class Layer(nn.Module):
    """Projections, and an attention of some way of writing."""

    def __init__(self, attend):
        super().__init__()
        self.qkv, self.attend = nn.Linear(8, 24, dtype=torch.float64), attend

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return x + self.attend(q, k, v).transpose(1, 2).flatten(2)


def flexed(q, k, v):
    from torch.nn.attention.flex_attention import flex_attention

    with torch.no_grad():
        return flex_attention(q.float(), k.float(), v.float()).double()


def by_exp(q, k, v):
    weights = torch.exp(q @ k.mT / 2 - (q @ k.mT / 2).amax(-1, keepdim=True))
    return torch.einsum("bhnl,bhld->bhnd", weights / weights.sum(-1, keepdim=True), v)


def below(q, k, v):
    """What torch's function calls, called by hand."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[0]


class Weigh(nn.Module):
    """Attention whose softmax is a module of its own."""

    def __init__(self):
        super().__init__()
        self.softmax = nn.Softmax(-1)

    def forward(self, q, k, v):
        return self.softmax((q @ k.mT / 2).tanh()) @ v


HIDDEN = {
    "softmax of what is no product": (
        lambda q, k, v: (q - k).softmax(-1) * v,
        r"of their own.*'0' \(2 times\)",
    ),
    "softmax of a module": (Weigh(), r"of their own.*'0.attend.softmax' \(2 times\)"),
    "exponentials": (by_exp, r"Not seen: '0' takes exponentials, and a product of its own \(2 tim"),
    "in place": (
        lambda q, k, v: (w := (q @ k.mT / 2).exp_()) @ v / w.sum(-1, keepdim=True),
        r"Not seen: '0' takes exponentials",
    ),
    "a kernel": (below, r"Not seen: '0' calls _scaled_dot_product_flash_attention_for_cpu \(2 ti"),
    "flex attention": (flexed, r"Not seen: '0' calls flex_attention \(2 times\)"),
}


@pytest.mark.parametrize(("attend", "says"), HIDDEN.values(), ids=HIDDEN)
def test_what_was_not_seen_is_said_by_layer_with_how_often(attend, says):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # flex_attention's own
        model, x = nn.Sequential(Layer(attend), Layer(SDPA)), draw(2, 10, 8)
        own = model(x)
        with record(model) as calls:
            out = model(model(x) - model(x) + x)
    torch.testing.assert_close(out, own)
    assert {call.module for call in calls} == {"1"}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with record(model):
            model(model(x))
        ours = [str(one.message) for one in told if str(one.message).startswith("Sequential:")]
        with substitute(model, Softmax()) as report:
            model(model(x))
    assert len(ours) == 1
    assert re.search(says, ours[0])
    assert [*report.unseen.values()] == [2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refused = pytest.raises(RuntimeError, match=f"(?s)saw 0 attention calls.*{says}")
        with refused, record(model):
            model[0](model[0](x))


class Classifier(nn.Module):
    """Ends in probabilities, has rates and gates, and attention that torch computes."""

    def __init__(self):
        super().__init__()
        self.layer, self.out = Layer(SDPA), nn.Linear(8, 3, dtype=torch.float64)
        self.rate = nn.Parameter(torch.zeros(8, 8, dtype=torch.float64))

    def forward(self, x):
        y = self.layer(x) @ self.rate.exp()
        y = y * (-y).exp().sigmoid()
        noise = (0.1 * self.out(y)).exp()
        return self.out(y.mean(1)).softmax(-1), noise


def test_what_is_no_attention_is_not_suspected():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = Classifier()
        with record(model) as calls:
            model(draw(2, 10, 8))
    assert len(calls) == 1


def test_attention_called_by_its_operator_is_seen():
    aten = torch.ops.aten.scaled_dot_product_attention
    model, x = nn.Sequential(*map(Layer, (aten, aten.default, SDPA))), draw(2, 10, 8)
    with record(model, outputs=True) as calls:
        model(x)
    assert [call.module for call in calls] == ["0", "1", "2"]
    for call in calls:
        torch.testing.assert_close(naive(call), call.out)


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore::torch.jit.TracerWarning")
def test_a_scripted_layer_that_may_attend_is_said():
    scripted = torch.jit.trace(Layer(SDPA), draw(2, 10, 8))
    plain = torch.jit.trace(nn.Linear(8, 8, dtype=torch.float64), draw(2, 10, 8))
    model, x = nn.Sequential(Layer(SDPA), plain, scripted), draw(2, 10, 8)
    warned = pytest.warns(UserWarning, match="Not seen: '2' is scripted")
    with warned as told, record(model) as calls:
        model(x)
    assert len(told) == 1
    assert [call.module for call in calls] == ["0"]


TURN = (torch.arange(10)[:, None] * 0.1).cos()
MIXED = {
    "as they come": lambda q, k, v: (q, k, v),
    "positions in float32": lambda q, k, v: (q.float() * TURN, k.float() * TURN, v),
    "keys of a float16 cache": lambda q, k, v: (q.float(), k.half(), v.half()),
    "values in float32": lambda q, k, v: (q, k, v.float()),
    "all in float32": lambda q, k, v: (q.float(), k.float(), v.float()),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("how", MIXED.values(), ids=MIXED)
def test_under_autocast_a_call_is_what_torchs_attention_casts_it_to(how, dtype, masked):
    bias = torch.linspace(-1, 1, 100).view(10, 10) if masked else None
    model = Layer(lambda *x: SDPA(*how(*x), bias).float()).float()
    x = draw(2, 10, 8).float()
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        own = model(x)
        with record(model, outputs=True) as calls:
            assert torch.equal(model(x), own)
        for op in (Softmax(), Nystromformer(10), TopK(k=10), lambda q, k, v, **_: SDPA(q, k, v)):
            if masked and not isinstance(op, Softmax):
                continue
            with substitute(model, op):
                out = model(x)
            assert float((out - own).norm() / own.norm()) < 2**-7
    (call,) = calls
    assert {y.dtype for y in (call.q, call.k, call.v, call.out)} == {dtype}
    assert call.mask is None or call.mask.dtype == dtype
    torch.testing.assert_close(naive(call).float(), call.out.float(), atol=2**-6, rtol=2**-6)
    Nystromformer(3)(*call.case(0, 0))  # one head is of one dtype
    outside = draw(1, 1, 5, 4)
    with record(plain := Plain()) as calls, torch.autocast("cpu", dtype=dtype):
        plain(outside, outside, outside)
    assert calls[0].q.dtype == torch.float64  # as autocast, which leaves it


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


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_inside_a_transform_a_recording_is_refused():
    model, x = Block(Plain()), draw(3, 2, 5, 4)
    for transform in (torch.func.vmap(model), torch.func.grad(lambda *qkv: model(*qkv).sum())):
        refused = pytest.raises(
            RuntimeError, match=r"layer attention .*torch\.func .*outside of it"
        )
        with refused, record(model):
            transform(x, x, x)


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
