"""The measurements behind `python -m hrt.perf.paper figures`: on the Burgers PINN and one Green's operator.

Errors are relative L2. A ratio is dense float32 bytes over bytes, biases and tables counted.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import hrt
from hrt.calibration.moments import evaluate, layer_moments
from hrt.capture import capture
from hrt.hmatrix.hmatrix import HMatrix, relative_difference
from hrt.matrix_compression.span_weight import cholesky_psd
from hrt.perf.measuring.bursts import bursts
from hrt.perf.methods.catalogue import METHODS, offered
from hrt.perf.methods.matched_error import Offer, fresh_error, rotated
from hrt.perf.methods.svd import Problem
from hrt.perf.networks.burgers import burgers_points, cole_hopf, exact_solution, load_burgers, sample
from hrt.perf.networks.operators import reaction_diffusion_green
from hrt.perf.networks.registry import FRESH, build
from hrt.perf.paper.complexity import Sizes
from hrt.perf.paper.output import Rows
from hrt.perf.paper.rates import Descent
from hrt.perf.paper.trained_networks import DENSE, SNAPSHOT, Run, Training, trained
from hrt.perf.paper.weight_methods import (
    ALGORITHM,
    AUTO,
    FLOAT32,
    LEAST,
    MAKERS,
    SVD,
    at_output,
    at_weights,
    network_error,
)

STORAGES = {FLOAT32: "float32", AUTO: "auto"}
PINN = "Burgers PINN"
TIMED = ("dense float32", "svd", "pruned, magnitude", "quantized, onnxruntime int8 dynamic", "hrt")
TIMED_AT = 1e-2  # where most methods get to; those that do not are left out
LEFT_OUT = ("torch.compile",)  # minutes of compiling; the harness has it
MAP = 128  # cells of a heat map to a side
FEATURES = 5  # leading singular vectors: what "essential features" is taken to be


@dataclass(frozen=True)
class Setting:
    """How much is measured. tols: output errors asked for.  sweep: Frobenius tolerances of SVD and Algorithm 1.
    through: tolerances at which errors are followed through the layers, all of them among `tols`.  size: of the
    operator.  batches, rounds: of the timing.  calibration, fresh: points of the PINN.
    """

    tols: tuple[float, ...] = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4)
    sweep: tuple[float, ...] = tuple(10.0 ** (-k / 3) for k in range(1, 15))
    through: tuple[float, ...] = (1e-1, 1e-2, 1e-3)
    size: int = 1024
    batches: tuple[int, ...] = (1, 16, 128, 1024)
    rounds: int = 20
    calibration: int = 10_000
    fresh: int = 10_000
    training: Training = field(default_factory=Training)
    descent: Descent = field(default_factory=Descent)
    sizes: Sizes = field(default_factory=Sizes)

    @staticmethod
    def quick() -> "Setting":
        sweep = tuple(10.0**-k for k in range(1, 5))
        return Setting(
            (1e-1, 1e-2, 1e-3), sweep, (1e-1, 1e-2, 1e-3), 256, (1, 16, 256), 6, 4_000, 4_000,
            Training.quick(), Descent.quick(), Sizes.quick(),
        )  # fmt: skip


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
    dense = {PINN: s.problem.dense_nbytes, s.operator: 4 * s.matrix.numel()}

    def add(case: str, method: str, asked: float, nbytes: int, error: float) -> None:
        known = {"bytes": nbytes, "ratio": dense[case] / nbytes, "error": error}
        rows.append({"case": case, "method": method, "asked": asked} | known)

    for t in s.setting.sweep:
        for method in (SVD, ALGORITHM):
            nbytes, made = at_weights(s.problem, method, t)
            add(PINN, method, t, nbytes, network_error(s.problem, made))
            nbytes, matrix = MAKERS[method](s.matrix, t)
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
    tree = hrt.compress_matrix(s.matrix, tol=1e-3, storage="auto")
    covariance = layer_moments(s.problem.program, [x.double() for x in s.problem.fresh])[name].covariance
    return [
        maps(PINN, f"layer {name}", w, _stored(s.middle, name), covariance),
        maps(s.operator, "its matrix", s.matrix, tree, None),
    ]


def snapshot(s: Subject) -> Rows:
    """The same of the first hidden layer of every dense network in training, after epoch SNAPSHOT: by hrt at 1e-2 of
    the output, and by Algorithm 1 at 1e-2 of the weight.
    """
    rows: Rows = []
    for run in (r for r in s.runs if r.method == DENSE.name and r.seed == s.setting.training.seeds[0]):
        network, inputs = run.snapshot.float(), burgers_points(s.setting.training.calibration, run.seed)
        model = hrt.compress(network, inputs=inputs, tol=1e-2, target="bytes", progress=False)
        name, moments = list(layer_moments(capture(network, [inputs[:2]]), [inputs.double()]).items())[1]
        w = network.get_parameter(name).detach().double()
        case = f"{run.equation.name}, epoch {SNAPSHOT}"
        rows.append(maps(case, "layer 1 by hrt", w, _stored(model, name), moments.covariance))
        algorithm = hrt.adaptive_partition(w, 1e-2, min_leaf=LEAST)
        rows.append(maps(case, "layer 1 by Algorithm 1", w, algorithm, moments.covariance))
    return rows


def _stored(model: hrt.CompressedModel, name: str) -> HMatrix:
    h = model.program.constants[name]
    return h if isinstance(h, HMatrix) else HMatrix.from_dense(h)


def maps(case: str, what: str, w: Tensor, h: HMatrix, covariance: Tensor | None) -> dict[str, Any]:
    """A matrix before and after. covariance: of its inputs, where it has any: biases make up for their mean."""
    dense = h.to_dense()
    orders = [
        torch.arange(size) if order is None else torch.as_tensor(order).long()
        for order, size in zip((h.row_order, h.col_order), w.shape, strict=True)
    ]
    row: dict[str, Any] = {"case": case, "what": what, "shape": list(w.shape), "ratio": 4 * w.numel() / h.nbytes}
    row |= {"error": relative_difference(dense, w), "angle": widest_angle(w, dense)}
    row |= {"weighted": None, "seen_angle": None}
    if covariance is not None:
        root = cholesky_psd(covariance)
        row |= {
            "weighted": weighted_difference(dense, w, covariance),
            "seen_angle": widest_angle(w @ root, dense @ root),
        }
    row["values"] = {"W": torch.linalg.svdvals(w).tolist(), "H": torch.linalg.svdvals(dense).tolist()}
    row["leaves"] = [[e.row, e.rows, e.col, e.cols, -1 if e.is_dense else e.rank] for e in h.leaves]
    for key, part in (("W", w), ("H", dense), ("E", w - dense)):
        cells = coarse(part[orders[0]][:, orders[1]])
        row[key] = [[float(f"{x:.4g}") for x in line] for line in cells.tolist()]
    return row


def weighted_difference(a: Tensor, b: Tensor, second: Tensor) -> float:
    """sqrt(tr (a - b) C (a - b)^T / tr b C b^T): the relative error of outputs, rms over inputs."""
    error, size = ((m @ second * m).sum() for m in (a - b, b))
    return float((error.clamp(min=0) / size).sqrt())


def widest_angle(w: Tensor, h: Tensor, count: int = FEATURES) -> float:
    """The largest principal angle, degrees, between the leading singular vectors of both, left or right."""
    spaces = [torch.linalg.svd(m, full_matrices=False) for m in (w, h)]
    pairs = [[s[0][:, :count] for s in spaces], [s[2][:count].T for s in spaces]]
    sines = [torch.linalg.norm(b - a @ (a.T @ b), 2) for a, b in pairs]
    return float(torch.rad2deg(torch.asin(torch.stack(sines).max().clamp(max=1.0))))


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
    """Bytes of every method of the harness on the PINN at the same error, reported on points that none was tuned on;
    and of the paper's Algorithm 1, one tolerance for all weights, which is tuned on those very points.
    """
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
        nbytes, made = at_output(s.problem, ALGORITHM, tol)
        row = {"method": ALGORITHM, "family": "paper", "asked": tol, "bytes": nbytes}
        rows.append(row | {"ratio": s.problem.dense_nbytes / nbytes, "error": network_error(s.problem, made)})
    return rows


def family(method: str) -> str:
    """Which of the methods that the paper compares with this is."""
    kinds = {"svd": "SVD", "pruned": "pruning", "hrt": "hrt"}
    return next((kind for start, kind in kinds.items() if method.startswith(start)), "quantized")


def speed(s: Subject) -> Rows:
    """Microseconds of a call at TIMED_AT, of both networks: every method of TIMED, the fastest execution of each."""
    rows: Rows = []
    for case, workload in ((PINN, build("burgers")), (s.operator, build(f"green-1d:{s.setting.size}"))):
        offers = {name: offered(METHODS[name], workload, TIMED_AT) for name in TIMED}
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
                row["beside"] = {name: times[rival].ratio(time) for name, rival in fastest.items() if name != key[0]}
                rows.append(row | {"ratio": ratio, "low": low, "high": high})
    return rows


def output_error(s: Subject, model: hrt.CompressedModel) -> float:
    """Of what `predict` answers on the fresh points, float32."""
    return relative_difference(_predictor(model)(s.problem.fresh[0])[:, None], s.problem.reference)


def _predictor(model: hrt.CompressedModel) -> Callable[[Tensor], Tensor]:
    return lambda p: torch.as_tensor(model.predict(p.float())).double()[:, 0]
