"""What networks and matrices that are compressed as they are say of the paper's claims: one judgement for each part."""

from statistics import geometric_mean

from hrt.perf.paper import complexity as sizes
from hrt.perf.paper.claims.finding import AS_GOOD, FLAT, Finding, Judgement, judgement
from hrt.perf.paper.output import Rows, distinct, matching
from hrt.perf.paper.propagation import OUTPUT, WEIGHTS
from hrt.perf.paper.weight_methods import ALGORITHM, AUTO, FLOAT32, SVD
from hrt.tangent_kernel.ntk_statements import PowerLaw

HIGH = 0.97  # an accuracy that the paper calls high
LEVEL = 0.1  # of an exponent, with its interval: growth up to this is none


def compression(rows: Rows) -> Finding:
    """Whether SVD's accuracy hardly changes, and whether Algorithm 1, the paper's method, and hrt are smaller than
    dense and than SVD.
    """
    lines, better, smaller, sizes_at = [], [], [], []
    for case in distinct(rows, "case"):
        group = matching(rows, case=case)
        svd = matching(group, method=SVD)
        accuracies = [1 - r["error"] for r in svd]
        better.append(max(accuracies) - min(accuracies) <= FLAT)
        lines.append(
            f"{case}: SVD's accuracy (1 - error) goes from {min(accuracies):.4f} to {max(accuracies):.4f} while dense "
            f"bytes over its own go from {max(r['ratio'] for r in svd):.2g} to {min(r['ratio'] for r in svd):.2g}"
        )
        for method in (ALGORITHM, FLOAT32, AUTO):
            some = matching(group, method=method)
            good = max((r["ratio"] for r in some if r["error"] <= 1e-2), default=0.0)
            smaller.append(good > 1)
            sizes_at.append(f"{case}, {method} {good:.2g}x")
            pairs = matched(some, svd)
            gain = geometric_mean([a / b for a, b in pairs]) if pairs else 0.0
            better.append(gain > 1)
            beside = f"{1 / gain:.2g} times the bytes of" if pairs else "at no error beside"
            lines.append(f"{case}: {method}, {good:.2g}x at an error of at most 1e-2, {beside} SVD at most as far off")
    dense = judgement(smaller, f"at an error of at most 1e-2 {'; '.join(sizes_at)}")
    return Finding(
        "Errors of the PINN's output on points that nothing was tuned on, and of the operator's matrix (Frobenius); "
        "bytes beside each other are geometric means over tolerances",
        lines,
        {"4.2a": judgement(better, "SVD flat, and each form smaller than SVD"), "0.1": dense, "1.1": dense},
    )


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
    tail = "Where one block is best, no refinement pays: a hierarchy is worth its bytes on the other matrix only."
    figures = f"{' and '.join(map(str, blocks))} block(s)"
    judged = {"0.3": judgement([b > 1 for b in blocks], figures)}
    return Finding("Matrices that hrt makes at 1e-3", lines, judged, tail * (1 in blocks))


def train_and_test(rows: Rows) -> Finding:
    """Whether compressed networks stay accurate on points that were seen and on others (no overfitting), and whether
    any is better than the uncompressed one on the others (generalization).
    """
    (base,) = matching(rows, method="uncompressed")
    others = [r for r in rows if r is not base]
    lines = [
        f"{r['method']}, tol {r['asked']:g}, {r['ratio']:.1f}x: accuracy {1 - r['train_error']:.5f} on training "
        f"points, {1 - r['test_error']:.5f} on test points; difference from the uncompressed network "
        f"{r['fresh_difference'] / r['calibration_difference']:.3f} times that on calibration rows"
        for r in others
    ]
    start = (
        f"uncompressed: accuracy {1 - base['train_error']:.5f} on training points, {1 - base['test_error']:.5f} on test"
    )
    good = [1 - r["train_error"] >= HIGH for r in others]
    drops = [r["test_error"] - r["train_error"] <= FLAT for r in others]
    gaps = [r["fresh_difference"] / r["calibration_difference"] for r in others]
    better = [r["test_error"] < base["test_error"] * (1 - 1e-3) for r in others]
    figures = f"accuracy {HIGH:g} or more in {sum(good)}, a drop of at most {FLAT:g} in {sum(drops)} of {len(others)}; "
    figures += f"fresh over calibration at most {max(gaps):.2f}"
    general = judgement(
        better, f"test errors {min(r['test_error'] for r in others):.1e} or more, {base['test_error']:.1e} dense"
    )
    return Finding(
        "The Burgers PINN against the exact solution; 8,000 training points, a test grid that it has not seen",
        [start, *lines],
        {"4.4a": judgement([*good, *drops, *(g <= AS_GOOD for g in gaps)], figures), "0.6": general, "5.2": general},
        "Better than the uncompressed network would mean a test error below its own.",
    )


def comparison(rows: Rows) -> Finding:
    """Bytes of Algorithm 1, the paper's method, and of hrt beside the smallest SVD, pruning and quantization at each
    error; and whether their lead grows where errors are larger, and so compression is higher.
    """
    lines, better, leads = [], [], {"paper": [], "hrt": []}
    for tol in distinct(rows, "asked"):
        known = {r["method"]: r for r in rows if r["asked"] == tol and r["ratio"]}
        best = {}
        for kind in ("SVD", "pruning", "quantized"):
            rivals = [r for r in known.values() if r["family"] == kind]
            best[kind] = max(rivals, key=lambda r: r["ratio"], default={"ratio": 1.0, "method": "none below dense"})
        for kind, lead in leads.items():
            ours = max((r["ratio"] for r in known.values() if r["family"] == kind), default=0.0)
            better += [ours > rival["ratio"] for rival in best.values()]
            lead.append(ours / max(rival["ratio"] for rival in best.values()))
        words = [f"{kind} {r['ratio']:.1f}x ({r['method']})" for kind, r in best.items()]
        words += [f"{r['method']} {r['ratio']:.2f}x" for r in known.values() if r["family"] in leads]
        lines.append(f"error at most {tol:g}: {', '.join(words)}")
    figures = "; ".join(
        f"{name} {', '.join(f'{lead:.2g}' for lead in leads[kind])} times the best other's ratio"
        for kind, name in (("paper", ALGORITHM), ("hrt", "hrt"))
    )
    growing = [lead[0] > max(1.0, *lead[1:]) for lead in leads.values()] if len(lines) > 1 else []
    return Finding(
        "Dense bytes over bytes on the Burgers PINN at one output error, on points that only Algorithm 1 was tuned on",
        lines,
        {"4.4b": judgement(better + growing, figures), "0.5": judgement(better, figures)},
        "Algorithm 1 is the paper's method as printed. hrt is not that alone: it chooses blocks optimally, in the norm "
        "of the data, in narrow storage.",
    )


def speed(rows: Rows) -> Finding:
    """Where hrt is surely faster than every other method and than dense, and where its calls scatter least."""
    fastest, faster, steadiest, lines = [], [], [], []
    for case, batch in dict.fromkeys((r["case"], r["batch"]) for r in rows):
        group = {r["method"]: r for r in matching(rows, case=case, batch=batch)}
        ours, scatter = group["hrt"], {m: r["p95_us"] / r["p50_us"] for m, r in group.items()}
        rival = min(ours["beside"], key=lambda m: ours["beside"][m][1])
        calmest = min(scatter, key=lambda m: scatter[m])
        fastest.append(ours["beside"][rival][1] > 1)
        faster.append(ours["low"] > 1)
        steadiest.append(calmest == "hrt")
        lines.append(
            f"{case}, batch {batch}: {ours['p50_us']:.0f} us, {ours['ratio']:.2f} ({ours['low']:.2f} to "
            f"{ours['high']:.2f}) times as fast as dense, {ours['beside'][rival][0]:.2f} "
            f"({ours['beside'][rival][1]:.2f} to {ours['beside'][rival][2]:.2f}) as {rival}; 95th percentile over "
            f"median {scatter['hrt']:.2f}, least {scatter[calmest]:.2f} ({calmest})"
        )
    figures = f"surely faster than every other in {sum(fastest)}, steadiest in {sum(steadiest)} of {len(lines)}"
    dense = judgement(faster, "surely faster than dense")
    return Finding(
        "Medians on this CPU, 95 % intervals over rounds; surely faster: the whole interval is",
        lines,
        {"4.5": judgement(fastest + steadiest, figures), "0.7": dense, "5.3": dense},
        "Whether that is fit for real time: `python -m hrt.perf realtime`.",
    )


def propagation(rows: Rows) -> Finding:
    """Whether the paper's Algorithm 1 leaves the output closer than a global SVD at the same tolerance of weights, is
    smaller at the same error of the output, and is smaller than dense at all.
    """
    lines, closer, compressed = [], [], []
    for bound in distinct(rows, "bound"):
        for tol in distinct(matching(rows, bound=bound), "tol"):
            last = {r["method"]: r for r in matching(rows, bound=bound, tol=tol)}  # of the last layer
            svd, ours = last[SVD], last[ALGORITHM]
            closer.append(ours["error"] < svd["error"] if bound == WEIGHTS else ours["bytes"] < svd["bytes"])
            compressed.append(ours["ratio"] > 1)
            each = ", ".join(f"{m} {r['error']:.1e} at {r['ratio']:.2g}x" for m, r in last.items())
            lines.append(f"{tol:g} of {bound}: {each}")
    zero = any(r["error"] == 0 for r in matching(rows, bound=WEIGHTS, method=ALGORITHM))
    figures = f"closer than SVD, or smaller, in {sum(closer)}, smaller than dense in {sum(compressed)} of {len(lines)}"
    return Finding(
        "Errors of the Burgers PINN's output, with dense bytes over bytes (below 1: larger than dense)",
        lines,
        {"4.6": judgement(closer + compressed, f"Algorithm 1 is {figures}")},
        "Where Algorithm 1 has no error at all it stores the weights dense. " * zero
        + f"At the same error of {OUTPUT} what counts is the size.",
    )


def complexity(rows: Rows) -> Finding:
    """Whether bytes and products grow no faster than k n log n, k that of `off_diagonal_rank`, and slower than n^2."""
    fitted, lines, bytes_, products, scales = sizes.laws(rows), [], [], [], []
    for case in distinct(rows, "case"):
        law = {key: fitted[case, key] for key in ("over", "over_apply", "rank", *sizes.MEASURED)}
        bytes_ += [law["over"].high <= LEVEL, law["bytes"].high < 2]
        products += [law["over_apply"].high <= LEVEL, law["apply_64"].high < 2]
        scales += [law["bytes"].high < 2 and law["build"].high <= 2 + LEVEL]
        ranks = [r["rank"] for r in matching(rows, case=case)]
        each = ", ".join(f"{what} {power(law[key])}" for key, what in sizes.MEASURED.items())
        lines.append(
            f"{case}: {each}; k from {ranks[0]} to {ranks[-1]}, {power(law['rank'])}; bytes over k n log n "
            f"{power(law['over'])}, seconds for 64 rows over it {power(law['over_apply'])}"
        )
    least, most = (pick(r["n"] for r in rows) for pick in (min, max))
    exponents = {
        key: ", ".join(f"{fitted[case, key].exponent:.2f}" for case in distinct(rows, "case"))
        for key in (*sizes.MEASURED, "rank")
    }
    memory = judgement(bytes_, f"bytes n^({exponents['bytes']}), k n^({exponents['rank']}), kernel by kernel")
    return Finding(
        f"n from {least:,} to {most:,} at {sizes.TOL:g}, float32; exponents with 95 % intervals; k: the rank within "
        f"{sizes.TOL:g} of the largest block off the diagonal",
        lines,
        {
            "3.2.1": memory,
            "3.2.2": judgement(products, f"64 rows n^({exponents['apply_64']})"),
            "0.8": judgement(scales, f"bytes n^({exponents['bytes']}), building n^({exponents['build']})"),
            "3.1.5": Judgement("", f"building n^({exponents['build']}), from a dense array"),
        },
        "Where k grows with n, as with waves of a fixed number of points, so does k n log n. Building starts from a "
        "dense array: n^2 at least, whatever each refinement costs.",
    )


def power(law: PowerLaw) -> str:
    """n^exponent and its interval."""
    return f"n^{law.exponent:.2f} ({law.low:.2f} to {law.high:.2f})"
