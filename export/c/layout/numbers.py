"""The numbers of a generated file: one array per storage type, equal tables once, as text of C.

`Numbers.add` gives the offset of a table in the array of its type; C finds it at `N->KIND + offset`, where N is the
`hrt_numbers` of `kernels/native/products.h`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import isfinite, isnan
from typing import Any

import numpy as np
import torch
from torch import Tensor

ALIGNMENT = 16  # numbers: every table begins and ends at a multiple, so that tables are the same for all vectors
WIDTH = 118  # characters of a line of numbers
KINDS = ("i8", "f16", "bf16", "f32", "f64", "reals", "ints", "index")
STORED = {torch.int8: "i8", torch.float16: "f16", torch.bfloat16: "bf16", torch.float32: "f32", torch.float64: "f64"}
C_TYPES = {
    "i8": "int8_t", "f16": "uint16_t", "bf16": "uint16_t", "f32": "float", "f64": "double", "reals": "real",
    "ints": "int32_t", "index": "hrt_index",
}  # fmt: skip


def up16(count: int) -> int:
    """The next multiple of 16."""
    return -(-count // ALIGNMENT) * ALIGNMENT


FACTOR = 6364136223846793005  # odd: a change of one word changes the digest
CHUNK = 1 << 16
OF_CONSTANTS = ("#define HRT_NUMBERS(workspace) (&hrt_all_numbers)", "#define HRT_READY(workspace) 1")


def literal(value: float, *, suffix: str = "f") -> str:
    """A number exactly, as C reads it: short where it is short, else in hexadecimal; infinities and NaN by name."""
    with np.errstate(over="ignore"):
        number = float(np.float32(value)) if suffix else float(value)
    if not isfinite(number):
        return "HRT_NAN" if isnan(number) else "HRT_INFINITY" if number > 0 else "-HRT_INFINITY"
    text = repr(number) if number == int(number) and abs(number) < 1e6 else number.hex()
    return text + suffix


@dataclass
class Numbers:
    """The arrays of a file as they grow. double: the file computes in float64."""

    double: bool = False
    arrays: dict[str, list[np.ndarray]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    notes: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    sizes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    places: dict[tuple[str, bytes], int] = field(default_factory=dict)

    def kind_of(self, numbers: Tensor) -> str:
        """The array that stored numbers go to: float64 only where the file computes in it."""
        kind = STORED.get(numbers.dtype, "f32")
        return "f32" if kind == "f64" and not self.double else kind

    def add(self, kind: str, table: Any, note: str = "") -> int:
        """The offset of a table, padded with zeros; of one that is there already where equal. note: a comment."""
        flat = self._encoded(kind, table)
        padded = np.zeros(max(ALIGNMENT, up16(flat.size)), flat.dtype)
        padded[: flat.size] = flat
        key = (kind, padded.tobytes())
        if key not in self.places:
            self.places[key] = self.sizes[kind]
            self.arrays[kind].append(padded)
            self.notes[kind].append(note)
            self.sizes[kind] += padded.size
        return self.places[key]

    def _encoded(self, kind: str, table: Any) -> np.ndarray:
        if isinstance(table, Tensor):
            table = table.detach().cpu().contiguous().reshape(-1)
            if kind in ("f16", "bf16") and table.dtype in (torch.float16, torch.bfloat16):
                return table.view(torch.int16).numpy().view(np.uint16)
            table = table.to(torch.float64).numpy() if table.is_floating_point() else table.numpy()
        flat = np.asarray(table).reshape(-1)
        wide = {"f32": np.float32, "f64": np.float64, "reals": np.float64 if self.double else np.float32}
        narrow = {"i8": np.int8, "f16": np.uint16, "bf16": np.uint16, "ints": np.int32, "index": np.uint32}
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite
            return flat.astype((wide | narrow)[kind])

    @property
    def index_type(self) -> str:
        """The C type of indices: 16 bits where they suffice."""
        largest = max((int(a.max()) for a in self.arrays["index"]), default=0)
        return "uint16_t" if largest < 1 << 16 else "uint32_t"

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(a.nbytes for arrays in self.arrays.values() for a in arrays)

    def text(self) -> str:
        """The arrays as C, each with its notes, and what finds them."""
        lines = []
        for kind in KINDS:
            if self.arrays[kind]:
                lines.append(f"static const {C_TYPES[kind]} hrt_all_{kind}[] HRT_ALIGNED = {{")
                for note, table in zip(self.notes[kind], self.arrays[kind], strict=True):
                    lines += [f"/* {note} */"] * bool(note) + [wrapped(self._texts(kind, table)) + ","]
                lines.append("};")
        pointers = ", ".join(f"hrt_all_{kind}" if self.arrays[kind] else "0" for kind in KINDS)
        lines += [f"static const hrt_numbers hrt_all_numbers = {{{pointers}}};", "#define HRT_HEADER 0"]
        return "\n".join([*lines, *OF_CONSTANTS])

    def data(self) -> bytes:
        """The arrays one behind the other, little-endian, each at a multiple of 64 bytes."""
        return b"".join(self.raw(kind) for kind in KINDS)

    def raw(self, kind: str) -> bytes:
        """An array as `data` has it."""
        tables = self.arrays[kind]
        if kind == "index":
            tables = [t.astype(self.index_type.removesuffix("_t")) for t in tables]
        raw = b"".join(t.astype(t.dtype.newbyteorder("<")).tobytes() for t in tables)
        return raw + b"\0" * (-len(raw) % 64)

    def _texts(self, kind: str, table: np.ndarray) -> Iterable[str]:
        if table.dtype.kind != "f":
            return map(str, table.tolist())
        return (literal(v, suffix="" if table.dtype == np.float64 else "f") for v in table.tolist())


def wrapped(items: Iterable[str]) -> str:
    """Items separated by commas, in lines."""
    lines, line = [], ""
    for item in items:
        if line and len(line) + len(item) + 2 > WIDTH:
            lines.append(line)
            line = ""
        line += (", " if line else "") + item
    return ",\n".join([*lines, line])


def digest(data: bytes) -> int:
    """Of words of 64 bits w: the sum of w[k] FACTOR^(count - 1 - k), modulo 2^64."""
    words = np.frombuffer(data, "<u8").astype(np.uint64)
    powers = np.ones(CHUNK, np.uint64)
    powers[1:] = FACTOR
    powers = np.multiply.accumulate(powers)
    total = 0
    for start in range(0, words.size, CHUNK):
        part = words[start : start + CHUNK]
        added = int(np.add.reduce(part * powers[: part.size][::-1], dtype=np.uint64))
        total = (total * int(powers[part.size - 1]) * FACTOR + added) % (1 << 64)
    return total


def file_text(numbers: Numbers, name: str) -> str:
    """What finds the arrays in a file: a part of the object file (NAME_INCBIN), or memory given to NAME_initialise."""
    lines, pointers, at = [f"/* The numbers lie in {name}.bin. */"], [], 0
    for kind in KINDS:
        pointers.append(f"(const {C_TYPES[kind]} *)(const void *)(base + {at})" if numbers.arrays[kind] else "0")
        at += len(numbers.raw(kind))
    upper, data = name.upper(), numbers.data()
    array = f"{name}_numbers"
    lines += [
        "#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__",
        f'#error "{name}.bin is little-endian, and this processor is not"',
        "#endif",
        f"#ifdef {upper}_INCBIN /* its path, in quotes: assemblers for ELF make it part of the object file */",
        f'__asm__(".section .rodata\\n.balign 64\\n{array}:\\n.incbin \\"" {upper}_INCBIN "\\"\\n.previous\\n");',
        f'extern const unsigned char {array}[] __attribute__((visibility("hidden")));',
        f"static const hrt_numbers hrt_all_numbers = {{{', '.join(pointers).replace('base', array)}}};",
        "#define HRT_HEADER 0",
        *OF_CONSTANTS,
        "#else",
        "typedef struct { hrt_numbers numbers; uint64_t ready; } hrt_header;",
        "#define HRT_HEADER 128 /* bytes at the beginning of a workspace */",
        "#define HRT_NUMBERS(workspace) (&((const hrt_header *)(workspace))->numbers)",
        f"#define HRT_READY(workspace) (((const hrt_header *)(workspace))->ready == UINT64_C({digest(data)}))",
        f"int {name}_initialise(void *workspace, const void *numbers, size_t bytes) {{",
        "    const unsigned char *const base = (const unsigned char *)numbers;",
        "    hrt_header *const header = (hrt_header *)workspace;",
        "    uint64_t digest = 0;",
        "    if (!workspace || !numbers) return HRT_NULL;",
        "    if ((uintptr_t)workspace % 64 || (uintptr_t)numbers % 64) return HRT_MISALIGNED;",
        f"    if (bytes != {len(data)}) return HRT_WITHOUT_NUMBERS;",
        "    for (size_t k = 0; k < bytes; k += 8) {",
        "        uint64_t word;",
        "        memcpy(&word, base + k, 8);",
        f"        digest = digest * UINT64_C({FACTOR}) + word;",
        "    }",
        f"    if (digest != UINT64_C({digest(data)})) return HRT_WITHOUT_NUMBERS;",
        f"    const hrt_numbers all = {{{', '.join(pointers)}}};",
        "    header->numbers = all;",
        "    header->ready = digest;",
        "    return HRT_OK;",
        "}",
        "#endif",
    ]
    return "\n".join(lines)
