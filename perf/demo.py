"""`make demo`: compress a Burgers PINN and two operators, check every bound, and say what won and what lost.

Every figure is measured in this run. Pictures and compressed networks go to the output folder.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import hrt
from hrt.capture import capture
from hrt.export.onnx.check import open_runtime
from hrt.export.onnx.exporter import graph_of
from hrt.hmatrix.hmatrix import relative_difference
from hrt.perf.bench.charts import as_png, figure
from hrt.perf.measuring import command_line
from hrt.perf.measuring.bursts import bursts
from hrt.perf.methods.svd import svd_at_output_error, svd_nbytes, truncated
from hrt.perf.networks.burgers import burgers_points, load_burgers, relative_error
from hrt.perf.networks.operators import log_kernel, operator_network, reaction_diffusion_green, smooth_inputs
from hrt.program import to_float64

FRESH, ROUNDS = 20_000, 8  # unseen points that errors are measured on; bursts of every call
console: Console = Console(width=118)


@dataclass(frozen=True)
class Form:
    """A form of a network. promised: whether `tol` bounds its error.  call: float32 rows to answers; None: not run."""

    method: str
    nbytes: int
    error: float
    promised: bool = False
    call: Callable[[Tensor], Any] | None = None


def main(
    out: Annotated[Path, typer.Option(help="Folder for compressed networks and pictures.")] = Path("demo-out"),
    tol: Annotated[float, typer.Option(help="Relative error asked for.")] = 1e-3,
    size: Annotated[int, typer.Option(help="Points of the operators.")] = 1024,
) -> None:
    """Compress a Burgers PINN and two operators, check every bound, and say what won and what lost."""
    start = time.perf_counter()
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    console.print(f"Relative error asked for: {tol:g}. One thread. Everything below is measured now, on this machine.")
    held = pinn(out, tol)
    held &= operator("reaction-diffusion Green's operator", reaction_diffusion_green(size), out, tol)
    held &= operator("log-kernel integral operator", log_kernel(size), out, tol)
    verdict = "Every bound held." if held else "A BOUND DID NOT HOLD."
    console.print(f"\n{verdict} {time.perf_counter() - start:.0f} s. Pictures and compressed networks: {out}/")
    raise typer.Exit(0 if held else 1)


def pinn(out: Path, tol: float) -> bool:
    """Burgers PINN: the bound is on the output, on points that calibration never saw."""
    console.rule("Burgers PINN, 2 -> 4 x 128 tanh -> 1")
    net = load_burgers()
    console.print(f"The trained network is {relative_error(net):.1e} off the exact Cole-Hopf solution (relative L2).")
    model = hrt.compress(net, inputs=burgers_points(10_000, 1), tol=tol)
    saved(model, out / "burgers")
    fresh = burgers_points(FRESH, 2024)
    with torch.no_grad():
        expected = net(fresh).double()
    with console.status("a fresh process without the network loads the file and answers; SVDs of the same error"):
        error = relative_difference(predict_elsewhere(out / "burgers.hrt", fresh, out).double(), expected)
        svd_bytes, svd_error, _ = svd_at_output_error(capture(net, [fresh[:2]]), [fresh], tol)
    as_png(partial(solution, net, model, tol), out / "burgers-solution.png")
    ours = Form("hrt", model.nbytes, error, True, lambda x: model.predict(x.numpy()))
    forms = [*dense(net, fresh), Form("global SVD, same error", svd_bytes, svd_error), ours]
    return show(forms, f"error on {FRESH:,} unseen points", {b: fresh[:b] for b in (1, 1024)}, tol)


def operator(title: str, matrix: np.ndarray, out: Path, tol: float) -> bool:
    """A layer that is an operator: the bound is on the weight, in the Frobenius norm."""
    n = len(matrix)
    console.rule(f"{title}, {n} x {n}")
    net = operator_network(matrix)
    weight = net.linear.weight.detach().double()
    x = torch.as_tensor(smooth_inputs(n, 256, seed=7)).float()
    u, vt = truncated(weight, tol)
    thin = nn.Sequential(nn.Linear(n, len(vt), bias=False), nn.Linear(len(vt), n, bias=False))
    thin.load_state_dict({"0.weight": vt, "1.weight": u})
    nbytes, error = svd_nbytes(weight.shape, len(vt)), relative_difference(u @ vt, weight)
    forms = [*dense(net, x), Form(f"global SVD, rank {len(vt)}", nbytes, error, True, thin)]
    for kind in ("float32", "auto"):
        model = hrt.compress(net, tol=tol, storage=kind)
        (stored,) = (model.program.constants[k] for k in model.program.weights)
        error = relative_difference(to_float64(stored), weight)
        call = partial(lambda m, rows: m.predict(rows.numpy()), model)
        forms.append(Form(f"hrt, {kind} storage", model.nbytes, error, True, call))
        saved(model, out / title.split()[0])  # the last one, of automatic storage, stays
    return show(forms, "relative Frobenius error", {b: x[:b] for b in (1, 64)}, tol)


def saved(model: hrt.CompressedModel, path: Path) -> None:
    """Write the network and a picture of its blocks."""
    model.save(path.with_suffix(".hrt"))
    model.plot(path.with_name(f"{path.name}-blocks.png"))


def dense(net: nn.Module, inputs: Tensor) -> list[Form]:
    """The uncompressed network in torch and in ONNX Runtime, which is the harder one to beat on a CPU."""
    runtime = open_runtime(graph_of(capture(net, [inputs[:2]])), 1)
    name, nbytes = runtime.get_inputs()[0].name, 4 * sum(p.numel() for p in net.parameters())
    in_runtime = Form("dense, ONNX Runtime", nbytes, 0.0, call=lambda x: runtime.run(None, {name: x.numpy()}))
    return [Form("dense, torch", nbytes, 0.0, call=net), in_runtime]


def show(forms: Sequence[Form], error: str, inputs: Mapping[int, Tensor], tol: float) -> bool:
    """Time all forms and print the table, and every bound with what was measured. Returns whether all held."""
    table = Table("method", "bytes", "times smaller", error)
    rows = [[f.method, f"{f.nbytes:,}", f"{forms[0].nbytes / f.nbytes:.1f}", f"{f.error:.1e}"] for f in forms]
    for batch, x in inputs.items():
        table.add_column(f"median us, batch {batch}", justify="right")
        calls = {f.method: partial(f.call, x) for f in forms if f.call is not None}
        with console.status("timing"), torch.no_grad():
            us = {name: latency.p50_us for name, latency in bursts(calls, rounds=ROUNDS).items()}
        best = min(time for name, time in us.items() if name.startswith("dense"))
        for f, row in zip(forms, rows, strict=True):
            ratio = best / us[f.method] if f.method in us else 0.0
            word = "faster" if ratio > 1 else "SLOWER" if f.promised else "slower"
            note = "" if f.method.startswith("dense") or not ratio else f" ({max(ratio, 1 / ratio):.1f}x {word})"
            row.append(f"{us[f.method]:,.0f}{note}" if ratio else "not run")
    for f, row in zip(forms, rows, strict=True):
        table.add_row(*row, style="bold" if f.method.startswith("hrt") else None)
    console.print(table)
    for f in (f for f in forms if f.method.startswith("hrt")):
        state = "held" if f.error <= tol else "DID NOT HOLD"
        console.print(f"  {f.method}: bound {tol:g} {state}, {error} {f.error:.2e}", highlight=False)
    return all(f.error <= tol for f in forms if f.promised)


def solution(net: nn.Module, model: hrt.CompressedModel, tol: float) -> Any:
    """What the compressed PINN answers over the whole domain, and how far it is from the dense one."""
    x, t = np.linspace(-1, 1, 257), np.linspace(0, 1, 129)
    points = torch.from_numpy(np.stack([v.ravel() for v in np.meshgrid(x, t)], 1)).float()
    with torch.no_grad():
        answers: tuple[Any, ...] = (model.predict(points), net(points))
    ours, theirs = (y.reshape(len(t), len(x)).numpy() for y in answers)
    title = f"u(x, t) from {model.nbytes:,} bytes ({model.compression_ratio:.1f} times smaller)"
    difference = (f"|compressed - dense|, promised: {tol:g} relative L2", np.abs(ours - theirs), "viridis")
    fig = figure(10.0, 4.0)
    for axes, (label, values, colours) in zip(fig.subplots(1, 2), ((title, ours, "RdBu_r"), difference), strict=True):
        image = axes.pcolormesh(t, x, values.T, cmap=colours, shading="auto", rasterized=True)
        axes.set(title=label, xlabel="time t", ylabel="position x")
        fig.colorbar(image, ax=axes, format="{x:.2g}")
    return fig


def predict_elsewhere(artifact: Path, x: Tensor, out: Path) -> Tensor:
    """Load and predict in a new process that has neither the network nor its class."""
    np.save(out / "x.npy", x.numpy())
    command = [sys.executable, "-m", "hrt.cli", "predict", artifact, out / "x.npy", "-o", out / "y.npy", "--force"]
    subprocess.run([str(c) for c in command], check=True, stdout=subprocess.DEVNULL)
    return torch.from_numpy(np.load(out / "y.npy"))


if __name__ == "__main__":
    app = command_line.new_app(__doc__ or "")
    app.command()(main)
    sys.exit(command_line.run(app, "hrt.perf.demo"))
