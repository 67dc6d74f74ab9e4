"""Holds the shape of the code base: import direction, module size, packaging and the cost of `import hrt`."""

import ast
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"hrt": "hrt", "hrt.kernels": "kernels", "hrt.export": "export", "hrt.perf": "perf"}
BARE_NAMES = {"kernels", "export", "perf"}
MAX_LINES = 350
MAX_IMPORT_SECONDS = 1.0

# Which packages a package may import: at module level, and (for the named modules only) inside a function.
ALLOWED = {
    "hrt.kernels": {"hrt.kernels"},
    "hrt": {"hrt", "hrt.kernels"},
    "hrt.export": {"hrt", "hrt.kernels", "hrt.export"},
    "hrt.perf": set(FOLDERS),
}
LAZILY_ALLOWED = {
    "hrt": {"hrt.export"},
    "hrt.runtime": {"hrt.export"},
    "hrt.cli": {"hrt.perf"},
}


@dataclass(frozen=True)
class Import:
    """One imported name: `target` is the longest dotted path the statement can stand for."""

    target: str
    line: int
    lazy: bool  # inside a function


def dotted_name(package: str, path: Path) -> str:
    return package if path.stem == "__init__" else f"{package}.{path.stem}"


def package_of(target: str) -> str | None:
    """The innermost of our packages that `target` lies in, None for foreign names."""
    inside = [name for name in FOLDERS if target == name or target.startswith(name + ".")]
    return max(inside, key=len, default=None)


def find_imports(tree: ast.AST, package: str) -> Iterator[Import]:
    """Every import in `tree`, a module of `package`: statements, also relative, and import_module("...")."""

    def targets(node: ast.AST) -> list[str]:
        match node:
            case ast.Import(names):
                return [alias.name for alias in names]
            case ast.ImportFrom(module, names, level):
                base = package.split(".")[: len(package.split(".")) - level + 1] if level else []
                prefix = ".".join([*base, *([module] if module else [])])
                return [f"{prefix}.{alias.name}" for alias in names]
            case ast.Call(
                ast.Name("import_module" | "__import__") | ast.Attribute(attr="import_module"),
                [ast.Constant(str(name)), *_],
            ):
                return [name]
        return []

    def walk(node: ast.AST, lazy: bool) -> Iterator[Import]:
        for target in targets(node):
            yield Import(target, getattr(node, "lineno", 0), lazy)
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                body = node.body if isinstance(node.body, list) else [node.body]
                for child in ast.iter_child_nodes(node):  # decorators and defaults run at import
                    yield from walk(child, lazy or child in body)
            case _:
                for child in ast.iter_child_nodes(node):
                    yield from walk(child, lazy)

    return walk(tree, False)


def import_faults(source: str, module: str, package: str) -> list[str]:
    """What `source`, the text of `module` in `package`, imports against the direction of the layers."""
    faults = []
    for found in find_imports(ast.parse(source), package):
        where = f"{module}:{found.line}"
        if found.target.split(".")[0] in BARE_NAMES:
            faults.append(f"{where} imports bare {found.target}, write hrt.{found.target}")
            continue
        target = package_of(found.target)
        if target is None or target in ALLOWED[package]:
            continue
        if target not in LAZILY_ALLOWED.get(module, set()):
            faults.append(f"{where} imports {found.target}, {package} may import {sorted(ALLOWED[package])}")
        elif not found.lazy:
            faults.append(f"{where} imports {found.target} at import time, it belongs inside the function")
    return faults


def assert_lines(source: str) -> list[int]:
    return [node.lineno for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assert)]


def is_too_long(source: str) -> bool:
    return len(source.splitlines()) > MAX_LINES


def misplaced(folder: Path) -> list[str]:
    """What setuptools would leave out without a word: a folder without __init__.py, Python below the top."""
    init = [] if (folder / "__init__.py").is_file() else [f"{folder.name}/__init__.py is missing"]
    nested = [path for path in folder.rglob("*.py") if path.parent != folder]
    return init + [f"{path.relative_to(folder.parent)} lies below a flat package" for path in sorted(nested)]


MODULES = [
    pytest.param(package, path, id=path.relative_to(ROOT).as_posix())
    for package, folder in FOLDERS.items()
    for path in sorted((ROOT / folder).glob("*.py"))
]


@pytest.mark.parametrize("package, path", MODULES)
class TestModule:
    def test_imports_flow_one_way(self, package: str, path: Path) -> None:
        faults = import_faults(path.read_text("utf-8"), dotted_name(package, path), package)
        assert not faults, "\n".join(faults)

    def test_has_no_assert_statement(self, package: str, path: Path) -> None:
        lines = assert_lines(path.read_text("utf-8"))
        assert not lines, f"assert vanishes under -O, raise a typed error: lines {lines}"

    def test_is_short_enough_to_hold_one_subject(self, package: str, path: Path) -> None:
        source = path.read_text("utf-8")
        assert not is_too_long(source), f"{len(source.splitlines())} lines, at most {MAX_LINES}"


class TestPackages:
    @pytest.mark.parametrize("folder", FOLDERS.values())
    def test_is_flat_and_has_init(self, folder: str) -> None:
        assert not misplaced(ROOT / folder)

    def test_mapping_in_pyproject_is_the_one_held_here(self) -> None:
        settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
        assert set(settings["packages"]) == set(FOLDERS)
        assert settings["package-dir"] == {name: folder for name, folder in FOLDERS.items() if name != "hrt"}

    @pytest.mark.parametrize("folder", sorted(BARE_NAMES))
    def test_type_checker_sees_the_mapped_folder(self, folder: str) -> None:
        assert (ROOT / "typings" / "hrt" / folder).resolve() == ROOT / folder


IMPORT_PROBE = """
import json, sys, time
start = time.perf_counter()
import torch
torch_done = time.perf_counter()
before = set(sys.modules)
import hrt
print(json.dumps({
    "torch": torch_done - start,
    "beyond_torch": time.perf_counter() - torch_done,
    "added": sorted(set(sys.modules) - before),
    "cuda_touched": torch.cuda.is_initialized(),
}))
"""


@cache
def import_probe(run: int) -> dict:
    """Imports hrt in a new interpreter that sees no GPU, away from the checkout."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", IMPORT_PROBE],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        cwd=ROOT / "tests",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class TestImportOfHrt:
    def test_takes_less_than_a_second_beyond_torch(self) -> None:
        runs = [import_probe(run) for run in range(3)]
        assert min(run["beyond_torch"] for run in runs) < MAX_IMPORT_SECONDS, runs

    @pytest.mark.parametrize("heavy", ["onnxruntime", "matplotlib", "triton"])
    def test_leaves_heavy_modules_alone(self, heavy: str) -> None:
        assert [name for name in import_probe(0)["added"] if name.split(".")[0] == heavy] == []

    def test_asks_no_device(self) -> None:
        assert not import_probe(0)["cuda_touched"]

    def test_probe_reports_what_was_imported(self) -> None:
        assert "hrt" in import_probe(0)["added"]


class TestTheRulesThemselves:
    """Each rule is shown code that breaks it and code that does not."""

    @pytest.mark.parametrize(
        "module, package, source",
        [
            ("hrt.kernels.steps", "hrt.kernels", "from hrt.errors import HrtError"),
            ("hrt.kernels.steps", "hrt.kernels", "import hrt"),
            ("hrt.kernels.steps", "hrt.kernels", "from hrt import program"),
            ("hrt.kernels.steps", "hrt.kernels", "from .. import program"),
            ("hrt.kernels.steps", "hrt.kernels", "from ..program import Program"),
            ("hrt.kernels.steps", "hrt.kernels", "def f():\n    import hrt.perf.measure"),
            ("hrt.hmatrix", "hrt", "import hrt.export"),
            ("hrt.hmatrix", "hrt", "from hrt import export"),
            ("hrt.hmatrix", "hrt", "from . import perf"),
            ("hrt.hmatrix", "hrt", "from .export.graph import build"),
            ("hrt.hmatrix", "hrt", "def f():\n    import hrt.export"),
            ("hrt.hmatrix", "hrt", "if TYPE_CHECKING:\n    from hrt.export import graph"),
            ("hrt.hmatrix", "hrt", "import importlib\nimportlib.import_module('hrt.perf')"),
            ("hrt.runtime", "hrt", "from hrt.export import graph"),
            ("hrt.runtime", "hrt", "class A:\n    from hrt.export import graph"),
            ("hrt.runtime", "hrt", "def f(x=__import__('hrt.export')): ..."),
            ("hrt.runtime", "hrt", "def f():\n    from hrt.perf import measure"),
            ("hrt.cli", "hrt", "from hrt.perf import measure"),
            ("hrt.cli", "hrt", "def f():\n    import hrt.export"),
            ("hrt.export.graph", "hrt.export", "def f():\n    from hrt.perf import measure"),
            ("hrt.perf.measure", "hrt.perf", "import kernels"),
            ("hrt.perf.measure", "hrt.perf", "from export.graph import build"),
            ("hrt.perf.measure", "hrt.perf", "def f():\n    from perf import report"),
        ],
    )
    def test_wrong_direction_is_found(self, module: str, package: str, source: str) -> None:
        assert import_faults(source, module, package)

    @pytest.mark.parametrize(
        "module, package, source",
        [
            ("hrt.kernels.steps", "hrt.kernels", "import torch\nfrom hrt.kernels import reference"),
            ("hrt.kernels.steps", "hrt.kernels", "from . import reference\nfrom .reference import step"),
            ("hrt.hmatrix", "hrt", "from hrt import kernels\nfrom hrt.kernels.steps import step"),
            ("hrt.hmatrix", "hrt", "from .errors import HrtError\nimport exporter, performance"),
            ("hrt.runtime", "hrt", "def f():\n    from hrt.export import graph"),
            ("hrt.runtime", "hrt", "f = lambda: __import__('hrt.export')"),
            ("hrt", "hrt", "def f():\n    def g():\n        from .export import graph"),
            ("hrt.cli", "hrt", "async def f():\n    if True:\n        from hrt.perf import measure"),
            ("hrt.export.graph", "hrt.export", "from hrt.program import Program\nimport hrt.kernels"),
            ("hrt.perf.measure", "hrt.perf", "import hrt, hrt.export.graph, hrt.kernels, hrt.perf.report"),
        ],
    )
    def test_right_direction_passes(self, module: str, package: str, source: str) -> None:
        assert import_faults(source, module, package) == []

    def test_assert_statement_is_found_and_static_assert_is_not(self) -> None:
        assert assert_lines("def f(x):\n    assert x\n") == [2]
        assert assert_lines("tl.static_assert(x)\nraise ValueError('assert')\n") == []

    def test_module_length_is_counted(self) -> None:
        assert not is_too_long("x = 1\n" * MAX_LINES)
        assert is_too_long("x = 1\n" * (MAX_LINES + 1))

    def test_unpackaged_file_is_found(self, tmp_path: Path) -> None:
        (tmp_path / "part" / "deeper").mkdir(parents=True)
        (tmp_path / "part" / "deeper" / "lost.py").touch()
        assert misplaced(tmp_path / "part") == [
            "part/__init__.py is missing",
            "part/deeper/lost.py lies below a flat package",
        ]

    def test_no_package_was_overlooked(self) -> None:
        seen = {dotted_name(*parameters.values) for parameters in MODULES}
        assert seen >= set(FOLDERS)
