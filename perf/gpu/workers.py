"""The processes that carry out steps: one each, so that a crash, a hang or a device in error ends one step alone.

A process takes seconds to import torch: the one for the next step is started while the present one runs, and waits.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hrt.perf.gpu.budget import DONE, FAILED, SKIPPED, STOPPED, WRONG, Outcome, Step

MISTAKE, WRONG_STATUS, NOT_HERE, BROKEN = 2, 3, 4, 5  # how a step's process ends, but for 0; 1 is Python's
PROGRAM = "hrt.perf.gpu: "  # before every message
GRACE = 1.0  # seconds between the end that a step is told and the end that is made


class RefusedError(Exception):
    """A step found that this machine or what was packed does not suit; its message says so."""


class Workers:
    """Starts `command` for every step, tells it name and seconds in a line of JSON, and ends it when these are over.

    log: what the processes print is added there.
    """

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.command, self.log = list(command), log
        self.waiting: Any = self._start()

    def execute(self, step: Step, seconds: float) -> Outcome:
        """Carry out a step in the waiting process. Raises RefusedError for a mistake that no step can go on with."""
        process, begun = self.waiting, self.log.stat().st_size
        self.waiting = None
        try:
            with suppress(BrokenPipeError):
                process.stdin.write(json.dumps({"step": step.name, "seconds": max(0.0, seconds - GRACE)}).encode())
                process.stdin.close()
            self.waiting = self._start()
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return Outcome(STOPPED, f"was not over after {seconds:.0f} s")
        finally:
            end(process)
        last = self._last_line(begun)
        if status == MISTAKE:
            raise RefusedError(last.removeprefix(PROGRAM))
        ended = {0: DONE, WRONG_STATUS: WRONG, NOT_HERE: SKIPPED}.get(status, FAILED)
        return Outcome(ended, "" if ended == DONE else last or f"status {status}")

    def close(self) -> None:
        """End the process that waits for a step that never came."""
        if self.waiting is not None:
            end(self.waiting)

    def _start(self) -> Any:
        with open(self.log, "ab") as log:
            pipe = subprocess.PIPE
            # Unbuffered: the log's last line has to be what was printed last, and a kill must not lose any.
            environment = os.environ | {"PYTHONUNBUFFERED": "1"}
            return subprocess.Popen(
                self.command, stdin=pipe, stdout=log, stderr=log, start_new_session=True, env=environment
            )

    def _last_line(self, begun: int) -> str:
        with open(self.log, "rb") as file:
            file.seek(begun)
            lines = file.read().decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""


def end(process: Any) -> None:
    """End a process and those that it started, whether or not it is over."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def told() -> tuple[str, float]:
    """In a worker: the step and its seconds, once they are told; without any the process ends."""
    line = sys.stdin.readline()
    if not line:
        sys.exit(0)
    order = json.loads(line)
    return order["step"], order["seconds"]
