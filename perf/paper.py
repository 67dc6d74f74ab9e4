"""`python -m hrt.perf.paper`: the figures of Mango & Katende (arXiv 2409.07028) on our own runs, and what becomes of
the published claims.

    python -m hrt.perf.paper --out build/paper            # some minutes
    python -m hrt.perf.paper --out build/paper --quick    # a minute or two

Writes six pictures (PNG), the figures that each is drawn from (JSON beside it), and claims.md: one paragraph for each,
put together from what was measured in this run, that says where it agrees with the published claim and where not.
Networks: the Burgers PINN of this repository and a Green's operator, not those of the authors.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import torch

from hrt.errors import HrtError, InputError
from hrt.files import replacing
from hrt.perf import paper_data, paper_figures, paper_timing
from hrt.perf.charts import as_png
from hrt.perf.paper_data import ALGORITHM, AUTO, FLOAT32, SVD, Rows, Setting, Subject
from hrt.perf.provenance import commit, versions

# What is public of the paper's text and could be read here: its two abstracts (v1, 11 September 2024; v2, 25 September
# 2024). Its own figures could not be read, so that only what these sentences say is compared, never a number.
SMALLER = "the method reduces memory and computation while accuracy is kept (abstracts of v1 and v2)"
ADAPTIVE = "blocks are refined adaptively by local error estimates (abstract of v2)"
GENERAL = "it maintains high accuracy and improves generalization (abstract of v2)"
BETTER = "it outperforms SVD, pruning and quantization (abstracts of v1 and v2)"
FASTER = "it enhances inference speed, fit for real-time use (abstract of v2)"
BOUNDED = "the approximation is error-bounded (titles and abstracts of v1 and v2)"


@dataclass(frozen=True)
class Finding:
    """What was measured of a claim: `text`, and whether it agrees: "agrees", "agrees in part" or "does not agree"."""

    verdict: str
    text: str


@dataclass(frozen=True)
class Part:
    """One figure. measure: its rows.  draw: rows to a picture.  judge: rows to what they say of `claim`."""

    name: str
    title: str
    claim: str
    measure: Callable[[Subject], Rows]
    draw: Callable[[Rows], Any]
    judge: Callable[[Rows], Finding]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, draw, write. Returns 0, or 2 for a mistake, said on stderr. Ctrl-C keeps what was written."""
    parser = argparse.ArgumentParser(
        prog="python -m hrt.perf.paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build/paper"), help="folder to write to, made if missing")
    parser.add_argument("--quick", action="store_true", help="fewer tolerances, a smaller operator")
    parser.add_argument("--threads", type=int, default=1, help="threads of everything (default 1)")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        paragraphs = run(Setting.quick() if args.quick else Setting(), args.out)
    except HrtError as error:
        print(f"hrt.perf.paper: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"hrt.perf.paper: {args.out}: {error.strerror}. Expected a folder to write to.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("hrt.perf.paper: interrupted; figures written so far are kept", file=sys.stderr)
        return 130
    print("\n\n".join(paragraphs))
    return 0


def run(setting: Setting, out: Path, parts: Sequence[Part] | None = None) -> list[str]:
    """Every part in turn: NAME.json, NAME.png, and all paragraphs in claims.md. Returns the paragraphs."""
    start = time.perf_counter()
    subject = Subject.make(setting)
    threads = torch.get_num_threads()
    facts = {"commit": commit(), "versions": versions(), "threads": threads, "operator": subject.operator}
    paragraphs = []
    for part in PARTS if parts is None else parts:
        rows = part.measure(subject)
        with replacing(out / f"{part.name}.json") as file:
            file.write((json.dumps({"facts": facts, "rows": rows}) + "\n").encode())
        as_png(partial(part.draw, rows), out / f"{part.name}.png")
        paragraphs.append(paragraph(part, rows))
        print(f"{part.name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    head = (
        "# The figures of arXiv 2409.07028 on our own runs\n\nWritten by `python -m hrt.perf.paper`, commit "
        f"{commit()[:10]}, {threads} thread(s). Networks: the Burgers PINN of this repository, {subject.operator}. "
        "Of the paper only its two abstracts could be read here, not its figures: the claims are theirs."
    )
    with replacing(out / "claims.md") as file:
        file.write(("\n\n".join([head, *paragraphs]) + "\n").encode())
    return paragraphs


def paragraph(part: Part, rows: Rows) -> str:
    """Title, published claim, measurement, verdict, in Markdown."""
    found = part.judge(rows)
    picture = f"![{part.title}]({part.name}.png)"
    return f"## {part.title}\n\n{picture}\n\nPublished: {part.claim}. {found.text} **{found.verdict}.**"


def verdict(yes: int, of: int) -> str:
    """In words, of `of` comparisons `yes` of which support the claim."""
    if not of:
        raise InputError("Nothing was measured that the claim could be compared with.")
    return "Agrees" if yes == of else "Does not agree" if yes == 0 else "Agrees in part"


def compression(rows: Rows) -> Finding:
    """Whether Algorithm 1, the paper's, is smaller than dense and than global SVD, and what hrt makes of it."""
    said, yes, of = [], 0, 0
    for case in dict.fromkeys(r["case"] for r in rows):
        some = [r for r in rows if r["case"] == case]
        svd = [r for r in some if r["method"] == SVD]
        good = [r["ratio"] for r in some if r["method"] == ALGORITHM and r["error"] <= 1e-2]
        of, yes = of + 1, yes + (max(good, default=0.0) > 1)
        best = f"the ratio {max(good):.2f}" if good else "no ratio: it never gets there"
        said.append(f"{case}: Algorithm 1 at an error of at most 1e-2 has {best}")
        for method in (ALGORITHM, FLOAT32, AUTO):
            pairs = matched([r for r in some if r["method"] == method], svd)
            if pairs:
                gain = geometric_mean([a / b for a, b in pairs])
                of, yes = of + 1, yes + (gain > 1)
                said.append(f"{method} takes {1 / gain:.2g} of the bytes of a global SVD of at most the same error")
            else:
                said.append(f"{method} is nowhere beside a global SVD of at most the same error")
    return Finding(verdict(yes, of), f"Measured (geometric means): {'; '.join(said)}.")


def matched(ours: Rows, theirs: Rows) -> list[tuple[float, float]]:
    """Ratios of every row of `ours` and of the smallest of `theirs` whose error is no larger; rows without one are
    left out.
    """
    found = []
    for row in ours:
        rivals = [r["ratio"] for r in theirs if r["error"] <= row["error"]]
        if rivals:
            found.append((row["ratio"], max(rivals)))
    return found


def heat_maps(rows: Rows) -> Finding:
    """Whether the adaptive tree is more than one block."""
    blocks = [len({tuple(leaf[:4]) for leaf in r["leaves"]}) for r in rows]
    said = [
        f"{r['case']} ({r['what']}): {count} block(s), {r['ratio']:.1f}x smaller, Frobenius error {r['error']:.1e}"
        for r, count in zip(rows, blocks, strict=True)
    ]
    tail = " Where one block is best, no refinement pays: a hierarchy is worth its bytes on the other matrix only."
    return Finding(
        verdict(sum(b > 1 for b in blocks), len(blocks)), f"Measured: {'; '.join(said)}.{tail if 1 in blocks else ''}"
    )


def train_and_test(rows: Rows) -> Finding:
    """Whether compression keeps the error on test points, and whether it lowers it (generalization)."""
    base = next(r for r in rows if r["method"] == "uncompressed")
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
    said, yes, of = [], 0, 0
    for tol in dict.fromkeys(r["asked"] for r in rows):
        known = {r["method"]: r for r in rows if r["asked"] == tol and r["ratio"]}
        ours = next(r["ratio"] for r in known.values() if r["family"] == "hrt")
        for kind in ("SVD", "pruning", "quantized"):
            best = max((r for r in known.values() if r["family"] == kind), key=lambda r: r["ratio"], default=None)
            of, yes = of + 1, yes + (best is None or ours > best["ratio"])
            word = "cannot reach it below dense" if best is None else f"{best['ratio']:.1f}x ({best['method']})"
            said.append(f"at {tol:g} {kind} {word}, hrt {ours:.1f}x")
    return Finding(
        verdict(yes, of),
        f"Measured at the same output error, in bytes: {'; '.join(said)}. hrt is not the paper's method alone: it "
        "chooses blocks optimally, in the norm of the data, in narrow storage. Algorithm 1 is in the first figure.",
    )


def speed(rows: Rows) -> Finding:
    """Where hrt is faster than the fastest dense form; intervals that hold 1 count as no gain."""
    ours = [r for r in rows if r["method"] == "hrt"]
    faster = [r for r in ours if r["low"] > 1]
    said = [
        f"{r['case']}, batch {r['batch']}: {r['ratio']:.2f} ({r['low']:.2f} to {r['high']:.2f})"
        for r in ours
    ]  # fmt: skip
    return Finding(
        verdict(len(faster), len(ours)),
        f"Measured on this CPU, the fastest dense form's median over hrt's, 95 % intervals: {'; '.join(said)}. "
        "Whether that is fit for real time is measured by `python -m hrt.perf.realtime`, not here.",
    )


def propagation(rows: Rows) -> Finding:
    """Whether the errors of layers stay bounded on their way to the output."""
    said, kept = [], []
    for method in dict.fromkeys(r["method"] for r in rows):
        line = [r for r in rows if r["method"] == method]
        largest = max(line, key=lambda r: r["error"])
        said.append(
            f"{method}: {line[0]['error']:.1e} after the first layer, at most {largest['error']:.1e} (layer "
            f"{largest['layer']}), {line[-1]['error']:.1e} at the output; the weights' largest Frobenius error is "
            f"{max(r['frobenius'] for r in line):.1e}"
        )
        kept.append(line[-1]["error"] <= 1e-3)
    return Finding(
        verdict(sum(kept), len(kept)),
        f"Measured on fresh points: {'; '.join(said)}. The output keeps 1e-3 where this says so because it was "
        "searched for and measured, not because a bound on weights implies it.",
    )


PARTS = (
    Part(
        name="compression",
        title="Compression against accuracy",
        claim=SMALLER,
        measure=paper_data.compression,
        draw=paper_figures.compression,
        judge=compression,
    ),
    Part(
        name="heat-map",
        title="The compressed weight matrix",
        claim=ADAPTIVE,
        measure=paper_data.heat_maps,
        draw=paper_figures.heat_maps,
        judge=heat_maps,
    ),
    Part(
        name="train-and-test",
        title="Accuracy on training and test inputs",
        claim=GENERAL,
        measure=paper_data.train_and_test,
        draw=paper_figures.train_and_test,
        judge=train_and_test,
    ),
    Part(
        name="comparison",
        title="Beside SVD, pruning and quantization",
        claim=BETTER,
        measure=paper_data.comparison,
        draw=paper_figures.comparison,
        judge=comparison,
    ),
    Part(
        name="speed",
        title="Inference speed",
        claim=FASTER,
        measure=paper_timing.speed,
        draw=paper_figures.speed,
        judge=speed,
    ),
    Part(
        name="propagation",
        title="Error propagation, layer by layer",
        claim=BOUNDED,
        measure=paper_data.propagation,
        draw=paper_figures.propagation,
        judge=propagation,
    ),
)


if __name__ == "__main__":
    sys.exit(main())
