"""Pages of keys: the choice is by an upper bound, and what is kept is exact."""

import math

import pytest
import torch
from draws import head_of

from softlab.operators import Pages, Softmax

F64 = torch.float64

CASES = [
    Pages(block=4, budget=1),
    Pages(block=3, budget=2),
]


def twin(op: Pages, q, k, v):
    scores = q @ k.mT / q.shape[-1] ** 0.5
    out, keys = [], k.tolist()
    for row, x in zip(scores, q.tolist(), strict=True):
        pages = [range(i, min(i + op.block, len(k))) for i in range(0, len(k), op.block)]
        most = [sum(max(x[t] * keys[j][t] for j in page) for t in range(len(x))) for page in pages]
        best = sorted(range(len(pages)), key=lambda p: -most[p])[: op.budget]
        kept = [j for p in best for j in pages[p]]
        out.append(row[kept].softmax(-1) @ v[kept])
    return torch.stack(out)


draw = head_of(12, 16)


@pytest.mark.parametrize("l", [1, 4, 5, 19])
def test_with_all_pages_it_is_softmax_and_a_budget_beyond_changes_nothing(l):
    q, k, v = draw(l=l)
    for budget in (-(-l // 4), 100):
        torch.testing.assert_close(Pages(4, budget)(q, k, v), Softmax()(q, k, v))


def test_the_page_of_the_largest_score_is_kept_where_pages_are_points():
    q, k, v = draw(l=9)
    at = (q @ k.mT).argmax(-1)
    torch.testing.assert_close(Pages(1, 1)(q, k, v), v[at])


def test_a_short_last_page_has_no_zeros_among_its_keys():
    """Padding of zeros in a box would make a page of negative scores one of score 0."""
    q = torch.ones(1, 2, dtype=F64)
    k = torch.tensor([[-1.0, -1], [-2, -2], [-3, -3], [-0.5, -0.5], [-9, -9]], dtype=F64)
    v = torch.eye(5, dtype=F64)
    out = Pages(block=2, budget=1)(q, k, v)
    assert out[0, 2:4].sum() == pytest.approx(1)
    masked = Pages(block=2, budget=1)(q, k, v, torch.tensor([True, True, True, False, True]))
    assert masked[0, :2].sum() == pytest.approx(1)


def test_the_cost_is_that_of_bounds_and_of_the_kept_keys():
    from softlab.core import Dims

    cost = Pages(block=16, budget=4).cost(Dims(2, 1024, 1024, 64, 64))
    assert cost.flops == 2 * 1024 * (64 * 4 * 64 + 2 * 64 * 128)
    assert Pages(16, 64).cost(Dims(1, 8, 100, 4, 4)) == Softmax().cost(Dims(1, 8, 100, 4, 4))


def test_scores_that_overflow_nothing_keep_one_page():
    q, k, v = draw()
    out = Pages(4, 1)(300 * q, 300 * k, v)
    assert out.isfinite().all()
    assert math.isfinite(float(Pages(4, 1).bound(300 * q, 300 * k, v).max()))
