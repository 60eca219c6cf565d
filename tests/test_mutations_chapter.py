"""Every count of the chapter on planted faults, on a table small enough to count by hand."""

import pandas as pd

from softlab.chapters.mutations import findings, scope, survivors, tables

MUTANTS = [  # solver, fault, base, reason, caught, law
    (False, "zeros", "Soft", None, True, "scale"),
    (False, "zeros", "Local", None, True, "mask"),
    (True, "no step", "Newton", "it is the same", False, None),
    (False, "a later token", "Soft", None, True, "causal"),
    (True, "half", "Newton", None, True, "mask"),
    (False, "a print", "Taylor", None, False, None),
]
RIGHT = [  # seed, base, laws, alarms, law
    (0, "Soft", 10, 0, None), (1, "Soft", 10, 0, None), (0, "Newton", 7, 0, None),
]  # fmt: skip
LOUD = [(1, "Newton", 7, 2, "order"), (2, "Local", 5, 1, "mask")]


def made(mutants=MUTANTS, right=RIGHT):
    first = pd.DataFrame(mutants, columns=["solver", "fault", "base", "reason", "caught", "law"])
    second = pd.DataFrame(right, columns=["seed", "base", "laws", "alarms", "law"])
    found = pd.concat([first.assign(seed=0, laws=0), second.assign(solver=False, fault=None)])
    lost = found.iloc[[0, -1]].assign(status="failed", alarms=9, fault=["lost", None])
    return pd.concat([found.assign(status="ok"), lost], ignore_index=True)


def test_mutants_and_right_ones_are_counted():
    assert scope(made()) == (
        "6 mutants with 5 faults; 2 operators and solvers of the catalogue at 2 seeds."
    )
    assert findings(made()) == [
        "Of 6 mutants 4 break a law, 66.7 %: 3 of 4 operators and 1 of 2 solvers.",
        "The catalogue was asked 27 times for a law (2 operators and solvers, 2 seeds) and broke "
        "none.",
        "Survivor: no step, of Newton: it is the same.",
        "Survivor: a print, of Taylor: no reason is known.",
    ]
    assert survivors(made())["fault"].tolist() == ["no step", "a print"]
    assert findings(made(right=RIGHT + LOUD))[1] == (
        "The catalogue was asked 39 times for a law (3 operators and solvers, 3 seeds) and broke 3:"
        " Newton: order (seed 1) and Local: mask (seed 2)."
    )


def test_mutants_or_the_catalogue_alone_have_their_say():
    alone = made(right=RIGHT[:0]).drop(columns="alarms")
    assert scope(alone).startswith("6 mutants with 5 faults; 0 operators")
    assert len(findings(alone)) == 3
    right = made(MUTANTS[:0]).drop(columns="caught")
    assert scope(right).startswith("0 mutants with 0 faults; 2 operators")
    assert len(findings(right)) == 1
    assert list(tables(right)) == []
    failed = made().assign(status="failed")
    assert (scope(failed), findings(failed), list(tables(failed))) == ("", [], [])


def test_tables_have_every_mutant_and_count_the_laws_that_broke_first():
    operators, solvers, laws = tables(made())
    assert operators["rows"] == [
        ["zeros", "Soft", "scale"], ["", "Local", "mask"], ["a later token", "Soft", "causal"],
        ["a print", "Taylor", "survives"],
    ]  # fmt: skip
    assert operators["caption"].startswith("Mutants of operators: ")
    assert solvers["rows"] == [["no step", "Newton", "survives"], ["half", "Newton", "mask"]]
    assert solvers["caption"].startswith("Mutants of solvers: ")
    assert solvers["left"] == operators["left"] == 2
    assert laws["rows"] == [["mask", "2"], ["scale", "1"], ["causal", "1"]]
    assert (laws["header"], laws["left"]) == (["law", "mutants"], 1)
