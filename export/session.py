"""The CPU backend of ONNX Runtime: the exported graph in a session."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hrt.errors import BackendError
from hrt.export.check import open_runtime
from hrt.export.onnx import graph_of
from hrt.program import Program


class OnnxSession:
    """A network in ONNX Runtime, float32 arithmetic on as many threads as torch uses. Thread-safe.

    resident_bytes: the graph's constants; ONNX Runtime decodes narrow types to float32 when it loads them. Raises
    BackendError where ONNX Runtime is not installed or cannot run the graph, and for any device but the CPU.
    """

    def __init__(self, program: Program, device: Any = None):
        if device is not None and torch.device(device).type != "cpu":
            raise BackendError(f"Backend 'onnxruntime' runs on the CPU. Found device {str(device)!r}.")
        self.device = torch.device("cpu")
        proto = graph_of(program)
        self.names = [v.name for v in proto.graph.input]
        self.resident_bytes = sum(len(t.raw_data) for t in proto.graph.initializer)
        try:
            self.session = open_runtime(proto, torch.get_num_threads())
        except BackendError:
            raise
        except Exception as error:
            raise BackendError(f"ONNX Runtime cannot run this network: {error}. Use backend='torch'.") from error

    def run(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """float32 inputs (batch, *shape) to float32 outputs."""
        feed = {n: x.detach().cpu().numpy() for n, x in zip(self.names, inputs, strict=True)}
        return tuple(torch.from_numpy(y) for y in self.session.run(None, feed))
