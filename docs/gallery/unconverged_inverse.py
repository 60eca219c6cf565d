"""An inverse that stops unconverged, and what that does to the output of SOFT.

SOFT inverts the core of its landmarks by 20 Newton-Raphson steps. On landmarks that are nearly
equal these are too few: the iteration says so, the error shows it, and a better start mends it at
no cost.
"""

# %% Landmarks that are nearly equal: smooth tokens, as pooling makes them
from softlab import convergence
from softlab.error_budget import split
from softlab.inputs import Smooth, Tied
from softlab.operators import Soft
from softlab.pinv import InfinityNorm, NewtonRaphson, Status

q, k, v = Tied(Smooth(512, 32, length=1024.0))(seed=0)
published = Soft(rank=64)
core = published.core(q, k)
ended = published.pinv.solve(core)
assert Status(int(ended.status)) == Status.OUT_OF_STEPS

# %% The steps are too few for the small singular values, and the eigenvalues alone predict it
inverted = convergence.degrees_of_freedom(published.pinv, core)
assert inverted < 64
print(f"{inverted:.1f} of 64 singular values are inverted after 20 steps")

# %% What that adds to the error of the output: the part of the solve
before = split(published, q, k, v)
solve = float(before.size(before.parts["solve"]))
landmarks = float(before.size(before.parts["landmarks"]))
print(f"parts of the error: solve {solve:.2g}, landmarks {landmarks:.2g}")
assert solve > landmarks

# %% The same number of steps from I / |A| starts from the condition number, not from its square
mended = Soft(rank=64, pinv=NewtonRaphson(20, scaling=InfinityNorm()))
after = split(mended, q, k, v)
print(f"error {float(before.size(before.error)):.2g} becomes {float(after.size(after.error)):.2g}")
assert after.size(after.error) < before.size(before.error)
assert mended.pinv.cost(64).flops == published.pinv.cost(64).flops
