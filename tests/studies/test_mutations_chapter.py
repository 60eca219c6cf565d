"""Every count of the chapter on planted faults, on a table small enough to count by hand."""

import pandas as pd

from studies.mutations.chapter import findings, scope, survivors, tables

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
    return pd.concat([found.assign(status="ok"), lost], ignore_index=True).assign(origin=None)


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
    alone = made(right=RIGHT[:0])
    assert scope(alone).startswith("6 mutants with 5 faults; 0 operators")
    assert len(findings(alone)) == 3
    right = made(MUTANTS[:0])
    assert scope(right).startswith("0 mutants with 0 faults; 2 operators")
    assert len(findings(right)) == 1
    assert list(tables(right)) == []
    failed = made().assign(status="failed")
    assert (scope(failed), findings(failed), list(tables(failed))) == ("", [], [])


PLANTED = [  # fault, kind, reason, origin, caught
    ("zeros beyond", "sizes", None, "tuned", True), ("one short", "sizes", None, "tuned", False),
    ("not to be seen", "dtype", "it is no fault", "tuned", False),
    ("a secret", "sizes", None, "held out", True), ("another", "dtype", None, "held out", True),
    ("a third", "dtype", None, "held out", False),
]  # fmt: skip
UNUSUAL = [("a module", 0, None), ("a lambda", 2, "mask, scale"), ("NumPy", 0, None)]


def planted():
    columns = ["fault", "base", "reason", "origin", "caught"]
    faults = pd.DataFrame(PLANTED, columns=columns).assign(law="mask")
    right = pd.DataFrame(UNUSUAL, columns=["base", "alarms", "law"]).assign(origin="unusual")
    more = pd.concat([faults, right]).assign(solver=False, seed=0, laws=9, status="ok")
    return pd.concat([made(), more], ignore_index=True)


def test_faults_by_a_stranger_have_an_interval_for_each_half():
    assert scope(planted()).endswith(
        " 6 faults by a stranger to the laws; 3 correct subjects in unusual style."
    )
    alone, found = findings(made()), findings(planted())
    assert found[1:3] == [
        # Clopper and Pearson: of 1 of 3 from 1 - (1 - 0.025)^(1/3) on; of 1 of 2 from
        # 1 - 0.975^(1/2); of 2 of 3 the mirror image of 1 of 3.
        "Of 3 faults by a stranger to the laws after which laws may be mended, 1 breaks a law, "
        "33.3 % (95 % 0.8 to 90.6); of the others, 1 cannot be seen from outside, and without them "
        "it is 1 breaks a law, 50.0 % (95 % 1.3 to 98.7).",
        "Of 3 faults by a stranger to the laws which are held out, 2 break a law, "
        "66.7 % (95 % 9.4 to 99.2).",
    ]
    assert found[4] == (
        "Of 3 correct subjects in unusual style 1 breaks a law (95 % 0.8 to 90.6 %): "
        "a lambda: mask, scale."
    )
    assert [found[0], found[3], *found[5:7]] == alone
    quiet = planted().assign(alarms=0)
    assert "style none break a law (95 % 0.0 to 70.8 %)." in findings(quiet)[4]


def test_what_is_held_out_is_counted_and_not_named():
    assert survivors(planted())["fault"].tolist()[2:] == ["one short", "not to be seen"]
    kinds, *rest = tables(planted())
    assert (kinds["header"], kinds["left"]) == (["kind", "tuned", "held out"], 1)
    assert kinds["rows"] == [["sizes", "1 of 2", "1 of 1"], ["dtype", "0 of 1", "1 of 2"]]
    assert rest == list(tables(made()))
    said = " ".join(findings(planted())) + str(list(tables(planted())))
    assert not any(name in said for name in ("a secret", "another", "a third"))


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
