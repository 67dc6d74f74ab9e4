"""NAME_self_test: 0 for a file as it was written, 4 where a number was altered, and codes for bad workspaces."""

import ctypes
import re

import pytest

from hrt.export.c.source import Source, generate

from compiled import aligned, build, chain

OK, NULL, MISALIGNED, DIFFERS = 0, 1, 2, 4


@pytest.fixture(scope="module")
def source() -> Source:
    return generate(chain(5, 20, 2), "net", tested=True)


def checked(library: ctypes.CDLL, shift: int = 0) -> int:
    """What the self-test returns for a workspace at `shift`, full of NaN, of exactly the size that is asked for."""
    library.net_workspace.restype = ctypes.c_size_t
    work = aligned(library.net_workspace() + shift)
    return library.net_self_test(ctypes.c_void_p(work.ctypes.data + shift))


@pytest.fixture(scope="module")
def library(source, tmp_path_factory) -> ctypes.CDLL:
    return build(source, tmp_path_factory.mktemp("whole"))


def test_a_whole_file_passes(library) -> None:
    assert checked(library) == OK


def test_bad_workspaces_have_codes(library) -> None:
    assert library.net_self_test(None) == NULL
    assert checked(library, shift=8) == MISALIGNED


def test_an_altered_number_is_seen(source, tmp_path) -> None:
    altered = re.sub(r"(hrt_all_bf16\[\].*\n(?:/\*.*\n)?)(\d+)", lambda m: f"{m[1]}{int(m[2]) ^ 0x200}", source.c)
    assert altered != source.c
    assert checked(build(Source(altered, source.h, 0, (), source.promise), tmp_path)) == DIFFERS
