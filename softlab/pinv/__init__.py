"""Pseudo-inverses of small square cores: solvers, their initial scalings, and wrappers.

A solver is a frozen dataclass with ``solver(a)``, ``solver.iterates(a)``, ``solver.solve(a)``,
``solver.cost(m)`` and ``solver.traits``; see ``softlab.pinv.solver``. Every scale and stopping
rule is per matrix. float16 and bfloat16 input is computed in float32 and returned as it came, but
``iterates`` runs in the arithmetic of its input, to show what that does.

Direct: ``SVD``, ``Cholesky``. Iterations: ``NewtonRaphson``, ``Hyperpower``,
``NystromformerCubic``, ``Chebyshev``, ``Minimax``, ``SketchedFit``; ``ConjugateGradients``.
Wrappers of the result: ``Ridge``, ``Purified``, ``BestIterate``, ``Polished``; of the gradient:
``ImplicitGradient``, ``GolubPereyra``, ``Checkpointed``. Initial guesses:
``softlab.pinv.scalings``.
"""

from softlab.pinv.best_iterate import BestIterate
from softlab.pinv.chebyshev import Chebyshev
from softlab.pinv.checkpointed import Checkpointed
from softlab.pinv.cholesky import Cholesky
from softlab.pinv.conjugate_gradients import ConjugateGradients
from softlab.pinv.golub_pereyra import GolubPereyra
from softlab.pinv.hyperpower import Hyperpower
from softlab.pinv.implicit_gradient import ImplicitGradient
from softlab.pinv.iteration import Iteration
from softlab.pinv.minimax import Minimax
from softlab.pinv.newton_raphson import NewtonRaphson
from softlab.pinv.nystromformer_cubic import NystromformerCubic
from softlab.pinv.polished import Polished
from softlab.pinv.polynomial import ResidualPolynomial
from softlab.pinv.purified import Purified
from softlab.pinv.ridge import Ridge
from softlab.pinv.scalings import (
    Frobenius,
    InfinityNorm,
    KrylovEstimate,
    NormProduct,
    OneNorm,
    Optimal,
    OptimalDefinite,
    PowerEstimate,
    PublishedNystromformer,
    PublishedSoft,
    PublishedSoftNorm,
    Scaling,
    Trace,
)
from softlab.pinv.sketched_fit import SketchedFit
from softlab.pinv.solver import (
    Applying,
    Inverting,
    Nystrom,
    PinvResult,
    Solver,
    SolverTraits,
    Status,
    applier,
    applier_cost,
)
from softlab.pinv.svd import SVD

__all__ = [
    "SVD",
    "Applying",
    "BestIterate",
    "Chebyshev",
    "Checkpointed",
    "Cholesky",
    "ConjugateGradients",
    "Frobenius",
    "GolubPereyra",
    "Hyperpower",
    "ImplicitGradient",
    "InfinityNorm",
    "Inverting",
    "Iteration",
    "KrylovEstimate",
    "Minimax",
    "NewtonRaphson",
    "NormProduct",
    "Nystrom",
    "NystromformerCubic",
    "OneNorm",
    "Optimal",
    "OptimalDefinite",
    "PinvResult",
    "Polished",
    "PowerEstimate",
    "PublishedNystromformer",
    "PublishedSoft",
    "PublishedSoftNorm",
    "Purified",
    "ResidualPolynomial",
    "Ridge",
    "Scaling",
    "SketchedFit",
    "Solver",
    "SolverTraits",
    "Status",
    "Trace",
    "applier",
    "applier_cost",
]
