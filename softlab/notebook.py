"""How results show themselves in a notebook: tables of HTML, every word of which is escaped."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape


def table(title: str, head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table with its title, as a notebook shows what ``_repr_html_`` returns.

    Args:
        title: Stands above it.
        head: The titles of the columns.
        rows: Numbers, which stand to three digits and to the right, and words; a line break in a
            word stays one.
    """
    left = ' style="text-align: left"'
    heads = "".join(f"<th{left}>{escape(word)}</th>" for word in head)
    lines = ["".join(_cell(x) for x in row) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return (
        f'<table><caption style="text-align: left">{escape(title)}</caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
    )


def _cell(x: object) -> str:
    if isinstance(x, int | float) and not isinstance(x, bool):
        shown = f"{x:.3g}" if isinstance(x, float) else str(x)
        return f'<td style="text-align: right">{shown}</td>'
    return f'<td style="text-align: left; white-space: pre-wrap">{escape(str(x))}</td>'


def middle(values: list[float]) -> float | str:
    """One number, or of many the median with its range in words: "2.1 (1.9 to 2.4)"."""
    if len(values) == 1:
        return values[0]
    values = sorted(values)
    half = len(values) // 2
    median = values[half] if len(values) % 2 else (values[half - 1] + values[half]) / 2
    return f"{median:.3g} ({values[0]:.3g} to {values[-1]:.3g})"
