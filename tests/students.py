"""Means of three seeds in words, from a printed table of Student's t."""

import statistics

T2 = {
    1: 4.3027, 2: 6.2053, 3: 7.6488, 4: 8.8602, 5: 9.9248, 6: 10.8859, 8: 12.5897, 10: 14.0890,
}  # fmt: skip
"""Two-sided quantiles of two degrees of freedom at 1 - 0.05 / k, by how many k are read at once."""


def around(values, verdicts=1):
    """Mean, low and high of three numbers, in percent."""
    middle = 100 * statistics.mean(values)
    half = 100 * T2[verdicts] * statistics.stdev(values) / 3**0.5
    return middle, middle - half, middle + half


def share(values, verdicts=1):
    """For a sentence."""
    return "{:.1f} % ({:.1f} to {:.1f})".format(*around(values, verdicts))


def points(values, others=(0, 0, 0), verdicts=1):
    """The difference by seed, for a sentence."""
    gaps = [a - b for a, b in zip(values, others, strict=True)]
    return "{:+.1f} points ({:+.1f} to {:+.1f})".format(*around(gaps, verdicts))


def cell(values, verdicts=1, form="{:.1f}"):
    """For a table."""
    middle, low, high = (form.format(x) for x in around(values, verdicts))
    return [middle, f"{low} to {high}"]
