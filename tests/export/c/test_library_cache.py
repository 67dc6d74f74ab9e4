"""Libraries in the cache: once compiled, loaded after; torn, tampered, read-only and shared folders; many processes."""

import ctypes
import os
from contextlib import suppress
from pathlib import Path

import pytest

import hrt
from hrt.export.c import library_cache as module
from hrt.export.c import toolchain
from hrt.export.c.library_cache import SOURCE, cache_folder, is_compiled, key_of, library
from hrt.export.c.toolchain import Compiler, TooSlow, compiler, missing_compiler

from forked import forked

pytestmark = pytest.mark.skipif(missing_compiler() is not None, reason="no C compiler here")


def files(answer: int = 42) -> dict[str, bytes]:
    return {
        SOURCE: b'#include "number.h"\nint answer(void) { return NUMBER; }\n',
        "number.h": f"#define NUMBER {answer}\n".encode(),
    }


@pytest.fixture
def quick() -> Compiler:
    made = compiler()
    return Compiler(made.command, made.version, ("-O0", "-shared", "-fPIC"))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HRT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "native"


@pytest.fixture
def builds(monkeypatch) -> list[Path]:
    """What was compiled."""
    done, build = [], Compiler.build
    monkeypatch.setattr(
        Compiler, "build", lambda self, source, *rest: (done.append(source), build(self, source, *rest))
    )
    return done


def test_is_compiled_once_and_then_loaded(quick, builds, folder):
    assert not is_compiled(files(), quick)
    for _ in range(2):
        assert library(files(), quick).answer() == 42
    assert library(files(7), quick).answer() == 7
    assert len(builds) == 2 and is_compiled(files(), quick)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert sorted(p.suffix for p in folder.iterdir()) == [".so", ".so"]  # nothing half-written beside them


def test_keys_tell_sources_flags_compilers_and_cpus_apart(quick, monkeypatch):
    others = [
        key_of(files(), quick),
        key_of(files(1), quick),
        key_of({SOURCE: files()[SOURCE] + files()["number.h"], "number.h": b""}, quick),
        key_of(files(), Compiler(quick.command, "another", quick.flags)),
        key_of(files(), Compiler(quick.command, quick.version, ("-O1",))),
    ]
    name, abilities = module.cpu()
    for cpu in (("another", abilities), (name, "others")):
        monkeypatch.setattr(module, "cpu", lambda cpu=cpu: cpu)
        others.append(key_of(files(), quick))
    assert len({*others}) == 7


class TestWithoutACompiler:
    """What was compiled ahead serves a CPU that can do the same, as long as its bytes and its folder are right."""

    @pytest.fixture(autouse=True)
    def ahead(self, quick, monkeypatch, tmp_path) -> None:
        assert library(files(), quick).answer() == 42
        monkeypatch.delenv("CC", raising=False)
        monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
        monkeypatch.setattr(toolchain, "find_spec", lambda name: None)

    def test_it_is_loaded(self, quick, builds, monkeypatch):
        assert missing_compiler() is not None and module.missing() is None
        abilities = module.cpu()[1]
        monkeypatch.setattr(module, "cpu", lambda: ("a CPU of another name", abilities))
        assert is_compiled(files(), None) and library(files(), None).answer() == 42 and not builds

    def test_no_other_network_is(self):
        with pytest.raises(hrt.BackendError, match=r"There is no C compiler .*compiled ahead for this CPU"):
            library(files(7), None)

    def test_not_on_another_cpu(self, monkeypatch):
        name = module.cpu()[0]
        monkeypatch.setattr(module, "cpu", lambda: (name, "fewer"))
        with pytest.raises(hrt.BackendError, match="compiled ahead for this CPU"):
            library(files(), None)

    def test_not_where_its_bytes_changed(self, folder):
        (path,) = folder.iterdir()
        code = path.read_bytes()
        path.unlink()
        path.write_bytes(code.replace(b"\x2a\0", b"\x2b\0"))
        with pytest.raises(hrt.BackendError, match="compiled ahead"):
            library(files(), None)
        assert not list(folder.iterdir()) and module.missing() is not None

    def test_not_from_a_folder_that_others_may_write_to(self, folder):
        folder.chmod(0o770)
        assert module.missing() is not None
        with pytest.raises(hrt.BackendError, match="compiled ahead"):
            library(files(), None)


@pytest.mark.parametrize(
    "damage", [lambda code: code[:-9], lambda code: b"", lambda code: code.replace(b"\x2a\0", b"\x2b\0")]
)
def test_a_library_whose_bytes_changed_is_never_loaded(damage, quick, builds, folder):
    library(files(), quick)
    (path,) = folder.iterdir()
    before = path.read_bytes()
    path.unlink()  # a new file: the old one is mapped into this process
    path.write_bytes(damage(before))
    assert path.read_bytes() != before
    assert library(files(), quick).answer() == 42 and len(builds) == 2
    (path,) = folder.iterdir()
    assert path.read_bytes() == before


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_folder_that_others_may_write_to_is_not_used(mode, quick, builds, folder):
    folder.mkdir(parents=True)
    folder.chmod(mode)
    assert cache_folder() is None
    assert library(files(), quick).answer() == 42 and not list(folder.iterdir())


def test_neither_a_link_nor_a_file_in_its_place_is(quick, folder, tmp_path):
    folder.parent.mkdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    assert cache_folder() is None
    folder.unlink()
    folder.write_text("")
    assert cache_folder() is None and library(files(), quick).answer() == 42


def test_a_folder_of_another_user_is_not_used(monkeypatch, folder):
    assert cache_folder() == folder
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert cache_folder() is None


def test_a_folder_that_takes_nothing_more(quick, builds, monkeypatch, folder):
    def refuses(path):
        raise hrt.InputError(f"{path} cannot be written: Read-only file system.")

    monkeypatch.setattr(module, "replacing", refuses)
    for _ in range(2):
        assert library(files(), quick).answer() == 42
    assert len(builds) == 2 and not list(folder.iterdir())


def test_a_folder_from_which_nothing_is_executed(quick, builds, monkeypatch, folder):
    load = ctypes.CDLL

    def elsewhere_only(name):
        if str(folder) in name:
            raise OSError("failed to map segment from shared object")
        return load(name)

    monkeypatch.setattr(ctypes, "CDLL", elsewhere_only)
    assert library(files(), quick).answer() == 42


def test_what_cannot_be_loaded_is_one_line(quick, monkeypatch):
    monkeypatch.setattr(Compiler, "build", lambda self, source, target, timeout: target.write_bytes(b"\x7fELF\x01junk"))
    with pytest.raises(hrt.BackendError, match=r"cannot be loaded: .*\. Use another compiler, by CC"):
        library(files(), quick)


def test_a_slow_compilation_is_given_up_once(quick, builds, monkeypatch, folder):
    times = []

    def slow(self, source, target, timeout):
        times.append(timeout)
        raise TooSlow("slow")

    with monkeypatch.context() as patched:
        patched.setattr(Compiler, "build", slow)
        for timeout in (3.0, 3.0, 2.0, 4.0, 4.0):
            with pytest.raises(TooSlow):
                library(files(), quick, timeout)
    assert times == [3.0, 4.0]
    assert library(files(), quick, 60.0).answer() == 42
    assert [p.suffix for p in folder.iterdir()] == [".so"]


def test_several_processes_at_once(quick, folder):
    folder.mkdir(parents=True, mode=0o700)
    children = []
    for _ in range(4):
        child = os.fork()
        if not child:
            status = 1
            with suppress(BaseException):
                status = int(library(files(), quick).answer() != 42)
            os._exit(status)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert all(p.suffix == ".so" for p in folder.iterdir()) and is_compiled(files(), quick)


def test_a_forked_process_calls_what_was_loaded(quick):
    loaded = library(files(), quick)
    assert forked(lambda: str(loaded.answer())) == ("42", 0)


def test_old_libraries_go(quick, monkeypatch, folder):
    monkeypatch.setattr(module, "MOST", 2)
    for k in range(4):
        assert library(files(k), quick).answer() == k
        for path in folder.iterdir():
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 10))
    assert len(list(folder.iterdir())) == 2 and is_compiled(files(3), quick) and not is_compiled(files(0), quick)
