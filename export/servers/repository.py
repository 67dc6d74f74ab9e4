"""`export_repository`: the folder from which an inference server serves a compressed network."""

import json
import re
import secrets
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import onnx

from hrt.errors import InputError
from hrt.export.onnx.check import check_onnx
from hrt.export.onnx.exporter import INLINE_BYTES, to_onnx
from hrt.export.servers import mlserver_ray_files as server_files
from hrt.export.servers import triton_backend
from hrt.export.servers.open_inference import Signature, Tensor
from hrt.export.servers.triton_config import Settings, render_config
from hrt.model.load import load
from hrt.model.model import CompressedModel
from hrt.support.atomic_files import usable

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
SERVERS = {"triton": ("onnxruntime", "hrt"), "mlserver": ("hrt",), "ray": ("hrt",)}  # each with its backends
MARK = ".hrt-files"  # in a folder of ours: the names of the files that we wrote there
LARGEST = 2**31 - 1  # that Triton's configuration holds


@dataclass(frozen=True)
class _Served:
    """A network on its way into a folder. path: of the artifact that holds just it, if there is one."""

    model: CompressedModel
    path: Path | None
    proto: onnx.ModelProto
    settings: Settings

    @property
    def signature(self) -> Signature:
        """Names as in the exported graph, whatever is served, so that clients need not know which."""
        inputs, outputs = (
            tuple(Tensor(v.name, tuple(d.dim_value for d in v.type.tensor_type.shape.dim[1:])) for v in values)
            for values in (self.proto.graph.input, self.proto.graph.output)
        )
        return Signature(inputs, outputs)

    def write_artifact(self, target: Path) -> None:
        if self.path is None:
            self.model.save(target)
        else:
            shutil.copyfile(self.path, target)


def export_repository(
    model_or_path: CompressedModel | str | PathLike[str],
    folder: str | PathLike[str],
    *,
    name: str,
    server: str = "triton",
    backend: str | None = None,
    max_batch: int = 1024,
    instances: int = 1,
    device: str | None = None,
    accelerator: str | None = None,
    derivatives: Sequence[str] | None = None,
    force: bool = False,
    check: bool = True,
) -> Path:
    """Write `<folder>/<name>`, from which an inference server serves the network, and return that path.

    server: "triton" (`config.pbtxt` and `1/model.onnx`, or with backend="hrt" `1/model.hrt`), "mlserver" or "ray"
    (both serve `model.hrt`).  max_batch: rows of the largest batch.  instances: Triton's instances, MLServer's workers,
    or the fewest replicas of Ray Serve.  device: "cpu" or "gpu", of Triton's instances; by default what the network was
    compressed for.  accelerator: "tensorrt" for Triton's ONNX Runtime backend on GPUs, in float32.  derivatives: more
    outputs, as in `export_onnx`, whatever is served; an artifact is then written anew, with them as outputs. The
    certificate that travels (in the artifact, the ONNX file's metadata, and in short in config.pbtxt) says of each
    output whether it is bounded.  force: replace what an earlier call wrote there.  check: as in `export_onnx`.

    Inputs and outputs are float32, (batch, *shape), and carry the names of the exported graph. The folder is built
    beside the target and renamed: a failure leaves nothing behind and a folder that was there untouched (while it is
    replaced, there is an instant in which neither is there). Raises InputError, ArtifactError for a path that is no
    artifact, BackendError where ONNX Runtime is not installed, DerivativeError for an order that an op has no rule
    for, HrtError where the graph fails its check.
    """
    backend, device = _check_options(name, server, backend, max_batch, instances, device, accelerator)
    if not isinstance(model_or_path, CompressedModel | str | PathLike):
        raise InputError(f"Found {type(model_or_path).__name__}. Expected a compressed network or a path to one.")
    parent = Path(folder)
    target = parent / name
    check_target(target, force)
    model = model_or_path if isinstance(model_or_path, CompressedModel) else load(model_or_path, backend="torch")
    values = len(model.program.outputs)
    path = None if isinstance(model_or_path, CompressedModel) else Path(model_or_path)
    if derivatives is not None:
        model, path = model.differentiated(derivatives), None
    device = device or ("gpu" if model.target == "cuda" and server == "triton" else "cpu")
    settings = Settings(name, backend, max_batch, instances, device, accelerator)
    served = _Served(model, path, to_onnx(model), settings)
    if check and backend == "onnxruntime":
        check_onnx(served.proto, model, values=values)
    with_shape = [t for t in (*served.signature.inputs, *served.signature.outputs) if 0 in t.shape]
    if with_shape:
        raise InputError(
            f"Found {with_shape[0].name!r} of shape {with_shape[0].shape}. Servers expect no empty tensors."
        )
    write = {"triton": _write_triton, "mlserver": _write_mlserver, "ray": _write_ray}[server]
    replace_folder(target, lambda new: write(served, new), force)
    return target


def install_triton_backend(folder: str | PathLike[str], name: str = "hrt", *, force: bool = False) -> Path:
    """Write `<folder>/<name>/model.py`, a Triton backend, and return that path.

    folder: the server's folder of backends, such as /opt/tritonserver/backends, which holds Triton's `python` backend.
    name: "hrt", or "onnxruntime" to serve ONNX files with ONNX Runtime for Python on a server that lacks NVIDIA's
    backend. Raises InputError, also for a backend that is there already (unless `force`, and never over one that is
    not hrt's).
    """
    if name not in SERVERS["triton"]:
        raise InputError(f"Found backend {name!r}. Expected one of {', '.join(SERVERS['triton'])}.")
    target = Path(folder) / name
    source = Path(triton_backend.__file__)
    check_target(target, force)
    replace_folder(target, lambda new: shutil.copyfile(source, new / "model.py"), force)
    return target / "model.py"


def check_target(target: Path, force: bool) -> None:
    """Raise InputError where a folder `target` may not be written: it exists (unless `force` and nothing is in it but
    what hrt wrote there), or the folder above the one it goes into does not exist, or something there is no folder.
    """
    parent = usable(target).parent
    if parent.exists() and not parent.is_dir():
        raise InputError(f"{parent} is a file. Expected a folder, or a path where one can be made.")
    if not parent.exists() and not parent.parent.is_dir():
        raise InputError(f"{parent} cannot be made: the folder {parent.parent} does not exist.")
    if not target.exists() and not target.is_symlink():
        return
    strangers = _strangers(target)
    if strangers is None:
        raise InputError(f"{target} was not written by hrt, and was kept, as it is with force. Remove it yourself.")
    if not force:
        raise InputError(f"{target} exists and was kept. Pass another name, or force (--force) to replace it.")
    if strangers:
        raise InputError(
            f"{target} was kept: it holds {strangers[0]}, which hrt did not write. Move it elsewhere first."
        )


def _strangers(target: Path) -> list[str] | None:
    """What a folder holds beside the files that hrt wrote there; None where it is no folder of hrt's."""
    try:
        ours = set(json.loads((target / MARK).read_text())) if target.is_dir() and not target.is_symlink() else None
    except (OSError, ValueError, TypeError):
        return None
    if ours is None:
        return None
    held = (p for p in sorted(target.rglob("*")) if not p.is_dir() or p.is_symlink())
    names = [p.relative_to(target).as_posix() for p in held if p.suffix != ".pyc"]  # Python leaves those
    return [name for name in names if name not in ours and name != MARK]


def replace_folder(target: Path, write: Callable[[Path], object], force: bool) -> None:
    """Let `write` fill a temporary folder beside `target`, then rename it. Nothing is left behind if that fails, and a
    folder `target` that was there is put back. Raises InputError where the system refuses.
    """
    parent, made = target.parent, False
    tag = secrets.token_hex(8)
    new, old = parent / f".hrt-{tag}.tmp", parent / f".hrt-{tag}.old"  # dots: servers do not look into them
    try:
        if not parent.exists():
            parent.mkdir()
            made = True
        new.mkdir()
        write(new)
        written = sorted(p.relative_to(new).as_posix() for p in new.rglob("*") if p.is_file())
        (new / MARK).write_text(json.dumps(written) + "\n")
        if force and target.exists():
            target.rename(old)
        new.rename(target)
    except BaseException as error:
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(new, ignore_errors=True)
        if made:
            with suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError):
            why = error.strerror or str(error)
            raise InputError(f"{target} cannot be written: {why}. Nothing was changed.") from error
        raise
    shutil.rmtree(old, ignore_errors=True)


def _check_options(
    name: str,
    server: str,
    backend: str | None,
    max_batch: int,
    instances: int,
    device: str | None,
    accelerator: str | None,
) -> tuple[str, str | None]:
    if not isinstance(server, str) or not isinstance(backend, str | None):
        raise InputError(f"Found server {server!r} and backend {backend!r}. Expected names, the backend's or None.")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InputError(
            f"Found name {name!r}. Expected up to 128 letters, digits, '.', '_' and '-', beginning with a letter or "
            "digit: it becomes a folder and a part of addresses."
        )
    if server not in SERVERS:
        raise InputError(f"Found server {server!r}. Expected one of {', '.join(SERVERS)}.")
    if backend is not None and backend not in SERVERS[server]:
        raise InputError(f"Found backend {backend!r} for {server}. Expected one of {', '.join(SERVERS[server])}.")
    for what, value in (("max_batch", max_batch), ("instances", instances)):
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST:
            raise InputError(f"Found {what} {value!r}. Expected a positive whole number up to {LARGEST}.")
    if device not in (None, "cpu", "gpu"):
        raise InputError(f"Found device {device!r}. Expected cpu, gpu or None.")
    if device == "gpu" and server != "triton":
        raise InputError(f"Found device 'gpu' for {server}. Expected cpu: only Triton's instances are placed on GPUs.")
    backend = backend or SERVERS[server][0]
    if accelerator is not None and (accelerator != "tensorrt" or backend != "onnxruntime" or device != "gpu"):
        raise InputError(
            f"Found accelerator {accelerator!r}. Expected 'tensorrt', with backend 'onnxruntime' and device 'gpu'."
        )
    return backend, device


def _write_triton(served: _Served, folder: Path) -> None:
    facts = {p.key: p.value for p in served.proto.metadata_props if p.key != "hrt.certificate"}
    facts["hrt.promise"] = served.model.certificate.kind
    (folder / "config.pbtxt").write_text(render_config(served.signature, served.settings, facts))
    version = folder / "1"
    version.mkdir()
    if served.settings.backend == "hrt":
        served.write_artifact(version / "model.hrt")
    else:
        large = sum(len(t.raw_data) for t in served.proto.graph.initializer) > INLINE_BYTES
        options = {"save_as_external_data": True, "location": "model.onnx.data"} if large else {}
        onnx.save(served.proto, str(version / "model.onnx"), **options)


def _write_mlserver(served: _Served, folder: Path) -> None:
    served.write_artifact(folder / "model.hrt")
    for name, text in server_files.mlserver(served.signature, served.settings).items():
        (folder / name).write_text(text)


def _write_ray(served: _Served, folder: Path) -> None:
    served.write_artifact(folder / "model.hrt")
    for name, text in server_files.ray(served.signature, served.settings).items():
        (folder / name).write_text(text)
