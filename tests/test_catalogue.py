"""Operators of other installed packages: listed, measured where their laws hold, else refused."""

import shutil
import textwrap
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from command_line import call

from softlab import catalogue, laws
from softlab.cli import console
from softlab.engine.loading import load
from softlab.inputs import Smooth
from softlab.operators import Soft
from softlab.study import run

STUDIES = Path(__file__).parents[1] / "studies"

MINE = '''
"""An operator of a package that softlab knows nothing of."""

from softlab.core import Knob, value
from softlab.operators import ColumnSample


@value
class Sampled(ColumnSample):
    """out = that of keys drawn uniformly, once more."""

    family = "mine"


class Doubled(Sampled):
    """out = twice that."""

    def __call__(self, q, k, v, key_mask=None):
        return 2 * super().__call__(q, k, v, key_mask)


class Plain:
    """No dataclass."""


class Soft(ColumnSample):
    """Takes the name of another."""
'''


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A distribution as an installer leaves it: modules, and metadata with entry points."""
    site = tmp_path / "site"
    (site / "mine-0.3.dist-info").mkdir(parents=True)
    (site / "mine_softlab.py").write_text(textwrap.dedent(MINE))
    (site / "mine_broken.py").write_text("1 / 0")
    (site / "mine-0.3.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: mine\nVersion: 0.3\n"
    )
    (site / "mine-0.3.dist-info" / "entry_points.txt").write_text(
        textwrap.dedent("""
        [softlab.operators]
        Sampled = mine_softlab:Sampled
        Doubled = mine_softlab:Doubled
        Plain = mine_softlab:Plain
        Soft = mine_softlab:Soft
        Broken = mine_broken:Operator
        Absent = mine_softlab:Absent

        [softlab.solvers]
        Newton = softlab.pinv:NewtonRaphson
        """)
    )
    monkeypatch.syspath_prepend(site)


def test_the_list_shows_them_with_their_distribution_and_says_what_is_left_out(
    installed, monkeypatch
):
    monkeypatch.setattr(console.out, "width", 250)  # in a narrower one the words of two cells mix
    result = call("list")
    assert result.exit_code == 0, result.output
    shown = " ".join(result.stdout.split())
    assert "Sampled (mine 0.3) out = that of keys drawn uniformly, once more." in shown
    assert "Newton (mine 0.3)" in shown
    assert "Broken of mine 0.3 is left out: ZeroDivisionError: division by zero. Mend" in shown
    assert "Absent of mine 0.3 is left out: AttributeError" in shown
    assert "Plain of mine 0.3 is left out: <class 'mine_softlab.Plain'> is no class of" in shown
    assert "Soft of mine 0.3 is left out: softlab has a part of that name" in shown
    assert "Nystromformer" in shown  # nothing is lost


def test_the_list_shows_what_each_field_of_a_part_may_be():
    shown = " ".join(call("list", "Performer").stdout.split())
    assert "with E[phi(q) phi(k)^T] = exp(scores)" in shown
    assert "features 1 to 1048576 64" in shown
    assert "estimator one of positive, hyperbolic, optimal 'positive'" in shown
    assert "scale 1e-30 to 1e+18 or None None" in shown
    assert "rank an integer of at least 1" in " ".join(call("list", "Soft").stdout.split())
    wrong = call("list", "Performr")
    assert wrong.exit_code == 2
    assert "Did you mean 'Performer'?" in wrong.stderr


def test_without_other_distributions_there_are_softlabs_own():
    own = {part.name for part in catalogue.operators()}
    assert catalogue.installed("operators") == ([], [])
    assert "Soft" in own
    assert call("list").exit_code == 0


def test_studies_measure_them_and_refuse_one_whose_law_fails(installed, tmp_path, monkeypatch):
    asked = []

    def some(op):
        asked.append(op)
        return [law for law in laws.suite(op) if law.name == "row-stochastic"]

    monkeypatch.setattr(catalogue, "suite", some)
    catalogue._broken.cache_clear()
    # Copies: a study is loaded once a process, and others want it as it is without the package.
    for name in ("frontier", "growth"):
        shutil.copytree(STUDIES / name, tmp_path / name)
    frontier = load(tmp_path / "frontier")
    axes = {
        "input": [Smooth(64, 8, length=4.0)],
        "seed": [0],
        "method": ["Sampled", "Doubled", "ColumnSample"],
        "budget": [0.5],
    }
    outcome = run(replace(frontier.STUDY, axes=axes, quick={}), tmp_path / "out", threads=1)
    table = pd.read_csv(outcome.folder / "table.csv").set_index("method")
    assert outcome.failed == 1
    assert table.loc["Sampled", "family"] == "mine"
    assert table.loc["Sampled", "output_error"] == table.loc["ColumnSample", "output_error"]
    said = table.loc["Doubled", "error"]
    assert "Doubled of mine 0.3 is left out, for a law fails" in said
    assert "'row-stochastic'" in said
    assert [type(op).__name__ for op in asked] == ["Sampled", "Doubled"]  # once each, and only they
    growth = load(tmp_path / "growth")
    assert {"Sampled", "Doubled", "Soft"} <= {part.name for part in growth.PARTS.values()}
    assert growth.PARTS[Soft(64)].distribution == ""


def test_a_law_that_fails_is_named(installed):
    parts = {part.name: part for part in catalogue.operators()}
    catalogue._broken.cache_clear()
    with pytest.raises(ValueError, match=r"Doubled of mine 0\.3 is left out, .* breaks '"):
        catalogue.require_laws(parts["Doubled"])
