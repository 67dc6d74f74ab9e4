"""One `.hrt` file: a safetensors file with a JSON header. No pickle.

The metadata is `sha256`, the digest of the whole file with its own 64 digits taken as zeros, and `hrt`, the format and
its version. There are two tensors of bytes: `numbers`, and `header`, JSON deflated by zlib: program, certificate,
target, how every constant is kept, and `tensors`, the table of what stands in `numbers`, written as safetensors writes
its own. (Version 1 had the header as metadata and the tensors as tensors, in five times the bytes.)

A header of at most MOST characters that takes more than LONG bytes so, and fewer in columns (hrt.model.columns, LZMA),
is written in those: version 4, whose `tensors` is a list of name, type and shape in the order of their places.

A plain constant NAME is the tensor `NAME/value`. An H-matrix is `NAME/<storage>` (one flat buffer per storage type, the
leaves in order, each its dense block or u then vt, row-major), `NAME/scales` (bfloat16, of the int8 leaves in order),
`NAME/leaves` (int table: row, rows, col, cols, rank; -1 is dense), `NAME/codes` (uint8 storage type per leaf) and,
where there are any, `NAME/rows` and `NAME/cols` (orderings). Schedules are not stored: they follow from the leaf
tables. Generated constants are not stored either: the program holds their recipes. A file with recipes, or
inputs by name or of whole numbers, has version 3.
"""

import hashlib
import json
import lzma
import math
import os
import stat
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BufferedReader
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor

from hrt.certificate.certificate import Certificate
from hrt.errors import ArtifactError
from hrt.hmatrix.hmatrix import LEAF_FIELDS
from hrt.model.columns import as_json, columns, parsed, plain, restored, rows
from hrt.model.contents import Contents
from hrt.model.packing import Spec, check_leaves, pack, unpack
from hrt.program.check_program import check_program
from hrt.program.program import Extent, Program
from hrt.support.atomic_files import check_writable, replacing, usable
from hrt.support.devices import on_the_cpu

FORMAT_VERSION = 4  # the newest; a file is written in the oldest that can say what it holds
DEFLATED = 2  # the first version whose header is
EXTENDED = 3  # the first version whose program may say more than BASIC: recipes, and how inputs are given
BASIC = {"inputs", "nodes", "outputs"}
COLUMNS = 4  # the version whose header is in columns
MOST = 1 << 22  # characters of JSON that are written in columns
VALUES = 1 << 20  # in a header, beside two for every byte of the file: in memory one takes up to a hundred bytes
LONG = 1 << 12  # bytes of a deflated header beyond which older readers are given up for a shorter one
LZMA: list[dict[str, Any]] = [
    {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 20, "pb": 0}
]
NUMBERS, HEADER = "numbers", "header"  # the tensors of such a file, in this order
MAX_TEXT = 1 << 24  # bytes of an inflated header, beside an eighth of the file: parsed it may take thirty times that
MAX_HEADER = 1 << 24  # bytes of JSON as they stand; parsed it may take thirty times as much
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
INTEGERS = {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}
DTYPES = {**FLOATS, **INTEGERS, "BOOL": torch.bool}
DTYPE_NAME = {dtype: name for name, dtype in DTYPES.items()}
# Every file begins with its length in 8 bytes, then OPENING, then the digest: both stand at fixed places.
OPENING = b'{"__metadata__":{"sha256":"'
DIGEST = slice(8 + len(OPENING), 8 + len(OPENING) + 64)
NOT_STORABLE = (TypeError, ValueError, KeyError, RuntimeError)  # raised by what the format does not know
BLOCK = 1 << 20  # bytes read at a time for the checksum


class Entry(msgspec.Struct, frozen=True):
    """A tensor of the file: its type, its shape, and where among the numbers it begins and ends."""

    dtype: str
    shape: tuple[Extent, ...]
    data_offsets: tuple[int, int]


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The JSON header. `constants` has no Spec for a plain tensor."""

    format: str
    version: int
    program: dict[str, Any]
    constants: dict[str, Spec | None]
    certificate: dict[str, Any]
    target: Literal["cpu", "cuda", "bytes"]
    dense_nbytes: Extent


def write(contents: Contents, path: str | PathLike[str], *, force: bool = True) -> None:
    """Write `contents` to `path`, or raise ArtifactError and leave the folder as it was. The same contents give the
    same bytes, as far as zlib does; json, not msgspec, writes them: it spells floats otherwise.
    """
    check_writable(path, force, ArtifactError)
    try:
        head, parts = _encoded(contents)
    except NOT_STORABLE as error:
        raise ArtifactError(f"{path} was not written, the model cannot be stored: {error}.") from error
    digest = hashlib.sha256(head)
    for content in parts:
        digest.update(content)
    head[DIGEST] = digest.hexdigest().encode()
    with replacing(path, force=force, failure=ArtifactError) as file:
        for content in (head, *parts):
            file.write(content)


def file_nbytes(contents: Contents) -> int:
    """The bytes of the file that `write` makes. Raises ArtifactError where it can make none."""
    try:
        head, parts = _encoded(contents)
    except NOT_STORABLE as error:
        raise ArtifactError(f"The model cannot be stored: {error}.") from error
    return len(head) + sum(map(len, parts))


def _encoded(contents: Contents) -> tuple[bytearray, list[Any]]:
    """What stands before the numbers, with zeros for the digest, and all that follows."""
    with on_the_cpu():
        check_program(contents.program)
        tensors, constants = pack(contents.program.stored_constants)
    header = {
        "program": contents.program.to_header(),
        "constants": msgspec.to_builtins(constants),
        "certificate": contents.certificate.to_header(),
        "target": contents.target,
        "dense_nbytes": contents.dense_nbytes,
    }
    end = sum(t.numel() * t.element_size() for t in tensors.values())
    version = DEFLATED if header["program"].keys() <= BASIC else EXTENDED
    content = _text(header, tensors, version)
    text = zlib.compress(content, 9)
    if len(text) > LONG and len(content) <= MOST:
        in_columns = _text(header, tensors, COLUMNS)
        shorter = lzma.compress(in_columns, lzma.FORMAT_RAW, filters=LZMA)
        is_small = len(content) <= VALUES // 4
        if len(shorter) < len(text) and (is_small or _is_read(in_columns, COLUMNS, end + len(shorter))):
            version, text = COLUMNS, shorter
    if version < COLUMNS and len(content) > VALUES // 4:
        _of_text(content, version, end + len(text))
    return _head(version, end, len(text)), [*map(_bytes, tensors.values()), text]


def read_header(path: str | PathLike[str]) -> dict[str, Any]:
    """The verified JSON header of a `.hrt` file: size, tensor table and checksum agree. Raises ArtifactError."""
    with _opened(path) as file:
        return _verified(path, file)[0]


def read(path: str | PathLike[str]) -> Contents:
    """The verified contents of a `.hrt` file. Raises ArtifactError before anything is allocated for what a bad file
    claims. MemoryError and ImportError are not the file's fault, and pass.
    """
    with _opened(path) as file, on_the_cpu():
        raw, table = _verified(path, file)
        try:
            header = msgspec.convert(raw, Header)
            check_leaves(math.prod(e.shape) // LEAF_FIELDS for name, e in table.items() if name.endswith("/leaves"))
            tensors = {name: _read(file, entry) for name, entry in table.items()}
            constants = {name: unpack(name, spec, tensors) for name, spec in header.constants.items()}
            program = Program.from_header(header.program, constants)
            check_program(program)
            certificate = Certificate.from_header(header.certificate)
        except MemoryError as error:
            raise _too_large(path, error) from error
        except (ImportError, OSError):
            raise
        except Exception as error:  # whatever else the content leads to, the content is at fault
            if isinstance(error, RuntimeError) and "allocate memory" in str(error):  # torch has no type for it
                raise _too_large(path, error) from error
            raise _bad(path, f"its content is malformed ({type(error).__name__}: {error})") from error
    return Contents(program, certificate, header.target, header.dense_nbytes)


def _too_large(path: str | PathLike[str], error: Exception) -> MemoryError:
    return MemoryError(f"{path} needs more memory than there is: {error}")


def _bad(path: str | PathLike[str], problem: str) -> ArtifactError:
    return ArtifactError(f"{path} is not a usable .hrt file: {problem}. Write it again with save() or `hrt compress`.")


@contextmanager
def _opened(path: str | PathLike[str]) -> Iterator[BufferedReader]:
    usable(path, ArtifactError)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise _bad(path, f"it is a {'folder' if Path(path).is_dir() else 'pipe or device'}")
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}.") from error


def _verified(path: str | PathLike[str], file: BufferedReader) -> tuple[dict[str, Any], dict[str, Entry]]:
    """The header and the tensors in the order of their numbers, where `file` then stands."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > MAX_HEADER or 8 + length > size:
        raise _bad(path, f"found {size} bytes, its header claims {length}; it is truncated or another format")
    head = bytearray(length.to_bytes(8, "little") + file.read(length))
    if not head[8:].startswith(OPENING):
        raise _bad(path, "it has no hrt header")
    digest = bytes(head[DIGEST])
    head[DIGEST] = b"0" * 64
    checksum = hashlib.sha256(head)
    while block := file.read(BLOCK):
        checksum.update(block)
    if checksum.hexdigest().encode() != digest:
        raise _bad(path, "its checksum is wrong: it was altered, truncated, or has bytes appended")
    try:
        table = json.loads(head[8:])
        header = json.loads(table.pop("__metadata__")["hrt"], object_hook=restored)
        is_hrt, version = header["format"] == "hrt", header["version"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _bad(path, "its header is damaged") from error
    if not is_hrt or type(version) is not int or version < 1:
        raise _bad(path, "it has no hrt header")
    if version > FORMAT_VERSION:
        raise ArtifactError(f"{path} has format version {version}; this hrt reads up to {FORMAT_VERSION}. Upgrade hrt.")
    try:
        entries, end = _layout(msgspec.convert(table, dict[str, Entry]))
    except (ValueError, KeyError, msgspec.ValidationError) as error:
        raise _bad(path, f"its tensor table is malformed ({error})") from error
    if size != 8 + length + end:
        raise _bad(path, f"found {size} bytes, expected {8 + length + end}; it is truncated or has bytes appended")
    file.seek(8 + length)
    if version < DEFLATED:
        return header, entries
    try:
        inflated, tensors = _inflated(file, entries, version)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, zlib.error, lzma.LZMAError) as error:
        raise _bad(path, f"its header is malformed ({error})") from error
    return {**inflated, **header}, tensors


def _layout(table: Mapping[str, Entry]) -> tuple[dict[str, Entry], int]:
    """The tensors in the order of their places, which must follow each other without gaps, and where the last ends."""
    ordered, end = dict(sorted(table.items(), key=lambda item: item[1].data_offsets)), 0
    for name, entry in ordered.items():
        start, end = end, end + math.prod(entry.shape) * DTYPES[entry.dtype].itemsize
        if entry.data_offsets != (start, end):
            raise ValueError(f"{name} stands at {list(entry.data_offsets)}, expected {[start, end]}")
    return ordered, end


def _text(header: Mapping[str, Any], tensors: Mapping[str, Tensor], version: int) -> bytes:
    """The header as JSON, with the places of `tensors` among the numbers."""
    table: dict[str, Any] = {}
    end = 0
    for name, t in tensors.items():
        name.encode()  # a name that is no valid text is an error here, not in other readers
        start, end = end, end + t.numel() * t.element_size()
        table[name] = {"dtype": DTYPE_NAME[t.dtype], "shape": list(t.shape), "data_offsets": [start, end]}
    content = plain({**header, "tensors": table})
    text = as_json(content).encode()
    if len(text) > MAX_TEXT + end // 8:
        raise ValueError(f"its header takes {len(text)} bytes, the format allows {MAX_TEXT} and an eighth of its size")
    if version < COLUMNS:
        return text
    content["tensors"] = [[name, entry["dtype"], entry["shape"]] for name, entry in table.items()]
    return as_json(columns(content)).encode()


def _head(version: int, numbers: int, header: int) -> bytearray:
    """Everything before the numbers, with zeros for the digest. They begin at a multiple of their size."""
    end = numbers + header
    table = {
        "__metadata__": {"sha256": "0" * 64, "hrt": as_json({"format": "hrt", "version": version})},
        NUMBERS: {"dtype": "U8", "shape": [numbers], "data_offsets": [0, numbers]},
        HEADER: {"dtype": "U8", "shape": [header], "data_offsets": [numbers, end]},
    }
    text = as_json(table).encode()
    text += b" " * (-len(text) % 8)
    return bytearray(len(text).to_bytes(8, "little") + text)


def _inflated(
    file: BufferedReader, entries: Mapping[str, Entry], version: int
) -> tuple[dict[str, Any], dict[str, Entry]]:
    """The header and the tensors of a file from version 2 on; `file` stands where its numbers begin, and stays there.
    Raises ValueError, KeyError or TypeError.
    """
    if list(entries) != [NUMBERS, HEADER]:
        raise ValueError(f"it has the tensors {list(entries)}, expected {[NUMBERS, HEADER]}")
    begin, (numbers, end) = file.tell(), entries[HEADER].data_offsets
    file.seek(begin + numbers)
    inflate = zlib.decompressobj() if version < COLUMNS else lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=LZMA)
    text = inflate.decompress(file.read(end - numbers), MAX_TEXT + end // 8)
    if not inflate.eof or inflate.unused_data:
        raise ValueError(f"more than {len(text)} bytes of JSON, or none")
    header = _of_text(text, version, end)
    if version >= COLUMNS:
        header["tensors"] = _placed(msgspec.convert(header["tensors"], list[tuple[str, str, tuple[Extent, ...]]]))
    tensors, last = _layout(msgspec.convert(header.pop("tensors"), dict[str, Entry]))
    if last != numbers:
        raise ValueError(f"its tensors take {last} bytes, it holds {numbers}")
    file.seek(begin)
    return header, tensors


def _of_text(text: bytes, version: int, nbytes: int) -> Any:
    """What the text of a header says in a file of `nbytes` bytes. Raises ValueError where it holds more than it may."""
    most = VALUES + 2 * nbytes
    header = parsed(text, most)
    return rows(header, 2 * most) if version >= COLUMNS else header


def _is_read(text: bytes, version: int, nbytes: int) -> bool:
    with suppress(ValueError):
        _of_text(text, version, nbytes)
        return True
    return False


def _placed(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> dict[str, dict[str, Any]]:
    """The table of tensors that follow each other. Raises ValueError or KeyError."""
    table: dict[str, dict[str, Any]] = {}
    end = 0
    for name, dtype, shape in tensors:
        if name in table:
            raise ValueError(f"there are two tensors {name}")
        start, end = end, end + math.prod(shape) * DTYPES[dtype].itemsize
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": (start, end)}
    return table


def _bytes(t: Tensor) -> Any:
    """The memory of a contiguous tensor, as a buffer of bytes."""
    return t.reshape(-1).view(torch.uint8).numpy()


def _read(file: BufferedReader, entry: Entry) -> Tensor:
    t = torch.empty(entry.shape, dtype=DTYPES[entry.dtype], device="cpu")
    file.readinto(_bytes(t))
    return t
