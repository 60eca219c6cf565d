"""Bad input is refused before any work, with what was got, what is required and what to do."""

import dataclasses
import math
import re

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from zoo import OPERATORS

from softlab import Dims, as_matrix, core, pinv
from softlab.landmarks import (
    GreedyResidual,
    GridConv,
    GridPool,
    KMeans,
    LeverageScores,
    RPCholeskyPivots,
    SegmentMeans,
)
from softlab.operators import (
    MRA,
    BandLowRank,
    ColumnSample,
    GaussianAttention,
    KDEFormer,
    Linformer,
    Nystromformer,
    Performer,
    Quantized,
    Reformer,
    RPCholesky,
    Scatterbrain,
    SketchedTaylor,
    Skyformer,
    Soft,
    Softmax,
    Thinformer,
    TruncatedSVD,
    Uniform,
)

WORK = {"mm", "bmm", "baddbmm", "exp", "exp_", "_softmax", "_cdist_forward", "mean", "gather"}
WORK |= {"_linalg_svd", "linalg_cholesky_ex", "scatter_add", "_scaled_dot_product_attention"}


class Idle(TorchDispatchMode):
    """Fails at the first operation that would count as work."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._overloadpacket.__name__
        if name in WORK or "scaled_dot_product" in name:
            msg = f"{name} ran before the input was refused"
            raise AssertionError(msg)
        return func(*args, **(kwargs or {}))


def good(n=9, l=11, d=4, e=3, lead=(2,)):
    g = torch.Generator().manual_seed(0)
    return tuple(torch.randn(*lead, *shape, generator=g) for shape in ((n, d), (l, d), (l, e)))


def with_entry(x, value):
    x = x.clone()
    x[0, 1, 2] = value
    return x


q, k, v = good()
half_masked = torch.ones(2, 11, dtype=torch.bool)
half_masked[1] = False

# name: (q, k, v, key_mask), error, got, required, what to do
BAD = {
    "q is a vector": (
        (q[0, 0], k, v, None),
        (ValueError, "q must have", "at least two dimensions", r"got (4,)", "unsqueeze(0)"),
    ),
    "v is a scalar": (
        (q, k, v[0, 0, 0], None),
        (ValueError, "v must have at least two dimensions", "got ()", "Add the missing axis"),
    ),
    "widths differ": (
        (q, k[..., :3], v, None),
        (ValueError, "same head width", "got 4 (q (2, 9, 4)) and 3 (k (2, 11, 3))", "Project"),
    ),
    "keys without values": (
        (q, k, v[:, :7], None),
        (ValueError, "one row a key", "got 11 rows", "7 (v (2, 7, 3))", "Pass the value of every"),
    ),
    "leading dimensions": (
        (q, k, v.expand(3, 2, 11, 3)[:, :1].expand(3, 4, 11, 3), None),
        (ValueError, "must broadcast together", "v (3, 4)", "Align batch and heads"),
    ),
    "integers": (
        (q, k, v.long(), None),
        (TypeError, "v must be floating point", "got torch.int64", "Convert: .float()"),
    ),
    "complex": (
        (q.to(torch.cfloat), k.to(torch.cfloat), v.to(torch.cfloat), None),
        (TypeError, "q must be floating point", "got torch.complex64", "Convert: .float()"),
    ),
    "eight bits": (
        (q.to(torch.float8_e4m3fn), k.to(torch.float8_e4m3fn), v.to(torch.float8_e4m3fn), None),
        (TypeError, "q must be floating point", "got torch.float8_e4m3fn", "Convert: .float()"),
    ),
    "mixed dtypes": (
        (q, k.double(), v, None),
        (TypeError, "must share one dtype", "k: torch.float64", "Convert them with .to(dtype)"),
    ),
    "mixed devices": (
        (q, k.to("meta"), v, None),
        (ValueError, "must be on one device", "k: meta", "Move them with .to(device)"),
    ),
    "numpy": (
        (q, k.numpy(), v, None),
        (TypeError, "k must be a torch.Tensor", "got ndarray", "torch.as_tensor(k)"),
    ),
    "None": (
        (q, k, None, None),
        (TypeError, "v must be a torch.Tensor", "got NoneType", "torch.as_tensor(v)"),
    ),
    "NaN in q": (
        (with_entry(q, math.nan), k, v, None),
        (ValueError, "q has 1 entries that are NaN or inf (of 72)", "all must be finite", "Mask"),
    ),
    "inf in k": (
        (q, with_entry(k, math.inf), v, None),
        (ValueError, "k has 1 entries that are NaN or inf", "all must be finite", "Mask padding"),
    ),
    "inf and -inf in v": (
        (q, k, with_entry(with_entry(v, math.inf).flip(-1), -math.inf), None),
        (ValueError, "v has 2 entries that are NaN or inf", "all must be finite", "find where"),
    ),
    "NaN at a key that takes part": (
        (q, with_entry(k, math.nan), v, torch.arange(11) < 9),
        (ValueError, "k has 1 entries that are NaN or inf", "key_mask"),
    ),
    "products that overflow": (
        (q, k * 1e19, v, None),
        (ValueError, "k reaches ", "products of such points overflow torch.float32", "Rescale q"),
    ),
    "no queries": (
        (q[:, :0], k, v, None),
        (ValueError, "q is empty, shape (2, 0, 4)", "at least 1 long"),
    ),
    "no keys": (
        (q, k[:, :0], v[:, :0], None),
        (ValueError, "k is empty, shape (2, 0, 4)", "every axis must be at least 1"),
    ),
    "no batch": (
        (q[:0], k[:0], v[:0], None),
        (ValueError, "q is empty, shape (0, 9, 4)", "every axis must be at least 1"),
    ),
    "everything masked": (
        (q, k, v, half_masked),
        (ValueError, "key_mask leaves no key in 1 of 2 matrices", "undefined", "keep one key"),
    ),
    "mask of the wrong length": (
        (q, k, v, torch.ones(9, dtype=torch.bool)),
        (ValueError, "key_mask must broadcast to (2, 11)", "got (9,)", "use mask[:, None, :]"),
    ),
    "mask over queries and keys": (
        (q, k, v, torch.ones(2, 9, 11, dtype=torch.bool)),
        (ValueError, "key_mask must broadcast to (2, 11)", "got (2, 9, 11)", "use mask"),
    ),
    "mask of floats": (
        (q, k, v, torch.ones(11)),
        (TypeError, "key_mask must be boolean (a tensor", "got torch.float32", "Use .bool()"),
    ),
    "mask as a list": (
        (q, k, v, [True] * 11),
        (TypeError, "key_mask must be boolean (a tensor", "got list", "Use .bool()"),
    ),
    "mask elsewhere": (
        (q, k, v, torch.ones(11, dtype=torch.bool, device="meta")),
        (ValueError, "key_mask is on meta, not cpu", "Use .to('cpu')"),
    ),
}


def assert_refused(call, error, *pieces):
    with Idle(), pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    for piece in pieces:
        assert piece in str(caught.value)


NOTHING = ("no queries", "no keys", "no batch", "everything masked")
"""What exact attention answers, and all that approximates it refuses."""

ANSWERING = [op for op in OPERATORS if isinstance(op, (Softmax, GaussianAttention))]


@pytest.mark.parametrize("name", NOTHING)
@pytest.mark.parametrize("op", ANSWERING, ids=repr)
def test_exact_attention_to_nothing_is_zero(op, name):
    *tensors, mask = BAD[name][0]
    if op.traits.causal:  # a query at every key
        tensors = [x if name == "no batch" else x[:, : min(map(len, x))] for x in tensors]
        tensors = (
            [tensors[1], *tensors[1:]] if name != "no queries" else [x[:, :0] for x in tensors]
        )
    leaves = [x.clone().requires_grad_() for x in tensors]
    if name == "everything masked":
        leaves[1].data[~mask.expand(2, -1)] = math.nan  # what padding held
    out = op(*leaves, mask)
    assert out.shape == (*tensors[0].shape[:-1], 3)
    if name == "everything masked":
        empty = ~mask.any(-1).expand(2)
        assert bool((out[empty] == 0).all())
        assert bool((out[~empty] != 0).any())
        alone = op(*(x[~empty] for x in tensors), mask.expand(2, -1)[~empty])
        torch.testing.assert_close(out[~empty], alone)
    else:
        assert not bool(out.any())
    grads = torch.autograd.grad(out.sum(), leaves)
    assert all(bool(g.isfinite().all()) for g in grads)
    if name == "everything masked":
        assert all(not bool(g[empty].any()) for g in grads)


@pytest.mark.sampled(1 / 2)
@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("op", OPERATORS, ids=repr)
def test_bad_tensors_are_refused_before_any_work(op, name):
    tensors, refusal = BAD[name]
    if name in NOTHING and op in ANSWERING:
        return
    assert_refused(lambda: op(*tensors), *refusal)


def test_work_before_the_refusal_would_be_caught():
    class Hasty(Softmax):
        """The planted fault: computes first and checks later."""

        def __call__(self, q, k, v, key_mask=None):
            scores = q @ k.mT
            return super().__call__(q, k, v, key_mask) + scores.sum()

    tensors, refusal = BAD["mask of floats"]
    with pytest.raises(AssertionError, match=r"bmm ran before the input was refused"):
        assert_refused(lambda: Hasty()(*tensors), *refusal)


def test_the_good_input_is_accepted():
    for op in OPERATORS:
        queries = k if op.traits.causal else q
        out = op(queries, k, v, torch.arange(11) < 9)
        assert out.shape == (*queries.shape[:-1], 3)


RANKED = [op for op in OPERATORS if hasattr(op, "rank")]


@pytest.mark.parametrize("op", RANKED, ids=repr)
def test_ranks_beyond_the_tokens_are_refused(op):
    queries = 9 if op.traits.lifted else 0
    many = dataclasses.replace(op, rank=queries + 12)
    asked = f"rank {queries + 12} is asked of "
    refusal = ValueError, asked, "use a rank of 1 to ", "or the exact operator"
    assert_refused(lambda: many(q, k, v), *refusal)
    # Masked keys are no tokens.
    few = torch.arange(11) < 2
    three = dataclasses.replace(op, rank=queries + 3)
    asked = f"rank {queries + 3} is asked of {queries + 2}"
    assert_refused(lambda: three(q, k, v, few), ValueError, asked)


@pytest.mark.parametrize("op", [op for op in OPERATORS if op.traits.causal], ids=repr)
def test_causal_forms_ask_for_a_query_at_every_key(op):
    refusal = "a causal form needs a query at every key, got 9 queries and 11 keys", "causal=False"
    assert_refused(lambda: op(q, k, v), ValueError, *refusal)


@pytest.mark.parametrize("name", ["mask of the wrong length", "mask of floats"])
def test_a_bad_query_mask_is_called_by_its_name(name):
    op = Nystromformer(rank=2)
    bad = torch.ones(5, dtype=torch.bool) if name.endswith("length") else torch.ones(9)
    error = ValueError if name.endswith("length") else TypeError
    assert_refused(lambda: op(q, k, v, query_mask=bad), error, "query_mask must")
    none_left = torch.zeros(9, dtype=torch.bool)
    refusal = ValueError, "query_mask leaves no"
    assert_refused(lambda: op(q, k, v, query_mask=none_left), *refusal)


FIELDS = [
    (lambda: KMeans(0), ValueError, "KMeans.iterations is 0; give an integer of at least 1"),
    (lambda: KMeans(seed=-1), ValueError, "KMeans.seed is -1; give an integer of at least 0"),
    (lambda: RPCholeskyPivots(0), ValueError, "RPCholeskyPivots.block is 0; give an integer of"),
    (lambda: RPCholeskyPivots(2.0), TypeError, "RPCholeskyPivots.block is 2.0; give an integer"),
    (lambda: RPCholeskyPivots(bandwidth=0), ValueError, "RPCholeskyPivots.bandwidth is 0; give a"),
    (lambda: RPCholeskyPivots(seed=-1), ValueError, "RPCholeskyPivots.seed is -1; give an integer"),
    (lambda: GreedyResidual(-1.0), ValueError, "GreedyResidual.bandwidth is -1.0; give a positive"),
    (lambda: LeverageScores(0.0), ValueError, "LeverageScores.ridge is 0.0; give a positive"),
    (lambda: LeverageScores(sample=0), ValueError, "LeverageScores.sample is 0; give an integer"),
    (lambda: LeverageScores(bandwidth="1"), TypeError, "LeverageScores.bandwidth is '1'; give a"),
    (lambda: LeverageScores(seed=-1), ValueError, "LeverageScores.seed is -1; give an integer"),
    (lambda: GridPool(0), ValueError, "GridPool.height is 0; give an integer of at least 1"),
    (lambda: GridPool(width=2.0), TypeError, "GridPool.width is 2.0; give an integer"),
    (lambda: GridConv(width=-1), ValueError, "GridConv.width is -1; give an integer of at least 1"),
    (lambda: GridConv(seed=-1), ValueError, "GridConv.seed is -1; give an integer of at least 0"),
    (lambda: Soft(rank=0), ValueError, "Soft.rank is 0; give an integer of at least 1"),
    (lambda: Soft(rank=-3), ValueError, "Soft.rank is -3; give an integer of at least 1"),
    (lambda: Soft(rank=2.0), TypeError, "Soft.rank is 2.0; give an integer"),
    (lambda: Soft(rank=True), TypeError, "Soft.rank is True; give an integer"),
    (lambda: Nystromformer(rank=0), ValueError, "Nystromformer.rank is 0; give an integer"),
    (lambda: TruncatedSVD(rank="3"), TypeError, "TruncatedSVD.rank is '3'; give an integer"),
    (lambda: Soft(4, bandwidth=0), ValueError, "Soft.bandwidth is 0; give a positive finite"),
    (lambda: Soft(4, bandwidth=-1.0), ValueError, "Soft.bandwidth is -1.0; give a positive finite"),
    (lambda: Soft(4, bandwidth=math.nan), ValueError, "Soft.bandwidth is nan; give a positive"),
    (lambda: Soft(4, bandwidth=math.inf), ValueError, "Soft.bandwidth is inf; give a positive"),
    (lambda: Soft(4, bandwidth="1"), TypeError, "Soft.bandwidth is '1'; give a positive number"),
    (
        lambda: GaussianAttention(bandwidth=-1),
        ValueError,
        "GaussianAttention.bandwidth is -1; give a positive finite number",
    ),
    (
        lambda: GaussianAttention(normalization="published"),
        ValueError,
        "GaussianAttention.normalization is 'published'; give one of none, row, symmetric",
    ),
    (
        lambda: Soft(4, normalization="rows"),
        ValueError,
        "Soft.normalization is 'rows'; give one of none, row, symmetric, published",
    ),
    (lambda: Softmax(scale=0.0), ValueError, "scale is 0.0; give a positive finite number"),
    (lambda: Soft(4, landmarks=SegmentMeans), TypeError, "Soft.landmarks is <class"),
    (lambda: Soft(4, landmarks="means"), TypeError, "Soft.landmarks is 'means', which is no Sel"),
    (lambda: Soft(4, pinv="svd"), TypeError, "Soft.pinv is 'svd', which is no Solver; give an"),
    (lambda: Soft(4, pinv=pinv.SVD), TypeError, "Soft.pinv is <class"),
    (lambda: Nystromformer(4, pinv=torch.linalg.pinv), TypeError, "Nystromformer.pinv is <"),
    (lambda: Uniform(target="softmax"), TypeError, "Uniform.target is 'softmax', which is no Ope"),
    (lambda: TruncatedSVD(3, target=Softmax), TypeError, "TruncatedSVD.target is <class"),
    (lambda: BandLowRank(0), ValueError, "BandLowRank.window is 0; give an integer of at least"),
    (lambda: BandLowRank(2, 4), ValueError, "BandLowRank.kernels is 4, and there are three; giv"),
    (lambda: BandLowRank(2, blend=1.5), ValueError, "blend is 1.5; give a number from 0 to 1"),
    (lambda: BandLowRank(2, blend="1"), TypeError, "blend is '1'; give a number from 0 to 1"),
    (lambda: BandLowRank(2, blend=math.nan), ValueError, "blend is nan; give a number from 0"),
    (lambda: ColumnSample(0), ValueError, "ColumnSample.rank is 0; give an integer of at least"),
    (lambda: ColumnSample(3, seed=-1), ValueError, "ColumnSample.seed is -1; give an integer of"),
    (lambda: Linformer(2.5), TypeError, "Linformer.rank is 2.5; give an integer of at least 1"),
    (lambda: MRA(0), ValueError, "MRA.block is 0; give an integer of at least 1"),
    (lambda: MRA(2, sparse="yes"), TypeError, "MRA.sparse is 'yes'; give True or False"),
    (lambda: Thinformer(0), ValueError, "Thinformer.size is 0; give an integer of at least 1"),
    (lambda: Thinformer(4, caution=0), ValueError, "Thinformer.caution is 0; give a positive fin"),
    (lambda: Thinformer(4, seed=-1), ValueError, "Thinformer.seed is -1; give an integer of at"),
    (lambda: SketchedTaylor(0), ValueError, "SketchedTaylor.features is 0; give an integer of at"),
    (lambda: SketchedTaylor(8, 1), ValueError, "SketchedTaylor.degree is 1; give 2 to 12: nothing"),
    (lambda: SketchedTaylor(8, 13), ValueError, "SketchedTaylor.degree is 13; give 2 to 12"),
    (lambda: SketchedTaylor(seed=-1), ValueError, "SketchedTaylor.seed is -1; give an integer of"),
    (
        lambda: SketchedTaylor(scale=-1.0),
        ValueError,
        "scale is -1.0; give a positive finite number",
    ),
    (lambda: RPCholesky(3, temperature=0), ValueError, "RPCholesky.temperature is 0; give a pos"),
    (lambda: RPCholesky(3, pinv="qr"), TypeError, "RPCholesky.pinv is 'qr', which is no Solver"),
    (lambda: Scatterbrain(0), ValueError, "Scatterbrain.window is 0; give an integer of at lea"),
    (lambda: Scatterbrain(2, 0), ValueError, "Scatterbrain.features is 0; give an integer of a"),
    (lambda: Skyformer(3, landmarks=4), TypeError, "Skyformer.landmarks is 4, which is no Sele"),
    (lambda: KDEFormer(0), ValueError, "KDEFormer.block is 0; give an integer of at least 1"),
    (lambda: KDEFormer(4, -1), ValueError, "KDEFormer.samples is -1; give an integer of at least"),
    (lambda: Reformer(buckets=5), ValueError, "Reformer.buckets is 5, and every direction has an"),
    (lambda: Reformer(chunk=0), ValueError, "Reformer.chunk is 0; give an integer of at least 1"),
    (lambda: Softmax(causal=1), TypeError, "Softmax.causal is 1; give True or False"),
    (
        lambda: GaussianAttention(normalization="symmetric", causal=True),
        ValueError,
        "whose key degrees depend on later tokens; with causal=True give 'none' or 'row'",
    ),
    (
        lambda: Quantized(smoothing=True, causal=True),
        ValueError,
        "later ones included; with causal=True give smoothing=False",
    ),
    (
        lambda: Performer(eps=1e-4, causal=True),
        ValueError,
        "later ones included; with causal=True give eps=0",
    ),
    (lambda: Dims(0, 1, 1, 1, 1), ValueError, "Dims.batch is 0; give an integer of at least 1"),
    (lambda: Dims(1, 1, 1, 1.5, 1), ValueError, "Dims.d is 1.5; give an integer of at least 1"),
]


@pytest.mark.parametrize(("build", "error", "message"), FIELDS, ids=[m[:44] for *_, m in FIELDS])
def test_bad_fields_are_refused_at_construction(build, error, message):
    with pytest.raises(error, match=re.escape(message)):
        build()


def test_an_operator_that_is_not_linear_has_no_matrix():
    class Squared(Softmax):
        @property
        def traits(self):
            return core.Traits(linear_in_v=False)

    with pytest.raises(ValueError, match="not linear in v, so it has no matrix; compare its out"):
        as_matrix(Squared(), q, k)
