"""Which configuration a launch runs with: the user's measured ones, else the shipped table's, else a rule's.

A configuration belongs to an architecture, a kernel, a precision, the storage of the weights, the shape of the weight
tiles and a batch bucket (a power of two). `hrt tune` fills the user's cache. `python -m hrt.kernels.aot` compiles and
gates the rule's choices.
"""

import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from pathlib import Path

import torch
from platformdirs import user_cache_dir

from hrt.kernels.launch import Config
from hrt.kernels.precisions import WORKSPACE, converts

SHIPPED = Path(__file__).with_name("configs.json")
FORMAT = 1
LARGEST_BUCKET = 1 << 16
PROCESSORS = {"sm_80": 108, "sm_90": 132, "sm_100": 148}
SHARED = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024}
ITEM = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}


@dataclass(frozen=True)
class Key:
    """What a configuration is for. storage: types of the weight buffers, sorted and joined by "+".  bucket: points.
    streams: rows of a point, more than one where derivatives are carried.
    """

    arch: str
    kernel: str
    precision: str
    storage: str
    rows: int
    columns: int
    bucket: int
    streams: int = 1

    @property
    def batch(self) -> int:
        """Rows of the workspace."""
        return self.bucket * self.streams

    @property
    def converts(self) -> bool:
        """Whether weights are converted on the way into a product: the form is batch or row then, never swapped."""
        return converts((getattr(torch, name) for name in self.storage.split("+")), self.precision)

    def __str__(self) -> str:
        shape = f"{self.rows}x{self.columns}"
        points = f"{self.bucket}x{self.streams}" if self.streams > 1 else f"{self.bucket}"
        return f"{self.arch}/{self.kernel}/{self.precision}/{self.storage}/{shape}/{points}"


def bucket_of(batch: int) -> int:
    """The power of two that a batch is rounded up to."""
    return 1 << max(0, batch - 1).bit_length()


def storage_name(weights: Iterable[torch.dtype]) -> str:
    """The storage part of a key."""
    return "+".join(sorted({str(t).removeprefix("torch.") for t in weights})) or "float32"


def rule(key: Key) -> Config:
    """A sound configuration for any key, from the shapes alone; never measured."""
    storage = key.storage.split("+")
    packed, mixed = "int8" in storage, len(set(storage) - {"int8"}) > 1
    plain = key.precision == "ieee"
    if key.streams == 1 and key.bucket <= (8 if plain else 1):
        return Config("row", 1, 8 if mixed and key.kernel == "step" else 4, 3, _programs(key))
    if key.converts:
        form, block = "batch", min(64, max(16, key.batch))
    elif key.batch < 64 or packed:
        form, block = "swapped", min(64, max(16, key.batch))
    else:
        form, block = "batch", min(128, key.batch)
    if plain or key.precision == "tf32x3" or mixed or key.kernel == "network":
        block = min(block, 64)  # two or three products' operands at a time are in registers
    if key.arch.startswith("sm_10") and key.rows >= 128:
        block = min(block, 64)  # sums come out of tensor memory all at once there
    if key.streams > 1:  # streams are picked out of the whole tile of sums, and a tile's functions stand beside it
        block = min(block, 64)
    crowded = packed and mixed and key.precision == "tf32x3"
    if plain or crowded or (key.kernel == "network" and (packed or mixed)):
        block = 32 if crowded and key.kernel == "network" else min(block, 32)
    ampere = key.arch.startswith("sm_8")
    if ampere and key.kernel == "network" and key.precision == "tf32x3" and key.streams > 1:
        block = min(block, 32)  # operands come by registers there: Triton 3.7 spills at 64 rows
    wide = 4096 if key.streams > 1 and key.kernel == "network" else 8192
    converted = (key.converts and block < 64) or (mixed and key.streams > 1 and block > 16)
    if key.arch.startswith("sm_10"):
        converted = converted and (block > 16 or key.columns > 32)  # Triton 3.9 spills fewer
    crammed = converted or (ampere and packed and mixed and block >= 64)
    warps = 8 if block * key.rows >= wide or (crammed and key.kernel == "step") else 4  # fewer registers a thread
    item = WORKSPACE[key.precision].itemsize
    weight = max(item if mixed else ITEM[s] for s in storage)
    stage = key.columns * (block * item + key.rows * weight)
    fits = SHARED.get(key.arch, SHARED["sm_80"]) // stage
    stages = 4 if form == "swapped" and not plain and not crowded and fits >= 8 else min(3, fits)
    return Config(form, block, warps, stages, _programs(key))


def _programs(key: Key) -> int:
    """Programs that keep every multiprocessor busy, two each; a whole network in one launch is never cut."""
    return 2 * PROCESSORS.get(key.arch, PROCESSORS["sm_90"]) if key.kernel == "step" else 0


def candidates(key: Key) -> list[Config]:
    """What `hrt tune` tries: the rule, its neighbours, and the other forms of that batch."""
    base = rule(key)
    forms = [("row", 1)] if key.bucket <= 8 and key.streams == 1 else []
    if key.converts:
        forms += [("batch", b) for b in (16, 32, 64) if b < 2 * max(16, key.batch)]
    else:
        forms += [("swapped", b) for b in (16, 32, 64) if b < 2 * max(16, key.batch)]
        forms += [("batch", b) for b in (64, 128) if b < 2 * key.batch and key.batch >= 32]
    tried = product(forms, (4, 8), (2, 3, 4), sorted({base.programs, base.programs * 2, 0}))
    return list(dict.fromkeys([base, *(Config(*form, *numbers) for form, *numbers in tried)]))


def user_cache() -> Path:
    """Where measured configurations are kept: $HRT_CACHE, else the user's cache folder."""
    return Path(os.environ.get("HRT_CACHE") or user_cache_dir("hrt", appauthor=False)) / "tuning.json"


@cache
def _read(path: Path, stamp: float) -> dict[str, Config]:
    """The entries of a table; an unreadable one counts as empty, with a warning."""
    try:
        content = json.loads(path.read_text("utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, expected {FORMAT}")
        return {key: Config(**value) for key, value in content["configs"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        warnings.warn(f"{path} was left out: {error}. Delete it, or run `hrt tune` again.", stacklevel=3)
        return {}


def entries(path: Path) -> Mapping[str, Config]:
    """Key (as text) to configuration, as the file is now."""
    return _read(path, path.stat().st_mtime) if path.is_file() else {}


def find(key: Key) -> Config:
    """The configuration of `key`: the user's, else the shipped one, else the rule's; one in a form that `key` must not
    take (an older version's) is passed over. Reads two files, times nothing.
    """
    measured = (entries(path).get(str(key)) for path in (user_cache(), SHIPPED))
    barred = "swapped" if key.converts else None
    return next((c for c in measured if c and c.form != barred), None) or rule(key)


def remember(configs: Mapping[Key, Config]) -> Path:
    """Add configurations to the user's cache, atomically; others stay."""
    path = user_cache()
    merged = {**entries(path), **{str(key): config for key, config in configs.items()}}
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"format": FORMAT, "configs": {key: asdict(c) for key, c in sorted(merged.items())}}
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".tuning-") as folder:
        file = Path(folder) / path.name
        file.write_text(json.dumps(content, indent=1), "utf-8")
        os.replace(file, path)
    return path


def fastest(configs: Iterable[Config], seconds: Callable[[Config], float]) -> tuple[Config, float]:
    """The configuration of least time, and the time. Raises RuntimeError, with the last reason, where none can run."""
    best: tuple[Config, float] | None = None
    reason: Exception | None = None
    for config in configs:
        try:
            time = seconds(config)
        except Exception as error:  # out of shared memory, or a compiler that gives up: the next one
            reason = error
            continue
        if best is None or time < best[1]:
            best = config, time
    if best is None:
        raise RuntimeError(f"No configuration could run. The last one: {reason}") from reason
    return best
