"""Real inference servers serve what `export_repository` wrote: every answer of 1,000 concurrent requests is compared with
`predict`, and one worker of each is killed under load. Servers listen on loopback addresses only.
"""

import json
import os
import shutil
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import torch
from running import Running, alive, answers, environment, free_ports
from torch import nn

import hrt
from hrt.capture import capture
from hrt.export.repository import install_triton_backend
from hrt.perf import serving
from hrt.perf.serving import Outcome, Question, Server

from helpers import MIXED, hierarchical

pytestmark = pytest.mark.server

REQUESTS = 1000
READY_SECONDS = 90
KILLED_AFTER = 0.3  # seconds into a load that takes longer


class Net(nn.Module):
    """Two inputs (24,) and (3, 4), two outputs (5,) and (96,): no two requests have the same answer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.d = (nn.Linear(*s) for s in ((24, 96), (4, 32), (96, 96), (96, 5)))

    def forward(self, x, z):
        hidden = torch.tanh(self.a(x) + self.b(z).flatten(1))
        inner = torch.tanh(self.c(hidden)) + hidden
        return self.d(inner), inner


def build(seed: int) -> hrt.CompressedModel:
    program = capture(Net().double(), (torch.zeros(2, 24).double(), torch.zeros(2, 3, 4).double()))
    program = hierarchical(program, seed, storages=MIXED)
    return hrt.CompressedModel(program, hrt.Certificate(1e-3, "output", ()))


@pytest.fixture(scope="module")
def model() -> hrt.CompressedModel:
    return build(1)


@pytest.fixture(scope="module")
def asked(model) -> list[Question]:
    return serving.questions(model)


@dataclass
class Served:
    """A server that is ready. seconds: from its start until then.  workers: the processes that compute."""

    what: str
    running: Running
    seconds: float
    made: float
    workers: Callable[[], list[psutil.Process]]
    http: str
    grpc: str = ""
    models: Path = Path()
    others: list[Running] = field(default_factory=list)

    def server(self, protocol: str, name: str, binary: bool = True) -> Server:
        return Server(getattr(self, protocol), protocol, name, binary)


def transcript(record_property, served: Served, server: Server, outcome: Outcome, what: str = "") -> None:
    """A line of the table that the run ends with."""
    line = serving.row(f"{served.what} {what or server.name}", server, outcome)
    record_property("transcript", f"{line} {served.seconds:8.1f}")


def check(served: Served, server: Server, asked, record_property, what: str = "") -> None:
    outcome = serving.ask(server, asked, REQUESTS)
    transcript(record_property, served, server, outcome, what)
    assert (outcome.failed, outcome.wrong) == (0, 0), (outcome.errors, outcome.worst, served.running.tail())
    assert len(outcome.seconds) == REQUESTS


def check_teeth(server: Server) -> None:
    """The comparison finds a server that serves another network."""
    outcome = serving.ask(server, serving.questions(build(2)), 50)
    assert (outcome.failed, outcome.wrong) == (0, 50)


def killed_under_load(served: Served, server: Server, asked, attempts: int, requests: int = 2 * REQUESTS) -> Outcome:
    """What comes of a load during which one worker is killed."""
    before = served.workers()
    assert len(before) >= 2, served.running.tail()
    served.running.family()
    timer = threading.Timer(KILLED_AFTER, before[0].kill)
    timer.start()
    try:
        outcome = serving.ask(server, asked, requests, in_flight=32, attempts=attempts)
    finally:
        timer.join()
    assert not alive(before[0]), "the load ended before the worker was killed"
    assert outcome.wrong == 0 and outcome.worst <= serving.TOLERANCE
    return outcome


def refused(url: str, body: object) -> tuple[int, str]:
    """Status and text of a request that a server turns down."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


WRONG_SHAPE = {
    "inputs": [
        {"name": "x", "shape": [1, 23], "datatype": "FP32", "data": [0.0] * 23},
        {"name": "z", "shape": [1, 3, 4], "datatype": "FP32", "data": [0.0] * 12},
    ]
}


def made(server: str) -> tuple[Path, float]:
    start = time.monotonic()
    return environment(server), time.monotonic() - start


class TestTriton:
    """NVIDIA's tritonserver from the wheel nvidia-pytriton, which has no backend but the Python one: files for ONNX
    Runtime are served by our stand-in, not by NVIDIA's C++ backend.
    """

    @pytest.fixture(scope="class")
    def served(self, model, tmp_path_factory) -> Iterator[Served]:
        env, seconds = made("triton")
        folder = tmp_path_factory.mktemp("triton")
        python = env / "bin" / "python"
        ask = "import sysconfig as s, sys; print(s.get_path('purelib'), s.get_config_var('LIBDIR'), '%d.%d' % sys.version_info[:2])"
        site, library, version = subprocess.check_output([python, "-c", ask], text=True).split()
        triton = Path(site) / "pytriton" / "tritonserver"
        backends = folder / "backends"
        shutil.copytree(triton / "backends", backends)
        shutil.copy(triton / "python_backend_stubs" / version / "triton_python_backend_stub", backends / "python")
        for name in ("hrt", "onnxruntime"):
            install_triton_backend(backends, name)
        models = folder / "models"
        model.save(folder / "net.hrt")
        hrt.export_repository(model, models, name="onnx", instances=2, max_batch=256)
        hrt.export_repository(folder / "net.hrt", models, name="native", backend="hrt", instances=2, max_batch=256)
        http, grpc = free_ports(2)
        running = Running(
            [
                os.fspath(triton / "bin" / "tritonserver"),
                *("--model-repository", os.fspath(models), "--backend-directory", os.fspath(backends)),
                *("--http-address", "127.0.0.1", "--http-port", str(http)),
                *("--grpc-address", "127.0.0.1", "--grpc-port", str(grpc)),
                *("--allow-metrics", "false", "--exit-timeout-secs", "5"),
                *("--model-control-mode", "explicit", "--load-model", "*"),
            ],
            folder / "log",
            # The stub must find this Python's library, and by PATH this environment, before any other.
            {
                "LD_LIBRARY_PATH": f"{library}:{site}/nvidia_pytriton.libs",
                "PATH": f"{env / 'bin'}:{os.environ['PATH']}",
            },
        )

        def stubs() -> list[psutil.Process]:
            return [p for p in running.family() if p.name().startswith("triton_python") and "/native/" in _command(p)]

        try:
            url = f"127.0.0.1:{http}"
            ready = running.wait("ready", lambda: answers(f"http://{url}/v2/health/ready"), READY_SECONDS)
            yield Served("Triton", running, ready, seconds, stubs, url, f"127.0.0.1:{grpc}", models)
        finally:
            running.stop()

    @pytest.mark.parametrize("protocol", ["http", "grpc"])
    @pytest.mark.parametrize("name", ["onnx", "native"])
    def test_every_answer_is_that_of_predict(self, served, asked, name, protocol, record_property):
        check(served, served.server(protocol, name), asked, record_property)

    def test_a_difference_would_be_seen(self, served):
        check_teeth(served.server("grpc", "onnx"))

    def test_the_server_reads_the_configuration_as_it_was_meant(self, served):
        with urllib.request.urlopen(f"http://{served.http}/v2/models/onnx/config", timeout=20) as response:
            config = json.load(response)
        assert config["max_batch_size"] == 256 and config["backend"] == "onnxruntime"
        assert [(v["name"], v["dims"]) for v in config["input"]] == [("x", ["24"]), ("z", ["3", "4"])] or [
            (v["name"], v["dims"]) for v in config["input"]
        ] == [("x", [24]), ("z", [3, 4])]
        assert config["instance_group"][0]["count"] == 2
        assert config["parameters"]["hrt.tol"]["string_value"] == "0.001"

    def test_what_does_not_fit_is_refused(self, served, asked):
        for name in ("onnx", "native"):
            status, text = refused(f"http://{served.http}/v2/models/{name}/infer", WRONG_SHAPE)
            assert status == 400 and "shape" in text, text
            check_one = serving.ask(served.server("grpc", name), asked, 20)
            assert (check_one.failed, check_one.wrong) == (0, 0)

    def test_one_instance_is_killed_under_load(self, served, asked, record_property):
        """Triton 2.51 does not start a dead instance again: it answers what reaches it with an error, so that requests
        must be sent again, until the model is loaded anew.
        """
        server = served.server("grpc", "native")
        outcome = killed_under_load(served, server, asked, attempts=6)
        transcript(record_property, served, server, outcome, "native, killed")
        assert outcome.failed == 0, (outcome.errors, served.running.tail())
        os.utime(served.models / "native" / "1" / "model.hrt")  # what tells Triton that there is something to load
        status, text = refused(f"http://{served.http}/v2/repository/models/native/load", {})
        assert status == 200, text
        recovered = serving.ask(server, asked, REQUESTS, in_flight=32)
        assert (recovered.failed, recovered.wrong) == (0, 0), recovered.errors
        assert len([p for p in served.workers() if alive(p)]) >= 2


class TestMLServer:
    """MLServer with two workers; adaptive batching."""

    @pytest.fixture(scope="class")
    def served(self, model, tmp_path_factory) -> Iterator[Served]:
        env, seconds = made("mlserver")
        folder = tmp_path_factory.mktemp("mlserver")
        target = hrt.export_repository(model, folder, name="native", server="mlserver", instances=2)
        http, grpc, metrics = free_ports(3)
        running = Running(
            [os.fspath(env / "bin" / "mlserver"), "start", "."],
            folder / "log",
            {
                "MLSERVER_HOST": "127.0.0.1",
                "MLSERVER_HTTP_PORT": str(http),
                "MLSERVER_GRPC_PORT": str(grpc),
                "MLSERVER_METRICS_PORT": str(metrics),
            },
            target,
        )

        def workers() -> list[psutil.Process]:
            return [p for p in running.family() if "spawn_main" in _command(p)]

        try:
            url = f"127.0.0.1:{http}"
            ready = running.wait("ready", lambda: answers(f"http://{url}/v2/models/native/ready"), READY_SECONDS)
            yield Served("MLServer", running, ready, seconds, workers, url, f"127.0.0.1:{grpc}")
        finally:
            running.stop()

    @pytest.mark.parametrize("protocol", ["http", "grpc"])
    def test_every_answer_is_that_of_predict(self, served, asked, protocol, record_property):
        check(served, served.server(protocol, "native", binary=False), asked, record_property)

    def test_a_difference_would_be_seen(self, served):
        check_teeth(served.server("grpc", "native"))

    def test_what_does_not_fit_is_refused(self, served, asked):
        status, text = refused(f"http://{served.http}/v2/models/native/infer", WRONG_SHAPE)
        assert status == 400 and "Expected (batch, 24)" in text, text
        status, text = refused(f"http://{served.http}/v2/models/native/infer", {"inputs": WRONG_SHAPE["inputs"][1:]})
        assert status == 400 and "Expected ['x', 'z']" in text, text
        after = serving.ask(served.server("grpc", "native"), asked, 20)
        assert (after.failed, after.wrong) == (0, 0)

    def test_one_worker_is_killed_under_load(self, served, asked, record_property):
        """MLServer fails what the dead worker held and starts another."""
        server = served.server("grpc", "native")
        outcome = killed_under_load(served, server, asked, attempts=6)
        transcript(record_property, served, server, outcome, "native, killed")
        assert outcome.failed == 0, (outcome.errors, served.running.tail())
        served.running.wait("back at two workers", lambda: len(served.workers()) >= 2, 600)
        recovered = serving.ask(server, asked, REQUESTS, in_flight=32)
        assert (recovered.failed, recovered.wrong) == (0, 0), recovered.errors


class TestRayServe:
    """Ray Serve on a cluster of two nodes of one processor each, which stand on loopback addresses of their own."""

    @pytest.fixture(scope="class")
    def served(self, model, tmp_path_factory) -> Iterator[Served]:
        env, seconds = made("ray")
        folder = tmp_path_factory.mktemp("ray")
        target = hrt.export_repository(model, folder, name="native", server="ray", instances=2)
        http, head, client = free_ports(3)
        config = target / "serve.yaml"
        text = config.read_text().replace("0.0.0.0", "127.0.0.1").replace("port: 8000", f"port: {http}")
        config.write_text(text.replace("max_replicas: 16", "max_replicas: 2"))
        short = Path(os.environ.get("TMPDIR", "/tmp")) / f"hrt-ray-{os.getpid()}"  # sockets' paths may not be long
        environ = {"PATH": f"{env / 'bin'}:{os.environ['PATH']}", "RAY_USAGE_STATS_ENABLED": "0"}
        address = f"127.0.0.2:{head}"
        common = ["--block", "--num-cpus", "1", "--object-store-memory", "100000000", "--disable-usage-stats"]
        ray, serve = os.fspath(env / "bin" / "ray"), os.fspath(env / "bin" / "serve")
        first = [ray, "start", "--head", "--port", str(head), "--node-ip-address", "127.0.0.2", *common]
        first += ["--include-dashboard", "false", "--ray-client-server-port", str(client), "--temp-dir", str(short)]
        second = [ray, "start", "--address", address, "--node-ip-address", "127.0.0.3", *common]
        nodes: list[Running] = []
        application: Running | None = None
        try:
            for k, command in enumerate((first, second)):
                nodes.append(Running(command, folder / f"node-{k}", environ, folder))
                node = nodes[-1]
                node.wait("up", lambda node=node: "Ray runtime started" in node.tail(), READY_SECONDS)
            command = [serve, "run", "--address", address, "serve.yaml"]
            application = Running(command, folder / "log", environ, target)
            url = f"127.0.0.1:{http}"

            def replicas() -> list[psutil.Process]:
                return [p for n in nodes for p in n.family() if "ServeReplica" in _command(p)]

            def ready() -> bool:
                return answers(f"http://{url}/v2/models/native/ready") and len(replicas()) >= 2

            application.wait("ready", ready, READY_SECONDS)
            elapsed = time.monotonic() - nodes[0].started
            yield Served("Ray Serve", application, elapsed, seconds, replicas, url, others=nodes)
        finally:
            # Interrupted, `serve run` takes the application down; nodes that still serve would drain for 30 s.
            families = [n.family() for n in nodes]
            if application is not None:
                application.stop(signal.SIGINT, 15)
            for n in reversed(nodes):
                n.stop(seconds=5)
            shutil.rmtree(short, ignore_errors=True)
            assert not [p for f in families for p in f if alive(p)]

    @pytest.mark.parametrize("binary", [True, False], ids=["bytes", "json"])
    def test_every_answer_is_that_of_predict(self, served, asked, binary, record_property):
        what = "native" if binary else "native, JSON"
        check(served, served.server("http", "native", binary), asked, record_property, what)

    def test_a_difference_would_be_seen(self, served):
        check_teeth(served.server("http", "native"))

    def test_replicas_stand_on_both_nodes(self, served):
        assert all(any("ServeReplica" in _command(p) for p in n.family()) for n in served.others)

    def test_what_does_not_fit_is_refused(self, served, asked):
        url = f"http://{served.http}/v2/models/native/infer"
        assert refused(url, WRONG_SHAPE) == (
            400,
            json.dumps({"error": "Input 'x': found shape [1, 23]. Expected (batch, 24)."}),
        )
        status, text = refused(url, b"{")
        assert status == 400 and "not JSON" in text
        assert refused(f"http://{served.http}/v2/models/other/infer", {})[0] == 404
        after = serving.ask(served.server("http", "native"), asked, 20)
        assert (after.failed, after.wrong) == (0, 0)

    def test_one_replica_is_killed_under_load(self, served, asked, record_property):
        """Ray Serve fails what the dead replica held and starts another."""
        server = served.server("http", "native")
        outcome = killed_under_load(served, server, asked, attempts=6)
        transcript(record_property, served, server, outcome, "native, killed")
        assert outcome.failed == 0, (outcome.errors, served.running.tail())
        served.running.wait("back at two replicas", lambda: len(served.workers()) >= 2, 600)
        recovered = serving.ask(server, asked, REQUESTS, in_flight=32, attempts=3)
        assert (recovered.failed, recovered.wrong) == (0, 0), recovered.errors


def _command(p: psutil.Process) -> str:
    try:
        return " ".join(p.cmdline())
    except psutil.Error:
        return ""
