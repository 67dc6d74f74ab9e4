"""`python -m hrt.perf.studies.monotone`: a looser tolerance never takes more bytes, on the networks and kernels of this folder.

Every case is compressed at a ladder of tolerances; a step fails where the looser one takes over 1 % more bytes. Errors
are measured too: of networks on rows that compression never saw. Random matrices have ladders of their own in
`python -m hrt.perf.studies.random_cases`.

    python -m hrt.perf.studies.monotone
    python -m hrt.perf.studies.monotone --case neuralfoil --tol 3e-2 1e-2 3e-3 1e-3
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

import hrt
from hrt.perf.networks.burgers import burgers_points, load_burgers
from hrt.perf.networks.operators import log_kernel
from hrt.perf.studies.random_cases import SLACK

LADDER = [3e-2, 2e-2, 1e-2, 5e-3, 2e-3, 1e-3, 5e-4, 2e-4, 1e-4]
Measured = tuple[int, float]  # bytes, error


def network(net: nn.Module, calibration: Tensor, fresh: Tensor) -> Callable[[float], Measured]:
    """Bytes and held-out error of a network by tolerance."""
    with torch.no_grad():
        exact = net.double()(fresh.double()).numpy()
    net.float()

    def measure(tol: float) -> Measured:
        model = hrt.compress(net, inputs=calibration, tol=tol, target="bytes", progress=False)
        found = np.asarray(model.predict(fresh.numpy()), dtype=np.float64)
        return model.nbytes, float(np.linalg.norm(found - exact) / np.linalg.norm(exact))

    return measure


def burgers() -> Callable[[float], Measured]:
    """The Burgers PINN."""
    return network(load_burgers(), burgers_points(10_000, 1), burgers_points(20_000, 2024))


def neuralfoil() -> Callable[[float], Measured]:
    """NeuralFoil xxxlarge; FileNotFoundError where its weights are not installed."""
    from hrt.perf.networks.neuralfoil import load_neuralfoil, sample_inputs

    return network(load_neuralfoil(), sample_inputs(10_000, 1), sample_inputs(4_000, 2024))


def kernel(storage: str) -> Callable[[float], Measured]:
    """The log kernel of 4096 points."""
    w = log_kernel(4096)

    def measure(tol: float) -> Measured:
        h = hrt.compress_matrix(w, tol=tol, storage=storage)
        return h.nbytes, h.error(w)

    return measure


CASES: dict[str, Callable[[], Callable[[float], Measured]]] = {
    "log kernel 4096, float32": lambda: kernel("float32"),
    "log kernel 4096, auto": lambda: kernel("auto"),
    "burgers": burgers,
    "neuralfoil": neuralfoil,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table. Returns 1 where a ladder or a bound is broken, 2 where a case cannot run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES), help="which (default: all)")
    parser.add_argument("--tol", type=float, nargs="+", default=LADDER, help="the ladder, in any order")
    args = parser.parse_args(arguments)
    ladder = sorted(args.tol, reverse=True)
    console, broken = Console(width=118), 0
    for name in args.case:
        try:
            measure = CASES[name]()
        except FileNotFoundError as error:
            print(error, file=sys.stderr)
            return 2
        table = Table(title=name)
        for column in ("tol", "bytes", "error", "error / tol", "seconds", ""):
            table.add_column(column, justify="right" if column else "left")
        least = 0
        for tol in track(ladder[::-1], name, console=Console(stderr=True), transient=True):
            start = time.perf_counter()
            nbytes, error = measure(tol)
            faults = [] if error <= tol else ["ERROR ABOVE TOL"]
            if least and nbytes > (1 + SLACK) * least:
                faults.append(f"MORE BYTES THAN A TIGHTER tol NEEDS ({least:,})")
            least = min(least or nbytes, nbytes)
            broken += len(faults)
            spent = f"{time.perf_counter() - start:.1f}"
            table.add_row(f"{tol:g}", f"{nbytes:,}", f"{error:.2e}", f"{error / tol:.2f}", spent, "; ".join(faults))
        console.print(table)
    console.print(f"{broken} promises broken." if broken else "Every ladder falls and every error is within its tol.")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
