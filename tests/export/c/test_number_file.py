"""Numbers that are a file of their own: given at initialisation, checked, or part of the object file."""

import ctypes

import numpy as np
import pytest
import torch

from hrt.export.c.exporter import generate
from hrt.export.c.layout.numbers import FACTOR, Numbers, digest

from compiled import aligned, build, call
from models import allowed, any_hmatrix, linear_program

PROGRAM = linear_program(any_hmatrix(1, 70, 50, ordered=True))
OK, NULL, MISALIGNED, NUMBERS = 0, 1, 2, 5


def assert_near(y: np.ndarray, x: torch.Tensor) -> None:
    weight = PROGRAM.constants["w"]
    assert (abs(torch.from_numpy(y) - x.double() @ weight.to_dense().T) <= allowed(x, weight)).all()


@pytest.fixture(scope="module")
def source():
    return generate(PROGRAM, "net", in_text=-1)


@pytest.fixture(scope="module")
def library(source, tmp_path_factory):
    return build(source, tmp_path_factory.mktemp("file"), "-O1")


def test_a_workspace_is_ready_once_it_has_the_numbers(source, library) -> None:
    library.net_workspace.restype = ctypes.c_size_t
    work, data = aligned(library.net_workspace()), aligned(len(source.numbers) + 64)
    data[: len(source.numbers)] = np.frombuffer(source.numbers, np.uint8)
    x, y = np.ones((1, 50), np.float32), np.empty((1, 70), np.float32)

    def initialise(at: int, size: int) -> int:
        return library.net_initialise(ctypes.c_void_p(work.ctypes.data), ctypes.c_void_p(at), ctypes.c_size_t(size))

    def run() -> int:
        pointers = [ctypes.c_void_p(v.ctypes.data) for v in (x, y)]
        return library.net(*pointers, ctypes.c_size_t(1), ctypes.c_void_p(work.ctypes.data))

    where, size = data.ctypes.data, len(source.numbers)
    assert run() == NUMBERS
    assert (initialise(0, size), initialise(where + 4, size), initialise(where, size - 8)) == (
        NULL,
        MISALIGNED,
        NUMBERS,
    )
    data[size // 2] ^= 1
    assert (initialise(where, size), run()) == (NUMBERS, NUMBERS)
    data[size // 2] ^= 1
    assert (initialise(where, size), run()) == (OK, OK)
    assert_near(y, torch.from_numpy(x))


def test_numbers_may_be_part_of_the_object_file(source, tmp_path) -> None:
    (tmp_path / "net.bin").write_bytes(source.numbers)
    library = build(source, tmp_path, "-O1", f'-DNET_INCBIN="{tmp_path / "net.bin"}"')
    x = torch.randn(12, 50)
    (y,) = call(library, "net", PROGRAM, [x])
    assert_near(y, x)


@pytest.mark.parametrize("count", [1, 1 << 16, (1 << 16) + 1, 200_001])
def test_the_digest_is_horners_rule(count: int) -> None:
    words = np.random.default_rng(count).integers(0, 1 << 64, count, np.uint64)
    expected = 0
    for word in words.tolist():
        expected = (expected * FACTOR + word) % (1 << 64)
    assert digest(words.tobytes()) == expected


def test_equal_tables_are_stored_once() -> None:
    numbers = Numbers()
    first = numbers.add("f32", torch.arange(20.0))
    assert numbers.add("f32", torch.arange(20.0)) == first != numbers.add("f32", torch.arange(21.0))
    assert numbers.sizes["f32"] == 64
