"""Candidates by certificate: of each family the smallest setting that is certified for a layer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from softlab import operators as own_operators
from softlab.capture import Call
from softlab.capture.dispatch import at_usual_scale, couples_queries, ungrouped
from softlab.capture.effect import own
from softlab.capture.masks import UnableError, read
from softlab.catalogue import parts_of
from softlab.core import causal_form, norm
from softlab.operators import Softmax
from softlab.primitives.certificates import at_most


class Proposal(NamedTuple):
    """What a family answers for a layer: an operator, None where it is refused, and why."""

    family: str
    operator: Any
    says: str


def families() -> Mapping[str, Any]:
    """Operators of softmax attention that answer ``at_most``, at their least setting, by name."""
    found = {
        part.name: part.at(1, 0)
        for part in parts_of(own_operators, "target")
        if getattr(part.kind, "at_most", None) is at_most and hasattr(part.kind, "knob")
    }
    return {name: op for name, op in found.items() if op.target == Softmax() and op.traits.exact_at}


def proposals(calls: Sequence[Call], share: float) -> list[Proposal]:
    """Of each family the smallest setting that is certified on these calls of a layer, or why none.

    Certified is that no row errs by more than ``share`` times the root mean square of the lengths
    of the layer's rows, so that the whole errs by at most that share of its Frobenius norm.
    """
    with torch.no_grad():
        outs = [own(call) for call in calls]
        rows = sum(out.shape[:-1].numel() for out in outs)
        size = math.sqrt(sum(float(norm(out.double())) ** 2 for out in outs) / rows)
        return [_proposed(name, op, calls, share, size) for name, op in families().items()]


def _proposed(name: str, op: Any, calls: Sequence[Call], share: float, size: float) -> Proposal:
    knob, error = op.traits.exact_at, share * size
    try:
        if not 0 < error < math.inf:
            msg = f"the layer's own output is of size {size}, of which there is no share."
            raise UnableError(msg)
        cases = [_case(op, call) for call in calls]
        m = max(getattr(form.at_most(error, *case), knob) for form, case in cases)
        # A setting that is certified on each call alone need not be so on all, as of landmarks.
        most = max(float(_at(form, m).bound(*case).max()) for form, case in cases)
        if most > error:
            msg = (
                f"{knob}={m}, the largest that an input needs, is certified to err by "
                f"{most / size:.3g} of the layer's rows on another."
            )
            raise UnableError(msg)
    except (ValueError, TypeError, RuntimeError) as why:
        return Proposal(name, None, f"{why}")
    said = f"no row errs by more than {most / size:.3g} of the layer's rows on {len(calls)} inputs"
    return Proposal(name, _at(op, m), said)


def _at(op: Any, m: int) -> Any:
    return dataclasses.replace(op, **{op.traits.exact_at: m})


def _case(op: Any, call: Call) -> tuple[Any, tuple[Tensor | None, ...]]:
    """The form of the operator that answers a call, and its q, k, v and mask of keys."""
    if call.q.is_nested or call.dropout_p > 0:
        msg = "the layer has a ragged batch or drops weights, for which there is no certificate."
        raise UnableError(msg)
    call = at_usual_scale(ungrouped(call) if call.enable_gqa else call)
    n, l = call.q.shape[-2], call.k.shape[-2]
    found = read(call.mask, call.is_causal, call.q.shape[:-2], n, l)
    form = causal_form(op) if found.causal else op
    if form is None:
        msg = "the layer is causal, and the operator has no causal form."
        raise UnableError(msg)
    if n == 1 < l or (found.key_mask is not None and couples_queries(form.traits)):
        msg = "the layer's padding or past changes what the operator gives to the other queries."
        raise UnableError(msg)
    return form, (call.q, call.k, call.v, found.key_mask)
