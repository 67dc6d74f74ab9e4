"""Folders that inference servers load, and what runs inside those servers.

Knows ONNX graphs; knows nothing of benchmarks.
"""
