"""Old names of modules import for one release, and say the new name."""

import importlib
import subprocess
import sys

import pytest

from softlab.moved import MOVED


@pytest.mark.parametrize("old", sorted(MOVED))
def test_an_old_name_is_the_new_module_and_warns(old, monkeypatch):
    monkeypatch.delitem(sys.modules, old, raising=False)
    with pytest.warns(DeprecationWarning, match=f"{old} is now {MOVED[old]}"):
        found = importlib.import_module(old)
    assert found is importlib.import_module(MOVED[old])
    assert found.__name__ == MOVED[old]


def test_the_warning_names_the_line_that_imports(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("import softlab\n\nfrom softlab import checks\n")
    ended = subprocess.run(
        [sys.executable, "-W", "always", str(path)], capture_output=True, text=True, check=True
    )
    assert f"{path}:3: DeprecationWarning: softlab.checks is now softlab.validation" in ended.stderr


def test_what_never_was_is_still_no_module():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("softlab.nothing")


def test_drawing_is_found_under_its_old_name():
    from softlab import figures
    from softlab.report import drawing

    with pytest.warns(DeprecationWarning, match="softlab.report.drawing.draw"):
        assert figures.draw is drawing.draw
    with pytest.raises(AttributeError, match="nothing"):
        _ = figures.nothing
