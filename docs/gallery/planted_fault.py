"""A law that catches a planted fault in one's own attention.

The attention below is right on every single matrix. It is wrong on a batch: it divides by the
largest query of all. No comparison on one matrix can see that; a law does.
"""

# %% An attention with a fault, and the same without it
import pytest
import torch
from torch import Tensor

from softlab import laws
from softlab.core import Stream


def faulty(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Divide the scores by the largest query of the batch."""
    return (q @ k.mT / q.abs().max()).softmax(-1) @ v


def mended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Divide the scores by the largest query of each matrix."""
    return (q @ k.mT / q.abs().amax((-2, -1), keepdim=True)).softmax(-1) @ v


# %% On one matrix they agree to the last bit
x = Stream(0, "one matrix").normal(12, 4)
assert torch.equal(faulty(x, x, x), mended(x, x, x))

# %% The law compares a batch with its matrices, one by one
with pytest.raises(laws.BrokenLawError, match="batch independence") as broken:
    laws.check(faulty, only="batch independence")
print(str(broken.value)[:160])

# %% Mended, the law holds
laws.check(mended, only="batch independence")
