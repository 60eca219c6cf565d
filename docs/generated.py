"""The pages that are made of the code when the site is built: ``api/`` and ``catalogue/``."""

from __future__ import annotations

import ast
import contextlib
import copy
import dataclasses
import functools
import importlib
import inspect
import io
import multiprocessing
import re
import runpy
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import blocks
import pandas as pd
import torch
from matplotlib.figure import Figure
from prose import as_rest
from sphinx.pycode import ModuleAnalyzer

from softlab import (
    features,
    inputs,
    landmarks,
    laws,
    matrices,
    measures,
    operators,
    pinv,
    report,
    verdicts,
)
from softlab.catalogue import Part, parts_of
from softlab.cli.list import traits_table
from softlab.core import Cost, Dims, causal_form, default_of
from softlab.figures import Lines
from softlab.inputs import Recorded, Tied
from softlab.laws.law import Law, has_field, refielded
from softlab.operators import Nystromformer, Softmax
from softlab.report import claims as claims_of
from softlab.report import drawing
from softlab.validation import ranges

DOCS = Path(__file__).parent
RAN = "_build/ran"
"""Where it is kept what the blocks of pages with figures printed, for the tests of these pages."""
API = {
    "Attention": {
        "softlab.operators": "",
        "softlab.pinv": "",
        "softlab.landmarks": "",
        "softlab.kernels": "",
        "softlab.features": "",
        "softlab.core": "",
        "softlab.catalogue": "",
        "softlab.primitives": (
            "banded causal certificates draws_intervals feature_maps normalization "
            "nystrom_bounds pages prefix_sums sort_lsh weighted_sums"
        ),
    },
    "What it is tried on": {
        "softlab.inputs": "",
        "softlab.matrices": "",
        "softlab.datasets": "download fashion images scenes wheels",
        "softlab.pretrained": "activations minilm smollm2 tasks vit whisper",
        "softlab.models": "output_gain published segmentation soft_attention training",
        "softlab.capture": "effect",
        "softlab.tuning": "",
    },
    "What is measured": {
        "softlab.laws": "strategies",
        "softlab.measures": "",
        "softlab.certificates": "",
        "softlab.error_budget": "",
        "softlab.spectra": "",
        "softlab.estimators": "",
        "softlab.convergence": "",
        "softlab.gradients": "",
        "softlab.profiling": "",
    },
    "Studies and reports": {
        "softlab.study": "",
        "softlab.docket": "",
        "softlab.verdicts": "",
        "softlab.figures": "",
        "softlab.report": "chapter claims comparison drawing intervals numbers rows words",
        "softlab.engine": "journal workers",
    },
}
"""The modules that users call, by what they are for, each with the modules in it that it does not
export all of."""

KINDS: dict[str, tuple[str, ModuleType, str, str]] = {
    "operators": ("Operators", operators, "target", "softlab.operators"),
    "solvers": ("Solvers", pinv, "solve", "softlab.pinv"),
    "scalings": ("Initial scalings", pinv.scalings, "definite", "softlab.pinv"),
    "selectors": ("Landmark selectors", landmarks, "", "softlab.landmarks"),
    "features": ("Weights of random features", features, "", "softlab.features"),
    "inputs": ("Inputs", inputs, "", "softlab.inputs"),
    "matrices": ("Matrices", matrices, "", "softlab.matrices"),
}
"""Pages of the catalogue: title, module, what a part of the kind has, and where users import it."""
APART = ("operators", "solvers")
"""The kinds whose parts have a page each."""


def parts(kind: str) -> dict[str, Any]:
    """The parts of a kind, by the name under which users import them."""
    _, module, needs, package = KINDS[kind]
    public = importlib.import_module(package).__all__
    return {x.name: x.kind for x in parts_of(module, needs) if x.name in public}


def place(name: str, part: Any) -> str:
    """The catalogue's page of a part, empty where it has none."""
    for kind in KINDS:
        if parts(kind).get(name) is part:
            return f"catalogue/{kind}/{name}" if kind in APART else f"catalogue/{kind}"
    return ""


def title(part: Any) -> str:
    """The first line of a docstring."""
    return (inspect.getdoc(part) or "").partition("\n")[0]


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    lines = [list(head), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(
        f"| {' | '.join(x.replace('|', chr(92) + '|') for x in row)} |" for row in lines
    )


def prose(words: str) -> str:
    """Prose of a docstring, in Markdown: nothing but double backticks is markup."""
    pieces = re.split(r"``(.+?)``", words)
    plain = [re.sub(r"[\\*_<>\[\]#$~^`{}]", r"\\\g<0>", x) for x in pieces[::2]]
    code = [f"`{x}`" for x in pieces[1::2]]
    woven = [x for pair in zip(plain, [*code, ""], strict=True) for x in pair]
    return re.sub(
        r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", "".join(woven)
    )


# The docket ------------------------------------------------------------------------------------

RECORD = DOCS / "docket"
"""The table of the last full run of ``make docket``, from which the page computes its verdicts."""


def docket_page() -> Iterator[str]:
    """Published claims: a table with one line a claim, then each with its figure."""
    found, meta = report.read(RECORD)
    tried = claims_of.tried(found)
    kinds = Counter(one.verdict.kind for one in tried)
    counts = ", ".join(f"{kinds[x]} *{x}*" for x in (*verdicts.VERDICTS, verdicts.NONE) if kinds[x])
    yield "# The docket\n"
    yield (
        "Published claims, measured again, each with controls and with a rule that computes the "
        "verdict from the rows. Every claim is one file in `studies/docket`; `softlab docket run` "
        "tries them, and [yours too](/guide/try_a_claim.md).\n"
    )
    yield f"{len(tried)} claims: {counts}.\n"
    if any(one.claim["quick"] for one in tried):
        yield "This is a trial run; do not quote its numbers.\n"
    rows = [
        (
            f"[{prose(one.claim['title'])}](#{one.claim['name']})<br>{prose(one.claim['who'])}",
            f"**{one.verdict.kind}**",  # second: what a telephone shows without scrolling
            prose(one.claim["published"]),
            one.ours,
            prose(one.controls).replace("; ", "<br>"),
        )
        for one in tried
    ]
    yield table(("claim", "verdict", "theirs", "ours", "controls"), rows) + "\n"
    yield (
        "Ours is the number at the one place with its 95 % interval, or the median over the places "
        "(heads, ranks, lengths) with their range. A *null* control knows nothing and a *contrast* "
        "is known to be otherwise: neither may pass the rule. An *optimal* one must.\n"
    )
    for one, lines in zip(tried, meta["figures"], strict=True):
        yield from docket_entry(one, found, lines)
    yield f"Measured with {', '.join(f'{x} {y}' for x, y in meta['versions'].items())}.\n"


def docket_entry(one: Any, found: pd.DataFrame, lines: dict[str, Any]) -> Iterator[str]:
    """One claim of the page: what it says, what is found, the figure."""
    claim, name = one.claim, one.claim["name"]
    yield f"({name})=\n## {claim['title']}\n"
    yield f"{prose(claim['states'])} {prose(claim['who'])}, {prose(claim['place'])}.\n"
    yield f"**{prose(one.verdict.words[0].upper() + one.verdict.words[1:])}.**\n"
    said = {
        "Theirs": claim["published"],
        f"Ours ({one.number}, of {claim['subject']})": one.ours,
        "The rule": f"{claim['subject']}: {verdicts.Rule(**claim['rule']).words()}",
        "Controls": one.controls,
        "Margin": one.flips,
        "Challenge": one.challenged,
        "As published": claim["setting"],
        "Lacking here": claim["lacking"],
        "File": f"``studies/docket/{name.replace('-', '_')}.py``; ``softlab docket run {name}``",
    }
    lines_of = [f"- {x}: {prose(text.rstrip('.'))}." for x, text in said.items() if text]
    yield "\n".join(lines_of) + "\n"
    if not found[(found["claim"] == name) & (found["status"] == "ok")].size:
        return  # data were missing, as the verdict says
    drawn = drawing.draw(found, Lines(**lines))
    keep(drawn, DOCS / "catalogue" / "figures" / f"docket-{name}.svg")
    shown = f"{lines['ylabel']} of {claim['subject']} and of the controls"
    yield f"![{shown}.](figures/docket-{name}.svg)\n"
    if "Off the figure" in lines["caption"]:
        yield f"Off the figure{prose(lines['caption'].partition('Off the figure')[2])}\n"


# The API ----------------------------------------------------------------------------------------


def public(module: ModuleType) -> list[tuple[str, Any]]:
    """What a module offers, by name: what it exports, or what it defines without an underscore."""
    names = getattr(module, "__all__", None)
    if names is not None:
        return [(name, getattr(module, name)) for name in names]
    return [
        (name, held)
        for name, held in vars(module).items()
        if not name.startswith("_") and getattr(held, "__module__", "") == module.__name__
    ]


def entry(module: str, name: str, held: Any) -> str:
    """The directive that describes one name; of values, those that the code describes."""
    if inspect.isclass(held):
        kind = "exception" if issubclass(held, BaseException) else "class"
    else:
        kind = "function" if inspect.isroutine(held) else "data"
    if kind != "data":
        return f".. auto{kind}:: {module}.{name}"
    if ("", name) in ModuleAnalyzer.for_module(module).find_attr_docs():
        return f".. autodata:: {module}.{name}\n   :no-value:"
    return f".. py:data:: {name}\n   :module: {module}"


def rest(text: str) -> str:
    """A block of reStructuredText within Markdown."""
    return f"````{{eval-rst}}\n{text}\n````\n"


def api_page(package: str, inner: str, described: set[int]) -> str:
    """The page of one module: its docstring, what it offers, each described once on the site."""
    lines = [f"# {package}", ""]
    for name in (package, *(f"{package}.{x}" for x in inner.split())):
        module = importlib.import_module(name)
        if name != package:
            lines += [f"## {name}", ""]
        lines += [
            rest(
                "\n".join(
                    [
                        f".. py:module:: {name}",
                        "",
                        *as_rest((inspect.getdoc(module) or "").splitlines()),
                    ]
                )
            )
        ]
        offered = public(module)
        placed = [(x, held, place(x, held)) for x, held in offered]
        linked = [
            [
                f"[`{x}`](/{page}.md{'' if Path(page).name == x else f'#{x.lower()}'})",
                prose(title(held)),
            ]
            for x, held, page in placed
            if page
        ]
        if linked:
            lines += ["In the catalogue:", "", table(("name", "what it is"), linked), ""]
        for x, held, page in placed:
            if page or id(held) in described:
                continue
            if not isinstance(held, (str, int, float, tuple, frozenset, dict, list)):
                described.add(id(held))
            elif getattr(module, "__all__", None) is None:
                continue
            lines += [rest(entry(name, x, held))]
    return "\n".join(lines)


# The catalogue ----------------------------------------------------------------------------------

NEWTON = pinv.NewtonRaphson(20)
SIZES = (8, 16, 32, 64, 128, 256)
MOST = 2.0
"""Of the exact operator's work, which a method of any use stays below."""
SMALL = {
    *(
        "catalogue/docket",
        "catalogue/index",
        "catalogue/laws",
        "catalogue/operators/index",
        "catalogue/operators/Soft",
    ),
    *("catalogue/solvers/index", "catalogue/solvers/NewtonRaphson", "catalogue/selectors"),
    *("api/index", "api/softlab.operators", "api/softlab.measures"),
}
"""Pages of a trial of the site."""
STEPS = (1, 2, 4, 8, 12, 16, 20, 24, 32, 48)
HEADS = ("minilm.layer5.head2", "vit.layer8.head3")
"""One whose softmax matrix has a low rank, and one that has not."""
REFERENCE = Dims(batch=8, n=1024, l=1024, d=64, e=64)


def example(name: str, part: Any) -> Any:
    """The part as a value: at its defaults, a wrapper of a solver around Newton's."""
    needed = [x.name for x in dataclasses.fields(part) if default_of(x) is dataclasses.MISSING]
    return part(NEWTON) if needed == ["solver"] else Part(name, part).example


def swept(op: Any) -> tuple[str, list[Any]]:
    """What decides the error of an operator, in words, and the operator over it.

    That is the knob which its class declares; else the field at whose most it is exact.
    """
    kind, exact_at = type(op), op.traits.exact_at
    if hasattr(kind, "knob"):
        knob = kind.knob
        m = "m" if knob.each == 1 else f"{knob.each} m"
        fixed = [f"`{name} = {held!r}`" for name, held in knob.others.items()]
        words = [*(f"`{name}` = {m}" for name in knob.fields), *fixed]
        return f"{', '.join(words)}, with m from {SIZES[0]} on in doublings", [
            Part(kind.__name__, kind).at(m, 0) for m in SIZES
        ]
    if isinstance(op, operators.Quantized):
        formats = ("float8", "int8", "bfloat16", "float16")
        return "four formats", [operators.Quantized(x) for x in formats]
    if exact_at:
        return f"`{exact_at}` from {SIZES[0]} on, in doublings", [
            dataclasses.replace(op, **{exact_at: m}) for m in SIZES
        ]
    return f"`{op!r}`", [op]


@functools.cache
def sample(head: str, tied: bool) -> Any:
    """A recorded head, as its stored sample 0."""
    source = Tied(Recorded(head)) if tied else Recorded(head)
    return measures.sample(source, 0, dtype=torch.float32, device=torch.device("cpu"))


def operator_rows(op: Any) -> Iterator[dict[str, Any]]:
    """Error and work of an operator over its knob, on each head, at up to three seeds."""
    target, forms = op.target, swept(op)[1]
    tied = not isinstance(target, Softmax)
    for head in HEADS:
        drawn = sample(head, tied)
        reference, dims = drawn.reference(target), Dims.of(drawn.q, drawn.k, drawn.v)
        shares = [form.cost(dims).work / target.cost(dims).work for form in forms]
        useful = [i for i, share in enumerate(shares) if share <= MOST] or range(len(forms))
        for step in useful:
            form, share = forms[step], shares[step]
            for seed in range(3) if has_field(form, "seed") else [0]:
                seeded = refielded(form, "seed", seed)
                try:
                    found = measures.output_error(seeded, drawn.q, drawn.k, drawn.v, reference)
                except ValueError:  # a knob beyond the number of keys
                    continue
                yield {
                    "head": head, "x": share, "step": step, "group": type(op).__name__,
                    "error": found["output_error"], "uniform": found["uniform_error"],
                    "status": "ok",
                }  # fmt: skip


@functools.cache
def cores() -> dict[str, torch.Tensor]:
    """The matrices that solvers are shown on: cores of real heads, in float64."""
    return {
        "Nystromformer's core, " + HEADS[0]: matrices.Core(Nystromformer(64), Recorded(HEADS[0]))(
            0
        ),
        "SOFT's core, " + HEADS[1]: matrices.Core(operators.Soft(49), Tied(Recorded(HEADS[1])))(0),
    }


def solver_rows(solver: Any) -> Iterator[dict[str, Any]]:
    """How far A X A is from A, and the work, over the steps of a solver on two cores."""
    field = has_field(solver, "steps")
    forms = [refielded(solver, "steps", k) for k in STEPS] if field else [solver]
    for core, a in cores().items():
        if not torch.equal(a, a.mT) and solver.traits.definite:
            continue
        for step, form in enumerate(forms):
            x = form(a)
            yield {
                "head": core, "x": form.cost(len(a)).work / (2 * len(a) ** 3), "step": step,
                "group": type(solver).__name__, "status": "ok",
                "error": max(float((a @ x @ a - a).norm() / a.norm()), 1e-16),
            }  # fmt: skip


def figure_of(
    rows: list[dict[str, Any]], path: Path, xlabel: str, ylabel: str, guides: bool
) -> None:
    """Draw error against work, a panel for each head."""
    found = pd.DataFrame(rows)
    lines = Lines(
        x="x", y="error", group="group", panel="head", by="step", xlabel=xlabel, ylabel=ylabel,
        guides={"uniform": "the mean of v"} if guides else {},
    )  # fmt: skip
    keep(drawing.draw(found, lines), path)


@functools.cache
def meanings(cls: type) -> dict[str, str]:
    """What each field of the traits claims, as the string after it says."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    found: dict[str, str] = {}
    name = ""
    for node in tree.body if isinstance(tree, ast.ClassDef) else ():
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
        elif name and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found[name], name = " ".join(str(node.value.value).split()), ""
    return found


def claims(made: Any, kind: str) -> str:
    """The claims of a part, what each says, and the laws that hold it."""
    rows = []
    for field in dataclasses.fields(made.traits):
        claim = getattr(made.traits, field.name)
        if not claim or (claim == field.default and claim is not True):
            continue
        word = f"`{field.name}`" + ("" if claim is True else f" {claim}")
        said = prose(meanings(type(made.traits))[field.name])
        rows.append((word, said, held_by(made, field.name, kind)))
    return table(("claim", "what it says", "law"), rows)


def disclaimed(made: Any, claim: str) -> Any:
    """The same part without one of its claims."""
    off = {x.name: x.default for x in dataclasses.fields(made.traits)} | {"linear_in_v": False}
    traits = dataclasses.replace(made.traits, **{claim: off[claim]})
    other = copy.copy(made)
    kind = type(type(made).__name__, (type(made),), {"traits": traits})
    object.__setattr__(other, "__class__", kind)
    return other


def held_by(made: Any, claim: str, kind: str) -> str:
    """Links to the laws that are asked of a part because of a claim; else to those that read it.

    A claim that asks for no law may excuse from some.
    """
    suite: Iterable[Law[Any]] = laws.OPERATOR_LAWS if kind == "operators" else laws.SOLVER_LAWS
    other = disclaimed(made, claim)
    asked = {law.name: (law.applies(made), law.applies(other)) for law in suite}
    found = [name for name, (one, without) in asked.items() if one and not without]
    excused = [name for name, (one, without) in asked.items() if without and not one]
    if found:
        return ", ".join(law_link(x, kind) for x in found)
    for deep in (False, True):
        found = [
            law.name for law in suite if asked[law.name][0] and claim in reading(law.measure, deep)
        ]
        if found or excused:
            break
    words = [", ".join(law_link(x, kind) for x in names) for names in (found, excused)]
    words[1] = words[1] and f"excuses from {words[1]}"
    return "; ".join(filter(None, words)) or "no law of its own"


@functools.cache
def reading(measure: Any, deep: bool) -> set[str]:
    """The claims that a measurement reads; ``deep``: also by what it calls in ``softlab.laws``."""
    found, seen, ahead = set(), set(), [measure]
    while ahead:
        call = inspect.unwrap(ahead.pop())
        if call in seen or not getattr(call, "__module__", "").startswith("softlab.laws"):
            continue
        seen.add(call)
        found |= set(re.findall(r"\btraits\.(\w+)", inspect.getsource(call)))
        known = getattr(call, "__globals__", {})
        if not deep:
            break
        called = [known.get(name) for name in getattr(call, "__code__", call).co_names]
        ahead += [x for x in called if inspect.isfunction(x)]
    return found


def law_link(name: str, kind: str) -> str:
    """A link to a law of its own page."""
    return f"[{name}](/catalogue/laws.md#{anchor(name, kind)})"


def anchor(name: str, kind: str) -> str:
    """The anchor of a law; operators and solvers have laws of the same name."""
    return f"{kind[:-1]}-{re.sub(r'[^a-z]+', '-', name.lower())}"


def fields_of(part: Any) -> str:
    """The fields of a part with their ranges and defaults."""
    rows, known = [], ranges(part)
    for field in dataclasses.fields(part):
        default = default_of(field)
        said = "needed" if default is dataclasses.MISSING else f"`{default!r}`"
        held, optional = known.get(field.name, (None, False))
        words = re.sub(r"^an? ([A-Z]\w+)$", r"a ``\1``", str(held)) + " or None" * optional
        what = f"`{field.type}`" if held is None else prose(words)
        rows.append((f"`{field.name}`", what, said))
    return table(("field", "what it may be", "default"), rows) if rows else "It has no fields."


def cost_of(made: Any, kind: str) -> str:
    """The counted cost at the reference shape, and how it grows."""
    if kind == "operators":
        here, twice = REFERENCE, dataclasses.replace(REFERENCE, n=2048, l=2048)
        cost, grown, exact = made.cost(here), made.cost(twice), made.target.cost(here)
        words = (
            f"Of `{made!r}`, one forward call at `{here!r}`: counted, not timed. "
            f"Twice the tokens take {grown.work / cost.work:.2f} times the work."
            if cost.work
            else f"`{made!r}` counts no work."
        )
        return f"{words}\n\n{cost_table(cost, exact if made.target != made else None)}"
    cost, grown = made.cost(64), made.cost(128)
    ratio = (
        f" Twice the rows take {grown.work / cost.work:.1f} times the work." if cost.work else ""
    )
    words = f"Of `{made!r}`, one call on a matrix of 64 rows: counted, not timed.{ratio}"
    return f"{words}\n\n{cost_table(cost, None)}"


def cost_table(cost: Cost, exact: Cost | None) -> str:
    """The three counts of a cost, beside those of the exact operator."""
    names = {"flops": "matrix products", "kernel_entries": "exponentials",
             "factorization_flops": "factorisations"}  # fmt: skip
    rows = [[words, f"{getattr(cost, field):.3g}"] for field, words in names.items()]
    if exact is None:
        return table(("what", "operations"), rows)
    for row, field in zip(rows, names, strict=True):
        row.append(f"{getattr(exact, field):.3g}")
    return table(("what", "operations", "of its target"), rows)


SENTENCE = re.compile(r"(?<=[a-z0-9`)]\.) (?=[A-Z])")
OTHERS = re.compile(
    r"\b(published|released) (code|repository|rule|method|kernels|form|recursion|scaling)"
    r"|[Tt]hat code|[Pp]ackages?\b|transformers|its code in|[Tt]he released|local-attention"
    r"|[Tt]he paper's form"
)
SOURCE = re.compile(r"(?:References?|Source): (.*)", re.DOTALL)


def sources(part: Any) -> tuple[str, list[str]]:
    """What a docstring names as its source, and its sentences on other code."""
    paragraphs = [" ".join(x.split()) for x in (inspect.getdoc(part) or "").split("\n\n")]
    named = next((found[1] for x in paragraphs if (found := SOURCE.search(x))), "")
    sentences = [y for x in paragraphs for y in SENTENCE.split(x)]
    return named, [x for x in sentences if OTHERS.search(x) and "this package's" not in x]


def compared(name: str) -> list[list[str]]:
    """The rows of the table of fidelity on an operator."""
    text = (DOCS / "guide" / "published_packages.md").read_text(encoding="utf-8")
    lines = text.partition("| Package | Ours |")[2].partition("\n\n")[0].splitlines()
    cells = [[x.strip() for x in line.strip("| ").split("|")] for line in lines]
    return [[x[0], x[2]] for x in cells if len(x) == 3 and f"`{name}`" in x[1]]


def own_page(name: str, part: Any, kind: str) -> Iterator[str]:
    """The page of an operator or a solver."""
    package = KINDS[kind][3]
    made = example(name, part)
    yield f"# {name}\n"
    yield rest(f".. autoclass:: {package}.{name}\n   :no-members:")
    yield f"## Fields\n\n{fields_of(part)}\n"
    causal = kind == "operators" and causal_form(made) is not None
    yield f"## Claims\n\nOf `{made!r}`. `softlab check '{package}:{made!r}'` measures each.\n"
    yield claims(made, kind) + "\n"
    if causal:
        yield "It has a causal form.\n"
    yield f"## Cost\n\n{cost_of(made, kind)}\n"
    yield f"## Error against work\n\n{shown(name, made, kind)}\n"
    source, others = sources(part)
    rows = compared(name)
    if others or rows:
        yield "## Beside published code\n"
        yield "\n".join(f"- {prose(x)}" for x in others) + "\n"
        if rows:
            yield "Compared on the same weights by `make fidelity`:\n"
            yield table(("package", "on the same weights"), rows) + "\n"
    yield f"## Source\n\n{prose(source) or 'The docstring names none.'}\n"
    methods = [
        x
        for x in vars(part)
        if inspect.isroutine(getattr(part, x)) or isinstance(vars(part)[x], property)
    ]
    shown_methods = [x for x in methods if not x.startswith("_") or x == "__call__"]
    if shown_methods:
        yield "## Methods\n"
        entries = []
        for x in shown_methods:
            what = "property" if isinstance(vars(part)[x], property) else "method"
            entries.append(f".. auto{what}:: {package}.{name}.{x}")
        yield rest("\n\n".join(entries))


def shown(name: str, made: Any, kind: str) -> str:
    """The figure of a part with its caption, or why it has none."""
    path = DOCS / "catalogue" / kind / f"{name}.svg"
    if kind == "operators":
        if made.traits.exact and not made.traits.replacement:
            return "It is exact: there is no error to show."
        if made.traits.replacement:
            return "It approximates nothing, so that it has no error to show."
        figure_of(list(operator_rows(made)), path, "work over that of the exact operator",
               "relative output error", guides=True)  # fmt: skip
        over = swept(made)[0]
        seeds = "; median and quartiles of three seeds" if has_field(made, "seed") else ""
        tied = "" if isinstance(made.target, Softmax) else ", k = q as in SOFT's layers"
        caption = (
            f"Relative error of the output against counted work, on stored sample 0 of two "
            f"recorded heads{tied}, over {over}{seeds}. Grey: the error of the mean of v."
        )
    else:
        figure_of(list(solver_rows(made)), path, "work, in products of two m x m matrices",
               "|A X A - A| / |A|", guides=False)  # fmt: skip
        over = f"over {STEPS[0]} to {STEPS[-1]} steps" if has_field(made, "steps") else "one call"
        caption = (
            f"How far A X A is from A, in Frobenius norm and float64, against counted work, on the "
            f"cores of two real heads, {over}."
        )
        if made.traits.definite:
            caption += " It is for symmetric matrices, and only SOFT's core is one."
    return f"![{prose(caption)}]({name}.svg)\n\n*{prose(caption)}*"


def together(kind: str) -> Iterator[str]:
    """One page of all parts of a kind."""
    yield f"# {KINDS[kind][0]}\n"
    for name in parts(kind):
        yield f"({kind}-{name.lower()})=\n\n## {name}\n"
        yield rest(f".. autoclass:: {KINDS[kind][3]}.{name}")


def overview() -> Iterator[str]:
    """The first page of the catalogue."""
    yield "# Catalogue\n"
    yield (
        "Every part of softlab, each with its formula, its claims and the laws that hold them, "
        "what it costs, how it errs on real heads, how it differs from published code, and its "
        "source. These pages are made of the code when the site is built.\n"
    )
    rows = []
    for kind in KINDS:
        named = [f"[`{x}`]({place(x, part)[10:]}.md)" for x, part in parts(kind).items()]
        rows.append((f"[{KINDS[kind][0]}]({file(kind)}.md)", ", ".join(named)))
    rows.append(("[Laws](laws.md)", "what each says, when it applies, what it allows and catches"))
    yield table(("page", "what is on it"), rows) + "\n"
    yield toctree([*map(file, KINDS), "laws"])


def file(kind: str) -> str:
    """The file of a kind's page, without ending."""
    return f"{kind}/index" if kind in APART else kind


def contents(kind: str) -> Iterator[str]:
    """The first page of a kind whose parts have pages of their own."""
    yield f"# {KINDS[kind][0]}\n"
    rows = [(f"[`{name}`]({name}.md)", prose(title(part))) for name, part in parts(kind).items()]
    yield table(("name", "what it is"), rows) + "\n"
    if kind == "operators":
        yield "## What each approximates and claims\n"
        yield (
            "With 64 for every field that has no default. All but those that say so are linear in "
            "v. Laws measure every claim; the [glossary](/glossary.md) says what each means. "
            "`softlab list --markdown` prints this table.\n"
        )
        yield "\n".join(traits_table(parts_of(operators, "target"))) + "\n"
    yield toctree(parts(kind))


def toctree(names: Iterable[str]) -> str:
    """A list of pages for the menu."""
    return ":::{toctree}\n:hidden:\n\n" + "\n".join(names) + "\n:::\n"


def law_page() -> Iterator[str]:
    """All laws."""
    yield "# Laws\n"
    yield (
        "Every claim is measured by a law, and of each law a fault is known that breaks it. "
        "`softlab check` asks them of an operator, a solver or a function of yours.\n"
    )
    suites: dict[str, Iterable[Law[Any]]] = {
        "operators": laws.OPERATOR_LAWS, "solvers": laws.SOLVER_LAWS,
    }  # fmt: skip
    for kind, suite in suites.items():
        yield f"## Laws of {kind}\n"
        for law in suite:
            yield f"({anchor(law.name, kind)})=\n\n### {law.name}\n"
            yield f"{prose(law.statement)}.\n"
            rows = [("family", law.family), ("holds for what", prose(law.when))]
            rows += [("allows", prose(law.allows))] if law.allows else []
            rows += [("catches", prose(law.catches))] if law.catches else []
            yield table(("", ""), rows) + "\n"


def write(path: Path, text: str) -> None:
    """Write a page unless it is as it should be, so that what has not changed is not read again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def pages() -> Iterator[tuple[str, Callable[[], str]]]:
    """Every page with what makes its text."""
    described: set[int] = set()
    yield "catalogue/index", lambda: "\n".join(overview())
    yield "catalogue/docket", lambda: "\n".join(docket_page())
    yield "catalogue/laws", lambda: "\n".join(law_page())
    for kind in KINDS:
        if kind not in APART:
            yield f"catalogue/{kind}", functools.partial(lambda x: "\n".join(together(x)), kind)
            continue
        index = functools.partial(lambda x: "\n".join(contents(x)), kind)
        yield f"catalogue/{kind}/index", index
        for name, part in parts(kind).items():
            yield (
                f"catalogue/{kind}/{name}",
                functools.partial(lambda *x: "\n".join(own_page(*x)), name, part, kind),
            )
    for modules in API.values():
        for package, inner in modules.items():
            yield f"api/{package}", functools.partial(api_page, package, inner, described)
    yield "api/index", lambda: "\n".join(api_index())


def api_index() -> Iterator[str]:
    """The first page of the API."""
    yield "# API\n"
    for heading, modules in API.items():
        yield f"## {heading}\n"
        rows = [(f"[`{x}`]({x}.md)", prose(title(importlib.import_module(x)))) for x in modules]
        yield table(("module", "what it is"), rows) + "\n"
        yield toctree(modules)


def figures(known: set[str]) -> None:
    """Draw the figures of the written pages, and run the scripts of the gallery for theirs.

    ``known``: the pages that are built, without ending.
    """
    for path in (DOCS / f"{name}.md" for name in sorted(known)):
        text = path.read_text(encoding="utf-8")
        if blocks.FIGURE.search(text):
            found = list(blocks.run(text, path.name))
            for ran in found:
                if ran.name:
                    keep(ran.figure, path.parent / "figures" / f"{ran.name}.svg")
            blocks.record(found, DOCS / RAN / path.relative_to(DOCS).with_suffix(".json"))
    for script in sorted((DOCS / "gallery").glob("*.py")) if "gallery/index" in known else ():
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            left = runpy.run_path(str(script))
        write(script.parent / "figures" / f"{script.stem}.txt", printed.getvalue())
        if "figure" in left:
            keep(left["figure"], script.parent / "figures" / f"{script.stem}.svg")


def keep(drawn: Figure, path: Path) -> None:
    """Write a figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.save(drawn, path)


def generate(app: Any) -> None:
    """Write all pages; with the tag ``small`` a few of each kind, for a trial of the site."""
    torch.set_num_threads(1)
    wanted = {x: made for x, made in pages() if not app.tags.has("small") or x in SMALL}
    measured = [name for name in wanted if name.count("/") > 1]  # a part's own page: the slow ones
    # Sphinx, too, forks where it is asked for several processes.
    with ProcessPoolExecutor(max(1, app.parallel), multiprocessing.get_context("fork")) as others:
        apart = {name: others.submit(page, name) for name in measured}
        app.project.discover(app.config.exclude_patterns)
        figures(app.project.docnames - {*dict(pages())})
        for name, made in wanted.items():
            write(DOCS / f"{name}.md", apart[name].result() if name in apart else made())


def page(name: str) -> str:
    """The text of one page."""
    torch.set_num_threads(1)
    return dict(pages())[name]()


def setup(app: Any) -> dict[str, Any]:
    """Make the pages before Sphinx looks for them."""
    app.connect("builder-inited", generate)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
