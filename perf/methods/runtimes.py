"""Ways to run a network on the CPU: torch as it is, torch.compile, ONNX Runtime; each bound to inputs as a call."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from hrt.errors import BackendError, HrtError
from hrt.export.onnx.check import open_runtime
from hrt.export.other_runtimes.openvino import open_openvino
from hrt.perf.methods.matched_error import Arrays, Execution, Run, Tensors

BOUND = "onnxruntime, bound memory"
BOUND_BYTES = 1 << 16  # of inputs and outputs; up to here copying costs less than binding new memory, as hrt does it


def first_line(error: BaseException) -> str:
    """A foreign error's first line."""
    return (str(error).strip().splitlines() or ["no message"])[0][:300]


@contextmanager
def quiet() -> Iterator[None]:
    """Warnings and log lines of the libraries are not the harness's table."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def run_of(net: Callable[..., Any]) -> Run:
    """The module on a tuple of tensors."""

    def run(x: Tensors) -> Any:
        with torch.no_grad():
            return net(*x)

    return run


def in_torch(net: Callable[..., Any], dtype: torch.dtype = torch.float32, backend: str = "torch") -> Execution:
    """The module on tensors, in inference mode; inputs are cast before, outputs stay tensors of `dtype`."""
    return Execution(backend, lambda x: partial(run_of(net), tuple(torch.from_numpy(v).to(dtype) for v in x)))


def compiled(net: nn.Module, dtype: torch.dtype = torch.float32) -> Execution:
    """torch.compile, specialised on every batch size when it is first bound to it."""
    return in_torch(torch.compile(net, dynamic=False), dtype, "torch.compile")


def in_onnxruntime(
    proto: onnx.ModelProto, backend: str = "onnxruntime", bound: bool = True, threads: int | None = None
) -> Execution:
    """A session on as many threads as torch has, or on `threads`. bound: few rows go through memory that is bound once,
    copied into and out of: the fastest that gives new arrays back; otherwise `session.run`.
    """
    session = open_runtime(proto, threads or torch.get_num_threads())
    names, outputs = [v.name for v in session.get_inputs()], [v.name for v in session.get_outputs()]

    def bind(x: Arrays) -> Callable[[], Any]:
        feed = dict(zip(names, x, strict=True))
        first = session.run(None, feed)
        if not bound or sum(v.nbytes for v in (*x, *first)) > BOUND_BYTES:
            return lambda: session.run(None, feed)
        inputs, answers = [np.array(v) for v in x], [np.empty_like(y) for y in first]
        binding = session.io_binding()
        for name, v in zip(names, inputs, strict=True):
            binding.bind_input(name, "cpu", 0, v.dtype, v.shape, v.ctypes.data)
        for name, y in zip(outputs, answers, strict=True):
            binding.bind_output(name, "cpu", 0, y.dtype, y.shape, y.ctypes.data)

        def call() -> list[np.ndarray]:
            for v, given in zip(inputs, x, strict=True):
                v[...] = given
            session.run_with_iobinding(binding)
            return [y.copy() for y in answers]

        return call

    return Execution(backend, bind)


def ways_in_onnxruntime(proto: onnx.ModelProto) -> tuple[Execution, ...]:
    """Every way to run a graph there that may be the fastest; none where ONNX Runtime is not installed."""
    try:
        ways = (in_onnxruntime(proto, bound=False), in_onnxruntime(proto, BOUND))
        alone = (in_onnxruntime(proto, f"{BOUND}, one thread", threads=1),) if torch.get_num_threads() > 1 else ()
    except BackendError:
        return ()
    return ways + alone


def ways_in_openvino(proto: onnx.ModelProto) -> tuple[Execution, ...]:
    """The graph in OpenVINO in float32, through memory that is bound once; none where it is missing or refuses."""
    try:
        return (Execution("openvino", open_openvino(proto, torch.get_num_threads()).bound),)
    except HrtError:
        return ()


def session_run(proto: onnx.ModelProto) -> Run:
    """`session.run` on tensors, for searches."""
    session = open_runtime(proto, torch.get_num_threads())
    names = [v.name for v in session.get_inputs()]
    return lambda x: session.run(None, {n: v.numpy() for n, v in zip(names, x, strict=True)})
