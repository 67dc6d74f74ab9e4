"""What nvdisasm prints as a graph of instructions with the registers they read and write, and walks over all paths."""

import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TypeVar

State = TypeVar("State", bound=Hashable)
LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][A-Za-z0-9_.]*)\s*(.*?)\s*;")
LABEL = re.compile(r"^(\.L_\w+|\$[\w$]+):")
TARGET = re.compile(r"`\((\.L_\w+|\$[\w$]+)\)")
PARAMETERS = re.compile(r"index@\(\.nv\.constant0[^)]*\)\s+/\*[0-9a-f]+\*/\s+\.short\s+0x([0-9a-f]+)")
REGISTER = re.compile(r"\b(U?R)(\d+)\b")
PREDICATE = re.compile(r"^!?U?P(\d+|T|R)$")
WITHOUT_RESULT = (
    "ST",
    "RED",
    "LDGSTS",
    "BAR",
    "BRA",
    "EXIT",
    "R2P",
    "PLOP3",
    "UPLOP3",
    "NOP",
    "DEPBAR",
    "WARP",
    "MEMBAR",
)
CONDITION = re.compile(r"^!?U?P\w+,")
ENDS = ("EXIT", "RET")
UNKNOWN_JUMPS = ("BRX", "JMX", "JMP", "BRXU", "JMXU")


@dataclass(frozen=True)
class Instruction:
    """One line of a listing. guard: "@P0", "@!P0" or "".  reads, writes: registers, as "R4" or "UR4"."""

    address: int
    guard: str
    opcode: str
    operands: str
    reads: frozenset[str] = frozenset()
    writes: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return " ".join(part for part in (f"{self.address:#06x}:", self.guard, self.opcode, self.operands) if part)


@dataclass(frozen=True)
class Code:
    """A kernel's instructions, in order, and the places that may follow each. parameters: where the constant bank holds
    the kernel's parameters.
    """

    instructions: tuple[Instruction, ...]
    successors: tuple[tuple[int, ...], ...]
    parameters: int

    def walk(self, start: State, step: Callable[[State, int], State]) -> None:
        """Call step(state before, place) -> state after once for every state in which a place can be reached."""
        waiting, seen = [(0, start)], set()
        while waiting:
            place, state = waiting.pop()
            if (place, state) not in seen:
                seen.add((place, state))
                after = step(state, place)
                waiting += [(k, after) for k in self.successors[place]]

    def loops(self) -> dict[int, frozenset[int]]:
        """The bodies of the natural loops by their headers."""
        dominators = self._dominators()
        bodies: dict[int, set[int]] = {}
        before: list[list[int]] = [[] for _ in self.instructions]
        for place, following in enumerate(self.successors):
            for k in following:
                before[k].append(place)
        for place, following in enumerate(self.successors):
            for header in following:
                if dominators[place] >> header & 1:
                    body, waiting = bodies.setdefault(header, {header}), [place]
                    while waiting:
                        k = waiting.pop()
                        if k not in body:
                            body.add(k)
                            waiting += before[k]
        return {header: frozenset(body) for header, body in bodies.items()}

    def _dominators(self) -> list[int]:
        """For every place the set (as bits) of those on each path to it; all places where there is no path."""
        everything = (1 << len(self.instructions)) - 1
        above = [everything] * len(self.instructions)
        above[0], waiting = 1, [0]
        while waiting:
            place = waiting.pop()
            for k in self.successors[place]:
                joined = above[k] & (above[place] | 1 << k) | 1 << k
                if k and joined != above[k]:
                    above[k] = joined
                    waiting.append(k)
        return above


def parse_listing(text: str) -> Code:
    """The one kernel in what nvdisasm prints. Raises ValueError for jumps whose targets a listing does not say."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif match := LINE.search(line):
            address, guard, opcode, operands = match.groups()
            writes, reads = registers(opcode, operands)
            instructions.append(Instruction(int(address, 16), guard or "", opcode, operands, reads, writes))
    if not instructions:
        raise ValueError("Found no instruction. Expected the listing of a kernel, as nvdisasm prints it.")
    following = (_following(k, i, labels) for k, i in enumerate(instructions))
    last = len(instructions)
    bank = PARAMETERS.search(text)
    if bank is None:
        raise ValueError("The listing does not say where the kernel's parameters lie. Expected EIATTR_PARAM_CBANK.")
    return Code(tuple(instructions), tuple(tuple(k for k in f if k < last) for f in following), int(bank[1], 16))


def registers(opcode: str, operands: str) -> tuple[frozenset[str], frozenset[str]]:
    """Registers that an instruction writes, and that it reads: "R4" or "UR4". Wide results and stored values are all
    their registers; of wide sources the first is named.
    """
    parts = [part.strip() for part in re.split(r",(?![^\[]*\])", operands)]
    kind = opcode.split(".")[0]
    place = next((k for k, part in enumerate(parts) if not PREDICATE.match(part)), len(parts))
    result = place if place < len(parts) and not kind.startswith(WITHOUT_RESULT) and "SETP" not in kind else None
    if kind == "HGMMA" and (shape := re.match(r"HGMMA\.64x(\d+)x", opcode)):
        wide = {0: int(shape[1]) // (2 if ".F32" in opcode else 4), 1: 4}  # sums, and the first operand's 64 x 32 bytes
    else:
        wide = {} if result is None else {result: _result_width(opcode)}
        wide |= {k: _width(opcode) for k in range(len(parts)) if kind.startswith("ST")}
    writes: set[str] = set()
    reads: set[str] = set()
    for k, part in enumerate(parts):
        for prefix, number in REGISTER.findall(part):
            count = 1 if "[" in part else wide.get(k, 1)
            named = {f"{prefix}{int(number) + j}" for j in range(count)}
            (writes if k == result else reads).update(named)
    return frozenset(writes), frozenset(reads)


def _width(opcode: str) -> int:
    """Registers of the numbers that an instruction moves."""
    fields = opcode.split(".")
    if fields[0] in ("LDSM", "STSM"):
        return int(fields[-1]) if fields[-1].isdecimal() else 1
    return 4 if "128" in fields else 2 if "64" in fields else 1


def _result_width(opcode: str) -> int:
    """Registers of an instruction's result."""
    kind, *fields = opcode.split(".")
    first = next((f for f in fields if re.fullmatch(r"[FSU](16|32|64)", f)), "")
    if kind == "HMMA":
        return 4
    if kind in ("F2F", "I2F", "F2I", "DADD", "DMUL", "DFMA"):
        return 2 if kind[0] == "D" or first.endswith("64") else 1
    if "WIDE" in fields or (kind == "CS2R" and "32" not in fields):
        return 2
    return 1 if kind == "SHF" else _width(opcode)


def _following(place: int, instruction: Instruction, labels: dict[str, int]) -> tuple[int, ...]:
    """Places that may come after an instruction."""
    opcode = instruction.opcode.split(".")[0]
    if opcode in UNKNOWN_JUMPS:
        raise ValueError(f"Found {instruction}. Expected jumps to labels only: other paths cannot be followed.")
    always = instruction.guard == ""
    if opcode in ENDS:
        return () if always else (place + 1,)
    if opcode not in ("BRA", "CALL"):
        return (place + 1,)
    target = TARGET.search(instruction.operands)
    if target is None or target[1] not in labels:
        raise ValueError(f"Found {instruction}. Expected a label of this listing.")
    always = always and opcode == "BRA" and not CONDITION.match(instruction.operands)
    return (labels[target[1]],) if always else (labels[target[1]], place + 1)
