"""The measurements behind `python -m hrt.perf.paper figures`: on the Burgers PINN and one Green's operator.

Errors are relative L2. A ratio is dense float32 bytes over bytes, biases and tables counted.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import hrt
from hrt.calibration.moments import evaluate
from hrt.hmatrix.hmatrix import HMatrix, relative_difference
from hrt.perf.measuring.bursts import bursts
from hrt.perf.methods.catalogue import METHODS, offered
from hrt.perf.methods.matched_error import Offer, fresh_error, rotated
from hrt.perf.methods.svd import Problem, svd_at_output_error, svd_nbytes, truncated
from hrt.perf.networks.burgers import burgers_points, cole_hopf, exact_solution, load_burgers, sample
from hrt.perf.networks.operators import reaction_diffusion_green
from hrt.perf.networks.registry import FRESH, build
from hrt.perf.paper.output import Rows
from hrt.perf.paper.trained_networks import Run, Training, trained
from hrt.program import Program, to_float64

SVD, ALGORITHM, FLOAT32, AUTO = "global SVD", "Algorithm 1", "hrt, float32 only", "hrt, any storage"
STORAGES = {FLOAT32: "float32", AUTO: "auto"}
PINN = "Burgers PINN"
LEFT_OUT = ("torch.compile",)  # minutes of compiling; the harness has it
MAP = 128  # cells of a heat map to a side


@dataclass(frozen=True)
class Setting:
    """How much is measured. tols: output errors asked for.  sweep: Frobenius tolerances of SVD and Algorithm 1.  size:
    of the operator.  batches, rounds: of the timing.  calibration, fresh: points of the PINN.
    """

    tols: tuple[float, ...] = (3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4)
    sweep: tuple[float, ...] = tuple(10.0 ** (-k / 3) for k in range(1, 15))
    size: int = 1024
    batches: tuple[int, ...] = (1, 16, 128, 1024)
    rounds: int = 20
    calibration: int = 10_000
    fresh: int = 10_000
    training: Training = field(default_factory=Training)

    @staticmethod
    def quick() -> "Setting":
        sweep = tuple(10.0**-k for k in range(1, 5))
        return Setting((1e-2, 1e-3), sweep, 256, (1, 256), 6, 4_000, 4_000, Training.quick())


@dataclass(frozen=True, eq=False)
class Subject:
    """The networks and what hrt makes of them, each made when it is first asked for. models: the PINN compressed, by
    (storage, tol).  matrix: the operator's (n, n) float64.
    """

    setting: Setting

    @cached_property
    def net(self) -> nn.Module:
        return load_burgers()

    @cached_property
    def calibration(self) -> Tensor:
        return burgers_points(self.setting.calibration, 1)

    @cached_property
    def problem(self) -> Problem:
        return Problem.make(self.net, burgers_points(self.setting.fresh, 2024))

    @cached_property
    def models(self) -> Mapping[tuple[str, float], hrt.CompressedModel]:
        options: dict[str, Any] = {"inputs": self.calibration, "target": "bytes", "progress": False}
        return {
            (name, tol): hrt.compress(self.net, tol=tol, storage=storage, **options)
            for name, storage in STORAGES.items()
            for tol in self.setting.tols
        }

    @cached_property
    def matrix(self) -> Tensor:
        return torch.as_tensor(reaction_diffusion_green(self.setting.size))

    @property
    def operator(self) -> str:
        return f"reaction-diffusion operator, {self.setting.size}"

    @cached_property
    def runs(self) -> list[Run]:
        return trained(self.setting.training)

    @property
    def middle(self) -> hrt.CompressedModel:
        """The PINN at 1e-3."""
        return self.models[AUTO, 1e-3]


def compression(s: Subject) -> Rows:
    """Ratio against error of global SVD, the paper's Algorithm 1 and hrt: output error of the PINN on points that
    nothing was tuned on, Frobenius error of the operator.
    """
    rows: Rows = []
    weights, dense = s.problem.weights, {PINN: s.problem.dense_nbytes, s.operator: 4 * s.matrix.numel()}

    def add(case: str, method: str, asked: float, nbytes: int, error: float) -> None:
        known = {"bytes": nbytes, "ratio": dense[case] / nbytes, "error": error}
        rows.append({"case": case, "method": method, "asked": asked} | known)

    def cut(w: Tensor, t: float, **_: int) -> tuple[int, Tensor]:
        u, vt = truncated(w, t)
        return svd_nbytes(w.shape, len(vt)), u @ vt

    def partitioned(w: Tensor, t: float, **least: int) -> tuple[int, Tensor]:
        h = hrt.adaptive_partition(w, t, **least)
        return h.nbytes, h.to_dense()

    for t in s.setting.sweep:
        for method, make in ((SVD, cut), (ALGORITHM, partitioned)):
            made = {k: make(w, t, min_leaf=8) for k, w in weights.items()}
            nbytes = s.problem.rest_nbytes + sum(n for n, _ in made.values())
            add(PINN, method, t, nbytes, network_error(s.problem, {k: m for k, (_, m) in made.items()}))
            nbytes, matrix = make(s.matrix, t)
            add(s.operator, method, t, nbytes, relative_difference(matrix, s.matrix))
    for (name, tol), model in s.models.items():
        add(PINN, name, tol, model.nbytes, output_error(s, model))
        h = hrt.compress_matrix(s.matrix, tol=tol, storage=STORAGES[name])
        add(s.operator, name, tol, h.nbytes, relative_difference(h.to_dense(), s.matrix))
    return rows


def heat_maps(s: Subject) -> Rows:
    """|W|, |H| and |W - H| of the widest layer of the PINN and of the operator, both at 1e-3, as root mean squares of
    cells (in the order in which H was cut), and the leaves of H.
    """
    name, w = max(s.problem.weights.items(), key=lambda kv: kv[1].numel())
    h = s.middle.program.constants[name]
    layer = h if isinstance(h, HMatrix) else HMatrix.from_dense(h)
    tree = hrt.compress_matrix(s.matrix, tol=1e-3, storage="auto")
    return [_maps(PINN, f"layer {name}", w, layer), _maps(s.operator, "its matrix", s.matrix, tree)]


def _maps(case: str, what: str, w: Tensor, h: HMatrix) -> dict[str, Any]:
    dense = h.to_dense()
    orders = [
        torch.arange(size) if order is None else torch.as_tensor(order).long()
        for order, size in zip((h.row_order, h.col_order), w.shape, strict=True)
    ]
    row: dict[str, Any] = {"case": case, "what": what, "shape": list(w.shape), "ratio": 4 * w.numel() / h.nbytes}
    row["error"] = relative_difference(dense, w)
    row["leaves"] = [[e.row, e.rows, e.col, e.cols, -1 if e.is_dense else e.rank] for e in h.leaves]
    for key, part in (("W", w), ("H", dense), ("E", w - dense)):
        cells = coarse(part[orders[0]][:, orders[1]])
        row[key] = [[float(f"{x:.4g}") for x in line] for line in cells.tolist()]
    return row


def coarse(m: Tensor, side: int = MAP) -> Tensor:
    """Root mean squares of a grid of at most `side` x `side` cells of `m`."""
    rows, cols = (np.array_split(np.arange(n), min(n, side)) for n in m.shape)
    squares = torch.stack([m[torch.as_tensor(r)].square().mean(dim=0) for r in rows])
    return torch.stack([squares[:, torch.as_tensor(c)].mean(dim=1) for c in cols], dim=1).sqrt()


def train_and_test(s: Subject) -> Rows:
    """Error against the exact solution on training points and on an unseen grid; and error against the uncompressed
    network on hrt's calibration rows and on fresh ones.
    """
    train = sample(8000, torch.Generator().manual_seed(77))[:, :2]
    exact = {"train": (train, torch.from_numpy(cole_hopf(*train.numpy().T))), "test": exact_solution()}
    original = s.problem.program
    reference = evaluate(original, [s.calibration.double()])[:, 0]

    targets = {f"{k}_error": known for k, known in exact.items()}
    targets["calibration_difference"] = (s.calibration.double(), reference)
    targets["fresh_difference"] = (s.problem.fresh[0].double(), s.problem.reference[:, 0])

    def row(method: str, asked: float, ratio: float, answer: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        errors = {k: relative_difference(answer(p), values) for k, (p, values) in targets.items()}
        return {"method": method, "asked": asked, "ratio": ratio} | errors

    rows = [row("uncompressed", 0.0, 1.0, lambda p: evaluate(original, [p])[:, 0])]
    for (name, tol), model in s.models.items():
        rows.append(row(name, tol, model.compression_ratio, _predictor(model)))
    return rows


def comparison(s: Subject) -> Rows:
    """Bytes of every method of the harness on the PINN at the same error, reported on points that none was tuned on."""
    workload = build("burgers")
    rows: Rows = []
    for tol in (t for t in (1e-2, 1e-3, 1e-4) if t in s.setting.tols):
        for name in (m for m in METHODS if not m.startswith("dense float32")):
            offer = offered(METHODS[name], workload, tol)
            row = {"method": name, "family": family(name), "asked": tol, "bytes": None, "ratio": None, "error": None}
            if isinstance(offer, Offer):
                error = fresh_error(workload, offer.executions[0].bind, FRESH)
                row |= {"bytes": offer.nbytes, "ratio": workload.dense_nbytes / offer.nbytes, "error": error}
            rows.append(row)
    return rows


def family(method: str) -> str:
    """Which of the methods that the paper compares with this is."""
    kinds = {"svd": "SVD", "pruned": "pruning", "hrt": "hrt"}
    return next((kind for start, kind in kinds.items() if method.startswith(start)), "quantized")


def speed(s: Subject) -> Rows:
    """Microseconds of a call at 1e-3, of both networks: dense, global SVD and hrt, the fastest execution of each."""
    rows: Rows = []
    for case, workload in ((PINN, build("burgers")), (s.operator, build(f"green-1d:{s.setting.size}"))):
        offers = {name: offered(METHODS[name], workload, 1e-3) for name in ("dense float32", "svd", "hrt")}
        executions = {
            (name, e.backend): e
            for name, offer in offers.items()
            for e in (offer.executions if isinstance(offer, Offer) else ())
            if e.backend not in LEFT_OUT
        }
        for batch in s.setting.batches:
            x = rotated(workload.fresh, batch, 0)
            calls = {", ".join(key): e.bind(x) for key, e in executions.items()}
            with torch.no_grad():
                bursted = bursts(calls, rounds=s.setting.rounds)
            times = {key: bursted[", ".join(key)] for key in executions}
            slowest_first = sorted(executions, key=lambda key: -times[key].p50_us)
            fastest = {key[0]: key for key in slowest_first}  # the last of a name stays
            best = times[fastest["dense float32"]]
            for key in (fastest[name] for name in offers if name in fastest):
                e, time = executions[key], times[key]
                ratio, low, high = best.ratio(time)
                row = {"case": case, "method": key[0], "backend": e.backend, "batch": batch}
                row |= {"error": fresh_error(workload, e.bind, batch), "p50_us": time.p50_us, "p95_us": time.p95_us}
                rows.append(row | {"ratio": ratio, "low": low, "high": high})
    return rows


def propagation(s: Subject) -> Rows:
    """Error of what leaves every layer of the PINN, in float64 on fresh points: with all layers compressed, with this
    one alone, and the error of the weight in the Frobenius norm; hrt at 1e-3 and a global SVD of the same output error.
    """
    original = s.problem.program
    reference = layer_outputs(original, s.problem.fresh)
    stored = s.middle.program
    ours = stored.with_constants({k: to_float64(stored.constants[k]) for k in s.problem.weights})
    ranks = svd_at_output_error(original, s.problem.fresh, 1e-3)[2]
    factors = {k: truncated(w, 0.0) for k, w in s.problem.weights.items()}
    cut = {k: u[:, : ranks[k]] @ vt[: ranks[k]] for k, (u, vt) in factors.items()}
    rows: Rows = []
    for method, program in ((AUTO, ours), (SVD, original.with_constants(cut))):
        together = layer_outputs(program, s.problem.fresh)
        for number, node in enumerate(original.linear_nodes, 1):
            name = node.inputs[1]
            layer = {k: program.constants[k] for k in node.inputs[1:]}  # hrt corrects biases, too
            alone = layer_outputs(original.with_constants(layer), s.problem.fresh)[name]
            compared = {"error": (together[name], reference[name]), "alone": (alone, reference[name])}
            compared["frobenius"] = (to_float64(layer[name]), s.problem.weights[name])
            errors = {k: relative_difference(*pair) for k, pair in compared.items()}
            rows.append({"method": method, "layer": number, "weight": name} | errors)
    return rows


def layer_outputs(program: Program, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """What every linear layer gives (before its activation), by weight, float64."""
    outputs: dict[str, Tensor] = {}

    def observe(node: Any, arguments: tuple[Any, ...]) -> None:
        if node.op == "linear":
            outputs[node.inputs[1]] = node.row.torch(arguments, node.attrs)

    with torch.no_grad():
        program.run(inputs, observe=observe)
    return outputs


def network_error(problem: Problem, weights: Mapping[str, Tensor]) -> float:
    """Output error on the fresh points with `weights` in place, float64."""
    return relative_difference(evaluate(problem.program.with_constants(weights), problem.fresh), problem.reference)


def output_error(s: Subject, model: hrt.CompressedModel) -> float:
    """Of what `predict` answers on the fresh points, float32."""
    return relative_difference(_predictor(model)(s.problem.fresh[0])[:, None], s.problem.reference)


def _predictor(model: hrt.CompressedModel) -> Callable[[Tensor], Tensor]:
    return lambda p: torch.as_tensor(model.predict(p.float())).double()[:, 0]
