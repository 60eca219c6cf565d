"""The cheapest attention of a model that changes its output by no more than what was asked.

``tune`` searches, on some inputs, and tests on others; what it finds is a ``Plan``, a file that
applies to the model anywhere::

    plan = tuning.load("plan.json")
    with plan.applied(model):
        out = model(x)
"""

from softlab.tuning.plan import Part, Plan, load
from softlab.tuning.search import CANDIDATES, Found, tune
from softlab.tuning.subject import Interval, Metric, change, loss, score, tensor_of, units

__all__ = [
    "CANDIDATES",
    "Found",
    "Interval",
    "Metric",
    "Part",
    "Plan",
    "change",
    "load",
    "loss",
    "score",
    "tensor_of",
    "tune",
    "units",
]
