"""Published claims, each tried by a study, with controls and a rule that gives the verdict.

A claim is one file that defines a ``Claim`` at its top level: who says what and where, how it is
measured here, and the rule (``softlab.verdicts.Rule``) that decides. ``softlab docket run`` runs
softlab's own, those in ``studies/docket``, and any file of a user's.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from softlab import study_folders, validation
from softlab.engine.journal import Scalar, replace
from softlab.engine.loading import load
from softlab.engine.workers import Crew
from softlab.study import Outcome, Study
from softlab.study import run as run_study
from softlab.verdicts import CONTROLS, Rule

__all__ = ["AGAIN", "FOLDER", "Challenge", "Claim", "MissingError", "claims_in", "run"]

FOLDER = "docket"
"""Of the results, within that of all studies; each claim has a folder in it."""
AGAIN = ".again"
"""What the folder of a challenge ends with."""
DESCRIBED = "claim.json"
WORDS = (
    *("name", "title", "who", "place", "states", "published", "setting", "lacking"),
    *("measured", "subject"),
)
"""What a claim says in words."""


class MissingError(RuntimeError):
    """A measure lacks data that are not here, such as fetched weights: the row says so."""


@dataclass(frozen=True)
class Challenge:
    """A second, independent way to the same verdict: another implementation, or other inputs.

    ``about`` says in what it differs. ``measure``, ``axes``, ``quick``, ``setup`` and ``keep`` are
    as in ``Claim``, with the same contenders; ``rule`` is the claim's unless given.
    """

    about: str
    axes: Mapping[str, Sequence[Any]]
    measure: Callable[..., Mapping[str, Scalar]]
    quick: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    setup: Callable[..., object] | None = None
    keep: Callable[..., bool] | None = None
    rule: Rule | None = None


@dataclass(frozen=True)
class Claim:
    """A published claim and how it is tried.

    The claim: ``name`` (of its folder), ``title``, ``who`` says it, ``place`` (paper, table or
    figure), ``states`` in a sentence, ``published`` (their number, in words), the ``setting`` as
    published, and what of it is ``lacking`` here.

    The trial: ``measure(<axes>, dtype, device, setup)`` returns one number for each contender by
    name, and ``measured`` says what the number is; ``axes``, ``quick``, ``setup`` and ``keep`` are
    those of a ``softlab.study.Study``. The axis ``seed`` holds repetitions; ``across`` is the axis
    of numbers that the figure has for x, with ``xlabel``; ``unstated`` names the axes that the
    publication leaves open. Where data are not here, ``measure`` raises ``MissingError``.

    The verdict: ``subject`` is the contender that the claim is about, ``controls`` give the kind of
    others (``softlab.verdicts.CONTROLS``), and ``rule`` decides. ``challenge`` reaches the verdict
    again in another way.

    Raises ``ValueError`` for empty words, for no controls, for none that must not pass, for a kind
    of control that is none, for no rule, for a subject that is a control, and for names of axes
    that are none, or have no numbers to draw against; what is wrong with axes and functions
    ``softlab.study.Study`` says.
    """

    name: str
    title: str
    who: str
    place: str
    states: str
    published: str
    setting: str
    lacking: str
    measured: str
    axes: Mapping[str, Sequence[Any]]
    measure: Callable[..., Mapping[str, Scalar]]
    subject: str
    controls: Mapping[str, str] = field(default_factory=dict)
    rule: Rule | None = None
    across: str = "seed"
    xlabel: str = ""
    xscale: str = "log"
    quick: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    setup: Callable[..., object] | None = None
    keep: Callable[..., bool] | None = None
    unstated: Sequence[str] = ()
    challenge: Challenge | None = None
    file: Path | None = None
    module: str = ""

    def __post_init__(self) -> None:
        validation.fields(self)
        if wrong := self._wrong():
            msg = f"{self.name or 'a claim without a name'}: {wrong}."
            raise ValueError(msg)
        self.studies()  # which says what is wrong with axes and functions

    def _wrong(self) -> str:
        """What is wrong, in words; empty if nothing is."""
        if empty := [x for x in WORDS if not str(getattr(self, x)).strip()]:
            return f"{', '.join(empty)} is empty; a claim says it"
        if self.name.endswith(AGAIN):
            return f"the name ends with {AGAIN}, as that of a challenge; choose another"
        if self.rule is None:
            return "there is no rule; give rule=Rule(at_most=...), which decides from the rows"
        if not self.controls:
            return (
                "there are no controls; give one at least that must not pass, as in "
                "controls={'the mean of v': 'null'}"
            )
        if odd := [kind for kind in self.controls.values() if kind not in CONTROLS]:
            return f"a control is of kind {odd[0]!r}; the kinds are {', '.join(CONTROLS)}"
        if all(CONTROLS[kind] for kind in self.controls.values()):
            return (
                "no control must fail, so that the metric could not be found blind; give one of "
                "kind null, noise or contrast"
            )
        if self.subject in self.controls:
            return f"the subject {self.subject!r} is among its controls; name another"
        return self._wrong_axes()

    def _wrong_axes(self) -> str:
        assert self.rule is not None
        if self.challenge is not None and not self.challenge.about.strip():
            return "the challenge does not say in what it differs; fill Challenge.about"
        for what, names in (
            ("across", [self.across]),
            ("unstated", self.unstated),
            ("the rule's where", self.rule.where),
        ):
            if lost := [x for x in names if x not in self.axes]:
                return (
                    f"{what} names {lost[0]!r}, which is no axis; there are {', '.join(self.axes)}"
                )
        if odd := [x for x in self.axes[self.across] if not isinstance(x, int | float)]:
            return f"across names {self.across!r}, which has {odd[0]!r}; give an axis of numbers"
        grids = [self.axes, {**self.axes, **self.quick}]
        return _undecided(self.rule, grids) or self._wrong_challenge()

    def _wrong_challenge(self) -> str:
        other = self.challenge
        if other is None:
            return ""
        assert self.rule is not None
        grids = [other.axes, {**other.axes, **other.quick}]
        if wrong := _undecided(other.rule or self.rule, grids):
            return f"in the challenge {wrong}; give it a rule of its own"
        return ""

    def studies(self) -> list[tuple[Study, Rule]]:
        """The study of the claim, and that of its challenge, each with its rule."""
        assert self.rule is not None
        ways: list[tuple[Any, str, Rule]] = [(self, self.name, self.rule)]
        if self.challenge is not None:
            rule = self.challenge.rule or self.rule
            ways.append((self.challenge, self.name + AGAIN, rule))
        return [
            (
                Study(
                    name=name,
                    title=self.title,
                    question=self.states,
                    axes=way.axes,
                    quick=way.quick,
                    measure=way.measure,
                    setup=way.setup,
                    keep=way.keep,
                    file=self.file,
                    module=self.module,
                ),
                rule,
            )
            for way, name, rule in ways
        ]

    def described(self) -> dict[str, Any]:
        """What a table of its rows is read by: all words, the rules, the controls, the axes."""
        found = {x: getattr(self, x) for x in (*WORDS, "across", "xlabel", "xscale")}
        (_, rule), *again = self.studies()
        return found | {
            "controls": dict(self.controls),
            "rule": dataclasses.asdict(rule),
            "unstated": list(self.unstated),
            "axes": list(self.axes),
            "challenge": None
            if self.challenge is None
            else {
                "about": self.challenge.about,
                "rule": dataclasses.asdict(again[0][1]),
                "axes": list(self.challenge.axes),
            },
        }


def _undecided(rule: Rule, grids: Sequence[Mapping[str, Sequence[Any]]]) -> str:
    """What the rule decides by and a grid lacks, in words; empty if nothing is."""
    for axis, x in rule.where.items():
        for axes in grids:
            if x not in axes.get(axis, ()):
                return f"the rule decides at {axis}={x!r}, which is not on that axis"
    return ""


def claims_in(named: Path | str) -> list[Claim]:
    """The claims at the top level of a file of Python, or the one of softlab's own of that name.

    Raises ``ValueError`` where there are none, and where the file cannot be loaded, as with a claim
    without controls.
    """
    own = study_folders.docket()
    module = load(own[str(named)] if str(named) in own else _file(named, own))
    found = {id(x): x for x in vars(module).values() if isinstance(x, Claim)}
    if not found:
        msg = f"{named} defines no softlab.docket.Claim at its top level; add CLAIM = Claim(...)."
        raise ValueError(msg)
    path, name = Path(str(module.__file__)), module.__name__
    return [dataclasses.replace(claim, file=path, module=name) for claim in found.values()]


def _file(named: Path | str, own: Mapping[str, Path]) -> Path:
    from softlab.hints import hint

    path = Path(named)
    if path.is_file():
        return path
    msg = (
        f"there is no claim and no file {named}; softlab docket lists the claims."
        f"{hint(str(named), own)}"
    )
    raise ValueError(msg)


def run(
    claim: Claim,
    out: Path | str = "reports",
    *,
    quick: bool = False,
    fresh: bool = False,
    progress: bool = False,
    threads: int | None = None,
    crew: Crew | None = None,
) -> list[Outcome]:
    """Measure a claim, and its challenge, into ``out/docket/<name>``; rows are reused as ever.

    What the rows are read by stands beside them in ``claim.json``. Arguments and what is raised are
    those of ``softlab.study.run``.
    """
    place = Path(out) / FOLDER
    outcomes = [
        run_study(
            study, place, quick=quick, fresh=fresh, progress=progress, threads=threads, crew=crew
        )
        for study, _ in claim.studies()
    ]
    replace(place / claim.name / DESCRIBED, json.dumps(claim.described(), indent=2) + "\n")
    return outcomes
