"""hrt: deploy the networks that scientists train, small and fast, with an error bound that holds.

model = hrt.compress(net, inputs=x_cal, tol=1e-3)
model.save("net.hrt")
y = hrt.load("net.hrt").predict(x)
"""

from typing import Any

from hrt.artifact import load
from hrt.calibration import Box
from hrt.callbacks import deepxde_callback, lightning_callback
from hrt.certificate import Certificate, LayerRecord
from hrt.compress import compress
from hrt.drift import Drift, Spectrum
from hrt.dynamic import DynamicCompression
from hrt.errors import (
    ArtifactError,
    BackendError,
    CaptureError,
    DerivativeError,
    HrtError,
    InputError,
    ToleranceError,
    TrainingError,
)
from hrt.finetune import finetune
from hrt.hmatrix import HMatrix, Leaf
from hrt.matrix import compress_matrix
from hrt.model import CompressedModel
from hrt.ntk import compare_ntk, ntk
from hrt.partition import adaptive_partition
from hrt.rank_penalty import proximal_step, rank_penalty, second_moments
from hrt.residual import residual
from hrt.trainable import TrainableNetwork, to_trainable
from hrt.training import HLinear

__version__ = "0.1.0"

__all__ = [
    "ArtifactError",
    "BackendError",
    "Box",
    "CaptureError",
    "Certificate",
    "CompressedModel",
    "DerivativeError",
    "Drift",
    "DynamicCompression",
    "HLinear",
    "HMatrix",
    "HrtError",
    "InputError",
    "LayerRecord",
    "Leaf",
    "Spectrum",
    "ToleranceError",
    "TrainableNetwork",
    "TrainingError",
    "adaptive_partition",
    "compare_ntk",
    "compress",
    "compress_matrix",
    "deepxde_callback",
    "finetune",
    "lightning_callback",
    "load",
    "ntk",
    "proximal_step",
    "rank_penalty",
    "residual",
    "second_moments",
    "to_trainable",
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
