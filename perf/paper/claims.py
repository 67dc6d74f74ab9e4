"""What the paper claims, and what our own figures say of it: one judgement for each part."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, geometric_mean

from hrt.errors import InputError
from hrt.perf.paper.data import ALGORITHM, AUTO, FLOAT32, SVD
from hrt.perf.paper.ntk import fits
from hrt.perf.paper.output import Rows, distinct, matching
from hrt.perf.paper.trained_networks import DENSE, DYNAMIC, PROXIMAL, SERVED

# What is public of the paper's text and could be read here: its two abstracts (v1, 11 September 2024; v2, 25 September
# 2024). Its own figures could not be read, so that only what these sentences say is compared, never a number.
SMALLER = "the method reduces memory and computation while accuracy is kept (abstracts of v1 and v2)"
ADAPTIVE = "blocks are refined adaptively by local error estimates (abstract of v2)"
GENERAL = "it maintains high accuracy and improves generalization (abstract of v2)"
BETTER = "it outperforms SVD, pruning and quantization (abstracts of v1 and v2)"
FASTER = "it enhances inference speed, fit for real-time use (abstract of v2)"
BOUNDED = "the approximation is error-bounded (titles and abstracts of v1 and v2)"
TRAINED = "adaptive refinement ensures efficient training and robust performance (abstract of v2)"
REGULARISED = "training efficiency is enhanced (abstract of v1; neither abstract speaks of a regulariser)"
KERNEL = "essential properties of the neural tangent kernel are preserved (abstracts of v1 and v2)"
FORMS = {"ratio": ".1f", "served_ratio": ".1f", "seconds": ".0f", "directions": ".0f", "served_bytes": ",.0f"}
AS_GOOD, SMALL = 1.1, 4.0  # of the dense network's error; times fewer bytes: what counts as trained as well


@dataclass(frozen=True)
class Finding:
    """What was measured of a claim, and whether it agrees."""

    verdict: str
    text: str


def verdict(yes: int, of: int) -> str:
    """In words, of `of` comparisons `yes` of which support the claim."""
    if not of:
        raise InputError("Nothing was measured that the claim could be compared with.")
    return "Agrees" if yes == of else "Does not agree" if yes == 0 else "Agrees in part"


def compression(rows: Rows) -> Finding:
    """Whether Algorithm 1, the paper's, is smaller than dense and than global SVD, and what hrt makes of it."""
    lines, yes, of = [], 0, 0
    for case in distinct(rows, "case"):
        group = matching(rows, case=case)
        svd = matching(group, method=SVD)
        good = [r["ratio"] for r in matching(group, method=ALGORITHM) if r["error"] <= 1e-2]
        of, yes = of + 1, yes + (max(good, default=0.0) > 1)
        best = f"the ratio {max(good):.2f}" if good else "no ratio: it never gets there"
        lines.append(f"{case}: Algorithm 1 at an error of at most 1e-2 has {best}")
        for method in (ALGORITHM, FLOAT32, AUTO):
            pairs = matched(matching(group, method=method), svd)
            if pairs:
                gain = geometric_mean([a / b for a, b in pairs])
                of, yes = of + 1, yes + (gain > 1)
                lines.append(f"{method} takes {1 / gain:.2g} of the bytes of a global SVD of at most the same error")
            else:
                lines.append(f"{method} is nowhere beside a global SVD of at most the same error")
    return Finding(verdict(yes, of), f"Measured (geometric means): {'; '.join(lines)}.")


def matched(ours: Rows, theirs: Rows) -> list[tuple[float, float]]:
    """Ratios of every row of `ours` and of the smallest of `theirs` whose error is no larger, where there is one."""
    rivals = ((row["ratio"], [r["ratio"] for r in theirs if r["error"] <= row["error"]]) for row in ours)
    return [(ratio, max(ratios)) for ratio, ratios in rivals if ratios]


def heat_maps(rows: Rows) -> Finding:
    """Whether the adaptive tree is more than one block."""
    blocks = [len({tuple(leaf[:4]) for leaf in r["leaves"]}) for r in rows]
    lines = [
        f"{r['case']} ({r['what']}): {count} block(s), {r['ratio']:.1f}x smaller, Frobenius error {r['error']:.1e}"
        for r, count in zip(rows, blocks, strict=True)
    ]
    tail = " Where one block is best, no refinement pays: a hierarchy is worth its bytes on the other matrix only."
    text = f"Measured: {'; '.join(lines)}.{tail if 1 in blocks else ''}"
    return Finding(verdict(sum(b > 1 for b in blocks), len(blocks)), text)


def train_and_test(rows: Rows) -> Finding:
    """Whether compression keeps the error on test points, and whether it lowers it (generalization)."""
    (base,) = matching(rows, method="uncompressed")
    others = [r for r in rows if r is not base]
    better = [r for r in others if r["test_error"] < base["test_error"] * (1 - 1e-3)]
    close = [r for r in others if r["asked"] <= 1e-3]
    gap = max(r["fresh_difference"] / r["calibration_difference"] for r in others)
    worst = max(r["test_error"] for r in close)
    return Finding(
        verdict(len(better), len(others)),
        f"Measured: the uncompressed PINN is {base['test_error']:.2e} off the exact solution on test points "
        f"({base['train_error']:.2e} on training points); compressed to 1e-3 and closer it is at most {worst:.2e} off. "
        f"{len(better)} of {len(others)} compressed networks are better on test points than the uncompressed one. "
        f"On unseen points the difference from it is at most {gap:.2f} times that on calibration rows.",
    )


def comparison(rows: Rows) -> Finding:
    """hrt's bytes beside the smallest SVD, pruning and quantization at each error."""
    lines, yes, of = [], 0, 0
    for tol in distinct(rows, "asked"):
        known = {r["method"]: r for r in rows if r["asked"] == tol and r["ratio"]}
        ours = next(r["ratio"] for r in known.values() if r["family"] == "hrt")
        for kind in ("SVD", "pruning", "quantized"):
            best = max((r for r in known.values() if r["family"] == kind), key=lambda r: r["ratio"], default=None)
            of, yes = of + 1, yes + (best is None or ours > best["ratio"])
            word = "cannot reach it below dense" if best is None else f"{best['ratio']:.1f}x ({best['method']})"
            lines.append(f"at {tol:g} {kind} {word}, hrt {ours:.1f}x")
    return Finding(
        verdict(yes, of),
        f"Measured at the same output error, in bytes: {'; '.join(lines)}. hrt is not the paper's method alone: it "
        "chooses blocks optimally, in the norm of the data, in narrow storage. Algorithm 1 is in the first figure.",
    )


def speed(rows: Rows) -> Finding:
    """Where hrt is faster than the fastest dense form; intervals that hold 1 count as no gain."""
    ours = matching(rows, method="hrt")
    faster = [r for r in ours if r["low"] > 1]
    form = "{case}, batch {batch}: {ratio:.2f} ({low:.2f} to {high:.2f})"
    lines = [form.format_map(r) for r in ours]
    return Finding(
        verdict(len(faster), len(ours)),
        f"Measured on this CPU, the fastest dense form's median over hrt's, 95 % intervals: {'; '.join(lines)}. "
        "Whether that is fit for real time is measured by `python -m hrt.perf.realtime`, not here.",
    )


def propagation(rows: Rows) -> Finding:
    """Whether the errors of layers stay bounded on their way to the output."""
    lines, held = [], []
    for method in distinct(rows, "method"):
        line = matching(rows, method=method)
        largest = max(line, key=lambda r: r["error"])
        lines.append(
            f"{method}: {line[0]['error']:.1e} after the first layer, at most {largest['error']:.1e} (layer "
            f"{largest['layer']}), {line[-1]['error']:.1e} at the output; the weights' largest Frobenius error is "
            f"{max(r['frobenius'] for r in line):.1e}"
        )
        held.append(line[-1]["error"] <= 1e-3)
    return Finding(
        verdict(sum(held), len(held)),
        f"Measured on fresh points: {'; '.join(lines)}. The output keeps 1e-3 where this says so because it was "
        "searched for and measured, not because a bound on weights implies it.",
    )


class Seeds:
    """What was measured at the end of a method's runs on one equation, over seeds."""

    def __init__(self, rows: Rows, case: str, method: str) -> None:
        self.rows = [r for r in matching(rows, case=case, method=method) if "served_ratio" in r]

    def mean(self, key: str) -> float:
        return fmean(r[key] for r in self.rows)

    def __getitem__(self, key: str) -> str:
        """Mean, least and greatest."""
        form = FORMS.get(key, ".1e")
        values = [r[key] for r in self.rows]
        return f"{self.mean(key):{form}} ({min(values):{form}} to {max(values):{form}})"


def _beside_dense(rows: Rows, method: str, good: Callable[[Seeds, Seeds], bool], text: str, tail: str) -> Finding:
    """On how many equations `method` is `good` beside dense; text: what is said of each."""
    pairs = {case: [Seeds(rows, case, name) for name in (DENSE.name, method)] for case in distinct(rows, "case")}
    lines = [f"{case}: " + text.format(dense=dense, ours=ours) for case, (dense, ours) in pairs.items()]
    seeds, yes = len(distinct(rows, "seed")), sum(good(*pair) for pair in pairs.values())
    return Finding(verdict(yes, len(pairs)), f"Measured (means of {seeds} seeds): {'; '.join(lines)}. {tail}")


def training(rows: Rows) -> Finding:
    """Whether what was compressed while it trained has, as stored, at most AS_GOOD times the dense network's error and
    SMALL times fewer bytes, in the mean.
    """

    def good(dense: Seeds, ours: Seeds) -> bool:
        return ours.mean("served_error") <= AS_GOOD * dense.mean("error") and ours.mean("served_ratio") >= SMALL

    text = (
        "error {dense[error]} dense, {ours[error]} with dynamic compression at {ours[ratio]} times fewer numbers, in "
        "{ours[seconds]} instead of {dense[seconds]} s of CPU; stored within "
        f"{SERVED:g} of its own error it has the error "
        "{ours[served_error]} and {ours[served_ratio]} times fewer bytes, one trained dense {dense[served_ratio]} times"
    )
    tail = f"Agreement means an error of at most {AS_GOOD:g} times the dense one's at {SMALL:g} times fewer bytes."
    return _beside_dense(rows, DYNAMIC.name, good, text, tail)


def regulariser(rows: Rows) -> Finding:
    """Whether proximal steps leave networks that take fewer bytes at no more than AS_GOOD times the error."""

    def good(dense: Seeds, ours: Seeds) -> bool:
        smaller = ours.mean("served_ratio") > dense.mean("served_ratio")
        return smaller and ours.mean("error") <= AS_GOOD * dense.mean("error")

    text = (
        "error {dense[error]} without and {ours[error]} with; directions seen {dense[directions]} and "
        "{ours[directions]}; bytes within "
        f"{SERVED:g} of the error "
        "{dense[served_bytes]} and {ours[served_bytes]}"
    )
    tail = f"Agreement means fewer bytes at an error of at most {AS_GOOD:g} times the other's."
    return _beside_dense(rows, PROXIMAL.name, good, text, tail)


def kernel(rows: Rows) -> Finding:
    """Whether the drift stays below C tol, and how often a definite kernel stays definite."""
    lines, yes, of = [], 0, 0
    for case in distinct(rows, "case"):
        for f in fits(matching(rows, case=case)):
            of, yes = of + 1, yes + (f["verdict"] == "holds")
            lines.append(
                f"{case}, {f['kernel']}, tol of the {f['bound']}: exponent {f['exponent']:.2f} ({f['low']:.2f} to "
                f"{f['high']:.2f}), {f['verdict']}"
            )
    definite = [r for r in rows if r["before"]["positive_definite"]]
    still = sum(r["after"]["positive_definite"] for r in definite)
    tail = f"Of {len(definite)} kernels that were positive definite {still} still are."
    return Finding(
        verdict(yes, of),
        f"Measured, drift <= C tol with one C over all tolerances and seeds: {'; '.join(lines)}. {tail}",
    )
