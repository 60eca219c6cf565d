"""The four trained models in which an operator is tried: what they run on, and what their task is.

Weights come from ``softlab fetch``; what the tasks need beyond them comes with Python (text), or is
left out where it is absent: Fashion-MNIST and recorded speech, each in a folder that an environment
variable names or where Debian's package puts it.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional

from softlab.capture import record
from softlab.datasets.download import folder
from softlab.datasets.images import fashion_mnist
from softlab.pretrained import minilm, smollm2, vit, whisper

NEEDS = {
    "minilm": ("minilm",),
    "vit": ("vit", "photographs"),
    "smollm2": ("smollm2",),
    "whisper": ("whisper",),
}
"""What of ``softlab fetch`` each model takes."""
LENGTHS = {"minilm": 256, "vit": 257, "smollm2": 256, "whisper": 750}
DOCUMENTS = (
    "argparse", "bisect", "calendar", "csv", "difflib", "fractions", "statistics", "textwrap",
)  # fmt: skip
"""Modules of the standard library whose source is read."""
PHOTOGRAPHS = ("astronaut", "coffee")
SPEECH = ("SOFTLAB_SOUNDS", "/usr/share/sounds/alsa")
PROBE_SIZE, PROBE_TRAIN, PROBE_TEST = 112, 300, 50


@dataclass(frozen=True, eq=False)
class UnderTest:
    """A trained model on a fixed input.

    ``run()`` gives the output that counts; ``task(output)``, called where ``run`` was, the name of
    the loss in what the model is for, and the loss: 0 for the model as it is and growing with
    damage; None where its data are not there. ``layers`` are the names of the layers in order,
    ``tokens`` what each one sees.
    """

    name: str
    model: nn.Module
    run: Callable[[], Tensor]
    task: Callable[[Tensor], tuple[str, float] | None]
    layers: tuple[str, ...]
    tokens: int

    def blocks(self, count: int) -> list[tuple[str, ...]]:
        """The layers in ``count`` parts of neighbours, as equal as can be."""
        ends = [round(i * len(self.layers) / count) for i in range(count + 1)]
        return [self.layers[a:b] for a, b in itertools.pairwise(ends)]


@functools.lru_cache(maxsize=2)
def under_test(name: str, tokens: int | None = None) -> UnderTest:
    """The model of that name; ``tokens`` other than its own of ``LENGTHS`` leave out the task.

    Raises ``ValueError`` for an unknown name, ``FileNotFoundError`` that says what to run where the
    weights are not there, ``ModuleNotFoundError`` without the extra ``models``.
    """
    if name not in NEEDS:
        msg = f"no model is named {name!r}; there are {', '.join(NEEDS)}."
        raise ValueError(msg)
    missing = [need for need in NEEDS[name] if not _there(need)]
    if missing:
        everything = " ".join(dict.fromkeys(need for needs in NEEDS.values() for need in needs))
        msg = f"{name} needs {', '.join(missing)}. Run: softlab fetch {everything}"
        raise FileNotFoundError(msg)
    n = LENGTHS[name] if tokens is None else tokens
    make = {"minilm": _minilm, "vit": _vit, "smollm2": _smollm2, "whisper": _whisper}[name]
    model, run, task = make(n)
    with torch.no_grad(), record(model, keep=[0]) as calls:
        order = _order(model, run)
    return UnderTest(
        name, model, run, task if tokens is None else _no_task, order, calls[0].q.shape[-2]
    )


def _order(model: nn.Module, run: Callable[[], Tensor]) -> tuple[str, ...]:
    """The names of the layers, in the order of their calls."""
    with record(model) as calls:
        run()
    return tuple(dict.fromkeys(call.module for call in calls))


def _there(need: str) -> bool:
    try:
        folder(need)
    except FileNotFoundError:
        return False
    return True


def _no_task(_: Tensor) -> None:
    return None


Made = tuple[nn.Module, Callable[[], Tensor], Callable[[Tensor], tuple[str, float] | None]]


def source(module: str) -> str:
    """The text of a module of the standard library."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        msg = f"the standard library has no module {module} in a file here."
        raise FileNotFoundError(msg)
    return Path(spec.origin).read_text(encoding="utf-8")


def _minilm(n: int) -> Made:
    """Sentence vectors of source texts; task: the ranks of their similarities."""
    place = folder("minilm")
    model = minilm.load(place)
    ids = torch.cat([minilm.tokens(place, source(name), n) for name in DOCUMENTS])

    def similarities(vectors: Tensor) -> Tensor:
        vectors = functional.normalize(vectors.mean(1), dim=-1)
        pairs = torch.triu_indices(len(ids), len(ids), 1)
        return (vectors @ vectors.T)[pairs[0], pairs[1]]

    with torch.no_grad():
        clean = similarities(model(ids))

    def task(output: Tensor) -> tuple[str, float]:
        moved = similarities(output)
        rho = float(spearmanr(clean, moved).statistic) if bool(moved.isfinite().all()) else 0.0
        return "1 - rank correlation of similarities", 1 - (0.0 if math.isnan(rho) else rho)

    return model, lambda: model(ids), task


def _smollm2(n: int) -> Made:
    """The last vectors on source text; task: nats a token more than the model needs."""
    place = folder("smollm2")
    model = smollm2.load(place)
    ids = smollm2.tokens(place, source("heapq"))[:, :n]

    def surprise(hidden: Tensor) -> float:
        logits = functional.linear(hidden[0, :-1], model.word.weight)
        return float(functional.cross_entropy(logits, ids[0, 1:]))

    with torch.no_grad():
        clean = surprise(model.hidden(ids))

    def task(output: Tensor) -> tuple[str, float]:
        return "nats a token", surprise(output) - clean

    return model, lambda: model.hidden(ids), task


def _vit(n: int) -> Made:
    """Token vectors of photographs; task: answers of a linear probe on Fashion-MNIST."""
    model = vit.load(folder("vit"))
    size = vit.PATCH * math.isqrt(n - 1)
    photographs = [folder("photographs") / f"{name}.png" for name in PHOTOGRAPHS]
    images = torch.cat([vit.pixels(path, size).float() for path in photographs])

    @functools.lru_cache(maxsize=1)
    def probe() -> tuple[Tensor, Tensor, Tensor] | None:
        """Test images, and the probe's weights and answers with the model as it is."""
        drawn = fashion(PROBE_TRAIN, PROBE_TEST)
        if drawn is None:
            return None
        train, labels, test = drawn
        # The probe belongs to the model as it is, though it may be asked for inside a block.
        with torch.no_grad(), torch._C.DisableTorchFunction():
            features = torch.cat([model(part)[:, 0] for part in train.split(50)])
            weights = ridge(features, labels)
            return test, weights, _answers(model(test)[:, 0], weights)

    def task(_: Tensor) -> tuple[str, float] | None:
        found = probe()
        if found is None:
            return None
        test, weights, clean = found
        same = _answers(model(test)[:, 0], weights) == clean
        return "1 - agreement of a probe", 1 - float(same.float().mean())

    return model, lambda: model(images), task


def fashion(train: int, test: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """Training images, their labels, and test images, of Fashion-MNIST; None where it is not."""
    try:
        drawn, tests = fashion_mnist()
    except FileNotFoundError:
        return None
    return _pixels(drawn.pixels[:train]), drawn.labels[:train], _pixels(tests.pixels[:test])


def ridge(features: Tensor, labels: Tensor, penalty: float = 0.1) -> Tensor:
    """Weights (width + 1, classes) of least squares on one-hot labels, ridge times mean square."""
    x = functional.pad(features, (0, 1), value=1.0).double()
    y = functional.one_hot(labels).double()
    gram = x.T @ x
    gram += penalty * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    return torch.cholesky_solve(x.T @ y, torch.linalg.cholesky(gram))


def _answers(features: Tensor, weights: Tensor) -> Tensor:
    return (functional.pad(features, (0, 1), value=1.0).double() @ weights).argmax(-1)


def _pixels(images: Tensor) -> Tensor:
    """Grey images (b, 1, 28, 28) of 0 to 255 as the model wants them."""
    x = images.float() / 255
    x = functional.interpolate(x, size=(PROBE_SIZE, PROBE_SIZE), mode="bicubic").clamp(0, 1)
    mean, std = (torch.tensor(c)[:, None, None] for c in (vit.MEAN, vit.STD))
    return (x - mean) / std


def _whisper(n: int) -> Made:
    """The encoder on a made voice; task: nats a token more for what it heard in real speech."""
    model = whisper.load(folder("whisper"))
    sound = whisper.spectrogram(voice())[..., : 2 * n]

    @functools.lru_cache(maxsize=1)
    def heard() -> tuple[Tensor, Tensor, float] | None:
        spoken = speech()
        if spoken is None:
            return None
        with torch.no_grad(), torch._C.DisableTorchFunction():
            spectrum = whisper.spectrogram(spoken)
            memory = model(spectrum)
            ids = torch.tensor([[*whisper.START, *model.transcribed(memory), whisper.END]])
            return spectrum, ids, _surprise(model, memory, ids)

    def task(_: Tensor) -> tuple[str, float] | None:
        found = heard()
        if found is None:
            return None
        spectrum, ids, clean = found
        return "nats a token", _surprise(model, model(spectrum), ids) - clean

    return model.encoder, lambda: model(sound), task


def _surprise(model: whisper.Whisper, memory: Tensor, ids: Tensor) -> float:
    logits = model.decoder(ids, memory)[0, len(whisper.START) - 1 : -1]
    return float(functional.cross_entropy(logits, ids[0, len(whisper.START) :]))


def voice() -> Tensor:
    """Made vowels, 24 seconds at 16 kHz: a gliding pitch through three formants each."""
    t = torch.arange(24 * whisper.RATE, dtype=torch.float64) / whisper.RATE
    vowels = torch.tensor(
        [[730, 1090, 2440], [270, 2290, 3010], [300, 870, 2240], [530, 1840, 2480],
         [570, 840, 2410], [440, 1020, 2240]], dtype=torch.float64,
    )  # fmt: skip
    syllable = (t / 0.25).long()
    formants = vowels[(syllable * 5 + syllable // 7) % len(vowels)]
    pitch = 120 + 25 * torch.sin(2 * math.pi * 0.4 * t) + 8 * torch.sin(2 * math.pi * 2.3 * t)
    phase = 2 * math.pi * pitch.cumsum(0) / whisper.RATE
    loud = torch.sin(math.pi * (t / 0.25).frac()).square() * (syllable % 9 < 7)
    sound = torch.zeros_like(t)
    for harmonic in range(1, 28):
        at = harmonic * pitch
        gain = (1 / (1 + ((at[:, None] - formants) / 90).square())).sum(1)
        sound += gain * torch.sin(harmonic * phase)
    sound = loud * sound
    return 0.5 * sound / sound.abs().max()


def speech() -> Tensor | None:
    """The recorded words of a folder of WAV files, in a row; None where there is none."""
    variable, packaged = SPEECH
    files = sorted(Path(os.environ.get(variable, packaged)).glob("*_*.wav"))
    return torch.cat([whisper.sound(file) for file in files]) if files else None
