"""The picture of `python -m hrt.perf.paper.ntk`: drift over the tolerance, spectra, angles, and drift over training."""

from collections.abc import Mapping
from typing import Any

from hrt.perf.bench.charts import INK, LINES, figure, log_ticks, tidy

STYLES = {"weights": "o-", "output": "^--"}
COLOURS = {"value": LINES[0], "residual": LINES[1]}
LEAST = 1e-12  # a sine below is drawn here: rounding


def picture(result: Mapping[str, Any]) -> Any:
    """Four panels, from the result that is written beside it."""
    fig = figure(11.0, 8.0)
    panels = fig.subplots(2, 2).ravel()
    for axes, draw in zip(panels, (_drift, _spectra, _angles, _training), strict=True):
        draw(axes, result)
        tidy(axes)
    return fig


def _lines(result: Mapping[str, Any]) -> Any:
    rows = result["tolerance"]
    for bound, kernel in dict.fromkeys((r["bound"], r["kernel"]) for r in rows):
        yield bound, kernel, [r for r in rows if (r["bound"], r["kernel"]) == (bound, kernel)]


def _drift(axes: Any, result: Mapping[str, Any]) -> None:
    laws = {(f["bound"], f["kernel"]): f for f in result["fits"]}
    for bound, kernel, line in _lines(result):
        law = laws[bound, kernel]
        label = f"{kernel}, tol of the {bound}: {law['exponent']:.2f} ({law['low']:.2f} to {law['high']:.2f})"
        x, y = [r["tol"] for r in line], [r["drift"] for r in line]
        axes.plot(x, y, STYLES[bound], color=COLOURS[kernel], markersize=5, linewidth=1.3, label=label)
    x = [r["tol"] for r in result["tolerance"]]
    axes.plot([min(x), max(x)], [min(x), max(x)], color=INK, linewidth=1, linestyle=":", label="exponent 1")
    axes.set(xlabel="tol", ylabel="relative drift of the kernel", title="drift, exponents with 95 % intervals")
    _logarithmic(axes)
    axes.legend(frameon=False, fontsize=8)


def _spectra(axes: Any, result: Mapping[str, Any]) -> None:
    """Leading eigenvalues before, and after compression of the output at the loosest tolerance."""
    for bound, kernel, line in _lines(result):
        if bound == "output":
            r = line[0]
            places = range(1, len(r["before"]["eigenvalues"]) + 1)
            axes.plot(places, r["before"]["eigenvalues"], "s", color=COLOURS[kernel], markersize=6, label=kernel)
            label = f"{kernel}, output within {r['tol']:g}"
            axes.plot(places, r["after"]["eigenvalues"], "x", color=INK, markersize=6, label=label)
    axes.set(yscale="log", xlabel="number", ylabel="eigenvalue", title="leading eigenvalues before and after")
    log_ticks(axes.yaxis, "{:g}", most=9, steps=(1,))
    axes.legend(frameon=False, fontsize=8)


def _angles(axes: Any, result: Mapping[str, Any]) -> None:
    for bound, kernel, line in _lines(result):
        sines = [max(LEAST, 1 - r["cosines"][-1] ** 2) ** 0.5 for r in line]
        axes.plot([r["tol"] for r in line], sines, STYLES[bound], color=COLOURS[kernel], markersize=5, linewidth=1.3)
    title = "largest angle between the 5 leading eigenvectors' spans"
    axes.set(xlabel="tol", ylabel="sine of the angle", title=title)
    _logarithmic(axes)


def _training(axes: Any, result: Mapping[str, Any]) -> None:
    for kernel, colour in COLOURS.items():
        line = [r for r in result["training"] if r["kernel"] == kernel]
        later = [r for r in line if r["step"] > 0]
        x, y = [r["step"] for r in later], [r["from_start"] for r in later]
        axes.plot(x, y, "s-", color=colour, markersize=5, linewidth=1.3, label=f"{kernel}, from the start")
        x, y = [max(1, r["step"]) for r in line], [r["compression"] for r in line]
        label = f"{kernel}, weights compressed at {result['setting']['training_tol']:g}"
        axes.plot(x, y, "o--", color=colour, markersize=5, linewidth=1.3, label=label)
    axes.set(xlabel="step (1: before training)", ylabel="relative drift", title="over a short training")
    _logarithmic(axes)
    axes.legend(frameon=False, fontsize=8)


def _logarithmic(axes: Any) -> None:
    axes.set(xscale="log", yscale="log")
    log_ticks(axes.xaxis, "{:g}", most=7, steps=(1,))
    log_ticks(axes.yaxis, "{:g}", most=9, steps=(1,))
