"""The pictures of README and docs: python docs/pictures/draw.py [NAME ...]

Everything is computed here, from networks and operators that come with hrt. White ground: readable on a dark page, too.
"""

import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import hrt
from hrt.model.plot import draw_blocks
from hrt.perf.bench.charts import INK, LINES, as_png, as_svg, figure, tidy
from hrt.perf.networks.burgers import burgers_points, load_burgers
from hrt.perf.networks.operators import gaussian_random, log_kernel

FOLDER = Path(__file__).parent
TOL, SIZE = 1e-3, 1024
GRID = (257, 129)  # x and t points of a field


@cache
def pinn() -> tuple[Any, hrt.CompressedModel]:
    """The Burgers PINN and its compressed form."""
    net = load_burgers()
    return net, hrt.compress(net, inputs=burgers_points(10_000, 1), tol=TOL)


@cache
def operator() -> hrt.HMatrix:
    """The operator of the log kernel, compressed."""
    return hrt.compress_matrix(torch.from_numpy(log_kernel(SIZE)), tol=TOL, storage="auto")


def powers(*axes: Any) -> None:
    """Ticks of a logarithmic axis as 1e-3: what settings forbid formulas for."""
    for axis in axes:
        axis.set_major_formatter(lambda value, _: f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e"))
        axis.set_minor_formatter(lambda *_: "")


def finish(axes: Any) -> None:
    """Legend, frame and ticks of logarithmic axes."""
    axes.legend(frameon=False)
    tidy(axes)
    powers(axes.xaxis, axes.yaxis)


def field(answer: Callable[[Tensor], Any]) -> np.ndarray:
    """A function of (x, t) on the grid: (t, x)."""
    x, t = np.linspace(-1, 1, GRID[0]), np.linspace(0, 1, GRID[1])
    points = torch.from_numpy(np.stack([v.ravel() for v in np.meshgrid(x, t)], 1)).float()
    with torch.no_grad():
        return np.asarray(answer(points)).reshape(GRID[1], GRID[0])


def operator_and_fields() -> Any:
    """Left: blocks of an operator. Right: a PINN, its compressed form, their difference."""
    net, model = pinn()
    h = operator()
    u, u_h = field(net), field(model.predict)
    fig = figure(12.4, 3.6)
    blocks, *fields = fig.subplots(1, 4, width_ratios=(1.25, 1, 1, 1))
    draw_blocks(blocks, h, "", 3.2)
    ratio = 4 * SIZE * SIZE / h.nbytes
    blocks.set_title(f"integral operator log|x - y|\n{SIZE} x {SIZE}, {ratio:.0f} times smaller", fontsize=10)
    blocks.set(xlabel="column", ylabel="row")
    shown = [
        (f"Burgers PINN: u\n{model.dense_nbytes:,} bytes", u, "RdBu_r", 1.0),
        (f"compressed: u_h\n{model.nbytes:,} bytes", u_h, "RdBu_r", 1.0),
        (f"difference u_h - u\nasked: {TOL:g} in relative L2", u_h - u, "RdBu_r", float(np.abs(u_h - u).max())),
    ]
    for axes, (title, values, colours, most) in zip(fields, shown, strict=True):
        image = axes.imshow(
            values.T, origin="lower", extent=(0, 1, -1, 1), aspect="auto", cmap=colours, vmin=-most, vmax=most
        )
        axes.set_title(title, fontsize=10)
        axes.set(xlabel="time t", ylabel="position x", xticks=(0, 0.5, 1), yticks=(-1, -0.5, 0, 0.5, 1))
        fig.colorbar(image, ax=axes, format="{x:.2g}")
    return fig


def singular_values() -> Any:
    """Why blocks compress, and why the norm of the data does more."""
    net, _ = pinn()
    kernel = log_kernel(SIZE)
    half = SIZE // 2
    fig = figure(10.0, 3.6)
    left, right = fig.subplots(1, 2)
    for colour, (label, matrix) in zip(
        LINES,
        {
            "a block off the diagonal": kernel[:half, half:],
            "the whole operator": kernel,
            "Gaussian random matrix": gaussian_random(SIZE),
        }.items(),
        strict=False,
    ):
        values = np.linalg.svd(matrix, compute_uv=False)
        left.semilogy(np.arange(1, 65), values[:64] / values[0], color=colour, label=label)
    left.set(
        title="Singular values of the log kernel", xlabel="index", ylabel="relative to the largest", ylim=(1e-16, 2)
    )
    weight = net.layers[4].weight.detach().double()
    with torch.no_grad():
        inputs = net.layers[:4](burgers_points(4096, 3)).double()
    root = torch.linalg.cholesky(inputs.T @ inputs / len(inputs) + 1e-14 * torch.eye(weight.shape[1]))
    for colour, (label, matrix) in zip(
        LINES, {"of W on its inputs": weight @ root, "of W": weight}.items(), strict=False
    ):
        values = torch.linalg.svdvals(matrix)
        right.semilogy(np.arange(1, 129), (values / values[0]).numpy(), color=colour, label=label)
    right.set(title="Singular values of a PINN's hidden layer", xlabel="index", ylabel="relative to the largest")
    for axes in (left, right):
        axes.legend(frameon=False)
        tidy(axes)
        powers(axes.yaxis)
    return fig


def bytes_over_error() -> Any:
    """Bytes of an operator against the error asked for: hierarchical, one SVD, dense."""
    kernel = torch.from_numpy(log_kernel(SIZE))
    values = torch.linalg.svdvals(kernel)
    tails = (values**2).flip(0).cumsum(0).flip(0).sqrt() / values.norm()
    tols = np.geomspace(1e-1, 1e-6, 11)
    ranks = [int((tails > tol).sum()) for tol in tols]
    forms = {
        "hrt": [hrt.compress_matrix(kernel, tol=tol, storage="auto").nbytes for tol in tols],
        "hrt, float32 alone": [hrt.compress_matrix(kernel, tol=tol, storage="float32").nbytes for tol in tols],
        "one SVD in float32": [4 * 2 * SIZE * rank for rank in ranks],
        "dense float32": [4 * SIZE * SIZE] * len(tols),
    }
    fig = figure(6.4, 3.8)
    axes = fig.subplots()
    for (label, nbytes), colour in zip(forms.items(), LINES, strict=False):
        axes.loglog(tols, nbytes, marker="o", markersize=4, color=colour, label=label)
    axes.invert_xaxis()
    axes.set(title=f"Log kernel, {SIZE} x {SIZE}", xlabel="relative Frobenius error asked for", ylabel="bytes")
    finish(axes)
    return fig


def errors_of_rows() -> Any:
    """What the bound says: of all rows together, not of the worst one."""
    net, model = pinn()
    x = burgers_points(20_000, 2024)
    with torch.no_grad():
        expected = net(x).double().numpy()
    size = np.sqrt((expected**2).mean())
    errors = np.sort(np.abs(model.predict(x).double().numpy() - expected).ravel()) / size
    fig = figure(6.4, 3.8)
    axes = fig.subplots()
    share = 1 - np.arange(len(errors)) / len(errors)
    shown = len(errors) - np.unique(np.geomspace(1, len(errors), 400).astype(int))  # all of the tail
    axes.loglog(errors[shown], share[shown], color=LINES[0], label="share of points beyond it")
    level, limit = float(np.sqrt((errors**2).mean())), model.certificate.tol
    axes.axvline(level, color=LINES[1], label=f"root mean square: {level:.1e}")
    axes.axvline(limit, color=INK, linestyle="--", label=f"tol: {limit:g}")
    axes.set(
        title=f"Burgers PINN at {limit:g}, 20,000 fresh points",
        xlabel="error of a point, relative to the root mean square of u",
        ylabel="share of points",
        xlim=(1e-5, None),
    )
    finish(axes)
    return fig


def kernel_drift() -> Any:
    """How far the tangent kernel moves with the tolerance: of weights, and of the output (`perf paper ntk`)."""
    rows = json.loads((FOLDER / "../../perf/results/ntk.json").read_text("utf-8"))["tolerance"]
    fig = figure(10.0, 3.6)
    labels = {"weights": "tol bounds every weight", "output": "tol bounds the output, held out"}
    for axes, kernel in zip(fig.subplots(1, 2), ("value", "residual"), strict=True):
        for (bound, label), colour in zip(labels.items(), LINES, strict=False):
            points = [
                (r["tol"], r["drift"]) for r in rows if (r["kernel"], r["bound"]) == (kernel, bound) and r["drift"]
            ]
            axes.loglog(*zip(*points, strict=True), marker="o", markersize=4, color=colour, label=label)
        axes.invert_xaxis()
        axes.set(title=f"Kernel of the {kernel}, Burgers PINN", xlabel="tol", ylabel="relative drift of the kernel")
        finish(axes)
    return fig


PICTURES: dict[str, Callable[[], Any]] = {
    "operator-and-fields.png": operator_and_fields,
    "singular-values.svg": singular_values,
    "bytes-over-error.svg": bytes_over_error,
    "errors-of-rows.svg": errors_of_rows,
    "kernel-drift.svg": kernel_drift,
}


def main(names: list[str]) -> None:
    """Draw these pictures, or all."""
    for name in names or PICTURES:
        path = FOLDER / name
        if path.suffix == ".png":
            as_png(PICTURES[name], path)
            Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
        else:
            path.write_text(as_svg(PICTURES[name]) + "\n", "utf-8")
        print(f"{path.name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
