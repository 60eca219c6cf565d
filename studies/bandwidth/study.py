"""Error, rank, conditioning and underflow against the bandwidth: where is low rank honest?

Queries and keys are divided by the stretch t. A Gaussian kernel then has t times its bandwidth,
SOFT's d**0.25, and softmax attention t^2 times its temperature, sqrt(d).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from softlab import measures, spectra
from softlab.core import Operator, as_matrix
from softlab.engine.journal import Row
from softlab.figures import Lines
from softlab.inputs import Clustered, Input, Normal, Recorded, Tied, named, recorded_names
from softlab.landmarks import UniformRandom
from softlab.operators import GaussianAttention, Nystromformer, Skyformer, Soft, Softmax
from softlab.pinv import SVD, Inverting
from softlab.study import Study

from .columns import EXACT, OF_CORES, SOFTMAX, TIED

RANK, DRAWS = 64, 5
STRETCHES = (0.25, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 8.0)
HEADS: list[Input] = [Recorded(name) for name in recorded_names()]
SYNTHETIC: list[Input] = [Normal(512, 32), Clustered(512, 32, clusters=32)]
INPUTS = [case for one in (*HEADS, *SYNTHETIC) for case in (one, Tied(one))]
METHODS: dict[Operator, str] = {
    Softmax(): EXACT,
    Nystromformer(RANK): "Nystromformer",
    Nystromformer(RANK, pinv=SVD()): "Nystromformer, exact inverse",
    GaussianAttention(): EXACT,
    Soft(RANK): "Soft",
    Soft(RANK, pinv=SVD()): "Soft, exact inverse",
    **{Skyformer(RANK, landmarks=UniformRandom(draw)): "Skyformer" for draw in range(DRAWS)},
}
"""An exact operator stands for the best matrix of the rank: its truncated decomposition."""


class Exact(NamedTuple):
    """The matrix M of one target on one stretched input, and its singular values, in float64."""

    matrix: Tensor
    spectrum: spectra.Spectrum


@dataclass(frozen=True)
class Stretched:
    """One stretched input, and what every method is measured against on it, by target."""

    q: Tensor
    k: Tensor
    known: dict[Operator, Exact] = field(default_factory=dict)

    def exact(self, target: Operator) -> Exact:
        """Of this target, computed once."""
        if target not in self.known:
            matrix = as_matrix(target, self.q.double(), self.k.double())
            self.known[target] = Exact(matrix, spectra.spectrum(matrix))
        return self.known[target]


def stretched(input: Input, stretch: float, seed: int) -> Stretched:
    """The queries and keys, rounded as operators are given them: they answer for their own."""
    q, k, _ = input(seed, dtype=torch.float64)
    return Stretched((q / stretch).float(), (k / stretch).float())


def keep(input: Input, op: Operator) -> bool:
    """Softmax on untied inputs, Soft on tied ones; Skyformer, made for both, on both."""
    tied = isinstance(input, Tied)
    if isinstance(op, Skyformer | GaussianAttention):
        return True
    return isinstance(op.target, GaussianAttention) == tied


def measure(
    setup: Stretched, input: Input, op: Any, dtype: torch.dtype, device: torch.device
) -> Row:
    """Error of the method's matrix in ``dtype``; what rank, conditioning and underflow say of M."""
    tied = isinstance(input, Tied)
    q, k, (matrix, values) = setup.q, setup.k, setup.exact(op.target)
    best = spectra.tails(values)
    gaussian = isinstance(op.target, GaussianAttention)
    setting = SOFTMAX if not gaussian else TIED if tied else "untied Gaussian"
    row: Row = {
        "method": METHODS[op],
        "setting": setting,
        "draw": getattr(getattr(op, "landmarks", None), "seed", None),
        "source": named(input)[0],
        "n": len(q),
        "d": q.shape[-1],
        "best_error": float(best.relative(RANK).frobenius),
        "rank_one_error": float(best.relative(1).frobenius),
        "effective_rank": float(spectra.effective_rank(values)),
        "energy_rank": int(spectra.energy_rank(values)),
        "condition": float(spectra.condition_on_range(values)),
        "row_mass": float(matrix.sum(-1).median()),
        "largest_share": float((matrix.amax(-1) / matrix.sum(-1)).nan_to_num(1.0).mean()),
        "underflow": float((matrix < torch.finfo(torch.float32).tiny).double().mean()),
        **dict.fromkeys(OF_CORES),
    }
    if op == op.target:
        return row | {"matrix_error": row["best_error"]}
    q, k = (x.to(device, dtype) for x in (q, k))
    found = as_matrix(op, q, k).double().cpu()
    row["matrix_error"] = measures.relative(found - matrix, matrix)
    if isinstance(op, Inverting):
        row["core_condition"] = float(spectra.condition_on_range(op.core(q, k)))
    return row | measures.inversion(op, q, k)


AGAINST_STRETCH = Lines(
    x="stretch",
    y="matrix_error",
    group="method",
    panel="source",
    page="setting",
    xlabel="stretch $t$ of the bandwidth, $t^2$ of the temperature",
    ylabel="relative error of the matrix",
    references=(EXACT,),
    guides={"rank_one_error": "best of rank one"},
    caption=f"Relative Frobenius error of the matrix at rank {RANK} against the stretch, {{page}}. "
    "Thin black: the best matrix of that rank; grey: the best of rank one.",
    name="error",
)
OF_EXACT = {"method": EXACT}

STUDY = Study(
    name="bandwidth",
    title="Bandwidth and temperature: where low rank is enough",
    question="At which bandwidths of a Gaussian kernel, and at which temperatures of softmax, is "
    f"a rank of {RANK} enough while rank one is not? How large are the errors of methods "
    "there? What happens to their cores, and to the entries of the kernel, elsewhere?",
    axes={"input": INPUTS, "stretch": STRETCHES, "seed": [0], "op": list(METHODS)},
    quick={
        "input": [HEADS[0], Tied(HEADS[0]), Tied(SYNTHETIC[1])],
        "stretch": (0.25, 1.0, 2.0, 4.0),
    },
    measure=measure,
    setup=stretched,
    keep=keep,
    figures=(
        AGAINST_STRETCH,
        replace(
            AGAINST_STRETCH,
            y="effective_rank",
            group="setting",
            page="",
            where=OF_EXACT,
            references=(),
            guides={},
            ylabel="effective rank",
            caption="Effective rank of the exact matrix against the stretch.",
            name="rank",
        ),
        replace(
            AGAINST_STRETCH,
            y="underflow",
            group="source",
            panel="setting",
            page="",
            where=OF_EXACT,
            references=(),
            guides={},
            yscale="linear",
            ylabel="share of entries that underflow",
            caption="Share of the entries of the exact matrix below the smallest normal number of "
            "float32, against the stretch.",
            name="underflow",
        ),
        replace(
            AGAINST_STRETCH,
            y="core_condition",
            group="source",
            panel="method",
            page="",
            where={"method": ("Nystromformer", "Soft", "Skyformer"), "setting": (SOFTMAX, TIED)},
            references=(),
            guides={},
            ylabel="condition of the core",
            caption="Condition number on its range of the core that each method inverts, of 64 "
            "landmarks in float32, against the stretch; Skyformer on tied inputs.",
            name="core",
        ),
    ),
)
