"""`python3 perf/gpu run --budget 420 --out FOLDER`: needs Python, torch and Triton; no make, no git, no install.

Named by its path, it lays out links as the wheel lays out folders, in build/card; else it is `python -m hrt.perf.gpu`.
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LAYOUT = ROOT / "build" / "card"
FOLDERS = ("kernels", "export", "perf")  # that the wheel maps into hrt


def lay_out() -> None:
    """Make LAYOUT, to import hrt from: links to the folders of this checkout, and to packed packages."""
    package = LAYOUT / "hrt"
    package.mkdir(parents=True, exist_ok=True)
    for source in (*(ROOT / "hrt").iterdir(), *(ROOT / name for name in FOLDERS)):
        link = package / source.name
        if link.is_symlink() and not link.exists():
            link.unlink()
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(source, package))
    site = ROOT / "build" / "gpu-pack" / f"site-{sys.version_info.major}.{sys.version_info.minor}"
    packed = {p.name: p for p in site.glob("*") if find_spec(p.name.partition("-")[0].partition(".")[0]) is None}
    for link in set(LAYOUT.iterdir()) - {package}:
        if link.name not in packed:  # of another Python, or installed meanwhile
            link.unlink()
    for name, source in packed.items():  # what this machine lacks
        if not (LAYOUT / name).is_symlink():
            (LAYOUT / name).symlink_to(os.path.relpath(source, LAYOUT))


def main() -> int:
    """The command's exit status, 2 where something it cannot do without is missing."""
    layout, paths = str(LAYOUT), os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if not __package__:
        sys.path.pop(0)  # this folder
        if layout not in paths:  # else whoever started this process has laid it out
            lay_out()
            sys.path.insert(0, layout)
            os.environ["PYTHONPATH"] = os.pathsep.join([layout, *filter(None, paths)])
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    try:
        from hrt.perf.gpu.command import main as command
    except ModuleNotFoundError as error:
        print(f"hrt.perf.gpu: {error.name} is not installed. Expected a Python with torch and Triton.", file=sys.stderr)
        return 2
    return command()


if __name__ == "__main__":
    sys.exit(main())
