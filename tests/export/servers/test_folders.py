"""Folders are written whole or not at all, and never over what somebody else wrote."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hrt
from hrt.export.servers.folders import check_target, replace_folder


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")}


def fill(folder: Path) -> None:
    (folder / "1").mkdir()
    (folder / "1" / "model.hrt").write_bytes(b"numbers")


def refused(target: Path, message: str, force: bool = True) -> None:
    with pytest.raises(hrt.InputError, match=message):
        check_target(target, force)


def test_a_folder_of_ours_is_replaced_only_if_forced_and_if_nothing_else_is_in_it(tmp_path):
    target = tmp_path / "models" / "m"
    replace_folder(target, fill, force=False)
    assert sorted(contents(target)) == [".hrt-files", "1", "1/model.hrt"]
    refused(target, "exists and was kept", force=False)
    (target / "1" / "application.pyc").touch()  # Python leaves those
    check_target(target, force=True)
    (target / "2").mkdir()
    (target / "2" / "model.plan").write_text("years of work")
    refused(target, r"it holds 2/model\.plan, which hrt did not write")
    (target / "2" / "model.plan").unlink()
    check_target(target, force=True)
    replace_folder(target, lambda new: (new / "config.pbtxt").touch(), force=True)
    assert sorted(contents(tmp_path)) == ["models", "models/m", "models/m/.hrt-files", "models/m/config.pbtxt"]


@pytest.mark.parametrize("kind", ["folder", "file", "link", ".hrt-files"])
def test_what_is_not_ours_is_kept_even_if_forced(tmp_path, kind):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    target = tmp_path / ("m" if kind in ("file", "link") else "thesis")
    if kind == "file":
        target.write_text("years of work")
    elif kind == "link":
        target.symlink_to(tmp_path / "thesis")
    elif kind == ".hrt-files":
        (target / kind).write_text('name: "m"')
    refused(target, "not written by hrt, and was kept")


def test_folders_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    refused(tmp_path / "file" / "m", "is a file")
    refused(tmp_path / "no" / "where" / "m", "does not exist")
    for parent in ("/proc/hrt-models", "/proc/self"):
        with pytest.raises(hrt.InputError, match="cannot be written"):
            replace_folder(Path(parent, "m"), fill, force=False)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError, KeyboardInterrupt])
def test_a_failure_half_way_leaves_nothing(tmp_path, error, force):
    target = tmp_path / "models" / "m"
    if force:
        replace_folder(target, fill, force=False)
    before = contents(tmp_path)

    def fails(new):
        fill(new)
        raise error

    system = isinstance(error, OSError)
    with pytest.raises(
        hrt.InputError if system else error, match="No space left.*Nothing was changed" if system else None
    ):
        replace_folder(target, fails, force)
    assert contents(tmp_path) == before


def test_an_old_folder_is_put_back_where_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    replace_folder(tmp_path / "m", fill, force=False)
    before, rename, calls = contents(tmp_path), Path.rename, []

    def second_fails(self, target):
        calls.append(self)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", second_fails)
    with pytest.raises(hrt.InputError, match="Nothing was changed"):
        replace_folder(tmp_path / "m", fill, force=True)
    assert len(calls) == 3 and contents(tmp_path) == before


def test_a_process_that_is_killed_leaves_the_old_folder(tmp_path):
    replace_folder(tmp_path / "m", fill, force=False)
    before = contents(tmp_path / "m")
    program = (
        "import os, sys, pathlib\nfrom hrt.export.servers.folders import replace_folder\n"
        "replace_folder(pathlib.Path(sys.argv[1]), lambda new: os._exit(9), True)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, os.fspath(tmp_path / "m")], timeout=120)
    assert done.returncode == 9 and contents(tmp_path / "m") == before
