"""A substitute gets all that a layer asks for or is refused, and the model ends as it was."""

import copy
import dataclasses
import itertools
import math
import threading
import warnings

import pytest
import sdpa
import torch
from matrices import normal as draw
from sdpa import SDPA, Plain
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from softlab.capture import SubstitutionError, dispatch, masks, record, substitute
from softlab.capture.effect import effect
from softlab.operators import (
    MRA,
    Clustered,
    GaussianAttention,
    LinearAttention,
    Local,
    Nystromformer,
    Performer,
    Reformer,
    Soft,
    Softmax,
    Taylor,
    Thinformer,
    TopK,
    Uniform,
)

torch_stays_as_it_was = sdpa.torch_stays_as_it_was
LOWEST = torch.finfo(torch.float64).min


class Net(nn.Module):
    """Layers that project, attend and add, in a row."""

    def __init__(self, depth=3, width=8, heads=2, **arguments):
        super().__init__()
        torch.manual_seed(0)
        self.heads = heads
        self.layers = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(depth)).double()
        self.attention = nn.ModuleList(Plain(**arguments) for _ in range(depth))

    def forward(self, x):
        for project, attend in zip(self.layers, self.attention, strict=True):
            parts = project(x).chunk(3, -1)
            q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(-3, -2) for y in parts)
            x = x + attend(q, k, v).transpose(-3, -2).flatten(-2)
        return x


CAUSAL = torch.ones(6, 6).tril().bool()
RIGHT = torch.arange(6) < torch.tensor([[6], [4]])  # (2, 6): the second sample is padded
LEFT = RIGHT.flip(-1)


def added(mask, low=-torch.inf):
    return torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, low)


# What a layer may ask for, and the rows that count (those of real tokens in causal layers).
ASKED = {
    "nothing": ({}, None),
    "scale": ({"scale": 0.3}, None),
    "is_causal": ({"is_causal": True}, None),
    "causal mask": ({"attn_mask": CAUSAL}, None),
    "added causal mask": ({"attn_mask": added(CAUSAL)}, None),
    "padding": ({"attn_mask": RIGHT[:, None, None, :]}, None),
    "added padding": ({"attn_mask": added(RIGHT)[:, None, None, :]}, None),
    "padding by the lowest number": ({"attn_mask": added(LEFT, LOWEST)[:, None, None]}, None),
    "padding of every query": ({"attn_mask": LEFT[:, None, None].expand(2, 4, 6, 6)}, None),
    "causal, padded right": ({"attn_mask": RIGHT[:, None, None] & CAUSAL}, RIGHT),
    "causal, padded left": ({"attn_mask": LEFT[:, None, None] & CAUSAL}, LEFT),
    "causal, padded left, scale": (
        {"attn_mask": added(LEFT[:, None, None] & CAUSAL), "scale": 1.0},
        LEFT,
    ),
    "grouped heads": ({"enable_gqa": True}, None),
    "grouped heads, causal": ({"enable_gqa": True, "is_causal": True}, None),
}


def asked(name):
    arguments, rows = ASKED[name]
    groups = 2 if arguments.get("enable_gqa") else 4
    q, k, v = draw(2, 4, 6, 4), draw(2, groups, 6, 4, seed=1), draw(2, groups, 6, 3, seed=2)
    rows = torch.ones(2, 6, dtype=torch.bool) if rows is None else rows
    return Plain(**arguments), (q, k, v), rows


def distance(model, qkv, rows, operator):
    """How far the substituted model is from the model, on the rows that count."""
    with substitute(model, operator):
        out = model(*qkv)
    return float(((out - model(*qkv)) * rows[:, None, :, None]).norm())


def torch_like(q, k, v, attn_mask=None, is_causal=False, scale=None, enable_gqa=False):
    return SDPA(
        q, k, v, attn_mask=attn_mask, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
    )


def without_causal(q, k, v, attn_mask=None, scale=None):
    return SDPA(q, k, v, attn_mask=attn_mask, scale=scale)


def values(q, k, v):
    return v


@pytest.mark.parametrize("operator", [Softmax(), TopK(k=6), torch_like, without_causal, SDPA])
@pytest.mark.parametrize("name", ASKED)
def test_exact_attention_in_place_of_the_models_own_is_the_model(name, operator):
    assert distance(*asked(name), operator) < 1e-13


def forgets(monkeypatch, what):
    """Plant a fault: what a layer asks for is dropped on its way to the operator."""
    real_read, call = masks.read, dispatch.answer
    if what == "mask":
        monkeypatch.setattr(dispatch, "read", lambda *_: masks.Reading(None, False))
    if what == "padding":
        monkeypatch.setattr(
            dispatch, "read", lambda *x: dataclasses.replace(real_read(*x), key_mask=None)
        )
    if what == "causal":
        monkeypatch.setattr(
            dispatch, "read", lambda *x: dataclasses.replace(real_read(*x), causal=False)
        )
    if what == "scale":
        monkeypatch.setattr(dispatch, "at_usual_scale", lambda call: call)
    if what == "groups":
        wrong = lambda call: dataclasses.replace(  # noqa: E731
            call, k=call.k.repeat(1, 2, 1, 1), v=call.v.repeat(1, 2, 1, 1), enable_gqa=False
        )
        monkeypatch.setattr(dispatch, "ungrouped", wrong)
    return call


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        ("scale", "scale"),
        ("scale", "causal, padded left, scale"),
        *(("causal", name) for name in ("is_causal", "causal mask", "added causal mask")),
        *(("mask", name) for name in ("causal mask", "padding", "added padding")),
        *(("padding", name) for name in ASKED if "padd" in name and "right" not in name),
        ("groups", "grouped heads"),
        ("groups", "grouped heads, causal"),
    ],
)
def test_a_forgotten_wish_is_found(monkeypatch, fault, name):
    forgets(monkeypatch, fault)
    assert distance(*asked(name), Softmax()) > 1e-3


@pytest.mark.parametrize(
    "operator", [Nystromformer(3), Local(1), Soft(3), Reformer(2, chunk=2), Clustered(2), MRA(2)]
)
def test_padding_equals_deleting_for_every_sample(operator):
    _, (q, k, v), _ = asked("padding")
    model = Plain(attn_mask=RIGHT[:, None, None])
    with substitute(model, operator):
        out = model(q, k, v)
    torch.testing.assert_close(out[0], operator(q[0], k[0], v[0]))
    torch.testing.assert_close(out[1, :, :4], operator(*(x[1, :, :4] for x in (q, k, v))))
    # Whoever reads the rows of the padding, as of a cross-attention, gets an answer there too.
    assert torch.equal(out[1, :, 4:], operator(q[1], k[1], v[1], RIGHT[1])[:, 4:])


def test_queries_that_count_as_padding_are_found(monkeypatch):
    monkeypatch.setattr(dispatch, "couples_queries", lambda _: False)
    for operator in (Nystromformer(3), Local(1), Reformer(2, chunk=2)):
        with pytest.raises(AssertionError, match="not close"):
            test_padding_equals_deleting_for_every_sample(operator)


def test_cross_attention_and_fewer_queries_than_keys():
    q, k, v = draw(2, 3, 5, 4), draw(2, 3, 7, 4, seed=1), draw(2, 3, 7, 3, seed=2)
    for op in (Softmax(), Nystromformer(3), Soft(3), LinearAttention()):
        model = Plain()
        with substitute(model, op):
            assert torch.equal(model(q, k, v), op(q, k, v))
    causal = Plain(is_causal=True)  # the keys beyond the last query are seen by nobody
    with substitute(causal, Softmax()):
        torch.testing.assert_close(causal(q, k, v), SDPA(q, k, v, is_causal=True))
    with (
        pytest.raises(SubstitutionError, match="query at every key"),
        substitute(causal, Softmax()),
    ):
        causal(draw(2, 3, 9, 4), k, v)


def test_a_bias_reaches_exact_softmax_and_is_refused_to_all_others():
    bias = draw(2, 1, 6, 6)
    model, (q, k, v) = Plain(attn_mask=bias, scale=0.4), asked("nothing")[1]
    with substitute(model, Softmax()):
        torch.testing.assert_close(model(q, k, v), SDPA(q, k, v, bias, scale=0.4))
    for op in (Nystromformer(3), TopK(k=2), GaussianAttention(normalization="row")):
        says = pytest.raises(SubstitutionError, match=r"layer 0 \(Plain\).* adds a bias")
        with says, substitute(model, op):
            model(q, k, v)
    window = (torch.arange(6)[:, None] - torch.arange(6)).abs() < 2
    model = Plain(attn_mask=window)
    for op in (Nystromformer(3), Local(1), lambda q, k, v, key_mask: Softmax()(q, k, v, key_mask)):
        with pytest.raises(SubstitutionError, match="different keys"), substitute(model, op):
            model(q, k, v)
    learned = nn.Parameter(torch.zeros(6, 6, dtype=torch.float64))
    model = Plain(attn_mask=learned)
    with pytest.raises(SubstitutionError, match="bias"), substitute(model, TopK(k=2)):
        model(q, k, v)


ALONE = [TopK(k=2), TopK(k=2, causal=True), Performer(8), Taylor(), Uniform(), LinearAttention()]


@pytest.mark.parametrize("operator", ALONE, ids=repr)
def test_each_query_may_see_keys_of_its_own(operator, monkeypatch):
    """As one query at a time with these keys; one without keys gets zero."""
    mask = draw(2, 1, 6, 6, seed=5) > 0
    mask[0, 0, 2], mask[1, 0, 4] = False, True
    free = dataclasses.replace(operator, causal=False) if hasattr(operator, "causal") else operator
    q, k, v = (x.clone().requires_grad_() for x in asked("nothing")[1])
    for shown, some in itertools.product((mask, mask.tril()), (10**9, 3 * q.numel())):
        monkeypatch.setattr(dispatch, "QUERIES", some)
        with substitute(model := Plain(attn_mask=shown), operator):
            out = model(q, k, v)
        for i, b in itertools.product(range(6), range(2)):
            keys, row = shown[b, 0, i], out[b, :, i : i + 1]
            if keys.any():
                wanted = free(q[b, :, i : i + 1], k[b][:, keys], v[b][:, keys])
                torch.testing.assert_close(row, wanted)
            else:
                assert not row.any()
    assert all(
        x.isfinite().all()
        for x in torch.autograd.grad(out.sum(), (q, k, v), materialize_grads=True)
    )


@pytest.mark.parametrize(
    ("arguments", "operator", "says"),
    [
        ({"is_causal": True}, Nystromformer(3), "has no causal form"),
        ({"is_causal": True}, lambda q, k, v: v, "has no causal form"),
        ({"attn_mask": LEFT[:, None, None]}, lambda q, k, v: v, "neither key_mask nor attn_mask"),
        ({}, Softmax(causal=True), "it is not causal, and the operator is"),
        ({"dropout_p": 0.1}, Softmax(), "dropout_p = 0.1"),
        ({"scale": -1.0}, Softmax(), "positive"),
        ({}, Nystromformer(7), "rank 7 is asked of 6 keys"),
        ({}, lambda q, k, v: v[..., :2, :], r"returned \(2, 4, 2, 3\)"),
        ({}, lambda q, k, v: v.float(), "float32"),
        ({}, lambda q, k, v: None, "NoneType"),
        ({"attn_mask": RIGHT[:, None, None] & False}, TopK(k=2), "leaves no key"),
        ({"attn_mask": torch.ones(5, 6, dtype=torch.bool)}, TopK(k=2), "does not broadcast"),
        ({"attn_mask": torch.ones(3, 1, 1, 6, dtype=torch.bool)}, TopK(k=2), "not broadcast"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_layer_and_reason(arguments, operator, says):
    model, reached = nn.Sequential(), []
    model.add_module("block", Plain(**arguments))
    q, k, v = asked("nothing")[1]
    with (
        pytest.raises(SubstitutionError, match=rf"(?s)layer 0 \(block\), q \(2, 4, 6, 4\).*{says}"),
        substitute(model, operator),
    ):
        reached.append(model.block(q, k, v))
    assert reached == []


def test_an_operator_that_needs_q_and_k_to_be_one_says_so_itself():
    def tied(q, k, v):
        if not torch.equal(q, k):
            msg = "queries and keys differ"
            raise ValueError(msg)
        return v

    model, (q, k, v) = Plain(), asked("nothing")[1]
    with substitute(model, tied):
        model(q, q, v)
    with pytest.raises(SubstitutionError, match="queries and keys differ"), substitute(model, tied):
        model(q, k, v)
    # Those of the catalogue are defined for two: SOFT's landmarks then come from the keys.
    with substitute(model, Soft(4)):
        assert torch.equal(model(q, k, v), Soft(4)(q, k, v))


def test_another_scale_is_seen_by_kernels_of_a_distance_and_own_scales_are_kept():
    q, k, v = asked("nothing")[1]
    model = Plain(scale=2.0)  # 1 / sqrt(d) is 0.5: q and k are to be doubled
    with substitute(model, GaussianAttention()):
        torch.testing.assert_close(model(q, k, v), GaussianAttention()(2 * q, 2 * k, v))
    for op in (Softmax(scale=0.7), Performer(8, scale=0.7), GaussianAttention(bandwidth=1.3)):
        with substitute(model, op):
            assert torch.equal(model(q, k, v), op(q, k, v))


def test_layers_by_number_by_name_and_by_what_holds_them():
    net, x = Net(), draw(5, 8)
    with substitute(net, Uniform()) as report:
        everything = net(x)
    names = [f"attention.{i}" for i in range(3)]
    assert report.reached == dict.fromkeys(names, 1)
    assert [dims.batch for dims in report.dims.values()] == [2, 2, 2]
    outs = []
    for layers in ([1], ["attention.1"], {1, "attention.1"}):
        with substitute(net, Uniform(), layers=layers) as report:
            outs.append(net(x))
        assert (report.reached, report.left) == ({names[1]: 1}, {names[0]: 1, names[2]: 1})
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])
    assert not torch.allclose(outs[0], everything)
    assert not torch.allclose(outs[0], net(x))
    with substitute(net, Uniform(), layers=["attention"]):
        net(x)
        assert torch.equal(net(x), everything)


def test_heads_alone():
    q, k, v = asked("nothing")[1]
    for groups in (4, 2):
        model = Plain(enable_gqa=True)
        k, v = k[:, :groups], v[:, :groups]
        with substitute(model, Uniform(), heads=[2, 0]):
            out = model(q, k, v)
        plain = model(q, k, v)
        assert torch.equal(out[:, [1, 3]], plain[:, [1, 3]])
        served = v.repeat_interleave(4 // groups, 1)[:, [0, 2]]
        torch.testing.assert_close(out[:, [0, 2]], served.mean(-2, keepdim=True).expand(2, 2, 6, 3))
    with pytest.raises(SubstitutionError, match="has 4"), substitute(model, Uniform(), heads=[4]):
        model(q, k, v)


@pytest.mark.parametrize(
    ("model", "operator", "more", "error", "says"),
    [
        ("a model", Softmax(), {}, TypeError, "got str"),
        (Net(), Nystromformer, {}, TypeError, "give an instance"),
        (Net(), 3, {}, TypeError, "give an instance"),
        (Net(), Softmax(), {"layers": []}, ValueError, "layers is"),
        (Net(), Softmax(), {"layers": "attention"}, ValueError, "give a list"),
        (Net(), Softmax(), {"layers": [-1]}, ValueError, "a number from 0 on"),
        (Net(), Softmax(), {"layers": [True]}, ValueError, "a number from 0 on"),
        (Net(), Softmax(), {"layers": ["atention.1"]}, ValueError, "Did you mean 'attention.1'"),
        (Net(), Softmax(), {"heads": []}, ValueError, "heads is"),
        (Net(), Softmax(), {"heads": [0, 0]}, ValueError, "different numbers"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(model, operator, more, error, says):
    with pytest.raises(error, match=says), substitute(model, operator, **more):
        pytest.fail("ran")


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_compiled_and_scripted_models_are_refused():
    inner = nn.Linear(3, 3)
    in_place = nn.Linear(3, 3)
    in_place.compile()
    scripted = torch.jit.trace(inner, torch.zeros(1, 3))
    for model, says in (
        (torch.compile(inner), "the model is compiled.*_orig_mod"),
        (nn.Sequential(in_place), r"submodule '0' is compiled.*by its compile\(\).*model anew"),
        (nn.Sequential(scripted), "submodule '0' is scripted"),
    ):
        with pytest.raises(TypeError, match=says), substitute(model, Softmax()):
            pytest.fail("ran")


class Eager(nn.Module):
    """Attention written out, with scores that are capped, which no rule covers."""

    def forward(self, x):
        return (x @ x.mT).tanh().softmax(-1) @ x


class Half(nn.Module):
    """One layer that can be seen and one that cannot."""

    def __init__(self):
        super().__init__()
        self.seen, self.eager = Plain(), Eager()

    def forward(self, x):
        return self.eager(self.seen(x, x, x))


def test_layers_that_were_not_reached_are_reported():
    net, x = Net(), draw(1, 5, 8)
    with (
        pytest.raises(SubstitutionError, match=r"layers 3 of Net were not reached; it has 0 'att"),
        substitute(net, Uniform(), layers=[0, 3]),
    ):
        net(x)
    with (
        pytest.raises(SubstitutionError, match=r"layers 'layers.0' of Net were not reached"),
        substitute(net, Uniform(), layers=["layers.0", 1]),
    ):
        net(x)
    eager, half = Eager(), Half()
    with (
        pytest.raises(RuntimeError, match=r"saw no attention in Eager.*written out: ''"),
        substitute(eager, Uniform()),
    ):
        eager(x)
    warned = pytest.warns(UserWarning, match="Half.*written out: 'eager'")
    with warned, substitute(half, Uniform()) as report:
        half(x)
    assert report.unseen == {"eager": 1}
    with (
        pytest.raises(SubstitutionError, match=r"'eager' of Half were not reached.*written out"),
        substitute(half, Uniform(), layers=["eager", "seen"]),
    ):
        half(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with substitute(half, Uniform(), layers=["seen"]):  # the other one was not asked for
            half(x)
    with pytest.raises(RuntimeError, match="saw no attention"), substitute(net, Uniform()):
        Net()(x)  # another model


class Ragged(nn.Module):
    """Self-attention of a batch whose samples are of different lengths."""

    def __init__(self, heads=2, **arguments):
        super().__init__()
        torch.manual_seed(0)
        self.heads, self.arguments = heads, arguments
        self.query, self.value, self.mix = (nn.Linear(8, 8).double() for _ in range(3))

    def forward(self, x):
        q, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.query, self.value)
        )
        out = functional.scaled_dot_product_attention(q, q, v, **self.arguments)
        return x + self.mix(out.transpose(1, 2).flatten(-2))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("arguments", [{}, {"is_causal": True}, {"scale": 0.3}], ids=str)
@pytest.mark.parametrize("operator", [Softmax(), TopK(k=3), Local(1), Performer(8), torch_like])
def test_a_ragged_batch_is_its_samples(operator, arguments):
    model = Ragged(**arguments)
    parts = [draw(n, 8, seed=n).requires_grad_() for n in (5, 7, 3)]
    batch = torch.nested.as_nested_tensor(parts, layout=torch.jagged)
    with substitute(model, operator) as report:
        out = model(batch)
        alone = [model(part[None])[0] for part in parts]
    assert report.reached == {"": 4}
    assert out.is_nested
    for got, due in zip(out.unbind(), alone, strict=True):
        torch.testing.assert_close(got, due)
    if isinstance(operator, Softmax) and not model.arguments.get("is_causal"):
        for got, due in zip(out.unbind(), model(batch).unbind(), strict=True):
            torch.testing.assert_close(got, due)
    grads = torch.autograd.grad(sum(x.square().sum() for x in out.unbind()), parts)
    due = torch.autograd.grad(sum(x.square().sum() for x in alone), parts)
    for one, other in zip(grads, due, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_ragged_batches_that_cannot_be_taken_apart_are_refused():
    strided = torch.nested.as_nested_tensor([draw(2, n, 4) for n in (5, 7)])
    model = Plain()
    refused = pytest.raises(
        SubstitutionError, match=r"layer 0 \(Plain\).*torch\.jagged.*Pad the batch"
    )
    with refused, substitute(model, Softmax()):
        model(strided, strided, strided)
    model = Ragged()
    batch = torch.nested.as_nested_tensor([draw(n, 8) for n in (5, 2)], layout=torch.jagged)
    refused = pytest.raises(SubstitutionError, match=r"layer 0 \(Ragged\).*rank 3 is asked of 2")
    with refused, substitute(model, Nystromformer(3)):
        model(batch)
    with pytest.raises(ValueError, match="has a ragged batch, whose effect is not measured"):
        effect(model, lambda: model(batch), Softmax())
    refused = pytest.raises(SubstitutionError, match="some heads alone are asked of a ragged batch")
    with refused, substitute(model, Uniform(), heads=[1]):
        model(batch)


EMPTY = torch.ones(2, 1, 1, 6, dtype=torch.bool)
EMPTY[1] = False
NOTHING = {
    "a sample": EMPTY,
    "a sample, added": added(EMPTY),
    "a sample, by the lowest number": added(EMPTY, LOWEST),
    "a head": torch.arange(4)[None, :, None, None].expand(1, 4, 1, 6) < 3,
    "a sample of a causal batch": EMPTY & CAUSAL,
    "everything": EMPTY & False,
    "rows": CAUSAL & (torch.arange(6) > 2),
}


@pytest.mark.parametrize("name", NOTHING)
def test_what_a_mask_leaves_nothing_of_is_as_the_layer_has_it_or_refused(name):
    model, (q, k, v) = Plain(attn_mask=NOTHING[name]), asked("nothing")[1]
    for operator in (Softmax(), torch_like):
        with substitute(model, operator):
            torch.testing.assert_close(model(q, k, v), model_alone(model, q, k, v))
    if name != "rows":
        refused = pytest.raises(
            SubstitutionError, match=r"layer 0 \(Plain\).*leaves no (key|token) in .*keep one"
        )
        with refused, substitute(model, TopK(k=2)):
            model(q, k, v)


def model_alone(model, *given):
    """What the model itself computes, also inside a block."""
    with torch._C.DisableTorchFunction():
        return model(*given)


def test_exact_softmax_leaves_nan_of_hidden_keys_where_it_is():
    """In torch's own attention it reaches every output."""
    q, k, v = asked("nothing")[1]
    clean = v.clone()
    v = v.clone()
    v[1, :, 4:] = math.nan
    for mask in (RIGHT[:, None, None], RIGHT[:, None, None] & CAUSAL):
        model = Plain(attn_mask=mask)
        with substitute(model, Softmax()):
            out = model(q, k, v)
        real = RIGHT[:, None, :, None].expand_as(out)
        torch.testing.assert_close(out[real], model(q, k, clean)[real])


def test_gradients_are_those_of_the_operator_and_exact_ones_are_the_models():
    net, x = Net(), draw(2, 7, 8).requires_grad_()

    def gradients(operator=None):
        net.zero_grad()
        x.grad = None
        if operator is None:
            net(x).square().sum().backward()
        else:
            with substitute(net, operator):
                net(x).square().sum().backward()
        return [x.grad.clone(), *(p.grad.clone() for p in net.parameters())]

    exact = gradients()
    for got, wanted in zip(gradients(Softmax()), exact, strict=True):
        torch.testing.assert_close(got, wanted)
    assert not torch.allclose(gradients(Nystromformer(3))[0], exact[0])
    single = Plain()
    q = draw(1, 6, 4).requires_grad_()
    with substitute(single, Soft(3)):
        (got,) = torch.autograd.grad(single(q, q, q).sum(), q)
    (wanted,) = torch.autograd.grad(Soft(3)(q, q, q).sum(), q)
    assert torch.equal(got, wanted)


class Imported(nn.Module):
    """Torch's function by a name of its own, in whose place nobody puts another."""

    def forward(self, q, k, v):
        return SDPA(q, k, v)


class WrittenOut(nn.Module):
    def forward(self, q, k, v):
        return (q @ k.mT / 2).softmax(-1) @ v


@pytest.mark.parametrize("attend", [Plain, Imported, WrittenOut])
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_model_is_differentiated_inside_the_block(reentrant, attend):
    net, x = Net(), draw(2, 7, 8)
    net.attention = nn.ModuleList(attend() for _ in net.attention)

    def gradient(run, op):
        net.zero_grad()
        with substitute(net, op, layers=[1]) as report:
            run(x.clone().requires_grad_()).sum().backward()
        return torch.cat([p.grad.flatten() for p in net.parameters()]), report.reached

    def saving(y):
        return checkpoint(net, y, use_reentrant=reentrant)

    for op in (Nystromformer(3), Local(1)):
        own, reached = gradient(net, op)
        again, twice = gradient(saving, op)
        torch.testing.assert_close(again, own)
        assert [*twice.values()] == [2 * n for n in reached.values()]
    y = x.clone().requires_grad_()
    said = r"Net: 'attention.1' ran inside a checkpoint.*Run the backward pass inside the block"
    with pytest.warns(UserWarning, match=said), substitute(net, Local(1), layers=[1]):
        saving(y)
    with torch.no_grad(), substitute(net, Local(1), layers=[1]):
        checkpoint(net, y, use_reentrant=False)  # nothing is computed again, and nothing said


def test_the_model_ends_as_it_was_also_after_an_exception():
    net, x = Net(), draw(2, 5, 8)
    plain, before = net(x), copy.deepcopy(net.state_dict())
    with substitute(net, Uniform()):
        net(x)
    with pytest.raises(ZeroDivisionError), substitute(net, Uniform()):  # noqa: PT012
        net(x)
        raise ZeroDivisionError
    with pytest.raises(SubstitutionError), substitute(net, Nystromformer(50)):
        net(x)
    assert torch.equal(net(x), plain)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_of_nested_blocks_the_inner_one_answers_first():
    net, x = Net(), draw(2, 5, 8)
    first, second = (
        substitute(net, op, layers=x) for op, x in ((Uniform(), [0, 1]), (Local(1), [1, 2]))
    )
    with first as outer, second as inner:
        out = net(x)
    assert outer.reached == {"attention.0": 1}
    assert inner.reached == {"attention.1": 1, "attention.2": 1}
    first = substitute(net, Uniform(), layers=["attention.0"])
    with first, substitute(net, Local(1), layers=["attention.1", "attention.2"]):
        assert torch.equal(net(x), out)
    # A record inside sees all, one outside what is left.
    with record(net) as left, substitute(net, Uniform(), layers=[1]), record(net) as calls:
        net(x)
    assert [call.module for call in calls] == [f"attention.{i}" for i in range(3)]
    assert [call.module for call in left] == ["attention.0", "attention.2"]
    # Heads that the inner block leaves are the outer's.
    q, k, v = asked("nothing")[1]
    model = Plain()
    with substitute(model, Uniform()), substitute(model, values, heads=[1]):
        out = model(q, k, v)
    torch.testing.assert_close(out[:, 1], v[:, 1])
    torch.testing.assert_close(out[:, 0], v[:, 0].mean(-2, keepdim=True).expand(2, 6, 3))


@pytest.mark.parametrize("attention", ["plain", "multihead"])
def test_another_thread_runs_the_model_as_it_was(attention):
    torch.manual_seed(0)
    if attention == "plain":
        model, x = Net(), draw(2, 5, 8)
        run = lambda: model(x)  # noqa: E731
    else:
        model, x = nn.MultiheadAttention(8, 2, dtype=torch.float64), draw(5, 2, 8)
        run = lambda: model(x, x, x, need_weights=False)[0]  # noqa: E731
    plain, found = run(), {}
    inside, done = threading.Barrier(2, timeout=60), threading.Barrier(2, timeout=60)

    def slow(q, k, v):
        inside.wait()  # the other thread runs while this one is in the midst of the layer
        done.wait()
        return torch.zeros_like(v)

    def substituted():
        with substitute(model, slow, layers=[0]):
            found["substituted"] = run()

    thread = threading.Thread(target=substituted)
    thread.start()
    inside.wait()
    found["meanwhile"] = run()
    with substitute(model, Uniform()):
        found["uniform"] = run()
    done.wait()
    thread.join()
    assert torch.equal(found["meanwhile"], plain)
    with substitute(model, Uniform()):
        assert torch.equal(found["uniform"], run())
    assert not torch.allclose(found["substituted"], plain)


MULTIHEAD_MASKS = {
    "none": {},
    "causal": {"attn_mask": torch.ones(5, 5).triu(1).bool(), "is_causal": True},
    "causal, padded": {
        "attn_mask": torch.ones(5, 5).triu(1).bool(),
        "key_padding_mask": torch.arange(5) >= torch.tensor([[5], [3], [4]]),
    },
    "float causal": {"attn_mask": torch.full((5, 5), -torch.inf).double().triu(1)},
    "padding": {"key_padding_mask": torch.arange(5) >= torch.tensor([[5], [3], [1]])},
}


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("mask", MULTIHEAD_MASKS)
def test_multihead_attention(need_weights, mask):
    torch.manual_seed(0)
    model = nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64).eval()
    x, arguments = draw(3, 5, 8), MULTIHEAD_MASKS[mask] | {"need_weights": need_weights}
    real = ~arguments.get("key_padding_mask", torch.zeros(3, 5, dtype=torch.bool))
    for average in (True, False):
        out, weights = model(x, x, x, average_attn_weights=average, **arguments)
        with substitute(model, Softmax()) as report:
            got, got_weights = model(x, x, x, average_attn_weights=average, **arguments)
        assert report.reached == {"": 1}
        counted = real if "causal" in mask else torch.ones_like(real)
        torch.testing.assert_close(got[counted], out[counted])
        assert (got_weights is None) == (not need_weights)
        if need_weights:
            rows = counted if average else counted[:, None].expand(3, 2, 5)
            torch.testing.assert_close(got_weights[rows], weights[rows])
    with substitute(model, Uniform()):
        assert not torch.allclose(model(x, x, x, **arguments)[0][counted], out[counted])


def test_weights_that_no_matrix_holds_are_refused_and_other_layers_keep_theirs():
    torch.manual_seed(0)
    model = nn.ModuleList(nn.MultiheadAttention(8, 2, dtype=torch.float64) for _ in range(2))
    x = draw(5, 8)  # unbatched

    def run(**more):
        return [attend(x, x, x, **more) for attend in model]

    plain = run()
    with substitute(model, Uniform(), layers=[1]) as report:
        got = run()
    assert (report.reached, report.left) == ({"1": 1}, {"0": 1})
    assert torch.equal(got[0][1], plain[0][1])
    torch.testing.assert_close(got[1][1], torch.full((5, 5), 0.2, dtype=torch.float64))
    for op in (Thinformer(4), lambda q, k, v: v):
        with pytest.raises(SubstitutionError, match="need_weights=False"), substitute(model, op):
            run()
        with substitute(model, op):
            run(need_weights=False)
    dropping = nn.MultiheadAttention(8, 2, dropout=0.5, dtype=torch.float64)
    with pytest.raises(SubstitutionError, match="dropout_p"), substitute(dropping, Uniform()):
        dropping(x, x, x)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("fused", [True, False])
def test_transformer_encoder_leaves_its_fused_path(fused):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=fused).eval()
    x, padding = draw(2, 5, 8).float(), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    with torch.no_grad():
        own = model(x, src_key_padding_mask=padding)
        with substitute(model, Softmax()) as report:
            out = model(x, src_key_padding_mask=padding)
        assert [*report.reached] == ["layers.0.self_attn", "layers.1.self_attn"]
        torch.testing.assert_close(out[~padding], own[~padding])
        with substitute(model, Nystromformer(2)):
            both = model(x, src_key_padding_mask=padding)
            alone = model(x[1:, :3])
        assert not torch.allclose(both[~padding], own[~padding], atol=1e-3)
        torch.testing.assert_close(both[1:, :3], alone)  # padding is as good as deleted


def test_transformer_decoder_has_causal_and_cross_attention():
    torch.manual_seed(0)
    layer = nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = nn.TransformerDecoder(layer, 2).double().eval()
    x, memory = draw(2, 5, 8), draw(2, 7, 8, seed=1)
    more = {
        "tgt_mask": nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64),
        "memory_key_padding_mask": torch.arange(7) >= torch.tensor([[7], [4]]),
    }
    with substitute(model, Softmax()) as report:
        out = model(x, memory, **more)
    assert len(report.reached) == 4
    torch.testing.assert_close(out, model(x, memory, **more))
    with (
        pytest.raises(SubstitutionError, match=r"layers\.0\.self_attn.* no causal form"),
        substitute(model, Nystromformer(3)),
    ):
        model(x, memory, **more)
    cross = [f"layers.{i}.multihead_attn" for i in range(2)]
    with substitute(model, Nystromformer(3), layers=cross) as report:
        model(x, memory, **more)
    assert [*report.reached] == cross


def test_half_precision_and_autocast_keep_the_layers_dtype():
    for dtype in (torch.bfloat16, torch.float16):
        net, x = Net().to(dtype), draw(2, 5, 8).to(dtype)
        with substitute(net, Nystromformer(3)):
            assert net(x).dtype == dtype
    net, x = Net().float(), draw(2, 5, 8).float()
    with torch.autocast("cpu", dtype=torch.bfloat16), substitute(net, Softmax()):
        out = net(x)
    assert math.isfinite(float(out.detach().sum()))


transformers_models = {
    "bert": ("BertModel", "BertConfig", {}),
    "vit": ("ViTModel", "ViTConfig", {"image_size": 16, "patch_size": 4, "num_channels": 1}),
    "llama": ("LlamaModel", "LlamaConfig", {"num_key_value_heads": 2}),
    "gpt2": ("GPT2Model", "GPT2Config", {"n_embd": 16, "n_head": 4, "n_layer": 2}),
}


def small(name, implementation):
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    model, config, more = transformers_models[name]
    sizes = {
        "hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 40,
        "intermediate_size": 32, "max_position_embeddings": 32, "initializer_range": 0.5,
    }  # fmt: skip
    made = getattr(transformers, config)(**sizes | more, attn_implementation=implementation)
    torch.manual_seed(0)
    return getattr(transformers, model)(made).double().eval()


def given(name):
    if name == "vit":
        return {"pixel_values": draw(2, 1, 16, 16)}, torch.ones(2, 17, dtype=torch.bool)
    ids = torch.arange(12).reshape(2, 6) + 3
    real = LEFT if name in {"llama", "gpt2"} else RIGHT
    return {"input_ids": ids, "attention_mask": real.long()}, real


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", transformers_models)
def test_transformers_models_padded_batches_too(name, implementation):
    model, (inputs, real) = small(name, implementation), given(name)
    own = model(**inputs).last_hidden_state
    # What "eager" computes is another thing: in float32, and NaN where a row is masked whole.
    out = small(name, "sdpa")(**inputs).last_hidden_state
    with substitute(model, Softmax()) as report:
        got = model(**inputs).last_hidden_state
        with substitute(model, Uniform()):
            other = model(**inputs).last_hidden_state
    assert len(report.reached) == 2
    torch.testing.assert_close(got[real], out[real])
    assert not torch.allclose(other[real], out[real], atol=1e-3)
    assert model.config._attn_implementation == implementation
    torch.testing.assert_close(
        model(**inputs).last_hidden_state, own, rtol=0, atol=0, equal_nan=True
    )
    if name == "bert":  # padding is as good as deleted, whatever the operator
        short = {"input_ids": inputs["input_ids"][1:, :4]}
        with substitute(model, Nystromformer(3)):
            both, alone = model(**inputs)[0], model(**short)[0]
        torch.testing.assert_close(both[1:, :4], alone)


def test_timm_models():
    try:
        import timm
    except Exception as error:  # its torchvision may be built for another torch
        pytest.skip(f"needs timm: {error}")
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2).double().eval()
    x = draw(2, 3, 32, 32)
    with substitute(model, Softmax()) as report:
        out = model(x)
    assert len(report.reached) == 2
    torch.testing.assert_close(out, model(x))


class Packing(nn.Module):
    """Four query heads over two key heads, whose group of queries is one long sequence."""

    def __init__(self, packed):
        super().__init__()
        self.q, self.k, self.v, self.packed = *(nn.Linear(8, 8 * x) for x in (4, 2, 2)), packed

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (-1, 8)).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.packed:
            q = q.reshape(len(x), 2, -1, 8)
        else:
            k, v = (y.repeat_interleave(2, 1) for y in (k, v))
        out = functional.scaled_dot_product_attention(q, k, v)
        return out.reshape(len(x), 4, -1, 8).transpose(1, 2).flatten(2)


@pytest.mark.parametrize(("operator", "told"), [(Nystromformer(4), True), (Softmax(), False)])
def test_heads_that_may_be_packed_into_the_queries_are_told(operator, told):
    model, x = Packing(packed=True), torch.randn(2, 12, 8)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with substitute(model, operator):
            model(x)
    words = [str(one.message) for one in said]
    assert [("'Packing' (2 times)" in one, "enable_gqa" in one) for one in words] == [
        (True, True)
    ] * told
    apart = Packing(packed=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with substitute(apart, operator):
            apart(x)
