"""What an optional library is called, and how it is had."""

import re
import shlex
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import softlab
from softlab import extras

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def name_of(requirement):
    return re.match(r"[\w-]+", requirement)[0]


def test_the_distribution_is_ours():
    assert PROJECT["name"] == extras.DISTRIBUTION != "softlab"
    assert metadata.version(extras.DISTRIBUTION) == softlab.__version__


def test_the_version_is_written_once():
    assert PROJECT["dynamic"] == ["version"]
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited[1] == softlab.__version__
    assert f"\n## {softlab.__version__} - " in (ROOT / "CHANGELOG.md").read_text()


def test_all_is_every_extra_that_softlab_itself_uses():
    tools = {"all", "coverage", "dev", "dist", "docs", "fidelity"}
    ours = tools | {"gpu"}  # 700 MB for nothing on a CPU
    (line,) = PROJECT["optional-dependencies"]["all"]
    named = set(re.fullmatch(r"softlab-attention\[(.*)\]", line)[1].split(","))
    assert named == set(PROJECT["optional-dependencies"]) - ours


@pytest.mark.parametrize("extra", ["dask", "models", "report", "laws"])
def test_the_command_installs_what_the_extra_says(extra):
    words = shlex.split(extras.command(extra))
    assert words[:4] == ["python", "-m", "pip", "install"]
    said = {name_of(line) for line in PROJECT["optional-dependencies"][extra]}
    assert {name_of(word) for word in words[4:]} == said
    assert all(re.search(r"[<>=]", word) for word in words[4:])


def test_a_missing_library_is_named_with_the_command():
    with pytest.raises(ModuleNotFoundError) as caught, extras.needed("report"):
        import a_library_that_nobody_has  # noqa: F401
    assert str(caught.value) == (
        f"a_library_that_nobody_has is not installed. Run: {extras.command('report')}"
    )


def test_a_folder_that_nobody_installed(monkeypatch):
    monkeypatch.setattr(extras, "DISTRIBUTION", "a-distribution-that-nobody-has")
    assert extras.command("dask") == "python -m pip install -e '.[dask]' in a clone of softlab"


def test_no_hint_names_the_other_project():
    texts = [ROOT / "README.md", ROOT / "Makefile", *(ROOT / "softlab").rglob("*.py")]
    for path in texts:
        assert not re.search(r"install [^\n]*\bsoftlab\[", path.read_text()), path
