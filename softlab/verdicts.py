"""Verdicts on published claims: computed by a rule from what was measured. Imports no torch.

A rule says what interval the measured number lies in if the claim is true. At each place (a head, a
rank, a length) it is asked of the subject and of the controls, with the interval of each over the
seeds, at 95 % for all places together. A control of which the claim is known to be false must not
pass, and the best answer there is must; where they do otherwise the metric cannot tell.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

HOLDS = "holds"
PARTLY = "holds only where"
FAILS = "does not hold"
BLIND = "the metric cannot tell"
OPEN = "undecidable as stated"
VERDICTS = (HOLDS, PARTLY, FAILS, BLIND, OPEN)
NONE = "no verdict"
"""In place of a verdict where data are missing."""

CONTROLS = {"null": False, "noise": False, "contrast": False, "optimal": True}
"""Kinds of controls, and whether one of the kind must pass the rule.

``null``: knows nothing, such as the mean of the values or zeros. ``noise``: the exact answer plus a
random perturbation as large as the subject's error. ``contrast``: something of which the claim is
known to be false. ``optimal``: the best there is, such as the exact answer or the truncated SVD.
"""

CONFIDENCE = 0.95
TINY = 1e-18
"""What a smaller number counts as where numbers are compared by factors."""
FAR = 1e12
"""An end of the range of a metric that has none."""
NAMED = 4
"""Places that a sentence names; more are counted."""

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Rule:
    """The claim as a test of one number: at_least <= number <= at_most.

    ``of``: the number is the subject's value over that of this contender, seed by seed; the value
    itself where it is empty. ``where``: decides by the cases that have these values on these axes;
    by all cases where it is empty. ``scale``: "log" for positive numbers that are compared by
    factors, "linear" for others, compared by differences. ``span``: the least and the greatest
    value that the number can have; (0, inf) by factors and (-inf, inf) by differences unless given.

    Raises ``ValueError`` for a rule without a bound, bounds in the wrong order, a bound that is no
    number, a scale that is neither, and a rule that cannot fail or cannot hold within its span.
    """

    at_least: float | None = None
    at_most: float | None = None
    of: str = ""
    where: Mapping[str, Scalar] = field(default_factory=dict)
    scale: str = "log"
    span: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.scale not in {"log", "linear"}:
            msg = f"Rule.scale is {self.scale!r}; use 'log' or 'linear'."
            raise ValueError(msg)
        given = [x for x in (self.at_least, self.at_most) if x is not None]
        if not given:
            msg = "the rule has no bound and cannot fail; give at_least, at_most, or both."
            raise ValueError(msg)
        if not all(isinstance(x, int | float) and math.isfinite(x) for x in given):
            msg = f"the rule's bounds are {given}; give finite numbers."
            raise ValueError(msg)
        if given != sorted(given):
            msg = f"the rule wants at least {given[0]} and at most {given[1]}: exchange them."
            raise ValueError(msg)
        low, high = self.ends
        if self.scale == "log" and (low < 0 or given[-1] <= 0):
            msg = "numbers that are compared by factors are positive; use scale='linear'."
            raise ValueError(msg)
        states = {self.state(x, x) for x in (low, high, *given) if low <= x <= high}
        if states != {"in", "out"}:
            what = "cannot fail" if states == {"in"} else "cannot hold"
            msg = (
                f"the rule {what}: its number goes from {low:g} to {high:g}, and it asks for "
                f"{self.words()}. Move a bound inside, or correct the span."
            )
            raise ValueError(msg)

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the greatest value that the number can have."""
        return self.span or ((0.0, math.inf) if self.scale == "log" else (-math.inf, math.inf))

    def state(self, low: float, high: float) -> str:
        """Where an interval lies: "in" the bounds as a whole, "out" as a whole, or "open"."""
        least = -math.inf if self.at_least is None else self.at_least
        most = math.inf if self.at_most is None else self.at_most
        if low >= least and high <= most:
            return "in"
        return "out" if high < least or low > most else "open"

    def words(self) -> str:
        """The bounds in words."""
        said = [
            f"{word} {x:g}"
            for word, x in (("at least", self.at_least), ("at most", self.at_most))
            if x is not None
        ]
        return " and ".join(said) + (f" times that of {self.of}" if self.of else "")


@dataclass(frozen=True)
class Entry:
    """What one case measured.

    ``place``: its values on the axes that tell places apart, as words; ``unstated``: those on the
    axes that the publication leaves open; ``seed``: None where nothing is drawn; ``values`` by
    contender; ``missing``: why there are none, empty where there are.
    """

    place: Mapping[str, str]
    values: Mapping[str, float | None]
    seed: Scalar = None
    unstated: Mapping[str, str] = field(default_factory=dict)
    missing: str = ""


@dataclass(frozen=True)
class Found:
    """The number of one contender at one place: over the seeds, with its interval and its state."""

    value: float
    low: float
    high: float
    state: str


@dataclass(frozen=True)
class Place:
    """What the rule finds at one place: of the subject, of each control, and of the claim there.

    ``state``: "holds", "fails", "blind" or "open".
    """

    place: Mapping[str, str]
    unstated: Mapping[str, str]
    subject: Found
    controls: Mapping[str, Found]
    state: str
    blinding: tuple[str, ...] = ()

    @property
    def at(self) -> dict[str, str]:
        """Its values on all axes."""
        return {**self.place, **self.unstated}

    @property
    def label(self) -> str:
        """Its values in words."""
        return ", ".join(f"{axis} {word}" for axis, word in self.at.items())


@dataclass(frozen=True)
class Verdict:
    """A verdict, why, and how far it is from another.

    ``kind``: one of ``VERDICTS``, or ``NONE``; ``words``: the verdict in full; ``value``, ``low``,
    ``high``: the subject's number with its interval at the one place, or the median and the range
    over the places; ``margin``: by what the numbers named in ``margin_of`` ("subject" or
    "controls") must at least be multiplied, or on the linear scale what must be added, so that the
    verdict is another; None where nothing of the kind changes it. ``missing``: why there is none.
    """

    kind: str
    words: str
    places: tuple[Place, ...] = ()
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    margin: float | None = None
    margin_of: str = ""
    missing: tuple[str, ...] = ()


def decide(
    rule: Rule, subject: str, controls: Mapping[str, str], entries: Iterable[Entry]
) -> Verdict:
    """The verdict on a claim.

    Args:
        rule: What the claim says of the number.
        subject: The contender that the claim is about.
        controls: The kind of each control by contender, one of ``CONTROLS``.
        entries: What was measured, of the cases that the rule decides by.

    Returns:
        The verdict; ``NONE`` where a case, the subject or a control is missing anywhere.
    """
    known = list(entries)
    if lost := _missing(rule, subject, controls, known):
        return Verdict(NONE, f"{NONE}: {lost[0]}", missing=tuple(lost))
    known = _apart(known)
    groups: dict[tuple[Any, ...], list[Entry]] = {}
    for entry in known:
        key = (tuple(entry.place.items()), tuple(entry.unstated.items()))
        groups.setdefault(key, []).append(entry)
    level = 1 - (1 - CONFIDENCE) / len(groups)
    places = [_place(rule, subject, controls, group, level) for group in groups.values()]
    kind, words = _verdict(places)
    margin, margin_of = _margin(rule, controls, places, kind)
    return Verdict(kind, words, tuple(places), *_over(places), margin, margin_of)


def _apart(entries: Sequence[Entry]) -> list[Entry]:
    """The same with the axes alone on which places differ."""
    varied = {axis for entry in entries for axis, word in entry.place.items()
              if word != entries[0].place.get(axis)}  # fmt: skip
    return [
        replace(entry, place={x: word for x, word in entry.place.items() if x in varied})
        for entry in entries
    ]


def _missing(
    rule: Rule, subject: str, controls: Mapping[str, str], entries: Sequence[Entry]
) -> list[str]:
    """Why there can be no verdict, each reason once."""
    if not entries:
        return ["nothing was measured"]
    wanted = dict.fromkeys((subject, *controls, *([rule.of] if rule.of else ())))
    said = {entry.missing: None for entry in entries if entry.missing}
    for entry in entries:
        for name in () if entry.missing else wanted:
            x = entry.values.get(name)
            where = ", ".join(map(" ".join, entry.place.items()))
            if x is None or math.isnan(x):
                said[f"{name} has no number" + (f" at {where}" if where else "")] = None
            elif x < 0 and rule.scale == "log":
                said[f"{name} is {x:g}, which no factor compares; use scale='linear'"] = None
    return list(said)


def _place(
    rule: Rule,
    subject: str,
    controls: Mapping[str, str],
    entries: Sequence[Entry],
    level: float,
) -> Place:
    found = {}
    for name in (subject, *controls):
        numbers = [_number(rule, entry.values, name) for entry in entries]
        value, low, high = interval(
            numbers, rule.scale, level, drawn=any(x.seed is not None for x in entries)
        )
        found[name] = Found(value, low, high, rule.state(low, high))
    of_controls = {name: found[name] for name in controls}
    state, blinding = _judged(found[subject], of_controls, controls)
    first = entries[0]
    return Place(first.place, first.unstated, found[subject], of_controls, state, blinding)


def _number(rule: Rule, values: Mapping[str, float | None], name: str) -> float:
    """What the rule is asked of; ``_missing`` has seen to it that all are numbers."""
    value, rival = values[name], values[rule.of] if rule.of else None
    assert value is not None
    if rival is None:
        return value
    if rule.scale == "linear":
        return value / rival if rival else math.copysign(math.inf, value)
    return max(value, TINY) / max(rival, TINY)


def _judged(
    subject: Found, found: Mapping[str, Found], controls: Mapping[str, str]
) -> tuple[str, tuple[str, ...]]:
    """The state of the claim at a place, and the controls by which the metric cannot tell."""
    blinding = []
    for name, kind in controls.items():
        passes = found[name].state == "in"
        if CONTROLS[kind]:
            if subject.state == "in" and found[name].state == "out":
                blinding.append(name)
        elif passes:
            blinding.append(name)
    if blinding:
        return "blind", tuple(blinding)
    return {"in": "holds", "out": "fails", "open": "open"}[subject.state], ()


def interval(
    numbers: Sequence[float], scale: str, level: float = CONFIDENCE, *, drawn: bool = True
) -> tuple[float, float, float]:
    """Mean of independent numbers and its interval by Student's law, geometric on the log scale.

    Numbers that are equal have an interval of no width, as has one that is not ``drawn``; one that
    is drawn tells nothing of the others, and its interval is the whole line. Where a number is
    infinite so are the mean and that end, and the other is the least extreme number.
    """
    whole = (0.0, math.inf) if scale == "log" else (-math.inf, math.inf)
    if any(map(math.isinf, numbers)):
        return math.copysign(math.inf, sum(numbers)), min(numbers), max(numbers)
    if scale == "log":
        numbers = [math.log(max(x, TINY)) for x in numbers]
    count = len(numbers)
    mean = math.fsum(numbers) / count
    undo = math.exp if scale == "log" else float
    if max(numbers) - min(numbers) <= 1e-12 * max(map(abs, numbers)):
        value = undo(mean)
        return (value, *whole) if drawn and count < 2 else (value, value, value)
    spread = math.sqrt(math.fsum((x - mean) ** 2 for x in numbers) / (count - 1) / count)
    half = _student(level, count - 1) * spread
    return undo(mean), _safe(undo, mean - half), _safe(undo, mean + half)


def _safe(undo: Any, x: float) -> float:
    try:
        return float(undo(x))
    except OverflowError:
        return math.inf


@lru_cache(maxsize=4096)
def _student(level: float, freedom: int) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + level) / 2, freedom))


def _verdict(places: Sequence[Place]) -> tuple[str, str]:
    """The verdict and its words, of the states at the places."""
    if torn := _torn(places):
        return OPEN, (
            f"{OPEN}: the answer depends on {torn[0]}, which is not stated (it holds with "
            f"{torn[1]} and not with {torn[2]})"
        )
    if unclear := _torn(places, "open"):
        return OPEN, (
            f"{OPEN}: more seeds are needed, with {unclear[0]} not stated; unsure with "
            f"{unclear[1]}, and not with {unclear[2]}"
        )
    by: dict[str, list[Place]] = {}
    for place in places:
        by.setdefault(place.state, []).append(place)
    holding, failing = by.get("holds", []), by.get("fails", [])
    blind, unsure = by.get("blind", []), by.get("open", [])
    rest = [
        f"{word} {_named(some, places)}"
        for word, some in (("not at", failing), ("cannot tell at", blind), ("unsure at", unsure))
        if some
    ]
    if len(holding) == len(places):
        return HOLDS, HOLDS
    if holding and not failing and not blind:  # what is unsure may still make it hold everywhere
        told = "; ".join((f"holds at {_named(holding, places)}", *rest))
        return OPEN, f"{OPEN}: more seeds are needed; {told}"
    if holding:
        return PARTLY, f"{PARTLY} {_named(holding, places)}; {'; '.join(rest)}"
    if len(blind) >= max(1, len(failing), len(unsure)):
        names = sorted({name for place in blind for name in place.blinding})
        also = "" if len(blind) == len(places) else f" at {_named(blind, places)}"
        return BLIND, f"{BLIND}{also}: {' and '.join(names)} " + (
            "does as well" if len(names) == 1 else "do as well"
        )
    if failing:
        others = [x for x in rest if not x.startswith("not at")]
        return FAILS, FAILS + (f" ({'; '.join(others)})" if others else "")
    also = f"; {rest[0]}" if blind else ""
    return OPEN, f"{OPEN}: an interval holds a bound, so that more seeds are needed{also}"


def _torn(places: Sequence[Place], state: str = "holds") -> tuple[str, str, str] | None:
    """The unstated axes by which it fails here and has that state there, and where either is."""
    groups: dict[tuple[Any, ...], list[Place]] = {}
    for place in places:
        groups.setdefault(tuple(place.place.items()), []).append(place)
    for group in groups.values():
        yes = [x for x in group if x.state == state and x.unstated]
        no = [x for x in group if x.state == "fails"]
        if yes and no:
            one, other = (
                ", ".join(f"{axis} {word}" for axis, word in some[0].unstated.items())
                for some in (yes, no)
            )
            return " and ".join(group[0].unstated), one, other
    return None


def _named(some: Sequence[Place], places: Sequence[Place]) -> str:
    """Some of the places in words: by one axis where that tells them apart, else each."""
    axes = {axis for place in places for axis in place.at}
    for axis in sorted(axes):
        mine = {x.at.get(axis) for x in some}
        all_of = [x for x in places if x.at.get(axis) in mine]
        if len(all_of) == len(some) < len(places) and len(mine) <= NAMED:
            return f"{axis} {' or '.join(map(str, sorted(mine, key=str)))}"
    labels = [x.label for x in some]
    if len(labels) > NAMED:
        return f"{len(labels)} of {len(places)} places ({'; '.join(labels[:2])} and others)"
    return "; ".join(labels) or "the one place"


def _over(places: Sequence[Place]) -> tuple[float, float, float]:
    """The number at the one place with its interval, or the median of all with their range."""
    if len(places) == 1:
        one = places[0].subject
        return one.value, one.low, one.high
    values = sorted(x.subject.value for x in places)
    half = len(values) // 2
    middle = values[half] if len(values) % 2 else (values[half - 1] + values[half]) / 2
    return middle, values[0], values[-1]


def _margin(
    rule: Rule, controls: Mapping[str, str], places: Sequence[Place], kind: str
) -> tuple[float | None, str]:
    """The least change of the subject's numbers, or of the controls', that flips the verdict."""
    for whose in ("subject", "controls"):
        tried = sorted(_candidates(rule, places, whose), key=lambda x: abs(_size(rule, x)))
        for change in tried:
            moved = [_moved(rule, controls, place, change, whose) for place in places]
            if _verdict(moved)[0] != kind:
                return change, whose
    return None, ""


def _size(rule: Rule, change: float) -> float:
    return math.log(change) if rule.scale == "log" else change


def _candidates(rule: Rule, places: Sequence[Place], whose: str) -> set[float]:
    """Changes at which an end of an interval meets a bound, and a hair beyond."""
    bounds = [x for x in (rule.at_least, rule.at_most) if x is not None]
    found = set()
    for place in places:
        for one in (place.subject,) if whose == "subject" else place.controls.values():
            for end in (one.low, one.high):
                if not math.isfinite(end) or (rule.scale == "log" and end <= 0):
                    continue
                for bound in bounds:
                    if rule.scale == "log" and bound > 0:
                        found |= {bound / end * (1 + sign * 1e-9) for sign in (-1, 1)}
                    elif rule.scale == "linear":
                        hair = 1e-9 * max(1e-9, abs(bound), abs(end))
                        found |= {bound - end + sign * hair for sign in (-1, 1)}
    return {x for x in found if math.isfinite(x) and (rule.scale == "linear" or x > 0)}


def _moved(
    rule: Rule, controls: Mapping[str, str], place: Place, change: float, whose: str
) -> Place:
    def moved(one: Found) -> Found:
        value, low, high = (x * change if rule.scale == "log" else x + change
                for x in (one.value, one.low, one.high))  # fmt: skip
        return Found(value, low, high, rule.state(low, high))

    subject = moved(place.subject) if whose == "subject" else place.subject
    found = place.controls
    if whose == "controls":
        found = {name: moved(one) for name, one in found.items()}
    state, blinding = _judged(subject, found, controls)
    return replace(place, subject=subject, controls=found, state=state, blinding=blinding)
