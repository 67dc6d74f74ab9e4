"""Compilers that are there, missing, broken, slow or of another width; each is one typed error with one line."""

import os
import shutil
import struct
import time
from pathlib import Path

import pytest

import hrt
from hrt.export.c.toolchain import SAME_WIDTH, TooSlow, compiler, missing_compiler

needs_compiler = pytest.mark.skipif(missing_compiler() is not None, reason="no C compiler here")
CODE = "int answer(void) { return 42; }\n"


@pytest.fixture
def called(tmp_path, monkeypatch):
    """A command that stands for a compiler, by its shell script."""

    def make(script: str) -> str:
        path = tmp_path / "my-cc"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("CC", str(path))
        return str(path)

    return make


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "network.c"
    path.write_text(CODE)
    return path


@needs_compiler
def test_the_machines_compiler_makes_a_library(source, tmp_path, monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    chosen = compiler()
    chosen.build(source, tmp_path / "out.so")
    assert (tmp_path / "out.so").stat().st_size and chosen.version and chosen.version in str(chosen)
    assert "-O3" in chosen.flags and "-ffp-contract=fast" in chosen.flags and any("native" in f for f in chosen.flags)


@pytest.mark.skipif(not shutil.which("gcc"), reason="no gcc here")
def test_the_one_in_CC_is_taken_with_its_flags(monkeypatch):
    monkeypatch.setenv("CC", "gcc -DX='a b'")
    assert compiler().command == ("gcc", "-DX=a b")


def test_zig_is_the_last_resort_and_without_it_the_remedy_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("hrt.export.c.toolchain.find_spec", lambda name: None)
    assert "install gcc or clang, or pip install 'hmatrix-runtime[native]'" in (missing_compiler() or "")
    with pytest.raises(hrt.BackendError, match="no C compiler"):
        compiler()
    monkeypatch.setattr("hrt.export.c.toolchain.find_spec", lambda name: name == "ziglang")
    assert missing_compiler() is None


@pytest.mark.parametrize("given", ["no-such-command -O2", "'open", "/tmp"])
def test_a_CC_that_is_no_command(given, monkeypatch):
    monkeypatch.setenv("CC", given)
    with pytest.raises(hrt.BackendError, match="Found CC="):
        compiler()


def test_one_that_fails_when_asked(called):
    called("echo 'licence expired' >&2; exit 7")
    with pytest.raises(hrt.BackendError, match=r"my-cc failed with status 7: licence expired\. Use another, by CC"):
        compiler()


def test_one_that_is_no_program(tmp_path, monkeypatch):
    path = tmp_path / "my-cc"
    path.write_bytes(b"\x7fELF nothing")
    path.chmod(0o755)
    monkeypatch.setenv("CC", str(path))
    with pytest.raises(hrt.BackendError, match="my-cc"):
        compiler()


def test_its_first_complaint_is_the_message(called, source, tmp_path):
    called("[ $1 = --version ] && echo mine 1.0 && exit; echo 'In file'; echo 'x.c:3: error: \x1b[1mno\x1b[0m'; exit 1")
    with pytest.raises(hrt.BackendError, match=r"x\.c:3: error: \\x1b\[1mno") as error:
        compiler().build(source, tmp_path / "out.so")
    assert "\x1b" not in str(error.value)


def test_one_that_writes_nothing(called, source, tmp_path):
    called("echo mine 1.0")
    with pytest.raises(hrt.BackendError, match=r"failed with status 0: mine 1\.0"):
        compiler().build(source, tmp_path / "out.so")


def test_one_that_hangs_is_stopped_with_its_children(called, source, tmp_path):
    called(f"[ $1 = --version ] && echo mine 1.0 && exit; sleep 60 & echo $! > {tmp_path}/child; wait")
    start = time.monotonic()
    with pytest.raises(TooSlow, match=r"more than 0\.3 seconds"):
        compiler().build(source, tmp_path / "out.so", timeout=0.3)
    assert time.monotonic() - start < 10
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]:
            return
        time.sleep(0.05)
    os.kill(child, 9)
    pytest.fail("its child is still at work")


@needs_compiler
def test_a_compiler_of_another_width_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    other = 12 - struct.calcsize("P")  # 4 of 8 and 8 of 4
    path = tmp_path / "network.c"
    path.write_text(f"#undef __SIZEOF_POINTER__\n#define __SIZEOF_POINTER__ {other}\n{SAME_WIDTH}{CODE}")
    with pytest.raises(hrt.BackendError, match="does not make code of"):
        compiler().build(path, tmp_path / "out.so")
