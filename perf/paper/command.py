"""`python -m hrt.perf.paper`: what of Mango & Katende (arXiv 2409.07028) our own runs bear out."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track

from hrt.errors import InputError
from hrt.perf.bench.charts import as_png
from hrt.perf.measuring.command_line import new_app, run
from hrt.perf.measuring.results import check_results
from hrt.perf.paper import bounds as statements
from hrt.perf.paper import claims, data, training
from hrt.perf.paper import figures as pictures
from hrt.perf.paper import ntk as kernels
from hrt.perf.paper.claims import Finding
from hrt.perf.paper.complexity import complexity
from hrt.perf.paper.data import Setting, Subject
from hrt.perf.paper.output import Rows, facts, table, write_json
from hrt.perf.paper.page import Shown, markdown, write_page
from hrt.perf.paper.propagation import propagation
from hrt.perf.paper.rates import rates
from hrt.perf.paper.trained_networks import DENSE, DYNAMIC, PROXIMAL, kernel_drift, rows_of

app = new_app(__doc__ or "")
Quick = Annotated[bool, typer.Option("--quick", help="Fewer tolerances, points and steps.")]
Experiment = StrEnum("Experiment", list(training.EXPERIMENTS))


@dataclass(frozen=True)
class Part:
    """One figure. claim: number of the one that it judges first.  measure: its rows.  draw: rows to a picture.  judge:
    rows to what they say.
    """

    name: str
    title: str
    claim: str
    measure: Callable[[Subject], Rows]
    draw: Callable[[Rows], Any]
    judge: Callable[[Rows], Finding]


PARTS = (
    Part("compression", "Compression against accuracy (figure 2a)", "4.2a",
         data.compression, pictures.compression, claims.compression),
    Part("heat-map", "Compressed matrices (Algorithm 1)", "0.3",
         data.heat_maps, pictures.heat_maps, claims.heat_maps),
    Part("snapshot", "A layer in the middle of training (figure 2b)", "4.2b",
         data.snapshot, pictures.heat_maps, claims.preserved),
    Part("training", "Training with dynamic compression (figure 3)", "4.3",
         lambda s: rows_of(s.runs, DENSE, DYNAMIC), pictures.training, claims.training),
    Part("train-and-test", "Accuracy on training and test inputs (figure 4a)", "4.4a",
         data.train_and_test, pictures.train_and_test, claims.train_and_test),
    Part("comparison", "Beside SVD, pruning and quantization (figure 4b)", "4.4b",
         data.comparison, pictures.comparison, claims.comparison),
    Part("speed", "Inference speed (figure 5)", "4.5", data.speed, pictures.speed, claims.speed),
    Part("propagation", "Error propagation, layer by layer (figure 6)", "4.6",
         propagation, pictures.propagation, claims.propagation),
    Part("kernel", "Drift of the neural tangent kernel (theorem 2)", "3.T2a",
         lambda s: kernel_drift(s.runs, s.setting.training), pictures.kernel, claims.kernel),
    Part("rates", "The order in which the loss falls (section 3.1)", "3.1.2",
         lambda s: rates(s.setting.descent), pictures.rates, claims.rates),
    Part("regulariser", "Training with and without a regulariser of ranks (section 3.1)", "3.1.3",
         lambda s: rows_of(s.runs, DENSE, PROXIMAL), pictures.regulariser, claims.regulariser),
    Part("complexity", "Growth with n (section 3.2)", "3.2.1",
         lambda s: complexity(s.setting.sizes), pictures.complexity, claims.complexity),
)  # fmt: skip
PUBLISHED = {c.number: c for c in claims.CLAIMS}


Out = Annotated[Path, typer.Option(help="Folder to write to, made if missing.")]


@app.command()
def study(out: Out = Path("build/paper"), quick: Quick = False) -> None:
    """The whole study as one page: claims.html and claims.md, with pictures and figures beside.

    Every claim of the paper, numbered by section, with its verdict and what would have to be assumed; every checkable
    statement on random matrices; and all that `figures` makes. Under 30 minutes, with --quick under 3, on one core.
    """
    start = _begin(out)
    random = statements.random_rows(28 if quick else 200, seed=0)
    counts = statements.counted(random, "statement")
    write_json(out / "statements.json", {"facts": facts(seed=0), "counts": counts})
    shown, known = write_parts(Setting.quick() if quick else Setting(), out, PARTS)
    known |= {"seconds": round(time.perf_counter() - start), "command": f"python -m hrt.perf.paper{' --quick' * quick}"}
    print("\n".join(f"wrote {path}" for path in write_page(out, markdown(shown, counts, known))))


@app.command()
def figures(
    out: Out = Path("build/paper"),
    quick: Quick = False,
    only: Annotated[list[str] | None, typer.Option(help=f"These of {', '.join(p.name for p in PARTS)}.")] = None,
) -> None:
    """Pictures of our own runs (PNG), and the figures that they are drawn from (JSON beside them).

    Networks: the Burgers PINN of this repository and a Green's operator, not those of the authors; some parts train
    small PINNs.
    """
    unknown = set(only or ()) - {p.name for p in PARTS}
    if unknown:
        raise InputError(f"Found part {min(unknown)!r}. Expected some of {', '.join(p.name for p in PARTS)}.")
    _begin(out)
    setting = Setting.quick() if quick else Setting()
    shown, _ = write_parts(setting, out, [p for p in PARTS if not only or p.name in only])
    print("\n\n".join(s.markdown() for s in shown))


def _begin(out: Path) -> float:
    """Refuse a folder that cannot be written before anything is measured. The time."""
    torch.set_num_threads(1)
    check_results(out / "claims.md")
    return time.perf_counter()


def write_parts(setting: Setting, out: Path, parts: Sequence[Part]) -> tuple[list[Shown], dict[str, Any]]:
    """Every part in turn: NAME.json and NAME.png. What the page shows of them, and what was known of the run."""
    start, subject, shown = time.perf_counter(), Subject(setting), []
    known = facts(operator=subject.operator)
    for part in parts:
        rows = part.measure(subject)
        write_json(out / f"{part.name}.json", {"facts": known, "rows": rows}, indent=None)
        as_png(partial(part.draw, rows), out / f"{part.name}.png")
        shown.append(Shown(part.name, part.title, PUBLISHED[part.claim], part.judge(rows), f"{part.name}.png"))
        print(f"{part.name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return shown, known


@app.command()
def bounds(
    count: Annotated[int, typer.Option(help="Random matrices.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the random matrices.")] = 0,
    json: Annotated[Path | None, typer.Option(help="File for counts by kind, and every violation.")] = None,
) -> None:
    """Every checkable statement of the paper, on random and on trained matrices.

    Random matrices of seven kinds, and every layer of the networks that are here, compressed in the Frobenius norm and
    in that of their inputs; of whole PINNs also the bound over their box and the statements on neural tangent kernels.
    What is violated is listed, always; the status is 0 all the same.
    """
    if json:
        check_results(json)
    rows = statements.random_rows(count, seed)
    subjects, missing = statements.subjects()
    for subject in track(subjects, "networks", console=Console(stderr=True), transient=True):
        rows += statements.trained_rows(subject)
        if "PINN" in subject.name:
            rows += statements.network_rows(subject)
    if json:
        violated = [r for r in rows if r["verdict"] == statements.VIOLATED]
        counts = statements.counted(rows, "source", "kind", "statement")
        write_json(json, {"facts": facts(seed=seed, missing=missing), "counts": counts, "violated": violated})
    console = Console(width=118)
    console.print(statements.summary(rows))
    matrices = {(r["source"], r["kind"], r["of"]) for r in rows if r["source"] != "network"}
    trained = sum(source == "trained" for source, _, _ in matrices)
    console.print(f"{len(matrices) - trained} random matrices, {trained} trained ones, tolerances {statements.TOLS}")
    for line in [*statements.violations(rows), *(f"left out: {m}" for m in missing)]:
        console.print(line, soft_wrap=True, markup=False, highlight=False)


@app.command()
def ntk(
    out: Annotated[Path, typer.Option(help="Folder to write to, made if missing.")] = Path("build/ntk"),
    quick: Quick = False,
) -> None:
    """How far compression moves the Burgers PINN's neural tangent kernel, over the tolerance: ntk.json and ntk.png."""
    torch.set_num_threads(1)
    check_results(out / "ntk.json")
    result = kernels.measure(kernels.Setting.quick() if quick else kernels.Setting())
    write_json(out / "ntk.json", result)
    as_png(partial(pictures.kernel, result["tolerance"]), out / "ntk.png")
    for one in kernels.tables(result):
        Console(width=118).print(one)


@app.command("training")
def train(
    *,
    what: Annotated[Experiment, typer.Argument(help=training.__doc__ or "")],
    seeds: Annotated[list[int] | None, typer.Option(help="One run for each; 0 by default.")] = None,
    steps: Annotated[int | None, typer.Option(help="Of Gauss-Newton, or of fine-tuning.")] = None,
    batch: Annotated[int | None, typer.Option(help="Points inside of every step.")] = None,
    ratio: Annotated[float, typer.Option(help="finetune: how many times smaller.")] = 16.0,
    weights: Annotated[list[float] | None, typer.Option(help="penalty: of the penalty, beside none.")] = None,
    thresholds: Annotated[list[float] | None, typer.Option(help="penalty: of the proximal steps.")] = None,
    width: Annotated[int | None, typer.Option(help="Of the network, not for finetune.")] = None,
    every: Annotated[int, typer.Option(help="poisson: epochs between changes.")] = 10,
    json: Annotated[Path | None, typer.Option(help="File for the figures.")] = None,
) -> None:
    """What the method gains while training, in errors against the exact solution, bytes and seconds."""
    if json:
        check_results(json)
    torch.set_num_threads(1)
    options = training.Options(steps, batch, ratio, tuple(weights or ()), tuple(thresholds or (1e-3,)), width, every)
    results: Rows = []
    for seed in seeds or [0]:
        results += [asdict(f) for f in training.EXPERIMENTS[what](options, seed)]
        if json:
            known = facts(arguments=asdict(options) | {"what": what, "seeds": seeds or [0]})
            write_json(json, {"facts": known, "figures": results})
    columns = {"network": "{name}", "seed": "{seed}", "error": "{error:.3e}", "bytes": "{nbytes:,}"}
    columns |= {"smaller": "{ratio:.2f}x", "steps": "{steps}", "seconds": "{seconds:.0f}", "remark": "{remark}"}
    Console(width=140).print(table("", results, columns))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, `study` where none is named, and return its status: 2 for a mistake, 130 after Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    named = words and (words[0] == "--help" or not words[0].startswith("-"))
    return run(app, "hrt.perf.paper", words if named else ["study", *words])
