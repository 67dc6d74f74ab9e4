"""What is carried to a machine with a GPU: artifacts, inputs, float64 answers, compiled kernels, missing packages.

Nothing there is compressed or compiled that can be here. `hrt.perf.gpu.fill_pack` makes the folder; this module reads
it, needs neither torch nor git, and says where it does not suit.
"""

import hashlib
import json
import os
import sys
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hrt.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "gpu-pack"
MANIFEST = "manifest.json"
FORMAT = 1
MOST_BYTES = 48 << 20
KERNELS, MODELS = "kernels.zip", "models"
SITE = f"site-{sys.version_info.major}.{sys.version_info.minor}"  # packages for this Python
GROUP = "__grp__"  # files of Triton's cache that name others by their absolute paths
SOURCES = ("hrt", "kernels", "export", "perf")
REMEDY = "Run `make gpu-pack` again, or go on all the same with --anyway."


@dataclass(frozen=True)
class Manifest:
    """What the pack was made of and for. sources: digest of this checkout's code.  arch: such as sm_90.  compiler:
    digest of what Triton puts into every key of its cache.  files: bytes and SHA-256 by path within the folder.
    """

    format: int
    commit: str
    sources: str
    arch: str
    compiler: str
    versions: Mapping[str, str]
    variants: int
    seconds: float
    stub: bool = True
    files: Mapping[str, tuple[int, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Pack:
    """An opened pack."""

    folder: Path
    manifest: Manifest

    @staticmethod
    def open(folder: Path = FOLDER) -> "Pack":
        """The pack in `folder`, every file compared with its digest. Raises InputError."""
        manifest = Pack.manifest_of(folder)
        for name, (_, digest) in manifest.files.items():
            path = folder / name
            if not path.is_file() or digest_of(path) != digest:
                raise InputError(f"{path} is missing or altered. Run `make gpu-pack` again.")
        return Pack(folder, manifest)

    @staticmethod
    def manifest_of(folder: Path) -> Manifest:
        """What stands in the folder's manifest; its files are not looked at. Raises InputError."""
        try:
            content = json.loads((folder / MANIFEST).read_bytes())
            if content["format"] != FORMAT:
                raise ValueError(f"found format {content['format']}, expected {FORMAT}")
            return Manifest(**{**content, "files": {k: (n, d) for k, (n, d) in content["files"].items()}})
        except FileNotFoundError:
            raise InputError(f"Found no pack in {folder}. Make it where there is time: make gpu-pack.") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{folder / MANIFEST} cannot be read: {error}. Run `make gpu-pack` again.") from error

    def model(self, name: str) -> Path:
        """A packed artifact."""
        return self.folder / MODELS / f"{name}.hrt"

    @property
    def models(self) -> list[str]:
        """The names of all artifacts."""
        return sorted(Path(name).stem for name in self.manifest.files if name.endswith(".hrt"))

    def reference(self, name: str) -> Path:
        """Inputs x (rows, n) and float64 answers y (rows, m) of an artifact."""
        return self.folder / MODELS / f"{name}.safetensors"

    def mismatches(self, machine: Mapping[str, str]) -> list[str]:
        """A line for each of the machine's arch, compiler and sources that is not what the pack was made for."""
        expected = asdict(self.manifest)
        lines = {
            "sources": f"The pack was made at commit {self.manifest.commit[:12]}, of other sources than these.",
            "arch": f"The pack's kernels are for {expected['arch']}. Found {machine.get('arch')}.",
            "compiler": f"The pack's kernels were compiled by Triton {self.manifest.versions.get('triton')}, Python "
            f"{self.manifest.versions.get('python')}. Found {machine.get('triton')}, {machine.get('python')}, or "
            "another build.",
        }
        return [line for key, line in lines.items() if key in machine and machine[key] != expected[key]]


def unpack_kernels(source: Path, target: Path) -> None:
    """Extract compiled kernels into `target`, a new folder: Triton's cache names files by absolute paths."""
    with zipfile.ZipFile(source) as packed:
        packed.extractall(target)
    for group in target.glob(f"*/{GROUP}*"):
        children = json.loads(group.read_text())["child_paths"]
        there = {name: str(group.parent / name) for name in children}
        group.write_text(json.dumps({"child_paths": {k: v for k, v in there.items() if os.path.exists(v)}}))


def refuse(mismatches: Iterable[str], anyway: bool) -> None:
    """Raise InputError for the first mismatch, unless the caller goes on all the same."""
    for line in () if anyway else mismatches:
        raise InputError(f"{line} {REMEDY}")


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def source_digest(root: Path = ROOT, folders: Iterable[str] = SOURCES) -> str:
    """SHA-256 of the Python files of this checkout: known without git."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted((root / folder).rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def compiler_digest() -> str:
    """Digest of what Triton puts into every key of its cache: its version, its files, its library."""
    from triton.runtime.cache import triton_key

    return hashlib.sha256(triton_key().encode()).hexdigest()


def machine(arch: str) -> dict[str, Any]:
    """What decides whether packed kernels fit here."""
    import platform
    from importlib.metadata import version

    return {
        "arch": arch,
        "compiler": compiler_digest(),
        "triton": version("triton"),
        "python": platform.python_version(),
    }
