"""One batch bucket of the GPU backend: its static workspace, its CUDA graph, and how a request gets in and out."""

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hrt.schedule.run_reference import read

if TYPE_CHECKING:
    from hrt.runtime.cuda_session import CudaSession

CAPTURING = threading.Lock()  # one graph at a time in a process
INTERPRETER = threading.Lock()  # Triton's interpreter patches modules while it runs: one kernel at a time


class Bucket:
    """Static workspace and graph of one bucket of a session: requests of up to `size` points, one after the other."""

    def __init__(self, session: "CudaSession", size: int, capture: bool = True):
        self.session, self.size = session, size
        self.workspace = session.new_workspace(size)
        self.lock = threading.Lock() if session.graphs else INTERPRETER
        self.graph: Any = None
        self.kernel = "network" if session.one_launch(size) else "step"
        self.done: Any = None
        self.staging: list[Tensor] = []
        if session.graphs and capture:
            self._capture()

    def _capture(self) -> None:
        """Capture the launches; where the network may run in one launch, that too, and keep the faster graph."""
        session = self.session
        with CAPTURING, session.guard():
            found = []
            for kernel in session.kernels:
                side = torch.cuda.Stream()
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):  # once outside the graph: lists are made and libraries initialised
                    session.execute(self.workspace, self.size, kernel)
                torch.cuda.current_stream().wait_stream(side)
                torch.cuda.synchronize()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                    session.execute(self.workspace, self.size, kernel)
                found.append((_replay_seconds(graph) if len(session.kernels) > 1 else 0.0, kernel, graph))
            _, self.kernel, self.graph = min(found, key=lambda f: f[0])
            self.done = torch.cuda.Event()

    def run(self, inputs: Sequence[Tensor], batch: int) -> tuple[Tensor, ...]:
        """Fill, replay (or launch, where there is no graph), answer: on the caller's stream."""
        with self.lock, self.session.guard():
            if self.graph is None:
                self._fill(inputs, batch)
                self.session.execute(self.workspace, self.size, self.kernel)
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
        if self.session.reseeds:
            self.session.seed(self.workspace)
        rows = self.session.carried.rows(self.workspace, batch)
        for port in self.session.plan.entries:
            x = inputs[port.number]
            if port.index is None:
                read(rows, port.span).copy_(x, non_blocking=True)
            else:
                target = rows[:, port.span.start : port.span.start + port.span.size]
                flat = x.reshape(batch, -1).to(target.device, non_blocking=True)
                target.copy_(flat.index_select(1, port.index))

    def _answers(self, batch: int) -> tuple[Tensor, ...]:
        carried, found = self.session.carried, []
        for stream in carried.answers:
            rows = carried.rows(self.workspace, batch, stream)
            for port in self.session.plan.exits:
                if port.index is None:
                    y = read(rows, port.span)
                else:
                    y = rows.index_select(1, port.index).reshape(batch, *port.span.shape)
                found.append(y.to(torch.float32, copy=True, memory_format=torch.contiguous_format))
        return tuple(found)

    def _pinned(self, inputs: Sequence[Tensor], batch: int) -> list[Tensor]:
        """CPU inputs in page-locked memory, from where they are copied without a wait; others as they are."""
        if all(x.device.type != "cpu" for x in inputs):
            return list(inputs)
        if not self.staging:
            spans = self.session.schedule.inputs
            try:
                self.staging = [torch.empty(self.size, *s.shape, dtype=torch.float32, pin_memory=True) for s in spans]
            except RuntimeError:  # no more page-locked memory: ordinary memory is copied too, with a wait
                return list(inputs)
        self.done.synchronize()  # the copies before have left the page-locked rows
        pairs = zip(self.staging, inputs, strict=True)
        return [own[:batch].copy_(x) if x.device.type == "cpu" else x for own, x in pairs]


def _replay_seconds(graph: Any, repeats: int = 20) -> float:
    """Seconds of one replay: the median of a few, each timed on the device."""
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e-3)
    return sorted(times)[repeats // 2]
