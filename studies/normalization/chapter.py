"""How norm and output of Gaussian attention grow with the tokens, by normalisation.

Read are ``status`` and the columns of ``studies/normalization``: ``source``, ``family``,
``normalization``, ``n``, ``rank``, ``spectral_norm``, ``noise_gain``, ``ones_gain``,
``negative_rows``.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from softlab.report.chapter import Cell, Table
from softlab.report.headlines import Headline, headline
from softlab.report.intervals import exponent
from softlab.report.numbers import joined, number, short
from softlab.report.rows import finished

from .columns import EXACT, IDENTICAL, RELEASED

NEEDED = {
    *("status", "source", "family", "normalization", "n", "rank"),
    *("spectral_norm", "noise_gain", "ones_gain", "negative_rows"),
}
GAINS = ("spectral_norm", "ones_gain", "noise_gain")

ABOVE = 1.0001
"""A spectral norm beyond this is above one, and not by the rounding of float32."""


def scope(table: pd.DataFrame) -> str:
    """The families, normalisations, inputs and lengths."""
    done = finished(table, NEEDED)
    if done.empty:
        return ""
    return (
        f"Families: {joined(done['family'].unique())}. "
        f"Normalisations: {joined(done['normalization'].unique())}. "
        f"Inputs: {joined(done['source'].unique())}. Tokens: {joined(sorted(done['n'].unique()))}."
    )


def exponents(table: pd.DataFrame) -> pd.DataFrame:
    """One row a family, normalisation and source of three lengths or more.

    For each of the gains the slope of its logarithm on ln n, by least squares over the medians of
    the seeds; ``most``: the greatest spectral norm of any case.
    """
    found = []
    keys = ["family", "normalization", "source"]
    for key, rows in finished(table, NEEDED).groupby(keys, sort=False):
        mid = rows.groupby("n")[[*GAINS]].median()
        if len(mid) < 3 or not (mid > 0).all(axis=None):
            continue
        slopes = {gain: exponent(mid.index.to_series(), mid[gain]).value for gain in GAINS}
        found.append(
            dict(zip(keys, key, strict=True))
            | slopes
            | {
                "most": rows["spectral_norm"].max(),
            }
        )
    return pd.DataFrame(found, columns=[*keys, *GAINS, "most"])


def findings(table: pd.DataFrame) -> list[str]:
    """What grows without normalisation, what each form bounds, and where a bound is lost."""
    done, fits = finished(table, NEEDED), exponents(table)
    if fits.empty:
        return []
    return [
        text for text in (_growth(fits), _released(done, fits), _above(done), _noise(fits)) if text
    ]


def headlines(table: pd.DataFrame) -> Iterator[Headline]:
    """The growth of the exact spectral norm without normalisation; the greatest with SOFT's."""
    done, fits = finished(table, NEEDED), exponents(table)
    plain = fits[(fits["normalization"] == "none") & (fits["family"] == EXACT)]
    text = (
        "Without normalisation the spectral norm of exact Gaussian attention grows with the number "
        "of tokens to the power {}"
    )
    yield from headline(text, plain["spectral_norm"], "inputs")
    norms = done.loc[done["normalization"] == "symmetric", "spectral_norm"]
    if len(norms):
        yield {
            "text": "Normalised symmetrically, exact or approximate, the spectral norm exceeds "
            f"{ABOVE:g} in {(norms > ABOVE).sum()} of {len(norms)} cases and is {{}} at most.",
            "value": number(norms.max()),
            "interval": "the greatest of all inputs, lengths and kernels",
        }


def tables(table: pd.DataFrame) -> Iterator[Table]:
    """Exponents and the greatest norm of each family under each normalisation."""
    fits = exponents(table)
    if fits.empty:
        return
    body: list[list[Cell]] = []
    for family, rows in fits.groupby("family", sort=False):
        for i, (how, mine) in enumerate(rows.groupby("normalization", sort=False)):
            top = mine.loc[mine["most"].idxmax()]
            body.append(
                [
                    str(family) if i == 0 else "",
                    str(how),
                    *(_spread(mine[gain]) for gain in GAINS),
                    [short(top["most"]), str(top["source"])],
                ]
            )
    yield {
        "caption": "Exponents in the number of tokens of the spectral norm, of the output where "
        "all values agree, and of the output where they are independent noise: median over the "
        "inputs, and least to greatest. Last: the greatest spectral norm of all cases, and its "
        "input.",
        "header": ["family", "normalisation", "norm", "agreeing", "noise", "greatest norm"],
        "rows": body,
        "left": 2,
    }


def _power(x: float) -> str:
    """An exponent to two digits; zero has no sign."""
    return f"{x:.2f}".replace("-0.00", "0.00")


def _spread(x: pd.Series) -> Cell:
    return [_power(x.median()), f"{_power(x.min())} to {_power(x.max())}"]


def _growth(fits: pd.DataFrame) -> str:
    """Growth of the exact matrix, normalisation by normalisation."""
    exact = fits[fits["family"] == EXACT]
    if exact.empty:
        return ""
    words = (
        f"{how}: n to the {_power(rows['spectral_norm'].median())} "
        f"({_power(rows['spectral_norm'].min())} "
        f"to {_power(rows['spectral_norm'].max())}), at most {number(rows['most'].max())}"
        for how, rows in exact.groupby("normalization", sort=False)
    )
    return (
        "The spectral norm of exact Gaussian attention grows, median over inputs, as "
        f"{'; '.join(words)}."
    )


def _released(done: pd.DataFrame, fits: pd.DataFrame) -> str:
    """What the released form bounds: its exponents at fixed rank and at fixed ratio."""
    rows = fits[fits["normalization"] == RELEASED]
    if rows.empty:
        return ""
    said = []
    for family, mine in rows.groupby("family", sort=False):
        plain = fits[(fits["family"] == family) & (fits["normalization"] == "none")]
        top = mine.loc[mine["most"].idxmax()]
        said.append(
            f"{family}: n to the {_power(mine['spectral_norm'].median())} (without normalisation "
            f"{_power(plain['spectral_norm'].median())}), at most {number(top['most'])} "
            f"({top['source']})"
        )
    alike = done[(done["normalization"] == RELEASED) & (done["source"] == IDENTICAL)]
    off = (alike["spectral_norm"] * alike["rank"] / alike["n"] - 1).abs().max()
    return (
        "The released form divides by the degrees among the landmarks. Its norm grows as "
        f"{'; '.join(said)}."
    ) + (
        f" On identical tokens it is n / m, within {number(off)}: it bounds what share of the "
        "tokens the rank is, and not their number."
        if len(alike) and off < 0.01
        else ""
    )


def _above(done: pd.DataFrame) -> str:
    """Which normalised matrices exceed the norm one, and whether rows without mass are to blame."""
    said = []
    for (family, how), rows in done.groupby(["family", "normalization"], sort=False):
        if how not in {"row", "symmetric"}:
            continue
        over = rows[rows["spectral_norm"] > ABOVE]
        if over.empty:
            said.append(f"{family}, {how}: in none of {len(rows)} cases")
            continue
        top = over.loc[over["spectral_norm"].idxmax()]
        lost = int((over["negative_rows"] > 0).sum())
        said.append(
            f"{family}, {how}: in {len(over)} of {len(rows)} cases, up to "
            f"{number(top['spectral_norm'])} ({top['source']}, n = {top['n']:g}), {lost} of them "
            "with row sums that are not positive"
        )
    return f"The spectral norm exceeds {ABOVE:g}: {'; '.join(said)}." if said else ""


def _noise(fits: pd.DataFrame) -> str:
    """Averages of noise shrink: what normalisation costs."""
    rows = fits[(fits["family"] == EXACT) & fits["normalization"].isin(["row", "symmetric"])]
    if rows.empty:
        return ""
    words = (
        f"{how} n to the {_power(mine['noise_gain'].median())}, where values agree n to the "
        f"{_power(mine['ones_gain'].median())}"
        for how, mine in rows.groupby("normalization", sort=False)
    )
    return f"Output of values that are noise falls under normalisation: {'; '.join(words)}."
