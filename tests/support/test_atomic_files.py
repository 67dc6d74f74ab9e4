"""A file is written whole or not at all, by one of several writers, and nothing else is left."""

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from hrt.errors import ArtifactError, InputError
from hrt.support.atomic_files import check_writable, replacing, warn_of_suffix

from forked import forked


def contents(folder: Path) -> list[tuple[str, bytes]]:
    return sorted((p.name, p.read_bytes()) for p in folder.iterdir())


class TestReplacing:
    def test_writes_and_leaves_nothing_else(self, tmp_path):
        with replacing(tmp_path / "a") as file:
            file.write(b"new")
            assert not (tmp_path / "a").exists()
        assert contents(tmp_path) == [("a", b"new")]

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
    def test_any_failure_of_the_writer_keeps_the_old_file(self, error, tmp_path):
        (tmp_path / "a").write_bytes(b"old")
        with pytest.raises(error), replacing(tmp_path / "a") as file:
            file.write(b"half")
            raise error
        assert contents(tmp_path) == [("a", b"old")]

    def test_a_failure_of_the_system_is_typed(self, tmp_path):
        with pytest.raises(ArtifactError, match="No space"), replacing(tmp_path / "a", failure=ArtifactError):
            raise OSError(28, "No space left on device")
        assert not list(tmp_path.iterdir())

    def test_two_writers_do_not_meet(self, tmp_path):
        with replacing(tmp_path / "a") as first, replacing(tmp_path / "a") as second:
            first.write(b"first")
            second.write(b"second")
        assert (tmp_path / "a").read_bytes() == b"first"  # the one that ended last

    def test_names_relative_to_the_current_folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with replacing("a") as file:
            file.write(b"x")
        assert (tmp_path / "a").read_bytes() == b"x"

    @pytest.mark.parametrize("links", [True, False])
    def test_without_force_the_first_of_two_writers_wins(self, links, tmp_path, monkeypatch):
        if not links:  # as on some network and USB drives

            def refuses(*_: object) -> None:
                raise OSError(1, "Operation not permitted")

            monkeypatch.setattr(os, "link", refuses)
        with (
            pytest.raises(ArtifactError, match=r"a was written by another process meanwhile, and was kept"),
            replacing(tmp_path / "a", force=False, failure=ArtifactError) as second,
        ):
            second.write(b"second")
            with replacing(tmp_path / "a", force=False) as first:
                first.write(b"first")
        assert contents(tmp_path) == [("a", b"first")]

    def test_of_racing_processes_one_wins(self, tmp_path):
        code = """
import os, sys, time
from hrt.errors import InputError
from hrt.support.atomic_files import replacing
won = 0
for k in range(100):
    while time.time() < float(sys.argv[1]) + 0.01 * k:
        pass
    try:
        with replacing(f"{k}", force=False) as file:
            file.write(sys.argv[2].encode())
        won += 1
    except InputError:
        pass
print(won)
"""
        start = str(time.time() + 1.5)
        processes = [
            subprocess.Popen([sys.executable, "-c", code, start, name], stdout=subprocess.PIPE, cwd=tmp_path)
            for name in "abc"
        ]
        won = [int(process.communicate(timeout=60)[0]) for process in processes]
        names = [text.decode() for _, text in contents(tmp_path)]
        assert sum(won) == 100 and [names.count(name) for name in "abc"] == won

    @pytest.mark.parametrize("mode", [0o600, 0o664, 0o755])
    def test_a_file_that_is_replaced_hands_on_its_mode(self, mode, tmp_path):
        (tmp_path / "a").touch()
        (tmp_path / "a").chmod(mode)
        with replacing(tmp_path / "a") as file:
            file.write(b"new")
        assert (tmp_path / "a").stat().st_mode & 0o7777 == mode

    def test_what_a_killed_writer_left_is_removed_and_what_others_write_is_not(self, tmp_path):
        def dies() -> str:
            with replacing(tmp_path / "a") as file:
                file.write(b"half")
                os.kill(os.getpid(), signal.SIGKILL)
            return ""

        assert forked(dies)[1] == signal.SIGKILL
        assert len(contents(tmp_path)) == 1
        (tmp_path / ".hrt-00000000-1-00000000.tmp").touch()  # of another machine, on a shared drive
        with replacing(tmp_path / "b") as b, replacing(tmp_path / "c") as c:
            b.write(b"b")
            c.write(b"c")
        assert contents(tmp_path) == [(".hrt-00000000-1-00000000.tmp", b""), ("b", b"b"), ("c", b"c")]

    def test_the_folder_is_synced_behind_the_rename(self, tmp_path, monkeypatch):
        calls = []
        monkeypatch.setattr(os, "fsync", lambda fd: calls.append(os.readlink(f"/proc/self/fd/{fd}")))
        with replacing(tmp_path / "a") as file:
            file.write(b"x")
        assert len(calls) == 2 and calls[0].endswith(".tmp") and calls[1] == os.path.realpath(tmp_path)


class TestCheckWritable:
    def test_refuses_what_cannot_become_a_file(self, tmp_path):
        (tmp_path / "a").touch()
        for path, force in (
            (tmp_path / "a", False),
            (tmp_path, True),
            (tmp_path / "no" / "a", True),
            ("/dev/null", True),
        ):
            with pytest.raises(InputError, match=str(path)):
                check_writable(path, force)

    def test_allows_the_rest(self, tmp_path):
        (tmp_path / "a").touch()
        assert check_writable(tmp_path / "a", True) == (tmp_path / "a").resolve()
        assert check_writable(tmp_path / "b", False) == tmp_path.resolve() / "b"


def test_a_foreign_suffix_is_warned_of():
    with pytest.warns(UserWarning, match=r"net\.onnx ends with \.onnx, .* a \.hrt file"):
        warn_of_suffix("net.onnx", ".hrt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_suffix(Path("net.hrt"), ".hrt")
        warn_of_suffix("net", ".hrt")
