"""An exported graph in OpenVINO on the CPU, in float32 as the certificate takes for granted.

OpenVINO's CPU plugin computes in bfloat16 on chips that have it, unless told otherwise: on such a chip the Burgers
PINN, compressed to 1e-3, comes out 1e-2 off. Told so it may still quantize what enters int8 weights (measured on one
dense layer of 1024 inputs, with AVX-512 VNNI: 5e-3 off). Both are switched off here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx

from hrt.errors import BackendError, HrtError
from hrt.export.onnx.check import Batch, compare
from hrt.model.model import CompressedModel

SETTINGS = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}  # what keeps the bound
EXPECTED = "f32"  # how OpenVINO names what it then says it computes in


def check_openvino(proto: onnx.ModelProto, model: CompressedModel, inputs: Any = None) -> dict[str, float]:
    """The largest relative L2 difference of every output from `predict` (see `compare`), in OpenVINO in float32."""
    session = open_openvino(proto)
    return compare("OpenVINO", lambda batches: [session.run(x) for x in batches], proto, model, inputs)


def open_openvino(proto: onnx.ModelProto, threads: int | None = None) -> "OpenvinoSession":
    """A graph (without external data) on OpenVINO's CPU plugin, on as many threads as it chooses, or on `threads`.

    Raises BackendError where OpenVINO is not installed or computes in anything but float32, HrtError where it refuses
    the graph.
    """
    try:
        import openvino
    except ImportError as error:
        raise BackendError("OpenVINO is not installed. Install it: pip install openvino.") from error
    try:
        core = openvino.Core()
        graph = core.read_model(proto.SerializeToString(), b"")
        settings = SETTINGS if threads is None else {**SETTINGS, "INFERENCE_NUM_THREADS": str(threads)}
        compiled = core.compile_model(graph, "CPU", dict(settings))
        hint = str(compiled.get_property("INFERENCE_PRECISION_HINT").to_string())
    except Exception as error:
        raise HrtError(f"OpenVINO refuses the exported graph: {error}") from error
    if hint != EXPECTED:
        raise BackendError(
            f"OpenVINO computes in {hint} though INFERENCE_PRECISION_HINT=f32 is set. Expected {EXPECTED}: the "
            "certificate speaks of float32 arithmetic. Use another version of OpenVINO, or ONNX Runtime."
        )
    return OpenvinoSession(compiled, tuple(v.name for v in proto.graph.input))


@dataclass(frozen=True)
class OpenvinoSession:
    """A compiled graph. names: of the graph's inputs, also those that nothing reads."""

    compiled: Any
    names: tuple[str, ...]

    def bound(self, inputs: Batch) -> Callable[[], list[np.ndarray]]:
        """A call that answers `inputs` as they then are, through memory that is bound once: the least that it costs."""
        from openvino import Tensor

        request = self.compiled.create_infer_request()
        pairs = [(given, np.array(given)) for given in inputs]
        for name, (_, memory) in zip(self.names, pairs, strict=True):
            if name in self._read:
                request.set_tensor(name, Tensor(memory, shared_memory=True))
        request.infer()
        answers = [request.get_output_tensor(k).data for k in range(len(self.compiled.outputs))]

        def call() -> list[np.ndarray]:
            for given, memory in pairs:
                memory[...] = given
            request.infer()
            return [y.copy() for y in answers]

        return call

    @cached_property
    def _read(self) -> set[str]:
        return {name for port in self.compiled.inputs for name in port.get_names()}

    def run(self, inputs: Batch) -> Sequence[np.ndarray]:
        """float32 inputs (batch, *shape), in the graph's order, to all outputs. Raises HrtError where it cannot run."""
        feed = {name: x for name, x in zip(self.names, inputs, strict=True) if name in self._read}
        try:
            outputs = self.compiled(feed)
        except Exception as error:
            raise HrtError(f"OpenVINO cannot run the exported graph: {error}") from error
        return [np.array(outputs[k]) for k in range(len(self.compiled.outputs))]  # copies: its memory is used again
