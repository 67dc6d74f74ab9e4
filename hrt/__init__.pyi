"""The public names of hrt: for type checkers, and for `__init__.py`, which imports each on first use."""

from .calibration.samples import Box as Box
from .certificate.certificate import Certificate as Certificate
from .certificate.certificate import LayerRecord as LayerRecord
from .errors import ArtifactError as ArtifactError
from .errors import BackendError as BackendError
from .errors import CaptureError as CaptureError
from .errors import DerivativeError as DerivativeError
from .errors import ExportError as ExportError
from .errors import HrtError as HrtError
from .errors import InputError as InputError
from .errors import ToleranceError as ToleranceError
from .errors import TrainingError as TrainingError
from .export.c.exporter import export_c as export_c  # pyright: ignore[reportMissingImports] # a checkout keeps it beside hrt/
from .export.onnx.exporter import export_onnx as export_onnx  # pyright: ignore[reportMissingImports] # a checkout keeps it beside hrt/
from .export.servers.repository import export_repository as export_repository  # pyright: ignore[reportMissingImports] # a checkout keeps it beside hrt/
from .export.servers.repository import install_triton_backend as install_triton_backend  # pyright: ignore[reportMissingImports] # a checkout keeps it beside hrt/
from .hmatrix.hmatrix import HMatrix as HMatrix
from .hmatrix.hmatrix import Leaf as Leaf
from .matrix_compression.compress_matrix import compress_matrix as compress_matrix
from .matrix_compression.hlinear import HLinear as HLinear
from .matrix_compression.paper_algorithm import adaptive_partition as adaptive_partition
from .model.load import load as load
from .model.model import CompressedModel as CompressedModel
from .model.residual import residual as residual
from .model.trainable import TrainableNetwork as TrainableNetwork
from .model.trainable import to_trainable as to_trainable
from .network_compression.compress import compress as compress
from .tangent_kernel.kernel_drift import Drift as Drift
from .tangent_kernel.kernel_drift import Spectrum as Spectrum
from .tangent_kernel.ntk import compare_ntk as compare_ntk
from .tangent_kernel.ntk import ntk as ntk
from .training.callbacks import deepxde_callback as deepxde_callback
from .training.callbacks import lightning_callback as lightning_callback
from .training.dynamic import DynamicCompression as DynamicCompression
from .training.finetune import finetune as finetune
from .training.rank_penalty import proximal_step as proximal_step
from .training.rank_penalty import rank_penalty as rank_penalty
from .training.rank_penalty import second_moments as second_moments

__version__: str
