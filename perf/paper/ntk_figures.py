"""The picture of `python -m hrt.perf.paper ntk`: drift over the tolerance, spectra, angles, and drift over training."""

from collections.abc import Mapping
from typing import Any

from hrt.perf.bench.charts import INK, figure
from hrt.perf.paper.figures import ERRORS, KERNEL_COLOURS, KERNEL_STYLES, finish
from hrt.perf.paper.ntk import lines
from hrt.perf.paper.output import matching

LEAST = 1e-12  # a squared sine below is drawn here: rounding
LINE = {"markersize": 5, "linewidth": 1.3}


def picture(result: Mapping[str, Any]) -> Any:
    """Four panels, from the result that is written beside it."""
    fig = figure(11.0, 8.0)
    drift, spectra, angles, training = fig.subplots(2, 2).ravel()
    laws = {(f["bound"], f["kernel"]): f for f in result["fits"]}
    for (bound, kernel), line in lines(result["tolerance"]).items():
        law, x = laws[bound, kernel], [r["tol"] for r in line]
        look = {"color": KERNEL_COLOURS[kernel], **LINE}
        label = f"{kernel}, tol of the {bound}: {law['exponent']:.2f} ({law['low']:.2f} to {law['high']:.2f})"
        drift.plot(x, [r["drift"] for r in line], KERNEL_STYLES[bound], **look, label=label)
        sines = [max(LEAST, 1 - r["cosines"][-1] ** 2) ** 0.5 for r in line]
        angles.plot(x, sines, KERNEL_STYLES[bound], **look)
        if bound == "output":  # leading eigenvalues before, and after compression at the loosest tolerance
            before, after = (line[0][when]["eigenvalues"] for when in ("before", "after"))
            places, label = range(1, len(before) + 1), f"{kernel}, output within {line[0]['tol']:g}"
            spectra.plot(places, before, "s", color=KERNEL_COLOURS[kernel], markersize=6, label=kernel)
            spectra.plot(places, after, "x", color=INK, markersize=6, label=label)
    tols = [r["tol"] for r in result["tolerance"]]
    drift.plot([min(tols), max(tols)], [min(tols), max(tols)], color=INK, linestyle=":", label="exponent 1")
    tol = result["setting"]["training_tol"]
    for kernel, colour in KERNEL_COLOURS.items():
        line = matching(result["training"], kernel=kernel)
        steps, come = [r["step"] for r in line[1:]], [r["from_start"] for r in line[1:]]
        training.plot(steps, come, "s-", color=colour, **LINE, label=f"{kernel}, from the start")
        moved, label = [r["compression"] for r in line], f"{kernel}, weights compressed at {tol:g}"
        training.plot([1, *steps], moved, "o--", color=colour, **LINE, label=label)
    title = "drift, exponents with 95 % intervals"
    finish(drift, ERRORS, ERRORS, xlabel="tol", ylabel="relative drift of the kernel", title=title)
    finish(spectra, None, ERRORS, xlabel="number", ylabel="eigenvalue", title="leading eigenvalues before and after")
    title = "largest angle between the 5 leading eigenvectors' spans"
    finish(angles, ERRORS, ERRORS, xlabel="tol", ylabel="sine of the angle", title=title)
    labels = {"xlabel": "step (1: before training)", "ylabel": "relative drift", "title": "over a short training"}
    finish(training, ERRORS, ERRORS, **labels)
    for axes in (drift, spectra, training):
        axes.legend(frameon=False, fontsize=8)
    return fig
