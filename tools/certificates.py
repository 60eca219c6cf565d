"""A long run of the law "certificate": many matrices of every geometry, scale and precision.

``python tools/certificates.py --cases 100000`` asks each certified operator of small settings, a
batch of matrices at a time, whether a row errs by more than its bound, and counts.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
from typing import Any

from softlab.landmarks import Strided, UniformRandom
from softlab.laws.certificates import DTYPES, GEOMETRIES, missed, tokens
from softlab.laws.law import generator
from softlab.operators import (
    BigBird,
    Local,
    Monarch,
    Pages,
    Quantized,
    RPCholesky,
    Skyformer,
    Soft,
    TopK,
)
from softlab.pinv import SVD, Cholesky, NewtonRaphson

SCALES = (1.0, 0.3, 3.0, 1e-3, 10.0, 100.0)
OPERATORS: tuple[Any, ...] = (
    TopK(k=3),
    TopK(p=0.8, causal=True),
    Local(2),
    Local(1, dilation=3, sinks=1),
    Local(2, sinks=2, causal=True),
    BigBird(1, 1, 1, block=2),
    Pages(4, 1),
    Pages(3, 2),
    Monarch(3, 2),
    Monarch(4, 1),
    Quantized("int8"),
    Quantized("bfloat16", smoothing=True),
    Quantized("float8", causal=True),
    Quantized("float8", parts="qkpv"),
    Quantized("int", bits=4, granularity="channel", rotation=True),
    Quantized("turboquant", bits=3, parts="kv"),
    Quantized("turboquant-product", bits=2, parts="k", seed=1),
    Soft(4),
    Soft(4, pinv=NewtonRaphson(steps=5)),
    Soft(5, bandwidth=1.3, landmarks=Strided(), pinv=Cholesky()),
    Soft(4, normalization="row"),
    Skyformer(4),
    Skyformer(3, gamma=0.0, landmarks=UniformRandom(seed=1), pinv=SVD()),
    RPCholesky(4),
    RPCholesky(5, temperature=1.0, seed=2),
)


def main() -> int:
    """Ask until so many matrices were asked; 1 where a bound was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=64)
    given = parser.parse_args()
    asked, broken, refused, start = 0, 0, 0, time.perf_counter()
    grid = list(itertools.product(GEOMETRIES, SCALES, DTYPES, OPERATORS))
    random.Random(0).shuffle(grid)
    for seed, (geometry, scale, dtype, op) in enumerate(itertools.cycle(grid)):
        if asked >= given.cases:
            break
        case = tokens(op, geometry, generator(seed), scale, given.batch)
        try:
            gap = missed(op, case, dtype)
        except ValueError as error:  # as of a core that breaks down in this precision
            refused += given.batch
            print(f"refused: {op!r}, {case.where}, {dtype}: {error}")
            continue
        asked += given.batch
        if not gap.holds:
            broken += 1
            print(f"broken: {op!r}: {gap.said}; seed={seed}")
    took = time.perf_counter() - start
    print(f"{asked} cases, {broken} batches with a broken bound, {refused} refused, {took:.0f} s")
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
