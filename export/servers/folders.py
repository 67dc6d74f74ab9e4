"""Folders that are written whole or not at all, and never over what hrt did not write."""

import json
import secrets
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hrt.errors import InputError
from hrt.support.atomic_files import usable

MARK = ".hrt-files"  # in a folder of ours: the names of the files that we wrote there


def check_target(target: Path, force: bool) -> None:
    """Raise InputError where `target` exists (but for hrt's own files with `force`) or cannot be made."""
    parent = usable(target).parent
    if parent.exists() and not parent.is_dir():
        raise InputError(f"{parent} is a file. Expected a folder, or a path where one can be made.")
    if not parent.exists() and not parent.parent.is_dir():
        raise InputError(f"{parent} cannot be made: the folder {parent.parent} does not exist.")
    if not target.exists() and not target.is_symlink():
        return
    strangers = _strangers(target)
    if strangers is None:
        raise InputError(f"{target} was not written by hrt, and was kept, as it is with force. Remove it yourself.")
    if not force:
        raise InputError(f"{target} exists and was kept. Pass another name, or force (--force) to replace it.")
    if strangers:
        raise InputError(
            f"{target} was kept: it holds {strangers[0]}, which hrt did not write. Move it elsewhere first."
        )


def replace_folder(target: Path, write: Callable[[Path], object], force: bool) -> None:
    """Let `write` fill a temporary folder, then rename it to `target`. A failure leaves everything as it was."""
    parent, made = target.parent, False
    tag = secrets.token_hex(8)
    new, old = parent / f".hrt-{tag}.tmp", parent / f".hrt-{tag}.old"  # dots: servers do not look into them
    try:
        if not parent.exists():
            parent.mkdir()
            made = True
        new.mkdir()
        write(new)
        written = sorted(p.relative_to(new).as_posix() for p in new.rglob("*") if p.is_file())
        (new / MARK).write_text(json.dumps(written) + "\n")
        if force and target.exists():
            target.rename(old)
        new.rename(target)
    except BaseException as error:
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(new, ignore_errors=True)
        if made:
            with suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            raise InputError(f"{target} cannot be written: {reason}. Nothing was changed.") from error
        raise
    shutil.rmtree(old, ignore_errors=True)


def _strangers(target: Path) -> list[str] | None:
    """What a folder holds beside the files that hrt wrote there; None where it is no folder of hrt's."""
    if not target.is_dir() or target.is_symlink():
        return None
    try:
        ours = {*json.loads((target / MARK).read_text()), MARK}
    except (OSError, ValueError, TypeError):
        return None
    files = (p for p in sorted(target.rglob("*")) if not p.is_dir() or p.is_symlink())
    names = [p.relative_to(target).as_posix() for p in files if p.suffix != ".pyc"]  # Python leaves those
    return [name for name in names if name not in ours]
