"""Gaussian sums along every way that they can take: values, gradients, neighbours, memory."""

import math

import pytest
import torch
from matrices import F32, F64, normal
from naive import naive, naive_average, results
from pretended import down, pretending, up
from torch.utils.flop_counter import FlopCounterMode, bmm_flop

from softlab import Dims, core
from softlab.kernels import Exponential, Gaussian, fused, kernel_cost, tiled
from softlab.kernels import functions as kernels
from softlab.kernels.tiled import tiled_sum
from softlab.laws import tolerance
from softlab.profiling import peak_memory

WAYS = ["tiled", "small tiles", "fused", "differences", "small differences"]


@pytest.fixture
def force(monkeypatch):
    """Send every Gaussian sum one way."""

    def send(way):
        monkeypatch.setattr(kernels, "suits", lambda x, y, v: way != "fused")
        if way == "small tiles":
            monkeypatch.setattr(tiled, "TILE_ENTRIES", 1)
        if way == "small differences":
            monkeypatch.setattr(kernels, "CAREFUL_ENTRIES", 1)
        rough = way.endswith("differences")
        monkeypatch.setattr(
            kernels, "_rough", lambda radius, s: torch.full(radius.shape, rough, dtype=torch.bool)
        )

    return send


# --- every way -------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [(2, 9, 200, 3, 4), (3, 150, 6, 5, 1), (1, 1, 1, 1, 9)], ids=str)
def test_every_way_gives_the_same_sum_and_gradients(force, way, shape):
    b, n, l, d, e = shape
    x, y, v = normal(b, n, d), normal(b, l, d, seed=1), normal(b, l, e, seed=2)
    kernel = Gaussian(1.3)
    exact = results(lambda x, y, v: naive(kernel, x, y) @ v, x, y, v)
    force(way)
    for dtype in (F64, F32):
        got = results(kernel.apply, *(t.to(dtype) for t in (x, y, v)))
        for ours, wanted in zip(got, exact, strict=True):
            scale = max(1.0, float(wanted.detach().abs().max()))
            gap = (ours - wanted).detach().abs().max()
            assert float(gap) <= tolerance(dtype, 200, scale=scale, c=4)


@pytest.mark.parametrize("way", ["fused", "differences", "small differences"])
@pytest.mark.parametrize("masked", [False, True], ids=["full", "masked"])
def test_every_way_gives_the_same_average_and_gradients(force, way, masked):
    x, y, v = normal(2, 9, 3), normal(2, 40, 3, seed=1), normal(2, 40, 4, seed=2)
    key_mask = normal(2, 40, seed=3) > -0.5 if masked else None
    kernel = Gaussian(0.7)
    exact = results(lambda x, y, v: naive_average(kernel, x, y, v, key_mask), x, y, v)
    force(way)
    got = results(lambda x, y, v: kernel.average(x, y, v, key_mask), x, y, v)
    for ours, wanted in zip(got, exact, strict=True):
        scale = max(1.0, float(wanted.detach().abs().max()))
        gap = (ours - wanted).detach().abs().max()
        assert float(gap) <= tolerance(F64, 40, kappa=20, scale=scale)


@pytest.mark.parametrize("laid", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["sum", "average", "exponential"])
def test_columns_that_lie_together_are_read_as_rows(force, kind, causal, laid):
    """Torch's kernel for a CPU takes rows for contiguous, and says nothing where they are not."""
    force("fused")
    points = [normal(2, 9, 6, seed=s) for s in range(3)]
    kernel = Exponential(0.3) if kind == "exponential" else Gaussian(1.7)
    call = kernel.average if kind == "average" else kernel.apply
    found = []
    for columns in ((), laid):
        leaves = [x.clone().requires_grad_() for x in points]
        given = [x.mT.contiguous().mT if i in columns else x for i, x in enumerate(leaves)]
        out = call(*given, causal=causal)
        found.append((out, *torch.autograd.grad(out.sin().sum(), leaves)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


def test_a_tile_that_is_skipped_is_caught(monkeypatch):
    # The planted fault: the last tile is lost.
    whole = tiled._tiles
    monkeypatch.setattr(tiled, "_tiles", lambda *a: iter(list(whole(*a))[:-1]))
    x, y, v = normal(1, 9, 3), normal(1, 40, 3, seed=1), normal(1, 40, 4, seed=2)
    kernel = Gaussian(1.3)
    gap = (kernel.apply(x, y, v) - naive(kernel, x, y) @ v).abs().max()
    assert float(gap) > tolerance(F64, 200, scale=40)


@pytest.mark.parametrize("way", ["chosen", *WAYS])
def test_a_common_offset_changes_nothing(force, way):
    if way != "chosen":
        force(way)
    x, y, v = normal(6, 3), normal(8, 3, seed=1), normal(8, 2, seed=2)
    kernel = Gaussian(1.3)
    for dtype, offset in ((F64, 1e4), (F32, 1e4), (F32, 1e6)):
        # Points that the offset does not round: what is left is the kernel's own doing.
        far = [(z.to(dtype) + offset) for z in (x, y)]
        near = [(z - offset).double() for z in far]
        exact = naive(kernel, *near)
        for got, wanted in (
            (kernel.matrix(*far), exact),
            (kernel.apply(*far, v.to(dtype)), exact @ v),
            (kernel.average(*far, v.to(dtype)), naive_average(kernel, *near, v)),
        ):
            assert float((got - wanted).abs().max()) <= tolerance(dtype, 8, kappa=40)


@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
def test_near_duplicates_keep_their_digits(dtype):
    # 1 - K is |x - y|^2 / 2 = 5e-13 in float64: inner products would round it away.
    step = {F64: 1e-6, F32: 1e-3}[dtype]
    x = torch.tensor([[3.0, -2.0]], dtype=dtype)
    y = x + torch.tensor([[step, 0.0]], dtype=dtype)
    exact = float((x.double() - y.double()).square().sum() / 2)
    assert 0 < exact < 1e-6
    missed = 1 - float(Gaussian(1.0).matrix(x, y))
    assert missed == pytest.approx(exact, abs=torch.finfo(dtype).eps)
    # Their difference survives in the gradient, where nothing cancels against 1.
    x.requires_grad_()
    (dx,) = torch.autograd.grad(Gaussian(1.0).matrix(x, y).sum(), x)
    assert float(dx[0, 0]) == pytest.approx(float((y - x).detach()[0, 0]), rel=1e-3)


# --- derivatives -----------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [Gaussian(1.3), Exponential()], ids=repr)
def test_gradients_equal_central_differences(kernel):
    x, y, v = (z.requires_grad_() for z in (normal(3, 2), normal(4, 2, seed=1), normal(4, 2)))
    key_mask = torch.tensor([True, False, True, True])
    assert torch.autograd.gradcheck(kernel.matrix, (x, y))
    assert torch.autograd.gradcheck(kernel.apply, (x, y, v))
    assert torch.autograd.gradcheck(kernel.average, (x, y, v))
    assert torch.autograd.gradcheck(lambda *z: kernel.average(*z, key_mask), (x, y, v))
    assert torch.autograd.gradgradcheck(kernel.matrix, (x, y))


@pytest.mark.parametrize("way", WAYS)
def test_gradients_of_apply_equal_central_differences_every_way(force, way):
    force(way)
    tensors = [z.requires_grad_() for z in (normal(3, 2), normal(4, 2, seed=1), normal(4, 2))]
    assert torch.autograd.gradcheck(Gaussian(1.3).apply, tensors)


def twice(call, *tensors):
    """The gradients, and those of their squared norms."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    out = call(*leaves)
    first = torch.autograd.grad((out * normal(*out.shape, seed=9)).sum(), leaves, create_graph=True)
    return *first, *torch.autograd.grad(sum(g.square().sum() for g in first), leaves)


@pytest.mark.parametrize("kernel", [Gaussian(1.3), Exponential(0.4)], ids=repr)
@pytest.mark.parametrize("way", WAYS)
def test_second_derivatives_are_those_of_the_formula(force, way, kernel):
    # No gradgradcheck: the plain form that serves them could be that of another bandwidth.
    tensors = normal(3, 2), normal(4, 2, seed=1), normal(4, 2, seed=2)
    key_mask = torch.tensor([True, False, True, True])
    pairs = [(kernel.apply, lambda x, y, v: naive(kernel, x, y) @ v)]
    if not way.endswith("differences"):  # of an average by these torch refuses them
        pairs += [(lambda *z: kernel.average(*z, key_mask),
                   lambda *z: naive_average(kernel, *z, key_mask))]  # fmt: skip
    force(way)
    for ours, formula in pairs:
        for one, other in zip(twice(ours, *tensors), twice(formula, *tensors), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("way", WAYS)
def test_gradients_of_some_arguments_alone(force, way):
    force(way)
    tensors = normal(2, 3, 2), normal(2, 4, 2, seed=1), normal(2, 4, 2, seed=2)
    whole = results(Gaussian(1.3).apply, *tensors)[1:]
    for wanted in range(3):
        leaves = [t.clone().requires_grad_(i == wanted) for i, t in enumerate(tensors)]
        out = Gaussian(1.3).apply(*leaves)
        weight = normal(*out.shape, seed=9)
        (alone,) = torch.autograd.grad((out * weight).sum(), leaves[wanted])
        torch.testing.assert_close(alone, whole[wanted], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("way", ["differences", "small differences"])
def test_an_average_far_beyond_the_bandwidth_is_the_nearest_key(force, way):
    # Every exponent is below -1e36 and float32 holds no difference of two such squares.
    force(way)
    y = torch.tensor([[0.0, 0], [3, 0], [0, 4]])
    x = torch.tensor([[1.0, 0], [2.5, 0], [0, 3], [1, 1]])
    out = Gaussian(1e-15).average(x, y, torch.eye(3))
    assert torch.equal(out.argmax(-1), torch.tensor([0, 1, 2, 0]))
    assert torch.equal(out.amax(-1), torch.ones(4))
    hidden = Gaussian(1e-15).average(x, y, torch.eye(3), torch.tensor([False, True, True]))
    assert torch.equal(hidden.argmax(-1), torch.tensor([1, 1, 2, 1]))


# --- both ways ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", ["one tile", "many tiles", "graph", "rough", "off the origin", "float32", "bfloat16"]
)
def test_both_ways_are_the_two_sums(case, monkeypatch):
    x, y = normal(2, 1, 9, 3), normal(3, 5, 3, seed=1)
    v, w = normal(2, 3, 5, 2, seed=2), normal(2, 3, 9, 4, seed=3)
    if case == "many tiles":
        monkeypatch.setattr(tiled, "TILE_ENTRIES", 30)
    if case == "rough":  # near each other, but far from the rest
        x = 1e9 * x
        y = x[1].detach()[:, :5] + 0.3 * y
    if case == "off the origin":
        x, y = x + 1e6, y + 1e6
    tolerance = 1e-12
    if case.endswith(("32", "16")):
        dtype = getattr(torch, case)
        x, y, v, w = (z.to(dtype) for z in (x, y, v, w))
        tolerance = 10 * torch.finfo(dtype).eps
    x.requires_grad_(case == "graph")
    kernel, made, form = Gaussian(1.3), [], kernels.formed
    monkeypatch.setattr(kernels, "formed", lambda *some: made.append(1) or form(*some))
    forth, back = kernel.both_ways(x, y)
    for got, wanted in ((forth(v), kernel.apply(x, y, v)), (back(w), kernel.apply(y, x, w))):
        assert got.shape == wanted.shape
        torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)
        assert got.requires_grad == (case == "graph")
    assert len(made) == (case in ("one tile", "off the origin", "float32"))


# --- mixed batches ---------------------------------------------------------------------------


@pytest.mark.parametrize("reduce", ["apply", "average"])
def test_a_matrix_that_needs_differences_leaves_its_neighbours_bits_alone(reduce):
    x, y, v = normal(3, 6, 3), normal(3, 8, 3, seed=1), normal(3, 8, 2, seed=2)
    x, y, v = (z.to(F32) for z in (x, y, v))
    sum_of = getattr(Gaussian(1.0), reduce)
    smooth = sum_of(x, y, v)
    spread = torch.tensor([1.0, 1e4, 1.0])[:, None, None]
    assert kernels._rough(kernels._radius(x * spread, y * spread), 1.0).tolist() == [
        False,
        True,
        False,
    ]
    mixed = sum_of(x * spread, y * spread, v)
    assert torch.equal(mixed[0], smooth[0])
    assert torch.equal(mixed[2], smooth[2])
    # And the spread one equals what it is alone.
    assert torch.equal(mixed[1], sum_of(x[1] * 1e4, y[1] * 1e4, v[1]))


def test_spread_points_are_summed_as_well_as_float32_allows():
    # Scattered over 1e4 bandwidths but in tight pairs, so that the sums are not all zero.
    y = 1e4 * normal(20, 3, dtype=F32)
    x = y + normal(20, 3, seed=1, dtype=F32)
    v = normal(20, 2, seed=2, dtype=F32)
    exact = naive(Gaussian(1.0), x, y) @ v.double()
    assert float(exact.abs().max()) > 0.1
    missed = float((Gaussian(1.0).apply(x, y, v) - exact).abs().max())
    assert missed <= tolerance(F32, 20, kappa=4)
    # The planted fault: inner products alone lose everything here.
    lifted = kernels._by_products(x[None], y[None], v[None], None, average=False, bandwidth=1.0)
    assert float((lifted - exact).abs().max()) > 0.1


# --- memory and arithmetic ---------------------------------------------------------------------


@pytest.mark.parametrize("way", ["tiled", "fused", "differences"])
def test_memory_of_apply_grows_linearly(force, monkeypatch, way):
    force(way)
    monkeypatch.setattr(tiled, "TILE_ENTRIES", 1 << 14)
    monkeypatch.setattr(kernels, "CAREFUL_ENTRIES", 1 << 14)

    def peak(n):
        x, v = normal(n, 8, dtype=F32), normal(n, 8, dtype=F32)
        return peak_memory(lambda: Gaussian(1.0).apply(x, x, v), x.device)

    small, large = peak(1024), peak(4096)
    assert large < 4096 * 4096 * 4 / 8, "an n x n matrix was formed"
    assert large <= 4.2 * small
    matrix = normal(4096, 8, dtype=F32)
    dense = peak_memory(lambda: Gaussian(1.0).matrix(matrix, matrix), matrix.device)
    assert dense >= 4096 * 4096 * 4  # the measure sees a matrix where there is one


def test_kernel_cost_is_what_torch_counts_in_the_tiled_form(monkeypatch):
    monkeypatch.setattr(tiled, "TILE_ENTRIES", 64)
    for b, n, l, w, e in ((2, 9, 200, 5, 4), (3, 150, 6, 7, 1)):
        x, y, v = normal(b, n, w), normal(b, l, w, seed=1), normal(b, l, e, seed=2)
        # torch counts no product that accumulates in place, unless told how.
        counted = {torch.ops.aten.baddbmm_: lambda out, a, b, **_: bmm_flop(a, b)}
        with FlopCounterMode(display=False, custom_mapping=counted) as counter:
            tiled_sum(x, y, v, 1.0)
        assert counter.get_total_flops() == kernel_cost(Dims(b, n, l, w, e), e).flops


# --- tiles and blocks --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "n", "l", "entries", "tile"),
    [
        (7, 5, 6, 100, (3, 5, 6)),  # small matrices go many to a tile
        (7, 5, 6, 30, (1, 5, 6)), (7, 5, 6, 60, (2, 5, 6)), (2, 5, 6, 1000, (2, 5, 6)),
        (2, 10, 1000, 4096, (1, 10, 409)),  # a large one alone, its short side whole
        (2, 1000, 10, 4096, (1, 409, 10)), (1, 100, 100, 4096, (1, 64, 64)),
        (1, 70, 90, 1, (1, 64, 64)), (1, 3, 90, 1, (1, 3, 64)), (1, 90, 3, 1, (1, 64, 3)),
        (1, 3000, 2500, 1 << 20, (1, 2048, 512)), (1, 1025, 1024, 1 << 20, (1, 1024, 1024)),
    ],
)  # fmt: skip
def test_tiles_cover_each_entry_once_in_the_stated_sizes(batch, n, l, entries, tile, monkeypatch):
    monkeypatch.setattr(tiled, "TILE_ENTRIES", entries)
    x, y = normal(batch, n, 2, dtype=F32), normal(batch, l, 2, seed=1, dtype=F32)
    seen = torch.zeros(batch, n, l, dtype=torch.int8)
    shapes = []
    for mats, rows, cols, kernel in tiled._tiles(x, y, 1.7):
        seen[mats, rows, cols] += 1
        shapes.append(tuple(kernel.shape))
        if len(shapes) < 3:
            squares = (x[mats, rows, None] - y[mats, None, cols]).square().sum(-1)
            torch.testing.assert_close(kernel, (-squares / 3.4).exp(), rtol=1e-4, atol=1e-5)
    assert bool((seen == 1).all())
    assert shapes[0] == tile
    parts = [math.ceil(whole / part) for whole, part in zip((batch, n, l), tile, strict=True)]
    assert len(shapes) == math.prod(parts)


def test_tiles_serve_a_short_side_or_wide_values_on_a_cpu():
    def asked(n, l, d=3, e=2, device="cpu"):
        return tiled.suits(*(torch.empty(1, m, w, device=device) for m, w in
                             ((n, d), (l, d), (l, e))))  # fmt: skip

    assert asked(512, 9000)
    assert asked(9000, 512)
    assert not asked(513, 513)
    assert not asked(513, 513, d=3, e=6)
    assert asked(513, 513, d=3, e=7)
    assert not asked(5, 5, device="meta")


def test_tiles_serve_float64_and_wide_values_on_cuda():
    def asked(d, e, dtype=F32):
        with pretending():
            return tiled.suits(*(up(torch.ones(1, 5, w, dtype=dtype)) for w in (d, d, e)))

    assert not asked(64, 64)
    assert not asked(64, 128)
    assert not asked(65, 130)
    assert asked(64, 129)
    assert asked(64, 64, F64)


def test_one_tile_is_as_many_entries_as_are_held(monkeypatch):
    monkeypatch.setattr(tiled, "TILE_ENTRIES", 60)
    assert tiled.one_tile(torch.empty(2, 5, 9), torch.empty(2, 6, 9))
    assert not tiled.one_tile(torch.empty(2, 5, 1), torch.empty(2, 7, 1))
    assert not tiled.one_tile(torch.empty(3, 5, 1), torch.empty(3, 6, 1))


@pytest.mark.parametrize(("held", "rows"), [(1, 1), (83, 1), (84, 2), (126, 3), (10**6, 9)])
def test_blocks_of_the_plain_forms_hold_no_more_than_their_bounds(held, rows, monkeypatch):
    x, y, v = normal(2, 9, 3), normal(2, 7, 3, seed=1), normal(2, 7, 4, seed=2)
    K = naive(Gaussian(1.3), x, y)
    scores = 0.7 * x @ y.mT
    hidden = torch.arange(7) > torch.arange(9)[:, None]
    gaussian, scores_of = {"scale": 1.3**-2, "gaussian": True}, {"scale": 0.7, "gaussian": False}
    for numbers, call, wanted in (  # 42 numbers of y to a row of differences, 14 scores to a row
        (3, lambda: fused.plain_sum(x, y, v, **gaussian), K @ v),
        (3, lambda: fused.plain_sum(x, y, v, **gaussian, causal=True), K.tril() @ v),
        (1, lambda: fused.plain_sum(x, y, v, **scores_of), scores.exp() @ v),
        (1, lambda: fused.plain_average(x, y, v, scale=0.7), scores.softmax(-1) @ v),
        (1, lambda: fused.plain_average(x, y, v, scale=0.7, causal=True),
         scores.masked_fill(hidden, -math.inf).softmax(-1) @ v),
        (1, lambda: fused.plain_average(x, y, v), (x @ y.mT).softmax(-1) @ v),
    ):  # fmt: skip
        monkeypatch.setattr(fused, "HELD_ENTRIES", held // 3 * numbers)
        lengths, inner = [], fused.recomputed

        def watched(block, z, *rest, lengths=lengths, inner=inner):
            lengths.append(z.shape[1])
            return inner(block, z, *rest)

        monkeypatch.setattr(fused, "recomputed", watched)
        torch.testing.assert_close(call(), wanted)
        monkeypatch.setattr(fused, "recomputed", inner)
        assert lengths[0] == rows
        assert sum(lengths) == 9


@pytest.mark.parametrize("masked", [None, "keys", "weights"])
@pytest.mark.parametrize("heads", [False, True])
def test_both_forms_of_an_average_agree_with_the_formula(masked, heads):
    lead = (2, 3) if heads else (3,)
    x, y, v = (normal(*lead, m, w, seed=s) for s, (m, w) in enumerate(((6, 3), (5, 3), (5, 4))))
    mask = {None: None, "keys": normal(*lead, 5, seed=4) > -0.5,
            "weights": normal(*lead, 5, seed=5)}[masked]  # fmt: skip
    scores = 0.7 * x @ y.mT
    if masked == "keys":
        scores = scores.masked_fill(~mask.unsqueeze(-2), -math.inf)
    if masked == "weights":
        scores = scores + mask.unsqueeze(-2)
    wanted = scores.softmax(-1) @ v
    for form in (fused.fused_average, fused.plain_average):
        torch.testing.assert_close(form(x, y, v, mask, scale=0.7), wanted)
    graph = fused.fused_average(x.requires_grad_(), y, v, mask, scale=0.7)
    torch.testing.assert_close(graph, wanted)
    assert graph.requires_grad


def test_what_has_no_gradient_is_not_handed_to_torch_to_compute_again(monkeypatch):
    """Its function for that imports torch's compiler, in seconds, before it looks."""
    handed, inner = [], core.checkpoint
    monkeypatch.setattr(core, "checkpoint", lambda *a, **k: handed.append(1) or inner(*a, **k))
    x, held = normal(3, 2), normal(2, 2, seed=1)

    def one(x):
        return (x @ held).exp()

    def two(x):
        return x, one(x)

    for call in (one, two):
        core.recomputed(call, x)
    assert not handed
    held.requires_grad_()  # a gradient that no argument shows
    for count, call in enumerate((one, two), 1):
        out = core.recomputed(call, x)
        last = out[-1] if isinstance(out, tuple) else out
        (found,) = torch.autograd.grad(last.sum(), held)
        torch.testing.assert_close(found, x.mT @ one(x).detach())
        assert len(handed) == count


# --- on a GPU ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [0, 1, 4, 9, 50])
def test_on_a_gpu_differences_are_held_for_no_more_rows_than_fit(rows, monkeypatch):
    x, y = normal(2, 9, 3), normal(2, 7, 3, seed=1)
    monkeypatch.setattr(kernels, "budget", lambda entries, device: rows * y.numel() + 1)
    with pretending() as tally:
        got = kernels._distances(up(x), up(y))
    squares = (x[:, :, None] - y[:, None]).square().sum(-1)
    torch.testing.assert_close(down(got), squares.sqrt())
    assert tally.kernels["linalg_vector_norm"] == math.ceil(9 / max(1, rows))


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_on_a_gpu_only_averages_of_float64_are_formed_plainly(dtype):
    x, y, v = (normal(2, m, w, seed=w, dtype=dtype) for m, w in ((9, 4), (7, 4), (7, 5)))
    with pretending() as tally, torch.no_grad():
        got = fused.fused_average(up(x), up(y), up(v), scale=0.7)
    wanted = (0.7 * x.double() @ y.double().mT).softmax(-1) @ v.double()
    torch.testing.assert_close(down(got).double(), wanted, rtol=1e-5, atol=1e-5)
    assert bool(tally.attention) == (dtype == F32)


@pytest.mark.parametrize(("batch", "calls"), [(1, 1), (2, 1), (3, 2), (5, 3)])
@pytest.mark.parametrize("kind", ["sum", "average", "masked"])
def test_on_a_gpu_a_call_takes_no_more_matrices_than_its_kernels_count(
    batch, calls, kind, monkeypatch
):
    monkeypatch.setattr(fused, "MATRICES", 2)
    x, y, v = (normal(batch, m, w, seed=w, dtype=F32) for m, w in ((9, 4), (7, 4), (7, 5)))
    mask = torch.arange(7 * batch).view(batch, 7) % 3 != 1
    kernel = Exponential(0.3)
    K = naive(kernel, x, y) * (mask.unsqueeze(1) if kind == "masked" else 1)
    wanted = K @ v.double() / (1 if kind == "sum" else K.sum(-1, keepdim=True))
    with pretending() as tally, torch.no_grad():
        if kind == "sum":
            got = fused.fused_sum(0.3 * up(x), up(y), up(v))
        else:
            masks = () if kind == "average" else (up(mask),)
            got = fused.fused_average(up(x), up(y), up(v), *masks, scale=0.3)
    torch.testing.assert_close(down(got).double(), wanted, rtol=1e-5, atol=1e-5)
    assert len(tally.attention) == calls


@pytest.mark.parametrize(
    ("dtype", "d", "e", "l", "widths", "keys"),
    [
        (F32, 5, 3, 7, (8, 8, 4), 16), (F32, 8, 9, 16, (8, 8, 12), 16),
        (F64, 5, 3, 17, (6, 6, 4), 32), (F32, 4, 4, 33, (4, 4, 4), 48),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", [None, "keys", "weights"])
def test_a_gpus_kernels_get_rows_of_16_bytes_and_16_keys_under_a_mask(
    dtype, d, e, l, widths, keys, kind
):
    points = [normal(2, m, w, seed=w, dtype=dtype) for m, w in ((9, d), (l, d), (l, e))]
    mask = normal(2, l, seed=4, dtype=dtype)
    mask = {None: None, "keys": mask > 0, "weights": mask}[kind]
    with pretending():
        found = fused._fitted(*map(up, points), None if mask is None else up(mask))
    *fitted, row = (z if z is None else down(z) for z in found)
    keys = l if kind is None else keys
    for z, given, rows, width in zip(fitted, points, (9, keys, keys), widths, strict=True):
        assert z.shape == (2, 1, rows, width)
        assert torch.equal(z[:, 0, : given.shape[1], : given.shape[2]], given)
        assert float(z.abs().sum()) == pytest.approx(float(given.abs().sum()))  # zeros elsewhere
    if kind is None:
        assert row is None
        return
    assert row.shape == (2, 1, 1, keys)
    assert torch.equal(row[:, 0, 0, :l], mask)
    assert bool((row[..., l:] == (False if kind == "keys" else -math.inf)).all())


@pytest.mark.parametrize("causal", [False, True])
def test_on_a_gpu_the_gradients_of_a_sum_are_those_of_the_formula(causal):
    points = [normal(2, 7, w, seed=w, dtype=F32) for w in (4, 4, 5)]
    with pretending():
        leaves = [up(z, True) for z in points]
        out = fused.fused_gaussian_sum(*leaves, 1.3**2, causal=causal)
        slopes = torch.autograd.grad(out.sum(), leaves)
    exact = [z.double().requires_grad_() for z in points]
    K = naive(Gaussian(1.3), *exact[:2])
    wanted = torch.autograd.grad(((K.tril() if causal else K) @ exact[2]).sum(), exact)
    for one, other in zip(slopes, wanted, strict=True):
        torch.testing.assert_close(down(one).double(), other, rtol=1e-4, atol=1e-5)


HALVES = (torch.bfloat16, torch.float16)
ROUNDED = {torch.bfloat16: 6e-3, torch.float16: 8e-4}
"""Relative errors allowed in the norm: the rounding of weights and of the output."""


def far(dtype, norm=30.0):
    """Clouds far off the origin beside their width, whose exponents are differences of squares."""
    x, y, v = (normal(2, n, 8, seed=n, dtype=F64) for n in (9, 11, 12))
    return [z.to(dtype) for z in (x + norm / 8**0.5, y + norm / 8**0.5, v[:, :11, :5])]


def gap(got, wanted):
    return float((down(got).double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("kind", ["sum", "average", "masked", "causal", "causal average"])
@pytest.mark.parametrize("kernel", [Gaussian(2.5), Exponential(0.1)], ids=repr)
def test_on_a_gpu_half_precision_runs_on_its_own_units_and_keeps_its_exponents(kernel, kind, dtype):
    x, y, v = far(dtype, norm=30.0 if isinstance(kernel, Gaussian) else 3.0)
    mask = torch.arange(11).expand(2, 11) % 3 != 1
    if "causal" in kind:
        y, v = y[:, :9], v[:, :9]
    K = naive(kernel, x.double(), y.double())
    K = K.tril() if "causal" in kind else K * mask.unsqueeze(1) if kind == "masked" else K
    summed = kind in {"sum", "causal"}
    wanted = K @ v.double() / (1 if summed else K.sum(-1, keepdim=True))
    with pretending() as tally:
        points = [up(z) for z in (x, y, v)]
        call = kernel.apply if summed else kernel.average
        got = call(*points, *([up(mask)] if kind == "masked" else []), causal="causal" in kind)
    assert got.dtype == dtype
    assert gap(got, wanted) <= ROUNDED[dtype]
    assert [(used, why) for used, _, why in tally.attention] == [(str(dtype)[6:], "")]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("device", ["a CPU's kernel", "pretended"])
def test_a_norm_in_half_precision_takes_all_three_of_its_columns(dtype, device, monkeypatch):
    x, y, v = far(dtype)
    wanted = naive(Gaussian(2.5), x.double(), y.double()) @ v.double()
    for steps, sound in ((fused.STEPS, True), (fused.STEPS[:1], False)):  # the second is planted
        monkeypatch.setattr(fused, "STEPS", steps)
        if device == "pretended":
            with pretending():
                got = fused.half_sum(up(x), up(y), up(v), 2.5**-2, gaussian=True)
        else:
            got = fused.half_sum(x, y, v, 2.5**-2, gaussian=True)
        assert (gap(got, wanted) <= ROUNDED[dtype]) == sound


@pytest.mark.parametrize("norm", [1e-3, 1.0, 255.0, 6e4])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_three_numbers_of_half_precision_make_a_norm_of_float32(dtype, norm):
    y = normal(1, 50, 4, dtype=F64)
    y = (norm * y / y.norm(dim=-1, keepdim=True)).to(dtype)
    x, y = fused.lifted(torch.zeros_like(y), y)
    made = (x.double() * y.double()).sum(-1)
    exact = -y[..., :4].double().square().sum(-1) / 2
    torch.testing.assert_close(made, exact, rtol=3e-7, atol=1e-9)


@pytest.mark.parametrize("why", ["a gradient", "spread points", "a wide bandwidth", "two dtypes"])
def test_on_a_gpu_half_precision_is_widened_where_its_units_would_lose_digits(why):
    x, y, v = far(torch.float16)
    kernel = Gaussian({"a wide bandwidth": 2e3, "spread points": 1e-2}.get(why, 2.5))
    with pretending() as tally:
        points = [up(z, why == "a gradient") for z in (x, y, v)]
        if why == "two dtypes":
            points[2] = points[2].float()
        out = kernel.average(*points)
    wanted = kernel.average(x.double(), y.double(), v.double())
    assert gap(out, wanted) <= ROUNDED[torch.float16]
    assert "float16" not in [dtype for dtype, *_ in tally.attention]


def test_rows_that_do_not_lie_as_the_kernels_want_them_are_copied_and_no_others():
    even, odd = normal(3, 8, 8, dtype=F32), normal(3, 7, 6, dtype=F32)
    for z, step, fine in (
        (even, 4, True), (even[..., :4], 4, True), (even[..., 4:], 4, True),
        (even[..., 2:6], 4, False), (even[..., 2:6], 1, True), (odd, 4, False), (odd, 1, True),
        (even.mT, 4, False), (even.mT, 1, False),
    ):  # fmt: skip
        got = fused._aligned(z, step)
        assert torch.equal(got, z)
        assert (got.data_ptr() == z.data_ptr()) == fine
        assert got.stride(-1) == 1
