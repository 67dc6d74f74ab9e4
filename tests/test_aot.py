"""The step kernel compiled for a GPU that is not here. In processes of their own: this one interprets kernels."""

import json
import os
import subprocess
import sys

ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env={**ENVIRONMENT, **environment}, timeout=300
    )


def test_every_variant_passes_the_gate(tmp_path):
    done = python("-m", "hrt.kernels.aot", "--arch", "sm_90", "--json", str(tmp_path / "aot.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "aot.json").read_text())["rows"]
    forms = {row["kernel"].split()[0] for row in rows}
    assert forms == {"batch", "swapped", "row"} and len(rows) >= 15
    for row in rows:
        assert row["spill_bytes"] == 0 and 0 < row["registers"] <= 255 and row["faults"] == []
        if row["kernel"].startswith(("batch 128", "batch 64", "swapped")):
            assert row["tensor_core_op"] == "HGMMA" and row["pipelined"], row
        if row["kernel"].endswith("fp32<-fp32 ieee"):
            assert row["tensor_core_op"] == "", "float32 as IEEE says has no tensor core"


def gate(change: str) -> subprocess.CompletedProcess:
    code = f"from hrt.kernels import aot; import sys; {change}; sys.exit(aot.main(['--arch', 'sm_90']))"
    return python("-c", code)


def test_the_gate_fails_what_it_should():
    batch = "aot.Variant('batch', '*bf16', ('*bf16',), {}, {}, 64, warps={})"
    shared = gate(f"aot.VARIANTS = ({batch.format(128, 128, 8)},); aot.SHARED_LIMIT['sm_90'] = 50_000")
    assert shared.returncode == 1 and "bytes of shared memory, 50000 at most" in shared.stdout
    small = gate(f"aot._wgmma_expected = lambda v: True; aot.VARIANTS = ({batch.format(32, 32, 4)},)")
    assert small.returncode == 1 and "HMMA where wgmma (HGMMA) was expected" in small.stdout
    spilled = gate("aot.VARIANTS = (aot.Variant('batch', '*fp32', ('*fp32',), 256, 128, 32, 'ieee', warps=4),)")
    assert spilled.returncode == 1 and "local memory" in spilled.stdout


def test_the_interpreter_is_told_apart():
    done = python("-m", "hrt.kernels.aot", TRITON_INTERPRET="1")
    assert done.returncode == 2 and "Unset it" in done.stderr
