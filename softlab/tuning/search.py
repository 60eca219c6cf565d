"""The search for a plan: what each layer tolerates, a path of ever bolder plans, a test apart.

1. Each candidate answers what reaches each layer, off the model: its squared error and its counted
   work, head by head. Only the lower convex hull of the two is looked at further.
2. In each layer alone the cheapest candidate is sought by bisection with which the whole model
   stays within what was asked. That gives what the layer tolerates, and its gain: the change of
   the model over the error of the layer.
3. Squared changes of independent errors add up. So steps along the hulls of all heads, ordered by
   predicted change over work saved, make a path of plans, from the model as it is to the boldest.
   Bisection finds, by running the model, how far along it the search inputs stay within.
4. A few plans on the path are run on inputs that were held out, and tested from the safest to the
   boldest (``passed``). The boldest that passes is the result. All tests together are wrong no more
   often than one 95 % interval.
"""

from __future__ import annotations

import bisect
import contextlib
import heapq
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from softlab import __version__
from softlab.capture import Call, SubstitutionError, record
from softlab.capture.dispatch import answer
from softlab.capture.effect import attention_flops, own, sizes, without_attention
from softlab.core import Operator
from softlab.profiling import in_turn
from softlab.tuning.certified import Proposal, proposals
from softlab.tuning.plan import Part, Plan, operator
from softlab.tuning.subject import (
    CONFIDENCE,
    Interval,
    Metric,
    Pair,
    Subject,
    Unit,
    change,
    halves,
    units,
)
from softlab.validation import is_integer, is_number

KNOBS = (8, 16, 32, 64, 128)
CANDIDATES = (
    "Uniform()",
    *(
        f"{name}({knob})"
        for knob in KNOBS
        for name in (
            *("Local", "TopK", "ColumnSample", "Nystromformer", "RPCholesky"),
            *("Performer", "BandLowRank"),
        )
    ),
)
"""What is tried unless candidates are given."""
SEARCHED, HELD, LOOKED_AT = 8, 64, 4
"""Inputs to search on and held out, at most; those whose layers are looked at off the model."""
TRIALS = 300
CERTIFICATE = "certificate"
"""The kind of a row that says what a family's certificates propose for a layer; nothing was run."""
SHARES = (0.3, 0.5, 0.7, 0.85, 0.95)
"""The plans that are tested change the search inputs by about these shares of what was asked."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Found:
    """What a search found: the plan, without layers where nothing meets the target, and a table.

    ``rows``: all plans that were run, ``said``: the result in a sentence or more.
    """

    plan: Plan
    rows: list[Row]
    said: str

    @property
    def met(self) -> bool:
        """Whether a cheaper plan met the target on inputs held out."""
        return bool(self.plan.layers)


@dataclass(frozen=True)
class Option:
    """A candidate at one head: its counted work, and its squared error there."""

    operator: str
    work: float
    error: float


@dataclass(eq=False)
class Layer:
    """A layer off the model: its exact work, and its options by head and for all heads together."""

    name: str
    heads: int
    work: float
    by_head: list[list[Option]]
    whole: list[Option]
    refused: dict[str, str]
    gain: float = math.nan


def tune(
    model: nn.Module,
    inputs: Sequence[Unit],
    *,
    within: float,
    metric: Metric = change,
    candidates: Sequence[str] = CANDIDATES,
    certified: float | None = None,
    heads: bool = True,
    trials: int = TRIALS,
    journal: Path | str | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Found:
    """The cheapest plan that changes the model by at most ``within``, on inputs held out.

    Args:
        model: In eval mode; it is not touched.
        inputs: Pairs (args, kwargs) of what the model is called with; batches are split.
        within: The most that the metric may reach, its 95 % interval included; above 0.
        metric: ``change``, ``loss`` or ``score(function)``.
        candidates: Names of operators, "TopK(k=32)", or "mine.py:operator".
        certified: Proposes more: of each family that answers ``at_most``, and at each layer, the
            smallest setting that is certified to err in no row by more than this share of the
            layer's rows, on the search inputs that are looked at; above 0.
        heads: Whether heads of a layer may have operators of their own.
        trials: The budget: how many plans are run on the search inputs, at most.
        journal: A file that keeps each run, so that an interrupted search goes on.
        tell: Is given a line now and then.

    Raises:
        ValueError: For too few inputs, a target that is not above 0, candidates that are none, and
            outputs that cannot be compared.
        RuntimeError: Where no attention of the model was seen.
    """
    _checked(within, candidates, certified, trials)
    every = units(model, inputs)
    chosen, held = halves(every, SEARCHED)
    held = held[:HELD]
    subject = Subject(model, metric, chosen).prepared()
    search = _Search(subject, held, within, trials, tell, _Journal(journal, subject, held))
    tell(
        f"{len(every)} inputs: {len(chosen)} to search on, {len(held)} held out. At most {trials} "
        f"plans are run on the former, {search.journal.known} are known."
    )
    search.look(candidates, certified)
    return search.found(per_head=heads)


def passed(count: int, holds: Callable[[int, float], bool]) -> list[bool]:
    """Which of ``count`` tests pass, all of them wrong together at most as often as one interval.

    Wiens' fallback procedure (Pharmaceutical Statistics 2, 2003): the first test has half of the
    odds of an error, the others share the rest, and a test that passes hands its odds on to the
    next. So one that fails ends nothing. ``holds(i, odds)``: whether test i does at these odds.
    """
    odds, handed, found = 1 - CONFIDENCE, 0.0, []
    for i in range(count):
        own = odds if count == 1 else odds / 2 if i == 0 else odds / 2 / (count - 1)
        found.append(holds(i, own + handed))
        handed = own + handed if found[-1] else 0.0
    return found


def _checked(
    within: float, candidates: Sequence[str], certified: float | None, trials: int
) -> None:
    if not (is_number(within) and 0 < within < math.inf):
        msg = f"within is {within!r}; give the change that is allowed, a number above 0, as 0.01."
        raise ValueError(msg)
    if not is_integer(trials) or trials < 1:
        msg = f"trials is {trials!r}; give how many plans may be run, an integer of at least 1."
        raise ValueError(msg)
    if certified is not None and not (is_number(certified) and 0 < certified < math.inf):
        msg = (
            f"certified is {certified!r}; give the share of a layer's rows that its certified "
            "error may be, a number above 0, as 0.1, or leave it out."
        )
        raise ValueError(msg)
    if isinstance(candidates, str) or not candidates:
        msg = f"candidates is {candidates!r}; give a list of operators, as ['TopK(k=32)']."
        raise ValueError(msg)
    for text in candidates:
        if not isinstance(made := operator(text), Operator):
            msg = (
                f"candidate {text} is a {type(made).__name__} that counts no cost, so it cannot be "
                "cheaper than another. Write it as an operator: the guide on operators of your own."
            )
            raise ValueError(msg)  # noqa: TRY004, as for a name that is no operator


class _Journal:
    """The pairs of each plan that was run, by what decides them; in a file where one is named."""

    def __init__(self, file: Path | str | None, subject: Subject, held: list[Unit]) -> None:
        self.file = None if file is None else Path(file)
        self.digests = {
            "search": subject.digest(),
            "held out": replace(subject, inputs=held).digest(),
        }
        self.pairs: dict[tuple[str, str], list[Pair]] = {}
        if self.file is not None and self.file.is_file():
            for line in self.file.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):  # a torn last line
                    one = json.loads(line)
                    self.pairs[one["digest"], one["plan"]] = [(x, y) for x, y in one["pairs"]]
        self.known = sum(digest == self.digests["search"] for digest, _ in self.pairs)

    def get(self, where: str, plan: Plan) -> list[Pair] | None:
        return self.pairs.get((self.digests[where], plan.key))

    def put(self, where: str, plan: Plan, pairs: list[Pair]) -> None:
        key = self.digests[where], plan.key
        self.pairs[key] = pairs
        if self.file is not None:
            line = json.dumps({"digest": key[0], "plan": key[1], "pairs": pairs})
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8") as out:
                out.write(line + "\n")


@dataclass(eq=False)
class _Search:
    subject: Subject
    held: list[Unit]
    within: float
    trials: int
    tell: Callable[[str], None]
    journal: _Journal
    layers: list[Layer] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    spent: int = 0
    rest: float = 0.0
    exact: float = 0.0
    certified: float | None = None

    # What each candidate makes of each layer, off the model ---------------------------------------

    def look(self, candidates: Sequence[str], certified: float | None = None) -> None:
        """Errors and work of all candidates at all layers, on the first inputs."""
        self.certified = certified
        calls: dict[str, list[Call]] = {}
        for i, unit in enumerate(self.subject.inputs[:LOOKED_AT]):
            with record(self.subject.model) as seen:
                self.subject.run(unit)
            for call in seen:
                calls.setdefault(call.module, []).append(call)
            if i == 0:
                self.exact = float(sum(attention_flops(sizes(call)) for call in seen))
        self.rest = float(
            without_attention(self.subject.model, lambda: self.subject.run(self.subject.inputs[0]))
        )
        made = {text: operator(text) for text in candidates}
        for name, mine in calls.items():
            more = [] if certified is None else proposals(mine, certified)
            proposed = {repr(x.operator): x.operator for x in more if x.operator is not None}
            self.layers.append(_looked_at(name, mine, made | proposed))
            self.rows += [_proposed(self.layers[-1], x) for x in more]
        options = sum(len(layer.whole) - 1 for layer in self.layers)
        self.tell(f"{len(self.layers)} layers; {options} candidates are on the hull of one.")

    # Runs of the model ---------------------------------------------------------------------------

    def value(self, plan: Plan, kind: str, layer: str = "") -> float | None:
        """The metric on the search inputs; None where the budget is spent."""
        if not plan.layers:
            return 0.0
        pairs = self.journal.get("search", plan)
        if pairs is None:
            if self.spent >= self.trials:
                return None
            self.spent += 1
            try:
                with plan.applied(self.subject.model):
                    pairs = [*self.subject.pairs()]
            except SubstitutionError:  # some input asks for what an operator cannot honour
                pairs = [(math.inf, 1.0)]
            self.journal.put("search", plan, pairs)
        found = self.subject.metric.value(pairs)
        self.note(plan, kind, "search", Interval(found, math.nan, math.nan), layer)
        return found

    def note(
        self, plan: Plan, kind: str, on: str, found: Interval, layer: str = "", *, met: bool = False
    ) -> None:
        attention = self.attention(plan)
        self.rows.append({
            "status": "ok", "kind": kind, "layer": layer, "plan": _words(plan), "on": on,
            "layers": len(plan.layers), "heads": self.heads(plan), "attention": attention,
            "work": self.work(plan), "value": found.value, "low": found.low, "high": found.high,
            "accepted": met, "says": "",
        })  # fmt: skip

    def attention(self, plan: Plan) -> float:
        """Its counted work over that of the model's own attention."""
        spent = 0.0
        for layer in self.layers:
            parts = plan.layers.get(layer.name, ())
            taken = 0
            for part in parts:
                count = layer.heads if part.heads is None else len(part.heads)
                taken += count
                spent += count * next(x.work for x in layer.whole if x.operator == part.operator)
            spent += (layer.heads - taken) * layer.work
        return spent / sum(layer.heads * layer.work for layer in self.layers)

    def work(self, plan: Plan) -> float:
        """Counted work of a run of the model over that of the unmodified model."""
        return (self.rest + self.attention(plan) * self.exact) / (self.rest + self.exact)

    def heads(self, plan: Plan) -> int:
        """How many heads are replaced."""
        all_of = {layer.name: layer.heads for layer in self.layers}
        return sum(
            all_of[name] if part.heads is None else len(part.heads)
            for name, parts in plan.layers.items()
            for part in parts
        )

    # The steps of the search ----------------------------------------------------------------------

    def tolerances(self) -> None:
        """Of each layer alone the cheapest option within, and the layer's gain."""
        share = self.within**self.subject.metric.power / max(1, len(self.layers))
        for layer in self.layers:
            hull = _hull(layer.whole)
            tried: list[tuple[float, float]] = []
            low, high = 0, len(hull)
            while high - low > 1:
                middle = (low + high) // 2
                plan = Plan({layer.name: (Part(hull[middle].operator),)})
                found = self.value(plan, "one layer", layer.name)
                if found is None:
                    return
                moved = max(0.0, found) ** self.subject.metric.power
                if hull[middle].error == 0:
                    tried.append((math.inf, 0.0))
                elif math.isfinite(moved):
                    tried.append(
                        (abs(math.log(max(moved, 1e-300) / share)), moved / hull[middle].error)
                    )
                low, high = (middle, high) if found <= self.within else (low, middle)
            if tried:
                layer.gain = min(tried)[1]

    def path(self, *, per_head: bool) -> tuple[list[Plan], list[float]]:
        """Plans, each a step bolder than the one before, and their predicted changes."""
        hulls = {
            (layer.name, head): _hull(options)
            for layer in self.layers
            if not math.isnan(layer.gain)
            for head, options in enumerate(layer.by_head if per_head else [layer.whole])
        }
        gains = {layer.name: layer.gain for layer in self.layers}
        at = dict.fromkeys(hulls, 0)
        plans, predicted, total = [Plan({})], [0.0], 0.0

        def ahead(place: tuple[str, int]) -> Iterator[tuple[float, tuple[str, int]]]:
            hull, i = hulls[place], at[place]
            if i + 1 < len(hull):
                added = gains[place[0]] * (hull[i + 1].error - hull[i].error)
                yield added / (hull[i].work - hull[i + 1].work), place

        steps = [step for place in hulls for step in ahead(place)]
        heapq.heapify(steps)
        while steps:
            _, place = heapq.heappop(steps)
            hull, i = hulls[place], at[place]
            total += gains[place[0]] * (hull[i + 1].error - hull[i].error)
            at[place] = i + 1
            for step in ahead(place):
                heapq.heappush(steps, step)
            plans.append(self._plan(hulls, at, per_head=per_head))
            predicted.append(total)
        return plans, predicted

    def _plan(
        self,
        hulls: Mapping[tuple[str, int], list[Option]],
        at: Mapping[Any, int],
        *,
        per_head: bool,
    ) -> Plan:
        chosen: dict[str, dict[str, list[int]]] = {}
        for (name, head), i in at.items():
            if i:
                chosen.setdefault(name, {}).setdefault(hulls[name, head][i].operator, []).append(
                    head
                )
        count = {layer.name: layer.heads for layer in self.layers}
        whole = not per_head
        return Plan({
            name: tuple(
                Part(text, None if whole or len(mine) == count[name] else tuple(mine))
                for text, mine in by.items()
            )
            for name, by in chosen.items()
        })  # fmt: skip

    def far(self, plans: Sequence[Plan], predicted: Sequence[float]) -> tuple[int, float]:
        """The last plan on a path that was found within on the search inputs, and its change."""
        power = self.subject.metric.power
        low, high, best = 0, len(plans), 0.0
        middle = bisect.bisect(predicted, self.within**power) - 1
        while high - low > max(1, len(plans) // 200):
            middle = min(max(middle, low + 1), high - 1)
            found = self.value(plans[middle], "path")
            if found is None:
                break
            if found <= self.within:
                low, best = middle, found
            else:
                high = middle
            middle = (low + high) // 2
        return low, best

    def single(self) -> tuple[Plan, float] | None:
        """The cheapest operator that stays within in all layers that can have it."""
        names = dict.fromkeys(x.operator for layer in self.layers for x in layer.whole[1:])
        found = []
        for text in names:
            there = [x for x in self.layers if any(o.operator == text for o in x.whole)]
            moved = sum(
                x.gain * next(o.error for o in x.whole if o.operator == text)
                for x in there
                if not math.isnan(x.gain)
            )
            plan = Plan({x.name: (Part(text),) for x in there})
            found.append((self.attention(plan), moved, plan))
        likely = (2 * self.within) ** self.subject.metric.power
        for attention, moved, plan in sorted(found, key=lambda x: x[0]):
            if moved <= likely and attention < 1:
                value = self.value(plan, "one operator")
                if value is not None and value <= self.within:
                    return plan, value
        return None

    def sequence(self, *, per_head: bool) -> tuple[list[Plan], Plan | None]:
        """The plans to test, from the safest; and the best single operator."""
        self.tolerances()
        self.tell(f"what each layer tolerates is known after {self.spent} runs.")
        best: list[Plan] = []
        for by_head in (False, True) if per_head else (False,):
            plans, predicted = self.path(per_head=by_head)
            last, reached = self.far(plans, predicted)
            if not last:
                continue
            power = self.subject.metric.power
            # What was predicted too low or too high at the end of the path was so before it.
            scale = predicted[last] / max(reached, 1e-300) ** power if reached > 0 else 0.0
            ends = [
                bisect.bisect(predicted, (share * self.within) ** power * scale, hi=last + 1) - 1
                for share in SHARES
            ]
            mine = [plans[i] for i in dict.fromkeys((*ends, last)) if i > 0]
            if not best or self.attention(mine[-1]) < self.attention(best[-1]):
                best = mine
        alone = self.single()
        if alone is not None and (not best or self.attention(alone[0]) < self.attention(best[-1])):
            best = [*best, alone[0]]
        self.tell(f"{len(best)} plans are tested on the inputs held out, after {self.spent} runs.")
        return best, alone[0] if alone else None

    def tested(self, plans: Sequence[Plan]) -> list[list[Pair]]:
        """The pairs of each plan on the inputs held out, one input in memory at a time."""
        todo = [plan for plan in plans if self.journal.get("held out", plan) is None]
        made: list[list[Pair]] = [[] for _ in todo]
        for unit in self.held if todo else ():
            clean = self.subject.own(unit)
            for plan, pairs in zip(todo, made, strict=True):
                try:
                    with plan.applied(self.subject.model):
                        pairs.append(self.subject.metric.pair(self.subject.run(unit), clean))
                except SubstitutionError:
                    pairs.append((math.inf, 1.0))
        for plan, pairs in zip(todo, made, strict=True):
            self.journal.put("held out", plan, pairs)
        return [self.journal.get("held out", plan) or [] for plan in plans]

    def found(self, *, per_head: bool) -> Found:
        """The plan, its table and what is to be said of it."""
        plans, alone = self.sequence(per_head=per_head)
        if self.subject.metric.name not in {"change", "loss"} and self.blind():
            msg = (
                f"{self.subject.metric.name} gives the same number whatever the attention, so it "
                "does not see it. Give a metric of the model's output that the attention reaches."
            )
            raise ValueError(msg)
        last, kept, met = None, Interval(0.0, 0.0, 0.0), 0
        metric, tested = self.subject.metric, self.tested(plans)

        def holds(i: int, odds: float) -> bool:
            return metric.interval(tested[i], odds).high <= self.within

        for plan, pairs, passes in zip(plans, tested, passed(len(plans), holds), strict=True):
            interval = metric.interval(pairs)
            self.note(plan, "held out", "held out", interval, met=passes)
            if passes:
                last, kept, met = plan, interval, metric.resampled(pairs, self.within)
        about = self.about(alone)
        if last is None:
            return Found(Plan({}, about), self.rows, self.nothing(plans) + self.proposed({}))
        time = self.time(last)
        about |= {
            **{"value": kept.value, "low": kept.low, "high": kept.high, "resamplings_met": met},
            **{"work": self.work(last), "attention": self.attention(last), **time},
            **{"layers_replaced": len(last.layers), "heads_replaced": self.heads(last)},
        }
        said = self.said(about) + self.proposed(last.layers)
        return Found(Plan(last.layers, about), self.rows, said)

    def blind(self) -> bool:
        """Whether no plan, however bold, has moved the metric."""
        ran = [row for row in self.rows if row["on"] == "search"]
        return bool(ran) and all(row["value"] == 0 for row in ran)

    def time(self, plan: Plan) -> dict[str, float]:
        """Of a run with the plan over one of the unmodified model, in turn."""
        unit, model = self.held[0], self.subject.model
        device = next((x.device for x in model.parameters()), torch.device("cpu"))

        def run() -> Any:
            with torch.no_grad():
                return model(*unit[0], **unit[1])

        found = in_turn(run, run, device, repeats=7, within=lambda: plan.applied(model))
        return {name: float(x) for name, x in found.items() if isinstance(x, float)}

    def about(self, alone: Plan | None) -> Row:
        """What is known of any search."""
        return {
            **{"softlab": __version__, "torch": torch.__version__},
            **{"metric": self.subject.metric.name, "within": self.within},
            **{"search_inputs": len(self.subject.inputs), "held_out_inputs": len(self.held)},
            **{"trials": self.spent, "budget": self.trials},
            **{"layers": len(self.layers), "heads": sum(x.heads for x in self.layers)},
            "single_operator": None if alone is None else _words(alone),
            "single_operator_attention": None if alone is None else self.attention(alone),
            "not_tried": [layer.name for layer in self.layers if math.isnan(layer.gain)],
            "certified": self.certified,
        }

    def proposed(self, layers: Mapping[str, Sequence[Part]]) -> str:
        """What became of the candidates by certificate; empty where none were asked."""
        if self.certified is None:
            return ""
        rows = [row for row in self.rows if row["kind"] == CERTIFICATE]
        taken = {(row["layer"], row["plan"]) for row in rows if row["status"] == "ok"}
        used = taken & {(name, part.operator) for name, parts in layers.items() for part in parts}
        return (
            f" Certified to err in no row by more than {self.certified:g} of a layer's rows: "
            f"{len(taken)} candidates in {len({layer for layer, _ in taken})} of "
            f"{len(self.layers)} layers, of which the plan has {len(used)}. "
            f"{len(rows) - len(taken)} were refused; the table says why."
        )

    def said(self, about: Row) -> str:
        """The result in sentences."""
        kept = Interval(about["value"], about["low"], about["high"])
        words = [
            f"The plan replaces {about['heads_replaced']} of {about['heads']} heads, in "
            f"{about['layers_replaced']} of {about['layers']} layers. On {len(self.held)} inputs "
            f"held out its {self.subject.metric.name} is {kept}, within {self.within:g}; so it is "
            f"in {about['resamplings_met']} of 100 resamplings of them.",
            f"Counted work of its attention: {about['attention']:.3g} of the model's own; of a "
            f"whole run: {about['work']:.3g}. Time of a run here: {about['time']:.3g} "
            f"({about['time_q1']:.3g} to {about['time_q3']:.3g}) times the unmodified model's.",
        ]
        if about["time"] >= 1:
            words.append("So at this size it saves work and no time on this machine.")
        if about["single_operator"]:
            words.append(
                f"The cheapest single operator within on the search inputs, "
                f"{about['single_operator']}, takes {about['single_operator_attention']:.3g} of "
                "the attention's work."
            )
        else:
            words.append("No single operator in all layers stays within.")
        if about["not_tried"]:
            words.append(
                f"{len(about['not_tried'])} layers keep their attention, for no candidate is "
                f"cheaper there or the budget of {self.trials} runs was spent."
            )
        return " ".join(words)

    def nothing(self, plans: Sequence[Plan]) -> str:
        """Why there is no plan, and what may help."""
        if all(len(layer.whole) < 2 for layer in self.layers):
            reasons = [why for layer in self.layers for why in layer.refused.values()]
            why = f" {len(reasons)} were refused; the first: {reasons[0]}" if reasons else ""
            return (
                f"Nothing cheaper meets the target: no candidate takes less counted work than the "
                f"exact attention at these lengths.{why} Give longer inputs, or other candidates."
            )
        tested = [row for row in self.rows if row["on"] == "held out"]
        if plans and tested:
            least = min(tested, key=lambda row: row["high"])
            nearest = Interval(least["value"], least["low"], least["high"])
            return (
                f"Nothing cheaper meets the target: on {len(self.held)} inputs held out the best "
                f"of {len(plans)} plans has {self.subject.metric.name} {nearest}. The upper end is "
                f"to be within {self.within:g}, and that of an interval wide enough for so many "
                "tests. Give more inputs, or allow more."
            )
        ran = [row for row in self.rows if row["on"] == "search"]
        if not ran:
            return "Nothing is known yet: the budget allowed no run. Give more trials."
        least = min(ran, key=lambda row: row["value"])
        return (
            f"Nothing cheaper meets the target: of {len(ran)} plans that were run the least "
            f"{self.subject.metric.name} is {least['value']:.3g} ({least['plan']}), above "
            f"{self.within:g}. Allow more, give longer inputs, or other candidates."
        )


def _looked_at(name: str, calls: Sequence[Call], made: Mapping[str, Any]) -> Layer:
    """The options of a layer, cheaper than exact, with their errors on its calls."""
    heads = calls[0].q.shape[-3] if calls[0].q.ndim == 4 else 1
    exact = [own(call) for call in calls]
    work = sum(attention_flops(sizes(call)) for call in calls) / heads
    start = Option("", work, 0.0)
    by_head, whole, refused = [[start] for _ in range(heads)], [start], {}
    for text, op in made.items():
        try:
            each = sum(op.cost(sizes(call)).work for call in calls) / heads
            if each >= work:
                continue
            with torch.no_grad():
                errors = sum(
                    _squares(answer(op, call), true, heads)
                    for call, true in zip(calls, exact, strict=True)
                )
        except (ValueError, TypeError, RuntimeError) as error:
            refused[text] = f"{text}, layer {name}: {error}"
            continue
        found = torch.as_tensor(errors).tolist()
        whole.append(Option(text, each, sum(found)))
        for options, missed in zip(by_head, found, strict=True):
            options.append(Option(text, each, missed))
    return Layer(name, heads, work, by_head, whole, refused)


def _proposed(layer: Layer, made: Proposal) -> Row:
    """What is kept of a proposal, or of its refusal, in the table of all plans."""
    name = made.family if made.operator is None else repr(made.operator)
    option = next((x for x in layer.whole if x.operator == name), None)
    says = made.says
    if made.operator is not None and option is None:
        dear = f"{says}, but it takes as much counted work as exact attention, or more."
        says = layer.refused.get(name, dear)
    return {
        "status": "refused" if option is None else "ok", "kind": CERTIFICATE, "layer": layer.name,
        "plan": name, "on": "the layer alone", "layers": 1, "heads": layer.heads,
        "attention": math.nan if option is None else option.work / layer.work, "work": math.nan,
        **dict.fromkeys(("value", "low", "high"), math.nan), "accepted": False, "says": says,
    }  # fmt: skip


def _squares(out: Tensor, true: Tensor, heads: int) -> Tensor:
    """|out - true|_F^2 of each head, infinite where it is not finite."""
    apart = (out.double() - true.double()).square()
    apart = apart.sum((0, 2, 3)) if heads > 1 or apart.ndim == 4 else apart.sum().reshape(1)
    return apart.nan_to_num(math.inf, math.inf)


def _hull(options: Iterable[Option]) -> list[Option]:
    """The lower convex hull of error and work, from the exact option, the first, on."""
    start, *others = options
    hull = [start]
    while cheaper := [x for x in others if x.work < hull[-1].work and math.isfinite(x.error)]:
        at = hull[-1]
        hull.append(min(cheaper, key=lambda x: ((x.error - at.error) / (at.work - x.work), x.work)))
    return hull


def _words(plan: Plan) -> str:
    """A plan in a few words: its operators, with how often each stands."""
    count: dict[str, int] = {}
    for parts in plan.layers.values():
        for part in parts:
            count[part.operator] = count.get(part.operator, 0) + 1
    named = sorted(count.items(), key=lambda item: -item[1])
    shown = [f"{text} x {times}" if times > 1 else text for text, times in named[:4]]
    return ", ".join([*shown, *(["..."] if len(named) > 4 else [])]) or "as it is"
