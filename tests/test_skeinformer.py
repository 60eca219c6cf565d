"""Skeinformer: what is drawn and how often, what is exact, and what the fill-in does."""

import math

import pytest
import torch
from draws import head_of
from scipy import stats

from softlab.inputs import Recorded
from softlab.operators import ColumnSample, Skeinformer, Softmax, Uniform
from softlab.profiling import peak_memory

F64 = torch.float64

CASES = [
    Skeinformer(rank=3),
    Skeinformer(rank=5, seed=2),
]


def twin(op: Skeinformer, q, k, v):
    pilots, races = op.draws(len(q), len(k))
    l, root = len(k), q.shape[-1] ** 0.5
    P = torch.softmax(q[pilots].double() @ k.double().mT / root, -1)
    weight = P.detach().square().sum(0).sqrt() * v.detach().double().square().sum(-1).sqrt()
    late = [float(races[j] / weight[j]) if weight[j] > 0 else math.inf for j in range(l)]
    S = sorted(sorted(range(l), key=late.__getitem__)[: op.rank])
    others = [j for j in range(l) if j not in S]
    scores = q @ k[S].mT / root
    top = scores.amax(-1, keepdim=True).detach()
    A, g = torch.exp(scores - top), torch.exp(scores.mean(-1, keepdim=True) - top)
    D = A.sum(-1, keepdim=True) + len(others) * g
    R = (A @ v[S] + g * v[others].sum(0)) / D
    exact = P.to(v.dtype) @ v
    return torch.stack(
        [exact[pilots.tolist().index(i)] if i in pilots else R[i] for i in range(len(q))]
    )


draw = head_of(12, 16)


def error(out, exact):
    return float((out - exact).norm() / exact.norm())


@pytest.mark.parametrize("rank", [1, 2])
def test_keys_are_drawn_in_proportion_to_pilot_rows_times_values(rank):
    q, k, v = draw(n=1, l=6)  # one query: the pilot is known
    weight = torch.softmax(q @ k.mT / 2, -1)[0] * v.norm(dim=-1)
    p = weight / weight.sum()
    wanted = p if rank == 1 else p * (1 + (p / (1 - p)).sum() - p / (1 - p))  # one of two draws
    seeds = 4000
    times = torch.zeros(6, dtype=F64)
    for s in range(seeds):
        times[Skeinformer(rank, seed=s).keys(q, k, v)] += 1
    z = stats.norm.isf(1e-6)
    assert bool(((times / seeds - wanted).abs() < z * (wanted * (1 - wanted) / seeds).sqrt()).all())
    assert float((times / seeds - rank / 6).abs().max()) > 0.05  # and not evenly


def test_pilots_are_exact_and_others_are_not():
    q, k, v = draw(n=20, l=30)
    op = Skeinformer(4, seed=1)
    pilots = op.draws(20, 30).pilots.unique()
    others = [i for i in range(20) if i not in pilots]
    exact, out = Softmax()(q, k, v), op(q, k, v)
    torch.testing.assert_close(out[pilots], exact[pilots], rtol=1e-12, atol=1e-12)
    assert bool(((out - exact)[others].abs().amax(-1) > 1e-4).all())


def test_pilots_are_drawn_evenly():
    times = torch.zeros(7, dtype=F64)
    for s in range(700):
        times += torch.bincount(Skeinformer(5, seed=s).draws(7, 9).pilots, minlength=7)
    assert stats.chisquare(times.numpy()).pvalue > 1e-6


def test_a_query_that_is_drawn_twice_has_one_row_and_one_gradient():
    q, k, v = draw(n=2, l=9)
    op = Skeinformer(6)
    assert len(op.draws(2, 9).pilots.unique()) == 2
    exact = Softmax()(q, k, v)
    torch.testing.assert_close(op(q, k, v), exact, rtol=1e-12, atol=1e-12)
    leaf, other = (q.clone().requires_grad_() for _ in range(2))
    mine, theirs = (
        torch.autograd.grad(f(x, k, v).square().sum(), x)[0]
        for f, x in ((op, leaf), (Softmax(), other))
    )
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_what_is_not_drawn_has_the_geometric_mean_of_what_is():
    q, k, v = draw(n=40, l=16)
    op = Skeinformer(5)
    at = op.keys(q, k, v)
    left = torch.tensor([j for j in range(16) if j not in at])
    i = next(i for i in range(40) if i not in op.draws(40, 16).pilots)
    a = (q[i] @ k.mT / 2).exp()
    a[left] = a[at].log().mean().exp()
    torch.testing.assert_close(op(q, k, v)[i], a @ v / a.sum(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_exact_where_all_keys_are_drawn(scale):
    q, k, v = draw(scale=scale)
    torch.testing.assert_close(Skeinformer(16)(q, k, v), Softmax()(q, k, v), rtol=1e-10, atol=1e-10)
    if scale <= 1:
        assert error(Skeinformer(15)(q, k, v), Softmax()(q, k, v)) > 1e-6


def test_values_of_no_length_are_drawn_last():
    q, k, v = draw()
    v[4:] = 0
    for s in range(20):
        assert Skeinformer(4, seed=s).keys(q, k, v).tolist() == [0, 1, 2, 3]
    assert bool(Skeinformer(4)(q, k, 0 * v).isfinite().all())


def test_scales_of_the_values_do_not_matter_and_values_do():
    q, k, v = draw(l=64)
    op = Skeinformer(16)
    assert torch.equal(op.keys(q, k, v), op.keys(q, k, 1e-200 * v))
    assert not torch.equal(op.keys(q, k, v), op.keys(q, k, v.flip(0)))


def test_on_recorded_heads_it_beats_a_uniform_sample_and_not_always_the_mean():
    for name, beats_the_mean in (("minilm.layer1.head8", False), ("minilm.layer5.head2", True)):
        q, k, v = (x.double() for x in Recorded(name)(seed=0))
        exact = Softmax()(q, k, v)
        mine, sample = (
            sum(error(kind(64, seed=s)(q, k, v), exact) for s in range(4)) / 4
            for kind in (Skeinformer, ColumnSample)
        )
        assert mine < 0.95 * sample
        assert (mine < 0.8 * error(Uniform()(q, k, v), exact)) == beats_the_mean


def test_where_one_key_carries_a_row_the_fill_in_draws_it_to_the_mean():
    """The drawn keys are heavy ones, and so is what stands for the others."""
    q = torch.zeros(50, 2, dtype=F64)
    q[:, 0] = 20.0
    k = torch.zeros(100, 2, dtype=F64)
    k[:4, 0] = 1.0
    v = torch.zeros(100, 1, dtype=F64)
    v[:4] = 1.0
    op = Skeinformer(4)
    assert op.keys(q, k, v).tolist() == [0, 1, 2, 3]
    i = next(i for i in range(50) if i not in op.draws(50, 100).pilots)
    assert float(Softmax()(q, k, v)[i]) > 0.999
    torch.testing.assert_close(op(q, k, v)[i], v.mean(0), rtol=1e-9, atol=1e-9)


def test_it_takes_little_memory_at_sixteen_thousand_tokens():
    q, k, v = (torch.randn(2, 16384, 32) for _ in range(3))
    peak = peak_memory(lambda: Skeinformer(32)(q, k, v), q.device)
    assert peak < 12 * q.numel() * q.element_size()
