"""Exported graphs in runtimes that are not ONNX Runtime: OpenVINO, the browser.

Knows nothing of servers.
"""
