"""The pictures of `python -m hrt.perf.paper figures`: one function for each, from the rows that stand beside it."""

from collections.abc import Sequence
from itertools import product
from statistics import fmean
from typing import Any

from hrt.perf.bench.charts import GRID, INK, LEAST_ERROR, LINES, LOOKS, figure, log_ticks, tidy
from hrt.perf.paper import complexity as sizes
from hrt.perf.paper.data import FEATURES, PINN, TIMED_AT, family
from hrt.perf.paper.output import Rows, distinct, matching
from hrt.perf.paper.rates import laws
from hrt.perf.paper.trained_networks import SEEN
from hrt.perf.paper.weight_methods import ALGORITHM, AUTO, FLOAT32, SVD

STYLES = {SVD: LOOKS["svd"], ALGORITHM: LOOKS["pruned"], FLOAT32: ("#cc79a7", "s"), AUTO: LOOKS["hrt"]}
STYLES["uncompressed"] = LOOKS["dense"]
FAMILIES = {
    "dense": LOOKS["dense"],
    "paper": LOOKS["other"],
    "SVD": LOOKS["svd"],
    "pruning": LOOKS["pruned"],
    "quantized": LOOKS["quantized"],
    "hrt": LOOKS["hrt"],
}
NAMES = {"paper": "Algorithm 1, the paper's", "quantized": "fewer bits a number"}  # of families
KERNEL_STYLES = {"weights": "o", "output": "^"}
KERNEL_COLOURS = {"value": LINES[0], "residual": LINES[1]}
RATIOS = {"most": 7}  # ticks of an axis of ratios
ERRORS = {"form": "{:g}", "most": 9, "steps": (1,)}  # powers of ten
Ticks = dict[str, Any]


def panels(cases: Sequence[Any], height: float = 4.3, width: float = 5.2, **options: Any) -> tuple[Any, list[Any]]:
    """A figure with a panel for each case, side by side, and pairs of panel and case."""
    fig = figure(width * len(cases), height)
    return fig, list(zip(fig.subplots(1, len(cases), squeeze=False, **options)[0], cases, strict=True))


def finish(axes: Any, x: Ticks | None = None, y: Ticks | None = None, **labels: Any) -> None:
    """Labels, a quiet grid, and a logarithmic scale where ticks are given."""
    axes.set(**labels)
    for axis, set_scale, ticks in ((axes.xaxis, axes.set_xscale, x), (axes.yaxis, axes.set_yscale, y)):
        if ticks is not None:
            set_scale("log")
            log_ticks(axis, **ticks)
    tidy(axes)


def legend(fig: Any, ncols: int = 4, **options: Any) -> Any:
    """What the first panel names, below all."""
    handles, labels = fig.axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=ncols, frameon=False, **options)
    return fig


def joined(x: Sequence[Any], y: Sequence[Any]) -> str:
    """The line through points: none through two, which any line joins."""
    return "-" if len(set(zip(x, y, strict=True))) > 2 else ""


def compression(rows: Rows) -> Any:
    """Error against ratio, a panel for each network. What is exact has no place there: it is counted."""
    fig, pairs = panels(distinct(rows, "case"))
    for axes, case in pairs:
        exact = []
        for method in distinct(rows, "method"):
            every = sorted(matching(rows, case=case, method=method), key=lambda r: r["ratio"])
            line = [r for r in every if r["error"] >= LEAST_ERROR]
            if len(line) < len(every):
                exact.append(f"{len(every) - len(line)} of {method}")
            colour, marker = STYLES[method]
            x, y = [r["ratio"] for r in line], [r["error"] for r in line]
            axes.plot(x, y, f"{marker}{joined(x, y)}", color=colour, markersize=5, linewidth=1.3, label=method)
        axes.axvline(1, color=INK, linewidth=1, linestyle="--")
        kind = "relative L2 error of outputs, unseen points" if case == PINN else "relative Frobenius error"
        finish(axes, RATIOS, ERRORS, xlabel="dense bytes over bytes (dashed: dense)", ylabel=kind)
        axes.set_title(f"{case}\nexact, and so without a point: {', '.join(exact) or 'none'}", fontsize=9.5)
    return legend(fig)


def heat_maps(rows: Rows) -> Any:
    """|W|, |H| with its leaves, and |W - H| of each matrix, logarithmic; the singular values of W and H."""
    from matplotlib.collections import PatchCollection
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle

    fig = figure(14.5, 3.7 * len(rows))
    for (*line, values), r in zip(fig.subplots(len(rows), 4, squeeze=False), rows, strict=True):
        m, n = r["shape"]
        top = max(max(v) for v in r["W"])
        norm, image = LogNorm(1e-6 * top, top), None
        for axes, key, title in zip(line, ("W", "H", "E"), ("W", "H, compressed", "W - H"), strict=True):
            cells = [[max(v, 1e-12 * top) for v in row] for row in r[key]]
            image = axes.imshow(cells, extent=(0, n, m, 0), cmap="viridis", norm=norm, interpolation="nearest")
            axes.set_title(title, fontsize=9.5)
            axes.tick_params(labelsize=8)
        line[0].set_ylabel(f"{r['case']}\n{r['what']}", fontsize=9.5)
        places = {tuple(leaf[:4]) for leaf in r["leaves"]}
        blocks = [Rectangle((col, row), cols, height) for row, height, col, cols in sorted(places)]
        line[1].add_collection(PatchCollection(blocks, facecolor="none", edgecolor="white", linewidth=0.5))
        line[1].set_xlabel(f"{len(blocks)} block(s), dense bytes over bytes {r['ratio']:.2f}")
        inputs = "" if r["weighted"] is None else f", on inputs {r['weighted']:.1e}"
        line[2].set_xlabel(f"Frobenius error {r['error']:.1e}{inputs}")
        if not r["error"]:
            line[2].text(0.5, 0.5, "exact: stored dense", color="white", ha="center", transform=line[2].transAxes)
        fig.colorbar(image, ax=line[2], shrink=0.85, label="root mean square of a cell", format="{x:.0e}")
        for key, marker, colour in zip("WH", "os", LINES, strict=False):
            shown = [v for v in r["values"][key] if v > 1e-6 * r["values"]["W"][0]]
            values.plot(range(1, len(shown) + 1), shown, marker, markersize=3, color=colour, label=key)
        turned = f"leading {FEATURES} directions turn by {r['angle']:.1f} degrees"
        turned += "" if r["seen_angle"] is None else f",\nas inputs see them by {r['seen_angle']:.1f}"
        finish(values, y=ERRORS, xlabel=turned, title="singular values, by number")
        values.title.set_fontsize(9.5)
        values.legend(frameon=False, fontsize=8)
    return fig


def train_and_test(rows: Rows) -> Any:
    """Left: error against the exact solution over the ratio. Right: how much further from the uncompressed network the
    compressed one is on fresh points than on those that it was calibrated on.
    """
    fig, ((left, _), (right, _)) = panels(["error", "gap"])
    (base,) = matching(rows, method="uncompressed")
    for method in (FLOAT32, AUTO):
        line = sorted(matching(rows, method=method), key=lambda r: r["ratio"])
        colour, marker = STYLES[method]
        x, look = [r["ratio"] for r in line], {"color": colour, "markersize": 5}
        left.plot(x, [r["train_error"] for r in line], f"{marker}--", markerfacecolor="white", **look)
        left.plot(x, [r["test_error"] for r in line], f"{marker}-", label=method, **look)
        right.plot(x, [r["fresh_difference"] / r["calibration_difference"] for r in line], f"{marker}-", **look)
    left.axhline(base["test_error"], color=INK, linewidth=1, label="uncompressed")
    left.axhline(base["train_error"], color=INK, linewidth=1, linestyle="--")
    left.plot([], [], color=GRID, linestyle="--", label="training points (dashed)")
    left.plot([], [], color=GRID, label="test points")
    right.axhline(1, color=INK, linewidth=1)
    ticks, ratio = {"form": "{:g}", "most": 8, "steps": (1, 3)}, "dense bytes over bytes"
    finish(left, RATIOS, ticks, xlabel=ratio, ylabel="relative L2 error against the exact solution")
    finish(right, RATIOS, xlabel=ratio, ylabel="difference from dense, fresh over seen")
    return legend(fig, ncols=5, fontsize=8.5)


def comparison(rows: Rows) -> Any:
    """Ratio of every method at each error; what does not reach it below dense is said so in its place."""
    fig, pairs = panels(distinct(rows, "asked"), 0.9 + 0.28 * len(distinct(rows, "method")), sharey=True)
    for axes, tol in pairs:
        bars = matching(rows, asked=tol)
        for k, r in enumerate(bars):
            if (r["ratio"] or 0) <= 1:
                size = f": {r['ratio']:.2f}x" if r["ratio"] else ""
                axes.text(1.0, k, f"  cannot reach it below dense{size}", va="center", fontsize=8.5)
                continue
            axes.barh(k, r["ratio"], color=FAMILIES[r["family"]][0], height=0.65)
            axes.text(r["ratio"], k, f" {r['ratio']:.1f}x, error {r['error']:.1e}", va="center", fontsize=8.5)
        axes.set_yticks(range(len(bars)), [r["method"] for r in bars])
        axes.set(ylim=(len(bars) - 0.4, -0.6), xlim=(0, 1.5 * max([r["ratio"] or 0 for r in bars] + [1.0])))
        axes.axvline(1, color=INK, linewidth=1, linestyle="--")
        finish(axes, xlabel="dense bytes over bytes (dashed: dense)", title=f"output error at most {tol:g}")
    for kind in distinct(rows, "family"):
        fig.axes[0].plot([], [], "s", color=FAMILIES[kind][0], label=NAMES.get(kind, kind))
    return legend(fig, ncols=5)


def speed(rows: Rows) -> Any:
    """Above: the fastest dense form's median over each method's, over the batch size. Below: how far calls scatter."""
    cases, batches = distinct(rows, "case"), sorted(distinct(rows, "batch"))
    fig = figure(5.2 * len(cases), 6.8)
    colours = {m: FAMILIES["dense" if m.startswith("dense") else family(m)][0] for m in distinct(rows, "method")}
    for (upper, lower), case in zip(fig.subplots(2, len(cases), squeeze=False).T, cases, strict=True):
        for method in distinct(matching(rows, case=case), "method"):
            line, look = matching(rows, case=case, method=method), {"color": colours[method], "markersize": 5}
            around = [[max(0, r["ratio"] - r["low"]) for r in line], [max(0, r["high"] - r["ratio"]) for r in line]]
            x = [r["batch"] for r in line]
            style = f"o{joined(x, x)}"
            upper.errorbar(x, [r["ratio"] for r in line], around, fmt=style, label=method, **look)
            lower.plot(x, [r["p95_us"] / r["p50_us"] for r in line], style, **look)
        upper.axhline(1, color=INK, linewidth=1, linestyle="--")
        for axes in (upper, lower):
            axes.set_xscale("log")
            axes.set_xticks(batches, [str(b) for b in batches])
            axes.minorticks_off()
        finish(upper, y={"most": 8}, ylabel="best dense / this (above 1: faster)", title=case)
        finish(lower, xlabel="batch", ylabel="95th percentile over median")
    handles = [fig.axes[0].plot([], [], "o-", color=colour)[0] for colour in colours.values()]
    title = f"output error at most {TIMED_AT:g} (what does not reach it is left out), one thread; bars: 95 %"
    fig.legend(handles, list(colours), loc="outside lower center", ncols=3, frameon=False, title=title)
    return fig


def propagation(rows: Rows) -> Any:
    """Error after every layer, a row of panels for what the tolerance bounds, a column for each tolerance; exact layers
    have no point.
    """
    bounds, tols = distinct(rows, "bound"), distinct(rows, "tol")
    fig = figure(4.4 * len(tols), 3.6 * len(bounds))
    panel = iter(fig.subplots(len(bounds), len(tols), squeeze=False, sharex=True, sharey=True).ravel())
    for bound, tol in product(bounds, tols):
        axes, some = next(panel), matching(rows, bound=bound, tol=tol)
        for method in distinct(some, "method"):
            line = matching(some, method=method)
            colour, marker = STYLES[method]
            shown = [r for r in line if r["error"] >= LEAST_ERROR]
            exact = "" if shown else ": exact"
            label = f"{line[0]['ratio']:.2g}x{exact}"
            x, y = [r["layer"] for r in shown], [r["error"] for r in shown]
            axes.plot(x, y, f"{marker}{joined(x, y)}", color=colour, markersize=5, label=label)
        axes.axhline(tol, color=INK, linewidth=1, linestyle=":")
        axes.set_xticks(distinct(some, "layer"))
        finish(
            axes,
            y=ERRORS,
            xlabel="layer (no point where it is exact)",
            ylabel="relative L2 error of its output",
            title=f"tol {tol:g} (dotted) of {bound}",
        )
        axes.legend(frameon=False, fontsize=8, title="dense bytes over bytes", title_fontsize=8)
    handles = [fig.axes[0].plot([], [], f"{m}-", color=c)[0] for c, m in (STYLES[k] for k in distinct(rows, "method"))]
    fig.legend(handles, distinct(rows, "method"), loc="outside lower center", ncols=len(handles), frameon=False)
    return fig


def rates(rows: Rows) -> Any:
    """A panel for each equation: the loss over the steps at every number of refinements, with the fitted exponent."""
    fitted = laws(rows)
    fig, pairs = panels(distinct(rows, "case"), 4.2)
    for axes, case in pairs:
        for p, colour, marker in zip(distinct(rows, "p"), LINES, "o^s", strict=False):
            line, law = matching(rows, case=case, p=p), fitted[case, p]
            label = f"p = {p}: k^{law.exponent:.2f} ({law.low:.2f} to {law.high:.2f})"
            _spread(axes, line, "step", "loss", fmt=f"{marker}-", color=colour, label=label)
        ticks = {"form": "{:g}", "most": 9}
        finish(axes, {"most": 6}, ticks, xlabel="step k of Adam", ylabel="training loss", title=case)
        axes.legend(frameon=False, fontsize=8.5, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    fig.suptitle(f"{_seeds(rows)}; fitted exponents with 95 % intervals", fontsize=9.5)
    return fig


def complexity(rows: Rows) -> Any:
    """A column for each kernel: bytes beside k n log n and n^2; times of building and of products, with exponents."""
    cases, fitted = distinct(rows, "case"), sizes.laws(rows)
    fig = figure(4.3 * len(cases), 7.2)
    for (upper, lower), case in zip(fig.subplots(2, len(cases), squeeze=False).T, cases, strict=True):
        line = matching(rows, case=case)
        n, first = [r["n"] for r in line], line[0]
        for axes, keys in ((upper, ("bytes",)), (lower, ("build", "apply_1", "apply_64"))):
            for key, colour in zip(keys, LINES, strict=False):
                law = fitted[case, key]
                label = f"{sizes.MEASURED[key]}: n^{law.exponent:.2f} ({law.low:.2f} to {law.high:.2f})"
                y = [r[key] for r in line]
                axes.plot(n, y, f"o{joined(n, y)}", color=colour, markersize=5, label=label)
        for label, grown, style in (("k n log n", sizes.bound, "--"), ("n^2", lambda r: r["n"] ** 2, ":")):
            y = [first["bytes"] * grown(r) / grown(first) for r in line]
            upper.plot(n, y, style, color=INK, linewidth=1, label=label)
        y = [first["build"] * (r["n"] / first["n"]) ** 2 for r in line]
        lower.plot(n, y, ":", color=INK, linewidth=1, label="n^2")
        ranks = f"k from {first['rank']} to {line[-1]['rank']}"
        finish(upper, {"most": 6}, {"most": 7}, ylabel="bytes, float32")
        upper.set_title(f"{case}\n{ranks}", fontsize=9.5)
        finish(lower, {"most": 6}, {"form": "{:g}", "most": 8, "steps": (1,)}, xlabel="n", ylabel="seconds")
        for axes in (upper, lower):
            axes.set_xticks(n, [f"{side:,}" for side in n])
            axes.legend(frameon=False, fontsize=7.5)
    return fig


def training(rows: Rows) -> Any:
    """A column for each equation: error and ratio over the steps, dense and with dynamic compression."""
    return _over_steps(rows, {"error": "relative L2 error", "ratio": "dense numbers over numbers"})


def regulariser(rows: Rows) -> Any:
    """A column for each equation: error over the steps, and the directions of all weights that inputs see."""
    return _over_steps(rows, {"error": "relative L2 error", "directions": f"directions seen within {SEEN:g}"})


def kernel(rows: Rows) -> Any:
    """A panel for each equation: drift of both kernels over the error reached, of weights and of outputs."""
    fig, pairs = panels(distinct(rows, "case"), 4.4)
    for axes, case in pairs:
        drifts = matching(rows, case=case)
        for (bound, style), (name, colour) in product(KERNEL_STYLES.items(), KERNEL_COLOURS.items()):
            line = [r for r in matching(drifts, bound=bound, kernel=name) if r["drift"] > 0]
            x, y = [r["achieved"] for r in line], [r["drift"] for r in line]
            axes.plot(x, y, style, color=colour, markersize=5, label=f"{name}, error of the {bound}")
        reached = [r["achieved"] for r in drifts if r["drift"] > 0]
        ends = [min(reached), max(reached)]
        axes.plot(ends, ends, color=INK, linewidth=1, linestyle=":", label="exponent 1")
        finish(axes, ERRORS, ERRORS, xlabel="relative error reached", ylabel="relative drift of the kernel", title=case)
    return legend(fig, ncols=3, title=f"a point for each tolerance of each of {len(distinct(rows, 'seed'))} seed(s)")


def _over_steps(rows: Rows, kinds: dict[str, str]) -> Any:
    """Rows of panels by kind, columns by equation; points are means over seeds, bars reach from least to greatest."""
    cases = distinct(rows, "case")
    fig = figure(5.2 * len(cases), 3.4 * len(kinds))
    panel = iter(fig.subplots(len(kinds), len(cases), squeeze=False).ravel())
    for (key, label), case in product(kinds.items(), cases):
        axes = next(panel)
        for method, marker, colour in zip(distinct(rows, "method"), "os", LINES, strict=False):
            line = matching(rows, case=case, method=method)
            _spread(axes, line, "step", key, fmt=f"{marker}-", color=colour, label=method)
        changed = max(r["step"] for r in rows if r["optimiser"] == "Adam")
        axes.axvline(changed, color=INK, linewidth=1, linestyle=":", label="Adam ends, Gauss-Newton begins")
        ticks = {"form": "{:.4g}", "most": 8}
        finish(axes, y=ticks, xlabel="steps of Adam, then of Gauss-Newton", ylabel=label, title=case)
    return legend(fig, ncols=3, title=_seeds(rows))


def _spread(axes: Any, rows: Rows, x: str, y: str, **style: Any) -> None:
    """Means, with bars from the least to the greatest."""
    groups = {place: [r[y] for r in rows if r[x] == place] for place in sorted(set(distinct(rows, x)))}
    means = {place: fmean(g) for place, g in groups.items()}
    below = [max(0.0, means[p] - min(g)) for p, g in groups.items()]  # a mean of equal figures is rounded
    above = [max(0.0, max(g) - means[p]) for p, g in groups.items()]
    style |= {"markersize": 4.5, "linewidth": 1.3, "capsize": 2}
    axes.errorbar(list(means), list(means.values()), [below, above], **style)


def _seeds(rows: Rows) -> str:
    count = len(distinct(rows, "seed"))
    return f"mean of {count} seeds, bars from the least to the greatest" if count > 1 else "one seed"
