"""Paths that can be files, and writing a file whole or not at all."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import BinaryIO

from hrt.errors import HrtError, InputError

SHOWN = 80  # characters of a path that no file can have


def usable(path: str | PathLike[str], failure: type[HrtError] = InputError) -> Path:
    """`path` as a Path; the file need not exist. Raises `failure` for an invalid file name."""
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


@contextmanager
def replacing(
    path: str | PathLike[str], *, force: bool = True, failure: type[HrtError] = InputError
) -> Iterator[BinaryIO]:
    """Yield a binary file that becomes `path` when the block ends: a temporary name beside it, synced, then renamed.
    What goes wrong in the block leaves `path` as it was. Raises `failure` where the system refuses.
    """
    named, path = path, check_writable(path, force, failure)
    temporary = path.parent / f".hrt-{secrets.token_hex(8)}.tmp"  # short, so that long names stay possible
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise failure(f"{named} cannot be written: {error.strerror or error}. Nothing was changed.") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
