"""The C compiler of this machine: which one there is, what it calls itself, and how it makes a shared library.

`CC`, cc, gcc, clang, else zig's from the package `ziglang` (the extra `native`).
"""

import os
import platform
import shlex
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from hrt.errors import BackendError, printable

NAMES = ("cc", "gcc", "clang")
ANSWERS_IN = 20.0  # seconds for `--version`; zig unpacks itself first
LONGEST = 300.0  # seconds of a compilation that somebody asked for
SHOWN = 300  # characters of a compiler's message
LIBRARY = ("-O3", "-ffp-contract=fast", "-fPIC", "-shared", "-fno-semantic-interposition", "-pthread", "-w")
POINTER_BITS = 8 * struct.calcsize("P")
SAME_WIDTH = f"""#if __SIZEOF_POINTER__ * 8 != {POINTER_BITS}
#error "this compiler does not make code of {POINTER_BITS} bits, which this Python needs"
#endif
"""


@dataclass(frozen=True)
class Compiler:
    """command: how it is called. version: its first line about itself. flags: of a shared library for this CPU."""

    command: tuple[str, ...]
    version: str
    flags: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.version} ({' '.join(self.flags)})"

    def build(self, source: Path, library: Path, timeout: float = LONGEST) -> None:
        """Compile one file. Raises BackendError with the compiler's first line of complaint, TooSlow after `timeout`
        seconds.
        """
        fault = f"The C compiler {shlex.join(self.command)}"
        arguments = [*self.command, *self.flags, source.name, "-o", str(library.absolute())]
        try:
            status, text = _run(arguments, timeout, source.parent)
        except subprocess.TimeoutExpired as error:
            raise TooSlow(f"{fault} took more than {timeout:g} seconds and was stopped. Use another, by CC.") from error
        except OSError as error:
            raise BackendError(f"{fault} cannot be run: {error.strerror}. Use another, by CC.") from error
        if status or not library.is_file():
            raise BackendError(f"{fault} failed with status {status}: {_complaint(text)}. Use another, by CC.")


class TooSlow(BackendError):
    """A compiler was not done in time."""


def missing_compiler() -> str | None:
    """What is missing, and what to do; None where there is a compiler. Runs nothing."""
    given, command = os.environ.get("CC", "").strip(), _command()
    if command and shutil.which(command[0]):
        return None
    if given:
        return f"Found CC={shown(given)}, which is no command here."
    return "There is no C compiler (install gcc or clang, or pip install 'hmatrix-runtime[native]', or set CC)."


def compiler() -> Compiler:
    """The compiler to use. Raises BackendError where it is missing, or does not answer when asked its version."""
    lacks, command = missing_compiler(), _command()
    if lacks:
        raise BackendError(lacks)
    return Compiler(command, _version(command), (*LIBRARY, *_cpu_flags(_is_zig(command))))


def shown(text: str) -> str:
    """A line of somebody else's, for a message."""
    return printable(text[:SHOWN])


@cache
def _version(command: tuple[str, ...]) -> str:
    fault = f"The C compiler {shlex.join(command)}"
    try:
        status, text = _run([*command, "--version"], ANSWERS_IN)
    except subprocess.TimeoutExpired as error:
        raise BackendError(f"{fault} does not answer --version. Use another, by CC.") from error
    except OSError as error:
        raise BackendError(f"{fault} cannot be run: {error.strerror}. Use another, by CC.") from error
    if status:
        raise BackendError(f"{fault} failed with status {status}: {_complaint(text)}. Use another, by CC.")
    return shown(next((line.strip() for line in text.splitlines() if line.strip()), "unknown version"))


def _command() -> tuple[str, ...]:
    """What calls the compiler; empty where there is none."""
    given = os.environ.get("CC", "").strip()
    if given:
        try:
            return tuple(shlex.split(given))
        except ValueError:  # a quotation without end
            return (given,)
    if name := next((name for name in NAMES if shutil.which(name)), None):
        return (name,)
    return (sys.executable, "-m", "ziglang", "cc") if find_spec("ziglang") else ()


def _is_zig(command: Sequence[str]) -> bool:
    return any("zig" in Path(word).name for word in command)


def _cpu_flags(zig: bool) -> tuple[str, ...]:
    """The flag for this machine's CPU, as the compiler spells it."""
    if zig:
        return ("-mcpu=native",)
    machine = platform.machine().lower()
    if machine in ("x86_64", "amd64", "i686"):
        return ("-march=native",)
    return ("-mcpu=native",) if machine in ("aarch64", "arm64", "ppc64le") else ()


def _run(arguments: Sequence[str], timeout: float, folder: Path | None = None) -> tuple[int, str]:
    """Status and messages. A compiler is several processes: those that are at work when time is up, or when this one is
    interrupted, end together.
    """
    environment = {**os.environ, "LC_ALL": "C"}
    process = subprocess.Popen(
        arguments,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        text, _ = process.communicate(timeout=timeout)
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return process.returncode, text.decode("utf-8", "replace")


def _complaint(text: str) -> str:
    """The first line that names an error, or the first at all."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return shown(next((line for line in lines if "error" in line.lower()), lines[0] if lines else "no message"))
