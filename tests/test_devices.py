"""Everything on pretended CUDA tensors: devices, backends of attention, launches and syncs.

The counts are those of ``launches.csv``: more of either fails, and fewer should be written there,
by ``PYTHONPATH=.:tests python tests/test_devices.py``. It says as well what is sequential by
nature, where each step needs the one before: launches grow there with a knob or with n."""

import contextlib
import csv
import math
from pathlib import Path

import pytest
import torch
import zoo
from matrices import F32, F64, normal
from pretended import CUDA, MixedDevicesError, down, gradients, pretending, up

from softlab import convergence, estimators
from softlab.catalogue import operators
from softlab.engine import workers
from softlab.kernels import Exponential, Gaussian, fused
from softlab.landmarks import (
    FarthestPoint,
    KMeans,
    LeverageScores,
    RPCholeskyPivots,
)
from softlab.operators import GaussianAttention, Nystromformer, Performer, Soft, Softmax
from softlab.pinv import SVD, Chebyshev, Cholesky, NewtonRaphson, Ridge, applier
from softlab.validation import trusted

BF16 = torch.bfloat16
MOST = 100
"""Launches of a trusting call, for what is not sequential by nature."""
TABLE = Path(__file__).with_name("launches.csv")
COUNTED = {
    **{part.name: part.example for part in operators() if not part.distribution},
    "Softmax, causal": Softmax(causal=True),
    "GaussianAttention, row": GaussianAttention(normalization="row"),
    "GaussianAttention, symmetric": GaussianAttention(normalization="symmetric"),
    "GaussianAttention, causal": GaussianAttention(causal=True),
    "Performer, causal": Performer(features=64, causal=True),
    "Soft, symmetric": Soft(64, normalization="symmetric"),
    "Soft, SVD": Soft(64, pinv=SVD()),
    "Soft, Ridge of Cholesky": Soft(64, pinv=Ridge(Cholesky(), 0.01)),
    "Soft, Chebyshev": Soft(64, pinv=Chebyshev()),
    "Soft, KMeans": Soft(64, landmarks=KMeans()),
    "Soft, FarthestPoint": Soft(64, landmarks=FarthestPoint()),
    "Soft, RPCholeskyPivots": Soft(64, landmarks=RPCholeskyPivots()),
    "Soft, LeverageScores": Soft(64, landmarks=LeverageScores()),
}


def firsts(cases, key):
    """One of each kind."""
    found = {}
    for case in cases:
        found.setdefault(key(case), case)
    return list(found.values())


def kind(op):
    return type(op), getattr(op, "normalization", ""), bool(op.traits.causal)


OPERATORS = firsts(zoo.OPERATORS, kind)
SOLVERS = firsts(zoo.SOLVERS, lambda s: (type(s), type(getattr(s, "scaling", None))))
SELECTORS = firsts(zoo.SELECTORS, type)


def fused_only(tally):
    """No attention may form its matrix in torch's math backend, nor a mask for each query."""
    for dtype, backend, why in tally.attention:
        assert backend != "math", f"{dtype} attention falls to the math backend: {why}"
        assert not why, f"{dtype} attention: {why}"


def tokens(dtype, n=21, l=21, d=6, e=5):
    """Odd sizes, which no fused kernel likes."""
    q, k = normal(2, n, d, dtype=dtype), normal(2, l, d, seed=1, dtype=dtype)
    v = normal(2, l, e, seed=2, dtype=dtype)
    return q, k, v


def near(got, wanted, dtype):
    # Some sums run in another order here, where more is held at once.
    bound = {F64: 1e-8, F32: 2e-4, BF16: 2e-2}[dtype]
    gap = (down(got).double() - wanted.double()).norm() / wanted.double().norm().clamp_min(1e-30)
    assert float(gap) <= bound


@pytest.mark.parametrize("op", OPERATORS, ids=repr)
def test_an_operator_stays_on_its_device_and_off_the_math_backend(op):
    """Forward in three dtypes, with a mask, and backward."""
    mask = torch.arange(21).expand(2, 21) % 5 != 1
    for dtype, key_mask, learns in ((F32, mask, True), (F64, None, False), (BF16, None, False)):
        q, k, v = tokens(dtype)
        wanted = op(q, k, v) if key_mask is None else op(q, k, v, key_mask)
        with pretending() as tally:
            leaves = [up(x, learns) for x in (q, k, v)]
            out = op(*leaves) if key_mask is None else op(*leaves, up(key_mask))
            assert out.device == CUDA
            if out.requires_grad:
                assert all(x is None or x.device == CUDA for x in gradients(out, leaves))
        near(out, wanted, dtype)
        fused_only(tally)


@pytest.mark.sampled(1 / 3)
@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_a_solver_stays_on_its_device(solver):
    w = normal(3, 5, 5)
    a = w @ w.mT / 5 + 0.5 * torch.eye(5, dtype=F64)
    for dtype in (F32, F64):
        some, b = a.to(dtype), normal(3, 5, 2, seed=1, dtype=dtype)
        wanted = solver(some), applier(solver, some)(b), solver.solve(some).x
        with pretending():
            x = up(some, requires_grad=dtype == F32)
            inverse, found = solver(x), solver.solve(up(some))
            if inverse.requires_grad:
                gradients(inverse, [x])
            got = inverse, applier(solver, up(some))(up(b)), found.x
            assert all(part.device == CUDA for part in (*got, *found))
        for ours, theirs in zip(got, wanted, strict=True):
            near(ours, theirs, dtype)


@pytest.mark.parametrize("selector", SELECTORS, ids=repr)
def test_a_selector_stays_on_its_device(selector):
    x = normal(2, 3, 16, 4, dtype=F32)
    mask = torch.ones(2, 3, 16, dtype=torch.bool)
    mask[0, :, :3] = False
    masks = (None,) if "Grid" in type(selector).__name__ else (None, mask)
    for key_mask in masks:
        wanted = selector(x, 4, key_mask)
        with pretending():
            leaf = up(x, requires_grad=True)
            out = selector(leaf, 4, None if key_mask is None else up(key_mask))
            assert out.device == CUDA
            if out.requires_grad:
                gradients(out, [leaf])
        near(out, wanted, F32)


# --- counts --------------------------------------------------------------------------------------


def counted(op, n=2048, d=32, *, trusting=False, warm=False):
    """What one call without a graph asks of the device; queries and keys are apart.

    The second call, unless the operator is ``warm``: what is drawn has been sent by then.
    """
    n = 64 if op.traits.optimal else n  # a dense decomposition, whose launches do not grow
    q, k, v = (normal(1, n, d, seed=seed, dtype=F32) for seed in range(3))
    with torch.no_grad(), trusted() if trusting else contextlib.nullcontext():
        for _ in range(1 if warm else 2):
            with pretending() as tally:
                op(up(q), up(k), up(v))
    return tally


def table():
    with TABLE.open(newline="") as file:
        return {row["operator"]: row for row in csv.DictReader(file)}


@pytest.mark.sampled(1 / 3)
@pytest.mark.parametrize("name", COUNTED)
def test_a_call_launches_and_waits_no_more_than_the_table_says(name):
    known, op = table().get(name, {}), COUNTED[name]
    for trusting in (False, True):
        tally, of = counted(op, trusting=trusting, warm=trusting), "trusted_" * trusting
        fused_only(tally)
        assert tally.launches <= int(known.get(of + "launches", tally.launches)), tally
        assert tally.waits <= int(known.get(of + "waits", tally.waits)), tally
    assert known.get("sequential", "new") or tally.launches <= MOST, tally


@pytest.mark.parametrize(
    "op", [Softmax(), GaussianAttention(), Soft(64), Nystromformer(64)], ids=repr
)
def test_a_trusting_call_never_waits_for_the_device(op):
    assert counted(op).waits > 0
    assert counted(op, trusting=True).waits == 0


def test_the_table_has_rows_of_what_there_is_alone():
    """A new operator has none until the table is written again."""
    assert set(table()) <= set(COUNTED)


# --- sums -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize(("n", "l", "d", "e"), [(1, 1, 1, 1), (21, 16, 8, 8), (7, 33, 6, 150)])
def test_kernel_sums_and_averages_have_a_fused_or_tiled_form_at_any_size(dtype, n, l, d, e):
    x, y = normal(2, n, d, dtype=dtype), normal(2, l, d, seed=1, dtype=dtype)
    v, mask = normal(2, l, e, seed=2, dtype=dtype), torch.arange(l).expand(2, l) % 3 != 1
    for kernel in (Gaussian(1.3), Exponential(0.3)):
        wanted = kernel.apply(x, y, v), kernel.average(x, y, v), kernel.average(x, y, v, mask)
        with pretending(fake=True) as tally:
            leaves = [up(z, True) for z in (x, y, v)]
            got = (
                kernel.apply(*leaves),
                kernel.average(*leaves),
                kernel.average(*leaves, up(mask)),
            )
            slopes = gradients(got[0], leaves)
        for ours, theirs in zip(got, wanted, strict=True):
            near(ours, theirs, dtype)
        own = [z.clone().requires_grad_() for z in (x, y, v)]
        exact = torch.autograd.grad(kernel.apply(*own).sum(), own)
        for ours, theirs in zip(slopes, exact, strict=True):
            torch.testing.assert_close(down(ours), theirs, rtol=1e-3, atol=1e-4)
        fused_only(tally)
        assert not tally.disagreed


def test_a_key_that_is_there_for_alignment_has_no_weight(monkeypatch):
    x, y, v = (normal(1, n, 4, seed=n, dtype=F32) for n in (9, 30, 30))
    logs = normal(1, 30, seed=2, dtype=F32)
    exact = (x.double() @ y.double().mT + logs.double().unsqueeze(1)).softmax(-1) @ v.double()
    for hidden, sound in ((-math.inf, True), (0.0, False)):  # the planted fault is the second
        monkeypatch.setattr(fused, "HIDDEN", hidden)
        with pretending(), torch.no_grad():
            got = fused.fused_average(up(x), up(y), up(v), up(logs))
        gap = float((down(got).double() - exact).abs().max() / exact.abs().max())
        assert (gap < 1e-5) == sound


# --- analyses -------------------------------------------------------------------------------


def test_estimators_stay_on_their_device():
    q, k, v = (normal(40, 6, seed=seed, dtype=F32) for seed in range(3))
    with pretending():
        a, b, c = up(q), up(k), up(v)
        for op in (Soft(rank=5), Softmax()):
            of = estimators.LinearMap.of_operator(op, a, a if isinstance(op, Soft) else b)
            for estimate in (estimators.spectral_norm, estimators.frobenius_norm):
                estimate(of)
        for estimate in (estimators.hutchinson, estimators.hutch_plus_plus, estimators.x_trace):
            estimate(estimators.LinearMap.of_operator(Soft(rank=5), a, a))
        op = Nystromformer(rank=6)
        estimators.output_error(op, a, b, c, rows=8)
        estimators.matrix_error(op, a, b, rows=8)
        estimators.probed_error(op, a, b, probes=4)


@pytest.mark.parametrize("solver", [NewtonRaphson(20), Chebyshev(steps=8)], ids=repr)
def test_convergence_stays_on_its_device(solver):
    w = normal(8, 8)
    a = w @ w.mT / 8 + 0.1 * torch.eye(8, dtype=F64)
    wanted = convergence.cutoff(solver, a)
    with pretending():
        got = convergence.cutoff(solver, up(a))
        convergence.trace(solver, up(a))
        convergence.account(solver, up(a), 1e-6)
    near(got if isinstance(got, torch.Tensor) else torch.tensor(got), torch.as_tensor(wanted), F64)


# --- trust -----------------------------------------------------------------------------------


@pytest.mark.parametrize("op", OPERATORS, ids=repr)
def test_trust_changes_no_answer_to_good_input(op):
    q, k, v = tokens(F64)
    wanted = op(q, k, v)
    with trusted():
        near(op(q, k, v), wanted, F64)


def test_trust_looks_at_no_value_and_at_every_shape():
    q, k, v = tokens(F32)
    bad = torch.full_like(v, torch.nan)
    with trusted():
        assert Soft(rank=4)(q, k, bad).isnan().all()
        with pytest.raises(ValueError, match="one row a key"):
            Soft(rank=4)(q, k, v[:, 1:])
    with pytest.raises(ValueError, match="NaN or inf"):  # and it ends
        Soft(rank=4)(q, k, bad)


# --- errors of the device ----------------------------------------------------------------------


def refused(device):
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


@pytest.mark.parametrize("sticky", [False, True])
def test_an_error_that_ends_a_context_is_said_and_ends_the_worker(sticky, monkeypatch):
    def failing(x):
        raise torch.OutOfMemoryError("CUDA out of memory")

    ended = []
    monkeypatch.setattr(workers, "_LOST", [])
    monkeypatch.setattr(workers.os, "_exit", ended.append)
    monkeypatch.setattr(torch.cuda, "synchronize", refused if sticky else lambda device: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    setting = {"arithmetic": workers.provenance.arithmetic(), "threads": 1}
    task = workers.Task(failing, {"x": 1}, F32, "cuda:0", False, None, {}, setting)
    (row,) = workers.measured(task)
    assert "OutOfMemoryError: CUDA out of memory" in row["error"]
    assert ("cuda:0 takes no more calls from this process" in row["error"]) == sticky
    assert bool(workers.lost()) == sticky
    with contextlib.suppress(EOFError):  # of a task that nothing is in
        workers.measured_there(None, b"")
    assert bool(ended) == sticky


# --- the pretence itself -----------------------------------------------------------------------


def test_the_pretence_sees_what_it_is_for():
    x, away = normal(2, 8, 6, dtype=F32), torch.ones(6)
    attend = torch.nn.functional.scaled_dot_product_attention
    with pretending() as tally:
        a = up(x)
        with pytest.raises(MixedDevicesError, match="on the CPU, others on cuda:0"):
            a + away
        with pytest.raises(MixedDevicesError, match="no CUDA kernel"):
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(a[None], a[None], a[None])
        with pytest.raises(MixedDevicesError, match="numpy"):
            a.numpy()
        with pytest.raises(MixedDevicesError, match="generator"):
            torch.randn(3, device="cuda", generator=torch.Generator())
        assert tally.waits == 0
        before = tally.launches
        a.mT.unsqueeze(0)
        assert tally.launches == before
        (a * 2).sum().item()
        assert tally.launches == before + 3  # item copies a number
        assert tally.waits == 1
        a.nonzero()
        a[a > 0]
        away.to("cuda")
        torch.tensor([1.0], device="cuda")
        assert tally.waits == 5
        for width, dtype, found in ((6, F32, "math"), (8, F64, "math"), (8, F32, "efficient"),
                                    (8, BF16, "cudnn"), (200, BF16, "flash")):  # fmt: skip
            z = up(torch.ones(1, 1, 4, width, dtype=dtype))
            attend(z, z, z)
            assert tally.attention[-1][1] == found


if __name__ == "__main__":
    known = table()
    with TABLE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        numbers = [f"{of}{what}" for of in ("", "trusted_") for what in ("launches", "waits")]
        writer.writerow(["operator", *numbers, "sequential"])
        for name, op in COUNTED.items():
            both = [counted(op, trusting=trusting) for trusting in (False, True)]
            found = [n for tally in both for n in (tally.launches, tally.waits)]
            writer.writerow([name, *found, known.get(name, {}).get("sequential", "")])
            print(name, *found, both[1], flush=True)  # noqa: T201
