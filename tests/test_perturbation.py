"""What a substitution does to a model is measured as it is defined, and the studies of it run."""

import gzip
import math

import numpy as np
import pandas as pd
import pytest
import torch
from small_studies import Attend, Net, draw, use_small_models
from torch import nn
from torch.nn import functional
from typer.testing import CliRunner

from softlab import measures
from softlab.capture import record
from softlab.capture.effect import attention_flops, change, effect, errors, greedy, own
from softlab.cli import app
from softlab.engine.workers import called
from softlab.operators import LinearAttention, Local, Nystromformer, Softmax, TopK, Uniform
from softlab.pretrained import tasks
from softlab.pretrained.tasks import NEEDS
from studies.in_model import chapter as chapter
from studies.in_model import study as in_model
from studies.precision_in_model import chapter as precision_chapter
from studies.precision_in_model import study as precision_in_model


class Raises(torch.nn.Module):
    """A model that fails in a way of its own."""

    def forward(self, x):
        assert x.shape[-1] == 3, "a width of 3"
        return x


def raises_attribute_error():
    return None.weight


def make():
    return Net()


def test_a_change_is_relative_and_an_infinite_output_is_infinitely_far():
    x = draw(4, 5)
    assert change(x, x) == {"change": 0.0, "cosine": pytest.approx(1), "finite": True}
    assert change(1.5 * x, x)["change"] == pytest.approx(0.5)
    assert change(-x, x)["cosine"] == pytest.approx(-1)
    assert change(x / 0 * 0, x)["change"] == math.inf
    assert change(x, 0 * x)["change"] == math.inf


@pytest.mark.parametrize("operator", [Nystromformer(4), Local(2), LinearAttention()])
def test_cheap_numbers_are_those_of_the_measures_head_by_head(operator):
    model = Attend()
    q, k, v = draw(1, 2, 20, 8), draw(1, 2, 20, 8, seed=1), draw(1, 2, 20, 8, seed=2)
    with record(model) as calls:
        model(q, k, v)
    got = errors(operator, calls[0])
    wanted = []
    for head in range(2):
        case = calls[0].case(0, head)
        reference = measures.Reference(Softmax(), *case)
        wanted.append(measures.accuracy(operator, *case, reference))
    for name in ("output_error", "skill", "matrix_error"):
        mean = sum(float(row[name]) for row in wanted) / 2
        assert got[name] == pytest.approx(mean, rel=1e-4)


def test_cheap_numbers_of_a_causal_layer_are_against_its_own_softmax():
    model, x = Net(causal=True), draw(1, 12, 16)
    with record(model) as calls:
        model(x)
    assert errors(Softmax(), calls[0])["matrix_error"] < 1e-6
    uniform = errors(Uniform(), calls[0])
    assert uniform["skill"] == pytest.approx(0, abs=1e-6)
    # The trivial answer of a model that is not causal would be another one.
    assert uniform["output_error"] == pytest.approx(
        float(
            torch.linalg.matrix_norm(
                calls[0].v.cumsum(-2) / torch.arange(1, 13)[:, None] - own(calls[0])
            ).div(torch.linalg.matrix_norm(own(calls[0]))).mean()
        ),
        rel=1e-4,
    )  # fmt: skip


def test_an_effect_begins_where_the_operator_stands_and_gathers():
    model, x = Net(), draw(1, 12, 16)
    found = effect(model, lambda: model(x), Nystromformer(3), layers=[1])
    first, second, third = found.layers
    assert (first.errors, first.accumulated) == ({}, 0.0)
    with record(model) as calls:
        model(x)
    out = Nystromformer(3)(calls[1].q, calls[1].k, calls[1].v)
    assert second.accumulated == pytest.approx(change(out, own(calls[1]))["change"], rel=1e-4)
    assert third.errors == {}
    assert third.accumulated > 0
    assert found.output["change"] > 0
    exact = effect(model, lambda: model(x), Softmax())
    assert exact.output["change"] < 1e-5
    assert max(layer.accumulated for layer in exact.layers) < 1e-5


def test_counted_work_is_that_of_projections_and_attention():
    model, x = Net(), draw(1, 12, 16)
    found = effect(model, lambda: model(x), Nystromformer(3), layers=[1])
    attention = 2 * 2 * 12 * 12 * (8 + 8)
    assert found.exact_flops == 3 * (2 * 12 * 16 * 48 + attention)
    with record(model) as calls:
        model(x)
    dims = measures.Dims.of(calls[0].q, calls[0].k, calls[0].v)
    assert attention_flops(dims) == attention
    cost = Nystromformer(3).cost(dims)
    work = cost.flops + cost.factorization_flops
    assert found.flops == found.exact_flops + work - attention
    assert effect(model, lambda: model(x), lambda q, k, v: v).flops == 0


def test_shared_key_heads_count_once_for_each_query_head():
    model, q, k = Attend(), draw(1, 4, 12, 8), draw(1, 2, 12, 8, seed=1)

    def run():
        return model(q, k, k, is_causal=True, enable_gqa=True)

    found = effect(model, run, TopK(4))
    assert found.exact_flops == 4 * 2 * 12 * 12 * (8 + 8)
    assert found.flops == TopK(4).cost(measures.Dims(4, 12, 12, 8, 8)).flops
    assert found.layers[0].errors["output_error"] == pytest.approx(
        found.layers[0].accumulated, rel=0.3
    )


@pytest.mark.parametrize("need_weights", [True, False])
def test_counted_work_of_fused_and_of_weighing_attention(need_weights):
    torch.manual_seed(0)
    x = draw(2, 9, 16)
    if need_weights:
        model = nn.MultiheadAttention(16, 2, batch_first=True).eval()
        run, own_work = lambda: model(x, x, x)[0], 2 * 2 * 9 * 16 * 16 * 4
    else:
        model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
        run, own_work = lambda: model(x), 2 * 2 * 9 * 16 * (4 * 16 + 2 * 32)
    found = effect(model, run, Nystromformer(3))
    assert found.exact_flops == own_work + 2 * 2 * 2 * 9 * 9 * (8 + 8)
    assert math.isnan(found.layers[0].accumulated) == need_weights


class Path(nn.Module):
    """Layers that are taken or not by what the first ones gave."""

    def __init__(self, how):
        super().__init__()
        torch.manual_seed(0)
        self.how = how
        self.first, self.one, self.other = (Net(1) for _ in range(3))
        self.calls = 0

    def forward(self, x):
        y = self.first(x) - x
        far = float(y.std(1).mean()) > 0.1
        if self.how == "as many calls":
            return (self.one if far else self.other)(x)
        if self.how == "halting":
            return self.one(x) if far else x
        if self.how == "a layer again":
            return self.one(self.one(x)) if far else self.one(x)
        if self.how == "fewer tokens":
            return self.one(x if far else x[:, :5])
        if self.how == "fewer answers":
            return self.one(x)[:, : 12 if far else 5]
        if self.how == "another order":  # the same calls
            return self.other(self.one(x)) if far else self.one(self.other(x))
        self.calls += 1  # a run is not the run before
        return self.one(x[:, : 12 - self.calls])


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("as many calls", r"call 0 of layer one.attend.0 is made as it is alone; calls: 2 and 2"),
        ("halting", r"call 0 of layer one.attend.0 is made as it is alone; calls: 2 and 1"),
        ("a layer again", r"call 1 of layer one.attend.0 is made as it is alone; calls: 3 and 2"),
        ("fewer tokens", r"of one.attend.0 are \[\(1, 2, 12, 8\).* and \[\(1, 2, 5, 8\).*subst"),
        ("fewer answers", r"its output is \(1, 12, 16\) as it is and \(1, 5, 16\) substituted"),
        ("a state", r"of one.attend.0 are \[\(1, 2, 11, 8\).* and \[\(1, 2, 10, 8\)"),
    ],
)
def test_runs_that_take_different_paths_are_not_compared(how, says, tmp_path):
    model, x = Path(how), 2 * draw(1, 12, 16)
    with pytest.raises(ValueError, match=rf"takes another path: .*{says}.*compare outputs alone"):
        effect(model, lambda: model(x), Uniform())
    torch.save(x, tmp_path / "x.pt")
    result = call(f"{__file__}:paths[{how!r}]", "Uniform()", "--input", tmp_path / "x.pt")
    assert result.exit_code == 2
    assert "takes another path" in result.stderr
    assert "zip" not in result.stderr


class _Paths:
    def __getitem__(self, how):
        return Path(how)


paths = _Paths()


def test_calls_are_compared_by_layer_in_whatever_order_they_are_made():
    model, x = Path("another order"), 2 * draw(1, 12, 16)
    found = effect(model, lambda: model(x), Uniform(), layers=["first"])
    assert [layer.name for layer in found.layers] == [
        f"{name}.attend.0" for name in ("first", "one", "other")
    ]
    with torch.no_grad(), record(model, outputs=True) as calls:
        model(x)
    model.first = nn.Identity()  # no way is far, as with Uniform
    with torch.no_grad(), record(model, outputs=True) as turned:
        model(x)
    for layer, name in zip(found.layers[1:], ("one", "other"), strict=True):
        was, now = (
            next(c.out for c in made if c.module == f"{name}.attend.0") for made in (calls, turned)
        )
        assert layer.accumulated == pytest.approx(change(now, was)["change"], rel=1e-5)


def test_counted_work_is_of_the_path_that_was_taken_and_of_each_call():
    """A count without attention would halt at once; the sizes of the last call are not all."""
    x = 2 * draw(1, 12, 16)
    model = Path("halting")
    one = 2 * 12 * 16 * 48 + 2 * 2 * 12 * 12 * 16
    assert effect(model, lambda: model(x), Softmax()).exact_flops == 2 * one
    net = Net(1)
    found = effect(net, lambda: (net(x[:, :5]), net(x))[1], TopK(4), heads=[1])
    exact = sum(2 * 2 * n * n * 16 for n in (5, 12))
    own = sum(TopK(4).cost(measures.Dims(1, n, n, 8, 8)).flops for n in (5, 12))
    assert found.flops - found.exact_flops == own - exact // 2
    assert found.exact_flops == 2 * 17 * 16 * 48 + exact


def test_an_output_that_is_written_over_is_kept():
    net, held = Net(), torch.zeros(1, 12, 16)
    x = draw(1, 12, 16)
    kept = effect(net, lambda: held.copy_(net(x)), Uniform()).output["change"]
    assert kept == effect(net, lambda: net(x), Uniform()).output["change"] > 0.01
    with pytest.raises(TypeError, match="run gave a dict; it must return the tensor"):
        effect(net, lambda: {"out": net(x)}, Uniform())


class Partly(Net):
    """A layer of three caps its scores, which no operator here does."""

    def __init__(self):
        super().__init__()
        self.attend[1].forward = lambda q, k, v, **more: (q @ k.mT).tanh().softmax(-1) @ v


def test_an_effect_says_what_it_did_not_see():
    model, x = Partly(), draw(1, 12, 16)
    with pytest.warns(UserWarning, match=r"'attend.1' \(1 time\)") as told:
        found = effect(model, lambda: model(x), Uniform())
    assert len(told) == 2  # as it is, and substituted
    assert [layer.name for layer in found.layers] == ["attend.0", "attend.2"]
    effect(model, lambda: model(x), Uniform(), layers=["attend.0"])  # the others were not asked for


@pytest.mark.parametrize("wide", [False, True])
def test_under_autocast_like_is_compared_with_like(wide):
    """torch's attention rounds float32 to bfloat16 there, and so does what the operator gets."""
    model, x = Net(), draw(1, 12, 16)
    if wide:
        for attend in model.attend:
            attend.forward = lambda q, k, v, **more: functional.scaled_dot_product_attention(
                q.float(), k.float(), v.float()
            ).float()

    def run():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model(x)

    found = effect(model, run, Softmax())
    assert found.layers[0].accumulated < 2**-8
    assert found.output["change"] < 2**-6
    assert max(layer.errors["output_error"] for layer in found.layers) < 2**-8
    with record(model) as calls:
        run()
    assert {c.q.dtype for c in calls} == {torch.bfloat16}
    assert found.layers[0].errors["matrix_error"] == errors(Softmax(), calls[0])["matrix_error"]


def test_the_greedy_set_is_the_cheapest_where_losses_add():
    alone = {"a": 0.5, "b": 0.1, "c": 0.2, "d": 2.0}
    calls = []

    def loss(parts):
        calls.append(parts)
        return sum(alone[part] for part in parts)

    assert greedy(loss, alone, 0.31) == (("b", "c"), pytest.approx(0.3))
    assert all("d" not in parts for parts in calls)
    assert greedy(loss, alone, 0.05) == ((), 0.0)
    assert greedy(loss, alone, 0.6, {"a": 100, "b": 1, "c": 1, "d": 1})[0] == ("a", "b")
    # Losses that do not add: a pair that is too much is left out, and the search goes on.
    assert greedy(lambda p: 9.0 if {"b", "c"} <= {*p} else 0.5, alone, 0.6)[0] == ("b", "a")


@pytest.fixture
def small_models(monkeypatch):
    use_small_models(monkeypatch)


DEPTH = in_model.DEPTH
WHERE = {"dtype": torch.float32, "device": torch.device("cpu")}


def rows(study, **chosen):
    cases = [case for case in study.cases() if all(case[x] in chosen[x] for x in chosen)]
    setups, found = {}, []
    for case in cases:
        key = tuple(case[x] for x in study.shared)
        if key not in setups:
            setups[key] = called(study.setup, case | WHERE)
        row = called(study.measure, case | WHERE | {"setup": setups[key]})
        found.append({**case, "status": "ok", **row})
    return pd.DataFrame(found)


def test_the_study_measures_against_the_model_as_it_is(small_models):
    """Whatever was asked for first: a model moved by the operator is no reference."""
    found = rows(
        in_model.STUDY, model=["minilm", "smollm2"], method=["int8", "TopK", "Uniform"], knob=[64]
    )
    whole = found[found["part"] == "all layers"].set_index(["model", "method"])
    assert float(whole.loc[("minilm", "int8"), "change"]) < 0.1
    assert float(whole.loc[("minilm", "int8"), "change"]) > 1e-4
    assert float(whole.loc[("minilm", "Uniform"), "change"]) > 0.1
    assert "smollm2" in set(found["model"])
    greedy_rows = found[found["part"] == "greedy"]
    assert bool((greedy_rows["change"].dropna() <= in_model.WITHIN).all())
    assert set(found["layers"]) >= {2, 6}
    text = " ".join(chapter.findings(found))
    assert "In all layers at once" in text
    titles = [table["caption"] for table in chapter.tables(found)]
    assert any("swapped" in title for title in titles)
    assert not chapter.binned(found).empty


def test_depth_cost_and_precision_have_their_say(small_models):
    depth = rows(in_model.DEPTHS, model=["minilm"], method=["Local", "TopK"])
    assert len(depth) == 12
    assert "so many times" in chapter.findings(depth)[0]
    cost = rows(in_model.COSTS, model=["whisper"], length=["short"], method=["exact", "Local"])
    assert list(cost["method"]) == ["exact", "Local"]
    assert float(cost["work"].iloc[0]) == pytest.approx(1)
    assert len(list(chapter.tables(cost))) == 1
    precision = rows(precision_in_model.STUDY, model=["minilm"], op=[Softmax(), TopK(64)])
    by = precision.set_index(["method", "precision"])["rounding_change"]
    assert by["Softmax", "float32"] == 0
    assert 0 < by["Softmax", "float16"] < by["Softmax", "bfloat16"] < 0.2
    assert len(precision_chapter.findings(precision)) == 3
    assert len(list(precision_chapter.tables(precision))) == 1


def made_up(noise):
    draws = np.random.default_rng(1)
    table = []
    for model in ("one", "two"):
        for op in range(12):
            for part in range(4):
                error = float(draws.uniform(0.01, 1))
                other = float(draws.uniform(0.01, 1))
                table.append({
                    "status": "ok", "model": model, "family": "ab"[op % 2], "op": f"op{op}",
                    "part": f"{part}", "layers": 1, "depth": 4, "matrix_error": error,
                    "output_error": other, "lack_of_skill": other, "method": f"m{op}",
                    "change": (1 - noise) * error + noise * float(draws.uniform()),
                    "within": 0.1, "work": 0.5, "task_loss": None,
                })  # fmt: skip
    return pd.DataFrame(table)


def test_a_rank_correlation_is_found_where_it_is_and_not_where_it_is_not():
    found = chapter.correlations(made_up(0.0)).set_index(["model", "family", "predictor"])
    sure = found.loc[("all", "all", "matrix_error")]
    assert sure["rho"] == pytest.approx(1)
    assert sure["low"] == pytest.approx(1)
    other = found.loc[("all", "all", "output_error")]
    assert other["low"] < 0 < other["high"]
    noisy = chapter.correlations(made_up(0.5)).set_index(["model", "family", "predictor"])
    at = noisy.loc[("one", "all", "matrix_error")]
    assert 0 < at["low"] < at["rho"] < at["high"] < 1
    from scipy.stats import spearmanr

    one = made_up(0.5)
    one = one[one["model"] == "one"]
    assert at["rho"] == pytest.approx(spearmanr(one["matrix_error"], one["change"]).statistic)
    place = found.loc[("all", "one place", "matrix_error")]
    assert (place["rho"], place["rows"]) == (pytest.approx(1), 96)
    assert "matrix predicts the change" in chapter.findings(made_up(0.0))[0]


def test_at_one_place_the_number_of_layers_does_not_count():
    """Between parts the change falls as the error grows; at each part it grows with it."""
    table = made_up(0.0)
    table["change"] = table["matrix_error"] + 10 * table["part"].astype(int)
    table["matrix_error"] -= 10 * table["part"].astype(int)
    found = chapter.correlations(table).set_index(["model", "family", "predictor"])["rho"]
    assert found["all", "one place", "matrix_error"] == pytest.approx(1)
    assert found["all", "all", "matrix_error"] < 0


def test_without_weights_one_command_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("SOFTLAB_CACHE", str(tmp_path))
    tasks.under_test.cache_clear()
    for name in NEEDS:
        with pytest.raises(
            FileNotFoundError, match="softlab fetch minilm vit photographs smollm2 whisper"
        ):
            tasks.under_test(name)
    with pytest.raises(ValueError, match="no model is named"):
        tasks.under_test("bert")


def test_fashion_mnist_is_read_from_a_named_folder(monkeypatch, tmp_path):
    def idx(name, array):
        head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
        (tmp_path / f"{name}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes()))

    images = np.arange(3 * 28 * 28, dtype=np.uint8).reshape(3, 28, 28)
    idx("train-images-idx3", images)
    idx("t10k-images-idx3", images[:2])
    idx("train-labels-idx1", np.array([2, 0, 1], dtype=np.uint8))
    idx("t10k-labels-idx1", np.array([3, 4], dtype=np.uint8))
    monkeypatch.setenv("SOFTLAB_FASHION_MNIST", str(tmp_path))
    train, labels, test = tasks.fashion(2, 2)
    assert labels.tolist() == [2, 0]
    assert train.shape == test.shape == (2, 3, 112, 112)
    monkeypatch.setenv("SOFTLAB_FASHION_MNIST", str(tmp_path / "nothing"))
    assert tasks.fashion(2, 2) is None


def test_the_probe_learns_what_is_linear():
    x = draw(60, 5)
    labels = (x[:, 0] > 0).long()
    weights = tasks.ridge(x, labels, penalty=1e-6)
    assert float((tasks._answers(x, weights) == labels).float().mean()) > 0.9


def call(*words):
    return CliRunner().invoke(
        app, ["substitute", *map(str, words)], env={"COLUMNS": "150", "NO_COLOR": "1"}
    )


@pytest.mark.parametrize("suffix", [".pt", ".npy", ".npz", ".safetensors"])
def test_the_command_line_substitutes_in_a_users_model(tmp_path, suffix):
    from safetensors.torch import save_file

    x, file = draw(2, 12, 16), tmp_path / f"x{suffix}"
    {
        ".pt": lambda: torch.save((x,), file),
        ".npy": lambda: np.save(file, x.numpy()),
        ".npz": lambda: np.savez(file, x=x.numpy()),
        ".safetensors": lambda: save_file({"x": x}, file),
    }[suffix]()
    result = call(
        f"{__file__}:make", "Nystromformer(rank=4)", "--input", file, "--layers", "1,attend.2"
    )
    assert result.exit_code == 0, result.output
    assert "attend.1" in result.stdout
    assert "The model's output changes by" in result.stdout
    assert "times that of the unmodified model" in result.stdout


@pytest.mark.parametrize(
    ("factory", "operator", "more", "code", "says"),
    [
        ("nowhere:make", "Softmax()", [], 2, "nowhere cannot be imported"),
        (f"{__file__}:DEPTH", "Softmax()", [], 2, "a torch.nn.Module is needed"),
        (f"{__file__}:make", "Softmx()", [], 2, "Did you mean 'Softmax'?"),
        (f"{__file__}:make", "Nystromformer(rank=99)", [], 2, "rank 99 is asked of 12"),
        (f"{__file__}:make", "Softmax()", ["--layers", "7"], 2, "not reached"),
        (f"{__file__}:make", "Softmax()", ["--layers", "attnd"], 2, "no module 'attnd'"),
        (f"{__file__}:make", "Softmax()", ["--heads", "x"], 2, "invalid literal"),
        (f"{__file__}:Raises", "Softmax()", [], 2, "raised AssertionError: a width of 3"),
        ("torch:nn.Linear(3, 3)", "Softmax()", [], 2, "x.pt gives it (2, 12, 16). Save what it"),
        (f"{__file__}:raises_attribute_error", "Softmax()", [], 2, "raised AttributeError: "),
        ("torch:nn.Identity()", "Softmax()", [], 2, "saw 0 attention calls"),
    ],
)
def test_bad_requests_are_refused_in_one_line(tmp_path, factory, operator, more, code, says):
    file = tmp_path / "x.pt"
    torch.save(draw(2, 12, 16), file)
    result = call(factory, operator, "--input", file, *more)
    assert (result.exit_code, says in result.stderr) == (code, True), result.output


def test_bad_files_are_refused(tmp_path):
    for file, says in ((tmp_path / "x.pt", "is no file"), (tmp_path / "x.csv", "ends in .csv")):
        if file.suffix == ".csv":
            file.write_text("1")
        assert says in call(f"{__file__}:make", "Softmax()", "--input", file).stderr
    broken = tmp_path / "y.pt"
    broken.write_text("nothing")
    assert "cannot be read" in call(f"{__file__}:make", "Softmax()", "--input", broken).stderr
