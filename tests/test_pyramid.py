"""SOFT's pyramid: its sizes, the released computation on its weights, other operators in it."""

import dataclasses
import re

import pytest
import torch
from released_soft import classify
from torch.utils.flop_counter import FlopCounterMode

from softlab.landmarks import GridPool, SegmentMeans
from softlab.landmarks.grid_conv import convolved
from softlab.landmarks.grids import cells
from softlab.models import (
    Design,
    Pyramid,
    soft_huge,
    soft_large,
    soft_medium,
    soft_small,
    soft_small_7,
    soft_small_20,
    soft_tiny,
)
from softlab.models.soft import TINY, scaled
from softlab.models.soft_attention import Attention, Convolution, Pooling, Projection
from softlab.operators import (
    GaussianAttention,
    LinearAttention,
    Linformer,
    Nystromformer,
    Performer,
    Soft,
    Softmax,
)
from softlab.pinv import SVD, ImplicitGradient, NewtonRaphson, PublishedSoft, Ridge

F64 = torch.float64
SMALL = Design((1, 2, 1, 2), (32, 64, 64, 32), (2, 4, 2, 4), rank=4, stem=8, image=64)


def trained(model, seed=0):
    """The model as if trained: weights, norms and statistics away from where they start."""
    rng = torch.Generator().manual_seed(seed)
    for name, x in model.state_dict().items():
        if not x.is_floating_point():
            continue
        noise = torch.randn(x.shape, generator=rng, dtype=F64).to(x.dtype)
        if name.endswith("running_var") or ("norm" in name and name.endswith("weight")):
            x.copy_(1 + 0.3 * noise.tanh())
        elif x.ndim >= 2 and "positions" not in name and name != "cls":
            x.copy_(noise * (2 / x[0].numel()) ** 0.5)
        else:
            x.copy_(0.3 * noise)
        if "landmarks.norm.weight" in name:
            x.mul_(0.05)  # landmarks so near each other that 20 steps do not invert their core
    return model.eval()


def photographs(b, side, other=None, channels=3, dtype=F64, seed=7):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(b, channels, side, other or side, generator=rng, dtype=dtype)


# --- sizes ---------------------------------------------------------------------------------------

PAPER = {  # arXiv 2110.11945, Table 3: parameters in millions, multiply-adds in G at 224 pixels
    soft_tiny: (13, 1.9),
    soft_small_7: (24, 3.3),
    soft_medium: (45, 7.2),
    soft_large: (64, 11.0),
    soft_huge: (87, 16.3),
}


def counted(make, **how):
    """Millions of parameters, G multiply-adds in all, and those of the Newton-Raphson steps."""
    with torch.device("meta"):
        model = make(**how)
    newton = sum(
        block.attention.heads * block.attention.operator.pinv.cost(49).flops / 2e9
        for stage in model.stages[:3]
        for block in stage.blocks
    )
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    return parameters, model.cost(224, 224).flops / 2e9, newton


@pytest.mark.parametrize("make", PAPER, ids=lambda f: f.__name__)
def test_parameters_are_the_papers_and_multiply_adds_without_the_inverse(make):
    parameters, total, newton = counted(make)
    assert abs(parameters / PAPER[make][0] - 1) < 0.02
    # The table is of two digits, and 0.05 G is 2.6 % of Tiny's.
    assert abs((total - newton) / PAPER[make][1] - 1) < 0.032
    # What the paper's counter left out: with it every row but none is over by a tenth and more.
    assert total / PAPER[make][1] > 1.1


def test_the_paper_does_not_count_the_steps_of_the_inverse():
    """Table 4 of the paper: 1.9, 1.9, 2.0, 2.1 G multiply-adds for 36, 49, 64, 81 landmarks."""
    for m, published in ((36, 1.9), (49, 1.9), (64, 2.0), (81, 2.1)):
        design = dataclasses.replace(TINY, rank=m)
        heads = 2 + 4 * 2 + 10 * 3
        newton = heads * NewtonRaphson(steps=20).cost(m).flops / 2e9
        with torch.device("meta"):
            total = Pyramid(design).cost(224, 224).flops / 2e9
        assert abs(total - newton - published) < 0.1
        assert m < 64 or total - published > 0.3


def test_the_miniature_has_the_papers_ratios_of_tokens_to_landmarks():
    for image in (16, 24, 32):
        small = scaled(image)
        ratios = [[high * wide / d.rank for high, wide in d.grids(d.image, d.image)]
                  for d in (TINY, small)]  # fmt: skip
        assert ratios[0] == ratios[1] == [64, 16, 4, 1]
        assert Pyramid(small, channels=1)(photographs(1, image, channels=1).float()).shape == (
            *(1, 1000),
        )


def test_parameters_of_the_released_code():
    """In millions, of its own models and of the paper's rows by sampling (12.96 and 13.07)."""
    counts = [
        (soft_tiny, "paper", 12.958),
        (soft_tiny, "released", 13.069),
        (soft_small_7, "released", 24.11),
        (soft_small, "released", 38.86),
        (soft_small_20, "released", 38.86),
    ]
    for make, variant, count in counts:
        assert counted(make, variant=variant)[0] == pytest.approx(count, abs=0.006)
    assert counted(soft_small)[0] == counted(soft_small_7)[0]


@pytest.mark.parametrize("sampling", ["pool", "conv"])
def test_the_cost_is_what_a_counter_sees_of_plain_products(sampling):
    model = Pyramid(SMALL, "released", sampling=sampling, fixed=False, num_classes=7).eval()
    image, state = photographs(2, 64), model.double().published_state_dict()
    plain = model.cost(64, 64, batch=2).flops
    if sampling == "pool":  # the plain form has convolutions: take their share off
        tokens = [(256, 2, 16, 1), (64, 4, 16, 2), (16, 2, 32, 1)]
        conv = sum(2 * 2 * n * h * d * d * depth for n, h, d, depth in tokens)
        plain += conv
        state = Pyramid(SMALL, "released", num_classes=7).double().published_state_dict()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        classify(state, image, SMALL.heads, SMALL.windows)
    # The plain form multiplies the side by the inverse, n m^2; ours takes the smaller product; and
    # it forms squared distances by differences, where ours takes n m d products.
    shapes = [(256, 4, 16, 2, 1), (64, 4, 16, 4, 2), (16, 4, 32, 2, 1)]
    other = sum(
        2 * 2 * h * depth * (n * m * m - m * m * d - 2 * n * m * d - m * m * d)
        for n, m, d, h, depth in shapes
    )
    gradient = sum(2 * 2 * h * depth * 2 * m**3 for n, m, d, h, depth in shapes)  # of -Y dA Y
    assert counter.get_total_flops() == plain + other + gradient


# --- the released computation --------------------------------------------------------------------


@pytest.mark.parametrize("normalization", ["none", "published"])
@pytest.mark.parametrize("size", [(64, 64), (96, 64)], ids=str)
def test_released_outputs_and_gradients(normalization, size):
    image, norm = photographs(2, *size), normalization == "published"
    model = trained(Pyramid(SMALL, "released", normalization, 7).double())
    weights = dict(model.named_parameters())
    state = {
        k: x.clone().requires_grad_(x.is_floating_point())
        for k, x in model.published_state_dict().items()
    }
    ours = model(image)
    theirs = classify(state, image, SMALL.heads, SMALL.windows, norm=norm)
    assert (ours - theirs).norm() <= 1e-11 * theirs.norm()
    probe = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1), dtype=F64)
    (ours * probe).sum().backward()
    (theirs * probe).sum().backward()
    gradients = {k: p.grad for k, p in weights.items()}
    model.load_state_dict({**model.state_dict(), **gradients})  # carried over by their names
    for name, grad in model.published_state_dict().items():
        if "running" in name or "num_batches" in name:
            continue
        due = state[name].grad
        assert (grad - due).norm() <= 1e-9 * due.norm() + 1e-12, name


def test_released_at_single_precision():
    model = trained(Pyramid(SMALL, "released", num_classes=7))
    exact = {k: x.double() for k, x in model.published_state_dict().items()}
    image = photographs(2, 64)
    due = classify(exact, image, SMALL.heads, SMALL.windows)
    assert (model(image.float()).double() - due).norm() <= 2e-5 * due.norm()


def test_released_tiny_at_full_size():
    """The model of the repository, its own number of landmarks, one photograph's worth of noise."""
    model = trained(soft_tiny("released"))
    image = photographs(1, 224, dtype=torch.float32)
    with torch.no_grad():
        due = classify(model.published_state_dict(), image, (2, 4, 10, 16), (8, 4, 2))
        assert (model(image) - due).norm() <= 1e-4 * due.norm()


@pytest.mark.parametrize(
    "wrong",
    [
        {"pinv": Ridge(ImplicitGradient(NewtonRaphson(20)))},  # scaled after the ridge
        {"pinv": NewtonRaphson(20)},
        {"pinv": Ridge(ImplicitGradient(NewtonRaphson(19, PublishedSoft())))},
        {"sampling": "pool"},
        {"normalization": "symmetric"},
    ],
    ids=str,
)
def test_another_computation_is_told_apart(wrong):
    model = trained(Pyramid(SMALL, "released", num_classes=7).double())
    other = Pyramid(SMALL, "released", **{"num_classes": 7, **wrong}).double().eval()
    other.load_state_dict(model.state_dict(), strict=False)
    image = photographs(2, 96)
    due = classify(model.published_state_dict(), image, SMALL.heads, SMALL.windows)
    assert (other(image) - due).norm() > 1e-6 * due.norm()


# --- published weights ---------------------------------------------------------------------------


@pytest.mark.parametrize("normalization", ["none", "published"])
def test_published_weights_come_back(normalization):
    model = trained(Pyramid(SMALL, "released", normalization, 7))
    state = model.published_state_dict()
    other = Pyramid(SMALL, "released", normalization, 7, seed=1).eval()
    report = other.load_published({f"module.{name}": x for name, x in state.items()})
    assert report.complete
    for name, x in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], x)
    image = photographs(1, 64, dtype=torch.float32)
    assert torch.equal(model(image), other(image))


def test_published_names_and_shapes():
    """Read off the repository's modules: stage 3 of Tiny, the fourth, tables, stem and head."""
    shapes = {k: tuple(x.shape) for k, x in soft_tiny("released").published_state_dict().items()}
    due = {
        "patch_embed1.proj.0.weight": (32, 3, 3, 3),
        "patch_embed1.proj.6.weight": (64, 32, 3, 3),
        "patch_embed1.proj.7.running_var": (64,),
        "patch_embed4.proj.0.weight": (512, 320, 3, 3),
        "patch_embed4.proj.1.num_batches_tracked": (),
        "pos_embed1": (1, 3136, 64),
        "pos_embed4": (1, 50, 512),
        "cls_token": (1, 1, 512),
        "block1.0.att.mha.attn.Qlandmark_op.weight": (32, 32, 8, 8),
        "block1.0.att.mha.attn.conv.weight": (2, 1, 9, 9),
        "block2.1.att.mha.attn.Qnorm_act.0.bias": (32,),
        "block3.2.att.mha.W_q.weight": (320, 320),
        "block3.2.att.mha.W_v.bias": (320,),
        "block3.2.att.mha.ff.weight": (320, 320),
        "block3.2.att.mha.attn.Qlandmark_op.weight": (32, 32, 2, 2),
        "block3.2.att.norm2.weight": (320,),
        "block3.2.att.ff1.weight": (1280, 320),
        "block3.2.att.ff2.bias": (320,),
        "block4.1.norm1.weight": (512,),
        "block4.1.attn.q.bias": (512,),
        "block4.1.attn.kv.weight": (1024, 512),
        "block4.1.attn.proj.weight": (512, 512),
        "block4.1.mlp.fc1.weight": (2048, 512),
        "block4.1.mlp.fc2.bias": (512,),
        "norm.weight": (512,),
        "head.weight": (1000, 512),
    }
    assert {name: shapes.get(name) for name in due} == due
    # 31 of the embeddings; 16 a softmax-free block, of which there are 6; 14 a softmax block.
    assert len(shapes) == 4 + 1 + 3 * 7 + 3 * 7 + 6 * 18 + 2 * 14 + 2 + 2


def test_a_report_of_what_did_not_fit():
    model = Pyramid(SMALL, "released", num_classes=7)
    state = trained(Pyramid(SMALL, "released", num_classes=10)).published_state_dict()
    del state["norm.bias"]
    state["extra"] = torch.zeros(1)
    before = model.head.weight.clone()
    report = model.load_published(state)
    assert report.missing == ["norm.bias"]
    assert report.unexpected == ["extra"]
    assert report.reshaped == [("head.weight", (10, 32), (7, 32)), ("head.bias", (10,), (7,))]
    assert not report.complete
    assert torch.equal(model.head.weight, before)
    assert torch.equal(model.cls, state["cls_token"])


def test_weights_of_another_architecture_are_refused_and_nothing_is_changed():
    model = Pyramid(SMALL, "released", num_classes=7)
    before = {k: x.clone() for k, x in model.state_dict().items()}
    vit = {
        "cls_token": torch.ones(1, 1, 32),
        "norm.weight": torch.ones(32),
        "blocks.0.x": model.cls,
    }
    with pytest.raises(ValueError, match=r"^these are weights of another architecture: of \d+ ten"):
        model.load_published(vit)
    broken = trained(Pyramid(SMALL, "released", num_classes=7)).published_state_dict()
    broken["cls_token"] = broken["cls_token"] * torch.nan
    with pytest.raises(ValueError, match=r"^cls_token and 0 other weights hold NaN or inf"):
        model.load_published(broken)
    with pytest.raises(TypeError, match=r"must map names to tensors, got dict. Pass the one under"):
        model.load_published({"state_dict_ema": broken, "epoch": 3})
    with pytest.raises(TypeError, match="must map names to tensors, got list"):
        model.load_published([1])
    assert all(torch.equal(x, before[k]) for k, x in model.state_dict().items())
    with pytest.raises(ValueError, match=r"attention.key.weight has no place in the published"):
        Pyramid(SMALL, operator=Softmax()).published_state_dict()


# --- use -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("normalization", ["none", "row", "symmetric", "published"])
def test_any_size_features_and_every_normalization(variant, normalization):
    model = Pyramid(SMALL, variant, normalization, num_classes=0).eval()
    image = photographs(2, 32, 96, dtype=torch.float32)
    with torch.no_grad():
        assert model(image).shape == (2, 32)
        maps = model.features(image)
    assert [x.shape for x in maps] == [(2, 32, 8, 24), (2, 64, 4, 12), (2, 64, 2, 6), (2, 32, 1, 3)]
    assert all(x.isfinite().all() for x in maps)


def test_the_class_token_sees_what_the_features_are_made_of():
    model = trained(Pyramid(SMALL, num_classes=0).double())
    image = photographs(1, 64).requires_grad_()
    first = model.stages[0]
    x = first.embed(image).flatten(2).mT + first.positions
    tokens, _ = first(image)
    assert tokens.shape == x.shape
    assert torch.equal(model.features(image)[0].flatten(2).mT, tokens)
    (grad,) = torch.autograd.grad(model(image).sum(), image)
    assert bool((grad.abs().amax(1) > 0).all())  # every pixel counts


def test_a_sample_does_not_depend_on_its_neighbours():
    image = photographs(3, 64)
    for variant, normalization in (("paper", "published"), ("released", "none")):
        model = trained(Pyramid(SMALL, variant, normalization, 5).double())
        assert (model(image)[:1] - model(image[:1])).norm() <= 1e-12 * model(image[:1]).norm()
    coupled = trained(Pyramid(SMALL, "released", "published", 5).double())
    assert (coupled(image)[:1] - coupled(image[:1])).norm() > 1e-9  # as its docstring warns


OTHERS = [
    (Softmax(), False),
    (GaussianAttention(), True),
    (Nystromformer(rank=4), False),
    (Linformer(rank=4), False),
    (Performer(features=16), False),
    (LinearAttention(), False),
    (Soft(rank=4, landmarks=SegmentMeans(), pinv=SVD()), True),
]


@pytest.mark.parametrize(("operator", "tied"), OTHERS, ids=lambda x: repr(x))
def test_any_operator_in_the_place_of_soft(operator, tied):
    model = Pyramid(SMALL, operator=operator, num_classes=5, tied=tied)
    image = photographs(2, 64, dtype=torch.float32)
    model(image).square().sum().backward()
    attention = model.stages[1].blocks[0].attention
    assert (attention.key is None) == tied
    assert float(attention.query.weight.grad.norm()) > 0
    assert model.cost(64, 64).flops > 0


def test_linformer_learns_projections_that_start_as_means_of_cells():
    model = Pyramid(SMALL, operator=Linformer(rank=4), num_classes=5)
    attention = model.stages[1].blocks[0].attention
    rng = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, attention.heads, 64, 8, generator=rng)
    few_k, few_v = (GridPool(8, 8)(x, 4) for x in (k, v))
    out = attention.mixed(q, k, v, (8, 8), None)
    assert (out - Softmax()(q, few_k, few_v)).abs().max() < 1e-6
    model(photographs(2, 64, dtype=torch.float32)).square().sum().backward()
    for name in ("keys", "values"):
        assert float(getattr(attention.landmarks, name).grad.norm()) > 0
    with pytest.raises(ValueError, match=r"learnt for a grid of 16 x 16 tokens, got 32 x 32"):
        model(photographs(1, 128, dtype=torch.float32))


def test_attention_is_its_formula():
    """Projections, the operator by heads, the filter by explicit sums."""
    rng = torch.Generator().manual_seed(0)
    layer = Attention(12, 3, Soft(4, landmarks=GridPool(4, 6)), depthwise=3).double()
    x = torch.randn(2, 24, 12, generator=rng, dtype=F64)
    q, v = (
        (x @ f.weight.mT + f.bias).reshape(2, 24, 3, 4).transpose(1, 2)
        for f in (layer.query, layer.value)
    )
    mixed = layer.operator(q, q, v)
    grid = v.reshape(2, 3, 4, 6, 4)
    for r in range(4):
        for c in range(6):
            for dr in (-1, 0, 1):
                for dc in (-1, 0, 1):
                    if 0 <= r + dr < 4 and 0 <= c + dc < 6:
                        w = layer.filter.weight[:, 0, dr + 1, dc + 1]
                        mixed[:, :, r * 6 + c] += w[:, None] * grid[:, :, r + dr, c + dc]
    due = mixed.transpose(1, 2).flatten(2) @ layer.mix.weight.mT + layer.mix.bias
    assert (layer(x, (4, 6)) - due).norm() <= 1e-12 * due.norm()


def test_masking_tokens_equals_deleting_them_without_a_grid():
    layer = Attention(12, 3, Soft(4), depthwise=0).double()
    x = torch.randn(2, 24, 12, generator=torch.Generator().manual_seed(0), dtype=F64)
    mask = (torch.arange(24) < 17).expand(2, 24)
    due = layer(x[:, :17], (1, 17))
    assert (layer(x, (4, 6), mask)[:, :17] - due).norm() <= 1e-12 * due.norm()
    with pytest.raises(ValueError, match="landmarks of a grid take no key_mask"):
        Attention(12, 3, Soft(4), Pooling(rank=4)).double()(x, (4, 6), mask)


def test_sampling():
    x = torch.randn(2, 3, 48, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    image = x.reshape(6, 6, 8, 4).permute(0, 3, 1, 2)
    pooled = torch.nn.functional.avg_pool2d(image, 2).flatten(2).mT.reshape(2, 3, 12, 4)
    assert (Pooling(stride=2)(x, (6, 8)) - pooled).norm() <= 1e-13 * pooled.norm()
    assert (Pooling(rank=12)(x, (6, 8)) - pooled).norm() <= 1e-13 * pooled.norm()
    assert torch.equal(Pooling(rank=99)(x, (6, 8)), x)  # fewer tokens than landmarks
    conv = Convolution(4, 2).double()
    direct = torch.nn.functional.conv2d(image, conv.weight, stride=2).flatten(2).mT
    mine = convolved(x, 12, cells(6, 8, 12), conv.weight)
    assert (mine.flatten(0, 1) - direct).norm() <= 1e-13 * direct.norm()
    few = Convolution(4, 2, rank=4).double()
    few.load_state_dict(conv.state_dict())
    halves = GridPool(3, 4)(conv(x, (6, 8)), 4)
    assert few(x, (6, 8)).shape == (2, 3, 4, 4)
    assert torch.equal(few(x, (6, 8)), halves)


def test_soft_at_its_own_landmarks_is_soft():
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 4, generator=rng, dtype=F64) for n in (5, 9, 9))
    mask = torch.arange(9) < 7
    for normalization in ("none", "row", "symmetric", "published"):
        op = Soft(4, normalization=normalization)
        z = op.landmarks(k, 4, mask)
        assert torch.equal(op.at(z, q, k, v, mask), op(q, k, v, mask))
        assert not torch.equal(op.at(z + 0.1, q, k, v, mask), op(q, k, v, mask))
    with pytest.raises(ValueError, match="z has 24 entries that are NaN or inf"):
        op.at(z[..., :1, :] * torch.nan, q, k, v)


def test_the_seed_decides_the_weights_and_torchs_own_generator_is_left_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, again, other = (Pyramid(SMALL, "released", seed=s).state_dict() for s in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(x, again[k]) for k, x in one.items())
    assert not torch.equal(one["head.weight"], other["head.weight"])


def test_drop_path_acts_in_training_alone_and_keeps_the_mean():
    from softlab.models.pyramid import DropPath

    drop, x = DropPath(0.25), torch.ones(4000, 3)
    torch.manual_seed(0)
    y = drop(x)
    assert y.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert bool((y.amin(1) == y.amax(1)).all())
    assert float(y.mean()) == pytest.approx(1, abs=0.05)
    assert torch.equal(drop.eval()(x), x)


# --- bad input -----------------------------------------------------------------------------------

BAD = [
    (
        lambda m: m(torch.zeros(1, 3, 65, 64)),
        ValueError,
        "65 x 64 pixels is not divided by the str",
    ),
    (lambda m: m(torch.zeros(1, 3, 16, 64)), ValueError, "Resize or pad it, to 32 x 64 for"),
    (lambda m: m(torch.zeros(1, 1, 64, 64)), ValueError, r"got \(1, 1, 64, 64\): 1 channels"),
    (lambda m: m(torch.zeros(3, 64, 64)), ValueError, r"\(b, 3, H, W\), floating, got \(3, 64"),
    (lambda m: m(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)), ValueError, "Divide bytes by 255"),
    (
        lambda m: m(torch.full((1, 3, 64, 64), torch.nan)),
        ValueError,
        "image has 12288 entries that",
    ),
    (lambda m: m("photo.png"), ValueError, "got photo.png"),
    (lambda m: m.features(torch.zeros(1, 3, 65, 64)), ValueError, "not divided by the strides"),
    (lambda m: m.cost(65, 64), ValueError, "not divided by the strides"),
    (lambda m: soft_tiny("papers"), ValueError, "Pyramid.variant is 'papers'; give one of paper"),
    (lambda m: soft_tiny("paper", "rows"), ValueError, "Soft.normalization is 'rows'; give one of"),
    (lambda m: soft_tiny(num_classes=-1), ValueError, "Pyramid.num_classes is -1"),
    (lambda m: Pyramid(SMALL, sampling="max"), ValueError, "Pyramid.sampling is 'max'"),
    (lambda m: Pyramid(SMALL, drop_path=1.5), ValueError, "Pyramid.drop_path is 1.5"),
    (lambda m: Pyramid(SMALL, operator=[Softmax()]), ValueError, "operator has 1 entries"),
    (lambda m: Design((1, 1, 1)), ValueError, r"Design.depths is \(1, 1, 1\); give a tuple of 4"),
    (lambda m: Design((1, 0, 1, 1)), ValueError, "Design.depths is 0; give an integer of at least"),
    (lambda m: Design((1,) * 4, image=100), ValueError, "Design.image is 100; give a multiple of"),
    (lambda m: Design((1,) * 4, strides=(3, 2, 2, 2)), ValueError, "Design.strides is"),
    (lambda m: Attention(10, 3, Softmax()), ValueError, "width 10 is not divided by 3 heads"),
    (lambda m: Attention(9, 3, Softmax(), depthwise=2), ValueError, "must be odd"),
    (lambda m: Attention(9, 3, Softmax(), Pooling(4)), TypeError, "landmarks serve a Soft"),
    (lambda m: Attention(9, 3, Softmax(), Projection(4, (4, 4))), TypeError, "serve a Linformer"),
    (lambda m: Attention(9, 3, "soft"), TypeError, "Attention.operator is 'soft'"),
    (lambda m: Pooling(), ValueError, "either a rank or a stride"),
    (
        lambda m: Pooling(stride=4)(torch.zeros(1, 1, 36, 2), (6, 6)),
        ValueError,
        "not cut by a stri",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[text for *_, text in BAD])
def test_bad_input_is_one_clear_line(call, error, message):
    with pytest.raises(error) as refusal:
        call(Pyramid(SMALL, num_classes=2))
    assert re.search(message, str(refusal.value))
    assert "\n" not in str(refusal.value)
