"""Checks of machine code on listings written by hand: what they find, on every path, and what they must not."""

import pytest

from hrt.kernels.machine_code import parse_listing, registers
from hrt.kernels.orderings import copy_faults, register_hazards, workspace_faults

PARAMETERS = "/*0154*/ .word index@(.nv.constant0.kernel)\n/*0158*/ .short 0x0210\n"
PRODUCT = "HGMMA.64x16x16.F32.BF16 R24, R44, gdesc[UR20], R24, gsb0"


def listed(text: str):
    """The code of instructions parted by lines or semicolons; "name:" is a label."""
    lines = [part.strip() for part in text.replace(";", "\n").splitlines() if part.strip()]
    rows = [p if p.endswith(":") else f"        /*{16 * k:04x}*/    {p} ;" for k, p in enumerate(lines)]
    return parse_listing(PARAMETERS + "\n".join(rows))


def several(letter: str, first: int, count: int) -> set[str]:
    return {f"{letter}{first + k}" for k in range(count)}


@pytest.mark.parametrize(
    ("opcode", "operands", "writes", "reads"),
    [
        ("IADD3", "R2, P0, R4.reuse, -R5, RZ", {"R2"}, {"R4", "R5"}),
        ("LDG.E.128", "R20, desc[UR10][R40.64+-0x1000]", several("R", 20, 4), {"UR10", "R40"}),
        ("LDS.U16", "R33, [R14+UR10+0x200]", {"R33"}, {"R14", "UR10"}),
        ("LDSM.16.M88.4", "R100, [R75+UR8]", several("R", 100, 4), {"R75", "UR8"}),
        ("LDSM.16.M88.2", "R100, [R75]", several("R", 100, 2), {"R75"}),
        ("STG.E.64", "desc[UR10][R2.64], R6", set(), {"UR10", "R2", "R6", "R7"}),
        ("STSM.16.M88.4", "[R20], R12", set(), {"R20"} | several("R", 12, 4)),
        ("LDGSTS.E.BYPASS.128", "[R4+0x8000], desc[UR14][R16.64], !P0", set(), {"R4", "UR14", "R16"}),
        ("ISETP.LT.AND", "P0, PT, R2, R3, PT", set(), {"R2", "R3"}),
        ("R2P", "PR, R156, 0x3", set(), {"R156"}),
        ("SHFL.BFLY", "PT, R100, R55, 0x8, 0x1f", {"R100"}, {"R55"}),
        ("CS2R", "R10, SRZ", {"R10", "R11"}, set()),
        ("CS2R.32", "R10, SR_CLOCKLO", {"R10"}, set()),
        ("IMAD.WIDE.U32", "R10, R13, UR9, RZ", {"R10", "R11"}, {"R13", "UR9"}),
        ("SHF.R.S64", "R3, R4, 0x1e, R5", {"R3"}, {"R4", "R5"}),
        ("F2F.F32.F64", "R100, R102", {"R100"}, {"R102"}),
        ("I2F.F64.S64", "R28, R30", {"R28", "R29"}, {"R30"}),
        ("DMUL", "R100, R98, UR20", {"R100", "R101"}, {"R98", "UR20"}),
        ("ULDC.64", "UR6, c[0x0][0x210]", {"UR6", "UR7"}, set()),
        ("HMMA.16816.F32.BF16", "R12, R12, R4, R8", several("R", 12, 4), {"R12", "R4", "R8"}),
        ("HGMMA.64x64x16.F32.BF16", "R24, gdesc[UR8], R24", several("R", 24, 32), {"UR8", "R24"}),
        (
            "HGMMA.64x16x8.F32.TF32",
            "R24, R44, gdesc[UR8], RZ, !UPT",
            several("R", 24, 8),
            several("R", 44, 4) | {"UR8"},
        ),
        ("BAR.SYNC.DEFER_BLOCKING", "0x0", set(), set()),
    ],
)
def test_registers_of_an_instruction(opcode, operands, writes, reads):
    """As nvdisasm's life ranges have them: 290,000 instructions of all variants were compared with those once."""
    assert registers(opcode, operands) == (writes, reads)


def loop_of_products(wait: str, writes: str = "R45", branch: str = "") -> str:
    return f"""
        .L_x_0:
        LDS.U16 {writes}, [R2] ; PRMT R44, R3, 0x5410, R4
        {PRODUCT}
        {wait} ; {branch}
        ISETP.LT.AND P0, PT, R2, R3, PT ; @P0 BRA `(.L_x_0)
        WARPGROUP.DEPBAR.LE gsb0, 0x0 ; FADD R5, R24, R25 ; EXIT"""


def test_an_operand_that_is_written_in_flight():
    waits = {n: register_hazards(listed(loop_of_products(f"WARPGROUP.DEPBAR.LE gsb0, {n:#x}"))) for n in (0, 1, 3)}
    assert waits[0] == []
    assert len(waits[1]) == len(waits[3]) == 2  # the load and the conversion of the next turn
    assert waits[1][0].startswith("0x0010: LDS.U16 R45, [R2] writes R45 of 0x0030: HGMMA.64x16x16")
    assert waits[1][0].endswith("in flight")
    elsewhere = loop_of_products("WARPGROUP.DEPBAR.LE gsb0, 0x1", "R48").replace("R44, R3", "R49, R3")
    assert register_hazards(listed(elsewhere)) == []


def test_one_path_of_two_is_enough():
    """A wait that a branch jumps over; guards count as both."""
    skipped = loop_of_products("@P1 BRA `(.L_x_1) ; WARPGROUP.DEPBAR.LE gsb0, 0x0 ; .L_x_1:")
    assert register_hazards(listed(skipped))
    conditional = loop_of_products("BRA P1, `(.L_x_1) ; WARPGROUP.DEPBAR.LE gsb0, 0x0 ; .L_x_1:")
    assert register_hazards(listed(conditional))
    never_left = loop_of_products("BRA `(.L_x_1) ; .L_x_1: ; WARPGROUP.DEPBAR.LE gsb0, 0x0")
    assert register_hazards(listed(never_left)) == []


def test_a_call_returns():
    trap = (
        "CALL.REL.NOINC `($__internal_0_$__cuda_trap) ; {} ; EXIT ; $__internal_0_$__cuda_trap: ; BPT.TRAP 0x1 ; RET R2"
    )
    assert len(register_hazards(listed(f"{PRODUCT} ; {trap.format('MOV R44, RZ')}"))) == 1
    assert register_hazards(listed(f"{PRODUCT} ; {trap.format('MOV R48, RZ')}")) == []
    assert len(register_hazards(listed(f"{PRODUCT} ; {trap.replace('BPT.TRAP 0x1', 'MOV R44, RZ')}"))) == 1


def test_sums_that_are_touched_in_flight():
    early = f"{PRODUCT} ; FADD R5, R31, RZ ; WARPGROUP.DEPBAR.LE gsb0, 0x0 ; FADD R6, R24, RZ ; EXIT"
    (line,) = register_hazards(listed(early))
    assert line.startswith("0x0010: FADD R5, R31, RZ touches R31 of")
    chained = f"{PRODUCT} ; {PRODUCT} ; WARPGROUP.DEPBAR.LE gsb0, 0x0 ; FADD R5, R24, RZ ; EXIT"
    assert register_hazards(listed(chained)) == []
    endless = f".L_x_0: ; {PRODUCT} ; @P0 BRA `(.L_x_0) ; MOV R44, RZ ; EXIT"
    assert len(register_hazards(listed(endless))) == 1


WAVES = """
    ULDC.64 UR6, c[0x0][0x210] ; IMAD.WIDE R10, R3, 0x2, c[0x0][0x218]
    .L_x_0:
    ISETP.LT.AND P0, PT, R4, R5, PT
    .L_x_1:
    IMAD.WIDE R2, R9, 0x2, UR6
    LDG.E.CONSTANT R12, desc[UR4][R10.64]
    LDG.E.128 R20, desc[UR4][R2.64]
    STG.E.U16 desc[UR4][R2.64], R20
    @P0 BRA `(.L_x_1)
    {barrier}
    @P1 BRA `(.L_x_0)
    EXIT"""


def test_a_barrier_between_waves():
    """Tiles of a wave need none between them; a guarded one does not count."""
    assert workspace_faults(listed(WAVES.format(barrier="BAR.SYNC.DEFER_BLOCKING 0x0")), in_waves=True) == []
    for missing in ("NOP", "@P2 BAR.SYNC.DEFER_BLOCKING 0x0", "@P2 BRA `(.L_x_0) ; BAR.SYNC.DEFER_BLOCKING 0x0"):
        code = listed(WAVES.format(barrier=missing))
        (line,) = workspace_faults(code, in_waves=True)
        assert "LDG.E.128 R20" in line and "a path has no barrier in between" in line
        assert workspace_faults(code, in_waves=False) == []
    peeled = WAVES.format(barrier="BAR.SYNC.DEFER_BLOCKING 0x0").replace(
        ".L_x_0:", "STG.E desc[UR4][R2.64], R5 ; .L_x_0:"
    )
    assert workspace_faults(listed(peeled), in_waves=True) == [], "another pointer's"
    derived = peeled.replace("c[0x0][0x218]", "c[0x0][0x218] ; IMAD.WIDE R2, R3, 0x2, UR6")
    assert len(workspace_faults(listed(derived), in_waves=True)) == 1, "the first wave outside the loop"
    assert workspace_faults(listed("EXIT"), in_waves=True) == [
        "no loop over waves that loads and stores the workspace was found"
    ]


@pytest.mark.parametrize(
    ("setup", "faults"),
    [
        ("LDC.64 R2, c[0x0][0x210]", 1),
        ("LDC.64 R2, c[0x0][0x218]", 0),
        ("MOV R2, c[0x0][0x210]", 1),
        ("ULDC.64 UR6, c[0x0][0x210] ; IADD3 R2, P0, R8, UR6, RZ", 1),
        ("LDCU.128 UR4, c[0x0][0x210] ; IADD3 R2, P0, R8, UR4, RZ", 1),
        ("LDCU.128 UR4, c[0x0][0x210] ; IADD3 R2, P0, R8, UR6, RZ", 0),
        ("LDC.64 R2, c[0x0][0x210] ; LDG.E R2, desc[UR4][R2.64]", 0),
        ("LDC.64 R2, c[0x0][0x210] ; MOV R2, R9", 0),
        ("LDC.64 R2, c[0x0][0x210] ; @P0 MOV R2, R9", 1),
    ],
)
def test_read_only_loads_of_the_workspace(setup, faults):
    """Whatever way the first parameter takes to an address."""
    code = listed(f"{setup} ; LDG.E.CONSTANT R5, desc[UR4][R2.64+0x10] ; EXIT")
    assert len(workspace_faults(code, in_waves=False)) == faults


PIPELINE = """
    LDGSTS.E [R1], desc[UR4][R2.64] ; LDGDEPBAR ; LDGSTS.E [R1], desc[UR4][R4.64] ; LDGDEPBAR
    LDGSTS.E [R1], desc[UR4][R2.64] ; LDGDEPBAR ; LDGSTS.E [R1], desc[UR4][R4.64] ; LDGDEPBAR
    @P1 BRA `(.L_x_1)
    .L_x_0:
    DEPBAR.LE SB0, {left} ; {barrier} ; @!PT LDS RZ, [RZ] ; LDS R8, [R1]
    LDGSTS.E [R1], desc[UR4][R2.64], !P0 ; LDGDEPBAR ; LDGSTS.E [R1], desc[UR4][R4.64] ; {commit}
    @P0 BRA `(.L_x_0)
    .L_x_1:
    DEPBAR.LE SB0, 0x0 ; BAR.SYNC.DEFER_BLOCKING 0x0 ; LDS R8, [R1]
    @P2 BRA `(.L_x_2) ; EXIT ; .L_x_2:
    BRA `(.L_x_2)"""
SOUND = {"left": "0x2", "barrier": "BAR.SYNC.DEFER_BLOCKING 0x0", "commit": "LDGDEPBAR"}


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({}, ""),
        ({"left": "0x1"}, ""),
        ({"left": "0x3"}, "leaves 3 groups of copies in flight, 2 are of later turns"),
        ({"barrier": "NOP ; DEPBAR.LE SB1, 0x36 ; BAR.SYNC 0x0"}, ""),  # another scoreboard's
        ({"barrier": "NOP"}, "without a barrier in between"),
        ({"barrier": "@P3 BAR.SYNC.DEFER_BLOCKING 0x0"}, "without a barrier in between"),
        ({"barrier": "NOP ; DEPBAR.LE SB0, 0x0 ; DEPBAR.LE SB0, 0x0"}, "2 groups of copies and 3 waits"),
        ({"commit": "NOP", "left": "0x3"}, ""),  # one group a turn, and four were copied ahead
        ({"commit": "NOP", "left": "0x4"}, "leaves 4 groups of copies in flight, 3 are of later turns"),
    ],
)
def test_copies_are_waited_for(change, fault):
    lines = copy_faults(listed(PIPELINE.format(**(SOUND | change))))
    assert bool(lines) == bool(fault) and fault in "".join(lines)
    none = PIPELINE.replace("DEPBAR.LE SB0, {left}", "NOP").format(**SOUND)
    assert "0 waits" in copy_faults(listed(none))[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("BRX R2 -0x10", "Expected jumps to labels only"),
        ("CALL.REL.NOINC `($trap)", "Expected a label of this listing"),
        ("BRA `(.L_x_9)", "Expected a label of this listing"),
        ("", "Found no instruction"),
    ],
)
def test_what_cannot_be_followed_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        listed(text)
    with pytest.raises(ValueError, match="EIATTR_PARAM_CBANK"):
        parse_listing("/*0000*/ EXIT ;")
