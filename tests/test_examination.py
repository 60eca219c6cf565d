"""What an examination draws, how it reduces a failure, and how it says what it found."""

import torch

from softlab import laws
from softlab.laws import situations
from softlab.laws.law import drawing, generator


def softmax(q, k, v):
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v


def drawn(op, seed, **how):
    with drawing(laws.Draws(**how)):
        return list(situations.drawn(op, generator(seed), 13))


def test_one_situation_can_be_asked_for():
    op = laws.adapted(softmax)
    (case,) = drawn(op, 5, situation={"keys": 17, "lead": (2, 3)})
    assert (case.q.shape, case.k.shape, case.v.shape) == (
        (2, 3, 9, 4),
        (2, 3, 17, 4),
        (2, 3, 17, 3),
    )
    assert case.mask is None


def test_a_thorough_examination_draws_every_size_up_to_thousands_of_keys():
    op = laws.adapted(softmax)
    seen = {
        case.k.shape[-2]
        for seed in range(situations.SHARES)
        for case in drawn(op, seed, thorough=True)
    }
    assert set(range(1, 130)) <= seen
    assert {1025, 2049, 4097} <= seen
    usual = {case.k.shape[-2] for seed in range(5) for case in drawn(op, seed)}
    assert max(usual) == 513
    triangle = laws.adapted(torch.nn.functional.scaled_dot_product_attention)
    assert all(
        case.q.shape[-2] * case.k.shape[-2] <= situations.MOST
        for case in drawn(triangle, 9, thorough=True)
    )
