"""hrt: deploy the networks that scientists train, small and fast, with an error bound that holds.

model = hrt.compress(net, inputs=x_cal, tol=1e-3)
model.save("net.hrt")
y = hrt.load("net.hrt").predict(x)
"""

from typing import Any

from hrt.calibration.samples import Box
from hrt.certificate.certificate import Certificate, LayerRecord
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
from hrt.hmatrix.hmatrix import HMatrix, Leaf
from hrt.matrix_compression.compress_matrix import compress_matrix
from hrt.matrix_compression.hlinear import HLinear
from hrt.matrix_compression.paper_algorithm import adaptive_partition
from hrt.model.load import load
from hrt.model.model import CompressedModel
from hrt.model.residual import residual
from hrt.model.trainable import TrainableNetwork, to_trainable
from hrt.network_compression.compress import compress
from hrt.tangent_kernel.kernel_drift import Drift, Spectrum
from hrt.tangent_kernel.ntk import compare_ntk, ntk
from hrt.training.callbacks import deepxde_callback, lightning_callback
from hrt.training.dynamic import DynamicCompression
from hrt.training.finetune import finetune
from hrt.training.rank_penalty import proximal_step, rank_penalty, second_moments

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
        from hrt.export.onnx.exporter import export_onnx

        return export_onnx
    if name in ("export_repository", "install_triton_backend"):
        from hrt.export.servers import repository

        return getattr(repository, name)
    raise AttributeError(f"module 'hrt' has no attribute {name!r}")
