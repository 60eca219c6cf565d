"""What operators are tried on: synthetic families, recorded activations, and files of your own."""

from softlab.inputs.case import QKV, Input, Patches, Tied, named
from softlab.inputs.recorded import Recorded, recorded_names
from softlab.inputs.saved import Saved
from softlab.inputs.synthetic import Clustered, Decaying, Normal, Sink, Smooth

__all__ = [
    "QKV",
    "Clustered",
    "Decaying",
    "Input",
    "Normal",
    "Patches",
    "Recorded",
    "Saved",
    "Sink",
    "Smooth",
    "Tied",
    "named",
    "recorded_names",
]
