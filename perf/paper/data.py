"""The measurements behind `python -m hrt.perf.paper.command`: on the Burgers PINN and one Green's operator, nothing drawn.

Every function returns plain rows (dicts of figures by name), which are written beside the picture that shows them.
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
from hrt.hmatrix.hmatrix import HMatrix
from hrt.perf.methods.catalogue import METHODS, offered
from hrt.perf.methods.matched_error import Offer, fresh_error
from hrt.perf.methods.svd import Problem, svd_factors, svd_nbytes, truncated
from hrt.perf.networks.burgers import burgers_points, cole_hopf, load_burgers, sample
from hrt.perf.networks.operators import reaction_diffusion_green
from hrt.perf.networks.registry import FRESH, build
from hrt.perf.paper.trained_networks import Run, Training, trained

Rows = list[dict[str, Any]]
SVD, ALGORITHM, FLOAT32, AUTO = "global SVD", "Algorithm 1", "hrt, float32 only", "hrt, any storage"
PINN = "Burgers PINN"
MAP = 128  # cells of a heat map to a side


@dataclass(frozen=True)
class Setting:
    """How much is measured. tols: output errors asked for.  sweep: Frobenius tolerances of SVD and Algorithm 1.  size:
    of the operator.  batches, rounds: of the timing.  calibration, fresh: points of the PINN.  training: what is
    trained.
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
        """A few figures of each, in a few minutes."""
        sweep = tuple(10.0**-k for k in range(1, 5))
        return Setting((1e-2, 1e-3), sweep, 256, (1, 256), 6, 4_000, 4_000, Training.quick())


@dataclass(frozen=True, eq=False)
class Subject:
    """The networks and what hrt makes of them, each made when it is first asked for. net: the Burgers PINN.
    calibration: rows that hrt sees; nothing is reported on them.  models: the PINN compressed, by (storage, tol).
    matrix: the operator's (n, n) float64.  runs: the networks that are trained.
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
            for name, storage in ((FLOAT32, "float32"), (AUTO, "auto"))
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

    def middle(self, name: str = AUTO) -> hrt.CompressedModel:
        """The PINN at 1e-3."""
        return self.models[name, 1e-3]


def compression(s: Subject) -> Rows:
    """Ratio against error of global SVD, the paper's Algorithm 1 and hrt: output error of the PINN on points that
    nothing was tuned on, Frobenius error of the operator.
    """
    rows: Rows = []
    weights, dense = s.problem.weights, s.problem.dense_nbytes

    def add(case: str, method: str, asked: float, nbytes: int, total: int, error: float) -> None:
        rows.append({"case": case, "method": method, "asked": asked, "bytes": nbytes, "ratio": total / nbytes})
        rows[-1]["error"] = error

    for t in s.setting.sweep:
        cut = {k: truncated(w, t) for k, w in weights.items()}
        nbytes = s.problem.rest_nbytes + sum(svd_nbytes(weights[k].shape, len(vt)) for k, (_, vt) in cut.items())
        add(PINN, SVD, t, nbytes, dense, network_error(s.problem, {k: u @ vt for k, (u, vt) in cut.items()}))
        trees = {k: hrt.adaptive_partition(w, t, min_leaf=8) for k, w in weights.items()}
        nbytes = s.problem.rest_nbytes + sum(h.nbytes for h in trees.values())
        add(PINN, ALGORITHM, t, nbytes, dense, network_error(s.problem, {k: h.to_dense() for k, h in trees.items()}))
        u, vt = truncated(s.matrix, t)
        total = 4 * s.matrix.numel()
        add(s.operator, SVD, t, svd_nbytes(s.matrix.shape, len(vt)), total, frobenius(u @ vt, s.matrix))
        h = hrt.adaptive_partition(s.matrix, t)
        add(s.operator, ALGORITHM, t, h.nbytes, total, frobenius(h.to_dense(), s.matrix))
    for (name, tol), model in s.models.items():
        add(PINN, name, tol, model.nbytes, dense, output_error(s, model))
    for tol in s.setting.tols:
        for name, storage in ((FLOAT32, "float32"), (AUTO, "auto")):
            h = hrt.compress_matrix(s.matrix, tol=tol, storage=storage)
            add(s.operator, name, tol, h.nbytes, 4 * s.matrix.numel(), frobenius(h.to_dense(), s.matrix))
    return rows


def heat_maps(s: Subject) -> Rows:
    """|W|, |H| and |W - H| of the widest layer of the PINN and of the operator, both at 1e-3, as root mean squares of
    what lies in a cell of `MAP` x `MAP` (in the order in which H was cut), and the leaves of H.
    """
    program = s.middle().program
    name, w = max(s.problem.weights.items(), key=lambda kv: kv[1].numel())
    h = program.constants[name]
    layer = h if isinstance(h, HMatrix) else HMatrix.from_dense(h)
    tree = hrt.compress_matrix(s.matrix, tol=1e-3, storage="auto")
    return [_maps(PINN, f"layer {name}", w, layer), _maps(s.operator, "its matrix", s.matrix, tree)]


def _maps(case: str, what: str, w: Tensor, h: HMatrix) -> dict[str, Any]:
    found = h.to_dense()
    rows = slice(None) if h.row_order is None else torch.as_tensor(h.row_order).long()
    cols = slice(None) if h.col_order is None else torch.as_tensor(h.col_order).long()
    parts = {"W": w, "H": found, "E": w - found}
    leaves = [[e.row, e.rows, e.col, e.cols, -1 if e.is_dense else e.rank] for e in h.leaves]
    maps = {k: coarse(v[rows][:, cols]) for k, v in parts.items()}
    shown = {k: [[float(f"{x:.4g}") for x in line] for line in m.tolist()] for k, m in maps.items()}
    error, ratio = frobenius(found, w), 4 * w.numel() / h.nbytes
    return {
        "case": case,
        "what": what,
        "shape": list(w.shape),
        "error": error,
        "ratio": ratio,
        "leaves": leaves,
        **shown,
    }


def coarse(m: Tensor, side: int = MAP) -> Tensor:
    """Root mean squares of a grid of at most `side` x `side` cells of `m`."""
    rows, cols = (np.array_split(np.arange(n), min(n, side)) for n in m.shape)
    squares = torch.stack([m[torch.as_tensor(r)].square().mean(dim=0) for r in rows])
    return torch.stack([squares[:, torch.as_tensor(c)].mean(dim=1) for c in cols], dim=1).sqrt()


def train_and_test(s: Subject) -> Rows:
    """Error against the exact solution on points of the distribution that the PINN was trained on, and on a uniform
    grid that it never saw; and error against the uncompressed network on hrt's calibration rows and on fresh ones.
    """
    inside, edge, _ = sample(8000, torch.Generator().manual_seed(77))
    train = torch.cat((inside, edge))
    x, t = np.meshgrid(np.linspace(-1, 1, 257), np.linspace(0, 1, 51))
    test = torch.from_numpy(np.stack((x.ravel(), t.ravel()), 1))
    exact = {k: torch.from_numpy(cole_hopf(*p.numpy().T)) for k, p in (("train", train), ("test", test))}
    original = s.problem.program
    known = evaluate(original, [s.calibration.double()])
    rows: Rows = []
    subjects: list[tuple[str, float, float, Callable[[Tensor], Tensor], float]]
    subjects = [("uncompressed", 0.0, 1.0, lambda p: evaluate(original, [p])[:, 0], 0.0)]
    for (name, tol), model in s.models.items():
        predict = _predictor(model)
        seen = relative(predict(s.calibration.double())[:, None], known)
        subjects.append((name, tol, model.compression_ratio, predict, seen))
    for name, tol, ratio, predict, seen in subjects:
        row: dict[str, Any] = {"method": name, "asked": tol, "ratio": ratio}
        row |= {f"{k}_error": relative(predict(p), exact[k]) for k, p in (("train", train), ("test", test))}
        fresh = 0.0 if name == "uncompressed" else output_error(s, s.models[name, tol])
        rows.append(row | {"calibration_difference": seen, "fresh_difference": fresh})
    return rows


def comparison(s: Subject) -> Rows:
    """Bytes of every method of the harness on the PINN at the same error, reported on points that none was tuned on."""
    workload = build("burgers")
    rows: Rows = []
    for tol in (t for t in (1e-2, 1e-3, 1e-4) if t in s.setting.tols):
        for name in (m for m in METHODS if not m.startswith("dense float32")):
            offer = offered(METHODS[name], workload, tol)
            known = offer if isinstance(offer, Offer) else None
            rows.append({"method": name, "family": family(name), "asked": tol})
            rows[-1]["bytes"] = known.nbytes if known else None
            rows[-1]["ratio"] = workload.dense_nbytes / known.nbytes if known else None
            rows[-1]["error"] = fresh_error(workload, known.executions[0].bind, FRESH) if known else None
    return rows


def family(method: str) -> str:
    """Which of the methods that the paper compares with this is."""
    kinds = {"svd": "SVD", "pruned": "pruning", "hrt": "hrt"}
    return next((kind for start, kind in kinds.items() if method.startswith(start)), "quantized")


def propagation(s: Subject) -> Rows:
    """Error of what leaves every layer of the PINN, in float64 on fresh points: with all layers compressed, with this
    one alone, and the error of the weight in the norm of its inputs; hrt at 1e-3 and a global SVD of the same output
    error.
    """
    original = s.problem.program
    reference = layer_outputs(original, s.problem.fresh)
    t = svd_tolerance(s, 1e-3)
    svd = original.with_constants({k: u @ vt for k, w in s.problem.weights.items() for u, vt in [truncated(w, t)]})
    stored = s.middle().program
    ours = stored.with_constants({k: _dense(stored.constants[k]) for k in s.problem.weights})
    rows: Rows = []
    for method, program in ((AUTO, ours), (SVD, svd)):
        found = layer_outputs(program, s.problem.fresh)
        for number, node in enumerate(original.linear_nodes):
            name = node.inputs[1]
            own = {k: program.constants[k] for k in node.inputs[1:]}  # hrt corrects biases, too
            alone = layer_outputs(original.with_constants(own), s.problem.fresh)[name]
            row = {
                "method": method,
                "layer": number + 1,
                "weight": name,
                "error": relative(found[name], reference[name]),
            }
            row["alone"] = relative(alone, reference[name])
            rows.append(row | {"frobenius": frobenius(_dense(own[name]), s.problem.weights[name])})
    return rows


def layer_outputs(program: Any, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """What every linear layer gives (before its activation), by weight, float64."""
    found: dict[str, Tensor] = {}

    def observe(node: Any, arguments: tuple[Any, ...]) -> None:
        if node.op == "linear":
            found[node.inputs[1]] = node.row.torch(arguments, node.attrs)

    with torch.no_grad():
        program.run(inputs, observe=observe)
    return found


def svd_tolerance(s: Subject, tol: float) -> float:
    """The loosest common Frobenius tolerance, to a twentieth of a decade, whose SVDs keep the output error."""
    factors = {k: svd_factors(w) for k, w in s.problem.weights.items()}
    for step in range(121):
        t = 10.0 ** (-step / 20)
        cut = {}
        for k, (u, vt, tail2) in factors.items():
            rank = int((tail2 > t**2 * tail2[0]).sum())
            cut[k] = u[:, :rank] @ vt[:rank]
        if network_error(s.problem, cut) <= tol:
            return t
    return 1e-6


def network_error(problem: Problem, weights: Mapping[str, Tensor]) -> float:
    """Output error on the fresh points with `weights` in place, float64."""
    return relative(evaluate(problem.program.with_constants(weights), problem.fresh), problem.reference)


def output_error(s: Subject, model: hrt.CompressedModel) -> float:
    """Of what `predict` answers on the fresh points, float32."""
    return relative(_predictor(model)(s.problem.fresh[0].double())[:, None], s.problem.reference)


def _predictor(model: hrt.CompressedModel) -> Callable[[Tensor], Tensor]:
    return lambda p: model.predict(p.float()).double()[:, 0]


def _dense(constant: Any) -> Tensor:
    return constant.to_dense() if isinstance(constant, HMatrix) else constant.double()


def frobenius(found: Tensor, w: Tensor) -> float:
    """||W - H||_F / ||W||_F."""
    return float((found - w).norm() / w.norm())


def relative(found: Tensor, expected: Tensor) -> float:
    """||found - expected|| / ||expected||."""
    return float((found - expected).norm() / expected.norm())
