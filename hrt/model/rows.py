"""What `predict` is given, as rows of a network's inputs, and the answers in the form of what was given."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hrt.errors import InputError
from hrt.program.program import Kind, Program
from hrt.support.arrays import as_array
from hrt.support.structures import flattened
from hrt.support.types import Array

FLOAT32 = np.dtype(np.float32)
LOSES_GRADIENT = (
    "Input {} requires a gradient, and predict gives none. For derivatives of the outputs call predict(x, "
    "derivatives=['d0', ...]); to train on use hrt.to_trainable(model); for values alone pass x.detach(), or call "
    "under torch.no_grad()."
)


@dataclass(frozen=True)
class Rows:
    """arrays: (rows, *shape) for each input of a network. lead: the axes that stand in the place of the rows' in what
    was given, () for one sample, two for a grid. dtype: of the answers.
    """

    arrays: tuple[Array, ...]
    lead: tuple[int, ...]
    dtype: Any

    @staticmethod
    def of(program: Program, x: Any) -> "Rows":
        """Raises InputError for what does not fit, and for a tensor whose gradient would be lost."""
        parts = (x,) if isinstance(x, (np.ndarray, Tensor)) else in_order(program, x)
        kinds: list[Kind] = [v.kind for v in program.inputs]
        arrays = [_as_kind(v, kinds[k] if k < len(kinds) else "float") for k, v in enumerate(parts)]
        for k, v in enumerate(parts):
            if isinstance(v, Tensor):
                if v.requires_grad and torch.is_grad_enabled():
                    raise InputError(LOSES_GRADIENT.format(k))
                if v.dtype is torch.float64:
                    say_float32()
            elif isinstance(v, np.ndarray) and v.dtype.kind == "f" and v.dtype.itemsize >= 8:
                say_float32()
        if len(arrays) != len(program.inputs):
            _check_count(program, arrays)
        fitted = [_fitted(v, value.shape) for v, value in zip(arrays, program.inputs, strict=True)]
        rows, leads = [v for v, _ in fitted], [lead for _, lead in fitted]
        program.check_inputs(rows)
        if leads.count(leads[0]) < len(leads):
            raise InputError(f"Found inputs of {', '.join(map(str, leads))} samples. Expected the same of every input.")
        return Rows(tuple(rows), leads[0], _answered(parts[0], arrays[0]))

    def part(self, start: int, stop: int) -> list[Array]:
        """Rows from `start` up to `stop` as a session takes them."""
        whole = start == 0 and stop >= self.arrays[0].shape[0]
        return [_as_float32(v if whole else v[start:stop]) for v in self.arrays]

    def like_given(self, y: Array) -> Array:
        """Rows of an output, of the dtype, and for tensors on the device, of what was given."""
        first = self.arrays[0]
        if isinstance(first, Tensor):
            return torch.as_tensor(y).to(first.device, self.dtype)
        if self.dtype is FLOAT32:
            return np.asarray(y)
        with np.errstate(over="ignore"):
            return np.asarray(y).astype(self.dtype, copy=False)

    def joined(self, parts: Sequence[Any]) -> Array:
        """All rows of an output, in the form of what was given."""
        y = parts[0]
        if len(parts) > 1:
            y = torch.cat(list(parts)) if isinstance(y, Tensor) else np.concatenate(parts)
        return y if len(self.lead) == 1 else y.reshape(self.lead + tuple(y.shape[1:]))


def in_order(program: Program, x: Any) -> tuple[Any, ...]:
    """The arrays in `x`, those by name in the order of a program's inputs. Raises InputError for other names."""
    parts, structure = flattened(x)
    if not any(isinstance(key, str) for path in structure.paths for key in path):
        return parts
    given = dict(zip(structure.paths, parts, strict=True))
    expected = [v.path or (v.name,) for v in program.inputs]
    if given.keys() != set(expected):
        names = [["".join(f"[{key!r}]" for key in path) for path in paths] for paths in (given, expected)]
        raise InputError(
            f"Found inputs {', '.join(names[0])}. Expected {', '.join(names[1])}; or pass a tuple in this order."
        )
    return tuple(given[path] for path in expected)


def _as_kind(x: Any, kind: Kind) -> Array:
    """An input as an array. Raises InputError unless it holds what the network takes, whole numbers or truth values."""
    array: Any = as_array(x, "input", masks=kind == "bool")
    if kind == "float":
        return array
    other = array != (array.round() if kind == "int" else array != 0)
    if bool(other.any()):
        expected = "whole numbers, which it counts or looks up" if kind == "int" else "truth values, or 0 and 1"
        raise InputError(f"Found {array[other].reshape(-1)[0]} in an input of the network. Expected {expected}.")
    return array * 1.0 if array.dtype in (np.dtype(bool), torch.bool) else array


def _check_count(program: Program, arrays: Sequence[Array]) -> None:
    """Raise InputError; where the arrays are rows of the one input, it says so."""
    try:
        program.check_inputs(arrays)
    except InputError as error:
        rows = len(program.inputs) == 1 and all(tuple(v.shape) == program.inputs[0].shape for v in arrays)
        remedy = " Its rows, one array each, are one input as torch.stack(rows) or np.stack(rows)." if rows else ""
        raise InputError(f"{error}{remedy}") from None


def _answered(given: Any, array: Array) -> Any:
    """The dtype of answers: that of an array of floats, else float32."""
    if isinstance(array, Tensor):
        return array.dtype if array.is_floating_point() else torch.float32
    return array.dtype if array.dtype.kind == "f" and isinstance(given, np.ndarray) else FLOAT32


def _fitted(x: Array, shape: tuple[int, ...]) -> tuple[Array, tuple[int, ...]]:
    """`x` as (rows, *shape), and its axes before `shape`. One sample has none, numbers (rows,) are one feature each.
    What does not fit comes back as it is.
    """
    given = x.shape
    cut = len(given) - len(shape)
    if cut == 1:
        return x, given[:1]
    if cut == 0 and shape == (1,):
        return x.reshape(-1, 1), given
    if cut < 0 or given[cut:] != shape:
        return x, given[:1]
    return x.reshape(math.prod(given[:cut]), *shape), given[:cut]


def _as_float32(v: Array) -> Array:
    """Numbers as a session takes them."""
    if isinstance(v, Tensor):
        return v.to(torch.float32)
    if v.dtype is FLOAT32:
        return np.ascontiguousarray(v)
    with np.errstate(over="ignore"):  # beyond float32 the answer is infinite or NaN, as it is for tensors
        return np.ascontiguousarray(v, dtype=np.float32)


@cache
def say_float32() -> None:
    """Warn, once in a process, that float64 brings no more digits."""
    warnings.warn(
        "Found float64 inputs. hrt computes in float32 and answers in float64: expect about 7 digits. Pass float32 to "
        "save the conversion; this is said once.",
        stacklevel=5,
    )
