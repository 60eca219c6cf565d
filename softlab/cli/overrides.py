"""``--set axis=value,...``: a grid narrowed, or led elsewhere, from the command line."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from softlab.catalogue import offered, valued
from softlab.engine.identity import UnstableError, identity
from softlab.engine.workers import called
from softlab.hints import hint
from softlab.inputs import Input, Patches, Saved
from softlab.study import Study


def narrowed(studies: Sequence[Study], settings: Sequence[str]) -> list[Study]:
    """The studies with other values on some axes, on their short grids too.

    A word takes the values of the axis that print as it, or are of the class that it names; a
    number must be of the type of the axis; a call, as in "Soft(rank=128)", makes a new value of
    classes that the axis holds or softlab offers. A study without the axis stays as it is.

    Raises ``ValueError`` for a setting without "=", an axis that no study has, and a value that the
    axis cannot have; it says what there is.
    """
    found = list(studies)
    known = list(dict.fromkeys(axis for study in studies for axis in study.axes))
    for setting in settings:
        axis, equals, words = setting.partition("=")
        if not equals or not words:
            msg = f"--set {setting} says no value; write --set axis=value,value."
            raise ValueError(msg)
        if axis not in known:
            names = " and ".join(study.name for study in studies)
            msg = f"{names}: no axis {axis!r}; there are {', '.join(known)}.{hint(axis, known)}"
            raise ValueError(msg)
        found = [_with(x, axis, list(split(words))) if axis in x.axes else x for x in found]
    return found


def given(studies: Sequence[Study], files: Sequence[str]) -> tuple[list[Study], list[str]]:
    """The studies on a user's own inputs, in the place of theirs, and what is to be known of it.

    Each head of each layer of the files becomes an input of its own, whose samples are the seeds.
    It stands wherever an input of the study stood: tied where that was, and in the core of an
    operator. What a study measures beside inputs, such as constructed matrices, is left out.

    Raises ``ValueError`` for a study without inputs, and for files that cannot be read.
    """
    heads: dict[Saved, Saved] = {}
    notes = []
    for file in files:
        for part in Saved(file).parts():
            known = heads.setdefault(part, part)
            if known is not part:
                notes.append(f"{part.name} holds the numbers of {known.name}, and is measured once")
    found = []
    for study in studies:
        axis = _axis_of_inputs(study)
        values = list(dict.fromkeys(x for head in heads for x in _on(head, study.axes[axis])))
        if not values:
            msg = (
                f"{study.name} takes inputs with tied queries and keys, of equal shape, which "
                f"{', '.join(files)} have not."
            )
            raise ValueError(msg)
        quick = {name: x for name, x in study.quick.items() if name != axis}
        axes = {**study.axes, axis: values}
        keep = _Kept(axis, study.keep)
        found.append(dataclasses.replace(study, axes=axes, quick=quick, keep=keep))
        notes.append(_told(study, axis, list(heads)))
    return found, notes


def _told(study: Study, axis: str, heads: Sequence[Saved]) -> str:
    """How much of the files a study measures."""
    most = max(head.samples for head in heads)
    seeds = study.axes.get("seed", [0])
    used = sum(isinstance(x, int) and x < most for x in seeds)
    of = "the only sample" if most == 1 else f"{used} of {most} samples"
    more = ""
    if used < most:
        more = " (more: --set seed=0,1,...)" if "seed" in study.axes else " (it has no axis seed)"
    count = f"{len(heads)} heads" if len(heads) > 1 else "1 head"
    return f"{study.name}: axis {axis} is {count}, {of} of each{more}"


@dataclasses.dataclass(frozen=True)
class _Kept:
    """Which cases are kept: of those that a study keeps, the samples that there are."""

    axis: str
    keep: Callable[..., bool] | None

    def __call__(self, **case: Any) -> bool:
        """Whether this one is."""
        samples = _leaf(case[self.axis]).samples
        seed = case.get("seed", 0)
        beyond = isinstance(seed, int) and seed >= samples
        return not beyond and (self.keep is None or bool(called(self.keep, case)))


def _axis_of_inputs(study: Study) -> str:
    """The axis whose values are inputs, or hold them; ``ValueError`` where none is."""
    for axis, values in study.axes.items():
        if any(_leaf(x) is not None for x in values):
            return axis
    msg = (
        f"{study.name} has no axis of inputs, so --input has no place there; its axes are "
        f"{', '.join(study.axes)}. Give a study such as rank, frontier or landmarks."
    )
    raise ValueError(msg)


def _leaf(x: Any) -> Any:
    """The innermost input in a value of an axis; None where there is none."""
    if not dataclasses.is_dataclass(x) or isinstance(x, type):
        return None
    for one in dataclasses.fields(x):
        if (inner := _leaf(getattr(x, one.name))) is not None:
            return inner
    return x if isinstance(x, Input) else None


def _on(head: Saved, values: Sequence[Any]) -> Iterator[Any]:
    """The values that hold inputs, with this head in their place; tied only where it can be."""
    q, k, _ = head(0)
    for x in values:
        if _leaf(x) is not None:
            made = _placed(x, head)
            if q.shape == k.shape or "Tied(" not in repr(made):
                yield made


def _placed(x: Any, head: Saved) -> Any:
    if not dataclasses.is_dataclass(x) or isinstance(x, type) or _leaf(x) is None:
        return x
    if _leaf(x) is x:
        return head
    inner = {one.name: _placed(getattr(x, one.name), head) for one in dataclasses.fields(x)}
    # What is not the class token of an image is nobody's to leave out.
    return inner["input"] if isinstance(x, Patches) else dataclasses.replace(x, **inner)


def _with(study: Study, axis: str, words: Sequence[str]) -> Study:
    chosen = {_digits(x): x for word in words for x in _values(study, axis, word)}
    quick = {name: values for name, values in study.quick.items() if name != axis}
    return dataclasses.replace(study, axes={**study.axes, axis: list(chosen.values())}, quick=quick)


def _digits(x: Any) -> str:
    """What tells the value from others, as far as anything does."""
    try:
        return identity(x).digits
    except UnstableError:  # which the run refuses, with the reason
        return str(id(x))


def _values(study: Study, axis: str, word: str) -> list[Any]:
    """The values that a word stands for on the axis."""
    there = list(study.axes[axis])
    found = [x for x in there if word in {str(x), repr(x), type(x).__name__}]
    if found:
        return found
    types = {type(x.item() if isinstance(x, np.generic) else x) for x in there}
    for kind, reads in ((bool, _truth), (int, int), (float, float)):
        if kind in types:
            try:
                return [reads(word)]
            except ValueError:
                continue
    try:
        made = valued(ast.parse(word, mode="eval").body, _classes(there))
        if type(made) not in types and not dataclasses.is_dataclass(made):
            raise TypeError(word)  # noqa: TRY301
    except (SyntaxError, ValueError, TypeError) as error:
        reason = f" ({error})" if "(" in word and isinstance(error, ValueError | TypeError) else ""
        shown = [str(x) for x in there[:6]] + (["..."] if len(there) > 6 else [])
        kinds = " or ".join(sorted(x.__name__ for x in types))
        msg = (
            f"axis {axis!r} of {study.name} takes {kinds}, and not {word!r}{reason}; "
            f"it has {', '.join(shown)}.{hint(word, map(str, there))}"
        )
        raise ValueError(msg) from None
    return [made]


def _truth(word: str) -> bool:
    if word not in {"True", "False"}:
        raise ValueError(word)
    return word == "True"


def _classes(values: Sequence[Any]) -> dict[str, type]:
    """The classes that a value may be made of, by name: those at hand, and softlab's own."""
    kinds = {type(x) for x in values}
    if not any(dataclasses.is_dataclass(kind) for kind in kinds):
        return {}
    return offered() | {kind.__name__: kind for kind in kinds}


def split(words: str) -> Iterator[str]:
    """The parts between commas that stand in no brackets and no quotes."""
    depth, quote, part = 0, "", ""
    for letter in words:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        depth += (letter in "([{") - (letter in ")]}") if not quote else 0
        if letter == "," and depth == 0 and not quote:
            yield part.strip()
            part = ""
        else:
            part += letter
    yield part.strip()


def part(shard: str) -> tuple[int, int]:
    """``i/n`` as two integers; ``ValueError`` for anything else."""
    found = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        msg = f"--shard is {shard!r}; write i/n, with i from 1 to n, as in 2/5."
        raise ValueError(msg)
    return int(found[1]), int(found[2])
