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
  changed, for that decides the masks of other layers, too. Soft caps, sinks and other
  implementations are refused where they are to be substituted.
- Under autocast queries, keys, values and added masks are cast as torch's attention casts them.
- Attention written out as matrix products and a softmax, or in a scripted graph, cannot be seen.
  What may be such is counted and warned of, by layer. Seeing nothing at all is an error, never an
  empty list.
- A model under ``torch.compile`` is recompiled with a break at each call: record before compiling.
  ``substitute`` refuses it.
"""

from softlab.capture.interception import Call
from softlab.capture.recording import record
from softlab.capture.substitution import Substitution, SubstitutionError, substitute

__all__ = ["Call", "Substitution", "SubstitutionError", "record", "substitute"]
