"""The rules of the house that no linter knows: python tests/house_rules.py prints each with what breaks it.

Import direction and circles are import-linter's (`make lint`).
"""

import ast
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("hrt", "kernels", "export", "perf")
MAX_PARAMETERS = 7
MAX_POSITIONAL = 3  # of a public function whose other parameters are keyword-only
MAX_LINES = 350
MAX_TEST_LINES = 500
MAX_MODULES = 16
BANNED_VARIABLES = {"found", "own", "kept", "mine", "said"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def modules(*folders: str) -> dict[str, ast.Module]:
    """The parsed modules below these folders of the repository, by path."""
    paths = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text("utf-8")) for path in paths}


@cache
def nodes(tree: ast.Module) -> list[ast.AST]:
    """All of them, gone through once for all rules."""
    return list(ast.walk(tree))


def walk(code: dict[str, ast.Module], kinds: type | tuple[type, ...]) -> Iterator[tuple[str, ast.AST]]:
    for path, tree in code.items():
        yield from ((path, node) for node in nodes(tree) if isinstance(node, kinds))


def parameter_count(function: Function) -> int:
    every = [a.arg for a in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
    return len([name for name in every if name not in ("self", "cls")])


def is_keyword_only_entry(function: Function) -> bool:
    """A public function, or a constructor, with few positional parameters and its options as keywords."""
    public = not function.name.startswith("_") or function.name == "__init__"
    return public and parameter_count(function) - len(function.args.kwonlyargs) <= MAX_POSITIONAL


def too_many_parameters(code: dict[str, ast.Module]) -> list[str]:
    """Functions with over seven parameters, outside Triton kernels and keyword-only public entries."""
    return [
        f"{path}:{node.lineno} {node.name} has {parameter_count(node)} parameters"
        for path, node in walk(code, (ast.FunctionDef, ast.AsyncFunctionDef))
        if isinstance(node, Function)
        and parameter_count(node) > MAX_PARAMETERS
        and not is_keyword_only_entry(node)
        and not any("jit" in ast.unparse(d) for d in node.decorator_list)
    ]


def defined_privately(tree: ast.Module) -> set[str]:
    """Private names that a module makes: functions, classes, attributes, variables, imported modules."""
    names = set()
    for node in nodes(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names.add(node.name)
            case ast.Attribute(attr=name, ctx=ast.Store()) | ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def private_reaches(code: dict[str, ast.Module]) -> list[str]:
    """Private names of ours that a module takes from another one."""
    made = {path: defined_privately(tree) for path, tree in code.items()}
    ours = set().union(*made.values())
    faults = []
    for path, tree in code.items():
        for node in nodes(tree):
            match node:
                case ast.ImportFrom(names=names):
                    reached = [a.name for a in names if a.name in ours]
                case ast.Attribute(attr=name) if name in ours and name not in made[path]:
                    reached = [name]
                case _:
                    continue
            faults += [f"{path}:{node.lineno} reaches {name}" for name in reached]
    return faults


def too_long(code: dict[str, ast.Module]) -> list[str]:
    """Modules over 350 lines, test files over 500."""
    lines = {path: len((ROOT / path).read_text("utf-8").splitlines()) for path in code}
    limits = {path: MAX_TEST_LINES if path.startswith("tests/") else MAX_LINES for path in code}
    return [f"{path} has {count} lines" for path, count in lines.items() if count > limits[path]]


def crowded_folders(code: dict[str, ast.Module]) -> list[str]:
    """Folders with over 16 modules."""
    folders = [str(Path(path).parent) for path in code if not path.startswith("tests/")]
    return [f"{f}/ has {folders.count(f)} modules" for f in sorted(set(folders)) if folders.count(f) > MAX_MODULES]


def assertions(code: dict[str, ast.Module]) -> list[str]:
    """Assert statements outside tests: they vanish under -O."""
    return [f"{path}:{node.lineno}" for path, node in walk(code, ast.Assert) if not path.startswith("tests/")]


def empty_words(code: dict[str, ast.Module]) -> list[str]:
    """Variables called found, own, kept, mine or said, outside tests."""
    names = [(path, node) for path, node in walk(code, (ast.Name, ast.arg)) if not path.startswith("tests/")]
    return [
        f"{path}:{node.lineno} {getattr(node, 'id', None) or getattr(node, 'arg', '')}"
        for path, node in names
        if (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in BANNED_VARIABLES)
        or (isinstance(node, ast.arg) and node.arg in BANNED_VARIABLES)
    ]


RULES: dict[str, Callable[[dict[str, ast.Module]], list[str]]] = {
    "functions with over 7 parameters": too_many_parameters,
    "private names reached across modules": private_reaches,
    "modules over 350 lines, test files over 500": too_long,
    "folders with over 16 modules": crowded_folders,
    "assert statements outside tests": assertions,
    "variables called found, own, kept, mine or said": empty_words,
}


def main() -> int:
    code = modules(*PACKAGES, "tests")
    faults = {name: rule(code) for name, rule in RULES.items()}
    folders = [str(Path(path).parent) for path in code if not path.startswith("tests/")]
    for name, lines in faults.items():
        print(f"{name}: {len(lines) or 'none'}")
        print(*(f"  {line}" for line in lines), sep="\n", end="\n" if lines else "")
    print(f"largest folder: {max(folders.count(f) for f in set(folders))} modules")
    return any(faults.values())


if __name__ == "__main__":
    sys.exit(main())
