"""A load of concurrent requests on an inference server, every answer compared with `predict`.

python -m hrt.perf.realtime.server_load net.hrt --http 127.0.0.1:8000 --grpc 127.0.0.1:8001 --name burgers
"""

import argparse
import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import numpy as np

import hrt
from hrt.errors import BackendError, HrtError, InputError

BATCHES = (1, 2, 3, 7, 16, 33, 64)  # rows of a request, in turn
TOLERANCE = 1e-5  # relative L2, of every output: the same numbers in float32, summed in another order
DEADLINE_SECONDS = 60.0
# Of one client over HTTP, as tritonclient has it; other requests wait for one. When 1,000 connections open at once,
# Triton 2.51's HTTP server at times computes answers that it never sends (seen without aiohttp, too).
CONNECTIONS = 100
ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})")


@dataclass(frozen=True)
class Server:
    """Where a served network is asked. address: host:port.  protocol: "http" or "grpc" (Open Inference Protocol).
    binary: tensors as bytes behind the JSON of an HTTP request, an extension that not every server has. Raises
    InputError for another form of address, on which tritonclient fails in ways of its own.
    """

    address: str
    protocol: str
    name: str
    binary: bool = True

    def __post_init__(self) -> None:
        found = ADDRESS.fullmatch(self.address)
        if not found or not 0 < int(found["port"]) < 65_536:
            raise InputError(
                f"Found the address {self.address!r} ({self.protocol}). Expected HOST:PORT, as in 127.0.0.1:8000, "
                "without http:// and without a path."
            )


@dataclass(frozen=True)
class Question:
    """float32 inputs (rows, *shape) and what `predict` says of them, each under its name at the server."""

    inputs: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]


@dataclass(frozen=True)
class Outcome:
    """What came of a load.

    wrong: answers that differ from `predict`.  failed: requests without an answer.  repeated: requests that were
    answered when they were sent again.  worst: the largest relative difference.  seconds: of every answer, from its
    last sending on.  in_flight: how many were out at once.  errors: what the first failures said.
    """

    requests: int
    wrong: int
    failed: int
    repeated: int
    worst: float
    seconds: tuple[float, ...]
    in_flight: int
    errors: tuple[str, ...] = ()

    def quantile(self, q: float) -> float:
        """Milliseconds within which the fraction `q` of the answered requests had its answer; NaN without any."""
        return 1e3 * float(np.quantile(self.seconds, q)) if self.seconds else float("nan")


def questions(model: hrt.CompressedModel, batches: Sequence[int] = BATCHES, kinds: int = 4) -> list[Question]:
    """Random requests of mixed batch sizes, `kinds` of every size, with the answers of `predict` on the torch backend,
    whose arithmetic is not that of the servers.
    """
    from hrt.export.onnx.exporter import to_onnx

    reference = replace(model, backend="torch", device=None)

    graph = to_onnx(model).graph  # the names that `export_repository` gives to inputs and outputs
    generator = np.random.default_rng(0)
    found = []
    for rows in [b for _ in range(kinds) for b in batches]:
        x = tuple(generator.random((rows, *v.shape), dtype=np.float32) for v in model.program.inputs)
        y = reference.predict(x)
        answers = y if isinstance(y, tuple) else (y,)
        inputs = {v.name: a for v, a in zip(graph.input, x, strict=True)}
        found.append(Question(inputs, {v.name: a for v, a in zip(graph.output, answers, strict=True)}))
    return found


def ask(
    server: Server,
    asked: Sequence[Question],
    requests: int = 1000,
    in_flight: int | None = None,
    attempts: int = 1,
    deadline: float = DEADLINE_SECONDS,
) -> Outcome:
    """Send `requests` requests, `asked` in turn, and compare every answer.

    in_flight: how many are out at once; None: all of them.  attempts: how often a request that fails is sent.
    deadline: seconds for all together; what has no answer by then has failed. Latency is that of the whole request as
    the client sees it: with all at once (over HTTP on 100 connections) it is mostly the wait for the others. Raises
    BackendError where tritonclient is not installed.
    """
    return asyncio.run(_ask(server, asked, requests, in_flight or requests, attempts, deadline))


async def _ask(
    server: Server, asked: Sequence[Question], requests: int, in_flight: int, attempts: int, deadline: float
) -> Outcome:
    client, encode = open_client(server)
    plain = server.protocol == "http" and not server.binary
    headers = {"Content-Type": "application/json"} if plain else None  # which tritonclient leaves out
    gate = asyncio.Semaphore(in_flight)
    seconds: list[float] = []
    differences: list[float] = []
    errors: list[str] = []
    repeated: list[int] = []

    async def one(question: Question) -> None:
        for attempt in range(attempts):
            async with gate:
                start = time.perf_counter()
                try:
                    inputs, outputs = encode(question)
                    answer = await client.infer(server.name, inputs, outputs=outputs, headers=headers)
                    found = {name: answer.as_numpy(name) for name in question.expected}
                except Exception as error:  # the server's or the network's
                    why = f"{type(error).__name__}: {error}"
                else:
                    seconds.append(time.perf_counter() - start)
                    differences.append(max(_difference(found[n], e) for n, e in question.expected.items()))
                    repeated.append(attempt)
                    return
            if attempt + 1 == attempts:
                errors.append(why)
            else:
                await asyncio.sleep(0.2 * (attempt + 1))

    tasks = [asyncio.create_task(one(asked[k % len(asked)])) for k in range(requests)]
    try:
        _, late = await asyncio.wait(tasks, timeout=deadline)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=5)
            errors.append(f"{len(late)} requests had no answer after {deadline:g} s")
    finally:
        await client.close()
    return Outcome(
        requests=requests,
        wrong=sum(not d <= TOLERANCE for d in differences),
        failed=requests - len(differences),
        repeated=sum(attempt > 0 for attempt in repeated),
        worst=max(differences, default=0.0),
        seconds=tuple(seconds),
        in_flight=in_flight,
        errors=tuple(errors[-3:]),
    )


def open_client(server: Server) -> tuple[Any, Any]:
    """An asynchronous client, and what turns a question into its inputs and outputs. Raises BackendError where
    tritonclient is not installed.
    """
    http = server.protocol == "http"
    package = f"tritonclient.{server.protocol}"
    try:
        kinds: Any = import_module(package)
        clients: Any = import_module(f"{package}.aio")
    except ImportError as error:
        raise BackendError("tritonclient is missing. Install it: pip install 'tritonclient[http,grpc]'.") from error

    def encode(question: Question) -> tuple[list[Any], list[Any]]:
        options = {"binary_data": server.binary} if http else {}
        inputs = []
        for name, array in question.inputs.items():
            inputs.append(kinds.InferInput(name, list(array.shape), "FP32"))
            inputs[-1].set_data_from_numpy(array, **options)
        return inputs, [kinds.InferRequestedOutput(name, **options) for name in question.expected]

    limits = {"conn_limit": CONNECTIONS, "conn_timeout": DEADLINE_SECONDS} if http else {}
    return clients.InferenceServerClient(server.address, **limits), encode


def _difference(found: Any, expected: np.ndarray) -> float:
    if not isinstance(found, np.ndarray) or found.shape != expected.shape:
        return float("inf")
    size = float(np.linalg.norm(expected.astype(np.float64)))
    difference = float(np.linalg.norm(found.astype(np.float64) - expected.astype(np.float64)))
    return difference / size if size else difference


def row(what: str, server: Server, outcome: Outcome) -> str:
    """One line of the transcript, under `HEADER`."""
    return (
        f"{what:26} {server.protocol:5} {outcome.requests:6} {outcome.in_flight:8} {outcome.failed:7} "
        f"{outcome.repeated:6} {outcome.wrong:6} {outcome.worst:8.0e} {outcome.quantile(0.5):8.1f} "
        f"{outcome.quantile(0.99):8.1f}"
    )


HEADER = "served by                  proto  asked  at once  failed  again  wrong    worst   p50 ms   p99 ms"


def main() -> None:
    """Ask the servers named on the command line and print a line for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("artifact", help="the .hrt file that is served, for comparison")
    parser.add_argument("--name", required=True, help="the model's name at the server")
    parser.add_argument("--http", help="host:port")
    parser.add_argument("--grpc", help="host:port")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--in-flight", type=int, help="requests out at once (default: all)")
    parser.add_argument("--json", action="store_true", help="tensors as JSON numbers over HTTP, not as bytes")
    options = parser.parse_args()
    asked = questions(hrt.load(options.artifact, backend="torch"))
    addresses = [("http", options.http), ("grpc", options.grpc)]
    print(HEADER)
    bad = 0
    for protocol, address in addresses:
        if address:
            server = Server(address, protocol, options.name, not options.json)
            outcome = ask(server, asked, options.requests, options.in_flight)
            bad += outcome.wrong + outcome.failed
            print(row(address, server, outcome))
    if bad:
        raise HrtError(f"{bad} answers failed or differ from predict by more than {TOLERANCE:g} (relative).")


if __name__ == "__main__":
    main()
