"""Causal forms: halves meet every pair once, and what a prefix gives is what its tokens give."""

import math

import pytest
import torch
from matrices import F64, normal

from softlab import measures
from softlab.core import causal_form
from softlab.operators import (
    LinearAttention,
    Local,
    Nystromformer,
    Performer,
    RandomFourier,
    Softmax,
    Taylor,
    TopK,
    TruncatedSVD,
    Uniform,
)
from softlab.primitives.causal import by_halves
from softlab.primitives.weighted_sums import Sums


def counted(of_queries, of_keys):
    """Every pair that meets adds the key's indicator, with a weight of one."""
    (x,), (y,) = of_queries, of_keys
    ones = torch.ones_like(x[..., :1])
    return Sums(ones @ y.sum(-2, keepdim=True), ones * y.shape[-2], torch.zeros_like(ones))


@pytest.mark.parametrize("n", [*range(1, 20), 31, 32, 33, 64, 100])
def test_every_query_meets_every_earlier_key_once(n):
    eye = torch.eye(n, dtype=F64).expand(2, n, n)
    found = by_halves(counted, (eye,), (eye,), held=n)
    assert torch.equal(found.values, torch.ones_like(eye).tril())
    assert torch.equal(found.weights[..., 0], torch.arange(1, n + 1, dtype=F64).expand(2, n))


def test_the_work_is_that_of_half_of_the_tokens_a_round():
    met = []

    def meet(of_queries, of_keys):
        met.append((of_queries[0].shape, of_keys[0].shape))
        return counted(of_queries, of_keys)

    x = torch.ones(1000, 1, dtype=F64)
    by_halves(meet, (x,), (x,), held=1)
    queries = sum(math.prod(shape[:-1]) for shape, _ in met)
    assert queries <= 1000 * (1 + math.ceil(math.log2(1000)) / 2)
    # One call for the token itself, one for the pairs of a round, one more where a pair is short.
    assert len(met) <= 1 + 2 * math.ceil(math.log2(1000))


def test_scales_of_any_size_are_merged():
    """A thousand orders of magnitude apart, and one side without any weight."""
    value = torch.tensor([[2.0]])
    large, small, none = (
        Sums(value * w, torch.ones(1, 1) * w, torch.tensor([[log]]))
        for w, log in ((1.0, 2000.0), (1.0, -2000.0), (0.0, -math.inf))
    )
    for a, b in ((large, small), (small, large), (none, large), (small, none)):
        assert a.merged(b).average() == 2
    assert none.merged(none).average() == 0
    assert none.merged(none).log_scale == -math.inf


@pytest.mark.parametrize(
    "op",
    [
        Softmax(causal=True),
        TopK(k=2, causal=True),
        Local(3, sinks=1, causal=True),
        Performer(16, causal=True),
        Taylor(causal=True),
        LinearAttention(causal=True),
    ],
    ids=repr,
)
def test_a_prefix_gives_the_rows_of_its_tokens(op):
    """What decoding relies on: outputs do not change as the sequence grows."""
    q, k, v = (normal(2, 50, w, seed=w) for w in (4, 4, 3))
    whole = op(q, k, v)
    for n in (1, 2, 17, 33):
        torch.testing.assert_close(op(q[:, :n], k[:, :n], v[:, :n]), whole[:, :n])


def test_the_uniform_error_of_a_causal_target_is_that_of_running_means():
    q, k, v = (normal(40, w, seed=w) for w in (4, 4, 3))
    target = Softmax(causal=True)
    reference = measures.Reference(target, q, k, v)
    out = measures.output_error(Uniform(target), q, k, v)
    assert out["output_error"] == pytest.approx(reference.uniform_error)
    assert out["skill"] == pytest.approx(0)
    plain = measures.Reference(Softmax(), q, k, v)
    assert reference.uniform_error != pytest.approx(plain.uniform_error, rel=0.01)


def test_a_causal_form_is_found_in_the_operator_or_its_target():
    assert causal_form(Performer(8)) == Performer(8, causal=True)
    assert causal_form(RandomFourier(8)) == RandomFourier(8, target=Softmax(causal=True))
    assert causal_form(Uniform()) == Uniform(Softmax(causal=True))
    assert causal_form(Nystromformer(4)) is None
    # It could be given a causal target, and would still look at later tokens.
    assert causal_form(TruncatedSVD(4)) is None
