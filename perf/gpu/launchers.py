"""While kernels are packed without a card: Triton's own launchers, which it builds with a C compiler for every
signature, are built too, against a libcuda that does nothing. A machine with a card may have no C compiler.

Also a plugin of pytest, and the test of a pack: where FORBID is set, whatever would be compiled is an error.
"""

import ctypes
import os
import re
import subprocess
from pathlib import Path
from typing import Any

# Environment: a folder that make_libcuda filled; a file that every attempt to compile is noted in.
BUILD, FORBID = "HRT_GPU_BUILD_LAUNCHERS", "HRT_GPU_FORBID_COMPILING"

USED = "used.txt"  # in that folder: the keys of the kernels that were launched


class CompilingError(Exception):
    """A kernel is not among the packed ones."""


def make_libcuda(folder: Path) -> None:
    """A libcuda.so.1 with every function that Triton's launchers and utilities call; each succeeds and does nothing."""
    from triton.backends import nvidia

    texts = [path.read_text() for path in Path(nvidia.__path__[0]).glob("driver.*")]
    names = sorted({name for text in texts for name in re.findall(r"\bcu[A-Z]\w*\b", text)})
    source = folder / "libcuda.c"
    source.write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in names))
    target = folder / "libcuda.so.1"
    command = [os.environ.get("CC", "gcc"), "-w", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o"]
    subprocess.run([*command, str(target), str(source)], check=True)


def install() -> None:
    """As the environment says: build every launcher, or forbid to compile anything."""
    from triton.backends.nvidia import compiler, driver

    if notes := os.environ.get(FORBID):

        def forbid(*arguments: Any, **options: Any) -> None:
            with open(notes, "a") as file:
                file.write("kernel\n")
            raise CompilingError("this process may not compile, and a kernel was not among the packed ones")

        compiler.CUDABackend.add_stages = forbid  # what is found in the cache needs none
    if folder := os.environ.get(BUILD):
        from triton import knobs
        from triton.runtime import driver as current

        knobs.nvidia.libcuda_path = folder
        ctypes.PyDLL(str(Path(folder) / "libcuda.so.1"), mode=ctypes.RTLD_GLOBAL)
        driver.CudaUtils()
        active: Any = current.active
        plain = active.launcher_cls

        def built(src: Any, metadata: Any) -> Any:
            driver.CudaLauncher(src, metadata)
            with open(Path(folder) / USED, "a") as file:
                file.write(f"{metadata.hash}\n")
            return plain(src, metadata)

        active.launcher_cls = built


def pytest_configure(config: Any) -> None:
    """As a plugin, once the stub's has installed its card."""
    install()
