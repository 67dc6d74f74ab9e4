"""Triton kernels, their tables and launchers: tensors and integers in, tensors out.

Knows nothing of networks, and imports nothing of hrt's other rooms. Triton itself is imported by the modules that hold
or launch kernels, never here.
"""

from hrt.kernels.precisions import PRECISIONS, WORKSPACE
from hrt.kernels.step_tables import Rescaling, StepTables

__all__ = ["PRECISIONS", "WORKSPACE", "Rescaling", "StepTables"]
