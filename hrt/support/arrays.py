"""The one door for arrays: whatever a caller holds numbers in, as a dense array or tensor of real numbers.

Nothing is copied that need not be. A refusal says what came, what was expected and what to do about it.
"""

import math
import warnings
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hrt.errors import InputError, reason
from hrt.support.types import Array

LARGEST_WHOLE = 1 << 24  # of whole numbers; beyond it float32 leaves some out
Whole = TypeVar("Whole", bound=Array)
NUMBERS = (int, float, np.number)


def as_parts(x: Any) -> tuple[Any, ...]:
    """What is given for each input of a network: arrays in a tuple or list are several inputs, numbers in lists one."""
    if isinstance(x, list) and len(x) > 1 and _are_rows(x):
        return ((torch.stack if isinstance(x[0], Tensor) else np.stack)(x),)
    several = isinstance(x, (tuple, list)) and not is_numbers(x)
    return tuple(x) if several else (x,)


def _are_rows(x: list[Any]) -> bool:
    """Whether a list is rows, one array each: as inputs there would be more of them than each has numbers."""
    kind = Tensor if isinstance(x[0], Tensor) else np.ndarray
    alike = all(isinstance(v, kind) and v.ndim == 1 and v.shape == x[0].shape for v in x)
    return alike and 0 < x[0].shape[0] < len(x)


def is_numbers(x: Any) -> bool:
    """Whether `x` is one array, written as numbers in lists: [1.0, 2.0] or [[1.0, 2.0], [3.0, 4.0]]."""
    if not isinstance(x, (tuple, list)) or not x:
        return False
    return isinstance(x[0], NUMBERS) or (isinstance(x, list) and isinstance(x[0], (tuple, list)))


def as_array(x: Any, what: str, *, masks: bool = False) -> Array:
    """A tensor, or an array of any byte order, strides and width, of floats or integers. Raises InputError.

    masks: take truth values, too. A masked array that hides entries is refused: they have no value.
    """
    if type(x) is np.ndarray and x.dtype.kind in "fiu":
        return x if x.dtype.kind == "f" else checked_whole(x, what)
    if isinstance(x, Tensor):
        return _checked_tensor(x, what, masks)
    if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x):
        row = np.argwhere(np.ma.getmaskarray(x))[0].tolist()
        raise InputError(
            f"Found a masked {what}, entry {row} and {np.ma.count_masked(x) - 1:,} more hidden: they have no value. "
            "Expected numbers: fill them with .filled(0) say, or leave their rows out."
        )
    if isinstance(x, (Dataset, DataLoader)):
        raise InputError(
            f"Found a {type(x).__name__} as {what}. Expected arrays: call once for every batch, or torch.cat them."
        )
    if hasattr(x, "toarray"):
        raise InputError(f"Found a sparse {what} ({type(x).__name__}). Expected a dense one: call .toarray() first.")
    try:
        array = np.asarray(_plain(x))
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"Found a {what} that is no array: {reason(error)}. Expected a tensor or array of numbers."
        ) from error
    if array.dtype.kind == "b" and masks:
        return array
    if array.dtype.kind not in "fiu":
        raise InputError(
            f"Found a {what} of {array.dtype} ({type(x).__name__}). Expected a tensor or array of real numbers, "
            "floating-point or whole; convert it first."
        )
    return array if array.dtype.kind == "f" else checked_whole(array, what)


def as_tensor(x: Any, what: str, *, masks: bool = False) -> Tensor:
    """`as_array` as a detached tensor, on its device. What torch does not know is copied: foreign byte orders and
    negative strides as they are, extended precision as float64. Raises InputError.
    """
    array = as_array(x, what, masks=masks)
    if isinstance(array, Tensor):
        return array
    kind, width = array.dtype.kind, array.dtype.itemsize
    if (kind == "f" and width > 8) or (kind == "u" and width == 8):
        array = array.astype(np.float64)
    elif kind == "u" and width > 1:
        array = array.astype(np.int64)
    array = array.astype(array.dtype.newbyteorder("="), copy=any(stride < 0 for stride in array.strides))
    with warnings.catch_warnings():  # read-only arrays, memory maps say, are fine: nothing is written
        warnings.filterwarnings("ignore", message=".*not writable")
        return torch.as_tensor(array, device="cpu")


def _checked_tensor(x: Tensor, what: str, masks: bool) -> Tensor:
    if type(x) is not Tensor and not x.is_nested:
        x = x.as_subclass(Tensor)  # labels and the like stay outside
    if x.layout is torch.strided and x.is_floating_point() and not (x.is_meta or x.is_nested):
        return x.detach().resolve_neg()
    if x.is_meta:
        raise InputError(f"Found a {what} on the meta device, which holds no numbers. Expected one with numbers.")
    if x.layout != torch.strided or x.is_quantized or x.is_nested:
        kind = "quantized" if x.is_quantized else "nested" if x.is_nested else str(x.layout)
        raise InputError(
            f"Found a {kind} {what}, a sparse or packed tensor. Expected a dense one of floating-point or whole "
            "numbers: call .to_dense() or .dequantize() first."
        )
    if x.dtype == torch.bool and masks:
        return x.detach()
    if x.is_complex() or x.dtype == torch.bool:
        raise InputError(f"Found a {what} of {x.dtype}. Expected real numbers, floating-point or whole; convert it.")
    return checked_whole(x.detach(), what)


def checked_whole(x: Whole, what: str) -> Whole:
    """Whole numbers, if float32, in which networks are served, holds all of them. Raises InputError."""
    largest = max((abs(int(f())) for f in (x.max, x.min)), default=0) if math.prod(x.shape) else 0
    if largest > LARGEST_WHOLE:
        raise InputError(
            f"Found a whole {what} of size {largest:,}. Expected at most {LARGEST_WHOLE:,}: networks are served in "
            "float32, which leaves out larger ones. Subtract an offset (of time stamps, say), or pass floats."
        )
    return x


def _plain(x: Any) -> Any:
    """A data frame or column of pandas as its numbers, NaN where one is missing; anything else as it is."""
    if isinstance(x, (np.ndarray, list, tuple)) or not hasattr(x, "to_numpy"):
        return x
    array = x.to_numpy()
    if array.dtype.kind in "fiu":
        return array
    if array.dtype == object and all(_is_number_or_missing(v) for v in array.flat):
        return x.to_numpy(dtype=np.float64, na_value=np.nan)
    columns = [str(name) for name in getattr(x, "columns", ())]
    raise InputError(
        f"Found a {type(x).__name__} that is not of numbers alone (columns {', '.join(columns) or 'unnamed'}). "
        "Expected numeric columns: select or convert them first."
    )


def _is_number_or_missing(v: Any) -> bool:
    return (isinstance(v, NUMBERS) and not isinstance(v, bool)) or type(v).__name__ in ("NAType", "NoneType")
