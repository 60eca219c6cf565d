"""Kernels against naive float64 differences: values, half precision, bad input."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matrices import F32, F64, normal
from naive import HALVES, allowed, naive, naive_average, results, working

from softlab.core import Dims
from softlab.kernels import Exponential, Gaussian, kernel_cost
from softlab.kernels import functions as kernels
from softlab.profiling import peak_memory

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
    l,
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
def test_exponential_equals_naive(n, l, d, e, lead, dtype, scale):
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
    l,
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
    x, y, v = normal(2, 3, 5, 3), normal(2, 3, 7, 4), normal(2, 3, 7, 2)
    calls = kernel.matrix, lambda x, y: kernel.apply(x, y, v), lambda x, y: kernel.average(x, y, v)
    for call in calls:
        with pytest.raises(ValueError, match=r"5, 3\) and \(2, 3, 7, 4\).*Project"):
            call(x, y)
        with pytest.raises(ValueError, match=r"5, 4\) and \(2, 3, 7, 3\).*Project"):
            call(normal(2, 3, 5, 4), normal(2, 3, 7, 3))


@pytest.mark.parametrize("bandwidth", [1e-15, 1e15])
@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
def test_the_ends_of_the_range_of_bandwidths_are_finite_with_their_gradients(dtype, bandwidth):
    x, y, v = 1e6 * normal(9, 3), 1e6 * normal(7, 3, seed=1), normal(7, 2, seed=2)
    kernel = Gaussian(bandwidth)
    for call in (kernel.apply, kernel.average, lambda x, y, v: kernel.matrix(x, y) @ v):
        for points in ((x, y), (y, y)):
            got = results(call, *(z.to(dtype) for z in (*points, v)))
            assert all(bool(z.isfinite().all()) for z in got)


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


@pytest.mark.parametrize("bandwidth", [1e-16, 0.99e-15, 1.01e15, 1e16, 1e300])
def test_bandwidths_whose_squares_do_not_fit_are_refused(bandwidth):
    with pytest.raises(
        ValueError, match=r"Gaussian\.bandwidth is .*so give 1e-15 to 1e15.*Rescale"
    ):
        Gaussian(bandwidth)


@pytest.mark.parametrize("bandwidth", [0.0, -1.0, math.nan, math.inf])
def test_bandwidths_that_are_none_are_refused(bandwidth):
    with pytest.raises(ValueError, match=r"Gaussian\.bandwidth is .*give a positive finite number"):
        Gaussian(bandwidth)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_scales_that_are_none_are_refused(scale):
    with pytest.raises(ValueError, match=r"Exponential\.scale is .*positive finite number"):
        Exponential(scale)


# --- causal sums -----------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [1.0, 1e5], ids=["by products", "by differences"])
@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
def test_causal_sums_are_those_of_the_lower_triangle(dtype, spread):
    kernel = Gaussian(1.3 * spread**0.5)  # at the great spread scores lose over half of the digits
    x, y = (normal(2, 33, 4, seed=s, dtype=dtype) for s in (0, 1))
    # From the middle on the points are far from the first, and near each other.
    far = (torch.arange(33) > 15).to(dtype)[:, None] * spread
    x, y, v = x + far, y + far, normal(2, 33, 3, seed=2, dtype=dtype)
    K = naive(kernel, x, y).tril()
    size = torch.finfo(dtype).eps ** 0.5 * 33  # the half of the digits that products may lose
    wanted = K @ v.double()
    torch.testing.assert_close(
        kernel.apply(x, y, v, causal=True).double(), wanted, rtol=0, atol=size
    )
    wanted = wanted / K.sum(-1, keepdim=True)
    out = kernel.average(x, y, v, causal=True).double()
    heavy = K.sum(-1) > 1e-3
    torch.testing.assert_close(out[heavy], wanted[heavy], rtol=0, atol=1e3 * size)


@pytest.mark.parametrize("reduce", ["apply", "average"])
def test_causal_sums_far_off_the_origin_are_formed_near_the_first_key(reduce, monkeypatch):
    x, y, v = (normal(2, 9, w, seed=w) for w in (4, 4, 3))
    K = naive(Gaussian(1.0), x, y).tril()
    wanted = K @ v / (K.sum(-1, keepdim=True) if reduce == "average" else 1)
    monkeypatch.setattr(kernels, "_by_differences", lambda *a, **k: pytest.fail("the slow way"))
    got = getattr(Gaussian(1.0), reduce)(x + 1e6, y + 1e6, v, causal=True)
    torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-8)


def test_points_that_are_far_on_one_side_at_a_time_are_seen_by_causal_sums():
    # Query 5 is near key 3 and both are far off; the key and the query at their places are not.
    x, y, v = (normal(2, 9, w, seed=w, dtype=F32) for w in (4, 4, 3))
    x[:, 5], y[:, 3] = 3e4, 3e4 + 0.3
    kernel = Gaussian(1.0)
    K = naive(kernel, x, y).tril()
    assert float(K[:, 5, 3].min()) > 0.5
    wanted = K @ v.double()
    torch.testing.assert_close(
        kernel.apply(x, y, v, causal=True).double(), wanted, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("far", [1e10, 1e18, 1e20])
def test_what_comes_later_is_in_no_causal_sum_and_no_gradient_however_far_it_is(far):
    few = [normal(2, 6, w, seed=w, dtype=F32) for w in (4, 4, 3)]
    later = [far * torch.ones(2, 2, z.shape[-1]) for z in few]
    many = [torch.cat(both, 1) for both in zip(few, later, strict=True)]
    many[2][:, 6:] = 1.0
    for reduce in ("apply", "average"):

        def call(x, y, v, reduce=reduce):
            return getattr(Gaussian(1.0), reduce)(x, y, v, causal=True)[:, :6]

        for got, wanted in zip(results(call, *many), results(call, *few), strict=True):
            torch.testing.assert_close(got[:, :6], wanted)
            assert bool((got[:, 6:] == 0).all())


def test_causal_exponential_sums():
    x, y, v = (normal(3, 21, w, seed=w) for w in (5, 5, 2))
    kernel = Exponential()
    K = kernel.matrix(x, y).tril()
    torch.testing.assert_close(kernel.apply(x, y, v, causal=True), K @ v)
    wanted = K @ v / K.sum(-1, keepdim=True)
    torch.testing.assert_close(kernel.average(x, y, v, causal=True), wanted)
    for kernel in (Exponential(), Gaussian(1.0)):
        with pytest.raises(ValueError, match="takes no key_mask; put the masked tokens last"):
            kernel.average(x, y, v, torch.ones(21, dtype=torch.bool), causal=True)


# --- work and memory ---------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("n", "l"), [(1, 1), (7, 7), (8, 8), (7, 3)])
def test_the_cost_of_a_kernel_is_that_of_the_pairs_that_it_sees(n, l, causal):
    batch, d, widths = 3, 5, 2
    l = n if causal else l
    pairs = sum(batch for i in range(n) for j in range(l) if j <= i or not causal)
    cost = kernel_cost(Dims(batch, n, l, d, 4), widths, causal=causal)
    assert cost.kernel_entries == pairs
    # Each pair takes d multiply-adds for its score and one a column of the product.
    assert cost.flops == pairs * sum(2 for _ in range(d + widths))
    assert cost.factorization_flops == 0
    # Counts stay whole where a float would round them.
    huge = kernel_cost(Dims(1, 10**9 + 1, 10**9 + 1, 1, 1), 1, causal=True)
    assert huge.kernel_entries == 500000001500000001


@pytest.mark.parametrize(
    ("shapes", "dtype", "as_it_lies"),
    [
        (((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 2)), F32, True),
        (((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 2)), F64, True),
        (((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 2)), torch.bfloat16, False),
        (((2, 3, 5, 4), (1, 3, 7, 4), (2, 3, 7, 2)), F64, False),
        (((2, 1, 5, 4), (2, 3, 7, 4), (2, 3, 7, 2)), F64, False),
        (((1, 3, 5, 4), (1, 3, 7, 4), (2, 3, 7, 2)), F64, False),
        (((2, 3, 5, 4), (2, 3, 7, 4), (1, 1, 7, 2)), F64, False),
        (((1, 2, 3, 5, 4), (1, 2, 3, 7, 4), (1, 2, 3, 7, 2)), F64, False),
        (((3, 5, 4), (3, 7, 4), (3, 7, 2)), F64, True),
        (((2, 3, 5, 4), (3, 7, 4), (2, 3, 7, 2)), F64, False),
        (((3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 2)), F64, False),
        (((2, 3, 5, 4), (2, 3, 7, 4), (3, 7, 2)), F64, False),
        (((3, 3, 4), (3, 3, 4), (3, 3, 3, 2)), F64, False),
        (((3, 3, 3, 4), (3, 3, 4), (3, 3, 3, 2)), F64, False),
        (((3, 3, 4), (3, 3, 3, 4), (3, 3, 3, 2)), F64, False),
        (((3, 3, 3, 4), (3, 3, 3, 4), (3, 3, 2)), F64, False),
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_a_batch_of_heads_is_averaged_where_it_lies_and_any_other_is_right(
    shapes, dtype, as_it_lies, masked, monkeypatch
):
    # Tokens lie outside of heads, as a projection leaves them: a flattened batch would be a copy.
    given = [
        normal(*shape, seed=i, dtype=dtype).transpose(-2, -3).contiguous().transpose(-2, -3)
        for i, shape in enumerate(shapes)
    ]
    places, inner = [], kernels.fused_average

    def watched(x, y, v, *rest, **how):
        places.append([z.data_ptr() for z in (x, y, v)])
        return inner(x, y, v, *rest, **how)

    monkeypatch.setattr(kernels, "fused_average", watched)
    key_mask = normal(3, shapes[1][-2], seed=3) > -0.5 if masked else None
    out = Exponential().average(*given, key_mask)
    wanted = naive_average(Exponential(), *given, key_mask)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), wanted, rtol=4 * eps, atol=16 * eps)
    assert out.dtype == dtype
    assert (places == [[z.data_ptr() for z in given]]) == as_it_lies


def test_each_matrix_is_judged_by_its_farthest_point_of_either_side():
    x, y = torch.zeros(2, 3, 2, dtype=F64), torch.ones(2, 4, 2, dtype=F64)
    x[0, 1], y[1, 2], y[0, 0] = torch.tensor([3.0, -4.0]), torch.tensor([0.0, 7.0]), 2.0
    assert kernels._radius(x, y).tolist() == [5.0, 7.0]
    # A limit that the radius may reach: beyond it products lose more than half of the digits.
    for dtype in (F32, F64):
        limit = 0.5 * torch.finfo(dtype).eps ** -0.25
        radius = torch.tensor([0.0, 0.999 * limit, 1.001 * limit, math.inf, math.nan], dtype=dtype)
        assert kernels._rough(radius, 0.5).tolist() == [False, False, True, True, True]


def test_matrices_far_off_the_origin_are_centred_and_their_neighbours_left_alone():
    x, y = normal(3, 6, 2), normal(3, 5, 2, seed=1)
    x[1], y[1] = x[1] + 1e6, y[1] + 1e6
    near_x, near_y, rough = kernels._centred(x, y, 1.0)
    assert rough is None  # so that none of them takes the slow way
    torch.testing.assert_close(near_y[1], y[1] - y[1].mean(0))
    torch.testing.assert_close(near_x[1], x[1] - y[1].mean(0))
    for i in (0, 2):
        assert torch.equal(near_x[i], x[i])
        assert torch.equal(near_y[i], y[i])
    # The mean of y is a large part of the points where it is above half of the largest.
    for part, far in ((0.49, False), (0.51, True)):
        y = torch.tensor([[[part, 1.0], [part, -1.0]]], dtype=F64) * torch.tensor([1.0, 0.0])
        x = torch.tensor([[[1.0, 0.0]]], dtype=F64)
        near_x, near_y, rough = kernels._centred(1e6 * x, 1e6 * y, 1.0)
        assert (float(near_y.abs().max()) == 0) == far
        assert rough.tolist() == [True]


def test_a_kernel_inside_a_transform_is_the_kernel_with_its_gradient():
    x, y = normal(3, 5, 2), normal(3, 4, 2, seed=1)
    kernel = Gaussian(1.7)
    exact = naive(kernel, x, y)
    torch.testing.assert_close(torch.func.vmap(kernel.matrix)(x, y), exact)
    slope = torch.func.grad(lambda z: kernel.matrix(z, y).sum())(x)
    pull = (y[:, None] - x[:, :, None]) * exact[..., None] / 1.7**2
    torch.testing.assert_close(slope, pull.sum(-2))


def test_a_lifted_sum_runs_over_all_keys_unless_it_is_told_otherwise():
    x, y, v = (normal(2, 5, w, seed=w) for w in (3, 3, 2))
    K = naive(Gaussian(0.7), x, y)
    torch.testing.assert_close(kernels.lifted_sum(x, y, v, 0.7), K @ v)
    torch.testing.assert_close(kernels.lifted_sum(x, y, v, 0.7, causal=True), K.tril() @ v)


@pytest.mark.parametrize("entries", [1, 20, 21, 42, 10**6])
def test_differences_are_held_for_no_more_entries_than_their_bound(entries, monkeypatch):
    x, y, v = 1e9 * normal(3, 9, 2), 1e9 * normal(3, 7, 2, seed=1), normal(3, 7, 2, seed=2)
    held, inner = [], kernels.recomputed
    monkeypatch.setattr(kernels, "CAREFUL_ENTRIES", entries)
    monkeypatch.setattr(
        kernels, "recomputed", lambda call, z, *rest: held.append(z.shape) or inner(call, z, *rest)
    )
    Gaussian(1.0).apply(x, y, v)
    rows = [shape[1] for shape in held]
    assert rows[0] == min(9, max(1, entries // (3 * 7)))  # as many as fit, and at least one
    assert sum(rows) == 9


def test_the_matrix_is_formed_without_the_differences_of_all_coordinates():
    x, size = normal(512, 64), 8 * 512 * 512
    peak = peak_memory(lambda: Gaussian(8.0).matrix(x, x), x.device)
    assert size <= peak < 8 * size  # of a factor of 64
