"""Compiled libraries, kept in the user's cache folder from one process to the next.

A file is called NETWORK-COMPILER-DIGEST.so. NETWORK stands for the sources and what code for a CPU must know of it;
COMPILER for who compiled it, how, and on which CPU. DIGEST is the SHA-256 of its bytes, looked at before it is loaded.
Where there is no compiler, anybody's library will do: it was compiled ahead, on a machine whose CPU can do the same.
Files are renamed into place, so that any number of processes may compile the same library at once. A folder that others
may write to is not used.
"""

import ctypes
import hashlib
import json
import os
import platform
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from platformdirs import user_cache_dir

from hrt.errors import BackendError, HrtError
from hrt.export.c.toolchain import LONGEST, SAME_WIDTH, Compiler, TooSlow, compiler, missing_compiler, shown
from hrt.support.atomic_files import replacing

FORMAT = 2
MOST = 256  # libraries that stay; the oldest go
SOURCE = "network.c"
NAMES, ABILITIES = ("model name", "CPU part"), ("flags", "Features", "isa")  # of /proc/cpuinfo


def library(files: Mapping[str, bytes], compiler: Compiler | None, timeout: float = LONGEST) -> ctypes.CDLL:
    """The library of `files`, sources and what they include; SOURCE is compiled where the cache does not have it.
    Raises BackendError where that fails or there is no compiler, TooSlow where it takes longer than `timeout`, or took
    longer before.
    """
    folder, key = cache_folder(), key_of(files, compiler)
    if folder is not None:
        for path in _valid(folder, key):
            with suppress(OSError):  # a folder from which nothing may be executed
                return ctypes.CDLL(str(path))
        if compiler and _slow_time(folder, key) >= timeout:
            raise TooSlow(f"The C compiler took more than {timeout:g} seconds before (hrt compile waits for it).")
    if compiler is None:
        raise BackendError(f"{missing_compiler()} No library of this network was compiled ahead for this CPU, either.")
    with TemporaryDirectory(prefix="hrt-", ignore_cleanup_errors=True) as private:
        for name, text in files.items():
            Path(private, name).write_bytes(SAME_WIDTH.encode() + text if name == SOURCE else text)
        built = Path(private, "library.so")
        try:
            compiler.build(Path(private, SOURCE), built, timeout)
        except TooSlow:
            if folder is not None:
                _store(folder / f"{key}.slow", repr(timeout).encode())
            raise
        return _loaded(built, _stored(folder, key, built.read_bytes()))


def is_compiled(files: Mapping[str, bytes], compiler: Compiler | None) -> bool:
    """Whether the cache has the library of `files`."""
    folder = cache_folder()
    return folder is not None and any(_valid(folder, key_of(files, compiler)))


def missing() -> str | None:
    """What is missing, and what to do; None where there is a compiler, or the cache holds what one made elsewhere."""
    lacks = missing_compiler()
    folder = cache_folder() if lacks else None
    return None if folder is not None and any(folder.glob("*.so")) else lacks


def made_by() -> str:
    """Who makes the libraries of this machine."""
    return "a C compiler on another machine, ahead" if missing_compiler() else str(compiler())


def cache_folder() -> Path | None:
    """The folder, this user's alone; None where there can be none, and libraries live as long as the process."""
    folder = Path(os.environ.get("HRT_CACHE") or user_cache_dir("hrt", appauthor=False)) / "native"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        status = folder.lstat()
    except OSError:
        return None
    private = stat.S_ISDIR(status.st_mode) and not status.st_mode & 0o077
    return folder if private and status.st_uid == os.geteuid() else None


def key_of(files: Mapping[str, bytes], compiler: Compiler | None) -> str:
    """What stands for everything that a library is made from, or for all but who made it."""
    name, abilities = cpu()
    digest = hashlib.sha256(json.dumps([FORMAT, sys.platform, platform.machine(), abilities, SAME_WIDTH]).encode())
    for file, text in sorted(files.items()):
        digest.update(json.dumps([file, len(text)]).encode())
        digest.update(text)
    network = digest.hexdigest()[:32]
    if compiler is None:
        return network
    maker = json.dumps([*compiler.command, compiler.version, *compiler.flags, name])
    return f"{network}-{hashlib.sha256(maker.encode()).hexdigest()[:16]}"


@cache
def cpu() -> tuple[str, str]:
    """The CPU's name, and what it can do: code made for one need not run on another that shares the folder."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").partition("\n\n")[0].splitlines()
        fields = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        name, abilities = (" ".join(fields[k] for k in keys if k in fields) for keys in (NAMES, ABILITIES))
        if abilities:
            return name, " ".join(sorted(abilities.split()))
    return platform.processor(), platform.node()


def _valid(folder: Path, key: str) -> Iterator[Path]:
    """The libraries of `key` whose bytes are those that were written; others are removed."""
    for path in sorted(folder.glob(f"{key}-*.so")):
        with suppress(OSError):
            if path.stem.rpartition("-")[2] == hashlib.sha256(path.read_bytes()).hexdigest():
                yield path
            else:
                path.unlink()


def _slow_time(folder: Path, key: str) -> float:
    """The seconds after which a compilation was given up before."""
    with suppress(OSError, ValueError):
        return float((folder / f"{key}.slow").read_text())
    return 0.0


def _stored(folder: Path | None, key: str, code: bytes) -> Path | None:
    """Where the cache has it now; None where it cannot."""
    if folder is None:
        return None
    path = folder / f"{key}-{hashlib.sha256(code).hexdigest()}.so"
    if not _store(path, code):
        return None
    with suppress(OSError):
        (folder / f"{key}.slow").unlink(missing_ok=True)
        ages = sorted((p.stat().st_mtime, p) for p in folder.glob("*.so"))
        for _, old in ages[:-MOST]:
            old.unlink()
    return path


def _store(path: Path, code: bytes) -> bool:
    try:
        with replacing(path) as file:
            file.write(code)
    except HrtError:
        return False
    return True


def _loaded(built: Path, stored: Path | None) -> ctypes.CDLL:
    """The library, from the cache if possible: programs that look into this process find the file there."""
    for path in (stored, built):
        if path is not None:
            try:
                return ctypes.CDLL(str(path))
            except OSError as error:
                fault = error
    message = shown((str(fault).splitlines() or ["no message"])[0])
    raise BackendError(f"The compiled network cannot be loaded: {message}. Use another compiler, by CC.")
