"""Real inference servers serve what `export_repository` wrote: every answer of 1,000 concurrent requests is compared
with `predict`, and one worker of each is killed under load. Servers listen on loopback addresses only.
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
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml
from torch import nn
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

import hrt
from hrt.export.servers.repository import install_triton_backend
from hrt.perf.realtime import server_load as serving
from hrt.perf.realtime.inference_client import Question, Server
from hrt.perf.realtime.server_load import Outcome

import pinn
from helpers import MIXED, hierarchical
from running import Running, alive, answers, environment, free_ports

pytestmark = pytest.mark.server

REQUESTS = 1000
READY_SECONDS = 90
KILLED_AFTER = 0.2  # seconds into a load that takes longer


class Net(nn.Module):
    """Two inputs (24,) and (3, 4), two outputs (5,) and (96,)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.d = (nn.Linear(*s) for s in ((24, 96), (4, 32), (96, 96), (96, 5)))

    def forward(self, x, z):
        hidden = torch.tanh(self.a(x) + self.b(z).flatten(1))
        inner = torch.tanh(self.c(hidden)) + hidden
        return self.d(inner), inner


@pytest.fixture(scope="module")
def model() -> hrt.CompressedModel:
    generator = torch.Generator().manual_seed(0)
    rows = (torch.rand(512, 24, generator=generator), torch.rand(512, 3, 4, generator=generator))
    return hrt.compress(Net(), inputs=rows, tol=1e-3, progress=False)


@pytest.fixture(scope="module")
def another(model) -> hrt.CompressedModel:
    """Other weights, the same inputs and outputs."""
    return hrt.CompressedModel(hierarchical(model.program, storages=MIXED), hrt.Certificate(1e-3, "output", ()))


@pytest.fixture(scope="module")
def asked(model) -> list[Question]:
    return serving.questions(model)


@dataclass
class Served:
    """A server that is ready. seconds: from its start until then.  workers: the processes that compute.
    models: the repository.  others: a cluster's nodes.  again: starts another one.
    """

    what: str
    running: Running
    seconds: float
    workers: Callable[[], list[psutil.Process]]
    http: str
    grpc: str = ""
    models: Path = Path()
    others: list[Running] = field(default_factory=list)
    again: Callable[[], "Served"] | None = None

    def server(self, protocol: str, name: str, binary: bool = True) -> Server:
        return Server(getattr(self, protocol), protocol, name, binary)


def transcript(record_property, served: Served, server: Server, outcome: Outcome, what: str = "") -> None:
    """A line of the table that the run ends with."""
    line = serving.row(f"{served.what} {what or server.name}", server, outcome)
    record_property("transcript", f"{line} {served.seconds:8.1f}")


def check(served: Served, server: Server, asked, record_property, what: str = "") -> None:
    for in_flight in (REQUESTS, 32):
        outcome = serving.ask(server, asked, REQUESTS, in_flight)
        transcript(record_property, served, server, outcome, what)
        assert (outcome.failed, outcome.wrong) == (0, 0), (outcome.errors, outcome.worst, served.running.tail())
        assert len(outcome.seconds) == REQUESTS


def check_teeth(server: Server, another) -> None:
    """The comparison finds a server that serves another network."""
    outcome = serving.ask(server, serving.questions(another), 50)
    assert (outcome.failed, outcome.wrong) == (0, 50)


def killed_under_load(served: Served, server: Server, asked, requests: int, deadline: float = 60) -> Outcome:
    """What comes of a load during which one worker is killed; requests that fail are sent up to six times."""
    before = served.workers()
    assert len(before) >= 2, served.running.tail()
    killed: list[float] = []

    def kill() -> None:
        before[0].kill()
        killed.append(time.monotonic())

    timer = threading.Timer(KILLED_AFTER, kill)
    timer.start()
    try:
        outcome = serving.ask(server, asked, requests, in_flight=32, attempts=6, deadline=deadline)
        ended = time.monotonic()
    finally:
        timer.join()
    assert killed[0] < ended, "the load ended before the worker was killed; ask more requests"
    assert not alive(before[0]) and outcome.wrong == 0
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


def check_derivatives(served: Served, name: str, rows: int, record_property, binary: bool = True) -> None:
    """u, u_x, u_t and u_xx by the names that the server tells, all together and the last one alone."""
    case = pinn.case(rows)
    headers = None if binary else {"Content-Type": "application/json"}  # which tritonclient leaves out
    with InferenceServerClient(served.http) as client:
        described = client.get_model_metadata(name)
        names = [v["name"] for v in described["outputs"]]
        x = InferInput(described["inputs"][0]["name"], [rows, 2], "FP32")
        x.set_data_from_numpy(case.x.numpy(), binary_data=binary)
        wanted = [InferRequestedOutput(n, binary_data=binary) for n in names]
        answer = client.infer(name, [x], outputs=wanted, headers=headers)
        alone = client.infer(name, [x], outputs=wanted[-1:], headers=headers)
    assert names[1:] == [f"{d}_{names[0]}" for d in pinn.DERIVATIVES]
    found = [answer.as_numpy(n) for n in names]
    differences = case.check(found)
    assert [v["name"] for v in alone.get_response()["outputs"]] == names[-1:]
    assert np.array_equal(alone.as_numpy(names[-1]), found[-1])
    worst = ", ".join(f"{what} {d:.1e}" for what, d in zip(pinn.OUTPUTS, differences, strict=True))
    what = f"{served.what} {name}, {rows} rows{'' if binary else ' as JSON'}"
    record_property("transcript", f"{what}, from torch.func in float64: {worst}")


WRONG_SHAPE = {
    "inputs": [
        {"name": "x", "shape": [1, 23], "datatype": "FP32", "data": [0.0] * 23},
        {"name": "z", "shape": [1, 3, 4], "datatype": "FP32", "data": [0.0] * 12},
    ]
}


@pytest.fixture(scope="class")
def triton(model, tmp_path_factory) -> Iterator[Served]:
    env = environment("triton")
    folder = tmp_path_factory.mktemp("triton")
    python = env / "bin" / "python"
    ask = "import sysconfig as s; print(s.get_path('purelib'), *s.get_config_vars('LIBDIR', 'py_version_short'))"
    site, library, version = subprocess.check_output([python, "-c", ask], text=True).split()
    home = Path(site) / "pytriton" / "tritonserver"
    backends = folder / "backends"
    shutil.copytree(home / "backends" / "python", backends / "python")
    shutil.copy(home / "python_backend_stubs" / version / "triton_python_backend_stub", backends / "python")
    for name in ("hrt", "onnxruntime"):
        install_triton_backend(backends, name)
    models = folder / "models"
    model.save(folder / "net.hrt")
    hrt.export_repository(model, models, name="onnx", instances=2, max_batch=256)
    hrt.export_repository(folder / "net.hrt", models, name="native", backend="hrt", instances=2, max_batch=256)
    burgers = pinn.compressed()
    burgers.save(folder / "burgers.hrt")
    for name, backend, given in (("pinn-onnx", None, burgers), ("pinn-native", "hrt", folder / "burgers.hrt")):
        hrt.export_repository(given, models, name=name, backend=backend, max_batch=4096, derivatives=pinn.DERIVATIVES)
    http, grpc = free_ports(2)
    running = Running(
        [
            os.fspath(home / "bin" / "tritonserver"),
            *("--model-repository", os.fspath(models), "--backend-directory", os.fspath(backends)),
            *("--http-address", "127.0.0.1", "--http-port", str(http)),
            *("--grpc-address", "127.0.0.1", "--grpc-port", str(grpc)),
            *("--allow-metrics", "false", "--exit-timeout-secs", "5"),
            *("--model-control-mode", "explicit", "--load-model", "*"),
        ],
        folder / "log",
        # The stub must find this Python's library, and by PATH this environment, before any other.
        {"LD_LIBRARY_PATH": f"{library}:{site}/nvidia_pytriton.libs", "PATH": f"{env / 'bin'}:{os.environ['PATH']}"},
    )

    def stubs() -> list[psutil.Process]:
        return [p for p in running.family() if p.name().startswith("triton_python") and "/native/" in _command(p)]

    try:
        url = f"127.0.0.1:{http}"
        ready = running.wait("ready", lambda: answers(f"http://{url}/v2/health/ready"), READY_SECONDS)
        yield Served("Triton", running, ready, stubs, url, f"127.0.0.1:{grpc}", models)
    finally:
        running.stop()


class TestTriton:
    """NVIDIA's tritonserver from the wheel nvidia-pytriton, which has no backend but the Python one: files for ONNX
    Runtime are served by our stand-in, not by NVIDIA's C++ backend.
    """

    @pytest.mark.parametrize("protocol", ["http", "grpc"])
    @pytest.mark.parametrize("name", ["onnx", "native"])
    def test_every_answer_is_that_of_predict(self, triton, asked, name, protocol, record_property):
        check(triton, triton.server(protocol, name), asked, record_property)

    def test_a_difference_would_be_seen(self, triton, another):
        check_teeth(triton.server("grpc", "onnx"), another)

    @pytest.mark.parametrize("rows", [1, 4096])
    @pytest.mark.parametrize("name", ["pinn-onnx", "pinn-native"])
    def test_derivatives_are_those_of_torch_func(self, triton, name, rows, record_property):
        check_derivatives(triton, name, rows, record_property)

    def test_the_server_reads_the_configuration_as_it_was_meant(self, triton):
        with urllib.request.urlopen(f"http://{triton.http}/v2/models/onnx/config", timeout=20) as response:
            config = json.load(response)
        assert config["max_batch_size"] == 256 and config["backend"] == "onnxruntime"
        assert [(v["name"], [int(n) for n in v["dims"]]) for v in config["input"]] == [("x", [24]), ("z", [3, 4])]
        assert config["instance_group"][0]["count"] == 2
        assert config["parameters"]["hrt.tol"]["string_value"] == "0.001"

    def test_what_does_not_fit_is_refused(self, triton, asked):
        for name in ("onnx", "native"):
            status, text = refused(f"http://{triton.http}/v2/models/{name}/infer", WRONG_SHAPE)
            assert status == 400 and "shape" in text, text
            check_one = serving.ask(triton.server("grpc", name), asked, 20)
            assert (check_one.failed, check_one.wrong) == (0, 0)

    def test_one_instance_is_killed_under_load(self, triton, asked, record_property):
        """Triton 2.51 does not start a dead instance again: it answers what reaches it with an error, so that requests
        must be sent again, until the model is loaded anew.
        """
        server = triton.server("grpc", "native")
        outcome = killed_under_load(triton, server, asked, 4 * REQUESTS)
        transcript(record_property, triton, server, outcome, "native, killed")
        assert outcome.failed == 0, (outcome.errors, triton.running.tail())
        os.utime(triton.models / "native" / "1" / "model.hrt")  # what tells Triton that there is something to load
        status, text = refused(f"http://{triton.http}/v2/repository/models/native/load", {})
        assert status == 200, text
        recovered = serving.ask(server, asked, REQUESTS, in_flight=32)
        assert (recovered.failed, recovered.wrong) == (0, 0), recovered.errors
        assert len([p for p in triton.workers() if alive(p)]) >= 2


@contextmanager
def mlservers(target: Path, folder: Path) -> Iterator[Served]:
    """MLServer on what was exported to `target`; logs go to `folder`."""
    env = environment("mlserver")
    started: list[Running] = []

    def start() -> Served:
        http, grpc, metrics = free_ports(3)
        environ = {
            "MLSERVER_HOST": "127.0.0.1",
            "MLSERVER_HTTP_PORT": str(http),
            "MLSERVER_GRPC_PORT": str(grpc),
            "MLSERVER_METRICS_PORT": str(metrics),
        }
        command = [os.fspath(env / "bin" / "mlserver"), "start", "."]
        running = Running(command, folder / f"log-{len(started)}", environ, target)
        started.append(running)

        def workers() -> list[psutil.Process]:
            return [p for p in running.family() if "spawn_main" in _command(p)]

        url = f"127.0.0.1:{http}"
        ready = running.wait("ready", lambda: answers(f"http://{url}/v2/models/{target.name}/ready"), READY_SECONDS)
        return Served("MLServer", running, ready, workers, url, f"127.0.0.1:{grpc}", again=start)

    try:
        yield start()
    finally:
        for running in started:
            running.stop(seconds=5)  # after a worker was killed it does not end by itself, or late


@pytest.fixture(scope="class")
def mlserver(model, tmp_path_factory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("mlserver")
    target = hrt.export_repository(model, folder, name="native", server="mlserver", instances=2)
    with mlservers(target, folder) as served:
        yield served


class TestMLServer:
    """MLServer with two workers; adaptive batching."""

    @pytest.mark.parametrize("protocol", ["http", "grpc"])
    def test_every_answer_is_that_of_predict(self, mlserver, asked, protocol, record_property):
        check(mlserver, mlserver.server(protocol, "native", binary=False), asked, record_property)

    def test_a_difference_would_be_seen(self, mlserver, another):
        check_teeth(mlserver.server("grpc", "native"), another)

    def test_what_does_not_fit_is_refused(self, mlserver, asked):
        status, text = refused(f"http://{mlserver.http}/v2/models/native/infer", WRONG_SHAPE)
        assert status == 400 and "Expected (batch, 24)" in text, text
        status, text = refused(f"http://{mlserver.http}/v2/models/native/infer", {"inputs": WRONG_SHAPE["inputs"][1:]})
        assert status == 400 and "Expected ['x', 'z']" in text, text
        after = serving.ask(mlserver.server("grpc", "native"), asked, 20)
        assert (after.failed, after.wrong) == (0, 0)

    def test_one_worker_is_killed_under_load(self, mlserver, asked, record_property):
        """MLServer fails what the dead worker held and starts another. In two of eight tries it hung instead (its
        workers share one queue, whose lock dies with its holder), so that a supervisor has to restart it, as here.
        """
        server = mlserver.server("grpc", "native")
        outcome = killed_under_load(mlserver, server, asked, 2 * REQUESTS, deadline=30)
        hung = outcome.failed > 0
        transcript(record_property, mlserver, server, outcome, "native, killed" + (", hung" if hung else ""))
        if hung:
            assert "no answer after" in outcome.errors[-1], outcome.errors
            mlserver.running.stop(seconds=5)
            mlserver = mlserver.again()
        mlserver.running.wait("back at two workers", lambda: len(mlserver.workers()) >= 2, 600)
        recovered = serving.ask(mlserver.server("grpc", "native"), asked, REQUESTS, in_flight=32)
        assert (recovered.failed, recovered.wrong) == (0, 0), recovered.errors


@contextmanager
def ray_serves(target: Path, folder: Path, count: int = 1) -> Iterator[Served]:
    """Ray Serve on what was exported to `target`, on a cluster of `count` nodes of one processor each, which stand on
    loopback addresses of their own; logs go to `folder`.
    """
    env = environment("ray")
    http, head, client = free_ports(3)
    config = yaml.safe_load((target / "serve.yaml").read_text())
    config["http_options"] = {"host": "127.0.0.1", "port": http}
    scaling = config["applications"][0]["deployments"][0]["autoscaling_config"]
    # As many as there are processors, and within seconds.
    scaling.update(max_replicas=count, upscale_delay_s=1, look_back_period_s=2, metrics_interval_s=0.5)
    (target / "serve.yaml").write_text(yaml.safe_dump(config))
    short = Path(os.environ.get("TMPDIR", "/tmp")) / f"hrt-ray-{os.getpid()}"  # sockets' paths may not be long
    environ = {"PATH": f"{env / 'bin'}:{os.environ['PATH']}", "RAY_USAGE_STATS_ENABLED": "0"}
    address = f"127.0.0.2:{head}"
    common = ["--block", "--num-cpus", "1", "--object-store-memory", "100000000", "--disable-usage-stats"]
    ray, serve = os.fspath(env / "bin" / "ray"), os.fspath(env / "bin" / "serve")
    first = [ray, "start", "--head", "--port", str(head), "--node-ip-address", "127.0.0.2", *common]
    first += ["--include-dashboard", "false", "--ray-client-server-port", str(client), "--temp-dir", str(short)]
    others = [
        [ray, "start", "--address", address, "--node-ip-address", f"127.0.0.{2 + k}", *common] for k in range(1, count)
    ]
    nodes: list[Running] = []
    application: Running | None = None
    try:
        for k, command in enumerate((first, *others)):
            nodes.append(Running(command, folder / f"node-{k}", environ, folder))
            node = nodes[-1]
            node.wait("up", lambda node=node: "Ray runtime started" in node.tail(), READY_SECONDS)
        command = [serve, "run", "--address", address, "serve.yaml"]
        application = Running(command, folder / "log", environ, target)
        url = f"127.0.0.1:{http}"

        def replicas() -> list[psutil.Process]:
            return [p for n in nodes for p in n.family() if "ServeReplica" in _command(p)]

        ready = f"http://{url}/v2/models/{target.name}/ready"
        application.wait("ready", lambda: answers(ready), READY_SECONDS)
        elapsed = time.monotonic() - nodes[0].started
        yield Served("Ray Serve", application, elapsed, replicas, url, others=nodes)
    finally:
        # Interrupted, `serve run` takes the application down; nodes that still serve would drain for 30 s.
        families = [n.family() for n in nodes]
        if application is not None:
            application.stop(signal.SIGINT, 15)
        for n in reversed(nodes):
            n.stop(seconds=5)
        shutil.rmtree(short, ignore_errors=True)
        assert not [p for f in families for p in f if alive(p)]


@pytest.fixture(scope="class")
def ray_serve(model, asked, tmp_path_factory) -> Iterator[Served]:
    """Grown onto its second node by a load."""
    folder = tmp_path_factory.mktemp("ray")
    target = hrt.export_repository(model, folder, name="native", server="ray")
    with ray_serves(target, folder, count=2) as found:
        assert len(found.workers()) == 1, "the load is to make it grow"
        start = time.monotonic()
        while len(found.workers()) < 2:
            assert time.monotonic() - start < READY_SECONDS, f"no second replica:\n{found.running.tail()}"
            outcome = serving.ask(found.server("http", "native"), asked, REQUESTS)
            assert (outcome.failed, outcome.wrong) == (0, 0), outcome.errors
        yield found


class TestRayServe:
    """Ray Serve on a cluster of two nodes."""

    @pytest.mark.parametrize("binary", [True, False], ids=["bytes", "json"])
    def test_every_answer_is_that_of_predict(self, ray_serve, asked, binary, record_property):
        what = "native" if binary else "native, JSON"
        check(ray_serve, ray_serve.server("http", "native", binary), asked, record_property, what)

    def test_a_difference_would_be_seen(self, ray_serve, another):
        check_teeth(ray_serve.server("http", "native"), another)

    def test_it_grew_onto_the_second_node_under_load(self, ray_serve):
        assert all(any("ServeReplica" in _command(p) for p in n.family()) for n in ray_serve.others)

    def test_what_does_not_fit_is_refused(self, ray_serve, asked):
        url = f"http://{ray_serve.http}/v2/models/native/infer"
        assert refused(url, WRONG_SHAPE) == (
            400,
            json.dumps({"error": "Input 'x': found shape [1, 23]. Expected (batch, 24)."}),
        )
        status, text = refused(url, b"{")
        assert status == 400 and "not JSON" in text
        assert refused(f"http://{ray_serve.http}/v2/models/other/infer", {})[0] == 404
        after = serving.ask(ray_serve.server("http", "native"), asked, 20)
        assert (after.failed, after.wrong) == (0, 0)

    def test_one_replica_is_killed_under_load(self, ray_serve, asked, record_property):
        """Ray Serve fails what the dead replica held and starts another."""
        server = ray_serve.server("http", "native")
        outcome = killed_under_load(ray_serve, server, asked, 2 * REQUESTS)
        transcript(record_property, ray_serve, server, outcome, "native, killed")
        assert outcome.failed == 0, (outcome.errors, ray_serve.running.tail())
        ray_serve.running.wait("back at two replicas", lambda: len(ray_serve.workers()) >= 2, 600)
        recovered = serving.ask(server, asked, REQUESTS, in_flight=32, attempts=3)
        assert (recovered.failed, recovered.wrong) == (0, 0), recovered.errors


@pytest.fixture(scope="class", params=[mlservers, ray_serves], ids=["mlserver", "ray"])
def differentiated(request, tmp_path_factory) -> Iterator[Served]:
    """A server of the Burgers network with its derivatives as outputs."""
    folder = tmp_path_factory.mktemp("differentiated")
    pinn.compressed().save(folder / "burgers.hrt")
    target = hrt.export_repository(
        folder / "burgers.hrt",
        folder / "models",
        name="pinn",
        server="mlserver" if request.param is mlservers else "ray",
        max_batch=4096,
        derivatives=pinn.DERIVATIVES,
    )
    with request.param(target, folder) as served:
        yield served


class TestDerivatives:
    """Of the Burgers network as more outputs, in MLServer and in Ray Serve; Triton's are above."""

    @pytest.mark.parametrize("rows", [1, 4096])
    def test_are_those_of_torch_func(self, differentiated, rows, record_property):
        for binary in (False,) if differentiated.what == "MLServer" else (False, True):
            check_derivatives(differentiated, "pinn", rows, record_property, binary)


def _command(p: psutil.Process) -> str:
    try:
        return " ".join(p.cmdline())
    except psutil.Error:
        return ""
