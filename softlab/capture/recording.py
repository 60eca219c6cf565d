"""Record what reaches the attention of a model while it runs."""

from __future__ import annotations

import dataclasses
import inspect
import math
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from softlab.capture.interception import MULTIHEAD, Call, Watch, standing_in
from softlab.capture.masks import UnableError, read


@contextmanager
def record(
    model: nn.Module, *, keep: Collection[int] | None = None, outputs: bool = False
) -> Iterator[Calls]:
    """Record the attention calls of ``model`` made inside the block.

    ``with record(model) as calls: model(x)`` fills ``calls`` in the order of execution, with
    detached copies; ``calls.save(folder)`` writes them. ``keep`` limits what is stored to these
    orders (all by default), to spare memory; ``outputs`` stores what each call gave as well. Calls
    that other models make in the block are not recorded, nor those of other threads; blocks may be
    nested, on one model or on several, and each records its own. Whatever happens inside, torch and
    the model end as they were.

    Raises ``TypeError`` if ``model`` is no module, and at the end of the block ``RuntimeError`` if
    no attention was seen, or not at every order in ``keep``; ``RuntimeError`` inside a transform of
    ``torch.func``. Warns of modules that may compute attention unseen.
    """
    recorder = Recorder(model, keep, outputs=outputs)
    with recorder:
        yield recorder.calls
    recorder.complete()
    if told := recorder.suspects():
        warnings.warn(f"{type(model).__name__}:{told}", stacklevel=3)


class Recorder(Watch):
    """Notes the calls of a model, those of ``keep`` alone if it is given."""

    def __init__(
        self, model: nn.Module, keep: Collection[int] | None = None, *, outputs: bool
    ) -> None:
        super().__init__(model)
        self.keep, self.outputs = keep, outputs
        self.calls = Calls()
        scripted: list[str] = []
        for name, module in model.named_modules():
            inside = any(name.startswith(f"{outer}.") for outer in scripted)
            if isinstance(module, torch.jit.ScriptModule) and not inside:
                scripted.append(name)
                graph = str(module.inlined_graph)
                if "softmax" in graph or "attention" in graph:
                    self.unseen[name], self.reasons[name] = 1, "is scripted, and has a softmax"

    def complete(self) -> None:
        """Raise ``RuntimeError`` unless what was asked for was seen."""
        keep = self.keep
        if self.seen and (keep is None or set(keep) <= set(range(self.seen))):
            return
        wanted = "" if keep is None else f" of which {sorted(keep)} were to be kept,"
        msg = (
            f"saw {self.seen} attention calls in {type(self.model).__name__},{wanted} during this "
            "block. Run the model inside it; make its attention call "
            "torch.nn.functional.scaled_dot_product_attention (in transformers: "
            'attn_implementation="sdpa", where the model has it); record it before compiling or '
            f"scripting.{self.suspects()}"
        )
        raise RuntimeError(msg)

    def attend(self, call: Call, go_on: Callable[[], Tensor]) -> Tensor:
        """Note the call, if it is wanted, and let it be."""
        if self.keep is None or call.order in self.keep:
            if torch._C._are_functorch_transforms_active():
                layer = call.module or type(self.model).__name__
                msg = (
                    f"layer {layer} is called inside a transform of torch.func (vmap, grad, jvp), "
                    "whose tensors hold no data of their own. Record the model outside of it."
                )
                raise RuntimeError(msg)
            # Copies, because a model may write over its own tensors later.
            q, k, v = (x.detach().clone() for x in (call.q, call.k, call.v))
            mask = None if call.mask is None else call.mask.detach().clone()
            self.calls.append(dataclasses.replace(call, q=q, k=k, v=v, mask=mask))
        if not self.outputs:
            return go_on()
        out = go_on()
        if self.keep is None or call.order in self.keep:
            self.calls[-1] = dataclasses.replace(self.calls[-1], out=out.detach().clone())
        return out

    def weighed(self, arguments: inspect.BoundArguments) -> Any:
        """Run the projections once more, without the attention, and leave the call as it is."""
        rehearsed = MULTIHEAD_HINTS | {"need_weights": False}
        # Outer recorders look for themselves; they must not see this rehearsal.
        with suppress(_SeenError), torch._C.DisableTorchFunction(), standing_in(self.stop):
            MULTIHEAD(**(dict(arguments.arguments) | rehearsed))
        return MULTIHEAD(*arguments.args, **arguments.kwargs)

    def stop(self, _: Any, *args: Any, **kwargs: Any) -> NoReturn:
        """Note the call, and end the rehearsal."""
        self.through(_nothing, *args, **kwargs)
        raise _SeenError


class Calls(list[Call]):
    """Recorded calls, in the order of execution."""

    def save(self, folder: Path | str) -> list[Path]:
        """Write them, one file a layer, for ``softlab.inputs.Saved(folder)``; the files.

        A file ``<name of the layer>.safetensors`` holds q, k and v, (samples, heads, tokens,
        width); samples of several calls of equal sizes follow each other, other sizes have files of
        their own. A scale other than 1 / sqrt(d) is in q. A mask that hides keys from all queries
        alike is kept as ``key_mask``. Warns of all that the tensors alone do not tell: causal and
        other masks.

        Raises ``ValueError`` where there are no calls, for a ragged batch, for q, k and v that are
        not finite, and for a folder that holds files already.
        """
        if not self:
            msg = "there are no calls to save; run the model inside the block of record."
            raise ValueError(msg)
        place = Path(folder)
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            msg = f"{place} is there already, and not an empty folder; name another one."
            raise ValueError(msg)
        groups: dict[str, dict[object, list[dict[str, Tensor]]]] = {}
        lost: dict[str, list[str]] = {}
        for call in self:
            held, without = _held(call)
            sizes = tuple((name, x.shape[1:], x.dtype) for name, x in held.items())
            groups.setdefault(call.module or "model", {}).setdefault(sizes, []).append(held)
            if without:
                lost.setdefault(without, []).append(call.module or "model")
        place.mkdir(parents=True, exist_ok=True)
        written = []
        for name, alike in groups.items():
            for i, parts in enumerate(alike.values()):
                file = place / f"{name}{f'.sizes{i}' if len(alike) > 1 else ''}.safetensors"
                whole = {x: torch.cat([part[x] for part in parts]).contiguous() for x in parts[0]}
                save_file(whole, file)
                written.append(file)
        for what, layers in lost.items():
            names = list(dict.fromkeys(layers))
            warnings.warn(
                f"{len(names)} layers ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}) "
                f"have {what}, which is not saved: studies see q, k and v alone.",
                stacklevel=2,
            )
        return written


def _held(call: Call) -> tuple[dict[str, Tensor], str]:
    """The tensors of a call, (samples, heads, tokens, width), and what they do not tell."""
    layer = call.module or "model"
    if call.q.is_nested:
        msg = f"layer {layer!r} has a ragged batch, which has no one length. Pad the batch."
        raise ValueError(msg)
    q, k, v = (
        x.reshape(-1, *x.shape[-3:]) if x.ndim > 2 else x[None, None]
        for x in (call.q, call.k, call.v)
    )
    usual = 1 / math.sqrt(q.shape[-1])
    if abs(call.scale / usual - 1) > 1e-6:
        q = q.float() * (call.scale / usual) if q.dtype.itemsize < 4 else q * (call.scale / usual)
    held = {"q": q, "k": k, "v": v}
    without = "a causal mask" if call.is_causal else ""
    if call.mask is not None:
        try:
            found = read(call.mask, call.is_causal, call.q.shape[:-2], q.shape[-2], k.shape[-2])
        except UnableError:
            return held, "a mask, a bias or a window of their own"
        without = "a causal mask" if found.causal else ""
        if found.key_mask is not None:
            keys = found.key_mask.expand(*call.q.shape[:-2], k.shape[-2])
            keys = keys.reshape(*q.shape[:2], k.shape[-2])
            if not bool((keys == keys[:, :1]).all()) or not bool(keys.any(-1).all()):
                return held, "masks that differ between heads, or that leave a sample no key"
            held["key_mask"] = keys[:, 0]
    return held, without


MULTIHEAD_HINTS = {"is_causal": False}
"""Where a multi-head attention asks for weights, is_causal is a mere hint: its mask counts."""


class _SeenError(Exception):
    """Ends the rehearsal of a multi-head attention once its q, k and v are known."""


def _nothing(*args: Any, **kwargs: Any) -> Tensor:  # noqa: ARG001
    raise _SeenError
