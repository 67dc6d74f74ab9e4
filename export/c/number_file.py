"""Numbers of a generated file that are a file of their own: large networks compile at once, and map into memory."""

import numpy as np

from hrt.export.c.numbers import C_TYPES, KINDS, OF_CONSTANTS, Numbers

FACTOR = 6364136223846793005  # odd: a change of one word changes the digest
CHUNK = 1 << 16


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
