"""Constants as the tensors of a `.hrt` file, and back. `hrt.model.artifact` says how they are called."""

import math
from collections.abc import Iterable, Mapping

import msgspec
import torch
from torch import Tensor

from hrt.hmatrix.hmatrix import LEAF_FIELDS, STORAGE, STORAGE_NAME, HMatrix, Leaf
from hrt.program.program import Constant, Extent

MAX_LEAVES = 1 << 17  # of a file; each takes two kilobytes once it is read, and a tenth of a millisecond
CODES = tuple(STORAGE)  # uint8 code of a storage type is its place here


class Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How an H-matrix is kept: its shape and the storage types that have a buffer."""

    shape: tuple[Extent, Extent]
    buffers: tuple[str, ...]


def pack(constants: Mapping[str, Constant]) -> tuple[dict[str, Tensor], dict[str, Spec | None]]:
    """Tensors by name, widest numbers first so that all are aligned, and what `unpack` must know of each constant."""
    check_leaves(len(c.leaves) for c in constants.values() if isinstance(c, HMatrix))
    tensors: dict[str, Tensor] = {}
    specs: dict[str, Spec | None] = {}
    for name, value in constants.items():
        if isinstance(value, Tensor):
            tensors[f"{name}/value"] = value
            specs[name] = None
            continue
        buffers: dict[str, list[Tensor]] = {}
        leaves = [leaf for leaf in value.leaves if leaf.rows and leaf.cols]  # an empty block says nothing
        for leaf in leaves:
            buffers.setdefault(STORAGE_NAME[leaf.dtype], []).extend(t.reshape(-1) for t in leaf.tensors)
        tensors.update({f"{name}/{s}": torch.cat(parts) for s, parts in buffers.items()})
        scales = [leaf.scale for leaf in leaves if leaf.scale is not None]
        if scales:
            tensors[f"{name}/scales"] = torch.cat(scales)
        if not value.is_dense:
            tensors[f"{name}/leaves"] = value.table[[bool(leaf.rows and leaf.cols) for leaf in value.leaves]]
            codes = [CODES.index(STORAGE_NAME[leaf.dtype]) for leaf in leaves]
            tensors[f"{name}/codes"] = torch.tensor(codes, dtype=torch.uint8, device="cpu")
        for key, order in (("rows", value.row_order), ("cols", value.col_order)):
            if order is not None:
                tensors[f"{name}/{key}"] = order
        specs[name] = Spec(value.shape, tuple(buffers))
    ready = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    return dict(sorted(ready.items(), key=lambda item: (-item[1].element_size(), item[0]))), specs


def check_leaves(counts: Iterable[int]) -> None:
    """Raise ValueError where the matrices of a file have too many leaves together."""
    if (total := sum(counts)) > MAX_LEAVES:
        raise ValueError(f"its matrices have {total} leaves; expected at most {MAX_LEAVES}")


def unpack(name: str, spec: Spec | None, tensors: Mapping[str, Tensor]) -> Constant:
    """The constant `name` from its tensors. Raises ValueError or KeyError where they do not fit each other."""
    if spec is None:
        return tensors[f"{name}/value"]
    m, n = spec.shape
    buffers = {s: tensors[f"{name}/{s}"] for s in spec.buffers}
    if f"{name}/leaves" in tensors:
        table = tensors[f"{name}/leaves"].long().reshape(-1, LEAF_FIELDS).tolist()
        codes = tensors[f"{name}/codes"].tolist()
    else:
        table = [[0, m, 0, n, -1]] if m * n else []
        codes = [CODES.index(s) for s in buffers]
    if f"{name}/scales" in tensors:
        buffers["scales"] = tensors[f"{name}/scales"]
    used = dict.fromkeys(buffers, 0)

    def take(part: str, *shape: int) -> Tensor:
        start = used[part]
        used[part] = start + math.prod(shape)
        numbers = buffers[part][start : used[part]]
        if numbers.numel() != math.prod(shape) or numbers.dtype != STORAGE.get(part, torch.bfloat16):
            raise ValueError(f"the leaves of {name} do not fit their numbers")
        return numbers.view(shape)

    leaves = []
    for (row, rows, col, cols, rank), code in zip(table, codes, strict=True):
        if not (0 <= row < row + rows <= m and 0 <= col < col + cols <= n and rank >= -1):
            raise ValueError(f"{name} has a leaf {[row, rows, col, cols, rank]} in shape {[m, n]}")
        storage = CODES[code]
        scale = take("scales", rows if rank < 0 else rank) if storage == "int8" else None
        if rank < 0:
            leaves.append(Leaf(row, rows, col, cols, dense=take(storage, rows, cols), scale=scale))
        else:
            u, vt = take(storage, rows, rank), take(storage, rank, cols)
            leaves.append(Leaf(row, rows, col, cols, u=u, vt=vt, scale=scale))
    if any(used[s] != buffers[s].numel() for s in buffers):
        raise ValueError(f"{name} has numbers that no leaf uses")
    return HMatrix((m, n), tuple(leaves), tensors.get(f"{name}/rows"), tensors.get(f"{name}/cols"))
