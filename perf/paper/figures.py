"""The pictures of `python -m hrt.perf.paper.command`: one function for each, from the rows that stand beside it."""

from collections.abc import Sequence
from itertools import product
from statistics import fmean
from typing import Any

from hrt.perf.bench.charts import GRID, INK, LINES, figure, log_ticks, tidy
from hrt.perf.paper.data import ALGORITHM, AUTO, FLOAT32, PINN, SVD, Rows
from hrt.perf.paper.trained_networks import SEEN

STYLES = {
    SVD: ("#0072b2", "^"),
    ALGORITHM: ("#b8860b", "D"),
    FLOAT32: ("#cc79a7", "s"),
    AUTO: ("#d55e00", "o"),
    "uncompressed": ("#4d4d4d", "s"),
}
KERNEL_STYLES = {"weights": "o-", "output": "^--"}
KERNEL_COLOURS = {"value": LINES[0], "residual": LINES[1]}
LEAST_ERROR = 1e-9
FAMILIES = {"SVD": "#0072b2", "pruning": "#b8860b", "quantized": "#009e73", "hrt": "#d55e00"}


def compression(rows: Rows) -> Any:
    """Error against ratio, a panel for each network; left of 1 the "compressed" network is larger than dense. Errors
    below `LEAST_ERROR`, an exact answer among them, are drawn there.
    """
    cases = list(dict.fromkeys(r["case"] for r in rows))
    fig = figure(5.2 * len(cases), 4.3)
    for axes, case in zip(fig.subplots(1, len(cases), squeeze=False)[0], cases, strict=True):
        for method in dict.fromkeys(r["method"] for r in rows):
            line = sorted((r for r in rows if (r["case"], r["method"]) == (case, method)), key=lambda r: r["ratio"])
            colour, marker = STYLES[method]
            x, y = [r["ratio"] for r in line], [max(r["error"], LEAST_ERROR) for r in line]
            axes.plot(x, y, f"{marker}-", color=colour, markersize=5, linewidth=1.3, label=method)
        axes.axvline(1, color=INK, linewidth=1, linestyle="--")
        kind = "output error, unseen points" if case == PINN else "Frobenius error"
        axes.set(xscale="log", yscale="log", xlabel="dense bytes over bytes", ylabel=kind, title=case)
        log_ticks(axes.xaxis, most=7)
        log_ticks(axes.yaxis, "{:g}", most=9, steps=(1,))
        tidy(axes)
    handles, labels = fig.axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return fig


def heat_maps(rows: Rows) -> Any:
    """|W|, |H| and |W - H| of each matrix, logarithmic, the leaves of H drawn over it."""
    from matplotlib.collections import PatchCollection
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle

    fig = figure(11.5, 3.9 * len(rows))
    for line, r in zip(fig.subplots(len(rows), 3, squeeze=False), rows, strict=True):
        m, n = r["shape"]
        top = max(max(v) for v in r["W"])
        for axes, key, title in zip(line, ("W", "H", "E"), ("W", "H, compressed", "W - H"), strict=True):
            image = axes.imshow(
                [[max(v, 1e-12 * top) for v in row] for row in r[key]],
                extent=(0, n, m, 0), cmap="viridis", norm=LogNorm(1e-6 * top, top), interpolation="nearest",
            )  # fmt: skip
            axes.set_title(f"{r['case']}, {r['what']}\n{title}" if key == "W" else title, fontsize=9.5)
            axes.tick_params(labelsize=8)
        places = {tuple(leaf[:4]) for leaf in r["leaves"]}
        blocks = [Rectangle((col, row), cols, height) for row, height, col, cols in sorted(places)]
        edges = PatchCollection(blocks, facecolor="none", edgecolor="white", linewidth=0.5)
        line[1].add_collection(edges)
        line[1].set_xlabel(f"{len(blocks)} block(s), {r['ratio']:.1f}x smaller, Frobenius error {r['error']:.1e}")
        fig.colorbar(image, ax=list(line), shrink=0.85, label="root mean square of a cell", format="{x:.0e}")
    return fig


def train_and_test(rows: Rows) -> Any:
    """Left: error against the exact solution on training and test points over the ratio. Right: difference from the
    uncompressed network on calibration rows and on fresh ones.
    """
    fig = figure(10.5, 4.3)
    left, right = fig.subplots(1, 2)
    base = next(r for r in rows if r["method"] == "uncompressed")
    for method in (FLOAT32, AUTO):
        line = sorted((r for r in rows if r["method"] == method), key=lambda r: r["ratio"])
        colour, marker = STYLES[method]
        x = [r["ratio"] for r in line]
        sides = ((left, "train_error", "test_error"), (right, "calibration_difference", "fresh_difference"))
        for axes, seen, unseen in sides:
            axes.plot(x, [r[seen] for r in line], f"{marker}--", color=colour, markersize=5, markerfacecolor="white")
            axes.plot(x, [r[unseen] for r in line], f"{marker}-", color=colour, markersize=5)
    left.axhline(base["test_error"], color=INK, linewidth=1)
    left.axhline(base["train_error"], color=INK, linewidth=1, linestyle="--")
    titles = "error against the exact solution", "difference from the uncompressed network"
    for axes, title in zip((left, right), titles, strict=True):
        axes.set(xscale="log", yscale="log", xlabel="dense bytes over bytes", ylabel="relative L2", title=title)
        log_ticks(axes.xaxis, most=7)
        log_ticks(axes.yaxis, "{:g}", most=8, steps=(1, 3))
        tidy(axes)
    _legend(fig, [(STYLES[m][0], STYLES[m][1], m) for m in (FLOAT32, AUTO)], test_train=True)
    return fig


def comparison(rows: Rows) -> Any:
    """Ratio of every method at each error; what does not reach it below dense is said so in its place."""
    tols = list(dict.fromkeys(r["asked"] for r in rows))
    fig = figure(4.2 * len(tols) + 1.6, 4.2)
    for axes, tol in zip(fig.subplots(1, len(tols), squeeze=False, sharey=True)[0], tols, strict=True):
        some = [r for r in rows if r["asked"] == tol]
        for k, r in enumerate(some):
            if r["ratio"] is None:
                axes.text(1.0, k, "  cannot reach it below dense", va="center", fontsize=8.5)
                continue
            axes.barh(k, r["ratio"], color=FAMILIES[r["family"]], height=0.65)
            axes.text(r["ratio"], k, f" {r['ratio']:.1f}x", va="center", fontsize=8.5)
        axes.set_yticks(range(len(some)), [r["method"] for r in some])
        axes.invert_yaxis() if axes is fig.axes[0] else None
        axes.set(xlabel="dense bytes over bytes", title=f"output error at most {tol:g}")
        axes.set_xlim(0, 1.18 * max([r["ratio"] or 0 for r in some] + [1.0]))
        axes.axvline(1, color=INK, linewidth=1, linestyle="--")
        tidy(axes)
    return fig


def speed(rows: Rows) -> Any:
    """The fastest dense form's median over each method's, over the batch size."""
    cases = list(dict.fromkeys(r["case"] for r in rows))
    fig = figure(5.2 * len(cases), 4.0)
    methods = list(dict.fromkeys(r["method"] for r in rows))
    for axes, case in zip(fig.subplots(1, len(cases), squeeze=False)[0], cases, strict=True):
        for method, colour in zip(methods, ("#4d4d4d", "#009e73", "#0072b2", "#d55e00"), strict=False):
            line = [r for r in rows if (r["case"], r["method"]) == (case, method)]
            y = [r["ratio"] for r in line]
            around = [[max(0, r["ratio"] - r["low"]) for r in line], [max(0, r["high"] - r["ratio"]) for r in line]]
            axes.errorbar([r["batch"] for r in line], y, around, fmt="o-", color=colour, markersize=5, label=method)
        axes.axhline(1, color=INK, linewidth=1, linestyle="--")
        batches = sorted({r["batch"] for r in rows})
        axes.set(xscale="log", yscale="log", xlabel="batch", ylabel="best dense / this (above 1: faster)", title=case)
        axes.set_xticks(batches, [str(b) for b in batches])
        axes.minorticks_off()
        log_ticks(axes.yaxis, most=8)
        tidy(axes)
    handles, labels = fig.axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return fig


def propagation(rows: Rows) -> Any:
    """Error after every layer: all layers compressed, this one alone, and of the weight in the Frobenius norm."""
    methods = list(dict.fromkeys(r["method"] for r in rows))
    fig = figure(5.2 * len(methods), 4.0)
    kinds = (("error", "all layers compressed", "o-"), ("alone", "this layer alone", "s--"))
    kinds += (("frobenius", "the weight, Frobenius", "^:"),)
    for axes, method in zip(fig.subplots(1, len(methods), squeeze=False, sharey=True)[0], methods, strict=True):
        line = [r for r in rows if r["method"] == method]
        for (key, label, style), colour in zip(kinds, LINES, strict=False):
            y = [max(r[key], LEAST_ERROR) for r in line]
            axes.plot([r["layer"] for r in line], y, style, color=colour, markersize=5, label=label)
        axes.set(yscale="log", xlabel="layer", ylabel="relative error", title=method)
        axes.set_xticks([r["layer"] for r in line])
        log_ticks(axes.yaxis, "{:g}", most=8, steps=(1,))
        tidy(axes)
    handles, labels = fig.axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return fig


def training(rows: Rows) -> Any:
    """A column for each equation: error and ratio over the steps, dense and with dynamic compression."""
    return _over_steps(rows, (("error", "relative L2 error"), ("ratio", "dense numbers over numbers")))


def regulariser(rows: Rows) -> Any:
    """A column for each equation: error over the steps, and the directions of all weights that inputs see."""
    return _over_steps(rows, (("error", "relative L2 error"), ("directions", f"directions seen within {SEEN:g}")))


def kernel(rows: Rows) -> Any:
    """A panel for each equation: drift of both kernels over the tolerance of weights and of outputs."""
    cases = list(dict.fromkeys(r["case"] for r in rows))
    fig = figure(5.2 * len(cases), 4.4)
    for axes, case in zip(fig.subplots(1, len(cases), squeeze=False)[0], cases, strict=True):
        mine = [r for r in rows if r["case"] == case]
        for (bound, style), (name, colour) in product(KERNEL_STYLES.items(), KERNEL_COLOURS.items()):
            some = [r for r in mine if (r["bound"], r["kernel"]) == (bound, name) and r["drift"] > 0]
            _spread(axes, some, "tol", "drift", style, colour, f"{name}, tol of the {bound}")
        ends = [min(r["tol"] for r in mine), max(r["tol"] for r in mine)]
        axes.plot(ends, ends, color=INK, linewidth=1, linestyle=":", label="exponent 1")
        axes.set(xscale="log", yscale="log", xlabel="tol", ylabel="relative drift of the kernel", title=case)
        log_ticks(axes.xaxis, "{:g}", most=7, steps=(1,))
        log_ticks(axes.yaxis, "{:g}", most=9, steps=(1,))
        tidy(axes)
    _seeds_legend(fig, rows)
    return fig


def _over_steps(rows: Rows, kinds: Sequence[tuple[str, str]]) -> Any:
    """Rows of panels by kind, columns by equation; points are means over seeds, bars reach from least to greatest."""
    cases = list(dict.fromkeys(r["case"] for r in rows))
    fig = figure(5.2 * len(cases), 3.4 * len(kinds))
    for line, (key, label) in zip(fig.subplots(len(kinds), len(cases), squeeze=False), kinds, strict=True):
        for axes, case in zip(line, cases, strict=True):
            for k, method in enumerate(dict.fromkeys(r["method"] for r in rows)):
                some = [r for r in rows if (r["case"], r["method"]) == (case, method)]
                _spread(axes, some, "step", key, "os"[k] + "-", LINES[k], method)
            axes.set(yscale="log", xlabel="steps of Adam, then of Gauss-Newton", ylabel=label, title=case)
            log_ticks(axes.yaxis, "{:g}", most=8)
            tidy(axes)
    _seeds_legend(fig, rows)
    return fig


def _spread(axes: Any, rows: Rows, x: str, y: str, style: str, colour: str, label: str) -> None:
    places = sorted({r[x] for r in rows})
    groups = [[r[y] for r in rows if r[x] == place] for place in places]
    means = [fmean(g) for g in groups]
    around = [[max(0.0, m - min(g)) for m, g in zip(means, groups, strict=True)]]  # a mean of equal figures is rounded
    around += [[max(0.0, max(g) - m) for m, g in zip(means, groups, strict=True)]]
    axes.errorbar(places, means, around, fmt=style, color=colour, markersize=4.5, linewidth=1.3, capsize=2, label=label)


def _seeds_legend(fig: Any, rows: Rows) -> None:
    handles, labels = fig.axes[0].get_legend_handles_labels()
    title = f"mean of {len({r['seed'] for r in rows})} seeds, bars from the least to the greatest"
    fig.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, title=title)


def _legend(fig: Any, marks: Sequence[tuple[str, str, str]], test_train: bool) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=c, marker=m, label=label, linewidth=1.3) for c, m, label in marks]
    if test_train:
        handles.append(Line2D([], [], color=GRID, linestyle="--", label="seen: training points, calibration rows"))
        handles.append(Line2D([], [], color=GRID, label="unseen"))
        handles.append(Line2D([], [], color=INK, label="uncompressed"))
    fig.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8.5)
