"""An unpacked wheel by itself: python -P wheel_alone.py FOLDER. It has every file of this checkout that belongs to the
packages, and its command line works in a folder where there is nothing else.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAPPED = ("kernels", "export", "perf")  # folders of the checkout that are packages below hrt
LEFT_OUT = ("perf/data", "perf/results", "kernels/native/accuracy.csv")  # of a checkout alone
NETWORK = """
import torch

def build():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
"""
COMMANDS = (
    "--version",
    "compress net.py:build --box -1,0:1,1 --tol 1e-2 -o net.hrt --no-progress",
    "info net.hrt",
    "report net.hrt",
    "report net.hrt --html net.html",
    "plot net.hrt -o net.svg",
    "predict net.hrt x.csv --derivatives d0 -o y.npz",
    "residual net.hrt x.csv --expr d0+u",
    "export net.hrt -o net.onnx",
    "export net.hrt -o net.c --with-example",
    "repository net.hrt models --name net",
)


def expected() -> Iterator[str]:
    """The files of the packages, by their place in the wheel."""
    for folder in ("hrt", *MAPPED):
        for path in (ROOT / folder).rglob("*"):
            name = path.relative_to(ROOT).as_posix()
            if path.is_file() and "__pycache__" not in path.parts and not name.startswith(LEFT_OUT):
                yield f"hrt/{name}" if folder in MAPPED else name


def run_commands(folder: Path) -> list[str]:
    """The command lines that fail, with what they said."""
    faults = []
    with tempfile.TemporaryDirectory() as place:
        Path(place, "net.py").write_text(NETWORK)
        Path(place, "x.csv").write_text("0.1,0.2\n0.3,0.4\n")
        environment = {"PYTHONPATH": str(folder.resolve()), "HRT_CACHE": place, "PATH": "/usr/bin:/bin", "HOME": place}
        for command in COMMANDS:
            line = [sys.executable, "-P", "-m", "hrt.cli", *command.split()]
            run = subprocess.run(line, cwd=place, env=environment, capture_output=True, text=True)
            if run.returncode or not run.stdout:
                faults.append(f"hrt {command}: status {run.returncode}\n{run.stdout}{run.stderr}")
        written = ("net.hrt", "net.html", "net.svg", "y.npz", "net.onnx", "net.c", "net.h", "models")
        faults += [f"{name} was not written" for name in written if not Path(place, name).exists()]
    return faults


def main(folder: Path) -> int:
    missing = sorted(name for name in expected() if not (folder / name).is_file())
    faults = [f"{name} is not in the wheel" for name in missing] + run_commands(folder)
    print(f"{len(COMMANDS)} command lines run from the wheel alone" if not faults else "\n".join(faults))
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
