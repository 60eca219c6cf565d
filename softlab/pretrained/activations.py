"""Activations of the fetched models as an input: other layers and heads, longer sequences.

``python -m softlab.pretrained.activations [FOLDER]`` writes the package's own recordings
again, byte for byte: models run in float64, images are resampled in float64, and only the result
is rounded.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from softlab.capture import record
from softlab.core import value
from softlab.datasets.download import folder
from softlab.datasets.wheels import CATALOGUE
from softlab.inputs.case import QKV, delivered
from softlab.inputs.recorded import DATA
from softlab.pretrained import minilm, vit
from softlab.validation import OneOf, Size

DEPTH, HEADS = {"minilm": 6, "vit": 12}, {"minilm": 12, "vit": 6}
SAMPLES = {
    "minilm": ("heaps", "names", "objects", "pickles"),
    "vit": ("astronaut", "camera", "chelsea", "coffee"),
}
# The stored heads (layer, head): for each model one whose softmax matrix is of low, one of middle
# and one of high rank; the measured rank is in each file's header.
STORED = {
    "minilm": ((0, 0), (1, 8), (5, 2)),
    "vit": ((4, 5), (8, 3), (11, 4)),
}
STORED_N = {"minilm": 512, "vit": 1025}


@value
class Activations:
    """Queries, keys and values of one head of a fetched model, as they reach its attention.

    ``Activations("vit", layer=5, head=2, n=4097)(seed)`` runs the model in float64 on sample
    ``seed``, one of ``samples``. ``minilm`` reads a passage's first n tokens, 3 <= n <= 512;
    ``vit`` a photograph at 14 sqrt(n - 1) pixels, so n - 1 is a square (beyond the photographs'
    own 300 to 512 pixels they are enlarged). At the stored lengths and heads this is ``Recorded``
    before its rounding.

    Raises ``ValueError`` for a layer, head, n or seed that is not there. The call raises
    ``FileNotFoundError`` until ``softlab fetch minilm``, or ``vit`` and ``photographs``, has run,
    and needs the extra ``models``.
    """

    model: Annotated[str, OneOf(*SAMPLES)]
    layer: int
    head: int
    n: Size

    def __post_init__(self) -> None:
        for name, got, count in (
            ("layer", self.layer, DEPTH[self.model]),
            ("head", self.head, HEADS[self.model]),
        ):
            if not 0 <= got < count:
                msg = f"Activations.{name} is {got}; {self.model} has {name}s 0 to {count - 1}."
                raise ValueError(msg)
        if self.model == "minilm" and not 3 <= self.n <= 512:
            msg = f"Activations.n is {self.n}; minilm takes 3 to 512 tokens."
            raise ValueError(msg)
        if self.model == "vit" and (self.n < 2 or math.isqrt(self.n - 1) ** 2 != self.n - 1):
            side = max(1, round(math.sqrt(self.n)))
            msg = (
                f"Activations.n is {self.n}; vit has one token more than a square of patches. "
                f"Give {side * side + 1}, or 257, 1025, 4097."
            )
            raise ValueError(msg)

    @property
    def samples(self) -> int:
        """The number of samples."""
        return len(SAMPLES[self.model])

    def __call__(
        self,
        seed: int = 0,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> QKV:
        """Run the model on sample ``seed``."""
        if not 0 <= seed < self.samples:
            msg = f"{self!r} has {self.samples} samples: seeds 0 to {self.samples - 1}, got {seed}."
            raise ValueError(msg)
        q, k, v = _layer(self.model, self.layer, self.n, SAMPLES[self.model][seed])
        return delivered(q[self.head], k[self.head], v[self.head], dtype, device)


@functools.lru_cache(maxsize=4)
def _layer(model: str, layer: int, n: int, sample: str) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v of every head of one layer, (h, n, d) each, in float64."""
    net, given = _model(model), _given(model, n, sample)
    with record(net, keep=[layer]) as calls:
        net(given, depth=layer + 1)
    return calls[0].q[0], calls[0].k[0], calls[0].v[0]


@functools.lru_cache(maxsize=1)
def _model(model: str) -> torch.nn.Module:
    place = folder(model)
    return (minilm.load(place) if model == "minilm" else vit.load(place)).double()


def _given(model: str, n: int, sample: str) -> Tensor:
    if model == "minilm":
        return minilm.tokens(folder(model), _source(model, sample).read_text(encoding="utf-8"), n)
    return vit.pixels(_source(model, sample), vit.PATCH * math.isqrt(n - 1))


def _source(model: str, sample: str) -> Path:
    if model == "minilm":
        return DATA / "passages" / f"{sample}.txt"
    return folder("photographs") / f"{sample}.png"


def rank99(q: Tensor, k: Tensor) -> int:
    """The number of singular values that hold 99 % of the energy of softmax(q k^T / sqrt(d))."""
    energy = torch.linalg.svdvals(torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1)).square()
    return int((energy.cumsum(0) < 0.99 * energy.sum()).sum()) + 1


def store(model: str, into: Path) -> None:
    """Write the recordings of one model into a folder, a file a head."""
    from safetensors.torch import save_file

    wheel, n = CATALOGUE[model], STORED_N[model]
    for layer, head in STORED[model]:
        draw = Activations(model, layer, head, n)
        cases = [draw(seed, dtype=torch.float16) for seed in range(draw.samples)]
        origin: dict[str, Any] = {
            "model": wheel.model,
            "wheel": wheel.requirement,
            "sha256": wheel.sha256,
            "licence": wheel.licence,
            "layer": layer,
            "head": head,
            "scale": "1/sqrt(d)",
            "stored": "float16, from a float64 run",
            "samples": [
                {
                    "name": name,
                    "sha256": hashlib.sha256(_source(model, name).read_bytes()).hexdigest(),
                }
                for name in SAMPLES[model]
            ],
            "rank99": [rank99(q.double(), k.double()) for q, k, _ in cases],
        }
        stacked = {name: torch.stack([getattr(case, name) for case in cases]) for name in "qkv"}
        # One key, because the order of several in the header is not fixed.
        target = into / f"{model}.layer{layer}.head{head}.safetensors"
        save_file(stacked, target, {"origin": json.dumps(origin)})
        target.chmod(0o644)


if __name__ == "__main__":
    folder_given = Path(sys.argv[1]) if len(sys.argv) > 1 else DATA
    folder_given.mkdir(parents=True, exist_ok=True)
    for name in STORED:
        store(name, folder_given)
