"""Work spread over an executor: the same bytes as without, and a clear word where it fails half-way."""

import multiprocessing
import re
import signal
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager

import distributed
import pytest
import torch
from torch import nn

import hrt
from hrt.perf.networks.operators import log_kernel


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 2))


def wide():
    """One layer that is large enough to be spread by panels, and one that is not."""
    net = nn.Sequential(nn.Linear(1024, 1024), nn.Tanh(), nn.Linear(1024, 7))
    net[0].weight.data = torch.from_numpy(log_kernel(1024)).float()
    return net


def broad():
    """Layers broad enough to be ordered."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 1))


CASES = {
    "output": lambda executor: hrt.compress(
        network(), inputs=torch.rand(1000, 3, generator=torch.Generator().manual_seed(1)), tol=1e-2, executor=executor
    ),
    "ordered": lambda executor: hrt.compress(
        broad(), inputs=torch.rand(200, 3, generator=torch.Generator().manual_seed(0)), tol=1e-1, executor=executor
    ),
    "layers": lambda executor: hrt.compress(wide(), tol=1e-2, executor=executor),
}


@contextmanager
def processes(method):
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool:
        yield pool


@contextmanager
def dask():
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        assert len(client.scheduler_info()["workers"]) == 2
        yield client.get_executor()


EXECUTORS = {
    "threads": lambda: ThreadPoolExecutor(3),
    "forked": lambda: processes("fork"),
    "spawned": lambda: processes("spawn"),
    "dask": dask,
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The bytes of each case's file without an executor."""
    folder = tmp_path_factory.mktemp("alone")
    found = {}
    for name, compress in CASES.items():
        torch.manual_seed(0)
        model = compress(None)
        assert model.nbytes < model.dense_nbytes, "nothing was compressed: equal bytes would show nothing"
        model.save(folder / name)
        found[name] = (folder / name).read_bytes()
    return found


@pytest.mark.parametrize(
    "kind", ["threads", "forked", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("spawned", "dask"))]
)
def test_same_bytes_out(kind, alone, tmp_path):
    threads = torch.get_num_threads()
    with EXECUTORS[kind]() as executor:
        for name, compress in CASES.items():
            torch.manual_seed(0)
            compress(executor).save(tmp_path / name)
            assert (tmp_path / name).read_bytes() == alone[name], name
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("name", ["output", "layers"])
def test_a_pool_whose_workers_are_killed(name):
    killed = {"initializer": signal.raise_signal, "initargs": (signal.SIGKILL,)}
    with ProcessPoolExecutor(1, **killed) as pool, pytest.raises(hrt.BackendError) as info:
        CASES[name](pool)
    text = str(info.value)
    assert re.search(r"failed after \d+ pieces", text) and "BrokenProcessPool" in text and "without one" in text


def test_a_pool_that_was_shut_down():
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    with pytest.raises(hrt.BackendError, match="after shutdown"):
        CASES["output"](pool)


def test_errors_of_the_work_itself_pass_through():
    with ThreadPoolExecutor(1) as pool, pytest.raises(hrt.ToleranceError):
        hrt.compress(nn.Sequential(nn.Linear(9, 9, dtype=torch.float64)), tol=1e-12, executor=pool)
