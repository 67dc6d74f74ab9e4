"""Arrays and boxes that a command line names: .npy, .npz and .csv, read and written. Every mistake is an InputError."""

import csv
import io
import math
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from hrt.calibration.samples import Box
from hrt.errors import HrtError, InputError, reason, shown
from hrt.program.names import unique_name
from hrt.support.arrays import checked_whole
from hrt.support.atomic_files import replacing, usable

ARRAY_SUFFIXES = (".npy", ".npz", ".csv")
FRACTION_MARKS = ".eEnN"  # one of them is in every number that is not written as a whole one: 1.0, 1e3, nan, inf


@dataclass(frozen=True, eq=False)
class Table:
    """Numbers (rows, ...), and the names of the columns where the file has any."""

    numbers: np.ndarray
    columns: tuple[str, ...] = ()


def read_array(path: Path) -> np.ndarray:
    """The numbers of `read_table`."""
    return read_table(path).numbers


def read_table(path: Path) -> Table:
    """Numbers from .npy, .npz (its only array) or .csv (one row a sample, below names or not), (rows, ...)."""
    columns, is_whole = (), False
    if path.suffix not in ARRAY_SUFFIXES:
        raise InputError(f"{path}: found the suffix {path.suffix!r}. Expected one of {', '.join(ARRAY_SUFFIXES)}.")
    if not usable(path).is_file():
        raise InputError(f"{path} does not exist.")
    try:
        if path.suffix == ".csv":
            columns, data, is_whole = _read_csv(path)
        else:
            data = np.load(path, allow_pickle=False)
        if isinstance(data, np.lib.npyio.NpzFile):
            with data:
                if len(data.files) != 1:
                    raise InputError(f"{path} holds {len(data.files)} arrays. Expected one; pass one file per input.")
                data = data[data.files[0]]
    except HrtError:
        raise
    except Exception as error:  # readers of damaged files raise nearly anything
        raise InputError(f"{path} cannot be read as numbers: {reason(error)}.") from error
    if data.ndim < 2 or data.dtype.kind not in "fiu":
        raise InputError(f"{path}: found {data.dtype} of shape {data.shape}. Expected numbers, one row a sample.")
    if is_whole or data.dtype.kind in "iu":
        checked_whole(data, f"number in {path}")
    return Table(data if data.dtype.kind == "f" else data.astype(np.float64), columns)


def _read_csv(path: Path) -> tuple[tuple[str, ...], np.ndarray, bool]:
    """The names in the first line, where no field of it is a number, the numbers below, and whether all are written as
    whole ones. # begins a comment. Commas separate, or semicolons or tabs where the first line has no comma.
    """
    names, skip, separator = (), 0, ","
    with open(path, newline="", encoding="utf-8-sig") as file:  # as spreadsheets write it
        for k, line in enumerate(file):
            if line.strip() and not line.startswith("#"):
                separator = "," if "," in line else next((s for s in ";\t" if s in line), ",")
                fields = next(csv.reader([line], delimiter=separator, skipinitialspace=separator != "\t"))
                numbers = [_is_number(text) for text in fields]
                if any(numbers) and not all(numbers):
                    others = [s for s in ";\t" if s in line and separator == ","]
                    raise InputError(
                        f"{path}: found {shown(fields[numbers.index(False)])} beside numbers in line {k + 1}. Expected "
                        "numbers in every column, under a line of names or none."
                        + (f" Commas and {shown(others[0])} stand in it: are commas decimal points?" if others else "")
                    )
                names, skip = ((), k) if any(numbers) else (tuple(fields), k + 1)
                break
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # no rows: said where they are used
        data = np.loadtxt(
            path, delimiter=separator, dtype=np.float64, ndmin=2, skiprows=skip, quotechar='"', encoding="utf-8-sig"
        )
    if names and len(data) and data.shape[1] != len(names):
        raise InputError(
            f"{path}: found {len(names)} names of columns above {data.shape[1]} columns. Expected as many."
        )
    with open(path, encoding="utf-8-sig") as file:
        texts = (line.partition("#")[0] for line in islice(file, skip, None))
        return names, data, not any(mark in text for text in texts for mark in FRACTION_MARKS)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def check_outputs(path: Path, count: int = 1) -> None:
    """Raise InputError unless `count` outputs can be written to a file of this name."""
    expected = ARRAY_SUFFIXES if count == 1 else ARRAY_SUFFIXES[1:]
    if path.suffix not in expected:
        raise InputError(f"Cannot write {count} output(s) to {path.name}. Expected one of {', '.join(expected)}.")


def write_arrays(path: Path, outputs: Sequence[np.ndarray], names: Sequence[str], force: bool = True) -> None:
    """Write outputs, whole or not at all, as .npy (one), .npz (in order, under distinct `names`) or .csv (`as_csv`)."""
    check_outputs(path, len(outputs))
    with replacing(path, force=force) as file:
        if path.suffix == ".csv":
            file.write(as_csv(outputs).encode())
        elif path.suffix == ".npz":
            with zipfile.ZipFile(file, "w") as archive:  # np.savez takes no array that is called "file"
                for name, y in zip(distinct(names), outputs, strict=True):
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                        np.lib.format.write_array(entry, y, allow_pickle=False)
        else:
            np.save(file, outputs[0])


def distinct(names: Sequence[str]) -> list[str]:
    """Names that an archive can hold: NUL, which would end one, as "_", and a number behind each that came before."""
    unique: list[str] = []
    for name in names:
        unique.append(unique_name(name.replace("\0", "_") or "output", unique))
    return unique


def as_csv(outputs: Sequence[np.ndarray]) -> str:
    """One line a sample, the outputs' columns side by side, with as many digits as float32 has."""
    text = io.StringIO()
    columns = [y.reshape(len(y), math.prod(y.shape[1:])) for y in outputs]
    np.savetxt(text, np.concatenate(columns, axis=1), fmt="%.9g", delimiter=",")
    return text.getvalue()


def parse_box(text: str) -> Box:
    """`low,low : high,high` as a Box."""
    low, _, high = text.partition(":")
    try:
        return Box([float(v) for v in low.split(",")], [float(v) for v in high.split(",")])
    except HrtError as error:
        raise InputError(f"Found box {shown(text)}. {error}") from error
    except ValueError as error:
        raise InputError(
            f"Found box {shown(text)}. Expected 'low,low : high,high' with one number per feature."
        ) from error
