"""Whether machine code keeps the order that the kernels rely on, on every path through it.

Registers: none that a WGMMA in flight still reads as its first operand is written, and none of its sums is touched,
before the wait that covers it (Triton 3.6 to 3.8 let operands that were converted in registers be overwritten). The
workspace: no load of it may be served from a read-only cache, and in a launch of many waves a barrier stands between
the stores of a wave and the loads of the next. Asynchronous copies: the wait at the top of a pipelined loop leaves only
those in flight that later turns read (turns read what is copied in its order, as Triton's pipeliner lays it out), and a
barrier stands between it and the first read.
"""

import re

from hrt.kernels.machine_code import Code, Instruction

CONSTANT = re.compile(r"c\[0x0\]\[(0x[0-9a-f]+)\]")
ADDRESS = re.compile(r"\[([^][]*)\](?![^[]*\[)")
REGISTER = re.compile(r"\bU?R\d+\b")
LOADS, STORES = ("LDG", "LDGSTS"), ("STG",)
SHARED_READS = ("LDS", "HGMMA", "UTCHMMA", "UTCQMMA")
MOST_COPIES = 64  # groups of copies that are counted
MOST_GROUPS = 8  # of WGMMA in flight that are told apart; older ones count as one


def register_hazards(code: Code) -> list[str]:
    """One line for every instruction that may meet a WGMMA in flight in a register."""
    listed = code.instructions
    faults: dict[tuple[int, int], str] = {}

    def step(groups: tuple[frozenset[int], ...], place: int) -> tuple[frozenset[int], ...]:
        """groups: places of WGMMA in flight, oldest first, the last one not yet committed."""
        i = listed[place]
        is_product = i.opcode.startswith("HGMMA")
        if i.opcode.startswith("WARPGROUP.DEPBAR"):
            left = int(i.operands.split(",")[1], 0)
            return groups[-1 - left :]
        for other in frozenset().union(*groups):
            product = listed[other]
            operand = (product.reads - product.writes) & i.writes
            result = frozenset() if is_product else product.writes & (i.reads | i.writes)
            if touched := {r for r in operand | result if r.startswith("R")}:  # descriptors are taken at once
                faults.setdefault(
                    (other, place),
                    f"{i} {'writes' if operand else 'touches'} {', '.join(sorted(touched))} of {product} in flight",
                )
        if not is_product:
            return groups
        groups = (*groups[:-1], groups[-1] | {place})
        if "gsb0" not in i.operands:
            return groups
        if len(groups) > MOST_GROUPS:
            groups = (groups[0] | groups[1], *groups[2:])
        return (*groups, frozenset())

    code.walk((frozenset[int](),), step)
    return list(faults.values())


def workspace_faults(code: Code, *, in_waves: bool) -> list[str]:
    """One line for every load of the workspace that may see old numbers. in_waves: several waves in one launch."""
    uses = workspace_uses(code)
    loads = [code.instructions[k] for k in sorted(uses)]
    cached = [f"{i} reads the workspace through a read-only cache" for i in loads if ".CONSTANT" in i.opcode]
    return cached + (_wave_faults(code, uses) if in_waves else [])


def _wave_faults(code: Code, uses: set[int]) -> list[str]:
    """Loads that a path reaches from a store of an earlier wave without a barrier. The loop over waves is the outermost
    one with stores to the workspace; its edges in and out part waves.
    """
    kinds = {k: code.instructions[k].opcode.split(".")[0] for k in uses}
    loops = [(len(b), header, b) for header, b in code.loops().items() if any(kinds.get(k) in STORES for k in b)]
    _, header, waves = max(loops, default=(0, 0, frozenset[int]()))
    if not any(kinds.get(k) in LOADS for k in waves):
        return ["no loop over waves that loads and stores the workspace was found"]
    faults: dict[int, str] = {}

    def step(state: tuple[bool, bool], place: int) -> tuple[bool, bool]:
        """state: whether there was a store since the last barrier, and whether its wave is over."""
        stored, over = state
        i = code.instructions[place]
        over = stored and (over or place == header or place not in waves)
        if over and kinds.get(place) in LOADS:
            faults.setdefault(place, f"{i} may read what an earlier wave stores: a path has no barrier in between")
        if i.opcode.startswith("BAR.SYNC") and not i.guard:
            return False, False
        return (True, over) if kinds.get(place) in STORES else (stored, over)

    code.walk((False, False), step)
    return list(faults.values())


def copy_faults(code: Code) -> list[str]:
    """One line for every wait that lets a turn of a pipelined loop read what may not have arrived."""
    listed, turns = code.instructions, dict[int, int]()
    loops = code.loops().values()
    faults: dict[int, str] = {}
    for body in loops:
        commits = sum(listed[k].opcode == "LDGDEPBAR" for k in body)
        if commits and not any(other < body for other in loops):
            waits = [k for k in body if _waits_for_copies(listed[k])]
            if not waits or commits % len(waits):
                faults[min(body)] = f"{commits} groups of copies and {len(waits)} waits in the loop at {min(body)}"
            else:
                turns |= dict.fromkeys(waits, commits // len(waits))

    peeled = max(turns.values(), default=0)  # a wait outside the loops that is not for everything: a turn taken out

    def step(state: tuple[int, int, bool], place: int) -> tuple[int, int, bool]:
        """state: groups that no turn has read yet, how many may be in flight, and whether a wait wants a barrier."""
        ahead, flying, open_wait = state
        i = listed[place]
        if i.opcode == "LDGDEPBAR":
            return min(ahead + 1, MOST_COPIES), min(flying + 1, MOST_COPIES), open_wait
        if _waits_for_copies(i):
            left = int(i.operands.split(",")[1], 0)
            flying = min(flying, left)
            ahead = ahead - turns.get(place, peeled) if left or place in turns else 0
            if flying > ahead:
                faults.setdefault(place, f"{i} leaves {flying} groups of copies in flight, {ahead} are of later turns")
            return max(ahead, flying), flying, True
        if i.opcode.startswith("BAR.SYNC") and not i.guard:
            return ahead, flying, False
        if open_wait and i.opcode.startswith(SHARED_READS) and i.guard != "@!PT":
            faults.setdefault(place, f"{i} reads shared memory after a wait for copies, without a barrier in between")
        return state

    code.walk((0, 0, False), step)
    return list(faults.values())


def _waits_for_copies(i: Instruction) -> bool:
    return i.opcode.startswith("DEPBAR") and i.operands.startswith("SB0")


def workspace_uses(code: Code) -> set[int]:
    """Places of loads and stores whose address comes from the kernel's first parameter."""
    before: list[frozenset[str] | None] = [None] * len(code.instructions)
    before[0] = frozenset()
    waiting, uses = [0], set[int]()
    while waiting:
        place = waiting.pop()
        i, derived = code.instructions[place], before[place] or frozenset[str]()
        kind = i.opcode.split(".")[0]
        address = ADDRESS.search(i.operands) if kind in LOADS + STORES else None
        if address and not derived.isdisjoint(REGISTER.findall(address[1])):
            uses.add(place)
        if kind in ("LDC", "ULDC", "LDCU"):
            pointer = _pointer_registers(i, code.parameters)
        elif kind.startswith("LD"):
            pointer = frozenset[str]()
        else:
            constant = any(0 <= int(c, 16) - code.parameters < 8 for c in CONSTANT.findall(i.operands))
            pointer = i.writes if constant or i.reads & derived else frozenset[str]()
        after = (derived if i.guard else derived - i.writes) | pointer
        for k in code.successors[place]:
            held = before[k]
            joined = after if held is None else held | after
            if joined != held:
                before[k] = joined
                waiting.append(k)
    return uses


def _pointer_registers(i: Instruction, parameters: int) -> frozenset[str]:
    """Of the registers that a load of constants writes, those of the first parameter, 8 bytes."""
    constant = CONSTANT.search(i.operands)
    if constant is None or not i.writes:
        return frozenset()
    offset = int(constant[1], 16) - parameters
    first = min(int(r.lstrip("UR")) for r in i.writes)
    return frozenset(r for r in i.writes if 0 <= offset + 4 * (int(r.lstrip("UR")) - first) < 8)
