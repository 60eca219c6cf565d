"""Attention written out as products and a softmax: known for what it is, or named as not seen."""

import math
import warnings

import pytest
import torch
from matrices import normal as draw
from torch import nn
from torch.nn import functional

from softlab.capture import SubstitutionError, flow, record, substitute
from softlab.capture.effect import effect, without_attention
from softlab.operators import Local, Nystromformer, Performer, Softmax, TopK, Uniform

F64 = torch.float64
EARLIER = torch.ones(9, 9, dtype=torch.bool).tril()
BIAS = torch.randn(4, 9, 9, generator=torch.Generator().manual_seed(3), dtype=F64)
WARM = torch.rand(4, 1, 1, generator=torch.Generator().manual_seed(4), dtype=F64) + 0.5


class Layer(nn.Module):
    def __init__(self, attend):
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.attend = nn.Linear(16, 48, dtype=F64), attend

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
        return x + self.attend(q, k, v).transpose(1, 2).flatten(2)


def masked(q, k, v):
    return torch.softmax((q @ k.mT * 0.5).masked_fill(~EARLIER, -1e9), dim=-1) @ v


def replaced(q, k, v):
    scores = torch.where(EARLIER, torch.matmul(q, k.transpose(-1, -2)), torch.finfo(q.dtype).min)
    return functional.softmax(input=scores / math.sqrt(4), dim=3).matmul(v)


def infinite(q, k, v):
    scores = q @ k.mT / 2
    scores.masked_fill_(~EARLIER, -math.inf)
    return scores.softmax(-1) @ v


def einsum(q, k, v):
    weights = torch.einsum("bhid,bhjd->bhij", q, k) * 0.5
    return torch.einsum("bhij,bhjd->bhid", weights.softmax(-1), v)


def other_axes(q, k, v):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    weights = torch.einsum("b i h d, b j h d -> b h i j", q, k).mul_(0.5)
    return torch.einsum("b h i j, b j h d -> b i h d", weights.softmax(-1), v).transpose(1, 2)


def dots(q, k, v):
    weights = torch.einsum("...id,...jd->...ij", q, k) * 0.5
    return torch.einsum("...ij,...jd->...id", [weights.softmax(-1), v])


def batched(q, k, v):
    b, h = q.shape[:2]
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    scores = (torch.bmm(q, k.mT) / 2).view(b, h, 9, 9)
    scores += torch.zeros(b, 1, 1, 9, dtype=F64)
    weights = functional.dropout(nn.Softmax(-1)(scores), 0.1, training=False)
    return torch.bmm(weights.view(b * h, 9, 9), v).view(b, h, 9, -1)


def added(q, k, v):
    b, h = q.shape[:2]
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    scores = torch.baddbmm(torch.empty(b * h, 9, 9, dtype=F64), q, k.mT, beta=0, alpha=0.5)
    return torch.bmm(scores.softmax(-1), v).view(b, h, 9, -1)


def stable(q, k, v):
    scores = q @ k.mT / 2
    scores = scores - scores.amax(-1, keepdim=True)
    return torch.ops.aten._softmax(scores, -1, False) @ v


def matrix_by_matrix(q, k, v):
    heads = zip(*(x.flatten(0, 1) for x in (q, k, v)), strict=True)
    parts = [functional.softmax(a @ b.T / 2, -1) @ c for a, b, c in heads]
    return torch.stack(parts).view_as(q)


KNOWN = {
    "plain": lambda q, k, v: (q @ k.mT / 2).softmax(-1) @ v,
    "queries scaled": lambda q, k, v: ((0.5 * q) @ k.mT).softmax(-1) @ v,
    "biased": lambda q, k, v: (q @ k.mT / 2 + BIAS).softmax(-1) @ v,
    "a temperature a head": lambda q, k, v: (q @ k.mT * WARM).softmax(-1) @ v,
    **{x.__name__: x for x in (masked, replaced, infinite, einsum, other_axes, dots)},
    **{x.__name__: x for x in (batched, added, stable, matrix_by_matrix)},
}


def capped(q, k, v):
    return ((q @ k.mT / 6).tanh() * 3).softmax(-1) @ v


def clamped(q, k, v):
    scores = q @ k.mT / 2
    scores.clamp_(max=0.01)
    return scores.softmax(-1) @ v


def written_over(q, k, v):
    scores = q @ k.mT / 2
    scores[..., 0] = 3.0
    return scores.softmax(-1) @ v


def sunk(q, k, v):
    scores = torch.cat((q @ k.mT / 2, torch.zeros(2, 4, 9, 1, dtype=F64)), -1)
    return scores.softmax(-1)[..., :-1] @ v


def dropped(q, k, v):
    torch.manual_seed(0)
    return functional.dropout((q @ k.mT).softmax(-1), 0.5) @ v


UNKNOWN = {
    **{x.__name__: x for x in (capped, clamped, written_over, sunk, dropped)},
    "mixed heads": lambda q, k, v: (
        torch.einsum("gh,bhnl->bgnl", WARM[:, :, 0].T * WARM[:, 0], q @ k.mT).softmax(-1) @ v
    ),
    "over the queries": lambda q, k, v: (q @ k.mT / 2).softmax(-2) @ v,
    "weights changed": lambda q, k, v: ((q @ k.mT / 2).softmax(-1) * 0.9) @ v,
    "a gate": lambda q, k, v: (q * 2).softmax(-1) * v,
    "sigmoid": lambda q, k, v: (q @ k.mT / 2 - 1).sigmoid() @ v,
    "squared relu": lambda q, k, v: functional.relu(q @ k.mT).square() / k.shape[-2] @ v,
    "silu by einsum": lambda q, k, v: torch.einsum(
        "bhnl,bhle->bhne", functional.silu(torch.einsum("bhnd,bhld->bhnl", q, k)), v
    ),
}


@pytest.mark.parametrize("attend", KNOWN.values(), ids=KNOWN)
def test_what_follows_the_pattern_is_seen_and_substituted(attend):
    model, x = Layer(attend), draw(2, 9, 16)
    own = model(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with record(model, outputs=True) as calls:
            assert torch.equal(model(x), own)
        with substitute(model, Softmax()) as report, record(model) as again:
            torch.testing.assert_close(model(x), own)
    assert report.unseen == {}
    assert sum(report.reached.values()) == len(calls) == len(again)
    for call in calls:
        mine = functional.scaled_dot_product_attention(
            call.q, call.k, call.v, call.mask, scale=call.scale
        )
        torch.testing.assert_close(mine, call.out)
    if attend is not KNOWN["biased"]:
        with substitute(model, Uniform()):
            assert not torch.allclose(model(x), own, atol=1e-3)
    assert torch.equal(model(x), own)


@pytest.mark.parametrize("attend", UNKNOWN.values(), ids=UNKNOWN)
def test_what_does_not_is_named_and_left(attend):
    model, x = nn.Sequential(Layer(attend), Layer(KNOWN["plain"])), draw(2, 9, 16)
    own = model(x)
    with pytest.warns(UserWarning, match="'0'"), record(model) as calls:
        again = model(x)
    assert torch.equal(again, own)
    assert [call.module for call in calls] == ["1"]
    with pytest.warns(UserWarning, match="'0'"), substitute(model, Softmax()) as report:
        again = model(x)
    torch.testing.assert_close(again, own)
    assert [*report.reached] == ["1"]
    assert [*report.unseen] == ["0"]


def test_masks_and_causality_reach_the_operator():
    model, x = Layer(masked), draw(2, 9, 16)
    with substitute(model, TopK(k=3)):
        out = model(x)
        later = x.clone()
        later[:, 5:] = 0
        torch.testing.assert_close(model(later)[:, :5], out[:, :5])
    refused = pytest.raises(SubstitutionError, match="no causal form")
    with refused, substitute(model, Nystromformer(2)):
        model(x)
    biased = Layer(KNOWN["biased"])
    refused = pytest.raises(SubstitutionError, match="adds a bias")
    with refused, substitute(biased, TopK(k=3)):
        biased(x)


def test_weights_that_serve_twice_are_named():
    def twice(q, k, v):
        weights = (q @ k.mT / 2).softmax(-1)
        return weights @ v + torch.einsum("bhnl,nle->bhne", weights, BIAS[0, :, :, None] * WARM[0])

    model, x = Layer(twice), draw(2, 9, 16)
    warned = pytest.warns(UserWarning, match="takes the weights of its softmax to more")
    with warned, record(model) as calls:
        model(x)
    assert len(calls) == 1


def test_gradients_heads_and_the_counted_work():
    model, x = Layer(KNOWN["plain"]), draw(2, 9, 16).requires_grad_()
    (own,) = torch.autograd.grad(model(x).square().sum(), x)
    with substitute(model, Softmax()):
        (found,) = torch.autograd.grad(model(x).square().sum(), x)
    torch.testing.assert_close(found, own)
    whole = model(x)
    with substitute(model, Uniform(), heads=[1]):
        some = model(x)
    assert not torch.allclose(some[..., 4:8], whole[..., 4:8], atol=1e-3)
    torch.testing.assert_close(some[..., 8:], whole[..., 8:], rtol=0, atol=0)
    flat = Layer(batched)
    refused = pytest.raises(SubstitutionError, match="heads and samples in one axis")
    with refused, substitute(flat, Uniform(), heads=[1]):
        flat(x)
    fused = Layer(functional.scaled_dot_product_attention)
    works = [without_attention(m, lambda m=m: m(x)) for m in (model, fused)]
    assert works[0] == works[1]
    found = effect(model, lambda: model(x), Performer(features=8))
    assert found.layers[0].errors["output_error"] > 0.01


class Alone(Layer):
    """Of one graph, where ``Layer`` is of several."""

    def forward(self, x):
        return self.attend(x, x, x)


@pytest.mark.filterwarnings("ignore:Dynamo", "ignore:.*softmax of their own")
@pytest.mark.parametrize("kind", [Layer, Alone])
def test_in_a_compiled_model_each_layer_is_answered_or_named(kind):
    layers = (functional.scaled_dot_product_attention, KNOWN["plain"])
    model = nn.Sequential(*map(kind, layers))
    x = draw(2, 9, 16) if kind is Layer else draw(2, 4, 9, 4)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        for _ in range(2):
            with substitute(model, Uniform()) as report:
                out = compiled(x)
            assert {*report.reached, *report.unseen} == {"0", "1"}
            with substitute(model, Uniform(), layers=[*report.reached]):
                torch.testing.assert_close(out, model(x))


def test_a_rule_that_forgets_is_found_at_the_first_call(monkeypatch):
    monkeypatch.setitem(flow.RULES, "div", lambda of, args, _, __: of.of(args[0]))
    model, x = nn.Sequential(Layer(KNOWN["plain"]), Layer(einsum)), draw(2, 9, 16)
    own = model(x)
    warned = pytest.warns(UserWarning, match=r"Not seen: '0' computes other numbers than torch's")
    with warned, substitute(model, Softmax()) as report:
        torch.testing.assert_close(model(x), own)
    assert [*report.reached] == ["1"]


# --- queries and keys of other tokens --------------------------------------------------------


class Cross(nn.Module):
    """Self-attention or attention to a source, whose padding is hidden."""

    def __init__(self, attend=functional.scaled_dot_product_attention):
        super().__init__()
        torch.manual_seed(1)
        self.q, self.k, self.v = (nn.Linear(8, 8, dtype=F64) for _ in range(3))
        self.own, self.attend = nn.Linear(8, 24, dtype=F64), attend

    def heads(self, x):
        return x.unflatten(-1, (2, 4)).transpose(1, 2)

    def forward(self, x, source, real=None, own=None):
        if own is not None:  # a self-attention that hides padding of the queries
            parts = map(self.heads, self.own(x).chunk(3, -1))
            x = x + self.attend(*parts, attn_mask=own[:, None, None]).transpose(1, 2).flatten(2)
        mask = None if real is None else real[:, None, None]
        q, k, v = self.q(x), self.k(source), self.v(source)
        return self.attend(*map(self.heads, (q, k, v)), attn_mask=mask).transpose(1, 2).flatten(2)


COUPLING = [Nystromformer(3), Local(2), Performer(8)]


@pytest.mark.parametrize("operator", COUPLING, ids=repr)
def test_a_cross_attention_of_as_many_keys_keeps_its_queries(operator):
    model, x, source = Cross(), draw(2, 9, 8), draw(2, 9, 8, seed=1)
    real = torch.arange(9) < torch.tensor([[9], [5]])
    with substitute(model, operator):
        out = model(x, source, real)
        alone = model(x[1:], source[1:, :5])
        tied = model(x, x, real)
        alone_tied = model(x[1:, :5], x[1:, :5])
    torch.testing.assert_close(out[1:], alone)
    torch.testing.assert_close(tied[1:, :5], alone_tied)  # of its own tokens they are padding


@pytest.mark.parametrize("operator", COUPLING, ids=repr)
@pytest.mark.parametrize("length", [7, 9])
def test_padded_queries_are_known_from_their_self_attention(operator, length):
    model, x, source = Cross(), draw(2, 9, 8), draw(2, length, 8, seed=1)
    own = torch.arange(9) < torch.tensor([[9], [6]])
    with substitute(model, operator):
        out = model(x, source, None, own)
        alone = model(x[1:, :6], source[1:], None, own[1:, :6])
    torch.testing.assert_close(out[1:, :6], alone)


@pytest.mark.parametrize("more", [{"add_bias_kv": True}, {"add_zero_attn": True}, {}])
@pytest.mark.parametrize("operator", COUPLING, ids=repr)
def test_a_multihead_attention_tells_whose_its_keys_are(operator, more):
    torch.manual_seed(0)
    model = nn.MultiheadAttention(8, 2, batch_first=True, dtype=F64, **more)
    x, source = draw(2, 9, 8), draw(2, 9, 8, seed=1)
    pad = torch.arange(9) >= torch.tensor([[9], [5]])
    with substitute(model, operator):
        for weights in (True, False):
            given = {"key_padding_mask": pad, "need_weights": weights}
            out = model(x, x, x, **given)[0]
            torch.testing.assert_close(out[1:, :5], model(*[x[1:, :5]] * 3)[0])
            other = draw(2, 9, 8, seed=2)  # of x the self-attention has said what is padding
            out = model(other, source, source, **given)[0]
            torch.testing.assert_close(out[1:], model(other[1:], *[source[1:, :5]] * 2)[0])
