"""The methods that the harness compares: dense, svd, pruned, hrt here; quantized in `hrt.perf.methods.quantizers`.

A method sets its knob on calibration and search rows and offers its executions, of which the fastest counts; or it says
why it cannot. Bytes are those of the stored form for all alike, biases in float32: what a library decodes or widens
when it loads is said in the note.
"""

import time
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hrt.export.onnx.exporter import graph_of
from hrt.perf.measuring.results import FAILED, MISSING, UNREACHABLE
from hrt.perf.methods.generated_c import int8_rows, ways_in_c
from hrt.perf.methods.matched_error import Execution, Method, Offer, Refusal, accepted, loosest, search_error, work_of
from hrt.perf.methods.ours import hrt_method
from hrt.perf.methods.quantizers import QUANTIZERS
from hrt.perf.methods.runtimes import (
    compiled,
    first_line,
    in_onnxruntime,
    in_torch,
    run_of,
    ways_in_onnxruntime,
    ways_in_openvino,
)
from hrt.perf.methods.svd import Factors, nbytes_of, second_moments, svd_factors, weights_of
from hrt.perf.networks.as_torch_module import factored, module_of
from hrt.perf.networks.burgers import torch_ways
from hrt.perf.networks.registry import MissingError, Workload
from hrt.program.program import Program

LOOSEST, TIGHTEST = 0.0, -7.0  # log10 of a weight's relative error, where knobs are searched
NOT_SMALLER = "nothing smaller than dense"


def dense_float32(workload: Workload, tol: float) -> Offer:
    """The reference, in every execution: torch as written, torch.compile, ONNX Runtime, OpenVINO, generated C."""

    def make() -> Offer:
        if workload.derivatives:
            nets = torch_ways()
            ways = *(in_torch(net, backend=name) for name, net in nets.items()), compiled(nets["torch.func"])
        else:
            net = workload.net if isinstance(workload.net, nn.Module) else module_of(workload.program)
            ways = in_torch(net), compiled(net), *ways_in_openvino(graph_of(workload.program, narrow=False))
            if workload.graph is not None:
                ways = (*ways, in_onnxruntime(workload.graph, "onnxruntime, others' graph"))
        return _offer(workload.dense_nbytes, workload.program, ways)

    return workload.once("dense", make)


def dense_narrow(dtype: torch.dtype, widened: bool = False) -> Method:
    """Weights in 16 bits, and arithmetic too, in torch; or `widened` to float32 at loading, as dense float32 runs."""

    def method(workload: Workload, tol: float) -> Offer | Refusal:
        program, narrow, nbytes = workload.program, None, workload.dense_nbytes // 2
        if widened:
            program, narrow, nbytes = _in_halves(workload.program)
        kind = torch.float32 if widened else dtype
        net = module_of(program).to(kind)
        run = run_of(lambda *x: net(*(v.to(kind) for v in x)))
        upper = workload.once(("dense", dtype, widened), lambda: search_error(workload, run).upper_99)
        if not upper <= tol:
            return Refusal(UNREACHABLE, f"error up to {upper:.1e}; it has no knob")
        if widened:
            return _offer(nbytes, program, (in_torch(net),), "widened at loading", narrow)
        ways = (in_torch(net, dtype), compiled(net, dtype))
        return Offer(nbytes, ways, work=work_of(program), arithmetic=str(dtype).removeprefix("torch."))

    return method


def svd(weighted: bool, halves: bool = False) -> Method:
    """Two thin layers per weight, cut at one relative error for all: of the weight, or of its outputs on the data.

    halves: weights and factors stored in float16, widened to float32 at loading.
    """

    def method(workload: Workload, tol: float) -> Offer | Refusal:
        factors = workload.once(("svd", weighted), lambda: _all_factors(workload, weighted))

        def make(t: float) -> dict[str, tuple[Tensor, Tensor]]:
            return {k: cut for k, f in factors.items() if (cut := _cut(f, t)) is not None}

        def stored(cut: dict[str, tuple[Tensor, Tensor]]) -> tuple[Program, Program, int]:
            program = factored(workload.program, cut)
            return _in_halves(program) if halves else (program, program, nbytes_of(program))

        def holds(cut: dict[str, tuple[Tensor, Tensor]]) -> bool:
            return accepted(workload, run_of(module_of(stored(cut)[0])), tol)

        cut = loosest(make, holds, TIGHTEST, LOOSEST)
        if not cut:
            return Refusal(UNREACHABLE, "at no rank that is smaller than dense" if cut is None else NOT_SMALLER)
        program, narrow, nbytes = stored(cut)
        shapes = {k: workload.program.constants[k].shape for k in workload.program.weights}
        ranks = (str(len(cut[k][1])) if k in cut else f"dense {min(shape)}" for k, shape in shapes.items())
        return _offer(nbytes, program, (in_torch(module_of(program)),), f"ranks {', '.join(ranks)}", narrow)

    return method


def pruned_magnitude(workload: Workload, tol: float) -> Offer | Refusal:
    """Entries below one threshold relative to their matrix's norm dropped, as compressed sparse rows."""
    weights = weights_of(workload.program)
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
    entries, total = sum(counts.values()), sum(w.numel() for w in sparse.values())
    nbytes = workload.dense_nbytes + sum(csr_nbytes(w, counts[k]) - 4 * w.numel() for k, w in sparse.items())
    program = workload.program.with_constants(sparse)
    ways = (
        in_torch(module_of(program, {k: SparseLinear for k in sparse}), backend="torch.sparse"),
        in_onnxruntime(graph_of(program, narrow=False), "onnxruntime, zeros and all"),
    )
    note = f"{entries / total:.0%} of entries kept in {len(sparse)} of {len(weights)} layers"
    return Offer(nbytes, ways, note, work_of(workload.program) - total + entries)


class SparseLinear(nn.Module):
    """x (batch, n) times the transpose of a CSR weight (m, n) with int32 indices, which MKL takes as they are."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "in beta state"
            csr = weight.to_sparse_csr()
            parts = csr.crow_indices().int(), csr.col_indices().int(), csr.values()
            self.weight: Tensor = torch.sparse_csr_tensor(*parts, size=weight.shape)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """(batch, m)."""
        y = torch.sparse.mm(self.weight, x.reshape(-1, x.shape[-1]).T).T
        y = y.reshape(*x.shape[:-1], y.shape[-1])
        return y if self.bias is None else y + self.bias


def _offer(
    nbytes: int, program: Program, ways: tuple[Execution, ...], note: str = "", narrow: Program | None = None
) -> Offer:
    """A program in float32, run by `ways`, in every way of ONNX Runtime and as generated C. There 16-bit numbers stay
    as they are stored, and are decoded as they are read.
    """
    proto = graph_of(program, narrow=False)
    facts = {"nodes": len(proto.graph.node)}
    ways = (*ways, *ways_in_onnxruntime(proto), *ways_in_c(program if narrow is None else narrow))
    return Offer(nbytes, ways, note, work_of(program), facts)


def _in_halves(program: Program) -> tuple[Program, Program, int]:
    """The program with its matrices rounded to float16: as float32 and as stored, and bytes with those stored so."""
    matrices = {k: c for k, c in program.constants.items() if isinstance(c, Tensor) and c.ndim == 2}
    halves = {k: c.to(torch.float16) for k, c in matrices.items()}
    wide = program.with_constants({k: c.to(torch.float32) for k, c in halves.items()})
    nbytes = nbytes_of(program) - sum(2 * c.numel() for c in matrices.values())
    return wide, program.with_constants(halves), nbytes


def _all_factors(workload: Workload, weighted: bool) -> dict[str, Factors]:
    moments = {}
    if weighted:
        moments = workload.once("moments", lambda: second_moments(workload.program, workload.calibration))
    return {k: svd_factors(w, moments.get(k)) for k, w in weights_of(workload.program).items()}


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


def offered(method: Method, workload: Workload, tol: float) -> Offer | Refusal:
    """What a method offers; every way to fail is a refusal. How long it took is kept by `made_s`."""
    start = time.perf_counter()
    try:
        offer = method(workload, tol)
        workload.once(("made", id(offer)), lambda: (time.perf_counter() - start, offer))  # which keeps its id
        return offer
    except MissingError as error:
        return Refusal(MISSING, str(error))
    except MemoryError as error:
        return Refusal(FAILED, f"ran out of memory {error}".strip())
    except Exception as error:  # other libraries raise whatever they like; a method that fails is a row
        return Refusal(FAILED, f"{type(error).__name__}: {first_line(error)}")


def made_s(workload: Workload, offer: Offer) -> float | None:
    """Seconds in which `offered` set the method up, when it first did."""
    return workload.memo.get(("made", id(offer)), (None,))[0]


def _checked(method: Method) -> Method:
    """The method, refused where derivatives are asked for, and where its network is no smaller than dense."""

    def checked(workload: Workload, tol: float) -> Offer | Refusal:
        if workload.derivatives:
            return Refusal(UNREACHABLE, "computes no derivatives")
        offer = method(workload, tol)
        if isinstance(offer, Offer) and offer.nbytes >= workload.dense_nbytes:
            return Refusal(UNREACHABLE, f"{NOT_SMALLER}: {offer.nbytes:,} bytes, {offer.note}")
        return offer

    return checked


_OTHERS: Mapping[str, Method] = {
    "dense bfloat16": dense_narrow(torch.bfloat16),
    "dense float16": dense_narrow(torch.float16),
    "dense float16, widened": dense_narrow(torch.float16, widened=True),
    "svd": svd(False),
    "svd, data-weighted": svd(True),
    "svd, data-weighted float16": svd(True, halves=True),
    "pruned, magnitude": pruned_magnitude,
    "quantized, int8 in generated C": int8_rows,
    **QUANTIZERS,
}
METHODS: Mapping[str, Method] = {
    "dense float32": dense_float32,
    **{name: _checked(method) for name, method in _OTHERS.items()},
    "hrt": hrt_method("cpu"),
    "hrt, fewest bytes": hrt_method("bytes", every=False),
}
USUAL = tuple(m for m in METHODS if m != "hrt, fewest bytes")  # which takes as long as "hrt" again
