"""Asking an inference server over the Open Inference Protocol, and what it ought to answer."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import numpy as np

import hrt
from hrt.errors import BackendError, InputError

TOLERANCE = 1e-5  # relative L2, of every output: the same numbers in float32, summed in another order
CONNECTION_SECONDS = 60.0
# Of one client over HTTP, as tritonclient has it; other requests wait for one. When 1,000 connections open at once,
# Triton 2.51's HTTP server at times computes answers that it never sends (seen without aiohttp, too).
CONNECTIONS = 100
ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})")


@dataclass(frozen=True)
class Server:
    """Where a served network is asked. address: host:port.  protocol: "http" or "grpc" (Open Inference Protocol).
    binary: tensors as bytes behind the JSON of an HTTP request, an extension that not every server has.
    """

    address: str
    protocol: str
    name: str
    binary: bool = True

    def __post_init__(self) -> None:
        parts = ADDRESS.fullmatch(self.address)
        if not parts or not 0 < int(parts["port"]) < 65_536:
            raise InputError(
                f"Found the address {self.address!r} ({self.protocol}). Expected HOST:PORT, as in 127.0.0.1:8000, "
                "without http:// and without a path."
            )


def servers(name: str, http: str | None, grpc: str | None, binary: bool) -> list[Server]:
    """The servers that a command line names."""
    return [Server(a, p, name, binary) for p, a in (("http", http), ("grpc", grpc)) if a is not None]


@dataclass(frozen=True)
class Question:
    """float32 inputs (rows, *shape) and what `predict` says of them, each under its name at the server."""

    inputs: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]


def with_answers(model: hrt.CompressedModel, inputs: Iterable[tuple[np.ndarray, ...]]) -> list[Question]:
    """Questions with the answers of `predict` on the torch backend, whose arithmetic is not that of the servers."""
    from hrt.export.onnx.exporter import to_onnx

    graph = to_onnx(model).graph  # the names that `export_repository` gives to inputs and outputs
    reference = replace(model, backend="torch", device=None)
    questions = []
    for x in inputs:
        y = reference.predict(x)
        answers = y if isinstance(y, tuple) else (y,)
        named = {v.name: a for v, a in zip(graph.input, x, strict=True)}
        questions.append(Question(named, {v.name: a for v, a in zip(graph.output, answers, strict=True)}))
    return questions


def difference(answer: Any, expected: np.ndarray) -> float:
    """Relative L2 difference; infinite for what is no array of that shape."""
    from hrt.export.onnx.check import relative

    same_shape = isinstance(answer, np.ndarray) and answer.shape == expected.shape
    return relative(answer, expected) if same_shape else float("inf")


class Client:
    """tritonclient's asynchronous client of one server."""

    def __init__(self, server: Server) -> None:
        package = f"tritonclient.{server.protocol}"
        try:
            self.kinds: Any = import_module(package)
            clients: Any = import_module(f"{package}.aio")
        except ImportError as error:
            raise BackendError("tritonclient is missing. Install it: pip install 'tritonclient[http,grpc]'.") from error
        http = server.protocol == "http"
        self.server, self.options = server, {"binary_data": server.binary} if http else {}
        # tritonclient leaves out the type of bodies that are JSON alone
        self.headers: dict[str, str] | None = (
            {"Content-Type": "application/json"} if http and not server.binary else None
        )
        limits = {"conn_limit": CONNECTIONS, "conn_timeout": CONNECTION_SECONDS} if http else {}
        self.connection: Any = clients.InferenceServerClient(server.address, **limits)

    def request(self, question: Question) -> dict[str, Any]:
        """A question as arguments of `infer`."""
        inputs = []
        for name, array in question.inputs.items():
            inputs.append(self.kinds.InferInput(name, list(array.shape), "FP32"))
            inputs[-1].set_data_from_numpy(array, **self.options)
        outputs = [self.kinds.InferRequestedOutput(name, **self.options) for name in question.expected]
        return {"inputs": inputs, "outputs": outputs}

    async def infer(self, request: dict[str, Any]) -> Any:
        """What the server answers; raises whatever the server's or the network's error is."""
        return await self.connection.infer(self.server.name, **request, headers=self.headers)
