"""A `.hrt` file made ready to predict."""

from os import PathLike
from typing import Any

from hrt.certificate.certificate import Certificate
from hrt.model.artifact import DTYPES, _bad, _opened, _read, _unpack, _verified
from hrt.model.model import CompressedModel
from hrt.program.check_program import check_program
from hrt.program.program import Program
from hrt.support.devices import on_the_cpu


def load(
    path: str | PathLike[str],
    *,
    backend: str = "auto",
    device: Any = None,
    max_batch: int | None = None,
    strict: bool = False,
) -> CompressedModel:
    """Read a `.hrt` file and make it ready to predict.

    backend: "torch", "onnxruntime" (CPU), "cuda" (an NVIDIA GPU), or "auto": the GPU where `device` names one, or where
    the network was compressed for "cuda" and a GPU is there; else ONNX Runtime, where it is installed and the
    certificate says that the bound holds in it; else torch.  device: where that backend runs ("cuda:1").
    max_batch: larger batches are split.  strict: refuse tensors that are on another device, instead of moving them.

    torch's default device plays no part. Raises ArtifactError for a file that is missing, truncated, altered, oversized
    or newer than this version (checked before anything is allocated), BackendError for a backend that cannot run here,
    and as they are MemoryError and ImportError, which are not the file's fault.
    """
    with _opened(path) as file, on_the_cpu():
        header, table = _verified(path, file)
        try:
            tensors = {name: _read(file, DTYPES[dtype], shape) for name, dtype, shape in table}
            constants = {name: _unpack(name, spec, tensors) for name, spec in header["constants"].items()}
            program = Program.from_header(header["program"], constants)
            check_program(program)
            certificate = Certificate.from_header(header["certificate"])
            target, dense_nbytes = str(header["target"]), int(header["dense_nbytes"])
        except (MemoryError, ImportError, OSError):
            raise
        except Exception as error:  # whatever else the content leads to, the content is at fault
            if isinstance(error, RuntimeError) and "allocate memory" in str(error):  # torch has no type for it
                raise MemoryError(f"{path} needs more memory than there is: {error}") from error
            raise _bad(path, f"its content is malformed ({type(error).__name__}: {error})") from error
    model = CompressedModel(program, certificate, target, backend, device, max_batch, dense_nbytes, strict)
    model.session = model.open()
    return model
