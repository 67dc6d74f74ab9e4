"""`python3 perf/gpu run --budget 420 --out FOLDER`: no make, no git, no install.

Named by its path, it goes with the standard library until a step is run (see `layout`); else it is
`python -m hrt.perf.gpu`.
"""

import os
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
LAYOUT = ROOT / "build" / "card"


def stand_in() -> None:
    """In the place of hrt: its folders, without what `import hrt` takes."""
    package = ModuleType("hrt")
    package.__path__ = [str(ROOT / "hrt"), str(ROOT)]
    sys.modules["hrt"] = package


def main() -> int:
    """The command's exit status, 2 where something it cannot do without is missing."""
    if not __package__:
        sys.path.pop(0)  # this folder
        if str(LAYOUT) not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
            stand_in()
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    try:
        from hrt.perf.gpu.command import main as command

        return command()
    except ModuleNotFoundError as error:
        remedy = "Expected a Python with torch, Triton, NumPy and SciPy, and a pack, which brings the rest."
        print(f"hrt.perf.gpu: {error.name} is not installed. {remedy}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
