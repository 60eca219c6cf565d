"""Laws of the call itself."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from softlab.core import Operator
from softlab.laws.law import Gap, Law, always, lengths, normal, rank_of, refused, takes_mask


def _shape_dtype_device(op: Operator, rng: torch.Generator) -> Iterator[Gap]:
    n, l = lengths(op, rank_of(op) + 3, rank_of(op) + 5)
    for lead in ((), (2,), (2, 3)):
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            sizes = (n, 4), (l, 4), (l, 3)
            q, k, v = (normal(rng, *lead, *size, dtype=dtype) for size in sizes)
            keep = torch.arange(l, device=q.device) > 0
            for mask in ((), (keep.expand(*lead, l),))[: 1 + takes_mask(op)]:
                try:
                    out = op(q, k, v, *mask)
                except RuntimeError as error:
                    if refused(op, error, dtype):
                        continue
                    raise
                wrong = (
                    (out.shape != (*lead, n, 3))
                    + (out.dtype != dtype)
                    + (out.device != q.device)
                    + (not bool(out.isfinite().all()))
                )
                where = f"lead {lead}, {dtype}{', masked' * len(mask)}"
                yield Gap(float(wrong), 0, f"{where}: got {tuple(out.shape)}, {out.dtype}")


def _deterministic(op: Operator, rng: torch.Generator) -> Iterator[Gap]:
    n, l = lengths(op, rank_of(op) + 3, rank_of(op) + 5)
    q, k, v = normal(rng, 2, n, 4), normal(rng, 2, l, 4), normal(rng, 2, l, 3)
    kept = [x.clone() for x in (q, k, v)]
    state = torch.get_rng_state()
    first, second = op(q, k, v), op(q, k, v)
    yield Gap(float(not torch.equal(first, second)), 0, "two equal calls")
    yield Gap(float(not torch.equal(state, torch.get_rng_state())), 0, "the global generator")
    changed = any(not torch.equal(x, y) for x, y in zip((q, k, v), kept, strict=True))
    yield Gap(float(changed), 0, "the caller's tensors")


SHAPE_DTYPE_DEVICE: Law[Operator] = Law(
    "shape, dtype and device",
    "q (..., n, d), k (..., l, d), v (..., l, e) give a finite (..., n, e) like the input, "
    "with a mask too",
    always,
    _shape_dtype_device,
    family="interface",
    allows="nothing",
    catches="a result in float64, or transposed",
    examples=1,
)
DETERMINISTIC: Law[Operator] = Law(
    "deterministic",
    "equal calls agree to the bit, draw nothing from the global generator, change no argument",
    always,
    _deterministic,
    family="interface",
    allows="no bit",
    catches="noise from the global generator; an update in place",
    any_dtype=True,
)
