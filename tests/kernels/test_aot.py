"""The step kernel compiled for a GPU that is not here. In processes of their own: this one interprets kernels."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton

from hrt.kernels import network_kernel

ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env={**ENVIRONMENT, **environment}, timeout=300
    )


def gate(change: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """The command with a part of its module changed."""
    code = f"from hrt.kernels import aot\nimport sys\n{change}\nsys.exit(aot.main(['--arch', 'sm_90', *sys.argv[1:]]))"
    return python("-c", code, *arguments, **environment)


def seeded(variant: str, change: str = "", **environment: str) -> str:
    """What the gate says of one variant with a fault in it; "" where it passes."""
    done = gate(f"import re\n{change}\naot.variants = lambda arch: [{variant}]", **environment)
    assert done.returncode == ("1 failed" in done.stdout) and "1 variants compiled" in done.stdout, done.stderr
    return done.stdout if done.returncode else ""


@pytest.mark.parametrize("every", [40, pytest.param(1, marks=pytest.mark.slow)])
def test_variants_pass_the_gate(every, tmp_path):
    file = tmp_path / "made" / "aot.json"
    done = gate(f"whole = aot.variants; aot.variants = lambda arch: whole(arch)[::{every}]", "--json", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(file.read_text())["rows"]
    forms = {row["kernel"].split()[0] for row in rows}
    if every == 1:
        assert forms == {"batch", "swapped", "row", "network", "finish"} and len(rows) >= 35
        assert {row["kernel"].split()[0] for row in rows if "streams" in row["kernel"]} == forms - {"row"}
    for row in rows:
        assert 0 < row["registers"] <= 255 and row["faults"] == []
        # libdevice reduces huge arguments of a sine in local memory, off the usual path
        assert (row["spill_bytes"] > 0) == row["kernel"].endswith(" sin")
        form, shape, precision = row["kernel"].removeprefix("network ").split(" ")[:3]
        if form in ("batch", "swapped") and not precision.startswith("ieee"):
            block, height, _ = map(int, shape.split("x"))
            wide = (height if form == "swapped" else block) >= 64  # what wgmma takes; fewer rows are for mma
            assert row["pipelined"] and row["tensor_core_op"] in (("HGMMA",) if wide else ("HMMA", "HGMMA")), row
        if " ieee<-" in row["kernel"]:
            assert row["tensor_core_op"] == "", "float32 as IEEE says has no tensor core"


@pytest.mark.slow
def test_the_gate_fails_what_it_should():
    batch = "aot.Variant(aot.Config('batch', {}, {}), 'bf16', ('bfloat16',), {}, 64)"
    shared = gate(f"aot.variants = lambda arch: [{batch.format(128, 8, 128)}]; aot.SHARED['sm_90'] = 50_000")
    assert shared.returncode == 1 and "bytes of shared memory, 50000 at most" in shared.stdout
    small = gate(f"aot.Variant.wants_wgmma = True; aot.variants = lambda arch: [{batch.format(32, 4, 32)}]")
    assert small.returncode == 1 and "HMMA where wgmma (HGMMA) was expected" in small.stdout
    large = "aot.Variant(aot.Config('batch', 256), 'ieee', ('float32',), 128, 32)"
    spilled = gate(f"aot.variants = lambda arch: [{large}]")
    assert spilled.returncode == 1 and "local memory" in spilled.stdout


PACKED = "aot.Variant(aot.Config('swapped', 16, 4, 4), 'bf16', ('int8',), 64, 64)"
PLAIN = "aot.Variant(aot.Config('batch', 64), 'bf16', ('bfloat16',), 64, 64)"
LISTED = "parse = aot.parse_listing\naot.parse_listing = lambda text: parse(re.sub(r'{}', '{}', text))"


@pytest.mark.slow
def test_operands_that_are_overwritten_in_flight_are_found():
    """int8 as the first operand: Triton before 3.9 waits too late by itself; elsewhere its waits are undone."""
    raced = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9)
    assert ("of 0x" in seeded(PACKED)) == raced
    undone = seeded(PACKED, LISTED.format("WARPGROUP.DEPBAR.LE gsb0, 0x[0-9a-f]", "WARPGROUP.DEPBAR.LE gsb0, 0x7"))
    assert "HGMMA.64x16x16.F32.BF16" in undone and "in flight" in undone
    assert "touches" in seeded(PLAIN, LISTED.format("WARPGROUP.DEPBAR.LE gsb0, 0x0", "NOP"))


@pytest.mark.slow
def test_a_wave_that_does_not_wait_for_the_last_one_is_found(tmp_path):
    """The network kernel without its barrier; and loads of the workspace that a read-only cache may serve."""
    source = Path(network_kernel.__file__).read_text("utf-8")
    assert source.count("tl.debug_barrier()") == 1
    (tmp_path / "no_barrier.py").write_text(source.replace("tl.debug_barrier()", "pass"), "utf-8")
    network = "aot.Variant(aot.Config('{}', {}), 'bf16', ('bfloat16',), 64, 64, 'network')"
    change = (
        f"sys.path.insert(0, {str(tmp_path)!r})\nimport no_barrier\naot.KERNELS['network'] = no_barrier.network_kernel"
    )
    for form in (("row", 1), ("swapped", 16)):
        assert "a path has no barrier in between" in seeded(network.format(*form), change)
    assert "read-only cache" in seeded(network.format("row", 1), LISTED.format(r"LDG\.E\.128 ", "LDG.E.128.CONSTANT "))


@pytest.mark.slow
def test_copies_that_are_not_waited_for_are_found(tmp_path):
    """A wait in the PTX that leaves one group of copies more in flight; and no barrier behind it."""
    change = """
from triton.backends.nvidia.compiler import CUDABackend
assemble = CUDABackend.make_cubin
def loosened(self, ptx, *others):
    edited, count = re.subn(r'(cp.async.wait_group\\s+)2;', r'\\g<1>3;', ptx)
    assert count
    return assemble(self, edited, *others)
CUDABackend.make_cubin = loosened"""
    cache = {"TRITON_CACHE_DIR": str(tmp_path)}  # its own: nobody may be given the kernel with a fault
    assert "leaves 3 groups of copies in flight, 2 are of later turns" in seeded(PLAIN, change, **cache)
    assert "without a barrier" in seeded(PLAIN, LISTED.format("BAR.SYNC.DEFER_BLOCKING 0x0", "NOP"))


def test_the_interpreter_is_told_apart():
    done = python("-m", "hrt.kernels.aot", TRITON_INTERPRET="1")
    assert done.returncode == 2 and "Unset it" in done.stderr
