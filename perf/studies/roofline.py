"""`python -m hrt.perf.studies.roofline`: what compressed layers can gain on a GPU, PREDICTED from their schedules alone.

Layers are compressed as they are (three kernels, real ranks, real padding), scheduled in weight tiles, and the floor of
`hrt.schedule.roofline` is set beside that of one dense matrix product of the same precision. No GPU is used: nothing is measured
here but the bytes. Of all leaf sizes and tiles that are tried one pair is kept per layer, the one with the least
geometric mean of predicted times over the batch sizes.

    python -m hrt.perf.studies.roofline --size 4096 8192 --json out.json
    python -m hrt.perf.studies.roofline --from out.json --chip h100 --batch 1 64
"""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hrt.errors import InputError
from hrt.perf.measuring.provenance import commit, versions
from hrt.perf.networks.integral_kernels import KERNELS, SETTINGS
from hrt.perf.studies.tried import MIN_LEAVES, TILES, Case, commands_of, load_cases, measured, narrowed, say, sides
from hrt.schedule.roofline import BATCHES, CHIPS, Chip, advantage, chip_named

LABEL = "PREDICTED, no GPU was used"
SIZES = (4096, 8192, 16384)
WIDTH = 140


def ranges(batches: Sequence[int]) -> str:
    """Some of BATCHES as text: "1-64, 512-65536", "none"."""
    runs: list[list[int]] = []
    for b in sorted(batches):
        if runs and runs[-1][-1] * 2 == b:
            runs[-1].append(b)
        else:
            runs.append([b])
    return ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs) or "none"


def facts_table(cases: Sequence[Case], batches: Sequence[int], chip: Chip) -> Table:
    """What the layers take, in the leaf size and tile that the model prefers."""
    table = Table(title=f"Layers (counted) and break-even batches on {chip.name} ({LABEL})")
    heads = ("kernel", "size", "tol", "leaf", "tile", "dense MiB", "stored", "packed", "padding", "launches", "tiles")
    for name in (*heads, "longest", "no slower at"):
        table.add_column(name, justify="left" if name in ("kernel", "no slower at") else "right", no_wrap=True)
    for case in cases:
        best = case.best(batches, chip)
        dense = case.dense[0].fixed_bytes
        cells = [case.kernel, str(case.size), f"{case.precision} {case.tol:g}", str(best.min_leaf or "auto"), best.tile]
        cells += [f"{dense / 2**20:.1f}", f"{dense / best.nbytes:.1f}x", f"{dense / best.packed:.2f}x"]
        cells += [f"{best.padded_share:.0%}", str(len(best.work)), str(best.tiles), str(best.longest)]
        table.add_row(*cells, ranges(case.break_even(batches, chip)))
    return table


def times_table(cases: Sequence[Case], batches: Sequence[int], chip: Chip) -> Table:
    """Predicted microseconds by batch size."""
    table = Table(title=f"Least time on {chip.name}, microseconds ({LABEL})")
    heads = ("kernel", "size", "precision", "batch", "hrt", "dense", "ratio", "no launches", "L2 TB/s")
    for name in (*heads, "choice"):
        table.add_column(name, justify="left" if name in ("kernel", "choice") else "right")
    for case in cases:
        table.add_section()
        for p in case.predictions(batches, chip):
            cells = [case.kernel, str(case.size), case.precision, str(p.batch)]
            cells += [f"{1e6 * s:.2f}" for s in (p.hrt_s, p.dense_s)]
            cells += [f"{r:.2f}x" for r in (p.ratio, p.ideal_ratio)]
            table.add_row(*cells, f"{p.l2_bytes_per_s / 1e12:.1f}", p.choice + (" (hrt LOSES)" if p.ratio < 1 else ""))
    return table


def tiles_table(cases: Sequence[Case], batch: int, chip: Chip) -> Table:
    """Everything that was tried: padding and predicted ratio at one batch size."""
    table = Table(title=f"All that was tried: padding, ratio over dense at batch {batch} on {chip.name} ({LABEL})")
    tiles = list(dict.fromkeys(t.tile for case in cases for t in case.tried))
    for name in ("kernel", "size", "precision", "leaf", "leaves", "stored", *tiles):
        table.add_column(name, justify="left" if name == "kernel" else "right")
    for case in cases:
        table.add_section()
        for leaf in dict.fromkeys(t.min_leaf for t in case.tried):
            here = {t.tile: t for t in case.tried if t.min_leaf == leaf}
            first = next(iter(here.values()))
            stored = f"{case.dense[0].fixed_bytes / first.nbytes:.1f}x"
            cells = [case.kernel, str(case.size), case.precision, str(leaf or "auto"), str(first.leaves), stored]
            for tile in tiles:
                t = here.get(tile)
                ratio = advantage(t.work, case.dense, batch, case.precision, chip) if t else 0.0
                cells.append(f"{t.padded_share:.0%} {ratio:.2f}x" if t else "-")
            table.add_row(*cells)
    return table


def show(cases: Sequence[Case], batches: Sequence[int], chip: Chip) -> None:
    """Print everything."""
    console = Console(width=WIDTH, highlight=False)
    console.print(f"{LABEL}: lower bounds from bytes, flops and launches. {chip.name}: {chip.source}.")
    console.print(facts_table(cases, batches, chip))
    console.print(times_table(cases, batches, chip))
    found = [p for case in cases for p in case.predictions(batches, chip)]
    lost, dense = (sum(flags) for flags in zip(*((p.ratio < 1, p.choice == "dense") for p in found), strict=True))
    console.print(
        f"hrt is predicted to LOSE in {lost} of {len(found)} rows; the planner takes dense in {dense}.\n"
        "ratio: dense over hrt. no launches: bytes and flops alone. Copies of inputs and outputs into and out of a "
        "static workspace, orderings included, are counted for neither.\n"
        "L2 TB/s: what programs would have to load from L2 or beyond to be that fast. It is not in the model: above "
        "what the chip's L2 delivers the prediction cannot be reached."
    )
    console.print(tiles_table(cases, max(batches), chip))


def checked(names: Sequence[str] | None, known: Sequence[str], what: str) -> None:
    """Raise InputError unless all names are known."""
    for name in names or ():
        if name not in known:
            raise InputError(f"Found {what} {name!r}. Expected one of {', '.join(known)}.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Compress or read, print the tables, write JSON if asked. Returns 2 for names and files that make no sense."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs="+", help="sides of the layers (default: 4096 8192 16384)")
    parser.add_argument("--kernel", nargs="+", help=f"among {', '.join(KERNELS)} (default: all)")
    parser.add_argument("--precision", nargs="+", help=f"among {', '.join(SETTINGS)} (default: all)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 256, 4096, 65536], help="rows of the inputs")
    parser.add_argument("--chip", default="h200", help=f"one of {', '.join(CHIPS)} (default: h200)")
    parser.add_argument("--tile", nargs="+", help=f"weight tiles, rows x columns (default: {' '.join(TILES)})")
    leaves = " ".join(map(str, MIN_LEAVES))
    parser.add_argument("--min-leaf", type=int, nargs="+", help=f"least block sides, 0: automatic (default: {leaves})")
    parser.add_argument("--json", type=Path, help="write facts and predictions here")
    parser.add_argument("--from", type=Path, nargs="+", dest="files", help="take facts from these files, build nothing")
    args = parser.parse_args(arguments)
    begun_at = commit()  # of the code that counts, not of what the folder holds when it is done
    try:
        chip = chip_named(args.chip)
        checked(args.kernel, list(KERNELS), "kernel")
        checked(args.precision, list(SETTINGS), "precision")
        for tile in args.tile or ():
            sides(tile)
        if min([*(args.size or ()), *args.batch]) < 1 or min(args.min_leaf or [0]) < 0:
            raise InputError("Found a size or batch below 1, or a negative leaf size. Expected whole numbers from 1.")
        if args.files:
            asked = (args.kernel, args.size, args.precision, args.min_leaf, args.tile)
            cases = narrowed(load_cases(args.files), *asked)
        else:
            options = (args.precision or list(SETTINGS), args.min_leaf or MIN_LEAVES, args.tile or TILES)
            jobs = [(k, n) for n in args.size or SIZES for k in args.kernel or KERNELS]
            cases = [case for job in jobs for case in measured(*job, *options)]
    except InputError as error:
        say(str(error))
        return 2
    show(cases, args.batch, chip)
    if args.json:
        command = f"python -m hrt.perf.studies.roofline {shlex.join(sys.argv[1:] if arguments is None else arguments)}"
        counted_by = commands_of(args.files) if args.files else [f"{command} (at {begun_at})"]
        write(args.json, cases, args.batch, chip, command, counted_by)
    return 0


def write(
    file: Path, cases: Sequence[Case], batches: Sequence[int], chip: Chip, command: str, counted_by: Sequence[str]
) -> None:
    """Facts and the commands that counted them, predictions, this command and versions as JSON."""
    entries = []
    for case in cases:
        best = case.best(batches, chip)
        predicted = {
            "min_leaf": best.min_leaf,
            "tile": best.tile,
            "rows": [asdict(p) for p in case.predictions(batches, chip)],
            "break_even": case.break_even(batches, chip),
        }
        entries.append({**asdict(case), "predicted": predicted})
    document = {
        "what": f"{LABEL}: lower bounds, not timings",
        "command": command,
        "counted_by": counted_by,
        "versions": versions(),
        "chip": asdict(chip),
        "break_even_batches": BATCHES,
        "cases": entries,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    sys.exit(main())
