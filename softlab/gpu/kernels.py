"""Triton kernels; ``gaussian_sum`` and ``newton_raphson`` beside this file call them.

One text for the GPU and for Triton's interpreter, which runs it on a CPU with NumPy. Tails are
masked: sizes are any, widths are padded in registers to a power of two.
"""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rows_of(X, at, count, width, stride, W: tl.constexpr):
    """Rows ``at`` of a matrix, 0 beyond its ends, (..., W)."""
    column = tl.arange(0, W)
    inside = (at[:, None] < count) & (column[None, :] < width)
    return tl.load(X + at[:, None] * stride + column[None, :], mask=inside, other=0.0)


@triton.jit
def kernel_block(x, y, at_y, count_y, c, PRECISION: tl.constexpr):
    """A block of K: 2^(c (2 x.y - |x|^2 - |y|^2)) with c = log2(e) / (2 s^2), 0 beyond y's end."""
    wide_x, wide_y = x.to(tl.float32), y.to(tl.float32)
    norm_x, norm_y = tl.sum(wide_x * wide_x, 1), tl.sum(wide_y * wide_y, 1)
    product = tl.dot(x, tl.trans(y), input_precision=PRECISION)
    exponent = tl.minimum(c * (2.0 * product - norm_x[:, None] - norm_y[None, :]), 0.0)
    return tl.where(at_y[None, :] < count_y, tl.exp2(exponent), 0.0)


@triton.jit
def sum_forward(
    Q, K, V, Out, n, l, d, e, c, part,
    qb, qn, kb, kl, vb, vl,
    BN: tl.constexpr, BL: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Block of rows i, matrix b, part s of the keys -> Out[s, b, i]."""
    b, s = tl.program_id(1).to(tl.int64), tl.program_id(2)
    row = tl.program_id(0) * BN + tl.arange(0, BN)
    q = rows_of(Q + b * qb, row, n, d, qn, BD)
    total = tl.zeros((BN, BE), tl.float32)
    for start in range(s * part, tl.minimum(s * part + part, l), BL):
        column = start + tl.arange(0, BL)
        k = rows_of(K + b * kb, column, l, d, kl, BD)
        v = rows_of(V + b * vb, column, l, e, vl, BE)
        weights = kernel_block(q, k, column, l, c, PRECISION)
        total = tl.dot(weights.to(v.dtype), v, total, input_precision=PRECISION)
    at_e = tl.arange(0, BE)
    out = Out + (s * tl.num_programs(1) + b) * n * e
    inside = (row[:, None] < n) & (at_e[None, :] < e)
    tl.store(out + row[:, None] * e + at_e[None, :], total.to(Out.dtype.element_ty), mask=inside)


@triton.jit
def sum_backward_rows(
    X, Y, F, G, DX, n, l, d, e, c, inverse,
    xb, xn, yb, yl, fb, fn, gb, gl,
    DF,
    BN: tl.constexpr, BL: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr,
    WITH_F: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The adjoint of a block of rows x against all y: DX, and DF = K G where that is asked.

    For queries x = q, y = k, F = g, G = v; for keys x = k, y = q, F = v, G = g and DF = dv.
    """
    b = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * BN + tl.arange(0, BN)
    x = rows_of(X + b * xb, row, n, d, xn, BD)
    f = rows_of(F + b * fb, row, n, e, fn, BE)
    total = tl.zeros((BN, BD), tl.float32)
    mass = tl.zeros((BN,), tl.float32)
    of_f = tl.zeros((BN, BE), tl.float32)
    for start in range(0, l, BL):
        column = start + tl.arange(0, BL)
        y = rows_of(Y + b * yb, column, l, d, yl, BD)
        g = rows_of(G + b * gb, column, l, e, gl, BE)
        weights = kernel_block(x, y, column, l, c, PRECISION)
        if WITH_F:
            of_f = tl.dot(weights.to(g.dtype), g, of_f, input_precision=PRECISION)
        # Rounded as the product sees them: in dx the two sums of weights cancel.
        w = (weights * tl.dot(f, tl.trans(g), input_precision=PRECISION)).to(y.dtype)
        total = tl.dot(w, y, total, input_precision=PRECISION)
        mass += tl.sum(w.to(tl.float32), 1)
    at_d, at_e = tl.arange(0, BD), tl.arange(0, BE)
    dx = (total - x.to(tl.float32) * mass[:, None]) * inverse
    inside = (row[:, None] < n) & (at_d[None, :] < d)
    at = DX + b * n * d + row[:, None] * d + at_d[None, :]
    tl.store(at, dx.to(DX.dtype.element_ty), mask=inside)
    if WITH_F:
        inside = (row[:, None] < n) & (at_e[None, :] < e)
        at = DF + b * n * e + row[:, None] * e + at_e[None, :]
        tl.store(at, of_f.to(DF.dtype.element_ty), mask=inside)


@triton.jit
def newton_raphson(
    A, X, Steps, Residual, Seen, W, m, steps, matrices,
    BM: tl.constexpr, TRACED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Steps X <- 2 X - X (A X) of one matrix, whose first X is read and whose last is written.

    ``Steps``: how many of each matrix. ``TRACED``: before each step and after the last the relative
    residual and the row W X are written, for the judge of ``solve``.
    """
    b = tl.program_id(0).to(tl.int64)
    row, column = tl.arange(0, BM), tl.arange(0, BM)
    inside = (row[:, None] < m) & (column[None, :] < m)
    at = b * m * m + row[:, None] * m + column[None, :]
    a, x = tl.load(A + at, mask=inside, other=0.0), tl.load(X + at, mask=inside, other=0.0)
    if TRACED:
        largest = tl.max(tl.max(tl.abs(a), 1), 0)
        unit = a / tl.where(largest > 0, largest, 1.0)
        w = tl.load(W + row, mask=row < m, other=0.0)
        size = tl.maximum(tl.sqrt(tl.sum(tl.sum(unit * unit, 1), 0)), 1.1754943508222875e-38)
        for step in range(0, steps + 1):
            ax = tl.dot(a, x, input_precision=PRECISION)
            # unit (X A) would do as well; A X is what the step needs too.
            missed = tl.dot(ax, unit, input_precision=PRECISION) - unit
            missed = tl.sqrt(tl.sum(tl.sum(missed * missed, 1), 0)) / size
            tl.store(Residual + step * matrices + b, missed)
            seen = Seen + (step * matrices + b) * m + column
            tl.store(seen, tl.sum(w[:, None] * x, 0), mask=column < m)
            if step < steps:
                x = 2.0 * x - tl.dot(x, ax, input_precision=PRECISION)
    else:
        for _ in range(0, tl.load(Steps + b)):
            ax = tl.dot(a, x, input_precision=PRECISION)
            x = 2.0 * x - tl.dot(x, ax, input_precision=PRECISION)
        tl.store(X + at, x, mask=inside)


@triton.jit
def landmark_inverse(
    Z, A, X, m, d, c, factor, steps, zb, zm,
    BM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A = exp2(-c |z_i - z_j|^2) by differences, and Newton-Raphson on it, in one program.

    It starts from factor A^T / (|A|_1 |A|_inf), which needs no symmetry of the rounding.
    """
    b = tl.program_id(0).to(tl.int64)
    row = tl.arange(0, BM)
    inside = (row[:, None] < m) & (row[None, :] < m)
    square = tl.zeros((BM, BM), tl.float32)
    for t in range(0, d):
        z = tl.load(Z + b * zb + row * zm + t, mask=row < m, other=0.0).to(tl.float32)
        apart = z[:, None] - z[None, :]
        square += apart * apart
    a = tl.where(inside, tl.exp2(-c * square), 0.0)
    at = b * m * m + row[:, None] * m + row[None, :]
    tl.store(A + at, a, mask=inside)
    one, infinity = tl.max(tl.sum(a, 0), 0), tl.max(tl.sum(a, 1), 0)
    x = (tl.trans(a) / one) * (factor / infinity)
    for _ in range(0, steps):
        ax = tl.dot(a, x, input_precision=PRECISION)
        x = 2.0 * x - tl.dot(x, ax, input_precision=PRECISION)
    tl.store(X + at, x, mask=inside)


@triton.jit
def newton_raphson_backward(
    A, Iterates, GX, GA, m, steps, matrices,
    BM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The adjoint of the steps: from the gradient of the last X to those of the first X and of A.

    Of X' = 2 X - X A X the adjoint is dX = 2 G - G (A X)^T - (X A)^T G and dA = -X^T G X^T. The
    iterates are formed again and kept in ``Iterates`` (steps, matrices, m, m).
    """
    b = tl.program_id(0).to(tl.int64)
    row = tl.arange(0, BM)
    inside = (row[:, None] < m) & (row[None, :] < m)
    at = b * m * m + row[:, None] * m + row[None, :]
    a = tl.load(A + at, mask=inside, other=0.0)
    x = tl.load(Iterates + at, mask=inside, other=0.0)
    for step in range(0, steps - 1):
        ax = tl.dot(a, x, input_precision=PRECISION)
        x = 2.0 * x - tl.dot(x, ax, input_precision=PRECISION)
        tl.store(Iterates + (step + 1) * matrices * m * m + at, x, mask=inside)
    tl.debug_barrier()  # other threads may read what this one has stored
    g = tl.load(GX + at, mask=inside, other=0.0)
    of_a = tl.zeros((BM, BM), tl.float32)
    for back in range(0, steps):
        step = steps - 1 - back
        x = tl.load(Iterates + step * matrices * m * m + at, mask=inside, other=0.0)
        ax = tl.dot(a, x, input_precision=PRECISION)
        xa = tl.dot(x, a, input_precision=PRECISION)
        gx = tl.dot(g, tl.trans(x), input_precision=PRECISION)
        of_a -= tl.dot(tl.trans(x), gx, input_precision=PRECISION)
        g = (
            2.0 * g
            - tl.dot(g, tl.trans(ax), input_precision=PRECISION)
            - tl.dot(tl.trans(xa), g, input_precision=PRECISION)
        )
    tl.store(GX + at, g, mask=inside)
    tl.store(GA + at, of_a, mask=inside)
