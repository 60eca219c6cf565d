"""A column that is renamed is an error, never a shorter chapter."""

import functools
import importlib
import inspect
import re
from itertools import product

import pandas as pd
import pytest

from softlab.report.rows import ColumnError, finished
from softlab.study_folders import built_in, chapters

OF = {
    "operators": lambda tests: [
        tests.table(row_mass=0.5, core_status="DIVERGED", certified_error=2.5)
    ],
    "classification": lambda tests: [tests.ablated(), tests.costs()],
    "convergence": lambda tests: [tests.published(), tests.limits(), tests.spoiling()],
    "frontier": lambda tests: [tests.table().query("budget in (0.125, 1)")],
    "gradients": lambda tests: [tests.spreads(tests.WIDE, tests.WRONG), tests.residuals()],
    "in_model": lambda tests: [tests.swaps(), tests.depths(), tests.costs()],
    "mutations": lambda tests: [tests.planted()],
    "precision": lambda tests: [tests.cores(), tests.near_and_far()],
    "training": lambda tests: [tests.made(tests.LESS)],
}
"""The small tables of a chapter; of the others what ``table`` or ``made`` makes."""
KINDS = ("epoch", "layer", "part", "step")
"""Axes by which a chapter tells the tables of two studies apart: without one another is missing."""


def chapter_of(name):
    where = f"studies.{name}" if name in built_in() else f"softlab.report.{name}"
    return importlib.import_module(f"{where}.chapter")


def small(name):
    """The small tables that the tests of a chapter are made on."""
    tests = importlib.import_module(f"{'studies.' * (name in built_in())}test_{name}_chapter")
    plain = getattr(tests, "table", None) or tests.made
    for table in OF[name](tests) if name in OF else [plain()]:
        known = table["source"].unique()[:2] if "source" in table else ()
        yield table[table["source"].isin(known)] if len(table) > 200 else table


def functions(chapter):
    """The public functions of a table: those of every chapter, and makers of rows to draw."""
    for name, function in vars(chapter).items():
        own = inspect.isfunction(function) and function.__module__ == chapter.__name__
        takes = list(inspect.signature(function).parameters) if own else []
        if takes == ["table"] and not name.startswith("_"):
            yield function


def said(function, table):
    """What it says, comparable; of rows to draw how many, since they hold what is not read."""
    try:
        made = function(table)
        made = [*made, len(made)] if isinstance(made, pd.DataFrame) else made
        return made if isinstance(made, str) else repr(list(made))
    except KeyError as error:
        return error


def renamings(name):
    """Every column that a chapter may read, and what each function says with and without it."""
    chapter = chapter_of(name)
    mentioned = set(re.findall(r"[\w.]+", inspect.getsource(chapter)))
    for table, function in product(small(name), functions(chapter)):
        whole = functools.cache(functools.partial(said, function, table))
        for column in mentioned & set(table) - {"status"}:
            made = said(function, table.rename(columns={column: f"{column}_renamed"}))
            yield function.__name__, column, made, whole


@pytest.mark.parametrize("name", chapters())
def test_a_renamed_column_is_an_error_or_is_not_read(name):
    optional, shortens = getattr(chapter_of(name), "OPTIONAL", {}), set()
    assert all(optional.values())
    for function, column, made, whole in renamings(name):
        if isinstance(made, KeyError):
            assert column in str(made) or column in KINDS
        elif made.replace(f"{column}_renamed", column) != whole():
            assert column in optional, f"{function} goes on without {column}: {made}"
            shortens.add(column)
    assert shortens == set(optional)


def test_the_error_names_the_study_the_column_and_the_nearest():
    table = pd.DataFrame({"status": ["ok"], "error": [1.0]})
    table.attrs["name"] = "mine"
    with pytest.raises(ColumnError) as caught:
        finished(table, {"status", "errors"})
    assert str(caught.value) == (
        "the table of the study mine has no column 'errors', which its chapter reads. Did you mean "
        "'error'? Run the study again with the softlab that reports on it."
    )
    lost = finished(table.assign(status="failed"), {"status", "errors"})  # it has its axes alone
    assert lost.empty
    assert "errors" in lost
