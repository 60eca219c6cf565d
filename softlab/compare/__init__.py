"""Operators side by side on the same heads: error, skill, work, time, memory, laws.

``compare`` is what ``softlab compare`` calls::

    from softlab.compare import compare

    found = compare(mine, "Nystromformer(rank=64)", "Performer", quick=True)
    print(found)           # the table
    found.save("out")      # out/report.pdf, out/report.html and out/compare/table.csv
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from softlab import measures
from softlab.compare import results
from softlab.compare.heads import Head, heads, tied
from softlab.compare.run_folder import described, written
from softlab.compare.subjects import Subject, called, subject, word, work
from softlab.core import Dims
from softlab.inputs import QKV
from softlab.laws import examine
from softlab.laws.runner import Outcome, Verdict
from softlab.laws.sandbox import Request, examined
from softlab.operators import GaussianAttention
from softlab.profiling import ENOUGH, PAIRS, in_turn, peak_memory

BUDGETS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Shares of the exact operator's work, at which a figure shows a method with a knob."""
BUDGET = 1 / 8
LAWS = ("yours", "all", "none")
SLOW = "gave no answer within"
UNIFORM, RANK, KEYS = "uniform average", "best matrix of the rank", "heaviest keys"
Row = dict[str, Any]


@dataclass(frozen=True)
class Verdicts:
    """What became of a subject's laws: how many hold, and which are broken, each with the reason.

    ``asked`` is False where they were not asked, and ``late`` names laws without an answer in time.
    """

    held: tuple[str, ...] = ()
    broken: tuple[tuple[str, str], ...] = ()
    late: tuple[str, ...] = ()
    asked: bool = True


@dataclass(frozen=True)
class Comparison:
    """What ``compare`` found: rows, one a method, head and sample, and what they were measured on.

    ``laws`` holds the verdicts by the method's name, ``hashes`` the digest of each sample by head.
    """

    rows: tuple[Row, ...]
    meta: Mapping[str, Any]
    laws: Mapping[str, Verdicts]
    hashes: Mapping[str, tuple[str, ...]]
    code: Mapping[str, str]

    @property
    def table(self) -> Any:
        """The rows as a data frame, as ``softlab report`` reads them."""
        import pandas as pd

        return pd.DataFrame(list(self.rows))

    def summary(self) -> list[dict[str, Any]]:
        """A row a method: error with interval, skill, work, time with spread, memory, laws."""
        from softlab.report.compare.chapter import summary

        return summary(self.table)

    def __str__(self) -> str:
        from softlab.report.compare.chapter import lines

        return lines(self.table)

    def _repr_html_(self) -> str:
        from softlab import notebook
        from softlab.report.compare.chapter import HEADER, cells

        return notebook.table("Compared", HEADER, [tuple(row) for row in cells(self.table)])

    def save(self, folder: Path | str) -> Path:
        """Write ``folder/compare/table.csv``, ``folder/report.pdf`` and ``.html``; return the PDF.

        Raises:
            ModuleNotFoundError: the extra ``report`` is not installed.
        """
        from softlab.report import report

        written(Path(folder) / "compare", self.rows, self.meta)
        return report(folder)

    def results(self, folder: Path | str) -> list[Path]:
        """Write one JSON file a method into a folder, for ``softlab board``; return the paths."""
        return results.write(self, Path(folder))


def compare(
    *given: Any,
    inputs: str | Sequence[str] = "recorded",
    budget: float = BUDGET,
    quick: bool = False,
    target: Any = None,
    laws: str = "yours",
    tell: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Measure operators on the same heads, each against its target, beside the controls.

    The error of a method on a head is the median over the head's samples; of a table, the median
    over the heads. A class with a knob, as ``Performer``, is given the greatest setting whose work
    is within the budget; an operator with its numbers, as ``Nystromformer(rank=64)``, is taken as
    it is. Seeds of a class change with the sample; those of an operator stay.

    Args:
        given: what ``softlab.compare.subjects.subject`` takes: words, operators, classes, modules,
            functions f(q, k, v). At least one.
        inputs: words as of ``softlab.compare.heads.heads``: ``"recorded"``, a recorded name, a
            drawn input, a file, a folder.
        budget: share of the exact operator's work that a class may spend, above 0, at most 1.
        quick: two samples of a head, and three budgets in the figure.
        target: what plain functions approximate; softmax attention unless given.
        laws: ``"yours"`` asks those of what is not softlab's own, ``"all"`` of all, ``"none"`` of
            none. Softlab's own operators are held by its tests.
        tell: given a sentence at each stage.

    Returns:
        The ``Comparison``. A method that raises on a head has a row with ``status`` "failed".

    Raises:
        ValueError: a word names nothing, a budget is out of range, two subjects share a name.
    """
    begun, started = time.monotonic(), datetime.now(UTC)
    if not 0 < budget <= 1:
        msg = f"budget is {budget:g}; give a share of the exact work, above 0 and at most 1."
        raise ValueError(msg)
    if laws not in LAWS:
        msg = f"laws is {laws!r}; give one of {', '.join(LAWS)}."
        raise ValueError(msg)
    subjects = _subjects(given, target)
    where = heads([inputs] if isinstance(inputs, str) else inputs)
    grid = sorted({budget, *((1 / 32, 1 / 8, 1 / 2) if quick else BUDGETS)})
    job = _Job(subjects, where, budget, grid, samples=2 if quick else 4)
    tell(f"timing {len(subjects)} methods")
    costs = job.costs()
    with ThreadPoolExecutor(2) as crew:
        under = [one for one in subjects if laws == "all" or (laws == "yours" and not one.own)]
        asked = {one.name: _asked(crew, one, job, quick=quick) for one in under if one.spec}
        tell(f"errors on {len(where)} heads, and laws")
        rows = [row for head in where for row in job.rows(head, costs)]
        verdicts = {name: found.result() for name, found in asked.items()}
    for one in subjects:
        if one.name not in verdicts:
            verdicts[one.name] = _examined_here(one, job) if one in under else Verdicts(asked=False)
    made = [row | _of_laws(verdicts.get(row["method"])) for row in rows]
    own = {one.name for one in subjects if one.own}
    made = [row | {"own": row["method"] in own} for row in made]
    names = [one.name for one in subjects]
    spent = time.monotonic() - begun
    meta = described(names, len(where), job.samples, grid, started, spent, quick=quick)
    code = {one.name: results.code_of(one) for one in subjects}
    return Comparison(tuple(made), meta, verdicts, job.hashes(), code)


def _subjects(given: Iterable[Any], target: Any) -> list[Subject]:
    """The subjects, each of a name of its own; ``ValueError`` for none and for two of one name."""
    subjects = [subject(one, target=target) for one in given]
    if not subjects:
        msg = "nothing to compare; name an operator, as 'Nystromformer(rank=64)' or mine.py:attend."
        raise ValueError(msg)
    names = [one.name for one in subjects]
    if twice := [name for name in names if names.count(name) > 1]:
        msg = f"{twice[0]} is named twice; name it once, or give another setting."
        raise ValueError(msg)
    return subjects


@dataclass(frozen=True)
class _Job:
    """What is measured: subjects on heads, at the budget of the table and those of the figure.

    ``peaks``: the memory of a call of a target, measured once for all who approximate it.
    """

    subjects: Sequence[Subject]
    heads: Sequence[Head]
    budget: float
    grid: Sequence[float]
    samples: int
    peaks: dict[tuple[Any, Dims], int] = field(default_factory=dict)

    @property
    def targets(self) -> list[Any]:
        """The exact operators that are approximated, each once."""
        return list(dict.fromkeys(one.target for one in self.subjects))

    def hashes(self) -> dict[str, tuple[str, ...]]:
        """The digests of the samples of each head."""
        return {
            x.name: tuple(x.digest(i) for i in range(min(self.samples, x.samples)))
            for x in self.heads
        }

    def dims(self) -> Dims:
        """The sizes of the first head."""
        return Dims.of(*self.heads[0].draw(0))

    def costs(self) -> dict[tuple[str, Dims], Row]:
        """Time and memory of a call at the table's budget, over those of the exact operator."""
        found: dict[tuple[str, Dims], Row] = {}
        for head in self.heads:
            for one in self.subjects:
                qkv = _for(one.target, head).draw(0)
                dims = Dims.of(*qkv)
                if (one.name, dims) not in found:
                    found[one.name, dims] = self._cost(one, dims, qkv)
        return found

    def _cost(self, one: Subject, dims: Dims, qkv: Any) -> Row:
        op = one.at(self.budget, 0, dims)
        if op is None:
            return {}
        cpu = torch.device("cpu")
        try:
            called(op, *qkv)
            wall, worked = time.perf_counter(), time.process_time()
            with torch.no_grad():
                ratio = in_turn(
                    lambda: op(*qkv), lambda: one.target(*qkv), cpu, repeats=PAIRS, budget=ENOUGH
                )
                wall, worked = time.perf_counter() - wall, time.process_time() - worked
                if (one.target, dims) not in self.peaks:
                    self.peaks[one.target, dims] = peak_memory(lambda: one.target(*qkv), cpu)
                exact = self.peaks[one.target, dims]
                peak = peak_memory(lambda: op(*qkv), cpu)
        except Exception:  # the same call is a failed row, with its reason
            return {}
        return {**ratio, "memory": peak / max(exact, 1), "case_cpu_share": worked / max(wall, 1e-9)}

    def rows(self, head: Head, costs: Mapping[tuple[str, Dims], Row]) -> Iterator[Row]:
        """All rows of a head: those of the subjects, then the controls of each target."""
        for aim in self.targets:
            of = _for(aim, head)
            for sample in range(min(self.samples, head.samples)):
                base = {"target": word(aim), "source": head.name, "real": head.real}
                base |= {"sample": sample}
                try:
                    q, k, v = of.draw(sample)
                    reference = measures.Reference(aim, q, k, v)
                    _ = reference.output
                except Exception as error:  # a target that cannot take the head
                    why = f"{type(error).__name__}: {error}"
                    mine = [x.name for x in self.subjects if x.target == aim]
                    yield from (base | _failed(name, 1.0, why, asked=True) for name in mine)
                    continue
                base |= {"n": len(q), "l": len(k)}
                for one in self.subjects:
                    if one.target == aim:
                        yield from (
                            base | row
                            for row in self._of(one, sample, QKV(q, k, v), reference, costs)
                        )
                if sample == 0:  # a decomposition each, and much alike
                    yield from (base | row for row in self._controls(reference))
                else:
                    yield base | _uniform(reference)

    def _of(
        self, one: Subject, sample: int, qkv: Any, reference: measures.Reference,
        costs: Mapping[tuple[str, Dims], Row],
    ) -> Iterator[Row]:  # fmt: skip
        dims = Dims.of(*qkv)
        for share in self.grid if one.swept else (1.0,):
            asked = not one.swept or share == self.budget
            try:
                op = one.at(share, sample, dims)
                row: Row = {"method": one.name, "kind": "method", "budget": share, "asked": asked}
                if op is None:
                    yield row | {"status": "ok", "op": "", "fits": False}
                    continue
                out = called(op, *qkv)
                done = work(op, dims)
                exact = work(one.target, dims)
                row |= {"status": "ok", "op": repr(op), "fits": True}
                row |= {"share": done / exact if done is not None and exact else None}
                given: Any = _Answered(out)
                row |= measures.output_error(given, qkv.q, qkv.k, qkv.v, reference)
                yield row | (costs.get((one.name, dims), {}) if asked else {})
            except Exception as error:  # of anybody's operator
                yield _failed(one.name, share, f"{type(error).__name__}: {error}", asked=asked)

    def _controls(self, reference: measures.Reference) -> Iterator[Row]:
        """The mean of v; the best matrix and the heaviest keys, at the work of applying them."""
        q, k, v = reference.q, reference.k, reference.v
        dims = Dims.of(q, k, v)
        exact = work(reference.target, dims) or 1
        base: Row = {"kind": "control", "status": "ok", "op": "", "fits": True}
        yield _uniform(reference)
        each = 2 * (dims.n + dims.l) * dims.e / exact
        for share in self.grid:
            at = {"budget": share, "asked": share == self.budget}
            rank = min(int(share / each), dims.n, dims.l)
            if rank:
                found = measures.best_of_rank(rank, reference)
                yield base | at | _kept(found) | {"method": RANK, "share": rank * each}
            if reference.target.traits.row_stochastic:
                count = max(1, round(share * dims.l))
                found = measures.best_of_keys(count, reference)
                yield base | at | _kept(found) | {"method": KEYS, "share": count / dims.l}


def _uniform(reference: measures.Reference) -> Row:
    """The row of the mean of v."""
    miss = reference.uniform_error
    row: Row = {"method": UNIFORM, "kind": "control", "status": "ok", "op": "", "fits": True}
    row |= {"budget": 1.0, "asked": True, "share": 0.0}
    skill = 1 - miss / max(min(1.0, miss), 1e-300)
    return row | {"output_error": miss, "uniform_error": miss, "skill": skill}


@dataclass(frozen=True, eq=False)
class _Answered:
    """An answer that is there already, in the place of the operator that gave it."""

    out: torch.Tensor

    def __call__(self, *_: Any) -> torch.Tensor:
        return self.out


def _kept(found: Mapping[str, Any]) -> Row:
    return {name: found[name] for name in ("output_error", "uniform_error", "skill")}


def _failed(name: str, budget: float, why: str, *, asked: bool) -> Row:
    row: Row = {"method": name, "kind": "method", "budget": budget, "asked": asked}
    return row | {"status": "failed", "error": why[:1000], "op": "", "fits": True}


def _for(target: Any, head: Head) -> Head:
    """The head as a target takes it: the Gaussian is of layers whose keys are their queries."""
    return tied(head) if isinstance(target, GaussianAttention) else head


def _of_laws(found: Verdicts | None) -> Row:
    """The columns of a method's laws: none for a control."""
    if found is None or not found.asked:
        return {"laws_held": None, "laws_broken": None}
    broken = "; ".join(law for law, _ in found.broken)
    return {"laws_held": len(found.held), "laws_broken": broken or "none"}


def _asked(crew: ThreadPoolExecutor, one: Subject, job: _Job, *, quick: bool) -> Future[Verdicts]:
    """The laws of a subject that a line names, in a process of its own."""
    spec = one.spec
    if one.swept:
        op = one.at(job.budget, 0, job.dims()) or one.at(1.0, 0, job.dims())
        spec = f"{spec.rpartition(':')[0]}:{op!r}"
    examples = 1 if quick or one.own else 3
    return crew.submit(_verdicts, Request(spec, examples=examples, seconds=10.0))


def _verdicts(request: Request) -> Verdicts:
    return _judged(examined(request))


def _examined_here(one: Subject, job: _Job) -> Verdicts:
    """The laws of an object that no line names, in this process."""
    op = one.at(job.budget, 0, job.dims())
    if op is None:
        return Verdicts(asked=False)
    return _judged(examine(op, examples=1, seconds=10.0))


def _judged(outcomes: Iterable[Outcome]) -> Verdicts:
    held, broken, late = [], [], []
    for one in outcomes:
        if one.verdict is Verdict.HOLDS and one.law != "subject":
            held.append(one.law)
        elif one.verdict is Verdict.FAILS and one.detail.startswith(SLOW):
            late.append(one.law)
        elif one.verdict is Verdict.FAILS:
            broken.append((one.law, one.detail))
    return Verdicts(tuple(held), tuple(broken), tuple(late))
