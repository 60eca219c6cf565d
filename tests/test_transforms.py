"""Tracing, transforms and tensors without plain numbers: right, or refused in a sentence."""

import functools
import importlib.util
import itertools
import re
import sys
import warnings
from pathlib import Path

import pytest
import torch
from matrices import with_spectrum
from torch import func
from torch._subclasses import FakeTensorMode
from torch.autograd import grad
from zoo import OPERATORS, SELECTORS, SOLVERS

from softlab import core
from softlab.core import Stream
from softlab.inputs import Decaying
from softlab.matrices import Geometric, LowRank
from softlab.operators import (
    AttentionMatching,
    BigBird,
    GaussianAttention,
    KDEFormer,
    Local,
    RandomFourier,
    Scatterbrain,
    Soft,
    Softmax,
    TopK,
)
from softlab.validation import trusted


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def draw():
    return [normal(2, 9, 4, seed=s) for s in range(3)]


# --- torch.jit.trace -------------------------------------------------------------------------


def traced(call, *tensors):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit itself
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        return torch.jit.trace(call, tensors, check_trace=False)


@pytest.mark.parametrize("op", OPERATORS, ids=repr)
def test_a_trace_of_an_operator_is_refused(op):
    with pytest.raises(RuntimeError, match=r"torch.jit.trace cannot record.*torch.compile it"):
        traced(lambda q, k, v: op(q, k, v), *draw())


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_a_trace_of_a_solver_is_refused(solver):
    with pytest.raises(RuntimeError, match=r"torch.jit.trace cannot record.*torch.compile it"):
        traced(lambda a: solver(a), with_spectrum(1, 0.5, 0.2))


# --- a default device ------------------------------------------------------------------------


def same_elsewhere(call):
    wanted = call()
    with torch.device("meta"):  # stands for any other device
        found = call()
    for mine, theirs in zip(found, wanted, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("op", OPERATORS, ids=repr)
def test_an_operator_does_not_heed_the_default_device(op):
    q, k, v = draw()
    mask = torch.tensor([[True] * 7 + [False] * 2, [True] * 9])
    kernel = (
        [op.kernel_matrix] if hasattr(op, "kernel_matrix") and not isinstance(op, KDEFormer) else []
    )
    same_elsewhere(lambda: [op(q, k, v), op(q, k, v, mask), *(call(q, k) for call in kernel)])


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_a_solver_does_not_heed_the_default_device(solver):
    a = with_spectrum(1, 0.5, 0.2)
    same_elsewhere(lambda: [solver(a), solver.solve(a).x, *solver.iterates(a)])


@pytest.mark.parametrize("selector", SELECTORS, ids=repr)
def test_a_selector_does_not_heed_the_default_device(selector):
    x = draw()[0]
    same_elsewhere(lambda: [selector(x, 4)])


def test_inputs_and_matrices_do_not_heed_the_default_device():
    same_elsewhere(
        lambda: [*Decaying(6, 4, rate=0.3)(0), Geometric(6, 1e3)(0), LowRank(6, 3, 10.0)(0)]
    )


# --- torch.func ------------------------------------------------------------------------------

REFUSED = "does not work under this transform.*leading dimensions.*torch.autograd.grad"


def attempt(call, refused):
    """What the call returns, None where it is refused in these words."""
    try:
        return call()
    except RuntimeError as error:
        if not re.search(refused, str(error)):
            raise


def right_or_refused(call, wanted):
    """Equal to the plain call, or the one sentence; says which."""
    found = attempt(call, REFUSED)
    if found is None:
        return False
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9)
    return True


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own use
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # it has no rule for addcmul_
@pytest.mark.parametrize("op", OPERATORS, ids=repr)
def test_transforms_are_right_or_refused(op):
    q, k, v = draw()
    weight, leaf = normal(2, 9, 4, seed=4), q.clone().requires_grad_()
    out = op(leaf, k, v)
    gradient = torch.zeros_like(q)
    if out.requires_grad:
        (gradient,) = grad((out * weight).sum(), leaf, materialize_grads=True)

    def loss(q, k, v, weight):
        return (op(q, k, v) * weight).sum()

    mapped = right_or_refused(lambda: func.vmap(op)(q, k, v), out.detach())
    assert mapped != isinstance(op, AttentionMatching)  # whose next step is chosen by value
    right_or_refused(lambda: func.grad(loss)(q, k, v, weight), gradient)
    right_or_refused(lambda: func.vmap(func.grad(loss))(q, k, v, weight), gradient)
    slope = (gradient * weight).sum()
    right_or_refused(lambda: func.jvp(lambda z: loss(z, k, v, weight), (q,), (weight,))[1], slope)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own use
@pytest.mark.parametrize("op", [Softmax(), GaussianAttention(), Softmax(causal=True)], ids=repr)
def test_exact_operators_work_in_every_transform(op):
    q, k, v = draw()
    out = op(q, k, v)
    assert right_or_refused(lambda: func.vmap(op)(q, k, v), out)
    hessian = func.hessian(lambda z: op(z, k, v).sum())(q)
    wanted = torch.autograd.functional.hessian(lambda z: op(z, k, v).sum(), q)
    torch.testing.assert_close(hessian, wanted)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own use
@pytest.mark.parametrize("normalization", ["none", "row", "symmetric", "published"])
def test_tied_queries_in_forward_mode(normalization):
    op, (q, _, v), along = Soft(4, normalization=normalization), draw(), normal(2, 9, 4, seed=4)
    leaf = q.clone().requires_grad_()
    (gradient,) = grad(op(leaf, leaf, v).sum(), leaf)
    slope = func.jvp(lambda z: op(z, z, v).sum(), (q,), (along,))[1]
    torch.testing.assert_close(slope, (gradient * along).sum())


def test_values_are_looked_at_inside_transforms_too():
    q, k, v = draw()
    k[1, 3, 2] = torch.nan
    with pytest.raises(ValueError, match="k has 1 entries that are NaN"):
        func.vmap(Softmax())(q, k, v)
    mask = torch.tensor([[True] * 9, [False] * 9])
    with pytest.raises(ValueError, match="key_mask leaves no key"):
        func.vmap(TopK(k=3))(q, q, v, mask)


# --- tensors of another kind -----------------------------------------------------------------


@pytest.mark.parametrize("op", OPERATORS, ids=repr)
def test_other_kinds_of_tensors_are_told_apart(op):
    q, k, v = draw()
    for kind, words in (
        (q.to_sparse(), r"q must be a dense tensor, got torch.sparse_coo.*to_dense"),
        (ragged(q), r"q is a nested \(ragged\) tensor.*to_padded_tensor.*key_mask"),
    ):
        with pytest.raises(TypeError, match=words):
            op(kind, k, v)
    bare = [x.to("meta") for x in (q, k, v)]
    out = attempt(lambda: op(*bare), "looks at values, and a tensor on 'meta' has none")
    assert out is None or out.shape == (2, 9, 4)
    with FakeTensorMode() as mode, pytest.raises(RuntimeError, match="looks at values, which"):
        op(*(mode.from_tensor(x) for x in (q, k, v)))


def ragged(x):
    return torch.nested.nested_tensor([x[0], x[1, :5]], layout=torch.jagged)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_a_solver_tells_them_apart(solver):
    a = with_spectrum(1, 0.5, 0.2)
    for call in (solver, solver.solve):
        with pytest.raises(TypeError, match=r"a must be a dense tensor.*to_dense"):
            call(a.to_sparse())


def test_masks_of_another_kind():
    q, k, v = draw()
    with pytest.raises(TypeError, match=r"key_mask must be a dense tensor"):
        Softmax()(q, k, v, torch.ones(2, 9, dtype=torch.bool).to_sparse())


# --- the table of the site -------------------------------------------------------------------

TOOL = Path(__file__).parents[1] / "tools" / "transforms.py"


@functools.cache
def tool():
    spec = importlib.util.spec_from_file_location("transforms", TOOL)
    module = importlib.util.module_from_spec(spec)
    sys.modules["transforms"] = module  # a pickled operator's helpers are found there
    spec.loader.exec_module(module)
    return module


def table():
    """The cells of the page, by operator and column."""
    page = (TOOL.parents[1] / "docs" / "guide" / "transforms.md").read_text(encoding="utf-8")
    lines = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    head, *rows = [line for line in lines if len(line) > 10]
    return {name: dict(zip(head[1:], cells, strict=True)) for name, *cells in rows}


def test_the_table_has_every_operator_and_transform():
    cells = table()
    assert {*cells} == {*tool().cases()}
    assert all({*row} == {*tool().TRANSFORMS} for row in cells.values())
    assert {x for row in cells.values() for x in row.values()} <= {"yes", "?", *tool().REFUSALS}
    page = (TOOL.parents[1] / "docs" / "guide" / "transforms.md").read_text(encoding="utf-8")
    assert all(re.search(rf"^\| [a-z, ]*\b{x}\b[a-z, ]* \|", page, re.M) for x in tool().REFUSALS)


QUICK = (
    "vmap",
    "grad",
    "jvp",
    "second",
    "autocast",
    "deterministic",
    "inference",
    "meta",
    "pickle",
)


@pytest.mark.parametrize(
    "name", ["Softmax", "Soft", "TopK", "Local, causal", "Performer", "Uniform"]
)
def test_a_sample_of_the_table_is_measured_again(name):
    op, cells = tool().cases()[name], table()[name]
    assert {x: tool().cell(op, x) for x in QUICK} == {x: cells[x] for x in QUICK}


def drawn(x):
    rng, other = Stream(3, "tests"), Stream(2**70, "tests")
    out = x * rng.normal(4, 3) + rng.uniform(3) + rng.signs(4, 3)
    return out + rng.permutation(4)[:, None] * other.integers(9, 3)


def test_a_program_that_is_kept_draws_the_same_each_time():
    x = normal(4, 3)
    compiled = torch.compile(drawn, backend="eager", fullgraph=True)
    exported = torch.export.export(Program(drawn), (x,)).module()
    for _ in range(2):
        assert torch.equal(compiled(x), drawn(x))
        assert torch.equal(exported(x), drawn(x))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("n", [1, 5, 40, 64])
@pytest.mark.parametrize("l", [1, 9, 40, 70])
def test_sizes_that_a_compiled_program_cannot_look_at_are_bounded(n, l, causal, monkeypatch):
    """Bounds of sizes alone stand there for the widest interval and the number of tokens."""
    if causal and n != l:
        return
    q, k, v = (normal(2, size, 4, seed=seed) for seed, size in enumerate((n, l, l)))
    bands = Local(2, sinks=1, causal=causal), Scatterbrain(2, 8, sinks=1, causal=causal)
    for op in (*bands, BigBird(2, globals=2, random=2, block=4)):
        wanted = op(q, k, v)
        with monkeypatch.context() as patch, trusted():
            patch.setattr(torch.compiler, "is_compiling", lambda: True)
            torch.testing.assert_close(op(q, k, v), wanted)


class Program(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *tensors):
        return self.function(*tensors)


def test_a_program_that_draws_anew_is_no_yes(monkeypatch):
    """What an exported program did before."""
    op = RandomFourier(4)
    assert tool().cell(op, "export") == "yes"
    monkeypatch.setattr(Stream, "_draw", drawn_on)
    assert tool().cell(op, "export").startswith("FAILS: AssertionError")


def drawn_on(self, kind, *sizes):
    self.generator = vars(self).get("generator") or torch.Generator().manual_seed(self.number)
    return core._drawn(self.generator, kind, sizes)


@pytest.mark.parametrize(
    "op",
    [Local(3), Local(3, causal=True), Local(2, dilation=3)],
    ids=repr,
)
def test_a_width_that_is_counted_holds_all_that_is_seen(op, monkeypatch):
    for n, l in itertools.product((1, 7, 40, 41), repeat=2):
        if n != l and getattr(op, "causal", False):
            continue
        q, k, v = normal(1, n, 4), normal(1, l, 4, seed=1), normal(1, l, 4, seed=2)
        looked = op(q, k, v)
        with monkeypatch.context() as patched:
            patched.setattr(torch.compiler, "is_compiling", lambda: True)
            torch.testing.assert_close(op(q, k, v), looked)


def test_a_trusted_input_is_not_looked_at():
    bad = [torch.full((2, 3, 4), torch.nan) for _ in range(3)]
    with trusted():
        with trusted():
            Softmax()(*bad)
        Softmax()(*bad)
    with pytest.raises(ValueError, match="NaN"):
        Softmax()(*bad)


def test_a_wrong_gradient_is_no_yes(monkeypatch):
    monkeypatch.setattr(tool(), "gradient", lambda op, q: 2 * torch.ones_like(q))
    assert tool().cell(Softmax(), "grad").startswith("FAILS: AssertionError")
