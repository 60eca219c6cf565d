"""Imports point one way: from studies down to the core, and tables know no tensors."""

import ast
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from softlab import study

ROOT = Path(__file__).parents[1]

LAYERS = (
    {"hints", "notebook"},
    {"extras", "moved", "study_folders", "verdicts"},
    {"validation"},
    {"core", "profiling", "engine"},
    {"gpu"},
    {"kernels"},
    {"landmarks", "features", "inputs", "spectra", "estimators", "pinv"},
    {"primitives", "datasets"},
    {"operators", "convergence", "gradients", "matrices", "capture", "error_budget"},
    {"certificates", "measures", "laws", "models", "pretrained"},
    {"study", "catalogue"},
    {"docket", "compare", "tuning", "forecast"},
    {"cli", "studies"},
    {"__main__"},
)
"""A module imports from layers above its own line in this list, and from its own package."""

TABLES = {"chapters", "figures", "report"}
"""See tables only: they import each other, the first two layers and no torch; the command line
and comparisons alone import them."""
OF_CHAPTERS = {"chapter", "columns"}
"""The modules of a study's folder that see tables only."""

PROTOCOLS = {
    "operators": set(),
    "pinv": {
        "Inverting",
        "Iteration",
        "Nystrom",
        "ResidualPolynomial",
        "Solver",
        "SolverTraits",
        "Status",
        "PinvResult",
        "applier",  # how any solver is applied
        "judge",  # how the iterates of any solver are judged
    },
    "landmarks": {"Selector"},
    "features": {"Weights"},
    "kernels": {"Kernel"},
}
"""What a module that knows no concrete method may import of the packages that hold them."""
ABSTRACT = {
    *("core", "validation", "convergence", "error_budget", "measures", "laws", "study", "engine"),
}

HEAVY = ("pandas", "matplotlib", "scipy", "typst", "rich", "typer", "onnx", "hypothesis")


@cache  # every planted violation reads the whole package again
def imported(source, package=""):
    """Pairs (module, name or None) of every import, those inside functions too.

    Relative ones are for the folders of studies alone.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level <= package.startswith("studies."), "absolute imports only"
            base = ".".join(x for x in (package * bool(node.level), node.module) if x)
            found += [(base, alias.name) for alias in node.names]
    return found


def level(part):
    return next((i for i, layer in enumerate(LAYERS) if part in layer), None)


def part_of(module, name=None):
    """The layered part that an import reaches: 'pinv' of softlab.pinv.svd, or of softlab: pinv."""
    top, *rest = module.split(".")
    if top == "studies":
        return "chapters" if OF_CHAPTERS & {*rest[-1:]} else "studies"
    if top != "softlab":
        return None
    if rest:
        return rest[0]
    # ``from softlab import pinv`` is a module; ``from softlab import Dims`` comes from the core.
    known = name is not None and (level(name) is not None or name in TABLES)
    return name if known else "core"


def other_study(target, module):
    """Whether a module of a study's folder imports one of another's."""
    both = [name.split(".")[:2] for name in (target, module)]
    return all(parts[0] == "studies" for parts in both) and both[0] != both[1]


def violations(modules):
    """Sentences about the imports of ``modules``, a mapping of dotted names to sources."""
    found = []
    for module, source in modules.items():
        part = part_of(module) if module != "softlab" else "__init__"
        if part == "__init__":
            allowed = {"certificates", "core", "moved"}
        elif part in TABLES:
            allowed = TABLES | LAYERS[0] | LAYERS[1]
        elif level(part) is None:
            found.append(f"{module} has no layer: give it one here and in the design")
            continue
        else:
            allowed = set().union(*LAYERS[: level(part)], {part})
            allowed |= TABLES if part in {"cli", "compare", "studies"} else set()
        for target, name in imported(source, module.rpartition(".")[0]):
            reached = part_of(target, name)
            if reached is None:
                if part in TABLES and target.split(".")[0] == "torch":
                    found.append(f"{module} imports torch, and should see tables only")
            elif other_study(target, module):
                found.append(f"{module} imports {target}, which is another study")
            elif reached not in allowed:
                found.append(f"{module} imports {target}, which is not below it")
            elif part in ABSTRACT and reached in PROTOCOLS and part != reached:
                plain = target.count(".") == 1 or target.endswith(
                    (".solver", ".stopping", ".selector", ".weights")
                )
                if not plain or name not in PROTOCOLS[reached]:
                    found.append(f"{module} imports {target}.{name}, which is no protocol")
    return found


def everything():
    files = [*(ROOT / "softlab").rglob("*.py"), *(ROOT / "studies").rglob("*.py")]
    dotted = {".".join(f.relative_to(ROOT).with_suffix("").parts): f for f in files}
    return {name.removesuffix(".__init__"): f.read_text() for name, f in dotted.items()}


def test_imports_point_one_way():
    modules = everything()
    assert {"softlab", "softlab.core", "softlab.pinv.svd", "studies.rank.study"} <= set(modules)
    assert violations(modules) == []


PLANTED = {
    "the core imports an operator": ("softlab.core", "from softlab.operators import Soft"),
    "a kernel imports a solver of its own layer": ("softlab.kernels", "import softlab.pinv.svd"),
    "a solver imports an operator, late": (
        "softlab.pinv.svd",
        "def f():\n    from softlab.operators import Soft",
    ),
    "an operator imports a measure": ("softlab.operators.soft", "from softlab import measures"),
    "capture imports a model": ("softlab.capture", "from softlab.models import vit"),
    "a budget knows an operator": ("softlab.error_budget", "from softlab.operators import Soft"),
    "a budget knows a solver": ("softlab.error_budget", "from softlab.pinv import SVD"),
    "measures know an operator": ("softlab.measures", "from softlab.operators import Soft"),
    "laws know a solver": ("softlab.laws.inverse", "from softlab.pinv import SVD"),
    "laws know a solver by its file": ("softlab.laws.inverse", "from softlab.pinv.svd import SVD"),
    "a study's machine knows an operator": ("softlab.study", "import softlab.operators"),
    "figures import torch": ("softlab.figures", "import torch"),
    "a report imports torch, late": (
        "softlab.report",
        "def f():\n    from torch import Tensor",
    ),
    "a report computes": ("softlab.report", "from softlab.measures import accuracy"),
    "a chapter measures": (
        "softlab.report.operators.chapter",
        "from softlab.measures import accuracy",
    ),
    "a study's chapter measures": (
        "studies.memory.chapter",
        "from softlab.measures import accuracy",
    ),
    "a study's chapter imports the study": ("studies.memory.chapter", "from .study import STUDY"),
    "a study imports another's chapter": ("studies.rank.study", "import studies.memory.chapter"),
    "a chapter knows tensors": ("softlab.report.numbers", "import torch"),
    "a measure writes a chapter": ("softlab.measures", "from softlab.report import chapter"),
    "a measure draws": ("softlab.measures", "from softlab.figures import draw"),
    "the package imports more than its core": ("softlab", "from softlab.operators import Soft"),
    "the library imports a study": ("softlab.study", "from studies import rank"),
    "a new module without a layer": ("softlab.misc", "import math"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_violation_is_found(name):
    module, line = PLANTED[name]
    modules = everything()
    before = set(violations(modules))
    modules[module] = modules.get(module, "") + f"\n{line}\n"
    (found,) = set(violations(modules)) - before
    assert found.startswith(f"{module} ")


def test_importing_softlab_stays_light():
    loaded = f"print([m for m in {HEAVY!r} if m in sys.modules], 'torch' in sys.modules)"
    code = f"import sys; from softlab import as_matrix; {loaded}"
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "[] True"


def test_tables_are_read_and_drawn_without_torch():
    code = "import sys; import softlab.report, softlab.figures; print('torch' in sys.modules)"
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "False"


def test_the_torch_side_imports_no_table_tools():
    code = (
        "import sys; import softlab.operators, softlab.laws, softlab.measures, "
        "softlab.capture, softlab.pinv, softlab.landmarks; "
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "[]"


WINDOWS = """
import os, signal, sys
sys.modules["fcntl"] = sys.modules["resource"] = None  # as on Windows, which lacks these, too
del os.getuid, os.killpg, os.setsid, os.sysconf
del signal.SIGALRM, signal.setitimer, signal.SIGHUP
"""
WITHOUT_POSIX = (
    WINDOWS
    + """
import json
from typer.testing import CliRunner
from softlab.cli import app
done = [CliRunner().invoke(app, words) for words in json.loads(sys.argv[1])]
print(json.dumps([{"code": x.exit_code, "output": x.output} for x in done]))
"""
)
PARTS_WITHOUT_POSIX = (
    WINDOWS
    + """
import torch
from softlab import as_matrix, capture, laws, spectra
from softlab.laws import sandbox
from softlab.operators import Soft, TopK
from softlab.study import Study, run

q = torch.randn(2, 12, 4)
assert Soft(rank=4)(q, q, q).isfinite().all()
assert spectra.effective_rank(as_matrix(TopK(k=2), q, q)).shape == (2,)
laws.check(TopK(k=2), only="row-stochastic")
assert laws.examine(TopK(k=2), only="causal", examples=1)
sandbox._bound_memory()  # does nothing where there are no limits
model = torch.nn.MultiheadAttention(8, 2, batch_first=True).eval()
with capture.record(model) as seen:
    model(q.repeat(1, 1, 2), q.repeat(1, 1, 2), q.repeat(1, 1, 2))
assert len(seen)
try:
    run(Study("mine", "Does it?", {"x": [1]}, lambda x: {"y": x}), sys.argv[1])
except ValueError as error:
    print(error)
"""
)


def test_operators_laws_and_recording_work_without_posix_and_a_study_says_why_not(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-c", PARTS_WITHOUT_POSIX, str(tmp_path / "out")],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "Run studies under Linux, macOS or WSL" in ended.stdout
    assert not (tmp_path / "out").exists()


ASKED_WITHOUT_POSIX = [
    (["info"], 0, "can run here: no"),
    (["list"], 0, "rank"),
    (["check", "softlab.operators:TopK(k=2)", "--only", "views"], 0, "views"),
    (["report", "{tables}"], 0, "report"),
    (["run", "studies/rank.py", "--quick", "--out", "{out}"], 2, "Linux, macOS or WSL"),
]


def test_without_posix_all_but_studies_works_and_these_say_so(tmp_path):
    """One process answers all five: to start it takes longer than they do."""
    tables, out = tmp_path / "tables", tmp_path / "out"
    study.run(study.Study("mine", "Does it?", {"x": [1]}, lambda x, **_: {"y": x}), tables)
    asked = [[word.format(tables=tables, out=out) for word in x[0]] for x in ASKED_WITHOUT_POSIX]
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_POSIX, json.dumps(asked)],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    for (words, code, says), done in zip(
        ASKED_WITHOUT_POSIX, json.loads(ended.stdout), strict=True
    ):
        assert done["code"] == code, (words, done["output"])
        assert says in done["output"]
        assert "Traceback" not in done["output"]
    assert not out.exists()
