"""Triton kernels against float64, run by Triton's interpreter, and compiled for a GPU.

The interpreter proves indexing, masks, tails and formulas; it truncates where a GPU rounds to
bfloat16, and knows no TF32. Speed and rounding of a GPU are for ``make gpu``.
"""

import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from softlab import gpu
from softlab.kernels import Gaussian
from softlab.landmarks import SegmentMeans
from softlab.operators import Soft
from softlab.pinv import ImplicitGradient, NewtonRaphson, Status

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, which interprets
F64 = torch.float64
EPS = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1.2e-2}
"""Relative errors allowed in the norm: a few roundings of the dtype, truncated in bfloat16."""


@pytest.fixture
def interpreted(monkeypatch):
    """Kernels take CPU tensors."""
    monkeypatch.setenv("SOFTLAB_KERNELS", "interpreted")
    import interpreter

    interpreter.mend()
    gpu._imports.cache_clear()
    monkeypatch.setattr(gpu, "_GIVEN_UP", set())
    yield
    gpu._imports.cache_clear()


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def missed(found, exact):
    found, exact = found.detach().double(), exact.detach()
    return float((found - exact).norm() / exact.norm().clamp_min(1e-12))


def counted(monkeypatch, module, name):
    """Calls of a function of the package."""
    calls, right = [], gpu.kernel

    def kernel(asked, of):
        calls.append((asked, of))
        return right(asked, of)

    monkeypatch.setattr(gpu, "kernel", kernel)
    return lambda: calls.count((module, name))


SIZES = [  # batch, n, l, d, e
    (1, 1, 5, 3, 1),
    (2, 65, 77, 20, 33),
    (3, 1, 1, 1, 1),
    (1, 17, 1129, 40, 7),  # keys in two parts
    (1, 33, 64, 128, 96),
]


@pytest.mark.parametrize("dtype", EPS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.usefixtures("interpreted")
def test_gaussian_sum_and_its_gradients_equal_float64(size, dtype):
    call = gpu.kernel("gaussian_sum", "gaussian_sum")
    b, n, l, d, e = size
    points = normal(b, n, d, seed=1) / 2, normal(b, l, d, seed=2) / 2, normal(b, l, e, seed=3)
    ours = [x.to(dtype).requires_grad_() for x in points]
    exact = [x.detach().double().requires_grad_() for x in ours]
    weight = normal(b, n, e, seed=4).to(dtype)
    sigma = d**0.25
    out = call(*ours, variance=sigma**2)
    right = Gaussian(sigma).matrix(*exact[:2]) @ exact[2]
    assert out.dtype == dtype
    assert missed(out, right) <= EPS[dtype]
    found = torch.autograd.grad(out, ours, weight)
    for mine, theirs in zip(found, torch.autograd.grad(right, exact, weight.double()), strict=True):
        assert mine.dtype == dtype
        assert missed(mine, theirs) <= 2 * EPS[dtype]


@pytest.mark.usefixtures("interpreted")
def test_rows_may_lie_anywhere_in_memory():
    call = gpu.kernel("gaussian_sum", "gaussian_sum")
    q, k, v = normal(2, 9, 4), normal(2, 7, 4, seed=1), normal(2, 7, 3, seed=2)
    plain = call(q.float(), k.float(), v.float(), variance=2.0)
    columns = [x.float().mT.contiguous().mT for x in (q, k, v)]
    padded = [torch.nn.functional.pad(x.float(), (1, 2))[..., 1:-2] for x in (q, k, v)]
    for other in (columns, padded):
        assert torch.equal(call(*other, variance=2.0), plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.usefixtures("interpreted")
def test_far_points_in_half_precision_keep_their_exponents(dtype):
    """Norms of 30: products in half precision would put errors of order one on an exponent."""
    call = gpu.kernel("gaussian_sum", "gaussian_sum")
    x = (normal(1, 40, 16) * 7).to(dtype)
    ones = torch.ones(1, 40, 1, dtype=dtype)
    out = call(x, x, ones, variance=4.0)
    exact = Gaussian(2.0).matrix(x.double(), x.double()).sum(-1, keepdim=True)
    assert missed(out, exact) <= {torch.float32: 3e-5, torch.bfloat16: EPS[dtype]}[dtype]


@pytest.mark.usefixtures("interpreted")
def test_the_kernel_of_gaussians_is_called_and_has_second_derivatives(monkeypatch):
    calls = counted(monkeypatch, "gaussian_sum", "gaussian_sum")
    leaves = [x.float().requires_grad_() for x in (normal(6, 3), normal(5, 3), normal(5, 2))]
    exact = [x.detach().double().requires_grad_() for x in leaves]
    found = []
    for points in (leaves, exact):
        out = Gaussian(1.5).apply(*points)
        first = torch.autograd.grad(out.square().sum(), points, create_graph=True)
        total = sum(x.square().sum() for x in first)
        found.append(torch.autograd.grad(total, points))
    assert calls() == 1  # float64 takes the plain form
    for mine, theirs in zip(*found, strict=True):
        assert missed(mine, theirs) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.usefixtures("interpreted")
def test_half_precision_reaches_the_kernel_as_it_is_and_has_gradients(dtype, monkeypatch):
    seen, right = [], gpu.attempt

    def attempt(module, plain, call, *args):
        seen.append(args[0].dtype)
        return right(module, plain, call, *args)

    monkeypatch.setattr(gpu, "attempt", attempt)
    points = [x.to(dtype).requires_grad_() for x in (normal(6, 3), normal(5, 3), normal(5, 2))]
    exact = [x.detach().double().requires_grad_() for x in points]
    out, wanted = Gaussian(1.5).apply(*points), Gaussian(1.5).apply(*exact)
    assert seen == [dtype]
    assert missed(out, wanted) <= EPS[dtype]
    found = torch.autograd.grad(out.float().sum(), points)
    for mine, theirs in zip(found, torch.autograd.grad(wanted.sum(), exact), strict=True):
        assert missed(mine, theirs) <= 4 * EPS[dtype]
    monkeypatch.setattr(
        gpu, "attempt", lambda _, plain, *__: plain()
    )  # as where Triton gives a kernel up
    assert missed(Gaussian(1.5).apply(*points), wanted) <= EPS[dtype]


@pytest.mark.parametrize("m", [1, 7, 33, 64])
@pytest.mark.usefixtures("interpreted")
def test_steps_and_their_adjoint_equal_the_loop(m, monkeypatch):
    calls = counted(monkeypatch, "newton_raphson", "newton_raphson")
    solver = NewtonRaphson(steps=6)
    a = Gaussian(1.0).matrix(normal(3, m, 5), normal(3, m, 5)) + torch.eye(m)
    weight, found = normal(3, m, m, seed=9), []
    for x in (a.float(), a.float().double()):
        leaf = x.requires_grad_()
        out = solver(leaf)
        found.append((out, *torch.autograd.grad(out, leaf, weight.to(x.dtype))))
    assert calls() == 1
    for mine, theirs in zip(*found, strict=True):
        assert missed(mine, theirs) <= 1e-5


def matrices(kind):
    """Float64 matrices, several to a batch, each with another end."""
    q = torch.linalg.qr(normal(4, 12, 12))[0]
    spectra = {
        "every end": [
            torch.logspace(0, -1, 12), torch.logspace(0, -5, 12),
            (torch.arange(12) < 5).double(), torch.zeros(12),
        ],
        "slow and fast": [torch.logspace(0, -s, 12) for s in (0.0, 1.0, 2.0, 3.0)],
    }[kind]  # fmt: skip
    s = torch.stack([x.double() for x in spectra])
    return q @ torch.diag_embed(s) @ q.mT


@pytest.mark.parametrize("steps", [3, 20, 60])
@pytest.mark.parametrize("kind", ["every end", "slow and fast"])
@pytest.mark.usefixtures("interpreted")
def test_solve_ends_as_the_loop_ends(kind, steps, monkeypatch):
    a, solver = matrices(kind).float(), NewtonRaphson(steps=steps)
    fused = solver.solve(a)
    monkeypatch.setattr(gpu, "serves", lambda *_, **__: False)
    looped = solver.solve(a)
    assert [Status(int(x)) for x in fused.status] == [Status(int(x)) for x in looped.status]
    # What many steps on a condition of 1e5 leave is the rounding of either.
    rtol = 0.5 if steps == 60 else 0.05
    torch.testing.assert_close(fused.residual, looped.residual, rtol=rtol, atol=1e-6)
    if steps == 60:
        return
    # Within rounding the best iterate is one of several alike.
    apart = (fused.steps - looped.steps).abs()
    assert bool((apart <= torch.where(looped.residual > 1e-5, 0, 3)).all())
    for mine, theirs in zip(fused.x.double(), looped.x.double(), strict=True):
        assert missed(mine, theirs) <= 1e-3


@pytest.mark.usefixtures("interpreted")
def test_solve_says_what_is_not_finite():
    a = matrices("slow and fast").float()
    a[1, 0, 0], a[2, 3, 4] = torch.nan, torch.inf
    result = NewtonRaphson(steps=20).solve(a)
    bad = [int(x) == Status.NON_FINITE for x in result.status]
    assert bad == [False, True, True, False]
    assert result.x[1:3].isnan().all()
    with pytest.raises(ValueError, match="finite"):
        NewtonRaphson(steps=20)(a)


@pytest.mark.sampled(1 / 3)
@pytest.mark.parametrize("normalization", ["none", "row", "symmetric", "published"])
@pytest.mark.parametrize("rule", ["unrolled", "implicit"])
@pytest.mark.usefixtures("interpreted")
def test_soft_by_kernels_equals_float64(normalization, rule, monkeypatch):
    calls = counted(monkeypatch, "gaussian_sum", "gaussian_sum")
    solver = NewtonRaphson(steps=8)
    solver = solver if rule == "unrolled" else ImplicitGradient(solver)
    op = Soft(rank=5, pinv=solver, normalization=normalization, landmarks=SegmentMeans())
    x, v = normal(2, 3, 21, 6), normal(2, 3, 21, 4, seed=1)
    mask = torch.ones(2, 3, 21, dtype=torch.bool)
    mask[0, 1, 15:] = False
    found = []
    for dtype in (torch.float32, F64):
        leaves = [y.to(torch.float32).to(dtype).requires_grad_() for y in (x, v)]
        out = op(leaves[0], leaves[0], leaves[1], mask)
        weight = normal(*out.shape, seed=3).to(dtype)
        found.append((out, *torch.autograd.grad(out, leaves, weight)))
    assert calls() >= 2
    for mine, theirs in zip(*found, strict=True):
        assert missed(mine, theirs) <= 2e-5


@pytest.mark.usefixtures("interpreted")
def test_what_a_kernel_does_not_take_goes_the_plain_way(monkeypatch):
    calls = counted(monkeypatch, "gaussian_sum", "gaussian_sum")
    wide = [normal(3, gpu.WIDEST + 1, dtype=torch.float32) for _ in range(2)]
    Gaussian(9.0).apply(*wide, normal(3, 2, dtype=torch.float32))
    points = [normal(3, 2, dtype=torch.float32) for _ in range(3)]
    torch.func.grad(lambda q: Gaussian(1.0).apply(q, *points[1:]).sum())(points[0])
    Gaussian(1.0).apply(*points, causal=True)
    Gaussian(1.0).apply(points[0].double(), points[1].double(), points[2].double())
    assert calls() == 0
    large = torch.eye(gpu.LARGEST + 1)
    assert torch.equal(NewtonRaphson(steps=30)(large), NewtonRaphson(steps=30)(large))


@pytest.mark.usefixtures("interpreted")
def test_a_kernel_that_fails_is_given_up_with_a_warning(monkeypatch):
    from triton.runtime.errors import OutOfResources

    def broken(*_, **__):
        raise OutOfResources(300000, 232448, "shared memory")

    points = [normal(3, 2, dtype=torch.float32) for _ in range(3)]
    exact = Gaussian(1.0).matrix(*points[:2]) @ points[2]
    monkeypatch.setattr(gpu, "kernel", lambda *_: broken)
    with pytest.warns(UserWarning, match="gaussian_sum, with torch alone: out of resource"):
        torch.testing.assert_close(Gaussian(1.0).apply(*points), exact)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        torch.testing.assert_close(Gaussian(1.0).apply(*points), exact)


def test_a_triton_that_does_not_import_is_said_once_and_not_used(monkeypatch, tmp_path):
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text("raise OSError('no libcuda')")
    script = (
        "import torch, warnings; from softlab.kernels import Gaussian\n"
        "x = torch.ones(2, 2)\n"
        "with warnings.catch_warnings(record=True) as said:\n"
        "    warnings.simplefilter('always'); a = Gaussian(1.0).apply(x, x, x)\n"
        "    Gaussian(1.0).apply(x, x, x)\n"
        "print(len(said), said[0].message, a[0, 0].item())"
    )
    root = str(Path(__file__).parents[1])
    out = subprocess.run(
        [sys.executable, "-c", script],
        env={"SOFTLAB_KERNELS": "interpreted", "PYTHONPATH": f"{tmp_path}:{root}"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert out.stdout.startswith("1 Triton does not import, so softlab uses torch alone: OSError")
    assert out.stdout.rstrip().endswith("2.0")


COMPILED = """
import re, subprocess, tempfile
from pathlib import Path
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from softlab.gpu import gaussian_sum, kernels, newton_raphson

FLOATS = {"c", "inverse", "factor"}

def report(fn, dtype, sizes):
    size = {k: v for k, v in sizes.items() if k not in ("num_warps", "num_stages")}
    how = {k: v for k, v in sizes.items() if k not in size}
    signature, aligned = {}, {}
    for i, name in enumerate(fn.arg_names):
        pointer = name[0].isupper()
        signature[name] = (
            "constexpr" if name in size else "*i32" if name == "Steps"
            else f"*{dtype}" if pointer else "fp32" if name in FLOATS else "i32"
        )
        if name not in size and name not in FLOATS:
            aligned[(i,)] = [["tt.divisibility", 16]]
    constants = {(fn.arg_names.index(k),): v for k, v in size.items()}
    source = ASTSource(fn, signature, constexprs=constants, attrs=aligned)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=how)
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"]); file.flush()
        sass = subprocess.run([tool, "--dump-sass", file.name], capture_output=True, text=True)
    count = lambda word: len(re.findall(rf"\\b{word}", sass.stdout))
    print(fn.__name__, dtype, count("HGMMA"), count("LDL") + count("STL"), made.metadata.shared)

blocks = gaussian_sum.blocks
for dtype, own in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
    size = blocks(64, 64, own, compiled=True) | {"PRECISION": "tf32x3"}
    report(kernels.sum_forward, dtype, size)
report(kernels.newton_raphson, "fp32", newton_raphson._how(64, compiled=True) | {"TRACED": False})
"""


def test_compiled_for_a_gpu_they_spill_nothing_and_use_the_matrix_units():
    """By Triton's own compiler, for compute capability 9.0; no GPU takes part."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if not tool.exists():
        pytest.skip("this Triton brings no disassembler")
    root = str(Path(__file__).parents[1])
    path = f"{root}:{Path(triton.__file__).parents[1]}"
    out = subprocess.run(
        [sys.executable, "-c", COMPILED],
        env={"PYTHONPATH": path, "HOME": str(Path.home()), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    rows = re.findall(r"^(\w+) (\w+) (\d+) (\d+) (\d+)$", out.stdout, re.MULTILINE)
    assert len(rows) == 3, out.stderr[-2000:]
    for name, _, units, spilled, shared in rows:
        assert int(spilled) == 0, name
        assert int(shared) <= 227 * 1024, name
        if name == "sum_forward":
            assert int(units) > 0, name
