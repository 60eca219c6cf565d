"""AttentionMatching: what its weights and values solve, what references see of it, and others."""

import re

import pytest
import torch
from draws import head_of
from scipy.optimize import nnls

from softlab.inputs import Recorded
from softlab.operators import AttentionMatching, Softmax
from softlab.operators.attention_matching import nonnegative, pursued
from softlab.profiling import peak_memory

F64 = torch.float64

CASES = [
    AttentionMatching(rank=3, references=6, ridge=0.1),
    AttentionMatching(rank=4, references=4, ridge=0.1),
    AttentionMatching(rank=3, choice="attention", ridge=0.3),
]


def solved(a, y):
    return torch.linalg.lstsq(a, y).solution


def weighed(A, y):
    """Nonnegative least squares by scipy, and once more where they are free, for derivatives."""
    w = nnls(A.detach().numpy(), y.detach().numpy())[0]
    live = [c for c, x in enumerate(w) if x > 1e-9]
    return live, solved(A[:, live], y[:, None])[:, 0]


def chosen(op, P):
    r, l = P.shape
    S, w = [], P.new_zeros(0)
    while op.choice == "pursuit" and len(S) < min(op.rank, r):
        left = 1 - (P[:, S] * w).sum(-1)
        slope = (left[None] @ P)[0]
        slope[S] = -1
        if float(slope.max()) < 1e-9:
            break
        S.append(int(slope.argmax()))
        live, w = weighed(P[:, S], torch.ones(r, dtype=F64))
        S = [S[c] for c in live]
    others = sorted(set(range(l)) - set(S), key=lambda j: -float(P[:, j].square().sum()))
    return sorted((S + others)[: op.rank])


def twin(op: AttentionMatching, q, k, v):
    n, root = len(q), q.shape[-1] ** 0.5
    r = min(op.references, n)
    R = [int((i + 0.5) * n / r) for i in range(r)]
    scores = q[R].double() @ k.double().mT / root
    P = torch.softmax(scores, -1)
    S = chosen(op, P.detach())
    A, own, eye = P[:, S], v[S].double(), torch.eye(op.rank, dtype=F64)
    a = (op.ridge * A.square().sum() / op.rank).sqrt()
    one = torch.ones(r, dtype=F64)
    live, w = weighed(torch.cat((A, a * eye)), torch.cat((one, a * eye.sum(0))))
    logs = torch.full((op.rank,), -torch.inf, dtype=F64).index_put((torch.tensor(live),), w.log())
    X = torch.softmax(scores[:, S] + logs, -1)
    b = (op.ridge * X.square().sum() / op.rank).sqrt()
    left = P @ v.double() - X @ own
    V = own + solved(torch.cat((X, b * eye)), torch.cat((left, 0 * own)))
    return torch.softmax(q @ k[S].mT / root + logs.to(q.dtype), -1) @ V.to(v.dtype)


draw = head_of(12, 20)


def probabilities(q, k):
    return torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1)


def sums(op, q, k, v):
    """What the weights make of the sum of exponentials of each reference, over that sum."""
    held = op.compact(q, k, v)
    return probabilities(q[op.places(len(q))], k)[:, held.at] @ held.logs.exp()


def error(out, exact):
    return float((out - exact).norm() / exact.norm())


@pytest.mark.parametrize("m", [1, 2, 7, 40])
@pytest.mark.parametrize("rows", [3, 50])
def test_nonnegative_least_squares_are_scipys(m, rows):
    g = torch.Generator().manual_seed(m)
    a = torch.randn(12, rows, m, generator=g, dtype=F64)
    a[6:] = a[6:].abs() + 1e-3 * a[6:]  # as columns of attention: all near each other
    y = torch.randn(12, rows, generator=g, dtype=F64)
    shift = 1e-4 if rows < m else 1e-8
    a = torch.cat((a, shift**0.5 * torch.eye(m, dtype=F64).expand(12, m, m)), 1)
    y = torch.cat((y, torch.zeros(12, m, dtype=F64)), 1)
    found = nonnegative(a.mT @ a, (y.unsqueeze(1) @ a).squeeze(1))
    for i in range(12):
        least = nnls(a[i].numpy(), y[i].numpy())[0]
        assert float((found[i] - torch.tensor(least)).abs().max()) < 1e-5 * (1 + least.max())
    assert bool((found >= 0).all())
    if m > 1:
        assert bool((found == 0).any()), "no bound is met"


def test_entries_that_are_shut_out_are_zero():
    g = torch.Generator().manual_seed(0)
    a = torch.randn(5, 9, 6, generator=g, dtype=F64)
    among = torch.rand(5, 6, generator=g) < 0.6
    found = nonnegative(a.mT @ a, a.sum(1), among)
    for i, kept in enumerate(among):
        least = nnls(a[i][:, kept].numpy(), torch.ones(9, dtype=F64).numpy())[0]
        torch.testing.assert_close(found[i][kept], torch.tensor(least), rtol=1e-9, atol=1e-12)
        assert not bool(found[i][~kept].any())


@pytest.mark.parametrize("scale", [0.5, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_as_many_keys_as_references_keep_their_sums_and_outputs(scale, seed):
    q, k, v = draw(n=30, l=40, scale=scale, seed=seed)
    exact = Softmax()(q, k, v)
    for r in (1, 2, 5, 8):
        op = AttentionMatching(8, references=r, ridge=1e-8)
        at = op.places(30)
        assert len(at) == r
        assert float((sums(op, q, k, v) - 1).abs().max()) < 1e-3
        assert error(op(q, k, v)[at], exact[at]) < 1e-3
    others = [i for i in range(30) if i not in at]
    assert error(op(q, k, v)[others], exact[others]) > 1e-2
    fewer = AttentionMatching(7, references=30, ridge=1e-8)
    assert float((sums(fewer, q, k, v) - 1).abs().max()) > 1e-2


def test_the_pursuit_ends_at_the_best_of_all_weights_with_few_keys():
    q, k, _ = draw(n=6, l=50, scale=2)
    whole = probabilities(q, k).unsqueeze(0)
    w = pursued(whole, 6)[0]
    assert 0 < int((w > 0).sum()) <= 6
    torch.testing.assert_close(whole[0] @ w, torch.ones(6, dtype=F64), rtol=1e-8, atol=1e-8)
    before = 6.0
    for m in range(1, 7):  # and the way there goes down
        left = float((1 - whole[0] @ pursued(whole, m)[0]).square().sum())
        assert left < before
        before = left


def test_other_keys_do_not_keep_the_sums():
    q, k, v = draw(n=8, l=40, scale=2)
    op = AttentionMatching(8, references=8, choice="attention", ridge=1e-8)
    assert float((sums(op, q, k, v) - 1).abs().max()) > 1e-3


@pytest.mark.parametrize("choice", ["pursuit", "attention"])
@pytest.mark.parametrize("ridge", [1e-8, 1.0])
def test_exact_where_all_keys_are_kept(choice, ridge):
    for scale in (0.1, 1, 30):
        q, k, v = draw(scale=scale)
        for r in (1, 5, 12):
            op = AttentionMatching(20, references=r, choice=choice, ridge=ridge)
            torch.testing.assert_close(op(q, k, v), Softmax()(q, k, v), rtol=1e-7, atol=1e-7)
    q, k, v = draw()
    assert error(AttentionMatching(19, ridge=ridge)(q, k, v), Softmax()(q, k, v)) > 1e-8


def test_with_all_ridge_it_is_softmax_over_the_kept_keys():
    q, k, v = draw()
    op = AttentionMatching(5, ridge=1e8)
    at = op.compact(q, k, v).at
    torch.testing.assert_close(op(q, k, v), Softmax()(q, k[at], v[at]), rtol=1e-6, atol=1e-6)
    assert error(AttentionMatching(5)(q, k, v), Softmax()(q, k[at], v[at])) > 1e-2


def test_by_attention_the_kept_keys_are_those_that_references_see_most():
    q, k, v = draw()
    op = AttentionMatching(5, references=4, choice="attention")
    seen = probabilities(q[op.places(12)], k).square().mean(0)
    assert set(op.compact(q, k, v).at.tolist()) == set(seen.topk(5).indices.tolist())


def test_what_is_compacted_answers_queries_as_the_call_does():
    q, k, v = draw(n=16)
    op = AttentionMatching(5, references=4)
    k, v = torch.stack([k, k.flip(0)]), torch.stack([v, v])
    held = op.compact(q, k, v)
    kept = k.gather(1, held.at.unsqueeze(-1).expand(-1, -1, 4))
    out = torch.softmax(q @ kept.mT / 2 + held.logs.unsqueeze(1), -1) @ held.values
    torch.testing.assert_close(op(q, k, v), out, rtol=1e-12, atol=1e-12)
    moved = q.clone()  # no reference: the other answers stay as they are
    moved[0] += 1
    assert 0 not in op.places(16)
    torch.testing.assert_close(op(moved, k, v)[:, 1:], out[:, 1:], rtol=1e-12, atol=1e-12)
    assert float((op(moved, k, v)[:, 0] - out[:, 0]).abs().max()) > 1e-3


def test_keys_that_no_reference_sees_are_kept_as_they_are():
    q, k, v = draw(l=8)
    q[:, 0], k[:, 0] = 1e3, 0
    k[5:, 0] = -1e3  # their weights underflow
    held = AttentionMatching(8).compact(q, k, v)
    assert bool(held.values.isfinite().all())
    torch.testing.assert_close(held.values[5:], v[5:])
    torch.testing.assert_close(held.logs, torch.zeros(8, dtype=F64), atol=1e-9, rtol=0)


def test_references_are_answered_better_than_others_and_others_where_they_look_alike():
    for name, served in (("minilm.layer5.head2", True), ("minilm.layer1.head8", False)):
        q, k, v = (x.double() for x in Recorded(name)(seed=0))
        op, exact = AttentionMatching(64), Softmax()(q, k, v)
        at = op.places(512)
        others = [i for i in range(512) if i not in at]
        out = op(q, k, v)
        mine, theirs = error(out[at], exact[at]), error(out[others], exact[others])
        assert mine < 0.8 * theirs
        assert (theirs < 0.15) == served
        assert (theirs > 0.9) != served
        kept = op.compact(q, k, v).at
        assert theirs < error(Softmax()(q, k[kept], v[kept])[others], exact[others])


def test_it_takes_little_memory_at_sixteen_thousand_tokens():
    q, k, v = (torch.randn(1, 16384, 32) for _ in range(3))
    op = AttentionMatching(16, references=16)
    assert peak_memory(lambda: op(q, k, v), q.device) < 12 * q.numel() * q.element_size()


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: AttentionMatching(0), ValueError, "rank is 0; give an integer of at least 1"),
        (lambda: AttentionMatching(4, 0), ValueError, "references is 0; give an integer"),
        (lambda: AttentionMatching(4, ridge=1e-9), ValueError, "give 1e-08 to 1e+08"),
        (lambda: AttentionMatching(4, choice="omp"), ValueError, "pursuit, attention"),
        (lambda: AttentionMatching(21)(*draw()), ValueError, "rank 21 is asked of 20 keys"),
        (lambda: AttentionMatching(21).compact(*draw()), ValueError, "rank 21 is asked of 20"),
    ],
)
def test_impossible_settings_are_refused(build, error, message):
    with pytest.raises(error, match=re.escape(message)):
        build()
