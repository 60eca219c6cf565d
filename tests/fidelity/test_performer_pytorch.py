"""Performer and LinearAttention beside the package performer-pytorch."""

import dataclasses
import functools

import pytest
import torch
from fidelity.peers import (
    F64,
    assert_agree,
    distance,
    draw,
    gradients,
    merged,
    published,
    seeded,
    split,
)
from torch.nn.functional import elu

from softlab.features import Orthogonal
from softlab.operators import LinearAttention, Performer

package = published("performer_pytorch.performer_pytorch")

WIDTH, FEATURES = 8, 20
OP = Performer(FEATURES, Orthogonal(3), eps=1e-4)


def attention():
    """Its kernel and its sums, with our weights."""
    of = package.FastAttention(WIDTH, FEATURES).double()
    of.projection_matrix.copy_(OP.weights(FEATURES, WIDTH))
    return of


def inputs(lead=(2, 3)):
    return [draw(*lead, n, WIDTH, seed=s) for s, n in enumerate((15, 17, 17))]


def test_equal_with_its_eps_but_for_the_gradient_of_its_maxima():
    leaves = inputs()
    of = attention()
    q, k, v = leaves
    assert_agree(OP(q, k, v), of(q, k, v), [v])
    mine, theirs = (gradients(call(q, k, v), (q, k)) for call in (OP, of))
    assert all(distance(x, y) > 1e-6 for x, y in zip(mine, theirs, strict=True))


def test_difference_its_maxima_are_constants_of_the_gradient(monkeypatch):
    leaves = inputs()
    monkeypatch.setattr(torch.Tensor, "detach", lambda x: x)
    out = attention()(*leaves)
    monkeypatch.undo()
    assert_agree(OP(*leaves), out, leaves)


def test_equal_without_eps_gradients_included():
    leaves = inputs()
    w = OP.weights(FEATURES, WIDTH)
    phi_q, phi_k = (
        package.softmax_kernel(x, projection_matrix=w, is_query=x is leaves[0], eps=0.0)
        for x in leaves[:2]
    )
    theirs = package.linear_attention(phi_q, phi_k, leaves[2])
    assert_agree(dataclasses.replace(OP, eps=0.0)(*leaves), theirs, leaves)


def test_equal_as_a_layer():
    of = seeded(package.SelfAttention(24, heads=3, dim_head=WIDTH, nb_features=FEATURES))
    of.fast_attention.projection_matrix.copy_(OP.weights(FEATURES, WIDTH))
    x = draw(2, 15, 24)
    q, k, v = (split(to(x), 3) for to in (of.to_q, of.to_k, of.to_v))
    assert_agree(of.to_out(merged(OP(q, k, v))), of(x), [of.to_v.weight, of.to_out.weight])


def test_difference_a_masked_key_still_counts_in_the_degree(monkeypatch):
    """Its values alone are masked: the output is ours times the share of the kept keys."""
    kernel = functools.partial(package.softmax_kernel, eps=0.0)
    monkeypatch.setattr(package, "softmax_kernel", kernel)
    op = dataclasses.replace(OP, eps=0.0)
    of = seeded(package.SelfAttention(24, heads=3, dim_head=WIDTH, nb_features=FEATURES))
    of.fast_attention.projection_matrix.copy_(OP.weights(FEATURES, WIDTH))
    x, mask = draw(2, 16, 24), (torch.arange(16) < 10).expand(2, 16)
    q, k, v = (split(to(x), 3) for to in (of.to_q, of.to_k, of.to_v))
    mine, theirs = op(q, k, v, mask.unsqueeze(1)), of(x, mask=mask)
    share = op(q, k, mask[:, None, :, None].to(v).expand_as(v))
    assert_agree(of.to_out(merged(share * mine)), theirs, [x, *of.parameters()])
    assert distance(of.to_out(merged(mine)), theirs) > 0.1


def test_difference_its_orthogonal_weights_are_not_uniform_and_its_kernel_is_biased():
    """QR leaves the signs of R to the library: the first coordinate of each block is negative."""
    torch.manual_seed(0)
    draws, d = 500, 8
    theirs = torch.stack([package.gaussian_orthogonal_random_matrix(d, d) for _ in range(draws)])
    mine = torch.stack([Orthogonal(seed)(d, d) for seed in range(draws)])
    assert bool((theirs[:, 0, 0] < 0).all())
    assert 0.4 < float((mine[:, 0, 0] < 0).double().mean()) < 0.6
    # exp(<x, y>) in the direction (1, ..., 1), at |x + y| = 1: E exp(<w, z> - 1/2) is 1.
    z = torch.full((d,), d**-0.5, dtype=F64)
    for weights, biased in ((theirs.double(), True), (mine, False)):
        for sign in (1, -1):
            estimates = (sign * weights @ z - 0.5).exp().mean(-1)
            error = (float(estimates.mean()) - 1) / float(estimates.std() / draws**0.5)
            assert abs(error) > 5 if biased else abs(error) < 4, (biased, sign, error)


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_linear_attention_is_equal_on_the_same_features(scale):
    q, k, v = leaves = inputs()
    phi_q, phi_k = (
        package.generalized_kernel(
            scale * x,
            projection_matrix=None,
            kernel_fn=lambda y: elu(y) + 1,
            kernel_epsilon=0.0,
            normalize_data=False,
        )
        for x in (q, k)
    )
    theirs = package.linear_attention(phi_q, phi_k, v)
    assert_agree(LinearAttention()(scale * q, scale * k, v), theirs, leaves)


def running_sums(phi_q, phi_k, v):
    """Its causal sums in torch, without the 1e-6 that it adds to each feature's."""
    return package.causal_linear_attention_noncuda(phi_q, phi_k, v, chunk_size=4, eps=0.0)


def test_causal_is_equal_without_eps():
    q, k, v = leaves = inputs()
    k, v = k[..., :15, :], v[..., :15, :]
    w = OP.weights(FEATURES, WIDTH)
    phi_q, phi_k = (
        package.softmax_kernel(x, projection_matrix=w, is_query=x is q, eps=0.0) for x in (q, k)
    )
    op = dataclasses.replace(OP, eps=0.0, causal=True)
    assert_agree(op(q, k, v), running_sums(phi_q, phi_k, v), leaves)
    assert_agree(LinearAttention(causal=True)(q, k, v), elu_sums(q, k, v), leaves)


def elu_sums(q, k, v):
    return running_sums(elu(q) + 1, elu(k) + 1, v)


def test_difference_its_causal_form_lets_a_later_key_through():
    """By the maximum over all keys, beside which its eps stands."""
    q, k, v = (x[..., :15, :].detach().contiguous() for x in inputs())
    of = package.FastAttention(WIDTH, FEATURES, causal=True).double()
    of.projection_matrix.copy_(OP.weights(FEATURES, WIDTH))
    longer = k * torch.where(torch.arange(15) == 14, 3, 1).unsqueeze(-1)
    assert distance(of(q, longer, v)[..., :14, :], of(q, k, v)[..., :14, :]) > 1e-3
    op = dataclasses.replace(OP, eps=0.0, causal=True)
    assert torch.equal(op(q, longer, v)[..., :14, :], op(q, k, v)[..., :14, :])
