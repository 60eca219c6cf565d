"""AdaptiveSample: whether delta is kept, what the published form does to it, and what is drawn."""

import dataclasses
import math
from statistics import NormalDist

import pytest
import torch
from draws import head_of
from scipy import stats

from softlab import as_matrix
from softlab.operators import AdaptiveSample, Softmax

F64 = torch.float64

CASES = [
    AdaptiveSample(eps=0.3, top=2, base=0.5),
    AdaptiveSample(eps=0.2, delta=0.2, top=0, base=0.3, seed=1),
    AdaptiveSample(eps=0.4, top=3, base=0.4, form="published"),
]


def twin(op: AdaptiveSample, q, k, v):
    l, scores = len(k), q.double() @ k.double().mT / q.shape[-1] ** 0.5
    w = torch.ones(len(q), l, dtype=F64)
    E = torch.exp(scores - scores.amax(-1, keepdim=True).detach())
    for i, e in enumerate(E.detach().tolist()):
        order = sorted(range(l), key=lambda j: (-float(scores.detach()[i, j]), j))
        heavy, light = order[: op.top], sorted(order[op.top :])
        r = len(light)
        if r < 2:
            continue
        base, main = (x.tolist() for x in op.draws(r))
        sample = [e[light[p]] for p in base]
        mean = sum(sample) / len(sample)
        sd = (sum((x - mean) ** 2 for x in sample) / (len(sample) - 1)) ** 0.5
        D = sum(e[j] for j in heavy) + r * mean  # where it is nothing, all are drawn
        if op.form == "published":
            b = (NormalDist().inv_cdf(1 - op.delta) * sd * r / (op.eps * (D or 1))) ** 2
            b = max(int(min(max(b, 1), r)), len(base)) if D else r
        else:
            b = (
                float(stats.t.ppf(1 - op.delta / 2, len(base) - 1)) * sd * r / (op.eps * (D or 1))
            ) ** 2
            b = min(max(math.ceil(b / (1 + b / r)), len(base)), r) if D else r
        for p, j in enumerate(light):
            w[i, j] = main[:b].count(p) * r / b
    return (E * w / (E * w).sum(-1, keepdim=True)).to(v.dtype) @ v


def lognormal(sigma, l=4000, seed=0):
    """One query and keys in one dimension, whose weights are lognormal."""
    g = torch.Generator().manual_seed(seed)
    return torch.ones(1, 1, dtype=F64), sigma * torch.randn(l, 1, generator=g, dtype=F64)


def missed(op, q, k, seeds):
    """How often the estimate of the denominator is further than eps from it."""
    ratios = torch.stack(
        [
            type(op)(op.eps, op.delta, op.top, op.base, op.form, seed).denominators(q, k)
            for seed in range(seeds)
        ]
    )
    return int(((ratios - 1).abs() > op.eps).sum())


draw = head_of(12, 30)


SEEDS = 600


@pytest.mark.parametrize("sigma", [0.5, 1.0])
def test_the_corrected_form_keeps_delta_where_heavy_keys_are_exact(sigma):
    op = AdaptiveSample(0.02, 0.1, top=80, base=0.05)
    q, k = lognormal(sigma)
    assert 250 < int(op.budgets(q, k)) < 3900  # it is asked to draw some, and not all
    wrong = missed(op, q, k, SEEDS)
    # No more often than delta, at one in 10^5; and not never, so that the budget is no waste.
    assert stats.binomtest(wrong, SEEDS, op.delta, alternative="greater").pvalue > 1e-5
    assert wrong > 0.2 * op.delta * SEEDS


def test_the_published_form_misses_about_twice_as_often_as_it_says():
    op = AdaptiveSample(0.05, 0.1, top=80, base=0.05, form="published")
    wrong = missed(op, *lognormal(1.0), SEEDS)
    assert stats.binomtest(wrong, SEEDS, op.delta, alternative="greater").pvalue < 1e-5
    assert stats.binomtest(wrong, SEEDS, 2 * op.delta).pvalue > 1e-5


def test_without_heavy_keys_and_skewed_weights_both_forms_miss():
    q, k = lognormal(3.0)
    for form in ("published", "corrected"):
        op = AdaptiveSample(0.1, 0.1, top=0, base=0.02, form=form)
        wrong = missed(op, q, k, 200)
        assert wrong > 2 * 0.1 * 200


@pytest.mark.parametrize("form", ["published", "corrected"])
def test_less_tolerance_costs_draws_as_its_square(form):
    q, k = lognormal(0.5, l=40000)
    few, many = (
        int(AdaptiveSample(eps, top=10, base=0.001, form=form).budgets(q, k))
        for eps in (0.04, 0.02)
    )
    assert 3.5 < many / few < 4.1
    exact = AdaptiveSample(1e-6, top=10, base=0.001, form=form)
    assert int(exact.budgets(q, k)) == 39990
    error = float((exact.denominators(q, k) - 1).abs())
    assert (error < 1e-12) == (form == "corrected")


def test_what_is_heavy_is_exact_and_what_is_light_weighs_alike():
    q, k, _ = draw()
    op = AdaptiveSample(0.5, 0.2, top=5, base=0.3)
    scores = q @ k.mT / 2
    weights = op.kernel_matrix(q, k) / scores.exp()
    heavy = scores.argsort(-1, descending=True)[:, :5]
    torch.testing.assert_close(weights.gather(-1, heavy), torch.ones(12, 5, dtype=F64))
    b = op.budgets(q, k)
    light = weights.scatter(-1, heavy, 0)
    assert torch.equal((light > 0).sum(-1), b)
    torch.testing.assert_close(light.sum(-1), torch.full((12,), 25.0, dtype=F64))
    published = AdaptiveSample(0.5, 0.2, top=5, base=0.3, form="published")
    light = (published.kernel_matrix(q, k) / scores.exp()).scatter(-1, heavy, 0)
    torch.testing.assert_close(light.sum(-1), torch.full((12,), 25.0, dtype=F64))
    assert bool(((light > 0).sum(-1) < published.budgets(q, k)).any())  # some are drawn twice


def test_exact_where_all_keys_are_heavy_or_all_are_drawn():
    q, k, v = draw(scale=2)
    exact = Softmax()(q, k, v)
    for op in (
        AdaptiveSample(0.5, top=30),
        AdaptiveSample(0.5, top=29),
        AdaptiveSample(1e-6, top=0),
        AdaptiveSample(0.5, top=0, base=1.0),
    ):
        torch.testing.assert_close(op(q, k, v), exact, rtol=1e-12, atol=1e-12)
    assert float((AdaptiveSample(0.5, top=20)(q, k, v) - exact).abs().max()) > 1e-4


def test_masked_keys_are_neither_heavy_nor_drawn():
    q, k, v = draw(l=40)
    kept = torch.rand(40, generator=torch.Generator().manual_seed(1)) < 0.7
    for form in ("published", "corrected"):
        op = AdaptiveSample(0.3, top=3, base=0.2, form=form)
        torch.testing.assert_close(op.budgets(q, k, kept), op.budgets(q, k[kept]))
        torch.testing.assert_close(op.denominators(q, k, kept), op.denominators(q, k[kept]))
        torch.testing.assert_close(op(q, k, v, kept), op(q, k[kept], v[kept]))


def test_scores_that_underflow_apart_are_drawn_whole():
    q, k = lognormal(1.0, l=50)
    k[7] = 2000.0  # the base sample sees nothing beside it
    op = AdaptiveSample(0.1, top=0, base=0.1, seed=3)
    assert 7 not in op.draws(50).base
    assert int(op.budgets(q, k)) == 50
    assert float(as_matrix(op, q, k)[0, 7]) == pytest.approx(1)


@pytest.mark.parametrize("form", ["corrected", "published"])
def test_its_interval_keeps_its_odds(form):
    """Of the output, which delta does not speak of; rows of one draw are alike, so each counts."""
    q, k, v = draw(l=200)
    op = AdaptiveSample(0.1, top=8, base=0.3, form=form)
    exact = Softmax()(0.2 * q, k, v)
    given = missed = 0
    for seed in range(200):
        one = dataclasses.replace(op, seed=seed)
        found = one.interval(0.2 * q, k, v, confidence=0.9).high[0]
        given += bool(found.isfinite())
        missed += float((one(0.2 * q, k, v) - exact)[0].norm()) > float(found)
    assert given > 190
    assert missed <= stats.binom.isf(1e-4, given, 0.1)
    assert missed > 0


def test_its_interval_is_that_of_a_loop_over_the_draws():
    """Residuals of the drawn keys one by one, and those of masked keys are none."""
    q, k, v = draw(l=120)
    kept = torch.rand(120, generator=torch.Generator().manual_seed(1)) < 0.7
    op = AdaptiveSample(0.2, top=3, base=0.5)
    found = op.interval(q, k, v, kept)
    torch.testing.assert_close(found.high, op.interval(q, k[kept], v[kept]).high)
    p, out, many = as_matrix(op, q, k[kept]), op(q, k, v, kept), op.budgets(q, k, kept)
    scores = q @ k[kept].mT
    for i in range(len(q)):
        heavy = scores[i].topk(3).indices
        light = [j for j in p[i].nonzero().flatten().tolist() if j not in heavy]
        b, r = int(many[i]), int(kept.sum()) - 3
        assert len(light) == b
        each = torch.stack([b * p[i, j] * (v[kept][j] - out[i]) for j in light])
        variance = each.var(0).sum() * (1 - b / r) / b
        assert float(found.spread[i]) == pytest.approx(float(variance.sqrt()))


def test_what_is_drawn_whole_has_no_error_and_few_draws_no_end():
    q, k, v = draw(l=30)
    for op in (AdaptiveSample(0.5, top=30), AdaptiveSample(0.5, top=0, base=1.0)):
        assert (op.interval(q, k, v).high == 0).all()
    few = AdaptiveSample(0.5, top=2, base=0.1).interval(q, k, v)
    assert few.high.isinf().any()
    assert "draws are fewer than 30" in few.says


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AdaptiveSample(0.0), "AdaptiveSample.eps is 0.0; give a positive finite number"),
        (lambda: AdaptiveSample(2.0), "eps is 2.0; give a relative error from 1e-6 to 1"),
        (lambda: AdaptiveSample(delta=0.7), "delta is 0.7; give a probability from 1e-12 to 0.5"),
        (lambda: AdaptiveSample(base=1.5), "AdaptiveSample.base is 1.5; give a number from 0 to 1"),
        (lambda: AdaptiveSample(form="fixed"), "give one of corrected, published"),
    ],
)
def test_impossible_knobs_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
