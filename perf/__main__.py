"""`python -m hrt.perf`: at the error you can accept, what is fastest and what is smallest, on this machine?

    python -m hrt.perf --quick --json build/quick.json     # one workload, one error, under three minutes
    python -m hrt.perf --workload burgers log-1d:4096 --tol 1e-3 --batch 1 64
    python -m hrt.perf --workload mine.onnx --inputs x.npy --json mine.json

Every method sets its knob on search rows until the error is kept by hrt's own rule, is judged on fresh rows, and then
timed beside all others in short bursts in random order. What cannot be had is a row that says why.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from hrt.errors import HrtError
from hrt.perf.bench.command import measure
from hrt.perf.bench.runner import USUAL, Plan
from hrt.perf.methods.catalogue import METHODS
from hrt.perf.networks.registry import QUICK, REGISTRY


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print. Returns 0, 1 where a network could not be measured, 2 for a user's mistake, 130 after Ctrl-C (rows
    so far are printed and written).
    """
    args = _parser().parse_args(arguments)
    try:
        return measure(_plan(args), args.json, args.all)
    except HrtError as error:
        print(f"hrt.perf: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _plan(args: argparse.Namespace) -> Plan:
    quick = args.quick
    names = args.method and tuple(m for m in METHODS if any(m.startswith(p) for p in args.method))
    unknown = [p for p in args.method or () if not any(m.startswith(p) for m in METHODS)]
    chosen = tuple(dict.fromkeys(("dense float32", *(names or ())))) if args.method else None
    return Plan(
        workloads=tuple(args.workload or (QUICK if quick else REGISTRY)),
        methods=tuple(unknown) or chosen or USUAL,
        tols=tuple(args.tol or ((1e-2,) if quick else (1e-2, 1e-3, 1e-4))),
        batches=tuple(args.batch) if args.batch else None,
        threads=args.threads,
        rounds=Plan.rounds if args.rounds is None else args.rounds,
        burst_s=0.01 if quick else 0.02,
        seed=args.seed,
        inputs=tuple(args.inputs or ()),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hrt.perf", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = f"{', '.join(REGISTRY)} (operators take a size: log-1d:4096), or your .pt2, .onnx or .hrt file"
    parser.add_argument("--quick", action="store_true", help=f"only {' and '.join(QUICK)}, at one error")
    parser.add_argument("--workload", nargs="+", metavar="NAME", help=known)
    parser.add_argument(
        "--inputs", nargs="+", type=Path, metavar="X.npy", help="rows for your file, one file per input"
    )
    parser.add_argument(
        "--method",
        nargs="+",
        metavar="NAME",
        help=f"beginnings of names of {'; '.join(METHODS)} (default: all but the last)",
    )
    parser.add_argument("--tol", nargs="+", type=float, help="relative errors to compare at (default 1e-2 1e-3 1e-4)")
    parser.add_argument("--batch", nargs="+", type=int, help="batch sizes (default 1 256)")
    parser.add_argument("--threads", type=int, default=2, help="threads of every method (default 2)")
    parser.add_argument("--rounds", type=int, help=f"bursts of every method (default {Plan.rounds})")
    parser.add_argument("--seed", type=int, default=0, help="of the order of bursts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows here")
    parser.add_argument(
        "--all", action="store_true", help="show every execution of a method, not the fastest one alone"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
