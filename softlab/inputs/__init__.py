"""What operators are tried on: seeded synthetic families and recorded real activations."""

from softlab.inputs.case import QKV, Input, Tied
from softlab.inputs.recorded import Recorded, recorded_names

__all__ = ["QKV", "Input", "Recorded", "Tied", "recorded_names"]
