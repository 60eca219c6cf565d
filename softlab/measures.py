"""Numbers for one case: how far an operator is from its target, and what a call costs.

Errors are relative and taken against ``op.target`` in float64 on the same, already rounded, input:
an operator answers for its own arithmetic and not for the rounding of what it was given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from softlab import spectra, validation
from softlab.core import Dims, Operator, as_matrix, norm
from softlab.error_budget import split
from softlab.pinv import Inverting, Nystrom, Status, applier
from softlab.primitives.certificates import relative as relative_bound
from softlab.profiling import ENOUGH, Numbers, peak_memory, seconds


class Reference:
    """What an exact operator makes of one input, in float64; computed once, on first use.

    Arguments: ``target``; q (n, d), k (l, d), v (l, e), one matrix each. Raises ``ValueError`` for
    more dimensions: a relative error over a batch hides its worst matrix. ``matrix`` and
    ``svd`` take the memory of the dense (n, l) matrix, the rest does not.
    """

    def __init__(self, target: Operator, q: Tensor, k: Tensor, v: Tensor) -> None:
        _one_head(q, k, v)
        self.target = target
        self.q, self.k, self.v = (x.double() for x in (q, k, v))

    @cached_property
    def output(self) -> Tensor:
        """The target's output, (n, e)."""
        return self.target(self.q, self.k, self.v)

    @cached_property
    def row_mass(self) -> Tensor:
        """Row sums of the target's matrix, (n,): near zero where a kernel underflows."""
        return self.target(self.q, self.k, torch.ones_like(self.v[:, :1])).squeeze(1)

    @cached_property
    def uniform_error(self) -> float:
        """Relative error of the answer that is the mean of v for every query.

        Of the values up to its own where the target is causal.
        """
        mean = self.v.mean(0)
        if self.target.traits.causal:
            mean = self.v.cumsum(0) / torch.arange(1, len(self.v) + 1).to(self.v).unsqueeze(1)
        return relative(mean - self.output, self.output)

    @cached_property
    def matrix(self) -> Tensor:
        """The target's matrix, (n, l)."""
        return as_matrix(self.target, self.q, self.k)

    @cached_property
    def svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """Thin singular value decomposition of the matrix: U, singular values falling, V^T."""
        u, s, vh = torch.linalg.svd(self.matrix, full_matrices=False)
        return u, s, vh

    def least(self, rank: int) -> spectra.Tails:
        """Least relative error of any matrix of that rank in three norms, of ``spectra.tails``."""
        return spectra.tails(spectra.Spectrum(self.svd[1], 0.0)).relative(rank)

    def bound(self, rank: int) -> tuple[float, float]:
        """The ``least`` error of that rank in Frobenius and in spectral norm."""
        best = self.least(rank)
        return float(best.frobenius), float(best.spectral)


def _one_head(q: Tensor, k: Tensor, v: Tensor) -> None:
    if {getattr(x, "ndim", 2) for x in (q, k, v)} != {2}:
        shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        msg = f"one case is one head: q, k and v must have two dimensions, got {shapes}."
        raise ValueError(msg)
    for name, x in {"q": q, "k": k, "v": v}.items():
        validation.matrix(x, name)


def _target(op: Operator) -> Operator:
    if isinstance(op, type) or not hasattr(op, "target"):
        msg = f"op is {op!r:.80}; give an operator, which has a target, such as Softmax()."
        raise TypeError(msg)
    return op.target


def accuracy(
    op: Operator, q: Tensor, k: Tensor, v: Tensor, ref: Reference | None = None
) -> Numbers:
    """Every error of one case: those of ``output_error`` and of ``matrix_error``."""
    ref = ref or Reference(_target(op), q, k, v)
    return output_error(op, q, k, v, ref) | matrix_error(op, q, k, v, ref)


def output_error(
    op: Operator, q: Tensor, k: Tensor, v: Tensor, ref: Reference | None = None
) -> Numbers:
    """Relative error of the output, and the skill it amounts to.

    ``output_error`` = |out - exact|_F / |exact|_F; ``uniform_error`` the same for the mean of v;
    ``skill`` = 1 - output_error / min(1, uniform_error): 1 is exact, 0 no better than answering
    the mean of v, or nothing (whose error is 1), whichever is nearer; negative is worse.
    ``row_mass`` and ``row_mass_min``: mean and least row sum of the target's matrix. ``finite``:
    whether the output is; where it is not, its errors are infinite.

    Arguments as for ``Reference``, which may be passed in if it was computed before.
    """
    ref = ref or Reference(_target(op), q, k, v)
    return _output_error(op(q, k, v).double(), ref)


def _output_error(out: Tensor, ref: Reference) -> Numbers:
    finite = bool(out.isfinite().all())
    error = relative(out - ref.output, ref.output) if finite else math.inf
    return {
        "output_error": error,
        "uniform_error": ref.uniform_error,
        "skill": 1 - error / max(min(1.0, ref.uniform_error), torch.finfo(torch.double).eps),
        "row_mass": float(ref.row_mass.mean()),
        "row_mass_min": float(ref.row_mass.min()),
        "finite": finite,
    }


def matrix_error(
    op: Operator, q: Tensor, k: Tensor, v: Tensor, ref: Reference | None = None
) -> Numbers:
    """Relative error of the attention matrix, beside the least that its rank allows.

    ``matrix_error`` = |A - M|_F / |M|_F and ``spectral_error`` = |A - M|_2 / |M|_2, with A the
    operator's matrix and M the target's; ``svd_bound`` and ``svd_bound_spectral``, the least that
    a matrix of rank ``op.rank`` can have; ``ratio_to_bound`` and ``ratio_to_bound_spectral``,
    error over bound, the bound taken no smaller than the rounding unit of the input's dtype.
    Empty for an operator that is not linear in v; no bounds for one without a rank.
    """
    if not op.traits.linear_in_v:
        return {}
    ref = ref or Reference(_target(op), q, k, v)
    difference = as_matrix(op, q, k).double() - ref.matrix
    finite = bool(difference.isfinite().all())
    errors = (
        relative(difference, ref.matrix) if finite else math.inf,
        float(spectra.spectral_norm(difference)) / float(ref.svd[1][0]) if finite else math.inf,
    )
    row: Numbers = dict(zip(("matrix_error", "spectral_error"), errors, strict=True))
    rank = getattr(op, "rank", None)
    if rank is not None:
        for name, error, bound in zip(("", "_spectral"), errors, ref.bound(rank), strict=True):
            row[f"svd_bound{name}"] = bound
            row[f"ratio_to_bound{name}"] = error / max(bound, torch.finfo(q.dtype).eps)
    return row


def certified_error(op: Operator, q: Tensor, k: Tensor, v: Tensor) -> dict[str, float | None]:
    """``certified_error``: an upper bound of ``output_error`` that needs no exact output.

    From ``op.bound``, for an operator that claims ``certified``, else None; infinite where the
    bound is as large as the output, and so says nothing. Arguments: of one matrix.
    """
    _one_head(q, k, v)
    if not op.traits.certified:
        return {"certified_error": None}
    out, held = op(q, k, v), cast("Any", op)
    return {"certified_error": relative_bound(held.bound(q, k, v, out=out), out)}


def inversion(op: Operator, q: Tensor, k: Tensor) -> dict[str, str | float | int]:
    """How the inversion of the operator's core ended, which its output does not tell.

    ``core_residual``, the largest |A X A - A|_F / |A|_F of the X that the operator applies, a
    shift of its solver included; infinite where that X is not finite. ``core_status``, the worst
    over the matrices (a name of ``softlab.pinv.Status``), and ``core_steps``, the most steps, are
    what ``solve`` says of its best iterate, which more steps can spoil: DIVERGED where the residual
    of the applied X is above 1, that of a zero matrix. Empty for an operator that inverts nothing.
    """
    if not isinstance(op, Inverting):
        return {}
    core = op.core(q, k)
    result = op.pinv.solve(core)
    try:
        with torch.no_grad():
            again = core @ applier(op.pinv, core)(core)
        residual = float((norm(again - core, (-2, -1)) / norm(core, (-2, -1))).max())
    except ValueError:  # an inverse that overflowed, which the operator would not apply either
        residual = math.inf
    status, known = Status(int(result.status.max())), math.isfinite(residual)
    if not known or residual > 1 + math.sqrt(torch.finfo(core.dtype).eps):
        status = max(status, Status.DIVERGED)
    return {
        "core_status": status.name,
        "core_residual": residual if known else math.inf,
        "core_steps": int(result.steps.max()),
    }


def error_budget(op: Nystrom, q: Tensor, k: Tensor, v: Tensor) -> Numbers:
    """The error of one case by its causes, as of ``softlab.error_budget.split``.

    For landmarks, normaliser, solve and precision: ``landmarks_error`` and so on, the relative size
    of the part, and ``landmarks_share`` and so on, by how much it raises the squared error, over
    the whole; shares sum to 1, and a negative one makes up for the parts before it.
    ``solve_alone_error`` and ``precision_alone_error``: the sizes of what these do while all but
    the landmarks is exact, as the first two parts always are taken; ``interaction_error``: of what
    is then not accounted for. ``converged_error``: the error with the core inverted exactly, in
    float64. ``budget_error``: that of the operator. Arguments as for ``Reference``.
    """
    Reference(op.target, q, k, v)  # refuses a batch
    found = split(op, q, k, v)
    row: Numbers = {}
    for name, part in found.parts.items():
        row |= {
            f"{name}_error": float(found.size(part)),
            f"{name}_share": float(found.share(name)),
        }
    for name in ("solve", "precision"):
        row[f"{name}_alone_error"] = float(found.size(found.alone[name]))
    return row | {
        "interaction_error": float(found.size(found.interaction)),
        "converged_error": float(found.size(found.converged)),
        "budget_error": float(found.size(found.error)),
    }


def best_of_rank(rank: int, ref: Reference) -> Numbers:
    """The errors of the truncated SVD of the target's matrix, the control that bounds every rank.

    What ``accuracy`` gives for ``TruncatedSVD(rank, target)`` but for that operator's rounding;
    one decomposition serves all ranks of a grid. ``rank``: 1 to min(n, l).
    """
    u, s, vh = ref.svd
    out = (u[:, :rank] * s[:rank]) @ (vh[:rank] @ ref.v)
    frobenius, spectral = ref.bound(rank)
    return _output_error(out, ref) | {
        "matrix_error": frobenius,
        "spectral_error": spectral,
        "svd_bound": frobenius,
        "ratio_to_bound": 1.0,
        "svd_bound_spectral": spectral,
        "ratio_to_bound_spectral": 1.0,
    }


def best_of_keys(count: int, ref: Reference) -> Numbers:
    """The output errors of the target restricted to the heaviest keys of each query, a control.

    What ``output_error`` gives for ``TopK(count)`` but for that operator's rounding, where the
    target's rows sum to one. ``count``: 1 to l.
    """
    least = ref.matrix.topk(count, -1).values[:, -1:]
    kept = torch.where(ref.matrix >= least, ref.matrix, 0.0)
    return _output_error((kept @ ref.v) / kept.sum(-1, keepdim=True), ref)


def expense(
    op: Operator, q: Tensor, k: Tensor, v: Tensor, *, budget: float = ENOUGH, repeats: int = 5
) -> Numbers:
    """What one forward call costs: counted arithmetic, measured seconds and measured memory.

    ``flops``, ``kernel_entries``, ``factorization_flops`` from ``op.cost``; ``seconds`` with its
    quartiles ``seconds_q1`` and ``seconds_q3`` as of ``seconds``; ``peak_bytes`` as of
    ``peak_memory``. Arguments: tensors of any leading dimensions; ``budget`` in seconds and
    ``repeats``, the least number of timed calls.
    """
    for name, x in {"q": q, "k": k, "v": v}.items():
        validation.matrix(x, name)
    cost = op.cost(Dims.of(q, k, v))
    return {
        "flops": cost.flops,
        "kernel_entries": cost.kernel_entries,
        "factorization_flops": cost.factorization_flops,
        **seconds(lambda: op(q, k, v), q.device, budget=budget, repeats=repeats),
        "peak_bytes": peak_memory(lambda: op(q, k, v), q.device),
    }


@dataclass(frozen=True)
class Sample:
    """One drawn input with its exact answers, by target."""

    q: Tensor
    k: Tensor
    v: Tensor
    references: dict[Operator, Reference]

    def reference(self, target: Operator) -> Reference:
        """The target's answers to this input, computed once."""
        if target not in self.references:
            self.references[target] = Reference(target, self.q, self.k, self.v)
        return self.references[target]


def sample(input: Any, seed: int, *, dtype: torch.dtype, device: torch.device) -> Sample:
    """Draw ``input(seed)``, an input as in ``softlab.inputs``.

    Let it be the set-up of a study (``softlab.study.Study.setup``), so that all cases of an input
    share its exact answers.
    """
    drawn = input(seed, dtype=dtype, device=str(device))
    return Sample(drawn.q, drawn.k, drawn.v, {})


def relative(difference: Tensor, exact: Tensor) -> float:
    """|difference|_F / |exact|_F; infinite where an exact answer of zero is missed."""
    error, size = float(norm(difference)), float(norm(exact))
    if size == 0:
        return 0.0 if error == 0 else math.inf
    return error / size
