"""A `.hrt` file made ready to predict."""

from os import PathLike
from typing import Any

import torch

from hrt.model.artifact import read
from hrt.model.model import CompressedModel, prepare
from hrt.support.torch_state import guarded


@guarded
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
        backend: "torch", "onnxruntime" (CPU), "native" (CPU: C that is generated, and compiled here), "cuda" (an NVIDIA
            GPU), or "auto": the GPU where `device` names one or the network was compressed for it. Else, of those that
            are certified to keep the bound, "native" up to as many rows as it is predicted to be faster for, if
            it compiles within 3 seconds (`hrt compile` does so ahead; HRT_NATIVE=off switches it off), and ONNX
            Runtime; else torch.
        device: Where the backend runs, such as "cuda:1".
        max_batch: Larger batches are split into parts of so many rows.
        strict: Refuse tensors on another device instead of moving them.

    Returns:
        The model, its session opened; that of certified derivatives, too.

    Raises:
        ArtifactError: The file is missing, truncated, altered, oversized or newer than this version.
        BackendError: The backend cannot run here.

    Example:
        >>> import tempfile, torch, hrt
        >>> model = hrt.compress(torch.nn.Linear(3, 2), tol=1e-2, progress=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save(f"{folder}/net.hrt")
        ...     hrt.load(f"{folder}/net.hrt", backend="torch").predict(torch.zeros(5, 3)).shape
        torch.Size([5, 2])
    """
    options: dict[str, Any] = {"backend": backend, "device": device, "max_batch": max_batch, "strict": strict}
    model = CompressedModel(**vars(read(path)), **options)
    _ = model.session  # opened now: a backend that cannot run here is an error of loading
    return prepare(model)
