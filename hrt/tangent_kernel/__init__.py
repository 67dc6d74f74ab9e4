"""The empirical neural tangent kernel of a network and how far compression moves it.

Knows programs; knows nothing of models, files or backends.
"""

from hrt.tangent_kernel.kernel_drift import Drift, Spectrum, drift
from hrt.tangent_kernel.ntk import affordable_drift, compare_ntk, ntk

__all__ = ["Drift", "Spectrum", "affordable_drift", "compare_ntk", "drift", "ntk"]
