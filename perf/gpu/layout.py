"""Where hrt is imported from on a machine that has none: links, as the wheel lays out folders, in build/card."""

import os
import sys
from importlib.util import find_spec

from hrt.errors import InputError
from hrt.perf.gpu.pack import FOLDER, ROOT, SITE

LAYOUT = ROOT / "build" / "card"
FOLDERS = ("kernels", "export", "perf")  # that the wheel maps into hrt
NEEDED = ("torch", "triton", "numpy", "scipy")  # that no pack brings


def check_packages() -> None:
    """Raise InputError, naming all that is missing, where steps cannot be run."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise InputError(f"Not installed: {', '.join(missing)}. Expected a Python with torch, Triton, NumPy and SciPy.")


def lay_out() -> None:
    """Make LAYOUT, and have the processes that this one starts import hrt, and packed packages, from there."""
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if str(LAYOUT) in paths:  # whoever started this process has laid it out
        return
    package = LAYOUT / "hrt"
    package.mkdir(parents=True, exist_ok=True)
    for source in (*(ROOT / "hrt").iterdir(), *(ROOT / name for name in FOLDERS)):
        link = package / source.name
        if link.is_symlink() and not link.exists():
            link.unlink()
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(source, package))
    packed = {
        p.name: p for p in (FOLDER / SITE).glob("*") if find_spec(p.name.partition("-")[0].partition(".")[0]) is None
    }
    for link in set(LAYOUT.iterdir()) - {package}:
        if link.name not in packed:  # of another Python, or installed meanwhile
            link.unlink()
    for name, source in packed.items():  # what this machine lacks
        if not (LAYOUT / name).is_symlink():
            (LAYOUT / name).symlink_to(os.path.relpath(source, LAYOUT))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(LAYOUT), *filter(None, paths)])


def enter() -> None:
    """Start this command anew in LAYOUT, where it has only the stand-in for hrt of `__main__`."""
    check_packages()
    if not getattr(sys.modules["hrt"], "__file__", None):
        lay_out()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
