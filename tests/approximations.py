"""Functions that a GPU only approximates, on Triton's interpreter, each off by as much as its documentation allows.

`ex2.approx.f32`: 2 ulp from the correctly rounded 2^y, where y = x log2(e) is rounded first, as Triton does.
`div.full.f32`: 2 ulp. `sqrt.approx.ftz.f32`: 2^-23 relative, subnormal numbers count as 0 (PTX ISA 9.1, floating point
instructions). libdevice, as in the CUDA C++ Programming Guide, "Mathematical Functions": logf 1 ulp, erff, sinf and
cosf 2 ulp. By which of the possible errors each number is off is drawn.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
from scipy.special import erf
from triton.runtime import interpreter

LOG2_E = np.float32(1.4426950408889634)
ULPS = {"fdiv": 2, "sqrt": 1, "log": 1, "erf": 2, "sin": 2, "cos": 2}
EXACT: dict[str, Callable] = {
    "fdiv": np.divide,
    "sqrt": np.sqrt,
    "log": np.log,
    "erf": erf,
    "sin": np.sin,
    "cos": np.cos,
}
TINY = np.finfo(np.float32).tiny


@contextmanager
def approximated(seed: int) -> Iterator[None]:
    """The functions of kernels are approximations."""
    rng = np.random.default_rng(seed)

    def off(exact: np.ndarray, ulps: int) -> np.ndarray:
        """Correctly rounded, then moved by up to so many ulps; special numbers stay."""
        right = exact.astype(np.float32)
        moved = right.view(np.int32) + rng.integers(-ulps, ulps + 1, right.shape).astype(np.int32)
        usual = np.isfinite(right) & (np.abs(right) > 4 * TINY)
        return np.where(usual, moved.view(np.float32), right)

    def function(name: str) -> Callable:
        def approximate(self: Any, *arguments: Any) -> Any:
            values = [a.data for a in arguments]
            if name == "sqrt":
                values = [np.where(np.abs(v) < TINY, 0 * v, v) for v in values]
            with np.errstate(all="ignore"):
                exact = EXACT[name](*(v.astype(np.float64) for v in values))
            return interpreter.TensorHandle(off(exact, ULPS[name]), arguments[0].dtype.scalar)

        return approximate

    def exp(self: Any, argument: Any) -> Any:
        with np.errstate(all="ignore"):
            power = (argument.data * LOG2_E).astype(np.float32)
            return interpreter.TensorHandle(off(np.exp2(power.astype(np.float64)), 2), argument.dtype.scalar)

    with ExitStack() as stack:
        for name, change in {"exp": exp, **{name: function(name) for name in ULPS}}.items():
            stack.enter_context(patch.object(interpreter.InterpreterBuilder, f"create_{name}", change))
        yield
