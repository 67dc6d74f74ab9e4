"""Many matrices under one bound on the output: allocation, search and verification.

Knows nothing of the command line and of training.
"""

from hrt.network_compression.compress import compress
from hrt.network_compression.request import CompressionRequest

__all__ = ["CompressionRequest", "compress"]
