"""What the README shows, runs."""

import re
import tomllib
from pathlib import Path

from blocks import python_blocks, run_blocks

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_python_blocks_run_in_order():
    assert len(python_blocks(README)) >= 5
    space = run_blocks(README, "README.md")
    assert float(space["error"]) < 1


def test_commands_exist():
    from softlab.cli import app

    shown = set(re.findall(r"^softlab (\w+)", README, flags=re.MULTILINE))
    known = {c.name or c.callback.__name__ for c in app.registered_commands}
    assert shown
    assert shown <= known


def test_make_targets_exist():
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    for target in re.findall(r"make (report|test|fidelity|peers|check|bench)", README):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


def test_the_table_of_traits_is_what_the_operators_claim():
    from typer.testing import CliRunner

    from softlab import operators
    from softlab.cli import app

    made = CliRunner().invoke(app, ["list", "--markdown"], env={"COLUMNS": "80"}).stdout.strip()
    for name in operators.__all__:
        assert f"| `{name}(" in made
    begin, end = "<!-- softlab list --markdown -->", "<!-- end -->"
    shown = README.partition(begin)[2].partition(end)[0].strip()
    assert shown == made, f"put the output of softlab list --markdown between {begin} and {end}"


def test_the_packages_compared_are_those_of_the_extra_at_the_versions_tested():
    root = Path(__file__).parent.parent
    shown = set(re.findall(r"^\| `([\w-]+)` ([\d.]+)[,| ]", README, flags=re.MULTILINE))
    pins = dict(
        re.findall(r"^([\w-]+)==(\S+)$", (root / "constraints.txt").read_text(), re.MULTILINE)
    )
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extra = project["optional-dependencies"]["fidelity"]
    named = {re.match(r"[\w-]+", line)[0] for line in extra if "python_version" not in line}
    assert {(name, pins[name]) for name in named} == shown
    code = "".join(path.read_text() for path in (root / "tests" / "fidelity").glob("test_*.py"))
    for name in named:
        assert f'published("{name.replace("-", "_")}' in code
