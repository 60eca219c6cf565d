"""The laws see planted faults, and nothing where there is none; the chapter says so in numbers."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from softlab.engine.loading import load
from softlab.report.folder import read
from softlab.study import run
from studies.mutations.chapter import findings, scope, survivors, tables

MUTATIONS = load(Path(__file__).parents[2] / "studies" / "mutations")


def test_there_are_mutants_of_every_kind():
    faults = {one.fault for one in MUTATIONS.MUTANTS}
    assert len(MUTATIONS.MUTANTS) >= 60
    for name in ("zeros", "the mean of v", "one later token", "sums in float16", "a print"):
        assert name in faults
    assert len({(one.fault, one.base) for one in MUTATIONS.MUTANTS}) == len(MUTATIONS.MUTANTS)
    assert len(MUTATIONS.CATALOGUE) > 50
    for one in MUTATIONS.STUDY.axes["specimen"]:
        assert pickle.loads(pickle.dumps(one)) is one


# One in four here; all of them, and the catalogue at two seeds, is the study.
@pytest.mark.parametrize("one", MUTATIONS.MUTANTS[::4], ids=lambda x: f"{x.fault}-{x.base}")
def test_a_mutant_breaks_a_law_or_has_a_reason(one):
    row = MUTATIONS.measure(one, 0, dtype=None, device=None)
    assert row["caught"] or one.reason
    if row["caught"]:
        assert row["law"]
        assert row["gap"]


def test_planted_faults_and_correct_subjects_are_asked_as_a_check_asks():
    seen = next(one for one in MUTATIONS.PLANTED if one.fault == "zeros beyond 64 keys")
    row = MUTATIONS.measure(seen, 0, dtype=None, device=None)
    assert (row["base"], row["caught"], row["solver"]) == ("sizes", True, False)
    assert row["origin"] in ("tuned", "held out")
    module = next(one for one in MUTATIONS.UNUSUAL if one.base == "linalg.inv")
    row = MUTATIONS.measure(module, 0, dtype=None, device=None)
    assert (row["fault"], row["origin"], row["alarms"], row["solver"]) == ("", "unusual", 0, True)
    assert MUTATIONS.keep(seen, 0)
    assert not MUTATIONS.keep(seen, 1)
    assert not MUTATIONS.keep(module, 1)


def test_reasons_are_given_of_planted_faults_alone():
    assert set(MUTATIONS.UNSEEN) <= {one.fault for one in MUTATIONS.PLANTED}


def test_what_a_planted_fault_does_to_all_is_undone():
    careless = next(one for one in MUTATIONS.PLANTED if one.fault == "the default dtype is changed")
    MUTATIONS.measure(careless, 0, dtype=None, device=None)
    assert torch.get_default_dtype() == torch.float32


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    chosen = [MUTATIONS.MUTANTS[0], MUTATIONS.CATALOGUE[-1]]
    axes = {"specimen": chosen, "seed": (0, 1)}
    study = replace(MUTATIONS.STUDY, axes=axes, quick={})
    outcome = run(study, tmp_path_factory.mktemp("reports"), threads=1)
    assert (outcome.failed, outcome.rows) == (0, 3)
    return read(outcome.folder)[0]


def test_the_chapter_counts_what_was_caught(table):
    assert "1 mutants with 1 faults" in scope(table)
    said = findings(table)
    assert said[0] == "Of 1 mutants 1 break a law, 100.0 %: 1 of 1 operators."
    assert said[1].endswith("2 seeds) and broke none.")
    assert [len(made["rows"]) for made in tables(table)] == [1, 1]


def test_the_chapter_does_with_mutants_or_the_catalogue_alone(table):
    mutants = table[table["fault"].ne("")]
    right = table[table["fault"].eq("")]
    assert len(findings(mutants)) == len(findings(right)) == 1
    assert findings(right)[0].endswith("broke none.")


def test_the_chapter_names_survivors_and_alarms(table):
    missed = table.assign(caught=False, reason="it is the same")
    assert len(survivors(missed)) == 1
    said = findings(missed)
    assert "0 break a law, 0.0 %" in said[0]
    assert said[2].startswith("Survivor: zeros, of Softmax")
    assert said[2].endswith("it is the same.")
    loud = table.assign(alarms=1, law="causal")
    assert "and broke 2: " in findings(loud)[1]
    assert "causal (seed 1)" in findings(loud)[1]
