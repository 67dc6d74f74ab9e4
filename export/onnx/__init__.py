"""A compressed network as a plain ONNX graph, checked, and the CPU session that runs it.

Knows nothing of servers.
"""
