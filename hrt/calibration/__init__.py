"""Inputs, moments and what is held to the tolerance.

Knows programs and derivatives; knows nothing of how weights are then compressed.
"""

from hrt.calibration.moments import Moments, layer_moments
from hrt.calibration.objective import Aim
from hrt.calibration.output_error import OutputError, output_error
from hrt.calibration.samples import Box, Split

__all__ = ["Aim", "Box", "Moments", "OutputError", "Split", "layer_moments", "output_error"]
