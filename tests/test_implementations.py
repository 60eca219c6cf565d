"""Layers of transformers are seen where they look up their attention, and nothing else is touched.

On a small imitation of that look-up; ``test_transformers`` has transformers itself.
"""

import sys
import threading
import types
import warnings

import pytest
import torch
from matrices import normal as draw
from torch import nn
from torch.nn import functional

from softlab.capture import SubstitutionError, record, substitute
from softlab.capture.effect import effect
from softlab.operators import Local, Performer, Softmax, TopK, Uniform

F64 = torch.float64


class AttentionInterface(dict):
    def get_interface(self, name, default):
        return self.get(name, default)


def repeated(q, k, v):
    return (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))


def sdpa(
    module, query, key, value, attention_mask, dropout=0.0, scaling=None, is_causal=None,
    position_bias=None, **_,
):  # fmt: skip
    causal = module.is_causal if is_causal is None else is_causal
    causal = causal and attention_mask is None and query.shape[2] > 1
    if position_bias is not None:
        later = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).triu(1) & causal
        attention_mask = position_bias.masked_fill(later, -torch.inf)
        causal = False
    if query.shape[2] == 1 and key.shape[1] < query.shape[1]:  # heads packed as queries
        query = query.reshape(*key.shape[:2], -1, query.shape[-1])
    else:
        key, value = repeated(query, key, value)
    out = functional.scaled_dot_product_attention(
        query, key, value, attention_mask, dropout, causal, scale=scaling
    )
    out = out.reshape(out.shape[0], module.heads, -1, out.shape[-1])
    return out.transpose(1, 2).contiguous(), None


def eager(
    module, query, key, value, attention_mask, scaling, dropout=0.0, position_bias=None,
    softcap=None, s_aux=None, **_,
):  # fmt: skip
    key, value = repeated(query, key, value)
    weights = query @ key.mT * scaling
    if softcap is not None:
        weights = (weights / softcap).tanh() * softcap
    for added in (position_bias, attention_mask):
        weights = weights if added is None else weights + added
    if s_aux is not None:
        weights = torch.cat((weights, s_aux.expand(*weights.shape[:-1], 1)), -1)
    weights = weights.softmax(-1)[..., : key.shape[2]]
    return (weights @ value).transpose(1, 2), weights


def unread(module, query, key, value, *_, **__):
    """As a kernel that no watch sees."""
    return value.repeat_interleave(query.shape[1] // value.shape[1], 1).transpose(1, 2), None


def calling(*given, **more):
    """Of another name, but by torch's attention."""
    return sdpa(*given, **more)


FUNCTIONS = AttentionInterface(sdpa=sdpa, flash=unread, mine=calling)


@pytest.fixture(autouse=True)
def imitated(monkeypatch):
    names = ("", ".modeling_utils", ".integrations", ".integrations.sdpa_attention")
    for name in names:
        monkeypatch.setitem(sys.modules, f"transformers{name}", types.ModuleType("imitated"))
    monkeypatch.setattr(
        sys.modules["transformers.modeling_utils"],
        "AttentionInterface",
        AttentionInterface,
        raising=False,
    )
    monkeypatch.setattr(
        sys.modules["transformers.integrations.sdpa_attention"],
        "sdpa_attention_forward",
        sdpa,
        raising=False,
    )


class Layer(nn.Module):
    """Projections, grouped heads, and whoever the interface names for its attention."""

    def __init__(self, model, **more):
        super().__init__()
        self.settings, self.more = model.settings, more
        self.heads, self.is_causal = 4, model.is_causal
        self.project = nn.Linear(16, 32, dtype=F64)

    def forward(self, x, mask, past=None):
        q, k, v = self.project(x).split((16, 8, 8), -1)
        q, k, v = (y.unflatten(-1, (-1, 4)).transpose(1, 2) for y in (q, k, v))
        if past is not None:
            k, v = (torch.cat(pair, 2) for pair in zip(past, (k, v), strict=True))
        attend = FUNCTIONS.get_interface(self.settings["name"], eager)
        out, self.weights = attend(self, q, k, v, mask, dropout=0.0, scaling=0.4, **self.more)
        self.past = k, v
        return x + out.flatten(2)


class WrittenOut(Layer):
    """Does not ask, and has no mask but the one that it is given."""

    def forward(self, x, mask, past=None):
        q, k, v = self.project(x).split((16, 8, 8), -1)
        q, k, v = (y.unflatten(-1, (-1, 4)).transpose(1, 2) for y in (q, k, v))
        return x + eager(self, q, k, v, mask, scaling=0.4)[0].flatten(2)


class Model(nn.Module):
    """Layers whose mask is made for the name of their implementation, and one of torch's on top."""

    is_causal = True

    def __init__(self, kinds=(Layer, Layer), name="eager", **more):
        super().__init__()
        torch.manual_seed(0)
        self.settings = {"name": name}
        self.layers = nn.ModuleList(kind(self, **more) for kind in kinds)
        self.head = nn.MultiheadAttention(16, 2, batch_first=True, dtype=F64)

    def mask(self, n, real):
        allowed = torch.ones(n, n, dtype=torch.bool).tril() if self.is_causal else None
        if real is not None:
            keys = real[:, None, None]
            allowed = keys if allowed is None else allowed & keys
        if self.settings["name"] != "eager":
            return allowed if real is not None else None
        if allowed is None:
            return None
        return torch.zeros(allowed.shape, dtype=F64).masked_fill(~allowed, torch.finfo(F64).min)

    def forward(self, x, real=None):
        mask = self.mask(x.shape[1], real)
        for layer in self.layers:
            x = layer(x, mask)
        self.hidden = x
        return self.head(x, x, x, need_weights=False)[0]


class Encoder(Model):
    is_causal = False


REAL = torch.arange(7) >= torch.tensor([[0], [3]])
PADDED = {"whole": None, "left": REAL, "right": REAL.flip(-1)}


@pytest.mark.parametrize("padded", PADDED)
@pytest.mark.parametrize("name", ["eager", "sdpa", "mine"])
@pytest.mark.parametrize("kind", [Model, Encoder])
def test_softmax_in_every_layer_leaves_the_models_own_output(kind, name, padded):
    model, x, real = kind(name=name), draw(2, 7, 16), PADDED[padded]
    own = model(x, real)
    with record(model, outputs=True) as calls:
        assert torch.equal(model(x, real), own)
    assert [call.module for call in calls] == ["layers.0", "layers.1", "head"]
    with substitute(model, Softmax()) as report:
        out = model(x, real)
    assert [*report.reached] == ["layers.0", "layers.1", "head"]
    assert report.dims["layers.0"].batch == 8  # a head of queries each
    torch.testing.assert_close(out, own)  # rows of padding as well
    found = effect(model, lambda: model(x, real), Softmax())
    assert found.output["change"] < 1e-12
    assert max(layer.accumulated for layer in found.layers) < 1e-12
    with substitute(model, Uniform()):
        assert not torch.allclose(model(x, real), own, atol=1e-3)
    assert torch.equal(model(x, real), own)


KINDS = {
    "written out": (WrittenOut, WrittenOut),
    "both": (Layer, WrittenOut),
    "looked up": (Layer, Layer),
}


@pytest.mark.parametrize("name", ["eager", "sdpa", "flash", "mine"])
@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)
def test_layers_that_are_left_keep_their_masks_to_the_last_bit(kinds, name):
    model, x = Model(kinds, name), draw(2, 7, 16)
    model(x)
    own = model.hidden
    later = x.clone()
    later[:, 4:] = 0
    for block in (
        lambda: substitute(model, Uniform(), layers=["head"]),
        lambda: substitute(model, Uniform(), layers=[model_layers(model)]),
        lambda: record(model),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what record does not see
            with block():
                model(x)
                assert torch.equal(model.hidden, own)
                model(later)
                if name == "eager" or (kinds[0] is Layer is kinds[1] and name != "flash"):
                    assert torch.equal(model.hidden[:, :4], own[:, :4])
    found = effect(model, lambda: model(x), Uniform(), layers=["head"])
    assert all(layer.accumulated == 0 for layer in found.layers[:-1])
    assert found.layers[-1].accumulated > 0.01


def model_layers(model):
    """The number of the head: how many layers are seen before it."""
    asking = [type(layer) is Layer for layer in model.layers]
    return sum(asking)


def test_weights_of_layers_that_are_left_are_still_there():
    model, x = Model(), draw(2, 7, 16)
    model(x)
    own = [layer.weights for layer in model.layers]
    with substitute(model, Uniform(), layers=["layers.1"]):
        model(x)
    assert torch.equal(model.layers[0].weights, own[0])
    assert model.layers[1].weights is None
    with record(model):
        model(x)
    assert torch.equal(model.layers[1].weights, own[1])


REASONS = {
    "soft cap": ({"softcap": 2.0}, "eager", r"caps its scores \(softcap\)"),
    "sinks": ({"s_aux": torch.zeros((), dtype=F64)}, "eager", r"has sinks without values"),
    "a paged cache": ({"cache": object()}, "eager", "reads a paged cache"),
    "another name": ({}, "flash", r"runs as 'flash'.*set_attn_implementation\('sdpa'\)"),
}


@pytest.mark.parametrize(("more", "name", "says"), REASONS.values(), ids=REASONS)
def test_more_than_torchs_attention_is_refused_by_layer_where_it_is_chosen(more, name, says):
    model, x = Model(name=name, **more), draw(2, 7, 16)
    own = model(x)
    for layers in (None, [0], ["layers.0"], ["layers"]):
        refused = pytest.raises(
            SubstitutionError, match=rf"layer 0 \(layers\.0\) cannot .*{says}.*layers=\[\.\.\.\]"
        )
        with refused, substitute(model, Uniform(), layers=layers):
            model(x)
        if not {"softcap", "s_aux"} & {*more}:
            with refused, substitute(model, Softmax(), layers=layers):
                model(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with substitute(model, Softmax(), layers=["head"]) as report:
            torch.testing.assert_close(model(x), own)
    assert (report.reached, report.left) == ({"head": 1}, {"layers.0": 1, "layers.1": 1})
    assert report.unseen == {}
    with (
        pytest.warns(UserWarning, match=rf"Not seen: 'layers.0' {says}.* \(1 time\).*'layers.1'"),
        record(model) as calls,
    ):
        model(x)
    assert [call.module for call in calls] == ["head"]
    with pytest.raises(RuntimeError, match=rf"saw 0 attention calls.*{says}"), record(model):
        model.layers[0](x, model.mask(7, None))


def test_a_module_that_has_sinks_of_its_own_is_refused():
    model, x = Model(), draw(2, 7, 16)
    model.layers[1].sinks = nn.Parameter(torch.zeros(4))
    refused = pytest.raises(SubstitutionError, match=r"layer 1 \(layers\.1\) .*has sinks")
    with refused, substitute(model, TopK(k=3)):
        model(x)


def test_a_learned_bias_and_dropout_are_the_layers():
    bias = draw(1, 4, 7, 7, seed=3)
    for name in ("eager", "sdpa"):
        model, x = Model(name="eager", position_bias=bias), draw(2, 7, 16)
        own = model(x)
        model.settings["name"] = name
        with substitute(model, Softmax()):
            torch.testing.assert_close(model(x), own)
        refused = pytest.raises(SubstitutionError, match=r"layers\.0.*adds a bias")
        with refused, substitute(model, TopK(k=2), layers=[0, 1]):
            model(x)


def test_a_boolean_mask_of_eager_attention_is_added_as_it_adds_it():
    model, x = Model(), draw(2, 7, 16)
    mask = torch.ones(7, 7, dtype=torch.bool).tril()
    own = model.layers[0](x, mask)
    with substitute(model, Softmax()):
        torch.testing.assert_close(model.layers[0](x, mask), own)


def test_a_sample_without_keys_is_answered_as_the_layer_does():
    model, x = Encoder(), draw(2, 7, 16)
    real = torch.tensor([[True] * 7, [False] * 7])
    for name in ("eager", "sdpa"):
        model.settings["name"] = name
        own = model(x, real)
        with substitute(model, Softmax()):
            torch.testing.assert_close(model(x, real), own)
        refused = pytest.raises(
            SubstitutionError, match=r"layer 0 \(layers\.0\).*leaves no key in 4 of 8 .* keep one"
        )
        with refused, substitute(model, Performer(8)):
            model(x, real)


@pytest.mark.parametrize("name", ["eager", "sdpa"])
@pytest.mark.parametrize("padded", ["whole", "left"])
def test_one_query_of_grouped_heads_is_one_query(name, padded):
    """transformers packs the heads that share keys as queries; here they are heads."""
    model, x, real = Model(name=name), draw(2, 7, 16), PADDED[padded]
    layer = model.layers[0]
    whole = layer(x, model.mask(7, real))
    layer(x[:, :6], model.mask(6, None if real is None else real[:, :6]))
    past, last = layer.past, model.mask(7, real)
    last = None if last is None or (real is None and name == "sdpa") else last[..., -1:, :]
    with record(layer) as calls:
        torch.testing.assert_close(layer(x[:, 6:], last, past), whole[:, 6:])
    assert tuple(calls[0].q.shape) == (2, 4, 1, 4)
    for op in (Softmax(), TopK(k=3), Softmax(causal=True)):
        with substitute(layer, op):
            prefill = layer(x, model.mask(7, real))
            torch.testing.assert_close(layer(x[:, 6:], last, past), prefill[:, 6:])
    with substitute(layer, Uniform(), heads=[3]) as report:
        layer(x[:, 6:], last, past)
    assert report.reached == {"": 1}
    with (
        pytest.raises(SubstitutionError, match=r"layer 0 \(Layer\), q \(2, 4, 1, 4\).*one query"),
        substitute(layer, Local(2)),
    ):
        layer(x[:, 6:], last, past)


def test_blocks_nest_and_other_threads_run_the_model_as_it_was():
    model, x = Model(), draw(2, 7, 16)
    own = model(x)
    with substitute(model, Uniform(), layers=["layers.0", "layers.1"]):
        both = model(x)
    with (
        record(model) as left,
        substitute(model, Uniform(), layers=["layers.0"]) as outer,
        substitute(model, Uniform(), layers=["layers.1"]) as inner,
        record(model) as calls,
    ):
        assert torch.equal(model(x), both)
    assert [call.module for call in calls] == ["layers.0", "layers.1", "head"]
    assert [call.module for call in left] == ["head"]
    assert (outer.reached, inner.reached) == ({"layers.0": 1}, {"layers.1": 1})
    found, entered, done = {}, threading.Event(), threading.Event()

    def other():
        found["plain"] = model(x)
        with substitute(model, Softmax()) as report:
            found["inside"] = model(x)
            entered.set()
            done.wait(60)
            model(x)
        found["report"] = report

    thread = threading.Thread(target=other)
    with substitute(model, Uniform()):
        thread.start()
        entered.wait(60)
        model(x)
    done.set()  # the other block still needs the look-up
    thread.join()
    assert torch.equal(found["plain"], own)
    torch.testing.assert_close(found["inside"], own)
    assert found["report"].reached == {"layers.0": 2, "layers.1": 2, "head": 2}
    with pytest.raises(ZeroDivisionError), substitute(model, Uniform()):
        raise ZeroDivisionError
    assert AttentionInterface.get_interface.__name__ == "get_interface"


def test_gradients_through_the_look_up_are_those_of_the_model():
    model, x = Model(), draw(2, 7, 16).requires_grad_()
    grads = []
    for block in (record(model), substitute(model, Softmax()), substitute(model, Uniform())):
        (own,) = torch.autograd.grad(model(x).square().sum(), x)
        with block:
            grads.append(torch.autograd.grad(model(x).square().sum(), x)[0])
    assert torch.equal(grads[0], own)
    torch.testing.assert_close(grads[1], own)
    assert not torch.allclose(grads[2], own)


def test_under_autocast_eager_layers_and_their_substitutes_agree():
    model, x = Model().float(), draw(2, 7, 16).float()
    model.mask = lambda n, real: torch.full((n, n), torch.finfo(torch.float32).min).triu(1)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        own = model(x)
        with substitute(model, Softmax()) as report:
            out = model(x)
    assert out.dtype == own.dtype
    assert float((out - own).norm() / own.norm()) < 2**-6
    assert len(report.reached) == 3
