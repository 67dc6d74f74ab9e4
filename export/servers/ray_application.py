"""A compressed network as a Ray Serve application: replicas on every node, batched requests, over HTTP."""

import asyncio
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

# In Ray's own environment only; nothing else imports this module.
from ray import serve  # type: ignore[import-not-found]
from starlette.requests import Request as HttpRequest  # type: ignore[import-not-found]
from starlette.responses import Response  # type: ignore[import-not-found]

import hrt
from hrt.errors import InputError
from hrt.export.servers.open_inference import HEADER, Request, Signature, Tensor, metadata, read_request, write_response
from hrt.export.servers.triton_backend import open_artifact, run_together

CARRIED = 16 * 2**20  # bytes of an artifact that travels with the application; larger ones every node must have

Shapes = Sequence[tuple[str, tuple[int, ...]]]


def build(path: Path, *, name: str, inputs: Shapes, outputs: Shapes, max_batch: int) -> serve.Application:
    """The application that serves the artifact at `path` as `name`. Raises ArtifactError for a file that is none.

    inputs, outputs: names, each with the shape of one sample. An artifact above 16 MiB must be there on all nodes.
    """
    hrt.load(path, backend="torch")  # a bad file fails here, not in every replica
    source = path.read_bytes() if path.stat().st_size <= CARRIED else os.fspath(path.resolve())
    tensors = (tuple(Tensor(n, tuple(s)) for n, s in side) for side in (inputs, outputs))
    return Network.bind(source, name, Signature(*tensors), max_batch)  # type: ignore[attr-defined]


@serve.deployment
class Network:
    """One replica. Malformed requests are answered with status 400 and what was expected."""

    name: str
    signature: Signature

    def __init__(self, source: bytes | str, name: str, signature: Signature, max_batch: int):
        threads = int(os.environ.get("OMP_NUM_THREADS", "1"))  # Ray sets it to the replica's num_cpus
        with tempfile.TemporaryDirectory() as folder:
            path = Path(source) if isinstance(source, str) else Path(folder, "model.hrt")
            if isinstance(source, bytes):
                path.write_bytes(source)
            self.run = open_artifact(path, threads, max_batch=max_batch)
        self.name, self.signature = name, signature

    def reconfigure(self, config: dict[str, Any]) -> None:
        """Ray Serve calls it with `user_config` of serve.yaml."""
        self.answer.set_max_batch_size(int(config["max_requests"]))  # type: ignore[attr-defined]
        self.answer.set_batch_wait_timeout_s(float(config["wait_s"]))  # type: ignore[attr-defined]

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.0005)
    async def answer(self, requests: list[Request]) -> list[list[np.ndarray]]:
        return await asyncio.to_thread(run_together, self.run, [r.inputs for r in requests])

    async def __call__(self, http: HttpRequest) -> Response:
        path = http.url.path.removeprefix(http.scope.get("root_path", "")).rstrip("/")
        model = f"/v2/models/{self.name}"
        path = path.replace(f"{model}/versions/1", model, 1)
        if http.method == "POST" and path == f"{model}/infer":
            return await self.infer(http)
        if http.method != "GET" or path not in ("/v2", "/v2/health/live", "/v2/health/ready", model, f"{model}/ready"):
            return _plain({"error": f"Found {http.method} {path}. Expected POST {model}/infer."}, 404)
        if path == "/v2":
            return _plain({"name": "hrt", "version": hrt.__version__, "extensions": ["binary_tensor_data"]})
        return _plain(metadata(self.name, self.signature)) if path == model else Response()

    async def infer(self, http: HttpRequest) -> Response:
        try:
            request = read_request(await http.body(), http.headers.get(HEADER), self.signature)
        except InputError as error:
            return _plain({"error": str(error)}, 400)
        outputs: Any = await self.answer(request)  # type: ignore[arg-type]  # one request in, its answer out
        body, headers = write_response(self.name, request, outputs, self.signature)
        return Response(body, headers=headers)


def _plain(value: dict[str, Any], status: int = 200) -> Response:
    return Response(json.dumps(value), status, media_type="application/json")
