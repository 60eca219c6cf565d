"""transformers' own models: what is seen of them, and what of them is left as it was."""

import warnings

import pytest
import torch
from torch import nn

from softlab.capture import SubstitutionError, record, register, substitute
from softlab.capture.effect import effect
from softlab.capture.substitution import substitute_each
from softlab.operators import CosFormer, Local, Nystromformer, Performer, Softmax, TopK, Uniform
from softlab.tuning import Part, Plan, load

SIZES = {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4}
WIDE = {
    "vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48,
}  # fmt: skip
BLOOM = {"vocab_size": 61, "hidden_size": 32, "n_layer": 2, "n_head": 4}
FALCON = {k: x for k, x in WIDE.items() if k != "intermediate_size"}
MPT = {"vocab_size": 61, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64}
MODELS = {
    "GPTJ": (SIZES | {"rotary_dim": 4}, True),
    "CodeGen": (SIZES | {"rotary_dim": 4}, True),
    "Bloom": (BLOOM, True),
    "Falcon": (FALCON, True),
    "Mpt": (MPT, True),
    "GPT2": (SIZES, True),
    "Llama": (WIDE | {"num_key_value_heads": 2}, True),
    "GPTNeoX": (WIDE, True),
    "Mistral": (WIDE | {"num_key_value_heads": 2, "sliding_window": 4}, True),
}


class WithHead(nn.Module):
    """A language model and an attention of torch on top."""

    def __init__(self, lm):
        super().__init__()
        self.lm, self.head = lm, nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, ids, **more):
        self.hidden = self.lm(input_ids=ids, **more).last_hidden_state
        return self.head(self.hidden, self.hidden, self.hidden, need_weights=False)[0]


def made(name, implementation="eager", kind="Model", **more):
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    config = getattr(transformers, f"{name}Config")(**MODELS.get(name, (WIDE,))[0] | more)
    torch.manual_seed(0)
    model = getattr(transformers, name + kind)
    return model._from_config(config, attn_implementation=implementation).eval()


IDS = torch.randint(3, 61, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_beside_the_substituted_layer_keeps_its_mask(name):
    """transformers issue 30652: eager attention without its causal mask."""
    model = WithHead(made(name))
    later = IDS.clone()
    later[:, 6:] = 7
    with torch.no_grad():
        model(IDS)
        before = model.hidden
        with substitute(model, Uniform(), layers=["head"]):
            model(IDS)
            assert torch.equal(model.hidden, before)
            model(later)
            torch.testing.assert_close(model.hidden[:, :6], before[:, :6])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # softmaxes of their own
            with substitute(model, Softmax()) as report, record(model) as calls:
                model(IDS)
        torch.testing.assert_close(model.hidden, before, atol=1e-5, rtol=1e-4)
    assert len(calls) == len(report.reached) == (3 if MODELS[name][1] else 1)


def test_what_transformers_models_ask_beyond_torchs_attention():
    """Its own attention is exact softmax attention; another operator cannot cap or sink."""
    more = {"num_key_value_heads": 2, "head_dim": 8}
    gemma = made("Gemma2", **more)
    oss = made("GptOss", num_local_experts=4, num_experts_per_tok=2, **more)
    for model, word in ((gemma, "softcap"), (oss, "s_aux")):
        with torch.no_grad():
            own = model(IDS).last_hidden_state
            with substitute(model, Softmax()) as report:
                assert torch.equal(model(IDS).last_hidden_state, own)
            names = [*report.reached]
            with substitute_each(model, {names[0]: [(Softmax(), [0])]}) as one:
                assert torch.equal(model(IDS).last_hidden_state, own)
        assert (len(names), not report.left, [*one.reached]) == (2, True, names[:1])
        for other in (Uniform(), Softmax(scale=0.5)):
            with (
                pytest.raises(SubstitutionError, match=rf"layer 0 \(layers\.0\..*{word}"),
                substitute(model, other),
            ):
                model(IDS)
        parts = [(Softmax(), [0]), (Uniform(), [1])]
        with (
            pytest.raises(SubstitutionError, match=word),
            substitute_each(model, {names[0]: parts}),
        ):
            model(IDS)
    model = WithHead(gemma)
    with torch.no_grad(), substitute(model, Softmax(), layers=["head"]) as report:
        model(IDS)
    assert report.reached == {"head": 1}
    assert len(report.left) == 2


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_generation_with_a_cache(implementation):
    """Token by token, and by ``generate``: as the whole sequence, or refused."""
    model = made("Llama", implementation, "ForCausalLM")
    mask = torch.ones_like(IDS)
    mask[1, :4] = 0
    where = (mask.cumsum(1) - 1).clamp_min(0)

    def by_parts(parts, **more):
        out, start = [], 0
        for part in parts:
            made = model(
                IDS[:, start : start + part], attention_mask=mask[:, : start + part],
                position_ids=where[:, start : start + part], use_cache=True, **more,
            )  # fmt: skip
            out, start = [*out, made.logits], start + part
            more["past_key_values"] = made.past_key_values
        return torch.cat(out, 1)

    placed = (Local(3), Local(3, causal=True), Local(3, sinks=1))
    for op in (Softmax(), Softmax(causal=True), TopK(k=4), Performer(16), *placed):
        with torch.no_grad(), substitute(model, op):
            whole = model(IDS, attention_mask=mask, position_ids=where).logits
            one_by_one = by_parts([6, *[1] * 6])
        torch.testing.assert_close(one_by_one[0], whole[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(one_by_one[1, 4:], whole[1, 4:], atol=1e-5, rtol=1e-4)
    for op in (Softmax(), TopK(k=4), Local(3)):
        with torch.no_grad(), substitute(model, op):
            whole = model(IDS, attention_mask=mask, position_ids=where).logits
            torch.testing.assert_close(by_parts([6, 4, 2])[0], whole[0], atol=1e-5, rtol=1e-4)
    more = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "attention_mask": mask}
    for op in (Softmax(), TopK(k=4), *placed):
        for cache in ({}, {"cache_implementation": "static"}):
            with torch.no_grad(), substitute(model, op):
                cached = model.generate(IDS, use_cache=True, **cache, **more)
                assert torch.equal(cached, model.generate(IDS, use_cache=False, **more))
        # Without padding a static cache begins under torch's own causal mask, from the first key.
        bare = more | {"attention_mask": torch.ones_like(IDS)}
        with torch.no_grad(), substitute(model, op):
            cached = model.generate(IDS, cache_implementation="static", **bare)
            assert torch.equal(cached, model.generate(IDS, use_cache=False, **bare))
    says = r"layer 0 \(model\.layers\.0\.self_attn\), q \(2, 4, 1, 8\).*use_cache=False"
    with torch.no_grad(), substitute(model, CosFormer()):
        model.generate(IDS, use_cache=False, **more)
        for cache in ({}, {"cache_implementation": "static"}):
            with pytest.raises(SubstitutionError, match=says):
                model.generate(IDS, use_cache=True, **cache, **more)


MIXED = {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]}


@pytest.mark.parametrize("window", [6, 14], ids=["the prompt", "the answer"])
@pytest.mark.parametrize(("name", "more"), [("Mistral", {}), ("Gemma3Text", MIXED)], ids=str)
def test_generation_with_a_cache_that_slides(name, more, window):
    """A prompt of 12 tokens is longer than the window, or becomes so; half of it is padded."""
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    config = getattr(transformers, f"{name}Config")
    given = WIDE | {"num_key_value_heads": 2, "sliding_window": window} | more
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config(**given)).eval()
    mask = torch.ones_like(IDS)
    mask[1, :4] = 0
    asked = {
        "attention_mask": mask, "do_sample": False, "pad_token_id": 0, "max_new_tokens": 4,
        "eos_token_id": None, "output_logits": True, "return_dict_in_generate": True,
    }  # fmt: skip

    def logits(**more):
        with torch.no_grad():
            return torch.stack(model.generate(IDS, **asked, **more).logits)

    caches = ({}, {"cache_implementation": "static"}, {"prefill_chunk_size": 5})
    own = logits(use_cache=False)
    for op in (Softmax(), TopK(k=3), Performer(16)):
        with substitute(model, op) as report:
            whole = logits(use_cache=False)
            for cache in caches:
                torch.testing.assert_close(logits(**cache), whole, atol=1e-5, rtol=1e-4)
        assert len(report.reached) == 2
        assert isinstance(op, Softmax) == torch.allclose(whole, own, atol=1e-5)
    for op in (Local(3), Local(3, sinks=1), CosFormer(), Nystromformer(2)):
        for cache in caches:
            refused = pytest.raises(
                SubstitutionError, match=r"layer 0 \(model\.layers\.0\.self_attn"
            )
            with refused, substitute(model, op):
                logits(**cache)


@pytest.mark.parametrize("name", ["GPT2", "Mistral"])
def test_effects_on_models_set_to_eager(name):
    model = made(name)
    found = effect(model, lambda: model(IDS).last_hidden_state, Softmax())
    assert found.output["change"] < 1e-5
    assert len(found.layers) == 2
    moved = effect(model, lambda: model(IDS).last_hidden_state, Softmax(scale=0.9))
    assert moved.output["change"] > 1e-3
    with (
        pytest.raises(SubstitutionError, match=r"no causal form|different keys"),
        substitute(model, Nystromformer(3)),
    ):
        model(IDS)


def test_an_operator_under_a_name_of_transformers():
    model = made("Llama", "sdpa", "ForCausalLM")
    transformers = pytest.importorskip("transformers")
    mask = torch.ones_like(IDS)
    mask[1, 8:] = 0
    given = {"input_ids": IDS, "attention_mask": mask}
    with torch.no_grad():
        own = model(**given).logits
        for operator in (Softmax(), TopK(k=4), {1: TopK(k=4)}, {0: Softmax()}):
            register(operator)
            model.set_attn_implementation("softlab")
            named = model(**given).logits
            model.set_attn_implementation("sdpa")
            plain, layers = operator, None
            if isinstance(operator, dict):
                ((layer, plain),) = operator.items()
                layers = [layer]
            with substitute(model, plain, layers=layers):
                wanted = model(**given).logits
            torch.testing.assert_close(named[mask.bool()], wanted[mask.bool()])
        torch.testing.assert_close(named[mask.bool()], own[mask.bool()], atol=1e-5, rtol=1e-4)
        register(Nystromformer(2))
        again = type(model)._from_config(model.config, attn_implementation="softlab").eval()
        with pytest.raises(SubstitutionError, match=r"layer 0 \(LlamaAttention\).*no causal form"):
            again(IDS)
        register({0: Softmax(), 9: TopK(k=4)})
        with pytest.raises(SubstitutionError, match="layer 9, and LlamaForCausalLM has 0, 1"):
            again(IDS)
        register({1: Nystromformer(2)})
        vit = made("ViT", "softlab", image_size=16, patch_size=8)
        with pytest.raises(SubstitutionError, match="layer 1, and ViTModel numbers none"):
            vit(torch.zeros(1, 3, 16, 16))
    for bad, error, says in (
        ((Softmax,), TypeError, "give an instance"), (({2.0: Softmax()},), TypeError, "a plan"),
        (({"a": 3},), TypeError, "a plan"), (({},), TypeError, "a plan"),
        (({"a": Softmax(), 0: Softmax()},), TypeError, "a plan"),
        (({"a": [(Softmax(), [])]},), TypeError, "a plan"),
        ((Plan({"a": (Part("Softmax()"),)}),), TypeError, r"method register\(\)"),
        ((Softmax(), "sdpa"), ValueError, "no implementation for"),
        ((Softmax(), "a b"), ValueError, "no implementation for"),
    ):  # fmt: skip
        with pytest.raises(error, match=says):
            register(*bad)
    assert transformers.AttentionInterface().valid_keys()  # what it has is still there


class Wrapped(nn.Module):
    """A model beside another, under other names."""

    def __init__(self, *models):
        super().__init__()
        self.parts = nn.ModuleList(models)

    def forward(self, ids):
        return [part(ids)[0] for part in self.parts]


def test_a_plan_under_a_name_of_transformers(tmp_path):
    """By qualified names and heads, through a file, in the model and in a wrapper of it."""
    layers = {
        "model.layers.0.self_attn": (Part("TopK(k=3)", (0, 2)), Part("Local(window=2)", (1,))),
        "model.layers.1.self_attn": (Part("TopK(k=4)"),),
    }
    Plan(layers).save(tmp_path / "plan.json")
    plan = load(tmp_path / "plan.json")
    model = made("Llama", "sdpa", "ForCausalLM")
    plan.register()
    named = made("Llama", "softlab", "ForCausalLM")
    other = made("Bert", "softlab")
    with torch.no_grad():
        own = model(IDS).logits
        with plan.applied(model):
            wanted = model(IDS).logits
        assert not torch.allclose(wanted, own, atol=1e-3)
        torch.testing.assert_close(named(IDS).logits, wanted)
        plan.register()  # anew: nothing is known of the model yet
        beside = Wrapped(other, named)(IDS)
        torch.testing.assert_close(beside[1], wanted)
        torch.testing.assert_close(beside[0], made("Bert", "sdpa")(IDS)[0])
        for given in ({1: TopK(k=4)}, {"model.layers.1.self_attn": TopK(k=4)}):
            register(given)
            with substitute(model, TopK(k=4), layers=[1]):
                wanted = model(IDS).logits
            torch.testing.assert_close(named(IDS).logits, wanted)
        plan.register()
        for models, says in (
            ((other,), "'model.layers.0.self_attn', which BertModel has not, and no part of it"),
            ((named, named.__class__(named.config).eval()), "Wrapped has not, and 2 parts of it"),
        ):
            runs = models[0] if len(models) == 1 else Wrapped(*models)
            with pytest.raises(SubstitutionError, match=says):
                runs(IDS)
        register({"model.layers.0.self_attn": [(Softmax(), [4])]})
        with pytest.raises(SubstitutionError, match=r"layers\.0\.self_attn' cannot.*has 4"):
            named(IDS)
    with pytest.raises(ValueError, match="no layers"):
        Plan({}).register()
