"""A model that decodes with a cache: its queries are the last of the keys, or it is refused."""

import dataclasses

import pytest
import torch
import zoo
from matrices import normal as draw
from torch import nn
from torch.nn import functional

from softlab.capture import SubstitutionError, record, substitute
from softlab.capture.effect import errors
from softlab.core import Cost, Traits, causal_form
from softlab.operators import (
    BandLowRank,
    BigBird,
    Clustered,
    CosFormer,
    GaussianAttention,
    LinearAttention,
    Local,
    Nystromformer,
    Performer,
    Quantized,
    Reformer,
    Scatterbrain,
    Softmax,
    Taylor,
    TopK,
    Uniform,
)

F64 = torch.float64
LENGTH = 14
TABLES = ("static", "begun")
"""Caches as long as there will be tokens."""


class Cached(nn.Module):
    """A causal attention that keeps its keys and values, in one of the usual ways.

    ``dynamic``: they grow, and a lone query has no mask; ``static``: a table of more than there
    will be, what is not filled yet is hidden; ``begun``: so, but the first call has torch's own
    causal mask, from the first key; ``explicit``: a mask always; ``grouped``: two heads share keys;
    ``padded``: the first tokens of the second sample are hidden.
    """

    def __init__(self, how):
        super().__init__()
        torch.manual_seed(0)
        self.how, self.heads = how, 4 if how == "grouped" else 2
        self.project = nn.Linear(8, 4 * self.heads + 16, dtype=F64)
        self.forget()

    def forget(self):
        self.done, length = 0, 20 if self.how in TABLES else 0
        self.k, self.v = (torch.zeros(2, 2, length, 4, dtype=F64) for _ in range(2))

    def mask(self, n, l):
        rows = torch.arange(self.done, self.done + n)
        allowed = torch.arange(l) <= rows[:, None]
        if self.how == "padded":
            return allowed & (torch.arange(l) >= torch.tensor([0, 3])[:, None, None, None])
        if self.how == "explicit":
            return torch.zeros(n, l, dtype=F64).masked_fill(~allowed, -torch.inf)
        whole = bool(allowed.all())
        return None if whole else allowed

    def forward(self, x):
        n = x.shape[1]
        parts = self.project(x).split((4 * self.heads, 8, 8), -1)
        q, k, v = (y.unflatten(-1, (-1, 4)).transpose(1, 2) for y in parts)
        if self.how in TABLES:
            at = slice(self.done, self.done + n)
            self.k, self.v = self.k.clone(), self.v.clone()
            self.k[:, :, at], self.v[:, :, at] = k, v
        else:
            self.k, self.v = (torch.cat(y, 2) for y in ((self.k, k), (self.v, v)))
        l = self.k.shape[2]
        mask = self.mask(n, l)
        plain = self.how in {"dynamic", "grouped"} and n == l > 1
        plain = plain or (self.how == "begun" and not self.done and n > 1)
        self.done += n
        out = functional.scaled_dot_product_attention(
            q, self.k, self.v, None if plain else mask, is_causal=plain,
            enable_gqa=self.how == "grouped",
        )  # fmt: skip
        return out.transpose(1, 2).flatten(2)


def by_parts(model, x, parts):
    model.forget()
    return torch.cat([model(part) for part in x.split(parts, 1)], 1)


WAYS = ("dynamic", "static", "begun", "explicit", "grouped", "padded")
STEPS = [6, *[1] * (LENGTH - 6)]
PLACELESS = [
    *(Softmax(), Softmax(causal=True), Softmax(scale=0.3), TopK(k=3), TopK(k=3, causal=True)),
    *(Performer(8), Performer(8, causal=True), Taylor(), Quantized(), LinearAttention()),
    *(Uniform(), Uniform(Softmax(causal=True)), GaussianAttention(normalization="row")),
]
PLACED = [
    *(Local(2), Local(2, sinks=1), Local(1, dilation=2), Local(2, causal=True), BandLowRank(2)),
    *(Scatterbrain(2, features=8), Scatterbrain(2, features=8, causal=True)),
]
UNKNOWN = [CosFormer(), CosFormer(causal=True)]
"""These ask how many tokens there will be."""


def real(how, out):
    """The rows of real tokens."""
    rows = torch.ones(2, LENGTH, dtype=torch.bool)
    if how == "padded":
        rows[1, :3] = False
    return out[rows]


@pytest.mark.sampled(1 / 2)
@pytest.mark.parametrize("operator", [*PLACELESS, *PLACED], ids=repr)
@pytest.mark.parametrize("how", WAYS)
def test_token_by_token_is_all_at_once(how, operator):
    model, x = Cached(how), draw(2, LENGTH, 8)
    own = by_parts(model, x, [LENGTH])
    torch.testing.assert_close(real(how, by_parts(model, x, STEPS)), real(how, own))
    with substitute(model, operator):
        whole = by_parts(model, x, [LENGTH])
        parts = by_parts(model, x, STEPS)
    torch.testing.assert_close(real(how, parts), real(how, whole))
    if isinstance(operator, Softmax) and operator.scale is None:
        torch.testing.assert_close(parts, own)  # rows of padding as well
    else:
        assert not torch.allclose(real(how, whole), real(how, own), atol=1e-3)


@pytest.mark.sampled(1 / 2)
@pytest.mark.parametrize("operator", [*PLACED, *UNKNOWN], ids=repr)
@pytest.mark.parametrize("how", WAYS)
def test_where_places_matter_and_are_not_known_a_lone_query_is_refused(how, operator):
    model, x = Cached(how), draw(2, LENGTH, 8)
    with substitute(model, operator):
        by_parts(model, x, [LENGTH])
    length = 20 if how in TABLES else 7
    says = (
        rf"layer 0 \(Cached\), q \(2, {model.heads}, 1, 4\).*one query for {length} keys.*"
        r"decodes with a cache.*depends on .* where it stands.*use_cache=False.*query_equivariant"
    )
    model.forget()
    model(x[:, :6])  # the block does not see how the sequence began
    with pytest.raises(SubstitutionError, match=says), substitute(model, operator):
        model(x[:, 6:7])
    model.forget()
    model(x[:, :6])
    with record(model) as calls:
        model(x[:, 6:7])
    with pytest.raises(ValueError, match="one query for"):  # nor is it measured
        errors(operator, calls[0])


@pytest.mark.parametrize("operator", UNKNOWN, ids=repr)
@pytest.mark.parametrize("how", WAYS)
def test_what_asks_for_the_number_of_tokens_is_refused_in_parts(how, operator):
    model, x = Cached(how), draw(2, LENGTH, 8)
    says = r"layer 0 \(Cached\).*1 queries are the last of 7 keys.*how many tokens there will be"
    with pytest.raises(SubstitutionError, match=says), substitute(model, operator):
        by_parts(model, x, STEPS)


def test_a_cross_attention_of_growing_keys_is_no_cache():
    """As many keys more as queries do not make a sequence: it was never causal."""

    class Cross(nn.Module):
        def forward(self, q, k):
            return functional.scaled_dot_product_attention(q, k, k)

    model, x = Cross(), draw(2, LENGTH, 4)
    with substitute(model, Local(2)):
        model(x[:, :6], x[:, :6])
        with pytest.raises(SubstitutionError, match="one query for 7 keys"):
            model(x[:, :1], x[:, :7])


@dataclasses.dataclass(frozen=True)
class OfEarlierQueries:
    """Causal, and what a query gets depends on those before it."""

    causal: bool = False

    @property
    def traits(self):
        return Traits(causal=self.causal)

    @property
    def target(self):
        return self

    def cost(self, dims):
        return Cost(dims.n)

    def __call__(self, q, k, v, key_mask=None):
        mean = q.cumsum(-2) / torch.arange(1, q.shape[-2] + 1, dtype=F64)[:, None]
        return Softmax(causal=self.causal)(mean, k, v, key_mask)


def test_an_operator_that_asks_for_earlier_queries_is_refused():
    model, x = Cached("dynamic"), draw(2, LENGTH, 8)
    refused = pytest.raises(SubstitutionError, match="depends on the queries before")
    with refused, substitute(model, OfEarlierQueries()):
        by_parts(model, x, STEPS)


@pytest.mark.parametrize(
    "operator", [Nystromformer(1), Clustered(1), BigBird(1, 1, 1), Reformer(1)], ids=repr
)
def test_operators_that_couple_queries_are_refused_a_lone_one(operator):
    model, x = Cached("dynamic"), draw(2, LENGTH, 8)
    model(x[:, :6])
    refused = pytest.raises(SubstitutionError, match="one query for 7 keys")
    with refused, substitute(model, operator):
        model(x[:, 6:7])


@pytest.mark.parametrize("how", ["static", "begun", "explicit", "padded"])
def test_a_sequence_in_parts_of_many_is_exact_or_refused(how):
    model, x = Cached(how), draw(2, LENGTH, 8)
    own = by_parts(model, x, [LENGTH])
    for operator in (Softmax(), Softmax(causal=True)):
        with substitute(model, operator):
            torch.testing.assert_close(by_parts(model, x, [6, 5, 3]), own)
    for operator in (TopK(k=3), Local(2), Local(2, causal=True), Performer(8)):
        with substitute(model, operator):
            whole = by_parts(model, x, [LENGTH])
            parts = by_parts(model, x, [6, 5, 3])
        torch.testing.assert_close(real(how, parts), real(how, whole))
    for operator in (CosFormer(), Nystromformer(2)):
        refused = pytest.raises(
            SubstitutionError, match=r"how many tokens there will be|no causal form"
        )
        with refused, substitute(model, operator):
            by_parts(model, x, [6, 5, 3])


def test_keys_that_grow_by_the_queries_of_a_call_are_a_cache():
    """A block of tokens that see each other and all before them, without a mask."""

    class Blocks(nn.Module):
        def forward(self, q, k):
            return functional.scaled_dot_product_attention(q, k, k)

    model, x = Blocks(), draw(2, LENGTH, 4)
    for operator in (Local(2), CosFormer(), Nystromformer(2)):
        with substitute(model, operator):
            model(x[:, :6], x[:, :6])
            with pytest.raises(SubstitutionError, match="grown from 6 to 10 by its 4 queries"):
                model(x[:, 6:10], x[:, :10])
    with substitute(model, TopK(k=3)):
        model(x[:, :6], x[:, :6])
        torch.testing.assert_close(
            model(x[:, 6:10], x[:, :10]), TopK(k=3)(x[:, 6:10], *[x[:, :10]] * 2)
        )
    with substitute(model, Local(2)):  # fewer queries than keys are spread evenly, as documented
        torch.testing.assert_close(model(x[:, :5], x), Local(2)(x[:, :5], x, x))
        model(x[:, :6], x[:, :9])


def test_a_multihead_attention_of_the_last_token():
    torch.manual_seed(0)
    model, x = nn.MultiheadAttention(8, 2, batch_first=True, dtype=F64), draw(2, 6, 8)
    for weights in (True, False):
        own = model(x[:, -1:], x, x, need_weights=weights)
        with substitute(model, Softmax(causal=True)):
            found = model(x[:, -1:], x, x, need_weights=weights)
        torch.testing.assert_close(found, own)
        refused = pytest.raises(SubstitutionError, match="one query for 6 keys")
        with refused, substitute(model, Local(2)):
            model(x[:, -1:], x, x, need_weights=weights)


def test_a_callable_of_ones_own_is_asked_as_ever():
    model, x = Cached("dynamic"), draw(2, LENGTH, 8)
    model(x[:, :6])
    with substitute(model, lambda q, k, v: Local(2)(q, k, v)):
        model(x[:, 6:7])


@pytest.mark.parametrize("operator", zoo.OPERATORS, ids=repr)
def test_what_claims_to_ask_for_no_place_answers_the_last_query_alone(operator):
    """The claim that decides above, for every operator that has a causal form."""
    try:
        form = causal_form(operator)
    except ValueError:
        form = None
    if form is None or form == operator:
        pytest.skip("has no causal form, or is one")
    q, k, v = (draw(1, 2, 11, 4, seed=seed) for seed in range(3))
    last, alone = form(q, k, v)[..., -1:, :], operator(q[..., -1:, :], k, v)
    equal = torch.allclose(last, alone, rtol=1e-6, atol=1e-9)
    assert equal == operator.traits.query_equivariant
