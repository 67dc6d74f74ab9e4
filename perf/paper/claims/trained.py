"""What networks that are trained for the study say of the paper's claims: one judgement for each part."""

import math
from statistics import fmean

from hrt.perf.paper.claims.finding import AS_GOOD, FLAT, Finding, Judgement, judgement
from hrt.perf.paper.data import FEATURES
from hrt.perf.paper.ntk import fits
from hrt.perf.paper.output import Rows, distinct, matching
from hrt.perf.paper.rates import laws
from hrt.perf.paper.trained_networks import DENSE, DYNAMIC, PROXIMAL, SERVED, SNAPSHOT

FORMS = {"ratio": ".1f", "served_ratio": ".1f", "seconds": ".0f", "directions": ".0f", "served_bytes": ",.0f"}
SMALL = 4.0  # times fewer bytes: what counts as compressed while it trained
NARROW = 5.0  # degrees: leading directions that turn by less are the same ones


def rates(rows: Rows) -> Finding:
    """Whether every refinement adds 1 to the exponent with which the loss falls: as far as the interval of the
    difference allows, and surely something.
    """
    fitted, lines, added = laws(rows), [], []
    for case in distinct(rows, "case"):
        start = fitted[case, 0]
        lines.append(f"{case}: r = {-start.exponent:.2f} ({-start.high:.2f} to {-start.low:.2f}) at p = 0")
        for p in (p for p in distinct(rows, "p") if p):
            law = fitted[case, p]
            more, half = start.exponent - law.exponent, math.hypot(law.high - law.exponent, start.high - start.exponent)
            added.append(more - half > 0 and p - more <= half + 1e-9)
            lines.append(
                f"{case}: {-law.exponent:.2f} ({-law.high:.2f} to {-law.low:.2f}) at p = {p}, that is "
                f"{more:+.2f} ({more - half:+.2f} to {more + half:+.2f}) where {p} is claimed"
            )
    return Finding(
        f"{len(distinct(rows, 'seed'))} seed(s), exponents over all steps from the first window on, 95 % intervals",
        lines,
        {"3.1.2": judgement(added, "refinements that surely add to the exponent, and as much as is claimed")},
        "A loss that is no power of k has no exponent: the intervals say how far these are from one.",
    )


class Seeds:
    """What was measured at the end of a method's runs on one equation, over seeds."""

    def __init__(self, rows: Rows, case: str, method: str) -> None:
        self.rows = [r for r in matching(rows, case=case, method=method) if "served_ratio" in r]

    def mean(self, key: str) -> float:
        return fmean(r[key] for r in self.rows)

    def spread(self, key: str) -> float:
        """The worst seed's over the best one's."""
        return max(r[key] for r in self.rows) / min(r[key] for r in self.rows)

    def __getitem__(self, key: str) -> str:
        """Mean, least and greatest."""
        form = FORMS.get(key, ".1e")
        values = [r[key] for r in self.rows]
        return f"{self.mean(key):{form}} ({min(values):{form}} to {max(values):{form}})"


def _beside_dense(rows: Rows, method: str) -> dict[str, list[Seeds]]:
    """What was measured at the end, by equation: dense and by `method`."""
    return {case: [Seeds(rows, case, name) for name in (DENSE.name, method)] for case in distinct(rows, "case")}


def training(rows: Rows) -> Finding:
    """Whether accuracy and ratio settle; whether what was compressed while it trained has, as stored, at most AS_GOOD
    times the dense network's error and SMALL times fewer bytes, in the mean; and whether seeds scatter no more.
    """
    pairs, lines, settled, good, steady = _beside_dense(rows, DYNAMIC.name), [], [], [], []
    for case, (dense, ours) in pairs.items():
        changes = [last_changes(matching(rows, case=case, method=DYNAMIC.name, seed=s)) for s in distinct(rows, "seed")]
        accuracy, ratio = (fmean(values) for values in zip(*changes, strict=True))
        settled += [accuracy <= FLAT, ratio <= AS_GOOD]
        good.append(ours.mean("served_error") <= AS_GOOD * dense.mean("error") and ours.mean("served_ratio") >= SMALL)
        steady.append(ours.spread("error") <= dense.spread("error"))
        lines.append(
            f"{case}: error {dense['error']} dense, {ours['error']} with dynamic compression at {ours['ratio']} times "
            f"fewer numbers, in {ours['seconds']} instead of {dense['seconds']} s of CPU; stored within {SERVED:g} of "
            f"its own error it has the error {ours['served_error']} and {ours['served_ratio']} times fewer bytes, one "
            f"trained dense {dense['served_ratio']} times"
        )
        lines.append(
            f"{case}: over the last quarter of the epochs accuracy changes by {accuracy:.1e}, over the last half the "
            f"ratio by {ratio:.2f} times; the worst seed is {ours.spread('error'):.1f} times as far off as the best, "
            f"dense {dense.spread('error'):.1f} times"
        )
    errors = "; ".join(
        f"{case} {ours.mean('served_error') / dense.mean('error'):.2f} times dense at {ours.mean('served_ratio'):.1f}x"
        for case, (dense, ours) in pairs.items()
    )
    faithful = judgement(good, errors)
    return Finding(
        f"Means of {len(distinct(rows, 'seed'))} seeds, from the least to the greatest",
        lines,
        {
            "4.3": judgement(settled, f"accuracy within {FLAT:g}, ratio within {AS_GOOD:g} times, on every equation"),
            "0.4": faithful, "1.2": faithful, "2.3": faithful,
            "5.1": judgement(steady, "seeds scatter no more than those trained dense"),
        },
        f"To keep accuracy means an error of at most {AS_GOOD:g} times the dense one's at {SMALL:g} times fewer bytes. "
        "Where accuracy still changes the networks are not trained to their end: so with --quick.",
    )  # fmt: skip


def last_changes(run: Rows) -> tuple[float, float]:
    """By how much the accuracy changes in the last quarter of a run's epochs, and how many times the ratio in the last
    half.
    """
    errors, ratios = [r["error"] for r in run[len(run) * 3 // 4 :]], [r["ratio"] for r in run[len(run) // 2 :]]
    return max(errors) - min(errors), max(ratios) / min(ratios)


def regulariser(rows: Rows) -> Finding:
    """Whether proximal steps leave networks that take fewer bytes at no more than AS_GOOD times the error."""
    pairs, lines, good = _beside_dense(rows, PROXIMAL.name), [], []
    for case, (dense, ours) in pairs.items():
        smaller = ours.mean("served_ratio") > dense.mean("served_ratio")
        good.append(smaller and ours.mean("error") <= AS_GOOD * dense.mean("error"))
        lines.append(
            f"{case}: error {dense['error']} without and {ours['error']} with; directions seen {dense['directions']} "
            f"and {ours['directions']}; bytes within {SERVED:g} of the error {dense['served_bytes']} and "
            f"{ours['served_bytes']}"
        )
    figures = "; ".join(
        f"{case} {ours.mean('error') / dense.mean('error'):.2f} times the error, "
        f"{ours.mean('served_bytes') / dense.mean('served_bytes'):.2f} times the bytes"
        for case, (dense, ours) in pairs.items()
    )
    return Finding(
        f"Means of {len(distinct(rows, 'seed'))} seeds, from the least to the greatest",
        lines,
        {"3.1.3": judgement(good, figures)},
        f"Agreement means fewer bytes at an error of at most {AS_GOOD:g} times the other's.",
    )


def kernel(rows: Rows) -> Finding:
    """Whether the drift stays below C times the error of the weights, the theorem's own norm, and of the output; and
    how often a definite kernel stays definite.
    """
    fitted = [f | {"case": case} for case in distinct(rows, "case") for f in fits(matching(rows, case=case))]
    lines = [
        f"{f['case']}, {f['kernel']}, error of the {f['bound']}: exponent {f['exponent']:.2f} ({f['low']:.2f} to "
        f"{f['high']:.2f}), {f['verdict']}, C = {f['worst']:.2g} covers all"
        for f in fitted
    ]
    holds = {f["bound"]: [g["verdict"] == "holds" for g in fitted if g["bound"] == f["bound"]] for f in fitted}
    definite = [r for r in rows if r["before"]["positive_definite"]]
    count = sum(r["after"]["positive_definite"] for r in definite)
    still = f"of {len(definite)} kernels that were positive definite {count} still are"
    every = [*(h for some in holds.values() for h in some), count == len(definite)]
    return Finding(
        "Relative drift over the error that was reached, one C for all tolerances and "
        f"{len(distinct(rows, 'seed'))} seed(s)",
        lines,
        {
            "3.T2a": judgement(
                holds["weights"], "fits in the theorem's own norm, that of the weights, that allow one C"
            ),
            "0.2": judgement(every, f"fits in both norms; {still}"),
            "3.T2b": Judgement("", still),
        },
        f"{still.capitalize()}.",
    )


def preserved(rows: Rows) -> Finding:
    """Whether leading directions stay where they were, of the weight and of what its inputs see of it, in what is
    smaller than dense.
    """
    lines = [
        f"{r['case']}, {r['what']}: {r['ratio']:.2f}x smaller, error {r['error']:.1e} (Frobenius) and "
        f"{r['weighted']:.1e} (on its inputs); the leading {FEATURES} directions turn by up to {r['angle']:.1f} and "
        f"{r['seen_angle']:.1f} degrees"
        for r in rows
    ]
    same = [r["ratio"] > 1 and r[angle] <= NARROW for r in rows for angle in ("angle", "seen_angle")]
    turned = ", ".join(f"{r['angle']:.0f} and {r['seen_angle']:.0f} at {r['ratio']:.2g}x" for r in rows)
    return Finding(
        f"The first seed's networks after {SNAPSHOT} epochs; features are taken to be the leading {FEATURES} singular "
        f"directions, of W and of W C^(1/2), C the covariance of its inputs, and kept where they turn by no more than "
        f"{NARROW:g} degrees in a form that is smaller than dense",
        lines,
        {"4.2b": judgement(same, f"degrees {turned}")},
    )
