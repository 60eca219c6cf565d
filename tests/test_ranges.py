"""Every knob and argument, given what it is not for: a sentence of softlab's own, or a finite
answer, at once.

The cases are made from the fields of all public dataclasses, so that a new one is asked, too; of
functions from one call that is right, by turning one argument after another into something else.
"""

import contextlib
import dataclasses
import functools
import inspect
import math
import signal
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from zoo import OPERATORS, SCALINGS, SELECTORS, SOLVERS, WEIGHTS

from softlab import (
    convergence,
    estimators,
    gradients,
    inputs,
    laws,
    matrices,
    operators,
    spectra,
    study,
)
from softlab.core import Dims, Stream, Traits, as_matrix
from softlab.estimators import LinearMap
from softlab.kernels import Exponential, Gaussian
from softlab.models.pyramid import Design, Pyramid
from softlab.operators import MRA, BigBird, Local, Scatterbrain, Soft, Softmax
from softlab.pinv import SVD, Chebyshev, NewtonRaphson, SolverTraits
from softlab.validation import ranges

SECONDS, BYTES = 20, 8 << 30
"""For one call; a busy machine included. Address space beyond what the process has."""

q, k, v = (torch.randn(9, w, generator=torch.Generator().manual_seed(w)) for w in (4, 5, 3))
k = k[:, :4]
core = k @ k.mT + torch.eye(9)
core = (core + core.mT) / 2  # a product need not be symmetric to the last digit

USES = {
    "operator": lambda op: (op.cost(Dims(1, 9, 9, 4, 3)), op(q, k, v))[1],
    "solver": lambda solver: (solver.cost(9), solver(core))[1],
    "selector": lambda selector: selector(k, 4),
    "weights": lambda weights: weights(8, 4),
    "scaling": lambda scaling: scaling(core),
    "kernel": lambda kernel: kernel.average(q, k, v),
    "input": lambda inp: inp(0).q,
    "matrix": lambda matrix: matrix(0),
}

REQUIRED = {
    "n": 9, "d": 4, "m": 9, "clusters": 3, "rate": 0.1, "length": 3.0, "condition": 10.0,
    "rank": 4, "spread": 0.1,
}  # fmt: skip


def of_package(package):
    for name in package.__all__:
        kind = getattr(package, name)
        if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
            continue
        needed = [f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING]
        if set(needed) <= set(REQUIRED):
            yield kind(**{name: REQUIRED[name] for name in needed})


SUBJECTS = {
    type(subject): (subject, use)
    for use, subjects in {
        "operator": OPERATORS,
        "solver": SOLVERS,
        "selector": SELECTORS,
        "weights": WEIGHTS,
        "scaling": SCALINGS,
        "kernel": (Gaussian(1.0), Exponential(1.0)),
        "input": of_package(inputs),
        "matrix": of_package(matrices),
    }.items()
    for subject in subjects
}

WRONG = [
    True, None, "x", "4", math.nan, math.inf, -math.inf, -1, 0, 2**70, 10**9, 2.5, 1e308, 1e-308,
    -0.5, [], (), {}, 1 + 2j, np.int64(4), np.float32(1.5), object(),
]  # fmt: skip


@contextlib.contextmanager
def bounded():
    """In so many seconds and with so much memory more, or it fails."""
    resource = pytest.importorskip("resource")

    def late(*_):
        raise AssertionError("it took too long without a word")

    limits, before = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGALRM, late)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + BYTES, limits[1]))
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def answer(call):
    """What it returns, or the ``TypeError`` or ``ValueError`` that it raises."""
    try:
        return call()
    except (TypeError, ValueError) as error:
        return error


def raised_by_softlab(error):
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return "softlab" in frame.f_code.co_filename


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs alarms and limits")
@pytest.mark.parametrize("kind", SUBJECTS, ids=lambda kind: kind.__name__)
def test_a_knob_is_refused_with_a_sentence_or_answers(kind):
    subject, use = SUBJECTS[kind]
    for field in dataclasses.fields(subject):
        for wrong in WRONG:
            where = f"{field.name} = {wrong!r}"
            with bounded():
                out = answer(
                    lambda given={field.name: wrong}: USES[use](
                        dataclasses.replace(subject, **given)
                    )
                )
            if isinstance(out, Exception):
                assert raised_by_softlab(out), f"{where}: {out!r}"
                assert len(str(out)) > 20, where
                continue
            assert bool(torch.isfinite(out).all()), where
            if isinstance(getattr(subject, field.name), bool):
                assert isinstance(wrong, bool), f"{where} passes for a flag"


UNDECLARED = {"target", "bounds", "rtol", "input", "name"}
"""Fields of two kinds of target, of pairs, and of two ranges at once: their classes check them."""


@pytest.mark.parametrize("kind", SUBJECTS, ids=lambda kind: kind.__name__)
def test_what_is_outside_the_range_of_a_field_is_refused_by_its_name(kind):
    subject, use = SUBJECTS[kind]
    declared = ranges(kind)
    if use != "matrix":
        assert {field.name for field in dataclasses.fields(kind)} - {*declared} <= UNDECLARED
    for name, (held, optional) in declared.items():
        for wrong in held.outside():
            if wrong is not None or not optional:
                with pytest.raises((TypeError, ValueError), match=rf"{kind.__name__}\.{name} is "):
                    dataclasses.replace(subject, **{name: wrong})
        for right in held.inside():
            held(name, right)


FAR = [
    (Local(10**9), Local(9)),
    (Local(2, sinks=10**9), Local(2, sinks=9)),
    (Local(2, sinks=10**9, causal=True), Local(2, sinks=9, causal=True)),
    (Local(10**9, dilation=10**9, sinks=3), Local(9, dilation=9, sinks=3)),
    (BigBird(1, 10**9, 1, block=3), BigBird(1, 9, 1, block=3)),
    (BigBird(10**9, 1, 1, block=3), BigBird(9, 1, 1, block=3)),
    (BigBird(1, 1, 1, block=10**9), BigBird(1, 1, 1, block=9)),
    (MRA(block=10**9, refined=1), MRA(block=9, refined=1)),
    (Scatterbrain(10**9, 8, sinks=10**9), Scatterbrain(9, 8, sinks=9)),
]


@pytest.mark.parametrize(("far", "near"), FAR, ids=repr)
def test_a_knob_far_above_the_tokens_costs_by_the_tokens(far, near):
    with bounded():
        torch.testing.assert_close(far(q, k, v), near(q, k, v))
        mask = torch.arange(9) < 6
        torch.testing.assert_close(far(q, k, v, mask), near(q, k, v, mask))
        if not isinstance(far, MRA):
            assert far.cost(Dims(2, 9, 9, 4, 3)).flops == near.cost(Dims(2, 9, 9, 4, 3)).flops


TOKENS = {
    "numpy": ((k.numpy(), 4, None), TypeError, "x must be a torch.Tensor"),
    "integers": ((k.long(), 4, None), TypeError, "x must be floating point"),
    "one dimension": ((k[0], 2, None), ValueError, "at least two dimensions"),
    "m as a word": ((k, "4", None), TypeError, "m is '4'; give the number of landmarks"),
    "m as a fraction": ((k, 2.5, None), TypeError, "m is 2.5"),
    "m of zero": ((k, 0, None), ValueError, "use a rank of 1 to 9"),
    "m beyond the tokens": ((k, 10, None), ValueError, "rank 10 is asked of 9 tokens"),
    "a mask of floats": ((k, 4, torch.ones(9)), TypeError, "key_mask must be boolean"),
    "a mask too short": ((k, 4, torch.ones(8) > 0), ValueError, "key_mask must broadcast"),
    "a mask of nothing": ((k, 4, torch.ones(9) < 0), ValueError, "leaves no token"),
    "NaN": ((k * math.nan, 4, None), ValueError, "x has 36 entries that are NaN or inf"),
    "inf": ((k / 0, 4, None), ValueError, "x has 36 entries that are NaN or inf"),
}


@pytest.mark.parametrize("name", TOKENS)
@pytest.mark.parametrize("selector", SELECTORS, ids=repr)
def test_selectors_refuse_what_they_cannot_choose_from(selector, name):
    given, error, says = TOKENS[name]
    with pytest.raises(error, match=says):
        selector(*given)


@pytest.mark.parametrize("selector", SELECTORS, ids=repr)
def test_padding_may_hold_anything_and_a_mask_broadcasts(selector):
    if type(selector).__name__.startswith("Grid"):
        pytest.skip("a grid has no padding")
    x, mask = torch.stack((k, 2 * k)), torch.arange(9) < 6
    found = selector(x, 3, mask)
    torch.testing.assert_close(found, selector(x[:, :6], 3), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("op", OPERATORS, ids=repr)
@pytest.mark.parametrize("size", [1e31, 1e34, 3e38])
def test_values_near_the_greatest_number_are_answered_or_refused(op, size):
    wide = v / v.abs().max() * size
    out = answer(lambda: op(q, k, wide))
    if isinstance(out, Exception):
        assert "v reaches" in str(out)
        assert size > 1e32
    else:
        assert bool(out.isfinite().all())


REFUSED = {
    "the zero map": (lambda: SVD(rtol=2.5), ValueError, "from 0 to below 1"),
    "a word for a flag": (lambda: Chebyshev(definite="no"), TypeError, "give True or False"),
    "one for a matrix": (lambda: matrices.Geometric(4, 2.0, "no"), TypeError, "True or False"),
    "a scale that overflows": (lambda: Softmax(1e308), ValueError, "1e-30 to 1e\\+18"),
    "scores that overflow": (lambda: Softmax(1e18)(1e15 * q, 1e15 * k, v), ValueError, "overflow"),
    "a negative rank": (
        lambda: spectra.tails(core).relative(-1), ValueError, "integer from 0",
    ),
    "no examples": (lambda: laws.examine(Softmax(), examples=0), ValueError, "examples is 0"),
    "half an example": (lambda: laws.examine(Softmax(), examples=1.5), TypeError, "examples is"),
    "no time": (lambda: laws.examine(Softmax(), seconds=math.nan), ValueError, "seconds is nan"),
    "a path always dropped": (
        lambda: Pyramid(
            Design((1, 1, 1, 1), (8, 8, 8, 8), (1, 1, 1, 1), (2, 2, 2, 2), image=32), drop_path=1.0
        ),
        ValueError, "from 0 to below 1",
    ),
    "a billion probes": (
        lambda: estimators.effective_rank(LinearMap.of_matrix(core), probes=10**9),
        ValueError, "probes is 1000000000",
    ),
    "a map of words": (lambda: LinearMap(("4", 4), lambda x: x), TypeError, "give a tuple"),
    "a map of no rows": (lambda: LinearMap((0, 4), lambda x: x), ValueError, "give \\(rows"),
    "a map of nothing": (lambda: LinearMap((4, 4), None), TypeError, "apply is None"),
    "an adjoint that is none": (
        lambda: LinearMap((4, 4), lambda x: x, 3), TypeError, "adjoint is 3",
    ),
    "a map in integers": (
        lambda: LinearMap((4, 4), lambda x: x, dtype=torch.int64), TypeError, "dtype is",
    ),
    "a product of another size": (
        lambda: LinearMap.of_matrix(core) @ torch.ones(5), ValueError, "takes a tensor \\(9,\\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_silent_nonsense_is_refused(name):
    call, error, says = REFUSED[name]
    with bounded(), pytest.raises(error, match=says):
        call()


def test_what_is_within_the_ranges_stays():
    torch.testing.assert_close(as_matrix(Softmax(1e-30), q, k), torch.full((9, 9), 1 / 9))
    assert Soft(4)(q, k, 1e31 * v).isfinite().all()
    assert {operators.Softmax, inputs.Normal, matrices.Geometric} <= set(SUBJECTS)
    assert len(SUBJECTS) > 60


# --- the arguments of functions -------------------------------------------------------------

wide = core.double()
some, points = wide[:, :4], torch.ones(3, dtype=torch.float64)
newton, band, held = NewtonRaphson(3), Local(2), LinearMap.of_matrix(wide)
seen, density = convergence.trace(newton, wide), estimators.eigenvalues(held, steps=4)
rows = estimators.ExactRows(Softmax(), q, k, v, rows=4)
sure = {"confidence": 0.9, "seed": 0}
study_of_one = {
    "name": "s", "question": "q?", "axes": {"seed": [0]}, "keep": None, "quick": {}, "title": "t",
    "figures": (), "chapter": "operators", "timed": (), "inputs": (), "module": "",
    "measure": lambda seed, dtype, device: {"y": seed},
}  # fmt: skip
silent = laws.OPERATOR_LAWS[2]


@functools.wraps(convergence.residual_spectra)
def spectra_at(**given):
    found = convergence.residual_spectra(**given)
    return None if found is None else list(found)[-1]


def draw(subject):
    return subject, {"seed": 0, "dtype": torch.float64, "device": "cpu"}


CALLS = [
    (convergence.trace, {"solver": newton, "a": wide, "reference": wide, "rank": 9}),
    (convergence.observed_order, {"trace": seen}),
    (convergence.observed_steps, {"trace": seen, "tolerance": 0.1}),
    (convergence.precision_floor, {"trace": seen}),
    (convergence.onset_and_growth, {"trace": seen}),
    (spectra_at, {"solver": newton, "a": wide, "rank": 9, "at": points}),
    (convergence.predicted_steps, {"solver": newton, "a": wide, "tolerance": 0.1, "rank": 9}),
    (
        convergence.filter_factors,
        {"solver": newton, "a": wide, "steps": 3, "rank": 9, "at": points},
    ),
    (convergence.degrees_of_freedom, {"solver": newton, "a": wide, "steps": 3, "rank": 9}),
    (convergence.cutoff, {"solver": newton, "a": wide, "steps": 3}),
    (convergence.account, {"solver": newton, "a": wide, "tolerance": 0.1}),
    (gradients.reference_gradient, {"a": wide, "g": wide, "rank": 9}),
    (gradients.gradient, {"solver": newton, "a": wide, "g": wide}),
    (gradients.bias, {"solver": newton, "a": wide, "g": wide, "symmetric": True}),
    (gradients.departure, {"found": wide, "true": wide}),
    (gradients.range_residual, {"a": wide, "x": wide}),
    (gradients.symmetrized, {"grad": wide}),
    (gradients.by_rule, {"rule": "unrolled", "steps": 3}),
    (gradients.unrolled, {"solver": newton}),
    *(
        (getattr(spectra, name), {"a": wide.abs()})
        for name in (
            "spectrum", "singular_values", "eigenvalues", "symmetric_eigenvalues",
            "effective_rank", "stable_rank", "participation_ratio", "condition", "row_entropy",
            "row_normalised", "row_spectral_norm", "spectral_gap", "symmetry_defect",
            "positivity_defect", "spectral_norm", "tails",
        )
    ),
    (spectra.numerical_rank, {"a": wide, "tolerance": 0.1}),
    (spectra.energy_rank, {"a": wide, "share": 0.9}),
    (spectra.condition_on_range, {"a": wide, "tolerance": 0.1}),
    (spectra.leverage_scores, {"a": wide, "rank": 3}),
    (spectra.coherence, {"a": wide, "rank": 3}),
    (spectra.ridge_leverage_scores, {"a": wide, "ridge": 0.1}),
    (spectra.effective_dimension, {"a": wide, "ridge": 0.1}),
    (spectra.decay, {"a": wide, "confidence": 0.9, "tolerance": 0.1}),
    (spectra.Spectrum, {"values": points, "unit": 1e-10}),
    (spectra.tails(wide).relative, {"rank": 3}),
    (estimators.eigenvalues, {"a": held, "steps": 4, "probes": 3, "seed": 0}),
    (estimators.singular_values, {"a": held, "steps": 4, "probes": 3, "seed": 0}),
    (estimators.effective_rank, {"a": held, "steps": 4, "probes": 3, **sure}),
    (estimators.hutchinson, {"a": held, "probes": 6, **sure}),
    (estimators.hutch_plus_plus, {"a": held, "probes": 6, **sure}),
    (estimators.x_trace, {"a": held, "probes": 6, **sure}),
    (estimators.frobenius_norm, {"a": held, "probes": 6, **sure}),
    (estimators.spectral_norm, {"a": held, "steps": 9, "tolerance": 1e-6, **sure}),
    (estimators.ExactRows, {"target": Softmax(), "q": q, "k": k, "v": v, "rows": 4, "seed": 0}),
    (estimators.output_error, {"op": band, "q": q, "k": k, "v": v, "exact": rows, **sure}),
    (estimators.output_error, {"op": band, "q": q, "k": k, "v": v, "rows": 4, **sure}),
    (estimators.matrix_error, {"op": band, "q": q, "k": k, "rows": 4, **sure}),
    (estimators.probed_error, {"op": band, "q": q, "k": k, "probes": 4, **sure}),
    (
        LinearMap,
        {"shape": (9, 9), "apply": held.apply, "adjoint": None, "symmetric": False}
        | {"dtype": torch.float64, "device": "cpu"},
    ),
    (LinearMap.of_matrix, {"a": wide}),
    (LinearMap.of_operator, {"op": band, "q": q, "k": k}),
    (held.__matmul__, {"x": torch.ones(9)}),
    (held.__sub__, {"other": held}),
    (density.sum, {"f": torch.abs, "confidence": 0.9}),
    (density.below, {"x": points}),
    (estimators.hutchinson(held, probes=4).times, {"factor": 2.0}),
    *(draw(subject) for subject, use in SUBJECTS.values() if use in ("input", "matrix")),
    draw(inputs.Recorded("minilm.layer0.head0")),
    (inputs.Recorded, {"name": "minilm.layer0.head0"}),
    (matrices.haar, {"m": 4, "rng": Stream(0, "haar")}),
    (laws.suite, {"subject": Softmax()}),
    (laws.check, {"subject": Softmax(), "seed": 0, "only": silent.name}),
    (
        laws.examine,
        {"subject": Softmax(), "examples": 1, "seconds": 0.01, "only": silent.name, "name": "op"}
        | {"thorough": False},
    ),
    (
        functools.partial(laws.outcome, Softmax()),  # an outcome and a law are of anything
        {"law": silent, "seeds": range(1), "seconds": 0.1, "simplest": False, "name": "op"},
    ),
    (functools.partial(silent.check, Softmax()), {"seed": 0}),
    (laws.Draws, {"dtype": torch.float64, "device": "cpu", "digits": 1, "small": False}),
    (study.Study, study_of_one),
    (
        study.run,
        {"study": study.Study(**study_of_one), "out": "out", "device": "cpu", "quick": False}
        | {"dtype": torch.float32, "threads": 1, "fresh": False, "progress": False}
        | {"crew": None, "shard": (1, 1)},
    ),
    (study.defined_in, {"file": "absent.py"}),
    (Traits, {"causal": True, "reads": ""}),
    (SolverTraits, {"order": 2, "singular": True, "growth": 1.0}),
]  # fmt: skip

WORSE = [
    *WRONG, "no", "cuda:7", 10**6, -(10**9), 1e18, torch.int64, np.ones((9, 9)), torch.ones(9),
    torch.full((9, 9), math.nan), torch.ones(9, 9).long(), torch.empty(0, 0), torch.ones(9, 8),
    torch.ones(2, 9, 9), torch.ones(9, 9).to_sparse(),
]  # fmt: skip


def like(wrong, right):
    """Whether one may stand for the other, as far as kinds go: then it answers, or is refused."""
    if isinstance(right, float):
        return isinstance(wrong, (int, float)) and not isinstance(wrong, bool)
    if isinstance(right, (tuple, list)):
        return isinstance(wrong, (tuple, list))
    if isinstance(right, torch.Tensor):
        finite = isinstance(wrong, torch.Tensor) and not wrong.is_sparse
        return finite and bool(wrong.isfinite().all())
    kinds = (bool, int, str, dict)
    kind = next((kind for kind in kinds if isinstance(right, kind)), type(right))
    return isinstance(wrong, kind) and (kind is bool or not isinstance(wrong, bool))


def array_for(call, name, wrong):
    """An analysis takes an array where it says so; an operator takes tensors alone."""
    function = getattr(call, "func", call)
    if isinstance(function, type) or not isinstance(wrong, np.ndarray):
        return False
    return "Matrix" in str(inspect.signature(function).parameters[name].annotation)


def numbers_of(out):
    for x in out if isinstance(out, tuple) else (out,):
        if isinstance(x, torch.Tensor) and not x.is_meta:
            yield x.detach()
        elif isinstance(x, float):
            yield torch.tensor(x)


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs alarms and limits")
def named(call):
    """Its name, without an address: processes that share the suite must agree on it."""
    call = getattr(call, "func", call)
    return getattr(call, "__qualname__", type(call).__qualname__)


@pytest.mark.parametrize(("call", "right"), CALLS, ids=[named(call) for call, _ in CALLS])
def test_an_argument_is_refused_with_a_sentence_or_answers(call, right, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, wanted in right.items():
        for wrong in WORSE:
            where = f"{name} = {wrong!r}"
            with bounded():
                out = answer(lambda given={name: wrong}: call(**{**right, **given}))
            if isinstance(out, Exception):
                assert raised_by_softlab(out), f"{where}: {out!r}"
                assert len(str(out)) > 20, where
                continue
            passes = wanted is None or like(wrong, wanted) or array_for(call, name, wrong)
            assert wrong is None or passes, f"{where} passes"
            if call not in (spectra.condition, spectra.decay):  # infinite, and NaN where told
                assert all(bool(x.isfinite().all()) for x in numbers_of(out)), where
