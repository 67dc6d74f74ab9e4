"""tests/card.py as a step: its counts and failures are in the record while it runs. Also a plugin of pytest."""

import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hrt.perf.gpu.ground import Ground, WrongError
from hrt.perf.gpu.pack import ROOT
from hrt.perf.gpu.plan import SILENT
from hrt.perf.gpu.record import Record

TESTS = "tests/card.py"
RECORD, STEP, MODEL = "HRT_GPU_RECORD", "HRT_GPU_STEP", "HRT_CARD_MODEL"  # environment of the tests
TRIED = "both_kernels or nan_stays or strict or threads or memory"  # of them, where only the code is tried out
EVERY = 0.5  # seconds between two changes of the record, but for a failure
MOST_LINES = 40
SOME_FAILED, NOTHING_RUN = 1, 5


def locations(ground: Ground) -> list[str]:
    """The record and the pack, as a worker takes them."""
    return ["--out", str(ground.record.path.parent), "--pack", str(ground.pack.folder)]


def run(ground: Ground, expression: str, processes: int = 1, most_failures: int = 0) -> None:
    """The card's tests that `expression` selects, at most so many failures (0: all). Raises WrongError for failures."""
    expression = f"({expression}) and ({TRIED})" if ground.trial else expression
    command = [sys.executable, "-P", "-m", "pytest", TESTS, "-q", "-k", expression, "-p", "hrt.perf.gpu.testing"]
    command += ["-p", "no:cacheprovider", "--tb=short"]
    processes = min(processes, os.cpu_count() or 1)
    command += ["-n", str(processes), "--dist", "worksteal"] if processes > 1 and find_spec("xdist") else []
    command += ["--maxfail", str(most_failures)] if most_failures and ground.judges else []
    command += ["-p", "hrt.perf.gpu.launchers", "-p", "stub_card"] if ground.stub else []  # the last is the first
    environment = {**os.environ, RECORD: str(ground.record.path), STEP: ground.step}
    environment |= {
        "HRT_ON_CARD": "1" if ground.stub in ("", SILENT) else "stub",
        "STUB_ANSWERS": str(int(ground.judges)),
    }
    environment[MODEL] = str(ground.pack.model("card"))
    status = subprocess.run(command, cwd=ROOT, env=environment).returncode
    results = ground.record.read()["steps"].get(ground.step, {}).get("results", {})
    failed = results.get("failed", 0)
    if ground.judges and failed:
        raise WrongError(f"{failed} failed, {results.get('passed', 0)} passed: {results['failures'][0]}")
    if status not in (0, SOME_FAILED, 2) or not results:
        raise RuntimeError(f"pytest ended with status {status}, {results or 'nothing was run'}")


class Counting:
    """Counts outcomes as they come, in the record."""

    def __init__(self, record: Record, step: str):
        self.record, self.step, self.written = record, step, 0.0
        self.results: dict[str, Any] = {"passed": 0, "failed": 0, "skipped": 0, "failures": []}

    def pytest_runtest_logreport(self, report: Any) -> None:
        failed = report.outcome == "failed"
        if report.when == "call" or report.outcome != "passed":
            self.results[report.outcome] += 1
        if failed and len(self.results["failures"]) < MOST_LINES:
            reason = str(getattr(report.longrepr, "reprcrash", report.longrepr)).strip().splitlines()
            self.results["failures"].append(f"{report.nodeid}: {reason[-1][:300] if reason else ''}")
        if failed or time.monotonic() - self.written > EVERY:
            self._write()

    def pytest_sessionfinish(self) -> None:
        self._write()

    def _write(self) -> None:
        self.record.write(self.step, self.results)
        self.written = time.monotonic()


def pytest_configure(config: Any) -> None:
    """As a plugin: in the process that hears of all outcomes."""
    if RECORD in os.environ and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Counting(Record(Path(os.environ[RECORD])), os.environ[STEP]))
