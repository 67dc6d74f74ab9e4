"""The Triton backend that `hrt triton-backend` installs: serves `1/model.hrt`, or `1/model.onnx` by ONNX Runtime.

It is copied into a server's backend folder as `model.py` (a Triton "Python-based backend") and needs hrt for `.hrt`
files alone. It stands in for NVIDIA's C++ ONNX Runtime backend where a server lacks that.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Run = Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]


def run_together(run: Run, requests: Sequence[Sequence[np.ndarray]]) -> list[list[np.ndarray]]:
    """The answers to several requests, computed as one batch. Every request: one array (rows, *shape) per input."""
    if len(requests) == 1:
        return [list(run(requests[0]))]
    ends = np.cumsum([len(arrays[0]) for arrays in requests])[:-1]
    outputs = run([np.concatenate(arrays) for arrays in zip(*requests, strict=True)])
    return [list(parts) for parts in zip(*(np.split(y, ends) for y in outputs), strict=True)]


def open_artifact(path: Path, threads: int, **options: Any) -> Run:
    """A .hrt file, ready to run: float32 arrays (rows, *shape) in and out. options: of `hrt.load`."""
    import torch

    import hrt

    torch.set_num_threads(threads)
    model = hrt.load(path, **options)

    def run(arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        outputs = model.predict(tuple(arrays))
        return outputs if isinstance(outputs, tuple) else (outputs,)

    return run


def open_model(folder: Path, threads: int, device: str | None = None) -> Run:
    """What the version folder holds, ready to run. device: "cuda:0", or None for the CPU."""
    if (folder / "model.hrt").is_file():
        return open_artifact(folder / "model.hrt", threads, device=device)
    if not (folder / "model.onnx").is_file():
        raise FileNotFoundError(f"{folder} holds neither model.hrt nor model.onnx.")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # TensorFloat-32 would round float32 products to 10 bits, which no certificate has allowed for.
    gpu = [("CUDAExecutionProvider", {"device_id": (device or "cuda:0").split(":")[1], "use_tf32": 0})]
    providers = [*(gpu if device else []), "CPUExecutionProvider"]
    session: Any = onnxruntime.InferenceSession(os.fspath(folder / "model.onnx"), options, providers=providers)
    names = [v.name for v in session.get_inputs()]
    return lambda arrays: session.run(None, dict(zip(names, arrays, strict=True)))


class TritonPythonModel:
    """What Triton's Python backend makes one of for every instance, each in a process of its own."""

    def initialize(self, args: dict[str, Any]) -> None:
        """Load the model. args: Triton's description of the instance, `model_config` as JSON text."""
        config = json.loads(args["model_config"])
        self.inputs: list[Any] = [v["name"] for v in config["input"]]
        self.outputs: list[Any] = [v["name"] for v in config["output"]]
        instances = sum(int(group.get("count", 1)) for group in config.get("instance_group", [])) or 1
        on_gpu = args.get("model_instance_kind") == "GPU"
        device = f"cuda:{args['model_instance_device_id']}" if on_gpu else None
        folder = Path(args["model_repository"]) / str(args["model_version"])
        self.run = open_model(folder, max(1, (os.cpu_count() or 1) // instances), device)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer the requests that Triton's dynamic batcher handed over together, as one batch."""
        import triton_python_backend_utils as triton  # type: ignore[import-not-found]  # inside the server only

        try:
            inputs = [[triton.get_input_tensor_by_name(r, n).as_numpy() for n in self.inputs] for r in requests]
            answers = run_together(self.run, inputs)
        except Exception as error:  # a batch that fails must not end the server's process
            text = f"{type(error).__name__}: {error}"
            return [triton.InferenceResponse(error=triton.TritonError(text)) for _ in requests]
        responses = []
        for request, arrays in zip(requests, answers, strict=True):
            wanted = set(request.requested_output_names())
            pairs = [(n, y) for n, y in zip(self.outputs, arrays, strict=True) if n in wanted]
            tensors = [triton.Tensor(n, np.ascontiguousarray(y)) for n, y in pairs]
            responses.append(triton.InferenceResponse(output_tensors=tensors))
        return responses
