"""`python -m hrt.perf.paper.command`: the figures of Mango & Katende (arXiv 2409.07028) on our own runs, and what becomes of
the published claims.

    python -m hrt.perf.paper.command --out build/paper            # some minutes, and some more for what is trained
    python -m hrt.perf.paper.command --out build/paper --quick    # a few minutes
    python -m hrt.perf.paper.command --only training regulariser kernel    # parts of it

Writes nine pictures (PNG), the figures that each is drawn from (JSON beside it), and claims.md: one paragraph for each,
put together from what was measured in this run, that says where it agrees with the published claim and where not.
Networks: the Burgers PINN of this repository and a Green's operator, not those of the authors; three parts train small
PINNs for Burgers' and Allen and Cahn's equations, three seeds of each, on one thread.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hrt.errors import HrtError
from hrt.perf.bench.charts import as_png
from hrt.perf.measuring.provenance import commit, versions
from hrt.perf.paper import claims as paper_claims
from hrt.perf.paper import data as paper_data
from hrt.perf.paper import figures as paper_figures
from hrt.perf.paper import timing as paper_timing
from hrt.perf.paper import trained_networks as paper_training
from hrt.perf.paper.claims import Finding
from hrt.perf.paper.data import Rows, Setting, Subject
from hrt.support.atomic_files import replacing


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
        prog="python -m hrt.perf.paper.command",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("build/paper"), help="folder to write to, made if missing")
    parser.add_argument("--quick", action="store_true", help="fewer tolerances, a smaller operator")
    parser.add_argument("--threads", type=int, default=1, help="threads of everything (default 1)")
    parser.add_argument("--only", nargs="+", choices=[p.name for p in PARTS], help="these parts (default: all)")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        chosen = [part for part in PARTS if args.only is None or part.name in args.only]
        paragraphs = run(Setting.quick() if args.quick else Setting(), args.out, chosen)
    except HrtError as error:
        print(f"hrt.perf.paper.command: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"hrt.perf.paper.command: {args.out}: {error.strerror}. Expected a folder to write to.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("hrt.perf.paper.command: interrupted; figures written so far are kept", file=sys.stderr)
        return 130
    print("\n\n".join(paragraphs))
    return 0


def run(setting: Setting, out: Path, parts: Sequence[Part] | None = None) -> list[str]:
    """Every part in turn: NAME.json, NAME.png, and all paragraphs in claims.md. Returns the paragraphs."""
    start = time.perf_counter()
    subject = Subject(setting)
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
        "# The figures of arXiv 2409.07028 on our own runs\n\nWritten by `python -m hrt.perf.paper.command`, commit "
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


PARTS = (
    Part(
        name="compression",
        title="Compression against accuracy",
        claim=paper_claims.SMALLER,
        measure=paper_data.compression,
        draw=paper_figures.compression,
        judge=paper_claims.compression,
    ),
    Part(
        name="heat-map",
        title="The compressed weight matrix",
        claim=paper_claims.ADAPTIVE,
        measure=paper_data.heat_maps,
        draw=paper_figures.heat_maps,
        judge=paper_claims.heat_maps,
    ),
    Part(
        name="train-and-test",
        title="Accuracy on training and test inputs",
        claim=paper_claims.GENERAL,
        measure=paper_data.train_and_test,
        draw=paper_figures.train_and_test,
        judge=paper_claims.train_and_test,
    ),
    Part(
        name="comparison",
        title="Beside SVD, pruning and quantization",
        claim=paper_claims.BETTER,
        measure=paper_data.comparison,
        draw=paper_figures.comparison,
        judge=paper_claims.comparison,
    ),
    Part(
        name="speed",
        title="Inference speed",
        claim=paper_claims.FASTER,
        measure=paper_timing.speed,
        draw=paper_figures.speed,
        judge=paper_claims.speed,
    ),
    Part(
        name="propagation",
        title="Error propagation, layer by layer",
        claim=paper_claims.BOUNDED,
        measure=paper_data.propagation,
        draw=paper_figures.propagation,
        judge=paper_claims.propagation,
    ),
    Part(
        name="training",
        title="Training with dynamic compression",
        claim=paper_claims.TRAINED,
        measure=lambda s: paper_training.convergence(s.runs),
        draw=paper_figures.training,
        judge=paper_claims.training,
    ),
    Part(
        name="regulariser",
        title="Training with and without a regulariser of ranks",
        claim=paper_claims.REGULARISED,
        measure=lambda s: paper_training.regularised(s.runs),
        draw=paper_figures.regulariser,
        judge=paper_claims.regulariser,
    ),
    Part(
        name="kernel",
        title="Drift of the neural tangent kernel",
        claim=paper_claims.KERNEL,
        measure=lambda s: paper_training.kernel_drift(s.runs, s.setting.training),
        draw=paper_figures.kernel,
        judge=paper_claims.kernel,
    ),
)


if __name__ == "__main__":
    sys.exit(main())
