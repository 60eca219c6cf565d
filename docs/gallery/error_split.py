"""A Nystrom error, split: converging makes Nystromformer worse.

Between the exact output and the operator's stand four causes. Their parts sum to the error, and
one can cancel another. So the largest part is not always the one to mend.
"""

# %% Split the error on one real head
import torch

from softlab.error_budget import PARTS, split
from softlab.inputs import Recorded
from softlab.operators import Nystromformer
from softlab.pinv import NystromformerCubic

q, k, v = Recorded("minilm.layer5.head2")(seed=0)
published = split(Nystromformer(rank=64), q, k, v)
for part in PARTS:
    size, share = published.size(published.parts[part]), published.share(part)
    print(f"{part}: size {float(size):.2g}, share {float(share):.2g}")

# %% The parts sum to the error, and the shares to one
assert torch.allclose(sum(published.parts.values()), published.error)
assert abs(sum(float(published.share(part)) for part in PARTS) - 1) < 1e-6

# %% The six published steps leave small singular values uninverted, and that helps
assert published.share("solve") < 0
as_published = float(published.size(published.error))
exact_inverse = float(published.size(published.converged))
print(f"error as published {as_published:.2f}, with an exact inverse {exact_inverse:.2f}")
assert exact_inverse > 2 * as_published

# %% The number of steps is a regulariser: neither the fewest nor the most are best
errors = {}
for steps in (2, 4, 6, 8, 12, 24):
    budget = split(Nystromformer(rank=64, pinv=NystromformerCubic(steps)), q, k, v)
    errors[steps] = float(budget.size(budget.error))
print({steps: round(error, 2) for steps, error in errors.items()})
best = min(errors, key=errors.__getitem__)
assert min(errors) < best < max(errors)
