"""A `.hrt` file made ready to predict."""

from os import PathLike

import torch

from hrt.model.artifact import read
from hrt.model.model import CompressedModel


def load(
    path: str | PathLike[str],
    *,
    backend: str = "auto",
    device: str | torch.device | None = None,
    max_batch: int | None = None,
    strict: bool = False,
) -> CompressedModel:
    """Read a `.hrt` file and make it ready to predict. torch's default device plays no part.

    Args:
        path: The file.
        backend: "torch", "onnxruntime" (CPU), "cuda" (an NVIDIA GPU), or "auto". "auto" takes the GPU where `device`
            names one, or where the network was compressed for "cuda" and a GPU is there. Else it takes ONNX Runtime,
            where that is installed and certified to keep the bound. Else it takes torch.
        device: Where the backend runs, such as "cuda:1".
        max_batch: Larger batches are split into parts of so many rows.
        strict: Refuse tensors on another device instead of moving them.

    Returns:
        The model, its session opened.

    Raises:
        ArtifactError: The file is missing, truncated, altered, oversized or newer than this version. This is checked
            before anything is allocated.
        BackendError: The backend cannot run here.
        MemoryError, ImportError: They pass as they are. The file is not at fault.

    Example:
        >>> import tempfile, torch, hrt
        >>> model = hrt.compress(torch.nn.Linear(3, 2), tol=1e-2, progress=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save(f"{folder}/net.hrt")
        ...     hrt.load(f"{folder}/net.hrt", backend="torch").predict(torch.zeros(5, 3)).shape
        torch.Size([5, 2])
    """
    c = read(path)
    model = CompressedModel(
        c.program,
        c.certificate,
        c.target,
        c.dense_nbytes,
        backend=backend,
        device=device,
        max_batch=max_batch,
        strict=strict,
    )
    _ = model.session  # opened now: a backend that cannot run here is an error of loading
    return model
