"""Sessions: a program made ready on torch, on a GPU, or in ONNX Runtime.

Knows nothing of models, files and certificates.
"""
