"""Compare every runtime that reads exported graphs with `predict`.

python -m hrt.export.other_runtimes net.hrt     # status 1 where one differs; OpenVINO left to itself is only shown
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx

from hrt.errors import ArtifactError, BackendError, HrtError
from hrt.export.onnx import check_onnx, to_onnx
from hrt.export.other_runtimes.openvino import check_openvino
from hrt.export.other_runtimes.web import check_web
from hrt.model.load import load
from hrt.model.model import CompressedModel

UNSET = "OpenVINO, left to itself"
RUNTIMES: Mapping[str, Callable[[onnx.ModelProto, CompressedModel], Mapping[str, float]]] = {
    "ONNX Runtime": check_onnx,
    "OpenVINO, in float32": check_openvino,
    UNSET: lambda proto, model: check_openvino(proto, model, default=True),
    "onnxruntime-web": check_web,
}


def main(path: Path) -> int:
    """Print the largest relative difference of any output on 1, 7 and 64 random rows, by runtime; and the sizes."""
    status = 0
    model = load(path, backend="torch")
    proto = to_onnx(model)
    print(f"{path}: .onnx has {len(proto.SerializeToString()) / path.stat().st_size:.2f} times its bytes")
    for name, check in RUNTIMES.items():
        try:
            print(f"{name}: {max(check(proto, model).values()):.1e}")
        except BackendError as error:
            print(f"{name}: not run. {error}")
        except HrtError as error:
            print(f"{name}: {error}")
            status = status if name == UNSET else 1
    return status


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        sys.exit(main(Path(sys.argv[1])))
    except ArtifactError as error:
        sys.exit(str(error))
