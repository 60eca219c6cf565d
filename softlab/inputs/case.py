"""What an input is: a frozen value that draws one attention case a seed."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from softlab.core import value
from softlab.validation import placed


class QKV(NamedTuple):
    """One attention case: queries (n, d), keys (l, d), values (l, e), one dtype and device."""

    q: Tensor
    k: Tensor
    v: Tensor


@runtime_checkable
class Input(Protocol):
    """A frozen dataclass of numbers; calling it draws one case.

    ``inp(seed, dtype=..., device=...)``: equal seeds give equal cases. The numbers are drawn in
    float64 on the CPU and then converted, so a case is the same, up to rounding, in every dtype
    and on every device.
    """

    @property
    def n(self) -> int:
        """The number of queries."""
        ...

    def __call__(
        self,
        seed: int = 0,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> QKV:
        """Draw the case of this seed."""
        ...


def delivered(
    q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype, device: torch.device | str
) -> QKV:
    """Convert a drawn case; raise as ``checks.placed``."""
    return QKV(*placed("an input", (q, k, v), dtype, device))


def named(drawn: Input) -> tuple[str, bool]:
    """What tables call the source of a case, and whether it is activations and not drawn.

    The source is the innermost input, of a ``Tied`` one too: its name, or that of its family.
    """
    while (inner := getattr(drawn, "input", None)) is not None:
        drawn = inner
    name = getattr(drawn, "name", None)
    return (type(drawn).__name__ if name is None else str(name)), name is not None


@value
class Tied:
    """The cases of another input with the keys replaced by the queries.

    SOFT ties its two projections, W_q = W_k, which makes its matrix symmetric (Lu et al. 2021,
    section 3.1); this shows what the same activations look like to such a layer. Needs as many
    queries as keys.
    """

    input: Input

    @property
    def n(self) -> int:
        """The number of queries, and of keys."""
        return self.input.n

    def __call__(
        self,
        seed: int = 0,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> QKV:
        """Draw (q, q, v); raise ``ValueError`` where q and k differ in length."""
        q, k, v = self.input(seed, dtype=dtype, device=device)
        if q.shape != k.shape:
            msg = (
                f"{self.input!r} has {len(q)} queries and {len(k)} keys; tying needs as many of "
                "one as of the other. Use a self-attention input."
            )
            raise ValueError(msg)
        return QKV(q, q, v)


@value
class Patches:
    """The cases of another input without its first token, which of an image is the class token.

    What is left of a vision transformer's tokens fills a grid row by row, as selectors on grids
    ask for. Needs two tokens at least.
    """

    input: Input

    @property
    def n(self) -> int:
        """The number of queries."""
        return self.input.n - 1

    def __call__(
        self,
        seed: int = 0,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> QKV:
        """Draw (q, k, v) from the second token on; raise ``ValueError`` where that leaves none."""
        drawn = self.input(seed, dtype=dtype, device=device)
        if min(map(len, drawn)) < 2:
            msg = (
                f"{self.input!r} has {len(drawn.q)} queries and {len(drawn.k)} keys; without the "
                "first none would be left. Use an input of two tokens or more."
            )
            raise ValueError(msg)
        return QKV(*(x[1:] for x in drawn))
