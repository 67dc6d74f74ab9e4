"""`make demo`: compress a Burgers PINN and two Green's operators, serve them from a fresh process, print the truth.

Every figure in the tables is measured in this run. Pictures go to the output folder.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import hrt
from hrt.calibration.samples import sample_boxes
from hrt.capture.torch_export import capture
from hrt.export.onnx.check import open_runtime
from hrt.export.onnx.exporter import graph_of
from hrt.perf.measuring.bursts import bursts
from hrt.perf.networks.burgers import load_burgers, relative_error
from hrt.perf.networks.operators import log_kernel, operator_network, reaction_diffusion_green, smooth_inputs
from hrt.perf.methods.svd import svd_at_output_error, svd_nbytes, truncated

DENSE = "dense float32"
BOX = hrt.Box([-1.0, 0.0], [1.0, 1.0])
console = Console(width=118)


def main() -> int:
    """Run the demo. Returns 0 where every promise held, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="folder for artifacts and pictures")
    parser.add_argument("--tol", type=float, default=1e-3, help="relative error asked for (default 1e-3)")
    parser.add_argument("--size", type=int, default=2048, help="points of the operators (default 2048)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads while timing (default 1)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    held = [pinn(args.out, args.tol, args.threads)]
    kernels = {
        "reaction-diffusion Green's operator": reaction_diffusion_green(args.size),
        "log-kernel integral operator": log_kernel(args.size),
    }
    held += [operator(title, w, args.out, args.tol, args.threads) for title, w in kernels.items()]
    console.print(
        f"\n{'Every bound held.' if all(held) else 'A BOUND DID NOT HOLD.'} {time.perf_counter() - start:.0f} s. "
        f"Artifacts and pictures: {args.out}/"
    )
    return 0 if all(held) else 1


def pinn(out: Path, tol: float, threads: int) -> bool:
    """Burgers PINN: bound on the output, on points that calibration never saw."""
    console.rule("Burgers PINN, 2 -> 4 x 128 tanh -> 1")
    net = load_burgers()
    console.print(f"trained network against the exact Cole-Hopf solution: relative L2 error {relative_error(net):.1e}")
    calibration = sample_boxes([BOX], 10_000, seed=1)[0].float()
    model = hrt.compress(net, inputs=calibration, tol=tol)
    model.save(out / "burgers.hrt")
    model.plot(out / "burgers.png")
    print(model.report())
    fresh = torch.rand(20_000, 2, generator=torch.Generator().manual_seed(2024)) * torch.tensor([2.0, 1.0])
    fresh = fresh - torch.tensor([1.0, 0.0])
    with torch.no_grad():
        expected = net(fresh)
    served = predict_elsewhere(out / "burgers.hrt", fresh.numpy(), out)
    error = relative(expected, served)
    program = capture(net, [fresh[:2]])
    svd_bytes, svd_error, _ = svd_at_output_error(program, [fresh], tol)
    rows = [
        *dense(net, model.dense_nbytes, fresh, threads),
        ("global SVD, same error", svd_bytes, svd_error, None),
        ("hrt", model.nbytes, error, lambda x: model.predict(x.numpy())),
    ]
    show(rows, "error on 20,000 unseen points", {b: fresh[:b] for b in (1, 1024)}, tol, threads)
    return error <= tol


def operator(title: str, matrix: np.ndarray, out: Path, tol: float, threads: int) -> bool:
    """A layer that is an operator: bound on the weight, in the Frobenius norm."""
    n = matrix.shape[0]
    console.rule(f"{title}, {n} x {n}")
    name = title.split()[0]
    net = operator_network(matrix)
    weight = next(net.parameters()).detach().double()
    models = {
        "hrt float32": hrt.compress(net, tol=tol, storage="float32"),
        "hrt auto storage": hrt.compress(net, tol=tol),
    }
    best = models["hrt auto storage"]
    best.save(out / f"{name}.hrt")
    best.plot(out / f"{name}.png")
    print(best.report())
    x = torch.as_tensor(smooth_inputs(n, 256, seed=7)).float()
    served = predict_elsewhere(out / f"{name}.hrt", x.numpy(), out)
    console.print(
        f"relative L2 error of u = G f on 256 smooth random f, served by a fresh process: "
        f"{relative(net(x).detach(), served):.1e} (not promised: no inputs were given)"
    )
    u, vt = truncated(weight, tol)
    rank, svd_error = len(vt), float((u @ vt - weight).norm() / weight.norm())
    svd_net = torch.nn.Sequential(torch.nn.Linear(n, rank, bias=False), torch.nn.Linear(rank, n, bias=False))
    svd_net.load_state_dict({"0.weight": vt, "1.weight": u})
    errors = {k: frobenius(m, weight) for k, m in models.items()}
    rows = [
        *dense(net, best.dense_nbytes, x, threads),
        (f"global SVD, rank {rank}", svd_nbytes(weight.shape, rank), svd_error, svd_net),
        *((k, m.nbytes, errors[k], lambda x, m=m: m.predict(x.numpy())) for k, m in models.items()),
    ]
    show(rows, "relative Frobenius error", {b: x[:b] for b in (1, 64)}, tol, threads)
    return all(e <= tol for e in errors.values())


def dense(net: torch.nn.Module, nbytes: int, inputs: Tensor, threads: int) -> list:
    """The uncompressed network in torch and in ONNX Runtime, which is the harder one to beat on a CPU."""
    runtime = open_runtime(graph_of(capture(net, [inputs[:2]])), threads)
    name = runtime.get_inputs()[0].name
    return [
        (f"{DENSE}, torch", nbytes, 0.0, lambda x: net(x)),
        (f"{DENSE}, ONNX Runtime", nbytes, 0.0, lambda x: runtime.run(None, {name: x.numpy()})),
    ]


def frobenius(model: hrt.CompressedModel, weight: Tensor) -> float:
    """Relative Frobenius error of a one-layer model, computed here from what it stores."""
    (matrix,) = (model.program.constants[name] for name in model.program.weights)
    dense = matrix.double() if isinstance(matrix, Tensor) else matrix.to_dense()
    return float((weight - dense).norm() / weight.norm())


def show(rows: list, error_title: str, batches: dict[int, Tensor], tol: float, threads: int) -> None:
    """The comparison: bytes, error and median latency, losses included."""
    dense_bytes = rows[0][1]
    table = Table(title=f"at tolerance {tol:g}, {threads} thread{'s' if threads > 1 else ''}")
    for name in ("method", "bytes", "times smaller", error_title):
        table.add_column(name, justify="left" if name == "method" else "right")
    times = {}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    with torch.no_grad():
        for batch, x in batches.items():
            calls = {name: (lambda f=f, x=x: f(x)) for name, _, _, f in rows if f is not None}
            times[batch] = bursts(calls)
            table.add_column(f"median us, batch {batch} (best dense / this)", justify="right")
    torch.set_num_threads(before)
    for name, nbytes, error, call in rows:
        cells = []
        for batch in batches:
            if call is None:
                cells.append("not run: larger" if nbytes >= dense_bytes else "-")
                continue
            latency = times[batch][name]
            ratio = min(t.p50_us for k, t in times[batch].items() if k.startswith(DENSE)) / latency.p50_us
            cells.append(f"{latency.p50_us:,.0f} ({ratio:.2f}x)")
        table.add_row(name, f"{nbytes:,}", f"{dense_bytes / nbytes:.2f}", f"{error:.1e}", *cells)
    console.print(table)


def predict_elsewhere(artifact: Path, x: np.ndarray, out: Path) -> Tensor:
    """Load and predict in a new process that has neither the network nor its class."""
    np.save(out / "x.npy", x)
    command = [sys.executable, "-m", "hrt.cli", "predict", artifact, out / "x.npy", "-o", out / "y.npy", "--force"]
    subprocess.run([str(c) for c in command], check=True, stdout=subprocess.DEVNULL)
    return torch.from_numpy(np.load(out / "y.npy"))


def relative(expected: Tensor, found: Tensor) -> float:
    """||expected - found|| / ||expected||."""
    return float((expected.double() - found.double()).norm() / expected.double().norm())


if __name__ == "__main__":
    sys.exit(main())
