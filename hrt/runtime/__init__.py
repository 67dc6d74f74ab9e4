"""Sessions: a program made ready on torch, on a GPU, in ONNX Runtime, or as compiled C.

Knows nothing of models, files and certificates.
"""

from hrt.runtime.backends import BACKENDS, Backend, Request, choose, on_cpu, open_session
from hrt.runtime.session import Session
from hrt.runtime.torch_session import TorchSession

__all__ = ["BACKENDS", "Backend", "Request", "Session", "TorchSession", "choose", "on_cpu", "open_session"]
