"""Whatever a subject does is the outcome of a law: in a notebook, a shell, and pytest."""

import json
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import torch
from typer.testing import CliRunner

from softlab import laws
from softlab.cli import app
from softlab.core import Traits
from softlab.operators import Soft, Softmax
from softlab.pinv import SVD, NewtonRaphson

Verdict = laws.Verdict


def softmax(q, k, v):
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v


def masked(q, k, v, key_mask=None):
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask.unsqueeze(-2), -torch.inf)
    return scores.softmax(-1) @ v


def batch_scaled(q, k, v):
    return softmax(q / q.abs().max(), k, v)


def prints(q, k, v):
    print("here")  # noqa: T201
    return softmax(q, k, v)


def in_place(q, k, v):
    return softmax(q.div_(2), k, v)


def raises(q, k, v):
    msg = "out of\nluck"
    raise ArithmeticError(msg)


def leaves(q, k, v):
    sys.exit(7)


def hangs(q, k, v):
    while q.shape[-2] > 0:
        time.sleep(0.01)


def wrong_shape(q, k, v):
    return v


def none_at_all(q, k, v):
    return None


def remembers():
    seen = []

    def f(q, k, v):
        seen.append(float(q.detach().abs().max()))
        return softmax(q / max(seen), k, v)

    return f


@pytest.mark.parametrize(
    ("f", "law", "detail"),
    [
        (batch_scaled, "batch independence", "missed by"),
        (prints, "silent", "characters printed: 'here'"),
        (in_place, "deterministic", "missed by"),
        (raises, "answers", "raised ArithmeticError: out of"),
        (leaves, "answers", "raised SystemExit: 7"),
        (hangs, "answers", "gave no answer within 0.3 s"),
        (wrong_shape, "shape, dtype and device", "missed by"),
        (none_at_all, "answers", "raised "),
        (remembers(), "stateless", "missed by"),
    ],
)
def test_what_a_subject_does_is_the_outcome_of_a_law(f, law, detail, capsys):
    subject = laws.adapters.Plain(f, f.__name__)
    (found,) = laws.examine(subject, only=law, seconds=0.3 if f is hangs else 20.0)
    assert found.verdict is Verdict.FAILS
    assert found.detail.startswith(detail) or detail in found.detail
    assert capsys.readouterr().out == ""


class OfTokens(torch.nn.Module):
    """As packages give them: tokens in, their own projections, perhaps something beside."""

    def __init__(self, more=False):
        super().__init__()
        self.qkv, self.more = torch.nn.Linear(16, 48), more

    def forward(self, x, mask=None):
        q, k, v = self.qkv(x).chunk(3, -1)
        out = softmax(q, k, v)
        return (out, None) if self.more else out


class Starred(OfTokens):
    def forward(self, *given, **more):
        return super().forward(*given, **more)


class Pseudoinverse(torch.nn.Module):
    """A solver, though a module with a matrix of its own."""

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Linear(16, 16)

    def forward(self, a):
        return torch.linalg.pinv(a)


@pytest.mark.parametrize(
    ("module", "width"),
    [(OfTokens(), 16), (OfTokens(more=True), 16), (Starred(), 16),
     (torch.nn.MultiheadAttention(32, 2, batch_first=True), 32)],
    ids=["one", "several", "starred", "torch"],
)  # fmt: skip
def test_a_layer_of_tokens_is_no_inverse_and_no_operator(module, width):
    with pytest.raises(
        ValueError, match=rf"is a layer: it takes tokens \(b, n, {width}\).*adapter"
    ):
        laws.adapted(module, name="Mine")
    assert laws.adapters.is_solver(laws.adapted(Pseudoinverse()))


def test_a_function_of_one_width_is_told_so_and_not_blamed():
    attention = torch.nn.MultiheadAttention(16, 4, batch_first=True)

    def attend(q, k, v):
        return attention(q, k, v, need_weights=False)[0]

    with pytest.raises(ValueError, match="attend takes tokens of width 16 alone"):
        laws.adapted(attend)


def test_infinite_padding_is_held_against_no_function_that_lets_nan_through():
    def gaussian(q, k, v, mask=None):
        far = (q.unsqueeze(-2) - k.unsqueeze(-3)).square().sum(-1)
        weights = (-far / 2).exp()
        if mask is not None:
            v = v.masked_fill(~mask.unsqueeze(-1), 0)
            weights = weights * mask.unsqueeze(-2)
        return weights @ v

    laws.check(gaussian, only="padding is ignored")


def test_a_gradient_among_symmetric_matrices_is_no_fault():
    def inverse(a):
        if not torch.equal(a, a.mT):
            return torch.linalg.inv(a)
        return torch.cholesky_inverse(torch.linalg.cholesky(a)) if definite(a) else a.inverse()

    def definite(a):
        return not torch.linalg.cholesky_ex(a).info.any()

    laws.check(inverse, only="gradient of any matrix")


def test_a_causal_window_is_not_blamed_for_keys_that_it_leaves():
    def attend(q, k, v):
        back = torch.arange(q.shape[-2])[:, None] - torch.arange(k.shape[-2])
        scores = q @ k.mT / q.shape[-1] ** 0.5
        return scores.masked_fill((back < 0) | (back > 200), -torch.inf).softmax(-1) @ v

    assert not laws.adapted(attend).form


OF_ANOTHER_SHAPE = """
import torch

def attend(q, k, v, key_mask=None):
    "Heads last, no scale, and a tuple."
    q, k, v = (x.transpose(-3, -2) for x in (q, k, v))
    s = q @ k.mT
    s = s if key_mask is None else s.masked_fill(~key_mask[..., None, None, :], -torch.inf)
    return (s.softmax(-1) @ v).transpose(-3, -2), s

def mine(call):
    return lambda q, k, v: call(*((x[None] if x.ndim == 3 else x) for x in (q, k, v)))[0]

def nothing(call):
    return None
"""


@pytest.fixture
def shaped(tmp_path):
    (tmp_path / "shaped.py").write_text(OF_ANOTHER_SHAPE)
    return f"{tmp_path / 'shaped.py'}:"


def test_adapters_by_name_make_attention_of_another_shape_what_it_is(shaped):
    subject = laws.load(f"{shaped}attend", adapter="first+heads-last+scaled")
    assert subject.form == "softmax attention"
    q, k, v = (torch.randn(2, 3, n, 4, dtype=torch.float64) for n in (5, 7, 7))
    torch.testing.assert_close(subject(q, k, v), Softmax()(q, k, v))
    plain = laws.load(f"{shaped}attend", adapter="first+heads-last")
    torch.testing.assert_close(plain(q / 2, k, v), Softmax()(q, k, v))
    found = call(f"{shaped}attend", "--adapter", "first+heads-last+scaled",
                 "--only", "answers", "--examples", 1)  # fmt: skip
    assert found.exit_code == 0, found.output


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        ("frist", "there is no adapter 'frist'; give one of first, heads-last, scaled.*'first'"),
        ("first+", "there is no adapter ''"),
        ("{}nothing", "gives a NoneType; return f"),
        ("{}missing", "has no 'missing'"),
    ],
)
def test_an_adapter_that_is_none_is_refused(shaped, adapter, said):
    with pytest.raises(ValueError, match=said):
        laws.load(f"{shaped}attend", adapter=adapter.format(shaped))


def test_a_module_that_is_on_its_way_in_when_time_is_up_arrives_whole(tmp_path, monkeypatch):
    # Cut short it would stay in sys.modules in part, as torch's late import of sympy once did.
    (tmp_path / "late_arrival.py").write_text("import time\ntime.sleep(0.4)\nwhole = True\n")
    monkeypatch.syspath_prepend(tmp_path)

    def late(q, k, v):
        import late_arrival

        assert late_arrival.whole
        time.sleep(60)

    subject = laws.adapters.Plain(late, "late")
    (found,) = laws.examine(subject, only="answers", seconds=0.1)
    assert found.detail == "gave no answer within 0.1 s"
    assert sys.modules.pop("late_arrival").whole


def test_a_failure_comes_small_and_can_be_had_again():
    op = laws.adapters.Plain(batch_scaled, "op")
    (found,) = laws.examine(op, only="batch independence")
    assert "situation={'lead': (2,), 'keys': 2" in found.reproduce
    call = found.reproduce.partition("; ")[2]
    with pytest.raises(laws.BrokenLawError, match="batch independence"):
        eval(call, {"laws": laws, "op": op})
    biased = laws.adapters.Plain(
        lambda q, k, v: softmax(q, k, v) * 1.01, "op", traits=Traits(row_stochastic=True)
    )
    (found,) = laws.examine(biased, only="row-stochastic")
    # Two tokens or so of one number each, to one decimal.
    assert len(found.counterexample) < 80
    assert found.counterexample.startswith("q = [[[")


def test_the_alarm_of_another_goes_on():
    before = signal.setitimer(signal.ITIMER_REAL, 500)
    try:
        laws.examine(Softmax(), only="silent")
        assert 400 < signal.getitimer(signal.ITIMER_REAL)[0] < 500
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)


def test_where_no_alarm_rings_a_law_is_asked_all_the_same():
    found = []
    ask = threading.Thread(target=lambda: found.extend(laws.examine(Softmax(), only="answers")))
    ask.start()
    ask.join()
    assert [one.verdict for one in found] == [Verdict.HOLDS]


def test_a_mask_of_samples_is_given_as_packages_take_it():
    def attend(q, k, v, mask=None):
        scores = q @ k.mT / q.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], -torch.inf)
        return scores.softmax(-1) @ v

    op = laws.adapted(attend)
    assert op.sample_masks
    assert op.given.endswith("v (b, h, l, e), a mask (b, l), True keeps a key")
    q, k, v, keep = torch.randn(2, 3, 5, 4), *torch.randn(2, 2, 3, 7, 4), torch.arange(7) != 2
    torch.testing.assert_close(op(q, k, v, keep), Softmax()(q, k, v, keep))
    laws.check(op, only="mask is deletion")


def test_shapes_masks_and_claims_of_a_callable_are_found_out():
    plain = laws.adapted(softmax)
    assert (plain.masked, plain.axes, plain.equal_lengths) == (False, 0, False)
    claims = plain.traits
    assert claims.reads == "relative scores"
    assert all((claims.linear_in_v, claims.row_stochastic))
    assert not any((claims.symmetric, claims.psd, claims.causal))
    assert laws.adapted(masked).masked
    strict = laws.adapted(lambda q, k, v: torch.stack([softmax(q[0], k[0], v[0])]))
    assert strict.axes == 3
    layer = torch.nn.functional.scaled_dot_product_attention
    assert laws.adapted(
        lambda q, k, v: layer(q, k, v + 0 * q[..., :1], is_causal=True)
    ).traits.causal
    together = laws.adapted(lambda q, k, v: softmax(q, k, v) + 0 * (q + k + v))
    assert (together.equal_lengths, together.equal_widths) == (True, True)


def test_a_claim_that_is_not_kept_is_not_made_and_says_by_how_much():
    def flattened(q, k, v):
        w = (q @ k.mT / q.shape[-1] ** 0.5).exp()
        return w @ v / (w.sum(-1, keepdim=True) + 1e-3)

    (found,) = laws.examine(flattened, only="row-stochastic")
    assert found.verdict is Verdict.SKIPPED
    assert "claims row_stochastic; on trial missed by" in found.detail
    claimed = laws.adapted(flattened, traits="row_stochastic", target=Softmax())
    (found,) = laws.examine(claimed, only="row-stochastic")
    assert found.verdict is Verdict.FAILS


@pytest.mark.parametrize(
    ("subject", "said"),
    [
        (3, "cannot be called"),
        (Softmax, "Softmax is a class"),
        (torch.zeros(2), "cannot be called"),
    ],
)
def test_what_is_no_subject_is_refused(subject, said):
    with pytest.raises(ValueError, match=said):
        laws.check(subject)


@pytest.mark.parametrize(
    ("traits", "said"),
    [
        ("causl", "Did you mean 'causal'"),
        ("causal=3", "give True or False"),
        ("exact_at=rank", "names a knob"),
    ],
)
def test_traits_that_there_are_not_are_refused(traits, said):
    with pytest.raises(ValueError, match=said):
        laws.adapted(softmax, traits=traits)
    with pytest.raises(ValueError, match="states its own traits"):
        laws.adapted(Softmax(), traits="causal")


def test_other_precisions_are_asked_of_the_laws_that_have_none_of_their_own():
    draws = laws.Draws(dtype=torch.float32)
    found = {one.law: one for one in laws.examine(Softmax(), draws=draws, examples=2)}
    assert found["linear in v"].verdict is Verdict.HOLDS
    assert found["gradient"].verdict is Verdict.SKIPPED
    assert {one.verdict for one in found.values()} == {Verdict.HOLDS, Verdict.SKIPPED}
    spoilt = laws.adapters.Plain(lambda q, k, v: softmax(q, k, v).bfloat16().to(v), "op")
    spoilt = laws.adapters._with(spoilt, row_stochastic=True, linear_in_v=True)
    (found,) = laws.examine(spoilt, draws=draws, only="row-stochastic")
    assert found.verdict is Verdict.FAILS
    assert "dtype=torch.float32" in found.reproduce


def test_a_solver_may_be_a_callable():
    found = {one.law: one for one in laws.examine(torch.linalg.pinv, examples=1)}
    assert found["Penrose identities"].verdict is Verdict.HOLDS
    assert found["status"].verdict is Verdict.SKIPPED
    found = {one.law: one for one in laws.examine(lambda a: a.mT.clone(), examples=1)}
    assert found["Penrose identities"].verdict is Verdict.FAILS


@laws.parametrize([Soft(rank=3), NewtonRaphson(steps=24)])
def test_parametrize_gives_each_law_its_test(subject, law):
    if law.examples > 2:
        law.check(subject)


def test_no_such_law():
    with pytest.raises(ValueError, match="Did you mean 'causal'"):
        laws.check(Softmax(), only="causl")


OWN = """
    import os, signal, time
    def attend(q, k, v):
        return (q @ k.mT / q.abs().max()).softmax(-1) @ v

    def quits(q, k, v):
        if (q.shape[-2], k.shape[-2]) == (6, 8):  # as the two laws asked below draw
            os._exit(3)
        return attend(q, k, v)

    def stuck(q, k, v):
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        while (q.shape[-2], k.shape[-2]) == (6, 8):
            time.sleep(1)
        return attend(q, k, v)
"""


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(textwrap.dedent(OWN))
    return path


def call(*words):
    return CliRunner().invoke(app, ["check", *map(str, words)], env={"COLUMNS": "160"})


def test_the_command_says_what_fails_and_how_to_see_it_again(own):
    asked = [x for name in ("silent", "batch independence", "causal") for x in ("--only", name)]
    result = call(f"{own}:attend", *asked, "--json")
    assert result.exit_code == 1, result.output
    found = {one["law"]: one for one in json.loads(result.stdout)}
    assert found["subject"]["verdict"] == found["silent"]["verdict"] == "holds"
    assert found["causal"]["verdict"] == "does not apply"
    assert "is for what claims causal; on trial missed by" in found["causal"]["detail"]
    with pytest.raises(laws.BrokenLawError):
        exec(found["batch independence"]["reproduce"], {})


def test_the_table_of_a_subject_that_keeps_them_all(monkeypatch):
    from softlab.laws import sandbox

    monkeypatch.setattr(sandbox, "_Child", _Here)
    result = call("softlab.pinv:SVD()", "--examples", 1)
    assert result.exit_code == 0, result.output
    assert "Penrose identities" in result.stdout
    assert ", 0 fail, " in result.stdout
    assert "holds: shape, dtype and trace; Penrose identities;" in result.stdout


def test_failures_come_first_by_cause_and_alone_if_asked(tmp_path, monkeypatch):
    from softlab.laws import sandbox

    monkeypatch.setattr(sandbox, "_Child", _Here)
    path = tmp_path / "mine.py"
    path.write_text(
        "import torch\n\ndef attend(q, k, v):\n"
        "    out = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v\n"
        "    return torch.zeros_like(out) if k.shape[-2] > 16 else out\n"
    )
    asked = ("--only", "same form everywhere", "--only", "silent", "--only", "causal")
    result = call(f"{path}:attend", *asked, "--failed", "--coverage")
    assert result.exit_code == 1
    lines = [line for line in result.stdout.splitlines() if line]
    assert lines[0].startswith("1. the output is wrong with 17 keys and not with 16")
    assert lines[0].endswith("mine.py:3")
    assert lines[1] == "   breaks: same form everywhere"
    assert lines[3].startswith("   on q = [[")
    assert "1 hold, 1 fail by 1 cause, 1 do not apply" in lines[5]
    assert not any("holds:" in line or "does not apply (" in line for line in lines)
    assert any(line.startswith("same form everywhere ") for line in lines[6:])
    whole = call(f"{path}:attend", *asked).stdout.splitlines()
    assert whole[0].startswith("attend, found to be: linear_in_v")
    assert whole[1] == "called with q (..., n, d), k (..., l, d), v (..., l, e)"
    assert "holds: silent" in whole
    assert "does not apply (--json says why): causal" in whole


@pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded on Linux alone")
def test_memory_has_an_end(own):
    own.write_text(
        "import torch\n\ndef greedy(q, k, v):\n"
        "    if (q.shape[-2], k.shape[-2]) == (6, 8):\n"
        "        torch.empty(1 << 33)\n"
        "    return (q @ k.mT).softmax(-1) @ v\n"
    )
    result = call(f"{own}:greedy", "--only", "silent", "--traits", "linear_in_v", "--json")
    found = {one["law"]: one for one in json.loads(result.stdout)}
    assert result.exit_code == 1
    assert found["silent"]["at"].endswith("own.py:5")
    assert "raised RuntimeError" in found["silent"]["detail"]


@pytest.mark.parametrize(
    ("claim", "law"),
    [
        ("singular", "Penrose identities, singular"),
        ("regularized", "shifted inverse"),
        ("constant_rank", "gradient, singular"),
    ],
)
def test_what_is_said_of_a_plain_solver_is_measured(claim, law, monkeypatch):
    from softlab.laws import sandbox

    monkeypatch.setattr(sandbox, "_Child", _Here)
    result = call("torch:linalg.inv", "--traits", claim, "--only", law, "--json")
    found = {one["law"]: one for one in json.loads(result.stdout)}
    assert result.exit_code == 1
    assert found["subject"]["detail"] == f"linalg.inv, said to be: {claim}"
    assert found[law]["verdict"] == "fails"


def test_a_subject_that_ends_its_process_or_cannot_be_stopped_is_an_outcome(own):
    claims = ("--traits", "linear_in_v", "--json")
    quits = call(f"{own}:quits", "--only", "silent", "--only", "views", *claims)
    stuck = call(f"{own}:stuck", "--only", "silent", "--seconds", 1, *claims)
    for result, said, after in (
        (quits, "ended the process, code 3", {"views"}),
        (stuck, "nor stopped", set()),
    ):
        found = {one["law"]: one for one in json.loads(result.stdout)}
        assert result.exit_code == 1
        assert found["subject"]["verdict"] == "holds"
        assert set(found) == {"subject", "silent"} | after
        assert said in found["silent"]["detail"]
        assert re.search(r"own\.py:\d+$", found["silent"]["at"])


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["nowhere.py:f"], 2, "there is no file nowhere.py"),
        (["no.such.module:f"], 2, "no.such.module cannot be imported: ModuleNotFoundError"),
        (["softlab.operators:Sft()"], 2, "softlab.operators has no 'Sft'. Did you mean 'Soft'?"),
        (["softlab.operators"], 2, "names no object"),
        (["softlab.operators:Soft"], 2, "Soft is a class"),
        ([], 2, "name a subject"),
        (["x:y", "--dtype", "int8"], 2, "dtype 'int8' is not one of float64"),
        (["x:y", "--device", "toaster"], 2, "device 'toaster' cannot be used here"),
        (["x:y", "--only", "causl"], 2, "Did you mean 'causal'"),
        (["x:y", "--examples", "0"], 2, "give at least one"),
        (["x:y", "--seconds", "inf"], 2, "at most 86400 seconds"),
        (["x:y", "--seconds", "nan"], 2, "at most 86400 seconds"),
        (["softlab.operators:Softmax()", "--only", "Penrose identities"], 2, "was not asked"),
        (["softlab.operators:Softmax()", "--only", "silent", "--only", "status"], 2, "'status'"),
        (["softlab.operators:Softmax()", "--only", "causal"], 2, "causal is for what claims"),
        (["torch:linalg.inv", "--target", "softlab.operators:Softmax()"], 2, "give it no target"),
        (["torch:linalg.inv", "--traits", "order=3"], 2, "order is measured on iterates"),
        (["torch:linalg.inv", "--traits", "precision=float32"], 2, "precision is measured on"),
        (["torch:linalg.inv", "--traits", "watched"], 2, "watched is measured on"),
    ],
)
def test_bad_requests(words, code, said, monkeypatch):
    # The child's part, in this process: a spawned one says the same more slowly.
    from softlab.laws import sandbox

    monkeypatch.setattr(sandbox, "_Child", _Here)
    result = call(*words)
    assert result.exit_code == code
    assert said in result.output + result.stderr


class _Here:
    def __init__(self, request, done, places):
        from softlab.laws import sandbox

        self.said, self.request, self.confined = [], request, sandbox

    def send(self, word):
        self.said.append(word)

    def reports(self, done):
        self.confined.report(self, self.request, ())
        yield from (word for word in self.said if not isinstance(word, tuple))
        return True

    def end(self):
        pass


def test_the_laws_can_be_listed():
    text = call("--laws").stdout
    listed = json.loads(call("--laws", "--json").stdout)
    assert len(listed) == len(laws.OPERATOR_LAWS) + len(laws.SOLVER_LAWS)
    for law in (*laws.OPERATOR_LAWS, *laws.SOLVER_LAWS):
        assert f"{law.name} ({law.family}): " in text


def test_installing_softlab_is_enough_for_pytest(own, tmp_path):
    (tmp_path / "test_nothing.py").write_text("def test_nothing():\n    pass\n")
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rf"]
    words += ["--laws", f"{own}:attend", "--law-examples", "1", "-k", "silent or batch or nothing"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "attend[batch independence]" in done.stdout
    assert "laws.check(laws.load(" in done.stdout
    assert "1 failed, 3 passed" in done.stdout  # "nothing is hidden" is a law, too


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_solvers_are_asked_in_other_precisions(dtype):
    found = {one.law: one for one in laws.examine(SVD(), draws=laws.Draws(dtype=dtype))}
    held = [one.law for one in found.values() if one.verdict is Verdict.HOLDS]
    assert held == [
        "Penrose identities", "adjoint", "orthogonal factors", "inverse of the inverse",
    ]  # fmt: skip
    rough = laws.adapters.PlainSolver(lambda a: SVD()(a).to(torch.bfloat16).to(a), "rough")
    (found,) = laws.examine(rough, draws=laws.Draws(dtype=torch.float32), only="Penrose identities")
    assert found.verdict is Verdict.FAILS
