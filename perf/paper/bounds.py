"""`python -m hrt.perf.paper bounds`: every checkable statement of the paper on random matrices, layers and networks.

One row (a dict of figures by name) for each verdict; what is violated is listed, always.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

import hrt
from hrt.calibration import Box
from hrt.calibration.moments import evaluate, layer_moments
from hrt.calibration.samples import as_samples
from hrt.capture import capture
from hrt.capture.onnx.file import read_onnx
from hrt.certificate import paper_statements as paper
from hrt.certificate.certificate import HOLDS, VACUOUS, VIOLATED, Statement
from hrt.certificate.layer_records import block_errors
from hrt.certificate.output_bound import output_bound
from hrt.hmatrix.hmatrix import HMatrix
from hrt.perf.networks.burgers import burgers_points, load_burgers
from hrt.perf.networks.deeponet import deeponet_inputs, train_deeponet
from hrt.perf.networks.neuralfoil import load_neuralfoil, sample_inputs
from hrt.perf.networks.operators import log_kernel, reaction_diffusion_green
from hrt.perf.networks.pinns import PROBLEMS, load_pinn, pinn_points
from hrt.perf.networks.qlknn import qlknn_inputs, qlknn_path
from hrt.perf.paper.output import Rows, table
from hrt.program import DenseView, Program, to_float64
from hrt.tangent_kernel import compare_ntk
from hrt.tangent_kernel.ntk_statements import ntk_statements

TOLS = (1e-1, 1e-2, 1e-3)
SMALLEST, LARGEST = 16, 256  # sides of random matrices
ROWS = 2000  # inputs that a layer's second moment is taken over
KERNEL_POINTS = 16
VERDICTS = (HOLDS, VIOLATED, VACUOUS)


@dataclass(frozen=True, eq=False)
class Subject:
    """A network as a Program, inputs that it is used on, and the box of them where it has one."""

    name: str
    program: Program
    inputs: tuple[Tensor, ...]
    box: Box | None = None

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weight matrices by name, float64."""
        return {name: to_float64(self.program.constants[name]) for name in self.program.weights}


@dataclass(frozen=True)
class Case:
    """What statements are made about. source, kind, of: a random matrix, a layer or a network.  norm: of the tol."""

    source: str
    kind: str
    of: str
    shape: tuple[int, ...]
    tol: float
    norm: str = "Frobenius"

    def rows(self, statements: Iterable[tuple[str, Statement]]) -> Rows:
        """A row for every statement, by its name."""
        parts = ("verdict", "bound", "measured", "remark")
        return [asdict(self) | {"statement": name} | {k: getattr(s, k) for k in parts} for name, s in statements]


def random_matrix(index: int, seed: int) -> tuple[str, Tensor]:
    """Matrix `index` of the run `seed`, (m, n) float64, and its kind; it depends on nothing else."""
    rng = np.random.default_rng([seed, index])
    kind = list(KINDS)[index % len(KINDS)]
    m, n = (int(v) for v in np.exp(rng.uniform(math.log(SMALLEST), math.log(LARGEST + 1), 2)))
    return kind, torch.from_numpy(np.ascontiguousarray(KINDS[kind](rng, m, n)))


def _orthogonal(rng: np.random.Generator, n: int, k: int) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((n, k)))[0]


def _with_spectrum(rng: np.random.Generator, m: int, n: int, decades: float) -> np.ndarray:
    k = min(m, n)
    return _orthogonal(rng, m, k) * 10.0 ** (-decades * np.arange(k) / max(1, k - 1)) @ _orthogonal(rng, n, k).T


def _low_rank(rng: np.random.Generator, m: int, n: int) -> np.ndarray:
    r = int(rng.integers(1, 9))
    noise = 10.0 ** rng.uniform(-6, -1) * rng.standard_normal((m, n))
    return rng.standard_normal((m, r)) @ rng.standard_normal((r, n)) + noise


def _kernel(rng: np.random.Generator, m: int, n: int) -> np.ndarray:
    return (log_kernel if rng.random() < 0.5 else reaction_diffusion_green)(max(m, n))[:m, :n]


KINDS: dict[str, Callable[[np.random.Generator, int, int], np.ndarray]] = {
    "Gaussian": lambda rng, m, n: rng.standard_normal((m, n)),
    "low rank and noise": _low_rank,
    "kernel": _kernel,
    "ill-conditioned": lambda rng, m, n: _with_spectrum(rng, m, n, rng.uniform(4, 14)),
    "well-conditioned": lambda rng, m, n: _with_spectrum(rng, m, n, rng.uniform(0, 0.5)),
    "permuted kernel": lambda rng, m, n: _kernel(rng, m, n)[rng.permutation(m)][:, rng.permutation(n)],
    "tiny entries": lambda rng, m, n: 10.0 ** -rng.uniform(10, 30) * _low_rank(rng, m, n),
}


def matrix_statements(w: Tensor, h: HMatrix, tol: float | None, second: Tensor) -> Iterator[tuple[str, Statement]]:
    """Every statement on W and H. tol: None where the Frobenius norm was not bounded.  second: E[x x^T] of inputs."""
    dense = h.to_dense()
    if tol is not None:
        yield "||E||_F <= tol ||W||_F", paper.global_frobenius(w, dense, tol)
    yield "||E||_F <= root of sum of blocks", paper.leaf_frobenius(w, dense, block_errors(w, h))
    spectra = paper.Spectra.of(w, dense)
    if spectra is None:
        return
    yield "singular values (Weyl)", paper.singular_values(spectra)
    yield "product, worst unit vector", paper.product(spectra, w - dense, None)
    yield "product, rms over inputs", paper.product(spectra, w - dense, second)
    yield "condition (paper)", paper.condition(spectra)
    yield "condition (theorem 1c)", paper.condition_first(spectra)
    yield "condition (Weyl)", paper.condition_exact(spectra)


def random_rows(count: int, seed: int) -> Rows:
    """Verdicts on random matrices, each at every tolerance. Inputs are Gaussian with a random covariance."""
    rows: Rows = []
    for index in track(range(count), "random matrices", console=Console(stderr=True), transient=True):
        kind, w = random_matrix(index, seed)
        mixing = torch.randn(w.shape[1], w.shape[1], generator=torch.Generator().manual_seed(index)).double()
        for tol in TOLS:
            h = hrt.compress_matrix(w, tol=tol, storage="auto")
            case = Case("random", kind, f"{index}", tuple(w.shape), tol)
            rows += case.rows(matrix_statements(w, h, tol, mixing.T @ mixing))
    return rows


def trained_rows(subject: Subject) -> Rows:
    """Verdicts on every layer of a network, in the Frobenius norm and in that of its inputs."""
    rows: Rows = []
    moments = layer_moments(subject.program, subject.inputs)
    for name, w in subject.weights.items():
        second = moments[name].second
        for tol in TOLS:
            for norm, moment in (("Frobenius", None), ("inputs", second)):
                h = hrt.compress_matrix(w, tol=tol, storage="auto", second_moment=moment)
                case = Case("trained", subject.name, name, tuple(w.shape), tol, norm)
                rows += case.rows(matrix_statements(w, h, tol if moment is None else None, second))
    return rows


def network_rows(subject: Subject) -> Rows:
    """Verdicts on a whole network whose weights are within tol in the Frobenius norm: kernels, and the box."""
    rows: Rows = []
    points = tuple(x[:KERNEL_POINTS] for x in subject.inputs)
    for tol in TOLS:
        layers = {k: hrt.compress_matrix(w, tol=tol, storage="auto") for k, w in subject.weights.items()}
        result = subject.program.with_constants(layers)
        drift = compare_ntk(subject.program, result, points, memory=4 << 30)
        statements = [(s.name, s) for s in ntk_statements(drift)]
        if subject.box is not None:
            before, after = (evaluate(p, subject.inputs) for p in (subject.program, result))
            proven = output_bound(DenseView(subject.program), DenseView(result), (subject.box,)).per_output
            if proven is not None:
                worst, rms = (before - after).abs().amax(0), before.square().mean(0).sqrt()
                statements.append(("output over the box", paper.box_statement(proven, worst, rms)))
        rows += Case("network", subject.name, "", (len(drift.before.values),) * 2, tol).rows(statements)
    return rows


def subjects() -> tuple[list[Subject], list[str]]:
    """The networks that are here, and why the others are not."""
    box = Box([-1.0, 0.0], [1.0, 1.0])
    here = [captured("Burgers PINN", load_burgers(), (burgers_points(ROWS, 1),), box)]
    for name, problem in PROBLEMS.items():
        box = Box(list(problem.low), list(problem.high))
        here.append(captured(f"{name} PINN", load_pinn(name), (pinn_points(name, ROWS, 1),), box))
    here.append(captured("DeepONet", train_deeponet()[0], deeponet_inputs(ROWS, 1)))
    missing = []
    for name, make in (
        ("NeuralFoil", lambda: captured("NeuralFoil", load_neuralfoil("xlarge"), (sample_inputs(ROWS, 1),))),
        ("QLKNN", lambda: Subject("QLKNN", read_onnx(qlknn_path()), as_samples(qlknn_inputs(ROWS, 1), 0))),
    ):
        try:
            here.append(make())
        except FileNotFoundError as error:
            missing.append(f"{name}: {error}")
    return here, missing


def captured(name: str, net: nn.Module, inputs: tuple[Tensor, ...], box: Box | None = None) -> Subject:
    """A module as a subject."""
    return Subject(name, capture(net, [x[:2] for x in inputs]), as_samples(inputs, 0), box)


def counted(rows: Rows, *keys: str) -> Rows:
    """How often each verdict came, by the figures called `keys`, in the order they came."""
    counts: dict[tuple[str, ...], Counter[str]] = {}
    for row in rows:
        counts.setdefault(tuple(row[k] for k in keys), Counter())[row["verdict"]] += 1
    return [dict(zip(keys, group, strict=True)) | {v: n[v] for v in VERDICTS} for group, n in counts.items()]


def summary(rows: Rows) -> Table:
    """Statement by verdict."""
    title = "W and H = compressed W, E = W - H; kernels of whole networks"
    return table(
        title,
        counted(rows, "source", "statement"),
        {"on": "{source}", "statement": "{statement}"} | {v: f"{{{v}}}" for v in VERDICTS},
    )


def violations(rows: Rows) -> Iterator[str]:
    """Every violation in one line: how often by kind, and the worst one in figures."""
    groups: dict[tuple[str, str, str], Rows] = {}
    for row in rows:
        if row["verdict"] == VIOLATED:
            groups.setdefault((row["statement"], row["source"], row["kind"]), []).append(row)
    for (statement, source, kind), group in groups.items():
        worst = max(group, key=lambda r: (r["measured"] or math.inf) / (r["bound"] or math.nan))
        measured = "infinite" if worst["measured"] is None else f"{worst['measured']:.6g}"
        where = f"{kind} {worst['of']}".strip()
        yield (
            f"violated {len(group)}x: {statement} on {source} {kind}; worst: {measured} > {worst['bound']:.6g} "
            f"({where}, {worst['shape'][0]} x {worst['shape'][1]}, tol {worst['tol']:g})"
        )
