"""Import every module of an unpacked wheel, from there and from nowhere else: python -P import_everything.py FOLDER.

Modules whose packages are not installed here (servers, Triton) are counted, not hidden.
"""

import importlib
import pkgutil
import sys
from pathlib import Path

FOREIGN = {"mlserver", "ray", "triton", "triton_python_backend_utils", "starlette", "fastapi"}


def main(folder: Path) -> int:
    import hrt

    modules, absent = [], []
    for module in pkgutil.walk_packages(hrt.__path__, "hrt."):
        if module.name.endswith("__main__"):
            continue
        try:
            modules.append(importlib.import_module(module.name))
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] not in FOREIGN:
                raise
            absent.append(f"{module.name} (needs {error.name})")
    stray = [m.__name__ for m in (hrt, *modules) if not Path(str(m.__file__)).is_relative_to(folder.resolve())]
    print(f"{len(modules) + 1} modules imported from the wheel; not importable here: {', '.join(absent) or 'none'}")
    if stray:
        print(f"not imported from the wheel: {', '.join(stray)}", file=sys.stderr)
    return bool(stray)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
