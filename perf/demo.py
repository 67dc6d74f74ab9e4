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
from hrt.capture.torch_export import capture
from hrt.export.onnx.check import open_runtime
from hrt.export.onnx.exporter import graph_of
from hrt.perf.bench.charts import INK, LOOKS, as_png, figure, tidy
from hrt.perf.measuring.bursts import bursts
from hrt.perf.methods.svd import svd_at_output_error, svd_nbytes, truncated
from hrt.perf.networks.burgers import burgers_points, load_burgers, relative_error
from hrt.perf.networks.operators import log_kernel, operator_network, reaction_diffusion_green, smooth_inputs

FRESH, ROUNDS = 20_000, 8  # unseen points that errors are measured on; bursts of every call
console = Console(width=118)


@dataclass(frozen=True)
class Form:
    """A form of a network. promised: whether `tol` bounds its error.  call: float32 rows to answers; None: not run."""

    method: str
    nbytes: int
    error: float
    promised: bool = False
    call: Callable[[Tensor], Any] | None = None


@dataclass(frozen=True)
class Subject:
    """A network in its forms, the dense one first. error: what is measured.  inputs: rows by batch size."""

    title: str
    error: str
    forms: Sequence[Form]
    inputs: Mapping[int, Tensor]


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
    makers = (
        lambda: pinn(out, tol),
        lambda: operator("reaction-diffusion Green's operator", reaction_diffusion_green(size), out, tol),
        lambda: operator("log-kernel integral operator", log_kernel(size), out, tol),
    )
    held, subjects, times = True, [], []
    for make in makers:
        subjects.append(make())
        with console.status(f"{subjects[-1].title}: timing"):
            times.append(timed(subjects[-1]))
        held &= show(subjects[-1], times[-1], tol)
    as_png(partial(comparison, subjects, times, tol), out / "comparison.png")
    verdict = "Every bound held." if held else "A BOUND DID NOT HOLD."
    console.print(f"\n{verdict} {time.perf_counter() - start:.0f} s. Pictures and compressed networks: {out}/")
    raise typer.Exit(0 if held else 1)


def pinn(out: Path, tol: float) -> Subject:
    """Burgers PINN: the bound is on the output, on points that calibration never saw."""
    title = "Burgers PINN, 2 -> 4 x 128 tanh -> 1"
    console.rule(title)
    net = load_burgers()
    console.print(f"The trained network is {relative_error(net):.1e} off the exact Cole-Hopf solution (relative L2).")
    model = hrt.compress(net, inputs=burgers_points(10_000, 1), tol=tol)
    model.save(out / "burgers.hrt")
    model.plot(out / "burgers-blocks.png")
    fresh = burgers_points(FRESH, 2024)
    with torch.no_grad():
        expected = net(fresh)
    with console.status("a fresh process without the network loads the file and answers; SVDs of the same error"):
        error = relative(predict_elsewhere(out / "burgers.hrt", fresh, out), expected)
        svd_bytes, svd_error, _ = svd_at_output_error(capture(net, [fresh[:2]]), [fresh], tol)
    as_png(partial(solution, net, model, tol), out / "burgers-solution.png")
    forms = [
        *dense(net, fresh),
        Form("global SVD, same error", svd_bytes, svd_error),
        Form("hrt", model.nbytes, error, True, lambda x: model.predict(x.numpy())),
    ]
    return Subject(title, f"error on {FRESH:,} unseen points", forms, {b: fresh[:b] for b in (1, 1024)})


def operator(title: str, matrix: np.ndarray, out: Path, tol: float) -> Subject:
    """A layer that is an operator: the bound is on the weight, in the Frobenius norm."""
    n, name = len(matrix), title.split()[0]
    console.rule(f"{title}, {n} x {n}")
    net = operator_network(matrix)
    weight = net.linear.weight.detach().double()
    models = {f"hrt, {kind} storage": hrt.compress(net, tol=tol, storage=kind) for kind in ("float32", "auto")}
    models["hrt, auto storage"].save(out / f"{name}.hrt")
    models["hrt, auto storage"].plot(out / f"{name}-blocks.png")
    x = torch.as_tensor(smooth_inputs(n, 256, seed=7)).float()
    u, vt = truncated(weight, tol)
    thin = nn.Sequential(nn.Linear(n, len(vt), bias=False), nn.Linear(len(vt), n, bias=False))
    thin.load_state_dict({"0.weight": vt, "1.weight": u})
    forms = [*dense(net, x), Form(f"global SVD, rank {len(vt)}", svd_nbytes(weight.shape, len(vt)),
                                  relative(u @ vt, weight), True, thin)]  # fmt: skip
    for method, model in models.items():
        (stored,) = (model.program.constants[k] for k in model.program.weights)
        error = relative(stored.double() if isinstance(stored, Tensor) else stored.to_dense(), weight)
        forms.append(Form(method, model.nbytes, error, True, lambda x, m=model: m.predict(x.numpy())))
    return Subject(f"{title}, {n}", "relative Frobenius error", forms, {b: x[:b] for b in (1, 64)})


def dense(net: nn.Module, inputs: Tensor) -> list[Form]:
    """The uncompressed network in torch and in ONNX Runtime, which is the harder one to beat on a CPU."""
    runtime = open_runtime(graph_of(capture(net, [inputs[:2]])), 1)
    name, nbytes = runtime.get_inputs()[0].name, 4 * sum(p.numel() for p in net.parameters())
    in_runtime = Form("dense, ONNX Runtime", nbytes, 0.0, call=lambda x: runtime.run(None, {name: x.numpy()}))
    return [Form("dense, torch", nbytes, 0.0, call=net), in_runtime]


def timed(subject: Subject) -> dict[int, dict[str, float]]:
    """Median microseconds of a call, by batch size and method."""
    result = {}
    with torch.no_grad():
        for batch, x in subject.inputs.items():
            calls = {f.method: partial(f.call, x) for f in subject.forms if f.call is not None}
            result[batch] = {name: latency.p50_us for name, latency in bursts(calls, rounds=ROUNDS).items()}
    return result


def best_dense(times: Mapping[str, float]) -> float:
    """Microseconds of the faster dense form."""
    return min(us for name, us in times.items() if name.startswith("dense"))


def show(subject: Subject, times: Mapping[int, Mapping[str, float]], tol: float) -> bool:
    """The table, and every bound with what was measured. Returns whether all held."""
    nbytes = subject.forms[0].nbytes
    table = Table("method", "bytes", "times smaller", subject.error)
    for batch in times:
        table.add_column(f"median us, batch {batch}", justify="right")
    for f in subject.forms:
        cells = [f"{nbytes / f.nbytes:.1f}", f"{f.error:.1e}"]
        for line in times.values():
            ratio = best_dense(line) / line[f.method] if f.method in line else 0.0
            word = "faster" if ratio > 1 else "SLOWER" if f.promised else "slower"
            shown = max(ratio, 1 / ratio) if ratio else 0.0
            is_dense = f.method.startswith("dense")
            note = "" if is_dense else f" ({shown:.1f}x {word})"
            cells.append(f"{line[f.method]:,.0f}{note}" if ratio else "not run")
        table.add_row(f.method, f"{f.nbytes:,}", *cells, style="bold" if f.method.startswith("hrt") else None)
    console.print(table)
    for f in (f for f in subject.forms if f.method.startswith("hrt")):
        state = "held" if f.error <= tol else "DID NOT HOLD"
        console.print(f"  {f.method}: bound {tol:g} {state}, {subject.error} {f.error:.2e}", highlight=False)
    return all(f.error <= tol for f in subject.forms if f.promised)


def solution(net: nn.Module, model: hrt.CompressedModel, tol: float) -> Any:
    """What the compressed PINN answers over the whole domain, and how far it is from the dense one."""
    x, t = np.linspace(-1, 1, 257), np.linspace(0, 1, 129)
    points = torch.from_numpy(np.stack([v.ravel() for v in np.meshgrid(x, t)], 1)).float()
    with torch.no_grad():
        answers = [y.reshape(len(t), len(x)).numpy() for y in (model.predict(points), net(points))]
    panels = (
        (f"u(x, t) from {model.nbytes:,} bytes ({model.compression_ratio:.1f} times smaller)", answers[0], "RdBu_r"),
        (f"|compressed - dense|, promised: {tol:g} relative L2", np.abs(answers[0] - answers[1]), "viridis"),
    )
    fig = figure(10.0, 4.0)
    for axes, (title, values, colours) in zip(fig.subplots(1, 2), panels, strict=True):
        image = axes.pcolormesh(t, x, values.T, cmap=colours, shading="auto", rasterized=True)
        axes.set(title=title, xlabel="time t", ylabel="position x")
        fig.colorbar(image, ax=axes, format="{x:.2g}")
    return fig


def comparison(subjects: Sequence[Subject], times: Sequence[Mapping[int, Mapping[str, float]]], tol: float) -> Any:
    """A row for each network: how many times smaller, and how many times faster than the faster dense form."""
    fig = figure(13.0, 2.5 * len(subjects))
    for line, subject, by_batch in zip(fig.subplots(len(subjects), 3), subjects, times, strict=True):
        forms = [f for f in subject.forms if f.method != "dense, torch"]
        panels = [("times smaller than dense", {f.method: subject.forms[0].nbytes / f.nbytes for f in forms})]
        for batch, us in by_batch.items():
            title = f"times as fast as the best dense, batch {batch}"
            panels.append((title, {f.method: best_dense(us) / us[f.method] if f.call else 0.0 for f in forms}))
        for axes, (title, values) in zip(line, panels, strict=True):
            for k, f in enumerate(forms):
                family = next((name for name in ("hrt", "dense") if f.method.startswith(name)), "svd")
                axes.barh(k, values[f.method], color=LOOKS[family][0], height=0.6)
                text = f"{values[f.method]:.2g}x" if values[f.method] else "not run: larger than dense"
                axes.text(values[f.method], k, f" {text}", va="center")
            axes.axvline(1, color=INK, linewidth=1, linestyle="--")
            names = [f"{f.method}\nerror {f.error:.1g}" for f in forms]
            axes.set_yticks(range(len(forms)), names if axes is line[0] else [])
            axes.set(title=f"{subject.title}\n{title}" if axes is line[0] else title, ylim=(len(forms) - 0.4, -0.6))
            axes.set_xlim(0, 1.35 * max(1.0, *values.values()))
            tidy(axes)
    fig.suptitle(f"Relative error asked for: {tol:g}. Left of the dashed line dense is better.")
    return fig


def predict_elsewhere(artifact: Path, x: Tensor, out: Path) -> Tensor:
    """Load and predict in a new process that has neither the network nor its class."""
    np.save(out / "x.npy", x.numpy())
    command = [sys.executable, "-m", "hrt.cli", "predict", artifact, out / "x.npy", "-o", out / "y.npy", "--force"]
    subprocess.run([str(c) for c in command], check=True, stdout=subprocess.DEVNULL)
    return torch.from_numpy(np.load(out / "y.npy"))


def relative(result: Tensor, expected: Tensor) -> float:
    """||result - expected|| / ||expected||."""
    return float((result.double() - expected.double()).norm() / expected.double().norm())


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
