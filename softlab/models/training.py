"""Train a pyramid on images: ``python -m softlab.models.training DATA --out RUN [--preset paper]``.

DATA is a folder of Fashion-MNIST's files, or one with ``train`` and ``val`` in ImageFolder's
layout. RUN receives ``metrics.csv``, a row an epoch, and ``checkpoint.pt``; the same command goes
on where a run stopped, and ends as if it had not; one of another recipe, model or data is refused.
On several GPUs: ``torchrun --nproc-per-node=8
-m softlab.models.training ...``; each takes its share of every batch.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, distributed, nn
from torch.nn import functional

from softlab.core import Stream, value
from softlab.datasets.images import (
    Checked,
    Folder,
    Images,
    Marked,
    by_name,
    fashion_mnist,
)
from softlab.engine.identity import UnstableError, identity, shown
from softlab.models import soft
from softlab.models.pyramid import Design, Pyramid
from softlab.validation import Fraction, Natural, OneOf, Positive, Seed, Size

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@value
class Recipe:
    """How to train: AdamW, the rate warmed up over some epochs, then a cosine.

    ``epochs``, ``batch`` (images a step, of all devices together), ``rate``: positive; ``floor``:
    the last rate, ``warm_up``: epochs of a rate that grows linearly; ``decay`` of matrices alone;
    ``clip``: the largest norm of the gradient, 0 for any. ``mixup`` and ``cutmix``: parameters of
    the beta law by which pairs of images are mixed, 0 for never, one or the other with equal odds
    where both are given. ``smoothing``: share of the target that all classes have, in [0, 1).
    ``drop_path``: of the ``Pyramid``. ``side``: of the images, in pixels. ``precision``: float32,
    or that of the products: bfloat16, or float16 with a scaled loss on a GPU. ``seed``: of all.
    """

    epochs: Size
    batch: Size = 128
    rate: Positive = 1e-3
    floor: float = 1e-5
    warm_up: Natural = 1
    decay: float = 0.05
    clip: float = 1.0
    mixup: float = 0.0
    cutmix: float = 0.0
    smoothing: Fraction = 0.1
    drop_path: Fraction = 0.0
    side: Size = 32
    precision: Annotated[str, OneOf(*PRECISIONS)] = "float32"
    seed: Seed = 0

    def rate_at(self, epoch: float) -> float:
        """The rate at a time in epochs: linear to ``rate``, then a cosine to ``floor``."""
        if epoch < self.warm_up:
            return self.rate * epoch / self.warm_up
        share = (epoch - self.warm_up) / max(1, self.epochs - self.warm_up)
        return self.floor + (self.rate - self.floor) * (1 + math.cos(math.pi * share)) / 2


PRESETS = {
    # Sec. 4 of arXiv 2110.11945; mixup and cutmix of timm's usual strength, which it does not say.
    "paper": Recipe(
        300, 1024, 1e-3, 1e-5, 5, 0.05, 0.0, mixup=0.8, cutmix=1.0, smoothing=0.1, side=224
    ),
    # config/SOFT_Tiny.yaml of fudan-zvg/SOFT: 8 devices of 128.
    "released": Recipe(
        300, 1024, 1e-3, 5e-5, 10, 0.05, 1.0, mixup=0.8, cutmix=1.0, smoothing=0.1, side=224
    ),
    "small": Recipe(12, 128, 2e-3, 2e-5, 1, 0.05, 1.0, mixup=0.2, smoothing=0.1, side=32),
}

MINIATURE = Design(
    (1, 1, 2, 1),
    widths=(32, 64, 96, 128),
    heads=(1, 2, 3, 4),
    strides=(2, 2, 2, 2),
    windows=(4, 2, 1),
    rank=16,
    filters=(5, 3, 3),
    stem=16,
    image=32,
)
"""A pyramid for images of 32 pixels: 0.5 M parameters, 256 to 4 tokens, 16 landmarks."""


class LossError(RuntimeError):
    """The loss, or what reaches an attention, was NaN or infinite; the checkpoint is of before."""


class Run:
    """One training run: a model, its optimiser, where it stands, and a folder that remembers.

    ``step`` counts from 0. Everything random at a step is a function of ``recipe.seed`` and the
    step, so that a run that is taken up from a checkpoint is the run that was never interrupted.
    What the labels of ``test`` mean is known by the names of its classes, in whatever order. Where
    the folder holds no checkpoint, all images are read once before anything is learnt.

    Raises ``ValueError`` where a batch cannot be filled or shared, for a test class that ``train``
    has not, for images that cannot be read, and for the checkpoint of another run, with what
    differs.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        train: Images,
        test: Images,
        out: Path,
        device: torch.device | str = "cpu",
        *,
        progress: bool = False,
    ) -> None:
        if len(train) < recipe.batch:
            msg = (
                f"{len(train)} images do not fill a batch of {recipe.batch}; give a smaller batch."
            )
            raise ValueError(msg)
        self.model, self.recipe, self.out = model.to(device), recipe, out
        self.train_images, self.test_images = train, test
        self.label = by_name(test, train)
        self.device, self.progress = torch.device(device), progress
        self.step = 0
        self.rows: list[dict[str, Any]] = []
        self.optimiser = torch.optim.AdamW(decayed(model, recipe.decay), lr=recipe.rate)
        half = recipe.precision == "float16" and self.device.type == "cuda"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=half)
        self.rank, self.world = 0, 1
        self.parallel: nn.Module = self.model
        if distributed.is_available() and distributed.is_initialized():
            self.rank, self.world = distributed.get_rank(), distributed.get_world_size()
            self.parallel = nn.parallel.DistributedDataParallel(self.model)
        if recipe.batch % self.world:
            msg = (
                f"a batch of {recipe.batch} is not shared by {self.world} devices; give a multiple."
            )
            raise ValueError(msg)
        self.parts = parts(model, train, test)
        if self.checkpoint.exists():
            self.restore()
        else:
            for images in (train, test):
                if isinstance(images, Checked):
                    images.check(self.rank, self.world)
        out.mkdir(parents=True, exist_ok=True)

    @property
    def checkpoint(self) -> Path:
        """The file that holds the run."""
        return self.out / "checkpoint.pt"

    @property
    def steps_an_epoch(self) -> int:
        """Full batches alone."""
        return len(self.train_images) // self.recipe.batch

    def finish(self, epochs: int | None = None) -> list[dict[str, Any]]:
        """Train to the end, or for so many epochs in all; return a row of metrics an epoch.

        Raises ``LossError`` where the loss is not finite.
        """
        last = self.recipe.epochs if epochs is None else min(epochs, self.recipe.epochs)
        console = Console(stderr=True, quiet=not (self.progress and self.rank == 0))
        with Progress(console=console) as bar:
            task = bar.add_task("training", total=last * self.steps_an_epoch, completed=self.step)
            while (epoch := self.step // self.steps_an_epoch) < last:
                start, total = time.perf_counter(), 0.0
                for batch in self.batches(epoch):
                    total += self.learn(*batch)
                    bar.advance(task)
                row = {
                    "epoch": epoch + 1,
                    "step": self.step,
                    "rate": self.optimiser.param_groups[0]["lr"],
                    "train_loss": total / self.steps_an_epoch,
                    "train_seconds": time.perf_counter() - start,
                    **self.evaluate(),
                }
                self.rows.append(row)
                self.save()
                bar.update(task, description=f"{row['accuracy']:.1%}")
        return self.rows

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch that are still to come, this device's share of each."""
        rng = Stream(self.recipe.seed, f"training, order of epoch {epoch}")
        order = rng.permutation(len(self.train_images)).tolist()
        size = self.recipe.batch
        for i in range(self.step % self.steps_an_epoch, self.steps_an_epoch):
            mine = order[i * size : (i + 1) * size][self.rank :: self.world]
            yield self.train_images.batch(mine, self.recipe.side, self._stream("images").number)

    def learn(self, x: Tensor, labels: Tensor) -> float:
        """One step; the loss before it."""
        recipe = self.recipe
        for group in self.optimiser.param_groups:
            group["lr"] = recipe.rate_at((self.step + 1) / self.steps_an_epoch)
        x, labels = x.to(self.device), labels.to(self.device)
        rng = Stream(recipe.seed, f"training, mixtures of step {self.step}")  # of all devices
        x, target = mixed(x, labels, len(self.train_images.classes), recipe, rng)
        self.parallel.train()
        self.optimiser.zero_grad()
        # Dropped paths draw from torch's own generator, which is left as it was.
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self._stream("dropped paths").number)
            try:
                with self._autocast():
                    logits = self.parallel(x)
            except ValueError as refusal:  # attention takes no NaN
                if self.step == 0:  # nothing was learnt yet that could have spoilt it
                    raise
                msg = f"the network refuses ({refusal})"
                raise self._broken(msg) from refusal
            loss = functional.cross_entropy(logits.float(), target)
        found = float(loss.detach())
        if not math.isfinite(found):
            msg = f"the loss is {found}"
            raise self._broken(msg)
        self.scaler.scale(loss).backward()
        if recipe.clip:
            self.scaler.unscale_(self.optimiser)
            nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.step += 1
        return found

    @torch.no_grad()
    def evaluate(self, side: int | None = None) -> dict[str, float]:
        """Loss and accuracy on the test images, at their size in training or another."""
        self.model.eval()
        loss = right = 0.0
        for first in range(0, len(self.test_images), 256):
            some = list(range(first, min(first + 256, len(self.test_images))))
            x, labels = self.test_images.batch(some, side or self.recipe.side, None)
            with self._autocast():
                logits = self.model(x.to(self.device)).float().cpu()
            labels = self.label[labels]
            loss += float(functional.cross_entropy(logits, labels, reduction="sum"))
            right += int((logits.argmax(-1) == labels).sum())
        return {"loss": loss / len(self.test_images), "accuracy": right / len(self.test_images)}

    def save(self) -> None:
        """Write the checkpoint, whole or not at all, and the metrics."""
        if self.rank:
            return
        held = {
            "recipe": repr(self.recipe),
            "parts": self.parts,
            "step": self.step,
            "rows": self.rows,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        fresh = self.checkpoint.with_suffix(".new")
        torch.save(held, fresh)
        fresh.replace(self.checkpoint)
        with (self.out / "metrics.csv").open("w", newline="") as file:
            table = csv.DictWriter(file, list(self.rows[0]))
            table.writeheader()
            table.writerows(self.rows)

    def restore(self) -> None:
        """Take the run up from its checkpoint; ``ValueError`` for another's or a damaged one."""
        try:
            held = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
            recipe, state, written = held["recipe"], held["model"], held.get("parts", {})
        except Exception as broken:
            msg = f"{self.checkpoint} is no checkpoint of a run ({type(broken).__name__}). Move it."
            raise ValueError(msg) from broken
        if recipe != repr(self.recipe):
            msg = f"{self.checkpoint} is of {recipe}, not of {self.recipe!r}. Give another folder."
            raise ValueError(msg)
        different = differences(written, self.parts)
        kind = "run" if shapes(state) == shapes(self.model.state_dict()) else "architecture"
        if different or kind != "run":
            msg = f"{self.checkpoint} is of another {kind}: {different}. Give another folder."
            raise ValueError(msg)
        self.model.load_state_dict(state)
        self.optimiser.load_state_dict(held["optimiser"])
        self.scaler.load_state_dict(held["scaler"])
        self.step, self.rows = held["step"], held["rows"]

    def _stream(self, what: str) -> Stream:
        """Of one use at this step on this device, the same wherever the run was taken up."""
        where = f"step {self.step} on device {self.rank}"
        return Stream(self.recipe.seed, f"training, {what} of {where}")

    def _broken(self, what: str) -> LossError:
        kept = self.checkpoint if self.checkpoint.exists() else "none: no epoch was finished"
        return LossError(
            f"{what} at step {self.step} of epoch {self.step // self.steps_an_epoch + 1}; last "
            f"good checkpoint: {kept}. A lower rate, clip=1 or precision='float32' may help."
        )

    def _autocast(self) -> torch.autocast:
        dtype = PRECISIONS[self.recipe.precision]
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)


def shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """The shape of each tensor, by name."""
    return {name: x.shape for name, x in state.items()}


Told = dict[str, list[str]]
"""By name: a value in words, and the digits that tell it from those with the same words."""


def parts(model: nn.Module, train: Images, test: Images) -> Told:
    """What a run is beside its recipe: the parts of its model, with all knobs, and its images."""
    held: dict[str, Any] = {}
    for name, module in model.named_modules():
        at = f"model.{name}" if name else "model"
        held[at] = type(module).__qualname__
        for key, own in vars(module).items():
            if not key.startswith("_") and key != "training":
                held[f"{at}.{key}"] = own
    held["frozen"] = [x for x, p in model.named_parameters() if not p.requires_grad]
    for name, images in (("training", train), ("test", test)):
        held[f"{name} classes"] = ", ".join(map(repr, images.classes))
        held[f"{name} images"] = f"{len(images)}, fingerprint {_fingerprint(images)[:16]}"
    return {name: _told(x) for name, x in held.items()}


def _told(x: Any) -> list[str]:
    try:
        return [str(shown(x)), identity(x).digits]
    except UnstableError:  # what cannot be known again is known by its words
        return [str(shown(x)), ""]


def differences(one: Told, other: Told, most: int = 3) -> str:
    """The first names whose values differ, in words; nothing where none do."""
    names = [x for x in dict.fromkeys((*one, *other)) if one.get(x) != other.get(x)]
    told = []
    for name in names[:most]:
        was, now = one.get(name, ["not noted", ""]), other.get(name, ["none", ""])
        marks = [f" #{x[1][:8]}" if was[0] == now[0] else "" for x in (was, now)]
        told.append(f"{name} was {was[0]}{marks[0]} and is {now[0]}{marks[1]}")
    more = f"; and {len(names) - most} more" if len(names) > most else ""
    return "; ".join(told) + more


def _fingerprint(images: Images) -> str:
    """That of the images; of those that have none, of what some of them show."""
    if isinstance(images, Marked):
        digits: str = images.fingerprint()
        return digits
    some = list(range(0, len(images), max(1, len(images) // 64)))
    return identity(images.batch(some, 32, None)).digits


def single(dtype: torch.dtype) -> None:
    """Refuse, for a study that trains, what is not float32: ``Recipe.precision`` is for that."""
    if dtype != torch.float32:
        msg = f"the pyramid trains in float32, got {dtype}; leave --dtype out."
        raise ValueError(msg)


def decayed(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Two groups of parameters: matrices, which decay, and biases, norms, tables, which do not."""
    names = {name for name, p in model.named_parameters() if p.ndim < 2}
    names |= {name for name, _ in model.named_parameters() if name.endswith(("positions", "cls"))}
    every = dict(model.named_parameters())
    return [
        {"params": [p for name, p in every.items() if name not in names], "weight_decay": decay},
        {"params": [every[name] for name in every if name in names], "weight_decay": 0.0},
    ]


def mixed(
    x: Tensor, labels: Tensor, classes: int, recipe: Recipe, rng: Stream
) -> tuple[Tensor, Tensor]:
    """Images mixed in pairs, and smoothed targets (b, classes) mixed alike.

    Sources: Zhang et al. 2018 (mixup, arXiv 1710.09412); Yun et al. 2019 (CutMix, 1905.04899).
    """
    target = functional.one_hot(labels, classes).float()
    target = target * (1 - recipe.smoothing) + recipe.smoothing / classes
    strengths = [(mix, a) for mix, a in ((_blend, recipe.mixup), (_patch, recipe.cutmix)) if a]
    if not strengths:
        return x, target
    mix, alpha = strengths[int(rng.integers(len(strengths)))]
    share = _beta(alpha, rng)
    x, share = mix(x, share, rng)
    return x, share * target + (1 - share) * target.flip(0)


def _blend(x: Tensor, share: float, rng: Stream) -> tuple[Tensor, float]:
    del rng
    return share * x + (1 - share) * x.flip(0), share


def _patch(x: Tensor, share: float, rng: Stream) -> tuple[Tensor, float]:
    """A box of 1 - share of each image from its partner; the share that is left, exactly."""
    high, wide = x.shape[-2:]
    h, w = (round(side * math.sqrt(1 - share)) for side in (high, wide))
    top, left = (int(rng.integers(side - part + 1)) for side, part in ((high, h), (wide, w)))
    x = x.clone()
    x[..., top : top + h, left : left + w] = x.flip(0)[..., top : top + h, left : left + w]
    return x, 1 - h * w / (high * wide)


def _beta(alpha: float, rng: Stream) -> float:
    """A draw from Beta(alpha, alpha), by two gamma draws of the generator."""
    gammas = torch._standard_gamma(
        torch.full((2,), alpha, dtype=torch.float64, device="cpu"), generator=rng.generator
    )
    return float(gammas[0] / gammas.sum())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m softlab.models.training",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.description = (__doc__ or "").splitlines()[0]
    say = parser.add_argument
    say("data", type=Path, help="Fashion-MNIST's files, or train/<class>/ and val/<class>/")
    here = "folder of the run; the same command goes on where it stopped"
    say("--out", type=Path, required=True, default=argparse.SUPPRESS, help=here)
    say("--preset", choices=PRESETS, default="small", help="recipe, but for what is said below")
    sizes = ("miniature", "tiny", "small", "medium", "large", "huge")
    say("--size", choices=sizes, default="miniature", help="of the pyramid")
    say("--variant", choices=("paper", "released"), default="paper", help="form of SOFT")
    say("--normalization", default="none", help="of the attention: none, row, symmetric, published")
    here = "cuda" if torch.cuda.is_available() else "cpu"
    say("--device", default=here, help="cpu, cuda, ...")
    kinds = {"epochs": int, "batch": int, "side": int, "seed": int, "rate": float}
    apart: dict[str, Any] = {"default": argparse.SUPPRESS, "help": "instead of the preset's"}
    for name, kind in kinds.items():
        say(f"--{name}", type=kind, **apart)
    say("--precision", choices=PRECISIONS, **apart)
    say(
        "--white", type=float, default=None,
        help="grey value of white, needed for images of over 8 bits",
    )  # fmt: skip
    asked = parser.parse_args()
    given = {name: x for name, x in vars(asked).items() if name in {*kinds, "precision"}}
    recipe = dataclasses.replace(PRESETS[asked.preset], **given)
    device = asked.device
    if "WORLD_SIZE" in os.environ:
        distributed.init_process_group("nccl" if device == "cuda" else "gloo")
        if device == "cuda":
            device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(device)
    try:
        if (asked.data / "train").is_dir():
            train, test = (
                Folder(asked.data / part, white=asked.white) for part in ("train", "val")
            )
        else:
            train, test = fashion_mnist(asked.data)  # type: ignore[assignment]
        design = MINIATURE if asked.size == "miniature" else getattr(soft, asked.size.upper())
        model = Pyramid(
            design,
            asked.variant,
            asked.normalization,
            len(train.classes),
            channels=train.channels,
            drop_path=recipe.drop_path,
            seed=recipe.seed,
        )
        run = Run(model, recipe, train, test, asked.out, device, progress=True)
        last = run.finish()[-1]
        if run.rank == 0:
            Console().print(f"accuracy {last['accuracy']:.2%} after {last['epoch']} epochs")
    except (ValueError, FileNotFoundError, LossError) as refusal:
        sys.exit(f"{refusal}")
    finally:
        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()


if __name__ == "__main__":
    main()
