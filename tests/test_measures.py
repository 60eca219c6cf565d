"""Measures recover numbers known in advance, and give trivial answers no credit."""

import dataclasses
import math

import pytest
import torch

from softlab import measures
from softlab.core import Cost, Dims, Traits, value
from softlab.inputs import QKV, Clustered, Normal
from softlab.measures import Reference, accuracy, expense, output_error
from softlab.operators import Soft, Softmax
from softlab.pinv import (
    SVD,
    Cholesky,
    ConjugateGradients,
    NewtonRaphson,
    NystromformerCubic,
    Ridge,
)
from softlab.profiling import peak_memory, seconds

CPU = torch.device("cpu")


@value
class Exact:
    """Softmax attention, written out."""

    @property
    def traits(self):
        return Traits(exact=True)

    @property
    def target(self):
        return self

    def cost(self, dims: Dims):
        return Cost(
            2 * dims.batch * dims.n * dims.l * (dims.d + dims.e), dims.batch * dims.n * dims.l
        )

    def __call__(self, q, k, v, key_mask=None):
        return torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1) @ v


@value
class Kernel(Exact):
    """The unnormalised Gaussian: its rows do not sum to one."""

    def __call__(self, q, k, v, key_mask=None):
        return torch.exp(-0.5 * torch.cdist(q, k) ** 2) @ v


@value
class Trivial(Exact):
    """An answer that ignores the queries: 0 for zeros, 1 for the mean of v."""

    answer: int
    of: Exact = Exact()

    @property
    def target(self):
        return self.of

    def __call__(self, q, k, v, key_mask=None):
        return self.answer * v.mean(-2, keepdim=True).expand(*q.shape[:-1], v.shape[-1])


@value
class Best(Exact):
    """The truncated SVD of the target's matrix, scaled by 1 + off."""

    rank: int
    off: float = 0.0

    @property
    def target(self):
        return Exact()

    def __call__(self, q, k, v, key_mask=None):
        m = Exact()(q, k, torch.eye(len(k), dtype=q.dtype))
        u, s, w = torch.linalg.svd(m)
        low = (u[:, : self.rank] * s[: self.rank]) @ w[: self.rank]
        return (1 + self.off) * low @ v


@value
class Broken(Best):
    def __call__(self, q, k, v, key_mask=None):
        return super().__call__(q, k, v) * float("nan")


def draw(n=40, l=30, d=4, e=5, dtype=torch.float64, seed=0, shift=0.0):
    g = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(r, w, dtype=dtype, generator=g) for r, w in ((n, d), (l, d), (l, e)))
    return 2 * q, 2 * k, v + shift


@pytest.mark.parametrize("target", [Exact(), Kernel()])
@pytest.mark.parametrize("answer", [0, 1])
@pytest.mark.parametrize("shift", [0.0, 3.0, -30.0])
@pytest.mark.parametrize("seed", range(3))
def test_trivial_answers_get_no_credit(target, answer, shift, seed):
    row = output_error(Trivial(answer, target), *draw(seed=seed, shift=shift))
    assert row["skill"] <= 1e-12
    if answer == 0:
        assert row["output_error"] == pytest.approx(1)
    else:
        assert row["output_error"] == pytest.approx(row["uniform_error"])


def test_skill_against_uniform_alone_would_credit_zeros():
    # The planted fault: where the kernel underflows, the mean of v is far worse than nothing.
    q, k, v = draw(shift=3.0)
    row = output_error(Trivial(0, Kernel()), q + 2, k, v)
    assert 1 - row["output_error"] / row["uniform_error"] > 0.4
    assert row["skill"] <= 1e-12


def test_skill_of_exact_is_one_and_falls_with_the_error():
    q, k, v = draw()
    assert accuracy(Exact(), q, k, v)["skill"] == pytest.approx(1)
    skills = [output_error(Best(4, off), q, k, v)["skill"] for off in (0.0, 0.5, 1.0)]
    assert skills == sorted(skills, reverse=True)


@value
class Scaled(Exact):
    """The target's answer times 1.3: its error is 0.3, whatever the target."""

    of: Exact = Exact()

    @property
    def target(self):
        return self.of

    def __call__(self, q, k, v, key_mask=None):
        return 1.3 * self.of(q, k, v)


@pytest.mark.parametrize(
    ("target", "keys", "better"), [(Exact(), 30, "mean"), (Kernel(), 30, "zero"), (Exact(), 1, "")]
)
def test_skill_is_one_less_the_error_over_that_of_the_better_trivial_answer(target, keys, better):
    q, k, v = draw(l=keys, shift=3.0)
    exact = target(q, k, v)
    uniform = float((v.mean(0) - exact).norm() / exact.norm())
    # Of one key the mean is the exact answer, and what it is divided by is the rounding unit.
    least = {"mean": uniform, "zero": 1.0, "": torch.finfo(torch.float64).eps}[better]
    assert (uniform > 1) == (better == "zero")
    row = output_error(Scaled(target), q, k, v)
    assert row["output_error"] == pytest.approx(0.3)
    assert row["uniform_error"] == pytest.approx(uniform, abs=1e-16)
    assert row["skill"] == pytest.approx(1 - 0.3 / least)


@pytest.mark.parametrize("rank", [1, 3, 12])
def test_truncated_svd_sits_on_the_bound_and_anything_else_above(rank):
    q, k, v = draw()
    row = accuracy(Best(rank), q, k, v)
    s = torch.linalg.svdvals(Exact()(q, k, torch.eye(30, dtype=torch.float64)))
    assert row["matrix_error"] == pytest.approx(float(s[rank:].norm() / s.norm()), rel=1e-9)
    assert row["spectral_error"] == pytest.approx(float(s[rank] / s[0]), rel=1e-9)
    assert row["ratio_to_bound"] == pytest.approx(1, rel=1e-9)
    assert row["ratio_to_bound_spectral"] == pytest.approx(1, rel=1e-9)
    kept = measures.best_of_rank(rank, Reference(Exact(), q, k, v))
    assert kept == pytest.approx(row, rel=1e-9)
    worse = accuracy(Best(rank, off=0.3), q, k, v)
    assert worse["ratio_to_bound"] > 1.01


def test_at_full_rank_the_bound_is_zero_and_the_ratio_finite():
    q, k, v = draw()
    row = accuracy(Best(30), q, k, v)
    assert row["svd_bound"] == 0
    assert row["ratio_to_bound"] < 1e3


def test_error_is_that_of_the_operator_and_not_of_rounding_the_input():
    q, k, v = draw(dtype=torch.float32)
    assert output_error(Exact(), q, k, v)["output_error"] < 1e-6
    rounded = draw(dtype=torch.bfloat16)
    assert output_error(Exact(), *rounded)["output_error"] > 1e-4


def test_row_mass_shows_underflow():
    q, k, v = draw()
    near = output_error(Kernel(), q, k, v)
    far = output_error(Kernel(), q + 100, k, v)
    assert near["row_mass"] == pytest.approx(
        float(torch.exp(-0.5 * torch.cdist(q, k) ** 2).sum(1).mean())
    )
    assert near["row_mass_min"] == pytest.approx(
        float(torch.exp(-0.5 * torch.cdist(q, k) ** 2).sum(1).min())
    )
    assert far["row_mass"] == 0
    assert output_error(Exact(), q, k, v)["row_mass_min"] == pytest.approx(1)


def test_nan_is_flagged_and_never_looks_accurate():
    row = accuracy(Broken(4), *draw())
    assert row["finite"] is False
    assert row["output_error"] == row["matrix_error"] == row["spectral_error"] == math.inf
    assert row["skill"] == -math.inf


@value
class OneNaN(Best):
    """Right but for one number."""

    def __call__(self, q, k, v, key_mask=None):
        out = super().__call__(q, k, v).clone()
        out[3, 1] = math.nan
        return out


def test_one_number_that_is_not_finite_is_enough():
    row = accuracy(OneNaN(4), *draw())
    assert row["finite"] is False
    assert row["output_error"] == row["matrix_error"] == row["spectral_error"] == math.inf


def test_constant_values_make_uniform_exact_and_skill_harsh():
    q, k, _ = draw()
    row = output_error(Best(2), q, k, torch.ones(30, 5, dtype=torch.float64))
    assert row["uniform_error"] < 1e-14
    assert row["skill"] < 0


def test_operators_without_a_matrix_or_a_rank_leave_those_columns_out():
    class Nonlinear(Exact):
        @property
        def traits(self):
            return Traits(linear_in_v=False)

    assert "matrix_error" not in accuracy(Nonlinear(), *draw())
    assert "svd_bound" not in accuracy(Exact(), *draw())


@pytest.mark.parametrize("batched", ["qkv", "qk", "q", "k", "v"])
def test_a_batch_is_refused(batched):
    given = [
        x.unsqueeze(0) if name in batched else x for name, x in zip("qkv", draw(), strict=True)
    ]
    with pytest.raises(ValueError, match="one case is one head"):
        Reference(Exact(), *given)
    with pytest.raises(ValueError, match="one case is one head"):
        Reference(
            Exact(),
            *(x[0] if name in batched else x for name, x in zip("qkv", draw(), strict=True)),
        )


@pytest.mark.parametrize(
    "given",
    [[1.0, 2.0], None, torch.ones(4, 4).numpy(), torch.ones(4, 4, dtype=torch.int), torch.ones(4)],
    ids=["list", "None", "array", "integers", "vector"],
)
@pytest.mark.parametrize(
    "measure",
    [output_error, measures.matrix_error, accuracy, measures.certified_error, expense,
     measures.error_budget],
)  # fmt: skip
def test_what_is_no_head_is_refused_in_a_sentence(measure, given):
    with pytest.raises((TypeError, ValueError), match=r"q must be|two dimensions"):
        measure(Soft(4), given, given, given)


@pytest.mark.parametrize("op", [Softmax, "Softmax", lambda q, k, v: v], ids=["class", "str", "f"])
def test_what_is_no_operator_is_refused_in_a_sentence(op):
    with pytest.raises(TypeError, match=r"op is .*; give an operator, which has a target"):
        output_error(op, *draw())


@value
class Causal(Exact):
    """Softmax attention to the keys up to the query's own."""

    @property
    def traits(self):
        return Traits(exact=True, causal=True)

    def __call__(self, q, k, v, key_mask=None):
        scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(
            torch.ones(len(q), len(k)).triu(1).bool(), -math.inf
        )
        return scores.softmax(-1) @ v


def test_the_uniform_answer_of_a_causal_target_is_the_mean_of_the_values_so_far():
    q, k, v = draw(n=6, l=6)
    ref = Reference(Causal(), q, k, v)
    exact = Causal()(q, k, v)
    means = torch.stack([v[: i + 1].mean(0) for i in range(6)])
    assert ref.uniform_error == pytest.approx(float((means - exact).norm() / exact.norm()))
    assert ref.row_mass.shape == (6,)


@pytest.mark.parametrize("count", [1, 3, 30])
def test_the_best_of_keys_is_the_target_on_the_heaviest_of_each_query(count):
    q, k, v = draw()
    found = measures.best_of_keys(count, Reference(Exact(), q, k, v))
    rows = []
    for weights in Exact()(q, k, torch.eye(30, dtype=torch.float64)):
        heaviest = sorted(range(30), key=lambda j: -float(weights[j]))[:count]
        rows.append(sum(weights[j] * v[j] for j in heaviest) / sum(weights[j] for j in heaviest))
    exact = Exact()(q, k, v)
    error = float((torch.stack(rows) - exact).norm() / exact.norm())
    assert found["output_error"] == pytest.approx(error, abs=1e-14)
    assert found["row_mass"] == pytest.approx(1)


def test_a_relative_error_of_nothing_is_none_and_of_something_beside_nothing_infinite():
    zero, one = torch.zeros(3), torch.ones(3)
    found = [measures.relative(*pair) for pair in ((zero, zero), (one, zero), (one, 2 * one))]
    assert found == [0, math.inf, 0.5]


def test_references_are_computed_once_an_input():
    calls = []

    @value
    class Counting(Exact):
        def __call__(self, q, k, v, key_mask=None):
            calls.append(v.shape)
            return super().__call__(q, k, v)

    def inp(seed, *, dtype, device):
        return QKV(*draw(seed=seed, dtype=dtype))

    drawn = measures.sample(inp, 0, dtype=torch.float64, device=CPU)
    for rank in (1, 2, 3):
        ref = drawn.reference(Counting())
        accuracy(Best(rank), drawn.q, drawn.k, drawn.v, ref)
    assert len(calls) == 3  # output, row mass, matrix
    assert measures.sample(inp, 0, dtype=torch.float64, device=CPU).references == {}


def test_a_certified_error_is_the_bound_over_the_least_that_the_exact_output_can_be():
    @value
    class Certified(Exact):
        size: float

        @property
        def traits(self):
            return Traits(certified=True)

        def bound(self, q, k, v, *, out):
            return self.size * out.norm() * torch.tensor([0.6, 0.8])  # of norm 1

    case = draw(n=2)
    for size, due in ((0.25, 0.25 / 0.75), (0.9, 9.0), (1.0, math.inf), (2.0, math.inf)):
        found = measures.certified_error(Certified(size), *case)
        assert found == {"certified_error": pytest.approx(due)}
    assert measures.certified_error(Exact(), *case) == {"certified_error": None}


def test_a_drawn_sample_cannot_be_changed_by_who_shares_it():
    drawn = measures.sample(Normal(6, 2), 0, dtype=torch.float32, device=CPU)
    assert drawn.q.dtype == torch.float32
    with pytest.raises(dataclasses.FrozenInstanceError):
        drawn.q = drawn.k


def test_peak_memory_of_one_product_and_of_its_chunks():
    x = torch.randn(512, 512)
    size = 512 * 512 * 4
    assert peak_memory(lambda: x @ x, CPU) == size
    assert peak_memory(lambda: (x @ x, x @ x), CPU) == 2 * size

    def chunked():
        out = torch.empty(512, 1)
        for rows in range(0, 512, 64):
            out[rows : rows + 64] = (x[rows : rows + 64] @ x).sum(1, keepdim=True)
        return out

    assert size / 8 <= peak_memory(chunked, CPU) < size / 4


def test_peak_memory_sees_a_naive_attention_and_not_a_fused_one():
    q = torch.randn(1, 1, 1024, 16)
    naive = peak_memory(lambda: Exact()(q, q, q), CPU)
    fused = peak_memory(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q), CPU)
    assert naive >= 1024 * 1024 * 4 > fused


def test_peak_memory_leaves_standard_error_alone(capfd):
    peak_memory(lambda: torch.ones(3), CPU)
    assert capfd.readouterr() == ("", "")


def test_expense_counts_and_times():
    q, k, v = draw()
    row = expense(Exact(), q, k, v, budget=0.0, repeats=3)
    assert row["flops"] == 2 * 40 * 30 * (4 + 5)
    assert row["kernel_entries"] == 1200
    assert row["factorization_flops"] == 0
    assert 0 < row["seconds_q1"] <= row["seconds"] <= row["seconds_q3"]
    assert row["repeats"] == 3
    assert row["peak_bytes"] >= (1200 + 40 * 5) * 8


def test_seconds_spends_its_budget():
    calls = []
    row = seconds(lambda: calls.append(1), CPU, budget=10.0, repeats=2)
    assert row["repeats"] == 1000 == len(calls) - 3


def test_inversion_says_how_the_core_was_left():
    x = Clustered(64, 8, clusters=4, spread=1e-3)(0, dtype=torch.float64).q
    early = measures.inversion(Soft(16, pinv=NewtonRaphson(steps=3)), x, x)
    assert early["core_status"] == "OUT_OF_STEPS"
    assert early["core_residual"] > 1e-3
    assert early["core_steps"] == 3
    spread = 20 * Normal(64, 8)(0, dtype=torch.float64).q
    done = measures.inversion(Soft(16), spread, spread)
    assert done["core_status"] == "CONVERGED"
    assert done["core_residual"] < 1e-12
    assert measures.inversion(Softmax(), x, x) == {}


@pytest.mark.parametrize(
    "pinv",
    [
        NystromformerCubic(6),
        NewtonRaphson(3),
        NewtonRaphson(60),
        Ridge(Cholesky(), ridge=0.01),
        Ridge(ConjugateGradients(steps=3), ridge=0.01),
        SVD(),
    ],
    ids=repr,
)
def test_the_residual_of_the_core_is_that_of_the_inverse_that_is_applied(pinv):
    # At full rank the landmarks are the keys, and the operator's matrix is A X A.
    k = Normal(32, 8)(0, dtype=torch.float32).k
    op = Soft(32, pinv=pinv)
    core = op.kernel(8).matrix(k, k)
    residual = (op(k, k, torch.eye(32)) - core).norm() / core.norm()
    found = measures.inversion(op, k, k)["core_residual"]
    assert found == pytest.approx(float(residual), rel=1e-3, abs=1e-5)


def test_the_inversion_of_a_batch_is_its_worst():
    easy = 20 * Normal(64, 8)(0, dtype=torch.float64).q
    hard = Clustered(64, 8, clusters=4, spread=1e-3)(0, dtype=torch.float64).q
    op = Soft(16, pinv=NewtonRaphson(steps=9))
    each = [measures.inversion(op, x, x) for x in (easy, hard)]
    assert [one["core_status"] for one in each] == ["CONVERGED", "OUT_OF_STEPS"]
    assert each[0]["core_steps"] < each[1]["core_steps"] == 9
    for order in ([easy, hard], [hard, easy]):
        found = measures.inversion(op, torch.stack(order), torch.stack(order))
        assert found == pytest.approx(each[1])


@pytest.mark.parametrize(
    ("factor", "residual", "status"),
    [(2.0, 1.0, "CONVERGED"), (2.001, 1.001, "DIVERGED"), (None, math.inf, "DIVERGED")],
)
def test_an_inverse_that_is_worse_than_nothing_diverged(monkeypatch, factor, residual, status):
    """The applied inverse is patched to a multiple of the identity: A (f I) - A is (f - 1) A."""

    def applier(pinv, core):
        if factor is None:
            raise ValueError("overflow")
        return lambda x: factor * torch.linalg.solve(core, x)

    monkeypatch.setattr(measures, "applier", applier)
    x = 20 * Normal(64, 8)(0, dtype=torch.float64).q
    found = measures.inversion(Soft(16), x, x)
    assert found["core_residual"] == pytest.approx(residual)
    assert found["core_status"] == status


def test_a_residual_is_not_that_of_a_better_iterate_on_the_way():
    x = Clustered(64, 8, clusters=4, spread=1e-3)(0, dtype=torch.float32)
    found = [measures.inversion(Soft(16, pinv=NewtonRaphson(s)), x.q, x.k) for s in (30, 80)]
    # The core has rank 4 up to rounding, and steps beyond the best spoil the inverse.
    assert found[0]["core_steps"] == found[1]["core_steps"] <= 30
    assert found[0]["core_residual"] < 1e-4
    assert found[1]["core_residual"] > 10
    assert found[1]["core_status"] == "DIVERGED"
