"""Spectral norm and output scale against the number of tokens, by normalisation.

What a layer does to the size of its input should not depend on how many tokens there are. Of every
input the first n tokens, queries tied to keys, are taken; ``Soft`` has a fixed rank, and one of an
eighth of the tokens as the released code's sampling ratio has it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from softlab import spectra
from softlab.core import Stream, as_matrix
from softlab.engine.journal import Row
from softlab.figures import Lines
from softlab.inputs import Clustered, Input, Normal, Recorded, named
from softlab.operators import GaussianAttention, Soft
from softlab.study import Study

from .columns import EXACT, IDENTICAL, RELEASED

LENGTHS = (64, 128, 256, 512, 1024)
FIXED, RATIO = 32, 8
NORMALIZATIONS = ("none", "row", "symmetric", RELEASED)
LONGEST = LENGTHS[-1]
INPUTS: list[Input] = [
    *(Recorded(name) for name in (
        "minilm.layer0.head0", "minilm.layer5.head2",
        "vit.layer4.head5", "vit.layer8.head3", "vit.layer11.head4",
    )),
    Normal(LONGEST, 32),
    Clustered(LONGEST, 32, clusters=16),
    Clustered(LONGEST, 32, clusters=1, spread=0.0),
]  # fmt: skip
FAMILIES = (EXACT, f"Soft, rank {FIXED}", f"Soft, rank n/{RATIO}")


def operator(n: int, family: str, normalization: str) -> Soft | GaussianAttention:
    """The family's operator for n tokens."""
    if family == EXACT:
        return GaussianAttention(normalization=normalization)
    rank = FIXED if family == FAMILIES[1] else n // RATIO
    return Soft(rank, normalization=normalization)


def keep(input: Input, n: int, family: str, normalization: str) -> bool:
    """No more tokens than there are; the released form belongs to Soft alone."""
    return n <= input.n and (family != EXACT or normalization != RELEASED)


def tokens(input: Input, seed: int, n: int) -> tuple[Tensor, Tensor]:
    """So many tokens in their order, drawn without replacement from all, and values of size 1."""
    q = input(seed, dtype=torch.float64).q
    chosen = Stream(seed, "normalization, tokens").permutation(len(q))[:n].sort().values
    return q[chosen], Stream(seed, "normalization, values").normal(n, 32)


def measure(
    setup: tuple[Tensor, Tensor],
    input: Input,
    n: int,
    family: str,
    normalization: str,
    dtype: torch.dtype,
    device: torch.device,
) -> Row:
    """|M|_2, and the size of the output for values that are noise and for values that agree."""
    q, noise = (x.to(device, dtype) for x in setup)
    op = operator(n, family, normalization)
    matrix = as_matrix(op, q, q).double()
    mass = matrix.sum(-1)
    source, _ = named(input)
    if isinstance(input, Clustered) and input.spread == 0:
        source = IDENTICAL
    core = op.core(q, q).double() if isinstance(op, Soft) else None
    return {
        "source": source,
        "op": repr(op),
        "rank": op.rank if isinstance(op, Soft) else None,
        "spectral_norm": float(spectra.spectral_norm(matrix)),
        "noise_gain": float((matrix @ noise.double()).norm() / noise.double().norm()),
        "ones_gain": float(mass.square().mean().sqrt()),
        "negative_rows": float((mass <= 0).double().mean()),
        "one": 1.0,
        "all_tokens": float(n),
        "core_degree": None if core is None else float(core.sum(-1).median()),
    }


BY_LENGTH = Lines(
    x="n",
    y="spectral_norm",
    group="normalization",
    panel="source",
    page="family",
    xlabel="tokens $n$",
    ylabel="spectral norm of the matrix",
    guides={"one": "1", "all_tokens": "$n$"},
    caption="Spectral norm of the operator's matrix against the number of tokens, {page}.",
    name="norm",
)

STUDY = Study(
    name="normalization",
    title="Normalisation and the norm of the output",
    question="How do the spectral norm of Gaussian attention and the norm of its output grow "
    "with the number of tokens, under each normalisation? What does the released form "
    "bound?",
    axes={
        "input": INPUTS,
        "seed": (0, 1),
        "n": LENGTHS,
        "family": FAMILIES,
        "normalization": NORMALIZATIONS,
    },
    quick={"input": [INPUTS[1], INPUTS[6], INPUTS[7]], "seed": (0,), "n": (64, 128, 256)},
    measure=measure,
    setup=tokens,
    keep=keep,
    figures=(BY_LENGTH,),
)
