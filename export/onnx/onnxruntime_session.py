"""The CPU backend of ONNX Runtime: the exported graph in a session, fed in parts that fit a cache.

A network has up to two graphs: one for a few rows, where the number of nodes counts, and one for many, where arithmetic
does (`hrt.runtime.onnx_costs`). Many rows are computed in parts, whose intermediate values stay in a core's cache
(4096-wide layer, 256 rows: 1.3 ms in parts of 64, 2 to 6 ms at once).
"""

import math
import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hrt.errors import BackendError
from hrt.export.onnx.check import open_runtime
from hrt.export.onnx.exporter import graph_of
from hrt.program.program import Program
from hrt.runtime.backends import Request
from hrt.runtime.onnx_costs import FEW_ROWS, MANY_ROWS, choose_forms, program_us
from hrt.runtime.session import Session
from hrt.support.parallel import one_blas_thread

SMALL = 16  # rows up to which the graph for a few is used
ALONE_US = 60.0  # a graph for a few rows that takes less runs on one thread: others cost it more than they give, and
# a runtime's threads spin for tens of milliseconds after every call, on cores that the caller may want
PART_BYTES = 1 << 21  # of activations that a part should hold at most: about a core's cache
PART_ROWS = 64  # no part is smaller: weights are read once for each
FLOAT32 = np.dtype(np.float32)
FIXED_BYTES = 1 << 16  # of inputs and outputs: up to here copying costs less than binding new memory
FIXED_SHAPES = 64  # batch sizes for which memory is kept

_sessions: "weakref.WeakSet[OnnxSession]" = weakref.WeakSet()


class OnnxSession(Session):
    """A network in ONNX Runtime, float32 arithmetic on as many threads as torch uses when it is made. Thread-safe.

    resident_bytes: the graphs' constants, decoded to float32. Raises BackendError where ONNX Runtime is not installed
    or cannot run the graph, and for any device but the CPU.
    """

    backend = "onnxruntime"

    def __init__(self, program: Program, device: Any = None):
        if device is not None and torch.device(device).type != "cpu":
            raise BackendError(f"Backend 'onnxruntime' runs on the CPU. Found device {str(device)!r}.")
        self.device = torch.device("cpu")
        self.program = program
        self._threads = torch.get_num_threads()
        self._lock = threading.Lock()
        self._waiting: dict[Any, list[_Bound]] = {}  # by the shape of the input, or by all inputs' shapes
        self._pair: tuple[_Graph, _Graph] | None = self._open()
        _sessions.add(self)

    def _open(self) -> "tuple[_Graph, _Graph]":
        """The graphs for a few rows and for many; may be one and the same."""
        with one_blas_thread():  # in a forked process the threads that BLAS had are gone, and it would wait for them
            few, many = (forms_for(self.program, rows) for rows in (SMALL, SMALL + 1))
            large = _Graph(self.program, many, self._threads)
            alone = self._threads > 1 and program_us(self.program, few, FEW_ROWS[-1]) < ALONE_US
            # The same graph twice, for the sake of threads alone, must not take more memory than the dense network.
            shared = few == many and (not alone or 2 * large.nbytes > dense_nbytes(self.program))
            small = large if shared else _Graph(self.program, few, 1 if alone else self._threads)
        self.resident_bytes = small.nbytes + (0 if shared else large.nbytes)
        return small, large

    @property
    def waiting_nbytes(self) -> int:
        """Bytes of the memory that is kept for batches of known sizes."""
        waiting = [bound for memories in self._waiting.values() for bound in memories]
        return sum(array.nbytes for bound in waiting for array in (*bound.inputs, *bound.outputs))

    def run(self, inputs: Sequence[Any]) -> tuple[Any, ...]:
        """See `Session.run`."""
        arrays = [x.cpu().contiguous().numpy() if isinstance(x, Tensor) else x for x in inputs]
        outputs = self._graph(len(arrays[0])).run(arrays, len(arrays[0]))
        return tuple(map(torch.from_numpy, outputs)) if isinstance(inputs[0], Tensor) else outputs

    def run_as_given(self, x: Any) -> Any:
        """The answer to float32 arrays through memory that was bound before, unchecked: checks may take longer than the
        arithmetic, and torch's threads, once awake, keep those of the runtime from their cores.
        """
        if type(x) is np.ndarray and x.dtype is FLOAT32:
            waiting = self._waiting.get(x.shape)
        elif type(x) is tuple and x and all([type(v) is np.ndarray and v.dtype is FLOAT32 for v in x]):
            waiting = self._waiting.get(tuple([v.shape for v in x]))
        else:
            return None
        if waiting is None:
            return self._first((x,) if isinstance(x, np.ndarray) else x)
        try:
            bound = waiting.pop()  # one per thread that is inside at a time
        except IndexError:
            rows = len(x[0] if type(x) is tuple else x)
            bound = _Bound(self._graph(rows), rows)
        answer = bound.run(x)
        waiting.append(bound)
        return answer

    def _first(self, inputs: tuple[np.ndarray, ...]) -> Any:
        """The answer for new shapes, and memory for the next time if that pays; None where they do not fit."""
        shapes = tuple([v.shape for v in inputs])
        rows = shapes[0][0] if shapes[0] else 0
        graph = self._graph(rows)
        fits = graph.bound and rows > 0 and shapes == tuple((rows, *shape) for shape in graph.in_shapes)
        if not fits or not all(v.flags.c_contiguous for v in inputs):
            return None
        if rows <= graph.largest:
            if len(self._waiting) >= FIXED_SHAPES:  # the one that came first goes; a size that stays comes back
                self._waiting.pop(next(iter(self._waiting)), None)
            self._waiting.setdefault(shapes[0] if len(shapes) == 1 else shapes, [])
        outputs = graph.run(inputs, rows)
        return outputs[0] if len(outputs) == 1 else outputs

    def _graph(self, rows: int) -> "_Graph":
        few, many = self._pair or self._again()
        return few if rows <= SMALL else many

    def _again(self) -> "tuple[_Graph, _Graph]":
        """The graphs of a forked process, where the threads of those that it inherits are missing."""
        with self._lock:
            pair = self._pair or self._open()
            self._pair = pair  # both at once: other threads look at any time
            return pair


def forms_for(program: Program, rows: int) -> dict[str, str]:
    """The form in which a session runs every weight of a linear layer on so many rows."""
    return choose_forms(program, FEW_ROWS if rows <= SMALL else MANY_ROWS, never_slower=True)


class _Graph:
    """One graph in a runtime session."""

    def __init__(self, program: Program, forms: Mapping[str, str], threads: int):
        proto = graph_of(program, narrow=False, forms=forms)
        self.nbytes = sum(len(t.raw_data) for t in proto.graph.initializer)
        try:
            self.session = open_runtime(proto, threads)
        except BackendError:
            raise
        except Exception as error:
            raise BackendError(f"ONNX Runtime cannot run this network: {error}. Use backend='torch'.") from error
        self.inputs = [v.name for v in proto.graph.input]
        self.outputs = [v.name for v in proto.graph.output]
        shapes = {v.name: tuple(v.shape) for v in (*program.inputs, *program.nodes)}
        self.in_shapes = [tuple(v.shape) for v in program.inputs]
        self.out_shapes = [shapes.get(name, ()) for name in program.outputs]
        # Memory can be bound to values of every row, with at least one number.
        self.bound = all(n in shapes for n in program.outputs) and all(
            math.prod(s) for s in (*self.in_shapes, *self.out_shapes)
        )
        self.part = max(PART_ROWS, PART_BYTES // (4 * max(1, _width(program))))
        held = sum(math.prod(s) for s in (*self.in_shapes, *self.out_shapes))
        self.largest = min(self.part, FIXED_BYTES // (4 * max(1, held))) if self.bound else 0

    def run(self, inputs: Sequence[np.ndarray], rows: int) -> tuple[np.ndarray, ...]:
        """Inputs in C order."""
        if rows == 0:  # not asked: what a runtime makes of no rows ranges from other shapes to a crash
            return tuple(np.empty((0, *shape), dtype=np.float32) for shape in self.out_shapes)
        size = part_rows(rows, self.part)
        if not self.bound or size == rows:
            # Into memory that the runtime has already: a new array's pages, and binding it, cost 12 us in 150.
            return tuple(self.session.run(None, dict(zip(self.inputs, inputs, strict=True))))
        outputs = tuple(np.empty((rows, *shape), dtype=np.float32) for shape in self.out_shapes)
        for start in range(0, rows, size):
            rest = slice(start, min(rows, start + size))
            self.session.run_with_iobinding(self.binding([x[rest] for x in inputs], [y[rest] for y in outputs]))
        return outputs

    def binding(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> Any:
        """What reads and writes these arrays, all in C order."""
        binding = self.session.io_binding()
        for name, x in zip(self.inputs, inputs, strict=True):
            binding.bind_input(name, "cpu", 0, np.float32, x.shape, x.ctypes.data)
        for name, y in zip(self.outputs, outputs, strict=True):
            binding.bind_output(name, "cpu", 0, np.float32, y.shape, y.ctypes.data)
        return binding


class _Bound:
    """Memory for so many rows of inputs and outputs, bound once."""

    def __init__(self, graph: _Graph, rows: int):
        self.session = graph.session
        self.inputs = [np.zeros((rows, *shape), dtype=np.float32) for shape in graph.in_shapes]
        self.outputs = [np.zeros((rows, *shape), dtype=np.float32) for shape in graph.out_shapes]
        self.input = self.inputs[0] if len(self.inputs) == 1 else None
        self.output = self.outputs[0] if len(self.outputs) == 1 else None
        self.binding = graph.binding(self.inputs, self.outputs)

    def run(self, x: Any) -> Any:
        """The answer to an array, or a tuple of them, of these shapes."""
        if self.input is not None and type(x) is not tuple:
            self.input[...] = x
        else:
            for memory, v in zip(self.inputs, x, strict=True):
                memory[...] = v
        self.session.run_with_iobinding(self.binding)
        return self.output.copy() if self.output is not None else tuple([y.copy() for y in self.outputs])


def part_rows(rows: int, wanted: int) -> int:
    """Rows of a part, alike but for the last, about `wanted`: a small rest would cost nearly as much as a whole one."""
    return -(-rows // max(1, round(rows / wanted)))


def _width(program: Program) -> int:
    """Numbers that one row takes at the widest node: its inputs and its result."""
    sizes = {v.name: math.prod(v.shape) for v in (*program.inputs, *program.nodes)}
    return max((sizes[v.name] + sum(sizes.get(name, 0) for name in v.inputs) for v in program.nodes), default=1)


def dense_nbytes(program: Program) -> int:
    """Bytes of all constants of a program as float32, weights written out."""
    return sum(4 * math.prod(c.shape) for c in program.constants.values())


def _forget() -> None:
    """In a forked child the runtime's threads do not exist; its sessions cannot be used or even freed there."""
    for session in list(_sessions):
        _leaked.append((session._pair, session._waiting))
        session._pair, session._waiting = None, {}
        session._lock = threading.Lock()


_leaked: list[Any] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def open_onnxruntime(request: Request) -> OnnxSession:
    """The backend "onnxruntime"."""
    return OnnxSession(request.program, request.device)
