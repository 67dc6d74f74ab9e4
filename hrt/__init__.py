"""hrt: deploy the networks that scientists train, small and fast, with an error bound that holds.

model = hrt.compress(net, inputs=x_cal, tol=1e-3)
model.save("net.hrt")
y = hrt.load("net.hrt").predict(x)
"""

from typing import Any

from hrt.artifact import load
from hrt.calibration import Box
from hrt.certificate import Certificate, LayerRecord
from hrt.compress import compress
from hrt.errors import (
    ArtifactError,
    BackendError,
    CaptureError,
    DerivativeError,
    HrtError,
    InputError,
    ToleranceError,
)
from hrt.hmatrix import HMatrix, Leaf
from hrt.matrix import compress_matrix
from hrt.model import CompressedModel
from hrt.partition import adaptive_partition

__version__ = "0.1.0"

__all__ = [
    "ArtifactError",
    "BackendError",
    "Box",
    "CaptureError",
    "Certificate",
    "CompressedModel",
    "DerivativeError",
    "HMatrix",
    "HrtError",
    "InputError",
    "LayerRecord",
    "Leaf",
    "ToleranceError",
    "adaptive_partition",
    "compress",
    "compress_matrix",
    "load",
]


def __getattr__(name: str) -> Any:
    """What exports, on first use: onnx is not imported by those who do not export."""
    if name == "export_onnx":
        from hrt.export.onnx import export_onnx

        return export_onnx
    if name in ("export_repository", "install_triton_backend"):
        from hrt.export import repository

        return getattr(repository, name)
    raise AttributeError(f"module 'hrt' has no attribute {name!r}")
