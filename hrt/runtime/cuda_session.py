"""The GPU backend: a schedule in Triton launches, replayed as one CUDA graph per batch bucket.

Batches are rounded up to a power of two, the bucket, which has a static workspace and a captured graph. A request
copies its rows in, replays the graph on the caller's stream and copies the answer out. Kernels are compiled when the
session is opened, graphs are captured when a bucket is first used. Triton's interpreter runs the same without graphs.
"""

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from hrt.errors import BackendError, InputError
from hrt.kernels.tuning import LARGEST_BUCKET, bucket_of
from hrt.program.program import Program
from hrt.runtime.backends import Request
from hrt.runtime.capturing import is_capturing
from hrt.runtime.cuda_graphs import Bucket
from hrt.runtime.cuda_program import CudaProgram, out_of_memory
from hrt.runtime.kernel_derivatives import NotCarriedError
from hrt.runtime.session import Session, as_tensors, of_kind

MEMORY_SHARE = 4  # a workspace may take this fraction of the free memory


class CudaSession(Session):
    """A network on one GPU. Thread-safe: requests of one bucket follow each other, in the order of the calls.

    largest: the largest bucket; bigger batches are computed in parts. warm: compile everything now. resident_bytes:
    without workspaces. Raises what `CudaProgram` does, and BackendError for a largest below 1, or in a graph's capture.
    """

    backend = "cuda"

    def __init__(
        self,
        program: Program,
        device: Any = None,
        precision: str = "tf32x3",
        *,
        largest: int | None = None,
        warm: bool = True,
        densify: bool = True,
        derivatives: Sequence[str] = (),
    ):
        if largest is not None and largest < 1:
            raise BackendError(f"Found largest = {largest}. Expected at least one row.")
        if is_capturing():
            raise BackendError(
                "Found a CUDA graph being captured while a network is put on the device. Expected that before: call "
                "predict once, then capture."
            )
        self.program: CudaProgram = CudaProgram(program, device, precision, densify=densify, derivatives=derivatives)
        self.device, self.resident_bytes = self.program.device, self.program.resident_bytes
        limit = LARGEST_BUCKET if largest is None else 1 << (largest.bit_length() - 1)
        point_bytes = self.program.point_rows * self.program.pitch * self.program.dtype.itemsize
        self.largest: int = min(limit, room_for(self.device, point_bytes))
        self._buckets: dict[int, Bucket] = {}
        self._lock = threading.Lock()
        self._is_warm: bool = warm
        if self.program.graphs and warm:
            try:
                with plain_mode(self.device):
                    self.program.warm_up(self.largest)
            except torch.cuda.OutOfMemoryError as error:
                raise BackendError(out_of_memory(self.device, error)) from error

    @property
    def workspace_bytes(self) -> int:
        """Bytes of the workspaces of all buckets used so far."""
        return sum(b.workspace.nbytes for b in self._buckets.values())

    def run(self, inputs: Sequence[Any]) -> tuple[Any, ...]:
        """See `Session.run`. Any floating type, on the CPU or the device. Raises BackendError where memory runs out."""
        tensors = as_tensors(inputs)
        batch = tensors[0].shape[0]
        try:
            with plain_mode(self.device):
                if batch <= self.largest:
                    return of_kind(self._part(tensors, batch), inputs[0])
                parts = [x.split(self.largest) for x in tensors]
                answers = [self._part(rows, rows[0].shape[0]) for rows in zip(*parts, strict=True)]
                return of_kind([torch.cat(ys) for ys in zip(*answers, strict=True)], inputs[0])
        except torch.cuda.OutOfMemoryError as error:
            raise BackendError(out_of_memory(self.device, error)) from error

    def _part(self, inputs: Sequence[Tensor], batch: int) -> tuple[Tensor, ...]:
        if not batch:
            spans = self.program.schedule.outputs * len(self.program.carried.answers)
            return tuple(torch.empty(0, *s.shape, dtype=torch.float32, device=inputs[0].device) for s in spans)
        if is_capturing():
            return self._in_the_callers_graph(inputs, batch)
        return self._bucket(bucket_of(batch)).run(inputs, batch)

    def _in_the_callers_graph(self, inputs: Sequence[Tensor], batch: int) -> tuple[Tensor, ...]:
        """Launches alone, on a workspace that becomes the graph's."""
        for k, x in enumerate(inputs):
            if x.device.type == "cpu":
                raise InputError(
                    f"Found input {k} on the CPU while a CUDA graph is captured. Expected a tensor on {self.device}: "
                    "copy into one that lives as long as the graph, outside of it."
                )
        used = self._buckets.get(bucket_of(batch))
        if not (self._is_warm or used):
            raise BackendError(
                f"Found a CUDA graph being captured before a batch of {batch} rows was ever run. Expected what it "
                "launches to be compiled. Call predict once with a batch of that size before the capture."
            )
        kernel = used.kernel if used else None
        return Bucket(self.program, bucket_of(batch), kernel=kernel, capture=False).run(inputs, batch)

    def _bucket(self, size: int) -> Bucket:
        with self._lock:
            if size not in self._buckets:
                self._buckets[size] = Bucket(self.program, size)
            return self._buckets[size]


def plain_mode(device: torch.device) -> ExitStack:
    """Whatever the caller's modes: no gradients, no inference mode (its tensors cannot be refilled), no autocast."""
    stack = ExitStack()
    stack.enter_context(torch.inference_mode(False))
    stack.enter_context(torch.no_grad())
    if torch.is_autocast_enabled(device.type):
        stack.enter_context(torch.autocast(device.type, enabled=False))
    return stack


def room_for(device: torch.device, row_bytes: int) -> int:
    """The largest bucket whose workspace takes a fair share of the free memory."""
    if device.type != "cuda":
        return LARGEST_BUCKET
    free, _ = torch.cuda.mem_get_info(device)
    rows = max(1, free // MEMORY_SHARE // row_bytes)
    return 1 << (rows.bit_length() - 1)


def open_cuda(request: Request) -> CudaSession:
    """The backend "cuda". The kernels carry derivatives themselves where they can."""
    if request.differentiated is not None:
        origin, names = request.differentiated.origin, request.differentiated.derivatives
        try:
            return CudaSession(origin, request.device, request.precision, derivatives=names)
        except NotCarriedError:
            pass
    return CudaSession(request.program, request.device, request.precision)
