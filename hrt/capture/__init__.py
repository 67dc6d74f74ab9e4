"""Networks in: torch modules, exported programs and ONNX files become a Program.

Knows nothing of compression; what cannot be said in the op table is a CaptureError.
"""

from hrt.capture.checkpoints import load_weights, read_network
from hrt.capture.network import Captured, Network, captured_network, rounding_places
from hrt.capture.torch_export import capture, guess_example
from hrt.capture.weights import check_weights

__all__ = [
    "Captured",
    "Network",
    "capture",
    "captured_network",
    "check_weights",
    "guess_example",
    "load_weights",
    "read_network",
    "rounding_places",
]
