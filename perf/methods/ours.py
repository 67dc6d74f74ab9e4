"""hrt itself as a method of the harness: compressed to the error, saved and loaded again, in every backend."""

import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

import hrt
from hrt.errors import BackendError
from hrt.export.onnx.exporter import graph_of
from hrt.export.onnx.onnxruntime_session import forms_for
from hrt.hmatrix.diagonal import block_count
from hrt.hmatrix.hmatrix import HMatrix
from hrt.perf.measuring.results import UNREACHABLE
from hrt.perf.methods.matched_error import Arrays, Bind, Execution, Method, Offer, Refusal
from hrt.perf.networks.registry import WEIGHTS_MARGIN, Workload
from hrt.program.parallel_linears import joined
from hrt.runtime.backends import on_cpu


def hrt_method(target: str, every: bool = True) -> Method:
    """hrt at the tolerance, saved and loaded again, by `predict` on numpy arrays. every: in every backend of the CPU
    that can run it, beside "auto".
    """

    def method(workload: Workload, tol: float) -> Offer | Refusal:
        served = workload.served
        if served and tol < served.certificate.tol:
            made = f"the file was made for an error of {served.certificate.tol:g}"
            return Refusal(UNREACHABLE, f"{made} and is judged at no smaller one")
        if served and target != served.target:
            return Refusal(UNREACHABLE, f"the file holds a network for target {served.target}")
        model = served or compressed(workload, tol, target)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "net.hrt"
            model.save(path)
            loaded = {"auto": hrt.load(path)}
            for backend in on_cpu() if every else ():
                with suppress(BackendError):
                    loaded[backend] = hrt.load(path, backend=backend)
        ways = tuple(Execution(b, _predicting(net, workload.derivatives)) for b, net in loaded.items())
        chosen = loaded["auto"]
        chosen = chosen.differentiated(workload.derivatives) if workload.derivatives else chosen

        def on_rows(batch: int) -> tuple[str, int, dict[str, Any]]:
            note, work, facts = as_run(model, batch)
            return note, work, {**facts, "auto": chosen.session.backend_at(batch)}

        return Offer(model.nbytes, ways, on_rows=on_rows)

    return method


def as_run(model: hrt.CompressedModel, batch: int) -> tuple[str, int, dict[str, Any]]:
    """Note, multiply-adds of a row, and facts: of the graph that ONNX Runtime runs on so many rows."""
    program = joined(model.program)
    forms = forms_for(program, batch)
    leaves = work = 0
    for name in program.weights:
        weight = program.constants[name]
        sizes = [weight.shape[0] * weight.shape[1]]
        whole = weight.shape[0] * weight.shape[1]
        if isinstance(weight, HMatrix):
            sizes = [e.rows * e.cols if e.is_dense else e.rank * (e.rows + e.cols) for e in weight.leaves]
            whole //= block_count(weight) if forms[name] == "stacked" else 1
        leaves += len(sizes)
        work += whole if forms[name] in ("dense", "multiplied", "stacked") else sum(sizes)
    facts = {
        "nodes": len(graph_of(program, narrow=False, forms=forms).graph.node),
        "layers": len(forms),
        "stored dense": sum(f == "dense" for f in forms.values()),
        "run dense": sum(f in ("dense", "multiplied") for f in forms.values()),
        "leaves": leaves,
    }
    also = f", {facts['run dense']} of them run as dense products" if facts["run dense"] else ""
    return f"{leaves} leaves in {facts['layers']} layers{also}", work, facts


def compressed(workload: Workload, tol: float, target: str) -> hrt.CompressedModel:
    """The workload's network, compressed for the errors that it is judged by."""
    data = None
    if workload.by_weights:
        tol *= WEIGHTS_MARGIN
    else:
        data = _one_or_all(tuple(torch.cat(pair) for pair in zip(workload.calibration, workload.search, strict=True)))
    derivatives = workload.derivatives or None
    return hrt.compress(workload.net, inputs=data, tol=tol, target=target, derivatives=derivatives, progress=False)


def _predicting(model: hrt.CompressedModel, derivatives: tuple[str, ...]) -> Bind:
    def bind(x: Arrays) -> Callable[[], Any]:
        return partial(model.predict, _one_or_all(x), **({"derivatives": derivatives} if derivatives else {}))

    return bind


def _one_or_all(x: tuple[Any, ...]) -> Any:
    return x if len(x) > 1 else next(iter(x))
