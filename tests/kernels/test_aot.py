"""The step kernel compiled for a GPU that is not here. In processes of their own: this one interprets kernels."""

import json
import os
import subprocess
import sys

import pytest

ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env={**ENVIRONMENT, **environment}, timeout=300
    )


def gate(change: str, *arguments: str) -> subprocess.CompletedProcess:
    """The command with a part of its module changed."""
    code = f"from hrt.kernels import aot; import sys; {change}; sys.exit(aot.main(['--arch', 'sm_90', *sys.argv[1:]]))"
    return python("-c", code, *arguments)


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


def test_the_interpreter_is_told_apart():
    done = python("-m", "hrt.kernels.aot", TRITON_INTERPRET="1")
    assert done.returncode == 2 and "Unset it" in done.stderr
