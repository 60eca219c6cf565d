"""The mutation tool finds the changes that matter and tells noticed from missed ones."""

import sys

import pytest

from benchmarks import mutants

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a process is forked per mutant")

SOURCE = '''"""A docstring with 3 and <."""

LIMIT = 0.5


def shares(x, y: int = 3) -> float:
    """Return 1."""
    kept = x[x > LIMIT]
    if not len(kept):
        raise ValueError("less than 2")
    return kept.median() * y + 1
'''


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    (tmp_path / "studies" / "subject").mkdir(parents=True)
    (tmp_path / "tests").mkdir()
    path = tmp_path / "studies" / "subject" / "chapter.py"
    path.write_text(SOURCE)
    return path


def test_the_changes_of_a_small_file(place):
    found = {mutant.context() for mutant in mutants.Finder(place).found}
    line = "return kept.median() * y + 1"
    assert found == {
        ("LIMIT = 0.5", "LIMIT = 0.75"),
        ("def shares(x, y: int = 3) -> float:", "def shares(x, y: int = 4) -> float:"),
        ("kept = x[x > LIMIT]", "kept = x[x >= LIMIT]"),
        ("kept = x[x > LIMIT]", "kept = x[x < LIMIT]"),
        ("if not len(kept):", "if (len(kept)):"),
        (line, "return kept.mean() * y + 1"),
        (line, "return kept.max() * y + 1"),
        (line, "return kept.median() / y + 1"),
        (line, "return kept.median() * y - 1"),
        (line, "return kept.median() * y + 2"),
    }


def test_an_equality_becomes_what_somebody_could_have_meant(place):
    place.with_name("columns.py").write_text('KIND, LEVEL = "k", 3.0\n')
    source = 'WORD, NUMBER = "a", 2.0\na = x == WORD\nb = x == "b"\nc = x == 1\nd = x == NUMBER\n'
    source += "from .columns import KIND, LEVEL\ne = x == KIND\nf = x == LEVEL\n"
    place.write_text(source)
    found = [mutant for mutant in mutants.Finder(place).found if mutant.old == "=="]
    assert [(mutant.line, mutant.new) for mutant in found] == [
        (2, "!="), (3, "!="), (4, "!="), (4, ">="), (5, "!="), (5, "<="), (7, "!="), (8, "!="),
        (8, "<="),
    ]  # fmt: skip


def test_what_a_protocol_asks_for_and_strictness_are_not_changed(place):
    place.write_text("def f(x=True):\n    ...\n\n\na = zip(b, c, strict=True)\nd = f(x=False)\n")
    assert [mutant.old for mutant in mutants.Finder(place).found] == ["False"]


def test_how_a_figure_looks_is_not_changed(place):
    place.write_text(
        'a = {"axes.linewidth": 0.5, "lw": 1, "x": 3}\nb = ("-", (0, (6, 2)))\nc = f(y=2, lw=4)\n'
    )
    assert [mutant.old for mutant in mutants.Finder(place).found] == ["3", "2"]


def test_guards_are_the_quickest_tests_of_the_changed_lines(place):
    lines = {8: {"slow", "quick"}, 11: {"other"}}
    seconds = {"slow": 20.0, "quick": 1.0, "other": 2.0}
    found = {mutant.old: mutant for mutant in mutants.Finder(place).found}
    assert mutants.guards(found[">"], lines, seconds) == ["quick", "slow"]
    assert mutants.guards(found["*"], lines, seconds) == ["other"]
    constant = found["0.5"]  # runs at import: whatever enters the module can see it, users first
    assert mutants.guards(constant, lines, seconds) == ["quick", "slow", "other"]


def test_a_chapter_is_guarded_by_files_that_import_it(place):
    tests = place.parents[2] / "tests"
    (tests / "studies").mkdir()
    (tests / "studies" / "test_a.py").write_text("from studies.subject.chapter import findings")
    (tests / "test_b.py").write_text("subject = chapter = 1")
    (tests / "test_c.py").write_text("from studies.other import chapter")
    assert mutants.tests_of([place]) == ["tests/studies/test_a.py"]


def test_shares_leave_accepted_mutants_out():
    rows = [{"file": "a", "verdict": word} for word in ("noticed", "hung", "survived", "accepted")]
    rows += [{"file": "b", "verdict": word} for word in ("untested", "noticed")]
    assert list(mutants.summary(rows)) == [("a", 3, 2), ("b", 2, 1), ("all", 5, 3)]


def test_every_accepted_change_is_of_a_line_that_is_there_and_has_a_reason():
    for file, old, new in mutants._accepted():
        lines = [line.strip() for line in (mutants.ROOT / file).read_text().splitlines()]
        assert old in lines, f"{file} has no line {old}: take it out of mutants.toml"
        assert old != new
    assert all(mutants._accepted().values())


def test_an_unknown_module_is_named(place):
    with pytest.raises(ValueError, match="there is no module softlab/nothing"):
        mutants.files(["nothing"])


def test_a_test_file_that_cannot_be_read_is_said_with_the_command_that_shows_it(place):
    test = place.parents[2] / "tests" / "test_subject.py"
    test.write_text("raise OSError\n")
    with pytest.raises(ValueError, match=r"no test passed: python -m pytest .*py"):
        mutants.covered([place], [str(test)])
