"""The claims of the docket: their rules decide both ways, and their formulas are what they say."""

import math

import numpy as np
import pytest
import torch

from softlab import docket
from softlab.engine.loading import load
from softlab.inputs import Recorded
from softlab.operators import Nystromformer, Softmax
from softlab.study_folders import docket as own
from softlab.verdicts import CONTROLS, FAILS, HOLDS, Entry, decide

F64 = torch.float64


def module(name):
    return load(own()[name])


def planted(claim, rule, change=1.0, *, holds):
    """Entries at which the subject holds or not, all controls doing what they must."""
    low, high = rule.ends
    least = max(low, -1e6) if rule.at_least is None else rule.at_least
    most = min(high, 1e6) if rule.at_most is None else rule.at_most
    inside = (least + most) / 2 if rule.scale == "linear" else math.sqrt(max(least, 1e-6) * most)
    outside = most + 1 if rule.at_most is not None else least / 2
    moved = (inside if holds else outside) * change if rule.scale == "log" else None
    if moved is None:
        moved = (inside if holds else outside) + change - 1
    values = {claim.subject: moved} | ({rule.of: 1.0} if rule.of else {})
    for name, kind in claim.controls.items():
        values[name] = inside if CONTROLS[kind] else outside
    return [Entry({}, values)]


@pytest.mark.parametrize("name", sorted(own()))
def test_the_rule_of_each_claim_decides_both_ways_and_flips_past_its_margin(name):
    (claim,) = docket.claims_in(name)
    for _, rule in claim.studies():
        verdicts = {}
        for holds in (True, False):
            found = decide(rule, claim.subject, claim.controls, planted(claim, rule, holds=holds))
            verdicts[holds] = found.kind
            step = found.margin - 1 if rule.scale == "log" else found.margin
            for part, flips in ((1 - 1e-4, False), (1 + 1e-4, True)):
                moved = planted(claim, rule, 1 + part * step, holds=holds)
                again = decide(rule, claim.subject, claim.controls, moved)
                assert (again.kind != found.kind) == flips
        assert verdicts == {True: HOLDS, False: FAILS}


def test_two_ways_to_invert_softs_core_agree():
    steps = module("soft-steps")
    core = steps.of_family("normal", 0)
    for count in (1, 5, 9):
        one, other = steps.measure(core, count), steps.by_eigenvalues(core, count)
        assert one["Newton-Raphson"] == pytest.approx(other["Newton-Raphson"], rel=1e-6)


def test_two_ways_to_invert_nystromformers_core_agree():
    six = module("nystromformer-six")
    core = six.of_family("normal", 0)
    for count in (1, 3, 6):
        one, other = six.measure(core, count), six.by_singular_values(core, count)
        assert one[six.SUBJECT] == pytest.approx(other[six.SUBJECT], rel=1e-6)


def test_nystromformer_written_out_is_the_operator():
    inverse = module("nystromformer-inverse")
    head = "minilm.layer5.head2"
    q, k, v = Recorded(head)(0, dtype=F64)
    exact = Softmax()(q, k, v)
    found = inverse.by_torch(head, 0, 16)
    for name, op in (
        (inverse.SIX, Nystromformer(16)),
        (inverse.SUBJECT, Nystromformer(16).inverted_exactly()),
    ):
        error = float((op(q, k, v) - exact).norm() / exact.norm())
        assert found[name] == pytest.approx(error, rel=1e-6)


def test_a_quintic_of_the_interval_is_the_best_one():
    polar = module("polar-express")
    (a, b, c), distance = polar.best(1e-3, 1.0)
    x = np.linspace(1e-3, 1, 200_001)
    error = a * x + b * x**3 + c * x**5 - 1
    assert np.abs(error).max() == pytest.approx(distance, rel=1e-6)
    signs = np.sign(error[np.abs(error) > distance * (1 - 1e-6)])
    assert 1 + (np.diff(signs) != 0).sum() == 4  # Chebyshev: one more than the coefficients


def test_the_variance_of_positive_features_is_that_of_draws():
    features = module("positive-features")
    x, y = (0.4 * torch.randn(1, 3, generator=torch.Generator().manual_seed(i), dtype=F64)
            for i in (1, 2))  # fmt: skip
    w = torch.randn(400_000, 3, generator=torch.Generator().manual_seed(3), dtype=F64)
    squares = (x + y).square().sum(-1)
    for a in (0.0, features.optimal(squares, 3), -0.1):
        logs = [a * w.square().sum(-1) + math.sqrt(1 - 4 * a) * (z * w).sum(-1)
                + 0.75 * math.log(1 - 4 * a) - z.square().sum() / 2 for z in (x, y)]  # fmt: skip
        draws = (logs[0] + logs[1] - (x * y).sum()).exp()
        assert float(draws.mean()) == pytest.approx(1, abs=0.01)
        assert float(draws.std()) == pytest.approx(features.deviation(squares, 3, a, 1), rel=0.03)
    at = features.optimal(squares, 3)
    least = features.deviation(squares, 3, at, 1)
    assert all(features.deviation(squares, 3, at + step, 1) > least for step in (-0.02, 0.02))


def test_pivots_leave_the_trace_that_the_whole_matrix_says():
    points = module("rpcholesky-points")
    rng = np.random.default_rng(0)
    x, width = points.smile(300, rng)
    chosen = list(rng.permutation(300)[:20])
    factor, errors = points.factored(x, width, lambda _, i: int(chosen[i]), 20)
    a = np.exp(-((x[:, None] - x) ** 2).sum(-1) / (2 * width**2))
    core = a[np.ix_(chosen, chosen)]
    low = a[:, chosen] @ np.linalg.pinv(core, hermitian=True) @ a[chosen]
    assert errors[-1] == pytest.approx(1 - np.trace(low) / 300, rel=1e-6)
    assert factor @ factor.T == pytest.approx(low, abs=1e-7)
    assert (np.diff(errors) <= 0).all()


def test_no_rotation_takes_entries_below_the_least_bound():
    bounds = module("entry-bound")
    q, k = (torch.randn(64, 8, generator=torch.Generator().manual_seed(i), dtype=F64)
            for i in (1, 2))  # fmt: skip
    least = bounds.least_bound(q, k, 64)
    for seed in range(5):
        rng = torch.Generator().manual_seed(seed)
        u = torch.linalg.qr(torch.randn(8, 8, generator=rng, dtype=F64)).Q
        for scale in (0.5, 1.0, 1.3):
            assert bounds.bound(scale * q @ u, k @ u / scale, 64) >= least


def test_block_scales_of_one_block_are_one_scale():
    blocks, other = module("fp8-blocks"), module("fp8-rmse")
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(1), dtype=F64)
    assert torch.equal(blocks.cast(x, 64), blocks.cast(x, 100))
    for block in (8, 64):
        assert torch.allclose(blocks.cast(x, block), other.cast(x, block), rtol=1e-6)
        error = (blocks.cast(x, block) - x).abs() / x.abs().amax()
        assert 0 < float(error.max()) <= 2**-4
    turn = blocks.hadamard(8, 0)
    assert torch.allclose(turn @ turn.mT, torch.eye(8, dtype=F64))


def test_what_underflows_is_below_half_the_least_number():
    underflow = module("fp8-underflow")
    s = torch.tensor([[0.0, -6.9, -6.95, -12.6]], dtype=F64)
    assert underflow.underflown(s, 1.0) == 0.5
    assert underflow.underflown(s, 256.0) == 0.25  # 12.6 - ln 256 = 7.05
    assert underflow.normal_below(0.0) == 0.5


def test_what_a_share_of_a_row_leaves_is_what_is_cut():
    share = module("top-k-share")
    p = torch.softmax(torch.randn(9, 10, generator=torch.Generator().manual_seed(0), dtype=F64), -1)
    kept = torch.where(p >= p.topk(2, -1).values[:, -1:], p, 0.0)
    expected = float((p - kept).norm() / p.norm())
    assert share.measure(p, 0.2, 0)[share.SUBJECT] == pytest.approx(expected)


def test_a_band_plus_a_low_rank_misses_less_than_either_and_two_ways_agree():
    found = module("monarch-structure")
    p = found.later("minilm.layer0.head0")
    n, each = len(p), 32
    half, rank = found.shares(each)
    assert 2 * half + 1 + 2 * rank <= each < 2 * half + 1 + 2 * (rank + 1)
    apart = (torch.arange(n)[:, None] - torch.arange(n)).abs() > half
    missed = found.banded(p, each)
    assert missed < float(p[apart].norm())
    assert missed < float(torch.linalg.svdvals(p)[rank:].norm())
    assert found.banded(torch.where(apart, 0, p), each) < 1e-12
    other = found.by_alternation(p, 16, 0)[found.BAND] * float(p.norm())
    assert other == pytest.approx(missed, rel=0.1)


def test_vectors_that_are_not_here_are_said_to_be_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("SOFTLAB_CACHE", str(tmp_path))
    with pytest.raises(docket.MissingError, match="softlab fetch glove"):
        module("glove").measure(64, 16, 0)
