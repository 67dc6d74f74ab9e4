"""Real servers as processes: each in an environment of its own, started on free ports, stopped by process id."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

ENVIRONMENT_SECONDS = 420  # from an empty folder it is a download and some 20 s


def environment(server: str) -> Path:
    """The folder of the environment of a server, made first where it is not there yet. A failure is an error."""
    script = Path(__file__).parent / "servers" / "make_env.sh"
    command = ["bash", os.fspath(script), server, sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, timeout=ENVIRONMENT_SECONDS)
    assert done.returncode == 0, f"the environment of {server} could not be made:\n{done.stdout}{done.stderr}"
    return Path(done.stdout.splitlines()[-1])


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def answers(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(url, timeout=2) as response:
        return response.status == 200
    return False


class Running:
    """A server's process and all that descend from it."""

    def __init__(
        self, command: Sequence[str], log: Path, environ: Mapping[str, str] | None = None, folder: Path | None = None
    ):
        self.log, self.started = log, time.monotonic()
        plain = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV", "TRITON_"))}
        with open(log, "wb") as file:
            self.process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**plain, **(environ or {})},
                cwd=folder,
                start_new_session=True,
            )
        self.seen: dict[int, psutil.Process] = {}

    def wait(self, what: str, ready, seconds: float) -> float:
        """Seconds from the start until `ready()`; fails with the end of the log."""
        while not ready():
            assert self.process.poll() is None, f"the server ended before it was {what}:\n{self.tail()}"
            assert time.monotonic() - self.started < seconds, f"not {what} after {seconds} s:\n{self.tail()}"
            time.sleep(0.1)
        return time.monotonic() - self.started

    def family(self) -> list[psutil.Process]:
        """This process and its living descendants; those that leave it later are remembered."""
        with suppress(psutil.NoSuchProcess):
            leader = psutil.Process(self.process.pid)
            for p in (leader, *leader.children(recursive=True)):
                self.seen[p.pid] = p
        return [p for p in self.seen.values() if alive(p)]

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]

    def stop(self, how: int = signal.SIGTERM, seconds: float = 20.0) -> bool:
        """Ask the process to end; what is left after `seconds` is killed, one process id at a time. Returns whether it
        ended by itself; fails if anything outlives that.
        """
        self.family()
        if self.process.poll() is None:
            self.process.send_signal(how)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        willing = self.process.poll() is not None
        for p in self.family():
            with suppress(psutil.NoSuchProcess):
                p.kill()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        deadline = time.monotonic() + 10
        while self.family() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not self.family(), f"left running: {self.family()}"
        return willing


def alive(p: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return p.is_running() and p.status() != psutil.STATUS_ZOMBIE
    return False
