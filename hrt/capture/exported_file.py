"""A `.pt2` file (torch.export.save), opened so that nothing in it is run.

torch.export.load alone is not safe: the archive's own JSON can ask for pickle or for a compiled library, symbolic sizes
are evaluated as Python, and names become the source of a function. So the archive is read here first. Members and words
that a plain network does not need are refused or dropped, and torch is given a new archive made of what was checked.
"""

import ast
import io
import json
import math
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from hrt.capture.tracing import quiet
from hrt.errors import InputError, reason
from hrt.support.atomic_files import usable

MAX_JSON = 1 << 24  # bytes of one member; parsed it may take thirty times as much
SMALL_NUMBERS = 1 << 24  # weights that a file of any size may claim
MAX_EXPRESSION, MAX_POWERS, MAX_EXPONENT = 500, 2, 16
MAX_CONSTANT = 2**63

GRAPH = r"models/model\.json"
CONFIGS = r"data/(weights/model_weights|constants/model_constants)_config\.json"
MARKS = r"archive_format|archive_version|byteorder|version|\.data/version|\.data/serialization_id"
NUMBERS = r"data/(weights/weight|constants/tensor)_\d+"
# Example inputs are pickled and not needed; other files that the author put beside the network say nothing of it.
EXAMPLES = "data/sample_inputs/model.pt"
DROPPED = rf"{re.escape(EXAMPLES)}|extra/.*"

NAME = re.compile(r"([A-Za-z_]\w*)?", re.ASCII)
WORD = re.compile(r"[\w.@+\- ]*")
TARGET = re.compile(r"torch\.ops(\.\w+)+|_operator\.\w+|math\.\w+|torch\._?sym_\w+", re.ASCII)
PAYLOAD = re.compile(r"(weight|tensor)_\d+", re.ASCII)
SYMBOL = re.compile(r"[a-z]+\d+|\d+(\.\d*)?", re.ASCII)  # or a number as text
TREES = {None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}
POWERS = ("Pow", "PowByNatural")
FUNCTIONS = {
    *(*POWERS, "Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Max", "Min", "Mod", "PythonMod", "FloorDiv"),
    *("CeilDiv", "CleanDiv", "IntTrueDiv", "TruncToInt", "ToFloat", "Eq", "Ne", "Lt", "Le", "Gt", "Ge"),
    *("Equality", "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan"),
}
EXPRESSION = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Call, ast.Constant, ast.Name, ast.Load, ast.keyword),
    *(ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.UAdd, ast.USub),
    *(ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq),
)


def read_exported(path: Path) -> ExportedProgram:
    """The network in a `.pt2` file. Raises InputError for a file that is missing, damaged, of an older format, or asks
    for anything that could run code.
    """
    if not usable(path).is_file():
        raise InputError(f"{path} does not exist.")
    try:
        archive = _checked_archive(path)
    except _RefusedError as error:
        raise InputError(
            f"{path} was not opened: {error}. Expected what torch.export.save writes for a plain network, which can be "
            "read without running code; save it again with a current torch."
        ) from error
    except Exception as error:  # readers of damaged files raise nearly anything
        raise InputError(f"{path} cannot be read as a torch.export.save file: {reason(error)}.") from error
    try:
        with quiet():
            return torch.export.load(archive)
    except Exception as error:  # the same
        raise InputError(f"{path} cannot be read as a torch.export.save file: {reason(error)}.") from error


class _RefusedError(Exception):
    """Something that a plain network does not need. The message is what was found."""


def _checked_archive(path: Path) -> io.BytesIO:
    """A new archive of the members that were checked, without the others."""
    made = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(made, "w") as new:
        names = old.namelist()
        if len(set(names)) < len(names):
            raise _RefusedError("several of its members have one name")
        room = path.stat().st_size
        for info in old.infolist():
            name, room = info.filename.partition("/")[2], room - info.file_size
            if info.compress_type != zipfile.ZIP_STORED or room < 0:
                raise _RefusedError(f"its member {name[:80]!r} is compressed")
            if re.fullmatch(DROPPED, name):
                continue
            new.writestr(f"model/{name}", _checked_member(name, old.read(info)))
        new.writestr(f"model/{EXAMPLES}", b"")
        config = [json.loads(new.read(name)) for name in new.namelist() if re.fullmatch(f"model/({CONFIGS})", name)]
    claimed = {json.dumps(meta): _numbers(meta["tensor_meta"]) for part in config for meta in part["config"].values()}
    if sum(claimed.values()) > made.tell() + SMALL_NUMBERS:
        raise _RefusedError(f"it claims {sum(claimed.values())} numbers, which its {made.tell()} bytes do not hold")
    made.seek(0)
    return made


def _numbers(meta: Mapping[str, Any]) -> int:
    sizes = [size.get("as_int") for size in meta["sizes"]]
    if any(type(size) is not int or size < 0 for size in sizes):
        raise _RefusedError("a weight has no fixed size")
    return math.prod(sizes)


def _checked_member(name: str, data: bytes) -> bytes:
    if re.fullmatch(NUMBERS, name) or (re.fullmatch(MARKS, name) and len(data) <= 100):
        return data
    if not re.fullmatch(f"{GRAPH}|{CONFIGS}", name):
        pickled = "a pickle, which may run code" if name.endswith((".pt", ".pkl")) else "no part of a plain network"
        raise _RefusedError(f"its member {name[:80]!r} is {pickled}")
    if len(data) > MAX_JSON:
        raise _RefusedError(f"its member {name} takes {len(data)} bytes, more than the {MAX_JSON} that are read")
    return json.dumps(_checked(json.loads(data.decode()), "")).encode()


def _checked(value: Any, key: str) -> Any:
    """`value`, which stands under `key` in the JSON, without what is not needed. Raises _RefusedError."""
    if key == "metadata" and isinstance(value, dict):
        return {k: v for k, v in value.items() if k == "nn_module_stack"}  # text: paths for messages
    if isinstance(value, dict):
        return {k: _checked(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [] if key == "guards_code" else [_checked(v, key) for v in value]
    if key == "use_pickle" and value is not False:
        raise _RefusedError("a weight in it asks for pickle, which may run code")
    if isinstance(value, str) and not ACCEPTS.get(key, WORD.fullmatch)(value):
        raise _RefusedError(f"found {value[:80]!r} as {key}, which torch could run as code")
    return value


def _is_tree(text: str) -> bool:
    """Whether `text` says how a function's arguments nest, in tuples, lists and dictionaries of plain names."""
    version, tree = json.loads(text)
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        context = json.loads(node["context"] or "null")
        plain = all(isinstance(k, str) and NAME.fullmatch(k) for k in context or ())
        if node["type"] not in TREES or not isinstance(context, (list, type(None))) or not plain:
            return False
        waiting += node["children_spec"]
    return version == 1


def _is_size(text: str) -> bool:
    """Whether `text` is arithmetic over symbols, of a length and with powers that nothing waits for."""
    if len(text) > MAX_EXPRESSION:
        return False
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError):
        return False
    powers = sum(isinstance(n, ast.Pow) or (isinstance(n, ast.Name) and n.id in POWERS) for n in nodes)
    return powers <= MAX_POWERS and all(map(_is_arithmetic, nodes))


def _is_arithmetic(node: ast.AST) -> bool:
    match node:
        case ast.Constant(value=str(text)):
            return SYMBOL.fullmatch(text) is not None
        case ast.Constant(value=value):
            return isinstance(value, (int, float)) and abs(value) <= MAX_CONSTANT
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return name in FUNCTIONS and (name not in POWERS or (len(arguments) == 2 and _is_small(arguments[1])))
        case ast.BinOp(op=ast.Pow(), right=power):
            return _is_small(power)
        case ast.Name(id=name):
            return name in FUNCTIONS or SYMBOL.fullmatch(name) is not None
    return isinstance(node, EXPRESSION) and not isinstance(node, ast.Call)


def _is_small(exponent: ast.AST) -> bool:
    match exponent:
        case (
            ast.Constant(value=int(value))
            | ast.Call(func=ast.Name(id="Integer"), args=[ast.Constant(value=int(value))])
        ):
            return value <= MAX_EXPONENT
    return False


# What stands in the JSON under these keys; under all others stand plain words.
ACCEPTS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("name", "as_name", "forward_arg_names"), NAME.fullmatch),
    **dict.fromkeys(("in_spec", "out_spec"), _is_tree),
    "target": TARGET.fullmatch,
    "expr_str": _is_size,
    "path_name": PAYLOAD.fullmatch,
    "as_string": lambda text: True,  # an argument of an operator
}
