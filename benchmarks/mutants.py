"""Do the tests notice a changed line? Mutants of the modules whose numbers reach a reader.

``python benchmarks/mutants.py`` changes one expression at a time (a comparison, an operator, a
constant, a statistic such as ``median``), runs the tests that execute its lines, and counts how
many changes make one of them fail. It prints a row per module with the share that was noticed and
its 95 % interval (Wilson), and writes ``<out>/mutants.csv`` with each mutant as old and new text.
``mutants.toml`` beside this file lists the changes that no test should notice, with the reason.

The mutants are drawn in a seeded order, so a run with a budget of time is a random sample, stated
as such. Exit codes: 0 at least ``--least`` of them were noticed, 1 fewer, 2 could not.

The tools that exist were tried first: mutmut changes function bodies alone, while the thresholds
of the chapters are constants of their modules, and neither it nor cosmic-ray knows that a median
may become a mean. A process is forked for each mutant, so that torch is imported once; needs POSIX.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import csv
import importlib.abc
import importlib.machinery
import importlib.util
import os
import random
import re
import signal
import sys
import time
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import coverage
import pytest
from matplotlib import rcParams
from scipy.stats import binomtest

ROOT = Path(__file__).parents[1]
TARGETS = ("chapters", "report", "figures", "measures", "spectra", "estimators", "kernels")
ACCEPTED = Path(__file__).with_suffix(".toml")
"""Changes that no test should notice, as lines before and after, each with its reason."""

COMPARED: dict[type[ast.cmpop], tuple[str, ...]] = {
    ast.Lt: ("<=", ">"), ast.LtE: ("<", ">"), ast.Gt: (">=", "<"), ast.GtE: (">", "<"),
    ast.Eq: ("!=",), ast.NotEq: ("==",), ast.In: ("not in",), ast.NotIn: ("in",),
    ast.Is: ("is not",), ast.IsNot: ("is",),
}  # fmt: skip
COMBINED: dict[type[ast.operator], str] = {
    ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "/", ast.Mod: "*",
    ast.Pow: "*", ast.BitAnd: "|", ast.BitOr: "&",
}  # fmt: skip
SWAPPED = {
    "median": ("mean", "max"), "mean": ("median", "max"), "max": ("min",), "min": ("max",),
    "sum": ("max",), "any": ("all",), "all": ("any",), "first": ("last",), "last": ("first",),
    "idxmin": ("idxmax",), "idxmax": ("idxmin",), "cummin": ("cummax",), "cummax": ("cummin",),
    "argmin": ("argmax",), "argmax": ("argmin",), "head": ("tail",), "tail": ("head",),
    "nunique": ("count",), "amax": ("amin",), "amin": ("amax",), "maximum": ("minimum",),
    "minimum": ("maximum",), "floor": ("ceil",), "ceil": ("floor",), "le": ("lt",), "lt": ("le",),
    "ge": ("gt",), "gt": ("ge",), "eq": ("ne",), "isna": ("notna",), "notna": ("isna",),
    "std": ("var",), "var": ("std",), "nlargest": ("nsmallest",), "nsmallest": ("nlargest",),
    "gmean": ("mean",),
}  # fmt: skip
"""A statistic and what it may be mistaken for, as the name of a function or of a method."""
DROPPED = {"sort_values", "sort_index", "drop_duplicates", "dropna", "abs", "shift", "cumsum"}
"""Methods of a table whose loss leaves another table."""
STYLE = {
    *("linewidth", "lw", "alpha", "fontsize", "size", "markersize", "zorder", "pad", "color"),
    *("markeredgewidth", "capsize", "labelpad", "figsize", "dpi", "rotation", "hspace", "wspace"),
    *("handlelength", "labelspacing", "borderaxespad", "linestyle", "borderpad", "fancybox"),
    *("frameon", "framealpha"),
}
"""Keywords of matplotlib that say how a thing looks, not what it shows."""
VERDICTS = {0: "survived", 5: "untested"}
"""Of exit codes of pytest; all others are failures, of a test or of the import before it."""
QUIET = (
    *("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "timeout=0"),
    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),  # hypothesis is imported before the fork
)


@dataclass(frozen=True)
class Mutant:
    """One change: the text between two offsets of a file is replaced."""

    path: Path
    start: int
    end: int
    line: int
    last: int
    old: str
    new: str

    @property
    def module(self) -> str:
        """The dotted name of the file."""
        return ".".join(self.path.relative_to(ROOT).with_suffix("").parts)

    def source(self) -> str:
        """The whole file with the change."""
        text = self.path.read_text()
        return text[: self.start] + self.new + text[self.end :]

    def context(self) -> tuple[str, str]:
        """The line of the change before and after, stripped."""
        text, changed = self.path.read_text(), self.source()
        first = text.rfind("\n", 0, self.start) + 1
        stop = text.find("\n", self.end)
        return text[first:stop].strip(), changed[first : stop + len(changed) - len(text)].strip()


class Finder(ast.NodeVisitor):
    """Collects the mutants of one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = path.read_text()
        ends = [0]
        for line in self.text.splitlines(keepends=True):
            ends.append(ends[-1] + len(line.encode()))
        self.ends = ends
        self.found: list[Mutant] = []
        self.quoted = 0
        tree = ast.parse(self.text)
        self.words = _words(tree, path)
        self.visit(tree)

    def add(self, node: Any, new: str, old: str | None = None) -> None:
        """Replace the text of a node."""
        data = self.text.encode()
        start = self.ends[node.lineno - 1] + node.col_offset
        end = self.ends[node.end_lineno - 1] + node.end_col_offset
        self._between(data, start, end, new, old, node)

    def _between(
        self, data: bytes, start: int, end: int, new: str, old: str | None, node: Any
    ) -> None:
        first, last = len(data[:start].decode()), len(data[:end].decode())
        was = self.text[first:last] if old is None else old
        mutant = Mutant(self.path, first, last, node.lineno, node.end_lineno, was, new)
        if self.quoted:  # in an f-string of Python 3.11, whose offsets are not its own
            try:
                ast.parse(mutant.source())
            except SyntaxError:
                return
        if self.text[first:last] != new:
            self.found.append(mutant)

    def between(self, left: Any, right: Any, choices: Sequence[str], old: str) -> None:
        """Replace an operator, which has no position: it stands between two nodes."""
        data = self.text.encode()
        start = self.ends[left.end_lineno - 1] + left.end_col_offset
        end = self.ends[right.lineno - 1] + right.col_offset
        gap = data[start:end].decode()
        at = re.search(rf"(?<![\w=<>!*/]){re.escape(old)}(?![\w=<>*/])", gap)
        if at is None:
            return
        shift = len(gap[: at.start()].encode())
        for choice in choices:
            a, b = start + shift, start + shift + len(old.encode())
            self._between(data, a, b, choice, old, _Span(left.lineno, right.end_lineno))

    def generic_visit(self, node: ast.AST) -> None:
        """All children but annotations, messages of errors, and imports."""
        if isinstance(node, ast.Raise | ast.Import | ast.ImportFrom | ast.JoinedStr):
            if isinstance(node, ast.JoinedStr):
                self.quoted += 1
                for part in node.values:
                    if isinstance(part, ast.FormattedValue):
                        self.visit(part.value)
                self.quoted -= 1
            return
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "bases"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    self.visit(child)

    def visit_Compare(self, node: ast.Compare) -> None:
        """Boundaries, directions, equality."""
        signs = {
            ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=",
            ast.In: "in", ast.NotIn: "not in", ast.Is: "is", ast.IsNot: "is not",
        }  # fmt: skip
        sides = [node.left, *node.comparators]
        for left, right, sign in zip(sides, sides[1:], node.ops, strict=False):
            choices = COMPARED[type(sign)]
            if isinstance(sign, ast.Eq):
                choices = ("!=", *self.unequal(left, right))
            self.between(left, right, choices, signs[type(sign)])
        self.generic_visit(node)

    def unequal(self, *sides: ast.expr) -> tuple[str, ...]:
        """What an equality may become besides its negation: words have no order, counts a least."""
        if any(ast.unparse(side) in self.words or _is(side, str) for side in sides):
            return ()
        return (">=",) if any(_is(side, int) for side in sides) else ("<=",)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        """Arithmetic and masks."""
        signs = {
            ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//",
            ast.Mod: "%", ast.Pow: "**", ast.BitAnd: "&", ast.BitOr: "|",
        }  # fmt: skip
        if type(node.op) in signs:
            self.between(node.left, node.right, [COMBINED[type(node.op)]], signs[type(node.op)])
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        """And for or."""
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            self.between(left, right, [new], old)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        """A negation lost."""
        inner = ast.get_source_segment(self.text, node.operand)
        if inner is not None:
            self.add(node, f"({inner})")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        """Numbers moved, flags turned; words stay."""
        value = node.value
        if isinstance(value, bool):
            self.add(node, str(not value))
        elif isinstance(value, int):
            self.add(node, str(value + 1))
        elif isinstance(value, float):
            self.add(node, repr(value * 1.5 if value else 1.0))
        elif isinstance(value, str) and value in SWAPPED:
            for new in SWAPPED[value]:
                self.add(node, repr(new))

    def visit_Dict(self, node: ast.Dict) -> None:
        """All but matplotlib's own settings of how things look."""
        for key, value in zip(node.keys, node.values, strict=True):
            if not (isinstance(key, ast.Constant) and key.value in {*rcParams, *STYLE}):
                self.visit(value)

    def visit_Tuple(self, node: ast.Tuple) -> None:
        """All but a dashed line, (0, (2.5, 1.5))."""
        if not (
            len(node.elts) == 2 and _is(node.elts[0], int) and isinstance(node.elts[1], ast.Tuple)
        ):
            self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """All but what a protocol asks for, whose body is an ellipsis."""
        last = node.body[-1]
        if not (isinstance(last, ast.Expr) and _is(last.value, type(...))):
            self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        """A statement that acts is left out; docstrings are none."""
        if isinstance(node.value, ast.Call):
            self.add(node, "pass")
        if not isinstance(node.value, ast.Constant):
            self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """Another statistic, or a step left out."""
        called = node.func
        if isinstance(called, ast.Name) and called.id in SWAPPED:
            for new in SWAPPED[called.id]:
                self.add(called, new)
        if isinstance(called, ast.Attribute):
            data = self.text.encode()
            stop = self.ends[(called.end_lineno or 0) - 1] + (called.end_col_offset or 0)
            for new in SWAPPED.get(called.attr, ()):
                self._between(data, stop - len(called.attr), stop, new, called.attr, called)
            held = ast.get_source_segment(self.text, called.value)
            module = isinstance(called.value, ast.Name) and called.value.id in ("np", "torch")
            if called.attr in DROPPED and held is not None and not module:
                self.add(node, held)
        for keyword in node.keywords:
            if keyword.arg not in {*STYLE, "strict"}:  # strict asserts, as an error's message says
                self.visit(keyword.value)
        for part in (called, *node.args):
            self.visit(part)

    def visit_Continue(self, node: ast.Continue) -> None:
        """The rest of a loop left out."""
        self.add(node, "break")

    def visit_If(self, node: ast.If) -> None:
        """A branch taken always, unless the condition is a comparison, which has its own."""
        if "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node.test, ast.Call | ast.Name | ast.Attribute):
            self.add(node.test, "True")
        self.generic_visit(node)


@dataclass(frozen=True)
class _Span:
    lineno: int
    end_lineno: int


def _is(node: ast.AST, kind: type) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, kind)


def _words(tree: ast.Module, path: Path) -> set[str]:
    """The names of constants that are words: the module's own, and those that it imports."""
    found = _assigned(tree)
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            place = path.parents[node.level - 1] if node.level else ROOT
            file = place.joinpath(*(node.module or "").split(".")).with_suffix(".py")
            if file.is_file():
                found |= _assigned(ast.parse(file.read_text())) & {x.name for x in node.names}
    return found


def _assigned(tree: ast.Module) -> set[str]:
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Assign):
            sides = node.targets[0], node.value
            names, values = (x.elts if isinstance(x, ast.Tuple) else [x] for x in sides)
            found |= {ast.unparse(x) for x, y in zip(names, values, strict=False) if _is(y, str)}
    return found


class Contexts:
    """A pytest plugin that tells coverage which test runs, and keeps how long each took."""

    def __init__(self, measured: coverage.Coverage) -> None:
        self.measured = measured
        self.seconds: dict[str, float] = {}
        self.failed: set[str] = set()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Around each test."""
        self.measured.switch_context(item.nodeid)
        before = time.process_time()  # as it would be on a machine that nothing else uses
        yield
        self.seconds[item.nodeid] = time.process_time() - before
        self.measured.switch_context("")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Tests that fail without a change tell nothing."""
        if report.outcome != "passed":
            self.failed.add(report.nodeid)


class Chosen:
    """A pytest plugin that runs the named tests in their order."""

    def __init__(self, names: Sequence[str]) -> None:
        self.order = {name: i for i, name in enumerate(names)}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Drop the others."""
        kept = [item for item in items if item.nodeid in self.order]
        items[:] = sorted(kept, key=lambda item: self.order[item.nodeid])


class Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from its changed text."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant

    def find_spec(
        self, name: str, path: Any, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The changed module alone."""
        del path, target
        asked = self.mutant.module.removesuffix(".__init__")
        if name != asked:
            return None
        inner = [str(self.mutant.path.parent)] if self.mutant.path.stem == "__init__" else None
        return importlib.util.spec_from_file_location(
            name, self.mutant.path, loader=self, submodule_search_locations=inner
        )

    def exec_module(self, module: ModuleType) -> None:
        """Run the changed text under the file's own name."""
        exec(compile(self.mutant.source(), str(self.mutant.path), "exec"), module.__dict__)


def files(words: Sequence[str]) -> list[Path]:
    """The files of the named modules and packages."""
    found: list[Path] = []
    for word in words:
        if word == "chapters":
            found += sorted((ROOT / "studies").glob("*/chapter.py"))
        place = ROOT / "softlab" / ("report/operators" if word == "chapters" else word)
        chosen = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
        if not all(path.is_file() for path in chosen):
            msg = f"there is no module softlab/{word}; name some of {', '.join(TARGETS)}"
            raise ValueError(msg)
        found += chosen
    return found


def tests_of(paths: Sequence[Path]) -> list[str]:
    """The test files that name a module or its package as a word of code: those that may guard it.

    A chapter is guarded by those alone that import it from the folder of its study.
    """
    tests = {path: path.read_text() for path in sorted((ROOT / "tests").rglob("test_*.py"))}
    found = set()
    for path in paths:
        package = path.parent.name
        words = {path.stem, package} - {"softlab", "__init__"}
        for test, text in tests.items():
            named = {word for word in words if re.search(rf"\b{word}\b", text)}
            imported = re.search(rf"\b{package}(\.| import )chapter\b", text)
            if imported if path.name == "chapter.py" else named:
                found.add(str(test.relative_to(ROOT)))
    return sorted(found)


def covered(
    paths: Sequence[Path], tests: Sequence[str]
) -> tuple[dict[Path, dict[int, set[str]]], dict[str, float]]:
    """Which tests execute each line, and how long each test takes; measured in a fork."""
    data = ROOT / f".coverage.mutants.{os.getpid()}"
    times = data.with_name(f"{data.name}.times")
    child = os.fork()
    if child == 0:
        _silent()
        try:
            measured = coverage.Coverage(data_file=str(data), include=[str(path) for path in paths])
            watcher = Contexts(measured)
            measured.start()
            pytest.main([*tests, *QUIET], plugins=[watcher])
            measured.stop()
            measured.save()
            kept = {k: s for k, s in watcher.seconds.items() if k not in watcher.failed}
            times.write_text("\n".join(f"{s} {name}" for name, s in kept.items()))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    try:
        if not times.exists() or not times.read_text():  # one file that cannot be read ends all
            msg = f"no test passed: python -m pytest {' '.join(tests)}"
            raise ValueError(msg)
        seconds = {
            name: float(spent)
            for spent, _, name in (line.partition(" ") for line in times.read_text().split("\n"))
        }
        held = coverage.CoverageData(basename=str(data))
        held.read()
        lines = {
            path: {
                line: {name for name in names if name in seconds}
                for line, names in held.contexts_by_lineno(str(path)).items()
            }
            for path in paths
        }
    finally:
        data.unlink(missing_ok=True)
        times.unlink(missing_ok=True)
    return lines, seconds


def guards(mutant: Mutant, lines: dict[int, set[str]], seconds: dict[str, float]) -> list[str]:
    """The tests that execute the changed lines, the quickest first; at most 30 s of them."""
    span = range(mutant.line, mutant.last + 1)
    named = set().union(*(lines.get(line, set()) for line in span))
    first = named
    if not named:  # a constant of the module: every test that enters the module can see it
        named = set().union(*lines.values()) if lines else set()
        first = set().union(*(lines.get(line, set()) for line in _users(mutant)))
    chosen: list[str] = []
    total = 0.0
    for name in sorted(named, key=lambda name: (name not in first, seconds[name], name)):
        total += seconds[name]
        if total > 30 and chosen:
            break
        chosen.append(name)
    return chosen


def _users(mutant: Mutant) -> set[int]:
    """The lines that name the constant in whose statement the change is."""
    text = mutant.path.read_text().splitlines()
    head = next((x for x in reversed(text[: mutant.line]) if x[:1].isalpha()), "")
    names = set(re.findall(r"\w+", re.split("[:=]", head)[0]))
    return {i for i, x in enumerate(text, 1) if names & set(re.findall(r"\w+", x))}


def start(mutant: Mutant, tests: Sequence[str]) -> int:
    """Fork a process that runs the tests on the changed module; its identifier."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    _silent()
    code = 1
    try:
        sys.meta_path.insert(0, Changed(mutant))
        places = sorted({name.split("::")[0] for name in tests})
        code = int(pytest.main([*places, "-x", *QUIET], plugins=[Chosen(tests)]))
    finally:
        os._exit(code)


def verdicts(
    mutants: Sequence[Mutant],
    lines: dict[Path, dict[int, set[str]]],
    seconds: dict[str, float],
    *,
    budget: float,
    workers: int,
) -> Iterator[tuple[Mutant, str]]:
    """Each mutant that the budget allows: ``noticed``, ``hung``, ``survived`` or ``untested``."""
    began = time.monotonic()
    running: dict[int, tuple[Mutant, float]] = {}
    queue = iter(mutants)
    more = True
    while more or running:
        while more and len(running) < workers:
            mutant = next(queue, None)
            if mutant is None or time.monotonic() - began > budget:
                more = False
                break
            tests = guards(mutant, lines[mutant.path], seconds)
            if not tests:
                yield mutant, "untested"
                continue
            limit = time.monotonic() + 120 + 30 * sum(seconds[name] for name in tests)
            running[start(mutant, tests)] = (mutant, limit)
        for child, (mutant, limit) in list(running.items()):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                del running[child]
                yield mutant, VERDICTS.get(os.waitstatus_to_exitcode(status), "noticed")
            elif time.monotonic() > limit:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                del running[child]
                yield mutant, "hung"
        time.sleep(0.02)


def asked(
    mutants: Sequence[Mutant],
    lines: dict[Path, dict[int, set[str]]],
    seconds: dict[str, float],
    arguments: argparse.Namespace,
) -> list[dict[str, Any]]:
    """A row per mutant, written as it comes; survivors are printed."""
    accepted = _accepted()
    rows = []
    arguments.out.mkdir(parents=True, exist_ok=True)
    columns = ["file", "line", "old", "new", "verdict", "reason"]
    with (arguments.out / "mutants.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for mutant, verdict in verdicts(
            mutants, lines, seconds, budget=arguments.seconds, workers=arguments.workers
        ):
            old, new = mutant.context()
            name = str(mutant.path.relative_to(ROOT))
            alive = verdict in ("survived", "untested")
            reason = accepted.get((name, old, new), "") if alive else ""
            said = "accepted" if reason else verdict
            rows.append(
                dict(zip(columns, (name, mutant.line, old, new, said, reason), strict=True))
            )
            writer.writerow(rows[-1])
            file.flush()
            if alive and not reason:
                print(f"{verdict}: {name}:{mutant.line}\n  - {old}\n  + {new}", flush=True)
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, int, int]]:
    """Each file and then all: its name, how many mutants count, how many were noticed."""
    by: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        by[row["file"]].append(row["verdict"])
    for name, found in [*sorted(by.items()), ("all", [row["verdict"] for row in rows])]:
        counted = [verdict for verdict in found if verdict != "accepted"]
        if counted:
            yield name, len(counted), sum(verdict in ("noticed", "hung") for verdict in counted)


def main() -> None:
    """Parse the words, measure coverage, ask the mutants, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "modules", nargs="*", default=TARGETS, help="in softlab/, and chapters; all if none"
    )
    parser.add_argument("--tests", nargs="*", help="files; all that name the modules if none")
    parser.add_argument("--seconds", type=float, default=1800, help="budget of the mutants")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the order that they are drawn in")
    parser.add_argument("--least", type=float, default=0.9, help="share that is to be noticed")
    parser.add_argument("--out", type=Path, default=Path("reports"))
    arguments = parser.parse_args()
    os.chdir(ROOT)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.path.insert(0, str(ROOT))
    for heavy in ("torch", "pandas", "matplotlib.pyplot", "scipy.stats", "hypothesis"):
        importlib.import_module(heavy)
    try:
        paths = files(arguments.modules)
        mutants = [mutant for path in paths for mutant in Finder(path).found]
        random.Random(arguments.seed).shuffle(mutants)
        lines, seconds = covered(paths, arguments.tests or tests_of(paths))
    except ValueError as error:
        parser.error(str(error))
    same = Mutant(paths[0], 0, 0, 1, len(paths[0].read_text().splitlines()), "", "")
    for _, verdict in verdicts([same], lines, seconds, budget=60, workers=1):
        if verdict in ("noticed", "hung"):
            parser.error("tests fail on unchanged code, so nothing can be told of changed code")
    print(f"{len(mutants)} mutants of {len(paths)} files; {len(seconds)} tests", flush=True)
    rows = asked(mutants, lines, seconds, arguments)
    share = 0.0
    print(f"{'file':45} mutants noticed  share (95 %)")
    for name, counted, hit in summary(rows):
        share = hit / counted
        low, high = binomtest(hit, counted).proportion_ci(method="wilson")
        words = f"{100 * share:5.1f} % ({100 * low:.0f} to {100 * high:.0f})"
        print(f"{name:45} {counted:7} {hit:7}  {words}")
    least = f"at least {100 * arguments.least:g} % are to be noticed"
    print(f"{len(rows)} of {len(mutants)} mutants asked in seeded order; {least}.")
    if not rows:
        parser.error("no mutant was asked; give more --seconds, or a module with code")
    raise SystemExit(int(share < arguments.least))


def _silent() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)


def _accepted() -> dict[tuple[str, str, str], str]:
    """The reasons, by file, old line and new line."""
    if not ACCEPTED.exists():
        return {}
    entries = tomllib.loads(ACCEPTED.read_text()).get("mutant", [])
    return {(one["file"], one["old"], one["new"]): one["reason"] for one in entries}


if __name__ == "__main__":
    main()
