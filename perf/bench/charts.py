"""The pictures of a result, as matplotlib figures: the same for the page (SVG) and for files (PNG)."""

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hrt.errors import HrtError
from hrt.perf.bench.ranking import Cost, front, latency, nbytes, usable
from hrt.perf.measuring.results import Row
from hrt.perf.realtime.latencies import decoded
from hrt.support.atomic_files import replacing

LOOKS = {  # colour (Okabe and Ito's, which people who see colours differently can tell apart), marker
    "dense": ("#4d4d4d", "s"),
    "svd": ("#0072b2", "^"),
    "pruned": ("#b8860b", "D"),
    "quantized": ("#009e73", "v"),
    "hrt": ("#d55e00", "o"),
    "other": ("#cc79a7", "P"),
}
LINES = ("#d55e00", "#0072b2", "#009e73", "#4d4d4d", "#cc79a7", "#b8860b")
INK, GRID = "#22223b", "#d8d8e0"
MARKS: dict[str, Any] = {"markersize": 6.5, "alpha": 0.8, "markeredgecolor": "white"}
LEAST_ERROR = 1e-9  # smaller ones are drawn here: an exact answer has no place on a logarithmic axis
STEPS = (1, 1.2, 1.5, 2, 3, 5, 7)  # of a decade, as ticks
FINER = ((1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9), tuple(k / 10 for k in range(10, 100)))
FEW = 3  # ticks: an axis with fewer tells no scale
LEAST_LATENCY_US = 0.1  # likewise
MOST_BARS = 26  # methods in one picture of latencies
ONE_IN = {1: "all", 2: "1 in 2", 10: "1 in 10", 100: "1 in 100", 1000: "1 in 1,000", 10_000: "1 in 10,000"}  # requests
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # letters stay letters: to be searched, selected and read aloud
    "svg.hashsalt": "hrt",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.parse_math": False,
}


def figure(width: float, height: float) -> Any:
    """An empty figure, inches, that keeps its panels apart."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def as_svg(draw: Callable[[], Any]) -> str:
    """The figure that `draw` makes, as an <svg> element without a header and without a link to anywhere."""
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    buffer = io.StringIO()
    _under_settings(lambda: draw().savefig(buffer, format="svg", metadata=nothing))
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def as_png(draw: Callable[[], Any], path: Path) -> None:
    """The same figure as a file. Raises InputError where it cannot be written."""
    with replacing(path) as file:
        _under_settings(lambda: draw().savefig(file, format="png", dpi=130))


def _under_settings(work: Callable[[], None]) -> None:
    from matplotlib import rc_context

    with rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # a letter that the font lacks is drawn as a box
        work()


def pareto(rows: Sequence[Row]) -> Any:
    """Rows of one workload: error against bytes, and against latency at the smallest and largest batch size."""
    from matplotlib.lines import Line2D

    batches = sorted({r.batch for r in rows if usable(r, latency)})
    # Bytes and error do not depend on the batch size: one row of each method, target and backend.
    once = list({(r.method, r.target, r.backend): r for r in rows if usable(r, nbytes)}.values())
    panels: list[tuple[str, Sequence[Row], Cost]] = [("bytes", once, nbytes)]
    for b in dict.fromkeys(batches[:1] + batches[-1:]):
        panels.append((f"median microseconds, batch {b}", [r for r in rows if r.batch == b], latency))
    fig = figure(4.1 * len(panels), 4.0)
    for axes, (label, some, cost) in zip(fig.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        best = front(some, cost)
        for family, (colour, marker) in LOOKS.items():
            places = [(cost(r), _error(r)) for r in some if r.family == family and usable(r, cost)]
            axes.plot(*zip(*places, strict=True) if places else ([], []), marker, color=colour, **MARKS)
        axes.plot([cost(r) for r in best], [_error(r) for r in best], color=INK, linewidth=1, drawstyle="steps-post")
        axes.set(xscale="log", yscale="log", xlabel=label, ylabel="held-out relative error")
        log_ticks(axes.xaxis, most=5)
        log_ticks(axes.yaxis, "{:g}", most=9, steps=(1,))
        tidy(axes, none="" if best else "nothing was measured")
    families = [f for f in LOOKS if any(r.family == f for r in rows)]
    marks = [Line2D([], [], marker=LOOKS[f][1], color=LOOKS[f][0], linestyle="", label=f) for f in families]
    marks.append(Line2D([], [], color=INK, linewidth=1, label="Pareto front"))
    fig.legend(handles=marks, loc="outside lower center", ncols=len(marks), frameon=False)
    return fig


def latencies(rows: Sequence[Row]) -> Any:
    """Rows of one workload, batch size and target: median to p99 as a bar, p99.9 as a tick, the fastest on top."""
    timed = sorted((r for r in rows if usable(r, latency)), key=lambda r: r.p50_us or 0.0)
    drawn = timed[:MOST_BARS]
    drawn += [r for r in timed[MOST_BARS:] if r.family == "hrt"]  # never left out where it is slow
    fig = figure(9.5, 1.4 + 0.26 * max(2, len(drawn)))
    axes = fig.subplots()
    for k, r in enumerate(drawn):
        colour, marker = LOOKS[r.family]
        p50 = r.p50_us or 0.0
        p99 = r.p99_us or p50
        axes.plot([p50, p99], [k, k], color=colour, linewidth=4, alpha=0.45, solid_capstyle="butt")
        if r.p999_us:
            axes.plot([p99, r.p999_us], [k, k], "-|", color=colour, linewidth=1, markersize=9, markevery=[1])
        axes.plot([p50], [k], marker, color=colour, markersize=6.5, markeredgecolor="white")
    names = [short(f"{r.method}, {r.backend}" if r.backend not in r.method else r.method) for r in drawn]
    axes.set_yticks(range(len(drawn)), names)
    axes.set(xscale="log", xlabel="microseconds of a call: marker median, bar to p99, tick p99.9")
    axes.set_ylim(max(len(drawn), 1) - 0.4, -0.6)
    log_ticks(axes.xaxis, most=9)
    tidy(axes, none="" if drawn else "nothing was measured")
    return fig


def realtime(runs: Sequence[Mapping[str, Any]]) -> Any:
    """Latencies of an open-loop run by quantile, from the histograms in facts["realtime"]; those that cannot be read
    are left out.
    """
    fig = figure(8.5, 3.9)
    axes = fig.subplots()
    for run, colour in zip(runs, LINES * len(runs), strict=False):
        try:
            points = decoded(str(run.get("histogram", "")))
        except HrtError:
            continue
        x, y = [1 / (1 - q) for q, _ in points], [max(v, LEAST_LATENCY_US) for _, v in points]
        style = ":" if str(run.get("subject", "")).startswith("empty call") else "-"
        axes.plot(x, y, style, color=colour, linewidth=1.7, label=short(str(run.get("subject"))))
    drawn = bool(axes.get_legend_handles_labels()[0])
    deadline = runs[0].get("deadline_us") if runs else None
    if isinstance(deadline, (int, float)):
        axes.axhline(deadline, color=INK, linewidth=1, linestyle="--", label="deadline")
    axes.set(xscale="log", yscale="log", xlabel="requests", ylabel="microseconds from when a request was due")
    axes.set_xticks(list(ONE_IN), list(ONE_IN.values()))
    axes.minorticks_off()
    log_ticks(axes.yaxis, most=9)
    tidy(axes, none="" if drawn else "no histogram can be read")
    if drawn:
        fig.legend(loc="outside lower center", ncols=3, frameon=False)
    return fig


def tidy(axes: Any, none: str = "") -> None:
    """A quiet grid, no box. none: what stands in the panel where it is empty."""
    if none:
        axes.text(0.5, 0.5, none, ha="center", va="center", transform=axes.transAxes)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def shortly(value: float) -> str:
    """A round figure as a tick says it: 0.5, 2,000, 50k, 3M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= max(size, 1e4):
            return f"{value / size:g}{letter}"
    return f"{value:,.10g}"


def short(text: str, most: int = 46) -> str:
    """`text` on one line, cut where it is long."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= most else line[: most - 1] + "…"


def _error(row: Row) -> float:
    return max(row.error or 0.0, LEAST_ERROR)


def log_ticks(axis: Any, form: str = "", most: int = 6, steps: Sequence[float] = STEPS) -> None:
    """Ticks in plain figures (0.5, 1, 2, ...) on a logarithmic axis, as many as can be read; powers of ten alone where
    those are enough, finer ones where `steps` leave fewer than FEW.
    """
    low, high = axis.get_view_interval()

    def within(some: Sequence[float]) -> list[float]:
        return [d * 10.0**k for k in range(-12, 16) for d in some if low <= d * 10.0**k <= high]

    choices = (steps, (1, 2, 5), (1, 5), (1,)) if steps is STEPS else (steps, (1,))
    tries = [within(some) for some in choices]
    ticks = next((t for t in tries if len(t) <= most), tries[-1])
    ticks = ticks[:: 1 + max(0, len(ticks) - 1) // most]
    for some in (STEPS, *FINER):
        ticks = within(some) if len(ticks) < FEW and len(within(some)) <= most + FEW else ticks
    axis.set_ticks(ticks, [form.format(t) if form else shortly(t) for t in ticks])
    axis.set_ticks([], minor=True)
