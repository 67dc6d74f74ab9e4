"""A compressed network as a plain ONNX graph, checked, and the CPU session that runs it.

Knows nothing of servers.
"""

from hrt.export.onnx.check import check_onnx, open_runtime, relative
from hrt.export.onnx.exporter import export_onnx, graph_of, to_onnx

__all__ = ["check_onnx", "export_onnx", "graph_of", "open_runtime", "relative", "to_onnx"]
