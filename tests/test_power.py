"""Faults planted into a subject: they change what they say, and the laws see them."""

import dataclasses

import pytest
import torch
from typer.testing import CliRunner

from softlab import laws
from softlab.cli import app
from softlab.laws import faults
from softlab.laws.faults import OPERATORS, SOLVERS, changes, planted, seen
from softlab.laws.gradient_consistency import SINGLE_GRADIENT
from softlab.operators import Nystromformer, Soft, Softmax, Uniform
from softlab.pinv import SVD, NewtonRaphson

BY_NAME = {fault.name: fault for fault in (*OPERATORS, *SOLVERS)}


def attend(q, k, v):
    return torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1) @ v


def test_no_two_faults_have_one_name():
    for every in (OPERATORS, SOLVERS):
        assert len({fault.name for fault in every}) == len(every)


@pytest.mark.parametrize("subject", [Softmax(causal=True), Nystromformer(4), NewtonRaphson(24)])
def test_what_is_planted_claims_and_is_replaced_as_its_subject(subject):
    spoilt = planted(subject, faults.zeros)
    assert isinstance(spoilt, type(subject))
    assert spoilt.traits == subject.traits
    assert repr(spoilt) == repr(subject)
    again = dataclasses.replace(spoilt)
    x = torch.eye(4, dtype=torch.float64) + 0.1
    tensors = (x,) if isinstance(subject, NewtonRaphson) else (x, x, x)
    assert not again(*tensors).any()
    assert subject(*tensors).any()


def test_an_object_that_is_no_dataclass_is_planted_into_a_copy():
    class Mine:
        traits, target = Softmax().traits, Softmax()

        def __init__(self):
            self.factor = 2.0

        def cost(self, dims):
            return Softmax().cost(dims)

        def __call__(self, q, k, v, key_mask=None):
            return self.factor * Softmax()(q, k, v, key_mask)

    mine, x = Mine(), torch.eye(3)
    spoilt = planted(mine, faults.output(lambda out: out + 1))
    assert torch.equal(spoilt(x, x, x), mine(x, x, x) + 1)
    assert type(mine).__call__ is Mine.__call__


@pytest.mark.parametrize("subject", [Softmax(), laws.adapted(attend), SVD()], ids=["op", "f", "a"])
def test_a_fault_that_shows_changes_a_call(subject):
    assert not changes(subject, planted(subject, faults.as_it_is))
    refuses = not isinstance(subject, laws.adapters.Plain)  # NaN, of which none is then hidden
    for fault in faults.faults(subject):
        if fault.shows:
            none = refuses and fault.name == "NaN replaced by zero"
            assert changes(subject, fault.plant(subject)) != none, fault.name


def test_a_fault_that_changes_nothing_is_none():
    found = seen(Uniform(), BY_NAME["scores times 1.1"], ())
    assert found.verdict == "does not apply"
    found = seen(Uniform(), BY_NAME["values off by one"], ())
    assert (found.verdict, found.detail) == ("fails", "no law sees it")
    # A side effect is one in every subject.
    assert seen(Uniform(), BY_NAME["a print"], ()).verdict == "fails"


def test_the_process_is_afterwards_as_it_was():
    state, dtype = torch.get_rng_state(), torch.get_default_dtype()
    suite = [law for law in laws.OPERATOR_LAWS if law.name == "deterministic"]
    for name in ("another default dtype", "the global generator seeded"):
        seen(Softmax(), BY_NAME[name], suite, examples=1)
    assert torch.get_default_dtype() == dtype
    assert torch.equal(torch.get_rng_state(), state)


def test_a_state_begins_anew_in_each_subject():
    fault, x = BY_NAME["the first result of each shape kept"], torch.eye(3)
    one, other = fault.plant(Softmax()), fault.plant(Softmax())
    one(x, x, x)
    assert torch.equal(other(2 * x, x, x), Softmax()(2 * x, x, x))


def test_the_laws_that_see_a_fault_are_named():
    suite = [law for law in laws.OPERATOR_LAWS if law.name in ("linear in v", "views", "answers")]
    first = seen(Softmax(), BY_NAME["zeros"], suite)
    assert (first.verdict, first.detail) == ("holds", "answers")
    suite = [law for law in laws.OPERATOR_LAWS if law.name in ("deterministic", "silent")]
    every = seen(Softmax(), BY_NAME["noise of the global generator"], suite, thorough=True)
    assert every.detail == "deterministic"


@pytest.mark.parametrize(
    ("subject", "fault", "law"),
    [
        (
            Soft(rank=8),
            "half of the gradient in float32",
            SINGLE_GRADIENT,
        ),
        (Soft(rank=8), "scores unscaled beyond a width of 64", laws.limits.EXACT_AT),
        (Soft(rank=8), "scores unscaled beyond a width of 64", laws.dependence.READS),
    ],
)
def test_what_power_found_missing_is_seen(subject, fault, law):
    spoilt = BY_NAME[fault].plant(subject)
    assert laws.outcome(spoilt, law, simplest=False).verdict == "fails"
    assert laws.outcome(subject, law, simplest=False).verdict == "holds"


def test_a_subject_that_breaks_a_law_itself_has_that_law_left_out(monkeypatch):
    few = [x for x in laws.SOLVER_LAWS if x.name in ("adjoint", "shape, dtype and trace")]
    monkeypatch.setattr(laws, "SOLVER_LAWS", tuple(few))
    wrong = planted(SVD(), BY_NAME["one triangle for both"].make())
    found = {one.law: one for one in laws.power(wrong, examples=2)}
    assert "adjoint" not in "".join(one.detail for one in found.values())
    assert found["a result transposed"].detail == "no law sees it"
    assert found["a print"].detail == "shape, dtype and trace"


def test_the_command_plants_faults_in_a_process_of_its_own_which_a_subject_may_end(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import os\nimport torch\n\n\ndef attend(q, k, v):\n"
        "    if bool((q == 0).all()):\n        os._exit(3)\n"
        "    return torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1) @ v\n"
    )
    words = ["check", f"{tmp_path / 'mine.py'}:attend", "--power", "--examples", "1"]
    words += ["--only", "answers", "--only", "deterministic", "--only", "infinite temperature"]
    done = CliRunner().invoke(app, words)
    assert "infinite temperature: the subject breaks it: ended the process, code 3" in done.output
    assert "seen: zeros, by answers" in done.output
    assert "seen: noise of the global generator, by deterministic" in done.output
    assert "not seen: half of the gradient" in done.output
    assert "mask" not in done.output  # it takes none
    assert done.exit_code == 1


def test_a_law_that_is_expected_to_fail_must():
    wrong = planted(Softmax(), BY_NAME["magnitudes of the output"].make())
    reason = {"linear in v": "magnitudes are no sums"}
    with pytest.raises(laws.BrokenLawError, match="linear in v"):
        laws.check(wrong, only="linear in v")
    laws.check(wrong, only="linear in v", expected=reason)
    (found,) = laws.examine(wrong, only="linear in v", expected=reason)
    assert (found.verdict, found.detail[:22]) == ("fails as expected", "magnitudes are no sums")
    with pytest.raises(laws.BrokenLawError, match=r"expected to fail \(magnitudes.*holds"):
        laws.check(Softmax(), only="linear in v", expected=reason)
    (found,) = laws.examine(Softmax(), only="linear in v", expected=reason)
    assert found.verdict == "fails"
    with pytest.raises(ValueError, match=r"there is no law 'lineal in v'.*Did you mean"):
        laws.check(Softmax(), expected={"lineal in v": "a typo"})


def test_expected_failures_are_those_of_pytest():
    mark = laws.parametrize([Softmax()], expected={"linear in v": "why"})
    marks = {case.id: case.marks for case in mark.args[1]}
    (mine,) = marks[f"{Softmax()!r}-linear in v"]
    assert (mine.name, mine.kwargs) == ("xfail", {"reason": "why", "strict": True})


def test_the_command_takes_laws_that_are_known_to_fail(tmp_path):
    (tmp_path / "mine.py").write_text("def attend(q, k, v):\n    return 0 * (q @ k.mT) @ v\n")
    words = ["check", f"{tmp_path / 'mine.py'}:attend", "--examples", "1", "--only", "answers"]
    assert CliRunner().invoke(app, words).exit_code == 1
    done = CliRunner().invoke(app, [*words, "--expect", "answers: not written yet"])
    assert done.exit_code == 0, done.output
    assert "fails as expected: answers: not written yet" in done.output
    done = CliRunner().invoke(app, [*words, "--expect", "answers"])
    assert done.exit_code == 2
    assert "give a law and the reason" in done.output
