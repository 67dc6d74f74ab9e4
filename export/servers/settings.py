"""How a network is to be served, checked once."""

import re
from dataclasses import dataclass, replace

from hrt.errors import InputError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
BACKENDS = {"triton": ("onnxruntime", "hrt"), "mlserver": ("hrt",), "ray": ("hrt",)}  # by server, the default first
LARGEST = 2**31 - 1  # that Triton's configuration holds


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
        """Everything that can be refused before the network is known."""
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
