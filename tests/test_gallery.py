"""The scripts of the gallery run, and what they assert holds."""

import runpy
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[1] / "docs" / "gallery").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_holds_what_it_asserts(script):
    runpy.run_path(str(script))


def test_every_script_is_shown():
    shown = (SCRIPTS[0].parent / "index.md").read_text()
    assert len(SCRIPTS) >= 4
    for script in SCRIPTS:
        assert f"{{literalinclude}} {script.name}" in shown
