"""The harness: registry, errors that match on rows nothing was tuned on, rows for everything that can go wrong."""

import json
import math
import re
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import hrt
from hrt.calibration.output_error import OutputError
from hrt.capture.torch_export import capture
from hrt.cli.main import main as hrt_main
from hrt.errors import InputError
from hrt.export.onnx.onnxruntime_session import forms_for
from hrt.perf.__main__ import main
from hrt.perf.bench import candidates
from hrt.perf.bench import command as bench
from hrt.perf.bench import cpu_peaks as roofline_cpu
from hrt.perf.bench import runner as harness
from hrt.perf.bench.cpu_peaks import Peaks
from hrt.perf.bench.explain_rank import rank
from hrt.perf.bench.pareto import latency, standing
from hrt.perf.bench.runner import Plan, run
from hrt.perf.bench.terminal_table import verdict
from hrt.perf.measuring.bursts import Latency
from hrt.perf.measuring.results import FAILED, FAMILIES, MISSING, NOISY, OK, STATUSES, UNREACHABLE, Results, Row, read
from hrt.perf.methods import catalogue as methods
from hrt.perf.methods import quantizers
from hrt.perf.methods.catalogue import METHODS, SparseLinear
from hrt.perf.methods.matched_error import (
    Execution,
    Offer,
    Refusal,
    accepted,
    fewest_kept,
    fresh_error,
    joined,
    loosest,
    rotated,
    search_error,
)
from hrt.perf.methods.quantizers import module_nbytes, tensor_nbytes
from hrt.perf.methods.runtimes import compiled, in_onnxruntime, in_torch, run_of
from hrt.perf.networks import registry as workloads
from hrt.perf.networks.as_torch_module import factored, module_of
from hrt.perf.networks.operators import log_kernel
from hrt.perf.networks.registry import MissingError, Workload

from zoo import ZOO, mlp

TIMED = (OK, NOISY)  # a test's machine may be as noisy as it likes


def low_rank_net(width: int = 64, seed: int = 0) -> nn.Sequential:
    """3 -> width -> width -> 2 whose large weight falls off: something that every method can say something about."""
    torch.manual_seed(seed)
    net = mlp(3, width, width, 2).eval()
    with torch.no_grad():
        u, s, vt = torch.linalg.svd(net[2].weight)
        net[2].weight.copy_(u @ torch.diag(s * torch.exp(-0.5 * torch.arange(width))) @ vt)
    return net


def small(seed: int = 0, rows: int = 512) -> Workload:
    """A workload that takes no time."""
    net = low_rank_net(seed=seed)
    sets = [(torch.rand(rows, 3, generator=torch.Generator().manual_seed(k)),) for k in (1, 2, 3)]
    program = capture(net, sets[0])
    return Workload("small", "a small network", net, program, sets[0], sets[1], sets[2], batches=(1, 8))


@pytest.fixture
def registered(monkeypatch):
    """The registry with the small workload alone."""
    entry = workloads.Entry("small", lambda name, entry, size: small())
    monkeypatch.setattr(workloads, "REGISTRY", {"small": entry})
    return entry


def plan(*methods: str, **changes) -> Plan:
    defaults = {"workloads": ("small",), "tols": (1e-2,), "batches": (4,), "rounds": 2, "burst_s": 0.0, "threads": 1}
    return Plan(methods=("dense float32", *methods), **{**defaults, **changes})


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    """Peaks are measured in test_measure.py; torch.compile is asked by one test alone. Threads stay as they were."""
    before = torch.get_num_threads()
    monkeypatch.setattr(harness, "measure_peaks", lambda: Peaks(1e11, 1e10, 1 << 25))
    for module in (methods, quantizers):
        monkeypatch.setattr(module, "compiled", lambda net, dtype=torch.float32: in_torch(net, dtype, "torch again"))
    yield
    torch.set_num_threads(before)


class TestRegistry:
    def test_names_what_the_project_measures(self):
        wanted = {"burgers", "helmholtz", "navier-stokes", "log-1d", "green-1d", "laplace-2d", "deeponet", "qlknn"}
        assert wanted | {"neuralfoil-xlarge", "neuralfoil-xxxlarge", "random"} == set(workloads.REGISTRY)
        assert all(entry.about for entry in workloads.REGISTRY.values())
        assert set(workloads.QUICK) <= set(workloads.REGISTRY)

    @pytest.mark.parametrize("name", ["burgers", "log-1d:64", "green-1d:64", "laplace-2d:64", "random:64"])
    def test_sets_of_rows_are_distinct_and_fit(self, name):
        w = workloads.build(name)
        for rows in (w.calibration, w.search, w.fresh):
            w.program.check_inputs(rows)
            assert all(x.dtype == torch.float32 for x in rows)
        assert not torch.equal(w.calibration[0][:64], w.search[0][:64])
        assert not torch.equal(w.search[0][:64], w.fresh[0][:64])
        with torch.no_grad():
            own = joined(w.net(*w.fresh))
        assert (own - w.reference("fresh")).norm() < 1e-5 * own.norm()

    @pytest.mark.parametrize("name", ["nothing", "burgers:64", "log-1d:0", "log-1d:x", "gone.onnx", "gone.hrt"])
    def test_an_unknown_name_is_a_mistake(self, name):
        with pytest.raises(InputError, match="Expected"):
            workloads.check(name)

    def test_what_does_not_fit_memory_says_how_much(self):
        with pytest.raises(MemoryError, match="GB"):
            workloads.build("log-1d:10000000")

    def test_a_missing_wheel_says_how_to_get_it(self, monkeypatch, tmp_path):
        monkeypatch.setenv("HRT_NEURALFOIL", str(tmp_path))
        with pytest.raises(MissingError, match="pip install --no-deps neuralfoil"):
            workloads.build("neuralfoil-xlarge")


class TestRebuilt:
    @pytest.mark.parametrize("name", sorted(ZOO))
    def test_a_program_as_a_module_computes_the_same(self, name):
        x = ZOO[name].inputs(5, torch.float32)
        program = capture(ZOO[name].build(), x)
        with torch.no_grad():
            found = joined(module_of(program)(*x))
        expected = joined(program.run(x))
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)

    def test_layers_are_linear_modules_that_know_their_weight(self):
        w = small()
        layers = [m for m in module_of(w.program).modules() if isinstance(m, nn.Linear)]
        assert [m.weight_name for m in layers] == list(w.program.weights)

    def test_two_thin_layers(self):
        w = small()
        name = list(w.program.weights)[1]
        u, s, vt = torch.linalg.svd(w.program.constants[name], full_matrices=False)
        thin = factored(w.program, {name: (u * s, vt)})
        assert len(thin.linear_nodes) == len(w.program.linear_nodes) + 1
        assert search_error(w, run_of(module_of(thin))).value < 1e-5

    def test_every_execution_agrees(self):
        w = small()
        from hrt.export.onnx.exporter import graph_of

        x = rotated(w.fresh, 8, 0)
        ways = (in_torch(w.net), compiled(w.net), in_onnxruntime(graph_of(w.program)))
        ways += (in_onnxruntime(graph_of(w.program), bound=False),)
        for way in ways:
            call = way.bind(x)
            for _ in range(2):
                assert torch.allclose(joined(call()), w.reference("fresh")[:8], rtol=1e-4, atol=1e-5)

    def test_an_answer_of_bound_memory_is_not_overwritten_by_the_next(self):
        w = small()
        from hrt.export.onnx.exporter import graph_of

        call = in_onnxruntime(graph_of(w.program)).bind(rotated(w.fresh, 1, 0))
        one, two = call(), call()
        assert one[0] is not two[0] and not np.shares_memory(one[0], two[0])

    def test_sparse_layers(self):
        g = torch.Generator().manual_seed(0)
        weight, bias, x = torch.randn(6, 5, generator=g), torch.randn(6, generator=g), torch.randn(4, 5, generator=g)
        weight[weight.abs() < 0.7] = 0
        assert torch.allclose(SparseLinear(weight, bias)(x), nn.functional.linear(x, weight, bias), atol=1e-6)


class TestMatchedError:
    @pytest.mark.parametrize("truth", [-6.9, -3.3, -1.0, -0.01])
    def test_bisection_ends_just_inside(self, truth):
        found = loosest(lambda t: t, lambda t: math.log10(t) <= truth, -7.0, 0.0)
        assert truth - 0.02 <= math.log10(found) <= truth

    def test_bisection_takes_the_loosest_or_nothing(self):
        assert loosest(lambda t: t, lambda t: True, -7.0, 0.0) == 1.0
        assert loosest(lambda t: t, lambda t: False, -7.0, 0.0) is None

    def test_fewest_layers_are_kept(self):
        harm = {"a": 1e-4, "b": 5e-2, "c": 2e-3, "d": 3e-2}

        def error(kept: frozenset[str]) -> OutputError:
            value = math.sqrt(sum(v**2 for k, v in harm.items() if k not in kept))
            return OutputError(value, 1.1 * value, ())

        assert fewest_kept(list(harm), error, 1.0) == frozenset()
        assert fewest_kept(list(harm), error, 1e-2) == {"b", "d"}
        assert fewest_kept(list(harm), error, 1e-3) == {"b", "c", "d"}
        assert fewest_kept(list(harm), error, 1e-5) is None

    def test_the_limit_counts_not_the_value(self):
        w = small()

        def off(x):
            y = w.net(*x)
            return y * (1 + 1e-2 * (x[0][:, :1] > 0.9))

        found = search_error(w, off)
        middle = (found.value + found.upper_99) / 2
        assert found.value < middle and not accepted(w, off, middle) and accepted(w, off, 1.01 * found.upper_99)

    @pytest.mark.parametrize("batch", [1, 7, 512, 600])
    def test_fresh_error_is_that_of_the_rows(self, batch):
        w = small()

        def bind(x):
            return lambda: 1.001 * w.net(torch.from_numpy(x[0])).detach().numpy()

        assert fresh_error(w, bind, batch) == pytest.approx(1e-3, rel=1e-2)

    def test_fresh_error_stops_in_time_and_says_infinite_where_it_is(self):
        w, asked = small(), []

        def bind(x):
            asked.append(1)
            return lambda: np.full((len(x[0]), 2), np.nan)

        ticks = iter(range(0, 100_000, 2))
        assert fresh_error(w, bind, 1, clock=lambda: float(next(ticks))) == math.inf
        assert len(asked) == 64


@pytest.fixture(scope="module")
def shared() -> Workload:
    """One small workload for many methods."""
    return small()


class TestMethods:
    def test_every_family_is_there(self):
        assert {next(f for f in FAMILIES if m.startswith(f)) for m in METHODS} == set(FAMILIES)

    @pytest.mark.parametrize("tol", [1e-1, 1e-3])
    @pytest.mark.parametrize("name", METHODS)
    def test_keeps_the_error_on_fresh_rows_or_refuses(self, name, tol, shared):
        try:
            offer = METHODS[name](shared, tol)
        except MissingError as error:
            assert "pip install" in str(error)
            return
        if isinstance(offer, Refusal):
            assert offer.status in STATUSES and offer.status != OK and offer.note
            return
        assert 0 < offer.nbytes <= shared.dense_nbytes and offer.executions
        for way in offer.executions:
            if way.backend != "onnxruntime, int8 arithmetic":  # not searched with; judged when it is run
                assert fresh_error(shared, way.bind, 64) <= tol

    @pytest.mark.parametrize("name", ["svd, data-weighted", "pruned, magnitude", "quantized, onnxruntime int8 dynamic"])
    def test_nothing_is_tuned_on_fresh_rows(self, name, shared):
        poisoned = replace(small(), fresh=(torch.full_like(shared.fresh[0], torch.nan),))
        one, two = METHODS[name](shared, 3e-2), METHODS[name](poisoned, 3e-2)
        assert isinstance(one, Offer) and isinstance(two, Offer)
        assert (one.nbytes, one.note) == (two.nbytes, two.note)

    def test_tighter_costs_more(self, shared):
        loose, tight = (METHODS["svd, data-weighted"](shared, t) for t in (1e-1, 1e-3))
        assert isinstance(loose, Offer) and isinstance(tight, Offer) and loose.nbytes < tight.nbytes
        assert loose.work < tight.work

    @pytest.mark.parametrize(
        "name, module", [("torchao int8 weights", "torchao"), ("onnxruntime int8 blocks", "onnx_ir")]
    )
    def test_an_absent_library_is_a_row_with_the_command(self, name, module, monkeypatch, registered):
        for loaded in [m for m in sys.modules if m.split(".")[0] == module or "matmul_nbits" in m]:
            monkeypatch.delitem(sys.modules, loaded)
        monkeypatch.setitem(sys.modules, module, None)
        (row,) = [r for r in run(plan(f"quantized, {name}")).rows if r.family == "quantized"]
        assert row.status == MISSING and "pip install" in row.note and row.p50_us is None

    def test_bytes_inside_torchao_tensors_are_counted(self):
        quantization = pytest.importorskip("torchao.quantization")
        net = nn.Sequential(nn.Linear(64, 32))
        assert module_nbytes(net) == 4 * (64 * 32 + 32)
        quantization.quantize_(net, quantization.Int8WeightOnlyConfig())
        assert 64 * 32 < tensor_nbytes(net[0].weight) <= 64 * 32 + 4 * 32 * 2


class TestAsRun:
    def test_what_is_told_of_a_row_is_the_graph_that_ran(self):
        net = nn.Linear(512, 512, bias=False)
        with torch.no_grad():
            net.weight.copy_(torch.from_numpy(log_kernel(512)))
        model = hrt.compress(net, tol=1e-2, progress=False)
        for batch in (1, 16, 17, 256):
            (form,) = forms_for(model.program, batch).values()
            note, work, facts = methods._as_run(model, batch)
            assert ("dense products" in note) == (form == "multiplied") == (work == 512 * 512), batch
            assert facts["nodes"] == 1 if form == "multiplied" else facts["nodes"] > 1

    def test_halves_are_what_is_multiplied_and_counted(self, shared):
        offer = METHODS["dense float16, widened"](shared, 1e-2)
        program = shared.program
        matrices = sum(c.numel() for c in program.constants.values() if c.ndim == 2)
        assert offer.nbytes == shared.dense_nbytes - 2 * matrices
        thin = METHODS["svd, data-weighted float16"](shared, 1e-2), METHODS["svd, data-weighted"](shared, 1e-2)
        assert thin[0].nbytes < thin[1].nbytes

    def test_without_onnxruntime_torch_is_measured_alone(self, registered, monkeypatch):
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        monkeypatch.setattr(harness, "measure_peaks", roofline_cpu.measure_peaks)
        monkeypatch.setattr(roofline_cpu, "SIZE", 64)
        results = run(plan())
        assert all("onnx" not in r.backend and r.status in TIMED for r in results.rows) and results.rows


class TestRun:
    def test_rows_errors_times_and_a_file_that_gives_them_back(self, registered, tmp_path):
        results = run(plan("svd, data-weighted", "hrt", tols=(1e-1, 1e-2), batches=(1, 4)))
        assert all(r.status in TIMED and r.error <= r.target for r in results.rows), results.rows
        assert {(r.batch, r.target) for r in results.rows} == {(b, t) for b in (1, 4) for t in (1e-1, 1e-2)}
        assert {r.method for r in results.rows} == {"dense float32", "svd, data-weighted", "hrt"}
        assert all(r.p50_us > 0 for r in results.rows)
        assert all(r.ratio_low <= r.ratio_vs_best_dense <= r.ratio_high for r in results.rows if r.status == OK)
        assert sorted(results.samples) == list(range(len(results.rows)))
        assert all(len(s) in (2, 4) for s in results.samples.values()), "noisy groups are timed once more, longer"
        results.write(tmp_path / "rows.json")
        again = read(tmp_path / "rows.json")
        assert again.rows == results.rows and again.facts["threads"] == 1

    def test_who_misses_the_error_on_fresh_rows_has_no_times(self, registered, monkeypatch):
        def off(workload, tol):
            bind = lambda x: lambda: 1.05 * workload.net(torch.from_numpy(x[0])).detach()  # noqa: E731
            return Offer(8, (Execution("torch", bind),))

        methods = {**METHODS, "svd": off, "hrt": off}
        rows = {r.method: r for r in run(plan("svd", "hrt"), methods=methods).rows}
        assert rows["svd"].status == UNREACHABLE and rows["hrt"].status == FAILED
        for row in (rows["svd"], rows["hrt"]):
            assert row.error == pytest.approx(0.05, rel=0.01) and row.p50_us is None and "fresh" in row.note
            assert row.ratio_vs_best_dense is None

    @pytest.mark.parametrize("error", [MemoryError(), RuntimeError("out of luck\nsecond line"), ValueError()])
    def test_a_method_that_fails_is_a_row(self, error, registered):
        def fails(workload, tol):
            raise error

        (row,) = [r for r in run(plan("svd"), methods={**METHODS, "svd": fails}).rows if r.method == "svd"]
        assert row.status == FAILED and row.note and "\n" not in row.note

    def test_an_execution_that_fails_is_a_row(self, registered):
        def bind(x):
            raise RuntimeError("no such kernel")

        methods = {**METHODS, "svd": lambda w, t: Offer(8, (Execution("torch", bind),))}
        (row,) = [r for r in run(plan("svd"), methods=methods).rows if r.method == "svd"]
        assert row.status == FAILED and "no such kernel" in row.note

    def test_a_workload_that_does_not_fit_is_a_row(self, monkeypatch):
        results = run(plan(workloads=("random:10000000",)))
        assert [r.status for r in results.rows] == [FAILED] and "does not fit" in results.rows[0].note

    def test_a_workload_whose_wheel_is_missing_is_a_row(self, monkeypatch, tmp_path):
        monkeypatch.setenv("HRT_QLKNN", str(tmp_path))
        results = run(plan(workloads=("qlknn",)))
        assert [r.status for r in results.rows] == [MISSING] and "pip install" in results.rows[0].note

    def test_an_interruption_keeps_the_rows_so_far(self, registered):
        count = []

        def second_time(workload, tol):
            count.append(1)
            if len(count) > 1:
                raise KeyboardInterrupt
            return METHODS["svd"](workload, tol)

        monkeyed = {**METHODS, "svd": second_time}
        results = run(plan("svd", workloads=("small", "small")), methods=monkeyed)
        assert results.facts["interrupted"] and {r.method for r in results.rows} == {"dense float32", "svd"}

    def test_rows_are_kept_after_every_workload(self, registered):
        kept = []
        results = run(plan("svd", workloads=("small", "small")), keep=lambda found: kept.append(len(found.rows)))
        assert kept == [len(results.rows) // 2, len(results.rows), len(results.rows)]

    @pytest.mark.parametrize(
        "rounds, late",
        [(candidates.SCOUT_ROUNDS, ["a/1"]), (candidates.SCOUT_ROUNDS - 1, []), (candidates.SCOUT_ROUNDS + 1, [])],
    )
    def test_only_a_methods_own_best_makes_an_execution_uninteresting(self, rounds, late):
        medians = {"a/0": [1.0] * 5, "a/1": [1.6] * 5, "a/2": [1.4] * 5, "b/0": [9.0] * 5, "c/0": [1], "c/1": [5]}
        assert candidates._behind(("c/1", "control"), rounds, {**medians, "control": [1.0], "empty": [0.1]}) == late

    def test_a_noisy_machine_gets_no_ratios(self, registered, monkeypatch):
        asked = []

        def noisy(calls, *, rounds, **more):
            asked.append(rounds)
            shift = {name: 1.0 + 3.0 * (name == candidates.CONTROL) for name in calls}
            return {n: Latency(v, v, v, (v,) * rounds, calls=rounds) for n, v in shift.items()}

        monkeypatch.setattr(candidates, "bursts", noisy)
        results = run(plan("svd, data-weighted"))
        assert asked == [2, 4]  # tried again for longer
        assert {r.status for r in results.rows} == {NOISY}
        assert all(r.ratio_vs_best_dense is None and "itself" in r.note for r in results.rows)

    @pytest.mark.parametrize(
        "changes, words",
        [
            ({"workloads": ("nothing",)}, "burgers"),
            ({"methods": ("dense float32", "magic")}, "svd"),
            ({"methods": ("hrt",)}, "dense"),
            ({"tols": (2.0,)}, "between 0 and 1"),
            ({"tols": ()}, "between 0 and 1"),
            ({"batches": (0,)}, "positive"),
            ({"threads": 0}, "at least"),
            ({"inputs": (Path("x.npy"),), "workloads": ("burgers",)}, "file"),
        ],
    )
    def test_mistakes_are_found_before_any_work(self, changes, words):
        with pytest.raises(InputError, match=words):
            Plan(**changes)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """One network as .pt2, .onnx and .hrt, and rows for it."""
    folder, net = tmp_path_factory.mktemp("files"), low_rank_net()
    x = torch.rand(300, 3, generator=torch.Generator().manual_seed(5))
    np.save(folder / "x.npy", x.numpy())
    batch = {0: torch.export.Dim("batch")}
    torch.export.save(torch.export.export(net, (x[:3],), dynamic_shapes=(batch,)), folder / "net.pt2")
    model = hrt.compress(net, inputs=x, tol=1e-2, progress=False)
    model.save(folder / "net.hrt")
    hrt.export_onnx(model, folder / "net.onnx", check=False)
    return folder


class TestFiles:
    @pytest.mark.parametrize("name", ["net.pt2", "net.onnx", "net.hrt"])
    @pytest.mark.parametrize("given", [True, False])
    def test_any_network_of_a_user(self, name, given, files):
        inputs = (files / "x.npy",) if given else ()
        results = run(plan("hrt", workloads=(str(files / name),), inputs=inputs))
        rows = {r.method for r in results.rows if r.status in TIMED}
        assert rows == {"dense float32", "hrt"}, results.rows
        about = next(iter(results.facts["about"].values()))
        assert ("standard normal" in about) is not given and ("written-out" in about) is (name == "net.hrt")

    def test_too_few_rows_are_refused(self, files, tmp_path):
        np.save(tmp_path / "few.npy", np.zeros((10, 3), np.float32))
        with pytest.raises(InputError, match="64"):
            workloads.from_file(files / "net.pt2", (tmp_path / "few.npy",))


class TestCommandLine:
    def test_prints_a_table_and_writes_rows(self, files, tmp_path, capsys):
        arguments = ["--workload", str(files / "net.pt2"), "--method", "hrt", "svd", "--tol", "1e-2", "--batch", "1"]
        assert main([*arguments, "--rounds", "2", "--threads", "1", "--json", str(tmp_path / "a" / "rows.json")]) == 0
        out = capsys.readouterr().out
        assert "hrt is number" in out and "dense float32" in out and "the same call differs from itself" in out
        body = json.loads((tmp_path / "a" / "rows.json").read_text())
        assert {r["method"] for r in body["rows"]} == {
            "dense float32",
            "hrt",
            "hrt, fewest bytes",
            "svd",
            "svd, data-weighted",
            "svd, data-weighted float16",
        }

    def test_rows_that_are_not_there_are_a_mistake(self, tmp_path, capsys):
        (tmp_path / "mine.onnx").write_bytes(b"looked at later")
        assert main(["--workload", str(tmp_path / "mine.onnx"), "--inputs", str(tmp_path / "none.npy")]) == 2
        assert "none.npy does not exist" in capsys.readouterr().err

    @pytest.mark.parametrize("arguments", [["--workload", "nothing"], ["--method", "magic"], ["--tol", "-1"]])
    def test_a_mistake_is_one_line_and_status_2(self, arguments, capsys):
        assert main(arguments) == 2
        err = capsys.readouterr().err
        assert err.startswith("hrt.perf: Found") and err.count("\n") == 1

    def test_an_interruption_writes_what_there_is(self, monkeypatch, tmp_path, capsys, registered):
        def interrupted(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(harness, "_batch", interrupted)
        arguments = ["--workload", "small", "--method", "pruned, 2:4", "--tol", "1e-2", "--threads", "1"]
        assert main([*arguments, "--json", str(tmp_path / "rows.json")]) == 130
        assert read(tmp_path / "rows.json").facts["interrupted"] and "INTERRUPTED" in capsys.readouterr().out


GOOD = dict(asdict(Row("w", "hrt", 1, "b", 1e-3)), p50_us=2, ratio_vs_best_dense=2.0, ratio_low=1.9, ratio_high=2.1)


class TestReading:
    def written(self, folder: Path, row: object, **changes: object) -> Path:
        body = {"format": "hrt-bench", "version": 1, "facts": {}, "rows": [GOOD, row], "samples": {"1": [1, 2.5]}}
        (folder / "rows.json").write_text(json.dumps({**body, **changes}))
        return folder / "rows.json"

    def test_a_whole_number_is_a_number(self, tmp_path):
        found = read(self.written(tmp_path, GOOD, facts={"why": [], "anything": None}))
        assert found.rows[1].p50_us == 2 and found.samples == {1: (1.0, 2.5)}

    @pytest.mark.parametrize(
        "changes, words",
        [
            ({"p50_us": "12"}, "row 1: p50_us: found '12'. Expected a finite number, 0 or more or null"),
            ({"nbytes": "12"}, "row 1: nbytes: found '12'"),
            ({"nbytes": 1.5}, "row 1: nbytes: found 1.5"),
            ({"target": "1e-3"}, "row 1: target: found '1e-3'. Expected a finite number"),
            ({"target": float("nan")}, "row 1: target: found nan"),
            ({"p50_us": 10**400}, "row 1: p50_us: found 1000"),
            ({"error": -1.0}, "row 1: error: found -1.0"),
            ({"calls": True}, "row 1: calls: found True"),
            ({"batch": None}, "row 1: batch: found nothing. Expected a whole number"),
            ({"batch": 0}, "row 1: found status 'ok', batch 0"),
            ({"workload": None}, "row 1: workload: found nothing. Expected text"),
            ({"note": None}, "row 1: note: found nothing. Expected text"),
            ({"status": "splendid"}, "row 1: found status 'splendid'"),
            ({"ratio_low": None}, "row 1: found a ratio without both ends"),
        ],
    )
    def test_a_value_of_another_kind_is_named(self, changes, words, tmp_path):
        with pytest.raises(InputError, match=re.escape(words)):
            read(self.written(tmp_path, {**GOOD, **changes}))

    @pytest.mark.parametrize("name", ["workload", "method", "batch", "backend", "target"])
    def test_a_row_without_what_it_is_of(self, name, tmp_path):
        with pytest.raises(InputError, match=f"row 1: found no {name}"):
            read(self.written(tmp_path, {k: v for k, v in GOOD.items() if k != name}))

    @pytest.mark.parametrize(
        "changes, words",
        [
            ({"rows": None}, "rows: found nothing. Expected a list"),
            ({"rows": [1]}, "row 0: found 1. Expected an object"),
            ({"facts": None}, "facts: found nothing. Expected an object"),
            ({"facts": []}, "facts: found a list. Expected an object"),
            ({"facts": {"about": []}}, "facts: about: found a list"),
            ({"facts": {"why": {}}}, "facts: why: found an object. Expected a list"),
            ({"facts": {"why": ["w"]}}, "facts: why: entry 0: found 'w'"),
            (
                {"facts": {"why": [{"workload": "w", "batch": 1, "target": "x", "line": ""}]}},
                "entry 0: target: found 'x'",
            ),
            ({"facts": {"why": [{"workload": "w", "batch": 1, "target": 0.1}]}}, "entry 0: line: found nothing"),
            ({"samples": []}, "samples: found a list"),
            ({"samples": {"2": []}}, "samples: found '2'. Expected the number of one of 2 rows"),
            ({"samples": {"1": [1.0, "2"]}}, "samples of row 1: found '2'"),
        ],
    )
    def test_another_shape_of_file_is_named(self, changes, words, tmp_path):
        with pytest.raises(InputError, match=re.escape(words)):
            read(self.written(tmp_path, GOOD, **changes))


class TestBench:
    """`hrt bench` beside `python -m hrt.perf`: the same plan, one network."""

    @pytest.fixture
    def asked(self, monkeypatch) -> list[Plan]:
        plans: list[Plan] = []

        def remember(plan, advance, keep):
            plans.append(plan)
            results = Results((row("hrt", 1, 1.0),), {"interrupted": len(plans) > 1})
            keep(results)
            return results

        monkeypatch.setattr(bench, "run", remember)
        return plans

    def test_takes_the_error_that_a_file_was_made_for(self, files, asked):
        assert hrt_main(["bench", str(files / "net.hrt")]) == 0
        assert asked[0].workloads == (str(files / "net.hrt"),) and asked[0].tols == (1e-2,)

    def test_passes_on_what_it_is_told(self, files, asked, tmp_path):
        options = ["-i", str(files / "x.npy"), "--tol", "0.05", "--batch", "3", "--batch", "5", "--threads", "1"]
        assert hrt_main(["bench", str(files / "net.onnx"), *options, "--json", str(tmp_path / "rows.json")]) == 0
        (plan,) = asked
        assert (plan.tols, plan.batches, plan.threads, plan.inputs) == ((0.05,), (3, 5), 1, (files / "x.npy",))
        assert read(tmp_path / "rows.json").rows == (row("hrt", 1, 1.0),)

    def test_no_rows_do_not_replace_those_of_an_earlier_run(self, tmp_path, monkeypatch, capsys):
        path = tmp_path / "rows.json"
        Results((row("hrt", 1, 1.0),)).write(path)
        monkeypatch.setattr(bench, "run", lambda plan, advance, keep: keep(Results(())) or Results(()))
        bench.measure(Plan(workloads=("burgers",)), path)
        assert len(read(path).rows) == 1 and "no rows" in capsys.readouterr().out

    def test_a_file_is_not_ranked_at_errors_it_was_not_made_for(self, files):
        workload = workloads.build(str(files / "net.hrt"))
        made = workload.served.certificate.tol
        refused = METHODS["hrt"](workload, made / 10)
        assert isinstance(refused, Refusal) and f"{made:g}" in refused.note
        assert isinstance(METHODS["hrt"](workload, made), Offer)

    def test_an_interruption_is_status_130(self, files, asked):
        assert [hrt_main(["bench", str(files / "net.pt2")]) for _ in range(2)] == [0, 130]

    def test_a_network_that_could_not_be_measured_is_status_1(self, tmp_path, monkeypatch, capsys):
        rows = (row("hrt", 1, 1.0), row("dense float32", 1, None, status=FAILED, workload="mine.onnx"))
        monkeypatch.setattr(bench, "run", lambda plan, advance, keep: keep(Results(rows)) or Results(rows))
        assert bench.measure(Plan(workloads=("burgers",))) == 1
        assert "not measured: mine.onnx" in capsys.readouterr().err

    @pytest.mark.parametrize("name", ["gone.hrt", "gone.onnx", "net.txt", "burgers"])
    def test_a_mistake_is_status_2(self, name, asked, capsys):
        assert hrt_main(["bench", name]) == 2 and not asked
        assert capsys.readouterr().err.count("\n") == 1


def row(method: str, nbytes: int, p50: float | None, **changes) -> Row:
    known = {"workload": "w", "batch": 1, "backend": "b", "target": 1e-2, "error": 1e-3}
    return Row(method=method, **{**known, "nbytes": nbytes, "p50_us": p50, **changes})


class TestRanks:
    def test_rounds_count_more_than_medians(self):
        quiet = row("dense", 9, 6.5, ratio_vs_best_dense=1.0, noise=0.02)
        unlucky = row("hrt", 1, 9.7, ratio_vs_best_dense=1.05, noise=0.02)  # asked in slower rounds
        assert rank([quiet, unlucky], "p50_us").place == 1
        assert standing([quiet, unlucky], latency).rank == 1
        assert rank([replace(quiet, ratio_vs_best_dense=None), unlucky], "p50_us").place == 2

    def test_times_within_noise_share_a_place(self):
        rows = [row("dense", 9, 10.0, noise=0.05), row("hrt", 1, 10.4, noise=0.05), row("svd", 5, 11.5, noise=0.05)]
        found = rank(rows, "p50_us")
        assert (found.place, found.of, found.shared, found.text) == (1, 3, 1, "1 of 3, with another")
        clear = [replace(r, noise=0.0) for r in rows]
        assert (rank(clear, "p50_us").place, rank(clear, "p50_us").shared) == (2, 0)
        assert rank(rows, "nbytes").place == 1

    def test_the_fastest_execution_counts(self):
        rows = [row("dense", 100, 9.0), row("dense", 100, 5.0), row("hrt", 40, 7.0), row("svd", 60, 8.0)]
        by_time, by_bytes = rank(rows, "p50_us"), rank(rows, "nbytes")
        assert (by_time.place, by_time.of, by_time.first) == (2, 3, "dense") and by_bytes.place == 1

    def test_who_misses_the_error_is_not_ranked(self):
        rows = [row("dense", 100, 9.0), row("quantized", 10, 1.0, error=0.5), row("svd", 5, None), row("hrt", 40, 7.0)]
        assert rank(rows, "p50_us").place == rank(rows, "nbytes").place == 1

    def test_without_hrt_there_is_no_rank(self):
        assert rank([row("dense", 1, 1.0)], "nbytes") is None

    def test_noise_is_not_ranked(self):
        rows = [row("dense", 100, 9.0, status=NOISY), row("hrt", 40, 7.0, status=NOISY)]
        assert "too noisy" in verdict(Results(tuple(rows)), rows)[0]

    def test_every_loss_has_a_line_of_its_own_figures(self, registered):
        """Dense bytes are more, so that only time can be lost; the line holds the measured times."""

        def instant(workload, tol):
            answers = {
                x.tobytes(): y for x, y in zip(workload.fresh[0].numpy(), workload.reference("fresh"), strict=True)
            }

            def bind(x):
                ready = torch.stack([answers[v.tobytes()] for v in x[0]])
                return lambda: ready

            return Offer(8, (Execution("memory", bind),), "knows the answers")

        results = run(plan("svd", "hrt", rounds=4), methods={**METHODS, "svd": instant})
        ((_, line),) = [(w["batch"], w["line"]) for w in results.facts["why"]]
        assert "bytes: svd needs 8" in line and "time: svd (memory)" in line and "multiply-adds" in line
