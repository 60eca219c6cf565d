"""Pseudo-inverses of small square cores: solvers, their initial scalings, and wrappers.

A solver is a frozen dataclass with ``solver(a)``, ``solver.iterates(a)``, ``solver.solve(a)``,
``solver.cost(m)`` and ``solver.traits``; see ``softlab.pinv.solver``. Every scale and stopping
rule is per matrix. float16 and bfloat16 input is computed in float32 and returned as it came.
"""

from softlab.pinv.cholesky import Cholesky
from softlab.pinv.implicit_gradient import ImplicitGradient
from softlab.pinv.newton_raphson import NewtonRaphson
from softlab.pinv.nystromformer_cubic import NystromformerCubic
from softlab.pinv.ridge import Ridge
from softlab.pinv.scalings import NormProduct
from softlab.pinv.solver import Inverting, PinvResult, Solver, SolverTraits, Status
from softlab.pinv.svd import SVD

__all__ = [
    "SVD",
    "Cholesky",
    "ImplicitGradient",
    "Inverting",
    "NewtonRaphson",
    "NormProduct",
    "NystromformerCubic",
    "PinvResult",
    "Ridge",
    "Solver",
    "SolverTraits",
    "Status",
]
