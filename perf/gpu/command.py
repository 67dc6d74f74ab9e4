"""The command line of runs on a GPU: `run` there, `pack` before, `report` afterwards; `worker` is what `run` starts."""

import argparse
import math
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from hrt.errors import HrtError, InputError
from hrt.perf.gpu.budget import DONE, FAILED, SKIPPED, Outcome, Step, run_steps
from hrt.perf.gpu.layout import check_packages, enter, lay_out
from hrt.perf.gpu.pack import FOLDER, KERNELS, ROOT, Pack, refuse, source_digest, unpack_kernels
from hrt.perf.gpu.plan import SILENT, STEPS, STUB, TRIAL
from hrt.perf.gpu.record import NAME, Record
from hrt.perf.gpu.workers import BROKEN, MISTAKE, NOT_HERE, PROGRAM, WRONG_STATUS, RefusedError, Workers, told

BUDGET = 420.0
INTERRUPTED = 130
LOG = "log.txt"


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0; 1 where a step was wrong, failed or was stopped; 2 for a mistake; 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="hrt.perf.gpu", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="use the minutes on this machine's GPU, in order of worth")
    run.add_argument("--budget", type=float, default=BUDGET, help="seconds (420)")
    worker = commands.add_parser("worker", help="one step, told on standard input")
    worker.add_argument("--step", help="the step, where nobody tells it")
    for part in (run, worker):
        part.add_argument("--out", type=absolute, required=True, metavar="FOLDER", help="for gpu.json and log.txt")
        part.add_argument("--pack", type=absolute, default=FOLDER, metavar="FOLDER", help="what `pack` made")
        part.add_argument("--anyway", action="store_true", help="go on where the pack was made for something else")
    pack = commands.add_parser("pack", help="make what is carried to the machine with the GPU; needs none")
    pack.add_argument("--out", type=absolute, default=FOLDER, metavar="FOLDER", help="build/gpu-pack")
    report = commands.add_parser("report", help="the figures as a table, and the goals")
    report.add_argument("json", type=Path, help="a gpu.json")
    args = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # also where a shell in the background ignores SIGINT
    try:
        return {"run": run_all, "worker": work, "pack": make_pack, "report": show_report}[args.command](args)
    except (HrtError, RefusedError) as error:
        print(f"{PROGRAM}{' '.join(str(error).split())}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print(f"{PROGRAM}interrupted; what was written so far stays", file=sys.stderr)
        return INTERRUPTED


def absolute(path: str) -> Path:
    """Steps are processes with folders of their own."""
    return Path(path).absolute()


def run_all(args: argparse.Namespace) -> int:
    """Check the pack, start the record, unpack the kernels to a place of this run's own, carry out what fits."""
    begun = time.monotonic()
    if not 0 < args.budget < math.inf:
        raise InputError(f"Found a budget of {args.budget:g} s. Expected a positive number of seconds.")
    check_packages()
    pack = Pack.open(args.pack)
    mismatches = pack.mismatches({"sources": source_digest()})
    refuse(mismatches, args.anyway)
    facts = {"budget_s": args.budget, "stub": os.environ.get(STUB, ""), "commit": pack.manifest.commit}
    record = Record.start(args.out, facts | {"other_sources": mismatches})
    with tempfile.TemporaryDirectory(prefix="hrt-gpu-", ignore_cleanup_errors=True) as scratch:
        unpack_kernels(pack.folder / KERNELS, Path(scratch) / "kernels")
        os.environ |= {"TRITON_CACHE_DIR": f"{scratch}/kernels", "HRT_CACHE": scratch}
        return carry_out(args, record, begun)


def carry_out(args: argparse.Namespace, record: Record, begun: float) -> int:
    """The steps that fit into the budget, which began at `begun`. Returns the exit status."""
    lay_out()
    if os.environ.get(STUB):
        os.environ["PYTHONPATH"] = f"{os.environ.get('PYTHONPATH', '')}{os.pathsep}{ROOT / 'tests'}"
    command = [sys.executable, str(ROOT / "perf" / "gpu"), "worker", "--out", str(args.out), "--pack", str(args.pack)]
    workers = Workers(command + ["--anyway"] * args.anyway, args.out / LOG)

    def note(step: Step, outcome: Outcome | None) -> None:
        record.note(step, outcome)
        if outcome is not None:
            line = f"{step.name:14} {outcome.status:8} {outcome.seconds:5.0f} s  {outcome.remark}".rstrip()
            print(line, flush=True)

    try:
        left = args.budget - (time.monotonic() - begun)
        slower = float(os.environ.get(TRIAL) or 1)
        steps = [replace(step, cost=slower * step.cost) for step in STEPS]
        outcomes = run_steps(steps, left, workers.execute, note, time.monotonic)
    except RefusedError as error:
        record.note(STEPS[0], Outcome(FAILED, str(error)))
        raise
    finally:
        workers.close()
    print(f"wrote {record.path} after {time.monotonic() - begun:.0f} s; show it: python3 perf/gpu report {record.path}")
    return int(any(o.status not in (DONE, SKIPPED) for o in outcomes.values()))


def work(args: argparse.Namespace) -> int:
    """Carry out one step: import what it takes, wait to be told, do it. The status is of `hrt.perf.gpu.workers`."""
    enter()
    if os.environ.get(STUB):
        import_module("stub_card").install(answers=os.environ[STUB] != SILENT)
        import_module("hrt.perf.gpu.launchers").install()
    from hrt.perf.gpu.ground import Ground, NotHereError, WrongError
    from hrt.perf.gpu.steps import WORK

    name, seconds = (args.step, math.inf) if args.step else told()
    pack, record = Pack(args.pack, Pack.manifest_of(args.pack)), Record(args.out / NAME)
    trial = bool(os.environ.get(TRIAL))
    ground = Ground(pack, record, name, time.monotonic() + seconds, anyway=args.anyway, trial=trial)
    try:
        WORK[name](ground)
    except InputError:
        raise
    except WrongError as error:
        print(f"{error}", flush=True)
        return WRONG_STATUS
    except NotHereError as error:
        print(f"{error}", flush=True)
        return NOT_HERE
    except Exception:
        traceback.print_exc()
        return BROKEN
    return 0


def make_pack(args: argparse.Namespace) -> int:
    """See `hrt.perf.gpu.fill_pack`."""
    enter()
    from hrt.perf.gpu.fill_pack import fill

    fill(args.out)
    return 0


def show_report(args: argparse.Namespace) -> int:
    """See `hrt.perf.gpu.report`."""
    from hrt.perf.gpu.record import read
    from hrt.perf.gpu.report import render

    print(render(read(args.json)))
    return 0
