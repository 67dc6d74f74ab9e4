"""`python3 perf/gpu run --budget 420 --out FOLDER`: needs Python, torch and Triton; no make, no git, no install.

Named by its path, it lays out links as the wheel lays out folders, in build/card; else it is `python -m hrt.perf.gpu`.
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("kernels", "export", "perf")  # that the wheel maps into hrt


def lay_out(root: Path) -> Path:
    """A folder to import hrt from: links to the folders of this checkout."""
    layout = root / "build" / "card"
    package = layout / "hrt"
    package.mkdir(parents=True, exist_ok=True)
    for source in (*(root / "hrt").iterdir(), *(root / name for name in FOLDERS)):
        link = package / source.name
        if link.is_symlink() and not link.exists():
            link.unlink()
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(source, package))
    for source in (root / "build" / "gpu-pack" / "site").glob("*"):  # packages that this machine lacks
        link, name = layout / source.name, source.name.partition("-")[0].partition(".")[0]
        if find_spec(name) is None and not link.is_symlink():
            link.symlink_to(os.path.relpath(source, layout))
    return layout


def main() -> int:
    """The command's exit status, 2 where something it cannot do without is missing."""
    if not __package__:
        sys.path[0] = str(lay_out(ROOT))
        os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], *filter(None, [os.environ.get("PYTHONPATH")])])
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    try:
        from hrt.perf.gpu.command import main as command
    except ModuleNotFoundError as error:
        print(f"hrt.perf.gpu: {error.name} is not installed. Expected a Python with torch and Triton.", file=sys.stderr)
        return 2
    return command()


if __name__ == "__main__":
    sys.exit(main())
