"""What is made before there is a card, so that its minutes go into running: see `hrt.perf.gpu.pack` for what is in it.

Compiled kernels fit one Triton, its build for one Python, and one architecture: this runs under the card's own Python
and Triton, on tests/stub_card.py, a card that is not there. Every step is carried out on it once, and what it compiles
is packed.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, distribution
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import hrt
from hrt.capture.torch_export import capture
from hrt.errors import HrtError
from hrt.matrix_compression.compress_matrix import compress_for
from hrt.matrix_compression.request import MatrixRequest
from hrt.model.artifact import read
from hrt.perf.gpu import launchers
from hrt.perf.gpu.pack import (
    FORMAT,
    GROUP,
    KERNELS,
    MANIFEST,
    MODELS,
    MOST_BYTES,
    ROOT,
    SITE,
    Manifest,
    digest_of,
    machine,
    source_digest,
    unpack_kernels,
)
from hrt.perf.gpu.plan import SILENT, STEPS, STUB
from hrt.perf.gpu.record import Record
from hrt.perf.gpu.workers import NOT_HERE, WRONG_STATUS
from hrt.perf.measuring.provenance import commit, versions
from hrt.perf.networks import burgers, neuralfoil
from hrt.perf.networks.as_torch_module import module_of
from hrt.perf.networks.integral_kernels import KERNELS as INTEGRALS
from hrt.perf.networks.integral_kernels import SETTINGS, layer
from hrt.program.program import Program

ARCH = "sm_90"
CACHE = ROOT / "build" / "card-fill"  # what was compiled for earlier packs is found again
SIZES = (4096, 8192)
MIN_LEAF = 128
AT_ONCE = 4  # steps that are carried out for their kernels, each a process of some 2 GB
ROWS, NETWORK_ROWS = 16, 1024  # of references
FEW_INPUTS = (2000, 0)
KEPT_SUFFIXES = (".json", ".cubin", ".so")
# Small packages that hrt and its tests need and a machine with torch and Triton may lack.
PACKAGES = (
    "lazy-loader", "msgspec", "platformdirs", "packaging", "psutil", "safetensors", "pytest", "pluggy", "iniconfig",
    "pytest-xdist", "execnet",
)  # fmt: skip
COMPRESSION = ("hrt/capture", "hrt/calibration", "hrt/certificate", "hrt/hmatrix", "hrt/matrix_compression")
COMPRESSION += ("hrt/network_compression", "hrt/program", "hrt/schedule", "hrt/model", "perf/networks")
MADE = "made.json"  # beside the models: of which sources they were made


def card_network() -> nn.Module:
    """The network of tests/card.py."""
    sizes = (3, 128, 128, 128, 128, 1)
    torch.manual_seed(0)
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


def fill(folder: Path) -> Manifest:
    """Make the pack in `folder`, and print what is in it. Raises HrtError where it became too large."""
    begun = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    make_models(folder / MODELS)
    pack_site(folder / SITE)
    here = machine(ARCH)
    facts = {"format": FORMAT, "commit": commit(), "sources": source_digest(), "arch": ARCH}
    facts |= {"compiler": here["compiler"], "versions": versions()}
    # a manifest for the steps that now run; their pack is not whole yet
    _write(folder, Manifest(**facts, variants=0, seconds=0.0, files={k: (0, "") for k in _files(folder)}))
    with tempfile.TemporaryDirectory() as scratch:
        launchers.make_libcuda(Path(scratch))
        carry_out(folder, Path(scratch) / "out", CACHE, {launchers.BUILD: scratch})
        used = set((Path(scratch) / launchers.USED).read_text().split())
    variants = pack_kernels(CACHE, folder / KERNELS, used)
    check_complete(folder)
    files = {k: (p.stat().st_size, digest_of(p)) for k, p in _files(folder).items()}
    manifest = Manifest(**facts, variants=variants, seconds=time.monotonic() - begun, files=files)
    _write(folder, manifest)
    total = sum(n for n, _ in files.values())
    for part in (MODELS, KERNELS, SITE):
        sizes = [n for k, (n, _) in files.items() if k.startswith(part)]
        print(f"{part:8} {len(sizes):5} files {sum(sizes) / 2**20:6.1f} MiB")
    print(f"{folder}: {total / 2**20:.1f} MiB, {variants} kernels, {manifest.seconds:.0f} s")
    if total > MOST_BYTES:
        raise HrtError(f"The pack has {total / 2**20:.1f} MiB. Expected at most {MOST_BYTES / 2**20:.0f} MiB.")
    return manifest


def check_complete(folder: Path) -> None:
    """Every step again, with the packed kernels at another place and nothing to compile with. Raises HrtError where
    something had to be compiled.
    """
    with tempfile.TemporaryDirectory() as scratch:
        notes, kernels = Path(scratch) / "compiled.txt", Path(scratch) / "kernels"
        unpack_kernels(folder / KERNELS, kernels)
        carry_out(folder, Path(scratch) / "out", kernels, {launchers.FORBID: str(notes), "CC": "/bin/false"})
        if notes.exists():
            raise HrtError(f"{len(notes.read_text().split())} kernels are missing in {folder / KERNELS}.")


def make_models(folder: Path) -> None:
    """Artifacts and references, unless they are there from the same sources."""
    made = {"sources": source_digest(folders=COMPRESSION)}
    folder.mkdir(exist_ok=True)
    if (folder / MADE).is_file() and json.loads((folder / MADE).read_text()) == made:
        return
    for tol in ("1e-2", "1e-3"):
        pack_network(folder, f"burgers-{tol}", burgers.load_burgers().float(), burgers.burgers_points, float(tol))
    pack_network(folder, "card", card_network(), _box_points, 1e-2)
    try:
        pack_network(folder, "neuralfoil", neuralfoil.load_neuralfoil("xlarge"), neuralfoil.sample_inputs, 1e-2)
    except FileNotFoundError as error:
        print(f"neuralfoil is left out: {error}")
    hrt.export_onnx(folder / "burgers-1e-3.hrt", folder / "burgers-1e-3.onnx")
    for size in SIZES:
        for name in INTEGRALS:
            _layer(folder, name, size)
    (folder / MADE).write_text(json.dumps(made))


def _box_points(count: int, seed: int) -> Tensor:
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def pack_network(folder: Path, name: str, net: nn.Module, rows: Callable[[int, int], Tensor], tol: float) -> None:
    """Compress a network for a GPU; its own float64 answers are the reference."""
    begun = time.monotonic()
    model = hrt.compress(net, inputs=rows(*FEW_INPUTS), tol=tol, target="cuda", progress=False)
    save_network(folder, name, net, model, rows(NETWORK_ROWS, 1))
    print(f"{name}: {model.nbytes:,} bytes, {time.monotonic() - begun:.0f} s", flush=True)


def save_network(folder: Path, name: str, net: nn.Module, model: hrt.CompressedModel, x: Tensor) -> None:
    """Write a network as an artifact, and what the network that it came from makes of x in float64."""
    model.save(folder / f"{name}.hrt")
    exact = module_of(capture(net, [x[:2]])).double()
    with torch.no_grad():
        save_file({"x": x, "y": exact(x.double()).contiguous()}, folder / f"{name}.safetensors")


def _layer(folder: Path, kernel: str, size: int) -> None:
    """Compress a layer in bfloat16 for a GPU; the reference is of the stored numbers, in float64."""
    begun, (built, points), (storage, tol) = time.monotonic(), INTEGRALS[kernel].build(size), SETTINGS["bf16"]
    request = MatrixRequest(
        tol=tol,
        storage=storage,
        min_leaf=MIN_LEAF,
        row_points=points,
        column_points=points,
        ordering="natural" if points is None else "coordinates",
        target="cuda",
    )
    program = layer(compress_for(built, request))
    save_layer(folder, f"{kernel}-{size}", program, tol)
    print(f"{kernel}-{size}: {time.monotonic() - begun:.0f} s", flush=True)


def save_layer(folder: Path, name: str, program: Program, tol: float) -> None:
    """Write a layer as an artifact, and what its stored numbers make of 16 rows."""
    (n,) = program.inputs[0].shape
    hrt.CompressedModel(program, hrt.Certificate(tol, "layers", ()), "cuda", 4 * n * n).save(folder / f"{name}.hrt")
    x = torch.randn(ROWS, n, generator=torch.Generator().manual_seed(0))
    h: Any = read(folder / f"{name}.hrt").program.constants["w"]
    save_file({"x": x, "y": h.apply(x.double()).contiguous()}, folder / f"{name}.safetensors")


def pack_site(folder: Path) -> None:
    """Copies of the small packages, as they are installed here."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in PACKAGES:
        try:
            files: Iterable[Any] = distribution(name).files or ()
        except PackageNotFoundError:
            print(f"{name} is not installed here and was left out")
            continue
        for file in files:
            source = Path(file.locate())
            if ".." in file.parts or "__pycache__" in file.parts or not source.is_file():
                continue
            target = folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def carry_out(pack: Path, out: Path, cache: Path, extra: dict[str, str]) -> None:
    """Every step once, several at a time, on a card that is not there and computes nothing. Raises HrtError where one
    could not be carried out.
    """
    paths = [os.environ.get("PYTHONPATH", ""), str(ROOT / "tests")]
    environment = {**os.environ, **extra, STUB: SILENT, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    environment |= {"TRITON_CACHE_DIR": str(cache), "HRT_CACHE": str(out), "OMP_NUM_THREADS": "1"}
    environment["TORCHDYNAMO_DISABLE"] = "1"  # dense forms are not packed, and its code wants a real device
    worker = [sys.executable, str(ROOT / "perf" / "gpu"), "worker", "--pack", str(pack)]

    def one(name: str) -> None:
        begun, record = time.monotonic(), Record.start(out / name, {"stub": SILENT})
        command = [*worker, "--out", str(record.path.parent), "--step", name]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        print(f"{name}: status {done.returncode}, {time.monotonic() - begun:.0f} s", flush=True)
        if done.returncode not in (0, WRONG_STATUS, NOT_HERE):
            raise HrtError(f"The step {name} could not be carried out: {(done.stdout + done.stderr)[-1500:]}")

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(one, [step.name for step in STEPS]))


def pack_kernels(cache: Path, target: Path, used: AbstractSet[str]) -> int:
    """Write what launches of the kernels with these keys need into an archive: metadata, machine code, every launcher.
    Returns how many kernels there are.
    """
    count = 0
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as packed:
        for folder in sorted(p for p in cache.iterdir() if p.is_dir()):
            groups = list(folder.glob(f"{GROUP}*"))
            keys = [json.loads((folder / g.name.removeprefix(GROUP)).read_text()).get("hash") for g in groups]
            is_used = not used.isdisjoint(keys)
            count += is_used
            if is_used or any(folder.glob("*.so")):
                for path in sorted(p for p in folder.iterdir() if p.suffix in KEPT_SUFFIXES):
                    packed.write(path, f"{folder.name}/{path.name}")
    return count


def _files(folder: Path) -> dict[str, Path]:
    paths = [folder / KERNELS, *(p for part in (MODELS, SITE) for p in sorted((folder / part).rglob("*")))]
    files = (p for p in paths if p.is_file())
    return {p.relative_to(folder).as_posix(): p for p in files}


def _write(folder: Path, manifest: Manifest) -> None:
    (folder / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1) + "\n")
