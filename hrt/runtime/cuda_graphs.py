"""One batch bucket of the GPU backend: its static workspace, its CUDA graph, and how a request gets in and out."""

import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hrt.runtime.capturing import CAPTURING, capture, device_seconds
from hrt.runtime.cuda_program import CudaProgram
from hrt.schedule.run_reference import read

INTERPRETER = threading.Lock()  # Triton's interpreter patches modules while it runs: one kernel at a time


class Bucket:
    """Static workspace and graph of one bucket of a program: requests of up to `size` points, one after the other.

    kernel: one of `program.kernels`; None: the faster one, timed where there is a card. capture: replay a graph.
    """

    program: CudaProgram
    size: int
    kernel: str

    def __init__(self, program: CudaProgram, size: int, *, kernel: str | None = None, capture: bool = True):
        self.program, self.size = program, size
        self.workspace: Tensor = program.new_workspace(size)
        self.lock = threading.Lock() if program.graphs else INTERPRETER
        self.kernel = kernel or ("network" if program.one_launch(size) else "step")
        self.graph: Any = None
        self.done: Any = None
        self.staging: list[Tensor] = []
        if program.graphs and capture:
            with CAPTURING, program.guard():
                self.kernel, self.graph = self._fastest([kernel] if kernel else program.worth_timing(size))
                self.done = torch.cuda.Event()

    def _fastest(self, kernels: Sequence[str]) -> tuple[str, Any]:
        """The kernel whose graph is replayed fastest, and that graph."""
        graphs = {}
        for kernel in kernels:
            try:
                graphs[kernel] = capture(partial(self.program.execute, self.workspace, self.size, kernel))
            except Exception as error:
                if len(kernels) == 1 or kernel != "network":
                    raise
                self.program.do_without(self.size, error)
        seconds = {k: device_seconds(g.replay) if len(graphs) > 1 else 0.0 for k, g in graphs.items()}
        return min(graphs.items(), key=lambda entry: seconds[entry[0]])

    def run(self, inputs: Sequence[Tensor], batch: int) -> tuple[Tensor, ...]:
        """Fill, replay (or launch, where there is no graph), answer: on the caller's stream."""
        with self.lock, self.program.guard():
            if self.graph is None:
                self._fill(inputs, batch)
                self.program.execute(self.workspace, self.size, self.kernel)
                return self._answers(batch)
            stream = torch.cuda.current_stream()
            stream.wait_event(self.done)  # whoever used the workspace last, on whatever stream
            try:
                self._fill(self._pinned(inputs, batch), batch)
                self.graph.replay()
                answers = self._answers(batch)
                if all(x.device.type == "cpu" for x in inputs):
                    answers = tuple(y.cpu() for y in answers)  # waits
            finally:
                self.done.record(stream)
        return answers

    def _fill(self, inputs: Sequence[Tensor], batch: int) -> None:
        """Inputs into their columns, in the order in which they are read."""
        if self.program.reseeds:
            self.program.seed(self.workspace)
        rows = self.program.carried.rows(self.workspace, batch)
        for port in self.program.plan.entries:
            x = inputs[port.number]
            if port.index is None:
                read(rows, port.span).copy_(x, non_blocking=True)
            else:
                target = rows[:, port.span.start : port.span.start + port.span.size]
                flat = x.reshape(batch, -1).to(target.device, non_blocking=True)
                target.copy_(flat.index_select(1, port.index))

    def _answers(self, batch: int) -> tuple[Tensor, ...]:
        carried, answers = self.program.carried, []
        for stream in carried.answers:
            rows = carried.rows(self.workspace, batch, stream)
            for port in self.program.plan.exits:
                if port.index is None:
                    y = read(rows, port.span).to(torch.float32, copy=True, memory_format=torch.contiguous_format)
                else:  # new memory already
                    y = rows.index_select(1, port.index).to(torch.float32).reshape(batch, *port.span.shape)
                answers.append(y)
        return tuple(answers)

    def _pinned(self, inputs: Sequence[Tensor], batch: int) -> list[Tensor]:
        """CPU inputs in page-locked memory, from where they are copied without a wait; others as they are."""
        if all(x.device.type != "cpu" for x in inputs):
            return list(inputs)
        if not self.staging:
            spans = self.program.schedule.inputs
            try:
                self.staging = [torch.empty(self.size, *s.shape, dtype=torch.float32, pin_memory=True) for s in spans]
            except RuntimeError:  # no more page-locked memory: ordinary memory is copied too, with a wait
                return list(inputs)
        self.done.synchronize()  # the copies before have left the page-locked rows
        pairs = zip(self.staging, inputs, strict=True)
        return [pinned[:batch].copy_(x) if x.device.type == "cpu" else x for pinned, x in pairs]
