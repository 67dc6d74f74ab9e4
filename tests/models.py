"""Compressed models made by hand for tests, and the changes that a damaged or forged file may show."""

import hashlib
import json
import lzma
import tempfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hrt
from hrt.certificate.certificate import Certificate, LayerRecord, Statement
from hrt.hmatrix.hmatrix import HMatrix, Leaf
from hrt.model.artifact import COLUMNS, DIGEST, LZMA
from hrt.model.model import CompressedModel
from hrt.program.program import Node, Program, Value

from helpers import absolute, random_hmatrix

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def as_int8(leaf: Leaf) -> Leaf:
    """The leaf in int8 with scales: one per row of a dense block, one per direction of a low-rank one."""

    def rounded(t: torch.Tensor, along: int) -> tuple[torch.Tensor, torch.Tensor]:
        scale = t.abs().amax(1 - along).clamp_min(1e-6) / 127 if t.numel() else torch.ones(t.shape[along])
        return (t / (scale[:, None] if along == 0 else scale)).round().to(torch.int8), scale

    place = leaf.place
    parts = [t.float() for t in leaf.tensors]
    if leaf.is_dense:
        numbers, scale = rounded(parts[0], 0)
        return Leaf(*place, dense=numbers, scale=scale.bfloat16())
    (u, first), (vt, second) = rounded(parts[0], 1), rounded(parts[1], 0)
    return Leaf(*place, u=u, vt=vt, scale=(first * second).bfloat16())


def any_hmatrix(seed: Any, m: int, n: int, **options) -> HMatrix:
    """A random H-matrix with all there is: every storage type, and blocks that are sums of several leaves."""
    h = random_hmatrix(seed, m, n, storages=FLOATS, **options)
    leaves: list[Leaf] = []
    for k, leaf in enumerate(h.leaves):
        leaves.append(as_int8(leaf) if k % 3 == 1 else leaf)
        if not leaf.is_dense and k % 2:
            leaves.append(leaf)
    return HMatrix(h.shape, tuple(leaves), h.row_order, h.col_order)


def allowed(x: torch.Tensor, h: HMatrix) -> torch.Tensor:
    """Entrywise bound (batch, m), in float64, on what float32 arithmetic may change of x (batch, n) h^T.

    A sum of k products errs by at most k eps times the sum of their absolute values; a low-rank leaf is two sums after
    each other, and decoding int8 rounds once more.
    """
    terms = h.shape[1] + sum(max(e.rank, 0) for e in h.leaves) + len(h.leaves) + 4
    return terms * torch.finfo(torch.float32).eps * (x.abs().double() @ absolute(h).T) + 1e-40


def linear_program(weight: Any, bias: torch.Tensor | None = None) -> Program:
    """y = x W^T (+ b) for one input."""
    m, n = weight.shape
    constants = {"w": weight} if bias is None else {"w": weight, "b": bias}
    node = Node("y", "linear", ("x", *constants), (m,), {})
    return Program((Value("x", (n,)),), (node,), ("y",), constants)


def linear_model(weight: Any, **options) -> CompressedModel:
    """A model of one weight."""
    m, n = weight.shape
    return CompressedModel(linear_program(weight), Certificate(1e-3, "layers", ()), dense_nbytes=4 * m * n, **options)


def record(name: str, h: HMatrix, **changes) -> LayerRecord:
    """What a certificate says of a layer."""
    m, n = h.shape
    fields = {
        "name": name,
        "shape": (m, n),
        "structure": "H",
        "nbytes": h.nbytes,
        "dense_nbytes": 4 * m * n,
        "frobenius": 1e-4,
        "weighted": None,
        "spectral_estimate": 2e-4,
        "reason": "blocks are low-rank",
    }
    return LayerRecord(**{**fields, **changes})


def mixed_model(seed: int = 0) -> CompressedModel:
    """Two inputs (7,) and (5,), two outputs; mixed storages, orderings, tied weights, odd names, empty constants."""
    g = np.random.default_rng(seed)
    t = torch.Generator().manual_seed(seed)
    hidden = 40
    constants = {
        "a": any_hmatrix(g, hidden, 7, ordered=True),
        "a/leaves": torch.randn(hidden, generator=t),
        'b "ü"\n\\ 雪': any_hmatrix(g, hidden, hidden, depth=4, ordered=False),
        "__metadata__": HMatrix.from_dense(torch.randn(5, 5, generator=t), torch.bfloat16),
        "": any_hmatrix(g, 3, hidden + 5, ordered=True),
        "scalar": torch.tensor(0.25),
        "nothing": HMatrix.from_dense(torch.zeros(0, hidden)),
        "no bias": torch.zeros(0),
        "whole": torch.arange(3),
    }
    shape, tied = (hidden,), 'b "ü"\n\\ 雪'
    nodes = (
        Node("h0", "linear", ("x", "a", "a/leaves"), shape, {}, "net.0"),
        Node("h1", "clamp", ("h0",), shape, {"low": -float("inf"), "high": 2.0}),
        Node("h2", "linear", ("h1", tied), shape, {}),
        Node("h3", "tanh", ("h2",), shape, {}),
        Node("h4", "linear", ("h3", tied), shape, {}),
        Node("z0", "linear", ("z", "__metadata__"), (5,), {}),
        Node("empty", "linear", ("h4", "nothing", "no bias"), (0,), {}),
        Node("all", "concat", ("h4", "z0", "empty"), (hidden + 5,), {"axis": -1}),
        Node("y0", "linear", ("all", ""), (3,), {}),
        Node("y1", "mul", ("y0", "scalar"), (3,), {}),
        Node("y2", "add", ("y1", "whole"), (3,), {}),
    )
    program = Program((Value("x", (7,)), Value("z", (5,))), nodes, ("y2", "h3"), constants)
    layers = tuple(record(k, c) for k, c in constants.items() if isinstance(c, HMatrix))
    figures = {"output_error": 1e-4, "runtime_error": float("inf"), "per_output": [float("nan"), 1e-3]}
    context = {"held_out_rows": 10, "remarks": ["made by hand"]}
    certificate = Certificate(1e-3, "output", layers, figures, {"output_error_upper_99": 2e-4}, {}, context)
    return CompressedModel(program, certificate, target="bytes", dense_nbytes=12345)


def many_model(count: int = 60) -> CompressedModel:
    """A stack of `count` small matrices, each on its own number, whose records make the file one in columns."""
    generator = np.random.default_rng(0)
    nodes, constants, layers = [], {}, []
    for k in range(count):
        weight = f"stack.weight.{k}"
        constants[weight] = HMatrix.from_dense(torch.full((2, 1), 1.0 + k), torch.float16)
        nodes.append(Node(f"part_{2 * k}", "slice", ("x",), (1,), {"axis": -1, "start": k, "stop": k + 1, "step": 1}))
        nodes.append(Node(f"linear_{2 * k + 1}", "linear", (f"part_{2 * k}", weight), (2,), {}, "stack"))
        figures = {name: float(f"{generator.random():.4g}") for name in ("frobenius", "spectral", "condition")}
        bound, measured = (float(f"{v:.4g}") for v in generator.random(2))
        statement = Statement("product", bound, measured, "holds", f"tau {bound:.1e}")
        layers.append(record(weight, constants[weight], statements=(statement,), **figures))
    nodes.append(Node("all", "concat", tuple(f"linear_{2 * k + 1}" for k in range(count)), (2 * count,), {"axis": -1}))
    program = Program((Value("x", (count,)),), tuple(nodes), ("all",), constants)
    return CompressedModel(program, Certificate(1e-3, "layers", tuple(layers), {"worst": float("inf")}))


def parts_of(data: bytes) -> tuple[Any, dict, bytes]:
    """A file taken apart: the table of its tensors, its header, its numbers. Both in columns where the file is."""
    length = int.from_bytes(data[:8], "little")
    outer, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    cut = outer["numbers"]["shape"][0]
    opening = json.loads(outer["__metadata__"]["hrt"])
    header = {**opening, **json.loads(inflated(body[cut:], opening["version"]))}
    return header.pop("tensors"), header, body[:cut]


def inflated(header: bytes, version: int) -> bytes:
    """The JSON of a header as it stands in a file."""
    return lzma.decompress(header, lzma.FORMAT_RAW, filters=LZMA) if version == COLUMNS else zlib.decompress(header)


def deflated(text: bytes, version: int) -> bytes:
    """The inverse of `inflated`."""
    return lzma.compress(text, lzma.FORMAT_RAW, filters=LZMA) if version == COLUMNS else zlib.compress(text, 9)


def sealed(metadata: str, header: bytes, numbers: bytes) -> bytes:
    """A file with these parts, written as they are, and a digest that is right: what a careful forger would write."""
    cut, end = len(numbers), len(numbers) + len(header)
    outer = {
        "__metadata__": {"sha256": "0" * 64, "hrt": metadata},
        "numbers": {"dtype": "U8", "shape": [cut], "data_offsets": [0, cut]},
        "header": {"dtype": "U8", "shape": [len(header)], "data_offsets": [cut, end]},
    }
    text = json.dumps(outer, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    out = bytearray(len(text).to_bytes(8, "little") + text + numbers + header)
    out[DIGEST] = hashlib.sha256(out).hexdigest().encode()
    return bytes(out)


def resealed(
    data: bytes, change: Callable[[dict, dict], Any], payload: Callable[[bytearray], Any] | None = None
) -> bytes:
    """The file `data` with its table (first argument of `change`), header (second) and numbers changed, and sealed."""
    table, header, raw = parts_of(data)
    version, numbers = header["version"], bytearray(raw)
    change(table, header)
    if payload:
        payload(numbers)
    opening = {key: header.pop(key) for key in ("format", "version") if key in header}
    text = json.dumps({**header, "tensors": table}, separators=(",", ":")).encode()
    return sealed(json.dumps(opening, separators=(",", ":")), deflated(text, version), bytes(numbers))


def file_bytes(model: CompressedModel) -> bytes:
    """The bytes of its file."""
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "m.hrt")
        return (Path(folder) / "m.hrt").read_bytes()


@cache
def mixed_bytes() -> bytes:
    return file_bytes(mixed_model())


@cache
def many_bytes() -> bytes:
    return file_bytes(many_model())


@cache
def small_bytes() -> bytes:
    return file_bytes(linear_model(any_hmatrix(5, 6, 5, depth=2, ordered=True)))


def small_network_for_a_card():
    """A network compressed for CUDA, 64 rows, and what the original answers to them in float64."""
    net = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    model = hrt.compress(net, inputs=torch.rand(400, 2) * 2 - 1, tol=1e-2, target="cuda", progress=False)
    x = torch.rand(64, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        return model, x, net.double()(x.double())
