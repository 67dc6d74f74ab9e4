"""Paths that can be files, and writing a file whole or not at all."""

import errno
import hashlib
import os
import platform
import re
import secrets
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import BinaryIO

from hrt.errors import HrtError, InputError

SHOWN = 80  # characters of a path that no file can have


def usable(path: str | PathLike[str], failure: type[HrtError] = InputError) -> Path:
    """`path` as a Path; the file need not exist. Raises `failure` for an invalid file name."""
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise failure(f"Found {type(path).__name__} where the name of a file is expected. Pass a path.")
    text, fault = os.fsdecode(path), None
    try:
        os.lstat(text)
    except ValueError as error:
        fault = "with a NUL character" if "\0" in text else f"that is no name ({error})"
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            fault = f"of {len(text)} characters, too long for this system"
    if fault is None:
        return Path(text)
    shown = repr(text if len(text) <= SHOWN else f"{text[: SHOWN // 2]}...{text[-SHOWN // 2 :]}")
    raise failure(f"Found the path {shown} {fault}. Expected the name of a file or folder.")


def check_writable(path: str | PathLike[str], force: bool, failure: type[HrtError] = InputError) -> Path:
    """`path` with links followed, if a file may be written there. Raises `failure` where it may not."""
    named, path = path, Path(os.path.realpath(usable(path, failure)))
    if path.exists() and not path.is_file():
        raise failure(f"{named} is a {'folder' if path.is_dir() else 'device'}. Expected the name of a file.")
    if path.exists() and not force:
        raise failure(f"{named} exists and was kept. Pass another path, or force (--force) to replace it.")
    if not path.parent.is_dir():
        raise failure(f"{named} cannot be written: the folder {path.parent} does not exist.")
    return path


def warn_of_suffix(path: str | PathLike[str], expected: str) -> None:
    """Warn where `path` ends like a file of another kind than `expected`, such as ".hrt": readers go by the suffix."""
    suffix = Path(os.fsdecode(path)).suffix
    if suffix not in ("", expected):
        message = f"{path} ends with {suffix}, and what is written to it is a {expected} file. Expected {expected}."
        warnings.warn(message, UserWarning, stacklevel=4)  # of a public function, which is guarded


@contextmanager
def replacing(
    path: str | PathLike[str], *, force: bool = True, failure: type[HrtError] = InputError
) -> Iterator[BinaryIO]:
    """Yield a binary file that becomes `path` when the block ends: a temporary name beside it, synced, then renamed.
    What goes wrong in the block leaves `path` as it was. Of several writers without `force` one writes. A file that is
    replaced hands on its mode. Raises `failure` where the system refuses, or a file is there and `force` is not given.
    """
    named, path = path, check_writable(path, force, failure)
    _remove_stale(path.parent)
    # short, so that long names stay possible; host and process tell later writers whether this one is still at work
    temporary = path.parent / f".hrt-{_host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            if path.exists():
                os.fchmod(file.fileno(), stat.S_IMODE(path.stat().st_mode))
            os.fsync(file.fileno())
        if not force:
            _claim(temporary, path)
        else:
            os.replace(temporary, path)
        _sync_folder(path.parent)
    except FileExistsError as error:
        raise failure(f"{named} was written by another process meanwhile, and was kept.") from error
    except OSError as error:
        raise failure(f"{named} cannot be written: {error.strerror or error}. Nothing was changed.") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _claim(temporary: Path, path: Path) -> None:
    """Give `temporary` the name `path` if nobody has it. Raises FileExistsError."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.replace(temporary, path)


def _sync_folder(folder: Path) -> None:
    """Write the folder's names to the disk, where its file system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _host() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _remove_stale(folder: Path) -> None:
    """Remove what writers of this machine left that were killed."""
    with suppress(OSError):
        for name in os.listdir(folder):
            writer = re.fullmatch(rf"\.hrt-{_host()}-(\d+)-[0-9a-f]{{8}}\.tmp", name)
            if writer and not _is_running(int(writer[1])):
                (folder / name).unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    import psutil  # where nothing was left it is not needed

    return psutil.pid_exists(process)
