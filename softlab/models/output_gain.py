"""How large the attention of a pyramid's layers makes what it is given."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from softlab.models.soft_attention import Attention


class Gain(NamedTuple):
    """Root mean squares of an operator's output, before the convolution of v is added and the
    heads are mixed, and of its values v.
    """

    output: float
    values: float

    @property
    def ratio(self) -> float:
        """Output over values: at most 1 where rows are averages."""
        return self.output / self.values


@torch.no_grad()
def gains(model: nn.Module, image: Tensor) -> list[Gain]:
    """Of every attention layer in the order of calls, on an image (b, c, H, W), in evaluation mode.

    The model is left as it was.
    """
    found: list[Gain] = []

    def kept(mixed: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
        out = mixed(q, k, v, *rest)
        found.append(Gain(*(float(x.square().mean().sqrt()) for x in (out, v))))
        return out

    layers = [module for module in model.modules() if isinstance(module, Attention)]
    mode = model.training
    model.eval()
    try:
        for layer in layers:
            # On the instance alone, whose class keeps its own.
            layer.mixed = partial(kept, layer.mixed)  # type: ignore[method-assign]
        model(image)
    finally:
        for layer in layers:
            vars(layer).pop("mixed", None)
        model.train(mode)
    return found
