"""Arrays in files: every format is read and written, names are not lost, and a mistake says what was found."""

from pathlib import Path

import numpy as np
import pytest

from hrt.calibration.input_files import check_outputs, distinct, parse_box, read_array, write_arrays
from hrt.errors import InputError


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv"])
@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_every_format_is_read_back(suffix, dtype, tmp_path):
    x = (np.random.default_rng(0).standard_normal((5, 3)) * 100).astype(dtype)
    write_arrays(tmp_path / f"x{suffix}", [x], ["u"])
    read = read_array(tmp_path / f"x{suffix}")
    assert read.dtype.kind == "f" and np.array_equal(read.astype(dtype), x)


def test_no_name_is_lost(tmp_path):
    names = ["file", "allow_pickle", "a/b", "", "u", "u", "", "u.2", "arr_0", "a\0b"]
    expected = ["file", "allow_pickle", "a/b", "output", "u", "u.2", "output.2", "u.2.2", "arr_0", "a_b"]
    assert distinct(names) == expected
    arrays = [np.full((2, 1), k) for k in range(len(names))]
    write_arrays(tmp_path / "y.npz", arrays, names)
    with np.load(tmp_path / "y.npz") as y:
        assert y.files == expected and [int(y[n][0, 0]) for n in y.files] == list(range(len(names)))


@pytest.mark.parametrize(
    "name, words",
    [
        ("no.npy", "no.npy does not exist"),
        ("flat.npy", "one row a sample"),
        ("words.npy", "Expected numbers"),
        ("cut.npy", "cannot be read as numbers"),
        ("cut.npz", "cannot be read as numbers"),
        ("two.npz", "holds 2 arrays"),
        ("objects.npy", "cannot be read as numbers"),
        ("text.csv", "cannot be read as numbers"),
        ("ragged.csv", "cannot be read as numbers"),
        ("x.txt", "'.txt'"),
        ("a\0b.npy", "NUL character"),
    ],
)
def test_an_array_that_cannot_be_read(name, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("flat.npy", np.ones(4))
    np.save("words.npy", np.array([["a", "b"]]))
    np.save("objects.npy", np.array([[None, 1]]), allow_pickle=True)
    np.savez("two.npz", a=np.ones(2), b=np.ones(2))
    Path("cut.npy").write_bytes(Path("flat.npy").read_bytes()[:-3])
    Path("cut.npz").write_bytes(Path("two.npz").read_bytes()[:-40])
    Path("text.csv").write_text("x,t\n1,2\n")
    Path("ragged.csv").write_text("1,2\n3\n")
    Path("x.txt").write_text("1,2\n")
    with pytest.raises(InputError) as caught:
        read_array(Path(name))
    assert words in str(caught.value)


@pytest.mark.parametrize("name, count", [("y.npy", 2), ("y.txt", 1)])
def test_an_output_that_cannot_be_written_so(name, count):
    with pytest.raises(InputError, match=f"{count} output"):
        check_outputs(Path(name), count)


@pytest.mark.parametrize(
    "text, words",
    [
        ("1", "'1'"),
        ("a,b:c,d", "low,low : high,high"),
        ("1,1:0,0", "low <= high"),
        ("0:1,2", "two equal lists"),
        ("0,0:1,inf", "finite"),
    ],
)
def test_a_box_that_is_none(text, words):
    with pytest.raises(InputError) as caught:
        parse_box(text)
    assert words in str(caught.value)
