"""How a line looks: a method has its marker, dashes and colour in every figure of every report.

Marker and dashes each suffice alone, in grey and for the colour-blind; ten colours differ in grey
from their neighbours and serve the catalogue three times over, with other markers and dashes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple


class Look(NamedTuple):
    """Marker, whether it is filled, line style, colour, as matplotlib takes them."""

    marker: str
    filled: bool
    line: Any
    colour: str


METHODS = (
    Look("o", True, "-", "#123f8c"),
    Look("s", True, "--", "#e0762a"),
    Look("^", True, "-.", "#2d7f5e"),
    Look("D", True, (0, (5, 1, 1, 1, 1, 1)), "#b59ad6"),
    Look("v", True, (0, (1, 1)), "#7a1f3d"),
    Look("P", True, (0, (3, 1)), "#c9a227"),
    Look("o", False, (0, (10, 1.5)), "#0b6e8f"),
    Look("s", False, (0, (7, 1.5, 2, 1.5)), "#e58fa8"),
    Look("^", False, (0, (3, 1, 3, 1, 1, 1)), "#5b4a1e"),
    Look("D", False, (0, (2, 2)), "#7fb069"),
)
"""The looks of groups without a name of their own, in order of appearance."""

NAMES = (
    *("Soft", "Nystromformer", "Skyformer", "Performer", "RPCholesky", "Linformer"),
    *("RandomFourier", "ColumnSample", "Local", "TopK"),
    *("BigBird", "KDEFormer", "Clustered", "Thinformer", "HyperAttention", "MRA"),
    *("Reformer", "Quantized", "BandLowRank", "Scatterbrain"),
    *("Taylor", "SketchedTaylor", "LinearAttention", "CosFormer", "GaussianAttention"),
    *("Softmax", "Uniform", "Pages", "TruncatedSVD"),
)
"""The operators; the first word of a group's name finds its look. Every tenth shares a colour:
they seldom share a figure."""

SHAPES = (
    *(("X", True), ("<", True), (">", True), ("p", True), ("h", True), ("*", True), ("d", True)),
    *(("v", False), ("P", False), ("X", False), ("<", False), (">", False), ("p", False)),
    *(("h", False), ("*", False), ("d", False), ("8", True), ("8", False), ("H", True)),
)
"""Markers of the operators beyond the first ten."""


def own(name: str) -> Look | None:
    """The look of a method of the catalogue, whatever is said after its name; None for others."""
    word = re.match(r"\w+", name)
    if word is None or word[0] not in NAMES:
        return None
    i = NAMES.index(word[0])
    if i < len(METHODS):
        return METHODS[i]
    like, dashed = METHODS[i % 10], METHODS[(i + i // 10) % 10]
    return Look(*SHAPES[i - len(METHODS)], dashed.line, like.colour)


def looks(names: Iterable[str]) -> list[Look]:
    """A look for each name, no two with the same marker.

    A form of a method, "Soft, exact inverse" beside "Soft", keeps its colour and changes marker and
    dashes, those first that it has in a figure of its own. Groups that are no method of the
    catalogue take the looks that are left.
    """
    names = list(names)
    found: dict[str, Look] = {}
    taken: set[tuple[str, bool]] = set()
    for name in sorted(names, key=len):  # the plain name before its forms
        look = own(name)
        if look is None:
            continue
        forms = [look, *_forms(look)]
        plain = re.fullmatch(r"\w+(\(.*\))?", name)  # a word, or the call that makes it
        found[name] = next(
            x for x in forms[0 if plain else 1 :] if (x.marker, x.filled) not in taken
        )
        taken.add((found[name].marker, found[name].filled))
    colours = {look.colour for look in found.values()}
    for name in names:
        if name not in found:
            free = [x for x in METHODS if (x.marker, x.filled) not in taken]
            fresh = [x for x in free if x.colour not in colours] or free
            found[name] = fresh[0]
            taken.add((fresh[0].marker, fresh[0].filled))
            colours.add(fresh[0].colour)
    return [found[name] for name in names]


def _forms(look: Look) -> Iterator[Look]:
    """Other looks of the colour, the other filling of its marker first."""
    i = next(i for i, x in enumerate(METHODS) if x.colour == look.colour)
    shapes = [(look.marker, not look.filled), *reversed(SHAPES)]
    for step, (marker, filled) in enumerate(shapes, start=1):
        yield Look(marker, filled, METHODS[(i + 3 * step) % 10].line, look.colour)
