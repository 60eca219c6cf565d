"""The cheapest attention within what was asked: tested on inputs held out, kept, applied."""

import json
import math
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import call
from scipy import stats
from torch import nn
from torch.nn import functional

from softlab import tuning
from softlab.capture import SubstitutionError, record, substitute
from softlab.capture.effect import change
from softlab.inputs import Saved
from softlab.operators import Softmax, TopK, Uniform
from softlab.tuning import Part, Plan
from softlab.tuning.search import Option, _hull, _Journal, passed
from softlab.tuning.subject import halves

MINE = """
    import torch
    from torch import nn
    from torch.nn import functional

    class Layer(nn.Module):
        def __init__(self, sharp):
            super().__init__()
            self.sharp, self.mix, self.out = sharp, nn.Linear(16, 48), nn.Linear(16, 16)

        def forward(self, x):
            b, n, d = x.shape
            q, k, v = self.mix(x).view(b, n, 3, 2, 8).permute(2, 0, 3, 1, 4)
            found = functional.scaled_dot_product_attention(self.sharp * q, k, v)
            return x + self.out(found.transpose(1, 2).reshape(b, n, d))

    class Loss(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x, labels):
            out = self.model(x)
            return {"loss": (out - labels).square().mean(), "out": out}

    def make():
        torch.manual_seed(0)
        # The mean of the values is nearly right in the first, and wrong in the second.
        return nn.Sequential(Layer(0.01), Layer(12.0))

    def loss(): return Loss(make())
    def mean(out): return out.mean()
    def flat(out): return 0.5
    def missing(out): return float("nan")
    def several(out): return out
    def wrong(): return 3
    def broken(): return {}["weights"]
    def noisy(): return nn.Sequential(make(), Noise())

    class Noise(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x)
"""
FEW = ["Uniform()", "Local(window=4)", "TopK(k=4)"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(textwrap.dedent(MINE))
    torch.save(drawn(), "x.pt")


def drawn(count=16):
    return torch.randn(count, 24, 16, generator=torch.Generator().manual_seed(1))


def made():
    space = {}
    exec(textwrap.dedent(MINE), space)
    return space["make"]()


def tuned(within=0.02, **more):
    return tuning.tune(made(), [((drawn(),), {})], within=within, candidates=FEW, **more)


def test_a_plan_is_cheaper_and_within_on_inputs_held_out():
    found = tuned()
    about = found.plan.about
    assert found.met
    assert set(found.plan.layers) == {"0"}  # the second layer's attention is sharp
    assert {part.operator for part in found.plan.layers["0"]} == {"Uniform()"}
    assert about["attention"] < 0.6
    assert about["value"] <= about["high"] <= 0.02
    assert about["resamplings_met"] >= 95
    assert about["held_out_inputs"] == 8
    assert about["work"] < 1
    # The number of the plan is that of the model, on the very inputs that were held out.
    model, x = made(), drawn()[1::2]
    with torch.no_grad():
        clean = model(x)
        with found.plan.applied(model):
            moved = model(x)
    assert change(moved, clean)["change"] == pytest.approx(about["value"], rel=1e-4)
    assert f"within {0.02:g}" in found.said
    ran = [row for row in found.rows if row["on"] == "search"]
    assert len(ran) >= about["trials"]


def test_the_chosen_plan_was_tested_and_a_looser_target_is_no_dearer():
    work = []
    for within in (0.02, 0.3, 1.0):
        found = tuned(within)
        accepted = [row for row in found.rows if row["accepted"]]
        assert accepted[-1]["on"] == "held out"
        assert accepted[-1]["attention"] == found.plan.about["attention"]
        work.append(found.plan.about["attention"])
    assert work == sorted(work, reverse=True)


def test_heads_have_operators_of_their_own_only_if_they_may():
    model = made()
    with torch.no_grad():  # one head of the second layer attends to nothing
        model[1].mix.weight[:8] = 0
        model[1].mix.bias[:8] = 0
    given = [((drawn(),), {})]
    by_head = tuning.tune(model, given, within=0.02, candidates=FEW)
    assert by_head.plan.layers["1"] == (Part("Uniform()", (0,)),)
    by_layer = tuning.tune(model, given, within=0.02, candidates=FEW, heads=False)
    assert set(by_layer.plan.layers) == {"0"}
    assert by_head.plan.about["attention"] < by_layer.plan.about["attention"]


def test_nothing_cheaper_is_said_and_changes_nothing():
    found = tuned(within=1e-7)
    assert not found.met
    assert found.said.startswith("Nothing cheaper meets the target")
    assert "above 1e-07" in found.said
    found = tuning.tune(made(), [((drawn(),), {})], within=0.1, candidates=["Local(window=24)"])
    assert "no candidate takes less counted work" in found.said
    found.plan.save("plan.json")
    model, x = made(), drawn()
    with tuning.load("plan.json").applied(model):
        assert torch.equal(model(x), made()(x))


def test_a_search_goes_on_where_it_stopped():
    full = tuned(journal="whole.jsonl")
    lines = Path("whole.jsonl").read_text().splitlines()
    Path("part.jsonl").write_text("\n".join([*lines[:2], lines[2][:30]]) + "\n")
    told = []
    again = tuned(journal="part.jsonl", tell=told.append)
    assert "2 are known" in told[0]
    assert again.plan.layers == full.plan.layers
    assert again.plan.about["trials"] == full.plan.about["trials"] - 2
    once = tuned(journal="whole.jsonl")
    assert once.plan.about["trials"] == 0
    assert once.plan.layers == full.plan.layers
    other = tuning.tune(
        made(), [((2 * drawn(),), {})], within=0.02, candidates=FEW, journal="whole.jsonl"
    )
    assert other.plan.about["trials"] > 0  # other inputs are another search


def test_a_budget_is_kept_to_and_said():
    found = tuned(trials=1)
    assert found.plan.about["trials"] == 1
    with pytest.raises(ValueError, match="trials is 0"):
        tuned(trials=0)


def test_the_interval_covers_skewed_inputs_from_above():
    rng = np.random.default_rng(0)
    above = below = 0
    for _ in range(400):
        y = rng.gamma(4.0, size=12)
        x = y * rng.exponential(0.02, size=12)  # E x / E y = 0.02
        found = tuning.change.interval([*zip(x, y, strict=True)])
        assert found.value == pytest.approx(math.sqrt(x.sum() / y.sum()))
        assert found.low < found.value < found.high
        above += found.high < math.sqrt(0.02)
        below += found.low > math.sqrt(0.02)
    assert above / 400 < 0.08  # that of the ratio itself misses 0.12
    assert below / 400 < 0.05


@pytest.mark.parametrize("true", [(0.5, 2.0), (2.0, 0.5, 2.0, 2.0), (2.0, 2.0, 2.0)], ids=str)
def test_all_tests_together_are_wrong_no_more_often_than_one(true):
    """Plans of which some change more than is allowed: is one of those accepted?"""
    rng = np.random.default_rng(1)
    wrong, naive, runs = 0, 0, 3000
    for _ in range(runs):
        upper = [m + s for m, s in ((x, rng.normal(0, 0.5)) for x in true)]

        def holds(i, odds, upper=upper):
            return upper[i] + 0.5 * stats.norm.ppf(1 - odds / 2) <= 2.0

        found = passed(len(true), holds)
        wrong += any(ok and x >= 2 for ok, x in zip(found, true, strict=True))
        naive += any(holds(i, 0.05) for i, x in enumerate(true) if x >= 2)
    bound = 0.025 + 3 * (0.025 * 0.975 / runs) ** 0.5
    assert wrong / runs <= bound
    if true.count(2.0) > 1:  # the planted fault: each test at the odds of one
        assert naive / runs > bound


def test_a_plan_that_fails_does_not_end_the_tests_and_one_that_passes_hands_its_odds_on():
    asked = []

    def holds(i, odds):
        asked.append(round(odds, 6))
        return i != 1

    assert passed(4, holds) == [True, False, True, True]
    assert asked == [0.025, 0.033333, 0.008333, 0.016667]
    assert passed(1, lambda _, odds: odds == pytest.approx(0.05)) == [True]
    assert passed(0, holds) == []


def test_intervals_of_nothing_of_infinity_and_of_a_loss():
    assert tuning.change.interval([(math.inf, 1.0), (0.0, 1.0)]).high == math.inf
    assert tuning.change.interval([(0.0, 1.0)] * 5) == (0, 0, 0)
    assert (
        tuning.change.interval([(0.1, 1.0)]).high == math.inf
    )  # one input tells nothing of others
    assert tuning.change.resampled([(1.0, 1.0)] * 5, 0.5) == 0
    never = tuning.score(float).interval([(0.0, 1.0)] * 10)
    assert never.high == pytest.approx(1 - 0.025**0.1)  # no change in ten inputs
    fallen = tuning.loss.interval([(-0.1, 1.0), (-0.3, 1.0), (-0.2, 1.0)])
    assert fallen.low < fallen.value < fallen.high < 0.1
    assert fallen.value == pytest.approx(-0.2)


def test_the_hull_has_no_point_that_another_beats():
    exact = Option("", 10, 0)
    points = [Option(str(i), w, e) for i, (w, e) in enumerate([(8, 5), (6, 1), (4, 9), (2, 3)])]
    assert [x.operator for x in _hull([exact, *points])] == ["", "1", "3"]
    assert _hull([exact, Option("a", 5, math.inf)]) == [exact]


def test_batches_are_split_only_where_samples_are_alone():
    class Coupled(nn.Module):
        def forward(self, x):
            return x - x.mean(0)

    x = drawn(6)
    assert len(tuning.units(made(), [((x,), {})])) == 6
    assert len(tuning.units(Coupled(), [((x,), {})])) == 1
    assert len(tuning.units(nn.Identity(), [((x[0, 0],), {})])) == 1
    search, held = halves(list(range(40)), 8)
    assert len(search) <= 8
    assert sorted(search + held) == list(range(40))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mine.py:make", "--input", "few.pt"], "there are 3 inputs; four are the least"),
        (["mine.py:wrong"], "mine.py:wrong gives a int, and a torch.nn.Module is needed"),
        (["mine.py:none"], "has no 'none'"),
        (["mine.py:noisy"], "gives two outputs for one input"),
        (["mine.py:make", "--within", "0"], "within is 0.0; give the change that is allowed"),
        (["mine.py:make", "--within", "nan"], "within is nan"),
        (["mine.py:make", "--metric", "accuracy"], "--metric is 'accuracy'; give change, loss, or"),
        (["mine.py:make", "--metric", "mine.py:missing"], "mine.py:missing is nan"),
        (["mine.py:make", "--metric", "mine.py:several"], "mine.py:several gives a Tensor"),
        (["mine.py:make", "--metric", "mine.py:flat"], "gives the same number whatever"),
        (["mine.py:make", "--metric", "loss"], "needs a model that gives its loss"),
        (["mine.py:make", "--candidates", "Topk(4)"], "Did you mean 'TopK'"),
        (["mine.py:make", "--candidates", "mine.py:mean"], "counts no cost"),
        (["mine.py:make", "--input", "nan.pt"], "the output is not finite for an input"),
        (["mine.py:make", "--input", "words.pt"], "holds int"),
        (["mine.py:make", "--input", "wide.pt"], "in layer 0.mix, Linear(in_features=16, out_f"),
        (["mine.py:broken"], "mine.py:broken raised KeyError: 'weights'. It is called without"),
        (["mine.py:make", "--input", "empty"], "the folder empty holds no inputs"),
        (["mine.py:make", "--out", "x.pt"], "--out x.pt is a file"),
    ],
)
def test_bad_requests_are_refused_in_a_sentence(tmp_path, words, said):
    torch.save(drawn(3), "few.pt")
    torch.save(torch.ones(8, 4, 3), "wide.pt")
    torch.save(drawn(8) * torch.nan, "nan.pt")
    torch.save({"x": 3, "y": [1, "a"]}, "words.pt")
    (tmp_path / "empty").mkdir()
    given = [*words]
    given += [] if "--input" in words else ["--input", "x.pt"]
    given += [] if "--within" in words else ["--within", "0.02"]
    given += [] if "--candidates" in words else ["--candidates", "Uniform(),TopK(k=4)"]
    if "words.pt" in words:
        said = "the model raised TypeError"
    result = call("tune", *given)
    assert result.exit_code == 2, result.output
    assert said in result.stderr.replace("\n", " ")


def test_a_plan_from_the_shell_applies_in_the_shell_and_in_python(tmp_path):
    command = ("tune", "mine.py:make", "--input", "x.pt", "--within", "0.02")
    few = ("--candidates", ",".join(FEW))
    result = call(*command, *few)
    assert result.exit_code == 0, result.output
    assert "The plan replaces 2 of 4 heads, in 1 of 2 layers" in result.stdout
    for name in ("plan.json", "table.csv", "front.svg", "layers.svg", "search.jsonl"):
        assert (tmp_path / "tuned" / name).stat().st_size
    shown = call("substitute", "mine.py:make", "--plan", "tuned/plan.json", "--input", "x.pt")
    assert shown.exit_code == 0, shown.output
    assert "0: Uniform()" in shown.stdout
    told = json.loads(call(*command, *few, "--json").stdout)
    assert told["trials"] == 0
    assert told["met"] is True
    result = call(*command, *few, "--within", "1e-7")
    assert result.exit_code == 1
    assert "Nothing cheaper meets the target" in result.stdout.replace("\n", " ")


def test_an_interrupt_loses_nothing(monkeypatch):
    ran = []
    put = _Journal.put

    def stopped(self, *what):
        put(self, *what)
        ran.append(what)
        if len(ran) == 2:
            raise KeyboardInterrupt

    command = ("tune", "mine.py:make", "--input", "x.pt", "--within", "0.02", "--json")
    command += ("--candidates", ",".join(FEW))
    monkeypatch.setattr(_Journal, "put", stopped)
    result = call(*command)
    assert result.exit_code == 130
    assert "What was run is kept in tuned/search.jsonl" in result.stderr
    monkeypatch.setattr(_Journal, "put", put)
    result = call(*command)
    assert result.exit_code == 0
    assert "2 are known" in result.stderr


def test_loss_and_a_score_of_ones_own():
    torch.save({"x": drawn(), "labels": torch.zeros(16, 24, 16)}, "both.pt")
    for words in (
        ["mine.py:loss", "--metric", "loss"],
        ["mine.py:make", "--metric", "mine.py:mean"],
    ):
        file = "both.pt" if "mine.py:loss" in words else "x.pt"
        given = ("--input", file, "--within", "0.05", "--candidates", ",".join(FEW))
        result = call("tune", *words, *given, "--json", "--out", words[0].replace(":", "_"))
        assert result.exit_code == 0, result.output
        told = json.loads(result.stdout)
        assert told["metric"] == words[-1]
        assert told["high"] <= 0.05


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ("{", "is no plan"),
        ("[]", "is no plan"),
        ({"layers": {}}, "it lacks 'format'"),
        ({"format": 9, "layers": {}}, "its format is 9"),
        ({"format": 1, "layers": {"0": []}}, "needs one operator"),
        ({"format": 1, "layers": {"0": [{"operator": "Topk(4)"}]}}, "Did you mean"),
        (
            {"format": 1, "layers": {"0": [{"operator": "Uniform()", "heads": [-1]}]}},
            "numbers from 0",
        ),
        ({"format": 1, "layers": {"0": [{"operator": "Uniform()"}] * 2}}, "needs one operator"),
    ],
)
def test_a_file_that_is_no_plan_is_refused(tmp_path, held, said):
    (tmp_path / "plan.json").write_text(held if isinstance(held, str) else json.dumps(held))
    with pytest.raises(ValueError, match=said):
        tuning.load("plan.json")
    with pytest.raises(ValueError, match="there is no file"):
        tuning.load("none.json")


def test_a_plan_of_another_model_is_refused_by_name():
    model, x = made(), drawn()
    plan = Plan({"encoder": (Part("Uniform()"),)})
    with pytest.raises(ValueError, match="has no module 'encoder'"), plan.applied(model):
        pass
    plan = Plan({"0": (Part("Uniform()", (5,)),)})
    said = r"heads \[5\] are asked of a layer that has 2"
    with pytest.raises(SubstitutionError, match=said), plan.applied(model):
        model(x)


def test_a_plan_computes_what_its_operators_do_and_leaves_the_rest():
    model, x = made(), drawn(2)
    with torch.no_grad():
        clean = model(x)
        with substitute(model, Uniform(), layers=["0"]):
            whole = model(x)
        with substitute(model, TopK(4), layers=["1"], heads=[1]):
            some = model(x)
        with Plan({"0": (Part("Uniform()"),)}).applied(model):
            assert torch.equal(model(x), whole)
        with Plan({"1": (Part("TopK(k=4)", (1,)),)}).applied(model):
            torch.testing.assert_close(model(x), some)
        both = Plan({"1": (Part("TopK(k=4)", (1,)), Part("Softmax()", (0,)))})
        with both.applied(model) as report:
            torch.testing.assert_close(model(x), some)
        assert report.left == {"0": 1}
        assert torch.equal(model(x), clean)


# Recording to files ------------------------------------------------------------------------------


def test_recorded_calls_are_saved_and_are_what_the_attention_saw():
    model, x = made(), drawn(3)
    with record(model) as calls:
        model(x)
        model(x + 1)
    files = calls.save("kept")
    assert [file.name for file in files] == ["0.safetensors", "1.safetensors"]
    saved = Saved("kept")
    assert (saved.layers, saved.samples) == (("0", "1"), 24)
    for case, want in ((saved(1), calls[0].case(0, 1)), (saved(23), calls[3].case(2, 1))):
        assert all(torch.equal(a, b) for a, b in zip(case, want, strict=True))
    with pytest.raises(ValueError, match="is there already, and not an empty folder"):
        calls.save("kept")
    with pytest.raises(ValueError, match="there are no calls to save"):
        type(calls)().save("nothing")


class Masked(nn.Module):
    def __init__(self, **more):
        super().__init__()
        self.more = more

    def forward(self, x):
        q = x[:, None]
        return functional.scaled_dot_product_attention(q, 2 * q, q, **self.more)


def test_scales_masks_and_what_is_lost_are_told():
    x = drawn(2)
    keys = torch.arange(24) < torch.tensor([[24], [20]])
    model = Masked(attn_mask=keys[:, None, None], scale=1.0)
    with record(model) as calls:
        out = model(x)
    calls.save("a")
    q, k, v = Saved("a")(1)
    assert k.shape == (20, 16)
    torch.testing.assert_close(Softmax()(q, k, v), out[1, 0])
    for more in ({"is_causal": True}, {"attn_mask": torch.randn(24, 24)}):
        model = Masked(**more)
        with record(model) as calls:
            model(x)
        with pytest.warns(UserWarning, match="which is not saved: studies see q, k and v alone"):
            calls.save(next(iter(more)))


def test_a_shell_records_a_users_model(tmp_path):
    result = call("record", "mine.py:make", "--input", "x.pt", "--out", "kept")
    assert result.exit_code == 0, result.output
    assert "2 calls of 2 layers in kept" in result.stdout
    assert Saved("kept").samples == 64
    for words, said in (
        (("mine.py:make", "--input", "x.pt", "--out", "kept"), "is there already"),
        (("mine.py:make", "--input", "none.pt", "--out", "b"), "none.pt is no file"),
        (("mine.py:make", "--input", "x.pt", "--out", "b", "--calls", "a"), "--calls is 'a'"),
        (
            ("mine.py:make", "--input", "x.pt", "--out", "b", "--calls", "7"),
            "saw 2 attention calls",
        ),
        (("mine.py:wrong", "--input", "x.pt", "--out", "b"), "a torch.nn.Module is needed"),
    ):
        result = call("record", *words)
        assert result.exit_code == 2
        assert said in result.stderr.replace("\n", " ")


# What an operator of one's own approximates ------------------------------------------------------


def test_substitute_takes_a_target_and_says_why_there_is_no_work(tmp_path):
    (tmp_path / "own.py").write_text(
        "def half(q, k, v):\n    return (q @ k.mT / 2 / q.shape[-1] ** 0.5).softmax(-1) @ v\n"
    )
    given = ("substitute", "mine.py:make", "own.py:half", "--input", "x.pt")
    result = call(*given)
    assert result.exit_code == 0, result.output
    assert "A plain callable counts no cost" in result.stdout
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scale = 1 / 2 / 8**0.5
        aimed = call(*given, "--target", f"Softmax(scale={scale})", "--json")
    assert aimed.exit_code == 0, aimed.output
    layers = json.loads(aimed.stdout)["layers"]
    assert max(layer["errors"]["output_error"] for layer in layers) < 1e-5
    alone = json.loads(call(*given, "--json").stdout)["layers"]
    assert max(layer["errors"]["output_error"] for layer in alone) > 1e-2
    for words, said in (
        (("mine.py:make", "--input", "x.pt"), "give an operator"),
        (("mine.py:make", "Uniform()"), "give what the model takes"),
        (("mine.py:make", "Uniform()", "--input", "x.pt", "--heads", "a"), "--heads is 'a'"),
        (("mine.py:make", "--plan", "p.json", "--layers", "0", "--input", "x.pt"), "a plan says"),
    ):
        result = call("substitute", *words)
        assert result.exit_code == 2
        assert said in result.stderr
