"""Which GPU is there, and what it lacks, asked without importing Triton; where tensors are made."""

import os
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from hrt.errors import BackendError

OLDEST_TRITON = (3, 6)
OLDEST_CAPABILITY = (8, 0)  # tf32 and bfloat16 tensor cores, asynchronous copies


def missing_for_cuda() -> str | None:
    """What the CUDA backend lacks on this machine, in words that say what to do; None where it can run."""
    if torch.version.hip is not None:
        return "found torch for ROCm. Expected a CUDA build of torch and an NVIDIA GPU."
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "TRITON_INTERPRET=1 is set: kernels would be interpreted on the CPU. Unset it."
    if not torch.cuda.is_available():
        fault = "torch sees no usable CUDA device" if torch.version.cuda else "this torch was built without CUDA"
        return f"{fault}. Expected an NVIDIA GPU, its driver and a CUDA build of torch."
    return missing_triton()


def missing_triton() -> str | None:
    """Why Triton cannot be used; None where it can."""
    try:
        installed = version("triton")
    except PackageNotFoundError:
        return "Triton is not installed. Install it with torch's CUDA build (`pip install triton`)."
    number = tuple(int(part) for part in installed.split(".")[:2] if part.isdigit())
    if number < OLDEST_TRITON:
        return f"found Triton {installed}. Expected {'.'.join(map(str, OLDEST_TRITON))} or newer."
    return None


def cuda_device(device: Any) -> torch.device:
    """The CUDA device meant, with its number. Raises BackendError where it is not there or too old."""
    try:
        chosen = torch.device("cuda" if device is None else device)
        if chosen.type != "cuda":
            raise BackendError(f"Found device {str(device)!r}. Backend 'cuda' runs on CUDA devices; use 'torch'.")
        if chosen.index is None:
            chosen = torch.device("cuda", torch.cuda.current_device())
        capability = torch.cuda.get_device_capability(chosen)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise BackendError(f"Device {str(device)!r} cannot be used: {reason}. Use backend='torch'.") from error
    if capability < OLDEST_CAPABILITY:
        raise BackendError(
            f"{torch.cuda.get_device_name(chosen)} has compute capability {capability[0]}.{capability[1]}. "
            "Expected 8.0 (Ampere) or newer. Use backend='torch'."
        )
    return chosen


def on_the_cpu() -> AbstractContextManager[Any]:
    """Inside, tensors that are made without a device are the CPU's, whatever torch's default device is."""
    try:
        plain = torch.empty(0).device.type == "cpu"
    except (RuntimeError, AssertionError):  # a default device that is not there
        plain = False
    return nullcontext() if plain else torch.device("cpu")


def architecture(device: torch.device) -> str:
    """The architecture that configurations are kept for, such as sm_80; sm_90 where kernels are interpreted."""
    major, minor = torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)
    return f"sm_{major}{minor}"
