"""Names that C, C++, Fortran or the C library know already are refused; so are files that cannot be included."""

from pathlib import Path

import pytest

import hrt
from hrt.export.c.names import LONGEST_IN_FORTRAN, checked_name, checked_stem


@pytest.mark.parametrize("name", ["net", "Burgers_2d", "a" * 60, "derivatives", "sine", "xy"])
def test_names_of_ones_own_stay(name: str) -> None:
    assert checked_name(name) == name


@pytest.mark.parametrize("name", ["2d", "a-b", "größe", "", "_net", "int", "class", "HRT_x", "hrt", "a" * 61])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(hrt.InputError, match="Pass name="):
        checked_name(name)


def test_a_name_is_a_string() -> None:
    with pytest.raises(hrt.InputError, match="Expected a string"):
        checked_name(3)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", ["log", "read", "index", "exp"])
def test_a_network_takes_no_library_functions_place(name: str) -> None:
    with pytest.raises(hrt.InputError, match="no function of the C library"):
        checked_name(name)


@pytest.mark.parametrize("name", ["NULL", "size_t", "uint8_t", "uintptr_t", "SIZE_MAX", "INT64_C", "UINT_FAST16_MAX"])
def test_what_the_included_headers_define_is_refused(name: str) -> None:
    with pytest.raises(hrt.InputError, match="Pass name="):
        checked_name(name)


@pytest.mark.parametrize("name", ["i", "I", "X", "y12", "Rows", "workspace", "a" * (LONGEST_IN_FORTRAN + 1)])
def test_fortran_has_more_to_say(name: str) -> None:
    assert checked_name(name) == name
    with pytest.raises(hrt.InputError, match="Pass name="):
        checked_name(name, fortran=True)


def test_the_longest_name_in_fortran_has_63_characters() -> None:
    assert len(checked_name("a" * LONGEST_IN_FORTRAN, fortran=True) + "_derivatives") == 63


@pytest.mark.parametrize("file", ["net.h", "net.f90", 'a"b.c', "a\nb.c", "a\\b.c"])
def test_files_that_cannot_be_included_are_refused(file: str) -> None:
    with pytest.raises(hrt.InputError, match="Expected"):
        checked_stem(Path(file))
