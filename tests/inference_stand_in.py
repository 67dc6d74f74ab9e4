"""A small server of the Open Inference Protocol in this process, which can be made to misbehave."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import numpy as np

import hrt
from hrt.export.onnx.exporter import to_onnx
from hrt.export.servers.open_inference import HEADER, Signature, Tensor, read_request, write_response

from helpers import answering

Change = Callable[[int, list[np.ndarray]], list[np.ndarray] | None]


def signature(model: hrt.CompressedModel) -> Signature:
    graph = to_onnx(model).graph
    sides = (
        tuple(Tensor(v.name, tuple(d.dim_value for d in v.type.tensor_type.shape.dim[1:])) for v in side)
        for side in (graph.input, graph.output)
    )
    return Signature(*sides)


@contextmanager
def served(
    model: hrt.CompressedModel, change: Change = lambda _, y: y, *, live: bool = True, ready: str = "m"
) -> Iterator[str]:
    """An HTTP server that answers request number n with change(n, outputs of predict), or status 503 for None."""
    known, lock, counted = signature(model), threading.Lock(), [0]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def answer(self, status, headers, text):
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(text))}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(text)

        def do_GET(self):
            good = live if self.path.endswith("/live") else f"/{ready}/" in self.path
            self.answer(200 if good else 400, {}, b"")

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                number, counted[0] = counted[0], counted[0] + 1
                request = read_request(body, self.headers.get(HEADER), known)
                y = model.predict(request.inputs)
                outputs = change(number, list(y) if isinstance(y, tuple) else [y])
            if outputs is None:
                return self.answer(503, {}, json.dumps({"error": "busy"}).encode())
            text, headers = write_response("m", request, outputs, known)
            return self.answer(200, headers, text)

    with answering(Handler) as address:
        yield address
