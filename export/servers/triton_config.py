"""`config.pbtxt`: what Triton is told of a model, in protobuf's text format."""

from collections.abc import Mapping
from typing import Any

from hrt.export.servers.open_inference import Signature, Tensor
from hrt.export.servers.settings import Settings

PREFERRED = (64, 256, 1024)  # rows
QUEUE_MICROSECONDS = 500  # how long a request waits for others to share its batch


class Word(str):
    """A bare word of the text format: the name of an enumeration's value, or a truth value."""


def triton_files(signature: Signature, settings: Settings, facts: Mapping[str, str]) -> dict[str, str]:
    """`config.pbtxt`. facts: strings for `parameters`, such as the certificate's tolerance."""
    gpu = settings.device == "gpu"
    config: dict[str, Any] = {"name": settings.name, "backend": settings.backend}
    if settings.backend == "onnxruntime":
        config["platform"] = "onnxruntime_onnx"
    config["max_batch_size"] = settings.max_batch
    config["input"] = [_tensor(t) for t in signature.inputs]
    config["output"] = [_tensor(t) for t in signature.outputs]
    config["dynamic_batching"] = {
        "preferred_batch_size": [size for size in PREFERRED if size <= settings.max_batch] or [settings.max_batch],
        "max_queue_delay_microseconds": QUEUE_MICROSECONDS,
    }
    config["instance_group"] = [{"count": settings.instances, "kind": Word("KIND_GPU" if gpu else "KIND_CPU")}]
    accelerators = _accelerators(settings)
    if accelerators:
        config["optimization"] = {"execution_accelerators": {"gpu_execution_accelerator": accelerators}}
    config["parameters"] = [{"key": key, "value": {"string_value": text}} for key, text in facts.items()]
    config["model_warmup"] = [_warmup(signature, rows) for rows in sorted({1, min(PREFERRED[0], settings.max_batch)})]
    return {"config.pbtxt": "\n".join(_lines(config)) + "\n"}


def _accelerators(settings: Settings) -> list[dict[str, Any]]:
    """Execution providers of the ONNX Runtime backend, held to float32: TF32 and FP16 are not what was certified."""
    if settings.backend != "onnxruntime" or settings.device != "gpu":
        return []
    cuda = {"name": "cuda", "parameters": [{"key": "use_tf32", "value": "0"}]}
    tensorrt = {"name": "tensorrt", "parameters": [{"key": "precision_mode", "value": "FP32"}]}
    return [tensorrt, cuda] if settings.accelerator == "tensorrt" else [cuda]


def _type(t: Tensor) -> dict[str, Any]:
    return {"data_type": Word("TYPE_FP32"), "dims": list(t.shape) or [1]}


def _tensor(t: Tensor) -> dict[str, Any]:
    # Triton has no tensors of the batch dimension alone.
    return {"name": t.name, **_type(t)} | ({} if t.shape else {"reshape": {"shape": []}})


def _warmup(signature: Signature, rows: int) -> dict[str, Any]:
    zeros = [{"key": t.name, "value": {**_type(t), "zero_data": Word("true")}} for t in signature.inputs]
    return {"name": f"{rows} rows", "batch_size": rows, "inputs": zeros}


def _lines(message: Mapping[str, Any], indent: str = "") -> list[str]:
    lines = []
    for key, value in message.items():
        repeated: list[Any] = value if isinstance(value, list) else [value]
        if any(isinstance(v, Mapping) for v in repeated):
            for v in repeated:
                lines += [f"{indent}{key} {{", *_lines(v, indent + "  "), f"{indent}}}"]
        elif repeated is value:
            lines.append(f"{indent}{key}: [{', '.join(map(_scalar, repeated))}]")
        else:
            lines.append(f"{indent}{key}: {_scalar(value)}")
    return lines


def _scalar(value: Any) -> str:
    if isinstance(value, str) and not isinstance(value, Word):
        plain = set(range(32, 127)) - set(b'"\\')
        return '"' + "".join(chr(byte) if byte in plain else f"\\{byte:03o}" for byte in value.encode()) + '"'
    return str(value)
