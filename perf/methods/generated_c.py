"""Generated C as one more way to run a network, whatever compressed it: what the runtime saves and what compression
saves then stand apart.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hrt.calibration.output_error import OutputError
from hrt.errors import BackendError
from hrt.hmatrix.hmatrix import HMatrix
from hrt.hmatrix.leaf import Leaf
from hrt.matrix_compression.rounding import round_rows
from hrt.perf.measuring.results import MISSING, UNREACHABLE
from hrt.perf.methods.matched_error import (
    Arrays,
    Execution,
    Offer,
    Refusal,
    Tensors,
    fewest_kept,
    search_error,
    work_of,
)
from hrt.perf.networks.registry import Workload
from hrt.program.dense_view import stored
from hrt.program.program import Program, program_nbytes
from hrt.runtime.backends import BACKENDS, on_cpu, open_session

BACKEND = "generated C"


def in_c(program: Program) -> Execution:
    """The program as it is stored, compiled. Raises BackendError."""
    session = open_session(stored(program), "native")

    def bind(x: Arrays) -> Callable[[], Any]:
        given = x if len(x) > 1 else next(iter(x))
        if session.run_as_given(given) is None:
            return lambda: session.run(x)
        return partial(session.run_as_given, given)

    return Execution(BACKEND, bind)


def ways_in_c(program: Program) -> tuple[Execution, ...]:
    """`in_c`, or nothing where there is no compiler or the network cannot be written in C."""
    try:
        return (in_c(program),) if "native" in on_cpu() else ()
    except BackendError:
        return ()


def int8_rows(workload: Workload, tol: float) -> Offer | Refusal:
    """Every weight in int8 with a scale for each row, decoded as it is read, float32 arithmetic. The knob is which
    layers stay float32, as in `hrt.perf.methods.quantizers`.
    """
    if lacks := BACKENDS["native"].missing():
        return Refusal(MISSING, lacks)
    names = list(workload.program.weights)
    known: dict[frozenset[str], OutputError] = workload.once("int8 rows, errors", dict)

    def error(exact: frozenset[str]) -> OutputError:
        if exact not in known:
            session = open_session(stored(_rounded(workload.program, exact)), "torch")
            known[exact] = search_error(workload, partial(_answers, session))
        return known[exact]

    exact = fewest_kept(names, error, tol)
    if exact is None:
        return Refusal(UNREACHABLE, "not even with all layers but one in float32")
    program = _rounded(workload.program, exact)
    note = f"{len(exact)} of {len(names)} layers kept in float32" if exact else "all layers quantized"
    return Offer(program_nbytes(stored(program)), (in_c(program),), note, work_of(workload.program))


def _answers(session: Any, x: Tensors) -> Any:
    return session.run(x)


def _rounded(program: Program, exact: frozenset[str]) -> Program:
    """The program with its weights in int8, but for `exact`."""
    weights = {k: program.constants[k] for k in program.weights if k not in exact}
    return program.with_constants({k: _int8(w) for k, w in weights.items() if isinstance(w, Tensor)})


def _int8(weight: Tensor) -> HMatrix:
    rounded, (m, n) = round_rows(weight.to(torch.float64), "int8", None), weight.shape
    return HMatrix((m, n), (Leaf(0, m, 0, n, dense=rounded.numbers, scale=rounded.scale),))
