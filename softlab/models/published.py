"""Weights of the pyramid under the names and in the shapes of the released repository.

Each stage i of ours is its ``patch_embed``, ``pos_embed`` and ``block`` i + 1; the fourth stage's
keys and values are one matrix there. Source: fudan-zvg/SOFT, models/ (master, d3febc3).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

FIRST = {  # of the blocks of the three first stages
    "attention.query": "att.mha.W_q",
    "attention.value": "att.mha.W_v",
    "attention.mix": "att.mha.ff",
    "attention.landmarks.weight": "att.mha.attn.Qlandmark_op.weight",
    "attention.landmarks.norm": "att.mha.attn.Qnorm_act.0",
    "attention.filter": "att.mha.attn.conv",
    "norm1": "att.norm1",
    "norm2": "att.norm2",
    "up": "att.ff1",
    "down": "att.ff2",
}
LAST = {  # of the fourth's
    "attention.query": "attn.q",
    "attention.key": "attn.kv",
    "attention.mix": "attn.proj",
    "norm1": "norm1",
    "norm2": "norm2",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
}
FEWEST = 0.5
"""Share of the model's entries below which weights are taken for another architecture's."""


class Loaded(NamedTuple):
    """What became of published weights, by their names there.

    ``missing``: expected, not given, left as they were; ``unexpected``: given, without a place;
    ``reshaped``: given in another shape (name, given, expected), left as they were.
    """

    missing: list[str]
    unexpected: list[str]
    reshaped: list[tuple[str, tuple[int, ...], tuple[int, ...]]]

    @property
    def complete(self) -> bool:
        """Whether every weight was loaded, and nothing was left over."""
        return not (self.missing or self.unexpected or self.reshaped)


def published_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A pyramid's own state by published names; ``ValueError`` where a weight has none there."""
    out = {}
    for name, tensor in state.items():
        given = _published_name(name)
        if name.startswith("stages.3.") and ".attention.key." in name:
            tensor = torch.cat((tensor, state[name.replace(".key.", ".value.")]))
        if given:
            out[given] = tensor
    return out


def own_of(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Published weights by our names; ``names``: from ours to theirs."""
    out = {}
    for name, given in names.items():
        if given not in state:
            continue
        tensor = state[given]
        if ".attn.kv." in given:
            value = name.replace(".key.", ".value.")
            tensor, out[value] = tensor.chunk(2)
        out[name] = tensor
    return out


def load(model: nn.Module, state: Mapping[str, Tensor]) -> Loaded:
    """Fill ``model``, a pyramid, in place with published weights.

    ``state``: parameter names of the repository to tensors, for plain and norm models, which have
    the same; a prefix ``module.`` of all names is dropped. Returns what was missing, unexpected or
    of another shape. Raises ``TypeError`` for what is no mapping to tensors, ``ValueError`` where
    fewer than half of the model's entries find their weights, which are then another
    architecture's, or where one is not finite; the model is then as it was.
    """
    state = _plain(state)
    own = model.state_dict()
    due = published_of(own)
    fitting = {name: x for name, x in state.items() if name in due and x.shape == due[name].shape}
    found, all_ = (sum(x.numel() for x in part.values()) for part in (fitting, due))
    if found < FEWEST * all_:
        msg = (
            f"these are weights of another architecture: of {len(due)} tensors that the model has, "
            f"{len(fitting)} are among the {len(state)} given, {found / all_:.0%} of its entries. "
            "Load them into the model that they were saved from."
        )
        raise ValueError(msg)
    broken = [name for name, x in fitting.items() if not bool(x.isfinite().all())]
    if broken:
        msg = (
            f"{broken[0]} and {len(broken) - 1} other weights hold NaN or inf; nothing was loaded."
        )
        raise ValueError(msg)
    names = {name: given for name in own if (given := _published_name(name))}
    model.load_state_dict(own_of(fitting, names), strict=False)
    shapes = [
        (name, tuple(state[name].shape), tuple(due[name].shape))
        for name in due
        if name in state and name not in fitting
    ]
    missing = [name for name in due if name not in state]
    return Loaded(missing, [name for name in state if name not in due], shapes)


def _plain(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The weights without the prefix that a parallel training leaves; ``TypeError`` for others."""
    if not isinstance(state, Mapping) or not all(isinstance(x, Tensor) for x in state.values()):
        inside = (
            [key for key in state if "state_dict" in str(key)] if isinstance(state, Mapping) else []
        )
        hint = f" Pass the one under {inside[0]!r}." if inside else ""
        msg = f"published weights must map names to tensors, got {type(state).__name__}.{hint}"
        raise TypeError(msg)
    if state and all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): x for name, x in state.items()}
    return state


def _published_name(name: str) -> str:
    """The published name of our weight; empty for values of the fourth stage, part of another's."""
    if name == "cls":
        return "cls_token"
    inside = re.fullmatch(r"stages\.(\d)\.(embed|positions|blocks)\.?(.*)", name)
    if inside is None:
        return name  # norm and head
    stage, part, rest = int(inside[1]), inside[2], inside[3]
    if part == "positions":
        return f"pos_embed{stage + 1}"
    if part == "embed":
        return f"patch_embed{stage + 1}.proj.{rest}"
    block, _, rest = rest.partition(".")
    if stage == 3 and rest.startswith("attention.value."):
        return ""
    for ours, theirs in (LAST if stage == 3 else FIRST).items():
        if rest == ours or rest.startswith(f"{ours}."):
            return f"block{stage + 1}.{block}.{theirs}{rest.removeprefix(ours)}"
    msg = f"{name} has no place in the published layout: it is of another operator's layer."
    raise ValueError(msg)
