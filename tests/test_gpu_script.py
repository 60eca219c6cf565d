"""The script for a GPU, on the CPU at small sizes: every phase, its quota, and what it resumes."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from benchmarks import gpu
from softlab.operators import GaussianAttention, Nystromformer
from softlab.pinv import NormProduct, NystromformerCubic

ROOT = Path(__file__).parents[1]


def call(*words):
    return subprocess.run(
        [sys.executable, "benchmarks/gpu.py", *map(str, words)], cwd=ROOT, capture_output=True,
        text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_the_script_runs_here_stops_in_time_and_goes_on(tmp_path):
    first = call("--device", "cpu", "--seconds", 4, "--out", tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "not reached" in first.stdout
    tables = {x.parent.name: pd.read_csv(x) for x in (tmp_path / "cpu").glob("*/table.csv")}
    assert {"ceilings", "backends", "correct-float32", "times-bfloat16", "solvers"} <= set(tables)
    before = (tables["correct-float32"]["status"] == "ok").sum()
    assert before > 0
    again = call("--device", "cpu", "--seconds", 4, "--out", tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    table = pd.read_csv(tmp_path / "cpu" / "correct-float32" / "table.csv")
    assert (table["status"] == "ok").sum() >= before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--device", "cuda:99"), "cannot be used here"),
        (("--device", "cpu", "--seconds", "-1"), "give a positive number"),
    ],
)
def test_bad_words_are_refused_in_a_sentence(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.setattr(sys, "argv", ["gpu.py", *words, "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_peers_compute_what_they_are_named_for():
    q, k, v = (gpu.drawn((1, 1, 128, 16), torch.float64, torch.device("cpu"), i) for i in range(3))
    ours = Nystromformer(32, pinv=NystromformerCubic(6, NormProduct(1.0)))(q, k, v)
    torch.testing.assert_close(gpu.eager(q, k, v, rank=32), ours, rtol=1e-9, atol=1e-12)
    ours = GaussianAttention(normalization="row")(k, k, v)
    torch.testing.assert_close(gpu.flex(flex_attention, k, k, v), ours, rtol=1e-6, atol=1e-6)
    usual = gpu.peer(gpu.DEFAULT)(q, k, v)
    for name in (f"{gpu.DEFAULT}, math", f"{gpu.DEFAULT}, flash"):
        torch.testing.assert_close(gpu.peer(name)(q, k, v), usual)
