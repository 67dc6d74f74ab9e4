"""What functions of ONNX's operators are given, and which places among their operands are sizes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor

from hrt.errors import CaptureError


class NodeError(CaptureError):
    """What a node asks for, and torch's function of that name has not."""


Function = Callable[[Sequence[Any], Mapping[str, Any]], Any]

# Where sizes, places and bounds stand among the operands.
SIZES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("Reshape", "Expand", "Tile", "Squeeze", "Unsqueeze", "TopK", "CumSum", "Split", "Trilu"), (1,)),
    **dict.fromkeys(("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2"), (1,)),
    **dict.fromkeys(("ReduceSumSquare", "ReduceLogSumExp", "ReduceLogSum", "CenterCropPad"), (1,)),
    "Slice": (1, 2, 3, 4),
    "Pad": (1, 2, 3),
    "Resize": (1, 2, 3),
    "DFT": (1, 2),
    "ConstantOfShape": (0,),
    "OneHot": (1, 2),
}
WHOLE = {getattr(TensorProto, f"{sign}INT{bits}") for sign in ("", "U") for bits in (8, 16, 32, 64)}
FLOATING = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16}


def tensor(x: Any) -> Tensor:
    """An operand as a tensor; numbers are float64 or int64."""
    return x if isinstance(x, Tensor) else torch.as_tensor(x, dtype=torch.float64 if isinstance(x, float) else None)


def ints(x: Any) -> list[Any]:
    """Sizes in a list; an entry may be a symbol."""
    return [n if isinstance(n, torch.SymInt) else int(n) for n in np.asarray(x, dtype=object).reshape(-1)]


def given(x: Sequence[Any], position: int) -> Any:
    """An operand that may be left out."""
    return x[position] if len(x) > position else None


def listed(x: Sequence[Any], t: Mapping[str, Any], key: str, position: int = 1) -> list[int] | None:
    """Whole numbers that are an attribute in older opsets and an operand in newer ones."""
    value = t.get(key, given(x, position))
    return None if value is None else ints(value)
