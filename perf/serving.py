"""A load of concurrent requests on an inference server, every answer compared with `predict`.

python -m hrt.perf.serving net.hrt --http 127.0.0.1:8000 --grpc 127.0.0.1:8001 --name burgers
"""

import argparse
import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

import hrt
from hrt.errors import BackendError, HrtError

BATCHES = (1, 2, 3, 7, 16, 33, 64)  # rows of a request, in turn
TOLERANCE = 1e-5  # relative L2, of every output: the same numbers in float32, summed in another order
REQUEST_SECONDS = 60.0


@dataclass(frozen=True)
class Server:
    """Where a served network is asked. address: host:port.  protocol: "http" or "grpc" (Open Inference Protocol).
    binary: tensors as bytes behind the JSON of an HTTP request, an extension that not every server has.
    """

    address: str
    protocol: str
    name: str
    binary: bool = True


@dataclass(frozen=True)
class Question:
    """float32 inputs (rows, *shape) and what `predict` says of them, each under its name at the server."""

    inputs: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]


@dataclass(frozen=True)
class Outcome:
    """What came of a load: answers that differ from `predict`, requests that failed, and seconds of those that did not.
    worst: the largest relative difference.  errors: what the first failures said.
    """

    requests: int
    wrong: int
    failed: int
    worst: float
    seconds: tuple[float, ...]
    errors: tuple[str, ...] = ()

    def quantile(self, q: float) -> float:
        """Milliseconds within which the fraction `q` of the answered requests had its answer; NaN without any."""
        return 1e3 * float(np.quantile(self.seconds, q)) if self.seconds else float("nan")


def questions(model: hrt.CompressedModel, batches: Sequence[int] = BATCHES, kinds: int = 4) -> list[Question]:
    """Random requests of mixed batch sizes, `kinds` of every size, with their answers."""
    from hrt.export.onnx import to_onnx

    graph = to_onnx(model).graph  # the names that `export_repository` gives to inputs and outputs
    generator = np.random.default_rng(0)
    found = []
    for rows in [b for _ in range(kinds) for b in batches]:
        x = tuple(generator.random((rows, *v.shape), dtype=np.float32) for v in model.program.inputs)
        y = model.predict(x)
        answers = y if isinstance(y, tuple) else (y,)
        inputs = {v.name: a for v, a in zip(graph.input, x, strict=True)}
        found.append(Question(inputs, {v.name: a for v, a in zip(graph.output, answers, strict=True)}))
    return found


def ask(
    server: Server, asked: Sequence[Question], requests: int = 1000, in_flight: int | None = None, attempts: int = 1
) -> Outcome:
    """Send `requests` requests, `asked` in turn, and compare every answer.

    in_flight: how many are out at once; None: all of them.  attempts: how often a request that fails is sent. Latency
    is that of the whole request as the client sees it: with all at once it is mostly the wait for the others. Raises
    BackendError where tritonclient is not installed.
    """
    return asyncio.run(_ask(server, asked, requests, in_flight or requests, attempts))


async def _ask(server: Server, asked: Sequence[Question], requests: int, in_flight: int, attempts: int) -> Outcome:
    client, encode = _client(server, in_flight)
    plain = server.protocol == "http" and not server.binary
    headers = {"Content-Type": "application/json"} if plain else None  # which tritonclient leaves out
    gate = asyncio.Semaphore(in_flight)
    seconds: list[float] = []
    differences: list[float] = []
    errors: list[str] = []

    async def one(question: Question) -> None:
        why = ""
        for attempt in range(attempts):
            async with gate:
                start = time.perf_counter()
                try:
                    inputs, outputs = encode(question)
                    sent = client.infer(server.name, inputs, outputs=outputs, headers=headers)
                    answer = await asyncio.wait_for(sent, REQUEST_SECONDS)
                    found = {name: answer.as_numpy(name) for name in question.expected}
                except Exception as error:  # the server's, the network's or the deadline's
                    why = f"{type(error).__name__}: {error}"
                else:
                    seconds.append(time.perf_counter() - start)
                    differences.append(max(_difference(found[n], e) for n, e in question.expected.items()))
                    return
            await asyncio.sleep(0.2 * (attempt + 1))
        errors.append(why)

    try:
        await asyncio.gather(*(one(asked[k % len(asked)]) for k in range(requests)))
    finally:
        await client.close()
    wrong = sum(not d <= TOLERANCE for d in differences)
    return Outcome(requests, wrong, len(errors), max(differences, default=0.0), tuple(seconds), tuple(errors[:3]))


def _client(server: Server, connections: int) -> tuple[Any, Any]:
    """An asynchronous client, and what turns a question into its inputs and outputs."""
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

    limits = {"conn_limit": connections, "conn_timeout": REQUEST_SECONDS} if http else {}
    return clients.InferenceServerClient(server.address, **limits), encode


def _difference(found: Any, expected: np.ndarray) -> float:
    if not isinstance(found, np.ndarray) or found.shape != expected.shape:
        return float("inf")
    size = float(np.linalg.norm(expected.astype(np.float64)))
    difference = float(np.linalg.norm(found.astype(np.float64) - expected.astype(np.float64)))
    return difference / size if size else difference


def row(what: str, server: Server, outcome: Outcome) -> str:
    """One line of the transcript."""
    return (
        f"{what:28} {server.protocol:5} {outcome.requests:6} {outcome.failed:7} {outcome.wrong:6} "
        f"{outcome.worst:9.1e} {outcome.quantile(0.5):8.1f} {outcome.quantile(0.99):8.1f}"
    )


HEADER = (
    f"{'served by':28} {'proto':5} {'asked':>6} {'failed':>7} {'wrong':>6} {'worst':>9} {'p50 ms':>8} {'p99 ms':>8}"
)


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
