"""The methods that the harness compares: dense, svd, pruned, hrt here; quantized in `hrt.perf.methods.quantizers`.

A method sets its knob on calibration and search rows and offers its executions, of which the fastest counts; or it says
why it cannot. Bytes are those of the stored form for all alike, biases in float32: what a library decodes or widens
when it loads is said in the note.
"""

import tempfile
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import hrt
from hrt.export.onnx.exporter import graph_of
from hrt.export.onnx.onnxruntime_session import forms_for
from hrt.hmatrix.hmatrix import HMatrix
from hrt.perf.measuring.results import FAILED, MISSING, UNREACHABLE
from hrt.perf.methods.matched_error import Arrays, Bind, Execution, Offer, Refusal, Run, accepted, loosest, search_error
from hrt.perf.methods.pruning import csr_nbytes
from hrt.perf.methods.quantizers import QUANTIZERS
from hrt.perf.methods.runtimes import compiled, in_onnxruntime, in_torch, run_of, ways_in_onnxruntime
from hrt.perf.methods.svd import second_moments, svd_factors
from hrt.perf.networks.as_torch_module import factored, module_of
from hrt.perf.networks.registry import WEIGHTS_MARGIN, MissingError, Workload
from hrt.program.program import Program

Method = Callable[[Workload, float], Offer | Refusal]
LOOSEST, TIGHTEST = 0.0, -7.0  # log10 of a weight's relative error, where knobs are searched


def dense_float32(workload: Workload, tol: float) -> Offer:
    """The reference, in every execution: torch as written, torch.compile, ONNX Runtime."""

    def make() -> Offer:
        program = workload.program
        net = workload.net if isinstance(workload.net, nn.Module) else module_of(program)
        ways = in_torch(net), compiled(net), *ways_in_onnxruntime(graph_of(program, narrow=False))
        return Offer(workload.dense_nbytes, ways, work=_work(program), facts={"nodes": _nodes(program)})

    return workload.once("dense", make)


def dense_narrow(dtype: torch.dtype) -> Method:
    """Weights and arithmetic in 16 bits, in torch."""

    def method(workload: Workload, tol: float) -> Offer | Refusal:
        def make() -> tuple[nn.Module, float]:
            net = module_of(workload.program).to(dtype)
            return net, float(_upper(workload, _narrow_run(net, dtype)))

        net, upper = workload.once(("dense", dtype), make)
        if not upper <= tol:
            return Refusal(UNREACHABLE, f"error up to {upper:.1e}; it has no knob")
        ways = (in_torch(net, dtype), compiled(net, dtype))
        kind = str(dtype).removeprefix("torch.")
        return Offer(workload.dense_nbytes // 2, ways, work=_work(workload.program), arithmetic=kind)

    return method


def dense_in_halves(workload: Workload, tol: float) -> Offer | Refusal:
    """Weights stored in float16, widened to float32 at loading: the same products as dense float32."""

    def make() -> tuple[Program, int, float]:
        program, nbytes = _in_halves(workload.program)
        return program, nbytes, float(_upper(workload, run_of(module_of(program))))

    program, nbytes, upper = workload.once("dense in halves", make)
    if not upper <= tol:
        return Refusal(UNREACHABLE, f"error up to {upper:.1e}; it has no knob")
    ways = in_torch(module_of(program)), *ways_in_onnxruntime(graph_of(program, narrow=False))
    return Offer(nbytes, ways, "widened at loading", _work(program), {"nodes": _nodes(program)})


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

        found = loosest(make, holds, TIGHTEST, LOOSEST)
        if not found:
            return Refusal(UNREACHABLE, "at no rank that is smaller than dense" if found is None else _NOT_SMALLER)
        program, nbytes = stored(found)
        ranks = {k: len(vt) for k, (_, vt) in found.items()}
        ways = in_torch(module_of(program)), *ways_in_onnxruntime(graph_of(program, narrow=False))
        shapes = {k: tuple(workload.program.constants[k].shape) for k in workload.program.weights}
        note = "ranks " + ", ".join(str(ranks.get(k, f"dense {min(s)}")) for k, s in shapes.items())
        return Offer(nbytes, ways, note, _work(program), {"ranks": ranks, "nodes": _nodes(program)})

    return method


def pruned_magnitude(workload: Workload, tol: float) -> Offer | Refusal:
    """Entries below one threshold relative to their matrix's norm dropped, as compressed sparse rows."""
    weights = _weights(workload.program)
    squares = workload.once(
        "sorted", lambda: {k: w.flatten().square().sort().values.cumsum(0) for k, w in weights.items()}
    )

    def make(t: float) -> dict[str, Tensor]:
        kept = {k: w.numel() - int((squares[k] <= t * t * squares[k][-1]).sum()) for k, w in weights.items()}
        smaller = {k: n for k, n in kept.items() if _csr_nbytes(weights[k], n) < 4 * weights[k].numel()}
        return {k: _largest(weights[k], n) for k, n in smaller.items()}

    def holds(found: dict[str, Tensor]) -> bool:
        return accepted(workload, run_of(module_of(workload.program.with_constants(found))), tol)

    found = loosest(make, holds, TIGHTEST, LOOSEST)
    if not found:
        return Refusal(
            UNREACHABLE, "at no share of entries that is smaller than dense" if found is None else _NOT_SMALLER
        )
    counts = {k: int((w != 0).sum()) for k, w in found.items()}
    stored = {k: _csr_nbytes(w, counts[k]) for k, w in found.items()}
    nbytes = workload.dense_nbytes - sum(4 * w.numel() for w in found.values()) + sum(stored.values())
    program = workload.program.with_constants(found)
    sparse = module_of(program, {k: SparseLinear for k in found})
    ways = (
        in_torch(sparse, backend="torch.sparse"),
        in_onnxruntime(graph_of(program, narrow=False), "onnxruntime, zeros and all"),
    )
    share = sum(counts.values()) / sum(w.numel() for w in found.values())
    work = _work(workload.program) - sum(w.numel() for w in found.values()) + sum(counts.values())
    return Offer(nbytes, ways, f"{share:.0%} of entries kept in {len(found)} of {len(weights)} layers", work)


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
    found = {k: _two_of_four(w) for k, w in weights.items()}
    upper = _upper(workload, run_of(module_of(workload.program.with_constants(found))))
    if not upper <= tol:
        return Refusal(
            UNREACHABLE, f"error up to {upper:.1e} with the two largest of every four entries; it has no knob"
        )
    try:
        for w in found.values():
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
        return Offer(model.nbytes, ways, on_rows=partial(_as_run, model))

    return method


def _as_run(model: hrt.CompressedModel, batch: int) -> tuple[str, int, dict[str, Any]]:
    """Note, multiply-adds of a row, and facts: of the graph that ONNX Runtime runs on so many rows."""
    forms = forms_for(model.program, batch)
    layers = [_layer(model.program.constants[name], forms[name]) for name in model.program.weights]
    facts = {
        "nodes": len(graph_of(model.program, narrow=False, forms=forms).graph.node),
        "layers": len(layers),
        "multiplied": sum(f == "multiplied" for f in forms.values()),
        "dense": sum(f == "dense" for f in forms.values()),
        "leaves": sum(n for n, _ in layers),
        "reasons": dict.fromkeys(r.reason for r in model.certificate.layers),
    }
    note = f"{facts['leaves']} leaves in {len(layers)} layers"
    if facts["multiplied"] or facts["dense"]:
        note += f", {facts['multiplied'] + facts['dense']} of them run as dense products"
    return note, sum(w for _, w in layers), facts


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


def _nbytes(program: Program) -> int:
    """Of all constants in float32."""
    return sum(4 * int(np.prod(c.shape)) for c in program.constants.values())


def _in_halves(program: Program) -> tuple[Program, int]:
    """The program with its matrices rounded to float16, and bytes with those stored so."""
    matrices = {k: c for k, c in program.constants.items() if isinstance(c, Tensor) and c.ndim == 2}
    rounded = {k: c.to(torch.float16).to(torch.float32) for k, c in matrices.items()}
    return program.with_constants(rounded), _nbytes(program) - sum(2 * c.numel() for c in matrices.values())


def _layer(weight: Any, form: str) -> tuple[int, int]:
    """Leaves, and multiply-adds of one row as run."""
    m, n = weight.shape
    if not isinstance(weight, HMatrix):
        return 1, m * n
    sizes = [e.rows * e.cols if e.is_dense else e.rank * (e.rows + e.cols) for e in weight.leaves]
    return len(sizes), m * n if form in ("dense", "multiplied") else sum(sizes)


_NOT_SMALLER = "nothing smaller than dense"


def _all_factors(workload: Workload, weighted: bool) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    moments = (
        workload.once("moments", lambda: second_moments(workload.program, workload.calibration)) if weighted else {}
    )
    return {k: svd_factors(w, moments.get(k)) for k, w in _weights(workload.program).items()}


def _cut(factors: tuple[Tensor, Tensor, Tensor], t: float) -> tuple[Tensor, Tensor] | None:
    """u (m, r) and vt (r, n) of the least rank within `t`; None where that is no smaller than dense."""
    u, vt, tail2 = factors
    rank = max(1, int((tail2 > t * t * tail2[0]).sum()))
    return None if rank * (len(u) + vt.shape[1]) >= len(u) * vt.shape[1] else (u[:, :rank], vt[:rank])


def _csr_nbytes(w: Tensor, kept: int) -> int:
    rows, cols = w.shape
    return csr_nbytes(rows, cols, kept)


def _largest(w: Tensor, count: int) -> Tensor:
    places = w.abs().flatten().topk(max(1, count)).indices
    return torch.zeros_like(w).flatten().index_copy_(0, places, w.flatten()[places]).reshape(w.shape)


def _two_of_four(w: Tensor) -> Tensor:
    groups = w.reshape(-1, 4)
    places = groups.abs().topk(2, dim=1).indices
    return torch.zeros_like(groups).scatter(1, places, groups.gather(1, places)).reshape(w.shape)


def _weights(program: Program) -> dict[str, Tensor]:
    return {k: w for k in program.weights if isinstance(w := program.constants[k], Tensor)}


def _work(program: Program) -> int:
    return sum(int(np.prod(program.constants[n.inputs[1]].shape)) for n in program.linear_nodes)


def _nodes(program: Program) -> int:
    return len(graph_of(program, narrow=False).graph.node)


def _upper(workload: Workload, run: Run) -> float:
    return search_error(workload, run).upper_99


def _narrow_run(net: nn.Module, dtype: torch.dtype) -> Run:
    return lambda x: net(*(v.to(dtype) for v in x))


def first_line(error: BaseException) -> str:
    """A foreign error's first line."""
    return (str(error).strip().splitlines() or ["no message"])[0][:300]


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
