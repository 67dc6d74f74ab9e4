"""`python -m hrt.kernels.aot`: compile every variant of the step kernel for NVIDIA GPUs that are not here, and gate.

A variant fails where it keeps numbers in local memory (spills), needs more shared memory than the architecture gives a
block, lacks the tensor-core instruction of its form, or lost its pipeline: fewer copies in flight than asked for.

    python -m hrt.kernels.aot --json aot.json
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # the default changes in Triton 3.10

# pyright: reportAttributeAccessIssue=false
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hrt.kernels.step import MOST_BUFFERS, _step_kernel

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
ARCHITECTURES = {"sm_80": 80, "sm_90": 90, "sm_100": 100}
SHARED_LIMIT = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024}
TENSOR_CORE = ("HGMMA", "HMMA", "UTCHMMA", "UTCQMMA")
ASYNC_COPY = ("LDGSTS", "UTMALDG")
OPCODE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Za-z0-9_.]+)")


@dataclass(frozen=True)
class Variant:
    """One compiled form. weights: the storage types of the buffers, in Triton's names, as `workspace` is."""

    form: str
    workspace: str
    weights: tuple[str, ...]
    block: int
    rows: int
    columns: int
    precision: str = "ieee"
    warps: int = 4
    stages: int = 3

    @property
    def name(self) -> str:
        """What a table row is called."""
        storage = "+".join(w.removeprefix("*") for w in self.weights)
        return f"{self.form} {self.block}x{self.rows}x{self.columns} {self.workspace[1:]}<-{storage} {self.precision}"

    @property
    def uses_tensor_cores(self) -> bool:
        """Whether its products are meant for tensor cores."""
        return self.form != "row" and not (self.workspace == "*fp32" and self.precision == "ieee")


VARIANTS = (
    *(Variant("batch", t, (t,), 128, 128, 64, warps=8) for t in ("*bf16", "*fp16")),
    *(Variant("batch", t, (t,), 64, 64, 64) for t in ("*bf16", "*fp16")),
    *(Variant("swapped", t, (t,), b, 128, 64, warps=4, stages=4) for t in ("*bf16", "*fp16") for b in (16, 32)),
    Variant("batch", "*fp32", ("*fp32",), 128, 128, 32, "tf32", warps=8),
    Variant("batch", "*fp32", ("*fp32",), 64, 64, 32, "tf32x3"),
    Variant("swapped", "*fp32", ("*fp32",), 16, 128, 32, "tf32"),
    Variant("batch", "*fp32", ("*fp32", "*fp16", "*bf16"), 64, 64, 32, "tf32"),
    Variant("batch", "*fp32", ("*fp32",), 32, 32, 32, "ieee"),
    *(Variant("row", t, (t,), 1, 64, 64) for t in ("*fp32", "*fp16", "*bf16")),
    Variant("row", "*fp32", ("*fp32", "*fp16", "*bf16"), 1, 64, 64),
)


@dataclass(frozen=True)
class Row:
    """What a compiler made of one variant; `faults` is what the gate objects to."""

    kernel: str
    arch: str
    config: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    tensor_core_op: str
    pipelined: bool
    faults: tuple[str, ...]


def compile_variant(variant: Variant, arch: str) -> Any:
    """The compiled kernel for one architecture; aligned pointers and pitch, as the runtime makes sure of."""
    buffers = [f"weights{k}" for k in range(MOST_BUFFERS)]
    pointers = ["workspace", *buffers, "biases", "tiles", "runs", "starts", "columns"]
    padded = [*variant.weights, *[variant.weights[0]] * (MOST_BUFFERS - len(variant.weights))]
    signature: dict[str, str] = {
        "workspace": variant.workspace,
        **dict(zip(buffers, padded, strict=True)),
        "biases": "*fp32",
        **dict.fromkeys(("tiles", "runs", "columns"), "*i32"),
        "starts": "*i64",
        **dict.fromkeys(("batch", "pitch", "first_tile"), "i32"),
    }
    constants = {
        "BLOCK": variant.block,
        "ROWS": variant.rows,
        "COLUMNS": variant.columns,
        "UNIT": 16 // (4 if variant.workspace == "*fp32" else 2),
        "BUFFERS": len(variant.weights),
        "FORM": variant.form,
        "WIDEN": variant.form == "row" or len({variant.workspace, *variant.weights}) > 1,
        "PRECISION": variant.precision,
        "EPILOGUE": "tanh",
    }
    names = _step_kernel.arg_names
    signature = {n: signature.get(n, "constexpr") for n in names}
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in (*pointers, "pitch")}
    source = ASTSource(_step_kernel, signature, constants, attributes)
    options = {"num_warps": variant.warps, "num_stages": variant.stages}
    return triton.compile(source, target=GPUTarget("cuda", ARCHITECTURES[arch], 32), options=options)


def examine(variant: Variant, arch: str) -> Row:
    """Compile and look into the machine code."""
    compiled = compile_variant(variant, arch)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage = _tool("cuobjdump", "-res-usage", str(cubin))
        listing = _tool("nvdisasm", str(cubin))
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump said nothing of registers: {usage[:200]}")
    registers, stack, local = map(int, found.groups())
    operations = OPCODE.findall(listing)
    spilled = stack + local + sum(op.startswith(("LDL", "STL")) for op in operations)
    cores = sorted({op.split(".")[0] for op in operations if op.startswith(TENSOR_CORE)})
    copies = sum(op.startswith(ASYNC_COPY) for op in operations)
    depth = max((int(d) for d in re.findall(r"!ttg\.memdesc<(\d+)x\d+x\d+x", compiled.asm["ttgir"])), default=1)
    pipelined = copies > 0 and depth >= variant.stages - 1
    faults = []
    if spilled:
        faults.append(f"{spilled} bytes or instructions of local memory")
    if compiled.metadata.shared > SHARED_LIMIT[arch]:
        faults.append(f"{compiled.metadata.shared} bytes of shared memory, {SHARED_LIMIT[arch]} at most")
    if variant.uses_tensor_cores and not cores:
        faults.append("no tensor-core instruction")
    if arch == "sm_90" and variant.uses_tensor_cores and _wgmma_expected(variant) and "HGMMA" not in cores:
        faults.append(f"{'/'.join(cores)} where wgmma (HGMMA) was expected")
    if variant.uses_tensor_cores and not pipelined:
        faults.append(f"a pipeline of {depth} buffers and {copies} asynchronous copies, for {variant.stages} stages")
    config = f"{variant.warps} warps, {variant.stages} stages"
    shared = int(compiled.metadata.shared)
    return Row(variant.name, arch, config, registers, spilled, shared, "/".join(cores), pipelined, tuple(faults))


def _wgmma_expected(variant: Variant) -> bool:
    """wgmma takes 64 rows and more, of the batch or, swapped, of the weights; not asked of tf32x3 and mixed types."""
    long_side = variant.rows if variant.form == "swapped" else variant.block
    return long_side >= 64 and variant.precision in ("ieee", "tf32") and len(variant.weights) == 1


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / name, *arguments], check=True, capture_output=True, text=True).stdout


def main(arguments: list[str] | None = None) -> int:
    """Print the table. Returns 1 where the gate fails a variant."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the rows there too")
    parser.add_argument("--arch", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    args = parser.parse_args(arguments)
    if not hasattr(_step_kernel, "arg_names") or os.environ.get("TRITON_INTERPRET") == "1":
        print("TRITON_INTERPRET is set: kernels are interpreted here, not compiled. Unset it.", file=sys.stderr)
        return 2
    rows = [examine(variant, arch) for arch in args.arch for variant in VARIANTS]
    for row in rows:
        state = "; ".join(row.faults) or "ok"
        print(
            f"{row.arch:7} {row.kernel:44} {row.config:18} {row.registers:4} registers {row.shared_bytes:7} B shared "
            f"{row.tensor_core_op:6} {'pipelined' if row.pipelined else 'not pipelined':13} {state}"
        )
    if args.json:
        content = {"triton": triton.__version__, "rows": [asdict(row) for row in rows]}
        args.json.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    bad = sum(bool(row.faults) for row in rows)
    print(f"{len(rows)} variants compiled by Triton {triton.__version__}, {bad} failed.")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
