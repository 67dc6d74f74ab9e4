"""How a network is to be served, and the small files that Triton, MLServer and Ray Serve start from."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hrt.errors import InputError
from hrt.export.servers.open_inference import Signature, Tensor

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
BACKENDS = {"triton": ("onnxruntime", "hrt"), "mlserver": ("hrt",), "ray": ("hrt",)}  # by server, the default first
LARGEST = 2**31 - 1  # that Triton's configuration holds
PREFERRED = (64, 256, 1024)  # rows
QUEUE_MICROSECONDS = 500  # how long a request waits for others to share its batch
REQUESTS = 64  # that MLServer or Ray Serve put into one batch at most
REPLICAS = 8  # Ray Serve grows to so many times the fewest


@dataclass(frozen=True)
class Settings:
    """See `export_repository`. backend, device: None until `resolved`."""

    name: str
    server: str = "triton"
    backend: str | None = None
    max_batch: int = 1024
    instances: int = 1
    device: str | None = None
    accelerator: str | None = None

    def __post_init__(self) -> None:
        server, backend, device, accelerator = self.server, self.backend, self.device, self.accelerator
        if not isinstance(server, str) or not isinstance(backend, str | None):
            raise InputError(f"Found server {server!r} and backend {backend!r}. Expected names, the backend's or None.")
        if not isinstance(self.name, str) or not NAME.fullmatch(self.name):
            raise InputError(
                f"Found name {self.name!r}. Expected up to 128 letters, digits, '.', '_' and '-', beginning with a "
                "letter or digit: it becomes a folder and a part of addresses."
            )
        if server not in BACKENDS:
            raise InputError(f"Found server {server!r}. Expected one of {', '.join(BACKENDS)}.")
        if backend is not None and backend not in BACKENDS[server]:
            raise InputError(f"Found backend {backend!r} for {server}. Expected one of {', '.join(BACKENDS[server])}.")
        for what, value in (("max_batch", self.max_batch), ("instances", self.instances)):
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST:
                raise InputError(f"Found {what} {value!r}. Expected a positive whole number up to {LARGEST}.")
        if device not in (None, "cpu", "gpu"):
            raise InputError(f"Found device {device!r}. Expected cpu, gpu or None.")
        if device == "gpu" and server != "triton":
            raise InputError(
                f"Found device 'gpu' for {server}. Expected cpu: only Triton's instances are placed on GPUs."
            )
        runs_onnx = (backend or BACKENDS[server][0]) == "onnxruntime"
        if accelerator is not None and (accelerator != "tensorrt" or not runs_onnx or device != "gpu"):
            raise InputError(
                f"Found accelerator {accelerator!r}. Expected 'tensorrt', with backend 'onnxruntime' and device 'gpu'."
            )

    def resolved(self, target: str) -> "Settings":
        """With a backend and a device. target: what the network was compressed for."""
        device = "gpu" if target == "cuda" and self.server == "triton" else "cpu"
        return replace(self, backend=self.backend or BACKENDS[self.server][0], device=self.device or device)


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


def mlserver_files(signature: Signature, settings: Settings, facts: Mapping[str, str]) -> dict[str, str]:
    """`model-settings.json` and `settings.json`, by name."""
    extra = {"max_batch": settings.max_batch, "workers": settings.instances}
    model = {
        "name": settings.name,
        "implementation": "hrt.export.servers.mlserver_runtime.HrtRuntime",
        "platform": "hrt",
        **signature.described(),
        "max_batch_size": REQUESTS,
        "max_batch_time": QUEUE_MICROSECONDS / 1e6,
        "parameters": {"uri": "./model.hrt", "version": "1", "extra": extra},
    }
    # Of the whole server; MLServer reads it from the folder that it is started on.
    server = {"debug": False, "parallel_workers": settings.instances}
    contents = {"model-settings.json": model, "settings.json": server}
    return {name: json.dumps(value, indent=2) + "\n" for name, value in contents.items()}


def ray_files(signature: Signature, settings: Settings, facts: Mapping[str, str]) -> dict[str, str]:
    """`serve.yaml`, the configuration, and `application.py`, which it imports, by name."""
    tensors = [[(t.name, t.shape) for t in side] for side in (signature.inputs, signature.outputs)]
    application = f'''"""Ray Serve imports `app` from here (see serve.yaml). Written by hrt."""

from pathlib import Path

from hrt.export.servers.ray_application import build

app = build(
    Path(__file__).with_name("model.hrt"),
    name={settings.name!r},
    inputs={tensors[0]!r},
    outputs={tensors[1]!r},
    max_batch={settings.max_batch},
)
'''
    fewest = settings.instances
    # Serve.yaml is written as text: its comments are for those who will tune it.
    serve = f"""# Start it in this folder: serve run serve.yaml
proxy_location: EveryNode
http_options:
  host: 0.0.0.0
  port: 8000
applications:
  - name: {json.dumps(settings.name)}
    route_prefix: /
    import_path: application:app
    deployments:
      - name: Network
        max_ongoing_requests: {4 * REQUESTS}
        autoscaling_config:
          min_replicas: {fewest}
          max_replicas: {REPLICAS * fewest}
          target_ongoing_requests: {REQUESTS}
          upscale_delay_s: 5
          look_back_period_s: 10
        ray_actor_options:
          num_cpus: 1 # also the threads of one replica
        user_config:
          max_requests: {REQUESTS} # that share a batch
          wait_s: {QUEUE_MICROSECONDS / 1e6} # for others to join
"""
    return {"application.py": application, "serve.yaml": serve}
