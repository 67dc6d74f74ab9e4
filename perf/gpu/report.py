"""What a run on a GPU measured, as Markdown for the README: times beside the best dense form, goals, what is missing.

Figures of a card that is not there are refused: only their form is right.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hrt.errors import InputError
from hrt.perf.gpu.budget import DONE
from hrt.perf.gpu.record import RUNNING

LARGE_BYTES = 32 << 20
FEW_ROWS, MANY_ROWS = 16, 4096
Row = Mapping[str, Any]
POINT = ("workload", "precision", "batch")


@dataclass(frozen=True)
class Goal:
    """applies: to which of our rows.  value: of a row; at least `least`, or at most `most`."""

    name: str
    applies: Callable[[Row], bool]
    value: Callable[[Row], float]
    shown: Callable[[float], str]
    least: float | None = None
    most: float | None = None

    def is_met(self, value: float) -> bool:
        """Whether a value meets it."""
        return value >= self.least if self.least is not None else value <= (self.most or 0.0)

    def verdict(self, rows: Sequence[Row]) -> str:
        """Met or not, with the worst row; "not measured" where no row speaks of it."""
        judged = [(self.value(r), r) for r in rows if self.applies(r)]
        if not judged:
            return f"not measured: {self.name}"
        missed = [v for v, _ in judged if not self.is_met(v)]
        pick = min if self.least is not None else max
        worst, row = pick(judged, key=lambda pair: pair[0])
        word = f"missed in {len(missed)} of {len(judged)}" if missed else f"met in all {len(judged)}"
        return f"{word}: {self.name}; worst {self.shown(worst)}, {_point(row)}"


def _goals(chip: Mapping[str, Any]) -> list[Goal]:
    rates, percent, times = chip["matmul_flops"], "{:.0%}".format, "{:.2f}x".format
    return [
        Goal(
            f"70 % of the copy bandwidth for batches up to {FEW_ROWS} that move 32 MB or more",
            lambda r: r["batch"] <= FEW_ROWS and r["moved_bytes"] >= LARGE_BYTES,
            lambda r: r["moved_bytes"] / (1e-6 * r["p50_us"]) / chip["copy_bytes_per_s"],
            percent,
            least=0.7,
        ),
        Goal(
            f"60 % of the measured matmul rate from batch {MANY_ROWS}",
            lambda r: r["batch"] >= MANY_ROWS,
            lambda r: r["flops"] / (1e-6 * r["p50_us"]) / rates[r["precision"]],
            percent,
            least=0.6,
        ),
        Goal(
            "never below 0.97 of the best dense form",
            lambda r: r["ratio_vs_best_dense"] is not None,
            lambda r: r["ratio_vs_best_dense"],
            times,
            least=0.97,
        ),
        Goal(
            "6 us for one row of the PINN",
            lambda r: r["workload"].startswith("burgers") and r["batch"] == 1,
            lambda r: r["p50_us"],
            "{:.1f} us".format,
            most=6.0,
        ),
    ]


def render(content: Mapping[str, Any]) -> str:
    """The report of a record. Raises InputError for a run without a card."""
    facts, steps = content["facts"], content["steps"]
    if facts.get("stub"):
        raise InputError(
            "Found a run on the stub card of the tests. Expected one on a GPU: times without a card are no figures."
        )
    card, wanted = facts.get("gpu", {}), facts.get("versions", {})
    lines = [
        f"{card.get('name', 'no GPU was reached')}, driver {card.get('driver_version', 'unknown')}, "
        f"torch {wanted.get('torch')}, triton {wanted.get('triton')}, commit {facts.get('commit', 'unknown')[:12]}, "
        f"budget {facts.get('budget_s', 0):g} s"
    ]
    if facts.get("other_sources") or facts.get("in_spite_of"):
        lines.append(f"In spite of: {' '.join([*facts.get('other_sources', []), *facts.get('in_spite_of', [])])}")
    rows = [r for s in steps.values() for r in s.get("results", {}).get("rows", [])]
    lines += ["", *table(rows), ""]
    if "chip" in facts:
        ours = best_rows(rows)
        lines += [f"- {goal.verdict(ours)}" for goal in _goals(facts["chip"])]
    else:
        lines.append("- not measured: the copy and matmul rates of the card, and every goal")
    return "\n".join([*lines, "", *[f"- {line}" for line in _steps(steps)]])


def best_rows(rows: Sequence[Row]) -> list[Row]:
    """Of every point our faster form inside a graph: the runtime times both and keeps it."""
    best: dict[tuple, Row] = {}
    for row in rows:
        if row["method"].startswith("hrt") and row["method"] != "hrt end to end":
            key = tuple(row[k] for k in POINT)
            best[key] = min(best.get(key, row), row, key=lambda r: r["p50_us"])
    return list(best.values())


def table(rows: Sequence[Row]) -> list[str]:
    """A line a point, in Markdown."""
    if not rows:
        return ["Nothing was timed."]
    lines = [
        "| network | arithmetic | batch | best dense, us | hrt, us | best dense / hrt | of the roofline | error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for ours in best_rows(rows):
        rivals = [r for r in rows if all(r[k] == ours[k] for k in POINT) and r["method"].startswith("dense")]
        dense = min(rivals, key=lambda r: r["p50_us"], default=None)
        beside = f"{dense['p50_us']:.2f} ({dense['method']})" if dense else "not measured"
        ratio = f"{ours['ratio_vs_best_dense']:.2f}x" if dense else "not measured"
        span = f"{ours['p50_us']:.2f} ({ours['p05_us']:.2f} to {ours['p95_us']:.2f}), {ours['method']}"
        lines.append(
            f"| {ours['workload']} | {ours['precision']} | {ours['batch']} | {beside} | {span} | {ratio} | "
            f"{ours['roofline_fraction']:.0%} | {ours['error']:.1e} |"
        )
    return lines


def _steps(steps: Mapping[str, Any]) -> list[str]:
    """How each step ended, and what it left out."""
    lines = []
    for name, step in steps.items():
        status = "cut off while it ran" if step["status"] == RUNNING else step["status"]
        counts = {k: v for k, v in step.get("results", {}).items() if k in ("passed", "failed", "skipped")}
        remark = f": {step['remark']}" if step.get("remark") else ""
        tests = f" ({', '.join(f'{v} {k}' for k, v in counts.items())})" if counts else ""
        lines.append(f"{name}: {status}{tests}{remark}" if status != DONE else f"{name}: done{tests}")
        lines += [f"{name}: {_point(p)}: {p['remark']}" for p in step.get("results", {}).get("left_out", [])]
    return lines


def _point(row: Row) -> str:
    return f"{row['workload']} {row['precision']} batch {row['batch']}"
