"""Arrays in files: every format is read and written, names are not lost, and a mistake says what was found."""

from pathlib import Path

import numpy as np
import pytest

from hrt.calibration.input_files import check_outputs, distinct, parse_box, read_array, read_table, write_arrays
from hrt.errors import InputError


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv"])
@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_every_format_is_read_back(suffix, dtype, tmp_path):
    x = (np.random.default_rng(0).standard_normal((5, 3)) * 100).astype(dtype)
    write_arrays(tmp_path / f"x{suffix}", [x], ["u"])
    read = read_array(tmp_path / f"x{suffix}")
    assert read.dtype.kind == "f" and np.array_equal(read.astype(dtype), x)


@pytest.mark.parametrize(
    "text, columns",
    [
        ("1,2\n3,4e0\n", ()),
        ("x,t\n1,2\n3,4\n", ("x", "t")),
        ('\ufeff"x [m]"; ,t\r\n1,2\r\n3,4\r\n', ("x [m]; ", "t")),
        ('# made by hand\n\nx, "t, s"\n1,2\n# rest\n"3","4"\n', ("x", "t, s")),
        ("# x,t\n1,2\n3,4\n", ()),
    ],
)
def test_a_line_of_names_is_not_a_row(text, columns, tmp_path):
    (tmp_path / "x.csv").write_text(text, encoding="utf-8")
    table = read_table(tmp_path / "x.csv")
    assert table.columns == columns and np.array_equal(table.numbers, [[1, 2], [3, 4]])


def test_numbers_that_are_none_are_no_names(tmp_path):
    (tmp_path / "x.csv").write_text("nan,inf\n1,2\n")
    assert read_table(tmp_path / "x.csv").columns == () and read_array(tmp_path / "x.csv").shape == (2, 2)


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
        ("text.csv", "'t' beside numbers in line 1"),
        ("index.csv", "'' beside numbers in line 1"),
        ("names.csv", "3 names of columns above 2 columns"),
        ("below.csv", "cannot be read as numbers"),
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
    Path("text.csv").write_text("1,t\n1,2\n")
    Path("index.csv").write_text(",0,1\n0,1,2\n")
    Path("names.csv").write_text("x,t,u\n1,2\n")
    Path("below.csv").write_text("x,t\n1,2\na,b\n")
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


@pytest.mark.parametrize("separator", [",", ";", "\t", "; "])
@pytest.mark.parametrize("names", [("a", "b"), ()])
def test_semicolons_and_tabs_separate_too(separator, names, tmp_path):
    path = tmp_path / "x.csv"
    lines = [separator.join(names)] if names else []
    path.write_text("\n".join([*lines, separator.join(("1.5", "2")), separator.join(("-3", "4e1"))]))
    table = read_table(path)
    assert table.columns == names and table.numbers.tolist() == [[1.5, 2], [-3, 40]]


def test_decimal_commas_are_named(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("1,5;2,5\n")
    with pytest.raises(InputError, match=r"found '5;2' beside numbers.*Commas and ';' stand in it: are commas decimal"):
        read_table(path)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv"])
def test_whole_numbers_that_float32_leaves_out_are_refused(suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    for largest, refused in ((2**24, False), (2**24 + 1, True), (-(2**24) - 1, True)):
        x = np.array([[largest, 2, 3, 4]])
        if suffix == ".csv":
            np.savetxt(path, x, fmt="%d", delimiter=",", header="e,n,f,a", comments="")
        else:
            (np.save if suffix == ".npy" else np.savez)(path, x)
        if refused:
            with pytest.raises(InputError, match=r"whole number in .*16,777,217\. Expected at most 16,777,216"):
                read_table(path)
        else:
            assert np.array_equal(read_array(path), x)


@pytest.mark.parametrize("text", ["16777217.0,2\n", "16777217,.5\n", "1,2\n16777217,1E0 # rest\n"])
def test_a_file_of_floats_may_hold_any(text, tmp_path):
    (tmp_path / "x.csv").write_text(text)
    assert read_array(tmp_path / "x.csv").max() == 2**24 + 1
