"""Calls that the op table has no row for, as ONNX models that a program carries along (`hrt.program.carried`).

Knows nothing of who asks for that.
"""

from hrt.capture.carrying.calls import carried

__all__ = ["carried"]
