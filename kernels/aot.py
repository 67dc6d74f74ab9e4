"""`python -m hrt.kernels.aot`: compile every variant of the kernels for GPUs that are not here, and gate them.

A variant fails where it keeps numbers in local memory (spills), needs more shared memory than the architecture gives a
block, lacks the tensor-core instruction of its form, lost its pipeline, or where its machine code does not keep the
order that the kernels rely on (`hrt.kernels.orderings`). AMD's gfx942 is reported without a gate.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # the default changes in Triton 3.10

# pyright: reportAttributeAccessIssue=false
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hrt.kernels.derivative_streams import VALUE, Streams
from hrt.kernels.launch import FINISH_REGISTERS, MOST_BUFFERS, NETWORK_REGISTERS, Config, product_constants
from hrt.kernels.machine_code import parse_listing
from hrt.kernels.network_kernel import network_kernel
from hrt.kernels.orderings import copy_faults, register_hazards, workspace_faults
from hrt.kernels.precisions import WORKSPACE
from hrt.kernels.step_kernel import finish_kernel, step_kernel
from hrt.kernels.tuning import SHARED, Key, rule

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
NVIDIA = {"sm_80": 80, "sm_90": 90, "sm_100": 100}
REPORTED = ("gfx942",)
SHORT = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "int8": "i8"}  # Triton's names of types
TENSOR_CORE = ("HGMMA", "HMMA", "UTCHMMA", "UTCQMMA")
ASYNC_COPY = ("LDGSTS", "UTMALDG")
OPCODE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Za-z0-9_.]+)")
LOCAL_BY_LIBRARY = ("sin", "cos")  # libdevice reduces huge arguments in local memory, off the usual path
KERNELS = {"step": step_kernel, "network": network_kernel, "finish": finish_kernel}


@dataclass(frozen=True)
class Variant:
    """One compiled form: a kernel and the configuration it runs with. storages: types of the weight buffers."""

    config: Config
    precision: str
    storages: tuple[str, ...]
    rows: int
    columns: int
    kernel: str = "step"
    partial: bool = False  # a cut launch: float32 sums for a second pass
    epilogue: str = "tanh"
    rescale: bool = False  # gains and shifts behind the epilogue: the last wave of a network with scaled outputs
    streams: Streams = VALUE

    @property
    def workspace(self) -> str:
        """Triton's name of the workspace's type."""
        return "*" + SHORT[str(WORKSPACE[self.precision]).removeprefix("torch.")]

    @property
    def name(self) -> str:
        """What a table row is called."""
        head = self.config.form if self.kernel == "step" else f"{self.kernel} {self.config.form}"
        storage = "+".join(SHORT[s] for s in self.storages)
        tail = (" cut" if self.partial else "") + (" scaled" if self.rescale else "")
        if self.streams != VALUE:
            tail += f" {len(self.streams.indices)} streams of order {max(map(len, self.streams.indices))}"
        tail += f" {self.epilogue}" if self.epilogue != "tanh" else ""
        return f"{head} {self.config.block}x{self.rows}x{self.columns} {self.precision}<-{storage}{tail}"

    @property
    def launch(self) -> str:
        """Its warps and stages in words."""
        return f"{self.config.warps} warps, {self.config.stages} stages"

    @property
    def uses_tensor_cores(self) -> bool:
        """Whether its products are meant for tensor cores."""
        return self.kernel != "finish" and self.config.form != "row" and self.precision != "ieee"

    @property
    def wants_wgmma(self) -> bool:
        """wgmma takes 64 rows and more, of the batch or, swapped, of the weights; not asked of tf32x3 and mixes."""
        long_side = self.rows if self.config.form == "swapped" else self.config.block
        one_type = len(set(self.storages) - {"int8"}) <= 1
        return self.uses_tensor_cores and long_side >= 64 and self.precision != "tf32x3" and one_type


def by_rule(
    arch: str, kernel: str, precision: str, storages: tuple[str, ...], shape: tuple[int, int], bucket: int, *of: Streams
) -> Variant:
    """The configuration that `tuning.rule` gives to this batch bucket. shape: of a weight tile."""
    streams = of[0] if of else VALUE
    key = Key(arch, kernel, precision, "+".join(sorted(storages)), *shape, bucket, streams.rows)
    return Variant(rule(key), precision, storages, *shape, kernel, streams=streams)


EVERY = ("float32", "float16", "bfloat16", "int8")
B, F, S, BI = ("bfloat16",), ("float16",), ("float32",), ("bfloat16", "int8")
SECOND = Streams(((), (0,), (1,), (0, 0)))  # u, u_x, u_t, u_xx
HESSIAN = Streams(((), (0,), (1,), (2,), (0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)))
THIRD = Streams(((), (0,), (0, 0), (0, 0, 0)))
# kernel, precision, storages, shape of a weight tile (as `hrt.schedule.choose_layout` tries them), batch buckets (of
# points), and streams where derivatives are carried
CASES = (
    *(("step", p, s, (64, 64), (1, 16, 32, 64, 4096)) for p, s in (("bf16", B), ("fp16", F))),
    *(("step", p, s, (128, 64), (16, 4096)) for p, s in (("bf16", B), ("fp16", F))),
    ("step", "bf16", B, (64, 32), (1, 16, 64, 4096)),
    ("step", "bf16", B, (32, 64), (1, 16, 4096)),
    ("step", "bf16", ("int8",), (64, 64), (1, 16, 4096)),
    ("step", "bf16", ("int8",), (64, 32), (16, 4096)),
    ("step", "bf16", ("int8",), (128, 64), (16, 4096)),
    ("step", "fp16", ("float16", "int8"), (64, 64), (16, 4096)),
    ("step", "tf32", S, (64, 32), (1, 16, 64, 4096)),
    ("step", "tf32", S, (128, 32), (16, 4096)),
    ("step", "tf32", S, (32, 32), (1, 16, 4096)),
    ("step", "tf32", EVERY, (64, 32), (16, 4096)),
    ("step", "tf32x3", S, (64, 32), (1, 16, 4096)),
    ("step", "tf32x3", S, (128, 32), (16, 4096)),
    ("step", "tf32x3", EVERY, (64, 32), (1, 16, 4096)),
    ("step", "ieee", S, (64, 32), (16, 4096)),
    ("step", "ieee", EVERY, (64, 32), (4096,)),
    ("step", "tf32", F, (64, 32), (1, 16, 64)),
    ("step", "bf16", ("bfloat16", "float16"), (64, 64), (16, 64)),
    ("network", "bf16", B, (64, 64), (1, 16, 4096)),
    *(("network", p, s, (64, c), (1, 16, 4096)) for p, s, c in (("bf16", BI, 64), ("tf32", EVERY, 32))),
    ("network", "tf32", S, (64, 32), (16, 4096)),
    ("network", "tf32x3", S, (64, 32), (1, 16, 4096)),
    ("network", "tf32x3", EVERY, (64, 32), (1, 16, 4096)),
    *(("step", p, s, (64, c), (1, 16, 1024), SECOND) for p, s, c in (("bf16", B, 64), ("tf32", S, 32))),
    ("step", "bf16", B, (128, 64), (16, 1024), SECOND),
    ("step", "tf32x3", EVERY, (64, 32), (1, 1024), SECOND),
    ("step", "tf32x3", S, (128, 32), (1, 1024), SECOND),
    ("step", "ieee", S, (64, 32), (1, 1024), SECOND),
    ("network", "bf16", B, (64, 64), (1, 16, 1024), SECOND),
    *(("network", "tf32x3", S, (64, 32), (1, 16, 1024), j) for j in (SECOND, HESSIAN, THIRD)),
    ("network", "tf32", S, (64, 32), (16, 1024), SECOND),
    *((k, "bf16", BI, (64, 64), (1, 16, 1024), SECOND) for k in ("step", "network")),
    *((k, "tf32", EVERY, (64, 32), (16, 1024), SECOND) for k in ("step", "network")),
    ("network", "tf32x3", EVERY, (64, 32), (1, 1024), SECOND),
    ("network", "ieee", S, (64, 32), (1, 1024), SECOND),
)


def variants(arch: str) -> list[Variant]:
    """Everything that is compiled for one architecture."""
    chosen = [by_rule(arch, *case[:4], bucket, *case[5:]) for case in CASES for bucket in case[4]]
    finish = Variant(Config("batch", 16), "tf32", (), 64, 64, "finish")
    large, small = (by_rule(arch, "step", "bf16", B, (64, 64), bucket) for bucket in (4096, 16))
    network = by_rule(arch, "network", "bf16", B, (64, 64), 4096)
    jet = by_rule(arch, "network", "tf32x3", S, (64, 32), 1024, SECOND)
    chosen += [finish, replace(finish, precision="bf16"), replace(finish, streams=HESSIAN)]
    chosen += [replace(v, partial=True) for v in (large, small)]
    chosen += [replace(v, rescale=True) for v in (large, network, jet)]
    chosen += [replace(large, epilogue=e) for e in ("gelu", "mish", "sin")]
    chosen += [replace(jet, epilogue=e) for e in ("gelu", "gelu_tanh", "silu", "mish", "sin", "relu")]
    chosen += [replace(by_rule(arch, "network", "tf32x3", S, (64, 32), 64), epilogue="sin")]
    return list(dict.fromkeys(chosen))


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
    kernel: Any = KERNELS[variant.kernel]
    weights = [f"*{SHORT[s]}" for s in variant.storages] or ["*fp32"]
    padded = [*weights, *weights[:1] * MOST_BUFFERS][:MOST_BUFFERS]
    types: dict[str, str] = {
        **dict.fromkeys(("workspace", "target"), variant.workspace),
        **{f"weights{k}": padded[k] for k in range(MOST_BUFFERS)},
        **dict.fromkeys(("biases", "partial"), "*fp32"),
        **({"target": "*fp32"} if variant.partial else {}),
        "scales": "*bf16",
        **dict.fromkeys(("tiles", "runs", "columns", "groups", "wave_ends"), "*i32"),
        "starts": "*i64",
        **dict.fromkeys(("batch", "pitch", "target_pitch", "partial_pitch", "waves"), "i32"),
    }
    storages = [getattr(torch, name) for name in variant.storages]
    workspace = WORKSPACE[variant.precision]
    constants = product_constants(storages, workspace, variant.config, variant.precision) | {
        "ROWS": variant.rows,
        "COLUMNS": variant.columns,
        "UNIT": 4 if workspace == torch.float32 else 8,
        "EPILOGUE": variant.epilogue,
        "FIRST": 0.0,
        "SECOND": 0.0,
        "RESCALE": variant.rescale or variant.kernel == "finish",
        "JET": variant.streams.code,
    }
    names = kernel.arg_names
    signature = {n: types.get(n, "constexpr") for n in names}
    aligned = [n for n, t in signature.items() if t.startswith("*") or n.endswith("pitch")]
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in aligned}
    source = ASTSource(kernel, signature, {k: v for k, v in constants.items() if k in names}, attributes)
    options = {k: constants[k] for k in ("num_warps", "num_stages")}
    limits = {"network": NETWORK_REGISTERS, "finish": FINISH_REGISTERS}
    if variant.kernel in limits and arch in NVIDIA:
        options["maxnreg"] = limits[variant.kernel]
    target = GPUTarget("cuda", NVIDIA[arch], 32) if arch in NVIDIA else GPUTarget("hip", arch, 64)
    return triton.compile(source, target=target, options=options)


def examine(variant: Variant, arch: str) -> Row:
    """Compile and look into the machine code."""
    if arch not in NVIDIA:
        return _examine_amd(variant, arch)
    compiled = compile_variant(variant, arch)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage = run_tool("cuobjdump", "-res-usage", str(cubin))
        listing = run_tool("nvdisasm", str(cubin))
    figures = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    if figures is None:
        raise RuntimeError(f"cuobjdump said nothing of registers: {usage[:200]}")
    registers, stack, local = map(int, figures.groups())
    operations = OPCODE.findall(listing)
    spilled = stack + local + sum(op.startswith(("LDL", "STL")) for op in operations)
    cores = sorted({op.split(".")[0] for op in operations if op.startswith(TENSOR_CORE)})
    copies = sum(op.startswith(ASYNC_COPY) for op in operations)
    depth = max((int(d) for d in re.findall(r"!ttg\.memdesc<(\d+)x\d+x\d+x", compiled.asm["ttgir"])), default=1)
    pipelined = copies > 0 and depth >= variant.config.stages - 1
    faults = []
    if spilled and variant.epilogue not in LOCAL_BY_LIBRARY:
        faults.append(f"{spilled} bytes or instructions of local memory")
    if compiled.metadata.shared > SHARED[arch]:
        faults.append(f"{compiled.metadata.shared} bytes of shared memory, {SHARED[arch]} at most")
    if variant.uses_tensor_cores and not cores:
        faults.append("no tensor-core instruction")
    if arch == "sm_90" and variant.wants_wgmma and "HGMMA" not in cores:
        faults.append(f"{'/'.join(cores)} where wgmma (HGMMA) was expected")
    if variant.uses_tensor_cores and not pipelined:
        faults.append(
            f"a pipeline of {depth} buffers and {copies} asynchronous copies, for {variant.config.stages} stages"
        )
    code = parse_listing(listing)
    in_waves = variant.kernel == "network"
    for disorder in (register_hazards(code), workspace_faults(code, in_waves=in_waves), copy_faults(code)):
        faults += [f"{len(disorder)} times out of order: {disorder[0]}"] if disorder else []
    shared = int(compiled.metadata.shared)
    return Row(
        variant.name, arch, variant.launch, registers, spilled, shared, "/".join(cores), pipelined, tuple(faults)
    )


def _examine_amd(variant: Variant, arch: str) -> Row:
    """Numbers from the assembler text; a report without a gate: no such card was ever at hand."""
    if variant.precision == "tf32x3":  # Triton has it for NVIDIA only
        variant = replace(variant, precision="ieee")
    compiled = compile_variant(variant, arch)
    text = compiled.asm["amdgcn"]

    def metadata(key: str) -> int:
        return max((int(n) for n in re.findall(rf"\.{key}:\s+(\d+)", text)), default=0)

    spilled = 4 * (metadata("vgpr_spill_count") + metadata("sgpr_spill_count"))
    core, shared = "MFMA" if "v_mfma_" in text else "", int(compiled.metadata.shared)
    return Row(variant.name, arch, variant.launch, metadata("vgpr_count"), spilled, shared, core, False, ())


def run_tool(name: str, *arguments: str) -> str:
    """What a program of Triton's own tool chain prints."""
    return subprocess.run([TOOLS / name, *arguments], check=True, capture_output=True, text=True).stdout


def main(arguments: list[str] | None = None) -> int:
    """Print the table. Returns 1 where the gate fails a variant."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the rows there too")
    everything = [*NVIDIA, *REPORTED]
    parser.add_argument("--arch", nargs="+", choices=everything, default=everything)
    args = parser.parse_args(arguments)
    if not hasattr(step_kernel, "arg_names") or os.environ.get("TRITON_INTERPRET") == "1":
        print("TRITON_INTERPRET is set: kernels are interpreted here, not compiled. Unset it.", file=sys.stderr)
        return 2
    rows = []
    for arch in args.arch:
        for variant in variants(arch):
            row = examine(variant, arch)
            rows.append(row)
            state = "; ".join(row.faults) or ("ok" if arch in NVIDIA else "reported")
            print(
                f"{row.arch:7} {row.kernel:52} {row.config:18} {row.registers:4} registers {row.shared_bytes:7} B "
                f"shared {row.tensor_core_op:6} {'pipelined' if row.pipelined else 'not pipelined':13} {state}",
                flush=True,
            )
    if args.json:
        content = {"triton": triton.__version__, "rows": [asdict(row) for row in rows]}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    bad = sum(bool(row.faults) for row in rows)
    print(f"{len(rows)} variants compiled by Triton {triton.__version__}, {bad} failed.")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
