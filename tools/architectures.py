"""``make coverage``: what record and substitute make of published architectures, and a table of it.

Every model is made from a configuration, small and with random weights; nothing is downloaded. A
package that is not installed is left out, and said. The table is ``docs/guide/coverage.md``.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import importlib
import importlib.metadata
import inspect
import math
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from softlab.capture import SubstitutionError, record, substitute
from softlab.core import Operator
from softlab.operators import Local, Nystromformer, Performer, Softmax, TopK

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "guide" / "coverage.md"
BEGIN, END = "<!-- make coverage -->", "<!-- end -->"
COLUMNS = (
    *("architecture", "record", "Softmax()", "gradient", "padding", "token by token", "bfloat16"),
    *("Nystromformer(4)", "Performer(32)"),
)
RIGHT = 1e-5

SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "text_vocab_size", "entity_vocab_size"), 61),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embed_dim"), 32),
    **dict.fromkeys(("embedding_size", "projection_dim", "hidden_dim", "n_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_decoder_layers"), 1),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "n_inner", "ffn_hidden_size"), 48),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "moe_intermediate_size"), 48),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_source_positions"), 64),
    **dict.fromkeys(("max_target_positions", "max_seq_len"), 64),
    **{"head_dim": 8, "d_kv": 8, "rotary_dim": 4, "image_size": 32, "patch_size": 8},
    **{"num_local_experts": 4, "num_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2},
    **{"sliding_window": 4, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    **{"decoder_start_token_id": 1, "is_training": False},
}
"""Of a configuration, those that it has are set to these."""

TEXT = (
    "albert apertus arcee bart bert bert-generation biogpt bigbird_pegasus blenderbot "
    "blenderbot-small bloom camembert codegen cohere cohere2 convbert ctrl data2vec-text deberta "
    "deberta-v2 deepseek_v2 deepseek_v3 diffllama distilbert dots1 electra ernie ernie4_5 esm "
    "exaone4 falcon flaubert fnet funnel gemma gemma2 gemma3_text glm glm4 gpt2 gpt_bigcode "
    "gpt_neo gpt_neox gpt_neox_japanese gpt_oss gptj granite granitemoe helium hunyuan_v1_dense "
    "ibert jamba jetmoe lfm2 lilt llama longformer longt5 luke m2m_100 marian mbart "
    "megatron-bert minimax ministral mistral mixtral mobilebert modernbert mpnet mpt mra mt5 mvp "
    "nemotron nystromformer olmo olmo2 olmoe openai-gpt opt pegasus pegasus_x persimmon phi phi3 "
    "plbart prophetnet qwen2 qwen2_moe qwen3 qwen3_moe recurrent_gemma rembert roberta "
    "roberta-prelayernorm roc_bert roformer seed_oss smollm3 splinter squeezebert stablelm "
    "starcoder2 switch_transformers t5 umt5 vaultgemma xglm xlm xlm-roberta xlm-roberta-xl xlnet "
    "xmod yoso nllb-moe"
)
SEEN = (
    "audio-spectrogram-transformer beit data2vec-vision deit dinov2 dinov2_with_registers "
    "dinov3_vit dpt glpn hiera hubert ijepa segformer siglip_vision_model swin swinv2 unispeech "
    "vit vit_mae vit_msn vitdet wav2vec2 wavlm whisper sew yolos pvt pvt_v2 clip_vision_model "
    "clip_text_model clip aimv2_vision_model"
)


BOTH = {
    *("albert", "bart", "bert", "falcon", "gemma3_text", "gpt2", "llama", "mistral", "t5"),
    *("vit", "swin", "clip"),
}
"""Of these types both implementations are tried, of the others the one that is written out."""

HIERARCHY = {"depths": [2], "image_size": 32, "patch_size": 4, "embed_dim": 32, "num_heads": [4]}
LATENT = {"qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8, "q_lora_rank": 16}
OWN: dict[str, dict[str, Any]] = {
    **{kind: HIERARCHY | {"window_size": 4} for kind in ("swin", "swinv2")},
    **{kind: LATENT | {"kv_lora_rank": 16, "n_group": 1, "topk_group": 1, "head_dim": 4}
       for kind in ("deepseek_v2", "deepseek_v3")},
    "modernbert": {"local_attention": 8},
}  # fmt: skip
"""Of these types the sizes hang together: those that are set beside or before ``SIZES``."""


class Case(NamedTuple):
    """A model and its input; ``output`` reads the tensor that counts."""

    model: nn.Module
    inputs: dict[str, Any]
    ids: bool = False


def first(out: Any) -> Tensor:
    """The first floating tensor of a model's output."""
    if isinstance(out, Tensor):
        return out
    parts = out.values() if isinstance(out, dict) else out
    for x in parts:
        if isinstance(x, Tensor) and x.is_floating_point():
            return x
        if isinstance(x, list | tuple | dict):
            return first(x)
    msg = f"{type(out).__name__} holds no tensor"
    raise TypeError(msg)


def output(case: Case) -> Tensor:
    """What a model gives."""
    return first(case.model(**case.inputs))


def ids(n: int = 12, batch: int = 2) -> Tensor:
    """Words of a vocabulary of 61."""
    return torch.randint(3, 61, (batch, n), generator=torch.Generator().manual_seed(1))


def normal(*shape: int) -> Tensor:
    """Normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def shrunk(config: Any, depth: int = 2) -> Any:
    """A configuration with small sizes, and those inside it."""
    known = vars(config)
    for name, small in SIZES.items():
        if isinstance(known.get(name), int) and not isinstance(known[name], bool):
            setattr(config, name, min(known[name], small) if name.endswith("_id") else small)
    for inner in known.values():
        if hasattr(inner, "to_dict") and depth:
            shrunk(inner, depth - 1)
    return config


def of_transformers(kind: str, implementation: str) -> Case:
    """A model of that type, set to an implementation."""
    import transformers

    made, more = transformers.CONFIG_MAPPING[kind], OWN.get(kind, {})
    if "depths" in more:
        return cased(made(**more), implementation)
    names = {x for x in inspect.signature(made.__init__).parameters if x in SIZES}
    try:
        plain = made()
        given = {
            x: SIZES[x]
            for x in names | {x for x in SIZES if isinstance(getattr(plain, x, None), int)}
        }
        config = shrunk(made(**(given | more)))
    except Exception:  # a configuration that checks its sizes against each other
        config = shrunk(made(**more))
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: getattr(config, "num_hidden_layers", 2)]
    for name, own in more.items():
        setattr(config, name, own)
    return cased(config, implementation)


def cased(config: Any, implementation: str) -> Case:
    """A model of a configuration, and its input."""
    import transformers

    torch.manual_seed(0)
    auto: Any = transformers.AutoModel
    found = auto.from_config(config, attn_implementation=implementation)
    return Case(found.eval(), *inputs_of(found, config))


def inputs_of(model: nn.Module, config: Any) -> tuple[dict[str, Any], bool]:
    """What a model is called with, and whether these are words."""
    takes = inspect.signature(model.forward).parameters
    given: dict[str, Any] = {}
    if "input_ids" in takes:
        given["input_ids"] = ids()
    if "decoder_input_ids" in takes and "input_features" not in takes:
        given["decoder_input_ids"] = ids(9)
    if "pixel_values" in takes:
        size = getattr(getattr(config, "vision_config", config), "image_size", 32)
        size = size if isinstance(size, int) else 32
        channels = getattr(getattr(config, "vision_config", config), "num_channels", 3)
        given["pixel_values"] = normal(2, channels, size, size)
    if "input_values" in takes:
        given["input_values"] = normal(2, 1600)
        if hasattr(config, "max_length") and hasattr(config, "num_mel_bins"):
            given["input_values"] = normal(2, config.max_length, config.num_mel_bins)
    if "input_features" in takes:
        given["input_features"] = normal(2, getattr(config, "num_mel_bins", 80), 128)
        given["decoder_input_ids"] = ids(9)
    return given, [*given] == ["input_ids"]


class Heads(nn.Module):
    """Projections of 32 numbers to four heads, and an attention that somebody wrote."""

    def __init__(self, attend: Callable[..., Tensor], layers: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(32, 96) for _ in range(layers))
        self.attend = attend

    def forward(self, x: Tensor) -> Tensor:
        """Layers with residuals."""
        for layer in self.layers:
            q, k, v = layer(x).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
            x = x + self.attend(q, k, v).transpose(1, 2).flatten(2)
        return x


def _matmul(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT / math.sqrt(8)).softmax(-1) @ v


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    later = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).triu(1)
    return (q @ k.mT / math.sqrt(8)).masked_fill(later, -1e9).softmax(-1) @ v


def _einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.einsum("bhid,bhjd->bhij", q, k) * 8**-0.5
    return torch.einsum("bhij,bhjd->bhid", functional.softmax(weights, -1), v)


def _bmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    a, b, c = (x.flatten(0, 1) for x in (q, k, v))
    return torch.bmm((torch.bmm(a, b.mT) / math.sqrt(8)).softmax(-1), c).view_as(q)


def _exponentials(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (q @ k.mT / math.sqrt(8)).exp()
    return weights / weights.sum(-1, keepdim=True) @ v


def _capped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((q @ k.mT / math.sqrt(8)).tanh().softmax(-1)) @ v


def of_torch() -> Iterator[tuple[str, Callable[[], Case]]]:
    """Torch's own modules, and code of one's own."""
    x = normal(2, 12, 32)
    layer: dict[str, Any] = {"d_model": 32, "nhead": 4, "dim_feedforward": 48, "batch_first": True}

    def attention(**more: Any) -> Case:
        found = nn.MultiheadAttention(32, 4, batch_first=True, **more).eval()
        return Case(found, {"query": x, "key": x, "value": x})

    yield "torch MultiheadAttention", attention
    yield "torch MultiheadAttention, bias_kv", lambda: attention(add_bias_kv=True)
    yield "torch MultiheadAttention, zero_attn", lambda: attention(add_zero_attn=True)
    yield (
        "torch TransformerEncoder",
        lambda: Case(
            nn.TransformerEncoder(nn.TransformerEncoderLayer(**layer), 2).eval(), {"src": x}
        ),
    )
    yield (
        "torch TransformerDecoder",
        lambda: Case(
            nn.TransformerDecoder(nn.TransformerDecoderLayer(**layer), 2).eval(),
            {"tgt": x[:, :9], "memory": x},
        ),
    )
    yield (
        "torch Transformer",
        lambda: Case(
            nn.Transformer(32, 4, 1, 1, 48, batch_first=True).eval(), {"src": x, "tgt": x[:, :9]}
        ),
    )
    written: dict[str, Any] = {
        "fused": functional.scaled_dot_product_attention, "matmul": _matmul, "causal": _causal,
        "einsum": _einsum, "bmm": _bmm, "exp and sum": _exponentials, "tanh of scores": _capped,
    }  # fmt: skip
    for name, attend in written.items():
        yield f"plain code, {name}", functools.partial(plain, attend)


def plain(attend: Callable[..., Tensor]) -> Case:
    """Layers whose attention somebody wrote."""
    return Case(Heads(attend).eval(), {"x": normal(2, 12, 32)})


TIMM = (
    "vit_tiny_patch16_224 deit_tiny_patch16_224 deit3_small_patch16_224 cait_xxs24_224 "
    "xcit_nano_12_p8_224 crossvit_tiny_240 beit_base_patch16_224 beitv2_base_patch16_224 "
    "eva02_tiny_patch14_224 swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 pvt_v2_b0 "
    "mvitv2_tiny"
)
SMALL_TIMM: dict[str, dict[str, Any]] = {
    **{key: {"depth": 2} for key in ("vit", "deit", "beit", "eva02", "convit", "xcit")},
    "cait": {"depth": 2, "depth_token_only": 1},
}


def of_timm(name: str) -> Case:
    """A model of timm, with two blocks where it takes a depth."""
    timm = importlib.import_module("timm")
    more = next((x for start, x in SMALL_TIMM.items() if name.startswith(start)), {})
    torch.manual_seed(0)
    model: Any = timm.create_model(name, **more).eval()
    size = model.default_cfg["input_size"][1:]
    return Case(model, {"x": normal(1, 3, *size)})


def of_diffusers() -> Iterator[tuple[str, Callable[[], Case]]]:
    """Denoisers and autoencoders of diffusers."""
    diffusers = importlib.import_module("diffusers")

    def made(kind: str, given: dict[str, Any], **config: Any) -> Case:
        torch.manual_seed(0)
        return Case(getattr(diffusers, kind)(**config).eval(), given)

    down = ("CrossAttnDownBlock2D", "DownBlock2D")
    yield "diffusers UNet2DConditionModel", lambda: made(
        "UNet2DConditionModel",
        {"sample": normal(1, 4, 16, 16), "timestep": 3, "encoder_hidden_states": normal(1, 7, 32)},
        sample_size=16, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8,
        down_block_types=down, up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32, attention_head_dim=8,
    )  # fmt: skip
    yield "diffusers DiTTransformer2DModel", lambda: made(
        "DiTTransformer2DModel",
        {
            "hidden_states": normal(1, 4, 8, 8), "timestep": torch.tensor([3]),
            "class_labels": torch.tensor([1]),
        },
        sample_size=8, num_layers=2, num_attention_heads=4, attention_head_dim=8, in_channels=4,
        patch_size=2,
    )  # fmt: skip
    yield "diffusers SD3Transformer2DModel", lambda: made(
        "SD3Transformer2DModel",
        {
            "hidden_states": normal(1, 4, 8, 8), "encoder_hidden_states": normal(1, 7, 32),
            "pooled_projections": normal(1, 32), "timestep": torch.tensor([3]),
        },
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=4, joint_attention_dim=32, caption_projection_dim=32,
        pooled_projection_dim=32, out_channels=4,
    )  # fmt: skip
    yield "diffusers FluxTransformer2DModel", lambda: made(
        "FluxTransformer2DModel",
        {
            "hidden_states": normal(1, 16, 4), "encoder_hidden_states": normal(1, 7, 32),
            "pooled_projections": normal(1, 32), "timestep": torch.tensor([0.5]),
            "img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(7, 3),
        },
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    yield "diffusers AutoencoderKL", lambda: made(
        "AutoencoderKL", {"sample": normal(1, 3, 16, 16)},
        block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
    )  # fmt: skip


def cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    """Every architecture by its name, as far as its package is installed."""
    yield from of_torch()
    if installed("transformers"):
        importlib.import_module("transformers").logging.set_verbosity_error()
        for kind in f"{TEXT} {SEEN}".split():
            for how in ("eager", "sdpa")[: 1 + (kind in BOTH)]:
                yield f"transformers {kind}, {how}", functools.partial(of_transformers, kind, how)
    if installed("diffusers"):
        yield from of_diffusers()
    if installed("timm"):
        for name in TIMM.split():
            yield f"timm {name}", functools.partial(of_timm, name)


def installed(package: str) -> bool:
    """Whether a package can be imported."""
    try:
        importlib.import_module(package)
    except Exception:  # a package that wants another torch raises many things
        return False
    return True


def import_torchvision() -> None:
    """Import it, which timm needs, also where its compiled part was built for another torch."""
    real = torch.library.register_fake

    def lenient(op: Any, function: Any = None, /, **more: Any) -> Any:
        def register(of: Any) -> Any:
            with contextlib.suppress(RuntimeError):  # its operator is not there
                real(op, of, **more)
            return of

        return register if function is None else register(function)

    torch.library.register_fake = lenient
    try:
        installed("torchvision")
    finally:
        torch.library.register_fake = real


def relative(out: Tensor, own: Tensor) -> float:
    """|out - own| / |own| over what is finite in both."""
    if out.shape != own.shape:
        return math.inf
    out, own = out.detach().double(), own.detach().double()
    good = own.isfinite()
    moved = float((out - own)[good].norm())
    return moved / float(own[good].norm()) if moved else 0.0


def said(error: BaseException) -> str:
    """Why a layer was refused, in a few words."""
    text = " ".join(str(error).split())
    if "saw 0 attention" in text or "saw no attention" in text:
        return "refused: nothing seen"
    reasons = {
        "one query for": "one query", "no causal form": "causal",
        "bias to the scores": "bias", "softcap": "soft cap",
        "sinks": "sinks", "different keys from different": "mask", "of keys alone": "mask",
        "decodes with a cache": "cache", "fills a cache": "cache", "last of": "cache",
        "rank ": "rank", "landmarks": "rank", "reads more than was seen": "more than seen",
        "drops weights": "dropout", "not seen: call": "another implementation",
    }  # fmt: skip
    if isinstance(error, SubstitutionError):
        for words, short in reasons.items():
            if words in text:
                return f"refused: {short}"
    return f"FAILS {type(error).__name__}: {text[:160]}"


def attempt(call: Callable[[], str]) -> str:
    """A cell; refusals are told from failures."""
    try:
        return call()
    except Exception as error:
        return said(error)


OPERATORS: dict[str, Operator] = {
    "Softmax()": Softmax(), "Nystromformer(4)": Nystromformer(4), "Performer(32)": Performer(32),
}  # fmt: skip


def row(case: Case) -> dict[str, str]:
    """All cells of an architecture."""
    with torch.no_grad():
        own = output(case)
        if not torch.equal(output(case), own):
            return {"record": "random by itself"}
        found = {"record": attempt(lambda: recorded(case, own))}
        for name, op in OPERATORS.items():
            found[name] = attempt(functools.partial(substituted, case, op, own))
    if found["Softmax()"].startswith(("right", "WRONG")):
        found["gradient"] = attempt(lambda: gradient(case))
        with torch.no_grad():
            found["bfloat16"] = attempt(lambda: halved(case))
            if case.ids:
                found["padding"] = attempt(lambda: padded(case))
                found["token by token"] = attempt(lambda: stepwise(case))
    return found


def recorded(case: Case, own: Tensor) -> str:
    """How many calls were seen, all of which torch's attention computes, and how many were not."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with record(case.model, outputs=True) as calls:
            # The fused path of torch's encoder gives way to the ordinary one, equal to rounding.
            same = relative(output(case), own) < 1e-6
    for call in calls:
        if call.out is None or call.dropout_p:
            continue
        mine = functional.scaled_dot_product_attention(
            call.q, call.k, call.v, call.mask, 0.0, call.is_causal, scale=call.scale,
            enable_gqa=call.enable_gqa,
        )  # fmt: skip
        rows = mine.isfinite().all(-1) & call.out.isfinite().all(-1)
        if relative(mine[rows], call.out[rows]) > 1e-4:
            return f"WRONG: {call.module} is recorded as another"
    unseen = sum("Not seen" in str(x.message) or "of their own" in str(x.message) for x in told)
    return (
        ("" if same else "CHANGES THE OUTPUT; ")
        + f"{len(calls)}"
        + (", rest named" if unseen else "")
    )


def substituted(case: Case, op: Operator, own: Tensor) -> str:
    """Whether exact attention leaves the model as it is; of others, whether they run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with substitute(case.model, op) as report:
            out = output(case)
        again = output(case)
    if not torch.equal(again, own):
        return "WRONG after the block"
    if not isinstance(op, Softmax):
        return "works" if bool(out.isfinite().all()) else "NaN"
    change = relative(out, own)
    rest = f", {len(report.unseen)} named" if report.unseen else ""
    return f"right{rest}" if change <= RIGHT else f"WRONG {change:.1e}"


def gradient(case: Case) -> str:
    """Gradients of all weights under exact attention."""

    def grads() -> Tensor:
        case.model.zero_grad()
        out = output(case)
        # Weighed: the mean square of a layer norm's output is a constant, and its gradient noise.
        (out * normal(*out.shape)).sum().backward()
        return torch.cat([x.grad.flatten() for x in case.model.parameters() if x.grad is not None])

    own = grads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with substitute(case.model, Softmax()):
            found = grads()
    case.model.zero_grad()
    change = relative(found, own)
    return "right" if change <= 10 * RIGHT else f"WRONG {change:.1e}"


def halved(case: Case) -> str:
    """bfloat16 by autocast, against the model's own."""
    with torch.autocast("cpu", torch.bfloat16):
        try:
            own = output(case).float()
        except RuntimeError:
            return "not the model's own"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with substitute(case.model, Softmax()):
                change = relative(output(case).float(), own)
    return "right" if change <= 0.03 else f"WRONG {change:.1e}"


def padded(case: Case) -> str:
    """A padded sample against itself alone, exact attention and what else takes it."""
    if "attention_mask" not in inspect.signature(case.model.forward).parameters:
        return ""
    words, real = case.inputs["input_ids"], torch.ones(2, 12, dtype=torch.long)
    real[1, 8:] = 0
    whole = Case(case.model, {"input_ids": words, "attention_mask": real})
    alone = Case(case.model, {"input_ids": words[1:, :8], "attention_mask": real[1:, :8]})
    if relative(output(whole)[1:, :8], output(alone)) > RIGHT:
        return "not the model's own"
    names = []
    for op in (Softmax(), Nystromformer(2), Performer(8), TopK(3), Local(2)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with substitute(case.model, op):
                    change = relative(output(whole)[1:, :8], output(alone))
            except (SubstitutionError, RuntimeError):
                continue
        if change > RIGHT:
            return f"WRONG under {op}: {change:.1e}"
        names.append(type(op).__name__)
    return ", ".join(names)


def stepwise(case: Case) -> str:
    """Token by token with a cache against all at once; '–' where a model has no cache."""
    words = case.inputs["input_ids"]

    def steps() -> Tensor:
        out = case.model(input_ids=words[:, :8], use_cache=True)
        parts = [first(out)]
        for i in range(8, 12):
            out = case.model(
                input_ids=words[:, i : i + 1], past_key_values=out.past_key_values, use_cache=True
            )
            parts.append(first(out))
        return torch.cat(parts, 1)

    try:
        if relative(steps(), output(case)) > RIGHT:
            return "–"
    except Exception:  # no cache, or another word for it
        return "–"
    names, refused = [], []
    for op in (Softmax(), TopK(3), Performer(8), Local(2)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with substitute(case.model, op):
                    change = relative(steps(), output(case))
            except SubstitutionError:
                refused.append(type(op).__name__)
                continue
        if change > RIGHT:
            return f"WRONG under {op}: {change:.1e}"
        names.append(type(op).__name__)
    return ", ".join(names) + (f"; refused: {', '.join(refused)}" if refused else "")


def main() -> int:
    """Make the table, or the rows that are asked for; 1 where a cell is wrong."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--match", default="", help="a regular expression; the page stays as it is")
    asked = words.parse_args()
    torch.set_num_threads(1)
    import_torchvision()
    rows, wrong, absent = [], 0, []
    for name, make in cases():
        if not re.search(asked.match, name):
            continue
        start = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                case = make()
                with torch.no_grad():
                    output(case)
        except Exception as error:  # not made by this rule, or not for this implementation
            absent.append(f"{name}: {type(error).__name__} {' '.join(str(error).split())[:120]}")
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = row(case)
        bad = [
            f"{k}: {x}" for k, x in found.items() if "WRONG" in x or "FAILS" in x or "CHANGES" in x
        ]
        wrong += bool(bad)
        print(f"{time.perf_counter() - start:5.1f} s {name}", found, *bad, sep="  ", flush=True)
        cells = (found.get(column, "") for column in COLUMNS[1:])
        rows.append(f"| {name} | " + " | ".join(x.replace("|", "/") for x in cells) + " |")
    print(f"{len(rows)} rows, {wrong} of them wrong; {len(absent)} not made:", *absent, sep="\n")
    if not asked.match:
        versions = ", ".join(
            f"{x} {importlib.metadata.version(x).partition('+')[0]}"
            for x in ("torch", "transformers", "diffusers", "timm")
            if installed(x)
        )
        head = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
        said = (
            f"\n{len(rows)} rows, {wrong} with a wrong cell. {versions}; {datetime.date.today()}."
        )
        page = PAGE.read_text(encoding="utf-8")
        before, _, rest = page.partition(BEGIN)
        table = "\n".join((*head, *rows))
        PAGE.write_text(f"{before}{BEGIN}\n{table}\n{said}\n{END}{rest.partition(END)[2]}", "utf-8")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
