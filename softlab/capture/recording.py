"""Record what reaches the attention of a model while it runs."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from softlab.capture.interception import MULTIHEAD, Call, Watch, standing_in


@contextmanager
def record(
    model: nn.Module, *, keep: Collection[int] | None = None, outputs: bool = False
) -> Iterator[list[Call]]:
    """Record the attention calls of ``model`` made inside the block.

    ``with record(model) as calls: model(x)`` fills ``calls`` in the order of execution, with
    detached copies. ``keep`` limits what is stored to these orders (all by default), to spare
    memory; ``outputs`` stores what each call gave as well. Calls that other models make in the
    block are not recorded, nor those of other threads; blocks may be nested, on one model or on
    several, and each records its own. Whatever happens inside, torch and the model end as they
    were.

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
        self.calls: list[Call] = []
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


MULTIHEAD_HINTS = {"is_causal": False}
"""Where a multi-head attention asks for weights, is_causal is a mere hint: its mask counts."""


class _SeenError(Exception):
    """Ends the rehearsal of a multi-head attention once its q, k and v are known."""


def _nothing(*args: Any, **kwargs: Any) -> Tensor:  # noqa: ARG001
    raise _SeenError
