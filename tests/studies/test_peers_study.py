"""Torch's own attention under the laws, and the chapter of all packages."""

import pickle
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from softlab.engine.loading import load
from softlab.operators import Softmax
from softlab.study import run
from studies.peers.chapter import findings, scope, tables

PEERS = load(Path(__file__).parents[2] / "studies" / "peers")
TORCH = [peer for peer in PEERS.PEERS if peer.package == "torch"]


@pytest.mark.parametrize("peer", TORCH, ids=lambda p: f"{p.package}-{p.layer}")
def test_an_adapter_hands_on_what_it_is_given(peer):
    """Unequal lengths, several leading dimensions and a mask of each matrix reach the layer."""
    subject = peer.build()
    q, k, v = (torch.randn(2, 3, n, w, dtype=torch.float64) for n, w in ((7, 4), (9, 4), (9, 5)))
    if subject.equal_lengths:
        q = k
    mask = torch.rand(2, 3, 9) < 0.6
    mask[..., 0] = True
    masks = [None, mask] if subject.masked else [None]
    target = Softmax(causal=subject.traits.causal)
    for key_mask in masks:
        torch.testing.assert_close(subject(q, k, v, key_mask), target(q, k, v, key_mask))


def test_a_peer_can_be_sent_to_a_worker():
    for peer in PEERS.KNOWN:
        assert pickle.loads(pickle.dumps(peer)).layer == peer.layer


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    names = ["linear in v", "padding is ignored", "batch independence", "low rank"]
    study = replace(PEERS.STUDY, axes={"peer": TORCH[:1], "law": names}, quick={})
    outcome = run(study, tmp_path_factory.mktemp("reports"), threads=1)
    assert (outcome.failed, outcome.rows) == (0, 4)
    return pd.read_csv(outcome.folder / "table.csv")


@pytest.fixture(scope="module")
def broken(table):
    """The same where padding is not ignored."""
    return table.assign(
        verdict=table["verdict"].mask(table["law"] == "padding is ignored", "fails")
    )


def test_torch_keeps_the_laws_of_what_it_says(table):
    found = table.set_index("law")
    for law in ("linear in v", "batch independence", "padding is ignored"):
        assert found.verdict[law] == "holds"
    assert found.verdict["low rank"] == "does not apply"
    assert not found.claimed["padding is ignored"]


def test_what_is_broken_and_was_never_claimed_is_told_apart(broken):
    first, said = findings(broken)
    assert first == "Of 1 layers none breaks a law that it claims."
    assert "keeps 2 of 3 laws; breaks none that it claims" in said
    assert said.endswith("never claimed: padding is ignored.")


def test_the_chapter_says_what_is_broken_and_claimed(broken):
    assert scope(broken).startswith("Packages: torch ")
    (made,) = tables(broken.assign(claimed=True))
    assert made["rows"][0][1] == ["padding is ignored", "claimed"]
    said = findings(broken.assign(claimed=True))
    assert said[0].endswith("1 break a law that they claim, most often padding is ignored (1).")
    assert "breaks of what it claims: padding is ignored" in said[1]


@pytest.mark.parametrize(
    "peer", [p for p in PEERS.PEERS if p.package != "torch"], ids=lambda p: f"{p.package}-{p.layer}"
)
def test_an_installed_package_answers(peer):
    """So that a broken adapter does not pass for a broken package."""
    subject = peer.build()
    q, k, v = (torch.randn(2, 12, 4, dtype=torch.float64) for _ in "qkv")
    out = subject(q, k, v).detach()
    assert out.shape == (2, 12, 4)
    assert bool(out.isfinite().all())
    assert float((out - out.mean(-2, keepdim=True)).abs().max()) > 1e-3
