"""Kernels against naive float64 differences, along every way that a sum can take."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode, bmm_flop

from softlab import Dims, gaussian_sums, kernels
from softlab.gaussian_sums import tiled_sum
from softlab.kernels import Exponential, Gaussian, kernel_cost
from softlab.laws import tolerance
from softlab.measures import peak_memory

F64, F32 = torch.float64, torch.float32
HALVES = [torch.bfloat16, torch.float16]
WAYS = ["tiled", "small tiles", "fused", "differences", "small differences"]


def normal(*shape, seed=0, dtype=F64):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=F64).to(dtype)


def naive(kernel, x, y):
    """The matrix in float64, entry by entry."""
    x, y = x.double(), y.double()
    if isinstance(kernel, Exponential):
        scale = x.shape[-1] ** -0.5 if kernel.scale is None else kernel.scale
        return (scale * (x[..., :, None, :] * y[..., None, :, :]).sum(-1)).exp()
    squares = (x[..., :, None, :] - y[..., None, :, :]).square().sum(-1)
    return (-squares / (2 * kernel.bandwidth**2)).exp()


def naive_average(kernel, x, y, v, key_mask=None):
    x, y = x.double(), y.double()
    if isinstance(kernel, Exponential):
        scale = x.shape[-1] ** -0.5 if kernel.scale is None else kernel.scale
        scores = scale * (x[..., :, None, :] * y[..., None, :, :]).sum(-1)
    else:
        squares = (x[..., :, None, :] - y[..., None, :, :]).square().sum(-1)
        scores = -squares / (2 * kernel.bandwidth**2)
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask.unsqueeze(-2), -math.inf)
    return scores.softmax(-1) @ v.double()


@pytest.fixture
def force(monkeypatch):
    """Send every Gaussian sum one way."""

    def send(way):
        monkeypatch.setattr(kernels, "suits", lambda x, y, v: way != "fused")
        if way == "small tiles":
            monkeypatch.setattr(gaussian_sums, "TILE_ENTRIES", 1)
        if way == "small differences":
            monkeypatch.setattr(kernels, "CAREFUL_ENTRIES", 1)
        rough = way.endswith("differences")
        monkeypatch.setattr(
            kernels, "_rough", lambda x, y, s: torch.full((x.shape[0],), rough, dtype=torch.bool)
        )

    return send


def working(dtype):
    """The precision that sums are formed in."""
    return F32 if dtype in HALVES else dtype


def allowed(dtype, exact, size, exponent):
    """One rounding of the result, and eps * (largest exponent) in the sum of ``size`` terms."""
    rounding = torch.finfo(dtype).eps * exact.abs()
    return rounding + tolerance(working(dtype), exact.shape[-1] + 10, kappa=exponent, scale=size)


# --- values ----------------------------------------------------------------------------------

SIZES = {"n": st.integers(1, 12), "l": st.integers(1, 12), "d": st.integers(1, 6)}
LEADS = st.sampled_from([(), (1,), (3,), (2, 2)])
DTYPES = st.sampled_from([F64, F32, *HALVES])


@given(
    **SIZES,
    e=st.integers(1, 5),
    lead=LEADS,
    dtype=DTYPES,
    bandwidth=st.floats(-6, 6).map(lambda p: 10**p),
    seed=st.integers(0, 1000),
)
def test_gaussian_equals_naive_over_twelve_orders_of_bandwidth(
    n,
    l,  # noqa: E741
    d,
    e,
    lead,
    dtype,
    bandwidth,
    seed,
):
    x, y = normal(*lead, n, d, seed=seed, dtype=dtype), normal(*lead, l, d, seed=seed + 1).to(dtype)
    v = normal(*lead, l, e, seed=seed + 2, dtype=dtype)
    kernel = Gaussian(bandwidth)
    exact = naive(kernel, x, y)
    # Relative error of exp(-t): eps t; and t exp(-t) <= 1.
    size = float(v.double().abs().sum(-2).max())
    # What inner products may lose before the way by differences takes over: half of the digits.
    reach = float(torch.cat((x, y), -2).double().square().sum(-1).max()) / bandwidth**2
    kappa = 4 + min(4 * reach, torch.finfo(working(dtype)).eps ** -0.5)
    matrix = kernel.matrix(x, y)
    assert matrix.dtype == dtype
    assert bool(((matrix.double() - exact).abs() <= allowed(dtype, exact, 1, 4)).all())
    wanted = exact @ v.double()
    out = kernel.apply(x, y, v)
    assert out.dtype == dtype
    assert bool(((out.double() - wanted).abs() <= allowed(dtype, wanted, size, kappa)).all())
    wanted = naive_average(kernel, x, y, v)
    out = kernel.average(x, y, v)
    big = float(v.double().abs().max())
    # The weights of a softmax answer for the error of their scores, which grow with the distance.
    kappa = min(kappa * (1 + reach), 1e30)
    assert out.dtype == dtype
    if kappa * torch.finfo(working(dtype)).eps < 1:
        assert bool(((out.double() - wanted).abs() <= allowed(dtype, wanted, big, kappa)).all())
    assert bool(out.isfinite().all())


@given(
    **SIZES,
    e=st.integers(1, 5),
    lead=LEADS,
    dtype=DTYPES,
    scale=st.sampled_from([None, 0.01, 0.5, 2.0]),
)
def test_exponential_equals_naive(n, l, d, e, lead, dtype, scale):  # noqa: E741
    kernel = Exponential(scale)
    x, y, v = normal(*lead, n, d), normal(*lead, l, d, seed=1), normal(*lead, l, e, seed=2)
    x, y, v = (z.clamp(-1.5, 1.5).to(dtype) for z in (x, y, v))
    exact = naive(kernel, x, y)
    kappa = 4 + float(exact.log().abs().max())
    gap = (kernel.matrix(x, y).double() - exact).abs()
    if dtype != torch.float16 or float(exact.max()) < 6e4:
        assert bool((gap <= allowed(dtype, exact, float(exact.max()), kappa)).all())
        wanted = exact @ v.double()
        size = float((exact @ v.double().abs()).max())
        if size < 6e4 or dtype != torch.float16:
            gap = (kernel.apply(x, y, v).double() - wanted).abs()
            assert bool((gap <= allowed(dtype, wanted, size, kappa)).all())
    wanted = naive_average(kernel, x, y, v)
    gap = (kernel.average(x, y, v).double() - wanted).abs()
    assert bool((gap <= allowed(dtype, wanted, 2, kappa)).all())


@pytest.mark.parametrize("kernel", [Gaussian(1.3), Exponential()], ids=repr)
def test_average_over_a_mask_equals_deletion(kernel):
    x, y, v = normal(2, 3, 5, 4), normal(2, 3, 7, 4, seed=1), normal(2, 3, 7, 2, seed=2)
    key_mask = normal(3, 7, seed=3) > -0.5
    out = kernel.average(x, y, v, key_mask)
    for i in range(2):
        for j in range(3):
            keep = key_mask[j]
            alone = kernel.average(x[i, j], y[i, j][keep], v[i, j][keep])
            torch.testing.assert_close(out[i, j], alone, rtol=1e-13, atol=1e-13)


@given(
    **SIZES,
    shift=st.sampled_from([0.0, 1e4, -1e7]),
    dtype=DTYPES,
    bandwidth=st.floats(-3, 3).map(lambda p: 10**p),
)
def test_matrix_lies_in_the_unit_interval_with_a_unit_diagonal(
    n,
    l,  # noqa: E741
    d,
    shift,
    dtype,
    bandwidth,
):
    x = normal(n, d, dtype=dtype) + shift if dtype not in HALVES else normal(n, d, dtype=dtype)
    matrix = Gaussian(bandwidth).matrix(x, x)
    assert float(matrix.min()) >= 0
    assert float(matrix.max()) <= 1
    assert bool((matrix.diagonal() == 1).all())
    assert torch.equal(matrix, matrix.mT)
    other = Gaussian(bandwidth).matrix(x, normal(l, d, seed=1, dtype=dtype))
    assert float(other.min()) >= 0
    assert float(other.max()) <= 1


# --- every way -------------------------------------------------------------------------------


def results(call, *tensors):
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    out = call(*leaves)
    weight = normal(*out.shape, seed=9).to(out.dtype)
    return [out, *torch.autograd.grad((out * weight).sum(), leaves)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [(2, 9, 200, 3, 4), (3, 150, 6, 5, 1), (1, 1, 1, 1, 9)], ids=str)
def test_every_way_gives_the_same_sum_and_gradients(force, way, shape):
    b, n, l, d, e = shape  # noqa: E741
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


def test_a_tile_that_is_skipped_is_caught(monkeypatch):
    # The planted fault: the last tile is lost.
    whole = gaussian_sums._tiles
    monkeypatch.setattr(gaussian_sums, "_tiles", lambda *a: iter(list(whole(*a))[:-1]))
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


# --- mixed batches ---------------------------------------------------------------------------


@pytest.mark.parametrize("reduce", ["apply", "average"])
def test_a_matrix_that_needs_differences_leaves_its_neighbours_bits_alone(reduce):
    x, y, v = normal(3, 6, 3), normal(3, 8, 3, seed=1), normal(3, 8, 2, seed=2)
    x, y, v = (z.to(F32) for z in (x, y, v))
    sum_of = getattr(Gaussian(1.0), reduce)
    smooth = sum_of(x, y, v)
    spread = torch.tensor([1.0, 1e4, 1.0])[:, None, None]
    assert kernels._rough(x * spread, y * spread, 1.0).tolist() == [False, True, False]
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


# --- half precision, meta tensors --------------------------------------------------------------


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_squared_norms_keep_their_digits_in_half_precision(dtype):
    # |x|^2 is about 200, whose bfloat16 spacing is 1: exponents formed in it would be noise.
    d = 32
    x = (normal(10, d) * math.sqrt(200 / d)).to(dtype)
    y = (x.double() + 0.2 * normal(10, d, seed=1)).to(dtype)
    v = normal(10, 3, seed=2, dtype=dtype)
    kernel = Gaussian(d**0.25)
    exact = naive(kernel, x, y)
    assert float(exact.max()) > 0.5
    assert float(x.double().square().sum(-1).mean()) > 150
    eps = torch.finfo(dtype).eps
    for got, wanted in (
        (kernel.matrix(x, y), exact),
        (kernel.apply(x, y, v), exact @ v.double()),
        (kernel.average(x, y, v), naive_average(kernel, x, y, v)),
    ):
        assert bool(((got.double() - wanted).abs() <= eps * (wanted.abs() + 1e-2)).all())


@pytest.mark.parametrize("kernel", [Gaussian(1.3), Exponential()], ids=repr)
def test_meta_tensors_pass_through_with_their_shapes(kernel):
    x, y = torch.empty(2, 5, 3, device="meta"), torch.empty(2, 7, 3, device="meta")
    v = torch.empty(2, 7, 4, device="meta")
    assert kernel.matrix(x, y).shape == (2, 5, 7)
    assert kernel.average(x, y, v).shape == (2, 5, 4)
    out = kernel.apply(x, y, v)
    assert out.shape == (2, 5, 4)
    assert out.is_meta


@pytest.mark.parametrize("kernel", [Gaussian(1.3), Exponential()], ids=repr)
def test_mismatched_widths_are_refused(kernel):
    x, y, v = normal(5, 3), normal(7, 4), normal(7, 2)
    for call in (kernel.matrix, lambda x, y: kernel.apply(x, y, v)):
        with pytest.raises(ValueError, match=r"\(5, 3\) and \(7, 4\).*Project"):
            call(x, y)


@pytest.mark.parametrize("bandwidth", [1e-15, 1e15])
@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
def test_the_ends_of_the_range_of_bandwidths_are_finite_with_their_gradients(dtype, bandwidth):
    x, y, v = 1e6 * normal(9, 3), 1e6 * normal(7, 3, seed=1), normal(7, 2, seed=2)
    kernel = Gaussian(bandwidth)
    for call in (kernel.apply, kernel.average, lambda x, y, v: kernel.matrix(x, y) @ v):
        for points in ((x, y), (y, y)):
            got = results(call, *(z.to(dtype) for z in (*points, v)))
            assert all(bool(z.isfinite().all()) for z in got)


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


@pytest.mark.parametrize("kernel", [Gaussian(1.3), Exponential()], ids=repr)
def test_autocast_does_not_round_the_products(kernel):
    x, y, v = normal(5, 3, dtype=F32), normal(7, 3, seed=1, dtype=F32), normal(7, 2, dtype=F32)
    calls = (
        lambda: kernel.matrix(x, y),
        lambda: kernel.apply(x, y, v),
        lambda: kernel.average(x, y, v),
    )
    plain = [call() for call in calls]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(torch.equal(call(), out) for call, out in zip(calls, plain, strict=True))


@pytest.mark.parametrize("bandwidth", [1e-16, 1e16, 1e300])
def test_bandwidths_whose_squares_do_not_fit_are_refused(bandwidth):
    with pytest.raises(
        ValueError, match=r"Gaussian\.bandwidth is .*so give 1e-15 to 1e15.*Rescale"
    ):
        Gaussian(bandwidth)


@pytest.mark.parametrize("bandwidth", [0.0, -1.0, math.nan, math.inf])
def test_bandwidths_that_are_none_are_refused(bandwidth):
    with pytest.raises(ValueError, match=r"Gaussian\.bandwidth is .*give a positive finite number"):
        Gaussian(bandwidth)


# --- memory and arithmetic ---------------------------------------------------------------------


@pytest.mark.parametrize("way", ["tiled", "fused", "differences"])
def test_memory_of_apply_grows_linearly(force, monkeypatch, way):
    force(way)
    monkeypatch.setattr(gaussian_sums, "TILE_ENTRIES", 1 << 14)
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
    monkeypatch.setattr(gaussian_sums, "TILE_ENTRIES", 64)
    for b, n, l, w, e in ((2, 9, 200, 5, 4), (3, 150, 6, 7, 1)):  # noqa: E741
        x, y, v = normal(b, n, w), normal(b, l, w, seed=1), normal(b, l, e, seed=2)
        # torch counts no product that accumulates in place, unless told how.
        counted = {torch.ops.aten.baddbmm_: lambda out, a, b, **_: bmm_flop(a, b)}
        with FlopCounterMode(display=False, custom_mapping=counted) as counter:
            tiled_sum(x, y, v, 1.0)
        assert counter.get_total_flops() == kernel_cost(Dims(b, n, l, w, e), e).flops
