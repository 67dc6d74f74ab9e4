"""`export_repository`: the folder from which an inference server serves a compressed network."""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from hrt.errors import InputError
from hrt.export.onnx.check import check_onnx
from hrt.export.onnx.exporter import opened, to_onnx, write_graph
from hrt.export.servers import triton_backend
from hrt.export.servers.folders import check_target, replace_folder
from hrt.export.servers.open_inference import Signature, Tensor
from hrt.export.servers.server_files import BACKENDS, Settings, mlserver_files, ray_files, triton_files
from hrt.model.model import CompressedModel
from hrt.support.atomic_files import usable
from hrt.support.torch_state import guarded

Files = Callable[[Signature, Settings, Mapping[str, str]], Mapping[str, str]]  # names to texts

# By server: what it starts from beside the network, and the folder that the network lies in.
SERVERS: Mapping[str, tuple[Files, str]] = {
    "triton": (triton_files, "1"),
    "mlserver": (mlserver_files, ""),
    "ray": (ray_files, ""),
}


@guarded
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
    force: bool = True,
    check: bool = True,
) -> Path:
    """Write `<folder>/<name>`, from which an inference server serves the network.

    Inputs and outputs are float32, (batch, *shape), and carry the names of the exported graph. The certificate travels
    in the artifact, in the ONNX file's metadata, and in short in config.pbtxt: for every output, the bound of its error
    or "not bounded". The folder is built beside the target and renamed. A failure leaves nothing behind, and a folder
    that was there untouched; while it is replaced, there is an instant in which neither is there.

    Args:
        model_or_path: A compressed network, or the path of its .hrt file.
        folder: The folder of all models; it is made if the folder above it exists.
        name: The model's name at the server, and its folder's.
        server: "triton" (`config.pbtxt` and `1/model.onnx`), "mlserver" or "ray" (both serve `model.hrt`).
        backend: For Triton "onnxruntime" (the default), or "hrt" to serve `1/model.hrt`.
        max_batch: Rows of the largest batch.
        instances: Triton's instances, MLServer's workers, or the fewest replicas of Ray Serve.
        device: "cpu" or "gpu", of Triton's instances. By default what the network was compressed for.
        accelerator: "tensorrt" for Triton's ONNX Runtime backend on GPUs, in float32.
        derivatives: More outputs, as in `export_onnx`, whatever is served.
        force: Replace what an earlier call wrote there; never what hrt did not write.
        check: As in `export_onnx`.

    Returns:
        The path `<folder>/<name>`.

    Raises:
        InputError: Options that do not go together, or a folder that may not be written.
        ArtifactError: A path that is no artifact.
        DerivativeError: An op on the way has no such derivative.
        BackendError: ONNX Runtime, which the check needs, is not installed.
        HrtError: The graph failed its check.

    Example:
        >>> import tempfile, torch, hrt
        >>> model = hrt.compress(torch.nn.Linear(4, 3), inputs=torch.rand(64, 4), tol=1e-2, progress=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     target = hrt.export_repository(model, folder, name="net", server="mlserver")
        ...     sorted(path.name for path in target.iterdir())
        ['.hrt-files', 'model-settings.json', 'model.hrt', 'settings.json']
    """
    settings = Settings(name, server, backend, max_batch, instances, device, accelerator)
    target = Path(folder) / name
    check_target(target, force)
    model, values = opened(model_or_path, derivatives)
    settings, proto = settings.resolved(model.target), to_onnx(model)
    if check and settings.backend == "onnxruntime":
        check_onnx(proto, model, values=values)
    facts = {p.key: p.value for p in proto.metadata_props if p.key != "hrt.certificate"}
    facts["hrt.promise"] = model.certificate.kind
    files, place = SERVERS[server]
    texts = files(Signature(_tensors(proto.graph.input), _tensors(proto.graph.output)), settings, facts)

    def write(new: Path) -> None:
        (new / place).mkdir(exist_ok=True)
        for file, text in texts.items():
            (new / file).write_text(text)
        if settings.backend == "onnxruntime":
            write_graph(proto, new / place / "model.onnx")
        elif isinstance(model_or_path, CompressedModel) or derivatives is not None:
            model.save(new / place / "model.hrt")
        else:
            shutil.copyfile(model_or_path, new / place / "model.hrt")

    replace_folder(target, write, force)
    return target


def install_triton_backend(folder: str | PathLike[str], name: str = "hrt", *, force: bool = False) -> Path:
    """Write `<folder>/<name>/model.py`, a backend for Triton.

    Args:
        folder: The server's folder of backends, such as /opt/tritonserver/backends. It holds Triton's `python` backend.
        name: "hrt", or "onnxruntime" to serve ONNX files with ONNX Runtime for Python, without NVIDIA's backend.
        force: Whether to replace what an earlier call wrote there.

    Returns:
        The path of `model.py`.

    Raises:
        InputError: Another name, a folder that is not there, or a backend that is there already (with `force`: one
            that is not hrt's).

    Example:
        >>> import tempfile, hrt
        >>> with tempfile.TemporaryDirectory() as backends:
        ...     path = hrt.install_triton_backend(backends)
        >>> path.parent.name, path.name
        ('hrt', 'model.py')
    """
    if name not in BACKENDS["triton"]:
        raise InputError(f"Found backend {name!r}. Expected one of {', '.join(BACKENDS['triton'])}.")
    if not os.fspath(folder) or not usable(folder).is_dir():
        raise InputError(f"Found {os.fspath(folder)!r}. Expected the server's folder of backends, which exists.")
    target = Path(folder) / name
    check_target(target, force)
    replace_folder(target, lambda new: shutil.copyfile(triton_backend.__file__, new / "model.py"), force)
    return target / "model.py"


def _tensors(values: Any) -> tuple[Tensor, ...]:
    """Inputs or outputs under their names in the exported graph, whatever is served: clients need not know which."""
    tensors = [Tensor(v.name, tuple(d.dim_value for d in v.type.tensor_type.shape.dim[1:])) for v in values]
    for t in tensors:
        if 0 in t.shape:
            raise InputError(f"Found {t.name!r} of shape {t.shape}. Servers expect no empty tensors.")
    return tuple(tensors)
