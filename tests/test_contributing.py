"""The worked examples of CONTRIBUTING.md, followed to the letter in a copy of this checkout.

Every step of a list names a file. A block for a file that is not there is that file. Of others, imports go behind the
last import, definitions before the table that the step names, and anything else becomes the table's first entry.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from running import free_ports

ROOT = Path(__file__).resolve().parents[1]
STEP = re.compile(r"^\d+\. `([\w/.-]+)`(?:, in `(\w+)`)?", re.MULTILINE)
BLOCK = re.compile(r"^   ```python\n(.*?)^   ```$", re.MULTILINE | re.DOTALL)
FOLDERS = ("hrt", "kernels", "export", "perf", "tests")
pytestmark = pytest.mark.slow


def steps(heading: str) -> Iterator[tuple[str, str, list[str]]]:
    """Of a section: the file, the table in it, and the blocks of code."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    places = list(STEP.finditer(text))
    for place, following in zip(places, [*places[1:], None], strict=True):
        part = text[place.end() : following.start() if following else len(text)]
        blocks = [textwrap.dedent(block) for block in BLOCK.findall(part)]
        if blocks:
            yield place[1], place[2], blocks


def followed(heading: str, copy: Path) -> int:
    """How many blocks were put into the copy."""
    count = 0
    for name, table, blocks in steps(heading):
        path = copy / name
        for block in blocks:
            path.write_text(block if not path.exists() else inserted(path.read_text("utf-8"), table, block), "utf-8")
            count += 1
    return count


def inserted(text: str, table: str, block: str) -> str:
    if block.startswith(("from ", "import ")):
        place = [m.end() for m in re.finditer(r"^(?:from \S+ import [^(\n]+|import \S+)$", text, re.MULTILINE)][-1]
        return f"{text[:place]}\n{block}{text[place:]}"
    opening = re.search(rf"^{table}\b[^=\n]*= [\[{{]", text, re.MULTILINE)
    assert opening, f"no table {table}"
    if block.startswith("def "):
        return f"{text[: opening.start()]}{block}\n\n{text[opening.start() :]}"
    block = block.rstrip(",\n") + ",\n"
    return f"{text[: opening.end()]}\n{textwrap.indent(block, '    ')}{text[opening.end() :]}"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """This checkout's code, laid out as a wheel is, so that nothing of it is imported from elsewhere."""
    for name in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__", "results", "node_modules")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    for name in ("kernels", "export", "perf"):
        (tmp_path / "hrt" / name).symlink_to(tmp_path / name)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def run(copy: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": f"{copy}{os.pathsep}{copy / 'tests'}"}
    process = subprocess.run([sys.executable, *words], cwd=copy, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
    return process.stdout


NETWORK = "import torch; net = torch.nn.Linear(2, 2)"


class Test:
    def test_an_op(self, copy):
        assert followed("Add an op", copy) == 8
        chosen = "erfc or has_a_lowering or answers_are_the_tables or rows_that_are_gone"
        files = [
            "tests/test_op_table_is_whole.py",
            "tests/program",
            "tests/derivatives",
            "tests/certificate",
            "tests/export/onnx",
            "tests/export/c/test_operators.py",
            "tests/capture/test_aten_values.py",
        ]
        out = run(copy, "-m", "pytest", "-q", "-m", "not slow", "-k", chosen, "-p", "no:cacheprovider", *files)
        assert int(re.findall(r"(\d+) passed", out)[0]) >= 10
        run(copy, "-c", "import hrt, torch; from torch import nn\n"
            "class N(nn.Module):\n"
            "    def __init__(self): super().__init__(); self.a = nn.Linear(2, 9)\n"
            "    def forward(self, x): return torch.erfc(self.a(x))\n"
            "m = hrt.compress(N(), inputs=hrt.Box([-1, -1], [1, 1]), tol=1e-2, progress=False)\n"
            "assert m.certificate.guaranteed, m.certificate.context\n"
            "m.predict(torch.rand(5, 2), derivatives=['d0', 'd0d0d1'])")  # fmt: skip

    def test_a_backend(self, copy):
        pytest.importorskip("openvino")
        assert followed("Add a backend", copy) == 4
        run(
            copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/export/other_runtimes/test_openvino_session.py"
        )
        run(copy, "-c", f"{NETWORK}; import hrt; m = hrt.compress(net, progress=False); m.save('n.hrt')\n"
            "assert hrt.load('n.hrt', backend='openvino').predict([[1.0, 2.0]]).shape == (1, 2)")  # fmt: skip

    def test_a_server(self, copy):
        assert followed("Add a server", copy) == 4
        run(copy, "-c", f"{NETWORK}; import hrt; hrt.compress(net, progress=False).save('n.hrt')")
        run(copy, "-m", "hrt.cli", "repository", "n.hrt", "models", "--name", "net", "--server", "python")
        (port,) = free_ports(1)
        server = subprocess.Popen([sys.executable, "application.py", str(port)], cwd=copy / "models/net",
                                  env={**os.environ, "PYTHONPATH": str(copy)})  # fmt: skip
        try:
            tensor = {"datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}
            names = json.loads(run(copy, "-c", "import hrt, json; print(json.dumps([v.name for v in hrt.load('n.hrt')"
                                   ".program.inputs]))"))  # fmt: skip
            body = json.dumps({"inputs": [{**tensor, "name": names[0]}]}).encode()
            answer = asked(f"http://127.0.0.1:{port}/v2/models/net/infer", body)
            expected = run(copy, "-c", "import hrt; print(hrt.load('n.hrt').predict([[1.0, 2.0]])[0].tolist())")
            assert answer["outputs"][0]["data"] == pytest.approx(json.loads(expected), rel=1e-6)
        finally:
            server.terminate()
            server.wait(10)


def asked(address: str, body: bytes, seconds: float = 60.0) -> dict:
    """The answer of a server that may still be starting."""
    until = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(address, body, timeout=10) as answer:
                return json.loads(answer.read())
        except urllib.error.URLError:
            assert time.monotonic() < until
            time.sleep(0.2)
