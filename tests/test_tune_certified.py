"""Candidates by certificate: smallest settings that are certified on what a layer is given."""

import math
from pathlib import Path

import pytest
import torch
from command_line import call
from test_tune import drawn, here, made  # noqa: F401, the fixture makes the files
from torch import nn
from torch.nn import functional

from softlab import tuning
from softlab.capture import record
from softlab.tuning.certified import families, proposals


def calls_of(model, x):
    with torch.no_grad(), record(model) as seen:
        model(x)
    return [*seen]


class Masked(nn.Module):
    """One layer with a mask of its own."""

    def __init__(self, **more):
        super().__init__()
        self.more = more

    def forward(self, x):
        return functional.scaled_dot_product_attention(x, x, x, **self.more)


def test_a_proposal_is_the_smallest_setting_that_is_certified_on_all_inputs():
    layer = [calls_of(made(), drawn(2)[i : i + 1])[0] for i in range(2)]
    rows = torch.cat([functional.scaled_dot_product_attention(c.q, c.k, c.v) for c in layer])
    error = 0.5 * float(rows.double().square().sum(-1).mean().sqrt())
    found = {x.family: x for x in proposals(layer, 0.5)}
    assert set(found) == {"BigBird", "Local", "Pages", "RPCholesky"}
    for name, knob in (("RPCholesky", "rank"), ("Local", "window")):
        op = found[name].operator
        m = getattr(op, knob)
        less = type(op)(**{knob: m - 1})
        bounds = [[float(x.bound(c.q, c.k, c.v).max()) for c in layer] for x in (op, less)]
        assert max(bounds[0]) <= error < max(bounds[1])
        errors = [op(c.q, c.k, c.v) - op.target(c.q, c.k, c.v) for c in layer]
        assert max(float(e.norm(dim=-1).max()) for e in errors) <= error
        share = float(found[name].says.partition("by more than ")[2].partition(" ")[0])
        assert share == pytest.approx(0.5 * max(bounds[0]) / error, rel=1e-2)


def test_a_family_that_is_not_certified_says_so():
    (sharp,) = calls_of(made(), drawn(1))[1:]
    found = {x.family: x for x in proposals([sharp], 0.1)}["RPCholesky"]
    assert found.operator is None
    assert "no rank up to 24 is certified" in found.says


def test_a_causal_layer_is_asked_of_the_causal_form():
    (layer,) = calls_of(Masked(is_causal=True), drawn(2))
    found = {x.family: x for x in proposals([layer], 0.3)}
    local = found["Local"].operator
    assert not local.causal
    causal = type(local)(local.window, causal=True)
    wide = functional.scaled_dot_product_attention(layer.q, layer.k, layer.v, is_causal=True)
    error = 0.3 * float(wide.square().sum(-1).mean().sqrt())
    assert float(causal.bound(layer.q, layer.k, layer.v).max()) <= error
    assert found["Pages"].operator is None
    assert "no causal form" in found["Pages"].says


def test_masks_that_certificates_cannot_see_are_refused():
    keys = torch.arange(24) < 17
    (layer,) = calls_of(Masked(attn_mask=keys[None].expand(24, 24)), drawn(2))
    found = {x.family: x for x in proposals([layer], 1e9)}
    assert "padding" in found["BigBird"].says  # its windows know of all queries
    assert found["Local"].operator is not None or "padding" in found["Local"].says
    bias = torch.zeros(24, 24).index_fill_(1, torch.tensor([3]), -2.0)
    (layer,) = calls_of(Masked(attn_mask=bias), drawn(2))
    assert all("bias" in x.says for x in proposals([layer], 0.3))
    (layer,) = calls_of(Masked(), torch.zeros(2, 24, 16))
    assert all("of size 0" in x.says for x in proposals([layer], 0.3))


def tuned(x, **more):
    few = ["Uniform()"]
    return tuning.tune(made(), [((x,), {})], within=0.02, candidates=few, heads=False, **more)


def test_the_table_has_what_is_proposed_and_refused_and_knows_no_held_out_input():
    x = drawn(4)
    found = tuned(x, certified=0.3)
    rows = [row for row in found.rows if row["kind"] == "certificate"]
    assert len(rows) == 2 * len(families())
    ok = [row for row in rows if row["status"] == "ok"]
    assert "RPCholesky(rank=" in " ".join(row["plan"] for row in ok)
    assert all(row["layer"] == "0" and row["attention"] < 1 for row in ok)
    assert all(math.isnan(row["value"]) and row["says"] for row in rows)
    refused = [row["says"] for row in rows if row["status"] == "refused"]
    assert any("as much counted work as exact attention" in says for says in refused)
    assert any("is certified to err by at most" in says for says in refused)
    assert f"{len(ok)} candidates in 1 of 2 layers" in found.said
    assert f"{len(refused)} were refused" in found.said
    other = x.clone()
    other[1::2] *= 3
    again = [row for row in tuned(other, certified=0.3).rows if row["kind"] == "certificate"]
    assert [row["plan"] for row in again] == [row["plan"] for row in rows]
    assert [row["says"] for row in again] == [row["says"] for row in rows]


def test_a_share_from_the_shell(monkeypatch):
    one = {"RPCholesky": families()["RPCholesky"]}
    monkeypatch.setattr("softlab.tuning.certified.families", lambda: one)
    words = ("tune", "mine.py:make", "--input", "x.pt", "--within", "0.02", "--layers")
    words += ("--candidates", "Uniform()", "--certified")
    result = call(*words, "0.3")
    assert result.exit_code == 0, result.output
    assert "Certified to err in no row by more than 0.3" in result.stdout.replace("\n", " ")
    assert "certificate" in Path("tuned/table.csv").read_text()
    for share in ("0", "nan", "-1", "inf"):
        result = call(*words, share)
        assert result.exit_code == 2
        assert f"certified is {float(share)}; give the share" in result.stderr.replace("\n", " ")
