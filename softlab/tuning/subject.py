"""A model, its inputs one by one, and by how much a substituted attention changes what counts."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from softlab.core import Stream, norm

CONFIDENCE = 0.95
ALIKE = 1e-3
"""Outputs of a sample alone and in its batch are one where they differ by less, relatively."""

REPEATED = 1e-6
"""Two runs on one input may differ by this: sums on a GPU have no fixed order."""

NOISY = (
    "the model gives two outputs for one input, so changes cannot be told from noise. Call its "
    "eval(), and seed what it draws."
)

Unit = tuple[tuple[Any, ...], Mapping[str, Any]]
"""The positional and the keyword arguments of one run of the model."""
Pair = tuple[float, float]
"""What one input adds to the two sums whose ratio is the metric."""


class Interval(NamedTuple):
    """A value over some inputs, with the 95 % interval of other inputs of their kind."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g})"


@dataclass(frozen=True)
class Metric:
    """What of a run counts, and how runs with and without a substitute are compared.

    ``of(output, unit)`` is what is kept of a run; ``pair(found, clean)`` what the input adds to two
    sums (x, y). The value is (sum x / sum y)^(1 / power). Its power adds up over small independent
    changes, which the search uses and no test relies on.
    """

    name: str
    of: Callable[[Any, Unit], Any]
    pair: Callable[[Any, Any], Pair]
    power: int = 1
    signed: bool = False

    def value(self, pairs: Sequence[Pair]) -> float:
        """Over the inputs of these pairs; infinite where one is."""
        x, y = np.array(pairs, float).T
        return self._root(float(np.where(np.isnan(x), math.inf, x).sum() / y.sum()))

    def interval(self, pairs: Sequence[Pair], odds: float = 1 - CONFIDENCE) -> Interval:
        """The value and its interval that misses at these odds, 95 %, of Student's t over inputs.

        The standard error of log r, r = sum x / sum y, is that of the jackknife, which leaves out
        one input at a time. On skewed inputs the interval of log r covers better than that of r,
        which a rise of the loss has, for it may be negative. Where a score changed nowhere, the
        upper end is that of a share of inputs: 1 - (odds / 2)^(1 / inputs).
        """
        x, y = np.array(pairs, float).T
        count = len(x)
        if not np.isfinite(x).all() or count < 2:
            return Interval(self.value(pairs), -math.inf if self.signed else 0.0, math.inf)
        ratio = float(x.sum() / y.sum())
        if not x.any() and self.power == 1 and not self.signed:
            return Interval(0.0, 0.0, 1 - (odds / 2) ** (1 / count))
        without = (x.sum() - x) / (y.sum() - y)
        logs = not self.signed and float(without.min()) > 0
        seen = np.log(without) if logs else without
        error = math.sqrt((count - 1) * float(np.var(seen)))
        wide = error * float(stats.t.ppf(1 - odds / 2, count - 1))
        ends = (ratio * math.exp(z) if logs else ratio + z for z in (0.0, -wide, wide))
        return Interval(*map(self._root, ends))

    def resampled(self, pairs: Sequence[Pair], within: float, draws: int = 100) -> int:
        """In how many of 100 resamplings of the inputs the value is at most ``within``."""
        held = np.array(pairs, float)
        stream = Stream(0, "tuning, resampled inputs")
        chosen = stream.integers(len(held), draws, len(held)).numpy()
        return sum(self.value([*map(tuple, held[rows])]) <= within for rows in chosen)

    def _root(self, ratio: float) -> float:
        if self.power == 1:
            return ratio if self.signed else max(0.0, ratio)
        return float(max(0.0, ratio) ** (1 / self.power))


def tensor_of(output: Any, _: Unit = ((), {})) -> Tensor:
    """The tensor that counts: the output itself, or the first one in it; ``TypeError`` for none."""
    if isinstance(output, Tensor):
        return output.detach()
    if isinstance(output, tuple | list) or hasattr(output, "values"):
        for x in output.values() if hasattr(output, "values") else output:
            if isinstance(x, Tensor) and x.ndim:
                return x.detach()
    msg = f"the model gives a {type(output).__name__}, in which there is no tensor to compare."
    raise TypeError(msg)


def _moved(found: Tensor, clean: Tensor) -> Pair:
    if found.shape != clean.shape:
        msg = (
            f"the model's output is {tuple(clean.shape)} as it is and {tuple(found.shape)} with "
            "another attention: its path depends on values. Use a metric that gives one number."
        )
        raise ValueError(msg)
    size = float(norm(clean.double())) ** 2
    if not bool(found.isfinite().all()):
        return math.inf, size
    return float(norm(found.double() - clean.double())) ** 2, size


change = Metric("change", tensor_of, _moved, power=2)
"""Relative change of the output, |out - clean|_F / |clean|_F over all inputs together."""


def _loss_of(output: Any, _: Unit) -> float:
    held = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    held = output if held is None and isinstance(output, Tensor) and output.ndim == 0 else held
    if not isinstance(held, Tensor) or held.numel() != 1:
        msg = (
            "--metric loss needs a model that gives its loss: one number, or an output with loss. "
            "Put the labels into the input, or give a function of the output, mine.py:score."
        )
        raise ValueError(msg)
    return float(held)


loss = Metric("loss", _loss_of, lambda found, clean: (found - clean, 1.0), signed=True)
"""By how much the loss rises, the mean over the inputs."""


def score(function: Any, name: str = "score") -> Metric:
    """By how much a number that the function makes of an output changes, the mean over the inputs.

    ``function(output)``, or ``function(output, args, kwargs)`` with the input's own arguments: a
    number, or a tensor of one.
    """
    if not callable(function):
        msg = f"--metric {name} is a {type(function).__name__}; give a function of the output."
        raise TypeError(msg)
    try:
        wide = len(inspect.signature(function).parameters) > 1
    except ValueError:  # of C
        wide = False

    def of(output: Any, unit: Unit) -> float:
        found = function(output, *unit) if wide else function(output)
        if (isinstance(found, Tensor) and found.numel() == 1) or isinstance(found, np.generic):
            found = found.item()
        if isinstance(found, bool | int | float):
            return float(found)
        msg = f"{name} gives a {type(found).__name__}; it must give one number for one input."
        raise TypeError(msg)

    return Metric(name, of, lambda found, clean: (abs(found - clean), 1.0))


def units(model: nn.Module, inputs: Sequence[Unit]) -> list[Unit]:
    """The inputs, each batch in single samples where the model takes them one by one.

    A batch is split where all its tensors have as many samples first, and where the model makes the
    same of the first sample alone; else it stays one input, as of a model whose samples see each
    other. Raises ``ValueError`` where there are no inputs.
    """
    if not inputs:
        msg = "there are no inputs; give what the model takes, a file or a folder of them."
        raise ValueError(msg)
    return [unit for given in inputs for unit in _split(model, given)]


def _split(model: nn.Module, given: Unit) -> list[Unit]:
    args, kwargs = given
    tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
    size = {len(x) if x.ndim else 0 for x in tensors}
    if len(size) != 1 or (count := size.pop()) < 2 or all(x.ndim < 2 for x in tensors):
        return [given]

    def one(x: Any, i: int) -> Any:
        return x[i : i + 1] if isinstance(x, Tensor) else x

    found: list[Unit] = [
        (tuple(one(x, i) for x in args), {name: one(x, i) for name, x in kwargs.items()})
        for i in range(count)
    ]
    with torch.no_grad():
        try:
            whole, alone = (tensor_of(model(*unit[0], **unit[1])) for unit in (given, found[0]))
        except Exception:  # of anybody's model, which may take no single sample
            return [given]
    if not whole.ndim or len(whole) != count or whole[:1].shape != alone.shape:
        return [given]
    if not bool(alone.isfinite().all()) or _near(whole[:1], alone, ALIKE):
        return found  # what is not finite is refused as such, later
    with torch.no_grad():
        again = tensor_of(model(*found[0][0], **found[0][1]))
    if not _near(again, alone, REPEATED):
        raise ValueError(NOISY)
    return [given]


def _near(found: Tensor, true: Tensor, share: float) -> bool:
    return float(norm((found - true).double())) <= share * float(norm(true.double()))


def halves(every: Sequence[Unit], search: int) -> tuple[list[Unit], list[Unit]]:
    """The inputs to search on, at most so many, and those held out, dealt out in turn.

    Raises ``ValueError`` for fewer than four inputs: two of each are the least of an interval.
    """
    if len(every) < 4:
        msg = (
            f"there are {len(every)} inputs; four are the least, two to search on and two held "
            "out, and twenty make a narrow interval. Give a batch of more samples, or more files."
        )
        raise ValueError(msg)
    step = max(2, -(-len(every) // search)) if len(every) > 2 * search else 2
    chosen = range(0, len(every), step)
    return [every[i] for i in chosen], [x for i, x in enumerate(every) if i not in chosen]


@dataclass(eq=False)
class Subject:
    """A model with a metric, and what the model as it is gives for some inputs."""

    model: nn.Module
    metric: Metric
    inputs: list[Unit]
    clean: list[Any] = field(default_factory=list)

    def run(self, unit: Unit) -> Any:
        """What counts of one run."""
        with torch.no_grad():
            return self.metric.of(self.model(*unit[0], **unit[1]), unit)

    def own(self, unit: Unit) -> Any:
        """What counts of a run of the model as it is; ``ValueError`` where that is not finite."""
        found = self.run(unit)
        if bool(torch.as_tensor(found).isfinite().all()):
            return found
        what = "the output" if isinstance(found, Tensor) else self.metric.name
        shown = "not finite" if isinstance(found, Tensor) else f"{found}"
        msg = (
            f"{what} is {shown} for an input of the unmodified model, so no change can be told. "
            "Mend the metric or the model, or leave out that input."
        )
        raise ValueError(msg)

    def prepared(self) -> Subject:
        """With the outputs of the model as it is; ``ValueError`` where it gives two for one."""
        self.clean = [self.own(unit) for unit in self.inputs]
        again = self.metric.value([self.metric.pair(self.run(self.inputs[0]), self.clean[0])])
        if abs(again) > REPEATED:
            raise ValueError(NOISY)
        if isinstance(self.clean[0], Tensor) and not sum(float(norm(x)) for x in self.clean):
            msg = "the model's output is zero for all inputs; a relative change has no meaning."
            raise ValueError(msg)
        return self

    def pairs(self) -> Iterator[Pair]:
        """Of each input, as the model is now."""
        for unit, clean in zip(self.inputs, self.clean, strict=True):
            yield self.metric.pair(self.run(unit), clean)

    def digest(self) -> str:
        """What decides an evaluation: parameters, inputs, metric, torch."""
        found = hashlib.sha256(f"{torch.__version__} {self.metric.name} ".encode())
        held = [*self.model.state_dict().items()]
        for i, (args, kwargs) in enumerate(self.inputs):
            held += [(f"{i} {name}", x) for name, x in (*enumerate(args), *kwargs.items())]
        for name, x in held:
            found.update(f"{name} {type(x).__name__} ".encode())
            if isinstance(x, Tensor):
                plain = x.detach().cpu().contiguous().reshape(-1)
                found.update(f"{x.dtype} {tuple(x.shape)} ".encode())
                found.update(plain.view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
            else:
                found.update(repr(x).encode())
        return found.hexdigest()[:16]
