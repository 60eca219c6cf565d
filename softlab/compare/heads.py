"""What methods are compared on: recorded heads, heads in files, drawn inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softlab import inputs
from softlab.hints import hint
from softlab.inputs import QKV, Input, Recorded, Saved, Tied, recorded_names

SEEDS = 4
"""Draws of an input that is drawn."""


@dataclass(frozen=True)
class Head:
    """One attention head, the unit that a median is over, with the samples that it was seen on.

    ``draw(sample)`` gives q (n, d), k (l, d), v (l, e) in float32. ``real``: recorded and not
    drawn.
    """

    name: str
    draw: Callable[[int], QKV]
    samples: int
    real: bool

    def digest(self, sample: int) -> str:
        """SHA-256 of the numbers of a sample, which stands for them in a result file."""
        state = hashlib.sha256()
        for x in self.draw(sample):
            state.update(repr(tuple(x.shape)).encode() + x.contiguous().numpy().tobytes())
        return state.hexdigest()


def heads(words: Iterable[str]) -> list[Head]:
    """The heads that words name.

    Args:
        words: each ``"recorded"`` (all that the package holds), one recorded name, a drawn input
            as ``"Normal(512, 32)"``, a file of q, k and v, or a folder of such files.

    Raises:
        ValueError: a word names nothing, or two name the same head.
    """
    found_: dict[str, Head] = {}
    for word in words:
        for head in _named(word):
            if head.name in found_:
                msg = f"the input {head.name!r} is named twice; name it once."
                raise ValueError(msg)
            found_[head.name] = head
    if not found_:
        msg = "no input is named; give recorded, a file or a folder."
        raise ValueError(msg)
    return list(found_.values())


def _named(word: str) -> list[Head]:
    if word == "recorded":
        return [_of_input(Recorded(name), name, real=True) for name in recorded_names()]
    if word in recorded_names():
        return [_of_input(Recorded(word), word, real=True)]
    if Path(word).exists():
        return from_file(Path(word))
    if "(" in word:
        return [_of_input(_drawn(word), word, real=False)]
    known = ["recorded", *recorded_names()]
    msg = (
        f"{word!r} is no file, no folder and no input. Give one of {', '.join(known)}, or a drawn "
        f"input, as 'Normal(512, 32)'.{hint(word, known)}"
    )
    raise ValueError(msg)


def _of_input(held: Input, name: str, *, real: bool) -> Head:
    return Head(name, held, getattr(held, "samples", SEEDS), real)


def _drawn(word: str) -> Input:
    from softlab.compare.subjects import evaluated

    classes = {x: y for x, y in vars(inputs).items() if isinstance(y, type)}
    try:
        held: Any = evaluated(word, classes)
    except (SyntaxError, ValueError, TypeError) as error:
        msg = f"{word!r} is no input: {error}."
        raise ValueError(msg) from None
    if not isinstance(held, Input):
        msg = f"{word!r} is a {type(held).__name__}, and no input of softlab.inputs."
        raise ValueError(msg)  # noqa: TRY004
    return held


def tied(head: Head) -> Head:
    """The head with its queries for keys, as a layer with one projection would have it."""

    def draw(sample: int) -> QKV:
        return Tied(head.draw)(sample)  # type: ignore[arg-type]

    return Head(head.name, draw, head.samples, head.real)


def from_file(path: Path) -> list[Head]:
    """The heads of a file or a folder, as ``softlab.inputs.Saved`` reads them, with samples.

    Raises:
        ValueError: it cannot be read, lacks q, k or v, or their shapes or numbers will not do.
    """
    try:
        parts = Saved(path).parts()
    except OSError as error:
        msg = f"{path} cannot be read: {error}."
        raise ValueError(msg) from None
    above = f"{path.parent}/"
    return [Head(x.name.removeprefix(above), x, x.samples, real=True) for x in parts]
