"""Look into any torch model while it runs: record its attention, or put another in its place.

The model is not touched: no hook, no wrapper, no changed weight. Under ``record`` its output is the
same to the last bit. Decisions, each held by a test:

- ``nn.MultiheadAttention`` with ``need_weights=True`` never calls torch's attention. To record, its
  projections are run once more, without the attention, to see q, k and v; the model's own call
  stays as it was. A substitute gives its own weights, those of its matrix.
- The fused inference path of ``nn.TransformerEncoder`` is left by torch itself under any such mode.
  The output is that of the module's ordinary path to the last bit, and equals the fused one to
  rounding on real tokens; the fused path zeroes padded positions, the ordinary one does not.
- Layers of transformers are seen where they look up who computes their attention, whether they are
  set to "eager" or to "sdpa"; a layer that is left computes its own, and no configuration is
  changed, for that decides the masks of other layers, too. Soft caps and sinks are
  refused where they are to be substituted, but by exact softmax attention, which is what the layer
  itself computes; other implementations are refused.
- Under autocast queries, keys, values and added masks are cast as torch's attention casts them.
- Attention that is written out is known by how its tensors were made: a product of queries and
  keys, a softmax over the keys, a product with the values; in between scores may be scaled, masked,
  biased and reshaped. Any other step ends what is known.
- A layer that is not torch's own is compared at its first call: where torch's attention of what was
  seen is not what it computes, it reads more, and counts as not seen.
- What may be attention and was not seen is counted and warned of, by layer. Seeing nothing at all
  is an error, never an empty list.
- Keys of other tokens, as of a cross-attention, say nothing of the queries, even where they are as
  many: whose they are is told by what was projected to both.
- A model that decodes with a cache gets what it gets all at once, or is refused.
- A model under ``torch.compile`` is recompiled with a break at each call: record before compiling.
  ``substitute`` refuses it.
"""

from softlab.capture.implementation import register
from softlab.capture.interception import Call
from softlab.capture.recording import Calls, record
from softlab.capture.substitution import Substitution, SubstitutionError, substitute

__all__ = [
    "Call",
    "Calls",
    "Substitution",
    "SubstitutionError",
    "record",
    "register",
    "substitute",
]
