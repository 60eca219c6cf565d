"""Each input is what it says: the property that was set is the property obtained."""

import hashlib
import math

import pytest
import torch

from softlab.inputs import (
    QKV,
    Clustered,
    Decaying,
    Input,
    Normal,
    Recorded,
    Sink,
    Smooth,
    Tied,
    recorded_names,
)
from softlab.inputs.recorded import DATA

FAMILIES = [
    Normal(48, 8, scale=1.5, e=5),
    Clustered(48, 8, clusters=7, e=5),
    Decaying(48, 8, rate=0.5, e=5),
    Decaying(48, 8, rate=2.0, kind="algebraic", e=5),
    Sink(48, 8, mass=0.7, e=5),
    Smooth(48, 8, length=10.0, e=5),
]
F64 = torch.float64


def attention(q, k):
    return torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), dim=-1)


def rank99(matrix):
    # Squared singular values by way of the Gram matrix: fast, and ample for a share of 99 %.
    energy = torch.linalg.eigvalsh(matrix @ matrix.mT).flip(-1)
    return int((energy.cumsum(0) < 0.99 * energy.sum()).sum()) + 1


def square_norm(x):
    return float(x.square().sum(-1).mean())


@pytest.mark.parametrize("inp", [*FAMILIES, Tied(FAMILIES[0])], ids=repr)
def test_one_seed_is_one_case(inp):
    assert isinstance(inp, Input)
    assert eval(repr(inp)) == inp
    case = inp(3)
    assert isinstance(case, QKV)
    assert inp.n == 48
    assert [tuple(x.shape) for x in case] == [(48, 8), (48, 8), (48, 5)]
    assert all(torch.equal(x, y) for x, y in zip(case, inp(3), strict=True))
    for x, y in zip(case, inp(4), strict=True):
        assert not torch.allclose(x, y)
    assert not torch.allclose(case.q, case.k) or isinstance(inp, Tied)


@pytest.mark.parametrize("inp", [*FAMILIES, Recorded("minilm.layer5.head2")], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_only_rounds_and_the_global_stream_is_untouched(inp, dtype):
    state = torch.get_rng_state()
    for exact, rounded in zip(inp(1, dtype=F64), inp(1, dtype=dtype), strict=True):
        assert (exact.dtype, rounded.dtype) == (F64, dtype)
        assert torch.equal(exact.to(dtype), rounded)
    assert torch.equal(torch.get_rng_state(), state)
    meta = inp(1, device="meta")
    assert meta.q.device.type == "meta"


def test_normal_sets_the_norm_and_the_temperature():
    for scale in (0.25, 1.0, 2.0):
        q, k, v = Normal(4000, 32, scale=scale)(0, dtype=F64)
        assert square_norm(q) == pytest.approx(32 * scale**2, rel=0.02)
        assert square_norm(v) == pytest.approx(32, rel=0.02)
        scores = q[:500] @ k[:500].mT / math.sqrt(32)
        assert float(scores.std()) == pytest.approx(scale**2, rel=0.05)


def test_clusters_are_exact_without_spread_and_as_wide_as_asked_with_it():
    q, k, _ = Clustered(100, 8, clusters=7, spread=0.0)(0)
    assert len(q.unique(dim=0)) == 7
    assert torch.equal(q, k)
    counts = q.unique(dim=0, return_counts=True)[1]
    assert int(counts.max() - counts.min()) <= 1
    assert torch.linalg.matrix_rank(attention(q.double(), k.double()), rtol=1e-5) <= 7
    for spread in (0.1, 1.0):
        inp = Clustered(4000, 16, clusters=500, spread=spread, scale=2.0)
        q, k, _ = inp(0, dtype=F64)
        assert square_norm(q) == pytest.approx(16 * 4, rel=0.1)
        # q and k of a token differ by two independent noises
        apart = square_norm(q - k) / (16 * 4)
        assert apart == pytest.approx(2 * spread**2 / (1 + spread**2), rel=0.05)


@pytest.mark.parametrize("kind", ["geometric", "algebraic"])
@pytest.mark.parametrize(("n", "d"), [(64, 12), (12, 64)])
def test_decay_is_exactly_as_prescribed(kind, n, d):
    inp = Decaying(n, d, rate=0.7, kind=kind, scale=1.5)
    q, k, _ = inp(2, dtype=F64)
    s = inp.singular_values
    for x in (q, k):
        torch.testing.assert_close(torch.linalg.svdvals(x), s, rtol=1e-10, atol=1e-12)
        assert square_norm(x) == pytest.approx(d * 1.5**2)
    ratio = s[1] / s[0]
    assert float(ratio) == pytest.approx(math.exp(-0.7) if kind == "geometric" else 2**-0.7)
    # the axes are shared: k lies where q does, to the same extent
    torch.testing.assert_close(q.mT @ q, k.mT @ k)


@pytest.mark.parametrize("mass", [0.1, 0.9, 0.999])
def test_the_sink_draws_its_share_from_every_query(mass):
    q, k, _ = Sink(1500, 16, mass=mass, scale=1.3)(0, dtype=F64)
    share = attention(q, k)[:, 0]
    torch.testing.assert_close(share, torch.full_like(share, mass), rtol=1e-9, atol=0)
    assert float(attention(q, k)[:, 1:].max()) < 1 - mass + 1e-12


def test_smooth_tokens_resemble_their_neighbours():
    q, k, _ = Smooth(40_000, 8, length=20.0, scale=1.5)(0, dtype=F64)
    for x in (q, k):
        assert float(x.var()) == pytest.approx(1.5**2, rel=0.1)
        for lag in (1, 10, 40):
            correlation = float((x[lag:] * x[:-lag]).mean() / x.square().mean())
            assert correlation == pytest.approx(math.exp(-lag / 20), abs=0.05)


def test_tied_replaces_keys_by_queries():
    base = Recorded("vit.layer8.head3")
    q, _, v = base(1)
    tied = Tied(base)(1)
    assert tied.k is tied.q
    assert torch.equal(tied.q, q)
    assert torch.equal(tied.v, v)
    assert Tied(base).n == base.n == 1025


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: Normal(0, 4), ValueError, "at least 1"),
        (lambda: Normal(4, 4.0), TypeError, "integer"),
        (lambda: Normal(4, 4, e=0), ValueError, "Normal.e"),
        (lambda: Normal(4, 4, scale=-1.0), ValueError, "positive"),
        (lambda: Normal(4, 4, scale=math.nan), ValueError, "positive"),
        (lambda: Clustered(4, 4, clusters=5), ValueError, "give 1 to 4"),
        (lambda: Clustered(4, 4, clusters=2, spread=-0.1), ValueError, "at least 0"),
        (lambda: Decaying(4, 4, rate=0.0), ValueError, "positive"),
        (lambda: Decaying(4, 4, rate=1.0, kind="linear"), ValueError, "geometric, algebraic"),
        (lambda: Sink(4, 4, mass=1.0), ValueError, "mass < 1"),
        (lambda: Sink(1, 4), ValueError, "n >= 2"),
        (lambda: Smooth(4, 4, length=math.inf), ValueError, "finite"),
        (lambda: Normal(4, 4)(-1), ValueError, "at least 0"),
        (lambda: Normal(4, 4)(dtype=torch.int64), TypeError, "floating"),
        (lambda: Recorded("minilm.layer0.head1"), ValueError, "Did you mean 'minilm.layer0.head0'"),
        (lambda: Recorded("minilm.layer0.head0")(4), ValueError, "4 stored samples"),
        (lambda: Recorded("minilm.layer0.head0")(-1), ValueError, "4 stored samples"),
    ],
)
def test_bad_arguments_are_refused(make, error, says):
    with pytest.raises(error, match=says):
        make()


def test_recordings_are_small_and_of_both_kinds():
    names = recorded_names()
    assert {name.split(".")[0] for name in names} == {"minilm", "vit"}
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) <= 6_000_000
    for name in names:
        inp = Recorded(name)
        d = {"minilm": 32, "vit": 64}[name.split(".")[0]]
        assert (inp.n, inp.samples) == ({32: 512, 64: 1025}[d], 4)
        assert [x.shape[1] for x in inp()] == [d, d, d]
        assert all(torch.isfinite(x).all() for x in inp())


@pytest.mark.parametrize("name", recorded_names())
def test_a_recording_says_truly_what_it_is(name):
    inp = Recorded(name)
    origin = inp.origin
    assert f".layer{origin['layer']}.head{origin['head']}" in name
    q, k, _ = inp(2, dtype=F64)
    # The last singular value counted can fall on either side of 99 % by rounding.
    assert abs(rank99(attention(q, k)) - origin["rank99"][2]) <= 1
    if name.startswith("minilm"):
        for sample in origin["samples"]:
            text = (DATA / "passages" / f"{sample['name']}.txt").read_bytes()
            assert hashlib.sha256(text).hexdigest() == sample["sha256"]


def test_recorded_spectra_differ_and_real_is_not_random():
    ranks = {name: Recorded(name).origin["rank99"] for name in recorded_names()}
    for model, d in (("minilm", 32), ("vit", 64)):
        low, middle, high = sorted(
            (r for name, r in ranks.items() if name.startswith(model)), key=max
        )
        assert max(low) < min(middle) <= max(middle) < min(high)
        q, k, _ = Normal(512, d)(0, dtype=F64)
        assert rank99(attention(q, k)) > max(middle)


def test_samples_of_a_recording_are_different():
    for name in recorded_names():
        q = [Recorded(name)(seed).q for seed in range(4)]
        for i in range(4):
            for j in range(i):
                assert float((q[i] - q[j]).norm() / q[i].norm()) > 0.1


def test_a_wrong_sink_would_be_noticed():
    """The planted fault: the share is not what was asked once a query is changed."""
    q, k, _ = Sink(50, 8, mass=0.9)(0, dtype=F64)
    share = attention(q * 1.01, k)[:, 0]
    assert not torch.allclose(share, torch.full_like(share, 0.9), rtol=1e-4)
