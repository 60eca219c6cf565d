"""What an examination draws, how it reduces a failure, and how it says what it found."""

import csv
import ctypes
import gc
import io
import logging
import os
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from softlab import laws
from softlab.laws import situations
from softlab.laws.law import drawing, generator
from softlab.laws.runner import TooLongError, _deaf, limit
from softlab.operators import MRA, LinearAttention, Local, Softmax, Thinformer, TopK


def softmax(q, k, v):
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v


def drawn(op, seed, **how):
    with drawing(laws.Draws(**how)):
        return list(situations.drawn(op, generator(seed), 13))


def test_one_situation_can_be_asked_for():
    op = laws.adapted(softmax)
    (case,) = drawn(op, 5, situation={"keys": 17, "lead": (2, 3)})
    assert (case.q.shape, case.k.shape, case.v.shape) == (
        (2, 3, 9, 4),
        (2, 3, 17, 4),
        (2, 3, 17, 3),
    )
    assert case.mask is None


def test_a_thorough_examination_draws_every_size_up_to_thousands_of_keys():
    op = laws.adapted(softmax)
    seen = {
        case.k.shape[-2]
        for seed in range(situations.SHARES)
        for case in drawn(op, seed, thorough=True)
    }
    assert set(range(1, 130)) <= seen
    assert {1025, 2049, 4097} <= seen
    usual = {case.k.shape[-2] for seed in range(5) for case in drawn(op, seed)}
    assert max(usual) == 640
    triangle = laws.adapted(torch.nn.functional.scaled_dot_product_attention)
    assert all(
        case.q.shape[-2] * case.k.shape[-2] <= situations.MOST
        for case in drawn(triangle, 9, thorough=True)
    )


def nothing_beyond(most):
    def attend(q, k, v):
        out = softmax(q, k, v)
        return torch.zeros_like(out) if k.shape[-2] > most else out

    return attend


def heads_mixed(q, k, v):
    out = softmax(q, k, v)
    return out.roll(1, -3) if out.ndim == 4 else out


def wide_alone(q, k, v):
    return softmax(q, k, v) * (1 + 1e-3 * (q.shape[-1] > 64))


def masked_wrongly(q, k, v, key_mask=None):
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if key_mask is not None:
        scores = scores - 2.0 * ~key_mask.unsqueeze(-2)
    return scores.softmax(-1) @ v


def tied_wrongly(q, k, v):
    return softmax(q, k, v) * (0.5 if q is k else 1.0)


def one_query_wrongly(q, k, v):
    return softmax(q, k, v) * (1 + (q.shape[-2] == 1 and k.shape[-2] > 12))


def raises_beyond(q, k, v):
    if k.shape[-2] > 100:
        msg = f"{k.shape[-2]} keys are too many"
        raise RuntimeError(msg)
    return softmax(q, k, v)


FORM = "same form everywhere"
FEW = (
    *("batch independence", "each column alone", "gradient of each matrix"),
    *("gradient where q is k", "float32 everywhere", "answers"),
)
"""Laws of different families, by which causes are told apart."""


def asked(subject, *names, **how):
    """What becomes of these laws alone."""
    op = laws.adapted(subject)
    return [found for name in names for found in laws.examine(op, only=name, **how)]


@pytest.mark.parametrize(
    ("attend", "only", "condition"),
    [
        (nothing_beyond(16), FORM, "with 17 keys and not with 16"),
        (nothing_beyond(200), FORM, "with 201 keys and not with 200"),
        (heads_mixed, "batch independence", "with 2 leading dimensions"),
        (wide_alone, FORM, "with q and k of width 65 and not with 64"),
        (masked_wrongly, "batch independence", "under a mask"),
        (tied_wrongly, FORM, "where q is k"),
        (one_query_wrongly, FORM, "with 13 keys and not with 12, with one query"),
        (raises_beyond, "leaves no trace", "with 101 keys and not with 100"),
    ],
)
def test_a_failure_is_reduced_to_what_it_needs(attend, only, condition):
    (found,) = laws.examine(attend, only=only)
    assert found.verdict == "fails"
    assert found.condition.startswith(condition)
    op = laws.adapted(attend)
    call = found.reproduce.partition("; ")[2]
    with pytest.raises(laws.BrokenLawError):
        eval(call, {"laws": laws, "op": op})
    # What is no part of the condition is ordinary or small.
    changed = eval(call.partition("draws=")[2][:-1], {"laws": laws}).situation
    assert (
        set(found.situation)
        <= set(changed)
        <= {*found.situation, "keys", "queries", "width", "values"}
    )


def test_the_tensors_of_a_counterexample_have_their_names():
    (found,) = laws.examine(nothing_beyond(9), only=FORM)
    names = [part.split(" = ")[0] for part in found.counterexample.split(", ") if " = " in part]
    assert names == ["q", "k", "v"]
    (found,) = laws.examine(lambda a: a.mT.clone(), only="Penrose identities")
    assert found.counterexample.startswith("a = [[")


def test_laws_that_break_for_one_reason_are_one_cause():
    (cause,) = laws.causes(asked(raises_beyond, *FEW))
    assert cause.what == (
        "raised RuntimeError: 101 keys are too many with 101 keys and not with 100"
    )
    line = raises_beyond.__code__.co_firstlineno + 3
    assert cause.at.endswith(f"test_examination.py:{line}")
    assert len(cause.outcomes) > 4
    (cause,) = laws.causes(asked(heads_mixed, *FEW))
    assert cause.what == "the output is wrong with 2 leading dimensions"
    assert cause.at.endswith(f"test_examination.py:{heads_mixed.__code__.co_firstlineno}")


def test_two_reasons_are_two_causes():
    def attend(q, k, v):
        return heads_mixed(*((q, k, v) if k.shape[-2] < 600 else (raises_beyond(q, k, v),)))

    found = [cause.what.split(":")[0] for cause in laws.causes(asked(attend, *FEW))]
    assert found == ["the output is wrong with 2 leading dimensions", "raised RuntimeError"] or (
        sorted(found) == ["raised RuntimeError", "the output is wrong with 2 leading dimensions"]
    )


def test_where_it_hangs_is_said():
    def hangs(q, k, v):
        while k.shape[-2] > 1:
            time.sleep(0.01)

    plain = laws.adapters.Plain(hangs, "hangs")
    (found,) = laws.examine(plain, only="answers", seconds=0.3)
    where, _, line = found.at.rpartition(":")
    assert Path(where).name == "test_examination.py"
    assert int(line) in (hangs.__code__.co_firstlineno + 1, hangs.__code__.co_firstlineno + 2)


def test_coverage_is_counted_while_laws_run_and_by_law():
    calls = []

    def attend(q, k, v):
        calls.append((q.shape, k.shape, q.dtype))
        return softmax(q, k, v)

    op = laws.adapters.Plain(attend, "attend")
    found = laws.examine(op, only="batch independence")
    table = laws.coverage(found)
    assert table.laws == ("batch independence",)
    one_key = sum(keys[-2] == 1 for _, keys, _ in calls)
    assert table.of("keys", "1") == {"batch independence": one_key}
    two = sum(len(q) == 4 and q[:2] == k[:2] for q, k, _ in calls)
    assert table.of("leading dimensions", "two") == {"batch independence": two}
    assert two > 0
    assert sum(table.of("dtype", "float64").values()) == len(calls)
    rows = list(csv.reader(io.StringIO(table.as_csv())))
    assert rows[0] == ["law", "factor", "level", "calls"]
    assert ["batch independence", "keys", "1", str(one_key)] in rows
    thorough = laws.examine(op, only="leaves no trace", examples=1, thorough=True)
    assert laws.coverage(thorough).of("keys", "more")


def test_nothing_stays_behind_on_the_class_of_a_subject():
    from softlab.operators import Softmax
    from softlab.pinv import SVD

    before = [dict(vars(kind)) for kind in (Softmax, SVD, laws.adapters.Plain)]
    laws.examine(Softmax(), only="silent")
    laws.examine(SVD(), only="adjoint")
    laws.examine(softmax, only="silent")
    assert [dict(vars(kind)) for kind in (Softmax, SVD, laws.adapters.Plain)] == before


def test_the_default_of_one_softmax_is_within_its_budget():
    laws.examine(softmax, only="answers")
    before = time.process_time()
    found = laws.examine(softmax)
    assert time.process_time() - before < 10
    assert laws.causes(found) == []


def beyond(most, otherwise):
    """Softmax attention; something else with more keys."""

    def attend(q, k, v):
        if k.shape[-2] > most:
            otherwise()
        return softmax(q, k, v)

    return attend


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (lambda x: x.tolist(), "list"),
        (lambda x: (x, None), "tuple"),
        (lambda x: x.detach().numpy(), "ndarray"),
        (lambda x: None, "NoneType"),
        (lambda x: {"out": x}, "dict"),
    ],
)
def test_an_answer_that_is_no_tensor_is_one_cause(answer, named):
    def attend(q, k, v):
        return answer(softmax(q, k, v))

    (cause,) = laws.causes(asked(attend, *FEW[:4]))
    assert cause.what == f"raised TypeError: the answer is a {named}; return one tensor"
    assert cause.at.endswith(f":{attend.__code__.co_firstlineno}")
    (cause,) = laws.causes(laws.examine(lambda a: answer(a), only="Penrose identities"))
    assert f"the answer is a {named}" in cause.what


def least(tokens, multiple=1):
    def attend(q, k, v):
        if k.shape[-2] < tokens or k.shape[-2] % multiple:
            msg = "other lengths, please"
            raise ValueError(msg)
        return softmax(q, k, v)

    return attend


@pytest.mark.parametrize(
    ("tokens", "multiple"), [(2, 1), (5, 1), (12, 1), (64, 1), (300, 1), (8, 8), (2, 2), (128, 64)]
)
def test_the_lengths_that_a_function_needs_are_found(tokens, multiple):
    found = laws.adapted(least(tokens, multiple))
    first = -(-tokens // multiple) * multiple
    assert (found.rank, found.multiple) == (first, multiple)
    assert found.form == "softmax attention"
    assert found.traits.row_stochastic


@pytest.mark.parametrize(("tokens", "multiple", "examples"), [(2, 1, 1), (20, 1, 2), (8, 8, 1)])
def test_laws_keep_to_the_lengths_that_a_function_needs(tokens, multiple, examples):
    found = laws.examine(least(tokens, multiple), examples=examples)
    assert laws.causes(found) == []
    held = {one.law for one in found if one.verdict == "holds"}
    assert {"gradient", "linear in v", FORM, "batch independence"} <= held
    spoilt = laws.examine(lambda q, k, v: 1.01 * least(tokens, multiple)(q, k, v), only="one key")
    assert spoilt[0].verdict != "fails"


def test_what_is_said_of_lengths_is_respected():
    seen = []

    def attend(q, k, v):
        seen.append(k.shape[-2])
        return softmax(q, k, v)

    op = laws.adapted(attend, requires="tokens=40, multiple=4")
    seen.clear()
    laws.examine(op, only="batch independence")
    assert all(x >= 40 and x % 4 == 0 for x in seen)
    assert op.needs == "needs 40 tokens or more and lengths that 4 divides"
    for words in ("tokens=0", "keys=4", "tokens", "multiple=x"):
        with pytest.raises(ValueError, match="give whole numbers"):
            laws.adapted(attend, requires=words)
    with pytest.raises(ValueError, match="has no tokens"):
        laws.adapted(torch.linalg.inv, requires="tokens=4")


def test_what_c_code_prints_is_seen():
    def attend(q, k, v):
        ctypes.CDLL(None).puts(b"hello")
        return softmax(q, k, v)

    (found,) = laws.examine(laws.adapters.Plain(attend, "attend"), only="silent")
    assert "'hello'" in found.detail


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without forks")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_copy_of_the_process_ends_where_it_comes_back():
    me = os.getpid()

    def attend(q, k, v):
        child = os.fork()
        if child:
            os.waitpid(child, 0)
        return softmax(q, k, v)

    (found,) = laws.examine(laws.adapters.Plain(attend, "attend"), only="silent")
    assert os.getpid() == me
    assert found.detail.startswith("forked")

    def worker(q, k, v):
        child = os.fork()
        if not child:
            os._exit(0)
        os.waitpid(child, 0)
        return softmax(q, k, v)

    (found,) = laws.examine(laws.adapters.Plain(worker, "worker"), only="silent")
    assert found.verdict == "holds"


def test_what_was_inferred_and_is_not_kept_is_dropped_and_no_failure():
    def attend(q, k, v):
        return softmax(q, k, v)

    op = laws.adapters._with(laws.adapted(attend), symmetric=True, causal=True)
    op = laws.adapters.dataclasses.replace(op, inferred=(*op.inferred, "symmetric"))
    found = {one.law: one for one in laws.examine(op, examples=2, only="symmetric")}
    dropped = laws.runner.without(op, found["symmetric"].dropped)
    for name in ("positive semidefinite", "causal"):
        (found[name],) = laws.examine(dropped, examples=2, only=name)
    assert found["symmetric"].verdict == "does not apply"
    assert found["symmetric"].dropped == "symmetric"
    assert found["symmetric"].detail.startswith("inferred symmetric, then dropped: missed by")
    assert found["positive semidefinite"].verdict == "does not apply"
    # What its author claims is held against it.
    assert found["causal"].verdict == "fails"


@pytest.mark.parametrize("op", [TopK(64), Local(40), MRA(32), Thinformer(256)], ids=repr)
def test_a_knob_that_keeps_every_key_of_a_draw_makes_no_target(op):
    """It is its target on so few keys, and is not one."""
    assert laws.outcome(op, laws.limits.TARGET).verdict == "holds"


def test_a_function_may_be_what_it_is_said_to_approximate():
    def linear(q, k, v):
        x, y = (torch.nn.functional.elu(z) + 1 for z in (q, k))
        return x @ (y.mT @ v) / (x @ y.sum(-2, keepdim=True).mT)

    for attend, target, form in (
        (softmax, Softmax(), "softmax attention"),
        (linear, LinearAttention(), "linear attention"),
    ):
        op = laws.adapted(attend, target=target)
        assert op.form == form
        for law in (laws.limits.TARGET, laws.gradient_consistency.FORM):
            assert laws.outcome(op, law, seeds=range(2)).verdict == "holds"


def windowed(window):
    def attend(q, k, v):
        n, l = q.shape[-2], k.shape[-2]
        far = (torch.arange(n)[:, None] - torch.arange(l)).abs() > window
        far = far & ~far.all(-1, keepdim=True)
        return (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(far, -torch.inf).softmax(-1) @ v

    return attend


def largest(count):
    def attend(q, k, v):
        scores = q @ k.mT / q.shape[-1] ** 0.5
        least = scores.topk(min(count, scores.shape[-1]), -1).values[..., -1:]
        return scores.masked_fill(scores < least, -torch.inf).softmax(-1) @ v

    return attend


def blocks_of_64(q, k, v):
    l = k.shape[-2] // 64 * 64 if k.shape[-2] > 64 else k.shape[-2]
    return softmax(q, k[..., :l, :], v[..., :l, :])


def own_block_beyond_128(q, k, v):
    places = torch.arange(k.shape[-2]), torch.arange(q.shape[-2])
    other = places[1][:, None] // 64 != places[0] // 64
    scores = q @ k.mT / q.shape[-1] ** 0.5
    return (scores.masked_fill(other, -1e30) if len(other) > 128 else scores).softmax(-1) @ v


def linear(q, k, v, kept=None, least=0.0):
    entries = (torch.nn.functional.elu(q) + 1) @ (torch.nn.functional.elu(k) + 1).mT
    entries = entries if kept is None else entries * kept
    return entries / (entries.sum(-1, keepdim=True) + least) @ v


def last_of_each_chunk_lost(q, k, v):
    """Causal linear attention whose state misses the last token of each chunk of fifty."""
    here, there = torch.arange(q.shape[-2])[:, None], torch.arange(k.shape[-2])
    carried = (here // 50 == there // 50) | (there % 50 != 49)
    return linear(q, k, v, kept=(there <= here) & carried)


def filled_with_zeros(q, k, v):
    """Keys in blocks of 32, in the last of which zeros take part."""
    k, v = (torch.nn.functional.pad(x, (0, 0, 0, -x.shape[-2] % 32)) for x in (k, v))
    return softmax(q, k, v)


@pytest.mark.parametrize(
    ("attend", "form"),
    [
        (linear, "linear attention"),
        (partial(linear, least=1e-6), ""),
        (last_of_each_chunk_lost, "causal linear attention"),
        (filled_with_zeros, "softmax attention"),
        (windowed(6), ""),
        (windowed(64), ""),
        (largest(32), ""),
        (blocks_of_64, "softmax attention"),
        (own_block_beyond_128, "softmax attention"),
    ],
    ids=["linear", "guarded", "chunks", "filled", "window", "wide window", "top", "cut", "blocks"],
)
def test_a_window_is_not_blamed_for_keys_that_it_leaves_out(attend, form):
    """A cut that all rows share, or that leaves less of more keys, is."""
    assert laws.adapted(attend).form == form


def test_a_function_that_is_said_to_be_exact_has_the_rows_of_its_target():
    op = laws.adapted(softmax, traits="exact", target=Softmax())
    assert not op.traits.row_stochastic
    assert laws.outcome(op, laws.temperature.WARM, seeds=range(3)).verdict == "holds"
    twice = laws.adapted(lambda q, k, v: 2 * softmax(q, k, v), traits="exact", target=Softmax())
    assert laws.outcome(twice, laws.temperature.WARM, seeds=range(1)).verdict == "fails"


@pytest.mark.parametrize("window", [2, 40])
def test_a_window_without_keys_for_far_queries_is_given_as_many_queries_as_keys(window):
    def attend(q, k, v):
        far = (torch.arange(q.shape[-2])[:, None] - torch.arange(k.shape[-2])).abs() > window
        return (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(far, -torch.inf).softmax(-1) @ v

    assert bool(attend(torch.ones(99, 4), torch.ones(1, 4), torch.ones(1, 4)).isnan().any())
    op = laws.adapted(attend)
    assert op.equal_lengths
    assert [x for x in laws.examine(op) if x.verdict == "fails"] == []
    assert not laws.adapted(windowed(window)).equal_lengths


def by_keyword(q, k, v, *, key_mask=None):
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask[..., None, :], -torch.inf)
    return scores.softmax(-1) @ v


def padded(q, k, v, key_padding_mask=None):
    return by_keyword(q, k, v, key_mask=None if key_padding_mask is None else ~key_padding_mask)


def all_by_keyword(*, query, key, value, scale=1.0, mask=None):
    return by_keyword(query * scale, key, value, key_mask=mask)


def ignored(q, k, v, *, scale=1.0, mask=None):
    return by_keyword(q * scale, k, v)


class Claiming:
    traits = Softmax().traits
    target = Softmax()

    def __call__(self, q, k, v):
        return softmax(q, k, v)


def test_claims_that_no_law_would_read_are_refused():
    with pytest.raises(ValueError, match=r"has no cost, .* or its __call__ alone"):
        laws.adapted(Claiming())
    assert laws.adapted(Claiming().__call__).form == "softmax attention"


@pytest.mark.parametrize("attend", [by_keyword, padded, all_by_keyword, ignored])
def test_tensors_and_masks_are_given_by_the_names_that_a_function_asks(attend):
    op = laws.adapted(attend)
    assert (op.form, op.masked, op.name) == ("softmax attention", True, attend.__name__)
    due = "fails" if attend is ignored else "holds"
    assert laws.outcome(op, laws.isolation.MASK_IS_DELETION, simplest=False).verdict == due


def test_what_is_slow_is_told_from_what_hangs():
    def attend(q, k, v, rest=0.02):
        time.sleep(rest if len(k) < 50 or rest < 1 else 0)
        return softmax(q, k, v)

    law = laws.consistency.MATRICES
    op = laws.adapted(lambda q, k, v: softmax(q, k, v))
    slow = laws.adapters.dataclasses.replace(op, call=attend)
    found = laws.outcome(slow, law, seconds=0.4, simplest=False)
    assert found.verdict == "does not apply"
    assert "give more seconds" in found.detail
    hangs = laws.adapters.dataclasses.replace(op, call=lambda *x: attend(*x, rest=9))
    found = laws.outcome(hangs, law, seconds=0.4, simplest=False)
    assert (found.verdict, found.detail) == ("fails", "gave no answer within 0.4 s")


def test_a_target_is_an_operator():
    with pytest.raises(ValueError, match=r"target is a function; .*Softmax"):
        laws.adapted(softmax, target=softmax)


def busy(*_):
    start = time.monotonic()
    while time.monotonic() < start + 0.2:
        pass


class Finalized:
    def __del__(self):
        busy()


def collect():
    gc.callbacks.append(busy)
    try:
        gc.collect()
    finally:
        gc.callbacks.remove(busy)


def finalize():
    Finalized()


def test_a_limit_waits_for_the_lock_of_all_loggers():
    """An exception between its acquire and its release would keep it for good."""
    frames = []

    class Looking(logging.Filter):
        def filter(self, record):
            frames.append(sys._getframe())
            return False

    logger = logging.getLogger("softlab.limit")
    logger.addFilter(Looking())
    logger.warning("nothing")
    assert not _deaf(frames[0])
    assert frames[0].f_back.f_code.co_filename == logging.__file__
    assert _deaf(frames[0].f_back)


@pytest.mark.parametrize("call", [collect, finalize])
def test_a_limit_is_not_lost_where_exceptions_are(call):
    """What a callback of the collector, or a finalizer, raises is dropped by Python."""

    def longer():
        call()
        time.sleep(1)

    with pytest.raises(TooLongError), limit(0.1):
        longer()
