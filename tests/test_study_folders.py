"""A study's folder anywhere on disk: found, run by one command, reported by its own chapter."""

import json
import sys

import pytest
from command_line import call

from softlab import forecast, study, study_folders
from softlab.report import chapter as chapters

COLUMNS = 'HEIGHT = "height"\n'
STUDY = """
from softlab.study import Study

from .columns import HEIGHT


def measure(x, *, dtype, device):
    return {HEIGHT: 2 * x}


STUDY = Study("mine", "How high?", {"x": [1, 2]}, measure)
"""
CHAPTER = """
from .columns import HEIGHT


def scope(table):
    return ""


def findings(table):
    return [f"The greatest height is {table[HEIGHT].max()}."]


def tables(table):
    return iter(())
"""


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "mine"
    place.mkdir()
    (place / "columns.py").write_text(COLUMNS)
    (place / "study.py").write_text(STUDY)
    (place / "chapter.py").write_text(CHAPTER)
    (place / "method.typ").write_text("Heights are doubled.\n")
    return place


def test_a_folder_of_a_users_is_run_and_reported_by_its_own_chapter(folder, tmp_path):
    pytest.importorskip("typst")
    out = tmp_path / "out"
    said = call("run", folder, "--out", out)
    assert said.exit_code == 0, said.stderr
    assert "The greatest height is 4." in said.output
    assert json.loads((out / "mine/meta.json").read_text())["chapter_folder"] == str(folder)
    assert call("report", out).exit_code == 0
    assert (out / "mine/findings.txt").read_text().endswith("The greatest height is 4.\n")
    assert "Heights are doubled" in (out / "report.html").read_text()

    folder.rename(tmp_path / "elsewhere")
    gone = call("report", out)
    assert gone.exit_code == 2
    assert "put it back, or run the study again" in " ".join(gone.stderr.split())


def test_words_change_no_row_and_columns_change_all(folder, tmp_path):
    def reused():
        (found,) = study.defined_in(folder)
        return study.run(found, tmp_path / "out").reused

    assert reused() == 0
    (folder / "chapter.py").write_text(CHAPTER.replace("greatest", "largest"))
    assert reused() == 2
    (folder / "columns.py").write_text('HEIGHT = "size"\n')
    assert reused() == 0
    assert "size" in (tmp_path / "out/mine/table.csv").read_text()


def test_a_workers_rows_are_those_of_this_process(folder, tmp_path):
    assert call("run", folder, "--out", tmp_path / "a").exit_code == 0
    assert call("run", folder, "--out", tmp_path / "b", "--workers", 1).exit_code == 0
    rows = [(tmp_path / x / "mine/table.csv").read_text().split("\n") for x in "ab"]
    assert [line.split(",")[:2] for line in rows[0]] == [line.split(",")[:2] for line in rows[1]]


def test_a_renamed_column_is_an_error_in_the_words(folder, tmp_path):
    call("run", folder, "--out", tmp_path / "out")
    (folder / "columns.py").write_text('WIDTH = "width"\n')
    said = call("report", tmp_path / "out")
    assert said.exit_code == 2
    assert "cannot import name 'HEIGHT'" in said.stderr


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_a_run_says_what_its_chapter_cannot_say(folder, words, tmp_path):
    lost = "from softlab.report.rows import finished\n" + CHAPTER
    reads = 'table = finished(table, {"status", "heigth"})'
    lost = lost.replace("    return [f", f"    {reads}\n    return [f")
    (folder / "chapter.py").write_text(lost)
    said = call("run", folder, "--out", tmp_path / "out", *words)
    assert said.exit_code == 2
    assert "cannot say its findings: ColumnError: the table of the study mine has" in said.stdout
    assert "Did you mean 'height'?" in said.stdout
    assert (tmp_path / "out/mine/table.csv").exists()


@pytest.mark.parametrize(
    ("kept", "says"),
    [
        (["chapter.py"], "holds no study.py beside its chapter.py"),
        ([], "holds no study.py"),
    ],
)
def test_a_folder_without_a_study_is_refused(folder, kept, says, tmp_path):
    for path in folder.iterdir():
        if path.name not in kept:
            path.unlink()
    said = call("run", folder, "--out", tmp_path / "out")
    assert said.exit_code == 2
    assert says in " ".join(said.stderr.split())
    assert not (tmp_path / "out").exists()


def test_two_studies_of_one_name_are_refused(folder, tmp_path):
    (tmp_path / "other.py").write_text(STUDY.replace("from .columns import HEIGHT", "HEIGHT = 'h'"))
    said = call("run", folder, tmp_path / "other.py", "--out", tmp_path / "out")
    assert said.exit_code == 2
    assert "share a name" in said.stderr


def test_softlabs_own_are_found_by_name_by_folder_and_by_their_old_file(monkeypatch):
    own = study_folders.built_in()
    assert {"rank", "frontier", "peers"} <= own.keys()
    file = own["rank"] / "study.py"
    assert study_folders.study_file("rank") == file
    assert study_folders.study_file(own["rank"]) == file
    assert study_folders.study_file(own["rank"].with_suffix(".py")) == file
    with pytest.raises(ValueError, match=r"no study of that name\. Did you mean 'frontier'"):
        study_folders.study_file("frontiers")


def test_an_installed_package_has_its_own_and_looks_at_no_folder_beside_it(monkeypatch, tmp_path):
    for place in ("softlab/studies/mine", "studies/theirs"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "study.py").touch()
    monkeypatch.setattr(study_folders, "_PACKAGE", tmp_path / "softlab")
    assert study_folders.built_in() == {"mine": tmp_path / "softlab/studies/mine"}
    (tmp_path / "softlab/studies/mine/study.py").unlink()
    assert study_folders.built_in() == {"theirs": tmp_path / "studies/theirs"}  # as in a clone


def test_all_is_what_needs_no_download_and_needs_are_asked_for(monkeypatch, tmp_path):
    asked = []

    def ran(one, out, **_):
        asked.append(one.name)
        return study.Outcome(tmp_path, 0, 0, 0, 1)

    monkeypatch.setattr(study, "run", ran)
    monkeypatch.setattr(forecast, "recorded", dict)  # whose probes would be measured
    assert call("run", "--all", "--out", tmp_path).exit_code == 0
    assert {"rank", "mutations", "training", "spoiling"} <= set(asked)
    assert not {"in_model", "classification", "peers"} & set(asked)
    asked.clear()
    call("run", "--all", "--needs", "images", "--out", tmp_path)
    assert {*asked} == {
        *("classification", "classification_cost", "stability", "transfer", "segmentation")
    }
    for words in (["--needs", "images"], ["--all", "--needs", "clouds"], []):
        said = call("run", *words, "--out", tmp_path)
        assert said.exit_code == 2
    assert "softlab's own are" in said.stderr


def test_chapters_are_loaded_without_torch(folder):
    made = study_folders.chapter_module(folder)
    assert study_folders.chapter_module(folder) is made
    assert made.__name__ in sys.modules
    assert chapters.named("mine", str(folder)) is made
