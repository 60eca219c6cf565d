"""Everything that a GPU is asked for, in one run of at most eight minutes.

    python benchmarks/gpu.py [--device cuda] [--seconds 440] [--out reports]

Phases in the order of their worth, each a study with its share of the time: rows are on the disk at
once, and the same command measures those that are missing. ``--device cpu --seconds 60`` runs the
same code at small sizes. Writes OUT/<device>/<phase>/, which ``softlab report OUT/<device>`` sets.
Exit code 0 where every row that was reached is sound, 1 otherwise.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import functools
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from softlab.catalogue import operators
from softlab.core import Dims, Operator, Stream
from softlab.engine import provenance
from softlab.engine.journal import Row
from softlab.figures import Lines
from softlab.hints import first_line
from softlab.inputs import Recorded, Tied, recorded_names
from softlab.operators import GaussianAttention, Nystromformer, Soft, Softmax
from softlab.pinv import SVD, Chebyshev, Cholesky, NewtonRaphson, NystromformerCubic, Solver
from softlab.profiling import Numbers, once, peak_memory, seconds
from softlab.study import Study, run
from softlab.validation import trusted

QUOTAS = {
    "ceilings": 15,
    "backends": 10,
    "correct": 110,
    "times": 120,
    "rank": 35,
    "length": 35,
    "solvers": 25,
}
"""Seconds of each phase where there are 440; the rest is in reserve."""
WHOLE = 440.0
BOUNDS = {torch.float64: 1e-8, torch.float32: 5e-4, torch.bfloat16: 5e-2}
"""The largest error that is sound, relative, against float64 on the CPU."""
PARTS = {part.name: part.example for part in operators() if not part.distribution}
EXACT: dict[str, Operator] = {
    "Softmax": Softmax(),
    "Softmax, causal": Softmax(causal=True),
    "GaussianAttention": GaussianAttention(),
    "GaussianAttention, row": GaussianAttention(normalization="row"),
}
TIMED: dict[str, Operator] = {
    **EXACT,
    "Soft": Soft(64),
    "Soft, symmetric": Soft(64, normalization="symmetric"),
    "Nystromformer": Nystromformer(64),
    **{name: PARTS[name] for name in ("Performer", "Local", "ColumnSample", "LinearAttention")},
}
DEFAULT, FLEX, EAGER = "torch's attention", "flex_attention, Gaussian", "Nystromformer, eager"
BACKENDS = {
    f"{DEFAULT}, cuDNN": SDPBackend.CUDNN_ATTENTION,
    f"{DEFAULT}, flash": SDPBackend.FLASH_ATTENTION,
    f"{DEFAULT}, efficient": SDPBackend.EFFICIENT_ATTENTION,
    f"{DEFAULT}, math": SDPBackend.MATH,
}
PEERS = (DEFAULT, f"{DEFAULT}, causal", *BACKENDS, FLEX, EAGER)
SOLVERS: dict[str, Solver] = {
    "NewtonRaphson": NewtonRaphson(20),
    "Chebyshev": Chebyshev(),
    "NystromformerCubic": NystromformerCubic(),
    "Cholesky": Cholesky(),
    "SVD": SVD(),
}


class _Clock:
    """How long the phase may take, from its first case, which always runs."""

    share = math.inf
    begin: float | None = None


def in_time() -> None:
    """Raise ``TimeoutError`` after the time of the phase; the next run measures what is left."""
    if _Clock.begin is None:
        _Clock.begin = time.monotonic()
    elif time.monotonic() > _Clock.begin + _Clock.share:
        msg = "not reached: the time of the phase is spent. Run the same command again."
        raise TimeoutError(msg)


HEADS = recorded_names()
LONGEST = "vit.layer8.head3"


def drawn(shape: Sequence[int], dtype: torch.dtype, device: torch.device, seed: int = 0) -> Tensor:
    """Standard normal numbers of a seed, the same on every device."""
    return Stream(seed, "benchmarks.gpu").normal(*shape).to(device, dtype)


def ceiling(what: str, device: torch.device) -> Row:
    """How fast the device copies, and multiplies matrices of a format."""
    in_time()
    return rate(what, device)


def rate(what: str, device: torch.device) -> Row:
    """As ``ceiling``, within a case."""
    large = device.type == "cuda"
    if what == "copy":
        x = drawn((1 << (20 if not large else 27),), torch.float32, torch.device("cpu")).to(device)
        y = torch.empty_like(x)
        found = seconds(lambda: y.copy_(x), device, budget=0.3)
        return {**found, "rate": 2 * x.nbytes / found["seconds"] / 1e9, "unit": "GB/s"}
    m = 8192 if large else 256
    a = torch.ones(m, m, dtype=getattr(torch, what), device=device)
    found = seconds(lambda: a @ a, device, budget=0.3)
    return {**found, "rate": 2 * m**3 / found["seconds"] / 1e12, "unit": "TFLOP/s"}


@functools.cache
def fastest(what: str, device: torch.device) -> float:
    """The ``rate``, measured once in a process."""
    return float(rate(what, device)["rate"] or 0)


CODES = {-1: "none", 0: "math", 1: "flash", 2: "efficient", 3: "cudnn"}


def backend(width: int, form: str, dtype: torch.dtype, device: torch.device) -> Row:
    """Which backend torch chooses, and whether the fused sum runs."""
    in_time()
    q = drawn((1, 2, 64, width), dtype, device)
    mask = None if form != "mask" else torch.zeros(1, 1, 1, 64, dtype=dtype, device=device)
    if mask is not None:
        mask = mask.expand(-1, -1, 64, -1)
    code = int(torch._fused_sdp_choice(q, q, q, mask, 0.0, form == "causal"))
    return {"backend": CODES.get(code, str(code))}


def correct(name: str, form: str, dtype: torch.dtype, device: torch.device) -> Row:
    """The error of the output, and of the gradients in float32, against float64 on the CPU.

    Sizes are odd, as no kernel likes them. A second call says whether the bits move.
    """
    in_time()
    op: Any = (PARTS | EXACT)[name]
    n, d, e = 97, 20, 13
    given = [drawn((2, n, w), torch.float64, torch.device("cpu"), i).to(dtype)
             for i, w in enumerate((d, d, e))]  # fmt: skip
    mask = torch.arange(n).expand(2, n) % 5 != 1 if form == "mask" else None
    learns = dtype == torch.float32

    def outcome(tensors: list[Tensor], key_mask: Tensor | None) -> list[Tensor]:
        leaves = [x.detach().requires_grad_(learns) for x in tensors]
        out = op(*leaves) if key_mask is None else op(*leaves, key_mask)
        some = [x for x in leaves if learns and out.requires_grad]
        weight = torch.ones_like(out)
        found = torch.autograd.grad(out, some, weight, allow_unused=True) if some else ()
        return [out.detach(), *(x for x in found if x is not None)]

    exact = outcome([x.double() for x in given], mask)
    placed = [x.to(device) for x in given]
    there = None if mask is None else mask.to(device)
    got, again = (outcome(placed, there) for _ in range(2))
    errors = [float((x.cpu().double() - y).norm() / y.norm().clamp_min(1e-30))
              for x, y in zip(got, exact, strict=False)]  # fmt: skip
    moved = max(float((x - y).abs().max()) for x, y in zip(got, again, strict=True))
    bound = BOUNDS[dtype]
    if not errors[0] <= bound:
        msg = f"the output errs by {errors[0]:.2g}, more than {bound:g}"
        raise ArithmeticError(msg)
    return {"output_error": errors[0], "slope_error": max(errors[1:], default=None), "moved": moved}


def clock(name: str, n: int, dtype: torch.dtype, device: torch.device) -> Row:
    """Time and memory of one call on 8 heads of width 64, and its rate over what is counted."""
    in_time()
    heads = 8 if device.type == "cuda" else 1
    q, k, v = (drawn((1, heads, n, 64), dtype, device, seed) for seed in range(3))
    op = COUNTED.get(name) or TIMED[name]
    k = q if "Gaussian" in type(op.target).__name__ else k
    copied, multiplied = (fastest(what, device) for what in ("copy", str(dtype)[6:]))
    moved = (2 if k is q else 3) * q.nbytes + v.nbytes
    floor = max(moved / copied / 1e9, op.cost(Dims.of(q, k, v)).work / multiplied / 1e12)
    known = {"heads": heads, "floor": floor}
    try:
        with trusted(), torch.no_grad():
            spent = _spent(partial(peer(name) if name in PEERS else op, q, k, v), device)
    except RuntimeError as error:
        if name not in PEERS or isinstance(error, torch.OutOfMemoryError):
            raise
        # A backend takes some formats, and says which it does not.
        why = first_line(error)[:120]
        return {**dict.fromkeys((*CLOCKS, "peak_bytes")), **known, "refused": why}
    return {**spent, **known, "over_floor": spent["seconds"] / floor, "refused": ""}


COUNTED: dict[str, Operator] = {
    **dict.fromkeys((DEFAULT, *BACKENDS), Softmax()),
    f"{DEFAULT}, causal": Softmax(causal=True),
    FLEX: GaussianAttention(normalization="row"),
    EAGER: Nystromformer(64),
}
"""What each peer computes, whose work counts for its floor."""


def peer(name: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Attention as torch has it, or as one would write Nystromformer without softlab."""
    if name == EAGER:
        return eager
    if name == FLEX:
        return partial(flex, _compiled())
    causal = name.endswith("causal")
    if name not in BACKENDS:
        return lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=causal)

    def chosen(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(BACKENDS[name]):
            return scaled_dot_product_attention(q, k, v)

    return chosen


def eager(q: Tensor, k: Tensor, v: Tensor, rank: int = 64, steps: int = 6) -> Tensor:
    """Nystromformer with segment means and its cubic iteration (Xiong et al., 2021), every product
    formed; the number of tokens is a multiple of the rank.
    """
    q, k = (x * q.shape[-1] ** -0.25 for x in (q, k))
    a, b = (x.unflatten(-2, (rank, -1)).mean(-2) for x in (q, k))
    left, core, right = (x.softmax(-1) for x in (q @ b.mT, a @ b.mT, a @ k.mT))
    one = torch.eye(rank, dtype=q.dtype, device=q.device)
    x = core.mT / (core.abs().sum(-1).amax() * core.abs().sum(-2).amax())
    for _ in range(steps):
        y = core @ x
        x = x @ (13 * one - y @ (15 * one - y @ (7 * one - y))) / 4
    out: Tensor = left @ (x @ (right @ v))
    return out


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    found: Callable[..., Tensor] = torch.compile(flex_attention, dynamic=False)
    return found


def flex(attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Row-normalised Gaussian attention: softmax scores less half the norms of the keys."""
    root = q.shape[-1] ** 0.5
    norms: Tensor = k.float().square().sum(-1) / (2 * root)

    def less(score: Tensor, b: Tensor, h: Tensor, _: Tensor, j: Tensor) -> Tensor:
        return score - norms[b, h, j]

    out: Tensor = attend(q, k, v, score_mod=less, scale=1 / root)
    return out


def _spent(call: Callable[[], object], device: torch.device) -> Numbers:
    return {
        **seconds(call, device, budget=0.05, repeats=3),
        "peak_bytes": peak_memory(call, device),
    }


def rank(head: str, rank: int, stretch: float, dtype: torch.dtype, device: torch.device) -> Row:
    """Soft's error and time at a rank, its bandwidth stretched, on the tied tokens of a head."""
    in_time()
    q, k, v = Tied(Recorded(head))(0, dtype=dtype, device=device)
    op = Soft(rank, bandwidth=stretch * q.shape[-1] ** 0.25)
    exact = op.target(*(x.cpu().double() for x in (q, k, v)))
    gap = (op(q, k, v).cpu().double() - exact).norm() / exact.norm()
    return {"output_error": float(gap), "n": len(q), **_spent(lambda: op(q, k, v), device)}


def length(name: str, n: int, dtype: torch.dtype, device: torch.device) -> Row:
    """Time and memory of one long call: tokens of a recorded head, drawn anew and disturbed."""
    in_time()
    op, size = TIMED[name], n if device.type == "cuda" else n // 64
    x, _, v = Tied(Recorded(LONGEST))(0, dtype=torch.float32)
    some = Stream(0, "benchmarks.gpu.length").integers(len(x), size)
    x = x[some] + 0.1 * x.std() * drawn((size, x.shape[-1]), torch.float32, x.device)
    x, v = (z.to(device, dtype) for z in (x, v[some]))
    _, first = once(lambda: op(x, x, v), device)
    return {"tokens": size, "first_seconds": first, **_spent(lambda: op(x, x, v), device)}


def inverse(name: str, m: int, dtype: torch.dtype, device: torch.device) -> Row:
    """Time, residual and status of a solver on a batch of Gaussian cores."""
    in_time()
    batch = 1024 if device.type == "cuda" else 16
    z = drawn((batch, m, 16), dtype, device)
    a = GaussianAttention().kernel(16).matrix(z, z)
    solver = SOLVERS[name]
    result = solver.solve(a)
    found = seconds(lambda: solver(a), device, budget=0.1, repeats=3)
    worst = float(result.residual.max())
    return {"batch": batch, "residual": worst, "status_worst": int(result.status.max()), **found}


CLOCKS = ("seconds", "seconds_q1", "seconds_q3", "repeats")


def phases(device: torch.device) -> dict[str, Study]:
    """The studies of a run, in the order of their worth."""
    large = device.type == "cuda"
    lengths = [1 << i for i in range(10, 18)] if large else [256, 1024]
    formats = ["float64", "float32", "bfloat16"]
    # Compiled for a CPU, flex_attention would take all of the time of a trial.
    here = [name for name in PEERS if large or name != FLEX]
    axes: dict[str, tuple[Mapping[str, Sequence[Any]], Callable[..., Row], str]] = {
        "ceilings": ({"what": ["copy", *formats]}, ceiling, "How fast is the device itself?"),
        "backends": (
            {"width": [32, 33, 64, 66, 68, 128, 130], "form": ["plain", "mask", "causal"]},
            backend, "Which kernel does torch choose for its attention?",
        ),
        "correct": (
            {"name": [*PARTS, *(x for x in EXACT if x not in PARTS)], "form": ["plain", "mask"]},
            correct, "Is every operator right on the device?",
        ),
        "times": (
            {"name": list(dict.fromkeys([*EXACT, *here, *TIMED])), "n": lengths},
            clock, "How long does a call take?",
        ),
        "rank": (
            {"head": HEADS, "rank": [16, 64, 256] + [512] * large, "stretch": [0.5, 1.0, 2.0]},
            rank, "What do rank and bandwidth cost, and what do they gain?",
        ),
        "length": (
            {"name": ["Soft", "LinearAttention", "Performer"],
             "n": [1 << i for i in range(14, 21, 2)]},
            length, "Does a call of linear work stay linear?",
        ),
        "solvers": ({"name": [*SOLVERS], "m": [32, 64]}, inverse, "How fast are the inverses?"),
    }  # fmt: skip
    untimed = ("backends", "correct")
    return {
        phase: Study(
            name=phase,
            question=question,
            axes=values,
            measure=measure,
            figures=FIGURES.get(phase, ()),
            timed=()
            if phase in untimed
            else (*CLOCKS, *(("first_seconds",) * (phase == "length"))),
        )
        for phase, (values, measure, question) in axes.items()
    }


FIGURES: dict[str, tuple[Lines, ...]] = {
    "times": tuple(
        Lines(x="n", y=y, group="name", where={"name": names}, xlabel="tokens", ylabel=label,
              name=f"{y}-{kind}")
        for y, label in (("seconds", "seconds"), ("over_floor", "time over the floor"))
        for kind, names in (("ours", list(TIMED)), ("peers", [*EXACT, "Nystromformer", *PEERS]))
    ),
    "rank": tuple(
        Lines(x="rank", y=y, group="stretch", panel="head", xlabel="rank", ylabel=label)
        for y, label in (("output_error", "relative output error"), ("seconds", "seconds"))
    ),
    "length": (
        Lines(x="tokens", y="seconds", group="name", xlabel="tokens", ylabel="seconds"),
        Lines(x="tokens", y="peak_bytes", group="name", xlabel="tokens", ylabel="bytes at once"),
    ),
    "solvers": (Lines(x="m", y="seconds", group="name", xlabel="size", ylabel="seconds"),),
}  # fmt: skip

FORMATS = {
    "correct": (torch.float32, torch.bfloat16, torch.float64),
    "times": (torch.bfloat16, torch.float32),
}
"""Of the phases that have more than float32."""


def main() -> int:
    """Run the phases; returns the exit code."""
    ask = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    ask.add_argument("--device", default="cuda")
    ask.add_argument("--seconds", type=float, default=WHOLE)
    ask.add_argument("--out", type=Path, default=Path("reports"))
    given = ask.parse_args()
    if not (math.isfinite(given.seconds) and given.seconds > 0):
        ask.error(f"--seconds is {given.seconds}; give a positive number.")
    try:
        device = provenance.usable(given.device)
    except ValueError as error:
        ask.error(str(error))
    begin = time.monotonic()
    named = (
        re.search(r"\bH\d+\b", provenance.device_name(device)) if device.type == "cuda" else None
    )
    out = given.out / (named[0].lower() if named else device.type)
    print(f"{provenance.device_name(device)}, torch {torch.__version__}, into {out}", flush=True)
    unsound = 0
    for phase, study in phases(device).items():
        formats = FORMATS.get(phase, (torch.float32,))
        for dtype in formats:
            share = given.seconds / WHOLE * QUOTAS[phase] / len(formats)
            _Clock.share = min(share, begin + given.seconds - time.monotonic())
            _Clock.begin = None
            name = f"{phase}-{str(dtype)[6:]}" if len(formats) > 1 else phase
            done = run(dataclasses.replace(study, name=name), out, device=str(device), dtype=dtype)
            left = [x for x in errors(done.folder) if "not reached" not in x]
            unsound += len(left)
            print(f"{name}: {done.rows} rows, {done.failed - len(left)} not reached", flush=True)
            print(*(f"  {x}" for x in left), sep="\n", end="\n" if left else "", flush=True)
    print(f"{time.monotonic() - begin:.0f} s; softlab report {out} sets the tables", flush=True)
    return int(unsound > 0)


def errors(folder: Path) -> list[str]:
    """Why rows of a table failed."""
    with (folder / "table.csv").open(newline="") as file:
        return [row["error"] for row in csv.DictReader(file) if row["status"] == "failed"]


if __name__ == "__main__":
    raise SystemExit(main())
