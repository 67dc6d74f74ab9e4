"""The scripts of examples/, run as a user runs them: in a process and a folder of their own, in their small setting."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import hrt

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
MADE = {  # by each script: how many errors it prints beside what was asked for, and its files
    "controller_in_c": (1, ["policy.c", "policy.h", "loop.c", "loop"]),
    "deepxde_checkpoint": (1, ["heat-20.pt", "heat.hrt"]),
    "fno_burgers": (1, ["fno.onnx", "fno.png"]),
    "fortran_solver": (1, ["k.c", "k.h", "k.f90", "solver.f90", "solver"]),
    "large_operator": (1, ["operator.png"]),
    "pinn_burgers": (4, ["burgers.hrt", "burgers.png"]),
    "surrogate_onnx": (2, ["beam.onnx", "beam-small.onnx"]),
    "triton_server": (3, ["models/wave/config.pbtxt", "models/wave/1/model.onnx"]),
}
COMPILERS = {"controller_in_c": ["cc"], "fortran_solver": ["cc", "gfortran"]}


def run(name: str, folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, EXAMPLES / f"{name}.py", "--quick"]
    environment = {**os.environ, "MPLBACKEND": "Agg", **environ}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


def outcome(name: str, folder: Path, **environ: str) -> str:
    """What a script printed; it succeeded, every error is within what was asked for, and every file is there."""
    done = run(name, folder, **environ)
    assert done.returncode == 0, done.stdout + done.stderr
    errors = re.findall(r"([0-9.]+e[-+]\d+), asked for ([0-9.e-]+)", done.stdout)
    count, files = MADE[name]
    assert len(errors) == count, done.stdout
    assert all(float(error) <= float(tol) for error, tol in errors), done.stdout
    assert all((folder / file).stat().st_size > 0 for file in files)
    return done.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_is_short_and_explains_itself(path):
    text = path.read_text("utf-8")
    explanation = ast.get_docstring(ast.parse(text)) or ""
    assert len(text.splitlines()) < 80
    for promise in ("What you learn", "It takes", "`--quick`" if "%%" not in text else "--quick`", "It prints"):
        assert promise in " ".join(explanation.split()), promise


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_uses_the_public_names_alone(path):
    tree = ast.parse(path.read_text("utf-8"))
    froms = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    imports = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert "hrt" in imports and not [name for name in (*froms, *imports) if name.startswith("hrt.")]
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "hrt"
    }
    assert used and used <= set(hrt.__all__), used


def test_every_script_is_run():
    assert {path.stem for path in SCRIPTS} == set(MADE)


@pytest.mark.slow  # each trains and compresses a network in a new process
@pytest.mark.parametrize("name", sorted(set(MADE) - set(COMPILERS)))
def test_a_script_keeps_what_it_asks_for(name, tmp_path):
    outcome(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "figure", "largest"),
    [
        ("controller_in_c", r"angle (-?[0-9.]+) rad after 500 ms", 0.2),  # it starts at 0.3
        (
            "fortran_solver",
            r"relative difference of the temperatures: +([0-9.E+-]+)",
            0.05,
        ),  # of a network hardly trained
    ],
)
def test_a_compiled_program_calls_the_network(name, figure, largest, tmp_path):
    if missing := [compiler for compiler in COMPILERS[name] if not shutil.which(compiler)]:
        pytest.skip(f"no {missing[0]}")
    answer = re.search(figure, outcome(name, tmp_path))
    assert answer and abs(float(answer[1])) < largest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "message"),
    [("controller_in_c", "No C compiler: install gcc or clang"), ("fortran_solver", "No C compiler: install it")],
)
def test_a_missing_compiler_is_named_before_anything_is_trained(name, message, tmp_path):
    done = run(name, tmp_path, PATH="", CC="cc")
    assert done.returncode == 1 and done.stderr.startswith(message)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_server_that_is_ready_is_asked(tmp_path):
    asked = []

    class Server(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def answer(self, body=b""):
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            self.answer()

        def do_POST(self):
            asked.append(self.path)
            (tensor,) = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["inputs"]
            session = onnxruntime.InferenceSession(tmp_path / "models/wave/1/model.onnx")
            rows = np.reshape(tensor["data"], tensor["shape"]).astype(np.float32)
            names = [output.name for output in session.get_outputs()]
            outputs = zip(names, session.run(names, {tensor["name"]: rows}), strict=True)
            answers = [
                {"name": n, "shape": y.shape, "datatype": "FP32", "data": y.ravel().tolist()} for n, y in outputs
            ]
            self.answer(json.dumps({"outputs": answers}).encode())

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        printed = outcome("triton_server", tmp_path, TRITON_URL=f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    assert asked == ["/v2/models/wave/infer"] and "answered by the server" in printed
