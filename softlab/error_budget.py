"""The error of a Nystrom-type operator, taken apart by its causes.

Between the target and the operator stand operators in which one cause after another takes effect:

    target -> landmarks -> normaliser -> solve -> precision = op

``landmarks``: the target's matrix sampled at the operator's landmarks, its core inverted exactly,
its degrees those of the target. ``normaliser``: with the operator's own degrees. ``solve``: with
its own inverse, which stops early or is shifted. ``precision``: in the dtype of the input; all
before it is in float64. The differences between neighbours are the parts of the error, and add up
to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from softlab import notebook, validation
from softlab.core import norm
from softlab.pinv import Nystrom

PARTS = ("landmarks", "normaliser", "solve", "precision")
"""The causes in the order in which they take effect."""


@dataclass(frozen=True)
class Budget:
    """The parts of one error, tensors (..., n, e) in float64.

    ``exact``: the target's output. ``error``: the operator's output less that. ``parts``: what each
    of ``PARTS`` adds on top of those before it; their sum is ``error``. ``alone``: what each adds
    to the landmarks' error while the others are exact, since without landmarks there is nothing to
    solve; for the first two that is the part itself.
    """

    exact: Tensor
    error: Tensor
    parts: dict[str, Tensor]
    alone: dict[str, Tensor]

    @property
    def interaction(self) -> Tensor:
        """The error less what its causes do alone: how they amplify or cancel each other."""
        return self.error - sum(self.alone.values(), torch.zeros_like(self.error))

    @property
    def converged(self) -> Tensor:
        """The error with the core inverted exactly, in float64."""
        return self.after("normaliser")

    def size(self, part: Tensor) -> Tensor:
        """|part|_F / |exact|_F per matrix (...); infinite where an exact answer of zero is missed.

        Sizes obey the triangle inequality alone: two large parts can leave a small error.
        """
        size, scale = norm(part, (-2, -1)), norm(self.exact, (-2, -1))
        return torch.where(size > 0, size / scale, 0)

    def after(self, cause: str) -> Tensor:
        """The error once ``cause`` and those before it have taken effect: sums of ``parts``."""
        return sum(
            (self.parts[name] for name in PARTS[: PARTS.index(cause) + 1]),
            torch.zeros_like(self.error),
        )

    def share(self, cause: str) -> Tensor:
        """By how much the cause raises the squared error, over the whole, per matrix (...).

        (|after|_F^2 - |before|_F^2) / |error|_F^2, 0 where there is no error. The shares of
        ``PARTS`` sum to 1. A negative one is of a cause that makes up for those before it.
        """
        size = norm(self.error, (-2, -1))[..., None, None]
        size = torch.where(size > 0, size, 1)  # divided by twice: a square could overflow or vanish
        part, after = self.parts[cause] / size, self.after(cause) / size
        return (part * (2 * after - part)).sum((-2, -1))

    def _repr_html_(self) -> str:
        def cell(x: Tensor) -> float | str:
            return notebook.middle(x.flatten().tolist())

        rows: list[tuple[object, ...]] = [
            (x, cell(self.size(self.parts[x])), cell(self.share(x)), cell(self.size(self.alone[x])))
            for x in PARTS
        ]
        rows.append(("all", cell(self.size(self.error)), 1.0, ""))
        many = self.error[..., 0, 0].numel()
        over = f", median and range of {many} matrices" if many > 1 else ""
        head = ("cause", "relative size", "share of the squared error", "alone")
        return notebook.table(f"The error's parts{over}", head, rows)


def split(op: Nystrom, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Budget:
    """Split the error of ``op`` on q (..., n, d), k (..., l, d), v (..., l, e) into its causes.

    ``op``: an operator that offers ``softlab.pinv.Nystrom``, such as Soft, Nystromformer and
    Skyformer. The exact answers are of the input as it is given, already rounded to its dtype.
    Takes seven forward calls, five in float64, and the memory of the n x l scores of softmax.

    Raises ``TypeError`` for an operator that cannot be taken apart, and whatever the operator
    raises on this input, as where its inverse overflows.
    """
    if isinstance(op, type) or not isinstance(op, Nystrom):
        msg = (
            f"{op!r} is no Nystrom-type operator whose error can be split; it must offer core, "
            "pinv, inverted_exactly and normalized_exactly, as Soft, Nystromformer and Skyformer "
            "do."
        )
        raise TypeError(msg)
    q, k, v, key_mask = validation.admit(q, k, v, key_mask)
    given = q, k, v, key_mask
    wide = q.double(), k.double(), v.double(), key_mask
    converged = op.inverted_exactly()
    exact = op.target(*wide)
    sampled = converged.normalized_exactly(*wide)
    normalized = converged(*wide)
    solved = op(*wide)
    rounded = op(*given).double()
    chain = (exact, sampled, normalized, solved, rounded)
    parts = {
        name: after - before
        for name, before, after in zip(PARTS, chain[:-1], chain[1:], strict=True)
    }
    alone = parts | {
        "solve": op.normalized_exactly(*wide) - sampled,
        "precision": converged.normalized_exactly(*given).double() - sampled,
    }
    return Budget(exact, rounded - exact, parts, alone)
