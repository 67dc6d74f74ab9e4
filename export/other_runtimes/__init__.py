"""Exported graphs in runtimes that are not ONNX Runtime: OpenVINO, the browser.

Knows nothing of servers.
"""

from hrt.export.other_runtimes.openvino import check_openvino, open_openvino

__all__ = ["check_openvino", "open_openvino"]
