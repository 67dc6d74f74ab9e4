"""The shape of the code base: rules of the house, packaging, and what `import hrt` and `hrt --help` load."""

import ast
import json
import os
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

import house_rules
from house_rules import ROOT

MAPPED = {"hrt.kernels": "kernels", "hrt.export": "export", "hrt.perf": "perf"}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


@pytest.fixture(scope="module")
def code() -> dict[str, ast.Module]:
    return house_rules.modules(*house_rules.PACKAGES, "tests")


@pytest.mark.parametrize("rule", house_rules.RULES)
def test_rule_holds(rule: str, code: dict[str, ast.Module]) -> None:
    faults = house_rules.RULES[rule](code)
    assert not faults, "\n".join(faults)


SEVEN = "a, b, c, d, e, f, g"


class TestTheRulesThemselves:
    """Each rule is shown code that breaks it and code that does not."""

    @pytest.mark.parametrize(
        "source, faults",
        [
            (f"def f({SEVEN}): ...", 0),
            (f"def f({SEVEN}, h): ...", 1),
            (f"class A:\n    def f(self, {SEVEN}): ...", 0),
            (f"def f(x, *, {SEVEN}): ...", 0),
            (f"def _f(x, *, {SEVEN}): ...", 1),
            (f"def f(x, y, z, w, *, {SEVEN}): ...", 1),
            (f"@triton.jit\ndef kernel({SEVEN}, h): ...", 0),
        ],
    )
    def test_parameters_are_counted(self, source: str, faults: int) -> None:
        assert len(house_rules.too_many_parameters({"hrt/a.py": ast.parse(source)})) == faults

    @pytest.mark.parametrize(
        "source, faults",
        [
            ("from hrt.a import _secret", 1),
            ("import hrt.a\nhrt.a._secret()", 1),
            ("def f(x):\n    return x._state", 1),
            ("import os\nos._exit(0)", 0),
            ("class B:\n    def f(self, other):\n        self._state = 1\n        return other._state", 0),
        ],
    )
    def test_private_names_stay_private(self, source: str, faults: int) -> None:
        owner = "def _secret(): ...\nclass A:\n    def __init__(self):\n        self._state = 0"
        code = {"hrt/a.py": ast.parse(owner), "hrt/b.py": ast.parse(source)}
        assert len(house_rules.private_reaches(code)) == faults

    def test_assertions_crowds_and_empty_words_are_seen(self) -> None:
        code = {f"hrt/room/m{k}.py": ast.parse("found = 1\nassert found") for k in range(house_rules.MAX_MODULES + 1)}
        assert len(house_rules.assertions(code)) == len(house_rules.empty_words(code)) == len(code)
        assert house_rules.crowded_folders(code) == [f"hrt/room/ has {len(code)} modules"]


class TestPackages:
    def test_every_folder_with_python_is_packaged(self) -> None:
        settings = PYPROJECT["tool"]["setuptools"]
        folders = {path.parent for top in house_rules.PACKAGES for path in (ROOT / top).rglob("*.py")}
        dotted = {".".join(f.relative_to(ROOT).parts) for f in folders}
        assert set(settings["packages"]) == {name if name.split(".")[0] == "hrt" else f"hrt.{name}" for name in dotted}
        assert settings["package-dir"] == MAPPED
        assert all((folder / "__init__.py").is_file() for folder in folders)

    @pytest.mark.parametrize("folder", MAPPED.values())
    def test_type_checker_sees_the_mapped_folder(self, folder: str) -> None:
        assert (ROOT / "typings" / "hrt" / folder).resolve() == ROOT / folder

    @pytest.mark.parametrize("room", [p for p in PYPROJECT["tool"]["setuptools"]["packages"] if p.count(".") == 1])
    def test_every_room_says_what_it_is_for(self, room: str) -> None:
        path = ROOT / (MAPPED.get(room) or room.replace(".", "/"))
        assert ast.get_docstring(ast.parse((path / "__init__.py").read_text("utf-8")))


PROBE = """
import json, sys
{code}
torch = sys.modules.get("torch")
print(json.dumps([sorted(m.split(".")[0] for m in sys.modules), bool(torch) and torch.cuda.is_initialized()]))
"""
PUBLIC_NAMES = "import hrt; [getattr(hrt, name) for name in hrt.__all__]"


@cache
def probe(code: str) -> tuple[list[str], bool]:
    """What `code` imports in a new interpreter, and whether it touched CUDA."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROBE.format(code=code)],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        cwd=ROOT / "tests",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return tuple(json.loads(done.stdout))


HELP = """
import contextlib, io
from hrt.cli.main import main
with contextlib.redirect_stdout(io.StringIO()) as text:
    assert main([{option!r}]) == 0
assert text.getvalue().strip()
"""


class TestImports:
    @pytest.mark.parametrize("code", ["import hrt", HELP.format(option="--help"), HELP.format(option="--version")])
    def test_come_without_torch(self, code: str) -> None:
        assert "torch" not in probe(code)[0]

    @pytest.mark.parametrize("heavy", ["onnxruntime", "matplotlib", "triton"])
    def test_of_public_names_leave_heavy_modules_alone(self, heavy: str) -> None:
        assert heavy not in probe(PUBLIC_NAMES)[0]

    def test_ask_no_device(self) -> None:
        assert not probe(PUBLIC_NAMES)[1]

    def test_probe_sees_torch(self) -> None:
        assert "torch" in probe(PUBLIC_NAMES)[0]


def test_distribution_and_import_name() -> None:
    assert PYPROJECT["project"]["name"] == "hmatrix-runtime"
    assert PYPROJECT["project"]["scripts"] == {"hrt": "hrt.cli.entry:main"}
    assert Path(ROOT / "hrt" / "py.typed").is_file()
