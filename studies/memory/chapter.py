"""Memory against the number of tokens, and how long a sequence fits.

Read are ``status`` and the columns of ``studies/memory``: ``method``, ``mode``, ``n``,
``peak_bytes``.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from softlab.report.chapter import Cell, Table
from softlab.report.headlines import Headline
from softlab.report.numbers import joined, listed, number, short
from softlab.report.rows import finished

from .columns import FUSED, IMPLICIT, TRAINING

NEEDED = {"status", "method", "mode", "n", "peak_bytes"}

ROOM = 16e9
"""Bytes of the device of the paper's Fig. 1."""


def scope(table: pd.DataFrame) -> str:
    """The methods, the modes, the lengths."""
    done = finished(table, NEEDED)
    if done.empty:
        return ""
    return (
        f"Methods: {listed(done['method'].unique())}; in {joined(done['mode'].unique())}, with "
        f"{joined(sorted(done['n'].unique()))} tokens as far as each goes."
    )


def growth(table: pd.DataFrame) -> pd.DataFrame:
    """One row a mode and method of two lengths or more.

    ``n`` and ``peak``: at the greatest length; ``exponent``: of the peak over the last step of
    lengths; ``longest``: the tokens that fit into 16 GB by ``fitted``; ``inside``: whether that is
    within the lengths measured.
    """
    rows = []
    for (mode, method), part in finished(table, NEEDED).groupby(["mode", "method"], sort=False):
        part = part.sort_values("n")
        if len(part) < 2:
            continue
        n, peak = part["n"].to_numpy(float), part["peak_bytes"].to_numpy(float)
        longest = fitted(n, peak, ROOM)
        rows.append({
            "mode": mode, "method": method, "n": int(n[-1]), "peak": peak[-1],
            "exponent": np.log(peak[-1] / peak[-2]) / np.log(n[-1] / n[-2]),
            "longest": longest, "inside": longest <= n[-1],
        })  # fmt: skip
    return pd.DataFrame(rows)


def fitted(n: np.ndarray, peak: np.ndarray, room: float) -> float:
    """Where a + b n + c n^2 reaches ``room``; infinite if nowhere, NaN of fewer than three lengths.

    Peak memory is such a polynomial: activations grow with the tokens, scores with their square.
    Least squares of relative errors, no coefficient below zero; a square that is less than a
    thousandth of the greatest peak is taken for none, since an extrapolation would magnify it.
    """
    from scipy.optimize import nnls

    if len(n) < 3:
        return np.nan
    powers = np.stack([n**i for i in range(3)], 1) / peak[:, None]
    scale = powers.max(0)
    a, b, c = nnls(powers / scale, np.ones(len(n)))[0] / scale
    if c * n[-1] ** 2 < 1e-3 * peak[-1]:
        a, b = nnls(powers[:, :2] / scale[:2], np.ones(len(n)))[0] / scale[:2]
    else:
        return float((np.sqrt(b * b - 4 * c * (a - room)) - b) / (2 * c))
    return float((room - a) / b) if b > 0 else np.inf


def findings(table: pd.DataFrame) -> list[str]:
    """Memory at the greatest common length; exponents; the longest sequence."""
    fits, done = growth(table), finished(table, NEEDED)
    said: list[str] = []
    if fits.empty:
        return said
    for mode, rows in fits.groupby("mode", sort=False):
        part = done[done["mode"] == mode]
        n = rows["n"].min()
        at = part[part["n"] == n].set_index("method")["peak_bytes"]
        each = joined(f"{method} takes {number(x / 1e6)}" for method, x in at.items())
        steep = joined(f"{x.exponent:.2f} ({x.method})" for x in rows.itertuples())
        said.append(
            f"In {mode} with {n} tokens, in MB: {each}. {at.idxmax()} takes "
            f"{number(at.max() / at.min())} times what {at.idxmin()} does. Over the last step of "
            f"lengths the peak grows with the exponents {steep}."
        )
        fit = rows[rows["longest"].notna()]
        if len(fit):
            long = joined(f"{number(x.longest)} ({x.method})" for x in fit.itertuples())
            said[-1] += (
                " Into 16 GB fit, by the polynomial through what was measured, so many tokens: "
                f"{long}."
            )
    return said


def headlines(table: pd.DataFrame) -> Iterator[Headline]:
    """In training, the longest sequence of SOFT over that of fused softmax."""
    fits = growth(table)
    if fits.empty:
        return
    names = [FUSED, IMPLICIT]
    rows = fits[(fits["mode"] == TRAINING) & fits["method"].isin(names)].set_index("method")
    ends = rows["longest"].reindex(names)
    if np.isfinite(ends).all():
        yield {
            "text": "In training, 16 GB hold {} times as long a sequence of SOFT as of fused "
            "softmax attention.",
            "value": number(ends[names[1]] / ends[names[0]]),
            "interval": f"{'measured up to' if rows['inside'].all() else 'extrapolated from'} "
            f"{rows['n'].min()} tokens, one measurement a length",
        }


def tables(table: pd.DataFrame) -> Iterator[Table]:
    """Peak, exponent and longest sequence."""
    fits = growth(table)
    if fits.empty:
        return
    body: list[list[Cell]] = []
    for mode, rows in fits.groupby("mode", sort=False):
        for i, x in enumerate(rows.itertuples()):
            which = "measured" if x.inside else "extrapolated"
            known = not np.isnan(x.longest)
            body.append([
                str(mode) if i == 0 else "", str(x.method), f"{x.n}", short(x.peak / 1e6),
                f"{x.exponent:.2f}", short(x.longest), which if known else "too few",
            ])  # fmt: skip
    yield {
        "caption": "At the greatest length measured: peak memory above the weights in MB, and its "
        "exponent over the last step of lengths. Last: the tokens that fit into 16 GB.",
        "header": ["mode", "method", "n", "MB", "exponent", "fit 16 GB", "which is"],
        "rows": body,
        "left": 2,
    }
