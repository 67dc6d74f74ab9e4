"""Networks in: torch modules, exported programs and ONNX files become a Program.

Knows nothing of compression; what cannot be said in the op table is a CaptureError.
"""
