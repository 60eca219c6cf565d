"""What must pass before a commit lands is said once: by the Makefile."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def recipe(target):
    """The commands of a target and of the targets that it makes, in the environment's own words."""
    before, lines = re.search(
        rf"^{target}:([^#\n]*)[^\n]*\n((?:\t.*\n)*)", MAKEFILE, re.MULTILINE
    ).groups()
    inner = [x for x in before.split() if not x.startswith("$")]
    own = [x.strip().replace("$(BIN)", ".venv/bin") for x in lines.splitlines()]
    own = [x.removeprefix("OMP_NUM_THREADS=1 ") for x in own]
    if own and own[0].startswith("$(MAKE) "):  # two targets side by side
        inner += own.pop(0).rpartition("--jobs 2 ")[2].split()
    return [x for name in inner for x in recipe(name)] + own


def test_the_hooks_are_what_make_check_runs():
    yaml = pytest.importorskip("yaml")  # which distributed brings
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert local["repo"] == "local"  # no hook that brings versions of its own
    assert [hook["entry"] for hook in local["hooks"]] == recipe("check")
    for hook in local["hooks"]:
        assert (hook["language"], hook["pass_filenames"]) == ("system", False)
        assert not {"files", "exclude", "stages"} & hook.keys()


def test_the_gate_holds_format_lint_types_the_site_and_the_whole_suite():
    gate = recipe("test")
    assert gate == [
        *(".venv/bin/ruff format --check .", ".venv/bin/ruff check .", ".venv/bin/mypy"),
        ".venv/bin/python -m pytest -n $(WORKERS) --dist worksteal",
        # Meanwhile, and once: the tests that open it come late. Warnings are errors.
        ".venv/bin/python -m sphinx -W --keep-going -q -j $(WORKERS) docs docs/_build/html",
    ]
    steps = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()[1:]
    assert steps[-1] == "exec make test"
    assert len(steps) == 3  # strictness, the folder, the gate


def test_every_target_is_no_file_and_says_what_it_does():
    targets = set(re.findall(r"^([a-z-]+):.*", MAKEFILE, re.MULTILINE))
    phony = " ".join(re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)).split()
    assert targets == set(phony)
    assert all(re.search(rf"^{x}:.*## ", MAKEFILE, re.MULTILINE) for x in targets)
