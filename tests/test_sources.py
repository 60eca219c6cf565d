"""A change of whatever decides a study's numbers measures again; a change of nothing does not."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import scipy
import torch
from test_executors import table

from softlab.engine import provenance, sources, workers
from softlab.study import defined_in, run

ROOT = Path(__file__).parents[1]
X = "def measure(x, dtype, device):\n    return {'y': %s}\n"
F, G = "def f(x):\n    return x\n", "def f(x):\n    return -x\n"


def study(text, axes="{'x': [1, 2]}", more=""):
    head = "from softlab.study import Study\n"
    return f"{head}{text}\nS = Study('s', 'q?', {axes}, measure{more})\n"


def write(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def measured(folder, name="study.py", out="out", **more):
    (found,) = defined_in(folder / name)
    outcome = run(found, folder / out, threads=1, **more)
    return outcome.reused, table(outcome)["y"].tolist()


OP = """
from base import Base
from softlab.core import value
@value
class Op(Base):
    rank: int
"""
DECORATED = "from deco import d\n@d\n"
DECORATOR = """
def d(function):
    def inner(x, dtype, device):
        return function(x, dtype, device)
    return inner
"""
OBJECT = """
class M:
    def __init__(self, k):
        self.k = k
    def __call__(self, x, dtype, device):
        return {"y": self.k * x}
    def go(self, x, dtype, device):
        return self(x, dtype, device)
"""
READS = "from pathlib import Path\nDATA = Path(__file__).parent / 'data' / 'a.txt'\n"
LIBRARY = "import os, sys\nsys.path.insert(0, os.path.join(os.path.dirname(__file__), 'lib'))\n"
IMPORTED = {
    "a helper": ("from helper import f\n" + X % "f(x)", {"helper.py": F}, {"helper.py": G}),
    "a helper of a helper, by star": (
        "from helper import *\n" + X % "f(x)",
        {"helper.py": "from more import *", "more.py": F},
        {"more.py": G},
    ),
    "a package": (
        "from pkg import f\n" + X % "f(x)",
        {"pkg/__init__.py": "from .sub import f", "pkg/sub.py": "from . import deep\n"
         "def f(x):\n    return deep.f(x)", "pkg/deep.py": F},
        {"pkg/deep.py": G},
    ),
    "a folder without __init__": (
        "from ns.sub import f\n" + X % "f(x)", {"ns/sub.py": F}, {"ns/sub.py": G},
    ),
    "an import inside the measure": (
        "def measure(x, dtype, device):\n    from helper import f\n    return {'y': f(x)}",
        {"helper.py": F}, {"helper.py": G},
    ),
    "importlib, inside": (
        "import importlib\n" + X % "importlib.import_module('helper').f(x)",
        {"helper.py": F}, {"helper.py": G},
    ),
    "importlib, a computed name": (
        "import importlib\nh = importlib.import_module('hel' + 'per')\n" + X % "h.f(x)",
        {"helper.py": F}, {"helper.py": G},
    ),
    "another folder on the path": (
        LIBRARY + "from within import f\n" + X % "f(x)",
        {"lib/within.py": F}, {"lib/within.py": G},
    ),
    "a cycle of imports": (
        "import a\n" + X % "a.f(x)",
        {"a.py": "import b\ndef f(x):\n    return b.f(x)", "b.py": "import a\n" + F},
        {"b.py": "import a\n" + G},
    ),
    "a name of the standard library": (
        "from pyclbr import f\n" + X % "f(x)", {"pyclbr.py": F}, {"pyclbr.py": G},
    ),
    "the measure elsewhere": (
        "from helper import measure\n", {"helper.py": X % "x"}, {"helper.py": X % "-x"},
    ),
    "a decorator without wraps": (
        DECORATED + X % "x", {"deco.py": DECORATOR}, {"deco.py": DECORATOR.replace(
            "function(x,", "function(-x,")},
    ),
    "a partial": (
        "import functools\nfrom helper import g\nmeasure = functools.partial(g, p=1)",
        {"helper.py": "def g(x, dtype, device, p):\n    return {'y': p * x}"},
        {"helper.py": "def g(x, dtype, device, p):\n    return {'y': -p * x}"},
    ),
    "an object": (
        "from helper import M\nmeasure = M(1)",
        {"helper.py": OBJECT}, {"helper.py": OBJECT.replace("self.k * x", "-self.k * x")},
    ),
    "a method": (
        "from helper import M\nmeasure = M(1).go",
        {"helper.py": OBJECT}, {"helper.py": OBJECT.replace("self.k * x", "-self.k * x")},
    ),
    "a cached measure": (
        "import functools\nfrom helper import f\n@functools.cache\n" + X % "f(x)",
        {"helper.py": F}, {"helper.py": G},
    ),
    "a file that it reads": (
        READS + X % "x * float(DATA.read_text())", {"data/a.txt": "1"}, {"data/a.txt": "-1"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", IMPORTED)
def test_a_change_outside_of_the_file_measures_again(tmp_path, name):
    text, files, changed = IMPORTED[name]
    more = ", inputs=['data/a.txt']" if "reads" in name else ""
    write(tmp_path, {"study.py": study(text, more=more), "unread.py": "A = 1"} | files)
    assert measured(tmp_path) == (0, [1, 2])
    write(tmp_path, {"unread.py": "A = 2"})
    assert measured(tmp_path) == (2, [1, 2])
    write(tmp_path, changed)
    assert measured(tmp_path) == (0, [-1, -2])
    write(tmp_path, files)
    assert measured(tmp_path) == (2, [1, 2]), "rows of the old code are there when it is back"


def test_a_class_of_an_operator_and_its_base_elsewhere(tmp_path):
    text = "from mine import Op\ndef measure(op, dtype, device):\n    return {'y': op()}"
    base = "class Base:\n    def __call__(self):\n        return self.rank"
    write(tmp_path, {"study.py": study(text, "{'op': [Op(1), Op(2)]}"), "mine.py": OP})
    write(tmp_path, {"base.py": base})
    assert measured(tmp_path) == (0, [1, 2])
    assert measured(tmp_path) == (2, [1, 2])
    write(tmp_path, {"base.py": base.replace("self.rank", "-self.rank")})
    assert measured(tmp_path) == (0, [-1, -2])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("functools.partial(g, p=1)", "functools.partial(g, p=-1)"),
        ("made(1)", "made(-1)"),
        ("M(1)", "M(-1)"),
    ],
)
def test_what_a_measure_holds_is_part_of_it(tmp_path, before, after):
    def held(by):
        text = f"""
            import functools
            from helper import g, made, M
            measure = {by}
        """
        return {"study.py": study(textwrap.dedent(text)), "helper.py": HELD}

    write(tmp_path, held(before))
    assert measured(tmp_path) == (0, [1, 2])
    assert measured(tmp_path) == (2, [1, 2])
    write(tmp_path, held(after))
    assert measured(tmp_path) == (0, [-1, -2])


HELD = OBJECT + textwrap.dedent("""
    def g(x, dtype, device, p):
        return {"y": p * x}
    def made(p):
        def inner(x, dtype, device):
            return {"y": p * x}
        return inner
""")


def test_what_the_partial_holds_counts_where_the_file_stays(tmp_path):
    write(tmp_path, {"study.py": study("from values import P\nfrom helper import made\n"
                     "measure = made(P)"), "helper.py": HELD, "values.py": "P = 1"})  # fmt: skip
    (found,) = defined_in(tmp_path / "study.py")
    one = provenance.code(found.measure)
    assert provenance.code(found.measure).digest == one.digest
    changed = provenance.code(sys.modules[found.measure.__module__].made(2))
    assert {k for k in one.parts if one.parts[k] != changed.parts[k]} == {"measure"}


def test_the_content_of_a_file_on_an_axis_counts(tmp_path):
    text = "from pathlib import Path\nHERE = Path(__file__).parent\n" + X % "float(x.read_text())"
    write(tmp_path, {"study.py": study(text, "{'x': [HERE / 'a', HERE / 'b']}"), "a": "1"})
    write(tmp_path, {"b": "2"})
    assert measured(tmp_path) == (0, [1, 2])
    write(tmp_path, {"b": "3"})
    assert measured(tmp_path) == (1, [1, 3])


def test_a_whole_folder_of_inputs_counts_and_a_missing_one_is_refused(tmp_path):
    write(tmp_path, {"study.py": study(X % "x", more=", inputs=['data']"), "data/a/b": "1"})
    assert measured(tmp_path) == (0, [1, 2])
    assert measured(tmp_path) == (2, [1, 2])
    write(tmp_path, {"data/a/c": ""})
    assert measured(tmp_path) == (0, [1, 2])
    write(tmp_path, {"study.py": study(X % "x", more=", inputs=['dta']")})
    with pytest.raises(ValueError, match=r"the input 'dta' cannot be read .* Correct Study.inputs"):
        measured(tmp_path)


def test_two_studies_with_neighbours_of_one_name(tmp_path):
    for folder, f in (("a", F), ("b", G)):
        text = "import helper\ndef measure(x, dtype, device):\n    import lazy\n"
        text += "    return {'y': helper.f(lazy.f(x))}"
        write(tmp_path / folder, {"study.py": study(text), "helper.py": f, "lazy.py": F})
    found = [defined_in(tmp_path / x / "study.py")[0] for x in "ab"]
    outcomes = [run(one, tmp_path / f"out{i}", threads=1) for i, one in enumerate(found)]
    assert [table(x)["y"].tolist() for x in outcomes] == [[1, 2], [-1, -2]]
    again = [run(one, tmp_path / f"out{i}", threads=1) for i, one in enumerate(found)]
    assert [x.reused for x in again] == [2, 2]
    there = run(found[0], tmp_path / "out0", threads=1, fresh=True, crew=workers.processes(1))
    assert (there.failed, table(there)["y"].tolist()) == (0, [1, 2])


def test_rows_are_those_of_the_code_that_was_loaded(tmp_path):
    # A study waits its turn behind another for hours, and its file is edited meanwhile.
    write(tmp_path, {"study.py": study("from helper import f\n" + X % "f(x)"), "helper.py": F})
    (found,) = defined_in(tmp_path / "study.py")
    write(tmp_path, {"helper.py": G})
    assert table(run(found, tmp_path / "out", threads=1))["y"].tolist() == [1, 2]
    assert measured(tmp_path) == (0, [-1, -2]), "rows of the old code under the new one's key"
    write(tmp_path, {"helper.py": F})
    assert measured(tmp_path) == (2, [1, 2])


def test_workers_measure_with_neighbours_and_refuse_others(tmp_path):
    write(tmp_path, {"study.py": study("from helper import f\n" + X % "f(x)"), "helper.py": F})
    (found,) = defined_in(tmp_path / "study.py")
    outcome = run(found, tmp_path / "a", threads=1, crew=workers.processes(1))
    assert (outcome.failed, table(outcome)["y"].tolist()) == (0, [1, 2])
    assert run(found, tmp_path / "a", threads=1).reused == 2
    write(tmp_path, {"helper.py": G})  # which a worker loads, and this process has not
    outcome = run(found, tmp_path / "b", threads=1, crew=workers.processes(1))
    assert outcome.failed == 2
    assert table_errors(outcome).str.contains("has changed: run it again").all()


def table_errors(outcome):
    import pandas as pd

    return pd.read_csv(outcome.folder / "table.csv")["error"]


SCRIPT = """
from helper import f
from softlab.study import Study, run
def measure(x, *, dtype, device):
    return {"y": f(x)}
if __name__ == "__main__":
    from softlab.engine.workers import processes
    import sys
    crew = processes(1) if "workers" in sys.argv else None
    print(run(Study("s", "q?", {"x": [1, 2]}, measure), "out", threads=1, crew=crew))
"""


def test_a_script_resumes_and_sees_its_helpers(tmp_path):
    write(tmp_path, {"study.py": SCRIPT, "helper.py": F})

    def said(*words):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [sys.executable, "study.py", *words], cwd=tmp_path, env=environment,
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout

    assert "rows=2, reused=0, failed=0" in said()
    write(tmp_path, {"helper.py": G})
    assert "rows=2, reused=0, failed=0" in said("workers")
    assert "rows=2, reused=2, failed=0" in said()


@pytest.mark.parametrize(
    ("flag", "back"),
    [
        (lambda: torch.set_float32_matmul_precision("high"),
         lambda: torch.set_float32_matmul_precision("highest")),
        (lambda: torch.set_default_dtype(torch.float64),
         lambda: torch.set_default_dtype(torch.float32)),
        (lambda: torch.use_deterministic_algorithms(True),
         lambda: torch.use_deterministic_algorithms(False)),
        (lambda: torch.set_flush_denormal(True), lambda: torch.set_flush_denormal(False)),
        (lambda: torch.set_grad_enabled(False), lambda: torch.set_grad_enabled(True)),
        (lambda: setattr(torch.backends.mkldnn, "enabled", False),
         lambda: setattr(torch.backends.mkldnn, "enabled", True)),
        (lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
         lambda: setattr(torch.backends.cudnn, "allow_tf32", True)),
    ],
)  # fmt: skip
def test_a_flag_of_arithmetic_measures_again(tmp_path, flag, back):
    write(tmp_path, {"study.py": study(X % "x")})
    assert measured(tmp_path)[0] == 0
    torch.set_float32_matmul_precision("highest")  # as it is, but said
    assert measured(tmp_path)[0] == 2
    try:
        flag()
        assert measured(tmp_path)[0] == 0
    finally:
        back()
    assert measured(tmp_path)[0] == 2


def test_versions_and_variables_measure_again(tmp_path, monkeypatch):
    write(tmp_path, {"study.py": study("import pandas\n" + X % "x")})
    assert measured(tmp_path)[0] == 0
    for module in (np, scipy, torch):
        with monkeypatch.context() as patch:
            patch.setattr(module, "__version__", "99.0")
            assert measured(tmp_path)[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr("platform.python_version", lambda: "99.0")
        assert measured(tmp_path)[0] == 0
    with monkeypatch.context() as patch:
        patch.setenv("MKL_CBWR", "COMPATIBLE")
        assert measured(tmp_path)[0] == 0
    with monkeypatch.context() as patch:
        known = sources.version
        patch.setattr(
            sources, "version", lambda x, at=None: "99" if x == "pandas" else known(x, at)
        )
        assert measured(tmp_path)[0] == 0
    assert measured(tmp_path)[0] == 2


def test_a_measure_that_leaves_a_flag_behind_is_a_failed_row(tmp_path):
    leaves = "import torch\ndef measure(x, dtype, device):\n"
    leaves += "    torch.set_default_dtype(torch.float64)\n    return {'y': x}"
    write(tmp_path, {"study.py": study(leaves)})
    (found,) = defined_in(tmp_path / "study.py")
    try:
        outcome = run(found, tmp_path / "out", threads=1)
    finally:
        torch.set_default_dtype(torch.float32)
    assert outcome.failed == 2
    assert table_errors(outcome).str.contains("leaves default_dtype=torch.float64").all()


def test_numpy_has_as_many_threads_as_torch(tmp_path):
    from threadpoolctl import threadpool_info

    np.linalg.inv(np.eye(3))
    with provenance.threads(1):
        counts = [x["num_threads"] for x in threadpool_info() if x["user_api"] == "blas"]
    assert counts
    assert set(counts) == {1}


def test_code_typed_at_a_prompt_says_that_nothing_is_reused(tmp_path):
    scope = {"__name__": "typed"}
    exec(X % "x", scope)
    from softlab.study import Study

    for _ in range(2):
        outcome = run(Study("s", "q?", {"x": [1]}, scope["measure"]), tmp_path)
        assert outcome.reused == 0
        assert outcome.notes[0].startswith(
            "No row can be known again by a later run: the code of typed is in no file."
        )


def test_the_parts_are_in_meta(tmp_path):
    import json

    write(tmp_path, {"study.py": study("import helper\n" + X % "x"), "helper.py": F})
    measured(tmp_path)
    code = json.loads((tmp_path / "out/s/meta.json").read_text())["code"]
    assert set(code) == {"softlab", "measure", "file study.py", "module helper"}
