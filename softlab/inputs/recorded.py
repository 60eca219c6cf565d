"""Activations of real models, stored in the package: no download, the same on every machine."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from softlab.core import value
from softlab.hints import hint
from softlab.inputs.case import QKV, delivered
from softlab.validation import fields, typed

DATA = Path(__file__).parent / "data"


def recorded_names() -> tuple[str, ...]:
    """The names that ``Recorded`` knows, sorted."""
    return tuple(sorted(path.stem for path in DATA.glob("*.safetensors")))


@value
class Recorded:
    """Queries, keys and values of one head of a trained model, as they reached its attention.

    ``Recorded("minilm.layer0.head0")(seed)`` is the head on stored sample ``seed``, an independent
    passage or photograph, 0 <= seed < ``samples``. The model's own attention is
    softmax(q k^T / sqrt(d)) v. Stored in float16, computed in float64: a recording *is* its
    rounded numbers, and converting them to float32 or float64 is exact.

    Raises ``ValueError`` for a name that is not stored and for a seed beyond the samples.
    ``origin`` tells where it comes from; licences are in ``softlab/inputs/data/LICENSES.md``.
    """

    name: str

    def __post_init__(self) -> None:
        fields(self)
        names = recorded_names()
        if self.name not in names:
            near = hint(self.name, names)
            msg = f"no recording is named {self.name!r}; there are {', '.join(names)}.{near}"
            raise ValueError(msg)

    @property
    def path(self) -> Path:
        """The file that holds it."""
        return DATA / f"{self.name}.safetensors"

    @property
    def n(self) -> int:
        """The number of tokens."""
        return _shape(self.path)[1]

    @property
    def samples(self) -> int:
        """The number of stored samples."""
        return _shape(self.path)[0]

    @property
    def origin(self) -> dict[str, Any]:
        """Model, wheel and checksum, layer, head, samples, and ``rank99`` measured on each sample.

        ``rank99`` is the number of singular values that hold 99 % of the energy (the sum of their
        squares) of the softmax matrix.
        """
        with safe_open(self.path, "pt") as file:
            found: dict[str, Any] = json.loads(file.metadata()["origin"])
        return found

    @typed
    def __call__(
        self,
        seed: int = 0,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> QKV:
        """Read stored sample ``seed``."""
        if not 0 <= seed < self.samples:
            msg = (
                f"{self!r} has {self.samples} stored samples, so its seeds are 0 to "
                f"{self.samples - 1}; got {seed}. For more, see softlab.pretrained.activations."
            )
            raise ValueError(msg)
        with safe_open(self.path, "pt") as file:
            q, k, v = (file.get_slice(name)[seed] for name in "qkv")
        return delivered(q, k, v, dtype, device)


@functools.cache
def _shape(path: Path) -> tuple[int, ...]:
    with safe_open(path, "pt") as file:
        return tuple(file.get_slice("q").get_shape())  # (samples, n, d)
