"""What the method gains while training; errors are against the exact solution.

finetune: the committed Burgers PINN, compressed, then trained on at its size.
penalty: bytes at an error of 1e-3 with and without rank regularisation, the same steps and draws.
dynamic: compressed while it is trained, beside dense training of the same steps.
poisson: likewise with Adam alone on -u'' = f in one dimension, by the call of docs/how-to/training.md.
allen-cahn: the network of the second equation, trained densely.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn

import hrt
from hrt.errors import InputError
from hrt.perf.networks import allen_cahn, burgers
from hrt.perf.networks.allen_cahn import ALLEN_CAHN
from hrt.perf.networks.burgers import BURGERS
from hrt.perf.networks.pinn_training import Equation
from hrt.perf.paper.trained_networks import DENSE, Method, Training, train
from hrt.program.program import program_nbytes
from hrt.training.finetune import with_exact_floats

DOMAIN = hrt.Box([-1.0, 0.0], [1.0, 1.0])
TEACHER_WEIGHT = 0.0  # of fine-tuning: with 10 the steps from the compressed network get stuck
DYNAMIC = Method("dynamic", tols=(1e-2, 3e-4), changes=(0.4, 0.5))
WIDE = Training(width=128, batch=burgers.BATCH, calibration=10_000)
PENALTY_TRAINING = replace(WIDE, adam=500, newton=100, adam_epochs=25, newton_epochs=5, stored=1e-3)
DYNAMIC_TRAINING = replace(
    WIDE, adam=1000, newton=600, rates=(1e-3, 1e-4), adam_epochs=1, newton_epochs=10, stored=1.5e-5
)
ALLEN_CAHN_TRAINING = Training(
    width=allen_cahn.WIDTH, batch=allen_cahn.BATCH, adam=allen_cahn.ADAM_STEPS, newton=allen_cahn.NEWTON_STEPS,
    rates=(1e-3, 1e-4), adam_epochs=1, newton_epochs=1, stored=1e-4,
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What an experiment is run with; None for its usual ones."""

    steps: int | None = None
    batch: int | None = None
    ratio: float = 16.0
    weights: tuple[float, ...] = ()
    thresholds: tuple[float, ...] = (1e-3,)
    width: int | None = None
    every: int = 10

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "ratio", "width", "every"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InputError(f"Found --{name} {value:g}. Expected a positive number.")

    def of(self, usual: Training) -> Training:
        """The usual training with what was asked for instead."""
        asked = {"newton": self.steps, "batch": self.batch, "width": self.width}
        return replace(usual, **{name: value for name, value in asked.items() if value is not None})


@dataclass(frozen=True)
class Figure:
    """A network: its error against the solution, its bytes, and what it took."""

    name: str
    seed: int
    error: float
    nbytes: int
    ratio: float
    steps: int
    seconds: float
    remark: str = ""


def of_training(equation: Equation, method: Method, seed: int, t: Training) -> Figure:
    """The dense network in float32, any other as it is stored."""
    last = train(equation, method, seed, t).rows[-1]
    if method == DENSE:
        return Figure("dense", seed, last["error"], 4 * last["numbers"], 1.0, last["step"], last["seconds"])
    remark = f"dense {last['error']:.3e}, {last.get('directions')} directions seen"
    if method.tols:
        ranks = " ".join("+".join(map(str, r)) or "-" for r in last["ranks"].values())
        remark = f"ranks {ranks}, {last['ratio']:.2f}x in float32"
    stored = last["served_error"], last["served_bytes"], last["served_ratio"]
    return Figure(method.name, seed, *stored, last["step"], last["seconds"], remark)


def row_residual(network: Callable[..., Tensor], row: Tensor) -> Tensor:
    """The residual (1,) of one row of `burgers.sample`, by torch.func alone."""
    points = row[None, :2]
    return burgers.weighted(burgers.burgers_operator(network, points)[:, 0], network(points)[:, 0], row[None])


def finetune(o: Options, seed: int) -> Iterator[Figure]:
    """The committed network, compressed, then trained on at its size for a tenth of its steps."""
    dense, total = burgers.load_burgers(), burgers.ADAM_STEPS + burgers.NEWTON_STEPS
    nbytes = 4 * sum(p.numel() for p in dense.parameters())
    yield Figure("dense", seed, burgers.relative_error(dense), nbytes, 1.0, total, 0.0)
    model, steps = compressed_to(dense, nbytes / o.ratio, seed), o.steps or total // 10
    yield _of_model("compressed", seed, model, 0, 0.0, f"tol {model.certificate.tol:.2g}")
    start = time.perf_counter()
    options = {"teacher_weight": TEACHER_WEIGHT, "exact": True, "seed": seed, "progress": False}
    options |= {"steps": steps, "batch": o.batch or burgers.BATCH}
    tuned = hrt.finetune(model, inputs=DOMAIN, teacher=dense, residual=row_residual, points=burgers.sample, **options)
    seconds, limit = time.perf_counter() - start, tuned.certificate.estimated["output_error_upper_99"]
    yield _of_model("fine-tuned", seed, tuned, steps, seconds, f"against dense at most {limit:.2g}")


def _of_model(name: str, seed: int, model: hrt.CompressedModel, steps: int, seconds: float, remark: str) -> Figure:
    error = BURGERS.error(lambda p: torch.as_tensor(model.predict(p)), torch.float32)
    return Figure(name, seed, error, model.nbytes, model.compression_ratio, steps, seconds, remark)


def compressed_to(network: nn.Module, nbytes: float, seed: int) -> hrt.CompressedModel:
    """The tightest of a ladder of tolerances (5 % apart) that takes at most `nbytes` with its 16-bit floats exact."""
    tol = 5e-3
    while True:
        model = hrt.compress(network, inputs=DOMAIN, tol=tol, target="bytes", seed=seed, progress=False)
        if program_nbytes(with_exact_floats(model.program)) <= nbytes:
            return model
        tol *= 1.05


def penalty(o: Options, seed: int) -> Iterator[Figure]:
    """Without, with every weight of the penalty, and with every threshold of the proximal steps."""
    methods = [Method("neither"), *(Method(f"penalty {w:g}", penalty=w) for w in o.weights)]
    methods += [Method(f"proximal {t:g}", newton_shrink=t, shrunk=0.7) for t in o.thresholds]
    return (of_training(BURGERS, method, seed, o.of(PENALTY_TRAINING)) for method in methods)


def dynamic(o: Options, seed: int) -> Iterator[Figure]:
    """The dense network, and the one that is compressed while it is trained: equal starts, steps and draws."""
    return (of_training(BURGERS, method, seed, o.of(DYNAMIC_TRAINING)) for method in (DENSE, DYNAMIC))


def poisson(o: Options, seed: int) -> Iterator[Figure]:
    """u = sin(pi x) on (-1, 1): 3 x 64 tanh, 1,000 steps of Adam, dense and by the call of docs/how-to/training.md."""
    for name in ("dense", "dynamic"):
        yield of_poisson(name, seed, o)


def of_poisson(name: str, seed: int, o: Options) -> Figure:
    """The network as it is trained, in float32; every step is an epoch of DynamicCompression."""
    steps, start = o.steps or 1000, time.process_time()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = [1, *3 * [o.width or 64], 1]
        layers = [m for pair in pairwise(sizes) for m in (nn.Linear(*pair), nn.Tanh())]
    net = nn.Sequential(*layers[:-1])
    numbers = sum(p.numel() for p in net.parameters())
    x, edge = torch.linspace(-1, 1, o.batch or 128)[:, None], torch.tensor([[-1.0], [1.0]])
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=1e-5)
    dynamic = hrt.DynamicCompression(net, x, optimizer=optimizer, every=o.every) if name == "dynamic" else None
    fine = torch.linspace(-1, 1, 1001)[:, None]
    exact, changes = torch.sin(math.pi * fine), []

    def error() -> float:
        return float((net(fine) - exact).detach().norm() / exact.norm())

    for step in range(steps):
        optimizer.zero_grad()
        points = x.clone().requires_grad_(True)
        slope = torch.autograd.grad(net(points).sum(), points, create_graph=True)[0]
        curvature = torch.autograd.grad(slope.sum(), points, create_graph=True)[0]
        loss = (curvature + math.pi**2 * torch.sin(math.pi * x)).square().mean() + 100 * net(edge).square().mean()
        loss.backward()
        optimizer.step()
        schedule.step()
        if dynamic is not None:
            before = error()
            if dynamic.step(step, loss):
                changes.append(f"epoch {step} to {dynamic.ratio:.2f}x, error {before:.1e} to {error():.1e}")
    seconds, ratio = time.process_time() - start, 1.0 if dynamic is None else dynamic.ratio
    remark = "" if dynamic is None else f"changes: {'; '.join(changes) or 'none'}"
    return Figure(name, seed, error(), round(4 * numbers / ratio), ratio, steps, seconds, remark)


EXPERIMENTS: dict[str, Callable[[Options, int], Iterator[Figure]]] = {
    "finetune": finetune,
    "penalty": penalty,
    "dynamic": dynamic,
    "poisson": poisson,
    "allen-cahn": lambda o, seed: iter([of_training(ALLEN_CAHN, DENSE, seed, o.of(ALLEN_CAHN_TRAINING))]),
}
