"""What the entry points accept: every refusal says what was found, what was expected and what to do."""

import math
import warnings
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from hrt.blocks import STRIP
from hrt.errors import InputError, ToleranceError
from hrt.hmatrix import STORAGE

WORKING_COPIES = 2.5  # of the matrix (measured for 16384 x 16384: a float32 copy in order, spectra of all blocks)


def as_matrix(w: Any) -> Tensor:
    """`w` as a finite (m, n) tensor on the CPU: float32 where it is, else float64. Not copied if it need not be.
    Raises InputError.
    """
    if isinstance(w, Tensor):
        if w.device.type == "meta":
            raise InputError("The matrix is on the meta device and holds no numbers. Load the weights first.")
        w = w.detach().cpu()
    else:
        w = np.asarray(w)
        with warnings.catch_warnings():  # read-only arrays, memory maps say, are fine: nothing is written
            warnings.filterwarnings("ignore", message=".*not writable")
            w = torch.as_tensor(w if w.dtype != np.longdouble else w.astype(np.float64))
    if w.ndim != 2 or w.is_complex() or w.dtype == torch.bool:
        raise InputError(f"Expected a real matrix (m, n). Found {w.dtype} of shape {tuple(w.shape)}.")
    check_memory(w.shape[0], w.shape[1], w.dtype)
    w = w if w.dtype == torch.float32 else w.to(torch.float64)
    bad = sum(int((~torch.isfinite(part)).sum()) for part in w.split(STRIP))
    if bad:
        raise InputError(f"Found {bad} NaN or infinite entries in a {tuple(w.shape)} matrix. Expected finite weights.")
    return w


def largest_entry(matrix: Tensor) -> float:
    """The largest magnitude of a matrix, 0 of an empty one, without a copy."""
    return max(abs(float(v)) for v in torch.aminmax(matrix)) if matrix.numel() else 0.0


def check_memory(m: int, n: int, dtype: torch.dtype) -> None:
    """Raise InputError where compressing an (m, n) matrix of `dtype` cannot fit into memory."""
    item = 4 if dtype == torch.float32 else 8
    needed = int((WORKING_COPIES + (dtype not in (torch.float32, torch.float64))) * m * n * item)
    free = psutil.virtual_memory().available
    if needed > free:
        raise InputError(
            f"Compressing a {m} x {n} matrix takes about {needed / 2**30:,.1f} GiB beside the matrix itself; "
            f"{free / 2**30:,.1f} GiB are free. Nothing was allocated. Use a machine with more memory, or cut the "
            "matrix into panels of rows and compress them one by one."
        )


def as_second_moment(c: Any, n: int) -> Tensor | None:
    """A symmetric positive semidefinite (n, n) float64 second moment, or None. Raises InputError."""
    if c is None:
        return None
    c = as_matrix(c).to(torch.float64)
    if tuple(c.shape) != (n, n):
        raise InputError(f"Expected a second moment of shape {(n, n)}. Found {tuple(c.shape)}.")
    scale = float(c.abs().max()) if n else 0.0
    if scale and float((c - c.T).abs().max()) > 1e-8 * scale:
        raise InputError("The second moment is not symmetric. Expected C = E[x x^T].")
    c = (c + c.T) / 2
    if scale:
        lowest = float(torch.linalg.eigvalsh(c)[0])
        if lowest < -1e-8 * scale * n:
            raise InputError(f"The second moment has an eigenvalue {lowest:.3g}. Expected positive semidefinite.")
    return c


def check_tol(tol: Any) -> float:
    """A usable tolerance. Raises ToleranceError for anything not a positive finite number."""
    try:
        value = float(tol)
    except (TypeError, ValueError):
        value = math.nan
    if not (value > 0 and math.isfinite(value)):
        raise ToleranceError(f"Found tol = {tol!r}. Expected a positive number such as 1e-3 (a relative error).")
    return value


def storages_of(storage: str) -> tuple[str, ...]:
    """The storage types that a `storage` argument allows. Raises InputError."""
    if storage == "auto":
        return ("float32", "float16", "bfloat16", "int8")  # most exact first
    if storage not in STORAGE:
        raise InputError(f"Found storage {storage!r}. Expected one of auto, {', '.join(STORAGE)}.")
    return (storage,)
