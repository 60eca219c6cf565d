"""Published packages under the laws: which each holds, which it breaks, and on what.

Each stands behind a thin adapter: its own forward pass, with its projections replaced by the parts
of one concatenated input, so that it sees the q, k and v of a law. Packages that are not installed
are left out; ``make peers`` installs them. A law that a package never claimed to keep is marked so.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from softlab import laws
from softlab.core import Stream, Traits
from softlab.engine.journal import Row
from softlab.engine.provenance import cpu_alone
from softlab.laws.adapters import Plain
from softlab.operators import Softmax
from softlab.study import Study

EXAMPLES = 3
RANK, FEATURES, LONGEST = 4, 16, 4096

EVERYWHERE = (
    "deterministic", "silent", "stateless", "answers", "views",
    "batch independence", "mask is deletion", "gradient", "linear in v", "target",
)  # fmt: skip
"""What whoever calls a layer relies on, and so a claim without words."""

AVERAGE = Traits(query_equivariant=True, key_invariant=True, row_stochastic=True, nonnegative=True)
SOFTMAX = dataclasses.replace(AVERAGE, exact=True, reads="relative scores")


@dataclass(frozen=True)
class Peer:
    """A layer of a package as its users have it.

    ``build`` makes the subject, whose traits are what the package says of the layer, or what its
    paper does. ``claims``: laws beyond ``EVERYWHERE`` that follow from what it says; ``disclaims``:
    laws of ``EVERYWHERE`` that its documentation rules out. ``unasked``: laws that the adapter
    would break itself.
    """

    package: str
    layer: str
    build: Callable[[], Plain] = field(repr=False)
    claims: tuple[str, ...] = ()
    disclaims: tuple[str, ...] = ()
    unasked: tuple[str, ...] = ()


class Part(torch.nn.Module):
    """Some columns of the input, in place of a projection."""

    def __init__(self, start: int, width: int) -> None:
        super().__init__()
        self.columns = slice(start, start + width)

    def forward(self, x: Tensor) -> Tensor:
        """The columns."""
        return x[..., self.columns]


def module(name: str) -> Any:
    """The module of a package, whose warnings at import are its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def seeded(make: Callable[[], Any], x: Tensor) -> Any:
    """A layer with the same weights at each call, in evaluation, in the precision of x."""
    with torch.random.fork_rng(), contextlib.redirect_stdout(io.StringIO()):
        torch.manual_seed(Stream(0, "peers, weights").number)
        return make().to(x.dtype).eval()


def torch_sdpa() -> Plain:
    """Fused attention of torch."""
    attend = torch.nn.functional.scaled_dot_product_attention

    def call(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return attend(q, k, v, attn_mask=None if mask is None else mask.unsqueeze(-2))

    return Plain(call, "sdpa", SOFTMAX, Softmax(), masked=True)


def torch_sdpa_causal() -> Plain:
    """The same, causal, where there are as many queries as keys."""
    attend = torch.nn.functional.scaled_dot_product_attention
    traits = dataclasses.replace(SOFTMAX.made_causal(), row_stochastic=True)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, is_causal=True)

    return Plain(call, "sdpa, causal", traits, Softmax(causal=True), equal_lengths=True)


def torch_flex() -> Plain:
    """Flexible attention, not compiled."""
    flex = module("torch.nn.attention.flex_attention").flex_attention

    def call(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Any:
        def hidden(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            del i
            kept: Tensor = mask  # type: ignore[assignment]
            return torch.where(kept[b, h, j], score, -float("inf"))

        with warnings.catch_warnings():  # that it is not compiled
            warnings.simplefilter("ignore")
            return flex(q, k, v, score_mod=None if mask is None else hidden)

    return Plain(call, "flex", SOFTMAX, Softmax(), masked=True, axes=4)


def nystrom_attention() -> Plain:
    """NystromAttention of nystrom-attention."""
    package = module("nystrom_attention.nystrom_attention")

    def call(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Any:
        d = q.shape[-1]
        of = seeded(lambda: package.NystromAttention(3 * d, d, 1, RANK, residual=False), q)
        of.to_qkv, of.to_out = torch.nn.Identity(), torch.nn.Identity()
        return of(torch.cat((q, k, v), -1), mask=mask)

    return Plain(
        call, "NystromAttention", Traits(), Softmax(), masked=True, axes=3,
        equal_lengths=True, equal_widths=True, rank=RANK,
    )  # fmt: skip


def performer() -> Plain:
    """FastAttention of performer-pytorch."""
    package = module("performer_pytorch.performer_pytorch")

    def call(q: Tensor, k: Tensor, v: Tensor) -> Any:
        return seeded(lambda: package.FastAttention(q.shape[-1], FEATURES), q)(q, k, v)

    return Plain(call, "FastAttention", AVERAGE, Softmax(), axes=4)


def performer_causal() -> Plain:
    """The same, causal."""
    package = module("performer_pytorch.performer_pytorch")
    traits = dataclasses.replace(AVERAGE.made_causal(), row_stochastic=True)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Any:
        make = partial(package.FastAttention, q.shape[-1], FEATURES, causal=True)
        return seeded(make, q)(q, k, v)

    return Plain(
        call, "FastAttention, causal", traits, Softmax(causal=True), axes=4, equal_lengths=True
    )


def linformer() -> Plain:
    """LinformerSelfAttention of linformer."""
    package = module("linformer.linformer")

    def call(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Any:
        d = q.shape[-1]
        make = partial(package.LinformerSelfAttention, d, LONGEST, RANK, 1)
        of = seeded(make, q)
        of.to_q, of.to_k, of.to_v = Part(0, d), Part(0, d), Part(d, d)
        of.to_out = torch.nn.Identity()
        of.dim = 2 * d
        x = torch.cat((q, q), -1)
        return of(x, context=torch.cat((k, v), -1), mask=mask)

    traits = Traits(query_equivariant=True, reads="scores", low_rank=True)
    return Plain(
        call, "LinformerSelfAttention", traits, Softmax(), masked=True, axes=3,
        equal_widths=True, rank=RANK,
    )  # fmt: skip


def nystromformer() -> Plain:
    """NystromformerSelfAttention of transformers; as many landmarks as divide the tokens."""
    models = module("transformers.models.nystromformer")
    code = module("transformers.models.nystromformer.modeling_nystromformer")

    def call(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Any:
        n, d = q.shape[-2:]
        landmarks = next(m for m in range(RANK, 0, -1) if n % m == 0)
        config = models.NystromformerConfig(
            hidden_size=d,
            num_attention_heads=1,
            num_landmarks=landmarks,
            segment_means_seq_len=n,
            attention_probs_dropout_prob=0.0,
        )
        of = seeded(lambda: code.NystromformerSelfAttention(config), q)
        of.conv_kernel_size = None  # its convolution of the values is no attention
        del of.conv
        of.query, of.key, of.value = (Part(i * d, d) for i in range(3))
        hidden = None if mask is None else (~mask[:, None, None, :]).to(q) * -1e9
        return of(torch.cat((q, k, v), -1), hidden)[0]

    return Plain(
        call, "NystromformerSelfAttention", Traits(), Softmax(), masked=True, axes=3,
        equal_lengths=True, equal_widths=True, rank=RANK,
    )  # fmt: skip


def local_attention(*, causal: bool = False) -> Plain:
    """LocalAttention of local-attention, which pads to whole windows by itself."""
    package = module("local_attention")
    traits = Traits(row_stochastic=True, nonnegative=True, restricted=True, causal=causal)

    def call(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Any:
        make = partial(
            package.LocalAttention,
            3,
            causal=causal,
            look_forward=int(not causal),
            autopad=True,
            exact_windowsize=True,
        )
        return seeded(make, q)(q, k, v, mask=mask)

    return Plain(
        call, "LocalAttention", traits, Softmax(causal=causal), masked=True, axes=3,
        equal_lengths=True, equal_widths=True,
    )  # fmt: skip


AVERAGES = (
    "row-stochastic",
    "non-negative",
    "query equivariance",
    "key invariance",
    "infinite temperature",
    "one key",
)
EXACT = (*AVERAGES, "reads", "zero temperature", "tokens far apart")

KNOWN = (
    Peer("torch", "scaled_dot_product_attention", torch_sdpa, EXACT),
    Peer("torch", "scaled_dot_product_attention, causal", torch_sdpa_causal, (*EXACT, "causal")),
    # "does not support backward on CPU", it says itself.
    Peer("torch", "flex_attention", torch_flex, EXACT, ("gradient", "views")),
    Peer("nystrom-attention", "NystromAttention", nystrom_attention),
    # Its landmarks must divide the tokens, so that deleting some gives others.
    Peer(
        "transformers", "NystromformerSelfAttention", nystromformer, unasked=("mask is deletion",)
    ),
    Peer("performer-pytorch", "FastAttention", performer, AVERAGES),
    Peer("performer-pytorch", "FastAttention, causal", performer_causal, (*AVERAGES, "causal")),
    Peer("linformer", "LinformerSelfAttention", linformer, ("low rank",)),
    Peer("local-attention", "LocalAttention", local_attention, (*AVERAGES, "restricted")),
    Peer(
        "local-attention",
        "LocalAttention, causal",
        partial(local_attention, causal=True),
        (*AVERAGES, "causal", "restricted"),
    ),
)


def installed() -> Iterator[Peer]:
    """The peers whose packages are here."""
    for peer in KNOWN:
        if importlib.util.find_spec(peer.package.replace("-", "_")) is not None:
            yield peer


PEERS = list(installed())


def keep(peer: Peer, law: str) -> bool:
    """No law that an adapter would break itself."""
    return law not in peer.unasked


def measure(peer: Peer, law: str, *, dtype: torch.dtype, device: torch.device) -> Row:
    """What becomes of the law, whether the package claims it, and the counterexample."""
    cpu_alone(device)
    del dtype
    subject = peer.build()
    (asked,) = (one for one in laws.OPERATOR_LAWS if one.name == law)
    found = laws.outcome(subject, asked, seeds=range(EXAMPLES), seconds=150.0, name=subject.name)
    return {
        "package": peer.package,
        "version": metadata.version(peer.package),
        "layer": peer.layer,
        "family": asked.family,
        "statement": asked.statement,
        "claimed": law in (*EVERYWHERE, *peer.claims) and law not in peer.disclaims,
        "verdict": str(found.verdict),
        "detail": found.detail,
        "counterexample": found.counterexample,
        "examples": found.examples,
    }


STUDY = Study(
    name="peers",
    needs="fidelity",
    title="Published packages under the laws",
    question="Which laws do attention layers of published packages keep, which do they break, and "
    "which of these did they claim to keep?",
    axes={"peer": PEERS, "law": [law.name for law in laws.OPERATOR_LAWS]},
    quick={"peer": PEERS[:1], "law": ["linear in v", "padding is ignored", "causal"]},
    measure=measure,
    keep=keep,
)
