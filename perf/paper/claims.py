"""What the paper claims, and what our own figures say of it: one judgement for each part."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, geometric_mean

from hrt.errors import InputError
from hrt.perf.paper import complexity as sizes
from hrt.perf.paper.data import FEATURES
from hrt.perf.paper.ntk import fits
from hrt.perf.paper.output import Rows, distinct, matching
from hrt.perf.paper.propagation import OUTPUT, WEIGHTS
from hrt.perf.paper.rates import laws
from hrt.perf.paper.trained_networks import DENSE, DYNAMIC, PROXIMAL, SERVED, SNAPSHOT
from hrt.perf.paper.weight_methods import ALGORITHM, AUTO, FLOAT32, SVD

# In our words; the paper's own stand in its sections 3.1, 3.3 and 4. Its figures are pictures of networks and data that
# were not published, so that what its text says of them is compared, not their points.
SMALLER = "SVD's accuracy hardly changes with compression, the method keeps more of it over a wider range (figure 2a)"
ADAPTIVE = "blocks are refined where local errors are large (section 3.3, Algorithm 1)"
PRESERVED = "the compressed matrix keeps the essential features of the weight (figure 2b, layer 1 at epoch 20)"
GENERAL = "training accuracy stays high and test accuracy drops slightly, without overfitting (figure 4a)"
BETTER = "it does better than SVD, pruning and quantization, above all where compression is high (figure 4b)"
FASTER = "inference is faster than with the other methods, with the least variance (figure 5)"
BOUNDED = "SVD's errors pile up over the layers, above all at 1e-1; the method's stay much lower (figure 6)"
TRAINED = "accuracy settles while the compression ratio stays the same over the epochs (figure 3)"
REGULARISED = "a penalty on the ranks trades loss against compression (section 3.1)"
KERNEL = "the kernel drifts by at most C times the tolerance and stays positive definite (theorem 2)"
SCALING = "memory and products take O(k n log n) instead of O(n^2), a refinement O(n log n) (sections 3.1 and 3.2)"
QUICKER = "p refinements take the training loss from O(1/k^r) to O(1/k^(r+p)) (section 3.1)"
FORMS = {"ratio": ".1f", "served_ratio": ".1f", "seconds": ".0f", "directions": ".0f", "served_bytes": ",.0f"}
AS_GOOD, SMALL = 1.1, 4.0  # of the dense network's error; times fewer bytes: what counts as trained as well
NARROW = 5.0  # degrees: leading directions that turn by less are the same ones


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


def preserved(rows: Rows) -> Finding:
    """Whether leading directions stay where they were, beside the errors in the weight's norm and in the data's."""
    lines = [
        f"{r['case']}, {r['what']}: {r['ratio']:.1f}x smaller, Frobenius error {r['error']:.1e}, on its inputs "
        f"{r['weighted']:.1e}, the leading {FEATURES} directions turned by up to {r['angle']:.1f} degrees"
        for r in rows
    ]
    tail = f"Features are taken to be those directions, and kept where none turns by more than {NARROW:g} degrees."
    same = sum(r["angle"] <= NARROW for r in rows)
    return Finding(verdict(same, len(rows)), f"Measured after {SNAPSHOT} epochs: {'; '.join(lines)}. {tail}")


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
    """Where hrt is faster than every other method (dense among them), and where its calls scatter least."""
    fast, steady, lines = 0, 0, []
    places = list(dict.fromkeys((r["case"], r["batch"]) for r in rows))
    for case, batch in places:
        group = {r["method"]: r for r in matching(rows, case=case, batch=batch)}
        ours, others = group["hrt"], {m: r for m, r in group.items() if m != "hrt"}
        rival = min(others, key=lambda m: others[m]["p50_us"])
        calmest = min(group, key=lambda m: group[m]["p95_us"] / group[m]["p50_us"])
        fast, steady = fast + (ours["p50_us"] < others[rival]["p50_us"]), steady + (calmest == "hrt")
        lines.append(
            f"{case}, batch {batch}: {ours['ratio']:.2f} ({ours['low']:.2f} to {ours['high']:.2f}) times as fast as "
            f"dense, {others[rival]['p50_us'] / ours['p50_us']:.2f} as {rival}; 95th percentile over median "
            f"{ours['p95_us'] / ours['p50_us']:.2f}, least {group[calmest]['p95_us'] / group[calmest]['p50_us']:.2f} "
            f"({calmest})"
        )
    return Finding(
        verdict(fast + steady, 2 * len(places)),
        f"Measured on this CPU, medians: {'; '.join(lines)}. hrt is the fastest in {fast} and the steadiest in "
        f"{steady} of {len(places)}. Whether that is fit for real time: `python -m hrt.perf realtime`.",
    )


def propagation(rows: Rows) -> Finding:
    """Whether the paper's Algorithm 1 leaves the output closer than a global SVD at the same tolerance of weights, and
    smaller at the same error of the output.
    """
    lines, yes, of = [], 0, 0
    for bound in distinct(rows, "bound"):
        for tol in distinct(matching(rows, bound=bound), "tol"):
            last = {r["method"]: r for r in matching(rows, bound=bound, tol=tol)}  # of the last layer
            svd, ours = last[SVD], last[ALGORITHM]
            better = ours["error"] < svd["error"] if bound == WEIGHTS else ours["bytes"] < svd["bytes"]
            of, yes = of + 1, yes + better
            each = ", ".join(f"{m} {r['error']:.1e} at {r['ratio']:.2g}x" for m, r in last.items())
            lines.append(f"{tol:g} of {bound}: {each}")
    zero = any(r["error"] == 0 for r in matching(rows, bound=WEIGHTS, method=ALGORITHM))
    return Finding(
        verdict(yes, of),
        f"Measured at the output, with dense bytes over bytes: {'; '.join(lines)}."
        + (" Where Algorithm 1 has no error at all it stores the weights dense." if zero else "")
        + f" At the same error of {OUTPUT} what counts is the size; a ratio below 1 is larger than dense.",
    )


def rates(rows: Rows) -> Finding:
    """Whether every refinement adds 1 to the exponent with which the loss falls."""
    fitted, lines, yes, of = laws(rows), [], 0, 0
    for case in distinct(rows, "case"):
        start = fitted[case, 0]
        lines.append(f"{case}: r = {-start.exponent:.2f} ({-start.high:.2f} to {-start.low:.2f}) at p = 0")
        for p in (p for p in distinct(rows, "p") if p):
            law = fitted[case, p]
            of, yes = of + 1, yes + (-law.low >= -start.high + p)  # as far as both intervals allow
            lines.append(f"{-law.exponent:.2f} ({-law.high:.2f} to {-law.low:.2f}) at p = {p}")
    return Finding(
        verdict(yes, of),
        f"Measured ({len(distinct(rows, 'seed'))} seed(s), exponents over all steps from the first window on, 95 % "
        f"intervals): {', '.join(lines)}. Refinement adds numbers to the weights; it does not change the order.",
    )


def complexity(rows: Rows) -> Finding:
    """Whether bytes grow no faster than k n log n, k the largest rank, and products slower than n^2."""
    fitted, lines, yes, of = sizes.laws(rows), [], 0, 0
    for case in distinct(rows, "case"):
        over, product = fitted[case, "over"], fitted[case, "apply_64"]
        of, yes = of + 2, yes + (over.low <= 0) + (product.high < 2)
        ranks = [r["rank"] for r in matching(rows, case=case)]
        each = ", ".join(
            f"{what} n^{law.exponent:.2f} ({law.low:.2f} to {law.high:.2f})"
            for what, law in ((sizes.MEASURED[key], fitted[case, key]) for key in sizes.MEASURED)
        )
        lines.append(
            f"{case}: {each}; bytes over k n log n go with n^{over.exponent:.2f}, ranks from {ranks[0]} to {ranks[-1]}"
        )
    least, most = (pick(r["n"] for r in rows) for pick in (min, max))
    return Finding(
        verdict(yes, of),
        f"Measured for n from {least:,} to {most:,} at {sizes.TOL:g}, with 95 % intervals: {'; '.join(lines)}. Where "
        "ranks grow with n, as with waves of a fixed number of points, so does k n log n. Building starts from a dense "
        "array: n^2 at least, whatever each refinement costs.",
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
                f"{case}, {f['kernel']}, error of the {f['bound']}: exponent {f['exponent']:.2f} ({f['low']:.2f} to "
                f"{f['high']:.2f}), {f['verdict']}"
            )
    definite = [r for r in rows if r["before"]["positive_definite"]]
    still = sum(r["after"]["positive_definite"] for r in definite)
    tail = f"Of {len(definite)} kernels that were positive definite {still} still are."
    return Finding(
        verdict(yes, of),
        f"Measured over the error that was reached, one C for all tolerances and seeds: {'; '.join(lines)}. {tail}",
    )
