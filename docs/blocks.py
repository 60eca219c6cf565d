"""Python blocks of a page, run in their order, with what they print and the figures they make.

The site draws by this what its pages show, and the tests hold each page to it: after a block may
stand what it prints, in a block of text, and its figure, ``![words](figures/name.svg)``, which the
block calls ``figure``.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
TEXT = re.compile(r"(?:\s*</details>)?\s*```text\n(.*?)^```", re.DOTALL | re.MULTILINE)
FIGURE = re.compile(r"!\[[^\]]*\]\(figures/([\w-]+)\.svg\)")
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
ROUNDING = 1e-10
"""Numbers below it are rounding, which each machine has its own of."""


class Ran(NamedTuple):
    """A block that ran: what it printed, what its page says that it prints, None where it says
    nothing; the name of its figure on the page, empty for none, and what the block calls
    ``figure``.
    """

    code: str
    printed: str
    said: str | None
    name: str
    figure: Any


def run(text: str, page: str, space: dict[str, Any] | None = None) -> Iterator[Ran]:
    """Run the blocks of a page, each with what the ones before it defined, kept in ``space``.

    ``page``: its name, for tracebacks.
    """
    space = {} if space is None else space
    found = list(BLOCK.finditer(text))
    for i, one in enumerate(found):
        after = text[one.end() : found[i + 1].start() if i + 1 < len(found) else len(text)]
        space.pop("figure", None)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(one[1], page, "exec"), space)
        said = TEXT.match(after)
        name = FIGURE.search(after)
        yield Ran(
            one[1],
            printed.getvalue(),
            said[1] if said else None,
            name[1] if name else "",
            space.get("figure"),
        )


def record(found: Iterable[Ran], path: Path) -> None:
    """Keep what blocks did in a file; of a figure, whether there is one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [one._replace(figure=None if one.figure is None else "drawn") for one in found]
    path.write_text(json.dumps(lines), encoding="utf-8")


def recorded(path: Path) -> list[Ran]:
    """What blocks did, of a file of ``record``."""
    return [Ran(*line) for line in json.loads(path.read_text(encoding="utf-8"))]


def same(printed: str, said: str) -> bool:
    """Whether both say the same: words letter by letter, numbers to one in their last digit."""
    if NUMBER.sub("#", printed).split() != NUMBER.sub("#", said).split():
        return False
    pairs = zip(NUMBER.findall(printed), NUMBER.findall(said), strict=True)
    return all(_alike(*pair) for pair in pairs)


def _alike(one: str, other: str) -> bool:
    x, y = float(one), float(other)
    if max(abs(x), abs(y)) < ROUNDING:
        return True
    return abs(x - y) <= 1.001 * max(_step(one), _step(other))


def _step(number: str) -> float:
    """One in the last digit of a number; an integer is exact."""
    digits, _, exponent = number.partition("e")
    places = len(digits.partition(".")[2])
    if not places and not exponent:
        return 0.0
    return 10.0 ** (int(exponent or 0) - places)
