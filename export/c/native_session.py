"""The CPU backend "native": the network as generated C, compiled for this machine, called without copies.

`run` goes through ctypes. `run_as_given` is a builtin function that the library itself brings (`session.c`): ctypes
takes 0.4 us for a call of four arguments and asking NumPy for an address another microsecond, more than a small network
needs. Where the interpreter is not the usual one, `run` answers everything.
"""

import ctypes
import os
import sys
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hrt.errors import BackendError, ExportError
from hrt.export.c import python_call
from hrt.export.c.library_cache import library
from hrt.export.c.session_source import NAME, session_source
from hrt.export.c.toolchain import LONGEST, compiler, missing_compiler
from hrt.program.program import Program
from hrt.runtime.backends import Request
from hrt.runtime.session import Session

ALIGNMENT = 64  # bytes, of workspaces
FEW_ROWS = 16  # up to here other Python threads wait for a call

_sessions: "weakref.WeakSet[NativeSession]" = weakref.WeakSet()


class NativeSession(Session):
    """A network in generated C, float32 arithmetic on as many threads as torch uses when it is made; they sleep between
    calls. Thread-safe.

    most: rows that `run_as_given` answers. resident_bytes: its tables, which hold the numbers as they are stored.
    Raises BackendError for any device but the CPU, and where the network cannot be generated, compiled or loaded.
    """

    backend = "native"

    def __init__(self, program: Program, device: Any = None, timeout: float = LONGEST, most: int = sys.maxsize):
        if device is not None and torch.device(device).type != "cpu":
            raise BackendError(f"Backend 'native' runs on the CPU. Found device {str(device)!r}.")
        self.device = torch.device("cpu")
        maker = None if missing_compiler() else compiler()
        try:
            source = session_source(program)
        except ExportError as error:
            raise BackendError(f"{error} Or use backend='torch'.") from error
        code = library(source.files, maker, timeout)
        self.resident_bytes = source.nbytes
        self._out_shapes = [tuple(program.shape_of(name)) for name in program.outputs]
        self._call_type = _call_type(len(program.inputs), len(program.outputs))
        self._function = _function(code, "hrt_run", ctypes.c_int, 3)
        self._renew = _function(code, "hrt_renew", None, 1)
        sizes = (_function(code, name, ctypes.c_size_t, 0)() for name in ("hrt_session_bytes", f"{NAME}_workspace"))
        size, self._workspace = (-(-nbytes // ALIGNMENT) * ALIGNMENT for nbytes in sizes)
        self._waiting: list[np.ndarray] = []  # workspaces of calls that find another one inside
        threads = torch.get_num_threads()
        self._state = aligned(size + threads * self._workspace)  # and the workspaces of the threads
        start = self._state.ctypes.data
        numbers = (FEW_ROWS, most, start + size, self._workspace, threads)
        _function(code, "hrt_open", None, 7)(start, python_call.table(), *numbers)
        # Threads end before their memory is freed, which the builtin function may need for longer.
        weakref.finalize(self, _close, _function(code, "hrt_close", None, 1), self._state)
        if python_call.is_usual():
            self.run_as_given = python_call.builtin(code.hrt_call, self._state)
        _sessions.add(self)

    def run(self, inputs: Sequence[Any]) -> tuple[Any, ...]:
        """See `Session.run`."""
        arrays = [x.cpu().contiguous().numpy() if isinstance(x, Tensor) else x for x in inputs]
        arrays = [x if x.flags.aligned else x.copy() for x in arrays]
        rows = len(arrays[0])
        outputs = tuple([np.empty((rows, *shape), np.float32) for shape in self._out_shapes])
        call = self._call_type(*(x.ctypes.data for x in arrays), *(y.ctypes.data for y in outputs), rows)
        try:
            workspace = self._waiting.pop()
        except IndexError:
            workspace = aligned(self._workspace)
        status = self._function(self._state.ctypes.data, ctypes.byref(call), workspace.ctypes.data)
        self._waiting.append(workspace)
        if status:
            raise BackendError(f"The compiled network failed with status {status}. Use backend='torch'.")
        return tuple(map(torch.from_numpy, outputs)) if isinstance(inputs[0], Tensor) else outputs

    def renew(self) -> None:
        """After a fork: the threads are gone."""
        self._renew(self._state.ctypes.data)


def aligned(nbytes: int) -> np.ndarray:
    """Memory that begins at a multiple of ALIGNMENT."""
    memory = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + nbytes]


def _call_type(inputs: int, outputs: int) -> Any:
    """`call` in session.c."""
    names = [*(f"x{k}" for k in range(inputs)), *(f"y{k}" for k in range(outputs))]
    fields = [*((name, ctypes.c_void_p) for name in names), ("rows", ctypes.c_size_t)]
    return type("Call", (ctypes.Structure,), {"_fields_": fields})


def _function(code: ctypes.CDLL, name: str, result: Any, arguments: int) -> Any:
    """A function of pointers, or numbers as wide as those."""
    function = getattr(code, name)
    function.restype, function.argtypes = result, [ctypes.c_void_p] * arguments
    return function


def _close(close: Any, state: np.ndarray) -> None:
    close(state.ctypes.data)


def _renew_all() -> None:
    for session in list(_sessions):
        session.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)


def open_native(request: Request) -> NativeSession:
    """The backend "native"."""
    return NativeSession(request.program, request.device, request.patience, request.native_rows)
