"""The methods that the harness compares: dense, svd, pruned, hrt here; quantized in `hrt.perf.methods.quantizers`.

A method sets its knob on calibration and search rows and offers its executions, of which the fastest counts; or it says
why it cannot. Bytes are those of the stored form for all alike, biases in float32: what a library decodes or widens
when it loads is said in the note.
"""

import math
import tempfile
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import hrt
from hrt.export.onnx.exporter import graph_of
from hrt.export.onnx.onnxruntime_session import forms_for
from hrt.hmatrix.hmatrix import HMatrix
from hrt.perf.measuring.results import FAILED, MISSING, UNREACHABLE
from hrt.perf.methods.matched_error import (
    Arrays,
    Bind,
    Execution,
    Method,
    Offer,
    Refusal,
    Run,
    accepted,
    loosest,
    search_error,
    work_of,
)
from hrt.perf.methods.quantizers import QUANTIZERS
from hrt.perf.methods.runtimes import compiled, first_line, in_onnxruntime, in_torch, run_of, ways_in_onnxruntime
from hrt.perf.methods.svd import Factors, second_moments, svd_factors
from hrt.perf.networks.as_torch_module import factored, module_of
from hrt.perf.networks.registry import WEIGHTS_MARGIN, MissingError, Workload
from hrt.program.program import Program

LOOSEST, TIGHTEST = 0.0, -7.0  # log10 of a weight's relative error, where knobs are searched
NOT_SMALLER = "nothing smaller than dense"


def dense_float32(workload: Workload, tol: float) -> Offer:
    """The reference, in every execution: torch as written, torch.compile, ONNX Runtime."""

    def make() -> Offer:
        net = workload.net if isinstance(workload.net, nn.Module) else module_of(workload.program)
        return _offer(workload.dense_nbytes, workload.program, (in_torch(net), compiled(net)))

    return workload.once("dense", make)


def dense_narrow(dtype: torch.dtype) -> Method:
    """Weights and arithmetic in 16 bits, in torch."""

    def method(workload: Workload, tol: float) -> Offer | Refusal:
        net = module_of(workload.program).to(dtype)
        run: Run = lambda x: net(*(v.to(dtype) for v in x))  # noqa: E731
        upper = workload.once(("dense", dtype), lambda: search_error(workload, run).upper_99)
        if not upper <= tol:
            return Refusal(UNREACHABLE, f"error up to {upper:.1e}; it has no knob")
        ways = (in_torch(net, dtype), compiled(net, dtype))
        kind = str(dtype).removeprefix("torch.")
        return Offer(workload.dense_nbytes // 2, ways, work=work_of(workload.program), arithmetic=kind)

    return method


def dense_in_halves(workload: Workload, tol: float) -> Offer | Refusal:
    """Weights stored in float16, widened to float32 at loading: the same products as dense float32."""
    program, nbytes = _in_halves(workload.program)
    net = module_of(program)
    upper = workload.once("dense in halves", lambda: search_error(workload, run_of(net)).upper_99)
    if not upper <= tol:
        return Refusal(UNREACHABLE, f"error up to {upper:.1e}; it has no knob")
    return _offer(nbytes, program, (in_torch(net),), "widened at loading")


def svd(weighted: bool, halves: bool = False) -> Method:
    """Two thin layers per weight, cut at one relative error for all: of the weight, or of its outputs on the data.

    halves: weights and factors stored in float16, widened to float32 at loading.
    """

    def method(workload: Workload, tol: float) -> Offer | Refusal:
        factors = workload.once(("svd", weighted), lambda: _all_factors(workload, weighted))

        def make(t: float) -> dict[str, tuple[Tensor, Tensor]]:
            return {k: cut for k, f in factors.items() if (cut := _cut(f, t)) is not None}

        def stored(cut: dict[str, tuple[Tensor, Tensor]]) -> tuple[Program, int]:
            program = factored(workload.program, cut)
            return _in_halves(program) if halves else (program, _nbytes(program))

        def holds(cut: dict[str, tuple[Tensor, Tensor]]) -> bool:
            return accepted(workload, run_of(module_of(stored(cut)[0])), tol)

        cut = loosest(make, holds, TIGHTEST, LOOSEST)
        if not cut:
            return Refusal(UNREACHABLE, "at no rank that is smaller than dense" if cut is None else NOT_SMALLER)
        program, nbytes = stored(cut)
        shapes = {k: workload.program.constants[k].shape for k in workload.program.weights}
        ranks = (str(len(cut[k][1])) if k in cut else f"dense {min(shape)}" for k, shape in shapes.items())
        return _offer(nbytes, program, (in_torch(module_of(program)),), f"ranks {', '.join(ranks)}")

    return method


def pruned_magnitude(workload: Workload, tol: float) -> Offer | Refusal:
    """Entries below one threshold relative to their matrix's norm dropped, as compressed sparse rows."""
    weights = _weights(workload.program)
    squares = workload.once(
        "sorted", lambda: {k: w.flatten().square().sort().values.cumsum(0) for k, w in weights.items()}
    )

    def make(t: float) -> dict[str, Tensor]:
        counts = {k: w.numel() - int((squares[k] <= t * t * squares[k][-1]).sum()) for k, w in weights.items()}
        smaller = {k: n for k, n in counts.items() if csr_nbytes(weights[k], n) < 4 * weights[k].numel()}
        return {k: _largest(weights[k], n) for k, n in smaller.items()}

    def holds(sparse: dict[str, Tensor]) -> bool:
        return accepted(workload, run_of(module_of(workload.program.with_constants(sparse))), tol)

    sparse = loosest(make, holds, TIGHTEST, LOOSEST)
    if not sparse:
        where = "at no share of entries that is smaller than dense"
        return Refusal(UNREACHABLE, where if sparse is None else NOT_SMALLER)
    counts = {k: int((w != 0).sum()) for k, w in sparse.items()}
    entries, dropped = sum(counts.values()), sum(w.numel() for w in sparse.values()) - sum(counts.values())
    nbytes = workload.dense_nbytes + sum(csr_nbytes(w, counts[k]) - 4 * w.numel() for k, w in sparse.items())
    program = workload.program.with_constants(sparse)
    ways = (
        in_torch(module_of(program, {k: SparseLinear for k in sparse}), backend="torch.sparse"),
        in_onnxruntime(graph_of(program, narrow=False), "onnxruntime, zeros and all"),
    )
    note = f"{entries / (entries + dropped):.0%} of entries kept in {len(sparse)} of {len(weights)} layers"
    return Offer(nbytes, ways, note, work_of(workload.program) - dropped)


class SparseLinear(nn.Module):
    """x (batch, n) times the transpose of a CSR weight (m, n) with int32 indices, which MKL takes as they are."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "in beta state"
            csr = weight.to_sparse_csr()
            parts = csr.crow_indices().int(), csr.col_indices().int(), csr.values()
            self.weight = torch.sparse_csr_tensor(*parts, size=weight.shape)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """(batch, m)."""
        y = torch.sparse.mm(self.weight, x.reshape(-1, x.shape[-1]).T).T
        y = y.reshape(*x.shape[:-1], y.shape[-1])
        return y if self.bias is None else y + self.bias


def pruned_two_of_four(workload: Workload, tol: float) -> Offer | Refusal:
    """The two largest of every four entries, in torch's semi-structured format, where the device has a kernel."""
    weights = {k: w for k, w in _weights(workload.program).items() if w.shape[1] % 4 == 0}
    sparse = {k: _two_of_four(w) for k, w in weights.items()}
    upper = search_error(workload, run_of(module_of(workload.program.with_constants(sparse)))).upper_99
    if not upper <= tol:
        what = "with the two largest of every four entries; it has no knob"
        return Refusal(UNREACHABLE, f"error up to {upper:.1e} {what}")
    try:
        for w in sparse.values():
            torch.sparse.to_sparse_semi_structured(w.to(torch.float16))
    except Exception as error:
        return Refusal(UNREACHABLE, f"torch has no such kernel on this device: {first_line(error)}")
    return Refusal(UNREACHABLE, "the harness times this on a GPU only")


def hrt_method(target: str, backends: tuple[str, ...]) -> Method:
    """hrt at the tolerance, saved and loaded again, by `predict` on numpy arrays."""

    def method(workload: Workload, tol: float) -> Offer | Refusal:
        model = workload.served or _compress(workload, tol, target)
        if workload.served and tol < workload.served.certificate.tol:
            made = workload.served.certificate.tol
            return Refusal(UNREACHABLE, f"the file was made for an error of {made:g} and is judged at no smaller one")
        if workload.served and target != workload.served.target:
            return Refusal(UNREACHABLE, f"the file holds a network for target {workload.served.target}")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "net.hrt"
            model.save(path)
            ways = tuple(Execution(b, _predicting(hrt.load(path, backend=b))) for b in backends)
        return Offer(model.nbytes, ways, on_rows=partial(as_run, model))

    return method


def as_run(model: hrt.CompressedModel, batch: int) -> tuple[str, int, dict[str, Any]]:
    """Note, multiply-adds of a row, and facts: of the graph that ONNX Runtime runs on so many rows."""
    forms = forms_for(model.program, batch)
    layers = [_layer(model.program.constants[name], forms[name]) for name in model.program.weights]
    facts = {
        "nodes": len(graph_of(model.program, narrow=False, forms=forms).graph.node),
        "layers": len(layers),
        "stored dense": sum(f == "dense" for f in forms.values()),
        "run dense": sum(f in ("dense", "multiplied") for f in forms.values()),
        "leaves": sum(n for n, _ in layers),
    }
    note = f"{facts['leaves']} leaves in {len(layers)} layers"
    if facts["run dense"]:
        note += f", {facts['run dense']} of them run as dense products"
    return note, sum(w for _, w in layers), facts


def _layer(weight: Any, form: str) -> tuple[int, int]:
    """Leaves, and multiply-adds of one row as run."""
    m, n = weight.shape
    if not isinstance(weight, HMatrix):
        return 1, m * n
    sizes = [e.rows * e.cols if e.is_dense else e.rank * (e.rows + e.cols) for e in weight.leaves]
    return len(sizes), m * n if form in ("dense", "multiplied") else sum(sizes)


def _compress(workload: Workload, tol: float, target: str) -> hrt.CompressedModel:
    net, data = workload.net, None
    if workload.by_weights:
        tol *= WEIGHTS_MARGIN
    else:
        rows = tuple(torch.cat(pair) for pair in zip(workload.calibration, workload.search, strict=True))
        data = rows if len(rows) > 1 else next(iter(rows))
    return hrt.compress(net, inputs=data, tol=tol, target=target, progress=False)


def _predicting(model: hrt.CompressedModel) -> Bind:
    def bind(x: Arrays) -> Callable[[], Any]:
        given = x if len(x) > 1 else next(iter(x))
        return lambda: model.predict(given)

    return bind


def _offer(nbytes: int, program: Program, ways: tuple[Execution, ...], note: str = "") -> Offer:
    """A program in float32, run by `ways` and in every way of ONNX Runtime."""
    proto = graph_of(program, narrow=False)
    facts = {"nodes": len(proto.graph.node)}
    return Offer(nbytes, (*ways, *ways_in_onnxruntime(proto)), note, work_of(program), facts)


def _nbytes(program: Program) -> int:
    """Of all constants in float32."""
    return sum(4 * math.prod(c.shape) for c in program.constants.values())


def _in_halves(program: Program) -> tuple[Program, int]:
    """The program with its matrices rounded to float16, and bytes with those stored so."""
    matrices = {k: c for k, c in program.constants.items() if isinstance(c, Tensor) and c.ndim == 2}
    rounded = {k: c.to(torch.float16).to(torch.float32) for k, c in matrices.items()}
    return program.with_constants(rounded), _nbytes(program) - sum(2 * c.numel() for c in matrices.values())


def _all_factors(workload: Workload, weighted: bool) -> dict[str, Factors]:
    if not weighted:
        return {k: svd_factors(w) for k, w in _weights(workload.program).items()}
    moments = workload.once("moments", lambda: second_moments(workload.program, workload.calibration))
    return {k: svd_factors(w, moments.get(k)) for k, w in _weights(workload.program).items()}


def _cut(factors: Factors, t: float) -> tuple[Tensor, Tensor] | None:
    """u (m, r) and vt (r, n) of the least rank within `t`; None where that is no smaller than dense."""
    u, vt, tail2 = factors
    rank = max(1, int((tail2 > t * t * tail2[0]).sum()))
    return None if rank * (len(u) + vt.shape[1]) >= len(u) * vt.shape[1] else (u[:, :rank], vt[:rank])


def csr_nbytes(w: Tensor, count: int) -> int:
    """Bytes of `count` float32 entries of `w` in compressed sparse rows: value and column index each, and rows + 1
    pointers, both in the narrowest unsigned type (8, 16 or 32 bits).
    """
    rows, cols = w.shape
    column, pointer = (1 if largest < 2**8 else 2 if largest < 2**16 else 4 for largest in (cols - 1, count))
    return count * (4 + column) + (rows + 1) * pointer


def _largest(w: Tensor, count: int) -> Tensor:
    places = w.abs().flatten().topk(max(1, count)).indices
    return torch.zeros_like(w).flatten().index_copy_(0, places, w.flatten()[places]).reshape(w.shape)


def _two_of_four(w: Tensor) -> Tensor:
    groups = w.reshape(-1, 4)
    places = groups.abs().topk(2, dim=1).indices
    return torch.zeros_like(groups).scatter(1, places, groups.gather(1, places)).reshape(w.shape)


def _weights(program: Program) -> dict[str, Tensor]:
    return {k: w for k in program.weights if isinstance(w := program.constants[k], Tensor)}


def offered(method: Method, workload: Workload, tol: float) -> Offer | Refusal:
    """What a method offers; every way to fail is a refusal."""
    try:
        return method(workload, tol)
    except MissingError as error:
        return Refusal(MISSING, str(error))
    except MemoryError as error:
        return Refusal(FAILED, f"ran out of memory {error}".strip())
    except Exception as error:  # other libraries raise whatever they like; a method that fails is a row
        return Refusal(FAILED, f"{type(error).__name__}: {first_line(error)}")


METHODS: Mapping[str, Method] = {
    "dense float32": dense_float32,
    "dense bfloat16": dense_narrow(torch.bfloat16),
    "dense float16": dense_narrow(torch.float16),
    "dense float16, widened": dense_in_halves,
    "svd": svd(False),
    "svd, data-weighted": svd(True),
    "svd, data-weighted float16": svd(True, halves=True),
    "pruned, magnitude": pruned_magnitude,
    "pruned, 2:4": pruned_two_of_four,
    **QUANTIZERS,
    "hrt": hrt_method("cpu", ("auto", "torch")),
    "hrt, fewest bytes": hrt_method("bytes", ("auto",)),
}
USUAL = tuple(m for m in METHODS if m != "hrt, fewest bytes")  # which takes as long as "hrt" again
