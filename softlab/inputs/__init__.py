"""What operators are tried on: seeded synthetic families and recorded real activations."""

from softlab.inputs.case import QKV, Input, Patches, Tied
from softlab.inputs.recorded import Recorded, recorded_names
from softlab.inputs.synthetic import Clustered, Decaying, Normal, Sink, Smooth

__all__ = [
    "QKV",
    "Clustered",
    "Decaying",
    "Input",
    "Normal",
    "Patches",
    "Recorded",
    "Sink",
    "Smooth",
    "Tied",
    "recorded_names",
]
