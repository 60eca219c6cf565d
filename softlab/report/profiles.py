"""Performance profiles: on which share of the problems a method is within a factor of the best."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from softlab.report.intervals import share

ROUNDING = 1e-6
"""Errors below this are equal: they are float32's rounding and no method's merit."""


def shares_within(
    errors: pd.DataFrame, taus: Sequence[float] | np.ndarray, controls: pd.DataFrame | None = None
) -> pd.DataFrame:
    """rho(tau) = share of the problems on which a method errs at most tau times the least of all.

    ``errors``: a row a problem, a column a method, NaN where it has no answer, which is infinitely
    far. ``controls``: more columns, which are profiled too but set no mark. Returns ``method``,
    ``tau``, ``share_within``. Reference: Dolan and More, Math. Program. 91 (2002).
    """
    best = errors.min(axis=1).clip(lower=ROUNDING)
    every = errors if controls is None else errors.join(controls)
    ratios = every.div(best, axis=0).fillna(np.inf)
    rows = [
        (method, tau, within)
        for method, ratio in ratios.items()
        for tau, within in zip(
            taus, (ratio.to_numpy()[:, None] <= np.asarray(taus)).mean(0), strict=True
        )
    ]
    return pd.DataFrame(rows, columns=["method", "tau", "share_within"])


def known_to(inputs: int, shares: int) -> str:
    """How little a share says that so few inputs give, for a sentence; ``shares`` are read at once.

    "6 of 11 inputs may stand for a share of 14 to 91 % (95 % for all 36 shares together)".
    """
    half = round(inputs / 2)
    low, high = share(half, inputs, verdicts=shares)
    return (
        f"{half} of {inputs} inputs may stand for a share of {100 * low:.0f} to {100 * high:.0f} % "
        f"(95 % for all {shares} shares together)"
    )
