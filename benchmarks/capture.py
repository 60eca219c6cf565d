"""What it costs to look into a model: recording, and exact attention substituted for itself.

    python benchmarks/capture.py [--device cuda] [--threads 2] [--rounds 9] [--out FOLDER]

Models of the sizes of all-MiniLM-L6-v2 and of ViT-S/14, with random weights, in float32: neither
needs a fetched file, and neither's time hangs on its numbers. Recording stores nothing. Rivals run
in turn within each round; a line gives the median over rounds of the ratio of their times, and its
quartiles. Writes FOLDER/capture.csv and prints it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from rivals import Line, agree, main, race, ratio
from torch import Tensor, nn

from softlab.capture import record, substitute
from softlab.operators import Softmax
from softlab.pretrained.minilm import MiniLM
from softlab.pretrained.vit import ViT

RECORDING, SUBSTITUTION = 1.05, 1.10


def models(device: torch.device) -> Iterator[tuple[str, nn.Module, Callable[[], Tensor]]]:
    """Name, model, and a run of it."""
    torch.manual_seed(0)
    text = MiniLM().to(device).eval()
    ids = torch.randint(30_000, (2, 256), device=device)
    mask = torch.arange(256, device=device) < torch.tensor([[256], [200]], device=device)
    yield "MiniLM, 2 x 256 tokens", text, lambda: text(ids)
    yield "MiniLM, 2 x 256 tokens, padded", text, lambda: text(ids, mask)
    sight = ViT().to(device).eval()
    image = torch.randn(1, 3, 448, 448, device=device)
    yield "ViT, 1025 tokens", sight, lambda: sight(image)


def overhead(device: torch.device, rounds: int) -> Iterator[Line]:
    """Ratios to the plain forward."""
    for name, model, run in models(device):

        def recorded(model: nn.Module = model, run: Callable[[], Tensor] = run) -> Tensor:
            with record(model, keep=()):
                return run()

        def substituted(model: nn.Module = model, run: Callable[[], Tensor] = run) -> Tensor:
            with substitute(model, Softmax()):
                return run()

        with torch.no_grad():
            torch.testing.assert_close(recorded(), run(), rtol=0, atol=0)
            agree(substituted(), run())
            plain, noted, exact = race([run, recorded, substituted], device, rounds)
        yield ratio(f"{name}: recorded", noted, plain, RECORDING, at_most=True)
        yield ratio(f"{name}: exact softmax substituted", exact, plain, SUBSTITUTION, at_most=True)


if __name__ == "__main__":
    main(__doc__, "capture", [overhead])
