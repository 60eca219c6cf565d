"""Seeded synthetic families; each sets one thing that matters to an approximation.

Of each, q, k and v are drawn in float64 on the CPU, in that order, from the stream of the seed and
the family, so that one seed means one case whatever the dtype and the device. ``n`` is the number
of queries and of keys, ``d`` the head width, ``e`` the value width (None: d). Values are standard
normal. Unless a family says otherwise the mean |q|^2 is d scale^2 in expectation, which makes
scale^2 the standard deviation of the scores q.k / sqrt(d): an inverse temperature.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from torch import Tensor

from softlab.core import Stream, value
from softlab.inputs.case import QKV, delivered
from softlab.validation import (
    NotNegative,
    OneOf,
    Positive,
    Size,
    tensor_fits,
)

BLOCK = 1024  # rows of scores held at a time


class _Family:
    """What all families share: sizes that fit, a stream of their own, standard normal values."""

    def __post_init__(self: Any) -> None:
        tensor_fits(self, self.n, max(self.d, self.e or self.d))
        tensor_fits(self, self.d, self.d)

    def __call__(
        self: Any,
        seed: int = 0,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> QKV:
        """Draw the case of this seed."""
        rng = Stream(seed, f"inputs.{type(self).__name__}")
        q, k = self._drawn(rng)
        return delivered(q, k, rng.normal(self.n, self.e or self.d), dtype, device)


@value
class Normal(_Family):
    """Independent normal queries and keys, N(0, scale^2): nothing to exploit.

    A check on every other figure: the softmax matrix of such input has nearly full rank, which
    real attention has not.
    """

    n: Size
    d: Size
    scale: Positive = 1.0
    e: Size | None = None

    def _drawn(self, rng: Stream) -> tuple[Tensor, Tensor]:
        return self.scale * rng.normal(self.n, self.d), self.scale * rng.normal(self.n, self.d)


@value
class Clustered(_Family):
    """Tokens in ``clusters`` groups of near-duplicates; ``spread`` = 0 makes them exact ones.

    x_i = scale (c_a(i) + spread g_i) / sqrt(1 + spread^2), with centres c and noise g standard
    normal. The groups are of equal size, give or take one, in random order. Query and key of one
    token share its centre and have their own noise. 1 <= clusters <= n; spread >= 0.
    """

    n: Size
    d: Size
    clusters: Size
    spread: NotNegative = 0.1
    scale: Positive = 1.0
    e: Size | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clusters > self.n:
            msg = f"Clustered.clusters is {self.clusters} for n = {self.n}; give 1 to {self.n}."
            raise ValueError(msg)

    def _drawn(self, rng: Stream) -> tuple[Tensor, Tensor]:
        centre = rng.normal(self.clusters, self.d)[rng.permutation(self.n) % self.clusters]
        unit = self.scale / math.sqrt(1 + self.spread**2)
        q, k = (unit * (centre + self.spread * rng.normal(self.n, self.d)) for _ in "qk")
        return q, k


@value
class Decaying(_Family):
    """Token matrices with prescribed singular values s_1 >= s_2 >= ... of q, and the same of k.

    q = U diag(s) W^T and k = U' diag(s) W^T with random orthonormal U, U' and a shared W, so that
    both vary along the same axes. For ``kind`` "geometric" s_j is proportional to exp(-rate (j-1)),
    for "algebraic" to j^-rate; |s|^2 = n d scale^2, so the mean |q|^2 is d scale^2 exactly.
    rate > 0.
    """

    n: Size
    d: Size
    rate: Positive
    kind: Annotated[str, OneOf(*("geometric", "algebraic"))] = "geometric"
    scale: Positive = 1.0
    e: Size | None = None

    @property
    def singular_values(self) -> Tensor:
        """The singular values of q and of k, (min(n, d),), float64, descending."""
        j = torch.arange(1, min(self.n, self.d) + 1, dtype=torch.float64, device="cpu")
        s = torch.exp(-self.rate * (j - 1)) if self.kind == "geometric" else j**-self.rate
        return s * (self.scale * math.sqrt(self.n * self.d) / float(s.norm()))

    def _drawn(self, rng: Stream) -> tuple[Tensor, Tensor]:
        s = self.singular_values
        axes = s[:, None] * torch.linalg.qr(rng.normal(self.d, len(s))).Q.mT
        q, k = (torch.linalg.qr(rng.normal(self.n, len(s))).Q @ axes for _ in "qk")
        return q, k


@value
class Sink(_Family):
    """One token, the first, that draws the share ``mass`` of every query's softmax attention.

    All q and k are normal, N(0, scale^2), within the complement of a random unit vector u. The
    first key is scale sqrt(d) u, and each query gets the multiple of u that makes

        softmax(q_i k^T / sqrt(d))_1 = mass   exactly, for every i.

    0 < mass < 1; d >= 2, n >= 2. |q| grows by that multiple, some log(n mass / (1 - mass)) / scale.
    """

    n: Size
    d: Size
    mass: Positive = 0.9
    scale: Positive = 1.0
    e: Size | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mass >= 1 or self.n < 2 or self.d < 2:
            msg = f"{self!r} must have mass < 1, n >= 2 and d >= 2. Other tokens need a share."
            raise ValueError(msg)

    def _drawn(self, rng: Stream) -> tuple[Tensor, Tensor]:
        root = math.sqrt(self.d)
        u = torch.nn.functional.normalize(rng.normal(self.d), dim=0)
        q, k = (self.scale * rng.normal(self.n, self.d) for _ in "qk")
        q, k = (x - (x @ u)[:, None] * u for x in (q, k))
        others = torch.cat(
            [torch.logsumexp(rows @ k[1:].mT / root, dim=-1) for rows in q.split(BLOCK)]
        )
        # The sink's score must exceed the others' log-sum-exp by the log-odds of its mass.
        wanted = others + math.log(self.mass / (1 - self.mass))
        k[0] = self.scale * root * u
        q = q + (wanted / self.scale)[:, None] * u
        return q, k


@value
class Smooth(_Family):
    """Neighbouring tokens alike, as pooling wants: correlation exp(-lag / length) along tokens.

    Each coordinate of q, and of k, is a stationary first-order autoregression,
    x_t = r x_(t-1) + sqrt(1 - r^2) g_t with r = exp(-1 / length). length > 0, in tokens.
    """

    n: Size
    d: Size
    length: Positive
    scale: Positive = 1.0
    e: Size | None = None

    def _drawn(self, rng: Stream) -> tuple[Tensor, Tensor]:
        from scipy.signal import lfilter

        r = math.exp(-1 / self.length)

        def walk() -> Tensor:
            steps = math.sqrt(1 - r * r) * rng.normal(self.n, self.d)
            steps[0] /= math.sqrt(1 - r * r)  # starts in the stationary distribution
            return self.scale * torch.from_numpy(lfilter([1.0], [1.0, -r], steps.numpy(), axis=0))

        return walk(), walk()
