"""One matrix under one error bound: cluster trees, orderings, the planner, factors and rounding.

Knows nothing of networks, calibration inputs or files.
"""

from hrt.matrix_compression.compress_matrix import compress_for, compress_matrix
from hrt.matrix_compression.hlinear import HLinear
from hrt.matrix_compression.paper_algorithm import adaptive_partition
from hrt.matrix_compression.request import MatrixRequest

__all__ = ["HLinear", "MatrixRequest", "adaptive_partition", "compress_for", "compress_matrix"]
