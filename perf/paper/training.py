"""What the method gains while training, on the Burgers PINN of `perf/burgers.py`; errors are against Cole-Hopf.

    python -m hrt.perf.paper.training finetune    # 16x smaller, then a tenth of the training steps
    python -m hrt.perf.paper.training penalty     # bytes at error 1e-3 with and without rank regularisation
    python -m hrt.perf.paper.training dynamic     # compressed while it is trained, beside dense training

Every command prints a table and writes it with `--json`.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.func import jvp

import hrt
from hrt.perf.measuring.provenance import commit, scheduling, versions
from hrt.perf.networks.burgers import (
    ADAM_STEPS,
    DATA_WEIGHT,
    NEWTON_STEPS,
    NU,
    BurgersPINN,
    load_burgers,
    relative_error,
    sample,
)
from hrt.program.program import program_nbytes
from hrt.training.finetune import with_exact_floats

DOMAIN = hrt.Box([-1.0, 0.0], [1.0, 1.0])
TEACHER_WEIGHT = 0.0  # of fine-tuning: with 10 the steps from the compressed network get stuck
EDGE_SHARE = 8  # one initial or boundary point for so many inside, as in training


def burgers_residual(network: Callable[..., Tensor], row: Tensor) -> Tensor:
    """The residual (1,) of one row (x, t, is_edge, value): the equation inside, the value on the edge."""
    along_x, along_t = torch.eye(2, dtype=row.dtype)

    def u(point: Tensor) -> Tensor:
        return network(point[None])[0, 0]

    def u_and_u_x(point: Tensor) -> tuple[Tensor, Tensor]:
        return jvp(u, (point,), (along_x,))  # type: ignore[return-value]

    (value, u_x), (_, u_xx) = jvp(u_and_u_x, (row[:2],), (along_x,))  # type: ignore[misc]
    _, u_t = jvp(u, (row[:2],), (along_t,))  # type: ignore[misc]
    edge = (value - row[3]) * math.sqrt(DATA_WEIGHT * EDGE_SHARE)
    return torch.where(row[2] > 0, edge, u_t + value * u_x - NU * u_xx)[None]


def burgers_points(count: int, generator: torch.Generator) -> Tensor:
    """Rows for `burgers_residual` as training draws them: `count` inside and count // 8 on the edge."""
    inside, edge, value = sample(count, generator)
    rows = torch.zeros(len(inside) + len(edge), 4, dtype=torch.float64)
    rows[: len(inside), :2], rows[len(inside) :, :2] = inside, edge
    rows[len(inside) :, 2], rows[len(inside) :, 3] = 1.0, value
    return rows


class Predicted(torch.nn.Module):
    """A compressed model as `relative_error` asks it."""

    def __init__(self, model: hrt.CompressedModel):
        super().__init__()
        self.model, self.dummy = model, torch.nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.model.predict(x)


@dataclass(frozen=True)
class Figure:
    """A network: its error against Cole-Hopf, its bytes, dense float32 bytes over them, and what it took."""

    name: str
    seed: int
    error: float
    nbytes: int
    ratio: float
    steps: int
    seconds: float
    remark: str = ""


def of_model(name: str, seed: int, model: hrt.CompressedModel, steps: int, since: float, remark: str = "") -> Figure:
    """The figure of a compressed model, as it is served."""
    error = relative_error(Predicted(model))  # type: ignore[arg-type]
    return Figure(name, seed, error, model.nbytes, model.compression_ratio, steps, time.perf_counter() - since, remark)


def of_dense(name: str, seed: int, network: BurgersPINN, steps: int, since: float) -> Figure:
    """The figure of a dense network, stored in float32."""
    nbytes = 4 * sum(p.numel() for p in network.parameters())
    return Figure(name, seed, relative_error(network), nbytes, 1.0, steps, time.perf_counter() - since)


def compressed_to(network: BurgersPINN, nbytes: float, seed: int) -> hrt.CompressedModel:
    """The tightest of a ladder of tolerances (5 % apart) that takes at most `nbytes` with its 16-bit floats exact."""
    tol = 5e-3
    while True:
        model = hrt.compress(network, inputs=DOMAIN, tol=tol, target="bytes", seed=seed, progress=False)
        if program_nbytes(with_exact_floats(model.program)) <= nbytes:
            return model
        tol *= 1.05


def finetuned(ratio: float, steps: int, batch: int, seed: int) -> list[Figure]:
    """(c): the committed network, compressed, then trained on at its size for a tenth of its steps."""
    dense, since = load_burgers(), time.perf_counter()
    figures = [of_dense("dense", seed, dense, ADAM_STEPS + NEWTON_STEPS, since)]
    model = compressed_to(dense, 4 * sum(p.numel() for p in dense.parameters()) / ratio, seed)
    figures.append(of_model("compressed", seed, model, 0, since, f"tol {model.certificate.tol:.2g}"))
    since = time.perf_counter()
    tuned = hrt.finetune(
        model,
        inputs=DOMAIN,
        teacher=dense,
        residual=burgers_residual,
        points=burgers_points,
        teacher_weight=TEACHER_WEIGHT,
        exact=True,
        steps=steps,
        batch=batch,
        seed=seed,
        progress=False,
    )
    limit = tuned.certificate.estimated["output_error_upper_99"]
    figures.append(of_model("fine-tuned", seed, tuned, steps, since, f"against dense at most {limit:.2g}"))
    return figures


def show(figures: Sequence[Figure], console: Console) -> None:
    """A table, one line per network."""
    table = Table("network", "seed", "error (Cole-Hopf)", "bytes", "smaller", "steps", "seconds", "remark")
    for f in figures:
        numbers = f"{f.error:.3e}", f"{f.nbytes:,}", f"{f.ratio:.2f}x", str(f.steps), f"{f.seconds:.0f}"
        table.add_row(f.name, str(f.seed), *numbers, f.remark)
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one experiment, print its table, write it."""
    parser = argparse.ArgumentParser(prog="python -m hrt.perf.paper.training", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("what", choices=("finetune", "penalty", "dynamic"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, help="of the experiment's training")
    parser.add_argument("--batch", type=int, default=768)
    parser.add_argument("--ratio", type=float, default=16.0, help="finetune: how many times smaller")
    parser.add_argument("--weights", type=float, nargs="*", default=[], help="penalty: of the penalty, beside none")
    parser.add_argument("--thresholds", type=float, nargs="*", default=[1e-3], help="penalty: of the proximal steps")
    parser.add_argument("--width", type=int, default=128, help="penalty, dynamic: of the network")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    figures: list[Figure] = []
    for seed in options.seeds:
        if options.what == "finetune":
            steps = options.steps or (ADAM_STEPS + NEWTON_STEPS) // 10
            figures += finetuned(options.ratio, steps, options.batch, seed)
        elif options.what == "penalty":
            from hrt.perf.paper.penalty import penalised

            steps = options.steps or 100
            pairs = [(0.0, 0.0), *((w, 0.0) for w in options.weights), *((0.0, t) for t in options.thresholds)]
            figures += [penalised(w, t, steps, options.width, options.batch, seed) for w, t in pairs]
        else:
            from hrt.perf.paper.dynamic import Course, trained_dynamically

            course = Course() if options.steps is None else Course(newton=options.steps)
            figures += trained_dynamically(course, options.width, options.batch, seed)
        facts: dict[str, Any] = {
            "arguments": {k: str(v) for k, v in vars(options).items()},
            "provenance": {**versions(), "commit": commit(), "scheduling": scheduling()},
        }
        if options.json is not None:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps({**facts, "figures": [asdict(f) for f in figures]}, indent=1) + "\n")
    show(figures, Console(width=140))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
